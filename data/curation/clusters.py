"""Past one machine: datatrove's executors for SLURM and Ray run the tasks of each stage, and the command waits for
them. The input, the output folder and the repository must lie on a file system that every machine has at the same
place."""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor

from common.errors import UserError
from data.curation.execution import On, Run, stage_log
from data.curation.stages import Plan

REPOSITORY = Path(__file__).resolve().parents[2]
NEEDED = ("partition", "time")  # of sbatch's options


def on_slurm(given: Sequence[str]) -> On:
    """Jobs of SLURM, with sbatch's options as `key=value`. Raises UserError for options that are missing or are none,
    and where there is no sbatch."""
    options = dict(_option(text) for text in given)
    for name in NEEDED:
        if name not in options:
            raise UserError(f"--executor slurm needs --sbatch {name}=..., too: --sbatch partition=cpu time=24:00:00")
    if shutil.which("sbatch") is None:
        raise UserError("--executor slurm: there is no sbatch here: call it on a machine that submits jobs")

    @contextlib.contextmanager
    def on(plan: Plan, workers: int) -> Iterator[Run]:
        def run(number: int, ranks: list[int]) -> Iterator[int]:
            stage = plan.stages[number]
            executor = SlurmPipelineExecutor(
                list(stage.steps().values()),
                stage.tasks,
                workers=workers,
                job_name=f"curate_{stage.name}",
                env_command=_environment(),
                sbatch_args={"wait": "", **options},  # sbatch then ends when its job has ended
                qos="",
                logging_dir=str(stage_log(plan, stage).absolute()),
                **{name: options[name] for name in NEEDED},
            )
            with contextlib.suppress(subprocess.CalledProcessError):  # of tasks that failed, which are found below
                executor.run()
            yield from _all_through(executor, ranks, plan, number)

        yield run

    return on


def _option(text: str) -> tuple[str, str]:
    name, is_one, value = text.partition("=")
    if not name or not is_one:
        raise UserError(f"--sbatch {text}: it takes options of sbatch as key=value, such as partition=cpu")
    return name.lstrip("-"), value


def _environment() -> str:
    """What a job's shell does first: Python as here, the repository's modules, and as many open files as it may."""
    path, modules = shlex.quote(str(Path(sys.executable).parent)), shlex.quote(str(REPOSITORY))
    return f'export TQDM_DISABLE=1 PATH={path}:"$PATH" PYTHONPATH={modules}; ulimit -n "$(ulimit -Hn)"'


@contextlib.contextmanager
def on_ray(plan: Plan, workers: int) -> Iterator[Run]:
    """A cluster of Ray, that of RAY_ADDRESS or one of this machine. Raises UserError where there is no Ray."""
    try:
        import ray
    except ImportError:
        raise UserError("--executor ray needs the ray package: pip install -e '.[ray]'") from None
    environment = {"PYTHONPATH": str(REPOSITORY), "TQDM_DISABLE": "1"}
    ray.init(runtime_env={"env_vars": environment}, log_to_driver=False, logging_level="ERROR")

    def run(number: int, ranks: list[int]) -> Iterator[int]:
        stage = plan.stages[number]
        folder = str(stage_log(plan, stage).absolute())
        executor = _RayExecutor(list(stage.steps().values()), stage.tasks, workers, logging_dir=folder)
        executor.run()
        yield from _all_through(executor, ranks, plan, number)

    try:
        yield run
    finally:
        ray.shutdown()


class _RayExecutor(RayPipelineExecutor):
    """Its tasks run in the folder in which the command was called, of which relative paths are."""

    def __init__(self, *given: Any, **options: Any):
        super().__init__(*given, **options)
        self.called_in = str(Path.cwd())

    def _run_for_rank(self, *given: Any, **options: Any) -> Any:
        os.chdir(self.called_in)
        return super()._run_for_rank(*given, **options)


def _all_through(executor: PipelineExecutor, ranks: list[int], plan: Plan, number: int) -> list[int]:
    """The tasks. Raises UserError where some are not through."""
    if left := executor.get_incomplete_ranks(ranks):
        stage = plan.stages[number]
        log = stage_log(plan, stage) / f"logs/task_{left[0]:05d}.log"
        raise UserError(f"{stage.name}: {len(left):,} tasks failed or were ended, see {log}; the same command goes on")
    return ranks
