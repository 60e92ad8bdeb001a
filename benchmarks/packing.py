"""packing='best_fit': how long it takes to pack documents, and to read batches of them beside windows of the text.

    python benchmarks/packing.py
    python benchmarks/packing.py --documents 100000000 --block_sizes 4096

Lengths of documents are drawn from a logarithmic normal distribution; their mean is --tokens. Batches are of 12
sequences, of a dataset of --read_tokens tokens that the system has in memory, and documents are told apart in both.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository runs without being installed

import numpy as np

from common.errors import ArgumentParser, exit_cleanly, positive
from data.best_fit import PackedText
from data.dataset import Dataset, open_dataset
from data.loader import PackedLoader, WindowLoader
from data.packing import Cut, lengths_of_documents
from data.writer import DatasetWriter

END, VOCABULARY = 0, 50_257
SIGMA = 1.0  # of the lengths' logarithms
SEQUENCES, BATCHES = 12, 50


@exit_cleanly
def main() -> None:
    options = parse_arguments()
    print(f"{'documents':>12s}{'window':>8s}{'windows':>12s}{'padding':>11s}{'packed in':>12s}")
    for documents in options.documents:
        lengths = lengths_of(documents, options.tokens)
        for block_size in options.block_sizes:
            started = time.perf_counter()
            packing = PackedText(lengths, block_size)
            seconds = time.perf_counter() - started
            print(f"{documents:12,}{block_size:8,}{packing.n_windows:12,}{packing.padding:11.4%}{seconds:10.2f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"memory of the process at its highest: {peak / 1e9:.2f} GB\n")
    with tempfile.TemporaryDirectory() as folder:
        dataset = written(Path(folder), lengths_of(max(2, options.read_tokens // options.tokens), options.tokens))
        split, started = dataset.splits["train"], time.perf_counter()
        found = lengths_of_documents(split, dataset.dtype, END)
        rate = split.tokens / (time.perf_counter() - started)
        print(f"{len(found):,} documents found in {split.tokens:,} tokens, {rate:,.0f} tokens/s\n")
        print(f"{'window':>8s}{'windows, tokens/s':>20s}{'best_fit, tokens/s':>20s}{'ratio':>8s}")
        for block_size in options.block_sizes:
            print(compare(dataset, block_size, options.rounds), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    option = parser.add_argument
    option("--documents", type=positive, nargs="+", default=[10**6, 10**7], metavar="N", help="to pack (10^6, 10^7)")
    option("--block_sizes", type=positive, nargs="+", default=[1024, 4096], metavar="N", help="(1024 4096)")
    option("--tokens", type=positive, default=800, metavar="N", help="of a document in the mean (800)")
    option("--read_tokens", type=positive, default=2 * 10**7, metavar="N", help="of the dataset that is read (2*10^7)")
    option("--rounds", type=positive, default=5, metavar="N", help="in turn, of which the median counts (5)")
    return parser.parse_args()


def lengths_of(documents: int, mean: int) -> np.ndarray:
    """(documents,) tokens of each."""
    drawn = np.random.default_rng(0).lognormal(np.log(mean) - SIGMA**2 / 2, SIGMA, documents)
    return np.maximum(1, np.rint(drawn)).astype(np.uint32)


def written(folder: Path, lengths: np.ndarray) -> Dataset:
    """A dataset with documents of these lengths."""
    ids = np.random.default_rng(0).integers(1, VOCABULARY, lengths.sum())
    ids[np.cumsum(lengths) - 1] = END
    with DatasetWriter(folder, {"kind": "bytes", "end_of_document": END}, VOCABULARY, "drawn") as writer:
        for split in ("train", "val"):
            writer.add(split, ids, text_bytes=len(ids), documents=len(lengths))
    return open_dataset(folder)


def compare(dataset: Dataset, block_size: int, rounds: int) -> str:
    """A line of the table."""
    loaders = (
        WindowLoader(dataset, "train", block_size, seed=0, tells_documents=True),
        PackedLoader(dataset, "train", Cut(block_size, "best_fit"), seed=0),
    )
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for loader, found in zip(loaders, seconds, strict=True):
            firsts = range(number * BATCHES * SEQUENCES, (number + 1) * BATCHES * SEQUENCES, SEQUENCES)
            started = time.perf_counter()
            for first in firsts:
                loader.batch(first, SEQUENCES)
            found.append(time.perf_counter() - started)
    windows, packed = (BATCHES * SEQUENCES * block_size / statistics.median(found) for found in seconds)
    return f"{block_size:8,}{windows:20,.0f}{packed:20,.0f}{packed / windows:8.2f}"


if __name__ == "__main__":
    main()
