"""Trains a byte-level byte-pair encoding on texts.

    python data/train_tokenizer.py --vocab_size 8192 --input PATH ... --out_dir DIR

DIR gets tokenizer.json and tokenizer_config.json, which Hugging Face's libraries and `--tokenizer DIR` of prepare
scripts read, and tokenizer.tiktoken, the same table as tiktoken's ranks. All give every document the same ids. Text is
divided as for Llama 3; the last id is <|endoftext|>, which ends a document.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.pop(0)  # this folder, in which `tokenizers` is not the library
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository: this script is called by its path

from common.errors import ArgumentParser, UserError, exit_cleanly, positive
from common.files import folder_written_aside
from data.preparation import add_split_by, documents_from
from data.tokenizers import FILES
from data.tokenizers.byte_pairs import LLAMA3, tiktokens_form, tokenizer_json, unspelled
from data.tokenizers.hugging_face import same_classes
from data.tokenizers.tiktoken import END, write_ranks

SMALLEST = 257  # every byte, and the end of documents


@exit_cleanly
def main() -> None:
    arguments = parse_arguments()
    out_dir = arguments.out_dir
    if out_dir.exists() and not (out_dir.is_dir() and not any(out_dir.iterdir())):
        raise UserError(f"{out_dir} is there already: choose another --out_dir")
    documents = documents_from(arguments)
    ranks = train(documents, arguments.vocab_size)
    try:
        out_dir.absolute().parent.mkdir(parents=True, exist_ok=True)
        with folder_written_aside(out_dir) as folder:
            write(ranks, folder)
    except OSError as error:
        raise UserError(f"cannot write {out_dir}: {error.strerror}") from None
    print(f"{out_dir}: {arguments.vocab_size:,} tokens, of which {END} is the last; use it with --tokenizer {out_dir}")
    if not same_classes():
        print(
            "note: tiktoken and tokenizers as installed disagree on what is a letter: only the latest Unicode differs"
        )


def parse_arguments() -> argparse.Namespace:
    built = ArgumentParser(__doc__)
    add = built.add_argument
    add("--vocab_size", type=positive, required=True, metavar="N", help=f"tokens in all, at least {SMALLEST}")
    add("--input", nargs="+", required=True, metavar="PATH", help="files, folders or patterns, as of prepare scripts")
    add("--out_dir", type=Path, required=True, metavar="DIR", help="a new folder")
    add("--text_key", default="text", metavar="NAME", help="of the text in JSON and Parquet (default: text)")
    add_split_by(built)
    arguments = built.parse_args()
    if arguments.vocab_size < SMALLEST:
        raise UserError(f"--vocab_size={arguments.vocab_size}: every byte and {END} are {SMALLEST} tokens")
    return arguments


def train(documents: Iterable[str], vocab_size: int) -> dict[bytes, int]:
    """The ranks of every token but the end of documents. Raises UserError where the texts have too few pairs."""
    try:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    except ImportError:
        raise UserError("this needs the tokenizers package: pip install -e '.[tokenizers]'") from None
    library = Tokenizer(models.BPE())
    split, level = pre_tokenizers.Split, pre_tokenizers.ByteLevel
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [split(Regex(LLAMA3), "isolated"), level(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=level.alphabet(), show_progress=False)
    library.train_from_iterator(documents, trainer)
    ranks = {content: rank for name, rank in library.get_vocab().items() if (content := unspelled(name)) is not None}
    if len(ranks) < vocab_size - 1:
        raise UserError(
            f"--vocab_size={vocab_size}: the texts have pairs for no more than {len(ranks) + 1}: give more text, or "
            "take a smaller vocabulary"
        )
    return ranks


def write(ranks: dict[bytes, int], folder: Path) -> None:
    """The files. The merges are written anew from the ranks, so that the condition holds under which the libraries
    agree on every document (data/tokenizers/byte_pairs.py), and it is checked."""
    whole = tokenizer_json(ranks, LLAMA3, {END: len(ranks)})
    assert tiktokens_form(whole) == (ranks, LLAMA3)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END}
    (folder / FILES["hugging_face"]).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (folder / FILES["tiktoken"]).write_bytes(write_ranks(ranks))


if __name__ == "__main__":
    main()
