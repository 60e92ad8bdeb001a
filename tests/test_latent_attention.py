"""Latent attention: its two ways through the compressed cache, what they cost, and its keys. That it computes what
DeepSeek-V2's and V3's does is in tests/test_hugging_face.py.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from common.errors import UserError
from components.mixers.latent_attention import module as room
from components.mixers.latent_attention.spec import flops_of_queries, score_factor
from flops_parameter_counting.costs.model_cost import model_cost
from flops_parameter_counting.costs.report import describe
from flops_parameter_counting.costs.setting import Model, Setting
from model_builder import build_model
from model_config import resolve_architecture

SIZES = {"kv_lora_rank": 12, "qk_nope_head_dim": 10, "qk_rope_head_dim": 8, "v_head_dim": 14}
SMALL = {"arch_preset": "deepseek_dense", "n_layer": 2, "n_head": 4, "n_embd": 32, "d_ff": 48, "block_size": 64}
SMALL |= {"vocab_size": 61, "rope_theta": 100.0, **SIZES}


def small(**keys):
    return resolve_architecture(SMALL | keys)


def felt(config, dtype=torch.float64):
    """The model with every parameter random, and as large as those of a trained one."""
    model = build_model(config, seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return model.to(dtype).eval()


def tokens(batch=2, length=40):
    return torch.randint(61, (batch, length), generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------------------------------------------------------------
# The two ways through the cache


@torch.no_grad()
@pytest.mark.parametrize("position", ["rope", "none", "alibi", "learned_absolute"])
@pytest.mark.parametrize("numbers", [1, 300, 3000, 2**24], ids="{} numbers at once".format)
@pytest.mark.parametrize("way", ["absorbed", "expanded"])
def test_each_way_gives_what_the_whole_text_gives(way, numbers, position, monkeypatch):
    """In blocks of one token, of some, and of all; from the start, and after others."""
    flops = {"absorbed": (0, 1), "expanded": (1, 0)}[way]
    monkeypatch.setattr(room, "flops_of_queries", lambda *_: flops)
    monkeypatch.setattr(room, "BLOCK_NUMBERS", numbers)
    model, text = felt(small(position_encoding=position)), tokens()
    caches = model.empty_caches(2, 40)
    found = torch.cat([model(piece, caches=caches) for piece in text.split([9, 1, 30], dim=1)], dim=1)
    torch.testing.assert_close(found, model(text), rtol=0, atol=1e-10)


def expanded_at_once(model, pieces, monkeypatch):
    """The most latent vectors of a text that were expanded together while it was read."""
    most, expanded = [0], room.LatentAttention.expanded

    def watched(self, latent, turned):
        most.append(latent.shape[1])
        return expanded(self, latent, turned)

    monkeypatch.setattr(room.LatentAttention, "expanded", watched)
    caches = model.empty_caches(1, sum(pieces))
    with torch.no_grad():
        for piece in tokens(1, sum(pieces)).split(pieces, dim=1):
            model.hidden(piece, caches)
    return max(most)


def test_a_long_prompt_never_expands_the_whole_cache(monkeypatch):
    """Latent vectors as wide as four heads: a prompt is cheaper expanded, a token absorbed."""
    model = felt(small(block_size=400, kv_lora_rank=64), torch.float32)
    monkeypatch.setattr(room, "BLOCK_NUMBERS", 4 * 400 * 25)  # scores of 25 tokens with 400 queries of 4 heads
    assert expanded_at_once(model, [400], monkeypatch) == 25
    assert 25 < expanded_at_once(model, [200, 200], monkeypatch) <= 50
    assert expanded_at_once(model, [1] * 30, monkeypatch) <= 1  # the first, of which expanding is cheaper


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(0, 60), st.integers(4, 40), st.integers(1, 20))
def test_the_cheaper_way_is_taken_and_its_flops_are_the_stated_ones(queries, before, latent, values):
    """Against the products that PyTorch counts, of one block, which leaves out nothing that lies in the future."""
    config = small(n_layer=1, block_size=128, kv_lora_rank=latent, v_head_dim=values)
    mixer = felt(config, torch.float32).blocks[0].mixer
    q, latents = torch.randn(1, 4, queries, 18), torch.randn(1, before + queries, latent + 8)
    counted = []
    for way in ((0, 1), (1, 0)):
        with pytest.MonkeyPatch.context() as patch, FlopCounterMode(display=False) as counter, torch.no_grad():
            patch.setattr(room, "flops_of_queries", lambda *_, way=way: way)
            mixer.continued(q, latents, None)
        counted.append(counter.get_total_flops())
    assert tuple(counted) == tuple(4 * flops for flops in flops_of_queries(config, queries, before + queries))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        mixer.continued(q, latents, None)
    assert counter.get_total_flops() == min(counted)


@pytest.mark.parametrize("rank", [None, 16])
@pytest.mark.parametrize("length", [1, 2, 3, 40])
def test_decoding_flops_are_those_of_the_next_token(length, rank):
    """The model's, as the planner says them: of the first token, too, which is cheaper expanded."""
    config = small(q_lora_rank=rank, kv_lora_rank=40, attention_backend="manual")
    model = felt(config, torch.float32)
    caches = model.empty_caches(1, length)
    with torch.no_grad():
        model.hidden(tokens(1, length)[:, 1:], caches) if length > 1 else None
        with FlopCounterMode(display=False) as counter:
            model.next_token_logits(tokens(1, 1), caches)
    said = describe(Model("test", "config file", config), Setting(sequence_length=length))
    assert said["decoding"]["flops_per_token"] == counter.get_total_flops()


