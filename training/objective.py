"""What a step makes smaller: of a model and a micro-batch, the parts of a loss. Other objectives than the next token's
are finetuning/'s."""

import abc
from collections.abc import Callable

from torch import Tensor, nn

from data.loader import Batch
from model_builder import LossParts

Objective = Callable[[nn.Module, Batch], LossParts]


class OfWholeBatch(abc.ABC):
    """An objective with a number in it that is of the whole global batch: the model is asked for it first, without
    gradients and dropout, so that it is the same however the batch is divided."""

    @abc.abstractmethod
    def ask(self, model: nn.Module, batch: Batch) -> Tensor:
        """What is summed over the micro-batches, of one of them (numbers,)."""

    @abc.abstractmethod
    def given(self, sums: Tensor) -> Objective:
        """The objective of the micro-batches of the global batch that has these sums (numbers,)."""


AnyObjective = Objective | OfWholeBatch


def next_token(model: nn.Module, batch: Batch) -> LossParts:
    """The cross-entropy of the targets that count."""
    return model(batch.tokens, batch.targets, documents=batch.documents)
