"""Which folder a model is taken from: one that is named, or one that Hugging Face's cache of downloads has. No torch,
and no network: what is not on this machine is said to be missing."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError, did_you_mean
from common.json_files import read_json
from configurator import Configuration
from interop.configurations import exact_architecture, with_model_type
from model_config import ModelArchitectureConfig, architecture_keys
from runs.config import STARTS
from runs.folder import RunFolder, read_state, saved_configuration

OF_CONTEXT = ("block_size", "rope_theta", "rope_scaling")  # keys by which weights are trained on for longer texts

# What nanoGPT calls them, and the hub: with their owner, or as it did before.
GPT2 = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}


def find_source(name: str, option: str = "init_from") -> Path:
    """The folder of a model: of a run, of a Hugging Face model, or of one of this name in Hugging Face's cache. Raises
    UserError, with what to do, where there is none; `option` is what named it, "" if its place did."""
    called = f"{option}={name!r}" if option else name
    path = Path(name)
    if (path / "config.json").is_file():
        return path
    if path.is_dir():
        raise UserError(f"{called}: the folder has no config.json, so it is neither a run nor a model")
    full_name = GPT2.get(name, name)
    found = [folder for repository in dict.fromkeys((full_name, name)) for folder in _snapshots(repository)]
    if not found:
        downloaded = full_name if full_name.count("/") == 1 else "OWNER/MODEL"
        how = f": --{option.removeprefix('--')}=FOLDER" if option else ""
        others = f"none of {', '.join(STARTS)}{did_you_mean(name, STARTS)}, " if option == "init_from" else ""
        raise UserError(
            f"{called} is {others}no folder, and no model in Hugging Face's cache {_cache()}; nothing is downloaded "
            f"here: fetch it (hf download {downloaded}), or give the folder of one{how}"
        )
    return found[0]


def _cache() -> Path:
    """Where Hugging Face's libraries keep what they download."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _snapshots(repository: str) -> list[Path]:
    """The folders of its downloads that have a configuration, that of its branch main first."""
    folder = _cache() / f"models--{repository.replace('/', '--')}"
    try:
        main = (folder / "refs" / "main").read_text().strip()
    except (OSError, ValueError):
        main = ""
    found = sorted((folder / "snapshots").glob("*/config.json"))
    return [config.parent for config in sorted(found, key=lambda config: config.parent.name != main)]


def read_configuration(folder: Path) -> dict[str, Any]:
    """The content of a Hugging Face folder's config.json, with its model_type. Raises UserError."""
    try:
        return with_model_type(read_json(folder / "config.json"))
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from None


def architecture_of(folder: Path) -> ModelArchitectureConfig:
    """That of a run's checkpoint, the best or else the last, or of a Hugging Face model. Raises UserError."""
    if RunFolder(folder).checkpoints():
        checkpoint, _ = RunFolder(folder).find(None)
        return saved_configuration(read_state(checkpoint)).model
    return architecture_from(folder, read_configuration(folder))


def architecture_from(folder: Path, config: Mapping[str, Any]) -> ModelArchitectureConfig:
    """That of a Hugging Face configuration. Raises UserError, naming the file."""
    try:
        return exact_architecture(config)
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from None


def with_architecture_of(source: Path, configuration: Configuration) -> Configuration:
    """The configuration with the source's architecture; what changes no function, such as dropout, is as it was, and
    how far the context goes as the user gave it. Raises UserError for other keys that contradict the source's."""
    theirs, ours, keys = architecture_of(source), configuration.model, architecture_keys()
    for name, value in configuration.given.items():
        if (
            value is not None
            and keys[name].changes == "function"
            and name not in OF_CONTEXT
            and ours[name] != theirs[name]
        ):
            raise UserError(
                f"{name}={value!r} contradicts init_from={str(source)!r}, whose model has {theirs[name]!r}: drop it"
            )
    changes = {name: ours[name] for name, key in keys.items() if key.changes == "speed"}
    changes |= {name: ours[name] for name in OF_CONTEXT if configuration.given.get(name) is not None}
    if "block_size" in changes:
        learned = theirs.component("position_encoding").weights(theirs)
        if learned and ours.block_size > theirs.block_size:
            raise UserError(
                f"block_size={ours.block_size} is more than the {theirs.block_size} positions that the model of "
                f"init_from={str(source)!r} has learned: take at most these"
            )
    return dataclasses.replace(configuration, model=theirs.replace(**changes))
