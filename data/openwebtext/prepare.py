"""OpenWebText in GPT-2's byte-pair encoding, each document followed by <|endoftext|>.

    python data/openwebtext/prepare.py [--input FILE] [--out_dir DIR] [--num_proc N]

Without --input the 8 million documents are downloaded by the `datasets` package into its cache (tens of GB) and give
about 9 billion tokens. --input takes a local file: .jsonl, one object with a "text" a line; or .txt, in which blank
lines separate the documents. nanoGPT's split: 0.05 % of the documents, drawn with seed 2357, for validation.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: this script is called by its path

from common.errors import UserError, exit_cleanly
from data.dataset import DatasetWriter, dtype_for, open_dataset
from data.tokenizers import GPT2Tokenizer, tokenizer_from_meta

NAME = "Skylion007/openwebtext"
END_OF_DOCUMENT = 50256  # <|endoftext|>
TOKENIZER = {"kind": "gpt2", "end_of_document": END_OF_DOCUMENT}
VALIDATION_SHARE = 0.0005
SPLIT_SEED = 2357


def load_documents(given: Path | None, num_proc: int) -> Any:
    """A `datasets.Dataset` with a row for each document and its text in the column "text"."""
    try:
        import datasets
    except ImportError:
        raise UserError("this needs the datasets package: pip install -e '.[datasets]'") from None
    try:
        if given is None:
            return datasets.load_dataset(NAME, split="train", num_proc=num_proc)
        return load_local(given)
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(f"{type(error).__name__}: {error.__cause__ or error}".split())[:300]
        if given is None:
            raise UserError(f"cannot load {NAME} ({reason}): give a local copy with --input FILE") from error
        raise UserError(f"cannot read {given} ({reason}): it must be UTF-8 text or JSON lines") from error


def load_local(path: Path) -> Any:
    import datasets

    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if path.suffix == ".txt":
        paragraphs = datasets.load_dataset("text", data_files=str(path), sample_by="paragraph", split="train")
        stripped = paragraphs.map(lambda row: {"text": row["text"].strip("\n")})  # of further blank lines
        return stripped.filter(lambda row: row["text"].strip() != "")
    if path.suffix == ".jsonl":
        rows = datasets.load_dataset("json", data_files=str(path), split="train")
        column = rows.features.get("text")
        if getattr(column, "dtype", None) not in ("string", "large_string") or rows.data.column("text").null_count:
            raise UserError(f'{path}: each line must be an object with a string named "text"')
        return rows.select_columns(["text"])
    raise UserError(f"{path}: --input takes a .txt or a .jsonl file")


def split_documents(documents: Any) -> dict[str, Any]:
    if len(documents) < 2:
        raise UserError(f"{len(documents)} document cannot be split into training and validation: give more text")
    parts = documents.train_test_split(test_size=VALIDATION_SHARE, seed=SPLIT_SEED, shuffle=True)
    return {"train": parts["train"], "val": parts["test"]}


def encode_batch(batch: dict[str, list[str]]) -> dict[str, list]:
    """{"text": documents} to {"ids": (tokens,) of each, "text_bytes": int of each}; runs in the worker processes."""
    tokenizer = tokenizer_from_meta(TOKENIZER)
    return {
        "ids": [[*tokenizer.encode(text), END_OF_DOCUMENT] for text in batch["text"]],
        "text_bytes": [len(text.encode("utf-8")) for text in batch["text"]],
    }


def encode_documents(documents: Any, num_proc: int, name: str) -> Any:
    """The documents' ids in the order of the documents, whatever `num_proc`; kept in the cache of `datasets`."""
    from datasets import Features, Sequence, Value

    stored = dtype_for(GPT2Tokenizer.vocab_size).name  # a quarter of the int64 that it would take by itself
    return documents.map(
        encode_batch,
        batched=True,
        remove_columns=documents.column_names,
        features=Features({"ids": Sequence(Value(stored)), "text_bytes": Value("int64")}),
        num_proc=min(num_proc, len(documents)) if num_proc > 1 else None,
        desc=f"encoding {name}",
    )


def write_split(writer: DatasetWriter, name: str, encoded: Any) -> None:
    with tqdm(total=len(encoded), desc=f"writing {name}", unit=" documents") as progress:
        for table in encoded.with_format("arrow").iter(batch_size=1000):
            ids = np.concatenate([chunk.flatten().to_numpy() for chunk in table.column("ids").chunks])
            text_bytes = int(table.column("text_bytes").to_numpy().sum())
            writer.add(name, ids, text_bytes, documents=len(table))
            progress.update(len(table))


@exit_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(description="Prepare OpenWebText in GPT-2's byte-pair encoding.")
    parser.add_argument("--input", type=Path, help="a local .txt or .jsonl file instead of the download")
    parser.add_argument("--out_dir", type=Path, default=Path(__file__).parent, help="where to write (default: here)")
    cores = os.cpu_count() or 1
    parser.add_argument("--num_proc", type=int, default=max(1, cores // 2), help="processes (default: half the cores)")
    arguments = parser.parse_args()

    if arguments.num_proc < 1:
        raise UserError(f"--num_proc must be at least 1, not {arguments.num_proc}")
    tokenizer_from_meta(TOKENIZER).encode("")  # a missing token table is found before 50 GB are downloaded
    parts = split_documents(load_documents(arguments.input, arguments.num_proc))
    encoded = {name: encode_documents(documents, arguments.num_proc, name) for name, documents in parts.items()}
    source = str(arguments.input or NAME)
    with DatasetWriter(arguments.out_dir, TOKENIZER, GPT2Tokenizer.vocab_size, source) as writer:
        for name, rows in encoded.items():
            write_split(writer, name, rows)
    print(open_dataset(arguments.out_dir).describe())


if __name__ == "__main__":
    main()
