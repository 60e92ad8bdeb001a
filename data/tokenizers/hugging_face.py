"""A tokenizer.json, by the tokenizers library, and by tiktoken where that certainly gives the same ids: it is several
times as fast.

What stands in the file for whole sequences is left out: a template that puts a token before each text, truncation and
padding. A document is its text and the end that the dataset puts after it.
"""

import functools
import json
from collections.abc import Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

from common.errors import UserError
from data.tokenizers.base import Tokenizer, missing_ids
from data.tokenizers.byte_pairs import tiktokens_form, unspelled
from data.tokenizers.sentencepiece import SPACE
from data.tokenizers.tiktoken import encoding_of, is_too_long

# Every character of the planes of Unicode that have letters, numbers or spaces, or may get some.
CHARACTERS = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x40000)]))
CLASSES = ("Lu", "Lt", "Lm", "Lo", "Ll", "M", "N")  # which PATTERNS name; all L together are letters


class HuggingFaceTokenizer(Tokenizer):
    """What a tokenizer.json describes; `content` is that file."""

    def __init__(self, end_of_document: int | None, content: bytes):
        super().__init__(end_of_document)
        self.whole = read_whole(content)
        self._library = _from_json(self.whole)
        vocabulary = self._library.get_vocab(with_added_tokens=True)
        added = self._library.get_added_tokens_decoder()
        self.special = MappingProxyType({token.content: number for number, token in added.items() if token.special})
        self._in_text = [token.content for token in added.values() if not token.special]
        self.vocab_size = max(vocabulary.values()) + 1
        self.gaps = missing_ids(list(vocabulary.values()), self.vocab_size)
        self._tokens, self.prefix = _token_bytes(self.whole, vocabulary, {one.content for one in added.values()})
        self._unknown = vocabulary.get(self.whole["model"].get("unk_token"))

    def encode(self, text: str) -> list[int]:
        if self._tiktoken is not None and not is_too_long(text) and not any(name in text for name in self._in_text):
            return self._tiktoken.encode_ordinary(text)
        return self._encode(text, special_is_text=True)

    def encode_prompt(self, text: str) -> list[int]:
        return self._encode(text, special_is_text=False)

    def _encode(self, text: str, special_is_text: bool) -> list[int]:
        self._library.encode_special_tokens = special_is_text
        try:
            found = self._library.encode(text, add_special_tokens=False)
        except Exception as error:  # the library has no class of its own for a text without tokens
            raise UserError(f"the tokenizer cannot encode this text: {error}") from None
        if self._unknown is not None and self._unknown in found.ids and special_is_text:
            start, end = found.offsets[found.ids.index(self._unknown)]
            raise UserError(f"the tokenizer has no token for {text[start:end]!a}: it cannot encode this text")
        return found.ids

    @cached_property
    def _tiktoken(self) -> Any:
        """tiktoken's `Encoding`, where it gives the same ids, for which every token of the table is looked at."""
        form = tiktokens_form(self.whole)
        return None if form is None or not same_classes() else encoding_of(*form, {})

    def _decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(self._tokens[token] for token in ids)


def read_whole(content: bytes) -> dict[str, Any]:
    """A tokenizer.json without what is for whole sequences. Raises UserError for what is none."""
    try:
        whole = json.loads(content)
        whole["model"]["vocab"], whole["decoder"]  # what every one has
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError("the tokenizer.json is damaged, or none: copy it anew") from None
    return whole | dict.fromkeys(("truncation", "padding", "post_processor"))


def _from_json(whole: dict[str, Any]) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UserError("a tokenizer.json needs tokenizers: pip install -e '.[tokenizers]'") from None
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(whole))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"tokenizers cannot read the tokenizer.json: {' '.join(str(error).split())[:200]}") from None


def _token_bytes(whole: dict[str, Any], vocabulary: dict[str, int], added: set[str]) -> tuple[dict[int, bytes], bytes]:
    """The bytes of each token, and what a text begins with in them that is not its own. Raises UserError for a decoder
    that makes more of tokens than the sum of their bytes."""
    decoder = whole["decoder"] or {}
    steps = decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        spelled_out = {token: unspelled(name) for name, token in vocabulary.items() if name not in added}
        of_text = {token: content for token, content in spelled_out.items() if content is not None}
        return of_text | {vocabulary[name]: name.encode() for name in added}, b""
    if not set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        raise UserError(f"a tokenizer.json with the decoder {kinds} does not keep all of a text: choose another")
    spaced, bytewise = {"Replace", "Metaspace"} & set(kinds), "ByteFallback" in kinds
    found = {}
    for name, token in vocabulary.items():
        if bytewise and name.startswith("<0x") and len(name) == 6:
            found[token] = bytes([int(name[3:5], 16)])
        else:
            found[token] = (name.replace(SPACE, " ") if spaced and name not in added else name).encode("utf-8")
    strips = "Strip" in kinds or any(step.get("prepend_scheme", "never") != "never" for step in steps)
    return found, b" " if strips else b""


@functools.cache
def same_classes() -> bool:
    """Whether tokenizers and tiktoken, as installed, take the same characters for letters, numbers, white space and so
    on: each has Unicode's tables of its own, and a newer one knows more."""
    import tokenizers

    single = {bytes([byte]): byte for byte in range(256)}
    for pattern in [r"\s+", *(rf"\p{{{name}}}+" for name in CLASSES)]:
        encoding = encoding_of(single, pattern, {})
        theirs = encoding.decode_bytes(encoding.encode_ordinary(CHARACTERS)).decode("utf-8")
        rest = tokenizers.normalizers.Replace(tokenizers.Regex(pattern), "").normalize_str(CHARACTERS)
        if len(theirs) + len(rest) != len(CHARACTERS) or not set(theirs).isdisjoint(rest):
            return False
    return True
