"""What the harness is answered is what its own `hf` backend answers of the exported folder, sample by sample; tasks
from files; what is refused.

Tolerance: 1e-4 nats of a sum over at most 300 tokens, in float32.
"""

import json
import sys

import datasets
import huggingface_hub
import pytest
import torch
from commands import command
from conftest import BYTES, ROOT, training
from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from setups import LLAMA, MAMBA2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

import checkpoint
import evaluate as evaluate_command
from data.tokenizers import choose
from data.writer import DatasetWriter
from evaluation.harness import Asked, ask_tasks, load_tasks
from evaluation.held_out import choices, made_tasks, validation_text
from evaluation.subject import find_subject

TOLERANCE = 1e-4
CPU = torch.device("cpu")
END = "<|endoftext|>"
EXPERTS = ["--arch_preset=olmoe", "--n_experts=4", "--n_experts_per_token=2", "--expert_d_ff=24"]
ARCHITECTURES = {
    "attention": LLAMA,
    "hybrid": [*MAMBA2, "--ffn_type=swiglu", "--activation=silu", "--normalization=rmsnorm"],
    "experts": EXPERTS,
}


def write_pairs(folder):
    """A dataset of byte pairs that are merged in its own words, each document ending with a token of its own."""
    words = "the loss of a model falls while it trains and its layers grow in width and depth on tokens".split()
    texts = [" ".join(words[(first * step) % 18] for step in range(1, 60)) + "." for first in range(1, 40)]
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer, pairs.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    pairs.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=300, special_tokens=[END], initial_alphabet=alphabet)
    )
    folder.mkdir(parents=True)
    pairs.save(str(folder / "own.json"))
    kept = choose(str(folder / "own.json"))
    tokenizer = kept.tokenizer
    with DatasetWriter(folder, kept.entry, tokenizer.vocab_size, "generated", kept.content) as writer:
        for number, text in enumerate(texts):
            ids = [*tokenizer.encode(text), tokenizer.end_of_document]
            writer.add("val" if number % 4 == 0 else "train", ids, len(text))


@pytest.fixture(scope="module")
def data(data_dir, tmp_path_factory):
    """Datasets of bytes, `tiny`, and of byte pairs, `pairs`."""
    folder = tmp_path_factory.mktemp("both")
    (folder / "tiny").symlink_to(data_dir / "tiny")
    write_pairs(folder / "pairs")
    return folder


@pytest.fixture(scope="module")
def exported(data, tmp_path_factory):
    """`exported(architecture, dataset)`: a short run's folder, and the folder that is exported of it; made once."""
    made = {}

    def make(architecture, dataset):
        if (architecture, dataset) not in made:
            folder = tmp_path_factory.mktemp("run")
            keys = [*ARCHITECTURES[architecture], f"--dataset={dataset}", "--max_iters=6", "--block_size=64"]
            done = training(data, folder / "run", *keys)
            assert done.returncode == 0, done.stderr
            done = command(checkpoint.main, "export", folder / "run", folder / "hf", "--format=hf")
            assert done.returncode == 0, done.stderr
            made[architecture, dataset] = folder / "run", folder / "hf"
        return made[architecture, dataset]

    return make


def backend(folder, dataset, **options):
    """The harness's own, of a folder; the tokenizer of bytes has no special token there, which it cannot do without."""
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    if dataset == "tiny":
        tokenizer.eos_token = tokenizer.bos_token = tokenizer.convert_ids_to_tokens(BYTES["end_of_document"])
    return HFLM(str(folder), tokenizer=tokenizer, device="cpu", dtype="float32", batch_size=1, **options)


def instances(kind, *arguments):
    return [Instance(kind, {}, given, number, ("task", number, 1)) for number, given in enumerate(arguments)]


PAIRS = [
    ("the loss of a model", " falls"),
    ("the loss of a model", " grows while it trains"),
    ("the loss of a model", " of"),
    ("the loss of a model ", "falls"),  # the space goes to the answer
    ("", "the loss"),
    ("and its layers grow", "."),
    ("layer width depth scale " * 20, "loss model train"),  # loses its beginning
    ("a", "b"),
    ("é", " naïve"),
]
TEXTS = [("the loss of a model falls",), ("and its layers grow in width and depth on tokens " * 6,), ("x",)]
PROMPTS = [
    ("the loss", {"until": ["."], "max_gen_toks": 12}),
    ("the loss of a model falls while it trains", {"until": ["\n\n", " "], "max_gen_toks": 20}),
    ("layer width depth scale " * 20, {"until": [], "max_gen_toks": 30, "do_sample": False, "temperature": 0.0}),
]

BOTH = pytest.mark.parametrize("dataset", ["tiny", "pairs"])


