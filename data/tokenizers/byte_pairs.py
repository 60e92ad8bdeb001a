"""Byte-pair encodings, as tiktoken's ranks and as the model of a tokenizer.json, and when both give the same ids.

tiktoken merges two neighbours whenever their bytes together are a token, the token of the lowest rank first, and takes
a piece of text that is a token as it is. tokenizers merges the pairs of a list only, the first ones first. A table of
one read as the other's can therefore encode otherwise.

They agree for this reason. Two neighbours that together are a token t came about by merges within t's bytes alone, so
as tiktoken's merging of nothing but these bytes makes them: there is at most one such pair for each t. Where the list
has that pair for each t, in the order of the ids of what they make, both have the same choices in the same order at
every step. What no merging makes is a token only where it is a whole piece, which tokenizers takes as it is if
`ignore_merges` says so.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

# How texts are divided into pieces, within which bytes are merged. These are the published expressions, which both
# libraries read alike: tiktoken's own spelling has possessive quantifiers, without which nothing changes but the time,
# and `$`, which tokenizers takes for the end of a line. In cl100k_base that matters: white space that ends a text is
# one piece there, also where it has line ends in it, and is two for Llama 3, whose pattern is else the same.
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CL100K = LLAMA3.replace(r"|\s*[\r\n]+", r"|\s+\z|\s*[\r\n]+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_SHORT}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = (GPT2, LLAMA3, CL100K, QWEN2, O200K)  # which both libraries read alike, as tests hold

_BYTE_LEVEL: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


# ---------------------------------------------------------------------------------------------------------------------
# The characters that stand for bytes in a tokenizer.json


@functools.cache
def letters() -> tuple[str, ...]:
    """The printable character that stands for each byte in GPT-2's files: itself, or the next one from U+0100 on."""
    itself = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte) if byte in itself else chr(next(others)) for byte in range(256))


def spelled(token: bytes) -> str:
    """A token in these characters."""
    return "".join(letters()[byte] for byte in token)


def unspelled(name: str) -> bytes | None:
    """The bytes of a token that is written in these characters; None for what is not."""
    byte_of = _byte_of()
    return bytes(byte_of[letter] for letter in name) if all(letter in byte_of for letter in name) else None


@functools.cache
def _byte_of() -> dict[str, int]:
    return {letter: byte for byte, letter in enumerate(letters())}


# ---------------------------------------------------------------------------------------------------------------------
# From ranks to tokenizer.json


def tokenizer_json(ranks: Mapping[bytes, int], pattern: str, special: Mapping[str, int]) -> dict[str, Any]:
    """What gives the ids of tiktoken, which are the `ranks` of the tokens, and of the `special` ones in a prompt."""
    ordered = sorted(ranks, key=lambda token: ranks[token])
    pairs = (last_pair(token, ranks) for token in ordered if len(token) > 1)
    model = {
        "type": "BPE",
        "vocab": {spelled(token): ranks[token] for token in ordered},
        "merges": [[spelled(part) for part in pair] for pair in pairs if pair is not None],
        "ignore_merges": True,
    }
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    levels = [split, {**_BYTE_LEVEL, "use_regex": False}] if pattern else [{**_BYTE_LEVEL, "use_regex": False}]
    whole = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor"))
    return whole | {
        "version": "1.0",
        "added_tokens": added_tokens(special),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": levels},
        "decoder": {**_BYTE_LEVEL, "use_regex": False},
        "model": model,
    }


def added_tokens(special: Mapping[str, int]) -> list[dict[str, Any]]:
    """Special tokens, as a tokenizer.json lists them."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    by_id = sorted(special.items(), key=lambda item: item[1])
    return [{"id": token, "content": name, **flags, "special": True} for name, token in by_id]


def last_pair(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens that tiktoken merges to this one, where it merges these bytes alone; None where it does not."""
    parts = [token[index : index + 1] for index in range(len(token))]
    while len(parts) > 2:
        found = [ranks.get(one + other) for one, other in itertools.pairwise(parts)]
        lowest = min((rank for rank in found if rank is not None), default=None)
        if lowest is None:
            return None
        first = found.index(lowest)
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return (parts[0], parts[1])


# ---------------------------------------------------------------------------------------------------------------------
# From tokenizer.json to ranks


def tiktokens_form(whole: Mapping[str, Any]) -> tuple[dict[bytes, int], str] | None:
    """The ranks and the pattern with which tiktoken gives the same ids for text as this tokenizer.json; None where that
    is not certain. Added tokens that are not special, which are found in text too, are the caller's to look for."""
    model, pattern = whole["model"], _pattern_of(whole)
    plain = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if pattern is None or model.get("type") != "BPE" or any(model.get(name) for name in plain):
        return None
    added = {token["content"] for token in whole.get("added_tokens") or ()}
    ignores = bool(model.get("ignore_merges"))
    ranks: dict[bytes, int] = {}
    for name, token in model["vocab"].items():
        if name in added and not ignores:  # GPT-2's end of documents is in both; no merge makes it
            continue
        content = unspelled(name)
        if name in added or not content:
            return None
        ranks[content] = token
    listed = _pairs(model["merges"])
    if listed is None or not all(bytes([byte]) in ranks for byte in range(256)):
        return None
    return (ranks, pattern) if _merges_alike(ranks, listed, ignores) else None


def _merges_alike(ranks: Mapping[bytes, int], listed: list[tuple[bytes, bytes]], ignores: bool) -> bool:
    """Whether the list has what this module's head asks of it."""
    made = [ranks.get(one + other) for one, other in listed]
    if None in made or made != sorted(made, key=lambda token: token or 0):
        return False
    pairs = set(listed)
    for token in ranks:
        if len(token) > 1:
            pair = last_pair(token, ranks)
            if (pair is None and not ignores) or (pair is not None and pair not in pairs):
                return False
    return True


def _pairs(merges: list[Any]) -> list[tuple[bytes, bytes]] | None:
    """The list's pairs as bytes: an entry is a list of two, or in older files a text with a space between."""
    found = []
    for entry in merges:
        parts = [unspelled(part) for part in (entry.split(" ") if isinstance(entry, str) else entry)]
        if len(parts) != 2 or parts[0] is None or parts[1] is None:
            return None
        found.append((parts[0], parts[1]))
    return found


def _pattern_of(whole: Mapping[str, Any]) -> str | None:
    """How a tokenizer.json divides text, if that is one of PATTERNS and nothing else happens to the text."""
    if whole.get("normalizer") is not None or not (levels := whole.get("pre_tokenizer")):
        return None
    levels = levels["pretokenizers"] if levels["type"] == "Sequence" else [levels]
    *before, last = levels
    if last["type"] != "ByteLevel" or last.get("add_prefix_space", True):
        return None
    if not before:
        return GPT2 if last.get("use_regex", True) else None
    split = before[0]
    if len(before) > 1 or last.get("use_regex", True) or split["type"] != "Split":
        return None
    pattern = split["pattern"].get("Regex")
    return pattern if pattern in PATTERNS and split["behavior"] == "Isolated" and not split["invert"] else None
