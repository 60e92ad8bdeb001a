"""A score of how much a text is like good examples and unlike bad ones: logistic regression on hashed words and pairs
of words, trained on the user's examples; or by the perplexity under a model of the good ones (perplexity.py)."""

import dataclasses
import itertools
import math
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from common.errors import UserError
from data.curation.files import SampleWriter
from data.curation.perplexity import ByteModel, train_bytes
from data.curation.words import WORDS
from data.documents import Documents

BUCKETS = 1 << 20  # of the hashes
READ = 10_000  # characters of a text: the score of a book is that of its beginning
EPOCHS = 5
STEP = 0.5  # AdaGrad's
HELD_OUT = 10  # one example in so many, which the classifier is tried on
FEWEST = 20  # examples of each kind
SEED = 0


@dataclasses.dataclass
class Classifier:
    """A weight for each bucket (BUCKETS,), and the AUC on examples that it was not trained on: the probability that a
    good one scores above a bad one."""

    weights: np.ndarray
    auc: float

    def score(self, text: str) -> float:
        """The logarithm of the odds that a text is a good example; 0 for one without words."""
        return self.score_of(buckets(text))

    def score_of(self, used: np.ndarray) -> float:
        """The same for a text with these buckets (found,)."""
        return float(self.weights[used].sum()) / math.sqrt(max(len(used), 1))

    def save(self, path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, weights=self.weights.astype(np.float32), auc=self.auc)

    @classmethod
    def load(cls, path: Path) -> "Classifier":
        with np.load(path) as saved:
            return cls(saved["weights"].astype(np.float64), float(saved["auc"]))


def buckets(text: str) -> np.ndarray:
    """The buckets (found,) of a text's words and pairs of them, each once."""
    words = [word.encode() for word in WORDS.word_tokenize(text[:READ].lower())]
    pairs = (first + b" " + second for first, second in itertools.pairwise(words))
    return np.array(sorted({zlib.crc32(one) % BUCKETS for one in (*words, *pairs)}), np.int64)


Model = Classifier | ByteModel
MODELS: dict[str, type[Model]] = {"classifier": Classifier, "perplexity": ByteModel}  # by a recipe's quality_by


def train(by: str, good: Iterable[Path], bad: Iterable[Path]) -> Model:
    """The same model from the same examples, of which one in HELD_OUT is left out to try it on. Raises UserError where
    there are too few."""
    texts = {"--good": list(Documents(list(good))), "--bad": list(Documents(list(bad)))}
    for option, of_option in texts.items():
        if len(of_option) < FEWEST and (option == "--good" or by == "classifier" or of_option):
            raise UserError(f"{option}: {len(of_option)} examples are too few: give {FEWEST} or more")
    examples = [(text, label) for label, option in ((1, "--good"), (0, "--bad")) for text in texts[option]]
    rng = np.random.default_rng(SEED)
    order = rng.permutation(len(examples))
    held_out = [examples[index] for index in order[::HELD_OUT]]
    shown = [examples[index] for index in np.delete(order, slice(None, None, HELD_OUT))]
    if by == "perplexity":
        found: Model = train_bytes(text for text, label in shown if label)
    else:
        found = _train_classifier([(buckets(text), label) for text, label in shown], rng)
    auc = area_under_curve([(found.score(text), label) for text, label in held_out])
    return dataclasses.replace(found, auc=auc)


def _train_classifier(shown: list[tuple[np.ndarray, int]], rng: np.random.Generator) -> Classifier:
    found = Classifier(np.zeros(BUCKETS), 0.0)
    squares = np.full(BUCKETS, 1e-6)  # of the gradients so far
    counts = np.bincount([label for _, label in shown], minlength=2)
    for _ in range(EPOCHS):
        for index in rng.permutation(len(shown)):
            used, label = shown[index]
            _learn(found, squares, used, label, len(shown) / (2 * counts[label]))
    return found


def _learn(found: Classifier, squares: np.ndarray, used: np.ndarray, label: int, weight: float) -> None:
    """One step of AdaGrad on the logarithm of an example's probability, times its weight."""
    probability = 1 / (1 + math.exp(min(max(-found.score_of(used), -30.0), 30.0)))
    gradient = weight * (probability - label) / math.sqrt(max(len(used), 1))
    squares[used] += gradient**2
    found.weights[used] -= STEP * gradient / np.sqrt(squares[used])


def area_under_curve(scores: list[tuple[float, int]]) -> float:
    """Of (score, label) pairs: the share of pairs of a good and a bad one in which the good one is above; equal ones
    count half. NaN where there are not both."""
    values = np.array([score for score, _ in scores])
    labels = np.array([label for _, label in scores], bool)
    if labels.all() or not labels.any():
        return math.nan
    above = values[labels][:, None] - values[~labels][None, :]
    return float(((above > 0) + 0.5 * (above == 0)).mean())


# ---------------------------------------------------------------------------------------------------------------------
# Steps


class QualityScore(PipelineStep):
    """Gives each document its score, and keeps the scores of a task (documents,) in a file."""

    type, name = "score", "quality score"

    def __init__(self, by: str, model: Path, folder: Path):
        super().__init__()
        self.by, self.model, self.folder = by, model, folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        model, scores = MODELS[self.by].load(self.model), []
        for document in data:
            self.stat_update("total", "forwarded")
            scores.append(model.score(document.text))
            document.metadata["quality"] = scores[-1]
            yield document
        self.folder.mkdir(parents=True, exist_ok=True)
        np.save(self.folder / f"{rank:05d}.npy", np.array(scores, np.float64))


class Threshold(PipelineStep):
    """Writes the score below which the lowest share of all documents lies, rounded down to whole documents."""

    type, name = "score", "quality threshold"

    def __init__(self, folder: Path, share: float, path: Path):
        super().__init__()
        self.folder, self.share, self.path = folder, share, path

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        scores = np.sort(np.concatenate([np.load(path) for path in sorted(self.folder.glob("*.npy"))]))
        lowest = scores[int(self.share * len(scores))] if len(scores) else 0.0
        self.path.write_text(repr(float(lowest)), encoding="utf-8")


class QualityFilter(BaseFilter):
    """Removes documents whose score is below the threshold."""

    name = "quality"

    def __init__(self, path: Path, samples: SampleWriter):
        super().__init__(samples)
        self.path = path
        self.threshold: float | None = None

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        if self.threshold is None:
            self.threshold = float(self.path.read_text(encoding="utf-8"))
        return True if doc.metadata["quality"] >= self.threshold else (False, "low score")
