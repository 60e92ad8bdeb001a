"""What short causal convolutions keep for backward, without PyTorch."""

from typing import Any

from components.spec import MicroBatch


def kept_by_convolution(batch: MicroBatch, channels: Any, width: int) -> Any:
    """Bytes of the padded input, and of the sum, of which silu or what multiplies it is a function; of autocast, of the
    cast weight."""
    config, e = batch.config, batch.e
    padded = batch.batch_size * (config.block_size + width - 1)
    cast = 0 if e == 4 else e * channels * width
    return (padded + batch.tokens) * channels * e + cast


def kept_by_forgetting(batch: MicroBatch) -> int:
    """Bytes that say which tokens are the first of their documents, where these are kept apart."""
    return batch.tokens * batch.has_documents
