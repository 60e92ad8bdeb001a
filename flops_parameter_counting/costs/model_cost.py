"""What a whole model costs: parameters and FLOPs by part, in the two attention conventions.

The planner, the startup report and the MFU all read these numbers. Nothing is allocated and torch is not imported.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from common.errors import UserError
from flops_parameter_counting.costs.component_costs import ComponentCost, component_cost, times, total
from model_config import ATTENTION, MIXERS, STATE_SPACES, ModelArchitectureConfig

CONVENTIONS = ("full", "causal")


@dataclasses.dataclass(frozen=True)
class ModelCost:
    """Parameters by part (tied ones once, under `embedding`), and forward FLOPs per token by part.

    `flops` is in the full convention (every query meets all S keys, or all of its window, as PaLM, nanoGPT and
    Chinchilla count); the causal one leaves out the `masked` part of `attention_scores`, half of it without a window.
    """

    parameters: dict[str, int]
    flops: dict[str, int]
    masked: int

    @property
    def n_params(self) -> int:
        """All parameters, tied ones once."""
        return sum(self.parameters.values())

    def forward_flops(self, convention: str = "full") -> int:
        """FLOPs per token of a forward pass over whole sequences."""
        if convention not in CONVENTIONS:
            raise ValueError(f"convention {convention!r} is none of {CONVENTIONS}")
        return sum(self.flops.values()) - (self.masked if convention == "causal" else 0)

    def training_flops(self, convention: str = "full") -> int:
        """FLOPs per token of forward and backward: the backward pass takes twice the forward's."""
        return 3 * self.forward_flops(convention)

    @property
    def attention_ffn_ratio(self) -> float | None:
        """FLOPs of attention (projections and scores, full) over those of the FFN; None without one of them."""
        attention = self.flops["attention_projections"] + self.flops["attention_scores"]
        return attention / self.flops["ffn"] if attention and self.flops["ffn"] else None


def model_cost(config: ModelArchitectureConfig, sequence_length: int | None = None) -> ModelCost:
    """The cost of a model at a sequence length (None: its block size).

    Raises UserError for an unknown component or a vocabulary that is not known.
    """
    if config.vocab_size is None:
        raise UserError("vocab_size is not known: prepare the dataset, or give --vocab_size")
    length = config.block_size if sequence_length is None else sequence_length

    def cost(kind: str, name: str) -> ComponentCost:
        return component_cost(kind, name, config, length)

    def mixers(letters: Sequence[str]) -> ComponentCost:
        """Of all layers with one of these mixers."""
        counts = [(config.layers_with(letter), MIXERS[letter]) for letter in letters]
        return total(*(times(layers, cost("mixer", mixer)) for layers, mixer in counts if np.any(layers)))

    norm, ffn_layers = cost("normalization", config.normalization), config.ffn_layers
    attention, state_spaces = mixers(ATTENTION), mixers(STATE_SPACES)
    ffn = ComponentCost()
    if np.any(ffn_layers):
        of_one = total(cost("ffn_type", config.ffn_type), cost("activation", config.activation or "gelu"))
        ffn = times(ffn_layers, of_one)
    position = cost("position_encoding", config.position_encoding)
    cost("attention_backend", config.attention_backend)  # free, but their names are checked like the others
    cost("mamba_backend", config.mamba_backend)
    norms = config.n_layer + ffn_layers + (config.norm_position == "pre")  # the final norm belongs to pre-norm
    table = config.vocab_size * config.n_embd
    return ModelCost(
        parameters={
            "embedding": table,
            "position": position.parameters,
            "attention": attention.parameters,
            "mamba": state_spaces.parameters,
            "ffn": ffn.parameters,
            "norms": norms * norm.parameters,
            "lm_head": 0 if config.weight_tying else table,
        },
        flops={
            "attention_projections": attention.matmul,
            "attention_scores": attention.scores,
            "mamba_projections": state_spaces.matmul,
            "convolution": state_spaces.convolution,
            "scan": state_spaces.scan,
            "ffn": ffn.matmul,
            "other": norms * norm.matmul + position.matmul,
            "lm_head": 2 * table,
        },
        masked=attention.masked,
    )
