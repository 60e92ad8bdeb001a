"""What a forward pass keeps otherwise where adapters are trained and nothing else. No torch.

More: what B multiplies, of every adapter, and with DoRA what the factor of each row does. Less: what only the gradient
of a frozen table or norm would need, and all that lies before the first adapter. A frozen matrix's input is kept as it
was, for A; of one without an adapter, or with a dropout before that, it is counted all the same, so that the figure is
an upper bound there, as it is of the vectors within mixers with a state.
"""

from typing import Any

from components.lora.spec import PART, Adapters, is_of_adapter
from components.spec import MicroBatch, Weights
from flops_parameter_counting.costs.model_cost import Named, Passed, gradients, named_weights
from model_config import ModelArchitectureConfig


def kept_otherwise(batch: MicroBatch) -> tuple[int, dict[int, int]]:
    """Bytes that are kept more, or less, than `batch` would without its adapters: outside of the blocks, and of each
    block. Of norms the specs know it themselves."""
    outside, blocks = 0, dict[int, int]()
    for found, of_input, _ in gradients(batch.config, _frozen, batch.adapters):
        if found.block is not None:
            kept = _of_half(batch, found, Passed(found, of_input, _frozen))
            blocks[found.block] = blocks.get(found.block, 0) + kept
        elif found.place is None and not found.is_head:  # the embedding: ids, and a mask
            outside -= 8 * batch.tokens + batch.dropout_mask(batch.stream_part, 4)
        elif found.place is not None and found.place.name == "position":
            outside -= found.place.spec.kept(batch) * (
                batch.config.component("position_encoding").acts_in == "embedding"
            )
    return outside, blocks


def as_computed(config: ModelArchitectureConfig, adapters: Adapters) -> ModelArchitectureConfig:
    """Experts with adapters are computed one after the other, whatever their backend."""
    found = (one for found in named_weights(config, adapters=adapters) for one in found.weights)
    return (
        config.replace(experts_backend="loop") if any(one.part == PART and one.by_expert for one in found) else config
    )


def _frozen(name: str) -> bool:
    return not is_of_adapter(name)


def _of_half(batch: MicroBatch, found: Named, passed: Passed) -> int:
    """Of a norm, a mixer or an FFN."""
    assert found.place is not None and batch.adapters is not None
    own = batch.of_layer(found.place.config)
    if found.place.name.endswith("_norm"):
        return 0 if passed.of_input else -found.place.spec.kept(own)
    is_cast = batch.e < 4 and not batch.weights_are_cast
    of_base = is_cast and not batch.has_codes
    return sum(
        _of_adapter(own, one, is_cast, passed.to_input_of(one))
        if one.part == PART
        else -batch.e * one.size * (of_base and one.are_matrices and one.keeps_cast and not passed.to_input_of(one))
        for one in found.weights
    )


def _of_adapter(batch: MicroBatch, one: Weights, is_cast: bool, is_passed: bool) -> Any:
    """Of A, B or m: rows of tokens that they meet, and copies in the compute dtype, for the gradients of these."""
    assert batch.adapters is not None
    rows, r = batch.tokens * one.met[0], batch.adapters.r
    copies = batch.e * one.size * (is_cast and is_passed)
    (name,) = one.names
    if name.endswith(".A"):
        dropped = rows * one.shape[-1] * batch.e * (1 + is_passed) * (batch.adapters.dropout > 0)  # with a mask
        return rows * r * batch.e + copies + dropped
    if name.endswith(".B"):  # transposed
        return batch.e * one.size
    return rows * one.shape[-1] * batch.e + 2 * 4 * one.size  # what the factor multiplies; it, and |V|
