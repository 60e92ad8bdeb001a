"""How fast the planner searches: the published search, ten million candidates, and a bootstrap of a law.

    python benchmarks/grid_search.py

Prints what was measured beside the target. Memory is the peak of a process that does nothing else.
"""

import dataclasses
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository runs without being installed

import numpy as np

from common.errors import ArgumentParser, exit_cleanly
from common.memory import peak_of_process
from flops_parameter_counting.costs.setting import Setting
from flops_parameter_counting.laws.scaling_laws import CONSTANTS, LAWS
from flops_parameter_counting.planner.search import Search, uncertainty
from flops_parameter_counting.planner.search import grid_search as search_for
from flops_parameter_counting.planner.space import PUBLISHED_BUDGET, SearchSpace, default_space
from flops_parameter_counting.planner.space import published as as_published

COMMAND = Path(__file__).resolve().parent.parent / "flops_parameter_counting/detailed_cost_analysis.py"

SHARED: dict[str, Any] = {"ffn_expansion_ratio": 3.5, "weight_tying": False}


@exit_cleanly
def main() -> int:
    ArgumentParser(__doc__).parse_args()
    command = [sys.executable, str(COMMAND), "--grid_search", f"{PUBLISHED_BUDGET:g}", "--flops_formula=published"]
    seconds = fastest(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), times=5)
    line("published search, whole process", f"{seconds:.3f} s", "0.3 s")
    space = as_published(default_space(PUBLISHED_BUDGET, "llama3"))
    published = Search(PUBLISHED_BUDGET, LAWS["hoffmann"], space, "published")
    seconds = fastest(lambda: search_for(published), times=20)
    line("published search alone (50,400 candidates)", f"{1e3 * seconds:.2f} ms", "20 ms")
    for measure in (ten_million, ten_million_in_memory, bootstrap):
        with multiprocessing.get_context("spawn").Pool(1) as alone:
            what, seconds, target, gigabytes = alone.apply(measure)
            alone.close()
            alone.join()
        line(what, f"{seconds:.2f} s, {gigabytes:.2f} GB", target)
    return 0


def line(what: str, measured: str, target: str) -> None:
    print(f"{what:<56} {measured:>16}   target: under {target}")


def fastest(action: Callable[[], object], times: int) -> float:
    """Seconds of the fastest of several calls."""
    return min(timed(action) for _ in range(times))


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def ten_million(training: Setting | None = None) -> tuple[str, float, str, float]:
    """Architectures, each with its own D."""
    sizes: dict[str, Any] = {
        "hidden_sizes": range(256, 16384, 8),
        "layers": range(1, 1310),
        "head_dims": (8, 16, 32, 64, 128),
    }
    space = SearchSpace("llama3", 128256, 2048, **sizes, kv_heads=(1, 2, 4, 8, 16, 32), **SHARED)
    search = Search(1e22, LAWS["besiroglu"], space, training=training)
    seconds = timed(lambda: search_for(search))
    bounded = "" if training is None else ", memory bounded"
    return f"exact search of {len(space):,} candidates{bounded}", seconds, "5 s and 2 GB", peak_of_process() / 1e9


def ten_million_in_memory() -> tuple[str, float, str, float]:
    """The same on devices that must hold them."""
    return ten_million(Setting(devices=64, strategy="fsdp", device_memory=80e9))


def bootstrap() -> tuple[str, float, str, float]:
    """1,000 laws around a published one over 10,000 architectures."""
    law = LAWS["besiroglu"]
    constants = np.array([getattr(law, name) for name in CONSTANTS])
    draws = constants * np.random.default_rng(0).normal(1, 0.01, (1000, 5))
    sizes: dict[str, Any] = {"hidden_sizes": range(256, 8448, 64), "layers": range(4, 84), "head_dims": (64,)}
    space = SearchSpace("llama3", 50304, 1024, **sizes, kv_heads=None, **SHARED)
    drawn = dataclasses.replace(law, draws=draws)
    result = search_for(Search(1e20, drawn, space))
    seconds = timed(lambda: uncertainty(result))
    what = f"bootstrap of {len(draws):,} laws over {len(result.best['loss']):,} architectures"
    return what, seconds, "10 s", peak_of_process() / 1e9


if __name__ == "__main__":
    main()
