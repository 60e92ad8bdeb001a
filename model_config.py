"""What a model is: its architecture keys, the presets, the list of its layers, and the name it goes by.

The keys of components stand in their rooms (components/); here are those that compose them.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from common.errors import UserError, did_you_mean
from common.keys import Key, check_value, key, keys_of
from components import registry
from components.registry import PRESETS

MOST_LAYERS = 100_000  # of which a list is made
NO_FFN, DENSE_FFN = "-", "F"  # in ffn_pattern: none, and the one that ffn_type names

FIRST_PRESETS = ("legacy", "gpt2", "llama", "llama3", "team")  # where they are listed


class _Core:
    """The keys that decide how components are composed. The defaults are nanoGPT's."""

    arch_preset: str = key(
        "legacy",
        "what the other architecture keys are unless given: nanoGPT's (legacy), those of the family of this name, the "
        "team's, a hybrid's of Mamba-2 and attention, or the plain defaults (custom)",
        group="Architecture: sizes",
        changes="name",
    )
    n_layer: int = key(12, "blocks", at_least=1, below=MOST_LAYERS + 1)
    n_embd: int = key(768, "width of the residual stream", at_least=1)
    block_size: int = key(1024, "context length in tokens", at_least=1)
    vocab_size: int | None = key(
        None, "rows of the embedding; None: the dataset's (with the legacy preset, 50257 becomes 50304)", at_least=1
    )
    normalization: str = key(
        "layernorm", "layernorm, layernorm_nobias, rmsnorm or rmsnorm_zero_centred", group="Architecture: components"
    )
    norm_eps: float = key(1e-5, "added to the variance in every norm", above=0)
    norm_position: str = key(
        "pre",
        "pre: x + f(norm(x)), with a final norm; post: norm(x + f(x)), as the first transformer; sandwich: "
        "x + norm(f(norm(x))), and inside: x + norm(f(x)), with a final norm",
        choices=("pre", "post", "sandwich", "inside"),
    )
    position_encoding: str = key("learned_absolute", "learned_absolute, rope, alibi or none")
    parallel_residual: bool = key(
        False, "mixer and FFN of a block read the same stream, and both are added to it: x + f(norm(x)) + g(norm(x))"
    )
    bias: bool = key(False, "biases in all linear layers")
    weight_tying: bool = key(True, "the LM head is the token embedding")
    embedding_multiplier: float | None = key(
        1.0, "token embeddings are multiplied by this; None: by the root of n_embd", above=0
    )
    residual_multiplier: float = key(1.0, "what mixers and FFNs add to the stream is multiplied by this", above=0)
    logits_scaling: float = key(1.0, "logits are divided by this", above=0)
    final_logit_softcapping: float | None = key(
        None, "c: logits are bounded to +-c, as c tanh(logit / c); None: not", above=0
    )
    dropout: float = key(
        0.0, "after embedding, attention weights, attention and FFN", at_least=0, below=1, changes="speed"
    )
    layer_pattern: str | None = key(
        None,
        "the mixer of each layer: A attention, W attention within attention_window, U attention without positions, "
        "M Mamba-2, S Mamba-1, C latent attention, D gated delta rule, K Kimi delta attention; a shorter pattern is "
        "repeated, but for what stands before a comma; None: A, or what writes it in another way",
        group="Architecture: layers",
    )
    ffn_pattern: str | None = key(
        None,
        "the FFN of each layer: F what ffn_type says, - none, E experts; a shorter pattern is repeated, but for what "
        "stands before a comma, as in FFF,E; None: by ffn_after",
    )
    ffn_after: str = key("all", "which layers have an FFN", choices=("all", "attention", "mamba"))
    layer_values: dict | None = key(
        None,
        "keys that some layers have of their own, by a letter of layer_pattern or by a layer's number from 0: "
        "{'W': {'rope_theta': 1e4}, 3: {'n_head': 4}}",
    )


def architecture_keys() -> dict[str, Key]:
    """All keys of an architecture: of how components are composed, and of every component that is registered."""
    keys = _known_keys()
    return {**keys, "arch_preset": dataclasses.replace(keys["arch_preset"], choices=tuple(presets()))}


def _known_keys() -> dict[str, Key]:
    """The same, before it is known which presets there are."""
    return {**keys_of(_Core), **registry.component_keys()}


