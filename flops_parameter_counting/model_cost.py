"""What a whole model costs: parameters and FLOPs by part, in the two attention conventions.

The planner, the startup report and the MFU all read these numbers. Nothing is allocated and torch is not imported.
"""

import dataclasses

from errors import UserError
from flops_parameter_counting.component_costs import ComponentCost, component_cost, total
from model_config import ModelArchitectureConfig

CONVENTIONS = ("full", "causal")


@dataclasses.dataclass(frozen=True)
class ModelCost:
    """Parameters by part (tied ones once, under `embedding`), and forward FLOPs per token by part.

    `flops` is in the full convention (every query meets all S keys, as PaLM, nanoGPT and Chinchilla count);
    `causal` counts half of the part `attention_scores`.
    """

    parameters: dict[str, int]
    flops: dict[str, int]

    @property
    def n_params(self) -> int:
        """All parameters, tied ones once."""
        return sum(self.parameters.values())

    def forward_flops(self, convention: str = "full") -> int:
        """FLOPs per token of a forward pass over whole sequences."""
        if convention not in CONVENTIONS:
            raise ValueError(f"convention {convention!r} is none of {CONVENTIONS}")
        masked_half = self.flops["attention_scores"] // 2 if convention == "causal" else 0
        return sum(self.flops.values()) - masked_half

    def training_flops(self, convention: str = "full") -> int:
        """FLOPs per token of forward and backward: the backward pass takes twice the forward's."""
        return 3 * self.forward_flops(convention)

    @property
    def attention_ffn_ratio(self) -> float:
        """FLOPs of attention (projections and scores, full) over those of the FFN."""
        attention = self.flops["attention_projections"] + self.flops["attention_scores"]
        return attention / self.flops["ffn"]


def model_cost(config: ModelArchitectureConfig, sequence_length: int | None = None) -> ModelCost:
    """The cost of a model at a sequence length (None: its block size).

    Raises UserError for an unknown component or a vocabulary that is not known.
    """
    if config.vocab_size is None:
        raise UserError("vocab_size is not known: prepare the dataset, or give --vocab_size")
    length = config.block_size if sequence_length is None else sequence_length

    def cost(kind: str, name: str) -> ComponentCost:
        return component_cost(kind, name, config, length)

    norm = cost("normalization", config.normalization)
    mixer = cost("mixer", "attention")
    ffn = total(cost("ffn_type", config.ffn_type), cost("activation", config.activation or "gelu"))
    position = cost("position_encoding", config.position_encoding)
    cost("attention_backend", config.attention_backend)  # free, but its name is checked like the others
    norms = 2 * config.n_layer + (config.norm_position == "pre")  # the final norm belongs to pre-norm
    table = config.vocab_size * config.n_embd
    return ModelCost(
        parameters={
            "embedding": table,
            "position": position.parameters,
            "attention": config.n_layer * mixer.parameters,
            "ffn": config.n_layer * ffn.parameters,
            "norms": norms * norm.parameters,
            "lm_head": 0 if config.weight_tying else table,
        },
        flops={
            "attention_projections": config.n_layer * mixer.matmul,
            "attention_scores": config.n_layer * mixer.scores,
            "ffn": config.n_layer * ffn.matmul,
            "other": norms * norm.matmul + position.matmul,
            "lm_head": 2 * table,
        },
    )
