"""A run from the folder of a Hugging Face model, and such a folder from a run, which has again what came along."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

import configurator
from common.errors import UserError
from common.files import folder_written_aside
from common.json_files import read_json
from components.lora.spec import Adapters
from components.quantized.module import QuantizedMatrix, put
from configurator import Configuration
from data.mixture import sources
from data.tokenizers import Tokenizer
from inference.loading import configuration_of, find_tokenizer, load
from interop.adapters import CONFIG as PEFT_CONFIG
from interop.adapters import TENSORS as PEFT_TENSORS
from interop.adapters import adapters_to_peft
from interop.folders import GENERATION, copy_beside, read_model, save_tensors, write_json, write_model
from interop.hugging_face import SPECIAL_TOKENS, architecture_to_hugging_face, as_in_files, weights_to_hugging_face
from interop.parity import NotCompared, measure
from interop.tokenizer_files import write_tokenizer
from model_builder import LanguageModel, build_model
from model_config import ModelArchitectureConfig
from parallel.ranks import ALONE
from runs.base import base_of
from runs.checkpoint import check_without_codes, load_adapters
from runs.config import RunConfig
from runs.folder import CHAT_TEMPLATE, OF_THE_MODEL, RunFolder, damage, read_state
from runs.initial import keep_beside, write_initial


@dataclasses.dataclass(frozen=True)
class Exchanged:
    """What was read or written, for people."""

    architecture: ModelArchitectureConfig
    parameters: int
    compared: str  # with what transformers computes
    notes: list[str]


# ---------------------------------------------------------------------------------------------------------------------
# In


def run_from_folder(source: Path, new: RunFolder, run: Path) -> Exchanged:
    """Fill the new run's folder, which will be called `run`. Raises UserError and OSError."""
    architecture, weights, notes = read_model(source)
    configuration = new_configuration(architecture, run)
    write_initial(new, weights, configuration)
    configurator.write(configuration, new.path)
    keep_beside(source, new.path)
    model = build_model(architecture, "meta")
    model.load_state_dict(weights, assign=True)
    return Exchanged(architecture, count_of(model), _compared(source, model, source), notes)


def new_configuration(architecture: ModelArchitectureConfig, run: Path) -> Configuration:
    """The architecture as a run's, whose other keys are the defaults."""
    return Configuration(architecture, RunConfig(out_dir=str(run)), Path("config.py"))


def _compared(folder: Path, model: LanguageModel, called: Path) -> str:
    try:
        return str(measure(folder, model, called))
    except NotCompared as reason:
        return f"logits are not compared: {reason}"


def count_of(model: LanguageModel) -> int:
    """Its parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# Out


def folder_from_run(checkpoint: Path, folder: Path, shard_bytes: int) -> Exchanged:
    """Write a checkpoint as the folder of a Hugging Face model, aside and renamed. Raises UserError and OSError."""
    saved = configuration_of(checkpoint)
    architecture_to_hugging_face(saved.model)  # what has no class there is refused before the weights are read
    model = whole_model(checkpoint, saved)
    with folder_written_aside(folder) as new:
        tokens, notes = write_beside(checkpoint, saved, new)
        config = architecture_to_hugging_face(saved.model, tokens) | {"dtype": "float32"}
        tensors = as_in_files(weights_to_hugging_face(model.state_dict(), saved.model), config)
        write_model(new, config, tensors, shard_bytes)
        what = f"A `{config['architectures'][0]}` of {count_of(model):,} parameters"
        write_card(checkpoint, saved, new, "transformers", what, _LOADED)
        return Exchanged(saved.model, count_of(model), _compared(new, model, folder), notes)


def whole_model(checkpoint: Path, saved: Configuration) -> LanguageModel:
    """The model with adapters merged and no matrix in few bits. Raises UserError for a checkpoint of such matrices that
    no adapters stand beside."""
    if base_of(checkpoint, read_state(checkpoint)) in (None, checkpoint):
        check_without_codes(checkpoint)
    model = load(checkpoint, saved, torch.device("cpu"))
    for name, matrix in model.state_dict().items():
        if isinstance(matrix, QuantizedMatrix):
            put(model, name, matrix.dequantized())
    return model


def write_beside(checkpoint: Path, saved: Configuration, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The tokenizer, the settings of generation and the chat template, those that the run's model came with or its own;
    returns the special tokens, and notes of what cannot be had."""
    run, notes = checkpoint.parent.parent, list[str]()
    kept = run / OF_THE_MODEL
    tokenizer = None if kept.is_dir() else _tokenizer(checkpoint, saved, notes)
    tokens, beside = _special_tokens(kept, tokenizer), copy_beside(kept, folder)
    if tokenizer is not None:
        _write_tokenizer(tokenizer, saved.model.block_size, folder, notes)
    if (run / CHAT_TEMPLATE).is_file():  # which wins over one in tokenizer_config.json
        shutil.copyfile(run / CHAT_TEMPLATE, folder / CHAT_TEMPLATE)
    if GENERATION not in beside:
        write_json(folder / GENERATION, tokens)
    return tokens, notes


