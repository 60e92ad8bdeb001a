"""Weights that a run begins with instead of drawn ones: those of another run, or of a Hugging Face model."""

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

import configurator
from common.errors import UserError
from components.quantized.module import flat, method_of, quantized
from components.quantized.spec import forms_of
from configurator import Configuration
from flops_parameter_counting.costs.model_cost import named_weights
from interop.adapters import adapters_from_peft
from interop.folders import copy_beside, read_model, save_tensors
from model_builder import build_model
from model_config import ModelArchitectureConfig
from parallel.ranks import Ranks
from runs.checkpoint import load_model
from runs.folder import CHAT_TEMPLATE, OF_THE_MODEL, Progress, RunFolder, checksum, read_state, saved_configuration

FILE = "model.safetensors"


def read_source(source: Path) -> tuple[ModelArchitectureConfig, dict[str, Tensor], list[str]]:
    """The architecture, a LanguageModel's `state_dict`, and what people should know: of a run's checkpoint, the best or
    else the last, or of a Hugging Face model. Raises UserError."""
    if not RunFolder(source).checkpoints():
        return read_model(source)
    checkpoint, which = RunFolder(source).find(None)
    architecture = saved_configuration(read_state(checkpoint)).model
    model = build_model(architecture)
    load_model(checkpoint, model)
    return architecture, dict(model.state_dict()), [f"{checkpoint} ({which})"]


def write_initial(folder: RunFolder, weights: Mapping[str, Tensor], configuration: Configuration) -> Path:
    """A checkpoint of step 0, as of a run that was stopped before its first step. Raises OSError."""
    content = folder.aside(0)
    content.mkdir(parents=True)
    try:
        save_tensors(weights, content / FILE)
        state = {
            "progress": dataclasses.asdict(Progress()),
            "config": configurator.as_dict(configuration),
            "data": {},
            "scaler": {},
            "files": {FILE: checksum(content / FILE)},
        }
        return folder.put_in_place(0, state)
    except BaseException:
        folder.discard(0)
        raise


def keep_beside(source: Path, run: Path) -> None:
    """What belongs to the model's text stays with the run, as it was: tokenizer, settings of generation, and in
    config.json the ids of special tokens; of a run what it had kept. A chat template that the new run has already is
    its own. Raises OSError."""
    if RunFolder(source).checkpoints():
        if (source / CHAT_TEMPLATE).is_file() and not (run / CHAT_TEMPLATE).exists():
            shutil.copyfile(source / CHAT_TEMPLATE, run / CHAT_TEMPLATE)
        source = source / OF_THE_MODEL
    if (source / "config.json").is_file():
        kept = run / OF_THE_MODEL
        kept.mkdir(exist_ok=True)
        shutil.copyfile(source / "config.json", kept / "config.json")
        copy_beside(source, kept)


@contextlib.contextmanager
def begun_from(source: Path, folder: RunFolder, configuration: Configuration, ranks: Ranks) -> Iterator[Path]:
    """The checkpoint of step 0 with the source's weights, which the first rank writes; after an evaluation it is not
    kept. Raises UserError."""
    if ranks.is_first:
        checkpoint = _begin_from(source, folder, configuration)
    else:
        checkpoint = _written_by_the_first(folder, configuration.run.comm_timeout)
    try:
        yield checkpoint
    finally:
        if ranks.is_first and configuration.run.eval_only:
            shutil.rmtree(checkpoint)


def _written_by_the_first(folder: RunFolder, seconds: int) -> Path:
    """Waits for it: where it has its name it is whole."""
    end = time.monotonic() + seconds
    while (found := folder.checkpoint_of(0)) is None:
        if time.monotonic() > end:
            raise UserError(f"the first rank has written no checkpoint into {folder.path} for {seconds} s")
        time.sleep(0.1)
    return found


def in_form(source: Path, weights: dict[str, Tensor], configuration: Configuration) -> dict[str, Tensor]:
    """The weights with matrices in codes where the run is to have them, each its nearest unless the source has them
    already. Raises UserError for a source that has others."""
    method = configuration.run.quantize_base
    found = method_of(weights)
    if found not in (None, method):
        wanted = f"--use_lora=True --quantize_base={found}"
        raise UserError(f"{source} has matrices in {found}, beside which adapters train: {wanted}")
    if method is None or found is not None:
        return weights
    every = (one for found in named_weights(configuration.model) for one in found.weights)
    return weights | {name: quantized(weights[name], form) for name, form in forms_of(method, every).items()}


def _begin_from(source: Path, folder: RunFolder, configuration: Configuration) -> Path:
    """Learned positions beyond the configuration's block_size are left out."""
    architecture, weights, notes = read_source(source)
    if architecture.weight_tying != configuration.model.weight_tying:
        raise UserError(
            f"{source}: lm_head.weight is not the embedding, although its config.json ties them: write "
            '"tie_word_embeddings": false there, which is how transformers loads it'
        )
    print("\n".join([f"weights of {source}", *(f"note: {note}" for note in notes)]), flush=True)
    expected = build_model(configuration.model, "meta").state_dict()
    position = "position.embedding.weight"
    if position in expected:
        weights[position] = weights[position][: len(expected[position])].clone()
    if configuration.run.lora_from is not None:
        _, adapters = adapters_from_peft(Path(configuration.run.lora_from), configuration.model)
        weights |= adapters
    weights = in_form(source, weights, configuration)
    try:
        keep_beside(source, folder.path)
        return write_initial(folder, flat(weights), configuration)
    except OSError as error:
        raise UserError(f"cannot write to the run's folder {folder.path}: {error.strerror}") from None
