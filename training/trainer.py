"""The training loop: build, resume, then evaluate, save and step until the run's end or a signal."""

import contextlib
import dataclasses
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import configurator
from common.errors import RunFailure
from components.registry import choices
from configurator import Configuration
from data.dataset import UnusableData
from data.loader import Batch, prefetch, split_batches, training_batches
from data.mixture import Data
from parallel.collectives import from_first_rank, largest_over_ranks, process_group
from parallel.compute import Compute
from parallel.device import Peak, choose_device, choose_dtype, device_name, device_peak
from parallel.launcher import LauncherWatch
from parallel.lost_ranks import Watch, naming_lost_ranks
from parallel.ranks import Ranks
from parallel.strategy import device_mesh, parallelize, settle_buckets
from runs.base import BASE_STEP, start_of
from runs.checkpoint import Checkpointer, Saved, Training, load_checkpoint, newest_whole
from runs.config import OF_REINFORCEMENT, RunConfig, evaluated_windows
from runs.folder import Progress, RunFolder, read_state, saved_configuration
from training.interrupts import StopRequest, kept_from_children
from training.objective import AnyObjective, next_token
from training.optimizer import build_optimizer
from training.plan import RunPlan, check_memory_of_run, cut_of
from training.schedule import jump_note, learning_rate, run_length
from training.step import take_step
from training.validation import WINDOW_SEED, Validation
from training_logger import Machine, TrainingLogger

# Figures, as JSON has them, of the model in training; None where what is asked last says that the run is to stop.
Benchmarks = Callable[[nn.Module, Callable[[], bool]], list[dict[str, Any]] | None]

TROUBLE = 1000  # where the ranks agree on why to stop: no signal's number
GUESSED_MFU = 1 / 3
WORTH_COMPILING_SECONDS = 600  # of estimated training, against a cold compilation


def train(
    configuration: Configuration,
    dataset: Data,
    plan: RunPlan,
    folder: RunFolder,
    checkpoints: list[Path],
    ranks: Ranks,
    benchmarks: Benchmarks | None = None,
    objective: AnyObjective | None = None,
) -> int:
    """Run from scratch, or from the first whole one of the checkpoints, to the end; returns the process's exit code.

    0 at the run's end, 128 + the signal's number when one stopped it, 1 after too many skipped steps or when the last
    checkpoint could not be written.
    """
    run, launcher = configuration.run, LauncherWatch(ranks)
    device = choose_device(run.device, ranks)
    if device.type == "cpu":
        check_memory_of_run(configuration, ranks.size)
    torch.set_float32_matmul_precision("high" if run.tf32 and device.type == "cuda" else "highest")
    with process_group(ranks, device, run), naming_lost_ranks(ranks, run.comm_timeout) as watch:
        stop = StopRequest(announce=ranks.is_first)  # before, a signal ends the process: there is nothing to save
        checkpoint, damaged = newest_whole(checkpoints, ranks, device) if checkpoints else (None, {})
        state = read_state(checkpoint) if checkpoint else None
        if checkpoint and state and (base := start_of(checkpoint, state)) not in (None, checkpoint):
            newest_whole([base], ranks, device)
        saved = Progress(**state["progress"]) if state else None
        if saved is not None and not saved.has_updated:
            saved = None  # whose decisions nothing depends on yet
        if state and "eval_batch_size" not in state["config"]:  # it was batch_size until there was that key
            windows = dataclasses.replace(run, eval_batch_size=state["config"]["batch_size"])
            configuration = dataclasses.replace(configuration, run=windows)
        machine = describe_machine(configuration, plan, ranks, device, saved)
        process = Process(ranks, machine, stop, watch)
        trainer = Trainer(configuration, dataset, plan, folder, process, benchmarks, objective or next_token)
        trainer.start(checkpoint, damaged, dataset)
        launcher.release()
        with kept_from_children() if machine.compile else contextlib.nullcontext():
            return trainer.run_to_the_end()


