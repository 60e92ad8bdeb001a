"""Matrices in 8 and 4 bits: codes and products by arithmetic written apart, GPTQ against the plain procedure in NumPy,
models of every mixer and FFN, and what `checkpoint.py quantize` makes of a run."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from checkpoints import last_checkpoint
from commands import command
from conftest import LLAMA, ROOT, run_of_its_own, small_run, training
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import checkpoint as checkpoint_command
import evaluate
import sample
import train as train_command
from components.quantized.module import QuantizedMatrix, dequantized, flat, put, quantized
from components.quantized.spec import METHODS, Form, forms_of
from flops_parameter_counting.costs.model_cost import named_weights
from inference.quantization import DAMPING, gptq, hessians_of, quantize_model
from model_builder import build_model
from model_config import resolve_architecture

FORMS = {method: Form(method, 32 if method == "int4" else None) for method in METHODS}
FP8_STEP = 2.0**-4  # half of the spacing of float8_e4m3fn, whose mantissa has 3 bits, relative


def matrix(rows=32, columns=96, seed=0):
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return drawn * torch.logspace(-2, 1, rows)[:, None]


# ---------------------------------------------------------------------------------------------------------------------
# One matrix


@pytest.mark.parametrize("method", ["int8", "int8_dynamic"])
def test_8_bits_are_the_nearest_of_255_even_steps_of_each_row(method):
    W = matrix()
    found, exact = quantized(W, FORMS[method]), W.double().numpy()
    steps = np.abs(exact).max(1, keepdims=True) / 127
    assert np.array_equal(found.codes.numpy(), np.round(exact / steps))
    assert np.abs(found.dequantized().double().numpy() - exact).max(1) == pytest.approx(0, abs=steps.max() / 2 + 1e-6)
    np.testing.assert_allclose(found.dequantized().numpy(), np.round(exact / steps) * steps, rtol=1e-6)


def test_4_bits_lie_two_in_a_byte_and_are_the_nearest_of_16_steps_of_each_group():
    W = matrix()
    found = quantized(W, FORMS["int4"])
    assert found.codes.shape == (32, 48) and found.scales.shape == (32, 3) and found.scales.dtype == torch.bfloat16
    scales = np.repeat(found.scales.double().numpy(), 32, axis=1)
    expected = np.clip(np.round(W.double().numpy() / scales), -8, 7)
    low, high = found.codes.numpy() & 15, found.codes.numpy() >> 4
    whole = np.stack((low, high), -1).reshape(32, 96).astype(float) - 8
    assert np.array_equal(whole, expected)
    np.testing.assert_array_equal(found.dequantized().double().numpy(), (expected * scales).astype(np.float32))
    largest = W.abs().unflatten(1, (3, 32)).amax(2)  # with a scale of a 7th of it: no better than what was found
    plain = (W.unflatten(1, (3, 32)) / (largest / 7)[..., None]).round() * (largest / 7)[..., None]
    assert (found.dequantized() - W).norm() < (plain.flatten(1) - W).norm()


def test_float8_is_pytorchs_and_none_is_beyond_its_largest():
    W = matrix()
    found = quantized(W, FORMS["fp8"])
    steps = W.abs().amax(1, keepdim=True) / 448
    assert torch.equal(found.codes.float(), (W / steps).clamp(-448, 448).to(torch.float8_e4m3fn).float())
    error = (found.dequantized() - W).abs()
    assert torch.isfinite(found.dequantized()).all() and (error <= W.abs() * FP8_STEP + 448 / 2**15 * steps).all()


@pytest.mark.parametrize("method", METHODS)
def test_zeros_and_the_bytes_that_the_spec_states(method):
    assert torch.equal(quantized(torch.zeros(8, 64), FORMS[method]).dequantized(), torch.zeros(8, 64))
    for shape in ((8, 64), (3, 8, 64)):
        found = quantized(torch.ones(shape), FORMS[method])
        assert found.nbytes == FORMS[method].bytes_of(shape) and found.shape == shape


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("method", METHODS)
def test_a_product_is_that_of_the_matrix_whether_few_or_many(method, rows):
    """Of few rows on a CPU with inputs rounded to bfloat16; with int8_dynamic with inputs in 8 bits, by integers."""
    W, x, bias = matrix(), torch.randn(rows, 5, 96)[:, 0], torch.randn(32)
    weight = quantized(W, FORMS[method])
    layer = nn.Linear(96, 32)
    layer.weight, layer.bias.data = nn.Parameter(weight, requires_grad=False), bias
    exact = x.double() @ weight.dequantized().double().T
    with torch.no_grad():
        found = layer(x) - bias
    if method == "int8_dynamic":
        scales = x.double().abs().amax(1, keepdim=True) / 127
        integers = (x.double() / scales).round() @ weight.codes.double().T
        expected = integers * scales * weight.scales[:, 0].double()
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    else:
        tolerance = 1e-6 if rows > 16 or method == "fp8" else 2**-7
        assert ((found - exact).norm() / exact.norm()).item() < tolerance


@pytest.mark.parametrize("method", METHODS)
def test_elsewhere_than_on_a_cpu_every_product_is_of_the_matrix(method, monkeypatch):
    """A GPU's integer product takes more than 16 inputs, and multiples of 8. No device here has any: shapes alone."""
    for name in ("_int_mm", "_weight_int8pack_mm", "_weight_int4pack_mm_for_cpu"):
        monkeypatch.delattr(torch, name)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)  # which knows no such device
    weight = quantized(matrix(), FORMS[method]).to("meta")
    assert F.linear(torch.zeros(1, 96, device="meta"), weight).shape == (1, 32)


