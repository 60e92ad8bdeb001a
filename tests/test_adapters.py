"""Low-rank adapters: against PEFT's layers, in every mixer and FFN, and what they cost."""

import copy

import pytest
import torch

from components.lora.module import Adapter, adapter_of
from components.lora.spec import Adapters
from model_builder import LanguageModel, adapted_modules, build_model
from model_components import registered
from model_config import resolve_architecture

SIZES = {"arch_preset": "custom", "n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 24, "vocab_size": 61}
SIZES |= {"attention_backend": "manual"}
KINDS = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
}
OF_LETTER = {
    "W": {"attention_window": 7},
    "C": {"kv_lora_rank": 10, "qk_nope_head_dim": 7, "qk_rope_head_dim": 6, "v_head_dim": 5, "q_lora_rank": 9},
    "M": {"mamba_head_dim": 8, "mamba_d_state": 5, "mamba_chunk_size": 8},
    "S": {"mamba_d_state": 5},
    "D": {"linear_value_head_dim": 12, "linear_chunk_size": 8},
    "K": {"linear_value_head_dim": 12, "linear_chunk_size": 8},
}
EXPERTS = {"ffn_pattern": "EF", "n_experts": 4, "n_experts_per_token": 2, "n_shared_experts": 1, "expert_d_ff": 12}


def adapted(adapters: Adapters, trained: bool = True, **keys) -> LanguageModel:
    """A model with adapters, after some training of them if `trained`: none of their parameters is where it began."""
    model = build_model(resolve_architecture(SIZES | keys), seed=0)
    model.adapt(adapters)
    generator = torch.Generator().manual_seed(1)
    for module, adapter in model.adapted.values():
        adapter.reset_parameters()
        adapter.begin(module.weight)
        for parameter in adapter.parameters() if trained else ():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora." in name)
    return model


def tokens(model: LanguageModel) -> torch.Tensor:
    return torch.randint(model.config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(2))


# ---------------------------------------------------------------------------------------------------------------------
# PEFT


def with_peft(adapters: Adapters, ours: LanguageModel) -> LanguageModel:
    """The same model with PEFT's layers, which hold the same numbers."""
    from peft import LoraConfig, inject_adapter_in_model

    plain = build_model(ours.config, seed=0)
    config = LoraConfig(
        r=adapters.r, lora_alpha=adapters.alpha, target_modules=list(adapters.targets),
        use_rslora=adapters.use_rslora, use_dora=adapters.use_dora,
    )  # fmt: skip
    model = inject_adapter_in_model(config, plain)
    with torch.no_grad():
        for name, (_, adapter) in ours.adapted.items():
            layer = model.get_submodule(name)
            layer.lora_A["default"].weight.copy_(adapter.A)
            layer.lora_B["default"].weight.copy_(adapter.B)
            if adapters.use_dora:
                layer.lora_magnitude_vector["default"].weight.copy_(adapter.magnitude)
    return model


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_pefts_layers(kind, bias):
    adapters = Adapters(r=3, alpha=5.0, targets=("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"), **KINDS[kind])
    ours = adapted(adapters, ffn_type="swiglu", bias=bias)
    theirs = with_peft(adapters, ours)
    ids = tokens(ours)
    torch.testing.assert_close(ours(ids), theirs(ids), rtol=1e-6, atol=1e-6)
    for model in (ours, theirs):
        model(ids, ids).mean.backward()
    names = {"A": "lora_A.default.weight", "B": "lora_B.default.weight"}
    names |= {"magnitude": "lora_magnitude_vector.default.weight"}
    found = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        module, is_adapter, part = name.partition(".lora.")
        if is_adapter:
            torch.testing.assert_close(parameter.grad, found[f"{module}.{names[part]}"].grad, rtol=1e-5, atol=1e-7)
        else:
            assert parameter.grad is None


def test_they_begin_as_pefts():
    """A uniform in 1 / sqrt(columns), B zero (PEFT's default init_lora_weights=True)."""
    from peft import LoraConfig, inject_adapter_in_model

    ours = adapted(Adapters(r=64, alpha=64, targets=("q_proj",)), trained=False, n_embd=256)
    config = LoraConfig(r=64, target_modules=["q_proj"])
    theirs = inject_adapter_in_model(config, build_model(ours.config, seed=0)).blocks[0].mixer.q_proj.lora_A["default"]
    (_, adapter) = ours.adapted["blocks.0.mixer.q_proj"]
    for value in (adapter.A, theirs.weight):
        assert value.abs().max().item() == pytest.approx(1 / 16, rel=1e-2)
        assert value.std().item() == pytest.approx(1 / 16 / 3**0.5, rel=2e-2)
    assert not adapter.B.any()


# ---------------------------------------------------------------------------------------------------------------------
# Every mixer and FFN


