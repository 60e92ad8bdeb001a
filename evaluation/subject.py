"""What is evaluated: the checkpoint of a run, or the folder of a Hugging Face model, with its tokenizer."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.json_files import read_json
from configurator import Configuration
from data.tokenizers import FILES, Kept, Tokenizer
from inference.loading import configuration_of, find_tokenizer, load
from inference.text import starting_tokens
from interop.folders import has_tensors, read_model
from model_builder import LanguageModel, build_model
from runs.folder import existing_run


@dataclasses.dataclass(frozen=True)
class Run:
    """Where a subject comes from, if it was trained here."""

    checkpoint: Path
    configuration: Configuration


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model that is ready to be asked.

    `first` is the token that a text without a context follows; `begins` says whether it stands before every context,
    too.
    """

    name: str  # for people
    model: LanguageModel
    tokenizer: Tokenizer
    first: int
    begins: bool
    run: Run | None

    @property
    def block(self) -> int:
        """Tokens that a prediction rests on at most."""
        return self.model.config.block_size

    def encode(self, text: str) -> list[int]:
        """The ids of a text in which the name of a special token means that token, after `first` if texts begin so."""
        ids = self.tokenizer.encode_prompt(text)
        return [self.first, *ids] if self.begins and ids[:1] != [self.first] else ids


def find_subject(path: Path, wanted: str | int | None, device: torch.device, begins: bool | None) -> Subject:
    """What is at a path: of a run the `wanted` checkpoint. `begins` as in Subject; None: as the tokenizer is used
    elsewhere. Raises UserError."""
    folder = existing_run(path)
    if (path / "state.json").is_file():
        return _of_checkpoint(path, "as chosen", device, begins)
    if not folder.checkpoints() and (path / "config.json").is_file() and has_tensors(path):
        return _of_folder(path, device, begins)
    return _of_checkpoint(*folder.find(wanted), device, begins)


def _of_checkpoint(checkpoint: Path, which: str, device: torch.device, begins: bool | None) -> Subject:
    """Texts begin without `first` by default: training cuts most windows within a document, and exports say so, too."""
    saved = configuration_of(checkpoint)
    tokenizer = find_tokenizer(checkpoint, saved)
    model = load(checkpoint, saved, device)
    first = starting_tokens(tokenizer, None)[-1]
    return Subject(f"{checkpoint} ({which})", model, tokenizer, first, begins or False, Run(checkpoint, saved))


def _of_folder(folder: Path, device: torch.device, begins: bool | None) -> Subject:
    """Texts begin with `first` by default where transformers' tokenizer puts it there."""
    architecture, weights, _ = read_model(folder)
    model = build_model(architecture, device)
    model.load_state_dict(weights)
    tokenizer, begins_there = _tokenizer_of(folder)
    if tokenizer.vocab_size > architecture.vocab_size:
        raise UserError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size:,} ids, its model {architecture.vocab_size:,}: they do "
            "not belong together"
        )
    begins = begins_there if begins is None else begins
    return Subject(str(folder), model.eval(), tokenizer, _first_of(folder, tokenizer), begins, None)


def _tokenizer_of(folder: Path) -> tuple[Tokenizer, bool]:
    """The folder's tokenizer, whose end of documents is the model's, and whether texts begin with a token there: as
    tokenizer_config.json says, else as the template of the tokenizer.json does."""
    kind = next((kind for kind, name in FILES.items() if kind != "tiktoken" and (folder / name).is_file()), None)
    if kind is None:
        raise UserError(f"{folder} has no tokenizer.json and no tokenizer.model: put the model's tokenizer beside it")
    content = (folder / FILES[kind]).read_bytes()
    tokenizer = Kept({"kind": kind, "end_of_document": None}, content).tokenizer
    tokenizer.end_of_document = _named(folder, tokenizer, "eos_token")
    said = _read(folder / "tokenizer_config.json").get("add_bos_token")
    return tokenizer, bool(said) if said is not None else kind == "hugging_face" and has_template(content)


def has_template(tokenizer_json: bytes) -> bool:
    """Whether a tokenizer.json puts something before a text."""
    from tokenizers import Tokenizer  # is there, or the folder's tokenizer could not have been read

    return bool(Tokenizer.from_str(tokenizer_json.decode()).encode("").ids)


def _first_of(folder: Path, tokenizer: Tokenizer) -> int:
    """What a text follows: the token for it, the end of the text before, or, without either, a line's end."""
    first = _named(folder, tokenizer, "bos_token")
    return starting_tokens(tokenizer, None)[-1] if first is None else first


def _named(folder: Path, tokenizer: Tokenizer, name: str) -> int | None:
    """The id of a special token, by tokenizer_config.json, else by the model's config.json."""
    said = _read(folder / "tokenizer_config.json").get(name)
    said = said.get("content") if isinstance(said, dict) else said
    if isinstance(said, str) and said in tokenizer.special:
        return tokenizer.special[said]
    found = _read(folder / "config.json").get(f"{name}_id")
    found = found[0] if isinstance(found, list) and found else found
    return found if isinstance(found, int) and 0 <= found < tokenizer.vocab_size else None


def _read(file: Path) -> dict[str, Any]:
    """A file of JSON, empty where there is none. Raises UserError."""
    if not file.is_file():
        return {}
    try:
        return read_json(file)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
