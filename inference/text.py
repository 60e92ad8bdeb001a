"""Text to the tokens that a model continues, and its new tokens to text."""

import codecs
from collections.abc import Iterable, Iterator, Sequence

from common.errors import UserError
from data.tokenizers import Tokenizer


def starting_tokens(tokenizer: Tokenizer, prompt: str | None) -> list[int]:
    """The ids to continue: of the prompt, else what a new document begins after."""
    if prompt:
        return tokenizer.encode_prompt(prompt)
    if tokenizer.end_of_document is not None:
        return [tokenizer.end_of_document]
    try:
        return tokenizer.encode("\n")
    except UserError:
        raise UserError("this dataset has neither ends of documents nor newlines to start after: --prompt") from None


def decode_stream(tokenizer: Tokenizer, start: Sequence[int], tokens: Iterable[int]) -> Iterator[str]:
    """The text of the start and then of each token; a character that spans tokens comes when it is complete."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    prompt = [token for token in start if token != tokenizer.end_of_document]
    yield decoder.decode(tokenizer.decode_bytes(prompt))
    continued = bool(prompt)
    for token in tokens:
        yield decoder.decode(tokenizer.decode_bytes([token], continued))
        continued = True
    yield decoder.decode(b"", final=True)


def until(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """The text of the pieces up to the first of the stop strings, wherever the pieces divide it: what may be the
    beginning of one waits for the next piece. After a stop no more pieces are taken."""
    held = ""
    for piece in pieces:
        held += piece
        if (end := min((held.index(stop) for stop in stops if stop in held), default=None)) is not None:
            yield held[:end]
            return
        begun = (size for stop in stops for size in range(1, len(stop)) if held.endswith(stop[:size]))
        sure = len(held) - max(begun, default=0)
        yield held[:sure]
        held = held[sure:]
    yield held


def has_ended(tokenizer: Tokenizer, new: Sequence[int], stops: Sequence[str]) -> bool:
    """Whether the text of new tokens, of which this is asked after each, has come to a stop string."""
    longest = max((len(stop.encode()) for stop in stops), default=0)  # a token has a byte at least
    tail = tokenizer.decode(new[-longest:]) if longest else ""
    return any(stop in tail for stop in stops)