@pytest.mark.parametrize("rank", [None, 16])
def test_training_flops_are_pytorchs(rank):
    config = small(q_lora_rank=rank, attention_backend="manual", attention_bias="all")
    model = build_model(config, seed=0)
    with FlopCounterMode(display=False) as counter:
        model(tokens(2, 64), tokens(2, 64)).total().backward()
    assert model_cost(config).training_flops() * 2 * 64 == counter.get_total_flops()


def test_the_cache_is_the_latent_vector_and_the_rotary_key():
    caches = build_model(small(n_head=2), seed=0).empty_caches(3, 40)
    assert caches.bytes == 4 * 2 * 3 * 40 * (12 + 8)  # float32, layers, texts, tokens; whatever the heads


@torch.no_grad()
def test_both_backends_are_one_function():
    model = felt(small())
    other = build_model(small(attention_backend="manual"), seed=0).double().eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(tokens()), model(tokens()), rtol=0, atol=1e-10)


def test_documents_of_a_sequence_are_kept_apart():
    model, text = felt(small(position_encoding="none")), tokens(1, 30)
    documents = torch.tensor([[0] * 12 + [1] * 18])
    with torch.no_grad():
        apart = model(text, documents=documents)
        torch.testing.assert_close(apart[:, :12], model(text[:, :12]), rtol=0, atol=1e-10)
        torch.testing.assert_close(apart[:, 12:], model(text[:, 12:]), rtol=0, atol=1e-10)


# ---------------------------------------------------------------------------------------------------------------------
# Keys


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"qk_rope_head_dim": 7}, "RoPE rotates pairs: qk_rope_head_dim=7 must be even, or take another"),
        ({"qk_rope_head_dim": 1}, "qk_rope_head_dim=1 must be even"),
        ({"partial_rotary_factor": 0.4}, "qk_rope_head_dim=8 times partial_rotary_factor=0.4 must be even"),
        ({"head_dim": 8}, "head_dim=8 is given, but no layer has attention"),
        ({"attn_logit_softcapping": 5.0}, "attn_logit_softcapping=5.0 is given, but no layer has attention"),
        ({"layer_pattern": "A"}, "kv_lora_rank=12 is given, but no layer has latent attention"),
        (
            {"rope_scaling": {"rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": 16,
                              "short_factor": [1.0] * 5, "long_factor": [1.0] * 4}},
            "short_factor must be 4 numbers, one for each pair",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(keys, message):
    with pytest.raises(UserError, match=message) as error:
        small(**keys)
    assert "\n" not in str(error.value)


def test_nothing_that_is_not_rotated_needs_pairs():
    assert small(qk_rope_head_dim=7, position_encoding="none").qk_rope_head_dim == 7


def test_the_name_says_the_ranks():
    assert small().name == "2L-2C-4H-32D-MLA12-RoPE-RMS-SwiGLU-PreNorm"
    assert "-MLA12-Q16-" in small(q_lora_rank=16).name


@pytest.mark.parametrize(("which", "biased"), [("none", ()), ("qkv", ("q_a_proj", "kv_a_proj")), (None, ())])
def test_biases_are_the_streams_projections(which, biased):
    """DeepSeek's attention_bias is `all`: tests/test_hugging_face.py."""
    mixer = build_model(small(attention_bias=which, q_lora_rank=6)).blocks[0].mixer
    assert {name for name, _ in mixer.named_parameters() if name.endswith("bias")} == {
        f"{name}.bias" for name in biased
    }


def test_yarn_makes_scores_larger_where_mscale_all_dim_says_so():
    scaling = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 16}
    assert score_factor(small(rope_scaling=scaling)) == 1.0
    assert score_factor(small(rope_scaling=scaling | {"mscale_all_dim": 0.707})) == pytest.approx(1.5896, abs=1e-3)
