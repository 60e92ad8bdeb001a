"""ONNX files of models: onnxruntime computes from them what the model does, at lengths and batches that no exporter
saw, whole and with a cache; and `checkpoint.py export --format onnx`."""

import contextlib
import importlib.util
import io
import json
import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from checkpoints import last_checkpoint
from commands import command
from conftest import BYTES, LLAMA, ROOT, training

import checkpoint as checkpoint_command
import interop.onnx
import sample as sample_command
import train as train_command
from common.errors import UserError
from components.mixers.mamba1.module import Mamba1
from data.tokenizers import tokenizer_from_meta
from inference.generation import generate
from inference.loading import configuration_of, load
from inference.sampling import Sampling
from interop.onnx import CACHED, EXAMPLE, WHOLE, write_onnx
from model_builder import build_model
from model_config import resolve_architecture

SIZES = {"n_layer": 2, "n_embd": 32, "block_size": 64, "vocab_size": 256, "n_head": 4}
GROUPED = {"arch_preset": "llama3", "num_key_value_heads": 2}
MAMBA2 = {"mamba_head_dim": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}
LATENT = {"kv_lora_rank": 10, "qk_nope_head_dim": 7, "qk_rope_head_dim": 6, "v_head_dim": 5}
EXPERTS = {"ffn_type": "experts", "n_experts": 5, "n_experts_per_token": 2, "expert_d_ff": 24}
MODELS = {
    "gpt2": {"arch_preset": "gpt2", "n_layer": 1},
    "window": {**GROUPED, "layer_pattern": "WA", "attention_window": 5},
}
MORE = {  # whose tracing takes longer
    "mamba2": {**GROUPED, "layer_pattern": "MA", **MAMBA2},
    "mamba2_of_groups": {**GROUPED, "layer_pattern": "MA", **MAMBA2, "mamba_n_groups": 2},
    "alibi": {"arch_preset": "gpt2", "position_encoding": "alibi"},
    "capped": {"arch_preset": "gemma2", "num_key_value_heads": 2, "head_dim": 8},
    "sinks": {**GROUPED, "attention_backend": "manual", "attention_sinks": True, "value_residual": True,
              "qk_norm": True, "attention_output_gate": "head"},
    "unplaced": {**GROUPED, "layer_pattern": "UA", "norm_position": "sandwich"},
    "latent": {"arch_preset": "llama3", "layer_pattern": "C", **LATENT},
    "mamba1": {**GROUPED, "layer_pattern": "SA", "mamba_d_state": 8},
    "gated_delta": {**GROUPED, "layer_pattern": "DA", "linear_num_value_heads": 4, "linear_num_key_heads": 2},
    "kimi_delta": {**GROUPED, "layer_pattern": "KA", "linear_num_value_heads": 2, "linear_key_head_dim": 6},
    "short_convolution": {**GROUPED, "layer_pattern": "VA"},
    "experts": {**GROUPED, **EXPERTS},
}  # fmt: skip
CONSTANT = {"arch_preset": "custom", "n_layer": 1, "n_head": None}  # without attention
LENGTHS = ((1, 1), (4, 1), (1, 7), (3, 8), (2, 9), (5, 33), (1, 64))


def model_of(keys):
    """Every parameter is random: norms, biases and gates as well."""
    given = {name: value for name, value in (SIZES | keys).items() if value is not None}
    model = build_model(resolve_architecture(given), seed=0).eval()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    return model


def session_of(file):
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def nothing_past(session, batch):
    sizes = {"batch": batch, "past": 0}
    shapes = {one.name: [sizes.get(axis, axis) for axis in one.shape] for one in session.get_inputs()[1:]}
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def in_pieces(session, tokens, sizes):
    """The logits of pieces of so many tokens, each with the cache that the one before left."""
    past, found = nothing_past(session, len(tokens)), []
    for piece in np.split(tokens, np.cumsum(sizes)[:-1], axis=1):
        logits, *present = session.run(None, {"input_ids": piece} | past)
        past = dict(zip(past, present, strict=True))
        found.append(logits)
    return np.concatenate(found, axis=1)


def greedy(session, start, count):
    """`count` tokens that follow, the text read once and then token by token."""
    past, piece, found = nothing_past(session, 1), start, []
    for _ in range(count):
        logits, *present = session.run(None, {"input_ids": np.array([piece])} | past)
        past, piece = dict(zip(past, present, strict=True)), [int(logits[0, -1].argmax())]
        found += piece
    return found


def generated(model, start, count):
    tokenizer = tokenizer_from_meta({**BYTES, "end_of_document": None})
    return list(generate(model, start, tokenizer, Sampling(0, 1, 1.0), count, torch.Generator()))


