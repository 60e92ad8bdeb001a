"""finetune.py with rewards: what is learned, however it is divided; kills and resumes, references, refusals."""

import json
import math
import os
import re
import shlex
import signal

import processes
import pytest
import torch
from checkpoints import last_checkpoint, same, tensors, weights
from commands import command
from conftest import ROOT, environment, training
from setups import LLAMA
from test_finetune import MACHINE, TEMPLATE, records

import finetune as finetune_command
import train as train_command
from data.dataset import open_dataset
from data.questions import NOTE, read_questions
from runs.folder import read_state, write_state

CONFIG = '''
import math


def wanted(prompt, completion, answer):
    """The share of the letters that are the answer's."""
    assert prompt in ("aaa", "bb", "dddd", "ee") and answer in ("a", "")
    return completion.count(answer) / max(1, len(completion)) if answer else 0.5


def short(prompt, completion, answer):
    return -float(len(completion))


def broken(prompt, completion, answer):
    raise KeyError("nothing")


def endless(prompt, completion, answer):
    return math.inf


def leaving(prompt, completion, answer):
    raise SystemExit(3)


reinforce = "grpo"
rewards = {"wanted": 1.0}
packing = "prompts"
mask_documents = True
block_size = 16
max_completion = 6
group_size = 4
batch_size = 16
gradient_accumulation_steps = 1
eval_batch_size = 8
eval_iters = 2
eval_interval = 100
learning_rate = 3e-3
lr_schedule = "constant"
warmup_iters = 0
log_interval = 1
max_iters = 4
'''
PROMPTS = [("aaa", "a"), ("bb", "a"), ("dddd", "a"), ("ee", None)]
KL = "--kl_beta=0.05"


@pytest.fixture(scope="module")
def home(data_dir, tmp_path_factory):
    """A folder with a small Llama of bytes, `base`, four prompts, and a config with rewards."""
    folder = tmp_path_factory.mktemp("home")
    assert training(data_dir, folder / "base", *LLAMA, "--eval_batch_size=2").returncode == 0
    lines = [{"prompt": prompt} | ({} if answer is None else {"answer": answer}) for prompt, answer in PROMPTS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "t.jinja").write_text(TEMPLATE)
    (folder / "rewarded.py").write_text(CONFIG)
    return folder


def arguments(home, run, *keys, data=None):
    prompts = data or home / "prompts.jsonl"
    given = [home / "base", home / "rewarded.py", *keys, "--data", prompts, "--val_data", home / "prompts.jsonl"]
    return list(map(str, [*given, "--chat_template", home / "t.jinja", f"--out_dir={run}", *MACHINE]))


def finetune(home, run, *keys, data=None):
    return command(finetune_command.main, *arguments(home, run, *keys, data=data))


def measured(run, kind="iter"):
    """Of every record what was measured, but for the time that it took."""
    return [
        {name: value for name, value in one["measured"].items() if name != "rollout_ms"} for one in records(run, kind)
    ]


def test_what_is_rewarded_becomes_likelier(home, tmp_path):
    """From hardly ever to nearly always in some steps; what is told is the reward, on the validation prompts, too."""
    done = finetune(home, tmp_path / "run", "--max_iters=40", "--eval_interval=40", "--learning_rate=1e-2")
    assert done.returncode == 0, done.stderr
    assert "prompts: 8 read" in done.stdout and "training: 4 prompts, 23 tokens" in done.stdout
    assert "a prompt, whose answer is 'a', of 5 tokens; the model writes what follows:" in done.stdout
    first, *_, last = measured(tmp_path / "run")
    assert first["reward"] < 0.2 and last["reward"] > 0.8  # of which a quarter is a half anyway: at most 0.875
    assert first["equal"] < 0.75 and {"reward", "ended", "length", "equal"} == first.keys()
    before, after = records(tmp_path / "run", "eval")
    assert after["val_loss"] == pytest.approx(-after["measured"]["reward"]) and after["best"]
    assert before["measured"]["reward"] < 0.2 and after["measured"]["reward"] > 0.8
    assert records(tmp_path / "run", "iter")[0]["targets"] == 16
    assert done.stdout.count("bpb n/a") == done.stdout.count("bpb"), "rewards have no bits per byte"
    assert "FLOPs are of whole windows" in done.stdout and "padding is not known" in done.stdout


