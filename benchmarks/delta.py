"""The delta rules, forward and backward, beside transformers' in PyTorch: the rule alone at several lengths, and a
whole gated delta layer; in turn, in one run.

    python benchmarks/delta.py
    python benchmarks/delta.py --shapes 1x16384 1x65536 --without-transformers

Float32 on the CPU: 4 heads of 64, and a layer 256 wide. transformers' Kimi delta attention is timed up to 4,096 tokens,
for seconds each; its pairs of tokens have a number for every channel. Peak memory is how far that of a process of its
own grows over a step, beyond a step on a few tokens.
"""

import argparse
import dataclasses
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository runs without being installed

import torch
from torch import Tensor

from benchmarks.mamba import SHORT
from common.errors import ArgumentParser, UserError, exit_cleanly, positive
from common.memory import peak_of_process
from components.mixers.delta_rule import delta_chunked
from components.registry import spec
from model_components import component
from model_config import resolve_architecture

HEADS, WIDTH, N_EMBD = 4, 64, 256
SHAPES = ("4x1024", "1x4096", "1x16384")
OF_KIMI_AT_MOST = 4096  # tokens, of transformers'


@dataclasses.dataclass(frozen=True)
class Contestant:
    """`step` is forward and backward of what `make` gave, on inputs of (batch, length)."""

    name: str
    beside: str | None  # whom ratios are to; None: nobody
    make: Callable[[], Callable[..., Tensor]]
    inputs: Callable[[int, int], list[Tensor]]
    at_most: int | None = None

    def step(self, made: Callable[..., Tensor], given: list[Tensor]) -> None:
        made(*given).sum().backward()


def of_rule(decays: int) -> Callable[[int, int], list[Tensor]]:
    """q, k, v, decay and beta, with so many decays a head."""

    def inputs(batch: int, length: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(batch, length, HEADS, WIDTH, generator=generator) for _ in range(3))
        decay = -torch.rand(batch, length, HEADS, decays, generator=generator)
        beta = torch.rand(batch, length, HEADS, generator=generator)
        return [one.requires_grad_() for one in (q, k, v, decay, beta)]

    return inputs


def of_layer(batch: int, length: int) -> list[Tensor]:
    return [torch.randn(batch, length, N_EMBD, generator=torch.Generator().manual_seed(0), requires_grad=True)]


def rule(chunk_size: int) -> Callable[[], Callable[..., Tensor]]:
    return lambda: lambda *given: delta_chunked(*given, chunk_size=chunk_size)[0]


