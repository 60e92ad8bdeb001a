"""Adapters beside matrices in few bits (QLoRA): what they compute and keep, and runs that train them."""

import json
import shutil

import pytest
import torch
from checkpoints import last_checkpoint, same, tensors
from commands import command
from conftest import LLAMA, training
from test_adapter_costs import MEASURED, run_of
from test_adapters import EXPERTS, OF_LETTER, SIZES, tokens
from test_memory import DTYPES, allocation_peak, autocast, kept_by_model

import checkpoint as checkpoint_command
import evaluate
from components.lora.spec import Adapters
from components.quantized.module import QuantizedMatrix, put, quantized
from components.quantized.spec import METHODS, forms_of
from flops_parameter_counting.costs.memory import rank_memory
from flops_parameter_counting.costs.model_cost import named_weights
from model_builder import LanguageModel, build_model
from model_config import resolve_architecture
from runs.folder import read_state

LORA = ["--use_lora=True", "--lora_r=4", "--lora_alpha=8", "--learning_rate=1e-2", "--decay_lr=False"]
FREQUENT = ["--n_embd=64", "--eval_interval=2", "--max_iters=6", "--keep_best=False"]
WIDE = [*LLAMA, "--n_embd=64"]
INT4 = "--quantize_base=int4"


def both(method: str, adapters: Adapters, **keys) -> tuple[LanguageModel, LanguageModel]:
    """A model with codes, one of plain matrices with the same values, and the same adapters beside both."""
    found = []
    for has_codes in (True, False):
        model = build_model(resolve_architecture(SIZES | keys), seed=0)
        for name, form in forms_of(method, (one for own in named_weights(model.config) for one in own.weights)).items():
            matrix = quantized(model.get_parameter(name).detach(), form)
            put(model, name, matrix if has_codes else matrix.dequantized())
        model.adapt(adapters)
        generator = torch.Generator().manual_seed(1)
        for module, adapter in model.adapted.values():
            torch.manual_seed(0)
            adapter.reset_parameters()
            adapter.begin(module.weight)
            for parameter in adapter.parameters():
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".lora." in name)
        found.append(model)
    return found[0], found[1]


