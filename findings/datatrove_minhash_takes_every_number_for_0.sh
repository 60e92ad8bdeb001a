#!/usr/bin/env bash
# datatrove 0.10.1: MinhashDedupSignature with its default MinhashConfig writes every number as 0 before it compares
# documents: TextNormConfig has norm_numbers=True. So documents that differ in their numbers alone, such as tables,
# scores, exercises in arithmetic or readings of a sensor, are one document to it, of any number all but one are
# removed, and the counts do not show why. With TextNormConfig(norm_numbers=False) they are what they are.
# The Jaccard similarity of the shingles of two tables of random numbers:
# Seen:
#   norm_numbers=True: 1.00
#   norm_numbers=False: 0.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datatrove==0.10.1 xxhash==3.8.2 regex tokenizers
seen=$("$folder/venv/bin/python" - <<'PYTHON'
import random

from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.utils.text import TextNormConfig
from datatrove.utils.word_tokenizers import WordTokenizer


class Spaces(WordTokenizer):
    def word_tokenize(self, text):
        return text.split()

    sent_tokenize = span_tokenize = word_tokenize


def table(seed):
    draw = random.Random(seed)
    return " ".join(f"row {draw.randrange(10**6)} costs {draw.randrange(10**6)}" for _ in range(50))


assert MinhashConfig().norm_config == TextNormConfig(norm_numbers=True)
for norm_numbers in (True, False):
    config = MinhashConfig(norm_config=TextNormConfig(norm_numbers=norm_numbers))
    step = MinhashDedupSignature("unused", config, language=Spaces())
    one, other = (set(step.get_shingles(table(seed)).ravel().tolist()) for seed in (0, 1))
    print(f"norm_numbers={norm_numbers}: {len(one & other) / len(one | other):.2f}")
PYTHON
)
echo "$seen"
diff <(sed -n '/^# Seen:$/,/^set /s/^#   //p' "$0") <(echo "$seen")
