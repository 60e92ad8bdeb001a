"""mask_documents: documents in one window do not see each other, in any layer; what that costs; what cannot be."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_memory import DTYPES, autocast, counting_kept_bytes
from torch.nn import functional as F

from common.errors import UserError
from components import registry
from components.documents import HANDED, hidden, places
from components.mixers.attention.spec import QUERIES_AT_ONCE
from components.spec import MicroBatch, Mixer
from configurator import load
from data.dataset import open_dataset
from data.loader import WindowLoader
from data.writer import DatasetWriter
from flops_parameter_counting.costs.memory import block_bytes
from flops_parameter_counting.costs.model_cost import training_flops
from flops_parameter_counting.costs.setting import COMPUTE_BYTES
from model_builder import build_model
from model_config import resolve_architecture
from training.plan import plan_run

TINY = {"arch_preset": "custom", "n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 24, "vocab_size": 61}
MIXERS = {name: found.letter for name, found in registry.specs("mixer").items() if registry.has_module("mixer", name)}
OF_MIXERS = {
    "sliding_attention": {"attention_window": 5},
    "mamba2": {"mamba_head_dim": 16, "mamba_d_state": 4, "mamba_chunk_size": 7},
    "gated_delta": {"linear_num_value_heads": 2, "linear_key_head_dim": 6, "linear_chunk_size": 8},
    "kimi_delta": {"linear_num_value_heads": 2, "linear_key_head_dim": 6, "linear_chunk_size": 8},
    "latent_attention": {"kv_lora_rank": 6, "qk_nope_head_dim": 5, "qk_rope_head_dim": 4, "v_head_dim": 3},
}
LENGTHS = ((7, 12, 5), (1, 2, 21))


def config_of(mixer: str, **keys):
    given = {"layer_pattern": MIXERS[mixer] + "A", **OF_MIXERS.get(mixer, {}), "position_encoding": "rope"} | keys
    return resolve_architecture(TINY | given)


def numbers_of(lengths) -> torch.Tensor:
    """(B, T), which document each token is of."""
    return torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in lengths])


def with_gradients(model, batches) -> list[torch.Tensor]:
    """The sum of the losses of all batches, and its gradients. A batch is tokens, targets and documents or None."""
    model.zero_grad()
    total = sum(
        F.cross_entropy(model(tokens, documents=documents).flatten(0, 1), targets.flatten(), reduction="sum")
        for tokens, targets, documents in batches
    )
    total.backward()
    return [total.detach(), *(p.grad.clone() for p in model.parameters())]


def one_by_one(tokens, targets, lengths):
    """Each document as a batch of its own."""
    for row, of_row in enumerate(lengths):
        ends = list(itertools.accumulate(of_row))
        for start, end in zip([0, *ends], ends, strict=False):
            yield tokens[row : row + 1, start:end], targets[row : row + 1, start:end], None


def assert_apart(config, lengths=LENGTHS) -> None:
    """Packed documents are what each is alone, values and gradients, and what one window of them would not be. Angles
    are float32, and those of a document that stands later are larger: only their differences are the same."""
    tolerance = 1e-5 if config.position_encoding == "rope" else 1e-11
    model = build_model(config, seed=0).double()
    tokens, targets = (torch.randint(61, (2, 24), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    packed = with_gradients(model, [(tokens, targets, numbers_of(lengths))])
    alone = with_gradients(model, list(one_by_one(tokens, targets, lengths)))
    for mine, theirs in zip(packed, alone, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
    if any(len(row) > 1 for row in lengths):
        as_one = with_gradients(model, [(tokens, targets, None)])
        assert abs(as_one[0] - alone[0]) > 1e-4


@pytest.mark.parametrize("position", ["none", "rope", "alibi", "learned_absolute"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_keeps_documents_apart(mixer, position):
    assert_apart(config_of(mixer, position_encoding=position))


@pytest.mark.parametrize(
    "keys",
    [
        {"attention_backend": "manual"},
        {"attention_backend": "manual", "attention_sinks": True, "position_encoding": "alibi", "value_residual": True},
        {"attention_backend": "manual", "attn_logit_softcapping": 2.0},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 24}},
        {"ffn_pattern": "E", "n_experts": 4, "n_experts_per_token": 2, "expert_d_ff": 8, "balance_loss": 0.0},
    ],
)
@pytest.mark.parametrize("mixer", ["attention", "sliding_attention"])
def test_attention_keeps_documents_apart_whatever_it_has_besides(mixer, keys):
    assert_apart(config_of(mixer, **keys))


@given(st.data())
@settings(max_examples=10)
def test_documents_of_any_lengths_in_a_hybrid(data):
    cuts = [sorted(data.draw(st.sets(st.integers(1, 23), max_size=6))) for _ in range(2)]
    lengths = [[end - start for start, end in zip([0, *row], [*row, 24], strict=True)] for row in cuts]
    assert_apart(config_of("attention", **OF_MIXERS["mamba2"], layer_pattern="MA", position_encoding="none"), lengths)


def test_places_and_what_is_hidden_by_hand():
    documents = torch.tensor([[0, 0, 1, 2, 2]])
    assert places(documents).tolist() == [[0, 1, 0, 0, 1]]
    assert (~hidden(documents)[0, 0]).int().tolist() == [
        [1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1],
    ]  # fmt: skip


def test_with_checkpointing_they_are_kept_apart_too():
    config = config_of("mamba2", layer_pattern="MA")
    tokens, targets = (torch.randint(61, (2, 24), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    found = [
        with_gradients(build_model(config, "cpu", 0, checkpointing), [(tokens, targets, numbers_of(LENGTHS))])
        for checkpointing in (False, True)
    ]
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again)


# ---------------------------------------------------------------------------------------------------------------------
# From the data on

END = 7


def dataset_of(folder, lengths, has_end: bool = True):
    """Documents of these lengths, each with an END as its last token, as both splits."""
    tokenizer = {"kind": "bytes", "end_of_document": END if has_end else None}
    draw = np.random.default_rng(0)
    with DatasetWriter(folder, tokenizer, 61, "made for a test") as writer:
        for split, length in itertools.product(("train", "val"), lengths):
            writer.add(split, [*draw.integers(8, 61, length - 1).tolist(), END], text_bytes=length)
    return open_dataset(folder)


def test_a_loader_tells_documents_by_their_ends(tmp_path):
    """Counted token by token. A window may begin within a document, which is then cut."""
    dataset = dataset_of(tmp_path, [5, 1, 9, 30, 2, 3, 17, 40])
    loader = WindowLoader(dataset, "train", 16, seed=3, tells_documents=True)
    batch = loader.batch(0, 5)
    for tokens, documents in zip(batch.tokens.tolist(), batch.documents.tolist(), strict=True):
        number, expected = 0, []
        for token in tokens:
            expected.append(number)
            number += token == END
        assert documents == expected
    assert WindowLoader(dataset, "train", 16, seed=3).batch(0, 5).documents is None


def pairs_of(dataset, block_size: int) -> tuple[float, float]:
    """(query, key) pairs per token of all windows in order, of one document, by hand; and those within 6 keys."""
    tokens = np.fromfile(dataset.splits["train"].shards[0].path, dataset.dtype)
    windows = dataset.splits["train"].n_windows(block_size)
    pairs = near = 0
    for row in tokens[: windows * block_size].reshape(windows, block_size):
        numbers = np.concatenate(([0], np.cumsum(row[:-1] == END)))
        for number in range(numbers[-1] + 1):
            length = int((numbers == number).sum())
            pairs += length * length
            near += length * min(length, 6)
    return pairs / (windows * block_size), near / (windows * block_size)


def test_flops_are_those_of_the_pairs_that_remain(tmp_path):
    """In both conventions; a window's pairs are those of each document's, and what has a state costs as ever."""
    dataset = dataset_of(tmp_path, [5, 1, 9, 30, 2, 3, 17, 40, 11])
    pairs, near = pairs_of(dataset, 24)
    keys = OF_MIXERS["mamba2"] | {"layer_pattern": "AWM", "n_layer": 3, "attention_window": 6}
    configuration = load([f"--{key}={value}" for key, value in (TINY | keys | {"mask_documents": True}).items()])
    plan, before = plan_run(configuration, dataset), training_flops(configuration.model)
    scores = 3 * 2 * 2 * 32 * (pairs + near)  # forward and backward, scores and values, a multiply-add is 2
    assert plan.flops_by_part["attention_scores"] == pytest.approx(scores, rel=1e-3)
    assert plan.flops_per_token["full"] == sum(plan.flops_by_part.values())
    others = set(plan.flops_by_part) - {"attention_scores"}
    assert {part: plan.flops_by_part[part] for part in others} == {part: before.by_part[part] for part in others}
    assert plan.cost.training_flops("causal") == plan.flops_per_token["causal"]
    of_full = 3 * 2 * 2 * 32 * pairs
    assert plan.flops_per_token["full"] - plan.flops_per_token["causal"] > of_full / 2


def test_frozen_layers_are_counted_with_documents_too(tmp_path):
    dataset = dataset_of(tmp_path, [5, 1, 9, 30, 2, 3, 17, 40, 11])
    arguments = [f"--{key}={value}" for key, value in (TINY | {"mask_documents": True}).items()]
    plain, frozen = (plan_run(load([*arguments, *more]), dataset) for more in ([], ["--frozen=embedding.*"]))
    assert frozen.flops_by_part["attention_scores"] == plain.flops_by_part["attention_scores"]


def kept_with_documents(config, dtype: str) -> int:
    """Of a block, besides its input, what positions give to all blocks, and what all are handed of the documents."""
    model = build_model(config, seed=0)
    x = 1 * torch.randn(2, 24, 32, requires_grad=True)
    block = model.blocks[0]
    shared = {name: make(24, x.device) for name, make in block.shared.items()}
    own = {block.takes_documents: HANDED[block.takes_documents](numbers_of(LENGTHS))}
    excluded = (x, *shared.get("rotation", ()), *own.values())
    with counting_kept_bytes(model, exclude=excluded) as kept, autocast(dtype):
        block(x, **shared, **own)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["sdpa", "manual"])
@pytest.mark.parametrize("position", ["rope", "alibi"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_kept_bytes_to_the_byte(mixer, position, backend, dtype):
    config = config_of(mixer, position_encoding=position, attention_backend=backend)
    batch = MicroBatch(config, 2, COMPUTE_BYTES[dtype], has_documents=True)
    estimate = block_bytes(batch, config.layers[0])
    assert kept_with_documents(config, dtype) == estimate - 4 * 2 * 24 * 32


# ---------------------------------------------------------------------------------------------------------------------
# A run

RUN = "--max_iters=4 --eval_interval=2 --eval_iters=2 --warmup_iters=1 --batch_size=2 --gradient_accumulation_steps=2"
RUN_KEYS = [*RUN.split(), "--compile=False", "--device=cpu", "--dtype=float32"]


def test_a_run_trains_on_documents_and_says_what_they_cost(train, tmp_path):
    dataset = dataset_of(tmp_path / "data" / "docs", [5, 1, 9, 30, 2, 3, 17, 40, 11] * 4)
    arguments = [f"--{key}={value}" for key, value in (TINY | {"layer_pattern": "MA"} | OF_MIXERS["mamba2"]).items()]
    arguments += [*RUN_KEYS, "--dataset=docs", f"--data_dir={tmp_path / 'data'}", f"--out_dir={tmp_path / 'run'}"]
    done = train(*arguments, "--mask_documents=True")
    assert done.returncode == 0, done.stderr
    start = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    lengths = dataset.document_lengths("train", 24)
    mean = sum(length * share for length, share in lengths.items())
    assert start["document_length"] == pytest.approx(mean, rel=1e-3)
    assert f"{mean:.1f}" in done.stdout
    whole = training_flops(load(arguments).model).by_convention["full"]
    assert start["flops_per_token"]["full"] < whole


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], "has no end of documents: take a dataset whose has one, or mask_documents=False"),
        (
            ["--position_encoding=rope", "--rope_scaling={'rope_type': 'dynamic', 'factor': 2.0, "
             "'original_max_position_embeddings': 12}"],
            "mask_documents=True: this rope_scaling turns tokens by the length of their text",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(train, tmp_path, keys, message):
    dataset_of(tmp_path / "data" / "docs", [5, 60], has_end=False)
    arguments = [f"--{key}={value}" for key, value in TINY.items()] + RUN_KEYS
    arguments += ["--dataset=docs", f"--data_dir={tmp_path / 'data'}", f"--out_dir={tmp_path / 'run'}"]
    for more in ([], ["--dry_run=True"]):
        done = train(*arguments, "--mask_documents=True", *keys, *more)
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_mixer_that_would_mix_documents_is_refused():
    with registry.kept():

        @registry.register_spec
        class Mixing(Mixer):
            name, label, letter, title, part = "mixing", "Mixing", "Ẍ", "mixing", "mixing"

        keys = TINY | {"layer_pattern": "AẌ", "mask_documents": True}
        configuration = load([f"--{key}={value}" for key, value in keys.items()])
        with pytest.raises(UserError, match="a layer of mixing does not keep documents apart"):
            plan_run(configuration, None)


# ---------------------------------------------------------------------------------------------------------------------
# Windows that are longer than the queries that a fused kernel with a mask takes at once

LONG = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 2 * QUERIES_AT_ONCE + 100}
MASKED = {
    "documents": ({}, ((300, 5, 700, 119), (1124,))),
    "a window": ({"layer_pattern": "W", "attention_window": 200}, None),
    "a long window": ({"layer_pattern": "W", "attention_window": 900}, None),
    "both": ({"layer_pattern": "W", "attention_window": 200}, ((300, 5, 700, 119), (1124,))),
    "distances": ({"position_encoding": "alibi"}, None),
    "distances in documents": ({"position_encoding": "alibi"}, ((300, 5, 700, 119), (1124,))),
    "latent": ({"layer_pattern": "C", **OF_MIXERS["latent_attention"]}, ((300, 5, 700, 119), (1124,))),
    "gates": ({"attention_output_gate": "element"}, ((300, 5, 700, 119), (1124,))),
    "one head": ({"n_head": 1, "position_encoding": "none"}, ((300, 5, 700, 119), (1124,))),
}


@pytest.mark.parametrize("kind", MASKED)
def test_long_masked_attention_is_the_formula(kind):
    keys, lengths = MASKED[kind]
    documents = None if lengths is None else numbers_of(lengths)
    x, found = torch.randn(2, LONG["block_size"], 16, generator=torch.Generator().manual_seed(0)).double(), []
    for backend in ("sdpa", "manual"):
        config = resolve_architecture(TINY | LONG | {"position_encoding": "rope", "attention_backend": backend} | keys)
        block, given = build_model(config, seed=0).double().blocks[0], x.clone().requires_grad_()
        shared = {name: make(config.block_size, x.device) for name, make in block.shared.items()}
        shared |= {} if documents is None else {"hidden": hidden(documents)}
        y = block.mixer(given, **shared)
        found.append([y, *torch.autograd.grad(y.square().sum(), [given, *block.mixer.parameters()])])
    for fused, formula in zip(*found, strict=True):
        torch.testing.assert_close(fused, formula, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", MASKED)
def test_kept_bytes_of_long_masked_attention_to_the_byte(kind, dtype, dropout):
    keys, lengths = MASKED[kind]
    config = resolve_architecture(TINY | LONG | {"position_encoding": "rope", "dropout": dropout} | keys)
    batch = MicroBatch(config, 2, COMPUTE_BYTES[dtype], has_documents=lengths is not None)
    model = build_model(config, seed=0)
    x = 1 * torch.randn(2, config.block_size, 16, requires_grad=True)
    shared = {name: make(config.block_size, x.device) for name, make in model.blocks[0].shared.items()}
    shared |= {} if lengths is None else {"hidden": hidden(numbers_of(lengths))}
    excluded = (x, *shared.get("rotation", ()), *[one for name, one in shared.items() if name == "hidden"])
    with counting_kept_bytes(model, exclude=excluded) as kept, autocast(dtype):
        model.blocks[0](x, **shared)
    estimate = block_bytes(batch, config.layers[0]) - 4 * 2 * config.block_size * 16
    assert sum(size for size, _ in kept.values()) == estimate