ARCHITECTURES = {
    "llama": {"arch_preset": "llama"},
    "gpt2": {"arch_preset": "gpt2"},
    "experts": {"arch_preset": "llama", **EXPERTS, "n_embd": 64},
    "latent": {"arch_preset": "llama", **OF_LETTER["C"], "layer_pattern": "CC"},
    "states": {"layer_pattern": "AMSDK", "n_layer": 5, **OF_LETTER["M"], **OF_LETTER["D"], "n_embd": 64},
}


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("method", ["int4", "fp8"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loss_and_gradients_are_those_beside_the_plain_matrices(name, method, dora):
    loss, gradients = [], []
    for model in both(method, Adapters(3, 6.0, use_dora=dora), **ARCHITECTURES[name]):
        ids = tokens(model)
        total = model(ids, ids).total()
        total.backward()
        loss.append(total.item())
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert loss[0] == pytest.approx(loss[1], rel=1e-6)
    for key, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][key], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("preset", ["llama", "gpt2"])
def test_what_is_kept_is_what_is_estimated(preset, method, dtype):
    """Weights, and activations at the end of the forward pass, to the byte; the whole step within the sum."""
    run = run_of(3, "LoRA", quantize_base=method)
    assert run.adapters is not None
    sizes = {"n_layer": 3, "n_embd": 128, "block_size": 64, "vocab_size": 500}
    model, _ = both(method, run.adapters, **{**MEASURED, **sizes}, arch_preset=preset)
    estimate = rank_memory(model.config, run, 1, dtype)
    assert estimate["weights"] == sum(parameter.nbytes for parameter in model.parameters())
    assert estimate["activations"] == kept_by_model(model, 3, dtype)
    ids = torch.randint(500, (3, 64))

    def step():
        with autocast(dtype):
            loss = model(ids, ids).total()
        loss.backward()
        return loss

    assert allocation_peak(step) <= sum(estimate.values()) - estimate["weights"] - estimate["optimizer"]


# ---------------------------------------------------------------------------------------------------------------------
# Runs


@pytest.fixture(scope="module")
def base(data_dir, tmp_path_factory):
    run = tmp_path_factory.mktemp("base") / "base"
    assert training(data_dir, run, *WIDE, "--max_iters=6").returncode == 0
    return run


def adapt(data_dir, base, run, *keys):
    return training(data_dir, run, f"--init_from={base}", *LORA, *FREQUENT, *keys)


@pytest.fixture(scope="module")
def adapted(data_dir, base, tmp_path_factory):
    run = tmp_path_factory.mktemp("adapted") / "run"
    done = adapt(data_dir, base, run, INT4)
    assert done.returncode == 0, done.stderr
    return run


def test_the_base_is_kept_in_codes_and_stays(base, adapted):
    kept = tensors(adapted / "checkpoints/step_00000000")
    codes = {name for name in kept if name.endswith(".int4.codes")}
    assert len(codes) == 2 * 7 and "embedding.weight.int8.codes" in kept
    assert not any("optimizer" in name for name in kept)
    assert all(".lora." in name for name in tensors(last_checkpoint(adapted)))
    assert read_state(last_checkpoint(adapted))["base"] == read_state(adapted / "checkpoints/step_00000000")["files"]
    whole = sum(value.nbytes for name, value in tensors(last_checkpoint(base)).items() if "optimizer" not in name)
    assert sum(value.nbytes for value in kept.values()) < 0.2 * whole


def test_a_run_that_was_stopped_goes_on_to_the_bit(data_dir, base, adapted, tmp_path):
    run = tmp_path / "run"
    assert adapt(data_dir, base, run, INT4, "--max_iters=4").returncode == 0
    done = training(data_dir, run, *WIDE, *LORA, *FREQUENT, INT4, "--init_from=auto")
    assert done.returncode == 0, done.stderr
    assert same(tensors(last_checkpoint(run)), tensors(last_checkpoint(adapted)))
    for other in ([], ["--quantize_base=int8"]):
        done = training(data_dir, run, *WIDE, *LORA, *FREQUENT, *other, "--init_from=auto", "--max_iters=8")
        assert done.returncode == 2 and "quantize_base was 'int4'" in done.stderr


def test_quantized_first_it_begins_with_those_very_codes(data_dir, base, tmp_path):
    done = command(checkpoint_command.main, "quantize", base, tmp_path / "few", "--method=int4", "--windows=8")
    assert done.returncode == 0, done.stderr
    assert adapt(data_dir, tmp_path / "few", tmp_path / "run", INT4).returncode == 0
    kept, there = (tensors(run / "checkpoints/step_00000000") for run in (tmp_path / "run", tmp_path / "few"))
    assert same(kept, there)
    done = adapt(data_dir, tmp_path / "few", tmp_path / "other", "--quantize_base=int8")
    assert done.returncode == 2 and "few has matrices in int4" in done.stderr and not (tmp_path / "other").exists()


def test_what_is_loaded_is_merged_into_plain_matrices(adapted, base):
    """Those of the base's codes, with what was learned; others stay in codes."""
    from inference.loading import configuration_of
    from inference.loading import load as load_model_of

    last = last_checkpoint(adapted)
    model = load_model_of(last, configuration_of(last), torch.device("cpu"))
    first = load_model_of(adapted / "checkpoints/step_00000000", configuration_of(last), torch.device("cpu"))
    of_adapters = tensors(last)
    for name, weight in model.state_dict().items():
        before = first.state_dict()[name]
        module = name.removesuffix(".weight")
        if (A := of_adapters.get(f"{module}.lora.A")) is None:
            assert isinstance(weight, QuantizedMatrix) == (module in ("embedding", "lm_head"))
        else:
            expected = before.dequantized() + 8 / 4 * of_adapters[f"{module}.lora.B"] @ A
            torch.testing.assert_close(weight, expected)
    assert command(evaluate.main, adapted, "--device=cpu").returncode == 0


def test_exports_have_plain_matrices(adapted, tmp_path):
    """Merged, the model says what the run says; PEFT has the adapters alone, and is told that their base is none."""
    done = command(checkpoint_command.main, "export", adapted, tmp_path / "hf", "--format=hf")
    assert done.returncode == 0, done.stderr
    text = tmp_path / "text.txt"
    text.write_text("loss model train token " * 40)
    values = []
    for subject in (adapted, tmp_path / "hf"):
        results = tmp_path / "results.json"
        asked = [f"--text={text}", "--device=cpu", "--batch_size=1", "--add_bos_token=False", "--limit=1"]
        assert command(evaluate.main, subject, *asked, f"--save_results={results}").returncode == 0
        values.append(json.loads(results.read_text())["figures"][0]["value"])
    assert values[1] == pytest.approx(values[0], rel=1e-5)
    done = command(checkpoint_command.main, "export", adapted, tmp_path / "peft", "--format=peft")
    assert done.returncode == 0 and "their base is in int4, which PEFT does not read" in done.stdout
    done = command(checkpoint_command.main, "quantize", adapted, tmp_path / "few", "--method=int8")
    assert done.returncode == 2 and "has its matrices in int4 already" in done.stderr
    done = command(checkpoint_command.main, "export", adapted, tmp_path / "base", "--format=hf", "--checkpoint=0")
    assert done.returncode == 2 and "has matrices in few bits" in done.stderr


def test_what_cannot_be_is_refused_in_one_line(data_dir, base, tmp_path):
    for keys, message in (
        ([INT4, "--use_lora=False"], "quantize_base='int4' is for adapters: add --use_lora=True"),
        ([INT4, "--use_fsdp=True"], "quantize_base and use_fsdp exclude each other"),
        ([INT4, "--compile=True"], "quantize_base and compile=True exclude each other"),
        (["--quantize_base=int3"], "quantize_base='int3'"),
    ):
        done = training(data_dir, tmp_path / "run", f"--init_from={base}", "--n_embd=64", *LORA[:1], *keys)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "run").exists()


def test_the_report_says_what_it_takes(data_dir, base, tmp_path):
    done = training(data_dir, tmp_path / "run", f"--init_from={base}", *LORA, *FREQUENT, INT4, "--dry_run=True")
    assert done.returncode == 0 and "quantize_base='int4'" in done.stdout and not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [[], ["--use_zero1=True"]], ids=["ddp", "zero1"])
def test_ranks_train_as_one_does(strategy, data_dir, base, train, tmp_path):
    keys = [f"--data_dir={data_dir}", f"--init_from={base}", *LORA, *FREQUENT, INT4]
    assert train(*keys, f"--out_dir={tmp_path / 'one'}").returncode == 0
    done = train(*keys, *strategy, f"--out_dir={tmp_path / 'two'}", ranks=2)
    assert done.returncode == 0, done.stderr
    one, two = (tensors(last_checkpoint(tmp_path / name)) for name in ("one", "two"))
    for name, value in one.items():
        if ".lora." in name and "optimizer" not in name:
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
    shutil.rmtree(tmp_path / "two")
