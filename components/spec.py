"""What a component is and costs, without PyTorch: the classes that the specs of all rooms are made from.

A spec states its parameters; what is arithmetic follows from them: their number, the FLOPs of matrix products, what
ranks hold and send of them. Beside them it states FLOPs that are no product with a parameter, the bytes that its
backward pass keeps, and what decoding remembers.

Conventions: a multiply-add is 2 FLOPs; matrix products count, as do attention scores and their product with the values,
convolutions, and what enters and leaves a state; norms, activations, rotations, decays and look-ups do not. Attention
is counted in full (S x S); `masked` is what the causal convention leaves out.

A `config` is a ModelArchitectureConfig, with a layer's own values where the component is in a layer. Every formula is
plain arithmetic on its keys, in integers, and takes the arrays of a search's grid (planner/space.py) as well.
"""

import dataclasses
from typing import Any, ClassVar

from common.arrays import product
from common.errors import UserError
from common.keys import key, keys_of

Config = Any
GRADIENT_IN_PART = ("sequence", "heads")  # of Weights.divided: ranks have all of them, and add up their gradients


@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters of one shape, by their names in the module: matrices (rows, columns), vectors (rows,), or stacks of
    matrices (copies, rows, columns).

    `multiplies`: a token is multiplied by them, 2 FLOPs an element. `met`: how many, of how many, a token meets.
    `divided`: what tensor-parallel ranks have of them: other rows, other columns, or all, and a part of the gradient,
    for other parts of the `sequence` or for other `heads`; "": all. Vectors that are divided, and are no biases, are
    what a module of their own returns, unless the component sums parts. `in_float32`: they multiply in it, whatever the
    compute dtype. `writes`: their product is added to the residual stream, for which they start smaller. `fused`: the
    rows of each of several linear layers that lie in one matrix, one below the other. `fed_by`: the modules within the
    component that their input comes through, if it is not the component's own (of those that write, all before them);
    `by_expert`: the first dimension
    is of experts, which expert_parallel divides. `keeps_cast`: the copy in the compute dtype is kept for the backward
    pass, as autocast does.
    `part`: what they are counted under, if not under their component's part.
    """

    names: tuple[str, ...]
    shape: tuple[Any, ...]
    multiplies: bool = False
    met: tuple[int, int] = (1, 1)
    divided: str = ""
    writes: bool = False
    part: str | None = None
    in_float32: bool = False
    fused: tuple[Any, ...] = ()
    fed_by: tuple[str, ...] = ()
    by_expert: bool = False
    keeps_cast: bool = True

    @property
    def size(self) -> Any:
        """Elements."""
        one = product(self.shape)
        return one if len(self.names) == 1 else len(self.names) * one

    @property
    def are_matrices(self) -> bool:
        """Whether they are linear layers, or stacks of them, to an optimizer that takes matrices: no tables, whose rows
        are looked up, no vectors or convolutions, and no routers and gates of one output, which choose in float32."""
        return self.multiplies and not self.in_float32

    @property
    def rows_of_matrices(self) -> tuple[Any, ...]:
        """The rows of each linear layer in one matrix."""
        return self.fused or (self.shape[-2],)

    def of_these_met(self, count: Any) -> Any:
        """The share that a token meets, of something that all of them have."""
        return count if self.met == (1, 1) else count * self.met[0] // self.met[1]


def matrices(
    names: str | tuple[str, ...], rows: Any, columns: Any, bias: bool = False, divided: str = "", **more: Any
) -> list[Weights]:
    """Linear layers of one shape, with the names of their modules, from `columns` inputs to `rows` outputs. A bias is
    divided with the rows; ranks that divide columns share it."""
    names = (names,) if isinstance(names, str) else names
    found = [Weights(tuple(f"{name}.weight" for name in names), (rows, columns), True, divided=divided, **more)]
    if bias:
        of_bias = {
            **more,
            "writes": False,
            "fused": (),
            "fed_by": (),
            "divided": "" if divided == "columns" else divided,
        }
        found.append(Weights(tuple(f"{name}.bias" for name in names), (rows,), **of_bias))
    return found


def vectors(names: str | tuple[str, ...], size: Any, **more: Any) -> list[Weights]:
    """Vectors of one size, by their names."""
    return [Weights((names,) if isinstance(names, str) else names, (size,), **more)]


@dataclasses.dataclass(frozen=True)
class Product:
    """Forward FLOPs per token that are no product with a parameter, under the `part` they are listed as."""

    part: str
    flops: Any
    masked: Any = 0


@dataclasses.dataclass(frozen=True)
class AddedUp:
    """Numbers a token that tensor-parallel ranks add up within a component, in the compute dtype or in float32, and
    again their gradients. `made_of`: the parameters that they come out of, by their names in the module."""

    numbers: Any
    made_of: tuple[str, ...]
    in_float32: bool = False


@dataclasses.dataclass(frozen=True)
class Remembered:
    """What one layer keeps of a sequence while it is continued. Elements are in the compute dtype, or in float32; of
    `whole` of them, none is of a single head, so that every tensor-parallel rank would have it."""

    part: str
    elements: int
    in_float32: bool = False
    whole: int = 0


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """What a formula of kept bytes is given: B sequences of T tokens, `e` bytes an element in the compute dtype.

    Activations in the residual stream are float32; matrix products and what follows them are in the compute dtype: 4
    bytes, or 2 under autocast, which casts weights and inputs.
    """

    config: Config
    batch_size: int
    e: int
    tensor: int = 1  # ranks that share every layer
    weights_are_cast: bool = False  # by FSDP, in gathering them: autocast has nothing to copy
    has_documents: bool = False  # that are kept apart: each sequence has a mask, and states forget, of its own
    experts: int = 1  # ranks that share the experts of every layer
    before: int = 0  # tokens of a sequence that other ranks have, and that its own T, the next ones, may meet
    adapters: Any = None  # components.lora.spec.Adapters, where these alone are trained
    has_codes: bool = False  # in place of matrices, of which nothing is kept in the compute dtype

    def of_layer(self, config: Config) -> "MicroBatch":
        """The same with a layer's own values."""
        return self if config is self.config else dataclasses.replace(self, config=config)

    @property
    def tokens(self) -> int:
        return self.batch_size * self.config.block_size

    @property
    def keys(self) -> int:
        """Tokens of a sequence that the last one of T may meet."""
        return self.before + self.config.block_size

    def within(self, window: int | None) -> "MicroBatch":
        """The same where a token meets the last `window`, its own included."""
        return (
            self
            if window is None or not self.before
            else dataclasses.replace(self, before=min(self.before, window - 1))
        )

    def dropout_mask(self, elements: int, e: int) -> int:
        """Bytes of the factor of every element, kept in the dtype of dropout's input."""
        return elements * e if self.config.dropout else 0

    def linear_inputs(self, width: int, layers: int = 1) -> int:
        """Bytes of the float32 input of `layers` linear layers: one tensor for all, but autocast casts it for each."""
        return self.tokens * width * (4 if self.e == 4 else self.e * layers)

    @property
    def stream_part(self) -> int:
        """Elements of the residual stream that this rank has: with tensor parallelism a part of the sequence."""
        return self.tokens * self.config.n_embd // self.tensor


