"""The precisions that components compute in, whatever autocast says."""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """In float32, or float64 where it is."""
    return x if x.dtype == torch.float64 else x.float()


def widest(x: Tensor) -> Tensor:
    """In float64, where the device has it: Apple's has not."""
    return x.float() if x.device.type == "mps" else x.double()
