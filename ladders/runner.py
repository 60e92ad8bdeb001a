"""Runs what is not finished of a ladder: a process of train.py each, or torchrun.

Everything that the runner knows is in the folder: it can be killed anywhere and started again. A run that a killed
runner left behind still holds its folder; it is waited for, and then goes on as any other.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from common.errors import UserError
from common.locks import is_locked, lock
from ladders.ledger import Entry, entries, read
from ladders.plan import Folder, Plan, Run
from ladders.stages import advance, is_ready, prepare
from runs.logs import read_run

TRAIN = Path(__file__).resolve().parent.parent / "train.py"
LOOK_SECONDS = 0.2  # between looks at the processes
READ_SECONDS = 1.0  # between readings of the logs, for the bar
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclasses.dataclass
class _Running:
    run: Run
    process: subprocess.Popen
    printed: int  # bytes of its output file that earlier attempts wrote
    signals: int = 0  # of those that reached the runner, how many were passed on


class Runner:
    """One call of `ladder.py run`."""

    def __init__(self, plan: Plan, folder: Folder, gpus: int | None, jobs: int):
        self.plan, self.folder, self.gpus, self.jobs = plan, folder, gpus, jobs
        self.slots: list[_Running | None] = [None] * jobs
        self.failed: dict[str, str] = {}  # run -> why
        self.held: set[str] = set()  # runs that a process of an earlier runner goes on with
        self.signals: list[int] = []
        self.something_ended = True
        self.bar: tqdm | None = None

    def run(self) -> int:
        """0 when all runs have finished; 1 when some failed; 128 + the signal's number when one stopped it. Raises
        UserError for a config that was changed, and where another runner works on the ladder."""
        for run in self.plan.runs:
            divided(run, self.gpus or 1)
        wanted, visible = self.jobs * (self.gpus or 0), len(_visible_gpus())
        if 0 < visible < wanted:
            raise UserError(f"--jobs={self.jobs} with --gpus={self.gpus} take {wanted} GPUs, and {visible} are visible")
        with self._alone(), self._signals_noted(), self._runs_stopped_on_error():
            bar = {"unit": "FLOP", "unit_scale": True, "dynamic_ncols": True, "disable": None, "leave": False}
            with tqdm(total=float(self.plan.flops), **bar) as self.bar:
                self._work()
        return self._conclude()

    def _work(self) -> None:
        looked = 0.0
        while True:
            self._reap()
            if not self.signals and self.something_ended:
                self.something_ended = False
                self._start_what_can_start()
            self._pass_signals_on()
            if not any(self.slots) and (self.signals or not (self.held or self.something_ended)):
                return
            if time.monotonic() - looked > READ_SECONDS:
                self._show_progress()
                self.something_ended |= bool(self.held)
                looked = time.monotonic()
            time.sleep(LOOK_SECONDS)

    # What may be started

    def _start_what_can_start(self) -> None:
        if None not in self.slots:
            return
        self._note_held()  # first: one that ends after this look is read as ended below
        found = entries(self.plan, self.folder)
        for line in advance(self.plan, self.folder, found):
            self.say(line)
        records = read(self.folder.ledger)
        away = self.held | self.failed.keys() | {slot.run.name for slot in self.slots if slot is not None}
        for entry in found:
            waits = not entry.is_settled and entry.run.name not in away and is_ready(entry.run, records)
            if waits and self._has_room():
                self._start(entry)

    def _note_held(self) -> None:
        """Which runs a process of an earlier call, whose runner was killed, goes on with."""
        busy = {slot.run.name for slot in self.slots if slot is not None}
        held = {run.name for run in self.plan.runs if is_locked(self.folder.run(run))} - busy
        for name in sorted(held - self.held):
            self.say(f"{name}: a process of an earlier call goes on with it; waiting for it")
        self.held = held

    def _has_room(self) -> bool:
        """A held run takes the place of one of ours; and which GPUs it has is not known."""
        busy = sum(slot is not None for slot in self.slots)
        return busy + len(self.held) < self.jobs and not (self.gpus and self.held)

    def _start(self, entry: Entry) -> None:
        run, slot, output = entry.run, self.slots.index(None), self.folder.output(entry.run)
        try:
            config = prepare(run, self.plan, self.folder)
        except UserError as error:
            self._note_failure(run, str(error))
            return
        output.parent.mkdir(exist_ok=True)
        with output.open("ab") as file:
            printed = file.tell()
            process = subprocess.Popen(
                self.command(run, config), env=self.environment(slot), stdout=file, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,  # signals come from here alone, and once
            )  # fmt: skip
        self.slots[slot] = _Running(run, process, printed)
        self.say(f"{run.name}: {'goes on' if entry.log is not None else 'starts'}")

    def command(self, run: Run, config: Path) -> list[str]:
        arguments = [str(TRAIN), str(config), f"--out_dir={self.folder.run(run)}", "--init_from=auto"]
        if self.gpus is not None and self.plan.arguments.device == "auto":
            arguments.append("--device=cuda")  # where there are fewer GPUs, a run must not go on without
        ranks = self.gpus or 1
        if ranks == 1:
            return [sys.executable, *arguments]
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        return [sys.executable, *torchrun, *arguments, *divided(run, ranks)]

    def environment(self, slot: int) -> dict[str, str]:
        """Runs at the same time share the processors; with --gpus each has GPUs of its own."""
        ranks = self.jobs * (self.gpus or 1)
        shared = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks))} if ranks > 1 else {}
        own = {} if self.gpus is None else {"CUDA_VISIBLE_DEVICES": _gpus_of(slot, self.gpus)}
        return shared | os.environ | own

    # What has ended

    def _reap(self) -> None:
        for slot, running in enumerate(self.slots):
            if running is None or running.process.poll() is None:
                continue
            run, code = running.run, running.process.returncode
            self.slots[slot], self.something_ended = None, not self.signals
            (entry,) = (entry for entry in entries(self.plan, self.folder) if entry.run == run)
            why = _last_words(self.folder.output(run), running.printed, code)
            if entry.is_finished:
                self.say(f"{run.name}: finished{_losses(entry)}")
            elif entry.is_settled:
                self.say(f"{run.name}: does not train at this rate: {why}")
            elif not self.signals and not is_locked(self.folder.run(run)):
                self._note_failure(run, why)

    def _note_failure(self, run: Run, why: str) -> None:
        self.failed[run.name], self.something_ended = why, True
        self.say(f"{run.name}: failed: {why}")

    def _conclude(self) -> int:
        if self.signals:
            print(f"stopped by {signal.Signals(self.signals[0]).name}; the same command goes on", flush=True)
            return 128 + self.signals[0]
        found = entries(self.plan, self.folder)
        finished = sum(entry.is_finished for entry in found)
        print(f"{finished} of {len(found)} runs have finished", flush=True)
        for name, why in self.failed.items():
            print(f"failed: {name}: {why} ({self.folder.path}/output/{name}.txt)", flush=True)
        for entry in found:
            if not entry.is_settled and entry.run.name not in self.failed:
                print(f"not started: {entry.run.name} waits for {' and '.join(entry.run.waits_for)}", flush=True)
        return 0 if all(entry.is_settled for entry in found) else 1

    # The rest

    def _show_progress(self) -> None:
        if self.bar is None or self.bar.disable:
            return
        done = 0
        for run in self.plan.runs:
            with contextlib.suppress(UserError):  # no whole record yet
                done += min(read_run(self.folder.run(run)).step, run.steps) * run.tokens_per_step * run.flops_per_token
        if self.bar.n == 0:
            self.bar.initial = done  # what is left is foretold from what this call does
        self.bar.update(done - self.bar.n)

    def say(self, text: str) -> None:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Raises UserError while another runner works on the ladder."""
        try:
            held = lock(self.folder.path)
        except OSError as error:
            raise UserError(f"cannot write to {self.folder.path}: {error.strerror}") from None
        if held is None:
            raise UserError(f"another ladder.py run works on {self.folder.path}: wait for it, or stop it")
        with held:
            yield

    @contextlib.contextmanager
    def _signals_noted(self) -> Iterator[None]:
        """A signal goes on to the runs, which save and end; then the runner ends too."""
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signals.append(number)

    @contextlib.contextmanager
    def _runs_stopped_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.signals.append(signal.SIGTERM)
            self._pass_signals_on()
            raise

    def _pass_signals_on(self) -> None:
        """Each once to each run: a second one ends it at once."""
        for running in self.slots:
            while running is not None and running.signals < len(self.signals) and running.process.poll() is None:
                number = self.signals[running.signals]
                running.process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
                running.signals += 1


