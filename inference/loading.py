"""What a run left, ready to be used: its configuration, its tokenizer, its model; and a model that is being trained."""

import dataclasses
from pathlib import Path
from typing import cast

import torch
from torch import nn

from common.errors import UserError
from configurator import Configuration
from data.dataset import dataset_folder, open_dataset
from data.tokenizers import CharactersTokenizer, Tokenizer, tokenizer_from_meta
from model_builder import LanguageModel, build_model
from model_config import ModelArchitectureConfig
from runs.checkpoint import load_model, parts_of_model
from runs.config import in_folder
from runs.folder import data_of, read_state, saved_configuration


def configuration_of(checkpoint: Path) -> Configuration:
    """The configuration of the run. Nothing of the run's folder is executed, since it may be a stranger's: a run with
    components of its own needs its config file named, or raises UserError."""
    try:
        saved = saved_configuration(read_state(checkpoint))
        moved = in_folder(dataclasses.asdict(saved.run), checkpoint.parent.parent)
        return dataclasses.replace(saved, run=dataclasses.replace(saved.run, **moved))
    except UserError as error:
        own = checkpoint.parent.parent / "config.py"
        raise UserError(f"{error}; if the run has components of its own: --config {own}") from None


def find_tokenizer(checkpoint: Path, saved: Configuration) -> Tokenizer:
    """The run's own, whose file, if it has one, is in the run's folder. One of an earlier version kept none: then that
    of its dataset, which must be there, and for a tokenizer that is made from the text unchanged. Raises UserError."""
    data = data_of(checkpoint)
    if "tokenizer" in data:
        return tokenizer_from_meta(data["tokenizer"], checkpoint.parent.parent)
    dataset = open_dataset(dataset_folder(saved.run.dataset, saved.run.data_dir), verify=False)
    tokenizer = tokenizer_from_meta(dataset.tokenizer, dataset.folder)
    changed = [name for name, checksum in data.items() if dataset.identity.get(name) != checksum]
    if changed and isinstance(tokenizer, CharactersTokenizer):
        raise UserError(
            f"{dataset.folder} was prepared anew since {checkpoint} was trained on it, and its characters may have "
            "other ids: prepare it as it was"
        )
    if dataset.vocab_size > (saved.model.vocab_size or 0):
        raise UserError(
            f"{dataset.folder} is not what {checkpoint} was trained on: its vocabulary of {dataset.vocab_size} is "
            f"larger than the model's {saved.model.vocab_size}"
        )
    return tokenizer


def load(checkpoint: Path, saved: Configuration, device: torch.device) -> LanguageModel:
    """The checkpoint's model, ready to sample. Raises UserError for one that is damaged."""
    model = build_model(saved.model.portable(), device)
    load_model(checkpoint, model)
    return model.eval()


def same_weights(trained: nn.Module, with_adapters: bool = True) -> LanguageModel:
    """A model of the same tensors as one in training, not of copies, that is not compiled, not in training, and
    computed as everywhere; with its adapters, if it has some, or beside them."""
    model = cast(LanguageModel, trained)
    tensors, adapters = model.state_dict(), model.adapters if with_adapters else None
    with torch.device("meta"):
        found = LanguageModel(model.config.portable())
        if adapters is not None:
            found.adapt(adapters)
    if adapters is None:
        tensors, _ = parts_of_model(model) if model.adapters is not None else (tensors, {})
    found.load_state_dict(tensors, assign=True)
    return found.eval().requires_grad_(False)


def cache_bytes(config: ModelArchitectureConfig, batch: int = 1, length: int | None = None) -> int:
    """What decoding keeps of so many texts of so many tokens each, by default of one of block_size."""
    with torch.device("meta"):
        return LanguageModel(config).empty_caches(batch, length or config.block_size).bytes
