"""What training holds in memory, by part, worked out from what each component keeps for its backward pass.

A micro-batch is B sequences of T tokens. Activations in the residual stream are float32; matrix products and what
follows them are in the compute dtype, `e` bytes an element: 4, or 2 under autocast, which casts weights and inputs.
D is n_embd, F d_ff, H query heads and K key-value heads of h. Like the costs, every formula is plain arithmetic: it
takes the arrays of a search's grid (planner/space.py) as it takes the integers of one configuration.

The figures are those of PyTorch's uncompiled CPU kernels, against whose tensors and allocations a test holds them. A
GPU's are expected to keep less in three places: RMSNorm (fused, without the normalized copy), dropout masks (one byte
an element), and attention with dropout (fused, without T x T scores).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from common.errors import UserError, did_you_mean
from flops_parameter_counting.costs.component_costs import component_cost
from flops_parameter_counting.costs.sharding import (
    Mesh,
    Parameters,
    elements,
    gathered_bytes,
    larger,
    mesh_of,
    parameters,
    smaller,
)
from model_config import MIXERS, SELECTIVE_CHUNK, ModelArchitectureConfig
from runs.config import RunConfig

COMPUTE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
REDUCE_BYTES = {"float32": 4, "bfloat16": 2}
OFFLOADED = ("weights", "gradients", "optimizer")  # with fsdp_cpu_offload

# The loss is computed over so many bytes of float32 logits at a time, or so many rows, which are more in a large
# vocabulary (loss_rows).
CHUNK_BYTES = 64 * 2**20
LOSS_ROWS = 2048


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """What the formulas are given."""

    config: ModelArchitectureConfig
    batch_size: int
    e: int  # bytes of an element in the compute dtype
    tensor: int = 1  # ranks that share every layer
    weights_are_cast: bool = False  # by FSDP, in gathering them: autocast has nothing to copy

    @property
    def tokens(self) -> int:
        return self.batch_size * self.config.block_size

    @property
    def d_ff(self) -> int:
        if self.config.d_ff is None:
            raise ValueError("the architecture is not resolved: call model_config.resolve_architecture")
        return self.config.d_ff

    @property
    def query_width(self) -> int:
        """Of all heads: n_embd for what train.py builds."""
        return self.config.n_head * self.config.head_dim

    def dropout_mask(self, elements: int, e: int) -> int:
        """Kept as the factor of every element, in the dtype of its input."""
        return elements * e if self.config.dropout else 0

    def linear_inputs(self, width: int, layers: int = 1) -> int:
        """The float32 input of `layers` linear layers: one tensor for all, but autocast casts it for each anew."""
        return self.tokens * width * (4 if self.e == 4 else self.e * layers)

    def weight_copies(self, letter: str) -> int:
        """Of a block with this mixer: what autocast casts its matrices to. A matrix takes 2 FLOPs a weight and
        token."""
        if self.e == 4 or (self.weights_are_cast and gathered_bytes(letter, self.e) == self.e):
            return 0
        parts = [("mixer", MIXERS[letter]), *([("ffn_type", self.config.ffn_type)] * self.config.has_ffn(letter))]
        costs = [component_cost(kind, name, self.config, self.config.block_size) for kind, name in parts]
        return self.e * sum(cost.matmul for cost in costs) // 2 // self.tensor

    @property
    def stream_part(self) -> int:
        """Elements of the residual stream that this rank has: with tensor parallelism a part of the sequence."""
        return self.tokens * self.config.n_embd // self.tensor


KeptBytes = Callable[[MicroBatch], int]  # of one instance, for one forward pass

_KEPT: dict[str, dict[str, KeptBytes]] = {}


def register_memory(kind: str, *names: str) -> Callable[[KeptBytes], KeptBytes]:
    """Decorate the formula of the components `names` of one kind: the bytes that one instance keeps for backward.

    What two consumers keep counts once. An activation does not count its output, which the layer after it keeps.
    """

    def store(function: KeptBytes) -> KeptBytes:
        for name in names:
            _KEPT.setdefault(kind, {})[name] = function
        return function

    return store


def kept_bytes(kind: str, name: str, batch: MicroBatch) -> int:
    """Raises UserError for a component whose memory nobody has written down."""
    known = _KEPT.get(kind, {})
    if name not in known:
        raise UserError(
            f"the memory of {kind}={name!r} is not known{did_you_mean(name, known)}: "
            "write it with flops_parameter_counting.costs.memory.register_memory"
        )
    return known[name](batch)


# Norms


@register_memory("normalization", "layernorm", "layernorm_nobias")
def layernorm(batch: MicroBatch) -> int:
    """Its input, and a mean and a deviation for each token."""
    return batch.tokens * 4 * (batch.config.n_embd + 2)


@register_memory("normalization", "rmsnorm")
def rmsnorm(batch: MicroBatch) -> int:
    """Its input, the normalized input (for the gradient of its weight), and a root mean square for each token."""
    return batch.tokens * 4 * (2 * batch.config.n_embd + 1)


# Activations, besides their output


@register_memory("activation", "gelu", "gelu_tanh", "silu", "leaky_relu")
def smooth_activation(batch: MicroBatch) -> int:
    """Their input."""
    return batch.tokens * batch.d_ff * batch.e


@register_memory("activation", "relu")
def relu(batch: MicroBatch) -> int:
    """The output tells the derivative."""
    return 0


@register_memory("activation", "relu_squared")
def relu_squared(batch: MicroBatch) -> int:
    """What is squared."""
    return batch.tokens * batch.d_ff * batch.e


# Positions. ALiBi's bias is kept where it is used, by the backend.

_ROTATES = ("rope",)
_BIASES_SCORES = ("alibi",)


@register_memory("position_encoding", "none", "alibi")
def nothing(batch: MicroBatch) -> int:
    return 0


@register_memory("position_encoding", "learned_absolute")
def learned_absolute(batch: MicroBatch) -> int:
    """The rows that were looked up."""
    return 8 * batch.config.block_size


@register_memory("position_encoding", "rope")
def rope(batch: MicroBatch) -> int:
    """Cosines and sines (T, h/2), once for all layers."""
    return 2 * batch.config.block_size * (batch.config.head_dim // 2) * 4


# Attention: the backend keeps what lies between the projections


@register_memory("attention_backend", "sdpa")
def sdpa(batch: MicroBatch) -> int:
    """Fused: queries, keys, values, output, and the log of each query's normalizer; the mask of a score bias.

    With dropout PyTorch has no fused kernel on the CPU and takes the formula, in float32.
    """
    config, e = batch.config, batch.e
    scores = batch.tokens * config.n_head * config.block_size
    if config.dropout:
        return 3 * batch.tokens * 4 * batch.query_width + 3 * scores * 4  # softmax, dropout's mask, dropped weights
    mask = config.n_head * config.block_size**2 * e if config.position_encoding in _BIASES_SCORES else 0
    q_and_out, k_and_v = 2 * batch.query_width, 2 * config.kv_heads * config.head_dim
    return batch.tokens * (q_and_out + k_and_v) * e + batch.tokens * config.n_head * 4 + mask


@register_memory("attention_backend", "manual")
def manual(batch: MicroBatch) -> int:
    """Queries, keys and values of every query head; the float32 softmax, where that is not the weights themselves; the
    weights; dropout's mask."""
    config, e = batch.config, batch.e
    scores = batch.tokens * config.n_head * config.block_size
    softmax = scores * 4 if e < 4 or config.dropout else 0
    weights = scores * e + batch.dropout_mask(scores, e)
    return 3 * batch.tokens * batch.query_width * e + softmax + weights


