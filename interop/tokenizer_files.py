"""The tokenizers of this repository's datasets as Hugging Face's libraries read them: tokenizer.json, with which
`AutoTokenizer` gives the same ids."""

from pathlib import Path
from typing import Any

from common.errors import UserError
from data.tokenizers import (
    FILES,
    BytesTokenizer,
    CharactersTokenizer,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    TiktokenTokenizer,
    Tokenizer,
)
from data.tokenizers.byte_pairs import added_tokens, tokenizer_json
from data.tokenizers.sentencepiece import SPACE, merged_pairs
from interop.folders import write_json


def write_tokenizer(tokenizer: Tokenizer, length: int, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json, and of SentencePiece the model as it is; `length` is the context. No
    token is put before a text, as none is in the dataset. Raises OSError, and UserError where there is no such form."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        (folder / FILES["sentencepiece"]).write_bytes(tokenizer.content)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length}
    names = {number: name for name, number in tokenizer.special.items()}
    if (end := names.get(-1 if tokenizer.end_of_document is None else tokenizer.end_of_document)) is not None:
        config |= dict.fromkeys(("bos_token", "eos_token"), end)  # a text begins after the end of another
    write_json(folder / "tokenizer.json", _whole(tokenizer))
    write_json(folder / "tokenizer_config.json", config)


def _whole(tokenizer: Tokenizer) -> dict[str, Any]:
    match tokenizer:
        case BytesTokenizer():
            return tokenizer_json({bytes([byte]): byte for byte in range(256)}, "", {})
        case CharactersTokenizer():
            return _characters(tokenizer)
        case TiktokenTokenizer():
            return tokenizer_json(tokenizer.ranks, tokenizer.pattern, tokenizer.special)
        case HuggingFaceTokenizer():
            return tokenizer.whole
        case SentencePieceTokenizer():
            return _sentencepiece(tokenizer)
    raise TypeError(f"{type(tokenizer).__name__} has no form in Hugging Face's libraries")


def _characters(tokenizer: CharactersTokenizer) -> dict[str, Any]:
    model = {
        "type": "WordLevel",
        "vocab": {character: number for number, character in enumerate(tokenizer.characters)},
        "unk_token": "",  # none: as here, other characters are refused
    }
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    return _around(model, tokenizer) | {"pre_tokenizer": split, "decoder": {"type": "Fuse"}}


def _sentencepiece(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """Byte pairs over characters, with a normalizer that does what SentencePiece does to spaces."""
    found = tokenizer.model
    if not found.has_merges_only:
        raise UserError(
            "this SentencePiece model goes along as tokenizer.model; a tokenizer.json certainly gives the same ids "
            "only of one of type bpe that leaves text as it is, falls back to bytes and has no symbols of a user's"
        )
    spaces = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    stripped = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    back = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}]
    if found.adds_space:
        spaces = [{"type": "Prepend", "prepend": SPACE}, *spaces]
    model = {
        "type": "BPE",
        "vocab": {piece: number for number, (piece, _, _) in enumerate(found.pieces)},
        "merges": merged_pairs(found),
        "byte_fallback": True,
        "unk_token": None,
    }
    return _around(model, tokenizer) | {
        "normalizer": {"type": "Sequence", "normalizers": spaces},
        "decoder": {"type": "Sequence", "decoders": [*back, {"type": "Fuse"}, *(stripped if found.adds_space else [])]},
    }


def _around(model: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """A tokenizer.json of a model, and nothing before and after it."""
    parts = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    return dict.fromkeys(parts) | {"version": "1.0", "added_tokens": added_tokens(tokenizer.special), "model": model}
