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
