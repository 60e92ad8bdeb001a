"""A layer of experts, forward and backward, beside transformers' of the same sizes and weights and beside a dense gated
FFN of the same active FLOPs: in turn, in one run.

    python benchmarks/components.py
    python benchmarks/components.py --n_experts 8 --n_experts_per_token 2 --expert_d_ff 1024
    python benchmarks/components.py --profile

Needs transformers, whose Qwen3MoeSparseMoeBlock it is held against, eager and with grouped products. Of latent
attention: benchmarks/latent_decoding.py.
"""

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository runs without being installed

import torch
from torch import Tensor, nn

from common.errors import ArgumentParser, UserError, exit_cleanly, positive
from components.ffns.experts.module import Experts
from components.ffns.gated.module import GatedFFN
from model_config import resolve_architecture

OURS, EAGER, GROUPED, DENSE = "experts", "transformers, eager", "transformers, grouped", "dense FFN"


@exit_cleanly
def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    layers = contestants(options)
    x = torch.randn(options.tokens // 512, 512, options.n_embd)
    if options.profile:
        print_profile(layers[OURS], x)
        return
    check_equal(layers, x)
    print(
        f"{options.tokens} tokens x {options.n_embd}, {options.n_experts_per_token} of {options.n_experts} experts of "
        f"width {options.expert_d_ff}, backend {options.backend}, {options.threads} threads, median of "
        f"{options.rounds} rounds in turn; ratios are of rounds\n"
    )
    heading = f"{'times ours (quartiles)':>28s}"
    print(f"{'':24s}{'float32 ms':>12s}{heading}{'bfloat16 ms':>14s}{heading}")
    measured = {dtype: measure(layers, x, dtype, options.rounds) for dtype in ("float32", "bfloat16")}
    for name in layers:
        row = f"{name:24s}"
        for dtype, width in (("float32", 12), ("bfloat16", 14)):
            row += f"{1e3 * statistics.median(measured[dtype][name]):>{width},.0f}{ratio(measured[dtype], name):>28s}"
        print(row, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    option = parser.add_argument
    option("--tokens", type=positive, default=4096, metavar="N", help="a multiple of 512 (4096)")
    option("--n_embd", type=positive, default=512, metavar="N", help="(512)")
    option("--n_experts", type=positive, default=64, metavar="N", help="(64)")
    option("--n_experts_per_token", type=positive, default=8, metavar="N", help="(8)")
    option("--expert_d_ff", type=positive, default=256, metavar="N", help="(256)")
    option("--backend", default="auto", choices=("auto", "segments", "grouped", "loop"), help="ours (auto)")
    option("--threads", type=positive, default=torch.get_num_threads(), metavar="N", help="(all cores)")
    option("--rounds", type=positive, default=7, metavar="N", help="(7)")
    option("--profile", action="store_true", help="say instead where the time of ours goes, in bfloat16")
    options = parser.parse_args()
    if options.tokens % 512:
        raise UserError(f"--tokens={options.tokens} is no multiple of 512")
    return options


def contestants(options: argparse.Namespace) -> dict[str, nn.Module]:
    """The layers, with equal weights where they have the same."""
    try:
        from transformers import Qwen3MoeConfig
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock
    except ImportError:
        raise UserError("transformers is not installed: pip install transformers") from None
    sizes = {name: getattr(options, name) for name in ("n_embd", "n_experts", "n_experts_per_token", "expert_d_ff")}
    shared = {"arch_preset": "llama3", "n_head": 1, "n_layer": 1, "vocab_size": 2}
    kind = {"ffn_pattern": "E", "balance_loss": 0.0, "experts_backend": options.backend}
    ours = Experts(resolve_architecture({**shared, **sizes, **kind}))
    width = options.n_experts_per_token * options.expert_d_ff
    dense = GatedFFN(resolve_architecture({**shared, "n_embd": options.n_embd, "d_ff": width}))
    for parameter in (*ours.parameters(), *dense.parameters()):
        nn.init.normal_(parameter, 0, 0.02)
    theirs = {}
    for name, implementation in ((EAGER, "eager"), (GROUPED, "grouped_mm")):
        config = Qwen3MoeConfig(
            hidden_size=options.n_embd,
            num_experts=options.n_experts,
            num_experts_per_tok=options.n_experts_per_token,
            moe_intermediate_size=options.expert_d_ff,
            norm_topk_prob=True,
        )
        config._experts_implementation = implementation
        theirs[name] = block = Qwen3MoeSparseMoeBlock(config)
        with torch.no_grad():
            block.gate.weight.copy_(ours.router.weight)
            block.experts.gate_up_proj.copy_(torch.cat((ours.gate_proj.weight, ours.up_proj.weight), dim=1))
            block.experts.down_proj.copy_(ours.down_proj.weight)
    return {OURS: ours, **theirs, DENSE: dense}


def output(layer: nn.Module, x: Tensor) -> Tensor:
    y = layer(x)
    return y[0] if isinstance(y, tuple) else y


@torch.no_grad()
def check_equal(layers: dict[str, nn.Module], x: Tensor) -> None:
    """Raises UserError where what is compared is not the same function."""
    mine = output(layers[OURS], x)
    for name in (EAGER, GROUPED):
        difference = ((output(layers[name], x) - mine).abs().max() / mine.abs().max()).item()
        if difference > 1e-4:
            raise UserError(f"{name} gives another output: largest difference {difference:.1e} of the largest")


def measure(layers: dict[str, nn.Module], x: Tensor, dtype: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of forward and backward of each layer, in turn, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(rounds + 1):
        for name, layer in layers.items():
            seconds[name].append(once(layer, x, dtype))
    return {name: found[1:] for name, found in seconds.items()}


def once(layer: nn.Module, x: Tensor, dtype: str) -> float:
    half: Callable = torch.autocast if dtype == "bfloat16" else contextlib.nullcontext
    given = ("cpu", torch.bfloat16) if dtype == "bfloat16" else ()
    x = x.clone().requires_grad_()
    started = time.perf_counter()
    with half(*given):
        y = output(layer, x)
    y.float().sum().backward()
    taken = time.perf_counter() - started
    layer.zero_grad(set_to_none=True)
    return taken


def print_profile(layer: nn.Module, x: Tensor) -> None:
    """The time of every kind of operation by itself, of one pass after three that do not count. What is in none is
    Python's, for the most part; profiling slows that down."""
    for _ in range(3):
        once(layer, x, "bfloat16")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        seconds = once(layer, x, "bfloat16")
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)
    rows = [row for row in rows if row.key.startswith("aten::")]
    for row in rows[:12]:
        print(f"{row.key:28s}{row.self_cpu_time_total / 1e3:>8.1f} ms{row.count:>7,} calls")
    others = 1e3 * seconds - sum(row.self_cpu_time_total for row in rows[:12]) / 1e3
    print(f"{'all else':28s}{others:>8.1f} ms\n{'the pass':28s}{1e3 * seconds:>8.1f} ms")


def ratio(seconds: dict[str, list[float]], name: str) -> str:
    of_rounds = [one / ours for one, ours in zip(seconds[name], seconds[OURS], strict=True)]
    low, middle, high = statistics.quantiles(of_rounds, n=4) if len(of_rounds) > 1 else 3 * of_rounds
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
