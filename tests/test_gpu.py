"""The same behaviour on a CUDA device: `pytest -m gpu`."""

import pytest
import torch
from test_training import records

from configurator import load
from flops_parameter_counting.memory import training_memory
from model_builder import build_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LEARN = ["--device=cuda", "--max_iters=100", "--eval_interval=50", "--log_interval=10"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_learns_in_every_precision(train, tmp_path, dtype, compiled):
    done = train(*LEARN, f"--dtype={dtype}", f"--compile={compiled}")
    assert done.returncode == 0, done.stderr
    (summary,) = records(tmp_path / "run", "summary")
    assert summary["best_val_loss"] < 2.3
    assert summary["memory"]["peak"] >= summary["memory"]["allocated"] > 0


def test_the_gpu_gives_the_losses_of_the_cpu(train, tmp_path):
    assert train("--out_dir=cpu").returncode == 0
    assert train("--out_dir=gpu", "--device=cuda", "--tf32=False").returncode == 0
    cpu, gpu = ([r["loss"] for r in records(tmp_path / name, "iter")] for name in ("cpu", "gpu"))
    assert gpu == pytest.approx(cpu, rel=1e-4)


def test_memory_of_a_step_stays_within_its_estimate():
    """The estimate is an upper bound from CPU kernels; a GPU's keep less, but not by half."""
    configuration = load("--arch_preset=llama3 --n_layer=6 --n_head=8 --n_embd=512 --vocab_size=50304".split())
    model = build_model(configuration.model, "cuda", seed=0)
    tokens = torch.randint(0, 50304, (8, 1024), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    with torch.autocast("cuda", torch.bfloat16):
        loss = model(tokens, tokens)
    loss.backward()
    parts = training_memory(configuration.model, 8, "bfloat16")
    estimate = sum(parts.values()) - parts["optimizer"]
    assert 0.5 * estimate < torch.cuda.max_memory_allocated() < 1.05 * estimate


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "strategy",
    [["--use_zero1=True"], ["--use_fsdp=True"], ["--use_fsdp=True", "--fsdp_cpu_offload=True"]],
    ids=" ".join,
)
def test_a_strategy_trains_as_one_gpu_does(train, tmp_path, strategy, dtype):
    """On all GPUs that there are, with NCCL; a checkpoint and its resume included."""
    gpus = torch.cuda.device_count()
    keys = ["--device=cuda", "--tf32=False", f"--dtype={dtype}", "--decay_lr=False", "--learning_rate=1e-3"]
    keys += [f"--gradient_accumulation_steps={2 * gpus}"]
    assert train(*keys, "--out_dir=plain").returncode == 0
    done = train(*keys, *strategy, "--max_iters=8", ranks=gpus)
    assert done.returncode == 0, done.stderr
    done = train(*keys, *strategy, "--init_from=resume", ranks=gpus)
    assert done.returncode == 0, done.stderr
    plain, other = ([r["loss"] for r in records(tmp_path / name, "iter")] for name in ("plain", "run"))
    assert other == pytest.approx(plain, rel=1e-4 if dtype == "float32" else 0.01)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_share_every_layer(train, tmp_path):
    keys = ["--device=cuda", "--tf32=False", "--vocab_size=256"]
    assert train(*keys, "--out_dir=plain").returncode == 0
    done = train(*keys, "--tensor_parallel=2", ranks=2)
    assert done.returncode == 0, done.stderr
    plain, other = ([r["loss"] for r in records(tmp_path / name, "iter")] for name in ("plain", "run"))
    assert other == pytest.approx(plain, rel=1e-4)
