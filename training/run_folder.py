"""The folder of a run: who holds it, which checkpoints it has, and what they say. No torch.

    out/<run>/
        config.py, config.json   every key in force; the first one reproduces the run
        log.jsonl                see docs/log_format.md
        checkpoints/step_00000200/{model.safetensors, optimizer.safetensors, state.json}

A checkpoint folder is written under a hidden name and renamed, so one with a visible name is whole.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from errors import UserError


@dataclasses.dataclass
class Progress:
    """How far a run has come: what a checkpoint keeps besides tensors."""

    step: int = 0  # optimizer steps taken, the skipped ones included
    samples: int = 0  # sequences consumed: the index of the next one
    tokens: int = 0
    train_seconds: float = 0.0  # in training steps; evaluation, checkpoints and start-up left out
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    last_evaluation: int | None = None  # its step
    best_step: int | None = None
    best_val_loss: float | None = None
    compile: bool = False  # what compile='auto' decided: a resumed run computes as the first one did
    dtype: str = "float32"  # likewise


class RunFolder:
    """Paths and checkpoints of one run."""

    def __init__(self, path: Path):
        self.path = path
        self.log = path / "log.jsonl"
        self._checkpoints = path / "checkpoints"

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(self._checkpoints.glob("step_*"))

    def last_checkpoint(self) -> Path | None:
        return next(reversed(self.checkpoints()), None)

    def best_checkpoint(self) -> Path | None:
        """The one with the lowest validation loss, if the run kept it."""
        last = self.last_checkpoint()
        if last is None:
            return None
        best_step = read_state(last)["progress"]["best_step"]
        return self.checkpoint_of(best_step) if best_step is not None else None

    def _folder_of(self, step: int) -> Path:
        return self._checkpoints / f"step_{step:08d}"

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the folder for a live run; the kernel releases it however the process ends.

        Raises UserError when another run holds it or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise UserError(f"cannot write to the run's folder {self.path}: {error.strerror}") from None
        with lock:
            if not _lock(lock):
                raise UserError(f"a live run holds {self.path}: wait for it, or choose another --out_dir")
            for leftover in self._checkpoints.glob(".*"):  # of a run that was killed while it wrote or deleted
                shutil.rmtree(leftover)
            yield

    @contextlib.contextmanager
    def new_checkpoint(self, step: int) -> Iterator[Path]:
        """A folder to write a checkpoint into; it appears under its name when the block ends without an exception."""
        aside = self._checkpoints / f".writing_{step:08d}"
        try:
            aside.mkdir(parents=True)
            yield aside
            for file in aside.iterdir():
                _sync(file)
            _sync(aside)
            aside.rename(self._folder_of(step))
            _sync(self._checkpoints)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def checkpoint_of(self, step: int) -> Path | None:
        """The checkpoint of exactly this step, if there is one."""
        folder = self._folder_of(step)
        return folder if folder.exists() else None

    def prune(self, keep_last: int, keep_every: int, best_step: int | None) -> None:
        """Delete the checkpoints that nothing keeps."""
        checkpoints = self.checkpoints()
        for folder in checkpoints[:-keep_last]:
            step = int(folder.name.removeprefix("step_"))
            if step != best_step and not (keep_every and step % keep_every == 0):
                self._delete(folder)

    def _delete(self, folder: Path) -> None:
        doomed = folder.with_name(f".deleting_{folder.name}")  # half deleted, it must not look whole
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _lock(file: IO[str], patience: float = 0.2) -> bool:
    """Whether the file could be locked. A tool that looks whether a run is alive holds it for an instant."""
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        else:
            return True


def read_state(checkpoint: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint: `progress`, `config`, `data` and the gradient scaler's state. Raises UserError."""
    try:
        state = json.loads((checkpoint / "state.json").read_text())
        Progress(**state["progress"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{checkpoint} is not a readable checkpoint: {error}") from None
    return state


def write_state(checkpoint: Path, state: dict[str, Any]) -> None:
    """Write `state.json`, aside and renamed."""
    aside = checkpoint / ".state.json"
    aside.write_text(json.dumps(state, indent=1) + "\n")
    _sync(aside)
    aside.replace(checkpoint / "state.json")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