def describe_machine(
    configuration: Configuration, plan: RunPlan, ranks: Ranks, device: torch.device, saved: Progress | None
) -> Machine:
    """Decides what was left to `auto`. A resumed run computes in the dtype that it had, and compiled if it was; its
    scans it may compute otherwise, as suits the machine that it is resumed on."""
    run = configuration.run
    dtype = saved.dtype if saved and run.dtype == "auto" else choose_dtype(run.dtype, device)
    peak = device_peak(device, dtype)
    if ranks.size > 1:  # a measured peak differs a little between ranks, the log has one
        first = from_first_rank(torch.tensor(peak.flops_per_second, dtype=torch.float64, device=device), ranks)
        peak = dataclasses.replace(peak, flops_per_second=first.item())
    compiles, why = decide_compile(run, plan, ranks, device, peak)
    if saved and run.compile == "auto":
        compiles, why = saved.compile, "as before the checkpoint"
    decided = choices(configuration.model, device, dtype)
    return Machine(device, device_name(device), ranks.size, dtype, compiles, why, peak, decided)


def decide_compile(run: RunConfig, plan: RunPlan, ranks: Ranks, device: torch.device, peak: Peak) -> tuple[bool, str]:
    """Whether to compile the blocks, and why. `auto` weighs the run's length against a cold compilation."""
    if run.compile != "auto":
        return bool(run.compile), "as configured"
    if run.quantize_base is not None:
        return False, "auto: products with codes are not compiled"
    if device.type == "mps":
        return False, "auto: not tried on mps"
    if device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        return False, "auto: no C++ compiler (g++ or $CXX) here"
    seconds = plan.flops("full") / (ranks.size * GUESSED_MFU * peak.flops_per_second)
    worth_it = seconds > WORTH_COMPILING_SECONDS
    comparison = "more" if worth_it else "not more"
    return worth_it, f"auto: training takes roughly {seconds:,.0f} s, {comparison} than {WORTH_COMPILING_SECONDS}"


@dataclasses.dataclass(frozen=True)
class Process:
    """The process that trains: which rank it is, on what it computes, and what may end it."""

    ranks: Ranks
    machine: Machine
    stop: StopRequest
    watch: Watch


