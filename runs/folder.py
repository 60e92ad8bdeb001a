"""The folder of a run: who holds it, which checkpoints it has, and what they say. No torch.

    out/<run>/
        config.py, config.json   every key in force; the first one reproduces the run
        log.jsonl                see docs/log_format.md
        checkpoints/step_00000200/{shard-*.safetensors, state.json}

A checkpoint folder is written under a hidden name and renamed, so one with a visible name is whole. `state.json` has
the checksums of the other files and its own, for what happens to them afterwards.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import configurator
from common.errors import RunFailure, UserError
from common.fields import check_fields
from common.files import aside, open_text, replace_file, sync
from common.keys import check_value
from common.locks import left_as_it_was, lock
from configurator import Configuration
from parallel.ranks import Ranks
from runs.config import RunConfig


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
    last_benchmarks: int | None = None  # theirs
    best_step: int | None = None
    best_val_loss: float | None = None
    compile: bool = False  # what compile='auto' decided: a resumed run computes as the first one did
    dtype: str = "float32"  # likewise
    wandb_id: str | None = None  # of the run there that a resumed run goes on with

    def forget_evaluations(self) -> None:
        """For a run that evaluates something else from now on: its losses do not compare with those before."""
        self.last_evaluation = self.best_step = self.best_val_loss = None

    @property
    def has_updated(self) -> bool:
        """Whether any step changed the weights: before that, an optimizer has no state."""
        return self.step > self.skipped_steps


OF_THE_MODEL = "hugging_face"  # in a run's folder: what belongs to the text of a Hugging Face model that it began from
CHAT_TEMPLATE = "chat_template.jinja"  # in a run's folder, and in that of a Hugging Face model: how turns become a text
# What this module itself makes for a while; whatever else lies in a run's folder is someone's.
LEFTOVER = re.compile(r"\.(writing|deleting_step)_[0-9]{8,}")


def step_of(checkpoint: Path) -> int:
    """The number in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step_"))


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder of this name is a checkpoint, and not one that someone has put aside under a name of his own."""
    return re.fullmatch("step_[0-9]{8,}", name) is not None


def checkpoint_choice(text: str) -> str | int:
    """An argparse type for `RunFolder.find`."""
    if text not in ("best", "last") and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is none of: best, last, the number of a step")
    return int(text) if text.isdecimal() else text


def existing_run(path: Path) -> "RunFolder":
    """The folder of a run that a command reads. Raises UserError when there is none."""
    if not path.is_dir():
        raise UserError(f"there is no run folder {path}")
    return RunFolder(path)


class RunFolder:
    """Paths and checkpoints of one run."""

    def __init__(self, path: Path):
        self.path = path
        self.log = path / "log.jsonl"
        self._checkpoints = path / "checkpoints"
        self._held: int | None = None  # the folder, opened, while a run holds it

    @property
    def has_run(self) -> bool:
        """Whether a run has begun in it."""
        return self.log.exists() or bool(self.checkpoints())

    @property
    def is_held(self) -> bool:
        """Whether this process holds it, and so may write to it."""
        return self._held is not None

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        found = [folder for folder in self._checkpoints.glob("step_*") if is_checkpoint_name(folder.name)]
        return sorted(filter(Path.is_dir, found), key=step_of)

    def last_checkpoint(self) -> Path | None:
        return next(reversed(self.checkpoints()), None)

    def best_checkpoint(self) -> Path | None:
        """The one with the lowest validation loss, if the run kept it."""
        last = self.last_checkpoint()
        if last is None:
            return None
        best_step = read_state(last)["progress"]["best_step"]
        return self.checkpoint_of(best_step) if best_step is not None else None

    def find(self, wanted: str | int | None) -> tuple[Path, str]:
        """The checkpoint that a command names as `best`, `last` or a step, and in a word which one it is; by default
        the best, else the last. Raises UserError when the run does not have it."""
        last = self.last_checkpoint()
        if last is None:
            raise UserError(f"{self.path} has no checkpoint: train.py writes one at evaluations and at the run's end")
        if isinstance(wanted, int):
            found, which = self.checkpoint_of(wanted), "as chosen"
        else:
            best = None if wanted == "last" else self.best_checkpoint()
            which = wanted or ("last" if best is None else "best")
            found = last if which == "last" else best
        if found is None:
            missing = f"checkpoint of step {wanted}" if isinstance(wanted, int) else "checkpoint with the lowest loss"
            steps = ", ".join(str(step_of(checkpoint)) for checkpoint in self.checkpoints())
            raise UserError(f"{self.path} has no {missing}: choose --checkpoint=last, or a step of {steps}")
        return found, which

    def _folder_of(self, step: int) -> Path:
        return self._checkpoints / f"step_{step:08d}"

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the folder for a live run; the kernel releases it however the process ends.

        Raises UserError when another run holds it or it cannot be written.
        """
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(left_as_it_was(self.path))
                locked = lock(self.path)
            except OSError as error:
                raise UserError(f"cannot write to the run's folder {self.path}: {error.strerror}") from None
            if locked is None:
                raise UserError(f"a live run holds {self.path}: wait for it, or choose another --out_dir")
            held.enter_context(locked)
            self._held = os.open(self.path, os.O_RDONLY)  # while it is open no other folder gets its inode's number
            try:
                for leftover in self._checkpoints.glob(".*"):  # of a run that was killed while it wrote or deleted
                    if LEFTOVER.fullmatch(leftover.name) and not leftover.is_symlink():
                        shutil.rmtree(leftover, ignore_errors=True)
                yield
            finally:
                os.close(self._held)
                self._held = None

    def check_writable(self) -> None:
        """Raises UserError where the run could not write its log or its checkpoints, before anything is computed."""
        for path in filter(Path.exists, (self.path, self.log, self._checkpoints)):
            probe = path if path == self.log else aside(path / "probe")
            try:
                probe.open("ab").close()
                if probe != self.log:
                    probe.unlink()
            except OSError as error:
                raise UserError(f"cannot write to {path}: {error.strerror}; choose another --out_dir") from None

    def check_still_there(self) -> None:
        """Raises RunFailure when the folder that the run holds is no longer what has its name."""
        if self._held is None:
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._held), self.path.stat()):
                return
        raise RunFailure(
            f"{self.path} was removed, renamed or replaced while the run wrote to it: the run ends here, and what it "
            "had saved is wherever that folder is now"
        )

    def aside(self, step: int) -> Path:
        """Where the files of a checkpoint are written."""
        return self._checkpoints / f".writing_{step:08d}"

    def put_in_place(self, step: int, state: dict[str, Any]) -> Path:
        """Complete what was written aside with its state and give it its name."""
        folder = self._folder_of(step)
        write_state(self.aside(step), state)
        sync(self.aside(step))
        self.aside(step).rename(folder)
        sync(self._checkpoints)
        return folder

    def discard(self, step: int) -> None:
        """Delete what was written aside."""
        shutil.rmtree(self.aside(step), ignore_errors=True)

    def set_damaged_aside(self, checkpoint: Path) -> Path:
        """Rename a checkpoint that cannot be used, so that the run can write this step anew."""
        aside = checkpoint.with_name(f"damaged_{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        return checkpoint.rename(aside)

    def checkpoint_of(self, step: int) -> Path | None:
        """The checkpoint of exactly this step, if there is one."""
        folder = self._folder_of(step)
        return folder if folder.exists() else None

    def prune(self, keep_last: int, keep_every: int, kept_steps: set[int | None]) -> None:
        """Delete the checkpoints that nothing keeps."""
        checkpoints = self.checkpoints()
        for folder in checkpoints[:-keep_last]:
            step = step_of(folder)
            if step not in kept_steps and not (keep_every and step % keep_every == 0):
                self._delete(folder)

    def _delete(self, folder: Path) -> None:
        doomed = folder.with_name(f".deleting_{folder.name}")  # half deleted, it must not look whole
        folder.rename(doomed)
        if doomed.is_symlink():
            doomed.unlink()
        else:
            shutil.rmtree(doomed, ignore_errors=True)  # of what is left, hold() disposes


class Misnamed(UserError):
    """A checkpoint whose folder has the name of another step."""


def read_state(checkpoint: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint: `progress`, `config`, `data`, the gradient scaler's state and the checksums of
    its `files`. Raises UserError when it is missing or damaged."""
    try:
        with open_text(checkpoint / "state.json") as file:
            state = json.load(file)
        if state.pop("checksum") != _checksum_of(state):
            raise ValueError("its state.json has another checksum than it should")
        check_state(state)
        if is_checkpoint_name(checkpoint.name) and state["progress"]["step"] != step_of(checkpoint):
            right = f"step_{state['progress']['step']:08d}"
            raise Misnamed(f"{checkpoint} is the checkpoint of another step: rename it to {right}")
        if outside := [name for name in state["files"] if Path(name).name != name]:
            raise ValueError(f"its state.json names {outside[0]!r}, a file elsewhere")
    except OSError as error:
        raise UserError(f"{checkpoint} is damaged: its state.json cannot be read: {error.strerror}") from None
    except KeyError as error:
        raise UserError(f"{checkpoint} is damaged: its state.json has no {error}") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{checkpoint} is damaged: {error}") from None
    return state


def data_of(checkpoint: Path) -> dict[str, Any]:
    """What the run of a checkpoint is trained on, as its `data` say; empty where nothing was. The checkpoint of step 0
    of a run that began from weights was written before that was known: then the run's last one says it. Raises
    UserError for a damaged one."""
    own, last = read_state(checkpoint)["data"], RunFolder(checkpoint.parent.parent).last_checkpoint()
    return own if own or last is None else read_state(last)["data"]


def check_state(state: dict[str, Any]) -> None:
    """Raises ValueError, TypeError or KeyError for what cannot be the state of a run: it may be a stranger's."""
    progress = Progress(**state["progress"])
    try:
        check_fields(progress)
    except TypeError as error:
        raise TypeError(f"its progress is impossible: {error}") from None
    counts = (progress.step, progress.samples, progress.tokens, progress.skipped_steps, progress.skipped_in_a_row)
    if not all(0 <= count < 2**63 for count in counts) or progress.dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError("its progress is impossible")
    for part in ("config", "data", "scaler", "files", *(["base"] if "base" in state else [])):
        if not isinstance(state[part], dict):
            raise TypeError(f"its {part} is {state[part]!r}")
    if not all(isinstance(value, int | float) for value in state["scaler"].values()):
        raise TypeError(f"its scaler is {state['scaler']!r}")


def saved_configuration(state: dict[str, Any]) -> Configuration:
    """What the run was configured as. Raises UserError for a config that cannot be, or has unknown components."""
    model = configurator.from_dict(state["config"])
    if model.vocab_size is None:
        raise UserError("saved configuration: vocab_size is None")
    known = configurator.run_keys()
    run = {name: check_value(known[name], value) for name, value in state["config"].items() if name in known}
    return Configuration(model, RunConfig(**run))


def write_state(checkpoint: Path, state: dict[str, Any]) -> None:
    """Write `state.json`, aside and renamed."""
    text = json.dumps(state | {"checksum": _checksum_of(state)}, indent=1) + "\n"
    replace_file(checkpoint / "state.json", text.encode(), on_disk=True)


def _checksum_of(state: dict[str, Any]) -> str:
    return f"crc32:{zlib.crc32(json.dumps(state, sort_keys=True).encode()):08x}"


def checksum(file: Path, start: int = 0) -> str:
    """CRC-32 from a byte on, against accidents (data/dataset.py says why)."""
    crc = 0
    with file.open("rb") as content:
        content.seek(start)
        while piece := content.read(1 << 22):
            crc = zlib.crc32(piece, crc)
    return f"crc32:{crc:08x}"


def damage(checkpoint: Path, ranks: Ranks) -> str | None:
    """What is wrong with a checkpoint that is not as it was written; None if nothing is. The ranks share the files."""
    try:
        expected = read_state(checkpoint)["files"]
    except UserError as error:
        return str(error)
    if unknown := sorted({file.name for file in checkpoint.glob("*.safetensors")} - expected.keys()):
        return f"{checkpoint}/{unknown[0]} is not one of the checkpoint's files"  # but would be read as one
    for name in sorted(expected)[ranks.rank :: ranks.size]:
        try:
            found = checksum(checkpoint / name)
        except OSError as error:
            return f"{checkpoint}/{name} is damaged: {error.strerror}"
        if found != expected[name]:
            return f"{checkpoint}/{name} is damaged: its checksum is {found}, not {expected[name]}"
    return None
