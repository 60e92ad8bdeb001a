"""Dense peak arithmetic of devices, by compute dtype. A sparse figure never stands in for a dense one.

FLOP/s with float32 accumulation and without structured sparsity, from the makers' data sheets; `tf32` is float32 in
TF32 products. A dtype that a device lacks is absent. Devices that are not here are measured (training/device.py).
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Device:
    """`match`: what its name, as the driver reports it, contains; the first match in the table counts."""

    name: str
    match: tuple[str, ...]
    peak_flops: dict[str, float]
    source: str


DEVICES = (
    Device(
        "B200",
        ("B200",),
        {"bfloat16": 2250e12, "float16": 2250e12, "tf32": 1125e12, "float32": 75e12},
        "NVIDIA DGX B200 data sheet, per GPU, dense",
    ),
    Device(
        "H200",
        ("H200",),
        {"bfloat16": 989.4e12, "float16": 989.4e12, "tf32": 494.7e12, "float32": 66.9e12},
        "NVIDIA H200 data sheet, SXM, dense",
    ),
    Device(
        "H100 PCIe",
        ("H100 PCIe",),
        {"bfloat16": 756e12, "float16": 756e12, "tf32": 378e12, "float32": 51.2e12},
        "NVIDIA H100 data sheet, PCIe, dense",
    ),
    Device(
        "H100 SXM",
        ("H100 80GB HBM3", "H100 SXM"),
        {"bfloat16": 989.4e12, "float16": 989.4e12, "tf32": 494.7e12, "float32": 66.9e12},
        "NVIDIA H100 data sheet, SXM, dense",
    ),
    Device(
        "A100",
        ("A100",),
        {"bfloat16": 312e12, "float16": 312e12, "tf32": 156e12, "float32": 19.5e12},
        "NVIDIA A100 data sheet, dense",
    ),
    Device(
        "A6000",
        ("RTX A6000",),
        {"bfloat16": 154.8e12, "float16": 154.8e12, "tf32": 77.4e12, "float32": 38.7e12},
        "NVIDIA RTX A6000 data sheet, dense",
    ),
    Device(
        "V100",
        ("V100-SXM2",),
        {"float16": 125e12, "float32": 15.7e12},
        "NVIDIA V100 data sheet, SXM2",
    ),
    Device(
        "L4",
        ("NVIDIA L4",),
        {"bfloat16": 121e12, "float16": 121e12, "tf32": 60e12, "float32": 30.3e12},
        "NVIDIA L4 data sheet, dense (half of the sparse figures)",
    ),
    Device(
        "RTX 4090",
        ("RTX 4090",),
        {"bfloat16": 165.2e12, "float16": 165.2e12, "tf32": 82.6e12, "float32": 82.6e12},
        "NVIDIA Ada architecture white paper, dense, float32 accumulation",
    ),
)


def find_device(reported_name: str) -> Device | None:
    """The device whose driver reports this name, e.g. `NVIDIA H200`; None for one that is not in the table."""
    for device in DEVICES:
        if any(match in reported_name for match in device.match):
            return device
    return None
