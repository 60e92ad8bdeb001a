"""Text to token ids and back: the kinds of tokenizer that a dataset's meta.json can name.

In meta.json they read:
    {"kind": "bytes", "end_of_document": 0}
    {"kind": "characters", "end_of_document": null, "characters": "abc..."}
    {"kind": "tiktoken", "end_of_document": 50256, "name": "gpt2", "pattern": "...", "special": {...}, FILE}
    {"kind": "hugging_face", "end_of_document": 8191, FILE}
    {"kind": "sentencepiece", "end_of_document": 2, FILE}
    {"kind": "gpt2", "end_of_document": 50256}     of an earlier version, which kept no file: tiktoken has the table
where FILE is "file": its name in the folder of the dataset, and of each run, and "sha256": the hash of what is in it.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import open_file
from data.tokenizers.base import Tokenizer
from data.tokenizers.byte_pairs import LLAMA3
from data.tokenizers.hugging_face import HuggingFaceTokenizer
from data.tokenizers.plain import BytesTokenizer, CharactersTokenizer
from data.tokenizers.sentencepiece import SentencePieceTokenizer, is_sentencepiece
from data.tokenizers.tiktoken import (
    END,
    LLAMA3_END,
    PUBLISHED,
    TiktokenTokenizer,
    is_ranks_file,
    llama3_special,
    published,
    read_ranks,
    write_ranks,
)

__all__ = ["BytesTokenizer", "CharactersTokenizer", "HuggingFaceTokenizer", "SentencePieceTokenizer", "Tokenizer"]
__all__ += ["FILES", "HOW", "Kept", "TiktokenTokenizer", "choose", "same_ids", "tokenizer_from_meta"]

FILES = {"tiktoken": "tokenizer.tiktoken", "hugging_face": "tokenizer.json", "sentencepiece": "tokenizer.model"}
HOW = (
    f"byte, char, {', '.join(f'tiktoken:{name}' for name in PUBLISHED)}, llama3:FILE of ranks, a tokenizer.json or its "
    "folder, or a SentencePiece model"
)


@dataclasses.dataclass(frozen=True)
class Kept:
    """A tokenizer as a dataset keeps it: what meta.json says, and what is in the file that goes along, if one does."""

    entry: dict[str, Any]
    content: bytes | None = None

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises UserError for a kind that this version does not know, and for an end of documents that is none of its
        tokens."""
        return _build(self.entry, self.content)

    def without_end(self) -> "Kept":
        """Of a dataset whose splits are one document each."""
        return dataclasses.replace(self, entry=self.entry | {"end_of_document": None})


# ---------------------------------------------------------------------------------------------------------------------
# From meta.json


def tokenizer_from_meta(entry: dict[str, Any], folder: Path | None = None) -> Tokenizer:
    """The tokenizer that meta.json describes, whose file, if it has one, is in `folder`. Raises UserError also where
    that file is missing or is not the one that was kept."""
    return Kept(entry, content_of(entry, folder)).tokenizer


def content_of(entry: dict[str, Any], folder: Path | None) -> bytes | None:
    """What is in the tokenizer's file, None for a tokenizer without one. Raises UserError as `tokenizer_from_meta`."""
    if not isinstance(entry, dict) or "file" not in entry:
        return None
    if folder is None or entry["file"] != FILES.get(str(entry.get("kind"))):
        raise _unknown(entry)
    path = folder / entry["file"]
    content = _read(path)
    if hashlib.sha256(content).hexdigest() != entry.get("sha256"):
        raise UserError(f"{path} is not the tokenizer that was kept: its sha256 is another; copy it anew")
    return content


def _read(path: Path) -> bytes:
    try:
        with open_file(path) as file:
            return file.read()
    except OSError as error:
        raise UserError(f"cannot read the tokenizer {path}: {error.strerror}") from None


def _build(entry: dict[str, Any], content: bytes | None) -> Tokenizer:
    end = entry.get("end_of_document") if isinstance(entry, dict) else None
    match entry:
        case {"kind": "bytes", "end_of_document": _}:
            found: Tokenizer = BytesTokenizer(end)
        case {"kind": "characters", "end_of_document": _, "characters": str(characters)}:
            found = CharactersTokenizer(end, characters)
        case {"kind": "gpt2", "end_of_document": _}:
            found = TiktokenTokenizer(end, *published("gpt2"))
        case {"kind": "tiktoken", "end_of_document": _, "pattern": str(pattern), "special": dict(special)} if content:
            found = TiktokenTokenizer(end, read_ranks(content), pattern, special)
        case {"kind": "hugging_face", "end_of_document": _} if content:
            found = HuggingFaceTokenizer(end, content)
        case {"kind": "sentencepiece", "end_of_document": _} if content:
            found = SentencePieceTokenizer(end, content)
        case _:
            raise _unknown(entry)
    if end is not None and (type(end) is not int or not 0 <= end < found.vocab_size):
        raise UserError(
            f"the tokenizer's end_of_document is {str(end)[:200]!a}, which is none of its {found.vocab_size:,} tokens: "
            "prepare the dataset again"
        )
    return found


