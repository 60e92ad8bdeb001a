"""Answers that are labelled one by one: the loss by hand and beside TRL's, whose answer stands beside whose prompt, a
step however it is divided, runs, refusals."""

import collections
import json
import math
import random

import numpy as np
import processes
import pytest
import torch
from checkpoints import last_checkpoint, same, tensors, weights
from commands import command
from conftest import ROOT, environment, training
from hypothesis import given
from hypothesis import strategies as st
from setups import LLAMA
from test_finetune import LETTERS, MACHINE, TEMPLATE, assert_stepped, records
from torch.nn import functional as F

import finetune as finetune_command
from components.heads.spec import IGNORED
from configurator import load
from data.dataset import open_dataset
from data.loader import Batch
from finetuning.kto import KTO, kto
from finetuning.labelled import answers_of_others
from finetuning.preferences import answers_log_likelihood
from interop.sources import architecture_of
from model_builder import build_model
from training.plan import plan_run

# ---------------------------------------------------------------------------------------------------------------------
# The loss


@given(
    st.lists(st.tuples(st.floats(-20, 20), st.booleans()), min_size=1, max_size=6),
    st.floats(0, 30),
    st.sampled_from([0.05, 0.5]),
)
def test_closed_form(answers, kl, beta):
    """1 - 1 / (1 + exp(-v)), written as 1 / (1 + exp(v)), v a reward's distance from z on its good side."""
    how = KTO(beta, desirable=1.25, undesirable=0.75)
    ratios = torch.tensor([ratio for ratio, _ in answers], dtype=torch.float64)
    found = kto(ratios, torch.tensor([desirable for _, desirable in answers]), kl, how)
    expected = [
        1.25 / (1 + math.exp(beta * (ratio - kl))) if desirable else 0.75 / (1 + math.exp(beta * (kl - ratio)))
        for ratio, desirable in answers
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)  # weights are float32


def test_the_estimate_is_no_less_than_0_and_keeps_what_is_not_finite():
    ratios = (-3.0, 6.0, math.nan)
    found = [KTO(0.1).given(torch.tensor([ratio, 2.0, 1.0])).kl for ratio in ratios]
    assert found[:2] == [0, 3] and math.isnan(found[2])


@given(st.lists(st.integers(0, 5), min_size=2, max_size=40))
def test_each_answer_is_shown_once_to_another_prompt(prompts):
    if 2 * max(collections.Counter(prompts).values()) > len(prompts):
        with pytest.raises(ValueError, match="to one prompt"):
            answers_of_others(prompts)
        return
    others = answers_of_others(prompts).tolist()
    assert sorted(others) == list(range(len(prompts)))
    assert all(prompts[other] != own for own, other in zip(prompts, others, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(0, 1), (1, 0)])
