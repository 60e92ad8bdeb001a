"""Words and sentences for datatrove's steps, which would else take spaCy's. Counts of words are near those, not equal:
`don't` is one word here, and two there."""

import itertools
import re

from datatrove.utils.text import TextNormConfig
from datatrove.utils.word_tokenizers import WordTokenizer

# A character of a script without spaces is a word; so is a run of other letters, apostrophes within; so is a sign.
WITHOUT_SPACES = "぀-ヿ㐀-䶿一-鿿豈-﫿"
WORD = re.compile(rf"[{WITHOUT_SPACES}]|(?:(?![{WITHOUT_SPACES}])\w)+(?:['’](?:(?![{WITHOUT_SPACES}])\w)+)*|[^\w\s]")
END_OF_SENTENCE = re.compile(r"[.!?…]+[\"'”’)\]]*\s+|[。！？]+|\n+")

# Two texts are the same words whatever their case, spaces, punctuation and accents. datatrove's default also takes any
# number for 0, so that tables, scores and exercises that differ in their numbers alone would count as copies.
SAME_WORDS = TextNormConfig(norm_numbers=False)


class Words(WordTokenizer):
    """The words and sentences of a text, found by their characters."""

    def __init__(self) -> None:
        super().__init__("any")

    def word_tokenize(self, text: str) -> list[str]:
        return WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return [text[start:end].strip() for start, end in self.span_tokenize(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        ends = [match.end() for match in END_OF_SENTENCE.finditer(text)]
        borders = [0, *ends, *([len(text)] if not ends or ends[-1] < len(text) else [])]
        return [(start, end) for start, end in itertools.pairwise(borders) if text[start:end].strip()]


WORDS = Words()
