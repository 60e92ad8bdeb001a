"""Training speed and memory of a hybrid beside a transformer of equal parameters, at growing lengths, on a GPU.

    python benchmarks/hybrid_training.py
    python benchmarks/hybrid_training.py config/hybrid_1.3b.py --lengths 2048 8192 --tokens 8192

The transformer is the config with attention in every layer and a wider FFN, as near to the hybrid's parameters as a
multiple of 64 comes. Both train in bfloat16, compiled, on random tokens, micro-batches of `--tokens` tokens; the hybrid
with each of the `--backends`. A contestant that does not fit is listed as such.
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

from benchmarks.train_throughput import Step, ours, random_batches
from components.fused_scan import choose_backend
from configurator import Configuration, load
from errors import ArgumentParser, UserError, exit_cleanly, positive
from flops_parameter_counting.model_cost import model_cost
from model_config import ModelArchitectureConfig
from training.device import choose_device, device_name, device_peak, synchronize
from training.ranks import ALONE

DTYPE = "bfloat16"


@dataclasses.dataclass(frozen=True)
class Measured:
    tokens_per_second: float
    mfu: dict[str, float]
    gigabytes: float  # the allocator's peak


@exit_cleanly
def main() -> None:
    arguments = parse_arguments()
    hybrid = load([str(arguments.config), "--compile=True", f"--dtype={DTYPE}", "--gradient_accumulation_steps=1"])
    device = choose_device("auto", ALONE)
    if device.type != "cuda":
        raise UserError("the benchmark needs an NVIDIA GPU that PyTorch sees")
    torch.set_float32_matmul_precision("high")
    print(f"{device_name(device)}, torch {torch.__version__}; {DTYPE}, compiled, micro-batches of {arguments.tokens:,}")
    for length in arguments.lengths:
        for name, model in contestants(hybrid.model, arguments.backends, device):
            model = dataclasses.replace(model, block_size=length)
            batch_size = max(1, arguments.tokens // length)
            run = dataclasses.replace(
                hybrid.run, batch_size=batch_size, activation_checkpointing=arguments.activation_checkpointing
            )
            print(line(name, length, model, measure(Configuration(model, run), device, arguments.steps)), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("config", nargs="?", type=Path, default=Path("config/hybrid_1.3b.py"))
    parser.add_argument("--lengths", type=positive, nargs="+", default=[2048, 4096, 8192], help="of a sequence")
    parser.add_argument("--tokens", type=positive, default=8192, help="of a micro-batch, which is a step here")
    parser.add_argument("--steps", type=positive, default=10, help="timed steps")
    parser.add_argument("--activation_checkpointing", action="store_true", help="as the key of this name")
    parser.add_argument("--backends", nargs="+", default=["chunked"], help="of the scan: chunked, fla, auto")
    return parser.parse_args()


def contestants(
    hybrid: ModelArchitectureConfig, backends: list[str], device: torch.device
) -> Iterator[tuple[str, ModelArchitectureConfig]]:
    yield "transformer", as_transformer(hybrid)
    for backend in backends:
        chosen, _ = choose_backend(dataclasses.replace(hybrid, mamba_backend=backend), device, DTYPE)
        yield f"hybrid, {chosen}", dataclasses.replace(hybrid, mamba_backend=chosen)


def as_transformer(hybrid: ModelArchitectureConfig) -> ModelArchitectureConfig:
    """Attention in every layer, and the width of the FFN whose total comes nearest to the hybrid's."""
    if hybrid.layer_pattern is None or hybrid.d_ff is None or hybrid.ffn_layers != hybrid.n_layer:
        raise UserError("the config is no hybrid with an FFN after every layer")
    wanted = model_cost(hybrid).n_params
    widths = range(hybrid.d_ff, 4 * hybrid.d_ff, 64)
    candidates = (dataclasses.replace(hybrid, layer_pattern=None, d_ff=width) for width in widths)
    return min(candidates, key=lambda config: abs(model_cost(config).n_params - wanted))


def measure(configuration: Configuration, device: torch.device, steps: int) -> Measured | None:
    """The median of the timed steps; None where the device's memory is too small."""
    gc.collect()
    torch.compiler.reset()  # the shapes of the one before are no reason to compile for any shape
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        _, step = ours(configuration, device, DTYPE, compiled=True)
        seconds = time_steps(step, configuration, device, steps)
    except torch.OutOfMemoryError:
        return None
    rate = configuration.run.batch_size * configuration.model.block_size / statistics.median(seconds)
    peak = device_peak(device, DTYPE).flops_per_second
    cost = model_cost(configuration.model)
    mfu = {convention: rate * cost.training_flops(convention) / peak for convention in ("full", "causal")}
    return Measured(rate, mfu, torch.cuda.max_memory_allocated() / 1e9)


def time_steps(step: Step, configuration: Configuration, device: torch.device, steps: int) -> list[float]:
    """Seconds of each step after the first three, which compile."""
    seconds = []
    for batch in random_batches(configuration, device, steps + 3):
        synchronize(device)
        start = time.perf_counter()
        step(batch)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds[3:]


def line(name: str, length: int, model: ModelArchitectureConfig, measured: Measured | None) -> str:
    what = f"{length:>7,}  {name:<16} {model_cost(model).n_params:>14,} parameters"
    if measured is None:
        return f"{what}   does not fit"
    mfu = ", ".join(f"{100 * share:.1f}% {convention}" for convention, share in measured.mfu.items())
    return f"{what} {measured.tokens_per_second:>9,.0f} tokens/s   MFU {mfu}   {measured.gigabytes:5.1f} GB"


if __name__ == "__main__":
    main()
