"""How fast a model reads and writes one text, and what memory that takes, on the device that it is on."""

import dataclasses
import statistics
import time

import torch

from common.units import bytes_text
from inference.loading import cache_bytes
from model_builder import LanguageModel
from parallel.device import memory_in_use, synchronize

ROUNDS = 5  # of which the median counts
MOST_READ, MOST_WRITTEN = 512, 64  # tokens


@dataclasses.dataclass(frozen=True)
class Speed:
    """One text, batch 1: `read` tokens of a prompt at once, then `written` tokens one by one."""

    read: int
    written: int
    prefill_tokens_per_second: float
    seconds_to_first_token: float
    decode_tokens_per_second: float
    weight_bytes: int
    cache_bytes: int  # of a text as long as the block
    peak_bytes: int | None  # of the process so far, on a GPU of PyTorch's tensors; None where the device does not tell

    def lines(self, block: int) -> list[str]:
        """For people."""
        peak = "" if self.peak_bytes is None else f", {bytes_text(self.peak_bytes)} at most in this process so far"
        return [
            f"speed, one text: {self.prefill_tokens_per_second:,.0f} tokens/s of a prompt of {self.read:,} "
            f"(first token after {1000 * self.seconds_to_first_token:,.1f} ms), "
            f"then {self.decode_tokens_per_second:,.0f} tokens/s",
            f"memory: {bytes_text(self.weight_bytes)} of weights, {bytes_text(self.cache_bytes)} of caches "
            f"at {block:,} tokens{peak}",
        ]


@torch.inference_mode()
def measure(model: LanguageModel) -> Speed:
    """The median of ROUNDS, after one that warms up."""
    block, device = model.config.block_size, model.embedding.weight.device
    read = max(min(block // 2, MOST_READ), 1)
    written = max(min(block - read, MOST_WRITTEN), 1)
    ids = torch.randint(model.config.vocab_size, (1, read), generator=torch.Generator().manual_seed(0)).to(device)
    found = [_round(model, ids, written) for _ in range(ROUNDS + 1)][1:]
    first, rest = (statistics.median(seconds) for seconds in zip(*found, strict=True))
    return Speed(
        read=read,
        written=written,
        prefill_tokens_per_second=read / first,
        seconds_to_first_token=first,
        decode_tokens_per_second=written / rest,
        weight_bytes=sum(parameter.nbytes for parameter in model.parameters()),
        cache_bytes=cache_bytes(model.config),
        peak_bytes=memory_in_use(device)["peak"],
    )


def _round(model: LanguageModel, ids: torch.Tensor, written: int) -> tuple[float, float]:
    """Ids (1, T) -> seconds until the first token is chosen, and for the `written` tokens after it."""
    device = ids.device
    synchronize(device)
    start = time.perf_counter()
    caches = model.empty_caches(1, ids.shape[1] + written)
    token = model.next_token_logits(ids, caches).argmax(-1, keepdim=True)
    synchronize(device)
    middle = time.perf_counter()
    for _ in range(written):
        token = model.next_token_logits(token, caches).argmax(-1, keepdim=True)
    synchronize(device)
    return middle - start, time.perf_counter() - middle
