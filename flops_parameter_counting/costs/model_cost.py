"""What a whole model costs: parameters and FLOPs by part, in the two attention conventions.

All of it follows from what the specs of its components state (components/spec.py). The planner, the startup report and
the MFU all read these numbers. Nothing is allocated and torch is not imported.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from common.errors import UserError
from components import registry
from components.spec import Spec, Weights
from model_config import Layer, ModelArchitectureConfig

CONVENTIONS = ("full", "causal")


@dataclasses.dataclass(frozen=True)
class Place:
    """A component in a model: under which name in its block, or outside of all blocks, and in how many layers."""

    name: str
    spec: Spec
    config: ModelArchitectureConfig  # with the layer's own values
    count: Any


def places_of(layer: Layer, config: ModelArchitectureConfig) -> list[Place]:
    """The components of a block, in the order of its forward pass, each once."""
    own, norm = config.of(layer), config.component("normalization")
    found = [Place("mixer_norm", norm, own, 1), Place("mixer", layer.mixer_spec, own, 1)]
    if layer.ffn_spec is not None:
        found += [Place("ffn_norm", norm, own, 1), Place("ffn", layer.ffn_spec, own, 1)]
    return found


def places_outside(config: ModelArchitectureConfig) -> list[Place]:
    """The components outside of all blocks."""
    found = [Place("position", config.component("position_encoding"), config, 1)]
    if config.norm_position == "pre":  # the final norm belongs to pre-norm
        found.append(Place("final_norm", config.component("normalization"), config, 1))
    return found


def all_places(config: ModelArchitectureConfig) -> Iterator[Place]:
    """Every component of a model, those of equal layers together."""
    yield from places_outside(config)
    for layer, count in config.layer_counts.items():
        for place in places_of(layer, config):
            yield dataclasses.replace(place, count=count)


def tables(config: ModelArchitectureConfig) -> list[Weights]:
    """The embedding and, where it is not tied to it, the LM head."""
    if config.vocab_size is None:
        raise UserError("vocab_size is not known: prepare the dataset, or give --vocab_size")
    shape = (config.vocab_size, config.n_embd)
    embedding = Weights(("embedding.weight",), shape, divided="rows", part="embedding")
    head = Weights(("lm_head.weight",), shape, divided="rows", part="lm_head")
    return [embedding] if config.weight_tying else [embedding, head]


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

    @property
    def n_params(self) -> int:
        """All parameters, tied ones once."""
        return sum(self.parameters.values())

    @property
    def n_active(self) -> int:
        """Parameters that a token meets, tied ones once."""
        return sum(self.active.values())

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


def model_cost(config: ModelArchitectureConfig, sequence_length: int | None = None) -> ModelCost:
    """The cost of a model at a sequence length (None: its block size).

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
        for product in of_spec.all_products(place.config, length):
            add(flops, product.part, place.count * product.flops)
            add(masked, product.part, place.count * product.masked)
    for table in tables(config):
        add(parameters, table.part or "", table.size)
    parameters["lm_head"] = parameters.pop("lm_head", 0)
    flops["lm_head"] = 2 * tables(config)[0].size
    active = {part: count - idle[part] if part in idle else count for part, count in parameters.items()}
    return ModelCost(parameters, active, flops, masked)