@BOTH
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_answer_is_that_of_the_harness_own_backend(exported, architecture, dataset):
    """Of the run, and of the exported folder."""
    run, folder = exported(architecture, dataset)
    theirs = backend(folder, dataset)
    pairs, texts = instances("loglikelihood", *PAIRS), instances("loglikelihood_rolling", *TEXTS)
    prompts = instances("generate_until", *PROMPTS)
    expected, whole = theirs.loglikelihood(pairs), theirs.loglikelihood_rolling(texts)
    written = theirs.generate_until(prompts)
    for path in (run, folder):
        ours = Asked(find_subject(path, None, CPU, None), None)
        found = ours.loglikelihood(pairs)
        assert [one for one, _ in found] == pytest.approx([one for one, _ in expected], abs=TOLERANCE)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
        assert ours.loglikelihood_rolling(texts) == pytest.approx(whole, abs=TOLERANCE)
        assert ours.generate_until(prompts) == written


def test_with_a_token_before_every_text(exported):
    """Where it is asked for, and where the folder's tokenizer puts one there; by default a run's texts have none."""
    run, folder = exported("attention", "pairs")
    pairs, texts = instances("loglikelihood", *PAIRS), instances("loglikelihood_rolling", *TEXTS)
    theirs = backend(folder, "pairs", add_bos_token=True)
    expected, whole = theirs.loglikelihood(pairs), theirs.loglikelihood_rolling(texts)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(json.loads((folder / "tokenizer_config.json").read_text()) | {"add_bos_token": True})
    )
    without = Asked(find_subject(run, None, CPU, None), None).loglikelihood(pairs)
    for subject in (find_subject(run, None, CPU, True), find_subject(folder, None, CPU, None)):
        ours = Asked(subject, None)
        assert [one for one, _ in ours.loglikelihood(pairs)] == pytest.approx(
            [one for one, _ in expected], abs=TOLERANCE
        )
        assert ours.loglikelihood_rolling(texts) == pytest.approx(whole, abs=TOLERANCE)
    same = [one == pytest.approx(two, abs=TOLERANCE) for (one, _), (two, _) in zip(without, expected, strict=True)]
    assert not same[0] and same[4]  # which has no context


# ---------------------------------------------------------------------------------------------------------------------
# Tasks from files

YAML = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {name}.jsonl}}
test_split: test
output_type: {kind}
target_delimiter: ""
{rest}
"""
CHOICE = """
doc_to_text: "{{text}}"
doc_to_choice: "{{answers}}"
doc_to_target: right
"""
WHOLE = """
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
"""
TASKS = {
    "which": ("multiple_choice", CHOICE, [
        {"text": "the loss of", "answers": [" a", " the", " model", " it"], "right": 0},
        {"text": "while it", "answers": [" trains", " falls and grows"], "right": 1},
        {"text": "grow in width", "answers": [" and depth", " depth and"], "right": 0},
    ]),
    "whole": ("loglikelihood_rolling", WHOLE, [
        {"text": "the loss of a model falls"}, {"text": "and its layers grow in width and depth " * 4},
    ]),
    "written": ("generate_until", 'doc_to_text: "{{text}}"\ndoc_to_target: "{{right}}"\n'
                "generation_kwargs: {until: [\".\"], max_gen_toks: 5}\nmetric_list: [{metric: exact_match}]", [
        {"text": "the loss", "right": "x"}, {"text": "a model falls", "right": "y"},
    ]),
}  # fmt: skip


def write_task(folder, name, kind, rest, rows):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(YAML.format(name=name, kind=kind, rest=rest))
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / f"{name}.yaml"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    for name, (kind, rest, rows) in TASKS.items():
        write_task(folder, name, kind, rest, rows)
    return folder


@BOTH
def test_tasks_from_files_have_the_figures_of_the_harness_own_backend(exported, tasks, dataset, monkeypatch):
    """Read from beside the YAML file, wherever the command is called."""
    run, folder = exported("attention", dataset)
    outcome = ask_tasks(find_subject(run, None, CPU, None), load_tasks([str(tasks)]), None, None)
    monkeypatch.chdir(tasks)
    loaded = TaskManager(include_path=str(tasks), include_defaults=False).load(list(TASKS))
    expected = evaluate(backend(folder, dataset), loaded, bootstrap_iters=0)["results"]
    found = {(figure.task, figure.metric): figure for figure in outcome.figures}
    assert set(found) == {
        ("which", "acc"),
        ("which", "acc_norm"),
        ("whole", "bits_per_byte"),
        ("written", "exact_match"),
    }
    for (task, metric), figure in found.items():
        assert figure.value == pytest.approx(expected[task][f"{metric},none"], abs=TOLERANCE)
        assert figure.samples == len(TASKS[task][2]) and figure.error is not None
    assert found["which", "acc"].chance == pytest.approx((1 / 4 + 1 / 2 + 1 / 2) / 3)
    assert found["whole", "bits_per_byte"].chance is None and not found["whole", "bits_per_byte"].higher_is_better
    assert {task: len(samples) for task, samples in outcome.samples.items()} == {"which": 3, "whole": 2, "written": 2}


def test_the_command_and_what_it_saves(exported, tasks, tmp_path):
    run, _ = exported("attention", "pairs")
    saved = [f"--save_results={tmp_path / 'results.json'}", f"--save_samples={tmp_path / 'samples.jsonl'}"]
    done = command(evaluate_command.main, run, f"--tasks={tasks / 'which.yaml'}", "--limit=2", "--device=cpu", *saved)
    assert done.returncode == 0, done.stderr
    assert "2 samples" in done.stdout and "speed" not in done.stdout
    assert [figure["metric"] for figure in json.loads((tmp_path / "results.json").read_text())["figures"]] == [
        "acc",
        "acc_norm",
    ]
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [line["doc"]["text"] for line in lines] == ["the loss of", "while it"] and lines[0]["task"] == "which"


def test_made_questions_are_right_as_often_in_the_harness(exported, tmp_path):
    """The choices that evaluate.py makes of a run's validation text, written as a task of the harness."""
    run, _ = exported("attention", "pairs")
    subject = find_subject(run, None, CPU, None)
    text = validation_text(subject.run)
    made, _ = made_tasks(subject, text, None, None)
    questions = choices([subject.tokenizer.decode(document) for document in text.documents])
    rows = [{"text": one.text, "answers": one.answers, "right": one.right} for one in questions]
    task = write_task(tmp_path, "made", "multiple_choice", CHOICE, rows)
    figure = ask_tasks(subject, load_tasks([str(task)]), None, None).figures[0]
    assert (figure.value, figure.error, figure.samples) == pytest.approx((made.value, made.error, made.samples))


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def refused(run, *arguments):
    done = command(evaluate_command.main, run, *arguments, "--device=cpu")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and done.stdout == "", done.stderr
    return errors[0]


