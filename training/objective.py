"""What a step makes smaller: of a model and a micro-batch, the parts of a loss. Other objectives than the next token's
are finetuning/'s."""

from collections.abc import Callable

from torch import nn

from data.loader import Batch
from model_builder import LossParts

Objective = Callable[[nn.Module, Batch], LossParts]


def next_token(model: nn.Module, batch: Batch) -> LossParts:
    """The cross-entropy of the targets that count."""
    return model(batch.tokens, batch.targets, documents=batch.documents)
