"""How likely a model finds continuations of contexts: the one computation behind every choice, cloze and perplexity.

Each pair of a context and a continuation is a text; what the model says of a continuation's tokens is read off where
the text has been read up to the token before. What several texts begin with is read once:

    few shots, alike for all ──► cache of one text
        the context of each question ──► caches of as many texts, all as long
            each of its answers, padded on the right ──► log-probabilities of the answers

Caches have no padding (components/caches.py), so contexts that are read together are nearly as long as each other, and
what the longer ones have more is read with each of their answers.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from common.errors import UserError
from components.caches import Caches
from components.precision import wide
from inference.sampling import check_finite
from model_builder import LanguageModel

Tokens = tuple[int, ...]

AT_ONCE = 1 << 25  # logits, in memory together: 128 MB in float32
SLACK = 16  # a context may be longer by one in so many tokens than the shortest that it is read with,
LEAST_SLACK = 8  # or by so many tokens
FIRST_BATCH, LARGEST_BATCH = 8, 256  # texts, where the size is found
WORTHWHILE = 1.05  # a larger batch is taken further while each doubling is so many times as fast
FEWEST_TOGETHER = 8  # texts, after which a group of them goes on with those that have so much left as its first:
SHARE_LEFT = 0.75
FEWEST_ALIKE = 4  # contexts, from which on a common beginning has a cache of its own,
SHARE_ALIKE = 0.5  # if it is so much of each


@dataclasses.dataclass(frozen=True)
class Request:
    """Tokens, and those that may follow them: both have at least one."""

    context: Tokens
    continuation: Tokens


@dataclasses.dataclass(frozen=True)
class Score:
    """What a model says of a continuation."""

    log_likelihood: float  # the sum over its tokens, nats
    is_greedy: bool  # whether each of them is the likeliest
    of_tokens: NDArray[np.float32] | None = dataclasses.field(default=None, compare=False, repr=False)  # each one's


@dataclasses.dataclass
class Text:
    """What is read for one request or several: of requests whose continuations differ in their last token, as letters
    of answers do, the tokens to be read are the same."""

    tokens: Tokens  # without the last of a continuation, which nothing is asked after
    asked: list[tuple[int, Tokens]]  # by the number of each request its continuation

    @property
    def begins(self) -> int:
        """The first token after which something is asked."""
        return len(self.tokens) - max(len(continuation) for _, continuation in self.asked)


@dataclasses.dataclass
class Question:
    """Texts that begin with one context."""

    context: Tokens
    texts: list[Text]


@dataclasses.dataclass(frozen=True)
class Shelf:
    """Questions whose contexts have a beginning in common, such as few-shot examples, but for their last token; the
    beginning of those that have none is empty."""

    beginning: Tokens
    questions: list[Question]


@torch.inference_mode()
def scores(
    model: LanguageModel, requests: Sequence[Request], batch_size: int | None = None, say: str | None = None
) -> list[Score]:
    """The score of each request. A context that with its continuation is longer than the model's block loses its first
    tokens. `batch_size` is of texts; None: it grows while that makes reading faster and memory suffices. `say` names a
    progress bar. Raises UserError for an empty or too long continuation, and where the model's output is not finite."""
    found: dict[int, Score] = {}
    size = BatchSize(batch_size)
    with tqdm(total=len(requests), desc=say, disable=None if say else True, leave=False) as bar:
        for shelf in shelves(questions_of(requests, model)):
            first = read_beginning(model, shelf)
            pending = deque(sorted(shelf.questions, key=lambda question: len(question.context), reverse=True))
            while pending:
                batch = take(pending, size.now, 0 if model.turns_anew else LEAST_SLACK)
                new = size.tried(model, batch, first)
                if new is None:
                    pending.extendleft(reversed(batch))
                else:
                    found |= new
                    bar.update(len(new))
    return [found[number] for number in range(len(requests))]


