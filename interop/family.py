"""What there is to say of the tensors of a family of Hugging Face's models, so that both directions read it off one
table, and how its configuration is written. interop/keys says how it is read."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from common.errors import UserError
from interop.file_names import InFiles
from interop.keys.base import ACTIVATIONS
from model_config import ModelArchitectureConfig


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the tensors of one of their modules are in a LanguageModel: in these modules, row after row."""

    modules: tuple[str, ...]
    to_ours: Callable[[Tensor, ModelArchitectureConfig], Tensor] = lambda tensor, config: tensor
    to_theirs: Callable[[Tensor, ModelArchitectureConfig], Tensor] = lambda tensor, config: tensor


def places(table: Mapping[str, str]) -> dict[str, Place]:
    """Modules of theirs that are one of ours, as they are."""
    return {theirs: Place((ours,)) for theirs, ours in table.items()}


@dataclasses.dataclass(frozen=True)
class Family:
    """The models of one `model_type`."""

    model_class: str
    has_ffn: bool | None  # in every layer, or in none; None: in any
    write: Callable[[ModelArchitectureConfig], dict[str, Any]]  # their keys, those that are the same both ways apart
    prefix: str  # of all their tensors but the head's; absent where the model was saved without its head
    blocks: str
    outside: Mapping[str, Place]  # the blocks
    within: Mapping[str, Place]  # each block, its mixer apart
    mixers: Mapping[str, Mapping[str, Place]]  # by its letter in layer_pattern
    experts: Mapping[str, Place] | None = None  # of a layer with these, in place of what an FFN has
    ffn_layer: Mapping[str, Place] | None = None  # where an FFN is a layer of its own, after that of the mixer
    may_lack_mixers: bool = True  # a model with some of these mixers only is one of the family too
    older_names: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of modules, in files -> today's
    buffers: tuple[str, ...] = ()  # how the tensors of older checkpoints end that are no parameters
    left_out: tuple[str, ...] = ()  # how the tensors in files begin that transformers leaves out, too
    in_files: InFiles | None = None  # where files name tensors otherwise than today's class does
    # Keys in place of a file's where logits are compared: of those, transformers' class makes another function
    compared_with: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    variant: Callable[[Mapping[str, Any]], "Family"] | None = None  # by keys that decide how tensors lie, and no more

    def of(self, config: Mapping[str, Any]) -> "Family":
        """The family with its tensors as this configuration has them."""
        return self if self.variant is None else self.variant(config)

    def by_todays_names(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a file holds, as today's class names it."""
        state_dict = state_dict if self.in_files is None else self.in_files.stacked(state_dict)
        found = ((name, name.rpartition("."), tensor) for name, tensor in state_dict.items())
        return {
            f"{self.older_names[module]}.{kind}" if module in self.older_names else name: tensor
            for name, (module, _, kind), tensor in found
        }

    def layers(self, letter: str, has_ffn: bool, has_experts: bool) -> list[dict[str, Place]]:
        """What their layers have that make a block with this mixer, and with an FFN or experts or neither: one, or one
        for each half."""
        if self.ffn_layer is not None:
            return [{**self.within, **self.mixers[letter]}, *[dict(self.ffn_layer)] * has_ffn]
        if not has_experts:
            return [{**self.within, **self.mixers[letter]}]
        others = {name: place for name, place in self.within.items() if not place.modules[0].startswith("ffn.")}
        return [{**others, **self.mixers[letter], **(self.experts or {})}]


def their_activation(name: str | None) -> str:
    for theirs, ours in ACTIVATIONS.items():
        if ours == name:
            return theirs
    raise UserError(f"activation={name!r} is none that Hugging Face is known to have: {', '.join(ACTIVATIONS)}")


def their_rotary(config: ModelArchitectureConfig) -> dict[str, Any]:
    """`rope_parameters`, as transformers 5 reads them: the original context of the dynamic form is the model's."""
    scaling = {"rope_type": "default", **(config.rope_scaling or {})}
    if scaling["rope_type"] == "dynamic":
        del scaling["original_max_position_embeddings"]
    share = {} if config.partial_rotary_factor == 1 else {"partial_rotary_factor": config.partial_rotary_factor}
    return {**share, **scaling, "rope_theta": config.rope_theta}
