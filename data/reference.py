"""What a reference model says of each document of a split, beside the dataset: a file of numbers, and a note that is
written after it.

    reference-train.npy, reference-val.npy   (documents,) float32, the log-probability of the tokens that count, nats
    reference.json                           {"model": whose they are, "train": checksum, "val": checksum}
"""

import json
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import replace_file, writing_to, written_aside
from data.dataset import SPLITS, Dataset, checksum_text

NOTE = "reference.json"


def write_reference(folder: Path, model: str, found: dict[str, np.ndarray]) -> None:
    """Keeps the numbers of both splits; `model` says of which model they are. Raises UserError."""
    with writing_to(folder):
        for split in SPLITS:
            with written_aside(_file(folder, split)) as path, path.open("wb") as file:
                np.save(file, found[split].astype("<f4"))
        note = {"model": model} | {split: _checksum(found[split].astype("<f4")) for split in SPLITS}
        replace_file(folder / NOTE, (json.dumps(note, indent=1) + "\n").encode(), on_disk=True)


def reference_of(folder: Path) -> str | None:
    """Of which model there are numbers; None without any."""
    try:
        return str(json.loads((folder / NOTE).read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def wait_for_reference(folder: Path, seconds: int) -> None:
    """Until the first rank has asked it. Raises UserError after so long."""
    end = time.monotonic() + seconds
    while reference_of(folder) is None:
        if time.monotonic() > end:
            raise UserError(f"the first rank has asked no reference for {folder} for {seconds} s")
        time.sleep(0.1)


def read_reference(dataset: Dataset, split: str) -> np.ndarray | None:
    """(documents,) float32, or None where there is none. Raises UserError for what is damaged or of other documents."""
    if reference_of(dataset.folder) is None:
        return None
    path = _file(dataset.folder, split)
    try:
        expected = json.loads((dataset.folder / NOTE).read_text(encoding="utf-8"))[split]
        found = np.load(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        found, expected = np.empty(0), ""
    if found.shape != (dataset.splits[split].documents,) or _checksum(found) != expected:
        raise UserError(f"{path} is damaged, or of other documents: remove the run's folder and begin anew")
    return found


def _file(folder: Path, split: str) -> Path:
    return folder / f"reference-{split}.npy"


def _checksum(values: np.ndarray) -> str:
    return checksum_text(zlib.crc32(values.tobytes()))
