"""What a whole model costs: parameters and FLOPs by part, in the two attention conventions.

All of it follows from what the specs of its components state (components/spec.py). The planner, the startup report and
the MFU all read these numbers. Nothing is allocated and torch is not imported.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from common.errors import UserError
from components import registry
from components.lora.spec import PART, Adapters
from components.spec import Product, Routing, Spec, Weights
from model_config import Layer, ModelArchitectureConfig

CONVENTIONS = ("full", "causal")


@dataclasses.dataclass(frozen=True)
class Place:
    """A component in a model: under which name in its block, or outside of all blocks, and in how many layers."""

    name: str
    spec: Spec
    config: ModelArchitectureConfig  # with the layer's own values
    count: Any


def places_of(layer: Layer, config: ModelArchitectureConfig, count: Any = 1) -> list[Place]:
    """The components of a block, in the order of its forward pass, each in `count` layers."""
    own, norm, found = config.of(layer), config.component("normalization"), []
    for name, spec in zip(("mixer", "ffn"), layer.specs, strict=False):
        norms = [Place(f"{name}_norm", norm, own, count), Place(f"{name}_out_norm", norm, own, count)]
        before = norms[:1] if config.norms_before else []
        after = norms[1:] if before and config.norms_inside else [] if before else norms[:1]
        found += [*before, Place(name, spec, own, count), *after]
    return found


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a rank computes of a model: which of the blocks (None: all), whether they are the first, with the embeddings
    before them, and whether they are the last, with the head after them. Without a pipeline it is the WHOLE."""

    blocks: range | None = None
    is_first: bool = True
    is_last: bool = True
    index: int = 0

    def counts(self, config: ModelArchitectureConfig) -> dict[Layer, Any]:
        """Its different layers, and how many there are of each."""
        if self.blocks is None:
            return config.layer_counts
        return dict(collections.Counter(config.layers[index] for index in self.blocks))

    def n_blocks(self, config: ModelArchitectureConfig) -> Any:
        return config.n_layer if self.blocks is None else len(self.blocks)

    def last_layer(self, config: ModelArchitectureConfig) -> Layer:
        return config.last_layer if self.blocks is None else config.layers[self.blocks[-1]]


WHOLE = Stage()


def places_outside(config: ModelArchitectureConfig, stage: Stage = WHOLE) -> list[Place]:
    """The components outside of all blocks."""
    found = [Place("position", config.component("position_encoding"), config, 1)] if stage.is_first else []
    if config.has_final_norm and stage.is_last:
        found.append(Place("final_norm", config.component("normalization"), config, 1))
    return found


def all_places(config: ModelArchitectureConfig) -> Iterator[Place]:
    """Every component of a model, those of equal layers together."""
    yield from places_outside(config)
    for layer, count in config.layer_counts.items():
        yield from places_of(layer, config, count)


Frozen = Callable[[str], bool]  # whether the parameter of this name is not trained
DocumentLengths = Mapping[int, float]  # the share of all tokens that is in documents of each length


@dataclasses.dataclass(frozen=True)
class Named:
    """A component's parameters under their full names, and its place, in which block (None: outside of them)."""

    weights: list[Weights]
    place: Place | None = None
    block: int | None = None
    is_head: bool = False


def named_weights(
    config: ModelArchitectureConfig, stage: Stage = WHOLE, adapters: Adapters | None = None
) -> Iterator[Named]:
    """Every component of a model, or of a stage of it, in the order of the forward pass: the embedding, the position
    encoding, the blocks, each matrix of which an adapter may follow, the final norm, and the head, which may be the
    embedding."""
    found, outside = tables(config, stage), places_outside(config, stage)
    if stage.is_first:
        yield Named(found[:1])
        yield Named(_renamed(outside[0], ""), outside[0])
    for index in range(len(config.layers)) if stage.blocks is None else stage.blocks:
        for place in places_of(config.layers[index], config):
            weights = _renamed(place, f"blocks.{index}.")
            yield Named(weights if adapters is None else adapters.beside(weights), place, index)
    if stage.is_last:
        for place in outside[stage.is_first :]:
            yield Named(_renamed(place, ""), place)
        yield Named(found[-1:], is_head=True)


def _renamed(place: Place, prefix: str) -> list[Weights]:
    weights = place.spec.all_weights(place.config)
    return [
        dataclasses.replace(one, names=tuple(f"{prefix}{place.name}.{name}" for name in one.names)) for one in weights
    ]


def parameter_names(config: ModelArchitectureConfig, adapters: Adapters | None = None) -> set[str]:
    """The names of all parameters."""
    found = named_weights(config, adapters=adapters)
    return {name for component in found for weights in component.weights for name in weights.names}


