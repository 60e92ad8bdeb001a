"""Tiny Shakespeare in GPT-2's byte-pair encoding: the same text and split as data/shakespeare_char.

    python data/shakespeare/prepare.py [--input FILE] [--out_dir DIR]

Without --input the text is downloaded once, to input.txt in the dataset's folder.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: this script is called by its path

from common.errors import exit_cleanly
from data.dataset import DatasetWriter, open_dataset
from data.shakespeare_char.prepare import URL, parse_arguments, read_text, split_text
from data.tokenizers import tokenizer_from_meta

TOKENIZER = {"kind": "gpt2", "end_of_document": None}  # each split is one document, without an end


@exit_cleanly
def main() -> None:
    arguments = parse_arguments("Prepare Tiny Shakespeare in GPT-2's byte-pair encoding.", Path(__file__).parent)
    text = read_text(arguments.input, arguments.out_dir)
    tokenizer = tokenizer_from_meta(TOKENIZER)
    source = str(arguments.input or URL)
    with DatasetWriter(arguments.out_dir, TOKENIZER, tokenizer.vocab_size, source) as writer:
        for name, part in split_text(text).items():
            writer.add(name, tokenizer.encode(part), len(part.encode("utf-8")))
    print(open_dataset(arguments.out_dir).describe())


if __name__ == "__main__":
    main()
