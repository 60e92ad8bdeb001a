"""Steps that look at one document alone: its length, its language, words that it must not have."""

import functools
import re
import tempfile
from pathlib import Path
from typing import Any

import py3langid.langid
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from common.errors import UserError
from common.files import read_text
from data.curation.files import SampleWriter


class LengthFilter(BaseFilter):
    """Keeps texts of so many characters, both bounds included."""

    name = "length"

    def __init__(self, least: int, most: int, samples: SampleWriter):
        super().__init__(samples)
        self.least, self.most = least, most

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        if len(doc.text) < self.least:
            return False, "short"
        return (False, "long") if len(doc.text) > self.most else True


class LanguageFilter(BaseFilter):
    """Keeps texts that py3langid finds to be in one of the languages (ISO 639 codes) with more than this probability.
    Its model comes with the package; that of datatrove's filter of this name is downloaded."""

    name = "language"

    def __init__(self, languages: tuple[str, ...], confidence: float, samples: SampleWriter):
        super().__init__(samples)
        self.languages, self.confidence = languages, confidence

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        language, confidence = identifier().classify(doc.text)
        if language not in self.languages:
            return False, language
        return True if confidence > self.confidence else (False, "not sure")


@functools.cache
def identifier() -> Any:
    """py3langid's model, once a process. Raises UserError where it cannot be unpacked."""
    langid = py3langid.langid
    try:
        return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    except OSError as error:
        folder = tempfile.gettempdir()
        raise UserError(
            f"cannot unpack py3langid's model in {folder}: {error.strerror}; TMPDIR names another"
        ) from None


def check_languages(languages: tuple[str, ...]) -> None:
    """Raises UserError for a code that the model does not have."""
    known = set(identifier().labels)
    for language in languages:
        if language not in known:
            raise UserError(f"languages: py3langid knows no {language!r}: it takes codes of ISO 639, such as 'en'")


class BadWordsFilter(BaseFilter):
    """Removes texts with a word, or words in a row, of a list, in any case. C4's filter in datatrove does the same with
    lists that it downloads."""

    name = "bad words"

    def __init__(self, words: list[str], samples: SampleWriter):
        super().__init__(samples)
        alternatives = "|".join(re.escape(word) for word in words)
        self.pattern = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)")

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        return (False, "bad word") if self.pattern.search(doc.text.lower()) else True


def read_bad_words(path: Path) -> list[str]:
    """One of each line. Raises UserError."""
    lines = read_text(path, "--bad_words").split("\n")
    words = sorted({line.strip().lower() for line in lines if line.strip()})
    if not words:
        raise UserError(f"--bad_words: {path} has no word: give one a line")
    return words
