"""Training speed and memory of a hybrid beside a transformer of equal parameters, at growing lengths.

    python benchmarks/hybrid_training.py
    python benchmarks/hybrid_training.py config/hybrid_1.3b.py --lengths 2048 8192 --tokens 8192
    python benchmarks/hybrid_training.py config/quickstart_hybrid.py --vocab_size=256 --lengths 256 1024

The transformer is the config with attention in every layer and a wider FFN, as near to the hybrid's parameters as a
multiple of 64 comes. Both train on random tokens, in micro-batches of `--tokens` tokens, on a GPU compiled unless
`--compile=False`; the hybrid with each of the `--backends`. A contestant that does not fit the GPU is listed as such.
"""

import argparse
import dataclasses
import gc
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository runs without being installed

import torch

from benchmarks.train_throughput import Step, check_one_device, ours, random_batches
from common.errors import ArgumentParser, UserError, exit_cleanly, positive
from components.mixers.mamba2.kernels import choose_backend
from configurator import Configuration, load
from flops_parameter_counting.costs.model_cost import CONVENTIONS, model_cost
from model_config import ModelArchitectureConfig
from parallel.device import choose_device, choose_dtype, device_name, device_peak, synchronize
from parallel.ranks import ALONE


@dataclasses.dataclass(frozen=True)
class Measured:
    tokens_per_second: float
    mfu: dict[str, float]
    gigabytes: float | None  # the allocator's peak; a CPU has none


@exit_cleanly
def main() -> None:
    arguments, keys = parse_arguments()
    sizes = [f"--block_size={max(arguments.lengths)}", "--batch_size=1", "--gradient_accumulation_steps=1"]
    hybrid = load([str(arguments.config), *keys, *sizes])  # which refuses sizes among the keys
    check_one_device(hybrid)
    device = choose_device(hybrid.run.device, ALONE)
    dtype = choose_dtype(hybrid.run.dtype, device)
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
    compiled = device.type == "cuda" if hybrid.run.compile == "auto" else hybrid.run.compile
    how = "compiled" if compiled else "eager"
    print(f"{device_name(device)}, torch {torch.__version__}; {dtype}, {how}, micro-batches of {arguments.tokens:,}")
    for length in arguments.lengths:
        for name, model in contestants(hybrid.model, arguments.backends, device, dtype):
            model = model.replace(block_size=length)
            batch_size = max(1, arguments.tokens // length)
            run = dataclasses.replace(hybrid.run, batch_size=batch_size, dtype=dtype, compile=compiled)
            measured = measure(Configuration(model, run), device, arguments.steps)
            print(line(name, length, model, measured), flush=True)


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """The options, and keys of the config that are given otherwise."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("config", nargs="?", type=Path, default=Path("config/hybrid_1.3b.py"))
    parser.add_argument("--lengths", type=positive, nargs="+", default=[2048, 4096, 8192], help="of a sequence")
    parser.add_argument("--tokens", type=positive, default=8192, help="of a micro-batch, which is a step here")
    parser.add_argument("--steps", type=positive, default=10, help="timed steps")
    parser.add_argument("--backends", nargs="+", default=["chunked"], help="of the scan: chunked, fla, auto")
    return parser.parse_known_args()


def contestants(
    hybrid: ModelArchitectureConfig, backends: list[str], device: torch.device, dtype: str
) -> Iterator[tuple[str, ModelArchitectureConfig]]:
    yield "transformer", as_transformer(hybrid)
    for backend in backends:
        chosen, _ = choose_backend(hybrid.replace(mamba_backend=backend), device, dtype)
        yield f"hybrid, {chosen}", hybrid.replace(mamba_backend=chosen)


def as_transformer(hybrid: ModelArchitectureConfig) -> ModelArchitectureConfig:
    """Attention in every layer, and the width of the FFN whose total comes nearest to the hybrid's."""
    if hybrid.layer_pattern is None or hybrid.d_ff is None or hybrid.ffn_layers != hybrid.n_layer:
        raise UserError("the config is no hybrid with an FFN after every layer")
    wanted = model_cost(hybrid).n_params
    widths = range(hybrid.d_ff, 4 * hybrid.d_ff, 64)
    candidates = (hybrid.replace(layer_pattern=None, d_ff=width) for width in widths)
    return min(candidates, key=lambda config: abs(model_cost(config).n_params - wanted))


def measure(configuration: Configuration, device: torch.device, steps: int) -> Measured | None:
    """The median of the timed steps; None where the GPU's memory is too small."""
    on_gpu, dtype, compiled = device.type == "cuda", configuration.run.dtype, configuration.run.compile is True
    gc.collect()
    torch.compiler.reset()  # the shapes of the one before are no reason to compile for any shape
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        _, step = ours(configuration, device, dtype, compiled)
        seconds = time_steps(step, configuration, device, steps)
    except torch.OutOfMemoryError:
        return None
    rate = configuration.run.batch_size * configuration.model.block_size / statistics.median(seconds)
    peak = device_peak(device, dtype).flops_per_second
    cost = model_cost(configuration.model)
    mfu = {convention: rate * cost.training_flops(convention) / peak for convention in CONVENTIONS}
    return Measured(rate, mfu, torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None)


def time_steps(step: Step, configuration: Configuration, device: torch.device, steps: int) -> list[float]:
    """Seconds of each step after the first, or the first three, which compile."""
    seconds, untimed = [], 3 if configuration.run.compile is True else 1
    for batch in random_batches(configuration, device, untimed + steps):
        synchronize(device)
        start = time.perf_counter()
        step(batch)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds[untimed:]


def line(name: str, length: int, model: ModelArchitectureConfig, measured: Measured | None) -> str:
    what = f"{length:>7,}  {name:<16} {model_cost(model).n_params:>14,} parameters"
    if measured is None:
        return f"{what}   does not fit"
    mfu = ", ".join(f"{100 * share:.1f}% {convention}" for convention, share in measured.mfu.items())
    memory = "" if measured.gigabytes is None else f"   {measured.gigabytes:5.1f} GB"
    return f"{what} {measured.tokens_per_second:>9,.0f} tokens/s   MFU {mfu}{memory}"


if __name__ == "__main__":
    main()
