"""Tokens per second and memory of the state-space layers, forward and backward, beside Hugging Face's and the plain
recurrences, in turn in one run.

    python benchmarks/mamba.py
    python benchmarks/mamba.py --length 4096 --without-references

Layers of one shape on the CPU: n_embd 256, 512 channels; Mamba-2 with 8 heads and a state of 128, Mamba-1 with one
of 16. With what goes token by token it takes several minutes, most of them for Hugging Face's Mamba-1. Peak memory
is how far that of a process of its own grows over a step, beyond a step on a few tokens.
"""

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
from torch import Tensor, nn

from common.errors import ArgumentParser, exit_cleanly, positive
from common.memory import peak_of_process
from components.mixers.mamba1.scan import selective_naive
from components.mixers.mamba2.scan import ssd_naive
from model_components import component
from model_config import resolve_architecture

WIDTH, SHORT = 256, 32
TOO_SLOW = 5.0  # seconds: what takes longer is timed once. Hugging Face's Mamba-1, whose backward pass is quadratic


def ours(name: str, **keys: Any) -> nn.Module:
    return component("mixer", name)(resolve_architecture({"arch_preset": name, "n_embd": WIDTH, **keys}))


def hugging_faces(name: str) -> nn.Module:
    """With its own chunk size, 256."""
    from transformers import Mamba2Config, MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    if name == "mamba1":
        return MambaMixer(MambaConfig(hidden_size=WIDTH, state_size=16), layer_idx=0)
    shape = Mamba2Config(hidden_size=WIDTH, num_heads=8, head_dim=64, state_size=128, n_groups=1)
    return Mamba2Mixer(shape, layer_idx=0)


def ssd_by_token(
    x: Tensor, decay: Tensor, B: Tensor, C: Tensor, chunk_size: int, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return ssd_naive(x, decay, B, C, initial_state)


@dataclasses.dataclass(frozen=True)
class Contestant:
    name: str
    build: Callable[..., nn.Module]
    arguments: tuple[str, dict[str, Any]]
    scan: Callable | None = None  # in place of the layer's own

    def make(self) -> nn.Module:
        name, keys = self.arguments
        layer: Any = self.build(name, **keys)
        if self.scan is not None:
            layer.scan = self.scan
        return layer

    def step(self, layer: nn.Module, x: Tensor) -> None:
        layer(x).sum().backward()


CONTESTANTS = (
    Contestant("Mamba-2, Hugging Face's", hugging_faces, ("mamba2", {})),
    *(
        Contestant(f"Mamba-2, chunks of {chunk}", ours, ("mamba2", {"mamba_chunk_size": chunk}))
        for chunk in (64, 128, 256)
    ),
    Contestant("Mamba-2, token by token", ours, ("mamba2", {}), ssd_by_token),
    Contestant("Mamba-1, Hugging Face's", hugging_faces, ("mamba1", {})),
    Contestant("Mamba-1", ours, ("mamba1", {})),
    Contestant("Mamba-1, token by token", ours, ("mamba1", {}), selective_naive),
)


def inputs(batch: int, length: int) -> Tensor:
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(0), requires_grad=True)


def time_in_turn(contestants: list[Contestant], batch: int, length: int, rounds: int) -> list[list[float]]:
    """Seconds of each round, by contestant; the first is not kept where there are others."""
    layers, x = [contestant.make() for contestant in contestants], inputs(batch, length)
    seconds: list[list[float]] = [[] for _ in contestants]
    for _ in range(rounds + 1):
        for contestant, layer, taken in zip(contestants, layers, seconds, strict=True):
            if taken and taken[0] > TOO_SLOW:
                continue
            start = time.perf_counter()
            contestant.step(layer, x)
            taken.append(time.perf_counter() - start)
    return [taken[1:] or taken for taken in seconds]


def peak_megabytes(index: int, batch: int, length: int, threads: int) -> float:
    """In a process that has done nothing else."""
    torch.set_num_threads(threads)
    contestant = CONTESTANTS[index]
    layer = contestant.make()
    contestant.step(layer, inputs(batch, SHORT))  # libraries and their buffers
    x = inputs(batch, length)
    before = peak_of_process()
    contestant.step(layer, x)
    return (peak_of_process() - before) / 1e6


@exit_cleanly
def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--batch", type=positive, default=4, help="sequences")
    parser.add_argument("--length", type=positive, default=1024, help="tokens of each")
    parser.add_argument("--rounds", type=positive, default=5, help="timed steps of each layer")
    parser.add_argument("--threads", type=positive, default=2, help="of PyTorch")
    parser.add_argument("--without-references", action="store_true", help="leave out what goes token by token")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    slow = ("token by token", "Mamba-1, Hugging Face's") if arguments.without_references else ()
    chosen = [contestant for contestant in CONTESTANTS if not contestant.name.endswith(slow)]
    seconds = time_in_turn(chosen, arguments.batch, arguments.length, arguments.rounds)
    tokens = arguments.batch * arguments.length
    print(f"{arguments.batch} x {arguments.length} tokens, {arguments.threads} threads, torch {torch.__version__}")
    for contestant, taken in zip(chosen, seconds, strict=True):
        sizes = (CONTESTANTS.index(contestant), arguments.batch, arguments.length, arguments.threads)
        with multiprocessing.get_context("spawn").Pool(1) as alone:
            megabytes = alone.apply(peak_megabytes, sizes)
        median = statistics.median(taken)
        spread = f"({1000 * min(taken):.0f} to {1000 * max(taken):.0f})"
        print(f"{contestant.name:<26} {tokens / median:>8,.0f} tokens/s  {1000 * median:6.0f} ms {spread:<16}", end="")
        print(f"{megabytes:>7,.0f} MB", flush=True)


if __name__ == "__main__":
    main()
