"""What training holds in memory, by part, worked out from what each component keeps for its backward pass.

What a component keeps is stated by its spec, in the terms of components.spec.MicroBatch; here is the sum. Like the
costs, every formula is plain arithmetic: it takes the arrays of a search's grid (planner/space.py) as it takes the
integers of one configuration.

The figures are those of PyTorch's uncompiled CPU kernels, against whose tensors and allocations a test holds them. A
GPU's are expected to keep less in four places: RMSNorm (fused, without the normalized copy), dropout masks (one byte
an element), attention with dropout (fused, without T x T scores), and Muon's products (without a copy of a factor).
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from common.arrays import larger, product
from components.heads.spec import loss_bytes, loss_gradients
from components.quantized.spec import forms_of
from components.spec import GRADIENT_IN_PART, MicroBatch
from flops_parameter_counting.costs.adapters import as_computed, kept_otherwise
from flops_parameter_counting.costs.model_cost import WHOLE, Stage, named_weights, places_of, places_outside
from flops_parameter_counting.costs.optimizer import update_of
from flops_parameter_counting.costs.pipeline import crossing, in_flight, micro_batches, stages_of
from flops_parameter_counting.costs.setting import COMPUTE_BYTES
from flops_parameter_counting.costs.sharding import (
    Kind,
    Mesh,
    Parameters,
    elements,
    mesh_of,
    of_trained,
    parameters,
)
from model_config import Layer, ModelArchitectureConfig, Values
from runs.config import RunConfig
from training.optimizers.registry import optimizer_spec

REDUCE_BYTES = {"float32": 4, "bfloat16": 2}
OFFLOADED = ("weights", "gradients", "optimizer", "update")  # with fsdp_cpu_offload


def block_bytes(batch: MicroBatch, layer: Layer) -> int:
    """Bytes that a block keeps: its parts, the masks of the dropouts into the residual stream, and cast weights.

    Tensor-parallel ranks share all of it but what a mixer keeps whole, such as a mask that is the same for all heads,
    and the inputs of the mixer and the FFN, which each gathers and keeps whole (Korthikanti et al. 2022, section 4.2.2,
    would keep the part and gather again).
    """
    places = places_of(layer, batch.config)
    own = batch.of_layer(places[0].config)
    halves = [place for place in places if place.name in ("mixer", "ffn")]
    divided = sum(place.spec.kept(own) for place in places)
    if own.config.parallel_residual and len(halves) == 2 and (own.config.norms_before or own.e == 4):
        divided -= 4 * own.tokens * own.config.n_embd  # both halves keep one stream, unless a cast of it each
    added = 4 if own.config.norms_inside else own.e  # bytes of a number that dropout sees
    divided += len(halves) * own.dropout_mask(own.tokens * own.config.n_embd, added)
    cast = weight_copies(own, layer)
    if batch.tensor == 1:
        return cast + divided
    whole = sum(half.whole(own) for half in layer.specs)
    return cast + (divided - whole) // batch.tensor + whole


def weight_copies(batch: MicroBatch, layer: Layer) -> int:
    """Bytes of what autocast casts the matrices of a block to."""
    if batch.e == 4:
        return 0
    found = [one for spec in layer.specs for one in spec.all_weights(batch.config)]
    weights = [one for one in found if one.multiplies and not one.in_float32 and one.keeps_cast]
    if batch.has_codes:
        weights = [one for one in weights if not one.are_matrices]
    shared = [one for one in weights if one.by_expert and batch.experts > 1]  # which FSDP does not cast
    copies = batch.e * sum(one.size for one in shared) // batch.experts
    if batch.weights_are_cast and Kind(layer).gathered_bytes(batch.e) == batch.e:
        return copies
    weights = [one for one in weights if one not in shared]
    whole = sum(one.size for one in weights if one.divided in GRADIENT_IN_PART)
    return copies + batch.e * (whole + (sum(one.size for one in weights) - whole) // batch.tensor)


def _position_bytes(batch: MicroBatch, stage: Stage) -> int:
    """Bytes that the position encoding keeps: where it acts in mixers, once for all layers with equal values and heads
    of one width."""
    config, position = batch.config, batch.config.component("position_encoding")
    if position.acts_in != "mixers":
        return position.kept(batch) if stage.is_first else 0
    turned: list[tuple[Values, Any]] = []
    kept: Any = 0
    for layer in stage.counts(config):
        if not layer.mixer_spec.uses_positions:
            continue
        own = config.of(layer)
        values = Values({name: value for name, value in layer.values.items() if name in position.depends_on})
        width = layer.mixer_spec.position_width(own)
        is_other = 1
        for others, other_width in turned:
            is_other = is_other * (other_width != width) if others == values else is_other
        turned.append((values, width))
        kept = kept + is_other * position.kept(batch.of_layer(own.replace(head_dim=width)))
    return kept


def _place_bytes(batch: MicroBatch, stage: Stage) -> int:
    """Bytes of each token's place in its document, one tensor for all layers that are handed it, and for a position
    encoding that counts it as its own."""
    config = batch.config
    if not batch.has_documents or config.component("position_encoding").keeps_places:
        return 0
    counts = stage.counts(config).items()
    return (
        8 * batch.tokens * (sum(count * (layer.mixer_spec.takes_documents == "places") for layer, count in counts) > 0)
    )


def _handed_bytes(batch: MicroBatch, stage: Stage) -> int:
    """Bytes that the first mixer which hands something on hands to later ones, where there are any."""
    config, counts, sizes = batch.config, dict[str, Any](), dict[str, Any]()
    for layer, count in stage.counts(config).items():
        for name, factors in layer.mixer_spec.hands_on(config.of(layer)).items():
            counts[name] = counts.get(name, 0) + count
            sizes[name] = batch.tokens * product(factors.values()) * batch.e // batch.tensor
    return sum(size * (counts[name] > 1) for name, size in sizes.items())


def activation_bytes(batch: MicroBatch, checkpointing: bool, stage: Stage = WHOLE, begun: int = 1) -> int:
    """Bytes that are kept at the end of the forward pass, or of a stage's that has `begun` so many micro-batches: token
    ids, positions, blocks, final norm.

    With checkpointing, of the blocks only their inputs and what one hands to others, and then the larger of what one of
    them keeps while it is computed again and the cast weights of all, which autocast holds until the loss is there.
    """
    config = batch.config
    outside = 8 * batch.tokens + batch.dropout_mask(batch.stream_part, 4)
    for place in places_outside(config, stage):
        if place.name != "position":
            outside += place.spec.kept(batch) // batch.tensor
    outside += _position_bytes(batch, stage) + _place_bytes(batch, stage)
    of_adapters = dict[int, int]()
    if batch.adapters is not None:
        less, of_adapters = kept_otherwise(batch)
        outside += less
    layers = {layer: count for layer, count in stage.counts(config).items() if np.any(count)}
    blocks = {layer: block_bytes(batch, layer) for layer in layers}
    if not checkpointing:
        return begun * (
            outside + sum(layers[layer] * kept for layer, kept in blocks.items()) + sum(of_adapters.values())
        )
    inputs = stage.n_blocks(config) * 4 * batch.stream_part
    if config.component("position_encoding").biases_scores:
        inputs += 4 * config.n_head * config.block_size * batch.keys  # one for all blocks
    inputs += _handed_bytes(batch, stage)
    # A block computed again shares its input with the checkpoint, unless it only keeps casts of it.
    again = functools.reduce(larger, (kept * (layers[layer] > 0) for layer, kept in blocks.items()))
    again = again + max(of_adapters.values(), default=0)
    again = again - (4 * batch.stream_part if config.norms_before or batch.e == 4 else 0)
    copies = sum(count * weight_copies(batch.of_layer(config.of(layer)), layer) for layer, count in layers.items())
    return begun * (outside + inputs) + larger(again, copies)


def rank_memory(config: ModelArchitectureConfig, run: RunConfig, world_size: int, dtype: str) -> dict[str, int]:
    """Bytes of the first of `world_size` ranks, by part, for `run`'s strategy, micro-batches and checkpointing; the
    others hold as much, or less where rows do not divide by the ranks. Of ranks that divide sequences the last one's
    activations, which are the most: its tokens meet those of all others. Of a pipeline, of the first rank of the stage
    that holds most.

    `state_memory`, `update_memory` and `working_memory` say what the parts are. Their sum is an upper bound of what is
    held at once: gradients fill up while activations are freed. PyTorch, its allocator and the data come on top.
    `dtype` is the compute dtype. Raises UserError for an unknown vocabulary or a component whose memory is not known.
    """
    mesh, e = mesh_of(run, world_size), COMPUTE_BYTES[dtype]
    found = (stage_memory(config, run, mesh, e, stage) for stage in stages_of(config, mesh.pipeline))
    return max(found, key=lambda parts: sum(parts.values()))


def stage_memory(
    config: ModelArchitectureConfig, run: RunConfig, mesh: Mesh, e: int, stage: Stage = WHOLE
) -> dict[str, int]:
    """Bytes of the first rank of a stage, by part; `reference` is a model in float32 that is not trained. The caches of
    what a model writes while it is trained are in none of them: they are gone when its activations are there."""
    own = parameters(config, run.frozen_names, stage, run.adapters)
    found = state_memory(own, run, mesh, e) | update_memory(config, run, mesh, stage)
    if run.quantize_base is not None:
        less, found["dequantized"] = codes_memory(config, run.quantize_base, e, stage)
        found["weights"] -= less
    found |= working_memory(config, run, mesh, e, stage)
    return found | ({"reference": 4 * elements(own.all)} if run.has_reference_model else {})


def codes_memory(config: ModelArchitectureConfig, method: str, e: int, stage: Stage) -> tuple[int, int]:
    """By how many bytes codes and their scales are less than float32; and what the largest matrix takes while it is
    made of its codes for a product: these of a byte each, it in float32, and in the compute dtype."""
    less = largest = 0
    of_names = {name: one for found in named_weights(config, stage) for one in found.weights for name in one.names}
    for name, form in forms_of(method, of_names.values()).items():  # a tied table has one name
        size = product(of_names[name].shape)
        less = less + 4 * size - form.bytes_of(of_names[name].shape)
        largest = larger(largest, (5 + e * (e < 4)) * size)
    return less, largest


def state_memory(whole: Parameters, run: RunConfig, mesh: Mesh, e: int) -> dict[str, int]:
    """`weights`, `gradients` and `optimizer` (AdamW's two moments, Muon's one of matrices) are float32. ZeRO-1 divides
    the last, FSDP all of them (in main memory if they are offloaded: OFFLOADED), over the ranks of one replica; tensor
    parallelism divides them before. `gathered` is what FSDP brings together to compute: beside tensor parallelism
    replicas are exchanged through it, too, and then all weights are there twice."""
    own = whole.of_rank(mesh)
    weights, trained = elements(own.all, mesh.shards), of_trained(own.all)
    gradients = elements(trained, mesh.shards)
    spec, sharers = optimizer_spec(run.optimizer), mesh.data if run.use_zero1 else mesh.shards
    kept = sum(spec.numbers(one.is_matrix) * one.part(sharers) for one in trained)
    parts = {"weights": 4 * weights, "gradients": 4 * gradients, "optimizer": 4 * kept}
    if run.use_fsdp:
        parts["gathered"] = _gathered(own, mesh.shards, run, e)
    elif mesh.tensor > 1 and mesh.data > 1:
        keeping = dataclasses.replace(run, fsdp_reshard_after_forward=False)
        parts["gathered"] = _gathered(own, mesh.shards, keeping, e=4)
    return parts


def update_memory(config: ModelArchitectureConfig, run: RunConfig, mesh: Mesh, stage: Stage = WHOLE) -> dict[str, int]:
    """`update` is what an optimizer of whole matrices takes during its step, when activations are there no longer: the
    parts that are sent, those that are received, and the scratch of one matrix at a time."""
    if not optimizer_spec(run.optimizer).takes_matrices:
        return {}
    return {"update": update_of(config, run, mesh, stage).scratch}


def _gathered(own: Parameters, shards: int, run: RunConfig, e: int) -> int:
    """What lies outside of the blocks' mixers and FFNs is there whole, in float32, with its gradient; gathered are the
    weights of the block that computes and of the one that is fetched ahead, the largest, or of all blocks if they are
    not given back; and a block's gradients, in that dtype and in the one they are reduced in."""
    root = shards * (elements(own.root, shards) + elements(of_trained(own.root), shards))
    sizes = {kind: kind.gathered_bytes(e) * own.block(kind, shards) for kind in own.blocks}
    weights = (2 - (own.layers == 1)) * functools.reduce(larger, sizes.values())
    if not run.fsdp_reshard_after_forward:
        weights = sum(own.counts[kind] * size for kind, size in sizes.items())
    gradients = (kind.gathered_bytes(e) * own.block(kind, shards, trained=True) for kind in own.blocks)
    block = functools.reduce(larger, gradients) + REDUCE_BYTES[run.fsdp_reduce_dtype] * own.largest_gradients(shards)
    return 4 * root + weights + block


