"""Which device and dtype a run computes on, what that device can do at best, and how much memory is in use."""

import contextlib
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from common.errors import UserError
from common.memory import peak_of_process
from flops_parameter_counting.costs.devices import find_device
from parallel.ranks import Ranks

_CPUINFO = Path("/proc/cpuinfo")


def choose_device(wanted: str, ranks: Ranks) -> torch.device:
    """The device of this process. Raises UserError for one that this machine does not have."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
        if wanted == "cpu" and torch.backends.mps.is_available() and ranks.size == 1:
            wanted = "mps"
    device = torch.device(wanted)
    if device.type == "cuda":
        return _choose_gpu(device, ranks)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device='mps' needs an Apple GPU and a PyTorch built for it; --device=cpu runs anywhere")
    if device.type == "mps" and ranks.size > 1:
        raise UserError("device='mps' takes one process; torchrun with several needs --device=cpu")
    return device


def _choose_gpu(device: torch.device, ranks: Ranks) -> torch.device:
    if not torch.cuda.is_available():
        raise UserError("device='cuda' needs an NVIDIA GPU that PyTorch sees; --device=cpu runs anywhere")
    if device.index is not None and ranks.size > 1:
        raise UserError(f"device='cuda:{device.index}' is for one process; under torchrun take --device=cuda")
    index = ranks.local_rank if device.index is None else device.index
    wanted, present = max(index + 1, ranks.local_size), torch.cuda.device_count()
    if wanted > present:  # every rank of the machine finds the same, so that the first one says it
        raise UserError(f"{wanted} GPUs are wanted here, but PyTorch sees {present}; start fewer processes")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def choose_dtype(wanted: str, device: torch.device) -> str:
    """The compute dtype: `auto` is bfloat16 where the device has arithmetic for it, else float32."""
    if wanted != "auto":
        if wanted == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise UserError("this GPU has no bfloat16 arithmetic: take --dtype=float16 or --dtype=float32")
        return wanted
    return "bfloat16" if _computes_in_bfloat16(device) else "float32"


def _computes_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and sys.platform == "linux":
        flags = set(_CPUINFO.read_text().split())
        return bool(flags & {"amx_bf16", "avx512_bf16", "bf16"})  # Intel's and AMD's names, then Arm's
    return False


def precision(device: torch.device, dtype: str) -> contextlib.AbstractContextManager:
    """Autocast for the compute dtype; master weights stay float32."""
    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, getattr(torch, dtype))


@dataclass(frozen=True)
class Peak:
    """Dense FLOP/s of one device in the compute dtype, and where the figure is from."""

    flops_per_second: float
    source: str  # a data sheet, or `measured`


def device_name(device: torch.device) -> str:
    """The name that the driver or the operating system reports."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu" and sys.platform == "linux":
        for line in _CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({torch.get_num_threads()} threads)"
    return f"{device.type} ({torch.get_num_threads()} threads)"


def device_peak(device: torch.device, dtype: str) -> Peak:
    """From the table of devices; for a device that is not in it, measured by a matrix product."""
    known = find_device(device_name(device)) if device.type == "cuda" else None
    tf32 = dtype == "float32" and device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    arithmetic = "tf32" if tf32 else dtype
    if known is not None and arithmetic in known.peak_flops:
        return Peak(known.peak_flops[arithmetic], f"{known.source}, {arithmetic}")
    return Peak(measure_matmul(device, getattr(torch, dtype)), "measured")


# Which are the fastest depends on a processor's caches and matrix instructions.
MATMUL_SIZES = {"cpu": (256, 512, 1024, 2048)}


def measure_matmul(device: torch.device, dtype: torch.dtype, seconds: float = 0.8) -> float:
    """The best FLOP/s of square matrix products, with the second factor as it is and transposed, of several sizes: up
    to where one product would take a third of `seconds`, which all together take about."""
    best, sizes = 0.0, MATMUL_SIZES.get(device.type, (4096, 8192))
    for transposed in (False, True):
        rate = 0.0
        for size in sizes:
            if rate and 2 * size**3 / rate > seconds / 3:
                break
            # Not ones or zeros: a GPU computes on those faster than on any data that occur.
            a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            b = b.T if transposed else b
            product = a @ b  # loads the kernel
            until = time.perf_counter() + seconds / (2 * len(sizes))
            while time.perf_counter() < until:
                synchronize(device)
                start = time.perf_counter()
                torch.mm(a, b, out=product)
                synchronize(device)
                rate = max(rate, 2 * size**3 / (time.perf_counter() - start))
        best = max(best, rate)
    return best


def synchronize(device: torch.device) -> None:
    """Wait for what the device was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def memory_in_use(device: torch.device) -> dict[str, int | None]:
    """Bytes `allocated`, `reserved` and `peak`: PyTorch's on a GPU, the whole process's (resident) on a CPU."""
    if device.type == "cuda":
        return {
            "allocated": torch.cuda.memory_allocated(device),
            "reserved": torch.cuda.memory_reserved(device),
            "peak": torch.cuda.max_memory_allocated(device),
        }
    if device.type == "mps":
        allocated, reserved = torch.mps.current_allocated_memory(), torch.mps.driver_allocated_memory()
        return {"allocated": allocated, "reserved": reserved, "peak": None}
    peak = peak_of_process()
    resident = None
    if sys.platform == "linux":
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        peak = max(peak, resident)  # the kernel keeps the two in counters of its own
    return {"allocated": resident, "reserved": None, "peak": peak}
