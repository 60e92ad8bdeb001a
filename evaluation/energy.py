"""Joules that a device says it has taken: an NVIDIA GPU by NVML (the package nvidia-ml-py), an Intel or AMD processor
by Linux's power capping (RAPL), whose counters many systems let only root read."""

from collections.abc import Callable
from pathlib import Path

import torch

Meter = Callable[[], float]  # joules since some moment

POWERCAP = Path("/sys/class/powercap")


def meter_of(device: torch.device) -> Meter | None:
    """None where the device does not tell."""
    return _of_gpu(device) if device.type == "cuda" else _of_processor(POWERCAP) if device.type == "cpu" else None


def _of_gpu(device: torch.device) -> Meter | None:
    """The whole GPU's, by the identity that PyTorch knows it by: NVML counts devices that this process may not see."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:  # a driver or a GPU without this counter
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000  # from millijoules


def _of_processor(folder: Path) -> Meter | None:
    """All packages' together. A counter begins anew after a range that the system states."""
    packages = sorted(folder.glob("intel-rapl:[0-9]*"))
    packages = [package for package in packages if package.name.count(":") == 1]  # their parts are counted in them
    try:
        ranges = [int((package / "max_energy_range_uj").read_text()) for package in packages]
        before = [int((package / "energy_uj").read_text()) for package in packages]
    except (OSError, ValueError):
        return None
    if not packages:
        return None
    total = 0

    def read() -> float:
        nonlocal before, total
        now = [int((package / "energy_uj").read_text()) for package in packages]
        total += sum((new - old) % span for new, old, span in zip(now, before, ranges, strict=True))
        before = now
        return total / 1e6

    return read
