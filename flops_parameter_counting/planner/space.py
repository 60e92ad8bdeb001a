"""What a search looks through: every architecture whose sizes are some of those given.

The costs are those of `model_cost`, which is plain arithmetic: a `Grid` holds int64 arrays where a configuration holds
integers, so that one formula serves one model and millions.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from common.errors import UserError, same_name
from common.keys import keys_of
from components.registry import check_not_refused, default_letter
from flops_parameter_counting.costs.model_cost import model_cost, with_backward
from model_config import Layer, ModelArchitectureConfig, pattern_forms, preset_values, presets, resolve_architecture

SIZES = ("n_layer", "n_embd", "n_head", "num_key_value_heads", "d_ff")  # what the architectures of a space differ in,
EXPERT_SIZES = ("n_experts", "n_experts_per_token", "n_shared_experts", "expert_d_ff")  # and with experts in these too
MOST_SIZES = 1_000_000  # of one kind
SMALL_BUDGET = 1e16  # below it bytes and the embedded dataset; above it that would be passed over more than 10 times
PUBLISHED_WIDTH_STEP = 256
FFN_STEP = 64  # a d_ff that is rounded is a multiple of this, as a config file's own is
PUBLISHED_BUDGET = 1.36e21


class Grid(ModelArchitectureConfig):
    """An architecture whose SIZES are int64 arrays (architectures,), and how many of its different layers each has."""

    def __init__(self, counts: Mapping[Layer, Any], **given: Any):
        super().__init__(**given)
        self._counts = dict(counts)

    @property
    def layer_counts(self) -> dict[Layer, Any]:
        return self._counts

    @property
    def last_layer(self) -> Layer:
        return next(iter(self._counts))

    def replace(self, **changes: Any) -> "Grid":
        return Grid(self._counts, **{**self._values, **changes})

    def changed(self, change: Callable[[Any], Any]) -> "Grid":
        """The same with every array changed in the same way."""
        arrays = {name: change(value) for name, value in self._values.items() if isinstance(value, np.ndarray)}
        return Grid({layer: change(count) for layer, count in self._counts.items()}, **{**self._values, **arrays})


# ---------------------------------------------------------------------------------------------------------------------
# The family that a preset describes


class Family:
    """The architectures of a preset, whatever their sizes."""

    def __init__(self, arch: str):
        self.arch = arch

    @functools.cached_property
    def values(self) -> dict[str, Any]:
        """The preset's."""
        return preset_values(self.arch, {})

    @functools.cached_property
    def form(self) -> tuple[Any, Any] | None:
        """The spec that writes the layers by another key than layer_pattern, and that key's value."""
        forms = pattern_forms().items()
        return next(((spec, self.values[key]) for key, spec in forms if self.values.get(key) is not None), None)

    @functools.cached_property
    def _parts(self) -> list[tuple[int, int]]:
        """(letters that come once, letters that are repeated after them) of each pattern."""
        written = [(self.values.get(key) or "-").rpartition(",") for key in ("layer_pattern", "ffn_pattern")]
        return [(len(once), len(again)) for once, _, again in written]

    @functools.cached_property
    def once(self) -> int:
        """Layers before those that the patterns repeat."""
        return max(once for once, _ in self._parts)

    @functools.cached_property
    def period(self) -> int:
        """Layers after which the patterns begin anew."""
        return math.lcm(*(again for _, again in self._parts))

    @functools.cached_property
    def example(self) -> ModelArchitectureConfig:
        """One of the family, with all of its different layers."""
        small = {"n_layer": self.once + self.period} if self.form is None else {}
        return resolve_architecture({"arch_preset": self.arch, **small})

    @functools.cached_property
    def keys(self) -> set[str]:
        """The keys that its layers have."""
        return self.example.layer_keys

    @property
    def has_heads(self) -> bool:
        return "n_head" in self.keys

    @property
    def has_kv_heads(self) -> bool:
        return "num_key_value_heads" in self.keys

    @property
    def has_d_ff(self) -> bool:
        return "d_ff" in self.keys

    @property
    def has_experts(self) -> bool:
        return "expert_d_ff" in self.keys

    def spec_with(self, key: str) -> Any:
        """The spec of a layer that has the key."""
        specs = (spec for layer in self.example.layer_counts for spec in layer.specs)
        return next(spec for spec in specs if key in keys_of(type(spec)))

    @property
    def ffn_expansion_ratio(self) -> float:
        """d_ff over n_embd as the preset has it; of experts alone, of a dense FFN as wide as all that a token meets; 0
        without either."""
        if self.has_d_ff:
            return self.values.get("ffn_expansion_ratio") or self.spec_with("d_ff").own_ratio
        return self._met * self._expert_ratio if self.has_experts else 0.0

    @property
    def granularity(self) -> float:
        """ffn_expansion_ratio over the ratio of an expert, as the preset has them."""
        return self.ffn_expansion_ratio / self._expert_ratio

    @property
    def _met(self) -> int:
        """Experts that a token meets."""
        return self.example.n_experts_per_token + self.example.n_shared_experts

    @property
    def _expert_ratio(self) -> float:
        """expert_d_ff over n_embd as the preset has it."""
        if self.values.get("expert_d_ff") is not None:
            return self.values["expert_d_ff"] / self.example.n_embd
        return self.values.get("expert_expansion_ratio") or self.spec_with("expert_d_ff").own_ratio / self._met

    @property
    def width_step(self) -> int:
        """Every width is a multiple of this."""
        example = self.example
        return math.lcm(*(layer.mixer_spec.width_step(example.of(layer)) for layer in example.layer_counts))

    def counts(self, n_layer: Any) -> dict[Layer, Any]:
        """How many of each different layer the architectures of so many layers have."""
        layers = self.example.layer_counts
        if self.form is None:
            again = (n_layer - self.once) * (n_layer > self.once)  # layers after those that come once
            first = n_layer - again // self.period * self.period
            return {
                layer: self._in_the_first(first, layer) + again // self.period * self._in_a_period(layer)
                for layer in layers
            }
        spec, value = self.form
        by_letter = {layer.mixer_spec.letter: layer for layer in layers}
        return {by_letter[letter]: count for letter, count in spec.counts(n_layer, value).items()}

    def _in_the_first(self, count: Any, layer: Layer) -> Any:
        """How many of the first layers, not more than the example has, are such a one."""
        counts = np.cumsum([0, *(one == layer for one in self.example.layers)])
        return counts[count.astype(np.int64)] if np.ndim(count) else int(counts[int(count)])

    def _in_a_period(self, layer: Layer) -> int:
        """How many of the layers that are repeated are such a one."""
        return sum(one == layer for one in self.example.layers[self.once :])

    def patterns(self, n_layer: int) -> dict[str, str | None]:
        """layer_pattern and ffn_pattern of so many layers."""
        if self.form is not None:
            spec, value = self.form
            return {"layer_pattern": spec.pattern(n_layer, value)}
        written = {key: self.example[key] for key in ("layer_pattern", "ffn_pattern")}
        return {
            key: pattern and (pattern + pattern[self.once :] * n_layer)[:n_layer] for key, pattern in written.items()
        }


