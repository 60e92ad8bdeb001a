"""That the benchmarks time what they say, and what they say to a mistake: one line, before anything is timed."""

import dataclasses
import re
from unittest.mock import Mock

import pytest
import torch
from commands import command

from benchmarks import (
    decoding,
    delta,
    distributed,
    documents,
    evaluation,
    finetuning,
    hybrid_training,
    latent_decoding,
    mamba,
    packing,
    prepare,
    train_throughput,
)
from benchmarks.mamba import CONTESTANTS, inputs
from data.best_fit import PackedText

COUNT = "'0' is not a whole number of 1 or more"


@pytest.mark.parametrize(
    ("benchmark", "arguments", "message"),
    [
        (mamba, "--length 0", COUNT),
        (mamba, "--rounds 0", COUNT),
        (delta, "--rounds 0", COUNT),
        (delta, "--shapes 4x1024 4x", "'4x' is not sequences x tokens, as 4x1024"),
        (distributed, "--steps 0", COUNT),
        (train_throughput, "--steps 0", COUNT),
        (hybrid_training, "--lengths 2048 0", COUNT),
        (
            hybrid_training,
            "config/arch_llama.py --vocab_size=9",
            "the config is no hybrid with an FFN after every layer",
        ),
        (hybrid_training, "config/quickstart_hybrid.py --vocab_size=9 --n_laier=2", "n_laier"),
        (hybrid_training, "config/quickstart_hybrid.py --vocab_size=9 --batch_size=2", "--batch_size is given twice"),
        (hybrid_training, "config/quickstart_hybrid.py", "give --vocab_size: the benchmark reads no dataset"),
        (
            hybrid_training,
            "config/quickstart_hybrid.py --vocab_size=9 --use_fsdp=True",
            "the benchmark is of one device",
        ),
        (train_throughput, "--use_zero1=True", "the benchmark is of one device"),
        (hybrid_training, "config/hybrid_1.3b.py --device=cuda", "device='cuda' needs an NVIDIA GPU that PyTorch sees"),
        (decoding, "--contexts 0", COUNT),
        (decoding, "--n_layer 1", "--n_layer=1: the hybrid has both attention and Mamba-2, and takes 2 or more"),
        (decoding, "--n_embd 64", "--n_embd=64 must be a multiple of 128"),
        (decoding, "--patterns A X", "layer_pattern='X' must be made of the letters A attention"),
        (decoding, "--device nonsense", "device='nonsense' is none of: auto, cpu, cuda, cuda:N, mps"),
        (documents, "--rounds 0", COUNT),
        (packing, "--documents 5 0", COUNT),
        (prepare, "--rounds 0", COUNT),
        (evaluation, "--questions 0", COUNT),
        (evaluation, "--shots 11", "invalid choice: 11"),
        (evaluation, "--n_embd 100", "--n_embd=100 must be a multiple of 64"),
        (finetuning, "--rounds 0", COUNT),
        (finetuning, "--n_embd 100", "--n_embd=100 must be a multiple of 64"),
        (finetuning, "--block_size 64", "--block_size=64 is too small: take at least 256"),
        (prepare, "--tokenizer gpt3", "invalid choice: 'gpt3'"),
        (documents, "--block_sizes 300", "--block_sizes 300: --tokens must be a multiple, and --documents no more"),
        (latent_decoding, "--contexts 0", COUNT),
        (latent_decoding, "--attention fused", "invalid choice: 'fused'"),
        (latent_decoding, "--device nonsense", "device='nonsense' is none of: auto, cpu, cuda, cuda:N, mps"),
        (decoding, "--device cuda", "device='cuda' needs an NVIDIA GPU that PyTorch sees"),
    ],
)
def test_mistakes(benchmark, arguments, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = command(benchmark.main, *arguments.split())
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("contestant", CONTESTANTS, ids=lambda contestant: contestant.name)
def test_the_benchmark_steps_every_layer(contestant):
    """With the scan that its name says, where that is not the layer's own."""
    x, scan = inputs(1, 8), Mock(side_effect=contestant.scan)
    replaced = dataclasses.replace(contestant, scan=scan if contestant.scan else None)
    replaced.step(replaced.make(), x)
    assert x.grad is not None and x.grad.isfinite().all()
    assert scan.call_count == ("token by token" in contestant.name)


@pytest.mark.parametrize("contestant", delta.CONTESTANTS, ids=lambda contestant: contestant.name)
def test_the_benchmark_of_delta_rules_steps_every_contestant(contestant):
    pytest.importorskip("transformers")
    given = contestant.inputs(2, 70)
    contestant.step(contestant.make(), given)
    assert all(one.grad is not None and one.grad.isfinite().all() for one in given)


def test_delta_rules_beside_transformers():
    """Each with its time, its memory, and a ratio but for those that ratios are to."""
    pytest.importorskip("transformers")
    done = command(delta.main, "--shapes", "2x70", "--rounds", "2", "--threads", "1")
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()[1:]
    assert len(rows) == len(delta.CONTESTANTS)
    for row, contestant in zip(rows, delta.CONTESTANTS, strict=True):
        assert re.fullmatch(rf"  {contestant.name} +[\d,]+ ms +[\d,]+ MB.*", row)
        assert ("times" in row) == (contestant.beside is not None)


@pytest.mark.slow
def test_a_hybrid_beside_a_transformer_of_equal_parameters_on_a_cpu():
    keys = "config/quickstart_hybrid.py --vocab_size=9 --n_embd=96 --dtype=float32 --lengths 64 128 --tokens 128"
    done = command(hybrid_training.main, *keys.split(), "--steps", "1")
    assert done.returncode == 0, done.stderr
    found = [re.split(r" {2,}", line.strip()) for line in done.stdout.splitlines()[1:]]
    assert [line[:2] for line in found] == [
        [length, name] for length in ("64", "128") for name in ("transformer", "hybrid, chunked")
    ]
    transformer, hybrid = (int(line[2].split()[0].replace(",", "")) for line in found[:2])
    assert abs(transformer - hybrid) <= 4 * 3 * 64 * 96 / 2  # half of a step of the FFN's width in four layers
    assert all(re.search(r"[1-9]\d* tokens/s", " ".join(line)) for line in found)


def test_a_step_of_latent_attention_beside_transformers():
    """The same outputs, from caches of 512 and 64 numbers a token."""
    pytest.importorskip("transformers")
    sizes = "--n_embd 32 --n_head 2 --q_lora_rank 8 --kv_lora_rank 16 --contexts 3 90 --tokens 2 --rounds 2 --threads 1"
    done = command(latent_decoding.main, *sizes.split())
    assert done.returncode == 0, done.stderr
    rows = [re.split(r" {1,}", line.strip()) for line in done.stdout.splitlines()[-2:]]
    for row, context in zip(rows, (3, 90), strict=True):
        assert row[0] == str(context) and all(float(found) > 0 for found in (row[1], row[3], row[5]))
        assert float(row[-3]) == pytest.approx(4 * context * (16 + 64) / 1e6, abs=0.005)
        assert float(row[-1]) < 1e-5


def test_packing_is_timed_and_batches_are_read_beside_windows():
    done = command(packing.main, *"--documents 1000 2000 --block_sizes 64 --read_tokens 50000 --rounds 1".split())
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for line, count in zip(lines[1:3], (1000, 2000), strict=True):
        packed = PackedText(packing.lengths_of(count, 800), 64)
        assert line.split()[:4] == [f"{count:,}", "64", f"{packed.n_windows:,}", f"{packed.padding:.4%}"]
    assert lines[5].startswith("62 documents found in ")
    assert lines[-1].split()[0] == "64" and float(lines[-1].split()[-1]) > 0


def test_a_step_with_documents_beside_one_without():
    sizes = "--block_sizes 16 32 --tokens 32 --documents 4 --n_layer 2 --n_embd 96 --rounds 1 --threads 1"
    done = command(documents.main, *sizes.split())
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[3:]]
    wanted = [
        [preset, size, dtype]
        for dtype in ("float32", "bfloat16") for preset in documents.PRESETS for size in ("16", "32")
    ]  # fmt: skip
    assert [row[:3] for row in rows] == wanted and all(float(row[7]) > 0 for row in rows)


@pytest.mark.slow
def test_fine_tuning_beside_trl():
    """Each in a process of its own, which counts tokens of answers: the first one is compared with the others."""
    pytest.importorskip("trl")
    sizes = "--n_layer 1 --n_embd 64 --vocab_size 256 --block_size 256 --batch_size 2 --conversations 9"
    done = command(finetuning.main, *sizes.split(), "--steps", "1", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    _, *rows = done.stdout.splitlines()
    count = len(finetuning.CONTESTANTS)
    for row, name in zip(rows, finetuning.CONTESTANTS, strict=False):
        assert re.fullmatch(rf"{name} +[\d,]+ per processor second +[\d,]+ per second +peak +[\d,]+ MB", row)
    assert len(rows) == 2 * count - 1 and all(row.startswith("beside TRL, ") for row in rows[count:])
