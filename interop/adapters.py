"""Adapters as PEFT's files have them: adapter_config.json and adapter_model.safetensors, beside a Hugging Face model.

A module of theirs may be several of ours, row after row: its adapter is of all their ranks together, with each one's B
in the rows and columns that are its own. Rows that lie in another order there, lie so in B and in DoRA's lengths.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from components.lora.module import Adapter
from components.lora.spec import Adapters
from interop.family import Place
from interop.hugging_face import FAMILIES, architecture_to_hugging_face, modules_of
from model_config import ModelArchitectureConfig

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."

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
