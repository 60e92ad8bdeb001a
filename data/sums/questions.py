"""Sums of two small numbers, which a model that is rewarded for right ones can learn: no network, always the same ones.

    python data/sums/questions.py [--out_dir DIR] [--below N]

writes train.jsonl and val.jsonl, prompts and answers for finetune.py with rewards, and taught.jsonl, conversations that
teach what an answer looks like first: a model that is never right by chance learns nothing from rewards. No sum is in
two of the files. plain.jinja is a chat template that writes 3+4=7 and no more, so that windows can be short.
"""

import itertools
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: this script is called by its path

from common.errors import ArgumentParser, exit_cleanly, positive
from common.files import replace_file, writing_to

SEED = 0
SHARES = {"val": 0.1, "taught": 0.3}  # of all sums; the rest is for training
TEMPLATE = "{%- for message in messages %}{{- message['content'] }}{%- endfor %}\n"


@exit_cleanly
def main() -> None:
    parser = ArgumentParser(description="Write sums of two small numbers as prompts, and some as conversations.")
    parser.add_argument("--out_dir", type=Path, default=Path("out/sums"), help="(out/sums)")
    parser.add_argument("--below", type=positive, default=50, help="the numbers are below this (50)")
    arguments = parser.parse_args()
    files = divided(arguments.below)
    with writing_to(arguments.out_dir):
        arguments.out_dir.mkdir(parents=True, exist_ok=True)
        for name, lines in files.items():
            replace_file(arguments.out_dir / f"{name}.jsonl", "".join(f"{line}\n" for line in lines).encode())
        replace_file(arguments.out_dir / "plain.jinja", TEMPLATE.encode())
    print(f"{arguments.out_dir}: {', '.join(f'{len(lines):,} in {name}.jsonl' for name, lines in files.items())}")


def divided(below: int) -> dict[str, list[str]]:
    """The lines of each file: every sum of two numbers below `below` once, in an order that is always the same."""
    every = list(itertools.product(range(below), repeat=2))
    random.Random(SEED).shuffle(every)
    lines = [json.dumps({"prompt": f"{a}+{b}=", "answer": str(a + b)}) for a, b in every]
    found = {}
    for name, share in SHARES.items():
        count = max(1, int(share * len(every)))
        found[name], lines = lines[:count], lines[count:]
    return {"train": lines, **found}


if __name__ == "__main__":
    main()
