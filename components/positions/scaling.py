"""The forms of rope_scaling: from the frequencies of a context to those of a longer one.

Each is (width, theta, scaling, length, device) -> frequencies (width / 2,) in radians a token, of texts of `length`
tokens; and a factor of cosines and sines, which makes scores that many times larger, squared.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Scaling = Mapping[str, Any]


def powers(width: int, theta: float, device: torch.device) -> Tensor:
    """(width / 2,): the tokens in which each pair turns by a radian, from 1 to nearly theta."""
    exponents = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
    return theta**exponents


def default(width: int, theta: float, scaling: Scaling, length: int, device: torch.device) -> Tensor:
    return 1.0 / powers(width, theta, device)


def linear(width: int, theta: float, scaling: Scaling, length: int, device: torch.device) -> Tensor:
    """Chen et al. 2023, Extending Context Window of Large Language Models via Position Interpolation."""
    return default(width, theta, scaling, length, device) / scaling["factor"]


def dynamic(width: int, theta: float, scaling: Scaling, length: int, device: torch.device) -> Tensor:
    """A base that grows with the text beyond the original context, so that the slowest pair turns no further."""
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]
    grown = factor * max(length, original) / original - (factor - 1)
    return 1.0 / powers(width, theta * grown ** (width / (width - 2)), device)


def llama3(width: int, theta: float, scaling: Scaling, length: int, device: torch.device) -> Tensor:
    """Llama 3.1: long wavelengths are divided by `factor`, short ones kept, those between blended."""
    frequencies = default(width, theta, scaling, length, device)
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)  # in the original context
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling["factor"])


def yarn(width: int, theta: float, scaling: Scaling, length: int, device: torch.device) -> Tensor:
    """Peng et al. 2023, YaRN: pairs that turn often within the original context are kept, those that turn seldom are
    divided by `factor`, and the pairs between are blended by their number."""
    original = scaling["original_max_position_embeddings"]
    bounds = []
    for turns in (scaling.get("beta_fast", 32), scaling.get("beta_slow", 1)):
        bounds.append(width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta)))
    if scaling.get("truncate", True):
        bounds = [math.floor(bounds[0]), math.ceil(bounds[1])]
    low, high = max(bounds[0], 0), min(bounds[1], width - 1)
    pairs = torch.arange(width // 2, device=device, dtype=torch.float32)
    kept = 1 - ((pairs - low) / (high - low if high != low else 0.001)).clamp(0, 1)
    tokens = powers(width, theta, device)
    return 1.0 / (scaling["factor"] * tokens) * (1 - kept) + 1.0 / tokens * kept


def longrope(width: int, theta: float, scaling: Scaling, length: int, device: torch.device) -> Tensor:
    """Ding et al. 2024, LongRoPE: a factor of each pair's own, and another one in texts beyond the original context."""
    which = "long_factor" if length > scaling["original_max_position_embeddings"] else "short_factor"
    factors = torch.tensor(scaling[which], dtype=torch.float32, device=device)
    return 1.0 / (factors * powers(width, theta, device))


FORMS: dict[str, Callable[..., Tensor]] = {
    "default": default,
    "linear": linear,
    "dynamic": dynamic,
    "llama3": llama3,
    "yarn": yarn,
    "longrope": longrope,
}


def state(scaling: Scaling, length: int) -> Any:
    """What decides the frequencies in texts of `length` tokens: where it changes with a token, so do those of all."""
    original = scaling.get("original_max_position_embeddings", 0)
    if scaling["rope_type"] == "dynamic":
        return max(length, original)
    return scaling["rope_type"] == "longrope" and length > original


def attention_factor(scaling: Scaling) -> float:
    """What cosines and sines are multiplied by."""
    if (given := scaling.get("attention_factor")) is not None:
        return given
    factor, kind = scaling.get("factor", 1.0), scaling["rope_type"]
    if kind == "longrope" and factor > 1:
        return math.sqrt(1 + math.log(factor) / math.log(scaling["original_max_position_embeddings"]))
    if kind != "yarn":
        return 1.0
    mscale, of_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return _mscale(factor, mscale) / _mscale(factor, of_all) if mscale and of_all else _mscale(factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