@dataclasses.dataclass(frozen=True)
class Routing:
    """The experts of a layer: how many a token meets, shared ones among them, of how many, and the width of one over
    n_embd. Numbers, or arrays of a search's grid."""

    met: Any
    of: Any
    width: Any


class Spec:
    """What every component states. Class attributes that are made by `common.keys.key` are its own keys."""

    kind: ClassVar[str]
    name: str
    names: ClassVar[tuple[str, ...]] = ()  # of several components that are the same but for their name
    label: str | None = None  # in the name of an architecture; None: the component's name
    what: ClassVar[str | None] = None  # that has its keys, in words; None: the component's name
    # What its parameters are counted under, its matrix products, and its other products: of what another component
    # contains, as that one's are.
    part: ClassVar[str]
    flops_part: ClassVar[str]
    products_parts: ClassVar[tuple[str, ...]] = ()
    # Keys whose values tensor-parallel ranks must divide; None: they cannot share it, and `not_shared` says why.
    divides: ClassVar[tuple[str, ...] | None] = ()
    not_shared: ClassVar[str] = (
        "tensor_parallel does not know how ranks share {}: take use_fsdp, which divides any layer"
    )

    def __init__(self, name: str | None = None):
        self.name = name or self.name

    def check(self, config: Config) -> None:
        """Raises UserError for values that the component cannot be made of."""

    def derived(self, config: Config) -> dict[str, Any]:
        """Keys that follow from others, as numbers. Raises UserError for values that contradict each other."""
        return {}

    def idle(self, config: Config) -> dict[str, str]:
        """Those of its keys that change nothing beside the values of others, and why."""
        return {}

    def function(self, config: Config) -> dict[str, Any]:
        """The values of its keys that decide the function, in a form that is one for equal functions."""
        return {name: getattr(config, name) for name, own in keys_of(type(self)).items() if own.changes == "function"}

    def within(self, config: Config) -> dict[str, "Spec"]:
        """The components that this one contains, by the name of their module in it."""
        return {}

    def weights(self, config: Config) -> list[Weights]:
        """All parameters of the component but those of what it contains."""
        return []

    def products(self, config: Config, length: int) -> list[Product]:
        """What is multiplied beside the weights, in sequences of `length` tokens."""
        return []

    def kept(self, batch: MicroBatch) -> int:
        """Bytes that one instance keeps for backward. What two consumers keep counts once. Raises UserError where
        nobody has written that down."""
        raise UserError(f"the memory of {self.kind}={self.name!r} is not known: its spec has no method kept")

    def is_shared(self, config: Config) -> bool:
        """Whether tensor-parallel ranks can share it."""
        return self.divides is not None

    def shared_sizes(self, config: Config) -> dict[str, Any]:
        """What tensor-parallel ranks must divide, by the key or the product of keys that it is."""
        return {name: getattr(config, name) for name in self.divides or ()}

    def added_up(self, config: Config) -> list[AddedUp]:
        """What tensor-parallel ranks add up within it, beside its output."""
        return []

    def all_weights(self, config: Config) -> list[Weights]:
        """The parameters of the component with what it contains, under their names in its module."""
        found = list(self.weights(config))
        for attribute, inner in self.within(config).items():
            for weights in inner.all_weights(config):
                names = tuple(f"{attribute}.{name}" for name in weights.names)
                fed_by = tuple(f"{attribute}.{name}" for name in weights.fed_by)
                found.append(dataclasses.replace(weights, names=names, fed_by=fed_by))
        return found

    def all_products(self, config: Config, length: int) -> list[Product]:
        """The products of the component with what it contains."""
        inner = (product for part in self.within(config).values() for product in part.all_products(config, length))
        return [*self.products(config, length), *inner]