@pytest.mark.parametrize("keys", ["", "--reinforce=dr_grpo"])
def test_a_step_is_the_same_however_it_is_divided(home, tmp_path, keys):
    """The same completions, and their mean loss: each has a seed of its own."""
    ways = ["--batch_size=16 --gradient_accumulation_steps=1", "--batch_size=4 --gradient_accumulation_steps=4"]
    ways[1] += " --eval_iters=4 --eval_batch_size=4"
    for number, way in enumerate(ways):
        done = finetune(home, tmp_path / str(number), KL, *way.split(), *keys.split(), "--max_iters=3")
        assert done.returncode == 0, done.stderr
    assert_alike(tmp_path / "0", tmp_path / "1")


def assert_alike(one, other):
    assert len(measured(one)) == 3
    for a, b in zip(measured(one) + measured(one, "eval"), measured(other) + measured(other, "eval"), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    found, expected = (weights(last_checkpoint(run)) for run in (one, other))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("keys", ["", "--use_zero1=True", "--use_lora=True --lora_r=4"])
def test_two_ranks_are_one(home, tmp_path, keys):
    given = [*keys.split(), KL, "--batch_size=4", "--gradient_accumulation_steps=4", "--max_iters=3"]
    assert finetune(home, tmp_path / "one", *given).returncode == 0
    torchrun = ["--standalone", "--nproc_per_node=2"]
    script, both = ROOT / "finetune.py", arguments(home, tmp_path / "two", *given)
    done = processes.run(script, both, tmp_path, environment(), torchrun)
    assert done.returncode == 0, done.stderr
    assert_alike(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_the_commands_of_the_page(data_dir, tmp_path, monkeypatch):
    """For two steps each, on a smaller model; and no sum is in two of the files, and every answer right."""
    monkeypatch.chdir(tmp_path)
    assert training(data_dir, "out/quickstart", *LLAMA).returncode == 0
    page = (ROOT / "docs/using/finetuning.md").read_text().partition("## Checkable rewards")[2].partition("\n## ")[0]
    commands = [shlex.split(line)[1:] for line in re.findall(r"^python .*", page, re.MULTILINE)]
    assert [script for script, *_ in commands] == ["data/sums/questions.py", "finetune.py", "finetune.py"]
    for script, *given in commands:
        given = [str(ROOT / one) if one.startswith("config/") else one for one in given]
        if script == "finetune.py":
            given = [*given, "--max_iters=2", "--device=cpu"]
        if "--epochs" in given:
            place = given.index("--epochs")
            del given[place : place + 2]
        done = processes.run(ROOT / script, given, tmp_path, environment())
        assert done.returncode == 0, f"{given}\n{done.stdout}\n{done.stderr}"
    assert "left out: nothing" in done.stdout and "finished at step 2 of 2" in done.stdout
    files = [(tmp_path / f"out/sums/{name}.jsonl").read_text().splitlines() for name in ("train", "val", "taught")]
    sums = [json.loads(line) for lines in files for line in lines]
    assert len({one["prompt"] for one in sums}) == len(sums) == 50 * 50
    assert all(str(sum(map(int, one["prompt"].strip("=").split("+")))) == one["answer"] for one in sums)


# ---------------------------------------------------------------------------------------------------------------------
# Going on


def test_a_run_that_was_killed_goes_on_exactly(home, tmp_path):
    """Whichever command goes on with it: the functions are in the run's own config.py."""
    keys = [KL, "--max_iters=8", "--eval_interval=4", "--checkpoint_interval=1", "--keep_last=1"]
    assert finetune(home, tmp_path / "whole", *keys).returncode == 0
    given = arguments(home, tmp_path / "parts", *keys)
    process, output = processes.start_speaking(ROOT / "finetune.py", given, tmp_path, environment())
    with output:
        said = ""
        while "Iter 4" not in said:
            said = output.readline()
            assert said, "it ended before it was killed"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert len(records(tmp_path / "parts", "iter")) < 8
    done = command(train_command.main, tmp_path / "parts/config.py", "--init_from=auto", *MACHINE)
    assert done.returncode == 0 and "resumed at step" in done.stdout, done.stderr
    found = [{one["step"]: one["loss"] for one in records(tmp_path / name, "iter")} for name in ("whole", "parts")]
    assert found[0] == found[1] and measured(tmp_path / "whole", "eval")[-1] == measured(tmp_path / "parts", "eval")[-1]
    assert same(*(tensors(last_checkpoint(tmp_path / name)) for name in ("whole", "parts")))


def test_the_same_command_goes_on_and_another_is_refused(home, tmp_path):
    assert finetune(home, tmp_path / "run", "--max_iters=2").returncode == 0
    done = finetune(home, tmp_path / "run", "--max_iters=3", "--max_completion=5")
    assert done.returncode == 2 and "holds a run that differs in max_completion" in done.stderr, done.stderr
    done = finetune(home, tmp_path / "run", "--max_iters=3")
    assert done.returncode == 0 and "resumed at step 2" in done.stdout, done.stderr


def test_a_run_keeps_its_reference(home, tmp_path):
    """The model that it began with, beside which nothing has changed at the start; not another one in its place."""
    run, keys = tmp_path / "run", [KL, "--keep_last=1", "--checkpoint_interval=1", "--learning_rate=1e-2"]
    done = finetune(home, run, *keys)
    assert done.returncode == 0 and "reference " in done.stdout, done.stderr
    divergences = [one["kl"] for one in measured(run)]
    assert divergences[0] == 0 < divergences[-1]
    told = [one["loss"] + one["measured"]["reward"] for one in records(run, "iter")]
    assert told == pytest.approx([0.05 * kl for kl in divergences], abs=1e-6)
    steps = sorted(int(one.name.removeprefix("step_")) for one in run.glob("checkpoints/step_*"))
    assert steps[0] == 0 and steps[-1] == 4
    start = run / "checkpoints/step_00000000"
    state = read_state(start)
    write_state(start, state | {"files": dict.fromkeys(state["files"], "crc32c:00000000")})
    done = finetune(home, run, *keys, "--max_iters=6")
    assert done.returncode == 2 and "has another reference than" in done.stderr and done.stderr.count("\n") == 1
    write_state(start, state)
    start.rename(tmp_path / "away")
    done = finetune(home, run, *keys, "--max_iters=6")
    assert done.returncode == 2 and "none: --init_from names one" in done.stderr, done.stderr


def test_the_reference_of_adapters_is_their_base(home, tmp_path):
    run = tmp_path / "run"
    done = finetune(home, run, KL, "--use_lora=True", "--lora_r=4", "--learning_rate=3e-2")
    assert done.returncode == 0 and "reference " not in done.stdout, done.stderr
    divergences = [one["kl"] for one in measured(run)]
    assert divergences[0] == pytest.approx(0, abs=1e-9) and divergences[-1] > 1e-6


def test_rewards_add_up_by_their_weights(home, tmp_path):
    done = finetune(home, tmp_path / "run", "--rewards={'wanted': 2, 'short': 0.1}", "--max_iters=1")
    assert done.returncode == 0, done.stderr
    (found,) = measured(tmp_path / "run")
    assert found["reward"] == pytest.approx(2 * found["reward_wanted"] + 0.1 * found["reward_short"])
    assert found["reward_short"] == pytest.approx(-found["length"] + found["ended"], abs=0.4)


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be


@pytest.mark.parametrize(("line", "message"), [
    ({"answer": "a"}, "line 5 has the keys answer; what is known: prompt, a string or a list of turns; and answer"),
    ({"prompt": "a", "answer": 3}, "line 5: the answer must be a string, not int"),
    ({"prompt": " "}, "line 5: a turn of the user is empty"),
    ({"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
     "line 5: turn 3 is of the assistant, after one of the assistant"),
])  # fmt: skip
def test_a_bad_prompt_is_named(home, tmp_path, line, message):
    data = tmp_path / "prompts.jsonl"
    data.write_text((home / "prompts.jsonl").read_text() + json.dumps(line) + "\n")
    done = finetune(home, tmp_path / "run", data=data)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("keys", "message"), [
    (["--packing=single"], "packing='single' and reinforce='grpo': rewards are of prompts, and no others"),
    (["--reinforce=None"], "packing='prompts' and reinforce=None"),
    (["--reinforce=None", "--packing=single"], "rewards={'wanted': 1.0} is for reinforce=grpo or dr_grpo"),
    (["--rewards=None"], "reinforce='grpo' needs rewards"),
    (["--rewards={'want': 1}"], "rewards: 'want' (did you mean 'wanted'?) is no function of"),
    (["--rewards={'wanted': 'a lot'}"], "the weight of wanted is 'a lot', which is no finite number"),
    (["--group_size=1"], "group_size=1 must be at least 2"),
    (["--group_size=3"], "batch_size=16 divides a group of completions: take a multiple of group_size=3"),
    (["--preference=simpo"], "preference='simpo': preferences are of pairs"),
    (["--mixture={'a': 1}"], "reinforce and mixture exclude each other"),
    (["--use_fsdp=True"], "reinforce and use_fsdp exclude each other"),
    (["--context_parallel=2"], "reinforce and context_parallel exclude each other"),
    (["--pipeline_parallel=2"], "reinforce and pipeline_parallel exclude each other"),
    (["--tensor_parallel=2"], "reinforce and tensor_parallel exclude each other"),
    (["--max_completion=16"], "of 4 prompts none leaves room for max_completion=16 tokens in block_size=16"),
    (["--reference=out"], "--reference is for preference=dpo or ipo"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(home, tmp_path, keys, message):
    done = finetune(home, tmp_path / "run", *keys)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("reward", "message"), [
    ("broken", "the reward broken raises KeyError: 'nothing'; prompt '"),
    ("endless", "the reward endless is inf, no finite number; prompt '"),
    ("leaving", "the reward leaving raises SystemExit: 3; prompt '"),
])  # fmt: skip
def test_a_reward_that_fails_is_named_with_its_prompt(home, tmp_path, reward, message):
    done = finetune(home, tmp_path / "run", f"--rewards={{'{reward}': 1}}")
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_prompts_that_leave_no_room_are_left_out(home, tmp_path):
    """The longest, of a template of three bytes more, in 16 tokens with 9 to write: 4 + 3 + 9 = 16 fits, as it must."""
    done = finetune(home, tmp_path / "run", "--max_completion=10", "--max_iters=1")
    assert done.returncode == 0, done.stderr
    assert "training: 3 prompts" in done.stdout
    assert "left out: 2 prompts which leave no room for 10 tokens in 16" in done.stdout
    dataset = open_dataset(tmp_path / "run/data/conversations")
    assert [one.prompt for one in read_questions(dataset, "train")] == ["aaa", "bb", "ee"]


def test_other_data_than_prompts_and_damaged_ones_are_refused(home, data_dir, tmp_path):
    keys = ["--reinforce=grpo", "--rewards={'wanted': 1}", "--packing=prompts", "--mask_documents=True"]
    given = [*keys, "--batch_size=8", "--eval_batch_size=8", "--dataset=short", f"--data_dir={data_dir}", *MACHINE]
    done = command(train_command.main, home / "rewarded.py", *given, f"--out_dir={tmp_path / 'text'}")
    assert done.returncode == 2 and "are no prompts: finetune.py makes others" in done.stderr, done.stderr
    run = tmp_path / "run"
    assert finetune(home, run, "--max_iters=1").returncode == 0
    given = [f"--data_dir={run / 'data'}", "--dataset=conversations", "--vocab_size=256", *MACHINE]
    done = command(train_command.main, ROOT / "config/sft.py", *given, f"--out_dir={tmp_path / 'text'}")
    assert done.returncode == 2 and "are prompts, of which nothing is learned" in done.stderr, done.stderr
    note = run / "data/conversations" / NOTE
    note.write_text(note.read_text().replace('"aaa"', '"aab"'))
    done = finetune(home, run, "--max_iters=2")
    assert done.returncode == 2 and "is damaged, or of other prompts" in done.stderr, done.stderr
    for content in ("[]", "null", '{"end": 1}', "[" * 100_000):
        note.write_text(content)
        done = finetune(home, run, "--max_iters=2")
        assert done.returncode == 2 and "questions.json is damaged" in done.stderr, done.stderr
    (tmp_path / "empty.jsonl").touch()
    done = finetune(home, tmp_path / "none", data=tmp_path / "empty.jsonl")
    assert done.returncode == 2 and "empty.jsonl: there are no prompts in it" in done.stderr, done.stderr


def test_a_run_without_a_beginning_has_no_divergence_from_it(home, tmp_path):
    assert finetune(home, tmp_path / "run", "--max_iters=1").returncode == 0
    given = [KL, f"--data_dir={tmp_path / 'run/data'}", "--dataset=conversations", "--init_from=scratch", *MACHINE]
    done = command(train_command.main, tmp_path / "run/config.py", *given, f"--out_dir={tmp_path / 'scratch'}")
    assert done.returncode == 2 and "compares with the model that training began with" in done.stderr, done.stderr
    assert not math.isnan(records(tmp_path / "run", "iter")[0]["loss"])