def working_memory(
    config: ModelArchitectureConfig, run: RunConfig, mesh: Mesh, e: int, stage: Stage = WHOLE
) -> dict[str, int]:
    """`activations` are those at the end of a forward pass, `logits` what the head and its loss add to them. Tensor
    parallelism divides them, too, but for what each rank gathers of them; ranks that divide sequences likewise. A stage
    of a pipeline keeps the activations of several micro-batches, and of each but one the last stage keeps the gradients
    that its head has made; `received` is what it has been sent besides: of each what its first block does not keep, and
    the gradients of one. What a block takes in its backward pass for a time is less than the head and its loss take: a
    stage without these takes it on top of all parts, less than one of its blocks keeps.
    """
    before = 0
    if mesh.context > 1:
        part = config.block_size // mesh.context
        config, before = config.replace(block_size=part), config.block_size - part
    if run.adapters is not None:
        config = as_computed(config, run.adapters)
    batch = MicroBatch(
        config, run.batch_size, e, mesh.tensor, run.use_fsdp, run.mask_documents, mesh.experts, before, run.adapters,
        run.quantize_base is not None,
    )  # fmt: skip
    if stage.blocks is None:
        return {"activations": activation_bytes(batch, run.activation_checkpointing), "logits": loss_bytes(batch)}
    begun = in_flight(run, stage, micro_batches(run, mesh.data))
    kept = activation_bytes(batch, run.activation_checkpointing, stage, begun)
    logits = loss_bytes(batch) + (begun - 1) * loss_gradients(batch) if stage.is_last else 0
    arriving = crossing(config, stage.blocks.start, e)
    if not stage.is_first and (config.norms_before or e == 4):
        arriving -= 4 * config.n_embd
    returning = 0 if stage.is_last else crossing(config, stage.blocks.stop, e)
    received = batch.tokens * (begun * arriving + returning)
    return {"activations": kept, "logits": logits, "received": received}


def training_memory(
    config: ModelArchitectureConfig, batch_size: int, dtype: str, activation_checkpointing: bool = False
) -> dict[str, int]:
    """`rank_memory` of one process, which shares nothing."""
    run = RunConfig(batch_size=batch_size, activation_checkpointing=activation_checkpointing)
    return rank_memory(config, run, 1, dtype)
