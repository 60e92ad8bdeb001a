"""The position encodings. One instance serves the whole model; each acts in one of two places: where tokens are
embedded, or in the mixers that use positions, by what it shares with them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from components.positions.scaling import FORMS, attention_factor, state
from components.positions.spec import rotated
from components.precision import wide
from components.registry import register_module
from model_config import ModelArchitectureConfig

# (T, device, start) -> what the mixers of a forward pass share: made once for all that ask for an equal one. `start`
# is the position of the first of T tokens: what stands before it, S = start tokens, is in the caches.
Shared = Callable[[int, torch.device, int], Any]


@register_module("position_encoding", "none")
class NoPosition(nn.Module):
    """(B, T, D) -> (B, T, D). No encoding: only the causal mask tells the order (Haviv et al. 2022, Transformer
    Language Models without Positional Encodings Still Learn Positional Information).

        y = x

    The others override one of the two methods.
    """

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()

    def embed(self, x: Tensor, start: int = 0, places: Tensor | None = None) -> Tensor:
        """(B, T, D) token embeddings -> (B, T, D). `places` (B, T), of each token in its document; None: all are of
        one, from `start` on."""
        return x

    @classmethod
    def shared(cls, config: ModelArchitectureConfig, width: int) -> dict[str, Shared]:
        """What a mixer with heads of this width is handed, by the name of its argument."""
        return {}


@register_module("position_encoding", "learned_absolute")
class LearnedAbsolutePosition(NoPosition):
    """(B, T, D) -> (B, T, D), a vector for each of block_size positions (Radford et al. 2018, Improving Language
    Understanding by Generative Pre-Training).

        y[t] = x[t] + embedding[t]
    """

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.block_size, config.n_embd)

    def embed(self, x: Tensor, start: int = 0, places: Tensor | None = None) -> Tensor:
        if places is None:
            places = torch.arange(start, start + x.shape[1], device=x.device)
        return x + self.embedding(places)


@register_module("position_encoding", "rope")
class RotaryPosition(NoPosition):
    """(B, heads, T, h) -> (B, heads, T, h), queries and keys (Su et al. 2021, RoFormer, section 3.2.2). Of the first
    w = partial_rotary_factor h numbers the halves are paired, i with i + w/2, as in Hugging Face's weights.

        angle = t rope_theta^(-2 i / w)
        y[i], y[i + w/2] = x[i] cos(angle) - x[i + w/2] sin(angle), x[i + w/2] cos(angle) + x[i] sin(angle)

    rope_scaling changes the frequencies (components/positions/scaling.py).
    """

    @classmethod
    def shared(cls, config: ModelArchitectureConfig, width: int) -> dict[str, Shared]:
        scaling = {"rope_type": "default", **(config.rope_scaling or {})}
        hashable = {name: tuple(value) if isinstance(value, list) else value for name, value in scaling.items()}
        return {"rotation": Rotation(rotated(config, width), config.rope_theta, tuple(sorted(hashable.items())))}


@dataclasses.dataclass(frozen=True)
class Rotation:
    """Cosines and sines (T, width / 2) that turn the first `width` numbers of queries and keys, in float32."""

    width: int
    theta: float
    scaling: tuple[tuple[str, Any], ...]

    def state(self, length: int) -> Any:
        """What the frequencies are in texts of `length` tokens: where it changes, everything before turns anew."""
        return state(dict(self.scaling), length)

    def frequencies(self, device: torch.device, length: int = 0) -> Tensor:
        """(width / 2,) radians per token, in texts of `length` tokens."""
        scaling = dict(self.scaling)
        return FORMS[scaling["rope_type"]](self.width, self.theta, scaling, length, device)

    def __call__(self, length: int, device: torch.device, start: int = 0) -> tuple[Tensor, Tensor]:
        positions = torch.arange(start, start + length, device=device, dtype=torch.float32)
        angles = torch.outer(positions, self.frequencies(device, start + length))  # (T, width / 2)
        factor = attention_factor(dict(self.scaling))
        return (angles.cos(), angles.sin()) if factor == 1 else (angles.cos() * factor, angles.sin() * factor)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn queries or keys (B, heads, T, h) by their positions' angles, in float32 (float64 for float64); what is wider
    than these are stays."""
    cos, sin = rotation
    width = 2 * cos.shape[-1]
    first, second = wide(x[..., :width]).chunk(2, dim=-1)
    parts = [first * cos - second * sin, second * cos + first * sin]
    if width < x.shape[-1]:
        parts.append(wide(x[..., width:]))
    return torch.cat(parts, dim=-1).type_as(x)


@register_module("position_encoding", "alibi")
class ALiBi(NoPosition):
    """(B, H, T, T) -> (B, H, T, T), scores, which fall linearly with distance, at a slope of each head's own (Press et
    al. 2021, Train Short, Test Long). For H a power of two:

        score[h, query, key] += 2^(-8 h / H) (key - query)        h = 1 ... H
    """

    @classmethod
    def shared(cls, config: ModelArchitectureConfig, width: int) -> dict[str, Shared]:
        return {"score_bias": LinearBias(config.n_head)}


@dataclasses.dataclass(frozen=True)
class LinearBias:
    """(H, T, S + T), added to the attention scores."""

    n_head: int

    def slopes(self, device: torch.device) -> Tensor:
        """(H,): a geometric series; heads beyond a power of two take every other slope of the next one's series."""
        power = 2 ** math.floor(math.log2(self.n_head))
        slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
        slopes += [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * (self.n_head - power), 2)]
        return torch.tensor(slopes, device=device)

    def __call__(self, length: int, device: torch.device, start: int = 0) -> Tensor:
        positions = torch.arange(start + length, device=device)
        distance = (positions[None, :] - positions[start:, None]).clamp(max=0)  # (T, S + T), key minus query
        return self.slopes(device)[:, None, None] * distance
