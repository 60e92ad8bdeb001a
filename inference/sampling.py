"""How the next token of a text is chosen, from the model's logits. On the CPU, in float64."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from common.errors import UserError

MOST = torch.finfo(torch.float64).max


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; see `distribution`. The defaults behind top_p change nothing."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


def distribution(logits: Tensor, how: Sampling, prompt: Sequence[int] = (), new: Sequence[int] = ()) -> Tensor:
    """Logits (V,) of what follows the tokens of a prompt and new ones -> probabilities (V,) in float64, of which those
    that are not to be chosen are 0.

    First come the penalties (`_penalized`); then the temperature divides the logits (0: all for the likeliest token).
    Of the result, the `top_k` likeliest tokens stay; of these, the fewest likeliest whose probabilities reach `top_p`
    (nucleus sampling, Holtzman et al. 2020), at least one; of these, those at least `min_p` times as likely as the
    likeliest (Nguyen et al. 2024); of these, the most typical whose probabilities reach `typical_p` (`_typical`). Of
    equals, lower ids are likelier. transformers has them in this order.
    """
    logits = _penalized(logits.double(), how, prompt, new)
    order = _likeliest(logits, 1 if how.temperature == 0 else min(how.top_k, len(logits)))
    if how.temperature == 0:
        kept = torch.ones(1, dtype=torch.float64)
    else:
        kept = torch.softmax((logits[order] - logits[order[0]]) / how.temperature, dim=0)
        if how.top_p < 1:
            before = kept.cumsum(0) - kept  # the probability of all likelier tokens
            kept = kept[before < how.top_p]
        kept = kept[kept >= how.min_p * kept[0]]
        if how.typical_p < 1:
            stay = _typical(kept / kept.sum(), how.typical_p)
            order, kept = order[stay], kept[stay]
    probabilities = torch.zeros(len(logits), dtype=torch.float64)
    probabilities[order[: len(kept)]] = kept / kept.sum()
    return probabilities


def _penalized(logits: Tensor, how: Sampling, prompt: Sequence[int], new: Sequence[int]) -> Tensor:
    """Of tokens that are there already the logits are divided by `repetition_penalty`, or multiplied where they are
    negative (Keskar et al. 2019, CTRL, section 4.1); of new ones they are lower by `presence_penalty` and, for each
    time that a token came, by `frequency_penalty` (as OpenAI's interface has them). They stay finite."""
    if how.repetition_penalty != 1 and (seen := sorted({*prompt, *new})):
        of_seen = logits[seen]
        penalized = torch.where(of_seen > 0, of_seen / how.repetition_penalty, of_seen * how.repetition_penalty)
        logits = logits.index_copy(0, torch.tensor(seen), penalized.clamp(-MOST, MOST))
    if (how.presence_penalty or how.frequency_penalty) and new:
        counts = torch.bincount(torch.tensor(new), minlength=len(logits)).double()
        for penalty, times in ((how.presence_penalty, counts.clamp(max=1)), (how.frequency_penalty, counts)):
            logits = torch.where(counts > 0, (logits - penalty * times).clamp(-MOST, MOST), logits)
    return logits


def _typical(probabilities: Tensor, mass: float) -> Tensor:
    """Probabilities (k,), the largest first -> which stay, (m,), in their order: those whose surprise is nearest to the
    expected one, the entropy, the fewest that reach a mass (Meister et al. 2023, Locally Typical Sampling)."""
    surprise = -probabilities.log()
    entropy = (probabilities * surprise).nansum()
    order = (surprise - entropy).abs().argsort(stable=True)
    before = probabilities[order].cumsum(0) - probabilities[order]
    return order[before < mass].sort().values


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
