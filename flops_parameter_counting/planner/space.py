"""What a search looks through: every architecture whose sizes are some of those given.

The costs are those of `model_cost`, which is plain arithmetic: a `Grid` holds int64 arrays where a configuration holds
integers, so that one formula serves one model and millions.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from common.errors import UserError, did_you_mean
from model_config import PRESETS, ModelArchitectureConfig, hybrid_pattern, resolve_architecture

ARCHITECTURES = ("llama3", "gpt2", "mamba1", "mamba2", "hybrid")  # presets that a space can be made of
SIZES = ("n_layer", "n_embd", "n_head", "num_key_value_heads", "d_ff")  # what the architectures of a space differ in
MOST_SIZES = 1_000_000  # of one kind
SMALL_BUDGET = 1e16  # below it bytes and the embedded dataset; above it that would be passed over more than 10 times
PUBLISHED_WIDTH_STEP = 256
PUBLISHED_BUDGET = 1.36e21


class Grid(ModelArchitectureConfig):
    """A configuration whose n_layer, n_head, n_embd, num_key_value_heads and d_ff are int64 arrays (architectures,).

    The mixers of all layers are those of a `layer_pattern` of one letter, or as `hybrid_attention_ratio` says."""

    n_layer: Any
    n_head: Any
    n_embd: Any
    num_key_value_heads: Any
    d_ff: Any

    @property
    def kv_heads(self) -> Any:
        return self.num_key_value_heads

    def layers_with(self, letters: str | Sequence[str]) -> Any:
        """As `hybrid_pattern` has them: a half is rounded to the even number, by Python as by numpy."""
        if self.hybrid_attention_ratio is None:
            return self.n_layer if self.last_mixer in letters else 0
        attention = np.rint(self.hybrid_attention_ratio * self.n_layer).astype(self.n_layer.dtype)
        counts = {"A": attention, "M": self.n_layer - attention}
        return sum(counts.get(letter, 0) for letter in letters)

    @property
    def last_mixer(self) -> str:
        return "A" if self.hybrid_attention_ratio is not None else self.layer_pattern or "A"


# ---------------------------------------------------------------------------------------------------------------------
# The space


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """Every combination of these sizes whose heads come out whole.

    `kv_heads` None is multi-head attention. d_ff is int(ffn_expansion_ratio x n_embd). Pure Mambas have no heads, key
    and value heads, or FFN: `head_dims` is then empty, `kv_heads` None, the ratio 0, and these sizes are 0. Which
    layers of a hybrid are attention follows from their number (model_config.hybrid_pattern).
    """

    arch: str
    vocab_size: int
    sequence_length: int
    hidden_sizes: Sequence[int]
    layers: Sequence[int]
    head_dims: Sequence[int]
    kv_heads: Sequence[int] | None
    ffn_expansion_ratio: float
    weight_tying: bool

    def __post_init__(self) -> None:
        _check_arch(self.arch)
        if self.is_pure_mamba:
            self._check_no_attention()
        for name in ("hidden_sizes", "layers", "head_dims", "kv_heads"):
            sizes = getattr(self, name)
            if name == "head_dims" and self.is_pure_mamba:
                continue
            if sizes is not None and (not 0 < len(sizes) <= MOST_SIZES or min(sizes) < 1):
                raise UserError(f"{name} must hold 1 to {MOST_SIZES:,} sizes, each 1 or more")
        if self._bound_on_flops() >= 2**62:
            raise UserError("the space's largest model is beyond 64-bit arithmetic: take smaller sizes")
        if self.arch == "hybrid" and min(self.layers) < 2:
            raise UserError("layers: a hybrid has both attention and Mamba-2: take 2 or more")
        odd = [size for size in self.head_dims if size % 2]
        if odd and self.template.position_encoding == "rope":
            raise UserError(f"head_dims: RoPE rotates pairs, so {odd[0]} cannot be a head dimension; take even ones")

    def _check_no_attention(self) -> None:
        given = {
            "head_dims": self.head_dims,
            "kv_heads": self.kv_heads,
            "ffn_expansion_ratio": self.ffn_expansion_ratio,
        }
        for name, value in given.items():
            if value:
                raise UserError(f"{name}: {self.arch} has neither attention nor FFNs: drop it, or take --arch=hybrid")

    @property
    def is_pure_mamba(self) -> bool:
        return self.arch in ("mamba1", "mamba2")

    def _bound_on_flops(self) -> float:
        """FLOPs per token that no model of the space exceeds, whichever formula counts them."""
        width = max(self.hidden_sizes)
        heads = width // min(self.head_dims or [width]) + 1
        attention = 8 * width + (4 + 2 * heads) * self.sequence_length
        mamba = 16 * width + 4096  # of Mamba-2, whose state and chunk are the defaults; Mamba-1 has less
        block = width * (max(attention, mamba) + 6 * self.ffn_expansion_ratio * width)
        return 3 * (max(self.layers) * block + 2 * self.vocab_size * width)

    @functools.cached_property
    def template(self) -> ModelArchitectureConfig:
        """What all architectures of the space share; its sizes mean nothing."""
        return resolve_architecture(
            {
                "arch_preset": self.arch,
                "vocab_size": self.vocab_size,
                "block_size": self.sequence_length,
                "weight_tying": self.weight_tying,
            }
        )

    def config(self, sizes: Mapping[str, int]) -> ModelArchitectureConfig:
        """The architecture of the space with these SIZES."""
        preset = PRESETS[self.arch]
        n_layer, ratio = sizes["n_layer"], preset.get("hybrid_attention_ratio")
        if self.is_pure_mamba:
            pattern = preset["layer_pattern"] * n_layer
            return dataclasses.replace(self.template, n_layer=n_layer, n_embd=sizes["n_embd"], layer_pattern=pattern)
        pattern = None if ratio is None else hybrid_pattern(n_layer, ratio)
        changes: dict[str, Any] = dict(sizes)
        return dataclasses.replace(self.template, **changes, layer_pattern=pattern)

    def d_ff(self, n_embd: Any) -> Any:
        """int(ratio x width), with a small addition that keeps 8/3 x 96 at 256; 0 of a pure Mamba."""
        if self.is_pure_mamba:
            return 0 * n_embd
        return np.maximum(1, np.floor(self.ffn_expansion_ratio * n_embd + 1e-9).astype(np.int64))

    @functools.cached_property
    def shapes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(n_embd, n_head, key and value heads) of every valid combination, each (shapes,), the widest last."""
        widths = np.array(sorted(set(self.hidden_sizes)), np.int64)
        if self.arch in ("mamba2", "hybrid"):
            widths = self._whole_mamba_heads(widths)
        if self.is_pure_mamba:
            return widths, 0 * widths, 0 * widths
        head_dims = np.array(sorted(set(self.head_dims)), np.int64)
        kv_heads = np.array(sorted(set(self.kv_heads or [0])), np.int64)
        axes = np.meshgrid(widths, head_dims, kv_heads, indexing="ij")
        width, head_dim, kv = (axis.ravel() for axis in axes)
        n_head = width // head_dim
        if self.kv_heads is None:
            kv = n_head
        valid = (width % head_dim == 0) & (n_head > 0) & (n_head % np.maximum(kv, 1) == 0)
        if not valid.any():
            raise UserError(
                "the space is empty: no hidden size is a head dimension times a number of heads that the key and "
                "value heads divide; change --hidden_sizes, --head_dims or --kv_heads (--no_gqa: as many as heads)"
            )
        return width[valid], n_head[valid], kv[valid]

    def _whole_mamba_heads(self, widths: np.ndarray) -> np.ndarray:
        expand, head_dim = self.template.mamba_expand, self.template.mamba_head_dim
        whole = widths[expand * widths % head_dim == 0]
        if not len(whole):
            raise UserError(
                f"the space is empty: {expand} times a hidden size must be a number of Mamba-2 heads of {head_dim}; "
                f"take multiples of {head_dim // math.gcd(expand, head_dim)}"
            )
        return whole

    def __len__(self) -> int:
        """Architectures."""
        return len(self.shapes[0]) * len(set(self.layers))

    def grids(self, chunk: int) -> Iterator[Grid]:
        """All architectures, at most `chunk` at a time, in a fixed order."""
        n_embd, n_head, kv = self.shapes
        layers = np.array(sorted(set(self.layers)), np.int64)
        preset = PRESETS[self.arch]
        mixers = {key: preset.get(key) for key in ("layer_pattern", "hybrid_attention_ratio")}
        shared = dataclasses.asdict(self.template) | mixers
        for start in range(0, len(self), chunk):
            index = np.arange(start, min(start + chunk, len(self)))
            shape, layer = np.divmod(index, len(layers))
            sizes = {"n_layer": layers[layer], "n_embd": n_embd[shape], "n_head": n_head[shape]}
            sizes |= {"num_key_value_heads": kv[shape], "d_ff": self.d_ff(n_embd[shape])}
            yield Grid(**(shared | sizes))


