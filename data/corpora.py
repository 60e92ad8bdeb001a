"""Published corpora by name, streamed from Hugging Face's hub or read from local files, and prepared in parts.

    python data/slimpajama_627b/prepare.py --tokenizer llama3:tokenizer.model --num_proc 32
    python train.py --dataset=slimpajama_627b_llama3 ...

Nothing is shuffled: training draws its windows in an order of its own, and a stream without a shuffle can be read again
from any of its files.
"""

import argparse
import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.dataset import Dataset, TokenReader, open_dataset
from data.documents import find_files
from data.estimate import add_estimate, measure_preparation, tell, wanted_from
from data.parts import FilePart, Part, prepare_parts
from data.preparation import add_num_proc, add_split_by, add_tokenizer, outcome, parser
from data.tokenizers import choose, tokenizer_from_meta

Rows = Iterable[Mapping[str, Any]]
DEFAULT = "tiktoken:gpt2"  # the tokenizer of the dataset that has the corpus' name alone
VALIDATION_SHARE = 0.0005
SAMPLE = 60  # tokens that are shown at the end


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A dataset of the hub: `path` and `config` as `datasets.load_dataset` takes them, and `texts`, which makes
    documents of the rows of its train split. One whose documents go from file to file is `whole`: a single part."""

    path: str
    config: str | None
    texts: Callable[[Rows], Iterator[str]]
    whole: bool = False


# ---------------------------------------------------------------------------------------------------------------------
# From rows to documents


def column(rows: Rows) -> Iterator[str]:
    """A document is what is in a row's "text"."""
    for row in rows:
        yield row["text"]


def articles(rows: Rows) -> Iterator[str]:
    """WikiText: a row is a line, and an article begins with its title, as in ` = Title = `."""
    lines: list[str] = []
    for row in rows:
        if re.fullmatch(r" = [^=](.*[^=])? = \n?", row["text"]) and lines:
            yield "".join(lines)
            lines = []
        lines.append(row["text"])
    yield "".join(lines)


def gpt2_tokens(rows: Rows) -> Iterator[str]:
    """ClimbMix: a document is GPT-2's tokens, in a row's "tokens"."""
    tokenizer = choose("tiktoken:gpt2").tokenizer
    for row in rows:
        yield tokenizer.decode([token for token in row["tokens"] if token != tokenizer.end_of_document])


# ---------------------------------------------------------------------------------------------------------------------
# Streams


@dataclasses.dataclass(frozen=True)
class StreamPart:
    """One of the files of a corpus, at a revision of it."""

    corpus: Corpus
    revision: str | None
    number: int
    of: int

    @property
    def identity(self) -> list[Any]:
        return [self.corpus.path, self.corpus.config, self.corpus.texts.__name__, self.revision, self.number, self.of]

    def texts(self) -> "Streamed":
        return Streamed(self)


@dataclasses.dataclass
class Streamed:
    """The documents of a part; `empty` counts those of the last iteration that were left out, as of Documents."""

    part: StreamPart
    empty: int = 0

    def __iter__(self) -> Iterator[str]:
        self.empty, part, corpus = 0, self.part, self.part.corpus
        stream = _stream(corpus, part.revision)
        rows = stream if part.of == 1 else stream.shard(num_shards=part.of, index=part.number)
        try:
            for text in corpus.texts(iter(rows)):
                if text.strip():
                    yield text
                else:
                    self.empty += 1
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"cannot read {corpus.path}: {_reason(error)}; the same command goes on") from None


def stream_parts(corpus: Corpus) -> list[StreamPart]:
    """A part for each file. Raises UserError where the hub cannot be reached."""
    revision = None if Path(corpus.path).exists() else _revision(corpus.path)
    of = 1 if corpus.whole else _stream(corpus, revision).num_shards
    return [StreamPart(corpus, revision, number, of) for number in range(of)]


def _stream(corpus: Corpus, revision: str | None) -> Any:
    datasets = _datasets()
    try:
        return datasets.load_dataset(corpus.path, corpus.config, split="train", streaming=True, revision=revision)
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"cannot load {corpus.path} ({_reason(error)}): give a local copy with --input") from None


def _revision(path: str) -> str:
    """The commit that the corpus is at: every part, today and after a kill, is of the same one."""
    _datasets()
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(path).sha)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot load {path} ({_reason(error)}): give a local copy with --input") from None


@functools.cache
def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError("this needs the datasets package: pip install -e '.[datasets]'") from None
    return datasets


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error.__cause__ or error}".split())[:300]


# ---------------------------------------------------------------------------------------------------------------------
# The command


def prepare(corpus: Corpus, here: Path) -> None:
    """What a prepare script of a corpus does; `here` is its folder, whose name is the corpus'."""
    built = parser(f"Prepare {corpus.path}, or any documents, in parts.", None, "the stream", in_parts=True)
    add_split_by(built)
    add_tokenizer(built, DEFAULT)
    add_num_proc(built)
    add_estimate(built, "--num_proc", "of documents")
    arguments = built.parse_args()
    wanted = wanted_from(arguments, arguments.num_proc)
    if arguments.tokenizer == "char":
        raise UserError("--tokenizer=char takes its characters from all texts: data/openwebtext/prepare.py has it")
    kept = choose(arguments.tokenizer, end=arguments.end_of_document)
    own = here if arguments.tokenizer == DEFAULT else here.with_name(f"{here.name}_{label(arguments.tokenizer)}")
    out_dir = arguments.out_dir or own
    parts = parts_of(corpus, arguments)
    source = corpus.path if arguments.input is None else " ".join(arguments.input)
    share = arguments.val_fraction or VALIDATION_SHARE
    if wanted:
        tell(measure_preparation(parts, kept, share, arguments.sample_documents), wanted, arguments.save_estimate)
        return
    empty = prepare_parts(out_dir, parts, kept, share, source, arguments.num_proc)
    print(outcome(out_dir, empty))
    print(f"validation begins: {beginning(open_dataset(out_dir))!r}")


def parts_of(corpus: Corpus, arguments: argparse.Namespace) -> list[Part]:
    """The files of --input, or those of the corpus. Raises UserError."""
    if arguments.input is None:
        return [*stream_parts(corpus)]
    return [FilePart(path, arguments.text_key, arguments.split_by) for path in find_files(arguments.input)]


def label(tokenizer: str) -> str:
    """What a tokenizer is called in the name of a dataset's folder."""
    kind, _, rest = tokenizer.partition(":")
    if kind in ("llama3", "byte"):
        return kind
    return rest if kind == "tiktoken" else Path(tokenizer).resolve().stem


def beginning(dataset: Dataset) -> str:
    """The first tokens of the validation split, as text."""
    split = dataset.splits["val"]
    ids = TokenReader(split, dataset.dtype).read(0, min(SAMPLE, split.tokens))
    return tokenizer_from_meta(dataset.tokenizer, dataset.folder).decode(ids.tolist())
