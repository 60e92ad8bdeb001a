"""Kahneman-Tversky optimization (Ethayarajh et al. 2024): learning from answers that are labelled desirable or not, one
by one.

A batch has neighbouring rows: a labelled answer, and the same prompt with the answer to another one
(finetuning/labelled.py), of which no gradient is taken: these say how far the model is from the reference.
"""

import dataclasses

import torch
from torch import Tensor, nn

from data.loader import Batch
from model_builder import LossParts
from training.objective import OfWholeBatch


@dataclasses.dataclass(frozen=True)
class KTO(OfWholeBatch):
    """What the loss is given: beta, and how much answers of each label weigh."""

    beta: float
    desirable: float = 1.0
    undesirable: float = 1.0

    def ask(self, model: nn.Module, batch: Batch) -> Tensor:
        """(3,): the log ratios of the answers to other prompts, how many these are, and how many of the labelled
        answers are desirable."""
        _, ratios = _log_ratios(model, batch.changed(lambda rows: rows[1::2]))
        assert batch.desirable is not None
        return torch.stack((ratios.sum(), ratios.new_tensor(len(ratios)), batch.desirable.sum().to(ratios.dtype)))

    def given(self, sums: Tensor) -> "KTOOfBatch":
        """That of a global batch."""
        ratios, answers, desirable = sums.tolist()
        kl = max(ratios / answers, 0.0)  # in this order NaN stays, and the step is skipped
        return KTOOfBatch(self, kl, int(answers), int(desirable))


@dataclasses.dataclass(frozen=True)
class KTOOfBatch:
    """The objective of the micro-batches of a global batch: its estimate of the divergence from the reference, `kl`, in
    nats, and of how many answers it is, so many of them desirable."""

    how: KTO
    kl: float
    answers: int
    desirable: int

    def __call__(self, model: nn.Module, batch: Batch) -> LossParts:
        """The sum of the losses of labelled answers; what it tells are the mean rewards of those with either label, of
        the labels that the global batch has, and `kl`."""
        parts, ratios = _log_ratios(model, batch.changed(lambda rows: rows[0::2]))
        assert batch.desirable is not None
        desirable = batch.desirable[0::2]
        losses = kto(ratios, desirable, self.kl, self.how)
        rewards, measured = self.how.beta * ratios.detach(), {"kl": ratios.new_tensor(self.kl * len(ratios))}
        of_labels = ("desirable", desirable, self.desirable), ("undesirable", ~desirable, self.answers - self.desirable)
        for name, which, count in of_labels:
            if count:
                measured[name] = rewards[which].sum() * (self.answers / count)  # which is divided by all answers
        n_answers = torch.tensor(len(losses), device=losses.device)
        return LossParts(losses.sum(), n_answers, parts.auxiliary, parts.loads, measured)


def kto(ratios: Tensor, desirable: Tensor, kl: float, how: KTO) -> Tensor:
    """The losses (rows,) of answers with these log ratios, some of which are desirable (equations 7 and 8):

    reward = beta log(p(y | x) / reference(y | x)),  z = beta KL(p || reference)
    loss = weight (1 - sigmoid(reward - z)) of a desirable answer, weight (1 - sigmoid(z - reward)) of another
    """
    beyond = how.beta * (ratios - kl)
    weights = torch.where(desirable, how.desirable, how.undesirable)
    return weights * torch.sigmoid(torch.where(desirable, -beyond, beyond))


def _log_ratios(model: nn.Module, rows: Batch) -> tuple[LossParts, Tensor]:
    """What the model finds of rows, and its log-probabilities of their answers beside the reference's (rows,)."""
    assert rows.reference is not None
    parts = model(rows.tokens, rows.targets, documents=rows.documents, each=True)
    return parts, -parts.cross_entropy.sum(1) - rows.reference
