"""A conversation as tokens, and which of them count: those that the model itself would have to write.

Of each answer that is what the template makes of the turns up to the answer, without what it makes of the turns before
when it asks for an answer: the answer and the end of its turn. White space that follows an end of the turn is the next
prompt's, as a model is stopped at the end. Where a template says by {% generation %} what the model writes, that counts
instead. What stands between these borders is encoded piece by piece, since a model that is asked has its prompt encoded
alone, and goes on from there.

The markers of a template become special tokens where the tokenizer has them. What a message says stays text, also
where it spells the name of a special token.

A template may write earlier turns otherwise once others follow, as those do that drop what a model thought before an
earlier answer: then no one text has what the model writes each time. Such a conversation is a text for each answer.

A template without an end of turns needs the tokenizer's end_of_document after the last answer, which then counts; else
nothing is added to what the template writes. What follows the last token that counts is left out.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence

import numpy as np

from common.errors import UserError
from data.questions import Question
from data.tokenizers import Tokenizer
from finetuning.conversations import ASSISTANT, Conversation, Turn
from finetuning.templates import BEGIN, END, PROBE, ChatTemplate, spans

GUARD = "\ufdd3"  # stands in the name of a special token that is text: one of Unicode's characters that are in no text


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Of a conversation the `ids` (tokens,) that fit, and whether each `counts` (tokens,) as a target; `counted_bytes`
    of UTF-8 text are in the answers, without the template's ends of turns. So many `answers` are there, the last of
    which may be `cut`, and so many are `left_out`, as they do not fit. A prompt without an answer has a `question`."""

    ids: np.ndarray
    counts: np.ndarray
    text_bytes: int
    counted_bytes: int
    answers: int
    left_out: int
    cut: bool
    desirable: bool = False  # as a label says (finetuning/labelled.py)
    question: Question | None = None


class Rewritten(UserError):
    """A template writes turns otherwise once others follow, so that a conversation is not one text."""


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What a model is given, what it writes, and how many bytes of that are the answer's own."""

    prompt: str
    answer: str
    answer_bytes: int


