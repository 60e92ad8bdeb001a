"""Tiny Shakespeare, or any text, in GPT-2's byte-pair encoding: the same text and split as data/shakespeare_char.

    python data/shakespeare/prepare.py [--input PATH ...] [--out_dir DIR]

Without --input the text is downloaded once, to input.txt in the dataset's folder.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: this script is called by its path

from common.errors import exit_cleanly
from data.dataset import DatasetWriter
from data.preparation import outcome, validation_from, write_text
from data.shakespeare_char.prepare import VALIDATION_SHARE, text_from, text_parser
from data.tokenizers import GPT2Tokenizer

TOKENIZER = {"kind": "gpt2", "end_of_document": None}  # each split is one document, without an end


@exit_cleanly
def main() -> None:
    arguments = text_parser("Prepare a text in GPT-2's byte-pair encoding.", Path(__file__).parent).parse_args()
    validation = validation_from(arguments, VALIDATION_SHARE)
    source, documents = text_from(arguments)
    with DatasetWriter(arguments.out_dir, TOKENIZER, GPT2Tokenizer.vocab_size, source) as writer:
        write_text(writer, documents, validation)
    print(outcome(arguments.out_dir, documents.empty))


if __name__ == "__main__":
    main()
