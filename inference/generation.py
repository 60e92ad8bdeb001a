"""Texts that a model continues, one or a batch of them, each as it would be alone.

Texts are read together while they have as many tokens: then no row has padding, and no mixer and no encoding of
positions has to know of rows. Of prompts of different lengths the shorter go on first, until they are as long as the
next, which they join:

    prompts of 3, 5 and 5 tokens    3 ─ 4 ─┬─ 5 ─ 6 ─ 7 ─ ...   from 5 tokens on, three rows a call
                                         5 ┤
                                         5 ┘

Texts beyond the block, of which the model sees the last block_size tokens, have as many of these again.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

import torch
from torch import Tensor

from components.caches import Caches
from data.tokenizers import Tokenizer
from inference.sampling import Sampling, check_finite, distribution, draw
from model_builder import LanguageModel


def generate(
    model: LanguageModel,
    start: Sequence[int],
    tokenizer: Tokenizer,
    how: Sampling,
    max_new_tokens: int,
    generator: torch.Generator,
) -> Iterator[int]:
    """The new tokens of one text, as `generate_batch` yields those of several."""
    return (token for _, token in generate_batch(model, [start], tokenizer, how, max_new_tokens, [generator]))


@torch.inference_mode()
def generate_batch(
    model: LanguageModel,
    starts: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    how: Sampling,
    max_new_tokens: int,
    generators: Sequence[torch.Generator],
    ended: AbstractSet[int] = frozenset(),
) -> Iterator[tuple[int, int]]:
    """The new tokens of texts that begin with `starts`, each with the number of its text: those of a text in order,
    one by one, until its document ends (that token is not yielded) or `max_new_tokens` are there.

    Where layers attend, the model sees at most the last block_size tokens; else all of them. Ids that the tokenizer
    does not have, in a vocabulary that was padded, are never chosen. Each text is drawn with its own generator, on the
    CPU, in float64. A text whose number is in `ended`, to which whoever takes the tokens may add, gets no more.
    """
    limit = model.context_limit
    contexts = [list(start if limit is None else start[-limit:]) for start in starts]
    if max_new_tokens < 1 or not all(contexts):
        raise ValueError("a text begins with at least one token, and gets at least one")
    room = max(map(len, contexts), default=0) + max_new_tokens
    waiting: dict[tuple[int, int], Group] = {}
    for number, (context, generator) in enumerate(zip(contexts, generators, strict=True)):
        put(waiting, Group([Text(number, context, max_new_tokens, generator, list(starts[number]))]))
    while waiting:
        group = waiting.pop(min(waiting))
        logits = group.read_on(model, room if limit is None else min(room, limit))[:, : tokenizer.vocab_size]
        check_finite(logits)
        if tokenizer.gaps:
            logits = logits.index_fill(1, torch.tensor(sorted(tokenizer.gaps), device=logits.device), -torch.inf)
        both = zip(logits.cpu(), group.texts, strict=True)
        probabilities = [distribution(row, how, text.prompt, text.new) for row, text in both]
        rows = []  # of the texts that go on
        for row, text in enumerate(group.texts):
            token = draw(probabilities[row], text.generator)
            if token != tokenizer.end_of_document:
                yield text.number, token
                text.context.append(token)
                text.new.append(token)
                text.left -= 1
                rows += [row] if text.left and text.number not in ended else []
        if rows:
            group.keep(rows)
            group.slide(limit)
            put(waiting, group)


@dataclasses.dataclass
class Text:
    """A text that is being continued."""

    number: int
    context: list[int]  # its tokens, or the last ones, which the model sees
    left: int  # tokens that it may still get
    generator: torch.Generator
    prompt: list[int]  # whole
    new: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Group:
    """Texts with as many tokens each, of which the first `read` are in the caches."""

    texts: list[Text]
    caches: Caches | None = None  # None: nothing is read that still applies
    read: int = 0

    @property
    def length(self) -> int:
        return len(self.texts[0].context)

    def read_on(self, model: LanguageModel, room: int) -> Tensor:
        """The logits (B, V) of what follows each text. What was not read goes to the caches, a block at a time, unless
        one token more would slide the text anyway."""
        if self.caches is None and self.length != model.context_limit:
            self.caches = model.empty_caches(len(self.texts), room)
        unread = [text.context[self.read :] for text in self.texts]
        pieces = torch.tensor(unread, device=next(model.parameters()).device).split(model.config.block_size, dim=1)
        for piece in pieces[:-1]:
            model.hidden(piece, self.caches, last=1)
        self.read = 0 if self.caches is None else self.length
        return model.next_token_logits(pieces[-1], self.caches)

    def keep(self, rows: list[int]) -> None:
        """Drops the other texts."""
        if len(rows) < len(self.texts):
            self.texts = [self.texts[row] for row in rows]
            if self.caches is not None:
                self.caches.keep(rows)

    def slide(self, limit: int | None) -> None:
        """The last tokens of texts beyond what the model sees stay: all change position, and nothing read applies."""
        if limit is not None and self.length > limit:
            self.caches, self.read = None, 0
            for text in self.texts:
                text.context = text.context[-limit:]

    def join(self, other: "Group") -> None:
        """Takes in the texts of another, as long as these and as far read."""
        self.texts += other.texts
        if self.caches is not None and other.caches is not None:
            self.caches.join(other.caches)


def put(waiting: dict[tuple[int, int], Group], group: Group) -> None:
    """Among those that wait, in the order in which they go on: the shorter first, so that they can join the others; of
    as long ones those with least to read, which slide next and join what slides already."""
    place = (group.length, group.length - group.read)
    if place in waiting:
        waiting[place].join(group)
    else:
        waiting[place] = group