def transformers_gated() -> Callable[..., Tensor]:
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    def scan(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
        return torch_chunk_gated_delta_rule(
            q, k, v, g=decay.squeeze(-1), beta=beta, use_qk_l2norm_in_kernel=True
        )[0]  # fmt: skip

    return scan


def transformers_kimi() -> Callable[..., Tensor]:
    from transformers.models.kimi_linear.modeling_kimi_linear import chunk_kimi_delta_attention

    def scan(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
        given = {"initial_state": None, "output_final_state": False, "use_qk_l2norm_in_kernel": True}
        return chunk_kimi_delta_attention(q, k, v, g=decay, beta=beta, **given)[0]

    return scan


def layer(name: str) -> Callable[[], Callable[..., Tensor]]:
    """With its default sizes: 4 heads of 64."""
    keys = {"layer_pattern": spec("mixer", name).letter, "position_encoding": "none", "n_embd": N_EMBD}
    return lambda: component("mixer", name)(resolve_architecture(keys))


def transformers_layer() -> Callable[..., Tensor]:
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    sizes: dict[str, Any] = {"linear_num_key_heads": HEADS, "linear_num_value_heads": HEADS}
    sizes |= {"linear_key_head_dim": WIDTH, "linear_value_head_dim": WIDTH, "layer_types": ["linear_attention"]}
    theirs = Qwen3NextGatedDeltaNet(Qwen3NextConfig(hidden_size=N_EMBD, num_hidden_layers=1, **sizes), layer_idx=0)
    ours: Any = layer("gated_delta")()
    with torch.no_grad():  # decays as weak as ours are at first: what fades to denormal numbers is slow
        theirs.A_log.copy_(ours.A_log)
        theirs.dt_bias.copy_(ours.dt_bias)
    return theirs


GATED, KIMI, LAYER = "gated delta rule", "Kimi delta rule", "gated delta layer"
CONTESTANTS = (
    Contestant(GATED, None, rule(64), of_rule(1)),
    Contestant(f"{GATED}, chunks of 32", GATED, rule(32), of_rule(1)),
    Contestant(f"{GATED}, transformers", GATED, transformers_gated, of_rule(1)),
    Contestant(KIMI, GATED, rule(64), of_rule(WIDTH)),
    Contestant(f"{KIMI}, transformers", KIMI, transformers_kimi, of_rule(WIDTH), OF_KIMI_AT_MOST),
    Contestant(LAYER, None, layer("gated_delta"), of_layer),
    Contestant(f"{LAYER}, transformers", LAYER, transformers_layer, of_layer),
    Contestant("Kimi delta layer", LAYER, layer("kimi_delta"), of_layer),
)


def time_in_turn(contestants: list[Contestant], batch: int, length: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of forward and backward in each round, after one that does not count."""
    made = [(one, one.make(), one.inputs(batch, length)) for one in contestants]
    seconds: dict[str, list[float]] = {one.name: [] for one in contestants}
    for _ in range(rounds + 1):
        for contestant, scan, given in made:
            start = time.perf_counter()
            contestant.step(scan, given)
            seconds[contestant.name].append(time.perf_counter() - start)
    return {name: taken[1:] for name, taken in seconds.items()}


def peak_megabytes(index: int, batch: int, length: int, threads: int) -> float:
    """In a process that has done nothing else."""
    torch.set_num_threads(threads)
    contestant = CONTESTANTS[index]
    scan = contestant.make()
    contestant.step(scan, contestant.inputs(batch, SHORT))  # libraries and their buffers
    given = contestant.inputs(batch, length)
    before = peak_of_process()
    contestant.step(scan, given)
    return (peak_of_process() - before) / 1e6


def ratio(seconds: dict[str, list[float]], contestant: Contestant) -> str:
    """Of each round: the median, and the quartiles."""
    if contestant.beside is None:
        return ""
    pairs = zip(seconds[contestant.name], seconds[contestant.beside], strict=True)
    found = [one / other for one, other in pairs]
    low, middle, high = statistics.quantiles(found, n=4) if len(found) > 1 else 3 * found
    return f"{middle:6.2f} ({low:.2f} to {high:.2f}) times {contestant.beside}"


def shape(text: str) -> tuple[int, int]:
    """`4x1024`, four sequences of 1,024 tokens."""
    batch, _, length = text.partition("x")
    if not (batch.isdigit() and length.isdigit() and int(batch) and int(length)):
        raise argparse.ArgumentTypeError(f"{text!r} is not sequences x tokens, as 4x1024")
    return int(batch), int(length)


@exit_cleanly
def main() -> None:
    parser = ArgumentParser(__doc__)
    shapes = [shape(text) for text in SHAPES]
    parser.add_argument("--shapes", type=shape, nargs="+", default=shapes, metavar="BxT", help=f"({' '.join(SHAPES)})")
    parser.add_argument("--rounds", type=positive, default=7, metavar="N", help="timed steps of each (7)")
    parser.add_argument("--threads", type=positive, default=2, metavar="N", help="of PyTorch (2)")
    parser.add_argument("--without-transformers", action="store_true", help="ours alone")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    chosen = [one for one in CONTESTANTS if not (arguments.without_transformers and "transformers" in one.name)]
    if not arguments.without_transformers:
        check_equal()
    for batch, length in arguments.shapes:
        print(f"{batch} x {length:,} tokens, {arguments.threads} threads, torch {torch.__version__}")
        timed = [one for one in chosen if one.at_most is None or batch * length <= one.at_most]
        seconds = time_in_turn(timed, batch, length, arguments.rounds)
        for contestant in timed:
            sizes = (CONTESTANTS.index(contestant), batch, length, arguments.threads)
            with multiprocessing.get_context("spawn").Pool(1) as alone:
                megabytes = alone.apply(peak_megabytes, sizes)
            milliseconds = 1000 * statistics.median(seconds[contestant.name])
            print(f"  {contestant.name:<32} {milliseconds:>8,.0f} ms {megabytes:>7,.0f} MB", end="")
            print(f"  {ratio(seconds, contestant)}".rstrip(), flush=True)


@torch.no_grad()
def check_equal() -> None:
    """Raises UserError where what is compared is not the same function, and where there is nothing to compare with."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise UserError("transformers is not installed: pip install transformers, or --without-transformers") from None
    for name in (GATED, KIMI):
        ours, theirs = (next(c for c in CONTESTANTS if c.name == one) for one in (name, f"{name}, transformers"))
        given = ours.inputs(2, 100)
        y, expected = ours.make()(*given), theirs.make()(*given)
        if (difference := ((y - expected).abs().max() / expected.abs().max()).item()) > 1e-5:
            raise UserError(f"{theirs.name} gives another output: largest difference {difference:.1e} of the largest")


if __name__ == "__main__":
    main()