@functools.cache
def family_of(arch: str) -> Family:
    """The family of a preset. Raises UserError for an unknown one."""
    check_not_refused("arch", arch)
    if arch not in presets():
        raise UserError(f"arch {arch!r} is none of: {', '.join(presets())}{same_name(arch, presets())}")
    return Family(arch)


def arch_names(text: str) -> list[str]:
    """The presets that `llama3,mamba2` names. Raises UserError for one that is none, and for one named twice."""
    names = [name.strip() for name in text.split(",")]
    for index, name in enumerate(names):
        family_of(name)
        if name in names[:index]:
            raise UserError(f"--arch={text} names {name} twice: once is enough")
    return names


# ---------------------------------------------------------------------------------------------------------------------
# The space


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """Every combination of these sizes whose heads come out whole.

    `kv_heads` None is multi-head attention. d_ff is ffn_expansion_ratio x n_embd, up to a multiple of 64 where that is
    not whole, or with `d_ff_step` down to a multiple of it. An architecture without heads has no `head_dims` (empty) or
    `kv_heads` (None), one without a dense FFN the ratio 0, and these sizes are 0. Which layers have which mixer follows
    from their number, as the preset says.

    With experts, an expert is d_ff / granularity wide, up to a multiple that they want; `experts_of` are the
    combinations of the other three that can work. Without them these four are empty.
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
    d_ff_step: int | None = None
    n_experts: Sequence[int] = ()
    n_experts_per_token: Sequence[int] = ()
    n_shared_experts: Sequence[int] = ()
    granularity: Sequence[float] = ()

    def __post_init__(self) -> None:
        self._check_keys()
        for name in ("hidden_sizes", "layers", "head_dims", "kv_heads"):
            sizes = getattr(self, name)
            if name == "head_dims" and not self.family.has_heads:
                continue
            if sizes is not None and (not 0 < len(sizes) <= MOST_SIZES or min(sizes) < 1):
                raise UserError(f"{name} must hold 1 to {MOST_SIZES:,} sizes, each 1 or more")
        if not self.depths:
            raise UserError(f"layers: {self.arch} begins with {self.family.once} that come once: take more of them")
        if self._bound_on_flops() >= 2**62:
            raise UserError("the space's largest model is beyond 64-bit arithmetic: take smaller sizes")
        if self.family.form is not None and min(self.layers) < (kinds := len(self.family.example.layer_counts)):
            raise UserError(f"layers: {self.arch} has {kinds} kinds of layers: take {kinds} or more")
        self._check_positions()

    @property
    def family(self) -> Family:
        return family_of(self.arch)

    def _check_keys(self) -> None:
        family = self.family
        given = {
            "head_dims": (self.head_dims, family.has_heads, without(family)),
            "kv_heads": (self.kv_heads, family.has_kv_heads, without(family)),
            "ffn_expansion_ratio": (self.ffn_expansion_ratio, family.has_d_ff or family.has_experts, without(family)),
        }
        of_experts = (*EXPERT_SIZES[:3], "granularity")
        given |= {name: (getattr(self, name), family.has_experts, "no experts") for name in of_experts}
        for name, (value, is_there, what) in given.items():
            if value and not is_there:
                raise UserError(f"{name}: {self.arch} has {what}: drop it, or take another --arch")
        for name in of_experts if family.has_experts else ():
            if not getattr(self, name):
                raise UserError(f"{name} must hold a size or more: {self.arch} has experts")
        if (choices := math.prod(len(getattr(self, name)) for name in of_experts)) > MOST_SIZES:
            raise UserError(f"{choices:,} choices of experts are more than {MOST_SIZES:,}: take fewer of each")
        if family.has_experts and not self.experts_of:
            raise UserError(self._why_no_experts())

    def _check_positions(self) -> None:
        """Where heads are as wide as n_embd / n_head, and not as a key of their mixer says."""
        position = self.template.component("position_encoding")
        if not self.template.uses_positions or "head_dim" not in self.family.keys:
            return
        odd = [size for size in self.head_dims if size % 2]
        if odd and position.rotates:
            raise UserError(f"head_dims: RoPE rotates pairs, so {odd[0]} cannot be a head dimension; take even ones")
        for size in self.head_dims:
            position.check_heads(self.template.replace(head_dim=size))

    def _bound_on_flops(self) -> float:
        """FLOPs per token that no model of the space exceeds, whichever formula counts them."""
        width: Any = np.float64(max(self.hidden_sizes))
        n_layer = np.float64(max(self.layers))
        head_dim = min(self.head_dims or [width])
        heads = width // head_dim + 1
        sizes = {"n_layer": n_layer, "n_embd": width, "n_head": heads, "num_key_value_heads": heads}
        sizes |= {"head_dim": np.float64(head_dim), "d_ff": self.d_ff(width)}
        if self.family.has_experts:
            sizes |= {name: max(getattr(self, name)) for name in EXPERT_SIZES[:3]}
            sizes["expert_d_ff"] = self.expert_d_ff(width, min(self.granularity))
        largest = Grid(self.family.counts(n_layer), **{**self.template.as_dict(), **sizes})
        published = with_backward(2 * n_layer * heads * self.sequence_length * width)
        return model_cost(largest).training_flops() + published

    @functools.cached_property
    def template(self) -> ModelArchitectureConfig:
        """What all architectures of the space share; its sizes mean nothing."""
        shared = {"vocab_size": self.vocab_size, "block_size": self.sequence_length, "weight_tying": self.weight_tying}
        return self.family.example.replace(**shared)

    @functools.cached_property
    def depths(self) -> list[int]:
        """Numbers of layers that the patterns can have, which go on, or end, with them."""
        return sorted({n_layer for n_layer in self.layers if n_layer > self.family.once})

    @functools.cached_property
    def sizes(self) -> tuple[str, ...]:
        """The names of what its architectures differ in."""
        return SIZES + EXPERT_SIZES if self.family.has_experts else SIZES

    @functools.cached_property
    def experts_of(self) -> list[dict[str, int]]:
        """The combinations of EXPERT_SIZES but the width that can work; one that says nothing without experts."""
        if not self.family.has_experts:
            return [{}]
        names = EXPERT_SIZES[:3]
        each = itertools.product(*(sorted(set(getattr(self, name))) for name in names))
        found = [dict(zip(names, sizes, strict=True)) for sizes in each]
        return [sizes for sizes in found if self._refused(sizes) is None]

    def _refused(self, experts: Mapping[str, int]) -> str | None:
        """Why so many experts cannot work; None where they can."""
        try:
            self.family.spec_with("expert_d_ff").check(self.template.replace(**experts))
        except UserError as error:
            return str(error)
        return None

    def _why_no_experts(self) -> str:
        first = {name: min(getattr(self, name)) for name in EXPERT_SIZES[:3]}
        first["n_experts"] = max(self.n_experts)
        return f"the space is empty: {self._refused(first)}"

    def config(self, sizes: Mapping[str, int]) -> ModelArchitectureConfig:
        """The architecture of the space with these sizes."""
        own: dict[str, Any] = {"n_layer": sizes["n_layer"], "n_embd": sizes["n_embd"]}
        named = ("n_head", "num_key_value_heads", "d_ff", *EXPERT_SIZES)
        own |= {name: sizes[name] for name in named if name in self.family.keys}
        if "head_dim" in self.family.keys:
            own["head_dim"] = sizes["n_embd"] // sizes["n_head"]
        patterns = self.family.patterns(sizes["n_layer"])
        if set(patterns.get("layer_pattern") or "") == {default_letter()}:
            patterns["layer_pattern"] = None
        return self.template.replace(**own, **patterns)

    def d_ff(self, n_embd: Any) -> Any:
        """The FFN's width for an n_embd, or an array of them; 0 without one. A small addition keeps 8/3 x 96 at 256."""
        if not self.family.has_d_ff:
            return 0 * n_embd
        exact = self.ffn_expansion_ratio * n_embd
        if self.d_ff_step is not None:
            return np.maximum(1, np.floor(exact / self.d_ff_step).astype(np.int64)) * self.d_ff_step
        whole = np.floor(exact + 1e-9)
        rounded_up = np.ceil(exact / FFN_STEP) * FFN_STEP
        return np.where(exact - whole > 1e-9, rounded_up, whole).astype(np.int64)

    def expert_d_ff(self, n_embd: Any, granularity: float) -> Any:
        """An expert's width for an n_embd, or an array of them."""
        step = self.family.spec_with("expert_d_ff").own_multiple
        exact = np.round(self.ffn_expansion_ratio / granularity * n_embd, 6)
        return np.maximum(1, np.ceil(exact / step).astype(np.int64)) * step

    @functools.cached_property
    def shapes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(n_embd, n_head, key and value heads) of every valid combination, each (shapes,), the widest last."""
        widths = self._whole(np.array(sorted(set(self.hidden_sizes)), np.int64))
        if not self.family.has_heads:
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

    def _whole(self, widths: np.ndarray) -> np.ndarray:
        """The widths that every layer can have."""
        step = self.family.width_step
        whole = widths[widths % step == 0]
        if not len(whole):
            raise UserError(
                f"the space is empty: the layers of {self.arch} need hidden sizes that are multiples of {step}"
            )
        return whole

    def __len__(self) -> int:
        """Architectures."""
        return self._of_a_kind * len(self.kinds)

    @property
    def _of_a_kind(self) -> int:
        """Architectures with the same experts."""
        return len(self.shapes[0]) * len(self.depths)

    @functools.cached_property
    def kinds(self) -> list[tuple[dict[str, int], float | None]]:
        """Every choice of experts, with every granularity."""
        granularities: list[float | None] = [*sorted(set(self.granularity))] or [None]
        return [(experts, granularity) for experts in self.experts_of for granularity in granularities]

    def chunks(self, chunk: int) -> int:
        """How many grids there are of so many architectures at most."""
        return math.ceil(self._of_a_kind / chunk) * len(self.kinds)

    def grids(self, chunk: int) -> Iterator[Grid]:
        """All architectures, at most `chunk` at a time, in a fixed order. Those of a grid have equal experts, but for
        their width."""
        n_embd, n_head, kv = self.shapes
        layers, shared = np.array(self.depths, np.int64), self.template.as_dict()
        for experts, granularity in self.kinds:
            for start in range(0, self._of_a_kind, chunk):
                index = np.arange(start, min(start + chunk, self._of_a_kind))
                shape, layer = np.divmod(index, len(layers))
                n_layer = layers[layer]
                sizes = {"n_layer": n_layer, "n_embd": n_embd[shape], "n_head": n_head[shape]}
                sizes |= {"num_key_value_heads": kv[shape], "d_ff": self.d_ff(n_embd[shape])}
                if "head_dim" in self.family.keys:
                    sizes["head_dim"] = sizes["n_embd"] // sizes["n_head"]
                if granularity is not None:
                    sizes["expert_d_ff"] = self.expert_d_ff(sizes["n_embd"], granularity)
                yield Grid(self.family.counts(n_layer), **(shared | experts | sizes))


def without(family: Family) -> str:
    """What a family does not have, in words."""
    if not (family.has_heads or family.has_d_ff or family.has_experts):
        return "neither attention nor FFNs"
    return "no FFNs" if family.has_heads else "no attention heads"


def default_space(budget: float, arch: str) -> SearchSpace:
    """A space around what the budget is likely to buy; the published one from 1.6e20 to 9.9e21 FLOPs with llama3.

    The middle is D = 20 N with C = 6 N D, and 64 of width a layer of 12 H^2 parameters; widths reach from 0.2 or 0.4
    to 3 times that in steps of a power of two, so that every budget gets some 30 of them; and to the narrowest that the
    architecture has.
    """
    family, step = family_of(arch), _width_step(budget)
    is_large = step >= PUBLISHED_WIDTH_STEP
    scale = step / PUBLISHED_WIDTH_STEP
    vocab_size, sequence_length = (128256, 2048) if arch == "llama3" and is_large else default_tokens(budget)
    layers = range(max(2, int(16 * scale)), max(16, int(64 * scale)))
    if is_large:
        layers = range(16, int(64 * scale), int(2 * scale))
    grouped = family.has_kv_heads and family.example.component("position_encoding").rotates  # as today's are trained
    head_dims = (16, 32) if step <= 16 else (32, 64) if step <= 64 else (64, 128)
    return SearchSpace(
        arch=arch,
        vocab_size=vocab_size,
        sequence_length=sequence_length,
        hidden_sizes=range((4 if is_large else 2) * step, max(32 * step, family.width_step + 1), step),
        layers=layers,
        head_dims=head_dims if family.has_heads else (),
        kv_heads=(8,) if grouped and is_large else None,
        ffn_expansion_ratio=family.ffn_expansion_ratio,
        weight_tying=family.values.get("weight_tying", True),
        **_experts_of_preset(family),
    )


def _experts_of_preset(family: Family) -> dict[str, Any]:
    """The experts that the preset has, whatever the budget."""
    if not family.has_experts:
        return {}
    found: dict[str, Any] = {name: (family.example[name],) for name in EXPERT_SIZES[:3]}
    return found | {"granularity": (family.granularity,)}


def default_tokens(budget: float) -> tuple[int, int]:
    """Vocabulary and tokens of a sequence, of any architecture."""
    return (256, 256) if budget < SMALL_BUDGET else (50304, 1024)


def default_aspect_ratio(budget: float) -> tuple[float, float]:
    """Width over depth: the law ignores shape and FLOPs favour flat models, so the search must not go where neither
    law nor practice has been. Small models are trained at 20 to 64 (nanoGPT, GPT-2), large ones at up to 200."""
    if budget < SMALL_BUDGET:
        return 16, 64
    return (32, 128) if _width_step(budget) < PUBLISHED_WIDTH_STEP else (32, 256)


def published(space: SearchSpace) -> SearchSpace:
    """The space as the published search has it: d_ff is rounded down to a multiple of 256."""
    return dataclasses.replace(space, d_ff_step=PUBLISHED_WIDTH_STEP)


def _width_step(budget: float) -> int:
    """The power of two that is nearest to a tenth of the likely width, 4 to 16,384."""
    n_params = math.sqrt(budget / 120)
    width = (64 * n_params / 12) ** (1 / 3)
    return 2 ** min(14, max(2, round(math.log2(width / 10))))
