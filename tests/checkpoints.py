"""What a checkpoint holds, whole, whoever wrote it."""

from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from runs.folder import read_state, write_state


def last_checkpoint(run: Path) -> Path:
    return max(run.glob("checkpoints/step_*"))


def tensors(checkpoint: Path) -> dict[str, Tensor]:
    """The model's, and the optimizer's under `optimizer.<parameter>.<what>`."""
    reader = dcp.HuggingFaceStorageReader(str(checkpoint))
    known = reader.read_metadata().state_dict_metadata
    found = {name: torch.zeros(of.size, dtype=of.properties.dtype) for name, of in known.items()}
    dcp.load(found, storage_reader=reader, no_dist=True)
    return found


def weights(checkpoint: Path) -> dict[str, Tensor]:
    """The model's alone."""
    return {name: value for name, value in tensors(checkpoint).items() if not name.startswith("optimizer.")}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """To the last bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def without_its_tokenizer(run: Path) -> None:
    """As an earlier version left a run."""
    for checkpoint in (run / "checkpoints").glob("step_*"):
        state = read_state(checkpoint)
        del state["data"]["tokenizer"]
        write_state(checkpoint, state)
