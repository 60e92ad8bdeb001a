"""Documents in one sequence: where in its own each token stands, what it may not meet, and how a state forgets."""

import dataclasses

import torch
from torch import Tensor

FORGOTTEN = -1000.0  # the logarithm of a decay of which nothing is left, in float64 either


@dataclasses.dataclass(frozen=True)
class Documents:
    """What mixers are handed of them, each by the name that its spec's `takes_documents` says."""

    places: Tensor  # (B, T), of each token in its document, from 0
    hidden: Tensor  # (B, 1, T, T), true where a key is of another document than its query

    @classmethod
    def of(cls, documents: Tensor) -> "Documents":
        """From (B, T), which document of its sequence a token is of; those of one lie together."""
        positions = torch.arange(documents.shape[1], device=documents.device)
        is_first = torch.ones_like(documents, dtype=torch.bool)
        is_first[:, 1:] = documents[:, 1:] != documents[:, :-1]
        first = torch.where(is_first, positions, 0).cummax(dim=1).values
        return cls(positions - first, (documents[:, :, None] != documents[:, None, :])[:, None])


def forgetting(decay: Tensor, places: Tensor | None) -> Tensor:
    """The logarithms of decays (B, T, ...), by which a state of before a document's first token (B, T) is gone. None:
    all tokens are of one document."""
    if places is None:
        return decay
    is_first = (places == 0).view(*places.shape, *[1] * (decay.dim() - 2))
    return decay.masked_fill(is_first, FORGOTTEN)
