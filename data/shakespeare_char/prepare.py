"""Tiny Shakespeare, or any text, one token per character: the first 90 % to train on, the last 10 % to validate.

    python data/shakespeare_char/prepare.py [--input PATH ...] [--out_dir DIR]

Without --input the text is downloaded once, to input.txt in the dataset's folder; a file that is already there under
that name is used as it is. Any UTF-8 text will do: the vocabulary is its characters, sorted.
"""

import argparse
import hashlib
import http.client
import sys
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: this script is called by its path

from common.errors import ArgumentParser, UserError, exit_cleanly
from common.files import replace_file
from data.documents import Documents
from data.preparation import documents_from, outcome, parser, validation_from, write_text
from data.writer import DatasetWriter

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
VALIDATION_SHARE = 0.1


def text_parser(description: str, here: Path) -> ArgumentParser:
    return parser(description, here, "the download", any_is_text=True)


def text_from(arguments: argparse.Namespace) -> tuple[str, Documents]:
    """Where the text is from, and the text: of --input, or of input.txt, which is downloaded if it is not there."""
    source = URL if arguments.input is None else " ".join(arguments.input)
    if arguments.input is None:
        path = arguments.out_dir / "input.txt"
        if not path.exists():
            download(path)
        arguments.input = [str(path)]
    print(f"reading {' '.join(arguments.input)}")
    return source, documents_from(arguments, any_is_text=True)


def download(path: Path) -> None:
    print(f"downloading {URL}")
    try:
        with urllib.request.urlopen(URL, timeout=60) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"cannot download {URL} ({error}): give a local copy with --input FILE") from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise UserError(f"{URL} did not give the expected text: give a local copy with --input FILE")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)  # an interrupted download leaves no input.txt
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


@exit_cleanly
def main() -> None:
    arguments = text_parser("Prepare a text, one token per character.", Path(__file__).parent).parse_args()
    validation = validation_from(arguments, VALIDATION_SHARE)
    source, documents = text_from(arguments)
    characters: set[str] = set()
    for piece in documents.as_one():
        characters.update(piece)
    tokenizer = {"kind": "characters", "end_of_document": None, "characters": "".join(sorted(characters))}
    with DatasetWriter(arguments.out_dir, tokenizer, len(characters), source) as writer:
        write_text(writer, documents, validation)
    print(outcome(arguments.out_dir, documents.empty))


if __name__ == "__main__":
    main()
