"""The embedded dataset: the source of the running interpreter's standard library, byte by byte.

Real text that is on every machine. Each .py file is a document and ends with the id 0, a byte that no document has.
Whole files go to the validation split, about 7 % of the bytes; the same interpreter always gives the same files.

    python data/python_stdlib/prepare.py [--out_dir DIR] [--force]
"""

import hashlib
import os
import platform
import sys
import sysconfig
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: this script is called by its path

from common.errors import ArgumentParser, UserError, exit_cleanly
from data.dataset import open_dataset
from data.writer import DatasetWriter

SOURCE = f"standard library of {platform.python_implementation()} {platform.python_version()}"
END_OF_DOCUMENT = 0
TOKENIZER = {"kind": "bytes", "end_of_document": END_OF_DOCUMENT}
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
VALIDATION_SHARE = 0.07
LARGEST_VALIDATION_FILE = 0.01  # of all bytes: a few huge tables must not be most of the validation text


def read_documents(stdlib: Path) -> dict[str, bytes]:
    """Every .py file under `stdlib` that is not a test: {relative path: content}, sorted by path.

    Of identical files only the first counts, so that no document is in both splits.
    """
    documents = {}
    for folder, subfolders, files in os.walk(stdlib):
        subfolders[:] = [name for name in subfolders if name not in LEFT_OUT]
        for name in files:
            path = Path(folder) / name
            if path.suffix == ".py" and path.is_file() and is_document(content := path.read_bytes()):
                documents[path.relative_to(stdlib).as_posix()] = content
    if not documents:
        raise UserError(f"{stdlib} holds no .py files: use an interpreter that has its standard library as source")
    first_with = {content: name for name, content in sorted(documents.items(), reverse=True)}
    return {name: content for name, content in sorted(documents.items()) if first_with[content] == name}


def is_document(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return len(content) > 0 and END_OF_DOCUMENT not in content


def validation_names(documents: dict[str, bytes]) -> set[str]:
    """The files to validate on: in the order of their paths' hashes, until they hold VALIDATION_SHARE of all bytes."""
    total = sum(map(len, documents.values()))
    chosen: set[str] = set()
    chosen_bytes = 0
    for name in sorted(documents, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if chosen_bytes >= VALIDATION_SHARE * total:
            break
        if len(documents[name]) <= LARGEST_VALIDATION_FILE * total:
            chosen.add(name)
            chosen_bytes += len(documents[name])
    return chosen


def is_up_to_date(out_dir: Path) -> bool:
    try:
        return open_dataset(out_dir).source == SOURCE
    except UserError:  # missing, unfinished or damaged: prepare it
        return False


@exit_cleanly
def main() -> None:
    parser = ArgumentParser(description="Prepare the source of Python's standard library, byte by byte.")
    parser.add_argument("--out_dir", type=Path, default=Path(__file__).parent, help="where to write (default: here)")
    parser.add_argument("--force", action="store_true", help="prepare again even if the dataset is up to date")
    arguments = parser.parse_args()

    if not arguments.force and is_up_to_date(arguments.out_dir):
        print(f"up to date ({SOURCE}): {open_dataset(arguments.out_dir).describe()}")
        return
    documents = read_documents(Path(sysconfig.get_path("stdlib")))
    validation = validation_names(documents)
    with DatasetWriter(arguments.out_dir, TOKENIZER, vocab_size=256, source=SOURCE) as writer:
        for name, content in documents.items():
            ids = np.frombuffer(content + bytes([END_OF_DOCUMENT]), dtype=np.uint8)
            writer.add("val" if name in validation else "train", ids, text_bytes=len(content))
    print(f"{SOURCE}: {open_dataset(arguments.out_dir).describe()}")


if __name__ == "__main__":
    main()
