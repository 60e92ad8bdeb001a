"""From documents to a dataset: the options that prepare scripts share, encoding on several processes, and what is kept
apart for validation. Memory does not grow with the text, but for some 40 bytes a document."""

import argparse
import contextlib
import dataclasses
import itertools
import math
import os
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.errors import ArgumentParser, UserError, positive
from common.files import writing_to
from data.dataset import dtype_for, open_dataset
from data.documents import SPLIT_BY, Documents, find_files
from data.long_work import processes
from data.tokenizers import HOW, Kept, Tokenizer
from data.writer import DatasetWriter

BATCH = 1 << 20  # characters that a process encodes at a time
SEED = 2357  # nanoGPT's, of the draw of documents


def parser(
    description: str, here: Path | None, instead_of: str, any_is_text: bool = False, in_parts: bool = False
) -> ArgumentParser:
    """What every prepare script of texts takes. `here`: where it writes by default, None where that depends on the
    tokenizer; `instead_of`: what is read without --input."""
    built = ArgumentParser(description)
    add = built.add_argument
    kinds = "text, .jsonl, .json, .parquet" if any_is_text else ".txt, .jsonl, .json, .parquet"
    add(
        "--input",
        nargs="+",
        metavar="PATH",
        help=f"files ({kinds}; also .gz, .zst), folders or patterns, instead of {instead_of}",
    )
    beside = "beside this script" if here else "beside this script; of another tokenizer data/<corpus>_<tokenizer>"
    add("--out_dir", type=Path, default=here, help=f"where to write (default: {beside})")
    add("--text_key", default="text", metavar="NAME", help="of the text in JSON and Parquet (default: text)")
    add("--val_fraction", type=fraction, metavar="SHARE", help="of the text that is for validation")
    if not in_parts:  # whose documents are drawn before all are known
        add("--val_tokens", type=positive, metavar="N", help="tokens that are for validation, instead of a share")
    return built


