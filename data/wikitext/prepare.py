"""WikiText-103: good and featured articles of Wikipedia, as they were written.

    python data/wikitext/prepare.py [--tokenizer T] [--num_proc N] [--input PATH ...] [--out_dir DIR]

It is streamed into this folder, with another tokenizer than GPT-2's into data/wikitext_<tokenizer>.
Started again after a kill, it goes on.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: this script is called by its path

from common.errors import exit_cleanly
from data.corpora import Corpus, articles, prepare

CORPUS = Corpus("Salesforce/wikitext", "wikitext-103-raw-v1", articles, whole=True)


@exit_cleanly
def main() -> None:
    prepare(CORPUS, Path(__file__).resolve().parent)


if __name__ == "__main__":
    main()
