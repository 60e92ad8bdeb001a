"""Tensors and progress of a run, to a checkpoint folder and back, whatever the strategy and the number of ranks.

torch.distributed.checkpoint writes every rank's parts as safetensors, in the background, and puts them together for
whoever reads them. Its own index of a checkpoint would be a pickle; its safetensors storage has none, and the rest is
JSON: loading executes nothing.
"""

import dataclasses
import errno
import re
import time
import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from common.errors import UserError
from components.lora.module import Adapter
from components.lora.spec import LORA, is_of_adapter
from components.quantized.module import adopt, flat, put
from model_builder import LanguageModel, adapted_modules
from parallel.collectives import largest_over_ranks
from parallel.ranks import ALONE, Ranks
from runs.base import adapters_of, base_of, identity_of_base, keeps_start
from runs.config import RunConfig
from runs.folder import Progress, RunFolder, checksum, damage, read_state, write_state
from training.optimizer import empty_state, optimizer_tensors
from training.update_clock import UpdateClock

NO_SPACE = "no space left on the disk"
OPTIMIZER = "optimizer."  # before the names of the optimizer's tensors
# PyTorch 2.11's stager closes itself when it has staged once: each checkpoint then allocates its buffers anew.
STAGER_KEEPS_BUFFERS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)


@dataclasses.dataclass
class Training:
    """What a step changes, and so what a checkpoint holds."""

    model: LanguageModel  # the plain model, inside whatever parallelism wraps it
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    progress: Progress
    wrapper: nn.Module | None = None  # which trains the model when it is called; None: the model itself does
    clock: UpdateClock = dataclasses.field(default_factory=UpdateClock)

    @property
    def wrapped(self) -> nn.Module:
        return self.model if self.wrapper is None else self.wrapper

    def tensors(self) -> dict[str, Tensor]:
        """Those of the model, or of its adapters if it has some, and of its optimizer, under the names they have in a
        checkpoint."""
        optimizer = optimizer_tensors(self.model, self.optimizer)
        _, own = parts_of_model(self.model)
        return own | {OPTIMIZER + name: value for name, value in optimizer.items()}


@dataclasses.dataclass(frozen=True)
class Saved:
    """How writing a checkpoint ended. `path` is None where the disk failed, for the `failure` in words, and on ranks
    other than the first; earlier checkpoints are untouched."""

    progress: Progress  # as it was when training paused for the copy
    path: Path | None
    failure: str | None
    seconds: float  # until it was in place
    stall_seconds: float  # in which training paused


class _Writer(dcp.HuggingFaceStorageWriter):
    """Notes the checksum of every file, by the rank that wrote it, for `files` of the first rank."""

    def __init__(self, folder: Path):
        super().__init__(str(folder), save_distributed=True)
        self.folder = folder
        self.files: dict[str, str] = {}

    def write_data(self, plan: Any, planner: Any) -> torch.futures.Future:
        results = super().write_data(plan, planner).wait()
        names = {result.storage_data.relative_path for result in results}
        sums = {name: checksum(self.folder / name) for name in names}
        for result in results:
            result.storage_data.relative_path = (
                f"{result.storage_data.relative_path} {sums[result.storage_data.relative_path]}"
            )
        done: torch.futures.Future = torch.futures.Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Any, results: list) -> None:
        written = {result.storage_data.relative_path for of_rank in results for result in of_rank}
        self.files = dict(sorted(name.split(" ") for name in written))


@dataclasses.dataclass
class _Pending:
    """A checkpoint that is being written."""

    writer: _Writer
    future: Future
    state: dict[str, Any]
    progress: Progress
    started: float
    stall_seconds: float


