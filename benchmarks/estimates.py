"""Estimates from a sample beside the real run on all of the input: preparation and curation, in turn, on one process.

    python benchmarks/estimates.py --input texts/*.jsonl
    python benchmarks/estimates.py --input texts/*.jsonl --tokenizer byte --rounds 9

The sample is a tenth of the documents. Each round estimates and then runs; a figure is that of the run over that of the
estimate, the middle one of the rounds, with the lowest and the highest.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ["TQDM_DISABLE"] = "1"  # datatrove's bars; read when tqdm is imported
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository runs without being installed

from common.errors import ArgumentParser, exit_cleanly, positive
from common.units import bytes_text
from data.curation.estimate import measure_curation
from data.curation.recipe import Needs, read_recipe
from data.curation.run import curate
from data.curation.stages import Plan
from data.dataset import open_dataset
from data.documents import Documents, find_files
from data.estimate import Clock, Sample, Wanted, estimate, measure_preparation, size_of
from data.parts import FilePart, prepare_parts
from data.tokenizers import Kept, choose

SHARE = 0.01  # of the documents, for validation
Figures = dict[str, float]


@exit_cleanly
def main() -> None:
    options = parse_arguments()
    files = find_files(options.input)
    parts, kept = [FilePart(path, "text", "paragraphs") for path in files], choose(options.tokenizer)
    lengths = [len(text.encode()) for text in Documents(files)]
    documents, size = len(lengths), sum(lengths)
    print(f"{documents:,} documents, {bytes_text(size)}; samples of {documents // 10:,}; {options.rounds} rounds")

    clock = time.process_time if options.processor else time.perf_counter

    def plan(folder: Path) -> Plan:
        return Plan(folder, tuple(parts), read_recipe(options.config), Needs())

    compared = {
        "prepare": Compared(
            lambda: measure_preparation(parts, kept, SHARE, documents // 10, clock),
            lambda folder: prepare_parts(folder, parts, kept, SHARE, "a benchmark", 1, lambda _: None),
            prepared,
        ),
        "curate": Compared(
            lambda: measure_curation(plan(Path()), kept, documents // 10, clock),
            lambda folder: curate(plan(folder), 1, lambda _: None),
            lambda folder: curated(folder, kept),
        ),
    }
    for name in options.only or compared:
        rounds = [one_round(compared[name], Wanted("text bytes", size, 1), clock) for _ in range(options.rounds)]
        for figure in rounds[0]:
            ratios = [found[figure] for found in rounds]
            print(f"{name:<9}{figure:<16}{statistics.median(ratios):6.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    option = parser.add_argument
    option("--input", nargs="+", required=True, metavar="PATH", help="files, as of prepare scripts")
    option("--tokenizer", default="tiktoken:gpt2", metavar="T", help="(tiktoken:gpt2)")
    option("--config", default="production", metavar="C", help="of the curation (production)")
    option("--only", nargs="+", choices=("prepare", "curate"), help="one of them (both)")
    option("--processor", action="store_true", help="the processor's time, which other work on the machine is not in")
    option("--rounds", type=positive, default=5, metavar="N", help="(5)")
    return parser.parse_args()


class Compared(NamedTuple):
    measure: Callable[[], Sample]
    run: Callable[[Path], object]
    found: Callable[[Path], Figures]  # in what it wrote


def one_round(compared: Compared, wanted: Wanted, clock: Clock) -> Figures:
    """What the run took, over what was estimated."""
    estimated = estimate(compared.measure(), wanted)
    with tempfile.TemporaryDirectory() as folder:
        began = clock()
        compared.run(Path(folder, "out"))
        took = {"hours": (clock() - began) / 3600} | compared.found(Path(folder, "out"))
    return {name: value / estimated[name].value for name, value in took.items()}


def prepared(folder: Path) -> Figures:
    splits = open_dataset(folder).splits.values()
    return {"tokens": sum(split.tokens for split in splits), "bytes on disk": size_of(folder)}


def curated(folder: Path, kept: Kept) -> Figures:
    left = sorted((folder / "documents").iterdir())
    tokens = sum(len(kept.tokenizer.encode(text)) for text in Documents(left))
    return {"tokens left": tokens, "bytes on disk": sum(path.stat().st_size for path in left)}


if __name__ == "__main__":
    main()
