"""What adapters cost: FLOPs, parameters and memory, against PyTorch's own counts."""

import json

import pytest
import torch
from commands import command
from test_adapters import EXPERTS, KINDS, OF_LETTER, SIZES, adapted, tokens
from test_memory import DTYPES, allocation_peak, autocast, kept_by_model
from torch.utils.flop_counter import FlopCounterMode

from components.lora.spec import Adapters, is_of_adapter
from configurator import load
from flops_parameter_counting import detailed_cost_analysis
from flops_parameter_counting.costs.memory import rank_memory
from flops_parameter_counting.costs.model_cost import named_weights, training_flops
from model_builder import adapted_modules
from model_config import resolve_architecture
from runs.config import RunConfig

OF_ATTENTION = {"position_encoding": "rope", "normalization": "rmsnorm", "ffn_type": "swiglu"}
ARCHITECTURES = {
    "llama": OF_ATTENTION,
    "gpt2": {"bias": True, "position_encoding": "learned_absolute"},
    "latent": {**OF_ATTENTION, **OF_LETTER["C"], "layer_pattern": "CC"},
    "mamba": {"layer_pattern": "MSA", "n_layer": 3, **OF_LETTER["M"]},
    "delta": {"layer_pattern": "KDA", "n_layer": 3, **OF_LETTER["D"]},
    "experts": {**OF_ATTENTION, **EXPERTS, "experts_backend": "loop"},
}
TARGETS = ["", "o_proj", "q_proj,k_proj,v_proj", "down_proj", "ffn.*", "mixer.*", "blocks.1.*", "q_a_proj,kv_b_proj"]
TARGETS += ["f_a_proj,g_b_proj", "dt_proj", "selection_proj", "shared_down_proj", "z_proj,x_proj"]
OF_MATRICES = ("mm", "addmm")  # what PyTorch calls a product with a matrix of two dimensions


def patterns(targets: str) -> tuple[str, ...]:
    return tuple(filter(None, targets.split(",")))


def flop_cases() -> list[tuple[str, str]]:
    """Every architecture with the targets that it has."""
    found = []
    for name, keys in ARCHITECTURES.items():
        config = resolve_architecture(SIZES | keys)
        for targets in TARGETS:
            if all(adapted_modules(config, Adapters(1, 1, (one,))) for one in patterns(targets)):
                found.append((name, targets))
    return found


@pytest.mark.parametrize("kind", ["LoRA", "DoRA"])
@pytest.mark.parametrize(("name", "targets"), flop_cases())
def test_flops_are_pytorchs(name, targets, kind):
    """What is frozen once backward, where gradients pass, and what is below the first adapter not at all. DoRA's B A,
    once a micro-batch, is what docs/flops.md leaves out with the norms. Of layers with a state, whose recurrence is
    written elementwise here and counted as products, the products with matrices are compared."""
    adapters = Adapters(3, 3.0, patterns(targets), **KINDS[kind])
    model = adapted(adapters, **ARCHITECTURES[name])
    ids = tokens(model)
    with FlopCounterMode(display=False) as counter:
        model(ids, ids).total().backward()
    found = {
        str(operation).rpartition(".")[2]: flops for operation, flops in counter.get_flop_counts()["Global"].items()
    }
    counted = training_flops(model.config, lambda one: not is_of_adapter(one), adapters=adapters)
    expected = counted.by_convention["full"]
    if name in ("mamba", "delta"):
        found = {operation: flops for operation, flops in found.items() if operation in OF_MATRICES}
        states = ("scan", "convolution", "short_convolution", "delta_rule", "attention_scores")
        expected -= sum(counted.by_part[part] for part in states)
    lengths = sum(2 * adapter.A.numel() * adapter.B.shape[-2] for _, adapter in model.adapted.values())
    assert expected * ids.numel() == sum(found.values()) - lengths * adapters.use_dora


def test_scores_count_whole_where_one_of_their_factors_has_a_gradient():
    """As fused kernels compute them; in the first layer, with adapters of values alone, plain products take three of
    their four fewer backward."""
    adapters = Adapters(3, 3.0, ("v_proj",))
    model = adapted(adapters, **ARCHITECTURES["llama"])
    ids = tokens(model)
    with FlopCounterMode(display=False) as counter:
        model(ids, ids).total().backward()
    counted = training_flops(model.config, lambda one: not is_of_adapter(one), adapters=adapters)
    one_product = 2 * model.config.n_embd * model.config.block_size
    assert counted.by_convention["full"] - counter.get_total_flops() // ids.numel() == 3 * one_product


