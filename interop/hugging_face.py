"""Hugging Face in and out: configurations and weights of the FAMILIES below as those of a LanguageModel, and back.

A configuration is what `config.json` holds (`PretrainedConfig.to_dict()`), in the form of transformers 4 or 5; what is
written is for 5. What a LanguageModel, or the other way round their class, cannot be is refused by the name of its
key; nothing that changes the function is passed over.

    config = architecture_to_hugging_face(model.config)                     -> config.json
    weights = weights_to_hugging_face(model.state_dict(), model.config)     -> model.safetensors
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from components.registry import component_keys
from interop.attention_models import (
    GEMMA2,
    GEMMA3,
    GPT2,
    GPT_NEOX,
    GRANITE,
    LLAMA,
    MISTRAL,
    OLMO2,
    OLMO3,
    PHI3,
    QWEN2,
    QWEN3,
    SMOLLM3,
)
from interop.configurations import FAMILIES as KEYS
from interop.configurations import exact_architecture
from interop.delta_models import KIMI_LINEAR, QWEN3_NEXT
from interop.expert_models import GPT_OSS, MIXTRAL, OLMOE, QWEN3_MOE
from interop.family import Family, Place
from interop.hybrid_models import GRANITE_HYBRID, NEMOTRON_H
from interop.latent_models import DEEPSEEK_V2, DEEPSEEK_V3
from interop.state_space_models import BAMBA, MAMBA, MAMBA2
from model_builder import LanguageModel
from model_config import Layer, ModelArchitectureConfig, architecture_keys

# An architecture that several of them have is written as the first.
FAMILIES = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "phi3": PHI3,
    "smollm3": SMOLLM3,
    "gpt_neox": GPT_NEOX,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "olmo2": OLMO2,
    "olmo3": OLMO3,
    "granite": GRANITE,
    "mixtral": MIXTRAL,
    "qwen3_moe": QWEN3_MOE,
    "olmoe": OLMOE,
    "gpt_oss": GPT_OSS,
    "deepseek_v3": DEEPSEEK_V3,
    "deepseek_v2": DEEPSEEK_V2,
    "mamba": MAMBA,
    "mamba2": MAMBA2,
    "bamba": BAMBA,
    "granitemoehybrid": GRANITE_HYBRID,
    "nemotron_h": NEMOTRON_H,
    "qwen3_next": QWEN3_NEXT,
    "kimi_linear": KIMI_LINEAR,
}
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_HEAD = "lm_head"  # which their prefix is not before
_EMBEDDING = "embedding.weight"
_OF_FEW_CLASSES = {"C": "latent attention", "D": "the gated delta rule", "K": "Kimi delta attention"}
_KINDS = (".weight", ".bias", "")  # of a module's parameters; a parameter of its own has no kind

# ---------------------------------------------------------------------------------------------------------------------
# Configurations


def architecture_from_hugging_face(config: Mapping[str, Any]) -> ModelArchitectureConfig:
    """The architecture of a model whose `model_type` is in FAMILIES, any of its versions.

    Mamba and Mamba-2 have no length of their own: block_size is 2048, at which the published ones were trained.
    Raises UserError, naming the key, for a model or a feature that a LanguageModel does not have.
    """
    return exact_architecture(config)


def architecture_to_hugging_face(
    config: ModelArchitectureConfig, special_tokens: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The content of a config.json with which transformers computes the same function.

    `special_tokens` are ids by the names of SPECIAL_TOKENS (None: the model has none of these). `dropout`, which acts
    in training only, and the block_size of a Mamba or Mamba-2 are left out where their class has no such thing. Raises
    UserError, with the reason, for an architecture that none of their classes has exactly.
    """
    if config.vocab_size is None:
        raise UserError("vocab_size=None: Hugging Face's configuration needs the number")
    tried = [_write(config, model_type, special_tokens) for model_type in _model_types(config)]
    written, refusals = min(tried, key=lambda one: len(one[1]))  # of a model that none is, that which is nearest
    if refusals:
        raise UserError(refusals[0])
    return written


def _model_types(config: ModelArchitectureConfig) -> list[str]:
    """The families that have mixers of these kinds."""
    letters = set(config.pattern)
    found = [
        model_type
        for model_type, family in FAMILIES.items()
        if letters == family.mixers.keys() or (family.may_lack_mixers and letters < family.mixers.keys())
    ]
    if letters == {"M"} and config.ffn_layers:
        what = "Mamba-2 with FFNs and without attention"
    elif found:
        return found
    elif kinds := [kind for letter, kind in _OF_FEW_CLASSES.items() if letter in letters]:
        what = f"{kinds[0]} beside such mixers"
    else:
        what = "attention within a window" if "W" in letters else "Mamba-1 beside other mixers"
    raise UserError(f"layer_pattern={config.pattern!r}: no class of Hugging Face's known here has {what}")


