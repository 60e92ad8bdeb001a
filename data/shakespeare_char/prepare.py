"""Tiny Shakespeare, one token per character: the first 90 % of the text to train on, the last 10 % to validate.

    python data/shakespeare_char/prepare.py [--input FILE] [--out_dir DIR]

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

from common.errors import UserError, exit_cleanly
from common.files import replace_file
from data.dataset import DatasetWriter, open_dataset
from data.tokenizers import tokenizer_from_meta

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
PIECE = 1 << 20  # characters that are encoded at a time


def parse_arguments(description: str, here: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--input", type=Path, help="a local UTF-8 text file instead of the download")
    parser.add_argument("--out_dir", type=Path, default=here, help="where to write (default: beside this script)")
    return parser.parse_args()


def read_text(given: Path | None, out_dir: Path) -> str:
    """The text of `given`, or else of out_dir/input.txt, which is downloaded if it is not there yet."""
    path = given or out_dir / "input.txt"
    if given is None and not path.exists():
        download(path)
    print(f"reading {path}")
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: byte {error.start} does not belong to a character") from error


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


def split_text(text: str) -> dict[str, str]:
    """nanoGPT's split: by characters, at int(0.9 n)."""
    boundary = int(len(text) * 0.9)
    return {"train": text[:boundary], "val": text[boundary:]}


@exit_cleanly
def main() -> None:
    arguments = parse_arguments("Prepare Tiny Shakespeare, one token per character.", Path(__file__).parent)
    text = read_text(arguments.input, arguments.out_dir)
    meta = {"kind": "characters", "end_of_document": None, "characters": "".join(sorted(set(text)))}
    tokenizer = tokenizer_from_meta(meta)
    source = str(arguments.input or URL)
    with DatasetWriter(arguments.out_dir, meta, tokenizer.vocab_size, source) as writer:
        for name, part in split_text(text).items():
            for start in range(0, len(part), PIECE):
                piece = part[start : start + PIECE]
                is_last = start + PIECE >= len(part)
                writer.add(name, tokenizer.encode(piece), len(piece.encode("utf-8")), documents=int(is_last))
    print(open_dataset(arguments.out_dir).describe())


if __name__ == "__main__":
    main()
