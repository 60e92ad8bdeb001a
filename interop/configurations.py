"""What Hugging Face's config.json says of a model: read by what interop/keys says of its family. No torch.

A key is of one of three sorts. Those of interop/known_keys.py change neither what a model computes nor what is counted.
Those of `function` and `fixed` change what it computes and no count. The others, `required` and `counted`, decide the
counts. `counted_keys` passes over the values of the second sort, so it serves a planner; `exact_keys` reads or refuses
every one of them, so what it returns computes the same. What either makes of a key that it does not know, known_keys.py
says; `notes` names what was passed over.
"""

from typing import Any

from common.errors import UserError, same_name
from components.registry import REFUSED
from interop.keys import deepseek, delta, experts, gemma_olmo, gpt2, llama, mamba_hybrids, state_space
from interop.keys.base import (
    ANOTHER_NETWORK,
    FIXED_EVERYWHERE,
    FamilyKeys,
    Keys,
    Values,
    check_counted,
    check_like,
    check_only,
    check_size,
    plain,
)
from interop.known_keys import check_is_language_model, check_unknown, unknown_to
from model_config import ModelArchitectureConfig, resolve_architecture

_GROUPS = (gpt2, llama, gemma_olmo, experts, deepseek, state_space, mamba_hybrids, delta)
FAMILIES: dict[str, FamilyKeys] = {name: family for group in _GROUPS for name, family in group.FAMILIES.items()}


def with_model_type(config: Values) -> Keys:
    """GPT-2's first files were written before there were types, and name their class alone."""
    untyped = "model_type" not in config and config.get("architectures") == ["GPT2LMHeadModel"]
    return {**config, "model_type": "gpt2"} if untyped else dict(config)


def has_room(config: Values) -> bool:
    """Whether the content of a config.json is of one of FAMILIES."""
    model_type = config.get("model_type")
    return isinstance(model_type, str) and model_type in FAMILIES


def no_room(model_type: Any) -> str:
    """That a model_type is none of FAMILIES, and which it may have meant, or why it is none."""
    if isinstance(model_type, str) and model_type in REFUSED:
        return f"model_type={model_type!r} cannot be represented: {REFUSED[model_type]}"
    return f"model_type={model_type!r} is none of: {', '.join(FAMILIES)}{same_name(str(model_type), FAMILIES)}"


def exact_architecture(config: Values) -> ModelArchitectureConfig:
    """The architecture of a model that a LanguageModel computes exactly. Raises UserError, naming the key, for a model
    or a feature that it does not have."""
    if not has_room(config):
        raise UserError(no_room(config.get("model_type")))
    return resolve_architecture({"arch_preset": "custom", **exact_keys(config)})


def counted_keys(config: Values) -> Keys:
    """Our keys that decide sizes and counts. Raises UserError, naming the key; the `model_type` is one of FAMILIES."""
    check_is_language_model(config.get("architectures"))
    return FAMILIES[config["model_type"]].read(_complete(config))


def exact_keys(config: Values) -> Keys:
    """All our keys, with which a LanguageModel computes the same. Raises UserError, naming the key, for a value that no
    LanguageModel has."""
    family, values = FAMILIES[config["model_type"]], _complete(config)
    for key, only in (family.fixed | FIXED_EVERYWHERE).items():
        check_only(key, values.get(key), only)
    for key, default in family.function.items():
        check_like(key, values[key], default)
    return family.read(values) | family.details(values)


def notes(config: Values) -> list[str]:
    """What was passed over, for people."""
    unknown = unknown_to(config, FAMILIES[config["model_type"]].known)
    which = f"keys of no {config['model_type']} in transformers that change no shape, passed over: "
    return [which + ", ".join(unknown)] if unknown else []


def _complete(config: Values) -> Keys:
    """With the defaults."""
    model_type = config["model_type"]
    family = FAMILIES[model_type]
    known = family.known
    values = _by_one_name({key: plain(value) for key, value in config.items()}, family)
    for key, value in values.items():
        if key not in known:
            check_unknown(key, value, model_type, family.decisive, known)
        if key in ANOTHER_NETWORK:
            check_only(key, value, ANOTHER_NETWORK[key])
    for key in family.required:
        if key not in values:
            raise UserError(f"a {model_type} configuration needs {key}, which is missing")
        check_size(key, values[key])
    for key, default in family.counted.items():
        if key in values:
            check_counted(key, values[key], default, key in family.may_be_zero)
    return {**family.counted, **family.function, **values}


def _by_one_name(values: Keys, family: FamilyKeys) -> Keys:
    """With the keys that were given by another name under their own."""
    found = {key: value for key, value in values.items() if key not in family.aliases}
    for alias, key in family.aliases.items():
        if alias in values and found.setdefault(key, values[alias]) != values[alias]:
            raise UserError(f"{alias}={values[alias]!r} contradicts {key}={found[key]!r}, whose other name it is")
    return found
