"""Adapters as PEFT's files have them: adapter_config.json and adapter_model.safetensors, beside a Hugging Face model.

A module of theirs may be several of ours, row after row: its adapter is of all their ranks together, with each one's B
in the rows and columns that are its own. Rows that lie in another order there, lie so in B and in DoRA's lengths.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from common.errors import UserError
from common.json_files import read_json
from components.lora.module import Adapter
from components.lora.spec import LORA, Adapters
from interop.family import Place
from interop.hugging_face import FAMILIES, architecture_to_hugging_face, modules_of
from model_builder import LanguageModel, adapted_modules
from model_config import ModelArchitectureConfig

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_ONLY: dict[str, tuple[Any, ...]] = {  # what has others is more than LoRA of linear layers
    "peft_type": ("LORA",), "bias": ("none", None), "modules_to_save": (None, []), "lora_bias": (False, None)
}  # fmt: skip
_PARTS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")

Beside = tuple[Tensor, Adapter | None]  # a matrix, and what it has of an adapter


def adapters_to_peft(
    matrices: Mapping[str, Beside], config: ModelArchitectureConfig, adapters: Adapters
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The content of both files, for the model that `architecture_to_hugging_face(config)` describes. `matrices`: those
    of the modules of ours that have an adapter, by their names, and of those that are one module of theirs with such.

    Raises UserError for an architecture without a class, and for adapters of what is no module there.
    """
    written = architecture_to_hugging_face(config)
    family, left = FAMILIES[written["model_type"]].of(written), {name for name, (_, one) in matrices.items() if one}
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    is_turned = False
    for theirs, ours, place in modules_of(family, config):
        if not left & set(ours):
            continue
        parts = [matrices[name] for name in ours]
        order, is_turned = _rows(place, sum(len(weight) for weight, _ in parts), config)
        found = {name: tensor[order] if name != "lora_A.weight" else tensor for name, tensor in _joined(parts).items()}
        tensors |= {f"{_PREFIX}{theirs}.{name}": tensor.contiguous() for name, tensor in found.items()}
        ranks[theirs] = len(found["lora_A.weight"])
        left -= set(ours)
    if left:
        raise UserError(
            f"PEFT's files have adapters of modules, and {sorted(left)[0]} is none in {family.model_class}: "
            "--format hf exports the model with them merged"
        )
    return _config(adapters, ranks, is_turned), tensors


def _joined(parts: list[Beside]) -> dict[str, Tensor]:
    """The adapter of several matrices, one below the other."""
    own = [adapter for _, adapter in parts if adapter is not None]
    blocks = [torch.zeros(len(weight), 0) if adapter is None else adapter.B.detach() for weight, adapter in parts]
    found = {
        "lora_A.weight": torch.cat([adapter.A.detach() for adapter in own]),
        "lora_B.weight": torch.block_diag(*blocks),
    }
    if own[0].magnitude is not None:  # of a matrix without an adapter it is its own length
        lengths = [
            torch.linalg.vector_norm(weight, dim=-1) if one is None or one.magnitude is None else one.magnitude.detach()
            for weight, one in parts
        ]
        found["lora_magnitude_vector"] = torch.cat(lengths)
    return found


def _rows(place: Place, count: int, config: ModelArchitectureConfig) -> tuple[Tensor, bool]:
    """Which of our rows each of theirs is, and whether their matrices are stored the other way round."""
    order = place.to_theirs(torch.arange(count, dtype=torch.float64)[:, None], config)
    return order.flatten().long(), order.shape == (1, count) and count > 1


def _config(adapters: Adapters, ranks: Mapping[str, int], is_turned: bool) -> dict[str, Any]:
    """Where ranks differ, alpha does, too, so that all are multiplied by the same."""
    others = {name: rank for name, rank in ranks.items() if rank != adapters.r}
    exponent = 0.5 if adapters.use_rslora else 1.0
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "bias": "none",
        "r": adapters.r,
        "lora_alpha": adapters.alpha,
        "lora_dropout": adapters.dropout,
        "target_modules": sorted(ranks),
        "rank_pattern": others,
        "alpha_pattern": {name: adapters.alpha * (rank / adapters.r) ** exponent for name, rank in others.items()},
        "use_rslora": adapters.use_rslora,
        "use_dora": adapters.use_dora,
        "fan_in_fan_out": is_turned,
    }


# ---------------------------------------------------------------------------------------------------------------------
# In


@dataclasses.dataclass(frozen=True)
class _One:
    """An adapter of a module of ours, and what theirs multiplies it by."""

    A: Tensor
    B: Tensor
    magnitude: Tensor | None
    scaling: float

    def tensors(self, r: int, scaling: float) -> dict[str, Tensor]:
        """The same with zeros up to this rank, multiplied by another number."""
        more, (columns, rows) = r - len(self.A), (self.A.shape[1], len(self.B))
        A = torch.cat((self.A, torch.zeros(more, columns)))
        B = torch.cat((self.B, torch.zeros(rows, more)), dim=1) * (self.scaling / scaling)
        return {"A": A, "B": B} | ({} if self.magnitude is None else {"magnitude": self.magnitude})