class BatchSize:
    """How many texts are read at once: a given number, or one that grows."""

    def __init__(self, given: int | None):
        self.now = FIRST_BATCH if given is None else given
        self._grows, self._best = given is None, 0.0

    def tried(self, model: LanguageModel, batch: list[Question], first: Caches | None) -> dict[int, Score] | None:
        """The scores of a batch; None where it did not fit in memory, and a smaller one is to be tried."""
        start = time.perf_counter()
        try:
            found = scores_of_batch(model, batch, first)
        except torch.OutOfMemoryError:
            if self.now == 1:
                raise
            self.now, self._grows = self.now // 2, False
            return None
        if self._grows:
            self._grow(batch, time.perf_counter() - start)
        return found

    def _grow(self, batch: list[Question], seconds: float) -> None:
        """Doubles the size after a batch that was nearly full, unless it was hardly faster than the one before."""
        texts = [text for question in batch for text in question.texts]
        if len(texts) + len(batch[-1].texts) <= self.now:
            return
        rate = sum(len(text.tokens) for text in texts) / seconds
        self._grows = rate > WORTHWHILE * self._best and self.now < LARGEST_BATCH
        self.now, self._best = self.now * (2 if self._grows else 1), max(rate, self._best)


# ---------------------------------------------------------------------------------------------------------------------
# What is read together


def questions_of(requests: Sequence[Request], model: LanguageModel) -> list[Question]:
    """The texts of all requests by their contexts, each text once. Of a model that reads a token otherwise in a longer
    text, each text is a question of its own, read whole."""
    texts: dict[Tokens, Text] = {}
    questions: dict[Tokens, Question] = {}
    for number, request in enumerate(requests):
        context, tokens = cut(request, model.config.block_size)
        if tokens not in texts:
            context = tokens if model.turns_anew else context
            texts[tokens] = Text(tokens, [])
            questions.setdefault(context, Question(context, [])).texts.append(texts[tokens])
        texts[tokens].asked.append((number, request.continuation))
    return list(questions.values())


def cut(request: Request, block: int) -> tuple[Tokens, Tokens]:
    """The context and what is read, its last tokens if all are more than the block. Raises UserError."""
    length = len(request.continuation)
    if not request.context or not length:
        raise UserError("a task has a question or an answer without any token: mend its data, or take another")
    if length > block:
        raise UserError(f"a task has an answer of {length:,} tokens, and the model's block is of {block:,}")
    whole = (request.context + request.continuation)[-(block + 1) :]
    return whole[:-length], whole[:-1]


def shelves(questions: Iterable[Question]) -> list[Shelf]:
    """Those whose contexts have much in common, and one of all others."""
    found: list[Shelf] = []
    for question in sorted(questions, key=lambda one: one.context):
        if found:
            last = found[-1]
            common = common_beginning(last.beginning, question.context[:-1])
            if len(common) >= SHARE_ALIKE * max(len(last.questions[0].context), len(question.context)):
                found[-1] = Shelf(common, [*last.questions, question])
                continue
        found.append(Shelf(question.context[:-1], [question]))
    alike = [shelf for shelf in found if len(shelf.questions) >= FEWEST_ALIKE]
    others = [question for shelf in found if len(shelf.questions) < FEWEST_ALIKE for question in shelf.questions]
    return [*alike, Shelf((), others)] if others else alike


def common_beginning(one: Tokens, other: Tokens) -> Tokens:
    """What both begin with."""
    differing = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return one[: next(differing, min(len(one), len(other)))]


