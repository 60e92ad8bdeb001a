"""ClimbMix: 400 billion tokens of web pages, in a mixture that was searched for; published as GPT-2's tokens.

    python data/climbmix/prepare.py [--tokenizer T] [--num_proc N] [--input PATH ...] [--out_dir DIR]

It is streamed into this folder, with another tokenizer than GPT-2's into data/climbmix_<tokenizer>.
Started again after a kill, it goes on.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: this script is called by its path

from common.errors import exit_cleanly
from data.corpora import Corpus, gpt2_tokens, prepare

CORPUS = Corpus("nvidia/ClimbMix", None, gpt2_tokens)


@exit_cleanly
def main() -> None:
    prepare(CORPUS, Path(__file__).resolve().parent)


if __name__ == "__main__":
    main()