def test_gradients_are_trls(tmp_path, seeds):
    """Of a step of its KTOTrainer, on its own batch, with a reference that is another model, which finds others'
    answers likelier or not: one of the estimates of KL is 0. Where no prompt comes twice, who is beside whom is as
    there."""
    trl = pytest.importorskip("trl")
    from trl_steps import assert_same_gradients, exported, first_batch, tiny

    ours, base = (build_model(tiny(), seed=seed) for seed in seeds)
    talks = [("two and two", " is four", True), ("up", " up, up", False), ("a", "bcd", True), ("no", "?", False)]
    rows = [{"prompt": asked, "completion": said, "label": label} for asked, said, label in talks]
    model, how = exported(ours), {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.8}
    trainer, inputs = first_batch(trl.KTOTrainer, trl.KTOConfig, tmp_path, model, rows, exported(base), **how)
    expected = trainer.compute_loss(model, inputs)
    expected.backward()

    width = max(inputs[name].shape[1] for name in ("input_ids", "KL_input_ids"))
    padded = {name: F.pad(one, (0, width - one.shape[-1])) for name, one in inputs.items() if one.ndim == 2}
    of_both = ((padded[name], padded[f"KL_{name}"]) for name in ("input_ids", "completion_mask"))
    ids, mask = (torch.stack(both, 1) for both in of_both)  # (answers, its own or another's, tokens)
    for number, other in enumerate(answers_of_others([asked for asked, _, _ in talks]).tolist()):
        assert ids[number, 1][mask[number, 1] == 1].tolist() == ids[other, 0][mask[other, 0] == 1].tolist()
    ids, mask = ids.flatten(0, 1), mask.flatten(0, 1)
    desirable = torch.stack((inputs["label"], torch.zeros(4, dtype=torch.bool)), 1).flatten()
    targets = ids.masked_fill(mask == 0, IGNORED)[:, 1:]
    batch = Batch(ids[:, :-1], targets, n_targets=4, desirable=desirable)
    with torch.no_grad():
        batch = Batch(ids[:, :-1], targets, None, 4, answers_log_likelihood(base, batch).float(), desirable)
        given = KTO(0.3, 1.5, 0.8)
        of_batch = given.given(given.ask(ours, batch))
    parts = of_batch(ours, batch)
    assert (of_batch.kl > 0) == (seeds == (0, 1))
    assert trainer._metrics["train"]["kl"][-1] == pytest.approx(of_batch.kl, rel=1e-5)
    mean = parts.total() / parts.n_targets
    assert mean.item() == pytest.approx(expected.item(), rel=1e-5)
    mean.backward()
    assert_same_gradients(ours, model)


# ---------------------------------------------------------------------------------------------------------------------
# A step

T, BETA = 64, 0.2
KEYS = "--preference=kto --packing=pairs --mask_documents=True".split()
ONE_STEP = [*KEYS, f"--preference_beta={BETA}", "--preference_desirable=1.5", "--max_iters=1", "--warmup_iters=0"]
ONE_STEP += "--eval_interval=100 --adam_eps=10 --learning_rate=1 --lr_schedule=constant --grad_clip=0".split()
WAYS = ["--batch_size=16 --gradient_accumulation_steps=1", "--batch_size=2 --gradient_accumulation_steps=8"]