def cases() -> list[tuple[str, dict]]:
    from components import registry

    letters = registry.by_letter("mixer")
    found = [(letter, {"layer_pattern": letter + "A", **OF_LETTER.get(letter, {})}) for letter in letters]
    found = [(letter, keys) for letter, keys in found if registry.has_module("mixer", letters[letter].name)]
    found += [(name, {"ffn_type": name}) for name in registered()["ffn_type"] if name != "experts"]
    return [*found, ("experts", EXPERTS), ("experts with biases", {**EXPERTS, "expert_bias": True, "bias": True})]


@pytest.mark.parametrize("kind", ["LoRA", "DoRA"])
@pytest.mark.parametrize(("name", "keys"), cases(), ids=[name for name, _ in cases()])
def test_every_mixer_and_ffn_starts_equal_trains_and_merges(name, keys, kind):
    adapters = Adapters(r=3, alpha=6.0, **KINDS[kind])
    base = build_model(resolve_architecture(SIZES | keys), seed=0)
    fresh = adapted(adapters, trained=False, **keys)
    ids = tokens(base)
    backend = {"experts_backend": "loop"} if "experts" in name else {}
    reference = base if not backend else build_model(base.config.replace(**backend), seed=0)
    assert torch.equal(fresh(ids), reference(ids))
    model = adapted(adapters, **keys)
    before = model(ids)
    model(ids, ids).total().backward()
    for parameter_name, parameter in model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (".lora." in parameter_name)
    unmoved = copy.deepcopy(model.state_dict())
    for name_of_one in model.adapted:  # none is passed over
        moved = adapter_of(model.get_submodule(name_of_one))
        moved.B.data *= 2
        assert not torch.equal(model(ids), before), name_of_one
        model.load_state_dict(unmoved)
    merged = build_model(base.config, seed=0)
    for name_of_one, (module, adapter) in model.adapted.items():
        merged.get_submodule(name_of_one).weight.data = adapter.merged(module.weight)
    torch.testing.assert_close(merged(ids), before, rtol=1e-4, atol=1e-5)
    caches = model.eval().empty_caches(2, 24)
    with torch.no_grad():
        steps = torch.cat(
            [model(ids[:, :10], caches=caches), *(model(ids[:, i : i + 1], caches=caches) for i in range(10, 24))], 1
        )
    torch.testing.assert_close(steps, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_merging_into_16_bits_loses_small_updates(dtype, unit):
    """Each weight is at most the rounding unit times itself from where it should be, so that of an update which is far
    smaller than that nothing is left. Figures of docs/using/adapters.md: of updates a thousandth, a hundredth and a
    tenth as large as the weights."""
    generator = torch.Generator().manual_seed(0)
    weight = (0.02 * torch.randn(512, 512, generator=generator)).to(dtype)
    lost = {}
    for size in (1e-5, 1e-3, 1e-2, 1e-1):
        adapter = Adapter(weight.shape, Adapters(16, 16.0))
        adapter.A.data, adapter.B.data = (torch.randn(one.shape, generator=generator) for one in (adapter.A, adapter.B))
        update = adapter.B @ adapter.A
        adapter.B.data *= size * weight.float().norm() / update.norm()
        exact = weight.float() + adapter.B @ adapter.A
        merged = adapter.merged(weight)
        assert merged.dtype == dtype
        assert bool(((merged.float() - exact).abs() <= unit * exact.abs() + 2**-25).all())  # float16's smallest, halved
        lost[size] = ((merged.float() - exact).norm() / (exact - weight.float()).norm()).item()
    assert lost[1e-5] > 0.97 if dtype == torch.bfloat16 else lost[1e-5] > 0.9
    found = [lost[size] for size in (1e-3, 1e-2, 1e-1)]
    assert found == pytest.approx([0.79, 0.166, 0.017] if dtype == torch.bfloat16 else [0.21, 0.021, 0.002], rel=0.06)


def test_what_has_one_by_default():
    """Every linear layer of mixers and FFNs, and every expert's; no embedding, head, norm, router or convolution."""
    config = resolve_architecture(SIZES | EXPERTS | OF_LETTER["M"] | {"layer_pattern": "AM", "ffn_type": "swiglu"})
    found = {name.partition(".")[2] for name in adapted_modules(config, Adapters(4, 4))}
    attention = {f"0.mixer.{one}_proj" for one in "qkvo"}
    mamba = {f"1.mixer.{one}_proj" for one in ("z", "x", "B", "C", "dt", "o")}
    experts = {f"0.ffn.{shared}{one}_proj" for shared in ("", "shared_") for one in ("gate", "up", "down")}
    assert found == attention | mamba | experts | {f"1.ffn.{one}_proj" for one in ("gate", "up", "down")}