class Checkpointer:
    """Writes a run's checkpoints in the background, one at a time. Every rank calls `start` at the same steps.

    `config` and `data` (the checksums of what is trained on) are kept to compare a resumed run with.
    """

    def __init__(
        self, folder: RunFolder, training: Training, ranks: Ranks, config: dict[str, Any], data: dict[str, str]
    ):
        self.folder, self.training, self.ranks = folder, training, ranks
        self.config, self.data = config, data
        self.base = identity_of_base(folder, config) if keeps_start(config) else None
        # Of its own: the background thread's exchanges must not come between those of training.
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self.stager = _new_stager()
        self.pending: _Pending | None = None
        _expect_one_process()

    def start(self) -> None:
        """Copy everything, and begin to write the copy. An earlier one must have been settled."""
        started, progress = time.perf_counter(), dataclasses.replace(self.training.progress)
        if not STAGER_KEEPS_BUFFERS:
            self.stager = _new_stager()
        state = self._state() | {"scaler": self.training.scaler.state_dict()}
        writer = _Writer(self.folder.aside(progress.step))
        future = dcp.async_save(
            self.training.tensors(),
            storage_writer=writer,
            async_stager=self.stager,
            process_group=self.group,
            no_dist=self.group is None,
        )
        stall = time.perf_counter() - started
        assert isinstance(future, Future)  # as ever without asynchronous staging
        self.pending = _Pending(writer, future, state, progress, started, stall)

    def _state(self) -> dict[str, Any]:
        progress = dataclasses.asdict(self.training.progress)
        base = {} if self.base is None else {"base": self.base}
        return {"progress": progress, "config": self.config, "data": self.data, **base}

    def settle(self, wait: bool) -> Saved | None:
        """Put a checkpoint in place that all ranks have written; None if there is none, or not yet.

        Ranks other than the first have nothing to put in place. Raises what made the writing fail, unless that was the
        disk.
        """
        pending = self.pending
        if pending is None or not (wait or pending.future.done()):
            return None
        self.pending, path, failure = None, None, None
        try:
            pending.future.result()
            if self.ranks.is_first:
                state = pending.state | {"files": pending.writer.files}
                path = self.folder.put_in_place(pending.progress.step, state)
        except (CheckpointException, OSError) as error:
            failure = _failure_of_the_disk(error)
            if failure is None:
                raise
            if self.ranks.is_first:
                self.folder.discard(pending.progress.step)
        return Saved(pending.progress, path, failure, time.perf_counter() - pending.started, pending.stall_seconds)

    def update(self, checkpoint: Path) -> None:
        """A checkpoint of this very step was saved before the step was evaluated: note the evaluation in it."""
        write_state(checkpoint, read_state(checkpoint) | self._state())

    def close(self) -> None:
        self.stager.close()


def _new_stager() -> DefaultStager:
    on_gpu = torch.cuda.is_available()
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=on_gpu, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=on_gpu
        )
    )


def _expect_one_process() -> None:
    """torch.distributed.checkpoint warns a process that is alone, also from its background thread."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


def _failure_of_the_disk(error: BaseException) -> str | None:
    """What the system said, where that made the writing fail; None for any other error."""
    if isinstance(error, CheckpointException):
        return next(filter(None, (_failure_of_the_disk(failure) for failure, _ in error.failures.values())), None)
    text = str(error)
    if "No space left" in text or "os error 28" in text:  # as safetensors and PyTorch hand it on
        return NO_SPACE
    if isinstance(error, OSError):
        return NO_SPACE if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or text
    found = re.search(r"([^:]+) \(os error [0-9]+\)", text)
    return found and found[1].strip()


def newest_whole(checkpoints: list[Path], ranks: Ranks, device: torch.device) -> tuple[Path, dict[Path, str]]:
    """The first of the checkpoints whose files have their checksums, and what is wrong with those before it.

    The ranks share the reading, and all get the same answer. Raises UserError when none is whole.
    """
    damaged: dict[Path, str] = {}
    for checkpoint in checkpoints:
        wrong = damage(checkpoint, ranks)
        if not largest_over_ranks(torch.tensor(int(wrong is not None), device=device), ranks):
            return checkpoint, damaged
        damaged[checkpoint] = wrong or "a file that another rank read is damaged"
    raise UserError(f"no checkpoint is whole: {'; '.join(damaged.values())}")


def load_checkpoint(checkpoint: Path, training: Training) -> None:
    """Everything that a checkpoint holds, into `training`: each rank reads its parts. What was frozen until now begins
    with an optimizer that has seen nothing. Raises UserError if it cannot."""
    state = read_state(checkpoint)
    was = RunConfig(**{name: state["config"][name] for name in ("frozen", "use_lora") if name in state["config"]})
    base = base_of(checkpoint, state)
    check_codes(base or checkpoint, training.model)
    progress, (of_base, model) = Progress(**state["progress"]), parts_of_model(training.model)
    if base is not None:
        load_tensors(base, flat(of_base))
        training.model.begin_adapters()
        model = model if has_adapters(checkpoint) else {}
    optimizer = {}
    if progress.has_updated:
        new = empty_state(training.model, training.optimizer).items()
        optimizer = {OPTIMIZER + name: value for name, value in new if not was.freezes(name.rpartition(".")[0])}
    if wanted := model | optimizer:
        load_tensors(checkpoint, wanted)
    if state["scaler"]:  # empty where the run computed in another dtype until now
        training.scaler.load_state_dict(state["scaler"])
    training.progress = progress


@torch.no_grad()
def load_model(checkpoint: Path, model: LanguageModel) -> None:
    """The weights alone, into a model that is not distributed and has no adapters: those of a checkpoint are merged
    into their base. Raises UserError for a damaged checkpoint."""
    if wrong := damage(checkpoint, ALONE):
        raise UserError(wrong)
    state = read_state(checkpoint)
    base = base_of(checkpoint, state)
    if base is not None and base != checkpoint and (wrong := damage(base, ALONE)):
        raise UserError(wrong)
    adopt(model, tensors_of(base or checkpoint))
    load_tensors(base or checkpoint, flat(model.state_dict()))
    if base is not None and has_adapters(checkpoint):
        for name, (weight, adapter) in load_adapters(checkpoint, state, model).items():
            put(model, f"{name}.weight", adapter.merged(weight))


def codes_of(checkpoint: Path) -> set[str]:
    """The names of matrices in few bits that a checkpoint has."""
    return {name for name in tensors_of(checkpoint) if name.endswith(".codes")}


def check_codes(checkpoint: Path, model: LanguageModel) -> None:
    """Raises UserError for a checkpoint whose matrices are in other forms than the model's."""
    there, here = codes_of(checkpoint), {name for name in flat(model.state_dict()) if name.endswith(".codes")}
    if there - here:
        method = "int4" if any(".int4." in name for name in there) else min(there).split(".")[-2]
        raise UserError(
            f"{checkpoint} has matrices in {method}, which do not train: adapters beside them do, with --use_lora=True "
            f"--quantize_base={method} and --init_from"
        )


