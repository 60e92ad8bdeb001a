"""docs/reference/components.md: what every component computes, by the docstring of its module, and what its spec says.

python -m components.reference > docs/reference/components.md
"""

import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from common.errors import exit_cleanly
from common.keys import Key, keys_of
from components import registry
from components.spec import MicroBatch
from interop.configurations import FAMILIES, exact_keys
from interop.samples import small
from model_config import ModelArchitectureConfig, presets, resolve_architecture

# The example that costs are of. Where a component has a key of these, it has this value.
EXAMPLE = {"n_embd": 512, "n_head": 8, "block_size": 1024, "attention_window": 256}
KINDS = {
    "mixer": "Mixers",
    "ffn_type": "FFNs",
    "normalization": "Norms",
    "activation": "Activations",
    "position_encoding": "Position encodings",
    "attention_backend": "Attention backends",
    "mamba_backend": "Backends of Mamba-2's scan",
}
_HOLDERS = {"attention_backend": "A", "mamba_backend": "M"}  # the letter of the mixer that has one within

START = f"""\
# Components

<!-- Generated from the registry: python -m components.reference > docs/reference/components.md -->

What a config file can choose, from the registry: formulas, shapes and sources are the docstrings of the modules below
[components/](../../components), keys and costs are their specs'. How to add one: [extending.md](../extending.md).

Shapes: B batch, T tokens, S tokens in the cache before them, D n_embd, H query heads, K key-value heads, h head_dim,
F d_ff, or of an expert expert_d_ff. What stands in `name(...)` and is no function is a matrix of the component.

**Costs** are of one instance in the example {", ".join(f"{key}={value}" for key, value in EXAMPLE.items())}, one
sequence in bfloat16, and all other keys at their defaults. FLOPs are forward, per token, in the full convention and the
causal one ([flops.md](../flops.md)); kept bytes are those that the backward pass needs, per token
([memory.md](../memory.md)); the cache is that of one sequence of block_size tokens ([decoding.md](../decoding.md)).
Where a token meets a part of the parameters, active ones stand beside all.

**Families** are those of Hugging Face that have the component ([hugging_face.md](../hugging_face.md)): of each, the
small config.json that `interop/samples.py` makes is read as any is. Other models of a family may have fewer: a Qwen
without windows is all attention.
"""


def documentation() -> str:
    """The page."""
    families = components_of_families()
    parts = [START, *(_of_kind(kind, title, families) for kind, title in KINDS.items()), _of_presets()]
    return "\n".join(parts)


def components_of_families() -> dict[tuple[str, str], list[str]]:
    """For each component, as (kind, name), the families whose small model has it."""
    found: dict[tuple[str, str], list[str]] = {}
    for model_type in FAMILIES:
        config = _architecture(model_type)
        specs = [config.component("normalization"), config.component("position_encoding")]
        for layer in config.layer_counts:
            specs += layer.specs
            inner = (one for spec in layer.specs for one in spec.within(config.of(layer)).values())
            specs += [one for one in inner if one.kind not in _HOLDERS]  # of which any machine has its own
        for spec in dict.fromkeys(specs):
            found.setdefault((spec.kind, spec.name), []).append(model_type)
    return found


def _architecture(model_type: str) -> ModelArchitectureConfig:
    return resolve_architecture({"arch_preset": "custom", **exact_keys(small(model_type))})


# ---------------------------------------------------------------------------------------------------------------------
# One kind


def entries(kind: str) -> list[list[Any]]:
    """The specs of a kind that have a module, those together that have both spec and module in common."""
    found: dict[tuple[type, Any], list[Any]] = {}
    for name, spec in registry.specs(kind).items():
        if registry.has_module(kind, name):
            found.setdefault((type(spec), registry.module(kind, name)), []).append(spec)
    return list(found.values())


def _of_kind(kind: str, title: str, families: dict[tuple[str, str], list[str]]) -> str:
    groups = entries(kind)
    parts = [
        f"## {title}\n",
        f"{_chosen_by(kind)}\n",
        table(*_costs(kind, [spec for group in groups for spec in group])),
    ]
    parts += [_entry(kind, group, families) for group in groups]
    return "\n".join([*parts, *_keys(kind, groups)])


def _chosen_by(kind: str) -> str:
    if kind == "mixer":
        return "Chosen by a letter of `layer_pattern` for each layer."
    lettered = [
        f"`{spec.letter}` {spec.name}" for group in entries(kind) for spec in group if getattr(spec, "letter", None)
    ]
    more = f", or by a letter of `ffn_pattern`: {', '.join(lettered)}" if lettered else ""
    return f"Chosen by the key `{kind}`{more}."


def _entry(kind: str, group: list[Any], families: dict[tuple[str, str], list[str]]) -> str:
    letter = getattr(group[0], "letter", None)
    heading = ", ".join(spec.name for spec in group) + (f" ({letter})" if letter else "")
    parts = [f"### {heading}\n", f"{formula(kind, group[0])}\n"]
    if weights := group[0].all_weights(example(kind, group[0])):
        shapes = (f"`{name}` ({', '.join(map(str, one.shape))})" for one in weights for name in one.names)
        parts.append(f"Parameters: {', '.join(shapes)}.\n")
    for spec in group:
        if having := families.get((kind, spec.name)):
            of = f" with {spec.name}" if len(group) > 1 else ""
            parts.append(f"Families{of}: {', '.join(having)}.\n")
    return "\n".join(parts)