def _write(
    config: ModelArchitectureConfig, model_type: str, special_tokens: Mapping[str, Any] | None
) -> tuple[dict[str, Any], list[str]]:
    """The config.json of a family's model that is nearest to this one, and why it is not the same: a reason for each
    key, or as many as there are keys where the family has no such model at all."""
    family = FAMILIES[model_type]
    try:
        if family.has_ffn is not None and config.ffn_layers != (config.n_layer if family.has_ffn else 0):
            has = "an FFN after every layer" if family.has_ffn else "no FFN"
            key = "ffn_after" if config.ffn_pattern is None else "ffn_pattern"
            raise UserError(f"{family.model_class} has {has}: {key}={config[key]!r} cannot be represented")
        written = {
            "model_type": model_type,
            "architectures": [family.model_class],
            **(dict.fromkeys(SPECIAL_TOKENS) if special_tokens is None else special_tokens),
            **{theirs: getattr(config, ours) for theirs, ours in KEYS[model_type].same.items()},
            **family.write(config),
        }
        # What it comes back as is the truth of what was written.
        ours, theirs = (_what_acts(of, family) for of in (config, architecture_from_hugging_face(written)))
    except UserError as error:
        return {}, [str(error)] * len(architecture_keys())
    return written, [
        _refusal(key, value, theirs.get(key), config, family) for key, value in ours.items() if value != theirs.get(key)
    ]


def _refusal(key: str, value: Any, theirs: Any, config: ModelArchitectureConfig, family: Family) -> str:
    if any(key in layer.values for layer in config.layers):
        what = f"layer_values={config.layer_values!r} cannot be represented"
        return f"{what}: {family.model_class} has no layer's own keys of this kind"
    return f"{key}={value!r} cannot be represented: {family.model_class} has {theirs!r}"


def _what_acts(config: ModelArchitectureConfig, family: Family) -> dict[str, Any]:
    """The keys that decide the function, in a form that is one for equal functions. One that differs among layers has
    a list, of its values in each (None: the layer has no such key)."""
    composed = ("layer_pattern", "ffn_pattern", "ffn_after", "layer_values")  # which the list of layers says
    core = [name for name, key in architecture_keys().items() if key.changes == "function" and key.what is None]
    values = {name: config[name] for name in core if name not in (*composed, *component_keys())}
    values["embedding_multiplier"] = config.embedding_factor
    if family.has_ffn is False:  # no length either; and their mixers say of themselves which biases they have
        del values["block_size"], values["bias"]
    values |= {"layer_pattern": config.pattern, **config.component("position_encoding").function(config)}
    layers = [_of_layer(config, layer) for layer in config.layers]
    for name in {name: None for layer in layers for name in layer}:
        found = [layer.get(name) for layer in layers]
        told = [value for value in found if value is not None]
        values[name] = found if any(value != told[0] for value in told) else told[0] if told else None
    return values