def adapters_from_run(checkpoint: Path, folder: Path) -> tuple[Adapters, int]:
    """Write the adapters of a checkpoint as PEFT has them, for the base as `folder_from_run` writes it; returns what
    they are, and their parameters. Raises UserError and OSError."""
    saved, state = configuration_of(checkpoint), read_state(checkpoint)
    base = base_of(checkpoint, state)
    if base in (None, checkpoint) or (adapters := saved.run.adapters) is None or base is None:
        raise UserError(f"{checkpoint} has no adapters: --format hf exports the model")
    for one in (checkpoint, base):
        if wrong := damage(one, ALONE):
            raise UserError(wrong)
    model = load(base, saved, torch.device("cpu"))
    with torch.no_grad():
        found = {name: adapter for name, (_, adapter) in load_adapters(checkpoint, state, model).items()}
    linear = {name: one for name, one in model.named_modules() if hasattr(one, "weight") and name.startswith("blocks.")}
    matrices = {name: (cast(Tensor, one.weight).detach(), found.get(name)) for name, one in linear.items()}
    config, tensors = adapters_to_peft(matrices, saved.model, adapters)
    with folder_written_aside(folder) as new:
        write_json(new / PEFT_CONFIG, config)
        save_tensors(tensors, new / PEFT_TENSORS)
        shutil.copymode(new / PEFT_CONFIG, new / PEFT_TENSORS)  # safetensors lets only its owner read it
    return adapters, sum(one.numel() for adapter in found.values() for one in adapter.parameters())


def _tokenizer(checkpoint: Path, saved: Configuration, notes: list[str]) -> Tokenizer | None:
    """That of the run; a note where it cannot be had."""
    try:
        return find_tokenizer(checkpoint, saved)
    except UserError as error:
        notes.append(f"without a tokenizer: {error}")
        return None


def _write_tokenizer(tokenizer: Tokenizer, length: int, folder: Path, notes: list[str]) -> None:
    """Its files; a note where it has no tokenizer.json."""
    try:
        write_tokenizer(tokenizer, length, folder)
    except UserError as error:
        notes.append(f"without a tokenizer.json: {error}")


def _special_tokens(kept: Path, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Those that the imported model had; where a run began here, a text begins after a document's end, too."""
    if (kept / "config.json").is_file():
        config = read_json(kept / "config.json")
        return {name: config[name] for name in SPECIAL_TOKENS if name in config}
    end = None if tokenizer is None else tokenizer.end_of_document
    return {"bos_token_id": end, "eos_token_id": end, "pad_token_id": None}


_LOADED = """\
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("this folder")
"""


def write_card(checkpoint: Path, saved: Configuration, folder: Path, library: str, what: str, code: str) -> None:
    """The model card: what it is, what it was trained on, how a library loads it."""
    progress = read_state(checkpoint)["progress"]
    best = progress["best_val_loss"]
    names = [saved.run.dataset] if saved.run.mixture is None else sources(saved.run.mixture)
    datasets = f"the dataset{'s' * (len(names) > 1)} {', '.join(f'`{name}`' for name in names)}"
    trained = f"{progress['step']:,} steps, {progress['tokens']:,} tokens of {datasets}"
    lines = [
        "---",
        f"library_name: {library}",
        "pipeline_tag: text-generation",
        "---",
        f"# {saved.model.name}",
        "",
        f"{what}, exported by isoflop.",
        "",
        f"- Trained here: {trained if progress['step'] else 'not at all'}",
        *([] if best is None else [f"- Lowest validation loss: {best:.4f} nats a token"]),
        f"- Context: {saved.model.block_size:,} tokens; weights in float32",
        "",
        "```python",
        f"{code}```",
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
