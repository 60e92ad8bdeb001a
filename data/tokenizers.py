"""Text to token ids and back, for the three kinds of tokenizer that a dataset's meta.json can name.

In meta.json they read:
    {"kind": "bytes", "end_of_document": 0}
    {"kind": "characters", "end_of_document": null, "characters": "abc..."}
    {"kind": "gpt2", "end_of_document": 50256}
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

from common.errors import UserError


class Tokenizer:
    """What every kind offers. `end_of_document` is the id that ends each document, None where the dataset has none."""

    vocab_size: int
    special: Mapping[str, int] = MappingProxyType({})  # what its special tokens are called, and their ids

    def __init__(self, end_of_document: int | None):
        self.end_of_document = end_of_document

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without an end_of_document. Raises UserError for text that has no ids."""
        raise NotImplementedError

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of `text` in which the name of a special token means that token."""
        if not self.special:
            return self.encode(text)
        parts = re.split(f"({'|'.join(map(re.escape, self.special))})", text)
        of_parts = ([self.special[part]] if part in self.special else self.encode(part) for part in parts)
        return [token for ids in of_parts for token in ids]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The UTF-8 bytes of `ids`. A token may end within a character: when ids arrive one by one, feed their bytes
        to `codecs.getincrementaldecoder("utf-8")`. Raises UserError for an id outside the vocabulary."""
        self._check(ids)
        return self._decode_bytes(ids)

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


class BytesTokenizer(Tokenizer):
    """Each byte of the UTF-8 text is a token."""

    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def _decode_bytes(self, ids: Sequence[int]) -> bytes:
        return bytes(ids)


class CharactersTokenizer(Tokenizer):
    """Each character is a token; its id is its place in `characters`."""

    def __init__(self, end_of_document: int | None, characters: str):
        super().__init__(end_of_document)
        self.characters = characters
        self.vocab_size = len(characters)
        self._ids = {character: number for number, character in enumerate(characters)}

    def encode(self, text: str) -> list[int]:
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            character = error.args[0]
            raise UserError(
                f"the character {character!r} (U+{ord(character):04X}) is not among the {self.vocab_size} characters "
                f"of this dataset's vocabulary"
            ) from None

    def _decode_bytes(self, ids: Sequence[int]) -> bytes:
        return "".join(self.characters[token] for token in ids).encode("utf-8")


class GPT2Tokenizer(Tokenizer):
    """GPT-2's byte-pair encoding. In the text of a dataset its special token's name is plain text."""

    vocab_size = 50257
    special = MappingProxyType({"<|endoftext|>": 50256})

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def _decode_bytes(self, ids: Sequence[int]) -> bytes:
        return self._encoding.decode_bytes(list(ids))

    @property
    def ranks(self) -> dict[bytes, int]:
        """The bytes of every token but the end of documents, and its id, which is the order they are merged in."""
        return self._encoding._mergeable_ranks

    @cached_property
    def _encoding(self) -> Any:
        try:
            import tiktoken
        except ImportError:
            raise UserError("GPT-2's tokenizer needs tiktoken: pip install tiktoken") from None
        try:
            return tiktoken.get_encoding("gpt2")
        except (OSError, ValueError) as error:  # no network, or a table that is not the right one
            raise UserError(
                f"cannot fetch GPT-2's token table ({type(error).__name__}): tiktoken downloads it once; without a "
                f"network, set TIKTOKEN_CACHE_DIR to a folder that has it"
            ) from error


def same_ids(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two of what meta.json can name give the same text the same ids; what ends a document may differ."""
    return one | {"end_of_document": None} == other | {"end_of_document": None}


def tokenizer_from_meta(tokenizer: dict[str, Any]) -> Tokenizer:
    """The tokenizer that a dataset's meta.json describes. Raises UserError for a kind that this version does not know,
    and for an end of documents that is none of its tokens."""
    match tokenizer:
        case {"kind": "bytes", "end_of_document": end}:
            found: Tokenizer = BytesTokenizer(end)
        case {"kind": "characters", "end_of_document": end, "characters": str(characters)}:
            found = CharactersTokenizer(end, characters)
        case {"kind": "gpt2", "end_of_document": end}:
            found = GPT2Tokenizer(end)
        case _:
            raise UserError(f"meta.json names a tokenizer that this version does not know: {str(tokenizer)[:200]!a}")
    if end is not None and (type(end) is not int or not 0 <= end < found.vocab_size):
        raise UserError(
            f"the tokenizer's end_of_document is {str(end)[:200]!a}, which is none of its {found.vocab_size:,} tokens: "
            "prepare the dataset again"
        )
    return found