def _of_layer(config: ModelArchitectureConfig, layer: Layer) -> dict[str, Any]:
    own = config.of(layer)
    position = [own.component("position_encoding")] if layer.mixer_spec.uses_positions else []
    return {name: value for spec in (*position, *layer.specs) for name, value in spec.function(own).items()}


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def weights_from_hugging_face(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The `state_dict` of the LanguageModel that `architecture_from_hugging_face(config)` describes.

    Every tensor keeps its dtype and device; some share memory with those given. Gradients under their parameters'
    names are carried over as well as weights. Of tied matrices one suffices, whichever it is. Raises UserError for a
    tensor that is unknown, missing or misshapen, and for a head that is not the embedding although they are tied.
    """
    architecture, family = architecture_from_hugging_face(config), FAMILIES[config["model_type"]].of(config)
    expected = _parameters(architecture)
    weights: dict[str, Tensor] = {}
    known = {
        f"{theirs.removeprefix(family.prefix)}{kind}": ([f"{module}{kind}" for module in ours], place)
        for theirs, ours, place in modules_of(family, architecture)
        for kind in _KINDS
    }
    beyond = family.left_out + _layers_beyond(family, config, architecture.n_layer)
    for name, tensor in family.by_todays_names(state_dict).items():
        if name.endswith(family.buffers) or name.startswith(beyond):
            continue
        if (bare := name.removeprefix(family.prefix)) not in known:
            raise UserError(f"tensor {name!r} has no place in a LanguageModel made of this {family.model_class}")
        names, place = known[bare]
        weights |= _split(name, names, place.to_ours(tensor, architecture), expected)
    head = weights.pop(f"{_HEAD}.weight", None) if architecture.weight_tying else None
    if head is not None and not _same(weights.setdefault(_EMBEDDING, head), head):
        raise UserError(
            f"{_HEAD}.weight is not the embedding, although the configuration ties them: with "
            "tie_word_embeddings=false, as which transformers loads them, they are kept apart"
        )
    _check_complete(weights, expected)
    return weights


def _layers_beyond(family: Family, config: Mapping[str, Any], n_layer: int) -> tuple[str, ...]:
    """What the tensors begin with that predict further tokens (DeepSeek-V3), which transformers leaves out, too."""
    further = config.get("num_nextn_predict_layers") or 0
    return tuple(f"{family.prefix}{family.blocks}.{n_layer + index}." for index in range(further))


def as_stored(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration that the tensors say: untied where it ties a head to an embedding that differs, as transformers
    does when it loads them."""
    family = FAMILIES[config["model_type"]]
    state_dict = family.by_todays_names(state_dict)
    (embedding,) = (theirs for theirs, place in family.outside.items() if place.modules == ("embedding",))
    names = (f"{_HEAD}.weight", f"{family.prefix}{embedding}.weight", f"{embedding}.weight")
    head, *tables = (state_dict.get(name) for name in names)
    differs = head is not None and any(table is not None and not _same(table, head) for table in tables)
    return {**config, "tie_word_embeddings": False} if differs else dict(config)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def weights_to_hugging_face(weights: Mapping[str, Tensor], config: ModelArchitectureConfig) -> dict[str, Tensor]:
    """The tensors of the model that `architecture_to_hugging_face(config)` describes, from a LanguageModel's
    `state_dict` or its gradients; a tied head is not among them, as in their own files.

    Dtypes and devices stay; what is no concatenation shares memory with what was given, each tensor contiguous.
    Raises UserError for an architecture without a class, and for a tensor that is unknown, missing or misshapen.
    """
    written = architecture_to_hugging_face(config)
    family = FAMILIES[written["model_type"]].of(written)
    _check_complete(weights, _parameters(config))
    found: dict[str, Tensor] = {}
    for theirs, ours, place in modules_of(family, config):
        for kind in _KINDS:
            parts = [weights[f"{module}{kind}"] for module in ours if f"{module}{kind}" in weights]
            if parts:
                whole = parts[0] if len(parts) == 1 else torch.cat(parts)
                found[f"{theirs}{kind}"] = place.to_theirs(whole, config).contiguous()
    return found


def as_in_files(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """`weights_to_hugging_face` under the names that public files of the family have."""
    in_files = FAMILIES[config["model_type"]].in_files
    return dict(tensors) if in_files is None else in_files.apart(tensors)


def _parameters(config: ModelArchitectureConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return LanguageModel(config).state_dict()


def modules_of(family: Family, config: ModelArchitectureConfig) -> Iterator[tuple[str, tuple[str, ...], Place]]:
    """Every module's name there, its names here, and the way between."""
    for name, place in family.outside.items():
        yield name if name == _HEAD else f"{family.prefix}{name}", place.modules, place
    number = 0
    for index, layer in enumerate(config.layers):
        has_experts = layer.ffn_spec is not None and layer.ffn_spec.loads(config) > 0
        for of_theirs in family.layers(layer.mixer_spec.letter, layer.ffn is not None, has_experts):
            for name, place in of_theirs.items():
                ours = tuple(f"blocks.{index}.{module}" for module in place.modules)
                yield f"{family.prefix}{family.blocks}.{number}.{name}", ours, place
            number += 1


def _split(name: str, names: list[str], tensor: Tensor, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By rows, if one of theirs is several of ours."""
    if len(names) == 1:
        return {names[0]: tensor}
    if not expected.keys() >= set(names):
        raise UserError(f"the weights have {name}, which the configuration does not")
    rows = [expected[part].shape[0] for part in names]
    if tensor.shape[0] != sum(rows):
        raise UserError(f"{name} has {tensor.shape[0]} rows, the configuration says {sum(rows)}")
    return dict(zip(names, tensor.split(rows), strict=True))


def _check_complete(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, tensor in expected.items():
        if name not in weights:
            raise UserError(f"the weights lack {name}")
        if weights[name].shape != tensor.shape:
            raise UserError(f"{name} is {tuple(weights[name].shape)}, the configuration says {tuple(tensor.shape)}")
    for name in weights.keys() - expected.keys():
        raise UserError(f"the weights have {name}, which the configuration does not")
