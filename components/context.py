"""A sequence that ranks divide among themselves: what a component is given of the parts that others have.

Each rank calls the model on its own tokens, which lie together; the ranks before it have those before. Norms, FFNs and
projections need no others. What looks back, or takes a mean over tokens, has an attribute `context`, which is None
where every sequence is whole, and else this; a mixer with a state has besides `scan`, a function
(x, ..., initial_state) -> (y, the last state), and is given one that begins where the rank before ended. The spec of a
mixer says so by `takes_context`; what a rank receives is what the spec says that decoding remembers.
"""

from typing import Protocol

from torch import Tensor


class Context(Protocol):
    """The ranks that divide a sequence, in its order, as one of them sees them."""

    def start(self, length: int) -> int:
        """The place in its sequence of the first of this rank's `length` tokens."""
        ...

    def before(self, x: Tensor, dim: int, window: int | None = None) -> Tensor:
        """Of the tokens before this rank's, what lies along `dim` as in x: the last `window` - 1, or as many as there
        are (None: all). Gradients go back to the ranks that have them."""
        ...

    def mean(self, x: Tensor) -> Tensor:
        """The mean over the ranks of what each has made of its tokens; so with gradients."""
        ...
