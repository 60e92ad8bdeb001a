"""The FLOP formula and the token grid of the published search, kept to reproduce its two tables row for row.

Its known errors: the attention scores are counted once for every head although the width H already spans all heads
(the right term is 4 S S H), the logits' 2 S H V are left out though their parameters count in N, and what its tables
call D/N is D / (20 N). `detailed_cost_analysis.py --flops_formula=published` uses it; nothing else does.
"""

from typing import Any

import numpy as np

from model_config import ModelArchitectureConfig

TOKENS_MIN, TOKENS_MAX, TOKEN_STEPS = 1e9, 1e12, 100
TOLERANCE = 0.02  # a candidate passes when its FLOPs are this near to the budget, as a share of it
LAW = "hoffmann"


def token_grid(tokens_min: float | None, tokens_max: float | None) -> np.ndarray:
    """(100,): the published grid, between other ends if they are given."""
    low = TOKENS_MIN if tokens_min is None else tokens_min
    high = TOKENS_MAX if tokens_max is None else tokens_max
    return np.linspace(low, high, TOKEN_STEPS)


def published_forward_flops(config: ModelArchitectureConfig, sequence_length: int) -> Any:
    """Forward FLOPs per token of a gated-FFN transformer by the published formula; int, or int64 array of a grid.

    A layer and sequence: 2 S H H + 4 S H kv hd + 2 a S S H + 2 S H H + 6 S H F, here divided by S.
    """
    h, kv_width = config.n_embd, config.kv_heads * config.head_dim
    d_ff: Any = config.d_ff
    projections = 2 * h * h + 4 * h * kv_width + 2 * h * h
    scores = 2 * config.n_head * sequence_length * h
    return config.n_layer * (projections + scores + 6 * h * d_ff)
