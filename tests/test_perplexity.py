"""The perplexity that ranks documents, against counts in dictionaries by its definition, and what it removes."""

import json
import math
import random
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("datatrove")

from test_curation import BARE, curate, dataclasses, left, plan_of, prose

from common.errors import UserError
from data.curation.perplexity import ORDER, ByteModel, train_bytes
from data.curation.quality import FEWEST, train
from data.curation.recipe import Needs

BEGIN, END = "begin", "end"
TEXTS = ["abracadabra", "abba", "Ein Rabe, äh, zwei Raben.", "", "cadabra " * 3]


def row_of(text: str) -> list:
    return [BEGIN] * (ORDER - 1) + list(text.encode()) + [END]


def brute_force(texts: list[str], before: list, symbol: object) -> float:
    """The probability of a symbol after others, as Chen and Goodman have it, from counts made anew for each length."""
    long = Counter(
        tuple(row[place : place + ORDER]) for row in map(row_of, texts) for place in range(len(row) - ORDER + 1)
    )
    probability = 1 / 257
    for length in range(1, ORDER + 1):
        counts = dict(long)
        if length < ORDER:  # how many different symbols stand before it
            longer = {gram[-length - 1 :] for gram in long}
            counts = Counter(gram[1:] for gram in longer)
        once, twice = (sum(count == times for count in counts.values()) + 1 for times in (1, 2))
        discount = once / (once + 2 * twice)
        context = tuple(before[len(before) - length + 1 :])
        of_context = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == context}
        if total := sum(of_context.values()):
            spread = discount * len(of_context) / total
            probability = max(of_context.get(symbol, 0) - discount, 0) / total + spread * probability
    return probability


@pytest.mark.parametrize("text", ["abra", "Raben und Äpfel", "", "cadabra cadabra", "xyz"])
def test_probabilities_are_those_of_the_definition(text):
    found = train_bytes(TEXTS).probabilities(text)
    row = row_of(text)
    expected = [brute_force(TEXTS, row[place - ORDER + 1 : place], row[place]) for place in range(ORDER - 1, len(row))]
    assert found == pytest.approx(expected, rel=1e-12)
    assert train_bytes(TEXTS).score(text) == pytest.approx(np.log(expected).mean())


@pytest.mark.parametrize("text", ["", "ab", "Ein Rabe, ", "zzzzzzz"])
def test_what_can_follow_has_probability_one_together(text):
    model = train_bytes(TEXTS)
    bytes_after = [model.probabilities(text + chr(code))[len(text.encode())] for code in range(128)]
    end = model.probabilities(text)[-1]
    rest = 128 * brute_force(TEXTS, row_of(text)[:-1][-ORDER + 1 :], 255)  # of UTF-8's bytes 195 alone was seen
    seen = brute_force(TEXTS, row_of(text)[:-1][-ORDER + 1 :], 195)
    others = [brute_force(TEXTS, row_of(text)[:-1][-ORDER + 1 :], code) for code in (164, 195)]
    assert sum(bytes_after) + end + rest / 128 * 126 + sum(others) == pytest.approx(1)
    assert seen > 0


def test_a_saved_model_is_the_same(tmp_path):
    model = dataclasses.replace(train_bytes(TEXTS), auc=0.75)
    model.save(tmp_path / "model.npz")
    again = ByteModel.load(tmp_path / "model.npz")
    assert again.auc == 0.75 and again.score("Rabe") == model.score("Rabe")


def examples(folder, name: str, texts: list[str]):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_good_examples_alone_are_enough_to_remove_the_bad_ones(tmp_path):
    """Good documents, and ones of their words in another order, which no example was."""
    rng = random.Random(3)

    def spoilt() -> str:
        words = prose(rng).split()
        rng.shuffle(words)
        return " ".join(["Spoilt", *words])

    good = examples(tmp_path, "good", [prose(rng) for _ in range(60)])
    texts = [prose(rng) for _ in range(70)] + [spoilt() for _ in range(30)]
    rng.shuffle(texts)
    plan = plan_of(tmp_path / "texts", texts, dataclasses.replace(BARE, quality_by="perplexity"), Needs(good=(good,)))
    assert curate(plan)["quality"].removed == 30
    assert sum(not text.startswith("Spoilt") for text in left(plan)) >= 0.95 * 70


def test_bad_examples_say_how_well_it_tells_them(tmp_path):
    rng = random.Random(3)
    good = examples(tmp_path, "good", [prose(rng) for _ in range(60)])
    bad = examples(tmp_path, "bad", [prose(rng, "fr") for _ in range(60)])
    assert train("perplexity", [good], [bad]).auc == 1.0
    assert math.isnan(train("perplexity", [good], []).auc)
    few = examples(tmp_path, "few", [prose(rng) for _ in range(FEWEST - 1)])
    with pytest.raises(UserError, match=f"--good: {FEWEST - 1} examples are too few: give {FEWEST} or more"):
        train("perplexity", [few], [])
    with pytest.raises(UserError, match="--bad: 0 examples are too few"):
        train("classifier", [good], [])