def gradients(
    config: ModelArchitectureConfig, frozen: Frozen | None, adapters: Adapters | None = None
) -> Iterator[tuple[Named, bool, bool]]:
    """Every component in the order of the forward pass, whether its input has a gradient, and whether its output: where
    it, or something before it, is trained."""
    of_input = False
    for found in named_weights(config, adapters=adapters):
        trained = (frozen is None or not frozen(name) for weights in found.weights for name in weights.names)
        of_output = of_input or any(trained)
        yield found, of_input, of_output
        of_input = of_output


@dataclasses.dataclass(frozen=True)
class TrainingFlops:
    """FLOPs per token of forward and backward, by part in the full convention, and those that the causal one leaves
    out."""

    by_part: dict[str, int]
    masked: int

    @property
    def by_convention(self) -> dict[str, int]:
        full = sum(self.by_part.values())
        return {"full": full, "causal": full - self.masked}


def training_flops(
    config: ModelArchitectureConfig,
    frozen: Frozen | None = None,
    documents: DocumentLengths | None = None,
    adapters: Adapters | None = None,
) -> TrainingFlops:
    """The FLOPs of training on sequences of block_size tokens, of one document each, or of `documents` kept apart. With
    adapters, `frozen` says that all but these are.

    The backward pass multiplies each product's other factor with the gradient of the result: for the gradient of a
    weight where it is trained, for that of an input where something before it is. So it takes twice the forward pass
    where everything is trained, as much where a frozen layer is passed through, and nothing below the first parameter
    that is trained. The lengths that DoRA divides by are not counted, as norms are not: B A, once a micro-batch.
    """
    cost = model_cost(config, documents=documents)
    if frozen is None:
        by_part = {part: with_backward(flops) for part, flops in cost.flops.items()}
        return TrainingFlops(by_part, with_backward(sum(cost.masked.values())))
    by_part, masked = dict(cost.flops), sum(cost.masked.values())
    if adapters is not None:
        by_part[PART] = 0
    for found, of_input, _ in gradients(config, frozen, adapters):
        spec = None if found.place is None else found.place.spec
        passed = Passed(found, of_input, frozen)
        for weights in found.weights:
            trained = sum(not frozen(name) for name in weights.names)
            if weights.multiplies or found.is_head:
                part = "lm_head" if spec is None else weights.part or spec.flops_part
                each = 2 * weights.of_these_met(weights.size // len(weights.names))
                forward = len(weights.names) * (part == PART)  # of the model's own it is in `cost`
                by_part[part] += each * (forward + trained + len(weights.names) * passed.to_input_of(weights))
        for product in [] if found.place is None else products_of(found.place, config.block_size, documents):
            by_part[product.part] += 2 * product.flops * passed.inside
            masked += 2 * product.masked * passed.inside
    return TrainingFlops(by_part, masked)


class Passed:
    """Where in a component gradients pass, since something before is trained."""

    def __init__(self, found: Named, of_input: bool, frozen: Frozen):
        place = None if found.place is None else found.place.name
        self.prefix = f"{place}." if found.block is None else f"blocks.{found.block}.{place}."
        self.of_input = of_input
        self.trained = [name for one in found.weights for name in one.names if not frozen(name)]
        last = tuple(f"{name.rpartition('.')[0]}." for one in found.weights if one.writes for name in one.names)
        # What products are given, and what writes
        self.inside = of_input or any(not name.startswith(last) for name in self.trained)

    def to_input_of(self, weights: Weights) -> bool:
        """Whether there is a gradient of what these multiply."""
        if weights.fed_by:
            before = tuple(f"{self.prefix}{one}." for one in weights.fed_by)
            return self.of_input or any(name.startswith(before) for name in self.trained)
        return self.inside if weights.writes else self.of_input


def tables(config: ModelArchitectureConfig, stage: Stage = WHOLE) -> list[Weights]:
    """The embedding and, where it is not tied to it, the LM head; of a stage, those that it has: the last has a tied
    embedding too."""
    if config.vocab_size is None:
        raise UserError("vocab_size is not known: prepare the dataset, or give --vocab_size")
    shape = (config.vocab_size, config.n_embd)
    embedding = Weights(("embedding.weight",), shape, divided="rows", part="embedding")
    head = Weights(("lm_head.weight",), shape, divided="rows", part="lm_head")
    if config.weight_tying:
        return [embedding] if stage.is_first or stage.is_last else []
    return [embedding] * stage.is_first + [head] * stage.is_last


def with_backward(forward: Any) -> Any:
    """FLOPs of forward and backward where everything is trained: backward multiplies twice for each product forward,
    once for the gradient of each factor."""
    return 3 * forward


@dataclasses.dataclass(frozen=True)
class ModelCost:
    """Parameters by part (tied ones once, under `embedding`), those that a token meets, and forward FLOPs per token by
    part.

    `flops` is in the full convention (every query meets all S keys, or all of its window, as PaLM, nanoGPT and
    Chinchilla count); the causal one leaves out what is `masked`, half of the attention scores without a window.
    """

    parameters: dict[str, int]
    active: dict[str, int]
    flops: dict[str, int]
    masked: dict[str, int]
    routing: Routing | None = None  # the mean of the layers that have experts

    @functools.cached_property
    def n_params(self) -> int:
        """All parameters, tied ones once."""
        return sum(self.parameters.values())

    @functools.cached_property
    def n_active(self) -> int:
        """Parameters that a token meets, tied ones once."""
        return self.n_params if self.active is self.parameters else sum(self.active.values())

    def flops_by_part(self, convention: str = "full") -> dict[str, int]:
        """FLOPs per token of a forward pass over whole sequences."""
        if convention not in CONVENTIONS:
            raise ValueError(f"convention {convention!r} is none of {CONVENTIONS}")
        if convention == "full":
            return self.flops
        return {part: flops - self.masked.get(part, 0) for part, flops in self.flops.items()}

    def forward_flops(self, convention: str = "full") -> int:
        """FLOPs per token of a forward pass over whole sequences."""
        return sum(self.flops_by_part(convention).values())

    def training_flops(self, convention: str = "full") -> int:
        """FLOPs per token of forward and backward."""
        return with_backward(self.forward_flops(convention))

    @property
    def attention_ffn_ratio(self) -> float | None:
        """FLOPs of attention (projections and scores, full) over those of the FFN; None without one of them."""
        attention = self.flops["attention_projections"] + self.flops["attention_scores"]
        return attention / self.flops["ffn"] if attention and self.flops["ffn"] else None


def products_of(place: Place, length: int, documents: DocumentLengths | None) -> list[Product]:
    """What a component multiplies beside its weights, per token of sequences of `length` tokens. Where documents are
    kept apart a token meets those of its own; what has a constant state computes as ever."""
    spec: Any = place.spec
    if not documents or getattr(spec, "has_constant_state", True):
        return spec.all_products(place.config, length)
    shares, of_lengths = documents.values(), [spec.all_products(place.config, own) for own in documents]

    def mean(values: Iterable[Any]) -> int:
        return round(sum(share * value for share, value in zip(shares, values, strict=True)))

    return [
        Product(of_each[0].part, mean(one.flops for one in of_each), mean(one.masked for one in of_each))
        for of_each in zip(*of_lengths, strict=True)
    ]


def model_cost(
    config: ModelArchitectureConfig, sequence_length: int | None = None, documents: DocumentLengths | None = None
) -> ModelCost:
    """The cost of a model at a sequence length (None: its block size), of one document each, or of `documents` that are
    kept apart in it.

    Raises UserError for a vocabulary that is not known.
    """
    length = config.block_size if sequence_length is None else sequence_length
    mixers, ffns = (
        [found for found in registry.specs(kind).values() if registry.has_module(kind, found.name)]
        for kind in ("mixer", "ffn_type")
    )
    # Parts of what can be trained stand in every log and table of costs, as 0 where a model has none
    parts = [found.part for found in (*mixers, *ffns)]
    parameters = dict.fromkeys(("embedding", "position", *parts, "norms"), 0)
    flops = dict.fromkeys([part for found in mixers for part in (found.flops_part, *found.products_parts)], 0)
    flops |= dict.fromkeys([part for found in ffns for part in (found.flops_part, *found.products_parts)], 0)
    flops["other"] = 0
    idle: dict[str, int] = {}
    masked: dict[str, int] = {}

    def add(to: dict[str, int], part: str, count: Any) -> None:
        to[part] = to.get(part, 0) + count

    for place in all_places(config):
        of_spec = place.spec
        for weights in of_spec.all_weights(place.config):
            size = place.count * weights.size
            met = weights.of_these_met(size)
            add(parameters, weights.part or of_spec.part, size)
            if met is not size:
                add(idle, weights.part or of_spec.part, size - met)
            if weights.multiplies:
                add(flops, weights.part or of_spec.flops_part, 2 * met)
        for product in products_of(place, length, documents):
            add(flops, product.part, place.count * product.flops)
            add(masked, product.part, place.count * product.masked)
    embedding, *head = tables(config)
    parameters["embedding"] += embedding.size
    parameters["lm_head"] = head[0].size if head else 0
    flops["lm_head"] = 2 * embedding.size
    active = {part: count - idle.get(part, 0) for part, count in parameters.items()} if idle else parameters
    return ModelCost(parameters, active, flops, masked, _routing(config))


def _routing(config: ModelArchitectureConfig) -> Routing | None:
    found = [
        (count, routing)
        for layer, count in config.layer_counts.items()
        if layer.ffn_spec is not None and (routing := layer.ffn_spec.routing(config.of(layer))) is not None
    ]
    if not found:
        return None
    layers = sum(count for count, _ in found)
    met, of, width = (
        sum(count * getattr(routing, name) for count, routing in found) / layers for name in ("met", "of", "width")
    )
    return Routing(met, of, width)
