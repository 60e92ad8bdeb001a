"""finetune.py: what a step learns of conversations, whatever packs and divides them; runs, resumes, refusals."""

import json
import math
import random
import re
import shlex
import shutil

import processes
import pytest
import tokenizers
import torch
from checkpoints import last_checkpoint, same, tensors, weights
from commands import command
from conftest import ROOT, environment, training, write_words
from setups import LLAMA
from test_conversations import MARKED
from test_init_from import made
from torch.nn import functional as F
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config

import checkpoint as checkpoint_command
import evaluate as evaluate_command
import finetune as finetune_command
import train as train_command
from data.dataset import COUNTED, open_dataset
from finetuning.models import identity_of
from finetuning.templates import CHATML
from interop.sources import architecture_of
from model_builder import build_model
from runs.logs import read_run

TEMPLATE = """\
{%- for message in messages %}
{{- ('>' if message.role == 'user' else '<') + message.content + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<' }}{% endif %}
"""
T = 64
MACHINE = ["--device=cpu", "--dtype=float32", "--compile=False"]
LETTERS = "abcdefgh"
PAGE = (ROOT / "docs/using/finetuning.md").read_text()


def talk(rng, length):
    """A conversation that TEMPLATE makes `length` bytes of: `>question` and `<answer`, a line each, and an end."""
    asked = rng.randint(1, length - 7)
    said = length - asked - 5
    return tuple("".join(rng.choice(LETTERS) for _ in range(count)) for count in (asked, said))


@pytest.fixture(scope="module")
def home(data_dir, tmp_path_factory):
    """A folder with a small Llama of bytes, `base`; 16 conversations of which a long and a short one fit together into
    a window, in `chats.jsonl`; and the template."""
    folder = tmp_path_factory.mktemp("home")
    assert training(data_dir, folder / "base", *LLAMA, f"--block_size={T}").returncode == 0
    rng = random.Random(1)
    talks = [talk(rng, rng.randint(34, 50)) for _ in range(8)] + [talk(rng, rng.randint(9, 14)) for _ in range(8)]
    write(folder / "chats.jsonl", talks)
    write(folder / "held_out.jsonl", talks[:3])
    (folder / "t.jinja").write_text(TEMPLATE)
    return folder


def write(path, talks):
    path.write_text("".join(json.dumps({"prompt": asked, "answer": said}) + "\n" for asked, said in talks))


def read(path):
    return [(one["prompt"], one["answer"]) for one in map(json.loads, path.read_text().splitlines())]


def finetune(home, run, *keys, base=None):
    given = [base or home / "base", *keys, "--data", home / "chats.jsonl", "--val_data", home / "held_out.jsonl"]
    given += ["--chat_template", home / "t.jinja", f"--out_dir={run}", *MACHINE]
    return command(finetune_command.main, *given)


# ---------------------------------------------------------------------------------------------------------------------
# A step

# All conversations are one step. The first update of AdamW with so large an eps is nearly the gradient.
ONE_STEP = "--max_iters=1 --warmup_iters=0 --adam_eps=10 --learning_rate=1 --lr_schedule=constant --grad_clip=0".split()
ONE_STEP += ["--eval_interval=100"]
WAYS = {
    "single": "--packing=single --batch_size=16 --gradient_accumulation_steps=1",
    "packed": "--packing=best_fit --batch_size=8 --gradient_accumulation_steps=1",
    "packed, accumulated": "--packing=best_fit --batch_size=1 --gradient_accumulation_steps=8",
    "single, accumulated": "--packing=single --batch_size=4 --gradient_accumulation_steps=4",
}
ON_RANKS = {
    "packed": "--packing=best_fit --batch_size=2 --gradient_accumulation_steps=4",
    "single": "--packing=single --batch_size=1 --gradient_accumulation_steps=16",
    "sharded": "--packing=best_fit --batch_size=2 --gradient_accumulation_steps=4 --use_fsdp=True",
    "parts of sequences": "--packing=single --batch_size=8 --gradient_accumulation_steps=2 --context_parallel=2",
}


