"""That the benchmarks time what they say, and what they say to a mistake: one line, before anything is timed."""

import dataclasses
from unittest.mock import Mock

import pytest
import torch
from commands import command

from benchmarks import decoding, distributed, hybrid_training, mamba, train_throughput
from benchmarks.mamba import CONTESTANTS, inputs

COUNT = "'0' is not a whole number of 1 or more"


@pytest.mark.parametrize(
    ("benchmark", "arguments", "message"),
    [
        (mamba, "--length 0", COUNT),
        (mamba, "--rounds 0", COUNT),
        (distributed, "--steps 0", COUNT),
        (train_throughput, "--steps 0", COUNT),
        (hybrid_training, "--lengths 2048 0", COUNT),
        (hybrid_training, "", "the benchmark needs an NVIDIA GPU that PyTorch sees"),
        (decoding, "--contexts 0", COUNT),
        (decoding, "--n_layer 1", "--n_layer=1: the hybrid has both attention and Mamba-2, and takes 2 or more"),
        (decoding, "--n_embd 64", "--n_embd=64 must be a multiple of 128"),
        (decoding, "--device nonsense", "device='nonsense' is none of: auto, cpu, cuda, cuda:N, mps"),
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
