"""The tokenizers of this repository's datasets as Hugging Face's libraries read them: tokenizer.json, with which
`AutoTokenizer` gives the same ids."""

import itertools
from pathlib import Path
from typing import Any

from data.tokenizers import CharactersTokenizer, GPT2Tokenizer, Tokenizer
from interop.folders import write_json

_BYTES: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_END = "<|endoftext|>"  # GPT-2's


def write_tokenizer(tokenizer: Tokenizer, length: int, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json; `length` is the model's context. Raises OSError, and UserError where
    GPT-2's table cannot be had."""
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length}
    added = []
    if isinstance(tokenizer, CharactersTokenizer):
        vocabulary = {character: number for number, character in enumerate(tokenizer.characters)}
        model = {
            "type": "WordLevel",
            "vocab": vocabulary,
            "unk_token": "",
        }  # none: as here, other characters are refused
        split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
        decoder: dict[str, Any] = {"type": "Fuse"}
    else:
        model, decoder = _byte_pairs({bytes([byte]): byte for byte in range(256)}), {**_BYTES, "use_regex": False}
        split = {**_BYTES, "use_regex": False}
        if isinstance(tokenizer, GPT2Tokenizer):
            model, split = _byte_pairs(tokenizer.ranks), {**_BYTES, "use_regex": True}
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            added = [{"id": tokenizer.vocab_size - 1, "content": _END, **flags, "special": True}]
            config |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), _END)
    whole = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor"))
    whole |= {"version": "1.0", "added_tokens": added, "pre_tokenizer": split, "decoder": decoder, "model": model}
    write_json(folder / "tokenizer.json", whole)
    write_json(folder / "tokenizer_config.json", config)


def _byte_pairs(ranks: dict[bytes, int]) -> dict[str, Any]:
    """Byte-pair encoding, as the vocabulary and the pairs that are merged, the first ones first."""
    letters = _letters()
    merges = [_parts(token, ranks) for token in sorted(ranks, key=lambda token: ranks[token]) if len(token) > 1]
    return {
        "type": "BPE",
        "vocab": {_spelled(token, letters): rank for token, rank in ranks.items()},
        "merges": [[_spelled(part, letters) for part in pair] for pair in merges],
    }


def _parts(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens that a token is merged of: what the merges before its own make of its bytes."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(one + other, len(ranks)) for one, other in itertools.pairwise(parts)]
        first = pairs.index(min(pairs))
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts


def _letters() -> list[str]:
    """The printable character that stands for each byte in GPT-2's files: itself, or the next one from U+0100 on."""
    itself = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in itself else chr(next(others)) for byte in range(256)]


def _spelled(token: bytes, letters: list[str]) -> str:
    return "".join(letters[byte] for byte in token)