def divided(run: Run, ranks: int) -> Sequence[str]:
    """Keys with which so many ranks share a step's micro-batches: the same step, the same validation windows. Raises
    UserError where they cannot."""
    if run.gradient_accumulation_steps % ranks == 0:
        return []
    sequences = run.gradient_accumulation_steps * run.batch_size
    if sequences % ranks:
        raise UserError(f"{run.name} has {sequences} sequences a step, which {ranks} GPUs cannot share: lower --gpus")
    windows = run.eval_iters * run.batch_size
    batch_size = min(run.batch_size, sequences // ranks)
    while sequences % (ranks * batch_size) or windows % batch_size:
        batch_size -= 1
    return [
        f"--gradient_accumulation_steps={sequences // batch_size}",
        f"--batch_size={batch_size}",
        f"--eval_iters={windows // batch_size}",
        f"--eval_batch_size={batch_size}",
    ]


def _gpus_of(slot: int, count: int) -> str:
    """A slot's share of the GPUs that the user lets be seen, or of all."""
    first, names = slot * count, _visible_gpus()
    return ",".join(names[first : first + count] if names else map(str, range(first, first + count)))


def _visible_gpus() -> list[str]:
    """Their names in CUDA_VISIBLE_DEVICES; empty where that is not set."""
    return list(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")))


def _losses(entry: Entry) -> str:
    predicted = entry.predicted("loss")
    said = "" if predicted is None else f", predicted {predicted:.4f}"
    return "" if entry.loss is None else f", validation loss {entry.loss:.4f}{said}"


def _last_words(output: Path, start: int, code: int) -> str:
    """The last error that a run printed after `start` bytes (torchrun prints a summary of its own below it), or its
    last line, or that a signal killed it."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = output.read_bytes()[start:].decode(errors="replace").strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"exit code {code}"])[-1].removeprefix("error: ")