def test_parameters_are_those_of_the_model():
    """Names, shapes, and which are matrices to an optimizer."""
    for keys in ARCHITECTURES.values():
        adapters = Adapters(3, 3.0, use_dora=True)
        model = adapted(adapters, **keys)
        stated = {
            name: tuple(one.shape)
            for found in named_weights(model.config, adapters=adapters)
            for one in found.weights
            for name in one.names
        }
        assert stated == {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


# ---------------------------------------------------------------------------------------------------------------------
# Memory

OF_PRESETS = {
    "llama": {"arch_preset": "llama"},
    "gpt2": {"arch_preset": "gpt2"},
    "qwen3": {"arch_preset": "qwen3"},
    "mixtral": {"arch_preset": "mixtral", "n_experts": 4, "expert_d_ff": 32},
    "gpt2 with dropout": {"arch_preset": "gpt2", "dropout": 0.1},
}
MEASURED = {"n_layer": 3, "n_head": 4, "n_embd": 64, "block_size": 48, "vocab_size": 211, "attention_backend": "sdpa"}


def run_of(batch_size: int, kind: str, **keys) -> RunConfig:
    return RunConfig(batch_size=batch_size, use_lora=True, lora_r=8, **KINDS[kind], **keys)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["LoRA", "DoRA"])
@pytest.mark.parametrize("preset", OF_PRESETS)
def test_activations_to_the_byte(preset, kind, dtype):
    """Experts are computed one after another, whatever their backend."""
    run = run_of(3, kind)
    model = adapted(run.adapters, **MEASURED, **OF_PRESETS[preset])
    estimate = rank_memory(model.config, run, 1, dtype)["activations"]
    assert estimate == kept_by_model(model, 3, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["LoRA", "DoRA"])
def test_activations_of_states_and_with_dropout_of_adapters(kind, dtype):
    """Of vectors within mixers, which are frozen, what only their gradients need is still counted, at most 5 %; and
    beside what is dropped the inputs of matrices, which were kept for A."""
    mamba, llama = {"arch_preset": "mamba2", "layer_pattern": "MAM"}, {"arch_preset": "llama"}
    for keys, dropout, most in ((mamba, 0.0, 1.05), (llama, 0.1, 1.25)):
        run = run_of(3, kind, lora_dropout=dropout)
        model = adapted(run.adapters, **MEASURED, **keys)
        kept = kept_by_model(model, 3, dtype)
        assert kept <= rank_memory(model.config, run, 1, dtype)["activations"] <= most * kept


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_takes_what_is_estimated(dtype, checkpointing):
    """Everything but the weights, at the peak of a step, by the allocator's own record."""
    run = run_of(4, "LoRA", activation_checkpointing=checkpointing)
    sizes = {"n_layer": 4, "n_embd": 128, "block_size": 128, "vocab_size": 1000}
    model = adapted(run.adapters, **{**MEASURED, **sizes}, arch_preset="llama")
    model.activation_checkpointing = checkpointing
    ids = torch.randint(1000, (4, 128))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=False)

    def step():
        for _ in range(2):
            with autocast(dtype):
                loss = model(ids, ids).mean
            loss.backward()
        optimizer.step()

    estimate = rank_memory(model.config, run, 1, dtype)
    without_weights = sum(estimate.values()) - estimate["weights"]
    assert estimate["optimizer"] == 8 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    allocated = allocation_peak(step)
    assert 0.5 * without_weights < allocated < without_weights
    if not checkpointing:  # where a block computed again meets no logits
        assert allocated == pytest.approx(without_weights - estimate["optimizer"], rel=0.05)


def test_the_report_of_a_config_file_counts_them(tmp_path):
    keys = {**MEASURED, "arch_preset": "llama", "use_lora": True, "lora_r": 8}
    file = tmp_path / "adapted.py"
    file.write_text("".join(f"{name} = {value!r}\n" for name, value in keys.items()))
    given = ["--model_config", file, "--micro_batch=3", "--dtype=float32", f"--json={tmp_path}/it.json"]
    done = command(detailed_cost_analysis.main, *given)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "it.json").read_text())
    model = adapted(run_of(3, "LoRA").adapters, **MEASURED, arch_preset="llama")
    assert found["memory"]["by_part"]["activations"] == kept_by_model(model, 3, "float32")
    assert "trained are adapters alone: LoRA, r=8, times 1" in found["notes"]
    done = command(detailed_cost_analysis.main, *given, "--devices=2", "--tensor_parallel=2")
    assert done.returncode == 2 and "use_lora and tensor_parallel exclude each other" in done.stderr


def test_a_dry_run_says_what_is_trained_and_needs_no_base():
    keys = ["--arch_preset=llama", "--n_layer=2", "--n_embd=64", "--n_head=4", "--vocab_size=256", "--use_lora=True"]
    configuration = load([*keys, "--lora_r=8"])
    model = adapted(configuration.run.adapters, **configuration.model.as_dict())
    ours = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    found = rank_memory(configuration.model, configuration.run, 1, "float32")
    assert (found["gradients"], found["optimizer"]) == (4 * ours, 8 * ours)
    assert found["weights"] == 4 * sum(parameter.numel() for parameter in model.parameters())