# ---------------------------------------------------------------------------------------------------------------------
# What onnxruntime computes


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Each model once, with the folder of its files."""
    made = {}

    def write(name):
        if name not in made:
            model, folder = model_of((MODELS | MORE)[name]), tmp_path_factory.mktemp(name)
            assert list(write_onnx(model, folder).files) == [WHOLE, CACHED]
            made[name] = model, folder
        return made[name]

    return write


EVERY = [*MODELS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]


@pytest.mark.parametrize("name", EVERY)
def test_logits_are_the_models_at_any_batch_and_length(name, written):
    """Also of prompts that are read in pieces, and of texts that go on token by token."""
    model, folder = written(name)
    whole, cached = session_of(folder / WHOLE), session_of(folder / CACHED)
    for batch, length in LENGTHS:
        assert (batch, length) != EXAMPLE
        tokens = torch.randint(256, (batch, length), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            expected = model(tokens).numpy()
        tokens = tokens.numpy()
        found = [whole.run(None, {"input_ids": tokens})[0]]
        for sizes in ([length], [1] * length, [length - length // 2, *[1] * (length // 2)], [1, 5, length - 6]):
            if min(sizes) > 0:
                found.append(in_pieces(cached, tokens, sizes))
        for logits in found:
            np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_greedy_text_is_what_sampling_gives(name, written):
    model, folder = written(name)
    start = list(b"a text")
    assert greedy(session_of(folder / CACHED), start, 40) == generated(model, start, 40)


def test_a_text_beyond_the_block_goes_on_from_its_last_tokens(written):
    """As sampling has it; learned positions have no more."""
    model, folder = written("gpt2")
    session, text = session_of(folder / WHOLE), list(b"a text of tokens that is nearly as long as the block is: 64")
    expected, start = generated(model, text, 12), len(text)
    for _ in range(12):
        text.append(int(session.run(None, {"input_ids": np.array([text[-64:]])})[0][0, -1].argmax()))
    assert text[start:] == expected and len(text) > 64
    with pytest.raises(Exception, match=r"indices element out of data bounds"):
        session.run(None, {"input_ids": np.array([text[:65]])})


def test_the_graph_has_attention_and_norms_as_operators_and_names_no_file_of_this_machine(written):
    _, folder = written("window")
    for name in (WHOLE, CACHED):
        made = onnx.load(folder / name)
        onnx.checker.check_model(made)
        kinds = [node.op_type for node in made.graph.node]
        assert {one.domain: one.version for one in made.opset_import}[""] == 23
        assert (kinds.count("Attention"), kinds.count("RMSNormalization")) == (2, 5)
        assert "Softmax" not in kinds and "ReduceMean" not in kinds
        content = (folder / name).read_bytes()
        assert str(ROOT).encode() not in content and b"site-packages" not in content and b".py" not in content


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def test_layers_whose_graph_would_hold_for_one_length_are_refused_by_name(monkeypatch, tmp_path):
    monkeypatch.delattr(Mamba1, "hold_for_any_length")
    with pytest.raises(UserError, match=r"^--format onnx: no graph of any length can be made of layers of mamba1: "):
        write_onnx(model_of(CONSTANT | {"layer_pattern": "S", "position_encoding": "none"}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_positions_that_depend_on_the_length_of_the_text_are_refused(tmp_path):
    scaling = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16}
    with pytest.raises(UserError, match=r"rope_scaling of 'dynamic' turns a text's tokens by its length"):
        write_onnx(model_of(GROUPED | {"rope_scaling": scaling}), tmp_path)


def test_states_that_do_not_tell_a_position_leave_the_cache_out(tmp_path):
    """Whole texts are written, and a note says what is not."""
    written = write_onnx(model_of(CONSTANT | {"layer_pattern": "V", "position_encoding": "learned_absolute"}), tmp_path)
    assert list(written.files) == [WHOLE] == [file.name for file in tmp_path.iterdir()]
    why = "no cache of these layers says how many tokens are past, which learned_absolute wants to know"
    assert written.notes == [f"without {CACHED}: {why}"]


# ---------------------------------------------------------------------------------------------------------------------
# The command


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx") / "run"
    done = training(data_dir, folder, *LLAMA, "--n_layer=1")
    assert done.returncode == 0, done.stderr
    return folder


def export(run, folder, *options):
    return command(checkpoint_command.main, "export", run, folder, "--format=onnx", *options)


def test_the_command_writes_a_folder_and_prints_the_parity(run, tmp_path):
    done = export(run, tmp_path / "out", "--checkpoint=best")
    assert done.returncode == 0, done.stderr
    figures = re.findall(
        r"logits beside those of (\S+) in onnxruntime (\S+), on (\d+) random tokens in float32: "
        r"largest difference (\S+), of logits up to (\S+)\n", done.stdout
    )  # fmt: skip
    # 1, 2, 15 and 85 tokens, twice the block of 32, and one
    assert [found[:3] for found in figures] == [(name, onnxruntime.__version__, "199") for name in (WHOLE, CACHED)]
    for *_, difference, largest in figures:
        assert 0 < float(difference) < 1e-4 and 0.1 < float(largest) < 100
    files = {"README.md", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == {WHOLE, CACHED} | files
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["block_size"], config["vocab_size"], config["opset"]) == (32, 256, 23)
    for name, described in config["files"].items():
        session = session_of(tmp_path / "out" / name)
        for ends, found in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            assert described[ends] == {one.name: one.shape for one in found}
    again = export(run, tmp_path / "out")
    assert again.returncode == 2 and "is there already" in again.stderr


def test_an_export_that_computes_something_else_fails_and_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(interop.onnx, "TOLERANCE", 0.0)
    done = export(run, tmp_path / "out")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"error: --format onnx: {WHOLE} is another function than the model: logits beside" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["onnxscript", "onnxruntime"])
def test_without_a_package(missing, run, tmp_path, monkeypatch):
    """No file can be written, or none is compared."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: real(name, *more) if name != missing else None)
    done = export(run, tmp_path / "out")
    if missing == "onnxscript":
        assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
        assert done.stderr == "error: --format onnx needs onnxscript: pip install -e '.[onnx]'\n"
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith("logits are not compared: onnxruntime is not installed\n")