@register_memory("mixer", "attention")
def attention(batch: MicroBatch) -> int:
    return _attention(batch, "attention")


@register_memory("mixer", "sliding_attention")
def sliding_attention(batch: MicroBatch) -> int:
    return _attention(batch, "sliding_attention")


def mask_of_all_heads(batch: MicroBatch, mixer: str) -> int:
    """(T, T), and no smaller for a part of the heads: of the formula the keys that are not seen, of the fused kernel a
    window, unless it lies in the score bias, which every head has of its own."""
    config, pairs = batch.config, batch.config.block_size**2
    if config.attention_backend == "manual":
        return pairs
    fused = config.attention_backend == "sdpa" and not config.dropout
    has_window = mixer == "sliding_attention" and config.position_encoding not in _BIASES_SCORES
    return batch.e * pairs * (fused and has_window)


def _attention(batch: MicroBatch, mixer: str) -> int:
    """The input of the three projections, what the backend keeps, and the input of the output projection, unless that
    is the fused kernel's output: its layout follows the queries', and rotated ones lie head by head, which is no other
    layout for a single head."""
    config = batch.config
    fused = config.attention_backend == "sdpa" and not config.dropout
    is_copied = not fused or (config.position_encoding in _ROTATES and config.n_head > 1)
    return (
        batch.linear_inputs(config.n_embd, layers=3)
        + kept_bytes("attention_backend", config.attention_backend, batch)
        + mask_of_all_heads(batch, mixer)
        + batch.tokens * batch.query_width * batch.e * is_copied
    )


