"""OpenWebText, or any documents, in GPT-2's byte-pair encoding or another, each followed by an end of documents.

    python data/openwebtext/prepare.py [--input PATH ...] [--out_dir DIR] [--num_proc N] [--tokenizer T]

Without --input the 8 million documents are downloaded by the `datasets` package into its cache (tens of GB) and give
about 9 billion tokens. nanoGPT's split: 0.05 % of the documents, drawn with seed 2357, for validation.
With --estimate a sample is prepared as those of the other corpora are, in parts; without --input it is streamed.
"""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: this script is called by its path

from common.errors import UserError, exit_cleanly
from data.corpora import Corpus, column, parts_of
from data.documents import Documents
from data.estimate import add_estimate, measure_preparation, tell, wanted_from
from data.preparation import (
    add_num_proc,
    add_split_by,
    add_tokenizer,
    documents_from,
    outcome,
    parser,
    validation_from,
    write_documents,
)
from data.tokenizers import choose
from data.writer import DatasetWriter

NAME = "Skylion007/openwebtext"
VALIDATION_SHARE = 0.0005


def download(num_proc: int) -> Any:
    """A `datasets.Dataset` with a row for each document and its text in the column "text"."""
    try:
        import datasets
    except ImportError:
        raise UserError("this needs the datasets package: pip install -e '.[datasets]'") from None
    try:
        return datasets.load_dataset(NAME, split="train", num_proc=num_proc)
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(f"{type(error).__name__}: {error.__cause__ or error}".split())[:300]
        raise UserError(f"cannot load {NAME} ({reason}): give a local copy with --input FILE") from error


@dataclasses.dataclass
class Downloaded:
    """The texts of the rows; `empty` counts those of the last iteration that were left out, as of Documents."""

    rows: Any
    empty: int = 0

    def __iter__(self) -> Iterator[str]:
        self.empty = 0
        for batch in self.rows.iter(batch_size=1000):
            with_text = [text for text in batch["text"] if text.strip()]
            self.empty += len(batch["text"]) - len(with_text)
            yield from with_text


@exit_cleanly
def main() -> None:
    built = parser("Prepare OpenWebText, or any documents.", Path(__file__).parent, "the download")
    add_split_by(built)
    add_tokenizer(built, "tiktoken:gpt2")
    add_num_proc(built)
    add_estimate(built, "--num_proc", "of documents")
    arguments = built.parse_args()
    wanted = wanted_from(arguments, arguments.num_proc)
    validation = validation_from(arguments, VALIDATION_SHARE)
    characters_later = arguments.tokenizer == "char"  # which are those of the documents
    # What is wrong with any other tokenizer is found before 50 GB are downloaded.
    kept = None if characters_later else choose(arguments.tokenizer, end=arguments.end_of_document)
    if wanted:
        if kept is None:
            raise UserError("--estimate: --tokenizer=char takes its characters from all texts: estimate with another")
        parts, share = parts_of(Corpus(NAME, None, column), arguments), arguments.val_fraction or VALIDATION_SHARE
        tell(measure_preparation(parts, kept, share, arguments.sample_documents), wanted, arguments.save_estimate)
        return
    documents: Downloaded | Documents
    if arguments.input is None:
        rows = download(arguments.num_proc)
        documents, total, source = Downloaded(rows), len(rows), NAME
    else:
        documents, total, source = documents_from(arguments), None, " ".join(arguments.input)
    kept = kept or choose(arguments.tokenizer, documents)
    vocab_size = kept.tokenizer.vocab_size
    with DatasetWriter(arguments.out_dir, kept.entry, vocab_size, source, kept.content) as writer:
        write_documents(writer, documents, validation, arguments.num_proc, total)
    print(outcome(arguments.out_dir, documents.empty))


if __name__ == "__main__":
    main()