class Norm(Spec):
    """(B, T, D) -> (B, T, D), before or after every mixer and FFN; ranks see other parts of the sequence."""

    kind = "normalization"
    is_zero_centred: ClassVar[bool] = False  # it multiplies by 1 + weight, and so do the norms within mixers
    part, flops_part = "norms", "other"

    def all_weights(self, config: Config) -> list[Weights]:
        return [dataclasses.replace(weights, divided="sequence") for weights in super().all_weights(config)]


class Activation(Spec):
    """Elementwise, in an FFN. Its kept bytes are those besides its output, which the layer after it keeps."""

    kind = "activation"

    def is_shared(self, config: Config) -> bool:
        return not self.weights(config)  # whose gradient every rank would have a part of


class Position(Spec):
    """How tokens know their order. One instance serves the whole model."""

    kind = "position_encoding"
    part, flops_part = "position", "other"
    depends_on: ClassVar[tuple[str, ...]] = ()  # keys that a layer may have of its own, and then a sharing of its own
    acts_in: ClassVar[str | None] = "embedding"  # or in the `mixers` that use positions, or nowhere
    rotates: ClassVar[bool] = False  # queries and keys
    biases_scores: ClassVar[bool] = False
    keeps_places: ClassVar[bool] = False  # of tokens in their documents, for the backward pass

    def turns_by_length(self, config: Config) -> bool:
        """Whether what it does to a token depends on how long its text is, in texts of up to block_size tokens."""
        return False

    def check_heads(self, config: Config) -> None:
        """Raises UserError for heads of a head_dim that it cannot act in: a mixer gives its own width as one."""


class Half(Spec):
    """A half of a block: a mixer or an FFN."""

    divides: ClassVar[tuple[str, ...] | None] = None
    # Keys that a preset's values of others give way to
    replaces: ClassVar[dict[str, tuple[str, ...]]] = {}
    sums_parts: ClassVar[bool] = False  # tensor-parallel ranks call it whole, with their parts of its parameters, and
    # add up what it returns: components/parts.py

    def is_shared(self, config: Config) -> bool:
        """Whether each of its matrices is divided, and no vector is left of which every rank has a part of the
        gradient unawares: the biases of divided matrices are divided, or added once, with them. Of one that sums parts,
        every parameter says what ranks have of it."""
        weights = self.weights(config)
        if self.sums_parts:
            return super().is_shared(config) and all(one.divided for one in weights)
        modules = {name.rpartition(".")[0] for one in weights if one.multiplies or one.divided for name in one.names}
        others = {name.rpartition(".")[0] for one in weights if not one.multiplies for name in one.names}
        divided = all(one.divided for one in weights if one.multiplies)
        return super().is_shared(config) and divided and others <= modules - {""}

    def whole(self, batch: MicroBatch) -> int:
        """The kept bytes that tensor-parallel ranks do not share: the input that they gather."""
        dividing = (len(one.names) for one in self.weights(batch.config) if one.multiplies and one.divided == "rows")
        return batch.linear_inputs(batch.config.n_embd, layers=sum(dividing))


