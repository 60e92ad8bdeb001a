"""What the benchmarks say to a mistake: one line, before anything is timed."""

import pytest
import torch
from commands import command

from benchmarks import decoding, distributed, hybrid_training, mamba, train_throughput

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
