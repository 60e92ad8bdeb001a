"""What every kind of tokenizer offers."""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from common.errors import UserError


class Tokenizer:
    """Text to token ids and back. `end_of_document` is the id that ends each document, None where the dataset has
    none."""

    vocab_size: int  # the largest id and 1: a model needs so many rows, also where ids below it are no tokens
    special: Mapping[str, int] = MappingProxyType({})  # what its special tokens are called, and their ids
    gaps: frozenset[int] = frozenset()  # ids below vocab_size that are no tokens
    prefix = b""  # what encoding puts before a text, and decoding takes away
    divides_after_words = False  # whether a text may be encoded in pieces that end with a word, before white space

    def __init__(self, end_of_document: int | None):
        self.end_of_document = end_of_document

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without an end_of_document; the name of a special token is text like any other. Raises
        UserError for text that has no ids."""
        raise NotImplementedError

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of `text` in which the name of a special token means that token."""
        if not self.special:
            return self.encode(text)
        names = sorted(self.special, key=len, reverse=True)  # of names that begin alike the longest
        parts = re.split(f"({'|'.join(map(re.escape, names))})", text)
        of_parts = ([self.special[part]] if part in self.special else self.encode(part) for part in parts if part)
        return [token for ids in of_parts for token in ids]

    def decode_bytes(self, ids: Sequence[int], continued: bool = False) -> bytes:
        """The UTF-8 bytes of `ids`, of a special token its name. A token may end within a character: when ids arrive
        one by one, feed their bytes to `codecs.getincrementaldecoder("utf-8")`, and say of those that follow others
        that they are `continued`. Raises UserError for an id that is no token."""
        self._check(ids)
        content = self._decode_bytes(ids)
        return content if continued else content.removeprefix(self.prefix)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; bytes that are not valid UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def _decode_bytes(self, ids: Sequence[int]) -> bytes:
        raise NotImplementedError

    def _check(self, ids: Sequence[int]) -> None:
        # A model's vocabulary may be padded beyond the tokenizer's; such ids never occur in its data.
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise UserError(f"token id {token} lies outside the tokenizer's vocabulary of {self.vocab_size}")
            if token in self.gaps:
                raise UserError(f"token id {token} is none of the tokenizer's tokens")


def missing_ids(tokens: Sequence[int], vocab_size: int) -> frozenset[int]:
    """The ids below `vocab_size` that are not among `tokens`."""
    return frozenset(range(vocab_size)) - frozenset(tokens)