class Encoder:
    """Makes tokens of conversations. Raises UserError for a template and a tokenizer with which no answer would end."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, block_size: int):
        self.tokenizer, self.template, self.block_size = tokenizer, template, block_size
        names = sorted(tokenizer.special, key=len, reverse=True)
        self._name = re.compile("|".join(map(re.escape, names))) if names else None
        self._guarded = re.compile(f"({'|'.join(re.escape(_guarded(name)) for name in names)})") if names else None
        self._special = set(tokenizer.special.values())
        self._end: list[int] = []
        if not template.ends_turns:
            if tokenizer.end_of_document is None:
                raise UserError(
                    f"the chat template {template.name} does not end an answer, and the tokenizer has no end of "
                    "documents that could: --chat_template=chatml"
                )
            self._end = [tokenizer.end_of_document]

    # -----------------------------------------------------------------------------------------------------------------
    # Text

    def exchanges(self, conversation: Conversation) -> list[Exchange]:
        """A conversation with an answer as text, each of whose exchanges goes on from the one before. Raises UserError
        where the template does not say what of it is the answers, Rewritten where it does of the last one alone."""
        turns = self._as_texts(conversation)
        answers = [number for number, turn in enumerate(turns) if turn.role == ASSISTANT]
        found = self._marked(turns, len(answers)) if self.template.has_marks else list(self._between(turns, answers))
        for number, exchange in zip(answers, found, strict=True):
            self._check(exchange, turns[number], UserError if number == answers[-1] else Rewritten)
        return found

    def last_exchange(self, conversation: Conversation) -> Exchange:
        """The last answer, and all that the model is given for it. Raises UserError as `exchanges`."""
        turns = self._as_texts(conversation)
        if self.template.has_marks:
            *before, found = self._marked(turns, sum(turn.role == ASSISTANT for turn in turns))
            prompt = "".join(exchange.prompt + exchange.answer for exchange in before) + found.prompt
            found = dataclasses.replace(found, prompt=prompt)
        else:
            (found,) = self._between(turns, [len(turns) - 1])
        self._check(found, turns[-1], UserError)
        return found

    def _as_texts(self, conversation: Conversation) -> list[Turn]:
        return [Turn(turn.role, self._as_text(turn.content)) for turn in conversation.turns]

    def _check(self, exchange: Exchange, turn: Turn, error: type[UserError]) -> None:
        if turn.content.strip() not in exchange.answer:
            raise error(
                f"the chat template {self.template.name} changes an answer, or leaves it out: --chat_template names "
                "another one"
            )

    def _between(self, turns: Sequence[Turn], answers: list[int]) -> Iterator[Exchange]:
        """What comes between the template's texts of ever more turns, each of which begins with the one before."""
        tail, done = self.template.tail, 0
        trailing = len(tail) - len(tail.rstrip()) if self.template.ends_turns else 0
        before = ""
        for number in answers:
            asked = self.template.render(turns[:number], asks=True)
            said = self.template.render(turns[: number + 1])
            if not (asked.startswith(before) and said.startswith(asked)):
                raise (Rewritten if said.startswith(asked) else UserError)(
                    f"the chat template {self.template.name} writes what comes before an answer otherwise than when "
                    "it asks for one, and does not mark with {% generation %} what the model writes: --chat_template "
                    "names another one, such as chatml"
                )
            end = len(said) - (trailing if said.endswith(tail) else 0)
            answer = said[len(asked) : end]
            yield Exchange(asked[done:], answer, self._answer_bytes(answer))
            before, done = said, end

    def _marked(self, turns: Sequence[Turn], answers: int) -> list[Exchange]:
        """What {% generation %} stands around, and what comes before."""
        found, prompt = [], ""
        for piece, is_answer in spans(self.template.render(turns)):
            if is_answer:
                found.append(Exchange(prompt, piece, self._answer_bytes(piece)))
                prompt = ""
            else:
                prompt += piece
        if len(found) != answers:
            raise UserError(
                f"the chat template {self.template.name} marks {len(found)} pieces as the assistant's, but there are "
                f"{answers} answers: --chat_template names another one"
            )
        return found

    def _answer_bytes(self, answer: str) -> int:
        """Of UTF-8 text, without the end of the turn."""
        tail = self.template.tail
        ends = [end for end in (tail, tail.rstrip()) if end and answer.endswith(end)]
        return self._text_bytes(answer.removesuffix(ends[0]) if ends else answer)

    def _text_bytes(self, piece: str) -> int:
        """Of UTF-8, in which special tokens have none."""
        text = piece if self._name is None else self._name.sub("", piece)
        return len(text.replace(GUARD, "").encode("utf-8"))

    def _as_text(self, content: str) -> str:
        """The same with a GUARD in what spells a special token."""
        if any(one in content for one in (GUARD, BEGIN, END, PROBE)):
            raise UserError("a text has one of the characters U+FDD0 to U+FDD3, which stand for none")
        return content if self._name is None else self._name.sub(lambda name: _guarded(name[0]), content)

    # -----------------------------------------------------------------------------------------------------------------
    # Tokens

    def encode_all(self, conversation: Conversation) -> list[Encoded]:
        """The conversation's tokens: one text, as `encode` has it, or where the template rewrites earlier turns one for
        each answer. Empty where nothing counts. Raises UserError."""
        try:
            found = self.encode(conversation)
            return [] if found is None else [found]
        except Rewritten:
            ends = [number for number, turn in enumerate(conversation.turns, start=1) if turn.role == ASSISTANT]
        texts = [dataclasses.replace(conversation, turns=conversation.turns[:end]) for end in ends]
        all_of_them = [self.encode_last(text, cut=text is texts[0]) for text in texts]
        fitting = [one for one in all_of_them if one is not None]
        if fitting:
            fitting[0] = dataclasses.replace(fitting[0], left_out=len(texts) - len(fitting))
        return fitting

    def encode(self, conversation: Conversation) -> Encoded | None:
        """The conversation's tokens: as many whole exchanges as fit in block_size; of a first one that does not, its
        first block_size tokens. None where none of these counts. Raises UserError."""
        exchanges, pieces = self._pieces(conversation)
        lengths = np.cumsum([len(piece) for piece in pieces])[1::2]  # up to the end of each answer
        fitting = int(np.searchsorted(lengths + len(self._end), self.block_size, side="right"))
        return self._of(exchanges, pieces, max(1, fitting), cut=not fitting)

    def encode_last(self, conversation: Conversation, cut: bool = False) -> Encoded | None:
        """The conversation's tokens, of which those of the last answer count; None where they are more than block_size,
        or, if it may be `cut` after so many, where none of these counts. Raises UserError."""
        try:
            exchanges, pieces = self._pieces(conversation)
        except Rewritten:
            exchanges, pieces = self._pieces(conversation, only_last=True)
        is_long = sum(map(len, pieces)) + len(self._end) > self.block_size
        found = self._of(exchanges, pieces, len(exchanges), cut and is_long)
        if found is None or len(found.ids) > self.block_size:
            return None
        counts = found.counts & (np.arange(len(found.ids)) >= sum(map(len, pieces[:-1])))
        if not counts.any():
            return None
        counted_bytes = exchanges[-1].answer_bytes
        if found.cut:
            counted_bytes = min(counted_bytes, self._bytes_of(found.ids[counts]))
        return dataclasses.replace(found, counts=counts, answers=1, counted_bytes=counted_bytes)

    def encode_asked(self, asked: Conversation, question: Question) -> Encoded:
        """The tokens of turns up to where an answer begins, of which none counts. Raises UserError."""
        try:
            text = self.template.render(self._as_texts(asked), asks=True).replace(BEGIN, "").replace(END, "")
            ids = np.array(self._encode(text, is_first=True), dtype=np.int64)
        except UserError as error:
            raise UserError(f"{asked.where}: {error}") from None
        if not len(ids):
            raise UserError(f"{asked.where}: the chat template {self.template.name} makes nothing of the prompt")
        counts = np.zeros(len(ids), dtype=bool)
        return Encoded(ids, counts, self._text_bytes(text), 0, 0, left_out=0, cut=False, question=question)

    @property
    def end_of_answers(self) -> str | None:
        """The text that ends one; None where the tokenizer's end of a document does."""
        return self.template.tail.strip() or None

    def _pieces(self, conversation: Conversation, only_last: bool = False) -> tuple[list[Exchange], list[list[int]]]:
        """The exchanges, or only the last one with all that is before, and as tokens what each of them begins with and
        its answer, one after the other. Raises UserError, which says which conversation it is."""
        try:
            exchanges = [self.last_exchange(conversation)] if only_last else self.exchanges(conversation)
            texts = [text for each in exchanges for text in (each.prompt, each.answer)]
            return exchanges, [self._encode(text, is_first=number == 0) for number, text in enumerate(texts)]
        except UserError as error:
            raise type(error)(f"{conversation.where}: {error}") from None

    def _of(self, exchanges: list[Exchange], pieces: list[list[int]], answers: int, cut: bool) -> Encoded | None:
        """The first exchanges, so many `answers`, as tokens."""
        kept = pieces[: 2 * answers]
        ids = np.array([*itertools.chain(*kept), *self._end], dtype=np.int64)
        counts = np.repeat([number % 2 == 1 for number in range(len(kept))], [len(piece) for piece in kept])
        counts = np.concatenate((counts, np.ones(len(self._end), dtype=bool)))
        counts[0] = False  # nothing stands before it
        if cut:
            ids, counts = ids[: self.block_size], counts[: self.block_size]
        if not counts.any():
            return None
        kept_text = exchanges[:answers]
        text_bytes = sum(self._text_bytes(exchange.prompt + exchange.answer) for exchange in kept_text)
        counted_bytes = sum(exchange.answer_bytes for exchange in kept_text)
        if cut:
            text_bytes = min(text_bytes, self._bytes_of(ids))
            counted_bytes = min(counted_bytes, self._bytes_of(ids[counts]))
        return Encoded(ids, counts, text_bytes, counted_bytes, answers, left_out=len(exchanges) - answers, cut=cut)

    def _encode(self, piece: str, is_first: bool) -> list[int]:
        """A piece with the template's markers as tokens, and guarded names as text. The space that a tokenizer puts
        before a text is for the first piece only."""
        if self._guarded is None:
            return self._continued(piece, is_first)
        found: list[int] = []
        for number, part in enumerate(self._guarded.split(piece)):
            if part:
                is_name = number % 2 == 1
                text = part.replace(GUARD, "") if is_name else part
                found += self._continued(text, is_first and not found, is_text=is_name)
        return found

    def _continued(self, text: str, is_first: bool, is_text: bool = False) -> list[int]:
        encode = self.tokenizer.encode if is_text else self.tokenizer.encode_prompt
        if is_first or not self.tokenizer.prefix:
            return encode(text)
        before = encode("\n")
        found = encode("\n" + text)
        return found[len(before) :] if found[: len(before)] == before else encode(text)

    def _bytes_of(self, ids: np.ndarray) -> int:
        """As _text_bytes, of tokens that end anywhere."""
        return len(self.tokenizer.decode_bytes([token for token in ids.tolist() if token not in self._special]))


def _guarded(name: str) -> str:
    return name[0] + GUARD + name[1:]
