"""Tokenizers of every kind: the ids of the libraries that they come from, what goes along, and what is refused."""

import base64
import functools
import hashlib
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import regex
import sentencepiece
import tiktoken
import tokenizers
import torch
from commands import command
from conftest import ROOT, training
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiktoken_ext import openai_public
from transformers import AutoTokenizer, LlamaTokenizer

import checkpoint as checkpoint_command
import sample as sample_command
from common.errors import UserError
from data.dataset import open_dataset
from data.preparation import encode_batch
from data.tokenizers import HuggingFaceTokenizer, TiktokenTokenizer, Tokenizer, choose, same_ids, tokenizer_from_meta
from data.tokenizers.byte_pairs import CL100K, GPT2, LLAMA3, O200K, PATTERNS, tiktokens_form, tokenizer_json
from data.tokenizers.hugging_face import same_classes
from data.tokenizers.sentencepiece import SentencePieceTokenizer
from data.tokenizers.tiktoken import LONGEST_RUN, published, read_ranks, write_ranks
from inference.generation import generate
from inference.sampling import Sampling
from inference.text import decode_stream
from interop.tokenizer_files import write_tokenizer
from model_builder import build_model
from model_config import resolve_architecture

END = "<|endoftext|>"
TRAIN = "data/train_tokenizer.py"
PAGES = ("README.md", "TESTING.md", "SYSTEM_OVERVIEW.md")
TEXT = "\n\n".join((ROOT / name).read_text(encoding="utf-8") for name in PAGES)
SINGLE = {bytes([byte]): byte for byte in range(256)}
CACHE = os.environ.get("TIKTOKEN_CACHE_DIR") or str(ROOT.parent / "shared/tiktoken_cache")
needs_gpt2 = pytest.mark.skipif(not Path(CACHE).is_dir(), reason="needs TIKTOKEN_CACHE_DIR with GPT-2's tokens")


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    if Path(CACHE).is_dir():
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", CACHE)


# Documents in which encoders differ if they differ anywhere: letters of every script and of newer Unicode, marks,
# digits, runs of white space, long words, names of special tokens, contractions in other cases and with a long s.
PIECES = st.one_of(
    st.text(),
    st.text("\n\r\t   \u00a0\u2003\u0085\u200b", max_size=12),
    st.sampled_from([END, "<|end_of_text|>", "<s>", "</s>", "'s", "'LL", "'\u017f", "\U0001f468\u200d\U0001f469"]),
    st.sampled_from(
        ["\U00011f02", "\U0001e4d0", "\u1c89", "\ua7cb", "\U0001ccf0", "\u0660\u0661", "Ⅷ", "ﬁ", "e\u0301"]
    ),
    st.text("ab", min_size=20, max_size=200),
    st.text("0123456789", max_size=9),
    st.sampled_from(TEXT.split(" ")),
)
DOCUMENTS = st.lists(PIECES, max_size=12).map("".join)


