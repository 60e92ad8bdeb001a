"""Which score tells good documents from bad ones: the classifier, trained on examples of both, or the perplexity
under a model of good examples alone.

    python benchmarks/quality.py
    python benchmarks/quality.py --documents 1000 --seed 1

Three corpora are made. `planted`: sentences of a small English grammar. `library`: the docstrings of Python's standard
library. Bad documents are made of the good ones' words: in another order; a few of them again and again; with letters
exchanged, as by a bad scan; or as a list of links. `known`: the classifier has seen examples of all four; `new`: of
two, and the others are to be told. `genre`: good ones are paragraphs of Python's reference, bad ones
docstrings. Scored documents were no examples.

AUC is the probability that a good document scores above a bad one. With the lowest 30 % of a mixture, of which 30 % are
bad, gone, `found` is the share of the bad that are among them, which is also the share of those gone that are bad.
Intervals: the middle 95 % in 1,000 resamples of the documents.
"""

import argparse
import ast
import json
import random
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data import topics

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository runs without being installed

import numpy as np

from common.errors import ArgumentParser, exit_cleanly, positive
from data.curation.quality import MODELS, area_under_curve, train

NOUNS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work number night point home water room mother area money"
).split()
VERBS = "sees knows finds keeps shows takes gives needs likes follows opens brings holds leaves".split()
BETWEEN = "of the|with a|in their|without any|near another|for every|under the old|beside your|from this|to the".split(
    "|"
)
BAD_SHARE = 0.3
RESAMPLES = 1000


@exit_cleanly
def main() -> None:
    options = parse_arguments()
    rng = random.Random(options.seed)
    for name, make in (("planted", planted), ("library", library)):
        examples, material, scored = thirds(rng, make(rng, 3 * options.documents))
        good, to_spoil = scored[: len(scored) // 2], scored[len(scored) // 2 :]
        compare(name, "known", examples, spoilt(rng, material, BAD), good, spoilt(rng, to_spoil, BAD), options.seed)
        compare(
            name, "new", examples, spoilt(rng, material, BAD[:2]), good, spoilt(rng, to_spoil, BAD[2:]), options.seed
        )
    good_examples, _, good = thirds(rng, reference(rng, 3 * options.documents))
    bad_examples, _, bad = thirds(rng, library(rng, 3 * options.documents))
    compare("genre", "known", good_examples, bad_examples, good, bad, options.seed)


def compare(
    corpus: str, kind: str, good: list[str], bad: list[str], above: list[str], below: list[str], seed: int
) -> None:
    """Trains on good and bad examples, and prints how good and bad documents are told apart."""
    for model, score in scores(good, bad).items():
        good_scores, bad_scores = ([(score(text), label) for text in of] for label, of in ((1, above), (0, below)))
        print(f"{corpus:<9}{kind:<7}{model:<12}{figures(good_scores, bad_scores, seed)}", flush=True)


def thirds(rng: random.Random, texts: list[str]) -> tuple[list[str], list[str], list[str]]:
    rng.shuffle(texts)
    third = len(texts) // 3
    return texts[:third], texts[third : 2 * third], texts[2 * third : 3 * third]


def spoilt(rng: random.Random, texts: list[str], kinds: Sequence[Callable[[random.Random, str], str]]) -> list[str]:
    return [kinds[place % len(kinds)](rng, text) for place, text in enumerate(texts)]


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    option = parser.add_argument
    option("--documents", type=positive, default=600, metavar="N", help="good examples (600)")
    option("--seed", type=int, default=0, metavar="N", help="(0)")
    return parser.parse_args()


def scores(good: list[str], bad: list[str]) -> dict[str, Callable[[str], float]]:
    """Both, from examples."""
    with tempfile.TemporaryDirectory() as folder:
        files = [written(Path(folder, f"{name}.jsonl"), texts) for name, texts in (("good", good), ("bad", bad))]
        models = {by: train(by, files[:1], files[1:]) for by in MODELS}
    return {by: model.score for by, model in models.items()}


def written(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def figures(good: list[tuple[float, int]], bad: list[tuple[float, int]], seed: int) -> str:
    """AUC and the share of the bad that is found, with intervals."""
    rng = np.random.default_rng(seed)

    def both(above: list[tuple[float, int]], below: list[tuple[float, int]]) -> tuple[float, float]:
        mixture = sorted([*above, *below[: round(BAD_SHARE / (1 - BAD_SHARE) * len(above))]])
        gone = mixture[: int(BAD_SHARE * len(mixture))]
        return area_under_curve(above + below), sum(1 - label for _, label in gone) / len(gone)

    def drawn(scored: list[tuple[float, int]]) -> list[tuple[float, int]]:
        return [scored[one] for one in rng.integers(0, len(scored), len(scored))]

    auc, found = both(good, bad)
    resampled = np.quantile([both(drawn(good), drawn(bad)) for _ in range(RESAMPLES)], [0.025, 0.975], axis=0)
    (auc_low, found_low), (auc_high, found_high) = resampled
    return f"AUC {auc:.3f} ({auc_low:.3f} to {auc_high:.3f})  found {found:.1%} ({found_low:.1%} to {found_high:.1%})"


# ---------------------------------------------------------------------------------------------------------------------
# Documents


def planted(rng: random.Random, count: int) -> list[str]:
    def sentence() -> str:
        middle = [f"{rng.choice(BETWEEN)} {rng.choice(NOUNS)}" for _ in range(rng.randint(1, 4))]
        return f"The {rng.choice(NOUNS)} {rng.choice(VERBS)} the {rng.choice(NOUNS)} {' '.join(middle)}."

    return [" ".join(sentence() for _ in range(rng.randint(5, 20))) for _ in range(count)]


def library(rng: random.Random, count: int) -> list[str]:
    """So many docstrings of 200 characters or more at most, each text once."""
    found: set[str] = set()
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if not {"site-packages", "test", "tests"} & set(path.parts):
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):
                continue
            kinds = ast.Module | ast.ClassDef | ast.FunctionDef
            found |= {ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)}
    long = sorted(text for text in found if len(text) >= 200)
    return rng.sample(long, min(count, len(long)))


def reference(rng: random.Random, count: int) -> list[str]:
    """So many paragraphs of 200 characters or more at most."""
    found = {text for topic in topics.topics.values() for text in topic.split("\n\n") if len(text) >= 200}
    return rng.sample(sorted(found), min(count, len(found)))


def shuffled(rng: random.Random, text: str) -> str:
    words = text.split()
    rng.shuffle(words)
    return " ".join(words)


def repeated(rng: random.Random, text: str) -> str:
    words = text.split()
    few = rng.sample(words, min(8, len(words)))
    return " ".join(rng.choice(few) for _ in words)


def scanned(rng: random.Random, text: str) -> str:
    """One letter in ten is another."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return "".join(rng.choice(letters) if one.isalpha() and rng.random() < 0.1 else one for one in text)


def links(rng: random.Random, text: str) -> str:
    """Two words a line, as in a menu."""
    words = [word.strip(".,").capitalize() for word in text.split()]
    return "\n".join(f"{one} {other}" for one, other in zip(words[::2], words[1::2], strict=False))


BAD = (shuffled, repeated, scanned, links)

if __name__ == "__main__":
    main()
