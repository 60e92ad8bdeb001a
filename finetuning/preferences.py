"""Losses of pairs of answers to one prompt, of which one is preferred: what a step makes smaller in place of the next
token's.

A batch has pairs in neighbouring rows, the chosen answer before the rejected one; its targets are the tokens of the
answers, and it counts pairs. Of an answer y to a prompt x the losses read log p(y | x), the sum over its tokens, and
what the model said of it that training began with, the reference.
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import UserError
from components.heads.spec import IGNORED
from data.loader import Batch
from data.mixture import Data
from data.reference import reference_of
from finetuning.kto import KTO
from model_builder import LossParts
from runs.config import OF_LABELS, WITH_REFERENCE, RunConfig
from training.objective import AnyObjective


@dataclasses.dataclass(frozen=True)
class Preference:
    """How preferences are learned: the name of a loss, and what it is given."""

    loss: str
    beta: float
    label_smoothing: float = 0.0
    margin: float = 0.0
    per_token: bool = False

    def __call__(self, model: nn.Module, batch: Batch) -> LossParts:
        """The objective: the sum of the pairs' losses, how often the chosen answer has the higher reward, and by how
        much."""
        parts = model(batch.tokens, batch.targets, documents=batch.documents, each=True)
        answers = Answers(-parts.cross_entropy.sum(1), (batch.targets != IGNORED).sum(1), batch.reference)
        losses, rewards = LOSSES[self.loss](answers, self)
        margins = (rewards[0::2] - rewards[1::2]).detach()
        measured = {"accuracy": (margins > 0).sum(), "margin": margins.sum()}
        n_pairs = torch.tensor(len(losses), device=losses.device)
        return LossParts(losses.sum(), n_pairs, parts.auxiliary, parts.loads, measured)


@dataclasses.dataclass(frozen=True)
class Answers:
    """Of each of 2 P answers, a chosen one and then the one that was rejected for it, (2 P,): the log-probability, how
    many tokens it has, and its log-probability by the reference (None: there is none)."""

    log_likelihood: Tensor
    tokens: Tensor
    reference: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """The log-probability of a token."""
        return self.log_likelihood / self.tokens.clamp(min=1)

    def ratios(self, per_token: bool) -> Tensor:
        """Log-probabilities beside the reference's, of the answer or of a token of it."""
        assert self.reference is not None
        ratios = self.log_likelihood - self.reference
        return ratios / self.tokens.clamp(min=1) if per_token else ratios


def preference_of(run: RunConfig, dataset: Data) -> AnyObjective:
    """That of a run's keys. Raises UserError where it needs a reference and the answers have none, and for answers in
    pairs where labelled ones are learned, or the other way round."""
    assert run.preference is not None
    of_labels = run.preference in OF_LABELS
    for source in (*dataset.sources.values(), *dataset.validation_sources.values()):
        marks = source.splits["train"].marks
        if marks is not None and marks.of_pairs and marks.of_labels != of_labels:
            has = "labelled answers" if marks.of_labels else "pairs of a chosen and a rejected answer"
            raise UserError(f"{source.folder} has {has}, and not what preference={run.preference!r} learns of")
        if run.preference in WITH_REFERENCE and reference_of(source.folder) is None:
            raise UserError(
                f"preference={run.preference!r} compares with a reference, and {source.folder} has none: finetune.py "
                "asks one; or take simpo or orpo"
            )
    if of_labels:
        return KTO(run.preference_beta, run.preference_desirable, run.preference_undesirable)
    return Preference(
        run.preference,
        run.preference_beta,
        run.preference_smoothing,
        run.preference_margin,
        run.preference_per_token,
    )


def answers_log_likelihood(model: nn.Module, batch: Batch) -> Tensor:
    """(rows,) in float64: what a reference is asked."""
    parts = model(batch.tokens, batch.targets, documents=batch.documents, each=True)
    return -parts.cross_entropy.double().sum(1)


# ---------------------------------------------------------------------------------------------------------------------
# The losses: answers -> the losses of the pairs (P,) and the rewards of the answers (2 P,)

_Loss = Callable[[Answers, Preference], tuple[Tensor, Tensor]]


def dpo(answers: Answers, how: Preference) -> tuple[Tensor, Tensor]:
    """Direct preference optimization (Rafailov et al. 2023, equation 7). With `per_token` ratios are those of a token
    (Lambert et al. 2024, Tulu 3, equation 6).

        reward = beta log(p(y | x) / reference(y | x))
        loss = -log sigmoid(reward(chosen) - reward(rejected))
    """
    rewards = how.beta * answers.ratios(how.per_token)
    return _logistic(rewards[0::2] - rewards[1::2], how.label_smoothing), rewards


def ipo(answers: Answers, how: Preference) -> tuple[Tensor, Tensor]:
    """Identity preference optimization (Azar et al. 2023, equation 17), of the log-probabilities of a token, so that
    beta means the same for answers of any length.

        loss = (log ratio(chosen) - log ratio(rejected) - 1 / (2 beta))^2
    """
    ratios = answers.ratios(per_token=True)
    return (ratios[0::2] - ratios[1::2] - 1 / (2 * how.beta)).square(), how.beta * ratios


def simpo(answers: Answers, how: Preference) -> tuple[Tensor, Tensor]:
    """Simple preference optimization, without a reference (Meng, Xia and Chen 2024, equation 6).

    reward = beta log p(y | x) / tokens
    loss = -log sigmoid(reward(chosen) - reward(rejected) - margin)
    """
    rewards = how.beta * answers.mean
    return _logistic(rewards[0::2] - rewards[1::2] - how.margin, how.label_smoothing), rewards


def orpo(answers: Answers, how: Preference) -> tuple[Tensor, Tensor]:
    """Odds ratio preference optimization, without a reference (Hong, Lee and Thorne 2024, equations 3 to 7): the chosen
    answer is learned too.

        p = exp(log p(y | x) / tokens),  odds = p / (1 - p)
        loss = -log p(chosen) - beta log sigmoid(log odds(chosen) - log odds(rejected))
    """
    mean = answers.mean
    log_odds = mean - _log_of_rest(mean)
    odds = _logistic(log_odds[0::2] - log_odds[1::2], how.label_smoothing)
    return how.beta * odds - mean[0::2], how.beta * mean


def _logistic(difference: Tensor, label_smoothing: float) -> Tensor:
    """-log sigmoid, of labels of which so many are wrong (Mitchell 2023, A note on DPO with noisy preferences)."""
    return -(1 - label_smoothing) * F.logsigmoid(difference) - label_smoothing * F.logsigmoid(-difference)


def _log_of_rest(log_p: Tensor) -> Tensor:
    """log(1 - p), each side of p = 1/2 by what is exact there (Maechler 2012, Accurately computing log(1 - exp(-|a|)));
    of a certain answer that of the float next to 1."""
    log_p = log_p.clamp(max=-torch.finfo(log_p.dtype).eps)
    is_likely = log_p > -math.log(2)
    likely = torch.log(-torch.expm1(log_p.where(is_likely, -1.0)))
    return likely.where(is_likely, torch.log1p(-torch.exp(log_p.where(~is_likely, -1.0))))


LOSSES: dict[str, _Loss] = {"dpo": dpo, "ipo": ipo, "simpo": simpo, "orpo": orpo}
