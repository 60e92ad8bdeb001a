"""Texts of evaluation sets, so that documents that share words in a row with one can be found: an index in the form
that datatrove's NGramsDecontFilter reads. What makes it in datatrove wants the package lighteval and its tasks."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
from datatrove.utils.hashing import create_hash_func
from datatrove.utils.text import ngrams, simplify_text

from common.errors import UserError
from data.curation.files import SampleWriter
from data.curation.words import SAME_WORDS, WORDS
from data.documents import Documents


def configuration(words: int) -> NGramsDecontConfig:
    return NGramsDecontConfig(n_grams=words, norm_config=SAME_WORDS)


def contamination_filter(folder: Path, words: int, samples: SampleWriter) -> NGramsDecontFilter:
    """Removes documents that share so many words in a row with what `write_index` was given."""
    return NGramsDecontFilter(str(folder), configuration(words), samples, WORDS)


def write_index(folder: Path, files: Iterable[Path], words: int) -> tuple[int, int]:
    """A file of hashes for each file of texts. Returns how many texts were read, and how many of them have fewer words,
    which no document can be found to share. Raises UserError where none has as many."""
    numbers = configuration(words).hash_config.np_descr
    texts = short = 0
    folder.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(files):
        hashes: set[int] = set()
        for text in Documents([path]):
            found = hashes_of(text, words)
            hashes.update(found)
            texts, short = texts + 1, short + (not found)
        name = f"{number:03d}_{path.name}.index.hashes"
        np.array(sorted(hashes), numbers).tofile(folder / name)
    if texts == short:
        raise UserError(f"--evaluation: no text has {words} words, in which a document could be found to share them")
    return texts, short


def hashes_of(text: str, words: int) -> list[int]:
    """A hash of every so many words in a row, whatever their case, spaces, punctuation and accents. Empty where the
    text has fewer words."""
    hash_of = create_hash_func(configuration(words).hash_config)
    found = WORDS.word_tokenize(simplify_text(text, SAME_WORDS))
    return [hash_of(" ".join(gram)) for gram in ngrams(found, words)]