def take(pending: deque[Question], most: int, least_slack: int) -> list[Question]:
    """The next questions, with at most so many texts but at least one question, whose contexts are nearly as long."""
    batch = [pending.popleft()]
    longest, count = len(batch[0].context), len(batch[0].texts)
    slack = max(longest // SLACK, least_slack) if least_slack else 0
    while pending and count + len(pending[0].texts) <= most and longest - len(pending[0].context) <= slack:
        count += len(pending[0].texts)
        batch.append(pending.popleft())
    return batch


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_beginning(model: LanguageModel, shelf: Shelf) -> Caches | None:
    """The caches of one text that has read the shelf's beginning, with room for its longest text."""
    if not shelf.beginning or model.turns_anew:
        return None
    longest = max(len(text.tokens) for question in shelf.questions for text in question.texts)
    caches = model.empty_caches(1, longest)
    model.hidden(_tensor(model, [shelf.beginning]), caches, last=1)
    return caches


def scores_of_batch(model: LanguageModel, batch: list[Question], first: Caches | None) -> dict[int, Score]:
    """The scores by the number of the request. `first` has read what all contexts begin with."""
    texts = [text for question in batch for text in question.texts]
    read = 0 if first is None else first.length
    if len(texts) == len(batch):
        caches = None if first is None else copies(first, [0] * len(texts))
        whole = pad_sequence([_tensor(model, text.tokens[read:]) for text in texts], batch_first=True)
        unasked = min(text.begins for text in texts) - read
        hidden = model.hidden(whole, caches, whole.shape[1] - unasked)
        return dict(read_off(model, hidden, texts, read + unasked))
    shared = min(len(question.context) for question in batch)
    longest = max(len(text.tokens) for text in texts)
    caches = model.empty_caches(len(batch), longest) if first is None else copies(first, [0] * len(batch))
    last = model.hidden(_tensor(model, [question.context[read:shared] for question in batch]), caches, last=1)
    of_texts = [(number, text) for number, question in enumerate(batch) for text in question.texts]
    found: dict[int, Score] = {}
    for group in alike(of_texts, shared):
        rows, texts = [number for number, _ in group], [text for _, text in group]
        hidden = last[rows]  # (B, 1, D), of what all contexts have; (B, 1 + T, D) with what comes after it
        if len(texts[0].tokens) > shared:
            rest = [_tensor(model, text.tokens[shared:]) for text in texts]
            after = model.hidden(pad_sequence(rest, batch_first=True), copies(caches, rows))
            hidden = torch.cat((hidden, after), dim=1)
        found |= read_off(model, hidden, texts, shared - 1)
    return found


def alike(texts: list[tuple[int, Text]], read: int) -> Iterator[list[tuple[int, Text]]]:
    """Texts by the numbers of their questions, in groups that have about as much left each and are padded together; of
    the first, if there are such, nothing is left."""

    def left(one: tuple[int, Text]) -> int:
        return len(one[1].tokens) - read

    if done := [one for one in texts if not left(one)]:
        yield done
    pending = sorted(filter(left, texts), key=left, reverse=True)
    while pending:
        fewest = SHARE_LEFT * left(pending[0])
        count = max(sum(left(one) >= fewest for one in pending), FEWEST_TOGETHER)
        yield pending[:count]
        pending = pending[count:]


def copies(caches: Caches, rows: list[int]) -> Caches:
    """New caches of these rows of the others, which stay as they are."""
    found = dataclasses.replace(caches, layers=list(caches.layers))
    found.keep(rows)
    return found


def read_off(model: LanguageModel, hidden: Tensor, texts: list[Text], read: int) -> Iterator[tuple[int, Score]]:
    """Hidden states (B, T, D) of the texts without the `read` tokens before -> each request's number and score."""
    asked = [(row, number, target) for row, text in enumerate(texts) for number, target in text.asked]
    rows: list[int] = []
    places: list[int] = []
    targets: list[int] = []
    for row, _, target in asked:
        end = len(texts[row].tokens) - read
        rows += [row] * len(target)
        places += range(end - len(target), end)
        targets += target
    states, wanted = hidden[rows, places], _tensor(model, targets)  # (N, D), (N,)
    pieces = max(AT_ONCE // model.head_weight.shape[0], 1)
    found = [_of_targets(model, *both) for both in zip(states.split(pieces), wanted.split(pieces), strict=True)]
    likelihoods, likeliest = (torch.cat(one).cpu() for one in zip(*found, strict=True))
    lengths = [len(target) for _, _, target in asked]
    for (_, number, _), values, right in zip(asked, likelihoods.split(lengths), likeliest.split(lengths), strict=True):
        yield number, Score(values.double().sum().item(), bool(right.all()), values.float().numpy())


def _of_targets(model: LanguageModel, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states (N, D), targets (N,) -> the targets' log-probabilities and whether each is the likeliest."""
    logits = wide(model.logits(hidden))
    check_finite(logits)
    found = logits.log_softmax(-1)
    return found.gather(1, targets[:, None])[:, 0], found.argmax(-1) == targets


def _tensor(model: LanguageModel, tokens: Sequence[int] | Sequence[Tokens]) -> Tensor:
    return torch.tensor(tokens, dtype=torch.long, device=model.embedding.weight.device)
