"""A process that trains each of some configs for a moment and writes how long a step takes: ladders/calibration.py.

python ladders/measure.py FILE.json CONFIG.py ...
"""

import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository: this script is called by its path

from common.errors import exit_cleanly
from configurator import load, with_vocabulary
from data.loader import Batch, prefetch
from data.mixture import open_data
from parallel.device import choose_device
from parallel.lost_ranks import naming_lost_ranks
from parallel.ranks import ALONE
from runs.folder import RunFolder
from training.interrupts import StopRequest
from training.plan import plan_run
from training.trainer import Process, Trainer, describe_machine

WARM_UP = 3  # steps in which kernels are loaded and blocks compiled
SECONDS, STEPS = 2.0, 50  # measured until either, but two steps at least


@exit_cleanly
def main() -> None:
    target, *configs = sys.argv[1:]
    found = [measure(Path(config)) for config in configs]
    Path(target).write_text(json.dumps(found) + "\n")


def measure(config: Path) -> dict[str, float | str]:
    """Steps of the run that a config describes, as train.py takes them: `seconds` of one, on which `device`, and for
    how long the whole measurement took."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        configuration = load([str(config), f"--out_dir={folder}/run"])
        run = configuration.run
        dataset = open_data(run.dataset, None, run.val_dataset, run.data_dir)
        configuration = with_vocabulary(configuration, dataset.vocab_size)
        plan, run = plan_run(configuration, dataset), configuration.run
        device = choose_device(run.device, ALONE)
        machine = describe_machine(configuration, plan, ALONE, device, None)
        target = RunFolder(configuration.run_dir)
        with target.hold(), naming_lost_ranks(ALONE, run.comm_timeout) as watch:
            stop = StopRequest(announce=False)
            trainer = Trainer(configuration, dataset, plan, target, Process(ALONE, machine, stop, watch))
            batches = prefetch(trainer.train_data, trainer.sample_starts(), run.batch_size, device)
            with contextlib.closing(batches):
                seconds = seconds_a_step(trainer, batches, plan.length)
            trainer.checkpointer.close()
    return {
        "config": config.stem,
        "seconds": seconds,
        "device": machine.device_name,
        "took": time.perf_counter() - began,
    }


def seconds_a_step(trainer: Trainer, batches: Iterator[Batch], length: int) -> float:
    times: list[float] = []
    while trainer.progress.step < length and len(times) < STEPS and (sum(times) < SECONDS or len(times) < 2):
        before = trainer.progress.train_seconds
        trainer.take_step(batches)
        if trainer.progress.step > min(WARM_UP, length - 1):
            times.append(trainer.progress.train_seconds - before)
    return sum(times) / len(times)


if __name__ == "__main__":
    main()
