"""Writes what happens in a run: JSON lines, console, and on request wandb and TensorBoard. docs/log_format.md.

One object serves all outputs, on every rank; only the first rank writes. Losses, tokens, throughput and MFU that
arrive here are those of the whole global batch and of all ranks.
"""

import dataclasses
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import configurator
from common.errors import UserError
from common.units import flops_unit, number
from components.registry import Choice
from configurator import Configuration
from data.dataset import Split
from data.mixture import Data, MixedSplit
from flops_parameter_counting.costs.model_cost import CONVENTIONS
from flops_parameter_counting.costs.pipeline import stages_of
from parallel.device import Peak, memory_in_use
from runs.checkpoint import NO_SPACE, Saved
from runs.folder import Progress
from training.plan import RunPlan, Source
from training.step import StepResult


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the run computes on; `peak` is that of one device in the compute dtype."""

    device: torch.device
    device_name: str
    world_size: int
    dtype: str
    compile: bool
    compile_reason: str
    peak: Peak
    choices: tuple[Choice, ...] = ()  # what computes, where keys leave that to the machine

    @property
    def peak_flops_per_second(self) -> float:
        """The peak of all ranks together."""
        return self.world_size * self.peak.flops_per_second


@dataclasses.dataclass
class _Clean:
    """Steps whose time is theirs alone: no compilation and no first touch of memory in them."""

    steps: int = 0
    seconds: float = 0.0
    updates: int = 0  # of which the time is known
    update_seconds: float = 0.0


class TrainingLogger:
    """Appends to `log.jsonl` and prints. Every method takes the run's progress as it is after what happened.

    Without a log it prints alone.
    """

    def __init__(self, configuration: Configuration, plan: RunPlan, log: Path | None, machine: Machine, writes: bool):
        self.configuration, self.plan, self.machine, self.writes = configuration, plan, machine, writes
        self._since_record, self._whole = _Clean(), _Clean()
        self._sinks: list[_Sink] = []
        self._last_val_loss: float | None = None
        self._path, self._log = log, _JsonLines(Path(os.devnull))  # until `start`, and where there is no log
        if writes:
            self._bar = tqdm(total=plan.length, unit="step", dynamic_ncols=True, disable=None, leave=False)

    def start(
        self, progress: Progress, resumed_from: Path | None, changed: list[str], dataset: Data, notes: list[str]
    ) -> None:
        """Open the outputs, and write the `run` record; for a resumed run, also the event that says so."""
        if not self.writes:
            return
        if self._path is not None:
            self._sinks = open_sinks(self.configuration, self._path.parent, progress)
            self._log = _JsonLines(self._path)
        self.say("\n".join([machine_lines(self.machine), *prediction_lines(self.plan)]) + "\n")
        self._bar.initial = self._bar.n = progress.step  # what is left is foretold from this process's steps
        self._log.write("run", **run_record(self.configuration, self.plan, self.machine, dataset))
        if resumed_from is not None:
            self.event("resume", progress, checkpoint=resumed_from.name, changed=changed)
            self.say(f"resumed at step {progress.step:,} from {resumed_from}" + "".join(f"; {key}" for key in changed))
        for note in notes:
            self.say(f"note: {note}")

    def step(self, progress: Progress, result: StepResult, learning_rate: float, seconds: float, clean: bool) -> None:
        """After every step; a line appears every log_interval, for a skipped step, and with gradient statistics."""
        for total in (self._since_record, self._whole) if clean else ():
            total.steps += 1
            total.seconds += seconds
            if result.update_seconds is not None:
                total.updates += 1
                total.update_seconds += result.update_seconds
        if not self.writes:
            return
        self._bar.update(1)
        due = progress.step % self.configuration.run.log_interval == 0 or progress.step == 1
        if not (due or result.skipped or result.gradient_stats):
            return
        record = {
            "step": progress.step,
            "tokens": progress.tokens,
            "flops": self._flops(progress),
            "loss": result.loss,
            "expected_loss": self.plan.expected_loss(progress.tokens),
            "bits_per_byte": self.plan.bits_per_byte(result.loss, "train"),
            "learning_rate": learning_rate,
            "grad_norm": result.grad_norm,
            "skipped": result.skipped,
            **self.throughput(self._since_record),
            "train_seconds": progress.train_seconds,
            "memory": memory_in_use(self.machine.device),
        }
        if result.gradient_stats:
            record["gradients"] = result.gradient_stats
        if result.targets < self.plan.tokens_per_step:
            record["targets"] = result.targets
        if result.auxiliary:  # added for training, and in no loss
            record["auxiliary"] = result.auxiliary
        if result.measured:
            record["measured"] = result.measured
        if result.loads:
            record["loads"] = {str(block): load_fields(load) for block, load in result.loads.items()}
        self._since_record = _Clean()
        self._log.write("iter", **record)
        self._to_sinks(progress.step, "train", record)
        self.say(iteration_lines(record))

    def evaluation(
        self,
        progress: Progress,
        val_loss: float,
        seconds: float,
        losses: dict[str, float],
        measured: dict[str, float] | None = None,
    ) -> None:
        """`losses` are those of the sources of a mixture, or of the one dataset; `measured` is what the objective tells
        besides."""
        self._last_val_loss = val_loss
        if not self.writes:
            return
        bits = self.plan.bits_per_byte(val_loss, "val")
        record = {
            "step": progress.step,
            "tokens": progress.tokens,
            "flops": self._flops(progress),
            "val_loss": val_loss,
            "expected_loss": self.plan.expected_loss(progress.tokens),
            "val_bits_per_byte": bits,
            "best": progress.best_step == progress.step,
            "train_seconds": progress.train_seconds,
            "seconds": seconds,
        }
        by_source = {} if self.plan.sources is None else _by_source(losses, self.plan.sources)
        if by_source:
            record["sources"] = by_source
        if measured:
            record["measured"] = measured
        self._log.write("eval", **record)
        self._to_sinks(progress.step, "val", record)
        best = " (best so far)" if record["best"] else ""
        loss = f"validation loss {val_loss:.4f}{_expected(record)}"
        told = "".join(f" │ {name} {number(value, '.3f')}" for name, value in (measured or {}).items())
        self.say(f"Eval {progress.step} │ {loss} │ bpb {number(bits, '.3f')}{told}{best}")
        for name, found in by_source.items():
            self.say(f"  {name} │ {found['val_loss']:.4f} │ bpb {found['val_bits_per_byte']:.3f}")

    def benchmarks(self, progress: Progress, figures: list[dict[str, Any]], seconds: float) -> None:
        """`figures` are those of evaluation/figures.py, as JSON has them."""
        if not self.writes:
            return
        tasks: dict[str, dict[str, Any]] = {}
        for figure in figures:
            tasks.setdefault(figure["task"], {})[figure["metric"]] = {name: figure[name] for name in OF_BENCHMARKS}
        record = {
            "step": progress.step,
            "tokens": progress.tokens,
            "flops": self._flops(progress),
            "tasks": tasks,
            "train_seconds": progress.train_seconds,
            "seconds": seconds,
        }
        self._log.write("benchmarks", **record)
        self._to_sinks(progress.step, "benchmarks", record)
        said = [benchmark_words(figure) for figure in figures]
        self.say("\n".join(f"Benchmarks {progress.step} │ {words}" for words in said))

    def checkpoint(self, saved: Saved, newest: Path | None) -> None:
        """When it is in place, or could not be written; `newest` is the newest that there is then."""
        if not self.writes:
            return
        if saved.path is None:
            self.event("checkpoint_failed", saved.progress, reason=saved.failure)
            what = "no disk space for a checkpoint" if saved.failure == NO_SPACE else f"{saved.failure}: no checkpoint"
            kept = "there is none yet" if newest is None else f"the newest is {newest.name}"
            self.say(f"warning: {what} of step {saved.progress.step:,}; {kept}")
            return
        self._log.write(
            "checkpoint",
            step=saved.progress.step,
            path=saved.path.name,
            seconds=saved.seconds,
            stall_seconds=saved.stall_seconds,
        )

    @property
    def is_in_place(self) -> bool:
        """False where the log that is written has been removed or replaced."""
        return not self.writes or self._log.is_in_place

    def damaged(self, progress: Progress, checkpoint: Path, reason: str) -> None:
        """A newer checkpoint than the one that the run continues from, which could not be used."""
        self.event("damaged_checkpoint", progress, checkpoint=checkpoint.name, reason=reason)
        self.say(f"warning: {reason}; it is kept as damaged_{checkpoint.name}, the run continues from an earlier one")

    def event(self, name: str, progress: Progress, **fields: Any) -> None:
        if self.writes:
            self._log.write("event", event=name, step=progress.step, **fields)

    def finish(self, progress: Progress, reason: str, unsaved: str | None = None) -> None:
        """The `summary` record, over the whole run except throughput, which is this process's. `unsaved`: why this end
        of the run has no checkpoint, where it has none."""
        if not self.writes:
            return
        val_loss = self._last_val_loss
        best = progress.best_val_loss
        summary = {
            "reason": reason,
            "step": progress.step,
            "tokens": progress.tokens,
            "flops": self._flops(progress),
            "train_seconds": progress.train_seconds,
            "best_step": progress.best_step,
            "best_val_loss": best,
            "best_val_bits_per_byte": None if best is None else self.plan.bits_per_byte(best, "val"),
            "last_val_loss": val_loss,
            "prediction": self.plan.prediction and self.plan.prediction.as_dict(),
            "miss": self._miss(progress),
            "skipped_steps": progress.skipped_steps,
            **self.throughput(self._whole),
            "memory": memory_in_use(self.machine.device),
        }
        self._log.write("summary", **summary)
        self._bar.close()
        self._each_sink(lambda sink: sink.close())
        ended = reason
        if unsaved is not None:
            ended = f"NOT SAVED ({unsaved}): {'all steps taken' if reason == 'finished' else reason}"
        self.say(
            f"{ended} at step {progress.step:,} of {self.plan.length:,} │ {progress.tokens:,} tokens │ "
            f"{summary['flops']['full']:.3e} FLOPs │ best validation loss {number(best, '.4f')} │ "
            f"{number(summary['tokens_per_second'], ',.0f')} tok/s │ MFU {_percent(summary['mfu'], 'full')} (full)"
        )
        if summary["prediction"] is not None and summary["miss"] is not None:
            self.say(outcome_line(summary))

    def _miss(self, progress: Progress) -> dict[str, float | None] | None:
        """Actual minus predicted; None without a prediction, and for a run that did not come to its end."""
        prediction = self.plan.prediction
        if prediction is None or progress.step < self.plan.length:
            return None
        pairs = {
            "loss": (self._last_val_loss, prediction.loss),
            "flops": (self._flops(progress)["full"], prediction.flops),
            "seconds": (progress.train_seconds, prediction.seconds),
        }
        return {
            name: None if actual is None or predicted is None else actual - predicted
            for name, (actual, predicted) in pairs.items()
        }

    def throughput(self, clean: _Clean) -> dict[str, Any]:
        """Speed and MFU (PaLM, Chowdhery et al. 2022, appendix B) over clean steps; None where there were none."""
        if clean.steps == 0:
            return dict.fromkeys(
                ("step_ms", "optimizer_ms", "tokens_per_second", "mfu", "model_flops_per_second",
                 "peak_flops_per_second")
            )  # fmt: skip
        tokens_per_second = clean.steps * self.plan.tokens_per_step / clean.seconds
        peak = self.machine.peak_flops_per_second
        achieved = {name: self.plan.flops_per_token[name] * tokens_per_second for name in CONVENTIONS}
        return {
            "step_ms": 1000 * clean.seconds / clean.steps,
            "optimizer_ms": 1000 * clean.update_seconds / clean.updates if clean.updates else None,
            "tokens_per_second": tokens_per_second,
            "mfu": {name: flops / peak for name, flops in achieved.items()},
            "model_flops_per_second": achieved,
            "peak_flops_per_second": peak,
        }

    def say(self, text: str) -> None:
        """Print above the progress bar."""
        if self.writes:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def _flops(self, progress: Progress) -> dict[str, int]:
        return {name: progress.tokens * self.plan.flops_per_token[name] for name in CONVENTIONS}

    def _to_sinks(self, step: int, group: str, record: dict[str, Any]) -> None:
        values = {f"{group}/{name}": value for name, value in _flatten(record).items() if name != "step"}
        self._each_sink(lambda sink: sink.log(values, step))

    def _each_sink(self, use: Callable[["_Sink"], None]) -> None:
        """One that fails, whatever its library raises, is given up: the run and its log do not need it."""
        for sink in list(self._sinks):
            try:
                use(sink)
            except Exception as error:
                self._sinks.remove(sink)
                self.say(f"warning: {sink.name} gets nothing more of this run: {' '.join(str(error).split())}")


OF_BENCHMARKS = ("value", "error", "chance", "samples", "higher_is_better")  # of a figure, in the log


def benchmark_words(figure: dict[str, Any]) -> str:
    """A figure in a line of the console."""
    form = ".1%" if figure["is_share"] else ".4f"
    error, chance = number(figure["error"], form), number(figure["chance"], form)
    return f"{figure['task']} {figure['metric']} {figure['value']:{form}} ± {error} │ chance {chance}"


def load_fields(shares: list[float]) -> dict[str, Any]:
    """How evenly a block's experts are chosen: the share of the choices that each has, their entropy over that of equal
    shares (1: all are equally busy, 0: one has all), and the share of the choices that no expert has computed."""
    entropy = -sum(share * math.log(share) for share in shares if share > 0)
    return {
        "shares": [round(share, 6) for share in shares],
        "entropy": entropy / math.log(len(shares)) if len(shares) > 1 else 1.0,
        "dropped": round(1 - sum(shares), 6),
    }


def machine_lines(machine: Machine) -> str:
    """What the run computes on and how."""
    scale, unit = flops_unit(machine.peak_flops_per_second)
    return (
        f"Device: {machine.device_name}, {machine.world_size} rank{'s' * (machine.world_size > 1)}   "
        f"Compute dtype: {machine.dtype}\n"
        f"Peak: {machine.peak_flops_per_second / scale:,.1f} {unit} of all ranks ({machine.peak.source})\n"
        f"Compile: {'yes' if machine.compile else 'no'} ({machine.compile_reason})"
        + "".join(f"\n{choice.heading}: {choice.words}" for choice in machine.choices if choice.words)
    )


def prediction_lines(plan: RunPlan) -> list[str]:
    """What was predicted, and what must be known to hold it against what comes; nothing without a prediction."""
    prediction = plan.prediction
    if prediction is None:
        return []
    law = f" ({prediction.law.name})" if prediction.law else ""
    said = [
        (prediction.loss, f"loss {{:.4f}}{law}"),
        (prediction.flops, "{:.3e} FLOPs"),
        (prediction.seconds, "{:,.0f} s of training steps"),
    ]
    lines = [f"Predicted: {', '.join(form.format(value) for value, form in said if value is not None)}"]
    if prediction.law is not None and prediction.only_ranks:
        lines.append(
            f"note: {prediction.law.name} was fitted to other data and another tokenizer: it ranks architectures and "
            "does not foretell the loss"
        )
    if not plan.is_the_predicted_run:
        lines.append(f"note: the prediction is of another run: this one has {plan.flops('full'):.3e} FLOPs")
    return lines


def outcome_line(summary: dict[str, Any]) -> str:
    """Predicted, actual and miss of loss, FLOPs and time, as far as each was predicted."""
    predicted, miss = summary["prediction"], summary["miss"]
    actual = {"loss": summary["last_val_loss"], "flops": summary["flops"]["full"], "seconds": summary["train_seconds"]}
    forms = {"loss": ("loss", ".4f"), "flops": ("FLOPs", ".4e"), "seconds": ("seconds of training", ",.1f")}
    parts = [
        f"{name} {predicted[key]:{form}} → {actual[key]:{form}} "
        f"({miss[key]:+{form}}, {miss[key] / predicted[key]:+.2%})"
        for key, (name, form) in forms.items()
        if miss[key] is not None
    ]
    return f"predicted → actual (miss): {' │ '.join(parts)}"


def iteration_lines(record: dict[str, Any]) -> str:
    """The two console lines of an `iter` record."""
    memory, achieved = record["memory"], record["model_flops_per_second"]
    first = [
        f"Iter {record['step']}",
        f"Loss {number(record['loss'], '.4f')}{_expected(record)}",
        f"bpb {number(record['bits_per_byte'], '.3f')}",
        "first steps, not timed" if record["step_ms"] is None else f"{record['step_ms']:,.0f} ms",
        f"LR {record['learning_rate']:.2e}",
    ]
    first += [f"{name} {number(value, '.3f')}" for name, value in record.get("measured", {}).items()]
    if record["skipped"]:
        first.append("SKIPPED: loss or gradient not finite")
    second = [
        f"Memory {_gigabytes(memory['allocated'])} GB alloc, {_gigabytes(memory['peak'])} peak",
        f"grad norm {number(record['grad_norm'], '.2f')}",
    ]
    if achieved is not None:
        peak = record["peak_flops_per_second"]
        scale, unit = flops_unit(peak)
        second = [
            f"MFU {_percent(record['mfu'], 'full')} (full; {_percent(record['mfu'], 'causal')} causal)",
            f"{achieved['full'] / scale:,.1f} of {peak / scale:,.1f} {unit}",
            f"{record['tokens_per_second']:,.0f} tok/s",
            *second,
        ]
    return " │ ".join(first) + "\n" + " │ ".join(second)


def _by_source(losses: dict[str, float], sources: dict[str, Source]) -> dict[str, dict[str, float]]:
    """What is logged of the sources of a mixture."""
    of_sources = {name: loss for name, loss in losses.items() if name in sources and sources[name].is_validated}
    bits = {name: loss / math.log(2) / sources[name].bytes_per_token for name, loss in of_sources.items()}
    return {name: {"val_loss": loss, "val_bits_per_byte": bits[name]} for name, loss in of_sources.items()}


def counted(split: Split | MixedSplit) -> dict[str, int]:
    """Of a split with marks (data/dataset.py), the tokens that count as targets and the bytes that they stand for."""
    marks = split.marks if isinstance(split, Split) else None
    return {} if marks is None else {"counted_tokens": marks.counted_tokens, "counted_bytes": marks.counted_bytes}


def run_record(configuration: Configuration, plan: RunPlan, machine: Machine, dataset: Data) -> dict[str, Any]:
    """What is needed to reproduce the run and to read its numbers."""
    stages = configuration.run.pipeline_parallel
    return {
        "name": configuration.run_dir.name,
        "architecture": configuration.model.name,
        "config": configurator.as_dict(configuration),
        "command": sys.argv,
        "parameters": {
            "total": plan.cost.n_params,
            "active": plan.cost.n_active,
            "by_part": plan.cost.parameters,
        },
        "flops_per_token": {
            **plan.flops_per_token,
            "forward_by_part": plan.cost.flops,
            "attention_ffn_ratio": plan.cost.attention_ffn_ratio,
        },
        "optimizer_flops_per_step": plan.optimizer_flops,
        "tokens_per_step": plan.tokens_per_step,
        "document_length": plan.document_length,
        "padding": plan.padding,
        "steps": plan.length,
        "prediction": plan.prediction and plan.prediction.as_dict(),
        "dataset": {
            "name": dataset.name,
            "vocab_size": dataset.vocab_size,
            "splits": {
                name: {"tokens": split.tokens, "bytes": split.bytes, "checksum": split.checksum} | counted(split)
                for name, split in dataset.splits.items()
            },
        },
        "stages": [
            [stage.blocks[0], stage.blocks[-1]] for stage in stages_of(configuration.model, stages) if stage.blocks
        ],
        "hardware": {
            "device": machine.device.type,
            "device_name": machine.device_name,
            "ranks": machine.world_size,
            "threads_per_rank": torch.get_num_threads(),
            "host": platform.node(),
            "system": platform.platform(),
            "peak_flops_per_second_per_device": machine.peak.flops_per_second,
            "peak_source": machine.peak.source,
            "memory": "of the device's allocator" if machine.device.type != "cpu" else "of the process, resident",
        },
        "dtype": machine.dtype,
        "compile": machine.compile,
        "compile_reason": machine.compile_reason,
        **{choice.log_field: choice.words for choice in machine.choices},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "git": git_state(),
    }


def git_state() -> dict[str, Any] | None:
    """Commit of this checkout and whether it has changes; None outside a git checkout."""

    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


class _JsonLines:
    """Append-only, one flushed object a line. A line that a kill or a full disk cut short stays alone on its line."""

    def __init__(self, path: Path):
        self._path, self._file = path, path.open("ab", buffering=0)
        with path.open("rb") as existing:
            size = existing.seek(0, os.SEEK_END)
            existing.seek(max(0, size - 1))
            self._at_line_start = existing.read(1) in (b"", b"\n")

    @property
    def is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except OSError:
            return False

    def write(self, kind: str, **fields: Any) -> None:
        record = {"type": kind, "time": round(time.time(), 3), **fields}
        line = json.dumps(_finite(record), allow_nan=False, ensure_ascii=False) + "\n"
        text = line if self._at_line_start else "\n" + line
        content = text.encode()
        try:
            self._at_line_start = self._file.write(content) == len(content)
        except OSError as error:
            self._at_line_start = False
            print(f"warning: a line of the log is lost: {error.strerror}", file=sys.stderr)


class _Sink:
    """Where the values of the log go besides: wandb or TensorBoard."""

    name: str

    def log(self, values: dict[str, float], step: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class _Wandb(_Sink):
    name = "wandb"

    def __init__(self, configuration: Configuration, folder: Path, progress: Progress):
        try:
            import wandb
        except ImportError:
            raise UserError("wandb_log=True needs the extra wandb: pip install -e '.[wandb]'") from None
        try:
            self._run = wandb.init(
                project=configuration.run.wandb_project,
                name=configuration.run.wandb_run_name or folder.name,
                config=configurator.as_dict(configuration),
                dir=str(folder),
                id=progress.wandb_id,
                resume="allow",
            )
        except Exception as error:  # no account, no network: whatever its version raises
            raise UserError(f"wandb does not start: {' '.join(str(error).split())}; WANDB_MODE=offline") from None
        progress.wandb_id = self._run.id

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class _TensorBoard(_Sink):
    name = "TensorBoard"

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            message = "tensorboard_log=True needs the extra tensorboard: pip install -e '.[tensorboard]'"
            raise UserError(message) from None
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def open_sinks(configuration: Configuration, folder: Path, progress: Progress) -> list[_Sink]:
    """Raises UserError when a requested extra is not installed, or does not start."""
    sinks: list[_Sink] = []
    if configuration.run.wandb_log:
        sinks.append(_Wandb(configuration, folder, progress))
    if configuration.run.tensorboard_log:
        sinks.append(_TensorBoard(folder))
    return sinks


def _flatten(record: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a nested record, under names joined by dots."""
    flat: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            flat[prefix + name] = value
    return flat


def _finite(value: Any) -> Any:
    """The same with null for every NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(member) for name, member in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _expected(record: dict[str, Any]) -> str:
    return "" if record["expected_loss"] is None else f" (expected {record['expected_loss']:.4f})"


def _percent(shares: dict[str, float] | None, convention: str) -> str:
    return "n/a" if shares is None else f"{100 * shares[convention]:.2f}%"


def _gigabytes(count: int | None) -> str:
    return number(None if count is None else count / 1e9, ".2f")
