"""Preparing a corpus in parts beside tiktoken's bare encoding of the same documents: in turn, in one process.

    python benchmarks/prepare.py
    python benchmarks/prepare.py --tokenizer cl100k_base --rounds 9

The documents are the files of Python's standard library. Preparing reads them as JSON, encodes, draws the validation
split, and brings shards with their checksums to the disk. Times are those of the processor.
"""

import argparse
import json
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository runs without being installed

import tiktoken

from common.errors import ArgumentParser, exit_cleanly, positive
from data.parts import FilePart, prepare_parts
from data.tokenizers import choose
from data.tokenizers.tiktoken import PUBLISHED

SHARE = 0.01  # of the documents, for validation


@exit_cleanly
def main() -> None:
    options = parse_arguments()
    texts = library(Path(sysconfig.get_path("stdlib")), options.documents)
    size = sum(len(text.encode("utf-8")) for text in texts) / 1e6
    kept, bare = choose(f"tiktoken:{options.tokenizer}"), tiktoken.get_encoding(options.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        part = FilePart(Path(folder, "texts.jsonl"), "text", "files")
        part.path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")

        def prepare() -> None:
            prepare_parts(Path(folder, "prepared"), [part], kept, SHARE, "a benchmark", 1, lambda _: None)

        rounds = [(seconds(lambda: encode_all(bare, texts)), seconds(prepare)) for _ in range(options.rounds + 1)][1:]
    speeds = [[size / taken for taken in found] for found in zip(*rounds, strict=True)]
    ratios = [one / other for one, other in rounds]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else 3 * ratios
    print(
        f"{len(texts):,} documents, {size:.1f} MB, {options.tokenizer}, one process; medians of {options.rounds} rounds"
    )
    print(f"bare tiktoken {statistics.median(speeds[0]):6.1f} MB/s")
    print(f"prepare_parts {statistics.median(speeds[1]):6.1f} MB/s, {middle:.2f} ({low:.2f} to {high:.2f}) of it")


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    option = parser.add_argument
    option("--tokenizer", choices=PUBLISHED, default="gpt2", help="(gpt2)")
    option("--documents", type=positive, default=1000, metavar="N", help="at most (1000)")
    option("--rounds", type=positive, default=7, metavar="N", help="(7)")
    return parser.parse_args()


def library(folder: Path, most: int) -> list[str]:
    """The first files in the order of their paths."""
    files = sorted(path for path in folder.rglob("*.py") if "site-packages" not in path.parts)
    return [text for path in files[:most] if (text := path.read_bytes().decode("utf-8", errors="ignore")).strip()]


def encode_all(encoding: tiktoken.Encoding, texts: list[str]) -> None:
    for text in texts:
        encoding.encode_ordinary(text)


def seconds(work: Callable[[], None]) -> float:
    """Of the processor."""
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
