"""The LM head and its loss, a few rows at a time: how many, and what they hold while they run."""

from typing import Any

from common.arrays import larger, smaller
from components.spec import MicroBatch

# The loss is computed over so many bytes of float32 logits at a time, or so many rows, which are more in a large
# vocabulary (loss_rows).
CHUNK_BYTES = 64 * 2**20
LOSS_ROWS = 2048

IGNORED = -100  # a target that does not count, as PyTorch's and transformers' losses have it


def loss_rows(vocab_size: int, width: Any) -> Any:
    """Tokens whose logits and loss are computed at a time (components/heads/cross_entropy.py).

    Every time, the gradient of the head's weight is added to, as large as it is for however few tokens: for 333 of
    them, an H100 took longer to add than to compute what is added (docs/performance.md). Hence at least LOSS_ROWS, but
    no more than the head is wide, beyond which their logits would be larger than that gradient.
    """
    return larger(CHUNK_BYTES // (4 * vocab_size), smaller(width, LOSS_ROWS))


def loss_bytes(batch: MicroBatch) -> int:
    """Bytes that the head and its loss hold while they run: hidden states and their gradient, the gradient of the
    head's weight where that is trained, a cast of that weight, and one chunk's rows and logits.

    A chunk is at its largest either in its softmax, with as much scratch as logits, or at the products with its
    logits' gradient, which are made (and cast to float32) apart from the gradients that they are added to.
    """
    config, e = batch.config, batch.e
    vocab_size = (config.vocab_size or 0) // batch.tensor
    table = vocab_size * config.n_embd
    gradient = 0 if batch.adapters else table
    rows = smaller(batch.tokens, loss_rows(vocab_size, config.n_embd))
    cast = 0 if e == 4 else e
    softmax = rows * vocab_size * 8
    product = rows * vocab_size * (4 + cast) + larger(rows * config.n_embd * e, gradient * (4 + cast))
    chunk = rows * config.n_embd * cast + larger(softmax, product)
    return 2 * batch.tokens * config.n_embd * 4 + gradient * 4 + table * cast + chunk


def loss_gradients(batch: MicroBatch) -> int:
    """Bytes that the loss keeps for its backward pass: the gradients of hidden states and of the head's weight, which
    are made with it."""
    return 4 * batch.config.n_embd * (batch.tokens + (batch.config.vocab_size or 0))
