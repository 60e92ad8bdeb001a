#!/usr/bin/env bash
# tiktoken 0.14.0 and tokenizers 0.23.3: `$` in the regular expression that divides text into pieces is the end of the
# text for tiktoken and the end of any line for tokenizers. cl100k_base's published pattern has `\s++$`, so that it
# cannot be copied into a tokenizer.json: white space before a line's end becomes a piece of its own. `\z` is the end of
# the text for both.
# Seen, for "a  \nb  \n":
#   tiktoken,   \s+$: 'a' '  \nb' '  \n'
#   tokenizers, \s+$: 'a' '  ' '\nb' '  \n'
#   tiktoken,   \s+\z: 'a' '  \nb' '  \n'
#   tokenizers, \s+\z: 'a' '  \nb' '  \n'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q tiktoken==0.14.0 tokenizers==0.23.3
seen=$("$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import tiktoken
from tokenizers import Regex, pre_tokenizers

text = "a  \nb  \n"
# Every piece one token: the whole pieces of this text are the vocabulary, beside the single bytes.
for pattern in (r"\s+$", r"\s+\z"):
    whole = pattern + r"|\s*[a-z]|\s"
    split = pre_tokenizers.Split(Regex(whole), "isolated")
    theirs = [piece for piece, _ in split.pre_tokenize_str(text)]
    found = {text[i:j].encode() for i in range(len(text)) for j in range(i + 1, len(text) + 1)}
    singles = [bytes([byte]) for byte in range(256)]
    ranks = {token: rank for rank, token in enumerate(singles + sorted(found - set(singles), key=len))}
    encoding = tiktoken.Encoding("pieces", pat_str=whole, mergeable_ranks=ranks, special_tokens={})
    ours = [encoding.decode([token]) for token in encoding.encode_ordinary(text)]
    print(f"tiktoken,   {pattern}:", *map(repr, ours))
    print(f"tokenizers, {pattern}:", *map(repr, theirs))
PYTHON
)
echo "$seen"
diff <(sed -n '/^# Seen/,/^set /s/^#   //p' "$0") <(echo "$seen")