def add_num_proc(built: ArgumentParser) -> None:
    cores = os.cpu_count() or 1
    help = "processes (default: half the cores)"
    built.add_argument("--num_proc", type=positive, default=max(1, cores // 2), help=help)


def add_split_by(built: ArgumentParser) -> None:
    help = f"what is a document of a text file: {', '.join(SPLIT_BY)} (default: paragraphs)"
    built.add_argument("--split_by", choices=SPLIT_BY, default=SPLIT_BY[0], help=help)


def add_tokenizer(built: ArgumentParser, default: str) -> None:
    built.add_argument("--tokenizer", default=default, metavar="T", help=f"{HOW} (default: {default})")
    help = "special token that ends a document, where the tokenizer does not say"
    built.add_argument("--end_of_document", metavar="NAME", help=help)


def fraction(text: str) -> float:
    """An argument's type: a share of something."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share between 0 and 1")
    return value


@dataclasses.dataclass(frozen=True)
class Validation:
    """How much is kept apart: at least `tokens`, or where that is None a share."""

    share: float
    tokens: int | None = None


def validation_from(arguments: argparse.Namespace, share: float) -> Validation:
    """What the arguments say, or else a share. Raises UserError where they say two things."""
    if arguments.val_fraction is not None and arguments.val_tokens is not None:
        raise UserError("--val_fraction and --val_tokens contradict each other: give one of them")
    return Validation(arguments.val_fraction or share, arguments.val_tokens)


def documents_from(arguments: argparse.Namespace, any_is_text: bool = False) -> Documents:
    """What --input and its options mean."""
    split_by = getattr(arguments, "split_by", "files")
    return Documents(find_files(arguments.input), arguments.text_key, split_by, any_is_text)


def outcome(out_dir: Path, empty: int) -> str:
    """What was written, and how many documents without text were left out, for people."""
    left_out = [f"left out: {empty:,} documents without text"] if empty else []
    return "\n".join([*left_out, open_dataset(out_dir).describe()])


# ---------------------------------------------------------------------------------------------------------------------
# Documents, of which some are drawn for validation


def write_documents(
    writer: DatasetWriter, documents: Iterable[str], validation: Validation, processes: int, total: int | None = None
) -> None:
    """Encodes each document, with the tokenizer's end_of_document after it, and writes them in a random order, of which
    the first ones are for validation. What is written does not depend on the number of processes. `total`: documents,
    for the progress. Raises UserError where there are too few."""
    kept = Kept(writer.tokenizer, writer.tokenizer_file)
    with _EncodedDocuments(writer) as encoded:
        with tqdm(total=total, desc="encoding", unit=" documents") as progress:
            for batch in _encode(documents, kept, processes):
                encoded.append(*batch)
                progress.update(len(batch[1]))
        order = np.random.default_rng(SEED).permutation(len(encoded.lengths))
        n_val = _for_validation(np.asarray(encoded.lengths)[order], validation)
        with tqdm(total=len(order), desc="writing", unit=" documents") as progress:
            for split, of_split in (("train", order[n_val:]), ("val", order[:n_val])):
                for ids, text_bytes, count in encoded.read(of_split):
                    writer.add(split, ids, text_bytes, count)
                    progress.update(count)


def _for_validation(lengths: np.ndarray, validation: Validation) -> int:
    """How many of the documents, whose lengths (n,) in tokens are given in the order of the draw."""
    if len(lengths) < 2:
        many = "1 document" if len(lengths) else "no document"
        raise UserError(f"{many} cannot be split into training and validation: give more text")
    if validation.tokens is None:
        return min(math.ceil(validation.share * len(lengths)), len(lengths) - 1)
    found = int(np.searchsorted(np.cumsum(lengths), validation.tokens)) + 1
    if found >= len(lengths):
        raise UserError(f"--val_tokens={validation.tokens}: all documents together have {lengths.sum()}: give less")
    return found


def _encode(documents: Iterable[str], kept: Kept, count: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What `encode_batch` makes of batches of documents, in order, on so many processes."""
    found = batches(documents)
    if count == 1:
        for batch in found:
            yield encode_batch(batch, kept.tokenizer)
        return
    with encoding_processes(count, kept) as pool:
        submitted = (pool.submit(_encode_in_process, batch) for batch in found)
        waiting = deque(itertools.islice(submitted, 2 * count))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(itertools.islice(submitted, 1))


def encoding_processes(count: int, kept: Kept) -> AbstractContextManager[ProcessPoolExecutor]:
    """A pool of processes that have the tokenizer, `kept_of_this_process`."""
    return processes(count, "a process that encoded was killed, perhaps for memory: try --num_proc 1", _keep, kept)


def _keep(kept: Kept) -> None:
    global _of_this_process
    _of_this_process = kept


_of_this_process: Kept


def _encode_in_process(texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return encode_batch(texts, _of_this_process.tokenizer)


def kept_of_this_process() -> Kept:
    """The tokenizer of a pool that encodes."""
    return _of_this_process


def batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents in lists of BATCH characters, or a little more."""
    batch: list[str] = []
    length = 0
    for text in documents:
        batch.append(text)
        length += len(text)
        if length >= BATCH:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def encode_batch(texts: list[str], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Documents to their ids one after the other (tokens,), with the end of each, how many of these each has
    (documents,), and bytes of text (documents,)."""
    dtype = dtype_for(tokenizer.vocab_size)
    encoded = [np.array(_with_end(tokenizer.encode(text), tokenizer), dtype) for text in texts]
    text_bytes = [len(text.encode("utf-8")) for text in texts]
    return np.concatenate(encoded), np.array([len(ids) for ids in encoded]), np.array(text_bytes)


def _with_end(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    end = tokenizer.end_of_document
    if end is None:
        return ids
    if end in ids:
        raise UserError(
            f"a document holds {tokenizer.decode([end])!a}, the tokenizer's end of documents, as text: leave such "
            "documents out, or take another tokenizer"
        )
    return [*ids, end]


class _EncodedDocuments:
    """Encoded documents in a file beside the dataset, from which they can be read in another order."""

    def __init__(self, writer: DatasetWriter):
        self._folder, self._dtype = writer.folder, dtype_for(writer.vocab_size)
        self._path = writer.folder / ".documents.partial"  # a name that the writer removes when this one was killed
        self.lengths, self._bytes = array("q"), array("q")

    def __enter__(self) -> "_EncodedDocuments":
        with writing_to(self._folder):
            self._file = self._path.open("wb")
        return self

    def append(self, ids: np.ndarray, lengths: np.ndarray, text_bytes: np.ndarray) -> None:
        with writing_to(self._folder):
            self._file.write(ids.tobytes())
        self.lengths.extend(lengths.tolist())
        self._bytes.extend(text_bytes.tolist())

    def read(self, documents: np.ndarray) -> Iterator[tuple[np.ndarray, int, int]]:
        """The documents of these numbers, in this order, several at a time: ids, bytes of text, how many."""
        with writing_to(self._folder):
            self._file.flush()
        lengths, text_bytes = np.asarray(self.lengths), np.asarray(self._bytes)
        ends = np.cumsum(lengths)
        ids = np.memmap(self._path, self._dtype, mode="r") if ends[-1] else np.empty(0, self._dtype)
        at_once = max(1, BATCH * len(lengths) // max(1, int(ends[-1])))
        for start in range(0, len(documents), at_once):
            some = documents[start : start + at_once]
            parts = [ids[ends[number] - lengths[number] : ends[number]] for number in some]
            yield np.concatenate(parts), int(text_bytes[some].sum()), len(some)

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # of a full disk, which has been said
            self._file.close()


# ---------------------------------------------------------------------------------------------------------------------
# One text, of which the end is for validation


def write_text(writer: DatasetWriter, documents: Documents, validation: Validation) -> None:
    """Encodes all text as one document a split, cut after so many characters (nanoGPT's way), or so that `tokens` lie
    behind the cut. A tokenizer that does not divide every text after words has a whole split in memory."""
    tokenizer = Kept(writer.tokenizer, writer.tokenizer_file).tokenizer
    pieces = _in_words if tokenizer.divides_after_words else _whole
    length = sum(map(len, documents.as_one()))
    cut = int((1 - validation.share) * length)
    if validation.tokens is not None:
        cut = _cut_before_tokens(tokenizer, pieces(_parts(documents.as_one(), length, length)), validation.tokens)
    for split, text, is_last in pieces(_parts(documents.as_one(), cut, length)):
        writer.add(split, tokenizer.encode(text), len(text.encode("utf-8")), documents=int(is_last))


def _whole(parts: Iterable[tuple[str, str, bool]]) -> Iterator[tuple[str, str, bool]]:
    """The same with the pieces of each split put together."""
    for split, of_split in itertools.groupby(parts, key=lambda part: part[0]):
        yield split, "".join(text for _, text, _ in of_split), True


def _parts(pieces: Iterable[str], cut: int, length: int) -> Iterator[tuple[str, str, bool]]:
    """Pieces of a text of `length` characters with their split, and whether it ends with them."""
    position = 0
    for piece in pieces:
        inside = max(0, cut - position)
        position += len(piece)
        for split, text, end in (("train", piece[:inside], cut), ("val", piece[inside:], length)):
            if text:
                yield split, text, (min(position, cut) if split == "train" else position) == end


def _in_words(parts: Iterable[tuple[str, str, bool]]) -> Iterator[tuple[str, str, bool]]:
    """The same in pieces that end with a word: those have the ids that they have in the whole text, since GPT-2's
    encoding divides a text before the white space that follows a word."""
    held = ""
    for split, text, is_last in parts:
        text = held + text
        end = len(text) if is_last else _end_of_words(text)
        if text[:end]:
            yield split, text[:end], is_last
        held = text[end:]


def _end_of_words(text: str) -> int:
    """Where the last word ends that white space follows; 0 without one."""
    end = len(text)
    while (end := max(text.rfind(" ", 0, end), text.rfind("\n", 0, end))) > 0:
        if not text[end - 1].isspace():
            return end
    return 0


def _cut_before_tokens(tokenizer: Tokenizer, parts: Iterable[tuple[str, str, bool]], wanted: int) -> int:
    """The character before the last `wanted` tokens of a text, or some more where a character has several."""
    last: deque[tuple[str, list[int]]] = deque()  # pieces that have the wanted tokens
    position = behind = 0
    for _, text, _ in parts:
        last.append((text, tokenizer.encode(text)))
        position += len(text)
        behind += len(last[-1][1])
        while behind - len(last[0][1]) >= wanted:
            behind -= len(last.popleft()[1])
    if behind <= wanted:
        raise UserError(f"--val_tokens={wanted}: the whole text has {behind}: give less")
    before = last[0][1][: behind - wanted]
    while before:
        with contextlib.suppress(UnicodeDecodeError):
            return position - sum(len(text) for text, _ in last) + len(tokenizer.decode_bytes(before).decode("utf-8"))
        before.pop()
    return position - sum(len(text) for text, _ in last)
