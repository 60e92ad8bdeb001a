"""Runs the stages of a plan on processes of this machine; clusters.py has other machines. What is through is noted by
datatrove, task by task; killed at any instant and started again, the tasks go on that are not."""

import concurrent.futures
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from datatrove.executor.base import DistributedEnvVars, PipelineExecutor
from loguru import logger

from common.files import writing_to
from data.curation.stages import Plan, Stage
from data.long_work import processes

logger.disable("datatrove")  # some lines for each file that it reads; what went wrong is raised

Run = Callable[[int, list[int]], Iterator[Any]]  # runs tasks of the stage of this number; yields as each is through
On = Callable[[Plan, int], AbstractContextManager[Run]]  # where so many tasks at once run


class Tasks(PipelineExecutor):
    """The tasks of a stage, as datatrove runs them: it skips those that are through, and notes counts and the end of
    the others. Its own executor for one machine waits for ever when one of its processes was killed."""

    def __init__(self, plan: Plan, stage: Stage):
        super().__init__(list(stage.steps().values()), str(stage_log(plan, stage)))
        self.stage = stage

    def run(self) -> None:
        for rank in self.get_incomplete_ranks():
            self.run_task(rank)

    def run_task(self, rank: int) -> None:
        self._run_for_rank(rank)

    @property
    def world_size(self) -> int:
        return self.stage.tasks

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        unknown = dict.fromkeys(("cpus_per_task", "mem_per_cpu", "gpus_on_node"), "-1")
        values = {"node_ips": "localhost", "executor": "LOCAL"} | unknown
        return DistributedEnvVars(**{f"datatrove_{name}": value for name, value in values.items()})


def stage_log(plan: Plan, stage: Stage) -> Path:
    """Where datatrove notes what is through, and what it counted."""
    return plan.folder / "log" / stage.name


def run_stages(plan: Plan, workers: int, say: Callable[[str], None], on: On | None = None) -> None:
    """All that is not through, on processes of this machine or `on` others. Raises UserError, also of a task."""
    open_many_files()
    with (on or _processes)(plan, workers) as run:
        stages = plan.stages
        for number, stage in enumerate(stages):
            left = Tasks(plan, stage).get_incomplete_ranks()
            if left:
                say(f"{number + 1} of {len(stages)}, {stage.name}: {_of(len(left), stage.tasks)}")
                began = said = time.monotonic()
                for done, _ in enumerate(run(number, left), start=1):
                    now = time.monotonic()
                    if now - said > 10 and done < len(left):
                        said = now
                        say(f"  {done:,} done, {(now - began) / done * (len(left) - done):,.0f} s left")
            for folder in stage.uses_up:
                shutil.rmtree(folder, ignore_errors=True)


def _of(left: int, tasks: int) -> str:
    return f"{tasks:,} task{'s' * (tasks > 1)}" if left == tasks else f"{left:,} of {tasks:,} tasks are left"


def open_many_files() -> None:
    """A comparison reads a file of every part at once. Processes that are begun from here on have the limit, too."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def run_task(plan: Plan, number: int, rank: int) -> None:
    with writing_to(plan.folder):
        Tasks(plan, plan.stages[number]).run_task(rank)


@contextmanager
def _processes(plan: Plan, workers: int) -> Iterator[Run]:
    """Something that runs tasks on so many processes, which end with the block; on this one if it is one."""

    def here(number: int, ranks: list[int]) -> Iterator[Any]:
        for rank in ranks:
            run_task(plan, number, rank)
            yield rank

    if workers == 1:
        yield here
        return
    killed = "a process was killed, perhaps for memory: try fewer --workers; the same command goes on"
    with processes(workers, killed) as pool:

        def there(number: int, ranks: list[int]) -> Iterator[Any]:
            running = [pool.submit(run_task, plan, number, rank) for rank in ranks]
            yield from (done.result() for done in concurrent.futures.as_completed(running))

        yield there