class Trainer:
    """One run on one rank."""

    def __init__(
        self,
        configuration: Configuration,
        dataset: Data,
        plan: RunPlan,
        folder: RunFolder,
        process: Process,
        benchmarks: Benchmarks | None = None,
        objective: AnyObjective = next_token,
    ):
        self.configuration, self.run, self.plan, self.folder = configuration, configuration.run, plan, folder
        self.benchmarks, self.objective = benchmarks, objective
        ranks, machine = process.ranks, process.machine
        self.ranks, self.machine, self.device = ranks, machine, machine.device
        self.stop, self.watch = process.stop, process.watch
        cut, tells = cut_of(configuration), self.run.mask_documents
        own_part = ranks.own_part(cut.block_size)
        self.train_data = training_batches(dataset, cut, self.run.seed, tells, own_part)
        self.validation = Validation(
            {
                name: split_batches(source, "val", cut, WINDOW_SEED, tells, own_part)
                for name, source in dataset.validation_sources.items()
            },
            dataset.validation_shares,
            objective,
        )
        self.data = dataset.identity
        self.compute = Compute(self.device, machine.dtype, ranks, device_mesh(self.run, ranks, self.device))
        built = dataclasses.replace(
            configuration, model=configuration.model.replace(**{one.key: one.value for one in machine.choices})
        )
        model, wrapper = parallelize(built, self.compute, machine.compile)
        optimizer = build_optimizer(model, self.run, self.compute.mesh)
        scaler = torch.amp.GradScaler(self.device.type, enabled=machine.dtype == "float16")
        progress = Progress(compile=machine.compile, dtype=machine.dtype)
        self.training = Training(model, optimizer, scaler, progress, wrapper)
        self.checkpointer = Checkpointer(folder, self.training, ranks, configurator.as_dict(configuration), self.data)
        # An evaluation of a run does not hold its folder, and leaves it as it is.
        log = folder.log if folder.is_held else None
        self.logger = TrainingLogger(configuration, plan, log, machine, writes=ranks.is_first)
        self.steps_here = 0  # of this process
        # When the step that is under way began: when the one before ended, or an evaluation, or a save
        self.clock = time.perf_counter()
        self.saved_step: int | None = None
        self.last_saved: Saved | None = None
        self.trouble: str | None = None  # that this rank has met

    @property
    def progress(self) -> Progress:
        return self.training.progress

    def start(self, checkpoint: Path | None, damaged: dict[Path, str], dataset: Data) -> None:
        """Load the checkpoint, if there is one, and open the log. Newer ones that are damaged get out of the way."""
        length = self.configuration.model.block_size // self.run.context_parallel
        settle_buckets(self.training.wrapped, self.run.batch_size, length, self.device)
        changed: list[str] = []
        notes: list[str] = []
        if checkpoint is not None:
            state = read_state(checkpoint)
            changed = changed_keys(state["config"], configurator.as_dict(self.configuration))
            changed += changed_keys(state["data"], self.data)
            load_checkpoint(checkpoint, self.training)
            self.progress.compile, self.progress.dtype = self.machine.compile, self.machine.dtype
            if self.progress.last_evaluation is not None and not self.evaluates_as(state):
                self.progress.forget_evaluations()
                notes.append("other windows are evaluated than before: the best validation loss starts anew")
            if note := self.jump(state):
                notes.append(note)
            if self.progress.skipped_in_a_row >= self.run.max_skipped_steps:
                self.progress.skipped_in_a_row = 0  # it stopped for that; who resumes it wants it tried again
            self.saved_step = self.progress.step
            if self.progress.step >= self.plan.length:
                self.progress.last_evaluation = None  # what is left is the summary, which states the last evaluation
        self.logger.start(self.progress, checkpoint, changed, dataset, notes)
        if self.folder.is_held:
            configurator.write(self.configuration, self.folder.path)
            dataset.keep_tokenizer(self.folder.path)
            for path in damaged:
                self.folder.set_damaged_aside(path)
        for path, reason in damaged.items():
            self.logger.damaged(self.progress, path, reason)

    def jump(self, state: dict[str, Any]) -> str | None:
        """That the learning rate is another than it would have been without what was changed since a checkpoint."""
        before = saved_configuration(state)
        tokens_per_step = before.run.sequences_per_step * before.model.block_size
        length = run_length(before.run, tokens_per_step, self.plan.flops_per_token["full"])
        return jump_note(before.run, self.run, self.progress.step, (length, self.plan.length))

    def evaluates_as(self, state: dict[str, Any]) -> bool:
        """Whether a checkpoint's evaluations were of the windows that this process evaluates: of the same tokens, cut
        alike, as many of them as an evaluation asks for or all that there are."""
        before, now = ({**state["config"], **state["data"]}, {**configurator.as_dict(self.configuration), **self.data})
        cut = {"block_size": None, "data of val": None, "mask_documents": False, "packing": "windows"}
        cut |= {name: getattr(RunConfig(), name) for name in OF_REINFORCEMENT}
        asked = [min(evaluated_windows(keys) or 0, self.validation.n_windows) for keys in (before, now)]
        return all(before.get(key, default) == now[key] for key, default in cut.items()) and asked[0] == asked[1]

    def run_to_the_end(self) -> int:
        """The loop: evaluate and save when it is time, look for what ends the run, take a step."""
        self.clock = time.perf_counter()
        ahead = 2
        if self.train_data.counts_targets:  # a step begins when all of its micro-batches are there (targets_of_step)
            ahead = max(ahead, len(self.ranks.share(range(self.run.gradient_accumulation_steps))))
        batches = prefetch(self.train_data, self.sample_starts(), self.run.batch_size, self.device, ahead)
        with contextlib.closing(batches):
            try:
                while True:
                    evaluated = self.evaluation_is_due() and self.evaluate()
                    if self.benchmarks_are_due():
                        self.ask_benchmarks()
                    if self.save_is_due(evaluated):
                        self.save()
                    self.settle(wait=False)
                    if (end := self.end_is_due()) is not None:
                        return self.end(*end)
                    self.take_step(batches)
            except UnusableData as error:  # in a step or an evaluation, of which nothing is kept
                if self.ranks.size > 1:  # the others wait for this one in the middle of it
                    raise RunFailure(f"{error}; --init_from=auto continues from the last checkpoint") from None
                return self.end(f"stopped: {error}", 1)

    def end_is_due(self) -> tuple[str, int] | None:
        """Why the run ends here, and its exit code; None if it goes on."""
        self.folder.check_still_there()
        stop = self.agreed_stop()
        if stop == TROUBLE:
            return f"stopped: {self.trouble or 'another rank cannot go on with its files'}", 1
        if stop:
            return signal.Signals(stop).name, 128 + stop
        if self.progress.skipped_in_a_row >= self.run.max_skipped_steps:
            return f"stopped: {self.progress.skipped_in_a_row} steps in a row had no finite gradient", 1
        if self.progress.step >= self.plan.length or self.run.eval_only:
            return "finished", 0
        return None

    def sample_starts(self) -> Iterator[int]:
        """The first sample of each of this rank's micro-batches, from here to the run's end."""
        first = self.progress.samples
        for step in range(self.plan.length - self.progress.step):
            for micro in self.ranks.share(range(self.run.gradient_accumulation_steps)):
                yield first + step * self.run.sequences_per_step + micro * self.run.batch_size

    def take_step(self, batches: Iterator[Batch]) -> None:
        progress, run = self.progress, self.run
        self.watch.place = f"step {progress.step + 1:,}"
        rate = learning_rate(run, progress.step, self.plan.length)
        wants_stats = bool(run.gradient_stats_interval) and (progress.step + 1) % run.gradient_stats_interval == 0
        result = take_step(self.training, batches, run, rate, self.compute, wants_stats, self.objective)
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        self.steps_here += 1
        progress.step += 1
        progress.samples += run.sequences_per_step
        progress.tokens += self.plan.tokens_per_step
        progress.train_seconds += seconds
        progress.skipped_steps += result.skipped
        progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if result.skipped else 0
        warm_up = 3 if self.machine.compile else 1  # steps that load kernels or compile
        self.logger.step(progress, result, rate, seconds, clean=self.steps_here > warm_up)

    def evaluation_is_due(self) -> bool:
        step = self.progress.step
        if self.progress.last_evaluation == step and not self.run.eval_only:
            return False
        return step % self.run.eval_interval == 0 or step >= self.plan.length or self.run.eval_only

    def evaluate(self) -> bool:
        """Evaluate and note the result; False if a signal came in between."""
        started, progress = time.perf_counter(), self.progress
        self.watch.place = f"the evaluation after step {progress.step:,}"
        model = self.training.wrapped if self.ranks.pipeline_parallel > 1 else self.training.model
        found = self.validation.losses(model, self.run, self.compute, lambda: bool(self.stop))
        if found is None:
            return False
        mean, losses = self.validation.mean(found), {name: one.loss for name, one in found.items()}
        loss = mean.loss
        progress.last_evaluation = progress.step
        if math.isfinite(loss) and (progress.best_val_loss is None or loss < progress.best_val_loss):
            progress.best_step, progress.best_val_loss = progress.step, loss
        self.logger.evaluation(progress, loss, time.perf_counter() - started, losses, mean.measured)
        self.clock = time.perf_counter()
        return True

    def benchmarks_are_due(self) -> bool:
        step, run = self.progress.step, self.run
        if self.benchmarks is None or (self.progress.last_benchmarks == step and not run.eval_only):
            return False
        interval = run.eval_benchmarks_interval or run.eval_interval
        return step % interval == 0 or step >= self.plan.length or run.eval_only

    def ask_benchmarks(self) -> None:
        """Ask and note the results, unless a signal comes in between. Every rank has the whole model, and asks it for
        itself: none waits for another longer than that it is slower."""
        assert self.benchmarks is not None
        started, progress = time.perf_counter(), self.progress
        self.watch.place = f"the benchmarks after step {progress.step:,}"
        figures = self.benchmarks(self.training.model, lambda: bool(self.stop))
        if figures is not None:
            progress.last_benchmarks = progress.step
            self.logger.benchmarks(progress, figures, time.perf_counter() - started)
        self.clock = time.perf_counter()

    def save_is_due(self, evaluated: bool) -> bool:
        step, run = self.progress.step, self.run
        if step == 0 or run.eval_only:
            return False
        if evaluated and (run.always_save_checkpoint or self.progress.best_step == step):
            return True
        by_interval = run.checkpoint_interval and step % run.checkpoint_interval == 0
        return bool(by_interval) and self.saved_step != step

    def save(self) -> None:
        """Begin to write a checkpoint; the copy pauses training, the disk does not."""
        self.settle(wait=True)
        step = self.progress.step
        if self.saved_step == step:  # before it was evaluated: the tensors are the same
            existing = self.folder.checkpoint_of(step)
            if existing is not None and self.ranks.is_first:
                self.checkpointer.update(existing)
        else:
            self.checkpointer.start()
            self.saved_step = step
        self.clock = time.perf_counter()

    def settle(self, wait: bool) -> None:
        """Put a checkpoint in place that has been written, and delete those that nothing keeps."""
        saved = self.checkpointer.settle(wait)
        if saved is None:
            return
        self.folder.check_still_there()  # before a failure is said to be the disk's
        self.last_saved = saved
        if self.ranks.is_first and saved.path is not None:
            best_step = saved.progress.best_step if self.run.keep_best else None
            base_step = BASE_STEP if self.run.keeps_start else None
            self.folder.prune(self.run.keep_last, self.run.keep_every, {best_step, base_step})
        self.logger.checkpoint(saved, self.folder.last_checkpoint())
        self.clock = time.perf_counter()

    def agreed_stop(self) -> int:
        """The number of a signal that reached any rank, or TROUBLE, the same on all of them; 0 for none."""
        self.trouble = self.find_trouble()
        own = TROUBLE if self.trouble else self.stop.signal_number or 0
        if self.ranks.size == 1:
            return own
        return int(largest_over_ranks(torch.tensor(own, device=self.device), self.ranks))

    def find_trouble(self) -> str | None:
        """What happened to the files of the run so that it had better be saved and ended."""
        if not self.logger.is_in_place:
            return f"{self.folder.log} was removed or replaced while the run wrote it"
        try:
            self.train_data.check_unchanged()
            self.validation.check_unchanged()
        except UnusableData as error:
            return str(error)
        return None

    def end(self, reason: str, code: int) -> int:
        """Save what is not saved yet, write the summary, and say what happened. Returns the exit code."""
        if not self.run.eval_only:
            if self.saved_step != self.progress.step:
                self.save()
            self.settle(wait=True)
        self.checkpointer.close()
        self.folder.check_still_there()
        unsaved = None if self.last_saved is None else self.last_saved.failure
        self.logger.finish(self.progress, reason, unsaved)
        return code or int(unsaved is not None)


def changed_keys(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """`key: old -> new` for the keys of a resumed run that differ from the checkpoint's."""
    return [f"{key}: {old!r} -> {now[key]!r}" for key, old in before.items() if key in now and now[key] != old]
