"""The folder of a Hugging Face model, in and out: its tensors in one file or several, and what stands beside them.

Reading executes nothing: safetensors hold no code, and of a pickle (pytorch_model*.bin) PyTorch takes tensors only and
refuses the rest.
"""

import errno
import json
import math
import pickle
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.errors import UserError
from common.files import sync
from common.json_files import read_json
from interop.configurations import notes
from interop.hugging_face import as_stored, weights_from_hugging_face
from interop.sources import architecture_from, read_configuration
from model_config import ModelArchitectureConfig

# In the order of preference, as transformers has it.
_ONE_FILE, _PICKLE = "model.safetensors", "pytorch_model.bin"
_FILES = (_ONE_FILE, f"{_ONE_FILE}.index.json", _PICKLE, f"{_PICKLE}.index.json")
# What belongs to the model's text and not to its function, and goes along as it is.
GENERATION = "generation_config.json"
BESIDE = (
    GENERATION, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# In


def has_tensors(folder: Path) -> bool:
    """Whether there is a file of them under one of the names that transformers gives."""
    return any((folder / name).is_file() for name in _FILES)


def read_model(folder: Path) -> tuple[ModelArchitectureConfig, dict[str, Tensor], list[str]]:
    """The architecture, a LanguageModel's `state_dict` in float32, and what people should know. Raises UserError."""
    config, tensors = read_configuration(folder), read_tensors(folder)
    architecture_from(folder, config)  # what is refused is refused before the tensors are looked at
    stored = as_stored(config, tensors)
    architecture, said = architecture_from(folder, stored), notes(config)
    if stored != config:
        said.append("lm_head.weight is not the embedding, although the file ties them: they are kept apart")
    try:
        weights = weights_from_hugging_face(tensors, stored)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    return architecture, {name: _own(tensor) for name, tensor in weights.items()}, said


def _own(tensor: Tensor) -> Tensor:
    """A copy in float32 that shares no memory."""
    return torch.empty(tensor.shape).copy_(tensor)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder, under their names. Raises UserError for files that are missing, damaged, or want to
    execute something."""
    name = next((name for name in _FILES if (folder / name).is_file()), None)
    if name is None:
        raise UserError(f"{folder} has no weights: none of {', '.join(_FILES)}")
    if not name.endswith(".index.json"):
        return _tensors_of(folder / name)
    places = _index(folder / name)
    found: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        found |= _tensors_of(folder / file)
    if missing := sorted(places.keys() - found.keys()):
        raise UserError(f"{folder}: {places[missing[0]]} has no tensor {missing[0]!r}, which {name} says it has")
    return found


def _index(file: Path) -> dict[str, str]:
    """The file that each tensor is in."""
    try:
        places = read_json(file).get("weight_map")
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{file} has no weight_map, which says where each tensor is")
    for name in places.values():
        if Path(name).name != name or not (file.parent / name).is_file():
            raise UserError(f"{file} names the file {name!r}, which is not there: is the folder complete?")
    return places


def _tensors_of(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{file} holds more than tensors: it is not read, as a pickle could execute anything") from None
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"cannot read {file}: {reason}") from None
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{file} is no mapping of names to tensors")
    return dict(found)


# ---------------------------------------------------------------------------------------------------------------------
# Out


def write_model(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], shard_bytes: int) -> None:
    """config.json and the tensors into an existing folder: one file, or shards of at most `shard_bytes` (or of one
    tensor, if that is larger) with their index. Raises OSError."""
    write_json(folder / "config.json", config)
    shards = list(_shards(tensors, shard_bytes))
    if len(shards) == 1:
        names = [_ONE_FILE]
    else:
        names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    places: dict[str, str] = {}
    for name, shard in zip(names, shards, strict=True):
        save_tensors({key: tensors[key] for key in shard}, folder / name)
        shutil.copymode(folder / "config.json", folder / name)  # safetensors lets only its owner read it
        places |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        size = sum(tensor.nbytes for tensor in tensors.values())
        write_json(folder / f"{_ONE_FILE}.index.json", {"metadata": {"total_size": size}, "weight_map": places})


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """To the disk. Raises OSError, also where safetensors has an error of its own for what the system refuses."""
    try:
        save_file(dict(tensors), file, {"format": "pt"})
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error)) from None
    sync(file)


def _shards(tensors: Mapping[str, Tensor], shard_bytes: int) -> Iterator[list[str]]:
    """The names, in their order, by file."""
    shard: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if shard and size + tensor.nbytes > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += tensor.nbytes
    yield shard


def copy_beside(source: Path, target: Path) -> list[str]:
    """Copies what of BESIDE is there; returns the names."""
    found = [name for name in BESIDE if (source / name).is_file()]
    for name in found:
        shutil.copyfile(source / name, target / name)
    return found


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """In transformers' form, which writes numbers that JSON does not have as {"__float__": "Infinity"}."""
    file.write_text(json.dumps(_encoded(values), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _encoded(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"__float__": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, Mapping):
        return {key: _encoded(one) for key, one in value.items()}
    return [_encoded(one) for one in value] if isinstance(value, list | tuple) else value