def _check_arch(arch: str) -> None:
    if arch not in ARCHITECTURES:
        raise UserError(f"arch {arch!r} is none of: {', '.join(ARCHITECTURES)}{did_you_mean(arch, ARCHITECTURES)}")


def default_space(budget: float, arch: str) -> SearchSpace:
    """A space around what the budget is likely to buy; the published one from 1.6e20 to 9.9e21 FLOPs with llama3.

    The middle is D = 20 N with C = 6 N D, and 64 of width a layer of 12 H^2 parameters; widths reach from 0.2 or 0.4
    to 3 times that in steps of a power of two, so that every budget gets some 30 of them.
    """
    _check_arch(arch)
    step, is_llama, is_pure_mamba = _width_step(budget), arch == "llama3", arch in ("mamba1", "mamba2")
    is_large = step >= PUBLISHED_WIDTH_STEP
    scale = step / PUBLISHED_WIDTH_STEP
    vocab_size, sequence_length = (128256, 2048) if is_llama and is_large else (50304, 1024)
    if budget < SMALL_BUDGET:
        vocab_size, sequence_length = 256, 256
    small_layers = range(max(2, int(16 * scale)), max(16, int(64 * scale)))
    return SearchSpace(
        arch=arch,
        vocab_size=vocab_size,
        sequence_length=sequence_length,
        hidden_sizes=range((4 if is_large else 2) * step, 32 * step, step),
        layers=range(16, int(64 * scale), int(2 * scale)) if is_large else small_layers,
        head_dims=() if is_pure_mamba else (16, 32) if step <= 16 else (32, 64) if step <= 64 else (64, 128),
        kv_heads=(8,) if arch in ("llama3", "hybrid") and is_large else None,
        ffn_expansion_ratio={"llama3": 3.5, "gpt2": 4.0, "hybrid": 8 / 3}.get(arch, 0.0),
        weight_tying=not is_llama,
    )


def default_aspect_ratio(budget: float) -> tuple[float, float]:
    """Width over depth: the law ignores shape and FLOPs favour flat models, so the search must not go where neither
    law nor practice has been. Small models are trained at 20 to 64 (nanoGPT, GPT-2), large ones at up to 200."""
    if budget < SMALL_BUDGET:
        return 16, 64
    return (32, 128) if _width_step(budget) < PUBLISHED_WIDTH_STEP else (32, 256)


def _width_step(budget: float) -> int:
    """The power of two that is nearest to a tenth of the likely width, 4 to 16,384."""
    n_params = math.sqrt(budget / 120)
    width = (64 * n_params / 12) ** (1 / 3)
    return 2 ** min(14, max(2, round(math.log2(width / 10))))
