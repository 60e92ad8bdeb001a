"""Log-likelihoods: what several texts share is read once, and each has the score that it has alone, for every mixer."""

import functools
import itertools
import random
from unittest import mock

import pytest
import torch
from test_decoding import BUILT, small_model

from common.errors import UserError
from evaluation import scoring
from evaluation.scoring import BatchSize, Question, Request, Text, alike, scores, shelves
from evaluation.windows import windows

BLOCK, IDS = 24, 61


@functools.cache
def model_of(pattern):
    return small_model(pattern, torch.float64, block_size=BLOCK)


def requests(seed):
    """Questions of several answers, some with one beginning, of answers that differ in their last token, and alone."""
    draw = random.Random(seed)

    def tokens(low, high):
        return tuple(draw.randrange(IDS) for _ in range(draw.randint(low, high)))

    shots = tokens(8, 8)
    found = []
    for _ in range(12):
        context = draw.choice([shots, ()]) + tokens(1, 9)
        found += [Request(context, tokens(1, 4)) for _ in range(draw.choice([1, 4]))]
    letters = tokens(5, 5)
    found += [Request(letters, (letter,)) for letter in range(4)]
    found += [Request(tokens(30, 40), tokens(3, 3)), Request((1,), tokens(BLOCK, BLOCK))]
    draw.shuffle(found)
    return found


@torch.no_grad()
def alone(model, request):
    """The plain way: one text, the whole of it, its logits."""
    whole = torch.tensor((request.context + request.continuation)[-(BLOCK + 1) :])
    logits = model(whole[None, :-1])[0, -len(request.continuation) :].log_softmax(-1)
    targets = whole[-len(request.continuation) :]
    return logits.gather(1, targets[:, None]).sum().item(), bool((logits.argmax(-1) == targets).all())


@pytest.mark.parametrize("pattern", [*BUILT, "".join(BUILT)])
@pytest.mark.parametrize("batch_size", [None, 1, 7])
def test_scores_are_those_of_each_text_alone(pattern, batch_size):
    model, asked = model_of(pattern), requests(0)
    found, expected = scores(model, asked, batch_size), [alone(model, request) for request in asked]
    assert [score.log_likelihood for score in found] == pytest.approx([value for value, _ in expected], abs=1e-9)
    assert [score.is_greedy for score in found] == [greedy for _, greedy in expected]


def test_a_text_that_turns_as_it_grows_is_read_at_its_own_length():
    """Beside longer ones, too: dynamic NTK, whose rotations depend on the length of the text."""
    scaling = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 12}
    model = small_model("A", torch.float64, block_size=BLOCK, position_encoding="rope", rope_scaling=scaling)
    assert model.turns_anew
    asked = requests(1)
    expected = [alone(model, request)[0] for request in asked]
    assert [score.log_likelihood for score in scores(model, asked)] == pytest.approx(expected, abs=1e-9)


def test_what_is_shared_is_read_once(monkeypatch):
    """The tokens of four answers to eight questions after six examples: the examples once, each question once."""
    model = model_of("A")
    shots, read, hidden = tuple(range(12)), [], model.hidden

    def counted(tokens, caches=None, last=None):
        read.append((tokens.numel(), last))
        return hidden(tokens, caches, last)

    monkeypatch.setattr(model, "hidden", counted)
    asked = [Request((*shots, 20 + n, 30, 31, 32), (40 + m, 50)) for n, m in itertools.product(range(8), range(4))]
    scores(model, asked, 100)
    expected = [(12, 1), (8 * 4, 1), (8 * 4 * 1, None)]
    assert read == expected, "examples; each question's own tokens; each answer's but its last, and what is asked of it"
    read.clear()
    scores(model, [Request((7, 8, 9, 10, 11), (1, 2, 3)), Request((7, 8, 9, 10), (1, 2))], 2)
    assert read == [(2 * 7, 4)], "of texts that share nothing, from the first token that something is asked after"


def test_texts_are_padded_with_others_about_as_long():
    texts = [(n, Text((0,) * length, [])) for n, length in enumerate([5, 30, 5, 16, 9, 7, 31, 6, 8])]
    with mock.patch.object(scoring, "FEWEST_TOGETHER", 2):
        groups = [[len(text.tokens) for _, text in group] for group in alike(texts, 5)]
    assert groups == [[5, 5], [31, 30], [16, 9], [8, 7], [6]], (
        "nothing left of two; then a quarter less at most, or two"
    )


def test_few_beginnings_alike_are_no_shelf_of_their_own():
    def questions(*contexts):
        return [Question(context, []) for context in contexts]

    found = shelves(questions(*((1, 2, 3, 4, n, 9) for n in range(4)), (5, 6), (5, 7)))
    assert [(shelf.beginning, len(shelf.questions)) for shelf in found] == [((1, 2, 3, 4), 4), ((), 2)]


def test_batches_grow_while_that_is_faster_and_shrink_where_memory_ends(monkeypatch):
    model, asked = model_of("A"), [Request((1, n % IDS), (n // IDS, 5)) for n in range(200)]
    seen = []

    def limited(model, batch, first):
        texts = sum(len(question.texts) for question in batch)
        seen.append(texts)
        if texts > 20:
            raise torch.OutOfMemoryError
        return real(model, batch, first)

    real = scoring.scores_of_batch
    monkeypatch.setattr(scoring, "scores_of_batch", limited)
    monkeypatch.setattr(scoring, "WORTHWHILE", 0.0)  # always
    assert len(scores(model, asked)) == 200
    assert seen[:4] == [8, 16, 32, 16] and max(seen[4:]) == 16
    size = BatchSize(64)
    assert size.now == 64


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request((), (1,)), "a question or an answer without any token"),
        (Request((1,), ()), "a question or an answer without any token"),
        (Request((1,), (2,) * (BLOCK + 1)), f"an answer of {BLOCK + 1} tokens, and the model's block is of {BLOCK}"),
    ],
)
def test_what_has_no_likelihood(request_, message):
    with pytest.raises(UserError, match=message):
        scores(model_of("A"), [request_])


def test_no_number_is_no_score():
    """An accuracy of NaNs would look like any other."""
    model = small_model("A", torch.float32, block_size=BLOCK)
    with torch.no_grad():
        model.final_norm.weight[0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        scores(model, [Request((1, 2), (3,)), Request((1, 2), (4,))])


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 30])
@pytest.mark.parametrize("stride", [8, 3, 1])
def test_windows_predict_every_token_once_after_what_stands_before_it(length, stride):
    tokens = list(range(100, 100 + length))
    found = list(windows(tokens, 7, 8, stride))
    assert [token for window in found for token in window.continuation] == tokens
    whole = [7, *tokens]
    for window in found:
        end = whole.index(window.continuation[-1])
        text = [*window.context, *window.continuation]
        assert text == whole[end - len(text) + 1 : end + 1]  # the last token is not read
        assert len(text) - 1 == min(8, end)
    assert all(len(window.continuation) == stride for window in found[1:-1])