def test_tasks_that_are_none(exported, tasks, tmp_path):
    run, _ = exported("attention", "pairs")
    assert "there is no task 'hellaswagg' (did you mean 'hellaswag'?)" in refused(run, "--tasks=hellaswagg")
    assert "has no task" in refused(run, f"--tasks={tmp_path}")
    lonely = tmp_path / "lonely.yaml"
    lonely.write_text((tasks / "which.yaml").read_text())
    assert "names the data which.jsonl, which is not beside it" in refused(run, f"--tasks={lonely}")
    lonely.write_text("- a list")
    assert "cannot read the task" in refused(run, f"--tasks={lonely}")
    lonely.write_text("group: x")
    assert "has no key 'task'" in refused(run, f"--tasks={lonely}")


def test_a_task_whose_data_cannot_be_had(exported, monkeypatch):
    """One line, whatever the libraries raise without a network."""
    run, _ = exported("attention", "pairs")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "cannot load the task piqa: " in (line := refused(run, "--tasks=piqa")) and "HF_HOME" in line


def test_a_library_of_the_command_s_name_is_the_library_for_tasks(exported, tmp_path, monkeypatch):
    """`import evaluate` in a task's Python is Hugging Face's library, also while the command is called so."""
    run, _ = exported("attention", "pairs")
    (tmp_path / "libraries/evaluate").mkdir(parents=True)
    (tmp_path / "libraries/evaluate/__init__.py").write_text("def load(name):\n    return name\n")
    monkeypatch.syspath_prepend(tmp_path / "libraries")
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])  # as where the command is called
    code = "def right(doc, results):\n    from evaluate import load\n    return {'acc': load('exact') == 'exact'}\n"
    task = write_task(tmp_path / "task", "which", *TASKS["which"])
    (task.parent / "own.py").write_text(code)
    task.write_text(task.read_text() + "process_results: !function own.right\nmetric_list: [{metric: acc}]\n")
    done = command(evaluate_command.main, run, f"--tasks={task}", "--device=cpu")
    assert done.returncode == 0 and "100.0%" in done.stdout, done.stderr
    assert sys.modules["evaluate"] is evaluate_command


def test_a_block_without_room_for_what_a_task_writes(exported, tmp_path):
    run, _ = exported("attention", "pairs")
    rest = 'doc_to_text: "{{text}}"\ndoc_to_target: "{{right}}"\ngeneration_kwargs: {until: ["."], %s}'
    rows = TASKS["written"][2]
    long = write_task(tmp_path, "long", "generate_until", rest % "max_gen_toks: 64", rows)
    assert "generates up to 64 tokens, and the model's block is of 64" in refused(run, f"--tasks={long}")
    odd = write_task(tmp_path, "odd", "generate_until", rest % "max_gen_toks: 5, num_beams: 4", rows)
    assert "generation_kwargs: num_beams is not known here" in refused(run, f"--tasks={odd}")


def test_code_that_a_model_writes_is_not_run(exported, tmp_path):
    run, _ = exported("attention", "pairs")
    unsafe = write_task(tmp_path, "unsafe", *TASKS["which"])
    unsafe.write_text(unsafe.read_text() + "unsafe_code: true\n")
    assert "unsafe runs code that the model writes" in refused(run, f"--tasks={unsafe}")
    assert "humaneval_plus runs code that the model writes" in refused(run, "--tasks=humaneval_plus")


def test_without_the_extra_it_says_how_to_get_it(exported, monkeypatch):
    run, _ = exported("attention", "pairs")
    ours = ("evaluation.asking", "evaluation.harness", "evaluation.programs")
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval" or name in ours]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert "pip install -e '.[evaluation]'" in refused(run, "--tasks=piqa")