@pytest.mark.parametrize("method", METHODS)
def test_no_inputs_have_no_outputs(method):
    """As of an expert that no token meets."""
    assert F.linear(torch.zeros(0, 96), quantized(matrix(), FORMS[method])).shape == (0, 32)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_pass_through_a_frozen_matrix(method):
    weight, x = quantized(matrix(), FORMS[method]), torch.randn(7, 96, requires_grad=True)
    layer = nn.Linear(96, 32, bias=False)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    target = torch.randn(7, 32)
    layer(x).backward(target)
    torch.testing.assert_close(x.grad, target @ weight.dequantized())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_it_is_a_tensor_where_rows_are_looked_up_one_of_a_stack_is_taken_or_anything_else_is_done():
    table = quantized(matrix(), FORMS["int8"])
    index = torch.tensor([[3, 0], [3, 31]])
    assert torch.equal(F.embedding(index, table), table.dequantized()[index])
    stack = quantized(torch.stack([matrix(seed=1), matrix(seed=2)]), FORMS["int4"])
    assert isinstance(stack[1], QuantizedMatrix) and torch.equal(stack[1].dequantized(), stack.dequantized()[1])
    ones = torch.ones(96, 1)
    assert type(table + 1) is torch.Tensor and torch.equal(table @ ones, table.dequantized() @ ones)
    assert type(table.to(torch.bfloat16)) is torch.Tensor and table.to(torch.bfloat16).dtype == torch.bfloat16
    assert type(table.to("meta")) is QuantizedMatrix and table.to("meta").codes.device.type == "meta"


# ---------------------------------------------------------------------------------------------------------------------
# Fitted to inputs


def test_gptq_is_the_plain_procedure(monkeypatch):
    """Column by column: quantized, and the columns after it set to where, of all values, the error of the outputs is
    least, by solving for them; with the same scales."""
    rng = np.random.default_rng(0)
    W, x = rng.normal(size=(6, 64)), rng.normal(size=(400, 64)) @ rng.normal(size=(64, 64))
    hessian = torch.tensor(x.T @ x)
    found = gptq(torch.tensor(W, dtype=torch.float32), hessian, FORMS["int4"])
    H = x.T @ x + DAMPING * np.diag(x.T @ x).mean() * np.eye(64)
    scales = np.repeat(found.scales.double().numpy(), 32, axis=1)
    target, expected = W.astype(np.float32).astype(float), np.zeros_like(W)
    for row in range(6):
        for place in range(64):
            fixed, free = slice(0, place), slice(place, 64)
            lost = target[row, fixed] - expected[row, fixed]
            best = target[row, free] + np.linalg.solve(H[free, free], H[free, fixed] @ lost)
            scale = scales[row, place]
            expected[row, place] = np.clip(np.round(best[0] / scale), -8, 7) * scale
    np.testing.assert_allclose(found.dequantized().numpy(), expected, atol=1e-5)


