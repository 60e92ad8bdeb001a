"""A training step with documents kept apart (mask_documents) beside the same step without, forward and backward, of
models of one size and different mixers: in turn, in one run.

    python benchmarks/documents.py
    python benchmarks/documents.py --block_sizes 1024 4096 --documents 8 --device cuda

Every window has so many documents of equal length. Costs count the pairs that remain; what the machine computes of the
others is what this shows.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository runs without being installed

import torch
from torch import Tensor

from common.errors import ArgumentParser, UserError, exit_cleanly, positive
from model_builder import LanguageModel, build_model
from model_config import resolve_architecture
from parallel.device import choose_device, precision, synchronize
from parallel.ranks import ALONE
from training.plan import check_documents

PRESETS = ("llama3", "mamba2", "hybrid")


@exit_cleanly
def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    device = choose_device(options.device, ALONE)
    print(
        f"{options.n_layer} layers x {options.n_embd}, {options.tokens} tokens a step in windows of "
        f"{options.documents} documents, {device}, {options.threads} threads; medians of {options.rounds} rounds in "
        "turn, and quartiles of the ratios\n"
    )
    print(f"{'preset':<10s}{'window':>8s}{'dtype':>10s}{'as one':>12s}{'apart':>12s}{'ratio':>8s}{'quartiles':>16s}")
    for dtype in ("float32", "bfloat16"):
        for preset in PRESETS:
            for block_size in options.block_sizes:
                print(compare(preset, block_size, dtype, device, options), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    option = parser.add_argument
    option("--block_sizes", type=positive, nargs="+", default=[256, 1024, 2048], help="tokens of a window")
    option("--documents", type=positive, default=8, metavar="N", help="in every window (8)")
    option("--tokens", type=positive, default=2048, metavar="N", help="in a step, a multiple of the windows (2048)")
    option("--n_layer", type=positive, default=6, metavar="N", help="(6)")
    option("--n_embd", type=positive, default=384, metavar="N", help="(384)")
    option("--device", default="cpu", help="(cpu)")
    option("--threads", type=positive, default=torch.get_num_threads(), metavar="N", help="(all cores)")
    option("--rounds", type=positive, default=7, metavar="N", help="(7)")
    options = parser.parse_args()
    for block_size in options.block_sizes:
        if options.tokens % block_size or options.documents > block_size:
            raise UserError(f"--block_sizes {block_size}: --tokens must be a multiple, and --documents no more")
    return options


def compare(preset: str, block_size: int, dtype: str, device: torch.device, options: argparse.Namespace) -> str:
    """A line of the table."""
    sizes = {"n_layer": options.n_layer, "n_embd": options.n_embd, "block_size": block_size, "vocab_size": 256}
    config = resolve_architecture({"arch_preset": preset, **sizes, **({} if preset == "mamba2" else {"n_head": 6})})
    check_documents(config)
    model = build_model(config, device, seed=0)
    tokens = torch.randint(256, (options.tokens // block_size, block_size), device=device)
    apart = (torch.arange(block_size, device=device) * options.documents // block_size).expand(tokens.shape)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(options.rounds + 1):
        for found, documents in zip(seconds, (None, apart), strict=True):
            found.append(once(model, tokens, documents, dtype, device))
    one, several = (found[1:] for found in seconds)  # the first does not count
    ratios = [b / a for a, b in zip(one, several, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else 3 * ratios
    medians = "".join(f"{1e3 * statistics.median(found):>9,.0f} ms" for found in (one, several))
    return f"{preset:<10s}{block_size:>8,d}{dtype:>10s}{medians}{middle:>8.2f}{f'{low:.2f} to {high:.2f}':>16s}"


def once(model: LanguageModel, tokens: Tensor, documents: Tensor | None, dtype: str, device: torch.device) -> float:
    """Seconds of a step's forward and backward pass."""
    synchronize(device)
    started = time.perf_counter()
    with precision(device, dtype):
        parts = model(tokens, tokens, documents=documents)
    (parts.cross_entropy / tokens.numel()).backward()
    synchronize(device)
    taken = time.perf_counter() - started
    model.zero_grad(set_to_none=True)
    return taken


if __name__ == "__main__":
    main()
