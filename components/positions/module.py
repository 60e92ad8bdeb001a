"""The position encodings. One instance serves the whole model; each acts in one of two places: where tokens are
embedded, or in the mixers that use positions, by what it shares with them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from components.precision import wide
from components.registry import register_module
from model_config import ModelArchitectureConfig

# (T, device, start) -> what the mixers of a forward pass share: made once for all that ask for an equal one. `start`
# is the position of the first of T tokens: what stands before it, S = start tokens, is in the caches.
Shared = Callable[[int, torch.device, int], Any]


@register_module("position_encoding", "none")
class NoPosition(nn.Module):
    """No encoding: only the causal mask tells the order. The others override one of the two methods."""

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()

    def embed(self, x: Tensor, start: int = 0) -> Tensor:
        """(B, T, D) token embeddings -> (B, T, D)."""
        return x

    @classmethod
    def shared(cls, config: ModelArchitectureConfig, width: int) -> dict[str, Shared]:
        """What a mixer with heads of this width is handed, by the name of its argument."""
        return {}


@register_module("position_encoding", "learned_absolute")
class LearnedAbsolutePosition(NoPosition):
    def __init__(self, config: ModelArchitectureConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.block_size, config.n_embd)

    def embed(self, x: Tensor, start: int = 0) -> Tensor:
        return x + self.embedding(torch.arange(start, start + x.shape[1], device=x.device))


@register_module("position_encoding", "rope")
class RotaryPosition(NoPosition):
    """Su et al. 2021, RoFormer; halves are paired (i with i + h/2), as in Hugging Face's weights."""

    @classmethod
    def shared(cls, config: ModelArchitectureConfig, width: int) -> dict[str, Shared]:
        scaling = None if config.rope_scaling is None else tuple(sorted(config.rope_scaling.items()))
        return {"rotation": Rotation(width, config.rope_theta, scaling)}


@dataclasses.dataclass(frozen=True)
class Rotation:
    """Cosines and sines (T, width / 2) that turn queries and keys, in float32."""

    width: int
    theta: float
    scaling: tuple[tuple[str, Any], ...] | None = None

    def frequencies(self, device: torch.device) -> Tensor:
        """(width / 2,) radians per token."""
        exponents = torch.arange(0, self.width, 2, device=device, dtype=torch.float32) / self.width
        frequencies = 1.0 / self.theta**exponents
        if self.scaling is None:
            return frequencies
        scaling = dict(self.scaling)
        if scaling["rope_type"] == "linear":
            return frequencies / scaling["factor"]
        return _llama3_frequencies(frequencies, scaling)

    def __call__(self, length: int, device: torch.device, start: int = 0) -> tuple[Tensor, Tensor]:
        positions = torch.arange(start, start + length, device=device, dtype=torch.float32)
        angles = torch.outer(positions, self.frequencies(device))  # (T, width / 2)
        return angles.cos(), angles.sin()


def _llama3_frequencies(frequencies: Tensor, scaling: dict) -> Tensor:
    """Llama 3.1: long wavelengths are divided by `factor`, short ones kept, those between blended."""
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)  # in the original context
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling["factor"])


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn queries or keys (B, heads, T, h) by their positions' angles, in float32 (float64 for float64)."""
    cos, sin = rotation
    first, second = wide(x).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x)


@register_module("position_encoding", "alibi")
class ALiBi(NoPosition):
    """Press et al. 2021, Train Short, Test Long: scores fall linearly with distance, at a slope of each head's own."""

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