# State spaces. E channels (mamba_expand D), N state, K convolution width; of Mamba-2 H heads in G groups, chunks of Q.


def _convolution(batch: MicroBatch, channels: int) -> int:
    """The padded input, and the sum before silu; of autocast, the cast weight."""
    config, e = batch.config, batch.e
    padded = batch.batch_size * (config.block_size + config.mamba_d_conv - 1)
    cast = 0 if e == 4 else e * channels * config.mamba_d_conv
    return (padded + batch.tokens) * channels * e + cast


@register_memory("mixer", "mamba1")
def mamba1(batch: MicroBatch) -> int:
    """Of the scan its inputs, in float32, and the state at the start of every SELECTIVE_CHUNK tokens."""
    config, e, tokens = batch.config, batch.e, batch.tokens
    width, state = config.mamba_width, config.mamba_state_size("mamba1")
    selection = config.mamba_dt_rank + 2 * state
    cast = 0 if e == 4 else 4 * tokens * (width + 2 * state) + e * width  # the input, B and C; D
    starts = batch.batch_size * -(-config.block_size // SELECTIVE_CHUNK)
    return (
        batch.linear_inputs(config.n_embd, layers=2)  # the input of the gate's and the input's projection
        + _convolution(batch, width)
        + tokens * (width + selection) * e  # its output, and what is selected from it
        + 2 * tokens * width * 4  # the steps, before softplus and after
        + cast
        + (starts + 2) * width * state * 4  # the states, and A twice
        + 4 * tokens * width * e  # the gate, before silu and after; what it multiplies; their product
    )


@register_memory("mamba_backend", "auto", "chunked")
def chunked_scan(batch: MicroBatch) -> int:
    """What the products within and between chunks take, and the states at the chunks' starts. `auto` may take fused
    kernels, which keep less."""
    config, e = batch.config, batch.e
    width, state, heads = config.mamba_width, config.mamba_state_size("mamba2"), config.mamba_heads
    written_or_read = config.mamba_n_groups * state
    chunk = min(config.mamba_chunk_size, config.block_size)
    chunks = batch.batch_size * -(-config.block_size // chunk)
    padded = chunks * chunk  # tokens
    copies = 1 + (config.mamba_n_groups > 1)  # of B and C: groups do not lie together, for any product
    return (
        2 * copies * padded * written_or_read * e
        + padded * config.mamba_n_groups * chunk * e  # C B^T
        + padded * heads * chunk * (4 + e)  # how they fade, and the product, in the compute dtype
        + padded * width * e * (3 + (heads > 1))  # inputs: as they are, head by head, faded; what is read
        + 2 * padded * heads * 4  # the decays from the chunk's start and to its end
        + (chunks + 2) * heads * 4  # the decays of whole chunks, and A twice
        + chunks * width * state * (4 + (e if e < 4 else 0))  # the states, and a cast of them
    )


@register_memory("mamba_backend", "fla")
def fla_scan(batch: MicroBatch) -> int:
    """B and C of every head, its inputs times their steps, and the decays in a chunk; the states are computed again."""
    config, e, tokens = batch.config, batch.e, batch.tokens
    heads, state = config.mamba_heads, config.mamba_state_size("mamba2")
    return 2 * tokens * heads * state * e + tokens * config.mamba_width * e + tokens * heads * 4 + 2 * heads * 4


@register_memory("mixer", "mamba2")
def mamba2(batch: MicroBatch) -> int:
    """What the backend keeps, and around it the projections, the convolutions, the steps, and the gated norm, in
    float32."""
    config, e, tokens = batch.config, batch.e, batch.tokens
    width, heads = config.mamba_width, config.mamba_heads
    return (
        batch.linear_inputs(config.n_embd, layers=5)
        + _convolution(batch, width)
        + 2 * _convolution(batch, config.mamba_n_groups * config.mamba_state_size("mamba2"))
        + tokens * width * e  # the convolved input
        + 2 * tokens * heads * 4  # the steps, before softplus and after
        + kept_bytes("mamba_backend", config.mamba_backend, batch)
        + 5 * tokens * width * 4  # the gate, before silu and after; y; their product; the same, normalized
        + tokens * config.mamba_n_groups * 4
        + tokens * width * e  # the input of the output projection
    )


# FFN


@register_memory("ffn_type", "standard")
def standard_ffn(batch: MicroBatch) -> int:
    """The inputs of the two layers, and what the activation keeps."""
    config = batch.config
    return (
        batch.linear_inputs(config.n_embd)
        + kept_bytes("activation", config.activation or "gelu", batch)
        + batch.tokens * batch.d_ff * batch.e
    )


@register_memory("ffn_type", "swiglu", "geglu")
def gated_ffn(batch: MicroBatch) -> int:
    """The input of gate and up, what the activation keeps, the two factors and their product."""
    config = batch.config
    return (
        batch.linear_inputs(config.n_embd, layers=2)
        + kept_bytes("activation", config.activation or "silu", batch)
        + 3 * batch.tokens * batch.d_ff * batch.e
    )


# The model


def block_bytes(batch: MicroBatch, letter: str) -> int:
    """What a block with this mixer keeps: its parts, the masks of the dropouts into the residual stream, and cast
    weights.

    Tensor-parallel ranks share all of it but a mask that is the same for all heads, and the inputs of the mixer and the
    FFN, which each gathers and keeps whole (Korthikanti et al. 2022, section 4.2.2, would keep the part and gather
    again).
    """
    config, has_ffn = batch.config, batch.config.has_ffn(letter)
    halves = 1 + has_ffn
    divided = halves * (
        kept_bytes("normalization", config.normalization, batch)
        + batch.dropout_mask(batch.tokens * config.n_embd, batch.e)
    )
    divided += kept_bytes("mixer", MIXERS[letter], batch)
    if has_ffn:
        divided += kept_bytes("ffn_type", config.ffn_type, batch)
    if batch.tensor == 1:
        return batch.weight_copies(letter) + divided
    ffn_inputs = 1 if config.ffn_type == "standard" else 2
    whole = batch.linear_inputs(config.n_embd, layers=3) + batch.linear_inputs(config.n_embd, layers=ffn_inputs)
    whole += mask_of_all_heads(batch, MIXERS[letter])
    return batch.weight_copies(letter) + (divided - whole) // batch.tensor + whole


def activation_bytes(batch: MicroBatch, checkpointing: bool) -> int:
    """What is kept at the end of the forward pass: token ids, positions, blocks, final norm.

    With checkpointing, of the blocks only their inputs, and then the larger of what one of them keeps while it is
    computed again and the cast weights of all, which autocast holds until the loss is there.
    """
    config = batch.config
    outside = 8 * batch.tokens + batch.dropout_mask(batch.stream_part, 4)
    outside += kept_bytes("position_encoding", config.position_encoding, batch)
    if config.norm_position == "pre":
        outside += kept_bytes("normalization", config.normalization, batch) // batch.tensor
    layers = {letter: config.layers_with(letter) for letter in MIXERS}
    layers = {letter: count for letter, count in layers.items() if np.any(count)}
    blocks = {letter: block_bytes(batch, letter) for letter in layers}
    if not checkpointing:
        return outside + sum(layers[letter] * kept for letter, kept in blocks.items())
    inputs = config.n_layer * 4 * batch.stream_part
    if config.position_encoding in _BIASES_SCORES:
        inputs += 4 * config.n_head * config.block_size**2  # one for all blocks
    # A block computed again shares its input with the checkpoint, unless it only keeps casts of it.
    again = functools.reduce(larger, (kept * (layers[letter] > 0) for letter, kept in blocks.items()))
    again = again - (4 * batch.stream_part if config.norm_position == "pre" or batch.e == 4 else 0)
    return outside + inputs + larger(again, sum(layers[letter] * batch.weight_copies(letter) for letter in layers))


def loss_rows(vocab_size: int, width: Any) -> Any:
    """Tokens whose logits and loss are computed at a time (components/cross_entropy.py).

    Every time, the gradient of the head's weight is added to, as large as it is for however few tokens: for 333 of
    them, an H100 took longer to add than to compute what is added (docs/performance.md). Hence at least LOSS_ROWS, but
    no more than the head is wide, beyond which their logits would be larger than that gradient.
    """
    return larger(CHUNK_BYTES // (4 * vocab_size), smaller(width, LOSS_ROWS))


def loss_bytes(batch: MicroBatch) -> int:
    """What the head and its loss hold while they run (components/cross_entropy.py): hidden states and their gradient,
    the gradient of the head's weight, a cast of that weight, and one chunk's rows and logits.

    A chunk is at its largest either in its softmax, with as much scratch as logits, or at the products with its
    logits' gradient, which are made (and cast to float32) apart from the gradients that they are added to.
    """
    config, e = batch.config, batch.e
    vocab_size = (config.vocab_size or 0) // batch.tensor
    table = vocab_size * config.n_embd
    rows = smaller(batch.tokens, loss_rows(vocab_size, config.n_embd))
    cast = 0 if e == 4 else e
    softmax = rows * vocab_size * 8
    product = rows * vocab_size * (4 + cast) + larger(rows * config.n_embd * e, table * (4 + cast))
    chunk = rows * config.n_embd * cast + larger(softmax, product)
    return 2 * batch.tokens * config.n_embd * 4 + table * (4 + cast) + chunk


def rank_memory(config: ModelArchitectureConfig, run: RunConfig, world_size: int, dtype: str) -> dict[str, int]:
    """Bytes of the first of `world_size` ranks, by part, for `run`'s strategy, micro-batches and checkpointing; the
    others hold as much, or less where rows do not divide by the ranks.

    `state_memory` and `working_memory` say what the parts are. Their sum is an upper bound of what is held at once:
    gradients fill up while activations are freed. PyTorch, its allocator and the data come on top. `dtype` is the
    compute dtype. Raises UserError for an unknown vocabulary or a component whose memory is not known.
    """
    mesh, e = mesh_of(run, world_size), COMPUTE_BYTES[dtype]
    return state_memory(parameters(config), run, mesh, e) | working_memory(config, run, mesh, e)


def state_memory(whole: Parameters, run: RunConfig, mesh: Mesh, e: int) -> dict[str, int]:
    """`weights`, `gradients` and `optimizer` (AdamW's two moments) are float32. ZeRO-1 divides the last, FSDP all of
    them (in main memory if they are offloaded: OFFLOADED), over the ranks of one replica; tensor parallelism divides
    them before. `gathered` is what FSDP brings together to compute: beside tensor parallelism replicas are exchanged
    through it, too, and then all weights are there twice."""
    own = whole.of_tensor_rank(mesh.tensor)
    blocks, root = (elements(group, mesh.shards) for group in (own.blocks, own.root))
    state = blocks + root
    moments = elements(own.all, mesh.data) if run.use_zero1 else state
    parts = {"weights": 4 * state, "gradients": 4 * state, "optimizer": 8 * moments}
    if run.use_fsdp:
        parts["gathered"] = _gathered(own, mesh.shards, run, e)
    elif mesh.tensor > 1 and mesh.data > 1:
        keeping = dataclasses.replace(run, fsdp_reshard_after_forward=False)
        parts["gathered"] = _gathered(own, mesh.shards, keeping, e=4)
    return parts


def _gathered(own: Parameters, shards: int, run: RunConfig, e: int) -> int:
    """Of what lies outside of the blocks' mixers and FFNs: that, whole, in float32, and its gradient; as gathered, the
    weights of the block that computes and of the one that is fetched ahead, the largest, or of all blocks if they are
    not given back; and a block's gradients, in that dtype and in the one they are reduced in."""
    root = shards * elements(own.root, shards)
    sizes = {letter: gathered_bytes(letter, e) * own.block(letter, shards) for letter in own.kinds}
    block = functools.reduce(larger, sizes.values())
    weights = (2 - (own.layers == 1)) * block
    if not run.fsdp_reshard_after_forward:
        weights = sum(own.counts[letter] * size for letter, size in sizes.items())
    return 8 * root + weights + block + REDUCE_BYTES[run.fsdp_reduce_dtype] * own.largest_block(shards)


def working_memory(config: ModelArchitectureConfig, run: RunConfig, mesh: Mesh, e: int) -> dict[str, int]:
    """`activations` are those at the end of a forward pass, `logits` what the head and its loss add to them. Tensor
    parallelism divides them, too, but for what each rank gathers of them."""
    batch = MicroBatch(config, run.batch_size, e, mesh.tensor, weights_are_cast=run.use_fsdp)
    return {"activations": activation_bytes(batch, run.activation_checkpointing), "logits": loss_bytes(batch)}


def training_memory(
    config: ModelArchitectureConfig, batch_size: int, dtype: str, activation_checkpointing: bool = False
) -> dict[str, int]:
    """`rank_memory` of one process, which shares nothing."""
    run = RunConfig(batch_size=batch_size, activation_checkpointing=activation_checkpointing)
    return rank_memory(config, run, 1, dtype)
