"""What curation does to documents: the values of its steps, by name or from a TOML file, and the files they need."""

import dataclasses
from pathlib import Path
from typing import Any

from common.errors import UserError, did_you_mean
from common.toml_files import read_toml


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The values of all steps. Their order is that of `data/curation/stages.py`."""

    documents_per_file: int = 0  # only the first ones of each file are read; 0: all
    min_characters: int = 100
    max_characters: int = 1_000_000
    languages: tuple[str, ...] = ("en",)  # ISO 639 codes; none: any
    min_language_confidence: float = 0.9
    gopher_repetition: bool = True
    gopher_quality: bool = True
    c4_quality: bool = True
    fineweb_quality: bool = True
    contamination_words: int = 13  # in a row, which a document shares with an evaluation set
    replace_personal: bool = True
    quality_by: str = "perplexity"  # under a model of good examples; or classifier, of good and bad ones
    quality_removed: float = 0.3  # of the documents, those with the lowest score
    exact_duplicates: bool = True
    near_duplicates: bool = True
    shingle_words: int = 5  # words in a row: documents are as similar as the sets of these
    minhash_bands: int = 14
    minhash_rows: int = 8  # of a band

    def found_share(self, similarity: float) -> float:
        """The probability that two documents of this Jaccard similarity agree in all rows of some band, and so are
        found (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4.2)."""
        return 1 - (1 - similarity**self.minhash_rows) ** self.minhash_bands


RECIPES = {"production": Recipe(), "quick": Recipe(documents_per_file=1000)}
SHARES = ("min_language_confidence", "quality_removed")
CHOICES = {"quality_by": ("classifier", "perplexity")}
MAY_BE_ZERO = ("documents_per_file", "min_characters")


@dataclasses.dataclass(frozen=True)
class Needs:
    """Files of the user's, without which a step is left out."""

    good: tuple[Path, ...] = ()
    bad: tuple[Path, ...] = ()
    bad_words: Path | None = None
    evaluation: tuple[Path, ...] = ()

    @property
    def paths(self) -> list[Path]:
        return [*self.good, *self.bad, *self.evaluation, *([self.bad_words] if self.bad_words else [])]


def read_recipe(name: str) -> Recipe:
    """The recipe of this name, or production with the values of a TOML file instead. Raises UserError."""
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name)
    if path.suffix != ".toml":
        raise UserError(f"--config={name}: it is {' or '.join(RECIPES)}{did_you_mean(name, RECIPES)}, or a .toml file")
    values = read_toml(path, "--config")
    return dataclasses.replace(Recipe(), **{key: _checked(path, key, value) for key, value in values.items()})


def _checked(path: Path, key: str, value: Any) -> Any:
    """The value as the recipe has it. Raises UserError for an unknown key, or a value that it cannot have."""
    defaults = dataclasses.asdict(Recipe())
    if key not in defaults:
        raise UserError(f"{path}: there is no key {key}{did_you_mean(key, defaults)}")
    default = defaults[key]
    if isinstance(default, tuple):
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            return tuple(value)
        raise UserError(f'{path}: {key} is a list of names, such as ["en"]')
    if key in CHOICES:
        fits, needed = value in CHOICES[key], f"one of {', '.join(CHOICES[key])}"
    elif isinstance(default, bool):
        fits, needed = isinstance(value, bool), "true or false"
    elif key in SHARES:
        fits, needed = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1, "0 to below 1"
    else:
        least = 0 if key in MAY_BE_ZERO else 1
        fits, needed = type(value) is int and value >= least, f"a whole number of {least} or more"
    if not fits:
        raise UserError(f"{path}: {key}={value!r} must be {needed}")
    return value
