"""Byte-pair encodings by tiktoken: the published ones by name, and files of ranks with the pattern of Llama 3.

Such a file has a line for each token, its bytes in base64 and its rank, which is its id. tiktoken's own reader keeps
copies of files by their path, so that a file that has changed is read as it was: here it is read as it is.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from common.errors import UserError, did_you_mean
from data.tokenizers.base import Tokenizer, missing_ids
from data.tokenizers.byte_pairs import CL100K, GPT2, O200K

PUBLISHED = {"gpt2": GPT2, "cl100k_base": CL100K, "o200k_base": O200K}
END = "<|endoftext|>"  # of the published ones
LLAMA3_END = "<|end_of_text|>"
LONGEST_RUN = 900_000  # of white space that is given to tiktoken, whose regular expressions have a limit
_TOO_LONG = re.compile(rf"\s{{{LONGEST_RUN}}}")


class TiktokenTokenizer(Tokenizer):
    """Byte pairs, merged in the order of `ranks` within the pieces of text that `pattern` finds."""

    def __init__(
        self, end_of_document: int | None, ranks: Mapping[bytes, int], pattern: str, special: Mapping[str, int]
    ):
        super().__init__(end_of_document)
        self.ranks, self.pattern, self.special = ranks, pattern, MappingProxyType(dict(special))
        self.divides_after_words = pattern == GPT2
        tokens = [*ranks.values(), *special.values()]
        self.vocab_size = max(tokens) + 1
        self.gaps = missing_ids(tokens, self.vocab_size)
        self._encoding = encoding_of(ranks, pattern, special)

    def encode(self, text: str) -> list[int]:
        if is_too_long(text):
            raise UserError(
                f"a text has {LONGEST_RUN:,} or more characters of white space in a row, more than tiktoken is given: "
                "shorten such runs, or leave the document out"
            )
        return self._encoding.encode_ordinary(text)

    def _decode_bytes(self, ids: Sequence[int]) -> bytes:
        return self._encoding.decode_bytes(list(ids))


def is_too_long(text: str) -> bool:
    """Whether a run of white space is more than tiktoken is given."""
    return len(text) >= LONGEST_RUN and _TOO_LONG.search(text) is not None


def encoding_of(ranks: Mapping[bytes, int], pattern: str, special: Mapping[str, int]) -> Any:
    """tiktoken's `Encoding`."""
    return _tiktoken().Encoding(
        "of a dataset", pat_str=pattern, mergeable_ranks=dict(ranks), special_tokens=dict(special)
    )


def _tiktoken() -> Any:
    try:
        import tiktoken
    except ImportError:
        raise UserError("this tokenizer needs tiktoken: pip install tiktoken") from None
    return tiktoken


def published(name: str) -> tuple[dict[bytes, int], str, dict[str, int]]:
    """The ranks, pattern and special tokens of one of PUBLISHED. tiktoken downloads them once, and keeps a copy whose
    hash it checks: it deletes one with another hash, and downloads anew. Raises UserError where they cannot be had."""
    if name not in PUBLISHED:
        raise UserError(f"tiktoken:{name} is none of {', '.join(PUBLISHED)}{did_you_mean(name, PUBLISHED)}")
    try:
        encoding = _tiktoken().get_encoding(name)
    except (OSError, ValueError) as error:  # no network, or a table that is not the right one
        raise UserError(
            f"cannot fetch the token table of {name} ({type(error).__name__}): tiktoken downloads it once; without a "
            f"network, set TIKTOKEN_CACHE_DIR to a folder that has it"
        ) from error
    return encoding._mergeable_ranks, PUBLISHED[name], encoding._special_tokens


def llama3_special(n_ranks: int) -> dict[str, int]:
    """The 256 special tokens of Llama 3, whose ids follow those of the ranks."""
    named = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}
    reserved = (f"reserved_special_token_{number}" for number in range(256))
    names = [named.get(place) or next(reserved) for place in range(256)]
    return {f"<|{name}|>": n_ranks + place for place, name in enumerate(names)}


# ---------------------------------------------------------------------------------------------------------------------
# Files of ranks


def is_ranks_file(content: bytes) -> bool:
    """Whether the first line is one of such a file."""
    return re.match(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n", content) is not None


def write_ranks(ranks: Mapping[bytes, int]) -> bytes:
    """The file of these ranks, as tiktoken writes it."""
    lines = (base64.b64encode(token) + b" %d\n" % rank for token, rank in sorted(ranks.items(), key=lambda one: one[1]))
    return b"".join(lines)


def read_ranks(content: bytes) -> dict[bytes, int]:
    """The ranks of such a file. Raises UserError for one that is damaged or lacks a byte."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise UserError(f"line {number} of the file of ranks is no token in base64 and its rank") from None
        if len(ranks) != number:
            raise UserError(f"line {number} of the file of ranks has a token that is there already")
    if len(set(ranks.values())) < len(ranks) or min(ranks.values(), default=-1) < 0:
        raise UserError("two tokens of the file of ranks have the same rank, or one has a rank below 0")
    if lacking := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise UserError(f"the file of ranks has no token for the byte {lacking[0]:#04x}: text could not be encoded")
    return ranks