def formula(kind: str, spec: Any) -> str:
    """The docstring of what computes a component, in which the formula is an indented block."""
    return inspect.getdoc(registry.module(kind, spec.name)) or ""


def _keys(kind: str, groups: list[list[Any]]) -> Iterator[str]:
    """A table of the keys that the components of a kind have of their own."""
    having: dict[str, tuple[Key, list[str]]] = {}
    for group in groups:
        for name, key in keys_of(type(group[0])).items():
            having.setdefault(name, (key, []))[1].extend(spec.name for spec in group)
    if having:
        count = sum(map(len, groups))
        rows = [
            (f"`{key.name}`", "all" if len(names) == count else ", ".join(names), key.type_and_bounds,
             f"`{key.default}`", key.help)
            for key, names in having.values()
        ]  # fmt: skip
        yield f"### Keys: {KINDS[kind]}\n"
        yield table(("Key", "Of", "Takes", "Default", "Meaning"), rows)


# ---------------------------------------------------------------------------------------------------------------------
# Costs


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one instance: parameters and those that a token meets, forward FLOPs per token and those that the causal
    convention leaves out, kept bytes per token, and the cache's bytes (None: the component is no mixer)."""

    parameters: int
    active: int
    flops: int
    masked: int
    kept: float
    cache: int | None


def costs(kind: str, spec: Any) -> Costs:
    """Of the example."""
    config = example(kind, spec)
    weights, products = spec.all_weights(config), spec.all_products(config, config.block_size)
    cache = None
    if kind == "mixer":
        left = spec.remembers(config, config.block_size, False)
        cache = sum(one.elements * (4 if one.in_float32 else 2) for one in left)
    return Costs(
        sum(one.size for one in weights),
        sum(one.of_these_met(one.size) for one in weights),
        sum(2 * one.of_these_met(one.size) for one in weights if one.multiplies) + sum(one.flops for one in products),
        sum(one.masked for one in products),
        spec.kept(MicroBatch(config, 1, 2)) / config.block_size,
        cache,
    )


def example(kind: str, spec: Any) -> ModelArchitectureConfig:
    """One layer with the component."""
    keys: dict[str, Any] = {"arch_preset": "custom", "n_layer": 1, "vocab_size": 256}
    keys |= {"position_encoding": "rope", "ffn_pattern": "F"}
    if kind == "mixer":
        keys |= {"layer_pattern": spec.letter, "ffn_pattern": "-"}
    elif kind == "ffn_type" and spec.letter is not None:
        keys |= {"ffn_pattern": spec.letter}
    elif kind in _HOLDERS:
        keys |= {"layer_pattern": _HOLDERS[kind], kind: spec.name}
    else:
        keys |= {kind: spec.name}
    mixer = registry.by_letter("mixer")[keys.get("layer_pattern", registry.default_letter())]
    if not mixer.uses_positions:
        keys["position_encoding"] = "none"
    known = set(registry.component_keys()) - set(keys_of(type(mixer)))
    return resolve_architecture(keys | {key: value for key, value in EXAMPLE.items() if key not in known})


def _costs(kind: str, specs: list[Any]) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
    """The header and the rows of a kind's table of costs: without columns that say nothing of it,
    or no more than the one before."""
    rows = [("Name", "Parameters", "Active", "FLOPs, full", "FLOPs, causal", "Kept bytes", "Cache bytes")]
    for spec in specs:
        cost = costs(kind, spec)
        numbers = (cost.parameters, cost.active, cost.flops, cost.flops - cost.masked, cost.kept, cost.cache)
        rows.append((f"`{spec.name}`", *("" if one is None else f"{one:,.10g}" for one in numbers)))  # type: ignore[arg-type]
    columns = list(zip(*rows, strict=True))
    says = [column for column in columns if not set(column[1:]) <= {"0", ""}]
    says = [column for place, column in enumerate(says) if column[1:] != says[place - 1][1:]]
    header, *others = zip(*says, strict=True)
    return header, others


# ---------------------------------------------------------------------------------------------------------------------
# Presets, and text


def _of_presets() -> str:
    rows = []
    for name in presets():
        architecture = resolve_architecture({"arch_preset": name, "n_layer": 12})
        rows.append((f"`{name}`", registry.PRESET_SOURCES[name], architecture.name))
    start = (
        "## Presets\n\nValues of `arch_preset`; what each sets stands in "
        "[configuration.md](../configuration.md#presets).\n"
        "The architecture is that of 12 layers and else default sizes.\n\n"
    )
    return start + table(("Preset", "Source", "Architecture"), rows)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


@exit_cleanly
def main() -> None:
    print(documentation(), end="")


if __name__ == "__main__":
    main()