def presets() -> dict[str, dict[str, Any]]:
    """Every value of `arch_preset`."""
    return {name: PRESETS[name] for name in dict.fromkeys((*FIRST_PRESETS, *PRESETS))}


class Values(dict[str, Any]):
    """Keys and their values, as one value: nobody changes it."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(repr(sorted(self.items())))


@dataclasses.dataclass(frozen=True)
class Layer:
    """A mixer and an FFN or none, by their names, and the keys that the layer has of its own."""

    mixer: str
    ffn: str | None
    values: Values = dataclasses.field(default_factory=Values)

    @property
    def mixer_spec(self) -> Any:
        return registry.spec("mixer", self.mixer)

    @property
    def ffn_spec(self) -> Any | None:
        return None if self.ffn is None else registry.spec("ffn_type", self.ffn)

    @property
    def specs(self) -> list[Any]:
        """The specs of the mixer, and of the FFN if there is one."""
        return [found for found in (self.mixer_spec, self.ffn_spec) if found is not None]


class ModelArchitectureConfig:
    """Everything that decides a model's parameters and its function, a key an attribute. Immutable.

    A key that is None here is derived from the others by `resolve_architecture`.
    """

    def __init__(self, **given: Any):
        known = _known_keys()
        if unknown := given.keys() - known.keys():
            raise TypeError(f"no architecture key: {', '.join(sorted(unknown))}")
        self._values = {name: given.get(name, one.default) for name, one in known.items()}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"no architecture key {name!r}")
        return self._values[name]

    def __getitem__(self, name: str) -> Any:
        """The value of a key as it was given, where the attribute derives it: `config["head_dim"]` may be None."""
        return self._values[name]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelArchitectureConfig) and self._values == other._values

    __hash__ = None  # type: ignore[assignment]  # some keys are dicts

    def __repr__(self) -> str:
        return f"ModelArchitectureConfig({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"

    def as_dict(self) -> dict[str, Any]:
        """Every key."""
        return dict(self._values)

    def replace(self, **changes: Any) -> "ModelArchitectureConfig":
        """The same with other values for some keys."""
        return type(self)(**{**self._values, **changes})

    def portable(self) -> "ModelArchitectureConfig":
        """The same function, computed by what runs on any machine."""
        return self.replace(**{k: v for layer in self.layer_counts for k, v in layer.mixer_spec.portable.items()})

    @property
    def head_dim(self) -> Any:
        given = self._values["head_dim"]
        return self.n_embd // self.n_head if given is None else given

    @property
    def kv_heads(self) -> Any:
        """Key and value heads, as a number also before `resolve_architecture`."""
        given = self._values["num_key_value_heads"]
        return self.n_head if given is None else given

    @property
    def embedding_factor(self) -> float:
        """What token embeddings are multiplied by."""
        given = self._values["embedding_multiplier"]
        return self.n_embd**0.5 if given is None else given

    @property
    def has_final_norm(self) -> bool:
        """Whether a norm stands before the head: where no layer ends with one."""
        return self.norm_position != "post"

    @property
    def norms_before(self) -> bool:
        """Whether mixers and FFNs read a norm of the stream."""
        return self.norm_position in ("pre", "sandwich")

    @property
    def norms_inside(self) -> bool:
        """Whether what mixers and FFNs add to the stream is normed before."""
        return self.norm_position in ("sandwich", "inside")

    # The layers

    @functools.cached_property
    def layers(self) -> tuple[Layer, ...]:
        """What each layer is. All that is counted, built or divided follows this list."""
        letters, ffns = registry.by_letter("mixer"), registry.by_letter("ffn_type")
        pairs = list(zip(self.pattern, self._ffn_letters(), strict=True))
        plain = {(mixer, ffn): Layer(letters[mixer].name, self._ffn(ffn, ffns)) for mixer, ffn in set(pairs)}
        if self.layer_values is None:
            return tuple(plain[pair] for pair in pairs)
        own = (self._own_values(mixer, index) for index, (mixer, _) in enumerate(pairs))
        return tuple(dataclasses.replace(plain[pair], values=values) for pair, values in zip(pairs, own, strict=True))

    @functools.cached_property
    def layer_counts(self) -> dict[Layer, Any]:
        """The different layers, in the order of their mixers' letters, and how many there are of each."""
        order = list(registry.by_letter("mixer"))
        counts = collections.Counter(self.layers)
        return dict(sorted(counts.items(), key=lambda item: order.index(item[0].mixer_spec.letter)))

    @property
    def last_layer(self) -> Layer:
        return self.layers[-1]

    def of(self, layer: Layer) -> "ModelArchitectureConfig":
        """The architecture with the values that a layer has of its own."""
        return self.replace(**layer.values) if layer.values else self

    @property
    def pattern(self) -> str:
        """The letter of each layer's mixer."""
        return self.layer_pattern or registry.default_letter() * self.n_layer

    def _ffn_letters(self) -> Iterable[str]:
        if self.ffn_pattern is not None:
            return self.ffn_pattern
        found = registry.by_letter("mixer").items()
        after = {letter: DENSE_FFN if self._has_ffn(mixer) else NO_FFN for letter, mixer in found}
        return (after[letter] for letter in self.pattern)

    def _has_ffn(self, mixer: Any) -> bool:
        """What `ffn_after` says of layers with this mixer."""
        return self.ffn_after == "all" or mixer.has_constant_state == (self.ffn_after == "mamba")

    def _ffn(self, letter: str, by_letter: Mapping[str, Any]) -> str | None:
        if letter == NO_FFN:
            return None
        return self.ffn_type if letter == DENSE_FFN else by_letter[letter].name

    def _own_values(self, letter: str, index: int) -> Values:
        values = Values()
        for which in (letter, index, str(index)):  # JSON has no numbers as names
            values |= self.layer_values.get(which, {})
        return values

    def layers_with(self, letters: str | Sequence[str]) -> Any:
        """Layers whose mixer has one of these letters."""
        counts = self.layer_counts.items()
        return sum(count for layer, count in counts if layer.mixer_spec.letter in letters)

    @property
    def ffn_layers(self) -> Any:
        """Layers with an FFN."""
        return sum(count for layer, count in self.layer_counts.items() if layer.ffn is not None)

    @property
    def layer_keys(self) -> set[str]:
        """The keys that its mixers and FFNs have."""
        return {key for layer in self.layer_counts for spec in layer.specs for key in keys_of(type(spec))}

    @property
    def uses_positions(self) -> bool:
        """Whether a position encoding that acts in mixers has one to act in."""
        return any(layer.mixer_spec.uses_positions for layer in self.layer_counts)

    @property
    def has_constant_state(self) -> bool:
        """Whether a layer keeps a state that does not grow with the text."""
        return any(layer.mixer_spec.has_constant_state for layer in self.layer_counts)

    def component(self, kind: str) -> Any:
        """The spec of the component that a key of this name chooses for the whole model."""
        return registry.spec(kind, self._values[kind])

    @property
    def name(self) -> str:
        """E.g. `12L-12H-768D-GQA4-RoPE-RMS-SwiGLU-PreNorm`."""
        layers = list(self.layer_counts)
        suffixes = {suffix: None for layer in layers for suffix in layer.mixer_spec.suffix(self.of(layer))}
        ffns = {layer.ffn_spec.words(self.of(layer)): None for layer in layers if layer.ffn_spec is not None}
        labels = [found.label or found.name for found in map(self.component, ("position_encoding", "normalization"))]
        parts = [f"{self.n_layer}L", *self._mixer_labels(), f"{self.n_embd}D", *suffixes, *labels, *ffns]
        position = {"pre": "PreNorm", "post": "PostNorm", "sandwich": "SandwichNorm", "inside": "InsideNorm"}
        return "-".join([*parts, position[self.norm_position]])

    def _mixer_labels(self) -> list[str]:
        """`12H` of a transformer, `9A15M-16H` of a hybrid, `Mamba2`."""
        specs = list({layer.mixer: layer.mixer_spec for layer in self.layer_counts}.values())
        heads = [f"{self.n_head}H"] if any(found.has_heads for found in specs) else []
        if len(specs) == 1 and (self.layer_pattern is None or not heads):
            return heads or [specs[0].label or specs[0].name]
        letters = [letter for letter in registry.by_letter("mixer") if self.layers_with(letter)]
        return ["".join(f"{self.layers_with(letter)}{letter}" for letter in letters), *heads]


