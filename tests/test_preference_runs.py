"""finetune.py on pairs of answers: a step by hand however it is divided, what a reference said, runs, refusals."""

import json
import math
import random
import re
import sys

import numpy as np
import processes
import pytest
import torch
from checkpoints import last_checkpoint, same, tensors, weights
from commands import command
from conftest import ROOT, environment, training
from setups import LLAMA
from test_finetune import LETTERS, MACHINE, TEMPLATE, assert_stepped, records
from torch.nn import functional as F

import finetune as finetune_command
import train as train_command
from data.writer import DatasetWriter
from interop.sources import architecture_of
from model_builder import build_model

T, BETA = 64, 0.2
PAIRS = "--preference=dpo --packing=pairs --mask_documents=True".split()
ONE_STEP = [*PAIRS, f"--preference_beta={BETA}", "--max_iters=1", "--warmup_iters=0", "--eval_interval=100"]
ONE_STEP += "--adam_eps=10 --learning_rate=1 --lr_schedule=constant --grad_clip=0".split()
WAYS = ["--batch_size=16 --gradient_accumulation_steps=1", "--batch_size=2 --gradient_accumulation_steps=8"]


@pytest.fixture(scope="module")
def home(data_dir, tmp_path_factory):
    """A folder with a small Llama of bytes, `base`, another one, `other`, and 8 pairs of answers, of which the chosen
    ones are of other letters than the rejected ones."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("base", "other"):
        keys = [*LLAMA, f"--block_size={T}", "--eval_batch_size=2", f"--seed={len(name)}"]
        assert training(data_dir, folder / name, *keys).returncode == 0
    rng = random.Random(1)

    def text(letters, longest):
        return "".join(rng.choice(letters) for _ in range(rng.randint(1, longest)))

    pairs = [(text(LETTERS, 20), text("abcd", 20), text("efgh", 20)) for _ in range(8)]
    lines = [json.dumps({"prompt": p, "chosen": c, "rejected": r}) + "\n" for p, c, r in pairs]
    (folder / "pairs.jsonl").write_text("".join(lines))
    (folder / "held_out.jsonl").write_text("".join(lines[:2]))
    (folder / "t.jinja").write_text(TEMPLATE)
    return folder


def arguments(home, run, *keys):
    given = [home / "base", *keys, "--data", home / "pairs.jsonl", "--val_data", home / "held_out.jsonl"]
    return [*given, "--chat_template", home / "t.jinja", f"--out_dir={run}", "--eval_batch_size=2", *MACHINE]


def finetune(home, run, *keys):
    return command(finetune_command.main, *arguments(home, run, *keys))


def log_likelihoods(home, name):
    """What a run's model says of each answer after its prompt: of the chosen one and the rejected one of each pair."""
    model = build_model(architecture_of(home / name))
    model.load_state_dict(weights(last_checkpoint(home / name)))
    found = []
    for line in map(json.loads, (home / "pairs.jsonl").read_text().splitlines()):
        for answer in (line["chosen"], line["rejected"]):
            prompt, said = f">{line['prompt']}\n<".encode(), f"{answer}\n".encode() + b"\0"
            ids = torch.tensor([*prompt, *said])[None]
            logits = model(ids[:, :-1])[0, len(prompt) - 1 :]
            found.append(-F.cross_entropy(logits, ids[0, len(prompt) :], reduction="sum"))
    return model, torch.stack(found)


@pytest.fixture(scope="module")
def by_hand(home):
    """The loss and its gradients beside `other`'s reference, with logarithms of sigmoids."""
    model, policy = log_likelihoods(home, "base")
    reference = log_likelihoods(home, "other")[1].detach()
    ratios = policy - reference
    margins = BETA * (ratios[0::2] - ratios[1::2])
    loss = -F.logsigmoid(margins).mean()
    loss.backward()
    return loss.item(), margins.detach(), {name: one.grad for name, one in model.named_parameters()}, reference


