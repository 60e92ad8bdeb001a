"""What the planner knows of a dataset: its vocabulary and training tokens, from its meta.json or as published.

The format of meta.json is data/dataset.py's, which also checks the files that it describes.
"""

import dataclasses
import json
from pathlib import Path

from common.errors import UserError, did_you_mean
from common.files import open_text

DATA_FOLDER = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Facts:
    """`tokens`: of the training split; None where they are not known."""

    vocab_size: int
    tokens: float | None


# Datasets that the planner chooses by itself, before they are prepared. OpenWebText: nanoGPT's count, in GPT-2 tokens.
UNPREPARED = {"python_stdlib": Facts(256, None), "openwebtext": Facts(50257, 9.036e9)}


def prepared(name: str, data_dir: str | None = None) -> Facts | None:
    """The facts of a prepared dataset; None for one that is not. Raises UserError for a meta.json that says neither."""
    path = (DATA_FOLDER if data_dir is None else Path(data_dir)) / name / "meta.json"
    try:
        with open_text(path) as file:
            meta = json.load(file)
        facts = Facts(meta["vocab_size"], meta["splits"]["train"]["tokens"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError, RecursionError):
        raise UserError(f"{path} is damaged: prepare the dataset again") from None
    if any(type(count) is not int or not 1 <= count < 2**63 for count in (facts.vocab_size, facts.tokens)):
        raise UserError(f"{path} is damaged: prepare the dataset again")
    return facts


def known(name: str, data_dir: str | None = None) -> Facts | None:
    """The facts of a dataset with a folder of its own; None where nothing is known before it is prepared. Raises
    UserError where there is no such dataset."""
    parent = DATA_FOLDER if data_dir is None else Path(data_dir)
    if not name.isprintable() or not (parent / name).is_dir():
        names = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
        raise UserError(f"dataset {name!r}: there is no folder {parent / name}{did_you_mean(name, names)}")
    return prepared(name, data_dir) or UNPREPARED.get(name)
