"""How far a model is from another in what it says of a text: what fine-tuning moved, on what it was not tuned on."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from components.precision import wide
from data.tokenizers import Tokenizer
from evaluation.figures import Figure, ratio_error
from evaluation.held_out import READ, Reading, evenly
from evaluation.scoring import AT_ONCE, Request
from evaluation.subject import Subject
from evaluation.windows import windows
from inference.sampling import check_finite


def divergence(a: Subject, b: Subject, reading: Reading) -> Figure:
    """KL(a || b), the mean over the text's tokens of

        sum over x of a(x | before) (log a(x | before) - log b(x | before)),   nats,

    x any of the tokenizer's tokens. Of 65,536 tokens, in windows that lie evenly in the text and are as long as the
    shorter block of the two, or of all. Raises UserError for models with other tokens than each other's."""
    if not means_the_same(a.tokenizer, b.tokenizer):
        raise UserError("the models have different tokenizers, whose tokens' probabilities do not compare")
    block = min(a.block, b.block)
    every = [
        (number, window)
        for number, document in enumerate(reading.text.documents)
        for window in windows(document, a.first, block, block)
    ]
    chosen = evenly(every, max(1, READ // block))
    of_document = len(reading.text.documents) > 1
    sums: dict[int, list[float]] = {}
    for place, (number, window) in enumerate(chosen):
        sample = sums.setdefault(number if of_document else place, [0.0, 0.0])
        sample[0] += sum(float(part.double().sum()) for part in of_window(a, b, window))
        sample[1] += len(window.continuation)
    nats, tokens = np.array(list(sums.values())).T
    return Figure(
        task="text",
        metric="KL to B, nats a token",
        value=float(nats.sum() / tokens.sum()),
        error=ratio_error(nats, tokens),
        chance=None,
        samples=len(nats),
        of="documents" if of_document else "windows",
        is_share=False,
        higher_is_better=False,
        sums=(nats, tokens),
    )


def means_the_same(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether the ids of two tokenizers stand for the same bytes."""
    if (one.vocab_size, one.gaps) != (other.vocab_size, other.gaps):
        return False
    ids = (number for number in range(one.vocab_size) if number not in one.gaps)
    return all(one.decode_bytes([number]) == other.decode_bytes([number]) for number in ids)


@torch.inference_mode()
def of_window(a: Subject, b: Subject, window: Request) -> Iterator[Tensor]:
    """The divergence after each token but the last, (n,) of some of them at a time, in float32."""
    tokens = torch.tensor([[*window.context, *window.continuation[:-1]]])
    count, size = len(window.continuation), a.tokenizer.vocab_size
    hidden = [one.model.hidden(tokens.to(one.model.embedding.weight.device), last=count)[0] for one in (a, b)]
    for states in zip(*(one.split(max(1, AT_ONCE // size)) for one in hidden), strict=True):
        logits = [wide(one.model.logits(state))[:, :size] for one, state in zip((a, b), states, strict=True)]
        for one in logits:
            check_finite(one)
        ours, theirs = (one.log_softmax(-1) for one in logits)
        yield (ours.exp() * (ours - theirs)).sum(-1)
