"""What a process of a run computes with."""

import dataclasses

import torch
from torch.distributed.device_mesh import DeviceMesh

from parallel.ranks import ALONE, Ranks


@dataclasses.dataclass(frozen=True)
class Compute:
    """The device and the compute dtype of a process, its place among the ranks, and the mesh that these make where a
    strategy needs one."""

    device: torch.device
    dtype: str
    ranks: Ranks = ALONE
    mesh: DeviceMesh | None = None
