"""The tokenizers that need no table: a token for each byte, or for each character."""

from collections.abc import Sequence
from types import MappingProxyType

from common.errors import UserError
from data.tokenizers.base import Tokenizer

END = "<|endoftext|>"


class BytesTokenizer(Tokenizer):
    """Each byte of the UTF-8 text is a token."""

    vocab_size = 256
    divides_after_words = True

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def _decode_bytes(self, ids: Sequence[int]) -> bytes:
        return bytes(ids)


class CharactersTokenizer(Tokenizer):
    """Each character is a token; its id is its place in `characters`. An end of documents has the id after them."""

    divides_after_words = True

    def __init__(self, end_of_document: int | None, characters: str):
        super().__init__(end_of_document)
        self.characters = characters
        self.vocab_size = len(characters)
        if end_of_document == len(characters):
            self.vocab_size += 1
            self.special = MappingProxyType({END: end_of_document})
        self._ids = {character: number for number, character in enumerate(characters)}

    def encode(self, text: str) -> list[int]:
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            character = error.args[0]
            raise UserError(
                f"the character {character!r} (U+{ord(character):04X}) is not among the {len(self.characters)} "
                f"characters of this dataset's vocabulary"
            ) from None

    def _decode_bytes(self, ids: Sequence[int]) -> bytes:
        names = [*self.characters, *self.special]
        return "".join(names[token] for token in ids).encode("utf-8")
