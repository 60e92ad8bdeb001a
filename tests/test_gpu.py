"""The same behaviour on a CUDA device: `pytest -m gpu`."""

import pytest
import torch
from test_decoding import BUILT, small_model
from test_generation import BLOCK, alone, prompts, together
from test_mamba import by_token, ssd_inputs, values_and_gradients, with_steps
from test_memory import counting_kept_bytes
from test_training import records

from components.mixers.mamba2.kernels import ssd_fla, why_not
from configurator import load
from flops_parameter_counting.costs.memory import training_memory
from model_builder import build_model
from model_components import component
from model_config import resolve_architecture

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


def test_muon_learns_and_its_time_is_measured_on_the_device(train, tmp_path):
    done = train(*LEARN, "--optimizer=muon", "--muon_adjust_lr=match_rms_adamw")
    assert done.returncode == 0, done.stderr
    (summary,) = records(tmp_path / "run", "summary")
    assert summary["best_val_loss"] < 2.3 and 0 < summary["optimizer_ms"] < summary["step_ms"]


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
        loss = model(tokens, tokens).mean
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


# Mamba-2's fused kernels


@pytest.fixture
def kernels():
    """Skips where they do not run."""
    if failure := why_not(resolve_architecture({"arch_preset": "mamba2"}), torch.device("cuda"), "bfloat16"):
        pytest.skip(failure)


needs_kernels = pytest.mark.usefixtures("kernels")
# Of the norm. In bfloat16 a rounding is off by 2^-9; queries, keys, values, scores and states are
# rounded one after the other. float32 is multiplied as TF32, which keeps 2^-11.
ROUNDING = {torch.bfloat16: 8 * 2**-9, torch.float32: 8 * 2**-11}


@needs_kernels
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("length", "groups"), [(1, 1), (64, 2), (200, 1), (1000, 4)])
def test_the_fused_scan_is_the_recurrence(dtype, length, groups):
    """Values and gradients, with a state to start from, against the recurrence in float64, of the same inputs."""
    inputs = ssd_inputs(length, groups=groups, shared_by=2, width=64, state=128, dtype=torch.float32)
    rounded = [t.detach().cuda().to(dtype if i in (0, 3, 4) else torch.float32) for i, t in enumerate(inputs)]
    single = [t.requires_grad_() for t in rounded]
    double = [t.detach().double().requires_grad_() for t in rounded]
    fused = values_and_gradients(with_steps(lambda x, decay, B, C, state: ssd_fla(x, decay, B, C, 64, state)), single)
    expected = values_and_gradients(by_token, double)
    for name, ours, theirs in zip(("y", "state", "x", "dt", "A", "B", "C", "start"), fused, expected, strict=True):
        error = ((ours.double() - theirs).norm() / theirs.norm()).item()
        assert error < ROUNDING[dtype], f"{name}: {error}"


@needs_kernels
@pytest.mark.parametrize("compiled", [False, True])
def test_a_hybrid_learns_alike_in_fused_kernels_and_in_chunks(train, tmp_path, compiled):
    keys = ["--arch_preset=hybrid", "--n_layer=4", "--mamba_head_dim=16", "--dtype=bfloat16", *LEARN]
    for backend in ("fla", "chunked"):
        done = train(*keys, f"--mamba_backend={backend}", f"--compile={compiled}", f"--out_dir={backend}")
        assert done.returncode == 0, done.stderr
        assert f"Scan: {'fused' if backend == 'fla' else 'chunked'}" in done.stdout
    fused, chunked = (records(tmp_path / name, "summary")[0]["best_val_loss"] for name in ("fla", "chunked"))
    assert fused == pytest.approx(chunked, rel=0.02) and fused < 2.3


@needs_kernels
def test_the_activations_of_fused_kernels_are_those_of_the_estimate():
    """The estimate is of CPU kernels; a GPU's RMSNorm is fused, and keeps no normalized copy."""
    keys = "--arch_preset=mamba2 --n_layer=3 --n_embd=256 --vocab_size=500 --block_size=192 --mamba_backend=fla"
    model = build_model(load(keys.split()).model, "cuda", seed=0)
    tokens = torch.randint(0, 500, (2, 192), device="cuda")
    with counting_kept_bytes(model) as kept, torch.autocast("cuda", torch.bfloat16):
        model.hidden(tokens)
    estimate = training_memory(model.config, 2, "bfloat16")["activations"]
    normalized = (model.config.n_layer + 1) * tokens.numel() * model.config.n_embd * 4
    assert sum(size for size, _ in kept.values()) == pytest.approx(estimate - normalized, rel=0.001)


@pytest.mark.parametrize("name", ["mamba1", "mamba2"])
def test_mixers_are_those_of_the_cpu(name):
    torch.manual_seed(0)
    mixer = component("mixer", name)(resolve_architecture({"arch_preset": name, "n_embd": 64}))
    x = torch.randn(2, 150, 64)
    y = mixer(x)
    torch.set_float32_matmul_precision("highest")
    torch.testing.assert_close(mixer.cuda()(x.cuda()).cpu(), y, rtol=0, atol=1e-4 * y.abs().max().item())


@pytest.mark.parametrize("pattern", BUILT)
def test_a_text_of_a_batch_is_what_it_is_alone(pattern):
    """Of any lengths, also beyond the block; the tokens are given, so that no tie is broken by rounding."""
    torch.set_float32_matmul_precision("highest")
    model = small_model(pattern, torch.float32, position_encoding="learned_absolute", block_size=BLOCK).cuda()
    starts = prompts(3, 9, 1, 9, BLOCK, BLOCK + 2)
    tokens, expected = alone(model, starts, BLOCK)
    _, found = together(model, starts, BLOCK, forced=tokens)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.stack(mine), torch.stack(theirs), rtol=0, atol=1e-4)
