"""Training adapters beside training everything: speed, FLOPs, and on a GPU the memory beside its estimate.

    python benchmarks/adapters.py config/full_gpt2_124m.py --vocab_size=50304
    python benchmarks/adapters.py config/quickstart.py --vocab_size=256 --lora_r=8 --rounds 5

Both train on random tokens, in turns (`--rounds`), of which each one's fastest step counts, on a GPU compiled unless
`--compile=False`. Keys of adapters may stand among the arguments.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository runs without being installed

import torch

from benchmarks.hybrid_training import time_steps
from benchmarks.train_throughput import check_one_device, ours
from common.errors import ArgumentParser, exit_cleanly, positive
from configurator import Configuration, load
from flops_parameter_counting.costs.memory import rank_memory
from flops_parameter_counting.costs.model_cost import training_flops
from parallel.device import choose_device, choose_dtype, device_name
from parallel.ranks import ALONE
from runs.config import OF_ADAPTERS, RunConfig


@exit_cleanly
def main() -> None:
    arguments, keys = parse_arguments()
    adapted = load([str(arguments.config), "--use_lora=True", *keys])
    check_one_device(adapted)
    device = choose_device(adapted.run.device, ALONE)
    dtype = choose_dtype(adapted.run.dtype, device)
    compiled = device.type == "cuda" if adapted.run.compile == "auto" else adapted.run.compile is True
    run = dataclasses.replace(adapted.run, dtype=dtype, compile=compiled, gradient_accumulation_steps=1)
    plain = {name: getattr(RunConfig(), name) for name in OF_ADAPTERS}
    everything = dataclasses.replace(run, use_lora=False, **plain)
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
    print(f"{device_name(device)}, torch {torch.__version__}; {dtype}, {'compiled' if compiled else 'eager'}")
    contestants = {
        "everything": Configuration(adapted.model, everything),
        "adapters": Configuration(adapted.model, run),
    }
    seconds: dict[str, float] = {}
    for _ in range(arguments.rounds):
        for name, configuration in contestants.items():
            found, memory = measure(configuration, device, arguments.steps)
            seconds[name] = min(found, seconds.get(name, found))
            print(line(name, configuration, found, memory), flush=True)
    ratio = seconds["everything"] / seconds["adapters"]
    print(f"adapters: {ratio:.2f} times as many tokens a second, the fastest steps of {arguments.rounds} rounds")


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """The options, and keys of the config that are given otherwise."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--steps", type=positive, default=10, help="timed steps of a round")
    parser.add_argument("--rounds", type=positive, default=3)
    return parser.parse_known_args()


def measure(configuration: Configuration, device: torch.device, steps: int) -> tuple[float, int | None]:
    """Seconds of the fastest step, and on a GPU the most bytes that were allocated."""
    on_gpu, run = device.type == "cuda", configuration.run
    torch.compiler.reset()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    _, step = ours(configuration, device, run.dtype, run.compile is True)
    seconds = min(time_steps(step, configuration, device, steps))
    return seconds, torch.cuda.max_memory_allocated() if on_gpu else None


def line(name: str, configuration: Configuration, seconds: float, memory: int | None) -> str:
    model, run = configuration.model, configuration.run
    tokens = run.batch_size * model.block_size
    flops = training_flops(model, run.frozen_names, adapters=run.adapters).by_convention["full"]
    estimate = sum(rank_memory(model, run, 1, run.dtype).values())
    held = "" if memory is None else f"   {memory / 1e9:.2f} GB, of which the estimate is {estimate / memory:.1%}"
    return f"{name:<11}{tokens / seconds:>12,.0f} tokens/s {flops * tokens / seconds / 1e12:>9.3f} TFLOP/s{held}"


if __name__ == "__main__":
    main()
