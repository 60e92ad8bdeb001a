"""How the next token of a text is chosen, from the model's logits. On the CPU, in float64."""

import dataclasses

import torch
from torch import Tensor

from common.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; see `distribution`."""

    temperature: float
    top_k: int
    top_p: float


def distribution(logits: Tensor, how: Sampling) -> Tensor:
    """Logits (V,) -> probabilities (V,) in float64, of which those that are not to be chosen are 0.

    First the temperature divides the logits (0: all for the likeliest token). Of the result, the `top_k` likeliest
    tokens stay; of these, the fewest likeliest whose probabilities reach `top_p` (nucleus sampling, Holtzman et al.
    2020), at least one. Of equals, lower ids are likelier.
    """
    logits = logits.double()
    order = _likeliest(logits, 1 if how.temperature == 0 else min(how.top_k, len(logits)))
    if how.temperature == 0:
        kept = torch.ones(1, dtype=torch.float64)
    else:
        kept = torch.softmax((logits[order] - logits[order[0]]) / how.temperature, dim=0)
        if how.top_p < 1:
            before = kept.cumsum(0) - kept  # the probability of all likelier tokens
            kept = kept[before < how.top_p]
    probabilities = torch.zeros(len(logits), dtype=torch.float64)
    probabilities[order[: len(kept)]] = kept / kept.sum()
    return probabilities


def _likeliest(logits: Tensor, count: int) -> Tensor:
    """The ids (count,) of the largest of logits (V,), the likeliest first. A tenth of the time of sorting all."""
    last = logits.topk(count).values[-1]
    candidates = (logits >= last).nonzero().squeeze(1)  # more than `count` where some equal the last
    return candidates[logits[candidates].argsort(descending=True, stable=True)][:count]


def check_finite(logits: Tensor) -> None:
    """Raises UserError for logits of any shape that are no numbers, of which the likeliest token would mean nothing."""
    if not torch.isfinite(logits).all():
        raise UserError("the model's output is not finite: its weights are damaged, or the run diverged")


def draw(probabilities: Tensor, generator: torch.Generator) -> int:
    """An index into probabilities (V,), at random by them."""
    return int(torch.multinomial(probabilities, 1, generator=generator))
