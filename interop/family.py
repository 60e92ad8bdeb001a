"""What there is to say of a family of Hugging Face's models, so that both directions read it off one table."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from common.errors import UserError
from model_config import ModelArchitectureConfig

_Keys = dict[str, Any]

# Keys that do not change what a forward pass computes.
WITHOUT_EFFECT = {
    "_name_or_path", "architectures", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "id2label",
    "initializer_range", "label2id", "model_type", "output_attentions", "output_hidden_states", "pad_token_id",
    "pretraining_tp", "problem_type", "return_dict", "summary_activation", "summary_first_dropout",
    "summary_proj_to_labels", "summary_type", "summary_use_proj", "task_specific_params", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip

# The first name of each of ours is the one that is written.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu_squared",
    "leaky_relu": "leaky_relu",
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the tensors of one of their modules are in a LanguageModel: in these modules, row after row."""

    modules: tuple[str, ...]
    to_ours: Callable[[Tensor], Tensor] = lambda tensor: tensor
    to_theirs: Callable[[Tensor, ModelArchitectureConfig], Tensor] = lambda tensor, config: tensor


def places(table: Mapping[str, str]) -> dict[str, Place]:
    """Modules of theirs that are one of ours, as they are."""
    return {theirs: Place((ours,)) for theirs, ours in table.items()}


@dataclasses.dataclass(frozen=True)
class Family:
    """The models of one `model_type`, as configurations and as tensors."""

    model_class: str
    has_ffn: bool  # in every layer, or in none
    sizes: Mapping[str, str]  # their key -> ours; without a default
    defaults: Mapping[str, Any]  # what a key means where config.json leaves it out
    fixed: Mapping[str, Any]  # keys that can have this value only
    read: Callable[[_Keys], _Keys]  # their complete configuration -> our keys, the sizes apart
    write: Callable[[ModelArchitectureConfig], _Keys]  # and back
    prefix: str  # of all their tensors but the head's; absent where the model was saved without its head
    blocks: str
    outside: Mapping[str, Place]  # the blocks
    within: Mapping[str, Place]  # each block, its mixer apart
    mixers: Mapping[str, Mapping[str, Place]]  # by its letter in layer_pattern
    without_effect: frozenset[str] = frozenset()
    buffers: tuple[str, ...] = ()  # how the tensors of older checkpoints end that are no parameters

    def block(self, letter: str) -> dict[str, Place]:
        """What a block with this mixer has."""
        return {**self.within, **self.mixers[letter]}

    def complete(self, config: Mapping[str, Any]) -> _Keys:
        """With the defaults. Raises UserError for a key that is unknown, missing, of a wrong type or a value that
        cannot be represented."""
        model_type = config["model_type"]
        known = WITHOUT_EFFECT | self.without_effect | self.defaults.keys() | self.fixed.keys() | self.sizes.keys()
        for key, value in config.items():
            value = list(value) if isinstance(value, tuple) else value
            if key in self.fixed and value != self.fixed[key]:
                raise UserError(f"{key}={value!r} cannot be represented; only {self.fixed[key]!r} can")
            if key not in known:
                raise UserError(f"{key}={value!r} of a {model_type} configuration is not known here")
            _check_type(key, value, 1 if key in self.sizes else self.defaults.get(key))
        for key in self.sizes:
            if config.get(key) is None:
                raise UserError(f"the {model_type} configuration has no {key}")
        return {**self.defaults, **config}


def _check_type(key: str, value: Any, like: Any) -> None:
    """Of those numbers and switches that can be no other thing: arithmetic is done with them."""
    kinds = {bool: (bool,), int: (int,), float: (int, float)}.get(type(like))
    null = value is None and key == "num_key_value_heads"  # as many as query heads
    if kinds is not None and type(value) not in kinds and not null:
        raise UserError(f"{key}={value!r}: expected {type(like).__name__}")


def our_activation(key: str, name: str) -> str:
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise UserError(f"{key}={name!r} is none of: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def their_activation(name: str | None) -> str:
    for theirs, ours in _ACTIVATIONS.items():
        if ours == name:
            return theirs
    raise UserError(f"activation={name!r} is none that Hugging Face is known to have: {', '.join(_ACTIVATIONS)}")


def our_rotary(config: _Keys, rotated_unless_given: float = 1.0) -> _Keys:
    """transformers 5 has all in `rope_parameters`; 4 has `rope_theta` beside `rope_scaling`, once with a `type`.

    `rotated_unless_given`: the share of a head's width that is rotated, where no partial_rotary_factor among them says
    it.
    """
    given = config["rope_parameters"] or config.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise UserError(f"rope_parameters, or rope_scaling, is {given!r}: expected keys with values")
    scaling = dict(given)
    theta = scaling.pop("rope_theta", config.get("rope_theta", 10000.0))
    rotated = scaling.pop("partial_rotary_factor", rotated_unless_given)
    if rotated != 1.0:
        raise UserError(
            f"partial_rotary_factor={rotated}: only whole heads are rotated here, which is 1.0 in rope_parameters"
        )
    rope_type = scaling.pop("type", scaling.pop("rope_type", "default"))
    if rope_type != "default":
        return {"rope_theta": theta, "rope_scaling": {"rope_type": rope_type, **scaling}}
    if scaling:
        raise UserError(f"rope_parameters: {', '.join(scaling)} beside rope_type 'default' cannot be represented")
    return {"rope_theta": theta}


def their_rotary(config: ModelArchitectureConfig) -> _Keys:
    """`rope_parameters`, as transformers 5 reads them."""
    return {"rope_type": "default", **(config.rope_scaling or {}), "rope_theta": config.rope_theta}
