"""What decoding keeps of the texts that it has read, and the protocol that every mixer's cache follows.

    cache = mixer.empty_cache(batch, room)  # of `batch` texts, none of which has a token yet, and of up to `room` each
    y = mixer(x, cache=cache)  # x, y (B, T, D): the next T tokens of every text, one or many

A call with a cache continues from it, as if the tokens before stood in front of x, and updates it in place: it then
has seen x too. A prompt may thus be read at once, in pieces, or token by token. Without gradients.

All texts of a batch have as many tokens. A mixer is told of no padding and of no position by row, so that what is right
for one text is right for a batch, with any mixer and any encoding of positions. What texts of unequal lengths need for
being read together is done by inference/generation.py.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor


class Cache(Protocol):
    """What one mixer keeps of a batch of texts: any dataclass, of two kinds of fields.

    Tensors (B, ...) have the texts first: rows are taken of them when texts leave the batch, and put together when
    texts join it. Numbers and words are the same for all texts with as many tokens, as their count is.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]


@dataclasses.dataclass
class Caches:
    """What a LanguageModel keeps of a batch of texts with as many tokens each: the cache of every layer's mixer."""

    layers: list[Cache]
    batch: int  # texts
    room: int | None  # tokens of a text that fit; None: any number
    length: int = 0  # tokens of a text that are read
    texts: Tensor | None = None  # (batch, length) tokens, where a longer text may turn them anew

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for layer in self.layers for tensor in _split(layer)[0].values())

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all texts but those of these rows, which then stand in this order."""
        for index, layer in enumerate(self.layers):
            kept = {name: tensor[list(rows)] for name, tensor in self._rows(layer).items()}
            self.layers[index] = dataclasses.replace(layer, **kept)
        self.texts = None if self.texts is None else self.texts[list(rows)]
        self.batch = len(rows)

    def join(self, other: "Caches") -> None:
        """Takes in the texts of another, after its own. Both have the same room, and as many tokens read."""
        if (self.room, self.length) != (other.room, other.length):
            raise ValueError(f"texts of {self.length} and {other.length} tokens, or of other room, are no batch")
        for index, (layer, more) in enumerate(zip(self.layers, other.layers, strict=True)):
            rows, added = self._rows(layer), other._rows(more)
            if _split(layer)[1] != _split(more)[1]:
                raise ValueError(f"two of {type(layer).__name__} with as many tokens differ in more than their texts")
            both = {name: torch.cat((tensor, added[name])) for name, tensor in rows.items()}
            self.layers[index] = dataclasses.replace(layer, **both)
        self.texts = None if self.texts is None or other.texts is None else torch.cat((self.texts, other.texts))
        self.batch += other.batch

    def _rows(self, layer: Cache) -> dict[str, Tensor]:
        """The tensors of a layer's cache, by name. Raises ValueError where it does not follow the protocol."""
        tensors, others = _split(layer)
        where = type(layer).__name__
        for name, tensor in tensors.items():
            if tensor.shape[:1] != (self.batch,):
                raise ValueError(f"{where}.{name} is of shape {tuple(tensor.shape)}, not of {self.batch} texts first")
        for name, value in others.items():
            if not isinstance(value, int | float | str | None):
                raise ValueError(f"{where}.{name} is a {type(value).__name__}, no tensor, number or word")
        return tensors


def _split(layer: Cache) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The fields of a cache by name: tensors, and others."""
    fields = {field.name: getattr(layer, field.name) for field in dataclasses.fields(layer)}
    tensors = {name: value for name, value in fields.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in fields.items() if name not in tensors}
