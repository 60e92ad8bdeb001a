"""data/python_stdlib/instructions.py: right answers, and a task that asks for them in ChatML."""

import json

import pytest
import yaml
from commands import command

from data.python_stdlib import instructions
from finetuning.conversations import ASSISTANT, USER, Turn
from finetuning.templates import CHATML, ChatTemplate


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("instructions")
    done = command(instructions.main, "--out_dir", folder, "--limit=600")
    assert done.returncode == 0 and "600 in train.jsonl, 60 in val.jsonl" in done.stdout, done.stderr
    return folder


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_what_python_says_of_a_function(made):
    """The line with a body is executed, where its defaults can be, and the function asked."""
    asked = 0
    for one in read(made / "train.jsonl"):
        question, _, head = one["prompt"].partition("? ")
        names = {}
        try:
            exec(head + " pass", {}, names)
        except (NameError, AttributeError, SyntaxError):  # a default or an annotation is of its module
            continue
        (function,) = names.values()
        arguments = [name for name in function.__code__.co_varnames[: function.__code__.co_argcount] if name != "self"]
        expected = {
            "Which function is this": function.__name__,
            "What is its first argument": arguments[0] if arguments else None,
            "How many arguments has it, but for self": str(len(arguments)),
        }
        assert one["answer"] == expected[question], one
        asked += 1
    assert asked > 400


def test_the_task_asks_what_is_for_validation_in_chatml(made):
    train, val, questions = (read(made / f"{name}.jsonl") for name in ("train", "val", "questions"))
    template = ChatTemplate("chatml", CHATML)
    asked = [template.render([Turn(USER, one["prompt"])], asks=True) for one in val]
    assert [(one["text"], one["answer"]) for one in questions] == list(
        zip(asked, [one["answer"] for one in val], strict=True)
    )
    turns = [[Turn(USER, one["prompt"]), Turn(ASSISTANT, one["answer"])] for one in train + val]
    assert max(len(template.render(both).encode()) for both in turns) <= 256, "the quickstart's block"
    assert yaml.safe_load((made / "instructions.yaml").read_text())["output_type"] == "generate_until"


def test_the_same_questions_every_time(made, tmp_path):
    assert command(instructions.main, "--out_dir", tmp_path, "--limit=600").returncode == 0
    assert all((tmp_path / path.name).read_bytes() == path.read_bytes() for path in made.iterdir())