def check_without_codes(checkpoint: Path) -> None:
    """Raises UserError for one that has matrices in few bits, which no other format has."""
    if codes_of(checkpoint):
        raise UserError(f"{checkpoint} has matrices in few bits: export the run that it was made of")


def has_adapters(checkpoint: Path) -> bool:
    """Whether it holds any: a base does not, unless they begin with others'."""
    return any(is_of_adapter(name) for name in tensors_of(checkpoint))


def load_adapters(checkpoint: Path, state: dict[str, Any], model: LanguageModel) -> dict[str, tuple[Tensor, Adapter]]:
    """Those of a checkpoint, with the matrices of a model that they are beside, by the names of their modules."""
    adapters = adapters_of(state["config"])
    assert adapters is not None
    weights: dict[str, Any] = {
        name: model.get_submodule(name).weight for name in adapted_modules(model.config, adapters)
    }
    found = {name: (weight.detach(), Adapter(weight.shape, adapters)) for name, weight in weights.items()}
    tensors = (
        (f"{name}.{LORA}.{part}", value) for name, (_, one) in found.items() for part, value in one.state_dict().items()
    )
    load_tensors(checkpoint, dict(tensors))
    return found


def parts_of_model(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a model that a run's base has, if it trains adapters, and those that its checkpoints have."""
    tensors = model.state_dict()
    if getattr(model, "adapters", None) is None:
        return {}, tensors
    of_base = {name: value for name, value in tensors.items() if not is_of_adapter(name)}
    return of_base, {name: value for name, value in tensors.items() if name not in of_base}


def tensors_of(checkpoint: Path) -> dict[str, Tensor]:
    """The names, shapes and types of a checkpoint's whole tensors, on the meta device. Raises UserError for files that
    are none or do not make up whole tensors."""
    try:
        known = dcp.HuggingFaceStorageReader(str(checkpoint)).read_metadata().state_dict_metadata
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{checkpoint} is damaged: {_first_line(error)}") from None
    found = {}
    for name, tensor in known.items():
        if not isinstance(tensor, TensorStorageMetadata) or tensor.size.numel() != sum(
            chunk.sizes.numel() for chunk in tensor.chunks
        ):
            raise UserError(f"{checkpoint} is damaged: of {name} it has some parts and not others")
        found[name] = torch.empty(tensor.size, dtype=tensor.properties.dtype, device="meta")
    return found


def load_tensors(checkpoint: Path, into: dict[str, Tensor]) -> None:
    """Those that are named, in place; each rank reads its parts. Raises UserError where they do not fit."""
    if missing := sorted(into.keys() - tensors_of(checkpoint).keys()):
        if all(name.startswith(OPTIMIZER) for name in missing):
            raise UserError(
                f"{checkpoint} has no tensor {missing[0]}: another optimizer trained it; --init_from with the "
                "folder of that run begins with its weights alone"
            )
        raise UserError(f"{checkpoint} has no tensor {missing[0]}: it is not a checkpoint of this model")
    reader = dcp.HuggingFaceStorageReader(str(checkpoint))
    _expect_one_process()
    try:
        dcp.load(into, storage_reader=reader, no_dist=not dist.is_initialized())
    except (CheckpointException, OSError, SafetensorError, ValueError) as error:
        failures = error.failures.values() if isinstance(error, CheckpointException) else [(error, None)]
        reason = _first_line(next(iter(failures))[0])
        raise UserError(f"{checkpoint} cannot be loaded into this model: {reason}") from None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