def by_hand(home, name="chats.jsonl"):
    """The loss and its gradients: of each conversation alone, the mean over all tokens of answers. A template ends an
    answer with white space alone, so that the end of a text follows, and counts."""
    model = build_model(architecture_of(home / "base"))
    model.load_state_dict(weights(last_checkpoint(home / "base")))
    total, count = torch.zeros(()), 0
    for asked, said in read(home / name):
        prompt, answer = f">{asked}\n<".encode(), f"{said}\n".encode() + b"\0"
        ids = torch.tensor([*prompt, *answer])[None]
        logits = model(ids[:, :-1])[0, len(prompt) - 1 :]
        total = total + F.cross_entropy(logits, ids[0, len(prompt) :], reduction="sum")
        count += len(answer)
    (total / count).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return (total / count).item(), count, gradients


@pytest.fixture(scope="module")
def expected(home):
    return by_hand(home)


def records(run, kind):
    return [line for line in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if line["type"] == kind]


def assert_learned(home, run, expected):
    """The step's loss, targets, gradient norm, and every parameter's change, against what was worked out by hand."""
    loss, count, gradients = expected
    (step,) = records(run, "iter")
    assert step["targets"] == count
    assert step["loss"] == pytest.approx(loss, rel=1e-6)
    assert_stepped(home / "base", run, gradients)


def assert_stepped(base, run, gradients):
    """What one step has made of the weights of the base, and its gradient norm, are those of these gradients."""
    (step,), before, after = records(run, "iter"), *(weights(last_checkpoint(one)) for one in (base, run))
    norm = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt().item()
    assert step["grad_norm"] == pytest.approx(norm, rel=1e-5)
    for name, gradient in gradients.items():
        update = -gradient / (gradient.abs() + 10)
        torch.testing.assert_close(after[name] - before[name], update, rtol=1e-4, atol=2e-7)


@pytest.mark.parametrize("way", WAYS)
def test_a_step_is_the_mean_over_what_counts_however_it_is_packed_and_divided(home, tmp_path, expected, way):
    done = finetune(home, tmp_path / "run", *ONE_STEP, *WAYS[way].split())
    assert done.returncode == 0, done.stderr
    assert_learned(home, tmp_path / "run", expected)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("way", ON_RANKS)
def test_on_ranks(home, tmp_path, expected, way, ranks):
    assert_learned_on_ranks(home, tmp_path, expected, way, ranks)


def test_on_two_ranks(home, tmp_path, expected):
    assert_learned_on_ranks(home, tmp_path, expected, "packed", 2)


def assert_learned_on_ranks(home, tmp_path, expected, way, ranks):
    given = [home / "base", *ONE_STEP, *ON_RANKS[way].split(), "--data", home / "chats.jsonl", "--val_data"]
    given += [home / "held_out.jsonl", "--chat_template", home / "t.jinja", f"--out_dir={tmp_path / 'run'}", *MACHINE]
    torchrun = ["--standalone", f"--nproc_per_node={ranks}"]
    done = processes.run(ROOT / "finetune.py", list(map(str, given)), tmp_path, environment(), torchrun)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("one example, of") == 1
    assert_learned(home, tmp_path / "run", expected)


def test_a_step_of_which_nothing_counts_is_no_nan(home, run, tmp_path):
    """Short windows of the text are questions here and there; such a step changes nothing."""
    keys = "--packing=windows --block_size=4 --batch_size=1 --gradient_accumulation_steps=1 --max_iters=30".split()
    keys += [f"--init_from={home / 'base'}", f"--out_dir={tmp_path / 'run'}", "--warmup_iters=0", "--eval_interval=100"]
    data = ["--dataset=conversations", f"--data_dir={run[0] / 'data'}"]
    done = command(train_command.main, ROOT / "config/sft.py", *keys, *data, *MACHINE)
    assert done.returncode == 0, done.stderr
    steps = records(tmp_path / "run", "iter")
    nothing = [step for step in steps if step["loss"] == 0]
    assert len(steps) == 30 and 0 < len(nothing) < 30 and not any(step["skipped"] for step in steps)
    assert all(step["grad_norm"] == 0 for step in nothing)
    assert all(torch.isfinite(value).all() for value in tensors(last_checkpoint(tmp_path / "run")).values())


# ---------------------------------------------------------------------------------------------------------------------
# A run

RUN = "--batch_size=2 --gradient_accumulation_steps=2 --eval_interval=4 --warmup_iters=2 --learning_rate=1e-2".split()


@pytest.fixture(scope="module")
def run(home):
    """Three epochs, and what was printed."""
    done = finetune(home, home / "run", *RUN, "--epochs=3")
    assert done.returncode == 0, done.stderr
    return home / "run", done.stdout