def test_fitting_loses_less_of_the_outputs_and_nothing_where_inputs_are_alike():
    torch.manual_seed(0)
    W = torch.randn(32, 64)
    x = torch.randn(500, 64) @ torch.randn(64, 64)
    near, fitted = quantized(W, FORMS["int4"]).dequantized(), gptq(W, (x.T @ x).double(), FORMS["int4"]).dequantized()
    lost = [((x @ (one - W).T).norm() / (x @ W.T).norm()).item() for one in (near, fitted)]
    assert lost[1] < lost[0]
    of_independent = gptq(W, torch.eye(64, dtype=torch.float64), FORMS["int4"])
    torch.testing.assert_close(of_independent.dequantized(), near)


def test_inputs_are_those_behind_the_blocks_as_they_are():
    model = small("llama3")
    tokens = torch.randint(0, 61, (4, 16), generator=torch.Generator().manual_seed(0))
    name, seen = "blocks.1.mixer.q_proj.weight", []
    model.blocks[1].mixer_norm.register_forward_hook(lambda *given: seen.append(given[2].flatten(0, 1)))
    with torch.no_grad():
        found = hessians_of(model, 1, [name], [tokens[:2], tokens[2:]])
    x = torch.cat(seen).double()
    expected = x.T @ x
    rounding = torch.finfo(torch.float32).eps * len(x) * float(expected.abs().max())  # of products in float32
    torch.testing.assert_close(found[name], expected, rtol=0, atol=rounding)
    assert not model.blocks[1].mixer.q_proj._forward_pre_hooks


# ---------------------------------------------------------------------------------------------------------------------
# A model

MODELS = {
    "llama3": {"arch_preset": "llama3", "num_key_value_heads": 2},
    "gpt2": {"arch_preset": "gpt2"},
    "experts": {"arch_preset": "mixtral", "n_experts": 4, "expert_d_ff": 32, "num_key_value_heads": 2},
    "latent": {"arch_preset": "deepseek_dense", "kv_lora_rank": 32, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
               "v_head_dim": 8},
    "states": {"arch_preset": "hybrid", "layer_pattern": "AMSDKV", "n_layer": 6, "mamba_head_dim": 16,
               "linear_num_value_heads": 2, "linear_key_head_dim": 8},
}  # fmt: skip