def _unknown(entry: dict[str, Any]) -> UserError:
    return UserError(f"meta.json names a tokenizer that this version does not know: {str(entry)[:200]!a}")


def same_ids(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two of what meta.json can name give the same text the same ids; what ends a document may differ."""
    return _what_decides(one) == _what_decides(other)


def _what_decides(entry: dict[str, Any]) -> dict[str, Any]:
    if name := ("gpt2" if entry.get("kind") == "gpt2" else entry.get("name")):
        return {"name": name}
    return {key: value for key, value in entry.items() if key not in ("end_of_document", "file")}


# ---------------------------------------------------------------------------------------------------------------------
# From what a user asks for


def choose(given: str, texts: Iterable[str] = (), end: str | None = None) -> Kept:
    """The tokenizer that `--tokenizer` names; `texts` are those that `char` takes its characters from, and `end` is
    what the token is called that ends a document, where the tokenizer does not say. Raises UserError."""
    kind, _, rest = given.partition(":")
    if given in ("byte", "char") and end is not None:
        raise UserError(f"--end_of_document={end}: --tokenizer={given} has an end of its own, leave it out")
    if given == "byte":
        return Kept({"kind": "bytes", "end_of_document": 0})
    if given == "char":
        characters = "".join(sorted(set().union(*texts)))
        return Kept({"kind": "characters", "end_of_document": len(characters), "characters": characters})
    if kind == "tiktoken":
        ranks, pattern, special = published(rest)
        return _of_ranks(write_ranks(ranks), pattern, special, end or END, name=rest)
    if kind == "llama3":
        content = _read(Path(rest))
        ranks = read_ranks(content)
        if max(ranks.values()) != len(ranks) - 1:
            raise UserError(f"{rest}: its ranks have gaps, so it is not of Llama 3, whose special tokens follow them")
        return _of_ranks(content, LLAMA3, llama3_special(len(ranks)), end or LLAMA3_END)
    return _of_file(Path(given), end)


def _of_ranks(content: bytes, pattern: str, special: dict[str, int], end: str, **name: str) -> Kept:
    entry = {"kind": "tiktoken", "end_of_document": _named(end, special), **name}
    return _kept(entry | {"pattern": pattern, "special": special}, content)


def _kept(entry: dict[str, Any], content: bytes) -> Kept:
    return Kept(entry | {"file": FILES[entry["kind"]], "sha256": hashlib.sha256(content).hexdigest()}, content)


def _named(end: str, tokens: dict[str, int]) -> int:
    if end not in tokens:
        some = ", ".join(list(tokens)[:5]) or "none"
        raise UserError(f"--end_of_document={end} is none of the tokenizer's special tokens: {some}")
    return tokens[end]


def _of_file(path: Path, end: str | None) -> Kept:
    """A tokenizer.json or a SentencePiece model, or the folder of one; which of them a file is, it says itself."""
    if path.is_dir():
        found = [path / name for name in (FILES["hugging_face"], FILES["sentencepiece"]) if (path / name).is_file()]
        if not found:
            raise UserError(f"{path} has neither a tokenizer.json nor a tokenizer.model: --tokenizer takes {HOW}")
        path = found[0]
    elif not path.is_file():
        raise UserError(f"there is no tokenizer {path}: --tokenizer takes {HOW}")
    content = _read(path)
    if is_ranks_file(content):
        raise UserError(
            f"{path} is a file of ranks, which does not say how text is divided: if of Llama 3, llama3:{path}"
        )
    kind = "sentencepiece" if is_sentencepiece(content) else "hugging_face"
    kept = _kept({"kind": kind, "end_of_document": None}, content)
    return dataclasses.replace(kept, entry=kept.entry | {"end_of_document": _end_of(kept.tokenizer, path, end)})


def _end_of(tokenizer: Tokenizer, path: Path, end: str | None) -> int:
    """The id that ends a document: as asked for, as the model or tokenizer_config.json says, or the only special token
    that there is."""
    special = dict(tokenizer.special)
    if end is not None:
        return _named(end, special)
    if isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.end is not None:
        return tokenizer.end
    try:
        said = json.loads(_read(path.with_name("tokenizer_config.json"))).get("eos_token")
        name = said["content"] if isinstance(said, dict) else said
    except (UserError, ValueError, AttributeError, KeyError):  # it is not there, or says something else
        name = None
    if name in special:
        return special[name]
    if len(special) == 1:
        return next(iter(special.values()))
    raise UserError(
        f"{path} does not say which token ends a document: add --end_of_document with one of "
        f"{', '.join(list(special)[:8]) or 'its special tokens, of which it has none'}"
    )