def adapters_from_peft(folder: Path, config: ModelArchitectureConfig) -> tuple[Adapters, dict[str, Tensor]]:
    """The adapters of a folder, and their tensors under the names of ours, beside a model of this architecture. All
    have the largest of their ranks, the others with zeros, and one scaling, of which B has the rest.

    Raises UserError for a folder that has none, for what is no LoRA of linear layers, and where they do not fit.
    """
    values, tensors = _read(folder)
    written = architecture_to_hugging_face(config)
    family = FAMILIES[written["model_type"]].of(written)
    with torch.device("meta"):
        weights = LanguageModel(config).state_dict()
    found: dict[str, _One] = {}
    for theirs, ours, place in modules_of(family, config):
        own = {name: tensors.pop(key) for name in _PARTS if (key := f"{_PREFIX}{theirs}.{name}") in tensors}
        if own:
            shapes = {name: tuple(weights[f"{name}.weight"].shape) for name in ours if f"{name}.weight" in weights}
            _check_fits(folder, own, shapes)
            order, _ = _rows(place, len(own["lora_B.weight"]), config)
            found |= _apart(own, shapes, order, _scaling(folder, values, theirs, len(own["lora_A.weight"])))
    if tensors:
        raise UserError(f"{folder}: {min(tensors)!r} is no adapter of a linear layer of this {family.model_class}")
    r, scaling = max(len(one.A) for one in found.values()), next(iter(found.values())).scaling
    use_rslora, use_dora = (values.get(key) is True for key in ("use_rslora", "use_dora"))
    adapters = Adapters(r, scaling * (math.sqrt(r) if use_rslora else r), (), 0.0, use_rslora, use_dora)
    adaptable = set(adapted_modules(config, adapters))
    if beyond := sorted(found.keys() - adaptable):
        raise UserError(f"{folder} has an adapter of {beyond[0]}, which has none here")
    adapters = dataclasses.replace(adapters, targets=() if adaptable == found.keys() else tuple(found))
    of_modules = {name: one.tensors(r, scaling) for name, one in found.items()}
    return adapters, {f"{name}.{LORA}.{part}": value for name, own in of_modules.items() for part, value in own.items()}


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        values, tensors = read_json(folder / CONFIG), load_file(folder / TENSORS)
    except (UserError, OSError, SafetensorError) as error:
        raise UserError(f"{folder} is no folder of PEFT's adapters: {str(error).splitlines()[0]}") from None
    for key, allowed in _ONLY.items():
        if values.get(key) not in allowed:
            raise UserError(f"{folder / CONFIG}: {key}={values.get(key)!r} is more than LoRA of linear layers")
    if not tensors:
        raise UserError(f"{folder / TENSORS} has no tensors")
    return values, {name: tensor.float() for name, tensor in tensors.items()}


def _scaling(folder: Path, values: Mapping[str, Any], module: str, rank: int) -> float:
    """What a module's adapter of this rank is multiplied by. Raises UserError."""
    try:
        patterns = (values.get("alpha_pattern") or {}).items()
        chosen = (alpha for key, alpha in patterns if re.match(rf"(.*\.)?({key})$", module))
        alpha = float(next(chosen, values.get("lora_alpha", 8)))
        scaling = alpha / (math.sqrt(rank) if values.get("use_rslora") else rank)
    except (re.error, AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{folder / CONFIG}: no alpha of {module} can be read: {error}") from None
    if not 0 < scaling < math.inf:
        raise UserError(f"{folder / CONFIG}: an alpha above 0 is expected of {module}")
    return scaling


def _check_fits(folder: Path, own: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises UserError for an adapter of one module of theirs that is not of these matrices of ours."""
    rows, columns = sum(shape[0] for shape in shapes.values()), {shape[-1] for shape in shapes.values()}
    A, B = (tuple(own[name].shape) if name in own else None for name in _PARTS[:2])
    if A is None or B is None or len(A) != 2 or (rows, A[0]) != B or {A[1]} != columns:
        where = " and ".join(shapes) or "what has no matrix here"
        raise UserError(
            f"{folder} has adapters of another base: A {A} and B {B} of {where}, {rows} x {min(columns, default=0)}"
        )


def _apart(
    own: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], order: Tensor, scaling: float
) -> dict[str, _One]:
    """The adapter of one module of theirs as those of ours that it is, each of which has all of A."""
    A, B, lengths = (own.get(name) for name in _PARTS)
    assert A is not None and B is not None
    back, sizes = order.argsort(), [shape[0] for shape in shapes.values()]
    of_lengths = [None] * len(sizes) if lengths is None else lengths.flatten()[back].split(sizes)
    return {
        name: _One(A, part, length, scaling)
        for name, part, length in zip(shapes, B[back].split(sizes), of_lengths, strict=True)
    }
