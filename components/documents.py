"""Documents in one sequence: where in its own each token stands, what it may not meet, and how a state forgets.

Documents are (B, T), which document of its sequence each token is of; those of one lie together.
"""

import torch
from torch import Tensor

FORGOTTEN = -1000.0  # the logarithm of a decay of which nothing is left, in float64 either


def places(documents: Tensor, own: slice = slice(None)) -> Tensor:
    """(B, T) -> (B, own), of each token in its document, from 0."""
    positions = torch.arange(documents.shape[1], device=documents.device)
    is_first = torch.ones_like(documents, dtype=torch.bool)
    is_first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    found = positions - torch.where(is_first, positions, 0).cummax(dim=1).values
    return found[:, own].contiguous()


def hidden(documents: Tensor, own: slice = slice(None)) -> Tensor:
    """(B, T) -> (B, 1, own, keys up to the last of these), true where a key is of another document than its query."""
    return (documents[:, own, None] != documents[:, None, : own.stop])[:, None]


# What a mixer may be handed of them, for its own tokens, by the name that its spec's `takes_documents` says.
HANDED = {"places": places, "hidden": hidden}


def forgetting(decay: Tensor, places: Tensor | None) -> Tensor:
    """The logarithms of decays (B, T, ...), by which a state of before a document's first token (B, T) is gone. None:
    all tokens are of one document."""
    if places is None:
        return decay
    is_first = (places == 0).view(*places.shape, *[1] * (decay.dim() - 2))
    return decay.masked_fill(is_first, FORGOTTEN)
