"""Devices: dense peak arithmetic by compute dtype, memory and its bandwidth. A sparse figure never stands in for a
dense one.

FLOP/s with float32 accumulation and without structured sparsity, from the makers' data sheets; `tf32` is float32 in
TF32 products. A dtype that a device lacks is absent. Memory is what the data sheet names, in bytes of 1e9 to the GB,
of which the driver keeps a little. Devices that are not here are measured (parallel/device.py).
"""

import dataclasses
import re

from common.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Device:
    """`reported`: its names as the driver gives them, without "NVIDIA". FLOP/s, bytes, bytes per second."""

    name: str
    reported: tuple[str, ...]
    peak_flops: dict[str, float]
    memory_bytes: float
    bandwidth: float
    source: str


_A100 = {"bfloat16": 312e12, "float16": 312e12, "tf32": 156e12, "float32": 19.5e12}
_H100_SXM = {"bfloat16": 989.4e12, "float16": 989.4e12, "tf32": 494.7e12, "float32": 66.9e12}  # and the H200
_V100 = {"float16": 125e12, "float32": 15.7e12}

DEVICES = (
    Device(
        "B200",
        ("B200",),
        {"bfloat16": 2250e12, "float16": 2250e12, "tf32": 1125e12, "float32": 75e12},
        180e9,
        8e12,
        "NVIDIA DGX B200 data sheet, per GPU, dense",
    ),
    Device("H200", ("H200",), _H100_SXM, 141e9, 4.8e12, "NVIDIA H200 data sheet, SXM, dense"),
    Device(
        "H100 PCIe",
        ("H100 PCIe",),
        {"bfloat16": 756e12, "float16": 756e12, "tf32": 378e12, "float32": 51.2e12},
        80e9,
        2.0e12,
        "NVIDIA H100 data sheet, PCIe, dense",
    ),
    Device("H100 SXM", ("H100 80GB HBM3",), _H100_SXM, 80e9, 3.35e12, "NVIDIA H100 data sheet, SXM, dense"),
    Device(
        "A100 80GB",
        ("A100-SXM4-80GB", "A100-SXM-80GB"),
        _A100,
        80e9,
        2.039e12,
        "NVIDIA A100 data sheet, SXM, dense",
    ),
    Device("A100 80GB PCIe", ("A100 80GB PCIe",), _A100, 80e9, 1.935e12, "NVIDIA A100 data sheet, PCIe, dense"),
    Device(
        "A100 40GB",
        ("A100-SXM4-40GB", "A100-SXM-40GB", "A100-PCIE-40GB"),
        _A100,
        40e9,
        1.555e12,
        "NVIDIA A100 40GB data sheet, dense",
    ),
    Device(
        "A6000",
        ("RTX A6000",),
        {"bfloat16": 154.8e12, "float16": 154.8e12, "tf32": 77.4e12, "float32": 38.7e12},
        48e9,
        768e9,
        "NVIDIA RTX A6000 data sheet, dense (half of the sparse figures)",
    ),
    Device("V100", ("Tesla V100-SXM2-32GB",), _V100, 32e9, 900e9, "NVIDIA V100 data sheet, SXM2, 32 GB"),
    Device("V100 16GB", ("Tesla V100-SXM2-16GB",), _V100, 16e9, 900e9, "NVIDIA V100 data sheet, SXM2, 16 GB"),
    Device(
        "L4",
        ("L4",),
        {"bfloat16": 121e12, "float16": 121e12, "tf32": 60e12, "float32": 30.3e12},
        24e9,
        300e9,
        "NVIDIA L4 data sheet, dense (half of the sparse figures)",
    ),
    Device(
        "RTX 4090",
        ("GeForce RTX 4090",),
        {"bfloat16": 165.2e12, "float16": 165.2e12, "tf32": 82.6e12, "float32": 82.6e12},
        24e9,
        1008e9,
        "NVIDIA Ada architecture white paper, dense, float32 accumulation",
    ),
)


def find_device(reported_name: str) -> Device | None:
    """The device whose driver reports this name, e.g. `NVIDIA H200`; None for one that is not in the table.

    The whole name counts: an L40 is no L4, an H200 NVL no H200.
    """
    reported = reported_name.removeprefix("NVIDIA ")
    return next((device for device in DEVICES if reported in device.reported), None)


def device_names() -> list[str]:
    """The names of the devices as they are written on a command line."""
    return [device.name.replace(" ", "-") for device in DEVICES]


def named_device(name: str) -> Device:
    """A device of the table by its name, written with spaces, - or _. Raises UserError."""
    for device in DEVICES:
        if _plain(device.name) == _plain(name):
            return device
    if _plain(name) == "cpu":
        raise UserError(
            "the peak of a CPU is measured, not tabled: give what train.py prints at its start as peak_flops"
        )
    names = device_names()
    kinds = [of_kind for of_kind in names if _plain(of_kind).startswith(f"{_plain(name)} ")]
    hint = f" (did you mean {' or '.join(map(repr, kinds))}?)" if kinds else did_you_mean(name, names)
    raise UserError(f"device {name!r} is none of: {', '.join(names)}{hint}")


def dense_peak(device: Device, dtype: str) -> float:
    """FLOP/s. Raises UserError for a dtype that the device lacks."""
    if dtype not in device.peak_flops:
        raise UserError(
            f"{device.name} does not compute in {dtype!r}; it has {', '.join(device.peak_flops)}: take one as dtype"
        )
    return device.peak_flops[dtype]


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]+", " ", name).strip().lower()