def script(name: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    """A script as a user calls it, by its path."""
    command = [sys.executable, ROOT / name, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


# ---------------------------------------------------------------------------------------------------------------------
# A tokenizer that is trained here


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT)
    done = script(TRAIN, "--vocab_size=800", "--input=text.txt", "--out_dir=mine", cwd=folder)
    assert done.returncode == 0 and "mine: 800 tokens, of which <|endoftext|> is the last" in done.stdout, done.stderr
    return folder / "mine"


@pytest.fixture(scope="module")
def three(trained):
    """The trained tokenizer in the three libraries."""
    ranks = tiktoken.load.load_tiktoken_bpe(str(trained / "tokenizer.tiktoken"))
    of_tiktoken = tiktoken.Encoding("mine", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens={END: 799})
    library = tokenizers.Tokenizer.from_file(str(trained / "tokenizer.json"))
    library.encode_special_tokens = True
    return of_tiktoken, library, AutoTokenizer.from_pretrained(trained), choose(str(trained)).tokenizer


@settings(max_examples=300)
@given(document=DOCUMENTS)
def test_a_trained_tokenizer_gives_the_same_ids_in_three_libraries_and_here(three, document):
    of_tiktoken, library, of_transformers, ours = three
    expected = of_tiktoken.encode_ordinary(document)
    assert library.encode(document, add_special_tokens=False).ids == expected
    assert of_transformers(document, split_special_tokens=True)["input_ids"] == expected
    assert ours.encode(document) == expected
    assert ours.decode(expected) == document
    asked = of_tiktoken.encode(document, allowed_special="all")
    assert of_transformers(document)["input_ids"] == asked == ours.encode_prompt(document)


def test_it_does_so_for_every_character_and_for_long_words_and_runs(three):
    of_tiktoken, library, _, ours = three
    characters = [chr(code) for code in range(0x40000) if not 0xD800 <= code < 0xE000]
    parts = (characters[start : start + 5000] for start in range(0, len(characters), 5000))
    documents = ["".join(f"{one}a {one}" for one in part) for part in parts]
    documents += ["aB" * 50_000, " " * 100_000 + "a", "\n" * 30_000 + " x", "7" * 50_000, "!?" * 50_000]
    for document in documents:
        expected = of_tiktoken.encode_ordinary(document)
        assert ours.encode(document) == library.encode(document, add_special_tokens=False).ids == expected


def test_it_is_encoded_by_tiktoken_but_for_runs_that_end_tiktoken(three):
    ours = three[3]
    assert ours._tiktoken is not None
    run_of_spaces = " " * 1_000_000 + "a"
    assert ours.encode(run_of_spaces) == three[1].encode(run_of_spaces, add_special_tokens=False).ids
    with pytest.raises(BaseException, match="StackOverflow"):
        three[0].encode_ordinary(run_of_spaces)


def test_training_is_the_same_every_time(trained, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    script(TRAIN, "--vocab_size=800", "--input=text.txt", "--out_dir=again", cwd=tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.tiktoken"):
        assert (tmp_path / "again" / name).read_bytes() == (trained / name).read_bytes()


@pytest.mark.parametrize(
    "changed, expected",
    [
        (["--vocab_size=256"], "--vocab_size=256: every byte and <|endoftext|> are 257 tokens"),
        (["--vocab_size=9999999"], "give more text, or take a smaller vocabulary"),
        (["--out_dir=there"], "there is there already: choose another --out_dir"),
        (["--input=none.txt"], "there is no file none.txt"),
    ],
)
def test_training_that_cannot_be_is_one_line(tmp_path, changed, expected):
    (tmp_path / "text.txt").write_text("some words and more of them\n")
    (tmp_path / "there").mkdir()
    (tmp_path / "there/mine").write_text("precious")
    given = {"--vocab_size": "300", "--input": "text.txt", "--out_dir": "new"}
    given |= dict(one.split("=") for one in changed)
    arguments = [f"{key}={value}" for key, value in given.items()]
    done = script(TRAIN, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and expected in done.stderr
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Ranks and merges


def merged_by(merges: list[tuple[bytes, bytes]], text: str, ignore_merges: bool = False) -> list[int]:
    """What tokenizers makes of a text of one piece."""
    ranks = SINGLE | {one + other: 256 + number for number, (one, other) in enumerate(merges)}
    return tokenizers.Tokenizer.from_str(json.dumps(with_merges(ranks, merges, ignore_merges))).encode(text).ids


def with_merges(ranks: dict, merges: list[tuple[bytes, bytes]], ignore_merges: bool = False) -> dict:
    whole = tokenizer_json(ranks, GPT2, {})
    listed = [[one.decode(), other.decode()] for one, other in merges]
    whole["model"] |= {"merges": listed, "ignore_merges": ignore_merges}
    return whole


TABLES = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=12)


def table(choices: list[tuple[int, int]]) -> list[tuple[bytes, bytes]]:
    """Merges of a, b and c and of what was merged before, each making something new."""
    tokens, merges = [b"a", b"b", b"c"], []
    for one, other in choices:
        pair = tokens[one % len(tokens)], tokens[other % len(tokens)]
        if b"".join(pair) not in tokens:
            tokens.append(b"".join(pair))
            merges.append(pair)
    return merges


@settings(max_examples=500)
@given(choices=TABLES, text=st.text("abc", max_size=30), ignore_merges=st.booleans())
def test_a_table_of_merges_that_passes_is_encoded_alike(choices, text, ignore_merges):
    """Any table, not only one that training could give; those that encode otherwise do not pass."""
    merges = table(choices)
    ranks = SINGLE | {one + other: 256 + number for number, (one, other) in enumerate(merges)}
    of_tiktoken = tiktoken.Encoding("any", pat_str=GPT2, mergeable_ranks=ranks, special_tokens={})
    if tiktokens_form(with_merges(ranks, merges, ignore_merges)) is not None:
        assert merged_by(merges, text, ignore_merges) == of_tiktoken.encode_ordinary(text)


@settings(max_examples=500)
@given(choices=TABLES, text=st.text("abc", max_size=30))
def test_ranks_are_written_as_merges_that_encode_alike(choices, text):
    ranks = SINGLE | {one + other: 256 + number for number, (one, other) in enumerate(table(choices))}
    of_tiktoken = tiktoken.Encoding("any", pat_str=GPT2, mergeable_ranks=ranks, special_tokens={})
    written = tokenizer_json(ranks, GPT2, {})
    assert tokenizers.Tokenizer.from_str(json.dumps(written)).encode(text).ids == of_tiktoken.encode_ordinary(text)
    assert tiktokens_form(written) == (ranks, GPT2)


def test_a_table_whose_ranks_encode_otherwise_is_left_to_tokenizers():
    """abc is listed of a and bc, which no text merges to, as ab comes first."""
    merges = [(b"a", b"b"), (b"b", b"c"), (b"a", b"bc")]
    ranks = SINGLE | {b"ab": 256, b"bc": 257, b"abc": 258}
    of_tiktoken = tiktoken.Encoding("any", pat_str=GPT2, mergeable_ranks=ranks, special_tokens={})
    assert merged_by(merges, "abc") == [256, ord("c")] and of_tiktoken.encode_ordinary("abc") == [258]
    assert tiktokens_form(with_merges(ranks, merges)) is None
    ours = HuggingFaceTokenizer(None, json.dumps(with_merges(ranks, merges)).encode())
    assert ours.encode("abc") == [256, ord("c")] and ours._tiktoken is None


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: whole.update(normalizer={"type": "NFC"}),
        lambda whole: whole["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\w+|\W+"),
        lambda whole: whole["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        lambda whole: whole["model"].update(dropout=0.5),
        lambda whole: whole["model"]["vocab"].pop("!"),
        lambda whole: whole["model"]["merges"].reverse(),
        lambda whole: whole["model"]["merges"].pop(),
    ],
)
def test_what_is_not_certainly_the_same_is_left_to_tokenizers(trained, change):
    whole = json.loads((trained / "tokenizer.json").read_text())
    assert tiktokens_form(whole) is not None
    change(whole)
    assert tiktokens_form(whole) is None


def test_the_libraries_know_the_same_letters():
    assert same_classes()


@pytest.mark.parametrize("pattern", PATTERNS, ids=["gpt2", "llama3", "cl100k", "qwen2", "o200k"])
@given(document=DOCUMENTS)
@example(document="'ſ 'LL'ſa 'Ks  ")
def test_both_libraries_divide_text_alike(pattern, document):
    """Each piece of tokenizers is a token, so that tiktoken has these tokens only if it has these pieces."""
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    pieces = [piece.encode() for piece, _ in split.pre_tokenize_str(document)]
    longer = sorted({piece for piece in pieces if len(piece) > 1})
    ranks = SINGLE | {piece: 256 + number for number, piece in enumerate(longer)}
    of_tiktoken = tiktoken.Encoding("any", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    assert of_tiktoken.decode_tokens_bytes(of_tiktoken.encode_ordinary(document)) == pieces


@pytest.mark.parametrize("name, pattern", [("gpt2", GPT2), ("cl100k_base", CL100K), ("o200k_base", O200K)])
@given(document=DOCUMENTS)
@example(document="a\n ")
@example(document=" \r\n\n \n")
def test_the_published_patterns_are_tiktokens_own(name, pattern, document):
    theirs, ours = (regex.compile(one.replace(r"\z", r"\Z")) for one in (tiktokens_pattern(name), pattern))
    assert [match[0] for match in theirs.finditer(document)] == [match[0] for match in ours.finditer(document)]


@pytest.mark.parametrize("name, pattern", [("gpt2", GPT2), ("cl100k_base", CL100K), ("o200k_base", O200K)])
def test_they_are_for_every_short_text_of_characters_that_patterns_tell_apart(name, pattern):
    kinds = ["a", "A", " ", "\n", "\r", "1", "!", "'", "s", "\u0301", "\x85", "/", "ǅ", "ʰ", "漢", "\t"]
    theirs, ours = (regex.compile(one.replace(r"\z", r"\Z")) for one in (tiktokens_pattern(name), pattern))
    for length in (1, 2, 3):
        for document in map("".join, itertools.product(kinds, repeat=length)):
            assert theirs.findall(document) == ours.findall(document), document


@functools.cache
def tiktokens_pattern(name: str) -> str:
    """As tiktoken has it; its table is not needed for that."""
    with pytest.MonkeyPatch.context() as patch:
        for loader in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
            patch.setattr(openai_public, loader, lambda *_, **__: SINGLE)
        return openai_public.ENCODING_CONSTRUCTORS[name]()["pat_str"]


# ---------------------------------------------------------------------------------------------------------------------
# Each kind as a user names it


def llama3_file(folder: Path) -> Path:
    """A small file in the form of Llama 3's tokenizer.model."""
    tokens = ["th", "the", " the", "er", " t", "  ", "\n\n", "ing"]
    ranks = SINGLE | {token.encode(): 256 + number for number, token in enumerate(tokens)}
    path = folder / "llama3/tokenizer.model"
    path.parent.mkdir()
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    return path


def sentencepiece_file(folder: Path, **options: object) -> Path:
    """A small model in the form of Llama 2's tokenizer.model."""
    given = {"vocab_size": 500, "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
    given |= {"remove_extra_whitespaces": False, "split_digits": True, "allow_whitespace_only_pieces": True}
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()), model_writer=out, minloglevel=2, **given | options
    )
    path = folder / "llama2/tokenizer.model"
    path.parent.mkdir()
    path.write_bytes(out.getvalue())
    return path


@pytest.fixture(scope="module")
def named(trained, tmp_path_factory) -> dict[str, str]:
    """What a user writes for each kind."""
    folder = tmp_path_factory.mktemp("named")
    kinds = {"byte": "byte", "char": "char", "llama3": f"llama3:{llama3_file(folder)}", "folder": str(trained)}
    kinds |= {"file": str(trained / "tokenizer.json"), "sentencepiece": str(sentencepiece_file(folder))}
    return kinds | {"gpt2": "tiktoken:gpt2"}


KINDS = ["byte", "char", "llama3", "folder", "file", "sentencepiece", pytest.param("gpt2", marks=needs_gpt2)]


@pytest.fixture(params=KINDS)
def asked(request, named) -> str:
    return named[request.param]


def prepared(folder: Path, asked: str, texts: list[str]) -> Path:
    (folder / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    given = ["--input=docs.jsonl", "--out_dir=data/mine", "--num_proc=1", "--val_fraction=0.2", "--tokenizer", asked]
    done = script("data/openwebtext/prepare.py", *given, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "data/mine"


PARAGRAPHS = [text for text in TEXT.split("\n\n") if text.strip()]


def test_a_dataset_holds_all_that_its_tokens_mean(asked, tmp_path):
    """Documents come back from the ids and meta.json alone, and their bytes are those of the text."""
    texts = [*PARAGRAPHS[:60], "  two spaces, and a name: <|endoftext|></s>", "é 漢字 \U0001f600"]
    dataset = open_dataset(shutil.move(prepared(tmp_path, asked, texts), tmp_path / "moved"))
    shutil.rmtree(tmp_path / "data")
    tokenizer = tokenizer_from_meta(dataset.tokenizer, dataset.folder)
    found: list[str] = []
    for split in dataset.splits.values():
        ids = np.fromfile(split.shards[0].path, dataset.dtype)
        ends = np.flatnonzero(ids == tokenizer.end_of_document)
        of_split = [tokenizer.decode(part[:-1].tolist()) for part in np.split(ids, ends + 1)[:-1]]
        assert split.documents == len(of_split) and split.bytes == sum(len(text.encode()) for text in of_split)
        found += of_split
    assert sorted(found) == sorted(texts)
    assert dataset.vocab_size == tokenizer.vocab_size > max(tokenizer.special.values(), default=0)


def test_text_arrives_token_by_token_as_it_is_whole(asked):
    tokenizer = choose(asked, [TEXT]).tokenizer
    ids = tokenizer.encode(TEXT[:2000])
    for start in (0, 1, 7, 300):
        assert "".join(decode_stream(tokenizer, ids[:start], ids[start:])) == tokenizer.decode(ids) == TEXT[:2000]


def test_a_special_token_in_text_is_text_unless_asked(asked):
    tokenizer = choose(asked, [TEXT + END]).tokenizer
    for name, token in list(tokenizer.special.items())[:20]:
        text = f"one{name}two"
        if not asked.startswith("char") or name == END:
            assert token not in tokenizer.encode(text) and tokenizer.decode(tokenizer.encode(text)) == text
            assert tokenizer.encode_prompt(text).count(token) == 1
        assert tokenizer.decode([token]) == name


def test_several_processes_write_the_same_dataset(named, tmp_path):
    files = []
    for processes in ("1", "2"):
        (tmp_path / processes).mkdir()
        (tmp_path / processes / "docs.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in PARAGRAPHS)
        )
        given = ["--input=docs.jsonl", "--out_dir=out", "--num_proc", processes, "--tokenizer", named["folder"]]
        done = script("data/openwebtext/prepare.py", *given, cwd=tmp_path / processes)
        assert done.returncode == 0, done.stderr
        out = tmp_path / processes / "out"
        files.append(
            {name: (out / name).read_bytes() for name in ("train.bin", "val.bin", "meta.json", "tokenizer.json")}
        )
    assert files[0] == files[1]


def test_one_text_is_encoded_whole_where_pieces_would_differ(named, tmp_path):
    """Llama 3 has a line's end in the piece of the sign before it, and SentencePiece puts a space before each text."""
    (tmp_path / "text.txt").write_text(TEXT)
    for kind in ("llama3", "sentencepiece", "folder"):
        given = ["--input=text.txt", "--out_dir", kind, "--tokenizer", named[kind]]
        done = script("data/shakespeare/prepare.py", *given, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        dataset = open_dataset(tmp_path / kind)
        tokenizer = tokenizer_from_meta(dataset.tokenizer, dataset.folder)
        cut = int(0.9 * len(TEXT))
        for split, text in (("train", TEXT[:cut]), ("val", TEXT[cut:])):
            found = np.fromfile(dataset.splits[split].shards[0].path, dataset.dtype).tolist()
            assert found == tokenizer.encode(text)
            assert dataset.splits[split].bytes == len(text.encode())


@needs_gpt2
@given(document=DOCUMENTS)
def test_gpt2_is_tiktokens_own(document):
    assert _gpt2().encode(document) == tiktoken.get_encoding("gpt2").encode_ordinary(document)


@functools.cache
def _gpt2() -> Tokenizer:
    return choose("tiktoken:gpt2").tokenizer


@needs_gpt2
def test_gpt2s_own_tokenizer_json_is_encoded_by_tiktoken(tmp_path):
    """Its form: merges as text, the end of documents among the byte pairs too, and the pattern of ByteLevel itself."""
    gpt2 = _gpt2()
    whole = tokenizer_json(gpt2.ranks, GPT2, gpt2.special)
    whole["model"] |= {"merges": [" ".join(pair) for pair in whole["model"]["merges"]], "ignore_merges": False}
    whole["model"]["vocab"][END] = 50256
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    whole |= {"pre_tokenizer": level, "post_processor": level}
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    ours = choose(str(tmp_path)).tokenizer
    assert ours._tiktoken is not None and ours.vocab_size == 50257
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert ours.encode(TEXT) == gpt2.encode(TEXT) == library.encode(TEXT).ids


@needs_gpt2
def test_gpt2_of_an_earlier_version_is_the_same_tokenizer():
    now, before = choose("tiktoken:gpt2"), {"kind": "gpt2", "end_of_document": 50256}
    assert same_ids(now.entry, before) and same_ids(before, now.entry | {"end_of_document": None})
    assert not same_ids(now.entry, {"kind": "bytes", "end_of_document": 0})
    older = tokenizer_from_meta(before)
    assert older.encode(TEXT) == now.tokenizer.encode(TEXT) and older.vocab_size == now.tokenizer.vocab_size == 50257


def test_llama3_has_its_pattern_and_its_special_tokens(named):
    kept = choose(named["llama3"])
    tokenizer, special = kept.tokenizer, kept.entry["special"]
    assert kept.entry["pattern"] == LLAMA3 and len(special) == 256 and tokenizer.vocab_size == 264 + 256
    # The published ids, with this file's 264 ranks for their 128,000
    first = ["begin_of_text", "end_of_text", *(f"reserved_special_token_{number}" for number in range(4))]
    first += ["start_header_id", "end_header_id", "reserved_special_token_4", "eot_id", "reserved_special_token_5"]
    assert [special[f"<|{name}|>"] for name in first] == list(range(264, 275))
    assert special["<|reserved_special_token_250|>"] == 264 + 255
    assert tokenizer.end_of_document == 265
    assert tokenizer.encode(" the 1234") == [258, ord(" "), *b"123", ord("4")]


@settings(max_examples=200)
@given(document=DOCUMENTS)
def test_sentencepiece_gives_its_librarys_ids_and_its_tokenizer_json_the_same(of_sentencepiece, document):
    ours, theirs, exported = of_sentencepiece
    assert ours.encode(document) == theirs.encode(document)
    assert ours.decode(ours.encode(document)) == document == theirs.decode(ours.encode(document))
    assert exported(document, split_special_tokens=True)["input_ids"] == ours.encode(document)


@pytest.fixture(scope="module")
def of_sentencepiece(named, tmp_path_factory):
    ours = choose(named["sentencepiece"]).tokenizer
    folder = tmp_path_factory.mktemp("exported")
    write_tokenizer(ours, 64, folder)
    theirs = sentencepiece.SentencePieceProcessor(model_file=named["sentencepiece"])
    return ours, theirs, AutoTokenizer.from_pretrained(folder)


def test_a_text_that_a_table_of_words_does_not_have_is_refused():
    """Without a token for what is unknown, the library raises."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}))
    made.pre_tokenizer, made.decoder = tokenizers.pre_tokenizers.Split("", "isolated"), tokenizers.decoders.Fuse()
    tokenizer = HuggingFaceTokenizer(None, made.to_str().encode())
    assert tokenizer.encode("aba") == [0, 1, 0]
    with pytest.raises(UserError, match="cannot encode this text"):
        tokenizer.encode("abc")


def test_a_sentencepiece_model_that_changes_text_is_told_from_its_file(tmp_path):
    """Bits per byte are of the text as it was; a character without a token is refused, as its bytes would not be in
    the tokens; and a tokenizer.json is written only where it certainly is the same."""
    path = sentencepiece_file(tmp_path, model_type="unigram", byte_fallback=False, normalization_rule_name="nmt_nfkc",
                              remove_extra_whitespaces=True)  # fmt: skip
    tokenizer = choose(str(path)).tokenizer
    assert tokenizer.decode(tokenizer.encode("two  ﬁles")) == "two files"
    assert encode_batch(["two  ﬁles"], tokenizer)[2].tolist() == [len("two  ﬁles".encode())]
    with pytest.raises(UserError, match=r"has no token for '.u6f22'"):
        tokenizer.encode("漢")
    with pytest.raises(UserError, match="this SentencePiece model goes along"):
        write_tokenizer(tokenizer, 64, tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == path.read_bytes()
    assert not (tmp_path / "tokenizer.json").exists()


def test_the_folder_is_loaded_where_transformers_loads_three_tokens_of_the_file(named):
    assert len(LlamaTokenizer(vocab_file=named["sentencepiece"])) < 10
    folder = Path(named["sentencepiece"]).parent
    assert isinstance(choose(str(folder)).tokenizer, SentencePieceTokenizer)
    assert choose(str(folder)).tokenizer.vocab_size == 500


# ---------------------------------------------------------------------------------------------------------------------
# tokenizer.json of others


def changed_json(trained: Path, folder: Path, change, **beside: object) -> Path:
    whole = json.loads((trained / "tokenizer.json").read_text())
    change(whole)
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    if beside:
        (folder / "tokenizer_config.json").write_text(json.dumps(beside))
    return folder


def added(name: str, token: int, special: bool) -> dict:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": name, **flags, "special": special}


def test_special_tokens_beyond_the_stated_vocabulary_count(trained, tmp_path):
    """As Qwen's: its table has 151,643, with the special tokens 151,669, and its models 151,936 rows."""

    def change(whole):
        whole["added_tokens"] += [added("<|im_end|>", 800, True), added("<tool>", 801, False)]

    folder = changed_json(trained, tmp_path / "qwen", change, eos_token="<|im_end|>")
    tokenizer = choose(str(folder)).tokenizer
    assert len(tokenizer.whole["model"]["vocab"]) == 799 and tokenizer.vocab_size == 802
    assert tokenizer.end_of_document == 800
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in ("a <tool> of <|im_end|> and <|endoftext|>", "a tool"):  # one that is not special is one in text too
        assert tokenizer.encode(text) == theirs(text, split_special_tokens=True)["input_ids"]
        assert tokenizer.encode_prompt(text) == theirs(text)["input_ids"]
    assert 801 in tokenizer.encode("a <tool>") and 800 not in tokenizer.encode("<|im_end|>")


def test_the_end_of_documents_is_asked_for_where_nothing_says_it(trained, tmp_path):
    folder = changed_json(
        trained, tmp_path / "two", lambda whole: whole["added_tokens"].append(added("<pad>", 800, True))
    )
    with pytest.raises(UserError, match=r"does not say which token ends a document: add --end_of_document with one of"):
        choose(str(folder))
    assert choose(str(folder), end=END).entry["end_of_document"] == 799
    with pytest.raises(
        UserError, match=r"--end_of_document=<eos> is none of the tokenizer's special tokens: <|endoftext|>"
    ):
        choose(str(folder), end="<eos>")


def test_a_template_that_begins_texts_is_left_out_and_not_exported(trained, tmp_path):
    """A BOS shows in transformers through such a template only; no document of a dataset has one."""
    template = {
        "type": "TemplateProcessing",
        "pair": [],
        "special_tokens": {END: {"id": END, "ids": [799], "tokens": [END]}},
    }
    template["single"] = [{"SpecialToken": {"id": END, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template["pair"] = [*template["single"], {"Sequence": {"id": "B", "type_id": 1}}]
    folder = changed_json(
        trained, tmp_path / "bos", lambda whole: whole.update(post_processor=template), add_bos_token=True
    )
    assert AutoTokenizer.from_pretrained(folder)("text")["input_ids"][0] == 799
    tokenizer = choose(str(folder)).tokenizer
    assert tokenizer.encode("text") == tokenizer.encode_prompt("text") and 799 not in tokenizer.encode("text")
    (tmp_path / "out").mkdir()
    write_tokenizer(tokenizer, 64, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("text")["input_ids"] == tokenizer.encode("text")


def test_ids_that_are_no_tokens_are_not_decoded_and_never_sampled():
    tokenizer = TiktokenTokenizer(None, SINGLE, GPT2, {END: 300})
    assert tokenizer.vocab_size == 301 and tokenizer.gaps == frozenset(range(256, 300))
    with pytest.raises(UserError, match="token id 280 is none of the tokenizer's tokens"):
        tokenizer.decode([65, 280])
    keys = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 16, "vocab_size": 320, "weight_tying": False}
    model = build_model(resolve_architecture(keys)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # then every id is as likely
    drawn = set(generate(model, [65], tokenizer, Sampling(1.0, 320, 1.0), 3000, torch.Generator().manual_seed(0)))
    assert drawn == {*range(256), 300}


# ---------------------------------------------------------------------------------------------------------------------
# What goes along


def test_a_run_owns_its_tokenizer_and_exports_carry_it(asked, tmp_path):
    prepared(tmp_path, asked, PARAGRAPHS)
    dataset = open_dataset(tmp_path / "data/mine")
    expected = tokenizer_from_meta(dataset.tokenizer, dataset.folder).encode(TEXT[:500])
    file = dataset.tokenizer.get("file")
    kept = (dataset.folder / file).read_bytes() if file else None
    run, back, one = tmp_path / "run", tmp_path / "back", tmp_path / "one.safetensors"
    keys = ("--dataset=mine", "--max_iters=2", "--eval_interval=2", "--arch_preset=llama3", "--d_ff=64")
    assert training(tmp_path / "data", run, *keys).returncode == 0
    shutil.rmtree(tmp_path / "data")
    assert sampled(run).startswith("the model")
    assert command(checkpoint_command.main, "export", str(run), str(one)).returncode == 0
    assert command(checkpoint_command.main, "import", str(one), str(back)).returncode == 0
    assert sampled(back) == sampled(run)
    assert file is None or (run / file).read_bytes() == (back / file).read_bytes() == kept
    done = command(checkpoint_command.main, "export", str(run), str(tmp_path / "hf"), "--format=hf")
    assert done.returncode == 0 and "without" not in done.stdout, done.stderr
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs(TEXT[:500])["input_ids"] == expected and theirs.decode(expected) == TEXT[:500]


def sampled(run: Path) -> str:
    done = command(sample_command.main, str(run), "--max_new_tokens=8", "--prompt=the model", "--device=cpu")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_tokenizers_file_that_changed_is_refused(named, tmp_path):
    folder = prepared(tmp_path, named["folder"], PARAGRAPHS[:20])
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match=r"tokenizer.json is not the tokenizer that was kept: its sha256 is another"):
        open_dataset(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read the tokenizer .*tokenizer\.json: No such file"):
        open_dataset(folder)


def test_another_tokenizer_replaces_the_file_of_the_one_before(named, tmp_path):
    for kind in ("folder", "sentencepiece", "byte"):
        folder = prepared(tmp_path, named[kind], PARAGRAPHS[:20])
        file = open_dataset(folder).tokenizer.get("file")
        assert {path.name for path in folder.glob("tokenizer*")} == ({file} if file else set())


def test_the_file_is_one_of_the_known_names(named, tmp_path):
    entry = choose(named["folder"]).entry
    (tmp_path / "elsewhere").write_text("private")
    for changed in ({"file": "../elsewhere"}, {"file": "meta.json"}, {"kind": "words"}, {"kind": ["list"]}):
        with pytest.raises(UserError, match="a tokenizer that this version does not know"):
            tokenizer_from_meta(entry | changed, tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# What is refused, each in a line


def files(folder: Path) -> None:
    good = base64.b64encode(b"a") + b" 0\n"
    (folder / "short.model").write_bytes(good)
    (folder / "twice.model").write_bytes(good + good)
    (folder / "words.model").write_bytes(good + b"not a rank\n")
    (folder / "gaps.model").write_bytes(write_ranks({bytes([byte]): 2 * byte for byte in range(256)}))
    (folder / "whole.model").write_bytes(write_ranks(SINGLE))
    (folder / "broken.json").write_text("{")
    (folder / "other.json").write_text('{"model": {"vocab": {}, "type": "None"}, "decoder": null}')
    (folder / "damaged.model").write_bytes(b"\n\x0e\n\x05<unk>\x15")
    (folder / "empty").mkdir()


@pytest.mark.parametrize(
    "asked, expected",
    [
        ("tiktoken:gpt3", "tiktoken:gpt3 is none of gpt2, cl100k_base, o200k_base (did you mean 'gpt2'?)"),
        ("nothing", "there is no tokenizer nothing: --tokenizer takes byte, char, tiktoken:gpt2"),
        ("empty", "empty has neither a tokenizer.json nor a tokenizer.model"),
        ("llama3:none", "cannot read the tokenizer none: No such file"),
        ("llama3:short.model", "no token for the byte 0x00"),
        ("llama3:twice.model", "line 2 of the file of ranks has a token that is there already"),
        ("llama3:words.model", "line 2 of the file of ranks is no token in base64 and its rank"),
        ("llama3:gaps.model", "its ranks have gaps, so it is not of Llama 3"),
        ("whole.model", "does not say how text is divided"),
        ("broken.json", "the tokenizer.json is damaged, or none"),
        ("other.json", "tokenizers cannot read the tokenizer.json"),
        ("damaged.model", "the SentencePiece model is damaged"),
    ],
)
def test_a_tokenizer_that_cannot_be_is_one_line(tmp_path, monkeypatch, asked, expected):
    monkeypatch.chdir(tmp_path)
    files(tmp_path)
    with pytest.raises(UserError) as refused:
        choose(asked)
    assert expected in str(refused.value) and "\n" not in str(refused.value)


def test_a_decoder_that_does_not_keep_text_is_refused(trained, tmp_path):
    decoder = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    folder = changed_json(trained, tmp_path / "bert", lambda whole: whole.update(decoder=decoder))
    with pytest.raises(UserError, match="does not keep all of a text: choose another"):
        choose(str(folder))


@pytest.mark.parametrize("package, kind", [("tokenizers", "folder"), ("sentencepiece", "sentencepiece")])
def test_a_package_that_is_missing_is_named(named, monkeypatch, package, kind):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package}: pip install -e '.\[tokenizers\]'"):
        choose(named[kind])


def test_a_run_of_white_space_that_would_end_tiktoken_is_one_line(named):
    tokenizer = choose(named["llama3"]).tokenizer
    assert len(tokenizer.encode(" " * (LONGEST_RUN - 1) + "a")) > LONGEST_RUN // 2
    with pytest.raises(
        UserError, match="900,000 or more characters of white space in a row, more than tiktoken is given"
    ):
        tokenizer.encode(" " * LONGEST_RUN + "a")


def test_a_document_that_holds_its_end_is_one_line():
    with pytest.raises(UserError, match=r"a document holds '.x00', the tokenizer's end of documents, as text"):
        encode_batch(["fine", "not \0 fine"], choose("byte").tokenizer)


def test_tiktoken_deletes_a_copy_of_a_table_whose_hash_is_another_and_says_so_in_a_line(tmp_path, monkeypatch):
    """Without a network the user is left without the file: the line says where it is looked for."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken.load, "read_file", _no_network)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    name = hashlib.sha1(b"https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken").hexdigest()
    (tmp_path / name).write_bytes(write_ranks(SINGLE))
    with pytest.raises(UserError, match=r"cannot fetch the token table of cl100k_base .*TIKTOKEN_CACHE_DIR"):
        published("cl100k_base")
    assert not (tmp_path / name).exists()


def _no_network(_: str) -> bytes:
    raise OSError("no network")


def test_a_file_of_ranks_is_read_as_it_is_now(tmp_path, monkeypatch):
    """tiktoken's reader has a copy of it by its path, and reads that when the file has changed."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "tokenizer.model"
    path.write_bytes(write_ranks(SINGLE))
    tiktoken.load.load_tiktoken_bpe(str(path))
    path.write_bytes(write_ranks(SINGLE | {b"ab": 256}))
    assert len(tiktoken.load.load_tiktoken_bpe(str(path))) == 256
    assert len(read_ranks(path.read_bytes())) == 257 == choose(f"llama3:{path}").tokenizer.vocab_size - 256