def test_epochs_are_steps(home, run):
    """8 windows of 16 conversations, 4 in a step; three times."""
    folder, printed = run
    log = read_run(folder / "log.jsonl")
    assert log.run["steps"] == 6 and "Epochs: 3.00" in printed


def test_everything_that_was_read_is_counted(home, run):
    _, printed = run
    talks = read(home / "chats.jsonl")
    tokens = sum(len(asked) + len(said) + 5 for asked, said in talks)
    counted = sum(len(said) + 2 for _, said in talks)
    assert "conversations: 19 read" in printed and "left out: nothing" in printed
    assert f"training: 16 conversations, 16 answers, {tokens:,} tokens, of which {counted:,} count" in printed
    split = open_dataset(run[0] / "data/conversations").splits["train"]
    assert (split.documents, split.tokens, split.marks.counted_tokens) == (16, tokens, counted)
    assert split.marks.counted_bytes == sum(len(said) for _, said in talks)
    logged = read_run(run[0] / "log.jsonl").split("train")
    assert (logged["counted_tokens"], logged["counted_bytes"]) == (counted, split.marks.counted_bytes)


def test_one_example_shows_what_counts(home, run):
    asked, said = min(read(home / "chats.jsonl"), key=lambda one: len(one[0]) + len(one[1]))
    shown = f"  >{asked}\\n\n  <[[{said}\\n]]\n  [[\\x00]]\n"
    assert shown in run[1], run[1]


def test_validation_is_of_the_answers(home, run):
    loss, _, _ = by_hand(home, "held_out.jsonl")
    assert records(run[0], "eval")[0]["val_loss"] == pytest.approx(loss, rel=1e-6)


def test_bits_per_byte_are_of_the_answers(home, run):
    found = records(run[0], "eval")[0]
    talks = read(home / "held_out.jsonl")
    per_byte = sum(len(said) + 2 for _, said in talks) / sum(len(said) for _, said in talks)
    assert found["val_bits_per_byte"] == pytest.approx(found["val_loss"] / math.log(2) * per_byte)


def test_the_same_command_goes_on_exactly(home, run, tmp_path, monkeypatch):
    """Stopped after its fourth step, and called again as it was."""
    keys = [*RUN, "--epochs=3", "--max_skipped_steps=9"]
    take_step, taken = train_trainer().Trainer.take_step, []

    def stopping(self, batches):
        take_step(self, batches)
        taken.append(self.progress.step)
        if len(taken) == 4:
            self.stop.signal_number = 15

    with monkeypatch.context() as patch:
        patch.setattr(train_trainer().Trainer, "take_step", stopping)
        assert finetune(home, tmp_path / "run", *keys).returncode == 128 + 15
    again = finetune(home, tmp_path / "run", *keys)
    assert again.returncode == 0 and "resumed at step 4" in again.stdout, again.stderr
    assert same(tensors(last_checkpoint(tmp_path / "run")), tensors(last_checkpoint(run[0])))


def train_trainer():
    import training.trainer

    return training.trainer