@pytest.fixture(scope="module")
def home(data_dir, tmp_path_factory):
    """A folder with a small Llama of bytes, `base`, another one, `other`, and 8 labelled answers, of which the
    desirable ones, three of them, are of other letters than the rest."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("base", "other"):
        keys = [*LLAMA, f"--block_size={T}", "--eval_batch_size=2", f"--seed={len(name)}"]
        assert training(data_dir, folder / name, *keys).returncode == 0
    rng = random.Random(1)

    def text(letters):
        return "".join(rng.choice(letters) for _ in range(rng.randint(1, 20)))

    labels = [True, False, False, True, False, True, False, False]
    talks = [(text(LETTERS), text("abcd" if good else "efgh"), good) for good in labels]
    talks = [{"prompt": asked, "completion": said, "label": good} for asked, said, good in talks]
    write(folder / "answers.jsonl", talks)
    write(folder / "held_out.jsonl", talks[:4])
    (folder / "t.jinja").write_text(TEMPLATE)
    return folder


def write(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def read(path):
    return [*map(json.loads, path.read_text().splitlines())]


def arguments(home, run, *keys, data=None):
    given = [home / "base", *keys, "--data", data or home / "answers.jsonl", "--val_data", home / "held_out.jsonl"]
    return [*given, "--chat_template", home / "t.jinja", f"--out_dir={run}", "--eval_batch_size=4", *MACHINE]


def finetune(home, run, *keys, data=None):
    return command(finetune_command.main, *arguments(home, run, *keys, data=data))


def log_likelihood(model, prompt, answer):
    before, said = f">{prompt}\n<".encode(), f"{answer}\n".encode() + b"\0"
    ids = torch.tensor([*before, *said])[None]
    return -F.cross_entropy(model(ids[:, :-1])[0, len(before) - 1 :], ids[0, len(before) :], reduction="sum")


def loaded(home, name):
    model = build_model(architecture_of(home / name))
    model.load_state_dict(weights(last_checkpoint(home / name)))
    return model


@pytest.fixture(scope="module")
def by_hand(home):
    """The mean loss, its gradients, and what is told, beside `other`'s reference: each prompt also with the answer of
    the line before."""
    model, other, talks = loaded(home, "base"), loaded(home, "other"), read(home / "answers.jsonl")

    def ratio(prompt, answer):
        with torch.no_grad():
            reference = log_likelihood(other, prompt, answer)
        return log_likelihood(model, prompt, answer) - reference

    beside = [ratio(talks[number]["prompt"], talks[number - 1]["completion"]).item() for number in range(len(talks))]
    kl = max(0, sum(beside) / len(beside))
    rewards = [BETA * ratio(one["prompt"], one["completion"]) for one in talks]
    goods = [one["label"] for one in talks]
    losses = [
        1.5 * (1 - torch.sigmoid(reward - BETA * kl)) if good else 1 - torch.sigmoid(BETA * kl - reward)
        for reward, good in zip(rewards, goods, strict=True)
    ]
    loss = sum(losses) / len(losses)
    loss.backward()
    told = {"kl": kl}
    for name, label in (("desirable", True), ("undesirable", False)):
        told[name] = np.mean([reward.item() for reward, good in zip(rewards, goods, strict=True) if good == label])
    return loss.item(), told, {name: one.grad for name, one in model.named_parameters()}


def assert_learned(home, run, by_hand):
    loss, told, gradients = by_hand
    (step,) = records(run, "iter")
    assert step["targets"] == 8 and step["loss"] == pytest.approx(loss, rel=1e-5)
    assert step["measured"] == pytest.approx(told, rel=1e-4)
    assert_stepped(home / "base", run, gradients)


@pytest.mark.parametrize("way", WAYS)
def test_a_step_is_that_of_the_global_batch_however_it_is_divided(home, tmp_path, by_hand, way):
    """The estimate of KL, too: micro-batches of one answer have that of all eight."""
    done = finetune(home, tmp_path / "run", *ONE_STEP, *way.split(), "--reference", home / "other")
    assert done.returncode == 0, done.stderr
    assert "labelled answers: 12 read" in done.stdout and "training: 8 labelled answers, 3 desirable" in done.stdout
    assert "answer to its prompt, which KL is estimated with, of" in done.stdout
    assert_learned(home, tmp_path / "run", by_hand)


@pytest.mark.slow
@pytest.mark.parametrize("keys", ["", "--use_fsdp=True"])
def test_on_two_ranks(home, tmp_path, by_hand, keys):
    run, way = tmp_path / "run", WAYS[1]
    given = list(map(str, arguments(home, run, *ONE_STEP, *way.split(), *keys.split())))
    torchrun = ["--standalone", "--nproc_per_node=2"]
    given += ["--reference", str(home / "other")]
    done = processes.run(ROOT / "finetune.py", given, tmp_path, environment(), torchrun)
    assert done.returncode == 0, done.stderr
    assert_learned(home, run, by_hand)


def test_validation_has_the_estimate_of_all_that_is_evaluated(home, tmp_path):
    """Four answers in batches of one; beside itself, every ratio is 0 and every loss a half of its weight."""
    other = ["--reference", home / "other"]
    for name, batch_size in (("small", "2"), ("large", "8")):
        given = [*ONE_STEP, f"--batch_size={batch_size}", "--gradient_accumulation_steps=1"]
        done = finetune(home, tmp_path / name, *given, *other)
        assert done.returncode == 0, done.stderr
    small, large = (records(tmp_path / name, "eval")[0]["val_loss"] for name in ("small", "large"))
    assert small == pytest.approx(large, rel=1e-6)
    done = finetune(home, tmp_path / "itself", *ONE_STEP, "--batch_size=8", "--gradient_accumulation_steps=1")
    labels = [one["label"] for one in read(home / "held_out.jsonl")]
    expected = np.mean([0.75 if good else 0.5 for good in labels])
    assert records(tmp_path / "itself", "eval")[0]["val_loss"] == pytest.approx(expected, rel=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# A run

LONGER = (
    "--batch_size=4 --gradient_accumulation_steps=2 --learning_rate=3e-3 --min_lr=0 --warmup_iters=0 --log_interval=1"
)


def test_what_is_desirable_becomes_likelier_and_a_stopped_run_goes_on_exactly(home, tmp_path):
    keys = [*KEYS, *LONGER.split(), "--eval_interval=12", "--lr_decay_iters=24"]
    done = finetune(home, tmp_path / "whole", *keys, "--max_iters=24")
    assert done.returncode == 0, done.stderr
    steps, evaluations = records(tmp_path / "whole", "iter"), records(tmp_path / "whole", "eval")
    last = steps[-1]["measured"]
    assert last["desirable"] > 0 > last["undesirable"] and steps[0]["measured"]["kl"] == 0
    assert f"│ kl {last['kl']:.3f} │ desirable {last['desirable']:.3f} │" in done.stdout
    assert evaluations[-1]["val_loss"] < evaluations[0]["val_loss"]
    assert done.stdout.count("bpb n/a") == done.stdout.count("bpb")
    for steps in ("12", "24"):
        assert finetune(home, tmp_path / "parts", *keys, f"--max_iters={steps}").returncode == 0
    assert same(*(tensors(last_checkpoint(tmp_path / name)) for name in ("whole", "parts")))


def test_pairs_are_answers_of_both_labels(home, tmp_path):
    """Each line's two for the same split, and neither beside the other's prompt, which is its own."""
    pairs = [{"prompt": f"{number}?", "chosen": "a" * number, "rejected": "b" * number} for number in range(1, 9)]
    write(tmp_path / "pairs.jsonl", pairs)
    given = [home / "base", *KEYS, "--batch_size=4", "--max_iters=1", "--data", tmp_path / "pairs.jsonl", *MACHINE]
    given += ["--val_fraction=0.25", "--chat_template", home / "t.jinja", f"--out_dir={tmp_path / 'run'}"]
    done = command(finetune_command.main, *given, "--eval_batch_size=4")
    assert done.returncode == 0 and "training: 12 labelled answers, 6 desirable" in done.stdout, done.stderr
    assert "validation: 4 labelled answers, 2 desirable" in done.stdout
    dataset = open_dataset(tmp_path / "run/data/conversations")
    for name, split in dataset.splits.items():
        ids, _ = dataset.reader(name).read(0, split.tokens)
        texts = bytes(ids.tolist()).decode().split("\0")[:-1]
        assert len(texts) == split.documents and split.marks.of_labels
        for own, beside in zip(texts[0::2], texts[1::2], strict=True):
            number = int(own[1])
            assert own in (f">{number}?\n<{'a' * number}\n", f">{number}?\n<{'b' * number}\n")
            assert beside.startswith(f">{number}?\n<") and len(beside) != len(own)


def test_anothers_answer_is_cut_where_it_does_not_fit(home, tmp_path):
    asked, said = "a" * (T - 8), "b" * (T - 8)
    talks = [{"prompt": asked, "completion": "c", "label": True}, {"prompt": "d", "completion": said, "label": False}]
    talks.append({"prompt": asked, "completion": said, "label": False})
    write(tmp_path / "long.jsonl", talks)
    done = finetune(home, tmp_path / "run", *ONE_STEP, "--batch_size=2", data=tmp_path / "long.jsonl")
    assert done.returncode == 0, done.stderr
    assert "left out: 1 labelled answers that are, with their prompts, longer than 64 tokens" in done.stdout
    assert "cut after 64 tokens: 1 of others' answers to a prompt" in done.stdout


def test_every_other_sequence_is_counted_forward_only():
    """FLOPs of a step: a third of training's for the answers that only KL is estimated with."""
    given = ["config/dpo.py", *LLAMA, "--vocab_size=257"]
    pairs, labelled = (plan_run(load([*given, f"--preference={one}"]), None) for one in ("simpo", "kto"))
    for convention, flops in pairs.flops_per_token.items():
        assert labelled.flops_per_token[convention] == flops * (3 + 1) // 6


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be


