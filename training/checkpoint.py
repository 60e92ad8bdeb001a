"""Tensors and progress of a run, to a checkpoint folder and back. safetensors and JSON: loading executes nothing."""

import dataclasses
import errno
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from errors import UserError
from training.optimizer import load_optimizer_tensors, optimizer_tensors
from training.run_folder import Progress, RunFolder, read_state, write_state


@dataclasses.dataclass
class Training:
    """What a step changes, and so what a checkpoint holds."""

    model: nn.Module  # the plain model, inside whatever parallelism wraps it
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    progress: Progress


def save_checkpoint(folder: RunFolder, training: Training, config: dict[str, Any], data: dict[str, str]) -> Path | None:
    """Write a checkpoint of this step. Returns None, with the earlier ones untouched, when the disk is full.

    `config` and `data` (the checksums of what is trained on) are kept to compare a resumed run with.
    """
    step = training.progress.step
    state = {
        "progress": dataclasses.asdict(training.progress),
        "config": config,
        "data": data,
        "scaler": training.scaler.state_dict(),
    }
    try:
        existing = folder.checkpoint_of(step)
        if existing is not None:  # saved before it was evaluated: the tensors are the same
            write_state(existing, state)
            return existing
        with folder.new_checkpoint(step) as aside:
            save_file(training.model.state_dict(), aside / "model.safetensors")
            save_file(optimizer_tensors(training.model, training.optimizer), aside / "optimizer.safetensors")
            write_state(aside, state)
    except (OSError, SafetensorError) as error:
        if not _disk_is_full(error):
            raise
        return None
    return folder.checkpoint_of(step)


def _disk_is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "os error 28" in str(error) or "No space left" in str(error)


def load_checkpoint(checkpoint: Path, training: Training, device: torch.device) -> None:
    """Everything that `save_checkpoint` wrote, into `training`. Raises UserError for a damaged file."""
    state = read_state(checkpoint)
    load_model(checkpoint, training.model, device)
    try:
        tensors = load_file(checkpoint / "optimizer.safetensors", device=str(device))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{checkpoint}/optimizer.safetensors is damaged: {error}") from None
    load_optimizer_tensors(training.model, training.optimizer, tensors)
    training.scaler.load_state_dict(state["scaler"])
    training.progress = Progress(**state["progress"])


def load_model(checkpoint: Path, model: nn.Module, device: torch.device) -> None:
    """The weights alone. Raises UserError for a damaged file."""
    try:
        model.load_state_dict(load_file(checkpoint / "model.safetensors", device=str(device)))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{checkpoint}/model.safetensors is damaged: {str(error).splitlines()[0]}") from None
