"""Tiny Shakespeare, or any text, in GPT-2's byte-pair encoding or another: the text and split of data/shakespeare_char.

    python data/shakespeare/prepare.py [--input PATH ...] [--out_dir DIR] [--tokenizer T]

Without --input the text is downloaded once, to input.txt in the dataset's folder.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: this script is called by its path

from common.errors import exit_cleanly
from data.preparation import add_tokenizer, outcome, validation_from, write_text
from data.shakespeare_char.prepare import VALIDATION_SHARE, text_from, text_parser
from data.tokenizers import choose
from data.writer import DatasetWriter


@exit_cleanly
def main() -> None:
    built = text_parser("Prepare a text.", Path(__file__).parent)
    add_tokenizer(built, "tiktoken:gpt2")
    arguments = built.parse_args()
    validation = validation_from(arguments, VALIDATION_SHARE)
    source, documents = text_from(arguments)
    kept = choose(arguments.tokenizer, documents.as_one(), arguments.end_of_document)
    kept = kept.without_end()  # each split is one document
    vocab_size = kept.tokenizer.vocab_size
    with DatasetWriter(arguments.out_dir, kept.entry, vocab_size, source, kept.content) as writer:
        write_text(writer, documents, validation)
    print(outcome(arguments.out_dir, documents.empty))


if __name__ == "__main__":
    main()