def assert_learned(home, run, by_hand):
    loss, margins, gradients, reference = by_hand
    (step,) = records(run, "iter")
    assert step["targets"] == 8 and step["loss"] == pytest.approx(loss, rel=1e-5)
    told = {"accuracy": (margins > 0).double().mean().item(), "margin": margins.mean().item()}
    assert step["measured"] == pytest.approx(told, rel=1e-4)
    assert_stepped(home / "base", run, gradients)
    kept = np.load(run / "data/conversations/reference-train.npy")
    assert kept == pytest.approx(reference.numpy(), rel=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_a_step_is_the_mean_over_the_pairs_however_it_is_divided(home, tmp_path, by_hand, way):
    done = finetune(home, tmp_path / "run", *ONE_STEP, *way.split(), "--reference", home / "other")
    assert done.returncode == 0, done.stderr
    shown = re.search(
        r"a chosen answer, .*?\[\[(\w+)\\n\]\].*the one rejected for it, .*?\[\[(\w+)\\n\]\]", done.stdout, re.S
    )
    assert set(shown[1]) <= set("abcd") and set(shown[2]) <= set("efgh")
    assert "pairs: 10 read" in done.stdout and "training: 8 pairs, 16 answers" in done.stdout
    assert_learned(home, tmp_path / "run", by_hand)


@pytest.mark.slow
@pytest.mark.parametrize("keys", ["", "--use_fsdp=True"])
def test_on_two_ranks(home, tmp_path, by_hand, keys):
    run, way = tmp_path / "run", "--batch_size=2 --gradient_accumulation_steps=8"
    given = list(map(str, arguments(home, run, *ONE_STEP, *way.split(), *keys.split())))
    torchrun = ["--standalone", "--nproc_per_node=2"]
    given += ["--reference", str(home / "other")]
    done = processes.run(ROOT / "finetune.py", given, tmp_path, environment(), torchrun)
    assert done.returncode == 0, done.stderr
    assert_learned(home, run, by_hand)


LONGER = (
    "--batch_size=4 --gradient_accumulation_steps=2 --learning_rate=3e-3 --min_lr=0 --warmup_iters=0 --log_interval=1"
)


@pytest.mark.parametrize("loss", ["dpo", "ipo", "simpo", "orpo"])
def test_what_is_preferred_becomes_likelier(home, tmp_path, loss):
    """Within some passes over eight pairs, and beside the model that it was nothing is preferred at the start."""
    keys = [f"--preference={loss}", *PAIRS[1:], *LONGER.split(), "--max_iters=24", "--eval_interval=24"]
    done = finetune(home, tmp_path / "run", *keys)
    assert done.returncode == 0, done.stderr
    steps, evaluations = records(tmp_path / "run", "iter"), records(tmp_path / "run", "eval")
    assert steps[-1]["measured"]["accuracy"] == 1 and steps[-1]["measured"]["margin"] > 0
    assert f"accuracy 1.000 │ margin {steps[-1]['measured']['margin']:.3f}" in done.stdout
    assert evaluations[-1]["val_loss"] < evaluations[0]["val_loss"]
    assert (tmp_path / "run/data/conversations/reference.json").exists() == (loss in ("dpo", "ipo"))
    if loss == "dpo":
        assert steps[0]["loss"] == pytest.approx(math.log(2)) and evaluations[0]["val_loss"] == pytest.approx(
            math.log(2)
        )
    assert done.stdout.count("bpb n/a") == done.stdout.count("bpb"), "a preference has no bits per byte"


def test_a_run_that_was_stopped_goes_on_exactly_and_asks_no_reference_again(home, tmp_path):
    keys = [*PAIRS, *LONGER.split(), "--eval_interval=3", "--lr_decay_iters=6"]
    assert finetune(home, tmp_path / "whole", *keys, "--max_iters=6").returncode == 0
    assert finetune(home, tmp_path / "parts", *keys, "--max_iters=3").returncode == 0
    done = finetune(home, tmp_path / "parts", *keys, "--max_iters=6", "--reference", home / "other")
    assert done.returncode == 2 and "holds a run that differs in reference" in done.stderr, done.stderr
    note = tmp_path / "parts/data/conversations/reference.json"
    before = note.stat().st_mtime_ns
    assert finetune(home, tmp_path / "parts", *keys, "--max_iters=6").returncode == 0
    assert note.stat().st_mtime_ns == before
    assert same(*(tensors(last_checkpoint(tmp_path / name)) for name in ("whole", "parts")))


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be


@pytest.mark.parametrize(("line", "message"), [
    ({"chosen": "a", "rejected": "b"}, "line 9: chosen has no turn before the answer, and there is no prompt"),
    ({"prompt": "a", "chosen": "b"}, "line 9 has the keys prompt, chosen; what is known: prompt, chosen and rejected"),
    ({"prompt": "a", "chosen": "b", "rejected": "b"}, "line 9: chosen and rejected are the same"),
    ({"prompt": "a", "chosen": "b", "rejected": " "}, "line 9, rejected: a turn of the assistant is empty"),
    ({"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
      "rejected": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]},
     "line 9: chosen and rejected are not answers to the same turns"),
    ({"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "a"}]},
     "line 9: chosen does not end with an answer of the assistant's"),
])  # fmt: skip
def test_a_bad_pair_is_named(home, tmp_path, line, message):
    data = tmp_path / "pairs.jsonl"
    data.write_text((home / "pairs.jsonl").read_text() + json.dumps(line) + "\n")
    given = [home / "base", *ONE_STEP, "--data", data, f"--out_dir={tmp_path / 'run'}", *MACHINE]
    done = command(finetune_command.main, *given)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "run/log.jsonl").exists()


