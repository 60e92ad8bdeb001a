"""A small set of instructions, made of the functions of Python's standard library: which name, which first argument
and how many arguments a line of code has. Files that the dataset's validation split has are for validation here, too.

    python data/python_stdlib/instructions.py [--out_dir DIR] [--limit N]

writes train.jsonl and val.jsonl for finetune.py, and instructions.yaml, a task for evaluate.py --tasks, which asks the
questions of val.jsonl in ChatML and compares the answers as strings.
"""

import ast
import json
import random
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: this script is called by its path

from common.errors import ArgumentParser, exit_cleanly, positive
from common.files import replace_file, writing_to
from data.python_stdlib.prepare import read_documents, validation_names

LONGEST = 100  # bytes of a line, so that a conversation in ChatML fits into 256
SEED = 0
TASK = """\
# Made by data/python_stdlib/instructions.py: the questions of val.jsonl, in ChatML.
task: instructions
dataset_path: json
dataset_kwargs:
  data_files:
    test: questions.jsonl
test_split: test
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{answer}}"
generation_kwargs:
  until: ["<|im_end|>"]
  max_gen_toks: 64
metric_list:
  - metric: exact_match
"""
QUESTION = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


@exit_cleanly
def main() -> None:
    parser = ArgumentParser(description="Make instructions of the source of Python's standard library.")
    parser.add_argument("--out_dir", type=Path, default=Path("out/instructions"), help="(out/instructions)")
    parser.add_argument("--limit", type=positive, default=4000, help="of training instructions; a tenth to validate")
    arguments = parser.parse_args()
    documents = read_documents(Path(sysconfig.get_path("stdlib")))
    validation = validation_names(documents)
    texts = {
        "train": [content for name, content in documents.items() if name not in validation],
        "val": [documents[name] for name in sorted(validation)],
    }
    drawn = {name: draw(some, arguments.limit // (1 if name == "train" else 10)) for name, some in texts.items()}
    with writing_to(arguments.out_dir):
        arguments.out_dir.mkdir(parents=True, exist_ok=True)
        for name, pairs in drawn.items():
            write(arguments.out_dir / f"{name}.jsonl", [{"prompt": asked, "answer": said} for asked, said in pairs])
        asked = [{"text": QUESTION.format(question), "answer": answer} for question, answer in drawn["val"]]
        write(arguments.out_dir / "questions.jsonl", asked)
        replace_file(arguments.out_dir / "instructions.yaml", TASK.encode())
    counts = ", ".join(f"{len(pairs):,} in {name}.jsonl" for name, pairs in drawn.items())
    print(f"{arguments.out_dir}: {counts}, and the task instructions.yaml")


def draw(texts: list[bytes], count: int) -> list[tuple[str, str]]:
    """So many of the questions and answers that texts give, each once, always the same ones."""
    every = sorted({pair for text in texts for pair in questions(text.decode("utf-8"))})
    return random.Random(SEED).sample(every, min(count, len(every)))


def questions(source: str) -> Iterator[tuple[str, str]]:
    """Of each function whose head is one short line what can be asked of it, and the answer."""
    try:
        parsed = ast.parse(source)
    except (SyntaxError, ValueError):  # of a file that is an example of one
        return
    lines = source.split("\n")
    for node in ast.walk(parsed):
        if not isinstance(node, ast.FunctionDef):
            continue
        head = lines[node.lineno - 1].strip()
        if not head.startswith("def ") or not head.endswith(":") or len(head.encode()) > LONGEST:
            continue
        of, arguments = node.args, [one.arg for one in node.args.args if one.arg != "self"]
        yield f"Which function is this? {head}", node.name
        if arguments and not (of.posonlyargs or of.kwonlyargs or of.vararg or of.kwarg):
            yield f"What is its first argument? {head}", arguments[0]
            yield f"How many arguments has it, but for self? {head}", str(len(arguments))


def write(path: Path, records: list[dict[str, str]]) -> None:
    replace_file(path, "".join(json.dumps(record) + "\n" for record in records).encode())


if __name__ == "__main__":
    main()