def test_a_finished_run_says_so_and_more_epochs_continue_it(home, run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    done = finetune(home, tmp_path / "run", *RUN, "--epochs=3")
    assert done.returncode == 0 and "has finished its 6 steps already" in done.stdout
    done = finetune(home, tmp_path / "run", *RUN, "--epochs=4")
    assert done.returncode == 0 and "finished at step 8 of 8" in done.stdout


def test_a_run_owns_what_it_needs(home, run, tmp_path):
    """Moved, with model and conversations gone, it is continued, evaluated and exported with its template."""
    shutil.copytree(run[0], tmp_path / "moved")
    done = command(train_command.main, tmp_path / "moved/config.py", "--init_from=auto", "--max_iters=8")
    assert done.returncode == 0 and "finished at step 8 of 8" in done.stdout, done.stderr
    config = json.loads((tmp_path / "moved/config.json").read_text())
    assert config["data_dir"] == str(tmp_path / "moved/data")
    done = command(evaluate_command.main, tmp_path / "moved", "--device=cpu", "--limit=5")
    assert done.returncode == 0 and "the validation split of conversations" in done.stderr, done.stderr
    done = command(checkpoint_command.main, "export", tmp_path / "moved", tmp_path / "hf", "--format=hf")
    assert done.returncode == 0, done.stderr
    found = AutoTokenizer.from_pretrained(tmp_path / "hf")
    asked = found.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert asked == ">hi\n<"
    done = command(checkpoint_command.main, "export", tmp_path / "moved", tmp_path / "file.safetensors")
    assert done.returncode == 0, done.stderr
    done = command(checkpoint_command.main, "import", tmp_path / "file.safetensors", tmp_path / "copy")
    assert done.returncode == 0 and (tmp_path / "copy/chat_template.jinja").read_text() == TEMPLATE, done.stderr


def test_what_came_out_is_fine_tuned_again_with_its_template(home, run, tmp_path):
    given = [run[0], "--data", home / "chats.jsonl", f"--out_dir={tmp_path / 'run'}", *MACHINE, *RUN, "--max_iters=1"]
    done = command(finetune_command.main, *given)
    assert done.returncode == 0, done.stderr
    assert f"chat template: the model's own, in {run[0]}" in done.stdout
    assert (tmp_path / "run/chat_template.jinja").read_text() == TEMPLATE


def test_a_share_is_for_validation_without_a_file(home, tmp_path):
    """Always the same one; here a quarter."""
    given = [home / "base", "--data", home / "chats.jsonl", "--val_fraction=0.25", *MACHINE, *RUN, "--max_iters=1"]
    for name in ("one", "two"):
        done = command(finetune_command.main, *given, f"--out_dir={tmp_path / name}")
        assert done.returncode == 0 and "chatml, as the model has none of its own" in done.stdout, done.stderr
        assert "markers are text to this tokenizer" in done.stdout
        assert (tmp_path / name / "chat_template.jinja").read_text() == CHATML
    one, two = (open_dataset(tmp_path / name / "data/conversations") for name in ("one", "two"))
    all_of_them = sum(split.documents for split in one.splits.values())
    assert one.splits["val"].documents == math.ceil(all_of_them / 4) > 1 and one.identity == two.identity


def test_a_template_that_rewrites_earlier_turns_makes_texts_of_answers(home, tmp_path):
    """Here it ends the last answer with a mark, and no other; so that mark ends a text, and counts."""
    ended = "message.content + ('!' if loop.last and message.role == 'assistant' else '')"
    (tmp_path / "t.jinja").write_text(TEMPLATE.replace("message.content", ended))
    turns = [{"role": role, "content": role[0]} for role in ("user", "assistant", "user", "assistant")]
    rows = [{"messages": turns}, {"messages": turns[:2]}]
    for name in ("chats.jsonl", "held_out.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = finetune(tmp_path, tmp_path / "run", *RUN, "--epochs=3", "--dry_run", base=home / "base")
    assert done.returncode == 0, done.stderr
    tokens, counted = sum(map(len, (">u\n<a!", ">u\n<a\n>u\n<a!", ">u\n<a!"))), 3 * len("a!")
    assert f"training: 2 conversations, 3 answers, {tokens} tokens, of which {counted} count" in done.stdout
    assert "a text for each answer: 2 conversations, as the chat template rewrites earlier turns" in done.stdout


def test_a_dry_run_leaves_nothing(home, tmp_path):
    done = finetune(home, tmp_path / "run", *RUN, "--epochs=3", "--dry_run")
    assert done.returncode == 0 and re.search(r"Steps: +6 ", done.stdout), done.stderr
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------
# A Hugging Face model, and the page


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The folder of a small model with a tokenizer that has the markers as special tokens, and a template."""
    folder = tmp_path_factory.mktemp("published") / "model"
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    library.train_from_iterator([LETTERS * 9], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=library, eos_token="<|im_end|>", chat_template=MARKED)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": 32}
    made(Qwen2Config(**sizes, intermediate_size=48, vocab_size=300, max_position_embeddings=512), folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_hugging_face_model_keeps_its_tokenizer_and_template(home, published, tmp_path):
    """What counts is what transformers says; the export has tokenizer and template again."""
    data = ["--data", home / "chats.jsonl", "--val_data", home / "held_out.jsonl"]
    given = [published, *data, f"--out_dir={tmp_path / 'run'}", *MACHINE, *RUN, "--block_size=256", "--packing=single"]
    done = command(finetune_command.main, *given)
    assert done.returncode == 0, done.stderr
    assert f"the model's own, in {published}" in done.stdout and "markers are text" not in done.stdout
    dataset, tokenizer = open_dataset(tmp_path / "run/data/conversations"), AutoTokenizer.from_pretrained(published)
    ids, marks = dataset.reader("train").read(0, dataset.splits["train"].tokens)
    expected: list[tuple[int, bool]] = []
    for asked, said in read(home / "chats.jsonl"):
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        found = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
        both = list(zip(found["input_ids"], map(bool, found["assistant_masks"]), strict=True))
        expected += both[: max(place for place, (_, counts) in enumerate(both) if counts) + 1]
    assert list(zip(ids.tolist(), (marks & COUNTED > 0).tolist(), strict=True)) == expected
    done = command(checkpoint_command.main, "export", tmp_path / "run", tmp_path / "hf", "--format=hf")
    assert done.returncode == 0, done.stderr
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").chat_template == MARKED


@pytest.mark.slow
def test_the_pages_commands(home, published, data_dir, tmp_path, monkeypatch):
    """In their order, as they stand, on small models."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").symlink_to(ROOT / "config")
    (tmp_path / "Qwen2.5-0.5B").symlink_to(published)
    assert training(data_dir, "out/quickstart", *LLAMA, "--block_size=128").returncode == 0
    for name in ("chats.jsonl", "held_out.jsonl"):
        shutil.copy(home / name, tmp_path / name)
    (tmp_path / "more").mkdir()
    shutil.copy(home / "held_out.jsonl", tmp_path / "more/b.jsonl")
    shutil.copy(home / "t.jinja", tmp_path / "mine.jinja")
    pairs = [
        {"prompt": asked, "chosen": said, "rejected": said[::-1] + "z"} for asked, said in read(home / "chats.jsonl")
    ]
    answers = [
        {"prompt": asked, "completion": said, "label": number % 2 == 0}
        for number, (asked, said) in enumerate(read(home / "chats.jsonl"))
    ]
    for name, rows in (("pairs", pairs), ("answers", answers)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = re.sub("^## Checkable rewards$.*?^## ", "", PAGE, flags=re.DOTALL | re.MULTILINE)  # test_grpo_runs
    commands = re.findall(r"^(?:python|torchrun) .*", page.partition("Does it help?")[0], re.MULTILINE)
    assert len(commands) == 10
    for line in commands:
        before, script, *keys = re.match(r"(?:python|torchrun)((?: --\S+)*) (\S+\.py) (.*)", line).groups()
        given = [*shlex.split(keys[0]), *([] if script == "checkpoint.py" else MACHINE)]
        done = processes.run(ROOT / script, given, tmp_path, environment(), before.split())
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert "finished at step 30 of 30" in done.stdout
    made = {"quickstart", "chat", "qwen", "two", "preferred", "ipo", "kto"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == made


@pytest.mark.slow
def test_the_commands_that_measure(tmp_path, monkeypatch):
    """Likewise, on the quickstart's model after two steps, with few instructions and questions."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").symlink_to(ROOT / "config")
    write_words(tmp_path / "data/python_stdlib", {"train": 60, "val": 8}, length=400)
    few = ["--max_iters=2", "--eval_iters=1", "--eval_interval=10", "--batch_size=2", "--eval_batch_size=1"]
    short = [f"--data_dir={tmp_path / 'data'}", *few, *MACHINE]
    given = {"train.py": short, "evaluate.py": ["--limit=4", "--device=cpu"], "finetune.py": [few[1], *MACHINE]}
    done = processes.run(ROOT / "train.py", ["config/quickstart.py", *short], tmp_path, environment(), [])
    assert done.returncode == 0, done.stderr
    commands = re.findall(r"^python (\S+)(.*)", PAGE.partition("## Does it help?")[2], re.MULTILINE)
    assert len(commands) == 6
    for script, keys in commands:
        line = [*shlex.split(keys), *given.get(script, ["--limit=60"])]
        done = processes.run(ROOT / script, line, tmp_path, environment(), [])
        assert done.returncode == 0, f"{script} {keys}\n{done.stdout}\n{done.stderr}"
    assert "tokens before" in done.stdout and "needle" in done.stdout
    assert {"quickstart", "instructions", "answers", "longer"} == {path.name for path in (tmp_path / "out").iterdir()}


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


def test_another_run_in_the_folder_is_kept(home, run, tmp_path):
    write(tmp_path / "chats.jsonl", read(home / "chats.jsonl")[:9])
    for name in ("t.jinja", "held_out.jsonl"):
        (tmp_path / name).symlink_to(home / name)
    log = (run[0] / "log.jsonl").read_text()
    done = finetune(tmp_path, run[0], *RUN, base=home / "base")
    assert done.returncode == 2 and "holds a run that differs in data: choose another --out_dir" in done.stderr
    done = finetune(home, run[0], *RUN, "--block_size=32")
    assert done.returncode == 2 and "differs in block_size" in done.stderr
    assert done.stderr.count("\n") == 1 and (run[0] / "log.jsonl").read_text() == log


def test_a_run_of_a_model_that_is_another_by_now_is_kept(home, published, data_dir, tmp_path):
    """Under the same name: a run's folder, and that of a Hugging Face model."""
    shutil.copytree(home / "base", tmp_path / "base")
    assert finetune(home, tmp_path / "run", *RUN, "--max_iters=1", base=tmp_path / "base").returncode == 0
    assert finetune(home, tmp_path / "run", *RUN, "--max_iters=1", base=tmp_path / "base").returncode == 0
    shutil.rmtree(tmp_path / "base")
    assert training(data_dir, tmp_path / "base", *LLAMA, f"--block_size={T}", "--seed=2").returncode == 0
    done = finetune(home, tmp_path / "run", *RUN, "--max_iters=2", base=tmp_path / "base")
    assert done.returncode == 2 and "holds a run that differs in weights: choose another" in done.stderr
    before = identity_of(published)
    assert before and before == identity_of(shutil.copytree(published, tmp_path / "copy"))
    (file,) = (tmp_path / "copy").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert identity_of(tmp_path / "copy") != before


def test_the_folder_of_the_model_itself_is_not_written_to(home):
    done = finetune(home, home / "base", *RUN)
    assert done.returncode == 2 and "base holds a run that is not of finetune.py: choose another" in done.stderr
    assert not (home / "base/data").exists()


def test_a_run_that_is_refused_when_its_data_are_there_leaves_nothing(home, tmp_path):
    given = [home / "base", "--data", home / "chats.jsonl", "--chat_template", home / "t.jinja"]
    for late, word in {"--device=cuda:99": "cuda", "--eval_benchmarks=nope": "nope"}.items():
        done = command(finetune_command.main, *given, late, f"--out_dir={tmp_path / 'out/run'}")
        assert done.returncode == 2 and word in done.stderr and done.stderr.count("\n") == 1, done.stderr
        assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_there(home):
    done = finetune(home, home / "new", base="no/model")
    assert done.returncode == 2 and done.stderr.startswith("error: no/model is no folder, and no model in Hugging")
    assert "hf download no/model" in done.stderr and "init_from" not in done.stderr


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["--dataset=tiny"], "dataset='tiny': finetune.py takes the model and --data instead: drop it"),
        (["--init_from=scratch", "--data_dir=x"], "data_dir='x': finetune.py takes"),
        (["--epochs=2", "--max_tokens=9"], "--epochs=2 and max_iters, max_tokens, max_flops say how long"),
        (["--epochs=0"], "argument --epochs: '0' is not a number above 0"),
        (["--n_layer=7"], "n_layer=7 contradicts"),
        (["--learnin_rate=7"], "unknown key 'learnin_rate' (did you mean 'learning_rate'?)"),
        (["--block_size=4"], "of 16 conversations none has an answer that begins within block_size=4"),
        (["--packing=best_fit", "--mask_documents=False"], "add --mask_documents=True"),
        (["--frozen=nothing.*"], "frozen: 'nothing.*' is no parameter's name"),
        (["--use_zero1", "--use_fsdp"], "exclude each other"),
    ],
)
def test_what_cannot_be_is_one_line(home, tmp_path, keys, message):
    given = [home / "base", "--data", home / "chats.jsonl", f"--out_dir={tmp_path / 'run'}", *MACHINE]
    done = command(finetune_command.main, *given, *keys)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", "answer": ""}', "chats.jsonl, line 2: a turn of the assistant is empty"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "chats.jsonl, line 2: turn 1 is of the assistant"),
        ('{"text": "a"}', "chats.jsonl, line 2 has the keys text; what is known"),
        ("{", "chats.jsonl, line 2 is not JSON"),
        ('{"prompt": "a", "answer": "b\ufdd0"}', "chats.jsonl, line 2: a text has one of the characters"),
    ],
)
def test_a_bad_line_is_named_and_leaves_nothing(home, tmp_path, line, message):
    (tmp_path / "chats.jsonl").write_text('{"prompt": "a", "answer": "b"}\n' + line)
    given = [home / "base", "--data", tmp_path / "chats.jsonl", f"--out_dir={tmp_path / 'run'}", *MACHINE]
    done = command(finetune_command.main, *given)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "run").exists()