@pytest.mark.parametrize(("line", "message"), [
    ({"prompt": "a", "completion": "b", "label": "yes"}, "line 9: 'label' must be true, for a desirable"),
    ({"prompt": "a", "completion": "b", "label": 1}, "or false, not 1"),
    ({"prompt": "a", "completion": "b"}, "line 9 has the keys prompt, completion; what is known: prompt"),
    ({"prompt": "a", "completion": " ", "label": True}, "line 9, completion: a turn of the assistant is empty"),
    ({"prompt": "a", "chosen": "b", "rejected": "b"}, "line 9: chosen and rejected are the same"),
    (["a"], "line 9 has the keys no object"),
])  # fmt: skip
def test_a_bad_line_is_named(home, tmp_path, line, message):
    data = tmp_path / "answers.jsonl"
    data.write_text((home / "answers.jsonl").read_text() + json.dumps(line) + "\n")
    done = finetune(home, tmp_path / "run", *ONE_STEP, "--batch_size=2", data=data)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("change", "message"), [
    ({"label": True}, "all 8 answers are desirable: preference='kto' needs both; answers that are all good are"),
    ({"label": False}, "all 8 answers are undesirable: preference='kto' needs both"),
    ({"prompt": "a"}, "of 8 labelled answers for training more than half are to one prompt"),
    ({"prompt": "a" * T}, "of 8 labelled answers none fits in block_size=64"),
])  # fmt: skip
def test_what_nothing_is_learned_of_is_refused(home, tmp_path, change, message):
    write(tmp_path / "answers.jsonl", [one | change for one in read(home / "answers.jsonl")])
    done = finetune(home, tmp_path / "run", *ONE_STEP, "--batch_size=2", data=tmp_path / "answers.jsonl")
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(("keys", "message"), [
    (["--preference_smoothing=0.1"], "preference_smoothing=0.1 is for preference=dpo or simpo or orpo"),
    (["--preference_desirable=0"], "preference_desirable=0"),
    (["--preference_margin=1"], "preference_margin=1.0 is for preference=simpo"),
    (["--batch_size=3"], "batch_size=3 has half of a pair in it"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(home, tmp_path, keys, message):
    done = finetune(home, tmp_path / "run", *KEYS, *keys)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_an_empty_file_has_no_answers(home, tmp_path):
    (tmp_path / "answers.jsonl").touch()
    done = finetune(home, tmp_path / "run", *ONE_STEP, "--batch_size=2", data=tmp_path / "answers.jsonl")
    assert done.returncode == 2 and "answers.jsonl: there are no labelled answers in it" in done.stderr, done.stderr


def test_labelled_answers_are_no_pairs(home, tmp_path):
    keys = "--batch_size=2 --gradient_accumulation_steps=1 --max_iters=1".split()
    assert finetune(home, tmp_path / "run", *KEYS, *keys).returncode == 0
    done = finetune(home, tmp_path / "run", "--preference=dpo", *KEYS[1:], *keys)
    assert done.returncode == 2 and "holds a run that differs in of_pairs" in done.stderr, done.stderr
    given = ["--preference=simpo", *KEYS[1:], *keys, "--dataset=conversations", *LLAMA, f"--block_size={T}"]
    done = training(tmp_path / "run/data", tmp_path / "again", *given, "--eval_batch_size=2")
    assert done.returncode == 2 and "has labelled answers, and not what preference='simpo' learns" in done.stderr
