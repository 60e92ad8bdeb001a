"""SentencePiece, such as Llama 2's tokenizer.model.

A text is encoded as if a space were before it, if the model says so, and as its normalizer makes it: Llama 2's leaves
it as it is, others change it. Bits per byte are of the bytes of the text before all that.
"""

import itertools
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

from common.errors import UserError
from data.tokenizers.base import Tokenizer

SPACE = "\u2581"  # stands for a space in a piece
_NORMAL, _USERS, _UNUSED, _BYTE = 1, 4, 5, 6  # types of pieces in the file
_BPE = 2  # a type of model


class SentencePieceTokenizer(Tokenizer):
    """The pieces of a SentencePiece model; `content` is its file. Control symbols are its special tokens."""

    def __init__(self, end_of_document: int | None, content: bytes):
        super().__init__(end_of_document)
        self.content = content
        self._processor = _processor(content)
        self.vocab_size = self._processor.vocab_size()
        names = map(self._processor.id_to_piece, range(self.vocab_size))
        special = {name: token for token, name in enumerate(names) if self._processor.is_control(token)}
        self.special = MappingProxyType(special)
        self.prefix = b" " if self.model.adds_space else b""

    def encode(self, text: str) -> list[int]:
        ids = self._processor.encode(text)
        unknown = self._processor.unk_id()
        if unknown in ids:
            missing = next(piece for piece in self._processor.encode(text, out_type=str) if self._is_unknown(piece))
            raise UserError(f"the tokenizer has no token for {missing!a}: it cannot encode this text")
        return ids

    def _is_unknown(self, piece: str) -> bool:
        return self._processor.piece_to_id(piece) == self._processor.unk_id()

    def _decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(self.tokens[token] for token in ids)

    @cached_property
    def tokens(self) -> list[bytes]:
        """The bytes of every token."""
        return [
            bytes([int(piece[3:5], 16)]) if kind == _BYTE else piece.replace(SPACE, " ").encode("utf-8")
            for piece, _, kind in self.model.pieces
        ]

    @cached_property
    def model(self) -> "Model":
        """What its file says."""
        return Model(self.content)

    @property
    def end(self) -> int | None:
        """The id of the model's end of a text, if it has one."""
        found = self._processor.eos_id()
        return found if found >= 0 else None


def _processor(content: bytes) -> Any:
    try:
        import sentencepiece
    except ImportError:
        raise UserError("this tokenizer needs sentencepiece: pip install -e '.[tokenizers]'") from None
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(content)
    except RuntimeError:
        raise UserError("the SentencePiece model is damaged: copy it anew") from None
    return processor


def is_sentencepiece(content: bytes) -> bool:
    """Whether the file begins with a piece that has a name, as every such file does."""
    return content[:1] == b"\n" and content[2:3] == b"\n"


# ---------------------------------------------------------------------------------------------------------------------
# The file, a protocol buffer of which a few fields matter


class Model:
    """`pieces`: the text, score and type of each; whether it `adds_space` before a text; and `has_merges_only`: it is
    of type bpe, does nothing else to text, has bytes for characters without a piece, and no symbols that come first."""

    def __init__(self, content: bytes):
        self.pieces: list[tuple[str, float, int]] = []
        trainer: dict[int, Any] = {}
        normalizer: dict[int, Any] = {}
        for number, value in _fields(content):
            if number == 1:
                piece = dict(_fields(value))
                score = struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0
                self.pieces.append((piece[1].decode("utf-8"), score, piece.get(3, 1)))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
        self.adds_space = bool(normalizer.get(3, 1))
        changes_text = normalizer.get(2) or normalizer.get(4, 1) or not normalizer.get(5, 1)
        first = any(kind in (_USERS, _UNUSED) for _, _, kind in self.pieces)
        self.has_merges_only = trainer.get(3, 1) == _BPE and trainer.get(35, 0) == 1 and not changes_text and not first


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """The numbers and values of a message's fields: whole numbers, or bytes."""
    place = 0
    while place < len(content):
        key, place = _varint(content, place)
        if key & 7 == 0:
            value, place = _varint(content, place)
            yield key >> 3, value
            continue
        length = {1: 8, 5: 4}.get(key & 7)
        if length is None:
            length, place = _varint(content, place)
        yield key >> 3, content[place : place + length]
        place += length


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


# ---------------------------------------------------------------------------------------------------------------------
# As a list of merges


def merged_pairs(model: Model) -> list[list[str]]:
    """The pairs that a model of type bpe merges, the first ones first: two neighbours whose text together is a piece,
    that of the highest score first. Byte_pairs.py says why one pair a piece is enough."""
    scores = {piece: score for piece, score, kind in model.pieces if kind == _NORMAL}
    ordered = sorted((piece for piece in scores if len(piece) > 1), key=lambda piece: -scores[piece])
    return [list(pair) for piece in ordered if (pair := _last_pair(piece, scores)) is not None]


def _last_pair(piece: str, scores: Mapping[str, float]) -> tuple[str, str] | None:
    parts = list(piece)
    while len(parts) > 2:
        found = [scores.get(one + other, -math.inf) for one, other in itertools.pairwise(parts)]
        highest = max(found)
        if highest == -math.inf:
            return None
        first = found.index(highest)
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return (parts[0], parts[1])