# ---------------------------------------------------------------------------------------------------------------------
# From the keys that a user gives to a complete architecture


def preset_values(preset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the preset sets, less what gives way to the keys that the user gave in another form."""
    values = dict(PRESETS[preset])
    if preset == "legacy" and not given.get("bias", False):
        values["normalization"] = "layernorm_nobias"  # nanoGPT's `bias` speaks of its norms too
    superseded: set[str] = set()
    for found in (*registry.specs("mixer").values(), *registry.specs("ffn_type").values()):
        for name, others in found.replaces.items():
            superseded |= set(others) if given.get(name) is not None else set()
    forms = {"layer_pattern", *pattern_forms()}
    if any(given.get(form) is not None for form in forms):
        superseded |= {form for form in forms if given.get(form) is None}
    if given.get("ffn_pattern") is not None and given.get("ffn_after") is None:
        superseded.add("ffn_after")
    is_another_form = set(values.get("ffn_pattern", "")) <= {DENSE_FFN, NO_FFN}  # otherwise it says which FFN, too
    if given.get("ffn_after") is not None and given.get("ffn_pattern") is None and is_another_form:
        superseded.add("ffn_pattern")
    if given.get("norm_position") == "post":
        superseded.add("parallel_residual")  # which has no such form
    preset_type = values.get("ffn_type", "standard")
    if _is_gated(given.get("ffn_type", preset_type)) != _is_gated(preset_type):
        superseded |= {"activation", "ffn_expansion_ratio", "ffn_multiple_of"}
    return {name: value for name, value in values.items() if name not in superseded}


def _is_gated(ffn_type: str) -> bool:
    """Whether it is known to be: names are checked once the architecture is whole."""
    found = registry.specs("ffn_type").get(ffn_type)
    return found is not None and found.is_gated


def pattern_forms() -> dict[str, Any]:
    """The keys that write the layers' letters in another way than layer_pattern does, and the specs that say how."""
    return {found.pattern_key: found for found in registry.specs("mixer").values() if found.pattern_key is not None}


def resolve_architecture(given: Mapping[str, Any]) -> ModelArchitectureConfig:
    """The complete architecture from the keys that the user gave: defaults, then the preset, then `given`.

    Every derived key becomes a number, except a `vocab_size` of None (the dataset decides it); keys that have then done
    their work, such as `ffn_expansion_ratio` beside a definite `d_ff`, or another form of a `layer_pattern` of all
    layers (None: every mixer is attention), are None. What no layer has, keys and values or an FFN, has no size either:
    None. Raises UserError for an unknown key or component, a wrong type, an impossible value, or a combination that
    cannot work.
    """
    known = architecture_keys()
    for name in given:
        if name not in known:
            raise UserError(f"unknown architecture key {name!r}{did_you_mean(name, known)}")
    registry.check_not_refused("arch_preset", given.get("arch_preset"))
    given = {name: check_value(known[name], value) for name, value in given.items()}
    values = _preset_layers(preset_values(given.get("arch_preset", "legacy"), given), given) | given
    config = _with_layers(ModelArchitectureConfig(**values))
    config = _with_checked_layer_values(config, known, is_given="layer_values" in given)
    _check_names(config)
    config = _with_derived_values(config)
    _check_positions(given, config)
    check_architecture(config)
    _check_idle_keys(given, config)
    return config


def _preset_layers(values: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's patterns go on, or end, with the layers; its values are for those of them that are there."""
    n_layer = given.get("n_layer", _known_keys()["n_layer"].default)
    for key_name in ("layer_pattern", "ffn_pattern"):
        if (pattern := values.get(key_name)) is not None:
            once, _, again = pattern.rpartition(",")
            values = values | {key_name: (once + again * n_layer)[:n_layer]}
    if (own := values.get("layer_values")) is not None:
        letters = given.get("layer_pattern") or values.get("layer_pattern") or registry.default_letter()
        values = values | {"layer_values": {which: one for which, one in own.items() if which in letters} or None}
    return values


def _with_layers(config: ModelArchitectureConfig) -> ModelArchitectureConfig:
    """With a letter for each layer in the two patterns; None: every layer is attention, FFNs are as ffn_after says."""
    pattern, n_layer = config.layer_pattern, config.n_layer
    forms = {name: config[name] for name in pattern_forms() if config[name] is not None}
    said = {"layer_pattern": pattern, **forms} if pattern is not None else forms
    if len(said) > 1:
        listed = " and ".join(f"{name}={value!r}" for name, value in said.items())
        raise UserError(f"{listed} say the same thing twice; set one of them to None")
    if pattern is not None:
        pattern = _whole_pattern("layer_pattern", pattern, n_layer, _mixer_letters())
    for name, value in forms.items():
        pattern = pattern_forms()[name].pattern(n_layer, value)
    if pattern is not None and set(pattern) == {registry.default_letter()}:
        pattern = None
    ffn_pattern = config.ffn_pattern
    if ffn_pattern is not None:
        ffn_pattern = _whole_pattern("ffn_pattern", ffn_pattern, n_layer, _ffn_letters())
        if config.ffn_after != "all":
            raise UserError(
                f"ffn_pattern and ffn_after={config.ffn_after!r} say the same thing twice: drop one of them"
            )
    return config.replace(layer_pattern=pattern, ffn_pattern=ffn_pattern, **dict.fromkeys(forms))


def _mixer_letters() -> dict[str, str]:
    """What each letter of layer_pattern means, in words."""
    return {letter: found.name for letter, found in registry.by_letter("mixer").items()}


def _ffn_letters() -> dict[str, str]:
    """What each letter of ffn_pattern means, in words."""
    own = {letter: found.name for letter, found in registry.by_letter("ffn_type").items()}
    return {DENSE_FFN: "ffn_type's", NO_FFN: "none", **own}


def _whole_pattern(key_name: str, pattern: str, n_layer: int, meanings: Mapping[str, str]) -> str:
    once, _, again = pattern.rpartition(",")
    if set(once + again) - set(meanings) or not again:
        meant = ", ".join(f"{letter} {meaning}" for letter, meaning in meanings.items())
        raise UserError(f"{key_name}={pattern!r} must be made of the letters {meant}")
    if len(once) > n_layer:
        raise UserError(f"{key_name} has {len(once)} letters before its comma, more than n_layer={n_layer}")
    if (n_layer - len(once)) % len(again):
        of_rest = f"the {n_layer - len(once)} layers after the first {len(once)}" if once else f"n_layer={n_layer}"
        raise UserError(f"{key_name} has {len(again)} letters, which do not divide {of_rest}")
    return once + again * ((n_layer - len(once)) // len(again))


def _with_checked_layer_values(
    config: ModelArchitectureConfig, known: Mapping[str, Key], is_given: bool
) -> ModelArchitectureConfig:
    """Raises UserError for a layer that there is not, and for keys that its mixer and FFN do not have; those of a
    preset, which another key has made idle, are left out."""
    if config.layer_values is None:
        return config
    names = {*config.pattern, *range(config.n_layer), *map(str, range(config.n_layer))}
    for which, values in config.layer_values.items():
        if which not in names or not isinstance(values, dict):
            raise UserError(
                f"layer_values: {which!r}: {values!r} must be a letter of layer_pattern or a number from 0 to "
                f"{config.n_layer - 1}, with keys and their values"
            )
    checked: dict[Any, Any] = {}
    for which, values in config.layer_values.items():
        layers = [layer for names, layer in _named_layers(config) if which in names]
        own = {name for layer in layers for found in _used(config, layer) for name in keys_of(type(found))}
        values = values if is_given else {name: value for name, value in values.items() if name in own}
        for name in values:
            if name not in own - {"ffn_type"}:
                hint = did_you_mean(str(name), own)
                raise UserError(f"layer_values: {name!r} is no key of the layer {which!r}{hint}")
        checked[which] = {name: check_value(known[name], value) for name, value in values.items()}
    return config.replace(layer_values=checked)


def _named_layers(config: ModelArchitectureConfig) -> Iterator[tuple[tuple[Any, ...], Layer]]:
    """Every layer with the names that it has in layer_values."""
    for index, layer in enumerate(config.layers):
        yield (index, str(index), config.pattern[index]), layer


def _used(config: ModelArchitectureConfig, layer: Layer) -> list[Any]:
    """The specs of everything in a layer, its mixer's positions included. Unknown names are left out."""
    found = list(layer.specs)
    if layer.mixer_spec.uses_positions:
        found.append(config.component("position_encoding"))
    for one in layer.specs:
        found += one.within(config.of(layer)).values()
    return found


def _check_names(config: ModelArchitectureConfig) -> None:
    """Raises UserError for a component that is not registered."""
    for kind in ("normalization", "position_encoding"):
        config.component(kind)
    for layer in config.layer_counts:
        for found in layer.specs:
            found.within(config.of(layer))


def _with_derived_values(config: ModelArchitectureConfig) -> ModelArchitectureConfig:
    """With the numbers that the components derive, and without sizes of what no layer has. A layer with values of its
    own has what follows from them of its own too."""
    specs = list(dict.fromkeys(spec for layer in config.layer_counts for spec in layer.specs))
    derived = {name: value for spec in specs for name, value in spec.derived(config).items()}
    used = {name for spec in specs for name in keys_of(type(spec))}
    idle = {name: None for name, one in _layer_keys().items() if name not in used and type(None) in one.types}
    if config.layer_values is None:
        return config.replace(**(idle | derived))
    values = {}
    for which, own in config.layer_values.items():
        layer = next(layer for names, layer in _named_layers(config) if which in names)
        follows = {k: v for spec in layer.specs for k, v in spec.derived(config.of(layer)).items()}
        values[which] = own | {k: v for k, v in follows.items() if k in own or v != derived[k]}
    return config.replace(**(idle | derived), layer_values=values)


def _layer_keys() -> dict[str, Key]:
    """The keys of all mixers and FFNs."""
    specs = [*registry.specs("mixer").values(), *registry.specs("ffn_type").values()]
    return {name: one for found in specs for name, one in keys_of(type(found)).items()}


def _check_positions(given: Mapping[str, Any], config: ModelArchitectureConfig) -> None:
    """Raises UserError for a position encoding that acts in mixers, which no layer has: what says so, and whose
    encoding it is, may be the preset and not the user."""
    if config.uses_positions or config.component("position_encoding").acts_in != "mixers":
        return
    preset = f"arch_preset={config.arch_preset!r}"
    says = [f"{name}={given[name]!r}" for name in ("layer_pattern", *pattern_forms()) if given.get(name) is not None]
    of_preset = "" if "position_encoding" in given else f" of {preset}"
    raise UserError(
        f"{(says or [preset])[0]} leaves no layer with attention, in which position_encoding="
        f"{config.position_encoding!r}{of_preset} acts: take position_encoding='none'"
    )


def check_architecture(config: ModelArchitectureConfig) -> None:
    """Raises UserError, with the reason, for sizes and combinations that cannot work together."""
    handed: dict[str, dict[str, Any]] = {}
    for layer in config.layer_counts:
        for name, sizes in layer.mixer_spec.hands_on(config.of(layer)).items():
            if (first := handed.setdefault(name, sizes)) != sizes:
                one, other = (" and ".join(f"{key}={size}" for key, size in each.items()) for each in (first, sizes))
                raise UserError(f"layers of {one} and of {other} cannot share {name}: give them equal sizes")
        for found in layer.specs:
            found.check(config.of(layer))
            for inner in found.within(config.of(layer)).values():
                inner.check(config.of(layer))
    for kind in ("normalization", "position_encoding"):
        config.component(kind).check(config)
    if config.parallel_residual and config.norm_position == "post":
        raise UserError(
            "parallel_residual=True: mixer and FFN read norms of one stream, so norm_position='post' has no meaning"
        )


def _check_idle_keys(given: Mapping[str, Any], config: ModelArchitectureConfig) -> None:
    """Raises UserError for a key that says something about what no layer has, or what no layer uses."""
    used = [(config.component(kind), config) for kind in ("normalization", "position_encoding")]
    used += [(found, config.of(layer)) for layer in config.layer_counts for found in _used(config, layer)]
    idle = {name: why for found, own in used for name, why in found.idle(own).items()}
    names = {name for found, own in used for name in keys_of(type(found)).keys() - found.idle(own).keys()}
    if config.uses_positions:  # a preset's rope_theta may stand beside another encoding
        names |= {name for found in registry.specs("position_encoding").values() for name in keys_of(type(found))}
    for name, one in registry.component_keys().items():
        value = given.get(name)
        allowed = (one.default, PRESETS[config.arch_preset].get(name))
        if name not in names and value is not None and value not in allowed and name not in pattern_forms():
            if name in idle:
                raise UserError(f"{name}={value!r} changes nothing where {idle[name]}: drop it, or change that")
            what = one.what or "what it is of"
            raise UserError(f"{name}={value!r} is given, but no layer has {what}: drop it, or change layer_pattern")