def test_what_a_file_has_no_form_for(run, tmp_path):
    few = command(checkpoint_command.main, "quantize", run, tmp_path / "few", "--method=int8")
    assert few.returncode == 0, few.stderr
    for given, options, why in (
        (tmp_path / "few", [], "has matrices in few bits: export the run that it was made of"),
        (run, ["--max_shard_size=1GB"], "--max_shard_size is for --format hf"),
        (run, ["--weights_only"], "--weights_only is for a file"),
        (run, ["--checkpoint=77"], "77"),
    ):
        done = export(given, tmp_path / "out", *options)
        assert done.returncode == 2 and why in done.stderr and done.stderr.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["few"]


@pytest.mark.slow
def test_adapters_are_merged(run, data_dir, tmp_path):
    adapted = ["--use_lora=True", "--lora_r=4", "--lora_alpha=8", f"--init_from={run}"]
    done = training(data_dir, tmp_path / "adapted", *LLAMA, "--n_layer=1", *adapted)
    assert done.returncode == 0, done.stderr
    assert export(tmp_path / "adapted", tmp_path / "out").returncode == 0
    tokens = torch.arange(20)[None]
    logits = session_of(tmp_path / "out" / WHOLE).run(None, {"input_ids": tokens.numpy()})[0]
    for folder, is_same in ((tmp_path / "adapted", True), (run, False)):
        checkpoint = last_checkpoint(folder)
        model = load(checkpoint, configuration_of(checkpoint), torch.device("cpu"))
        with torch.no_grad():
            assert (np.abs(model(tokens).numpy() - logits).max() < 1e-5) == is_same


PAGE = ROOT / "docs/using/export.md"


@pytest.mark.slow
def test_the_page_is_run(data_dir, tmp_path, monkeypatch):
    """Its commands, but for the data and the length of training; its program writes what sampling does."""
    (tmp_path / "config").symlink_to(ROOT / "config")
    monkeypatch.chdir(tmp_path)
    short = "--dataset=tiny --block_size=64 --batch_size=4 --max_iters=60 --eval_iters=1 --learning_rate=1e-2".split()
    short += [f"--data_dir={data_dir}", "--warmup_iters=1", "--device=cpu", "--dtype=float32"]
    assert command(train_command.main, "config/quickstart.py", *short).returncode == 0
    page = PAGE.read_text()
    (given,) = re.findall(r"^python checkpoint.py (.*)", page, re.MULTILINE)
    done = command(checkpoint_command.main, *given.split())
    assert done.returncode == 0, done.stderr
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(program, {})
    start = re.search(r'encode\("(.*)"\)', program)[1]
    sampled = command(sample_command.main, "out/quickstart", "--temperature=0", "--checkpoint=last",
                      "--max_new_tokens=40", f"--start={start}")  # fmt: skip
    assert sampled.returncode == 0 and sampled.stdout.endswith(printed.getvalue()), sampled
    assert len(printed.getvalue()) == len(start) + 40 + 1