@pytest.mark.parametrize(("keys", "message"), [
    (["--preference=dpo"], "packing='best_fit' and preference='dpo': preferences are of pairs"),
    (["--packing=pairs", "--mask_documents=True"], "packing='pairs' and preference=None"),
    ([*PAIRS, "--batch_size=3"], "batch_size=3 has half of a pair in it"),
    ([*PAIRS, "--preference_margin=1"], "preference_margin=1.0 is for preference=simpo"),
    ([*PAIRS, "--context_parallel=2"], "preference and context_parallel exclude each other"),
    (["--preference=simpo", *PAIRS[1:], "--reference=out"], "--reference is for preference=dpo or ipo or kto"),
    ([*PAIRS, "--block_size=4"], "of 8 pairs none fits in block_size=4"),
    ([*PAIRS, "--mixture={'a': 1}"], "preference and mixture exclude each other"),
    ([*PAIRS, "--batch_size=2", "--reference=nothing/there"], "--reference='nothing/there' is no folder"),
    (["--preference=grpo", *PAIRS[1:]], "preference='grpo' is none of: None, dpo, ipo, simpo, orpo, kto"),
    ([*PAIRS, "--preference_undesirable=2"], "preference_undesirable=2.0 is for preference=kto"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(home, tmp_path, keys, message):
    done = finetune(home, tmp_path / "run", *keys)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_reference_with_other_tokens_is_refused(home, tmp_path):
    letters = {"kind": "characters", "end_of_document": None, "characters": "ab"}
    with DatasetWriter(tmp_path / "data/letters", letters, 2, "a test") as writer:
        for split in ("train", "val"):
            writer.add(split, [0, 1] * 100, 200)
    done = training(tmp_path / "data", tmp_path / "letters", *LLAMA, "--block_size=16", "--dataset=letters")
    assert done.returncode == 0, done.stderr
    done = finetune(home, tmp_path / "run", *ONE_STEP, "--batch_size=2", "--reference", tmp_path / "letters")
    assert done.returncode == 2 and "has another tokenizer than the model" in done.stderr, done.stderr


def test_other_data_than_pairs_are_refused(home, data_dir, tmp_path):
    """Text, and conversations."""
    keys = ["--preference=simpo", *PAIRS[1:], "--batch_size=2", "--eval_batch_size=2"]
    done = training(data_dir, tmp_path / "run", *keys)
    assert done.returncode == 2 and "are no pairs: finetune.py makes some" in done.stderr, done.stderr
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps({"prompt": "a" * n, "answer": "b"}) + "\n" for n in range(1, 9)))
    given = [home / "base", "--data", chats, f"--out_dir={tmp_path / 'chat'}", "--max_iters=1", *MACHINE]
    assert command(finetune_command.main, *given).returncode == 0
    done = training(
        tmp_path / "chat/data", tmp_path / "run", *keys, "--dataset=conversations", *LLAMA, "--block_size=64"
    )
    assert done.returncode == 2 and "are no pairs: finetune.py makes some" in done.stderr, done.stderr


def test_a_dry_run_asks_no_reference(home, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "finetuning.reference", None)  # what imports it fails
    done = finetune(home, tmp_path / "run", *ONE_STEP, "--batch_size=2", "--gradient_accumulation_steps=8", "--dry_run")
    assert done.returncode == 0 and "Packing:               an answer a window, pairs together" in done.stdout
    assert not (tmp_path / "run").exists()


def test_pairs_without_a_reference_are_refused_by_train(home, tmp_path):
    done = finetune(home, tmp_path / "run", "--preference=simpo", *PAIRS[1:], *LONGER.split(), "--max_iters=1")
    assert done.returncode == 0, done.stderr
    given = [*PAIRS, "--batch_size=2", "--eval_batch_size=2", "--dataset=conversations", "--max_iters=1", *MACHINE]
    given += [f"--data_dir={tmp_path / 'run/data'}", f"--init_from={home / 'base'}", f"--out_dir={tmp_path / 'again'}"]
    done = command(train_command.main, ROOT / "config/sft.py", *given)
    assert done.returncode == 2 and "compares with a reference" in done.stderr, done.stderr