def small(name):
    keys = {"n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": 16, "vocab_size": 61}
    model = build_model(resolve_architecture(keys | MODELS[name]), "cpu", seed=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)  # drawn small
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_every_mixer_and_ffn_computes_with_codes_in_place_of_matrices(name, method):
    """What is not a matrix is as it was; logits are those of a model of plain matrices with the same values; caches
    give what the whole text gives, and saved parts make the same model."""
    model, plain = small(name), small(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    every = [one for found in named_weights(model.config) for one in found.weights]
    lost = list(quantize_model(model, method))
    forms = forms_of(method, every)
    assert {loss.name: loss.form for loss in lost} == forms and len(forms) > len(model.blocks)
    for key, value in model.state_dict().items():
        assert isinstance(value, QuantizedMatrix) == (key in forms), key
        if key in forms:
            put(plain, key, value.dequantized())
            limit = {"int4": 0.2, "fp8": 0.04}.get(method, 0.02)
            assert (value.dequantized() - before[key]).norm() < limit * before[key].norm()
        else:
            assert torch.equal(value, before[key])
    tokens = torch.randint(0, 61, (2, 16), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        found, expected = model(tokens), plain(tokens)
        tolerance = 0.05 if method == "int8_dynamic" else 1e-5
        assert ((found - expected).norm() / expected.norm()).item() < tolerance
        caches = model.empty_caches(2, 16)
        one_by_one = torch.stack([model.next_token_logits(tokens[:, [n]], caches) for n in range(16)], 1)
    assert ((one_by_one - expected).norm() / expected.norm()).item() < (0.05 if method == "int8_dynamic" else 0.02)
    again = small(name)
    again.quantize(method)
    for key, value in flat(model.state_dict()).items():
        flat(again.state_dict())[key].copy_(value)
    with torch.inference_mode():
        assert torch.equal(again(tokens), found)


# ---------------------------------------------------------------------------------------------------------------------
# The command

OWN = """
import torch
from components.spec import Activation
from model_components import register, register_spec

@register_spec
class Spec(Activation):
    name = "sine"

@register("activation", "sine")
class Sine(torch.nn.Module):
    def __init__(self, config):
        super().__init__()

    def forward(self, x):
        return torch.sin(x)

activation = "sine"
"""


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    run = tmp_path_factory.mktemp("quantized") / "run"
    assert training(data_dir, run, *LLAMA, "--max_iters=30", "--n_embd=64").returncode == 0
    return run


def quantize(run, folder, *options):
    return command(checkpoint_command.main, "quantize", run, folder, *options)


@pytest.mark.parametrize(("method", "most"), [("int8", 0.001), ("int8_dynamic", 0.002), ("int4", 0.02), ("fp8", 0.01)])
def test_a_run_in_few_bits_is_sampled_evaluated_and_as_good_as_it_says(run, tmp_path, method, most):
    done = quantize(run, tmp_path / "few", f"--method={method}", *(["--windows=16"] if method == "int4" else []))
    assert done.returncode == 0, done.stderr
    assert ("fitted to 16 windows of the training data" in done.stdout) == (method == "int4")
    content = [path.name for path in (tmp_path / "few").rglob("*") if path.is_file()]
    assert sorted(content) == ["config.json", "config.py", "model.safetensors", "state.json"]
    before, after = map(float, re.search(r"bits per byte +([\d.]+) +([\d.]+)", done.stdout).groups())
    assert abs(after / before - 1) < most
    results = tmp_path / "results.json"
    evaluated = command(evaluate.main, tmp_path / "few", "--device=cpu", f"--save_results={results}")
    assert evaluated.returncode == 0, evaluated.stderr
    saved = json.loads(results.read_text())
    assert saved["figures"][0]["value"] == pytest.approx(after, abs=1e-4)
    kept = load_file(last_checkpoint(tmp_path / "few") / "model.safetensors")
    held = sum(tensor.nbytes for tensor in kept.values())
    for name, codes in kept.items():  # what products of one text one by one have made besides
        rows = len(codes)
        if name.endswith(".int4.codes") and rows % 16 == 0:
            held += codes.nbytes + 2 * kept[name.replace(".codes", ".scales")].nbytes
        elif name.endswith(".int8.codes") and rows % 16 == 0 and codes.shape[1] % 32 == 0 and "embedding" not in name:
            held += 2 * rows
    assert saved["speed"]["weight_bytes"] == held
    assert f", matrices in {method}" in evaluated.stderr
    done = command(sample.main, tmp_path / "few", "--max_new_tokens=8", "--device=cpu")
    assert done.returncode == 0, done.stderr


def test_what_cannot_be_put_in_few_bits_or_trained(run, data_dir, tmp_path):
    assert quantize(run, tmp_path / "few", "--method=int4", "--windows=0").returncode == 0
    for given, message in (
        ((tmp_path / "few", tmp_path / "again", "--method=int8"), "has its matrices in int4 already"),
        ((run, tmp_path / "few", "--method=int8"), "is there already: choose another folder"),
        ((tmp_path / "absent", tmp_path / "new", "--method=int8"), "absent"),
        ((run, tmp_path / "new", "--method=int3"), "invalid choice: 'int3'"),
        ((run, tmp_path / "new", "--method=int8", "--windows=9"), "--windows is what int4 is fitted to: drop it"),
        ((run, tmp_path / "new", "--method=int8", f"--text={tmp_path / 'no.txt'}"), "no.txt"),
    ):
        done = quantize(*given)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "new").exists() and not (tmp_path / "again").exists()
    done = training(data_dir, tmp_path / "on", *LLAMA, "--n_embd=64", f"--init_from={tmp_path / 'few'}")
    assert done.returncode == 2 and "--use_lora=True --quantize_base=int4" in done.stderr
    done = training(data_dir, tmp_path / "few", *LLAMA, "--n_embd=64", "--init_from=resume")
    assert done.returncode == 2 and "has matrices in int4, which do not train" in done.stderr
    for out, form in ((tmp_path / "hf", ["--format=hf"]), (tmp_path / "file.safetensors", [])):
        done = command(checkpoint_command.main, "export", tmp_path / "few", out, *form)
        assert done.returncode == 2 and "has matrices in few bits: export the run" in done.stderr, done.stderr


def test_where_a_run_cannot_be_made_is_said_at_once(run, tmp_path, monkeypatch):
    """Before anything is loaded, and nothing is left there."""
    monkeypatch.setattr("evaluation.subject.find_subject", None)
    (tmp_path / "file").touch()
    for folder, message in (
        (tmp_path / "file/few", "Not a directory"),
        (run / "checkpoints/step_99999999", "would be among the run's checkpoints"),
    ):
        done = quantize(run, folder, "--method=int8")
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and not (run / "checkpoints/step_99999999").exists()


def test_training_data_are_needed_where_something_is_fitted_to_them(tmp_path):
    run, text = run_of_its_own(tmp_path), tmp_path / "text.txt"
    text.write_text("loss model train token " * 20)
    shutil.rmtree(tmp_path / "data")
    for few, given, code in (("8", ["int8"], 0), ("near", ["int4", "--windows=0"], 0), ("4", ["int4"], 2)):
        done = quantize(run, tmp_path / few, "--method", *given, f"--text={text}")
        assert done.returncode == code and done.stderr.count("\n") == (code and 1), done.stderr
        assert (tmp_path / few).exists() == (code == 0)


def test_a_component_of_the_runs_own_goes_along(data_dir, tmp_path):
    own = tmp_path / "own.py"
    own.write_text(OWN)
    done = command(train_command.main, own, *small_run(data_dir, f"--out_dir={tmp_path / 'run'}", "--max_iters=2"))
    assert done.returncode == 0, done.stderr
    given = tmp_path / "run", tmp_path / "few", "--method=int8"
    done = quantize(*given)
    assert done.returncode == 2 and f"--config {tmp_path / 'run/config.py'}" in done.stderr
    done = quantize(*given, f"--config={tmp_path / 'run/config.py'}")
    assert done.returncode == 0, done.stderr
    done = command(sample.main, tmp_path / "few", "--max_new_tokens=8", f"--config={tmp_path / 'few/config.py'}")
    assert done.returncode == 0, done.stderr


def test_a_block_of_one_token(data_dir, tmp_path):
    assert training(data_dir, tmp_path / "run", *LLAMA, "--block_size=1", "--max_iters=1").returncode == 0
    done = quantize(tmp_path / "run", tmp_path / "few", "--method=int4", "--windows=2")
    assert done.returncode == 0, done.stderr
    done = command(evaluate.main, tmp_path / "few", "--device=cpu", "--speed", "--limit=1")
    assert done.returncode == 0, done.stderr


def test_of_matrices_of_zeros_nothing_is_lost():
    model = small("llama3")
    for parameter in model.parameters():
        parameter.data.zero_()
    losses = list(quantize_model(model, "int4", [torch.zeros(1, 16, dtype=torch.long)]))
    assert all((loss.of_matrix, loss.of_outputs or 0.0) == (0.0, 0.0) for loss in losses)
    assert all(torch.isfinite(codes.float()).all() for codes in flat(model.state_dict()).values())


def test_damage_is_seen(run, tmp_path):
    assert quantize(run, tmp_path / "few", "--method=int8").returncode == 0
    file = last_checkpoint(tmp_path / "few") / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    done = command(sample.main, tmp_path / "few", "--device=cpu")
    assert done.returncode == 2 and "damaged" in done.stderr


def test_parts_lie_as_the_file_says(run, tmp_path):
    assert quantize(run, tmp_path / "few", "--method=int4", "--windows=0").returncode == 0
    tensors = load_file(last_checkpoint(tmp_path / "few") / "model.safetensors")
    name = "blocks.0.mixer.q_proj.weight"
    whole = dequantized(tensors[f"{name}.int4.codes"], tensors[f"{name}.int4.scales"], Form("int4", 32))
    source = load_file(next(last_checkpoint(run).glob("*.safetensors")))
    assert (whole - source[name]).norm() < 0.2 * source[name].norm()
    assert "embedding.weight.int8.codes" in tensors and "final_norm.weight" in tensors


def test_the_pages_commands(data_dir, tmp_path, monkeypatch):
    """In their order, as they stand, but for the data and the length of their runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").symlink_to(ROOT / "config")
    page = (ROOT / "docs/using/quantization.md").read_text()
    commands = [line.split()[1:] for line in page.splitlines() if line.startswith("python ")]
    assert len(commands) == 5
    mains = {"checkpoint.py": checkpoint_command.main, "sample.py": sample.main, "evaluate.py": evaluate.main}
    short = "--dataset=tiny --block_size=64 --batch_size=1 --max_iters=2 --eval_iters=1 --eval_batch_size=1".split()
    short += [f"--data_dir={data_dir}", "--warmup_iters=1", "--device=cpu", "--dtype=float32"]
    for name, *given in (["train.py", "config/quickstart.py"], *commands):
        done = command(mains.get(name, train_command.main), *given, *(short if name == "train.py" else []))
        assert done.returncode == 0, f"{name} {given}\n{done.stdout}\n{done.stderr}"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapted-int4", "quickstart", "quickstart-int4", "quickstart-int8",
    ]  # fmt: skip