class Mixer(Half):
    """What moves information between tokens, (B, T, D) -> (B, T, D)."""

    kind = "mixer"
    letter: ClassVar[str | None] = None  # in layer_pattern
    is_default: ClassVar[bool] = False  # what every layer is, unless a key says otherwise
    title: ClassVar[str]  # in words
    uses_positions: ClassVar[bool] = False
    has_heads: ClassVar[bool] = False  # n_head stands in the architecture's name
    has_constant_state: ClassVar[bool] = False  # what it remembers does not grow with the text
    # What it is handed of several documents in a sequence, which it keeps apart: `hidden` or `places`
    # (components/documents.py); None: it would mix them
    takes_documents: ClassVar[str | None] = None
    takes_context: ClassVar[bool] = False  # goes on where another rank's tokens end (components/context.py)
    in_float32: ClassVar[bool] = False  # FSDP gathers its layer's weights unrounded
    portable: ClassVar[dict[str, Any]] = {}  # values of its keys with which it runs on any machine
    # A key that writes the layers' letters in another way, and how: see `pattern`.
    pattern_key: ClassVar[str | None] = None

    @property
    def flops_part(self) -> str:  # type: ignore[override]
        return f"{self.part}_projections"

    def suffix(self, config: Config) -> list[str]:
        """Parts of the architecture's name, after its width."""
        return []

    def pattern(self, n_layer: int, value: Any) -> str:
        """A letter for each layer, from the value of `pattern_key`. Raises UserError for one that makes none."""
        raise NotImplementedError

    def counts(self, n_layer: Any, value: Any) -> dict[str, Any]:
        """How often each letter is in `pattern`, for arrays of layers too."""
        raise NotImplementedError

    def position_width(self, config: Config) -> Any:
        """The width, of a head, that a position encoding acts in, where it `uses_positions`."""
        return config.head_dim

    def width_step(self, config: Config) -> int:
        """Every n_embd that it can have is a multiple of this."""
        return 1

    def hands_on(self, config: Config) -> dict[str, dict[str, Any]]:
        """What the first layer that has it hands to all others that have it, by the name of their argument: the keys
        whose product is its size for a token, which are equal in all of them."""
        return {}

    def remembers(self, config: Config, length: int, with_current: bool) -> list[Remembered]:
        """What a sequence of `length` tokens leaves for the next one; `with_current`: a convolution with a place for
        that one's own, as in the caches of transformers."""
        return []

    def decoding_difference(self, config: Config, length: int) -> int:
        """FLOPs that decoding the last of `length` tokens adds to a token's share of a forward pass, or saves."""
        return 0

    def palm_scores(self, config: Config, length: int) -> int:
        """PaLM's 12 H Q T, training FLOPs per token (Chowdhery et al. 2022, appendix B): H heads of Q, T tokens."""
        return 0


class FFN(Half):
    """What each token goes through alone, (B, T, D) -> (B, T, D)."""

    kind = "ffn_type"
    what = "an FFN"
    part = flops_part = "ffn"
    letter: ClassVar[str | None] = None  # in ffn_pattern
    is_gated: ClassVar[bool] = False

    ffn_type: str = key("standard", "standard, swiglu, swiglu_clamped, geglu or geglu_tanh", group="Architecture: FFN")

    def adds(self, config: Config) -> tuple[str, ...]:
        """The names of what it adds to the loss in training."""
        return ()

    def loads(self, config: Config) -> int:
        """Of how many experts it says how often they are chosen."""
        return 0

    def averaged(self, config: Config, batch_size: int) -> tuple[int, int]:
        """Numbers whose mean is taken over the ranks that divide a sequence: without a gradient, and with one."""
        return 0, 0

    def routing(self, config: Config) -> Routing | None:
        """Its experts, as laws of experts see them; None where every token meets all of it."""
        return None

    def words(self, config: Config) -> str:
        """What it is called in the name of an architecture."""
        return self.label or self.name
