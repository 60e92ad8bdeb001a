"""Folders of Hugging Face models through checkpoint.py: what save_pretrained writes comes in, what transformers reads
goes out; what is refused leaves nothing behind."""

import contextlib
import copy
import json
import os
import pickle
import re
import resource
import shutil
import socket
import stat
from pathlib import Path

import pytest
import torch
from checkpoints import without_its_tokenizer
from commands import command
from conftest import ROOT, training
from safetensors.torch import load_file, save_file, save_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BambaConfig,
    GenerationConfig,
    GPT2Config,
    GPT2Model,
    GPTNeoXConfig,
    GraniteMoeHybridConfig,
    KimiLinearConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    NemotronHConfig,
    Qwen3NextConfig,
)

import checkpoint
from data.tokenizers import tokenizer_from_meta
from interop import parity
from interop.tokenizer_files import write_tokenizer

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}
TOKENS = {"bos_token_id": 5, "eos_token_id": [7, 8], "pad_token_id": 3}
SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "vocab_size": 101}
LLAMA = {**SIZES, "num_attention_heads": 4, "intermediate_size": 88, "max_position_embeddings": 64}
MAMBA2 = {"num_heads": 4, "head_dim": 16, "n_groups": 2, "state_size": 8, "chunk_size": 8}
EXPERTS = {
    "num_experts_per_tok": 2, "moe_intermediate_size": 12, "layer_types": ["full_attention", "linear_attention"],
    "rms_norm_eps": 0.1,  # the norm of a small output enlarges rounding with less
}  # fmt: skip
MODELS = {
    "gpt2": GPT2Config(n_layer=2, n_head=4, n_embd=32, n_positions=64, vocab_size=101, **TOKENS),
    "llama": LlamaConfig(**LLAMA, num_key_value_heads=2, **TOKENS),
    "gpt_neox": GPTNeoXConfig(**LLAMA, **TOKENS),  # whose head has another name in files
    "mamba": MambaConfig(**SIZES, **TOKENS),
    "mamba2": Mamba2Config(**SIZES, **MAMBA2, **TOKENS),
    "bamba": BambaConfig(
        **LLAMA, num_key_value_heads=2, attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=2,
        mamba_d_state=8, mamba_chunk_size=8, rope_parameters={"partial_rotary_factor": 1.0, "rope_theta": 500.0},
        **TOKENS,
    ),
    "granitemoehybrid": GraniteMoeHybridConfig(
        **LLAMA, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=88,
        layer_types=["mamba", "attention"], mamba_n_heads=4, mamba_n_groups=2, mamba_d_state=8, mamba_chunk_size=8,
        attention_multiplier=0.3, embedding_multiplier=3.0, position_embedding_type="nope", **TOKENS,
    ),
    "nemotron_h": NemotronHConfig(
        **{key: value for key, value in LLAMA.items() if key != "num_hidden_layers"}, num_key_value_heads=2, head_dim=6,
        layers_block_type=["mamba", "attention", "mlp"], mamba_num_heads=6, mamba_head_dim=16, n_groups=2,
        ssm_state_size=8, chunk_size=8, time_step_min=1e-30, **TOKENS,
    ),
    "qwen3_next": Qwen3NextConfig(
        **LLAMA, **EXPERTS, num_key_value_heads=2, head_dim=8, num_experts=4, shared_expert_intermediate_size=12,
        mlp_only_layers=[0],
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=6, linear_value_head_dim=10, **TOKENS,
    ),
    "kimi_linear": KimiLinearConfig(
        **LLAMA, **EXPERTS, num_key_value_heads=4, num_local_experts=4, linear_num_heads=3, linear_head_dim=6,
        kv_lora_rank=12, qk_nope_head_dim=10, qk_rope_head_dim=8, v_head_dim=14, **TOKENS,
    ),
}  # fmt: skip


def made(config, folder=None, **options):
    """Hugging Face's model with every parameter random, in the folder that save_pretrained writes."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    if folder is not None:
        model.save_pretrained(folder, **options)
    return model


def read(folder):
    model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(found.values()), found
    return model.eval()


@torch.no_grad()
def logits(model):
    return model(torch.arange(2 * 40).view(2, 40) % 101).logits


def call(*arguments):
    return command(checkpoint.main, *arguments)


def done(*arguments):
    ended = call(*arguments)
    assert ended.returncode == 0 and not ended.stderr, ended.stderr
    return ended.stdout


def error(*arguments):
    ended = call(*arguments)
    assert ended.returncode == 2 and ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    return line.removeprefix("error: ")


def there_and_back(folder, tmp_path, *options):
    """Imported as a run and exported again; returns what was printed."""
    said = done("import", folder, tmp_path / "run")
    return said + done("export", tmp_path / "run", tmp_path / "back", "--format", "hf", *options)


def content(file):
    return json.loads(file.read_text())


def left_in(folder):
    """Also what is hidden: nothing that was written aside may stay."""
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------------------------------------------------------
# There and back


@pytest.mark.parametrize("name", MODELS)
def test_what_save_pretrained_writes_comes_in_and_goes_out(name, tmp_path):
    """Weights, special tokens and settings of generation; the parity that is printed is that of the logits."""
    theirs = made(MODELS[name])
    theirs.generation_config = GenerationConfig(**TOKENS, temperature=0.5, do_sample=True)
    theirs.save_pretrained(tmp_path / "hf")
    said = there_and_back(tmp_path / "hf", tmp_path)
    assert torch.equal(logits(read(tmp_path / "back")), logits(theirs))

    differences = re.findall(
        r"on 128 random tokens in float32: largest difference (\S+), of logits up to (\S+)\n", said
    )
    tokens = torch.randint(101, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        largest = theirs(tokens).logits.abs().max().item()
    assert len(differences) == 2
    for difference, of in differences:
        assert float(difference) < 1e-4 and float(of) == pytest.approx(largest, rel=1e-2)

    before, after = content(tmp_path / "hf/config.json"), content(tmp_path / "back/config.json")
    assert {key: after[key] for key in TOKENS} == TOKENS == {key: before[key] for key in TOKENS}
    assert {key: before[key] for key in after if key not in ("n_inner", "num_key_value_heads")} == {
        key: value for key, value in after.items() if key not in ("n_inner", "num_key_value_heads")
    }
    if name in ("mamba2", "bamba"):
        assert after["time_step_limit"] == before["time_step_limit"] == [0.0, {"__float__": "Infinity"}]
    written = [content(tmp_path / folder / "generation_config.json") for folder in ("hf", "back")]
    assert written[0] == written[1] and written[1]["temperature"] == 0.5
    assert left_in(tmp_path) == ["back", "hf", "run"]


def test_the_steps_of_a_nemotron_h_are_compared_as_they_are(tmp_path):
    """Whatever time_step_min its file has, of which transformers makes a bound of a prompt's steps."""
    config = copy.deepcopy(MODELS["nemotron_h"])
    config.time_step_min = 1e-3
    theirs = made(config)
    with torch.no_grad():
        theirs.model.layers[0].mixer.dt_bias -= 7
    theirs.save_pretrained(tmp_path / "hf")
    said = there_and_back(tmp_path / "hf", tmp_path)
    found = [float(one) for one in re.findall(r"largest difference (\S+),", said)]
    assert len(found) == 2 and max(found) < 1e-4
    assert content(tmp_path / "hf/config.json")["time_step_min"] == 1e-3
    assert (logits(read(tmp_path / "back")) - logits(theirs)).abs().max() > 1e-3


def test_no_network_is_asked(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a connection")

    made(MODELS["gpt2"], tmp_path / "hf")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert there_and_back(tmp_path / "hf", tmp_path).count("largest difference") == 2


def test_shards_with_their_index_and_weights_in_16_bits(tmp_path):
    made(MODELS["llama"]).to(torch.bfloat16).save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    there_and_back(tmp_path / "hf", tmp_path, "--max_shard_size=20kb")
    assert torch.equal(logits(read(tmp_path / "back")), logits(read(tmp_path / "hf")))
    index = content(tmp_path / "back/model.safetensors.index.json")
    files = sorted((tmp_path / "back").glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)
    ]
    held = {name: file.name for file in files for name in load_file(file)}
    assert held == index["weight_map"] and len(files) > 2
    sizes = [sum(tensor.nbytes for tensor in load_file(file).values()) for file in files]
    assert max(sizes) <= 20_000 and sum(sizes) == index["metadata"]["total_size"]
    plain, umask = stat.S_IMODE((tmp_path / "back/config.json").stat().st_mode), os.umask(0)
    os.umask(umask)
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {plain} == {0o666 & ~umask}


def test_a_run_that_began_from_a_model_trains_on_and_keeps_its_tokens(data_dir, tmp_path):
    made(GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=16, vocab_size=256, **TOKENS), tmp_path / "hf")
    (tmp_path / "hf/tokenizer.json").write_text('{"kept": "as it is"}')
    said = done("import", tmp_path / "hf/config.json", tmp_path / "run")
    assert f"python train.py {tmp_path}/run/config.py --dataset=NAME --init_from=resume" in said
    keys = ["--max_iters=3", "--init_from=resume", "--dataset=tiny", f"--data_dir={data_dir}", "--device=cpu"]
    keys += ["--batch_size=2", "--gradient_accumulation_steps=1", "--eval_iters=1", "--compile=False"]
    import train as train_command

    ended = command(train_command.main, tmp_path / "run/config.py", *keys)
    assert ended.returncode == 0 and "resumed at step 0 from" in ended.stdout, ended.stderr
    done("export", tmp_path / "run", tmp_path / "back", "--format=hf", "--checkpoint=3")
    assert content(tmp_path / "back/config.json")["eos_token_id"] == TOKENS["eos_token_id"]
    assert (tmp_path / "back/tokenizer.json").read_text() == '{"kept": "as it is"}'
    assert "Trained here: 3 steps, 96 tokens of the dataset `tiny`" in (tmp_path / "back/README.md").read_text()


def test_a_configuration_without_weights_is_a_run_without_any(tmp_path, data_dir):
    MODELS["llama"].save_pretrained(tmp_path / "hf")
    said = done("import", tmp_path / "hf/config.json", tmp_path / "run")
    assert "without weights, since there are none beside it" in said
    assert left_in(tmp_path / "run") == ["config.json", "config.py"]
    assert content(tmp_path / "run/config.json")["num_key_value_heads"] == 2
    assert "has no weights: none of model.safetensors, " in error("import", tmp_path / "hf", tmp_path / "other")
    assert left_in(tmp_path) == ["hf", "run"]


# ---------------------------------------------------------------------------------------------------------------------
# What folders of other people hold


def test_a_head_that_is_not_the_embedding_although_they_are_tied_is_kept(tmp_path):
    """As transformers loads it."""
    theirs = made(LlamaConfig(**LLAMA, tie_word_embeddings=True), tmp_path / "hf")
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    state["lm_head.weight"] += torch.randn(state["lm_head.weight"].shape)
    save_file(state, tmp_path / "hf/model.safetensors", {"format": "pt"})
    expected = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval())
    assert (expected - logits(theirs)).abs().max() > 1
    said = there_and_back(tmp_path / "hf", tmp_path)
    assert "note: lm_head.weight is not the embedding, although the file ties them: they are kept apart" in said
    torch.testing.assert_close(logits(read(tmp_path / "back")), expected, **TOLERANCE)
    assert content(tmp_path / "back/config.json")["tie_word_embeddings"] is False


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_tied_model_that_save_model_wrote(name, tmp_path):
    """Its one matrix stands under the head's name."""
    config = AutoConfig.for_model(**{**MODELS[name].to_dict(), "tie_word_embeddings": True})
    theirs = made(config, tmp_path / "hf")
    save_model(theirs, str(tmp_path / "hf/model.safetensors"), {"format": "pt"})
    held = load_file(tmp_path / "hf/model.safetensors")
    assert "lm_head.weight" in held and not any("embed_tokens" in name or "wte" in name for name in held)
    there_and_back(tmp_path / "hf", tmp_path)
    assert torch.equal(logits(read(tmp_path / "back")), logits(theirs))


def test_a_model_saved_without_its_tied_head(tmp_path):
    theirs = made(MODELS["gpt2"])
    bare = GPT2Model(MODELS["gpt2"])
    bare.load_state_dict(theirs.transformer.state_dict())
    bare.save_pretrained(tmp_path / "hf")
    there_and_back(tmp_path / "hf", tmp_path)
    assert torch.equal(logits(read(tmp_path / "back")), logits(theirs))


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2.0}, "rope_theta": 77.0},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
    ],
)
def test_rope_scaling_beside_the_rope_parameters_that_were_written(changes, tmp_path):
    made(MODELS["llama"], tmp_path / "hf")
    file = tmp_path / "hf/config.json"
    before = logits(read(tmp_path / "hf"))
    file.write_text(json.dumps(content(file) | changes))
    expected = logits(read(tmp_path / "hf"))
    assert (expected - before).abs().max() > 1e-2
    there_and_back(tmp_path / "hf", tmp_path)
    torch.testing.assert_close(logits(read(tmp_path / "back")), expected, **TOLERANCE)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_pickle_of_tensors_is_read_without_executing_anything(sharded, tmp_path):
    theirs = made(MODELS["gpt2"], tmp_path / "hf")
    (tmp_path / "hf/model.safetensors").unlink()
    state = theirs.state_dict()
    if sharded:
        places = {name: f"pytorch_model-{1 + number % 2}.bin" for number, name in enumerate(state)}
        for file in sorted(set(places.values())):
            torch.save({name: state[name] for name in places if places[name] == file}, tmp_path / "hf" / file)
        (tmp_path / "hf/pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    else:
        torch.save(state, tmp_path / "hf/pytorch_model.bin")
    there_and_back(tmp_path / "hf", tmp_path)
    assert torch.equal(logits(read(tmp_path / "back")), logits(theirs))


def test_a_folder_that_transformers_cannot_read_is_not_compared(tmp_path):
    """It wants an index to have metadata."""
    made(MODELS["gpt2"], tmp_path / "hf", max_shard_size="20KB")
    index = tmp_path / "hf/model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": content(index)["weight_map"]}))
    said = done("import", tmp_path / "hf", tmp_path / "run")
    assert f"logits are not compared: transformers cannot read {tmp_path / 'hf'}: 'metadata'\n" in said


@contextlib.contextmanager
def files_of_at_most(size):
    """As a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path):
    made(MODELS["llama"], tmp_path / "hf")
    with files_of_at_most(20_000):
        assert f"cannot write {tmp_path / 'run'}: " in error("import", tmp_path / "hf", tmp_path / "run")
    assert left_in(tmp_path) == ["hf"]
    done("import", tmp_path / "hf", tmp_path / "run")
    with files_of_at_most(20_000):
        assert "cannot write" in error("export", tmp_path / "run", tmp_path / "back", "--format=hf")
    assert left_in(tmp_path) == ["hf", "run"]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def pickled(what, old):
    def write(folder):
        (folder / "model.safetensors").unlink()
        if old:
            (folder / "pytorch_model.bin").write_bytes(pickle.dumps(what))
        else:
            torch.save(what, folder / "pytorch_model.bin")

    return write


def changed(name, values):
    def write(folder):
        (folder / name).write_text(
            json.dumps(values if name.endswith("index.json") else content(folder / name) | values)
        )
        if name.endswith("index.json"):
            (folder / "model.safetensors").rename(folder / "one.safetensors")

    return write


def without_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.1.ln_1.weight"]
    save_file(tensors, folder / "model.safetensors")


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (pickled({"a": Evil()}, old=False), "pytorch_model.bin holds more than tensors: it is not read, as a pickle"),
        (pickled({"a": Evil()}, old=True), "pytorch_model.bin holds more than tensors: it is not read, as a pickle"),
        (pickled({"a": 1}, old=False), "pytorch_model.bin is no mapping of names to tensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"version https://git-lfs"), "cannot read"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json: it is not the folder of a Hugging"),
        (lambda folder: (folder / "config.json").write_text("["), "config.json: line 1"),
        (changed("config.json", {"model_type": "bert"}), "config.json: model_type='bert' is none of: gpt2, llama"),
        (changed("config.json", {"n_layer": 3}), "hf: the weights lack blocks.2"),
        (changed("config.json", {"n_expert": 3}), "unknown key 'n_expert' of a gpt2 configuration"),
        (changed("config.json", {"quantization_config": {"bits": 4}}), "quantization_config="),
        (without_a_tensor, "hf: the weights lack blocks.1.mixer_norm.weight"),
        (changed(INDEX, {}), "has no weight_map"),
        (
            changed(INDEX, {"weight_map": {"a": "two.safetensors"}}),
            "names the file 'two.safetensors', which is not there",
        ),
        (changed(INDEX, {"weight_map": {"a": "../hf/one.safetensors"}}), "names the file '../hf/one.safetensors'"),
        (changed(INDEX, {"weight_map": {"a": "one.safetensors"}}), "one.safetensors has no tensor 'a', which"),
    ],
)
def test_a_folder_that_cannot_be_imported_is_refused_in_one_line(spoil, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made(MODELS["gpt2"], tmp_path / "hf")
    spoil(tmp_path / "hf")
    assert reason in error("import", "hf", "run")
    assert left_in(tmp_path) == ["hf"]


def test_another_function_is_refused_and_so_is_a_measurement_without_transformers(tmp_path, monkeypatch):
    """Nothing is written where transformers computes something else; where it is not installed, that is said."""
    made(MODELS["llama"], tmp_path / "hf")
    with monkeypatch.context() as patch:
        patch.setattr(parity, "TOLERANCE", -1.0)
        assert "is another function for transformers than here: logits beside" in error(
            "import", tmp_path / "hf", tmp_path / "run"
        )
        assert left_in(tmp_path) == ["hf"]
    with monkeypatch.context() as patch:
        patch.setattr(parity.importlib.util, "find_spec", lambda name: None)
        said = there_and_back(tmp_path / "hf", tmp_path)
        assert said.count("logits are not compared: transformers is not installed\n") == 2


# ---------------------------------------------------------------------------------------------------------------------
# Runs of this repository


@pytest.fixture(scope="module")
def runs(data_dir, tmp_path_factory):
    """A transformer, a hybrid, and an architecture that no class of theirs has, trained on the bytes of `tiny`."""
    folder = tmp_path_factory.mktemp("runs")
    llama = ["--arch_preset=llama3", "--d_ff=64"]
    hybrid = ["--arch_preset=hybrid", "--layer_pattern=MA", "--d_ff=64", "--mamba_head_dim=16"]
    for name, keys in (("llama", llama), ("hybrid", hybrid), ("legacy", [])):
        assert training(data_dir, folder / name, "--max_iters=4", *keys).returncode == 0
    return folder


@pytest.mark.parametrize("name", ["llama", "hybrid"])
def test_an_exported_run_is_a_model_with_its_tokenizer(name, runs, data_dir, tmp_path):
    out = tmp_path / "hf"
    said = done("export", runs / name, out, "--format=hf", "--checkpoint=last")
    assert "checkpoints/step_00000004 (last) -> " in said and "largest difference" in said
    assert left_in(tmp_path) == ["hf"]
    assert left_in(out) == [
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(out)
    text = "loss é\n\t漢 \u0100\x00 end"
    assert tokenizer(text)["input_ids"] == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    model = read(out)
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (0, 0, None)
    assert model.generation_config.eos_token_id == 0
    card = (out / "README.md").read_text()
    assert f"of {sum(p.numel() for p in model.parameters()):,} parameters" in card
    assert "Trained here: 4 steps, 1,024 tokens of the dataset `tiny`" in card
    assert "--init_from=" in error("import", runs / name, tmp_path / "copy")


def test_the_model_card_of_a_mixture_names_its_datasets(data_dir, tmp_path):
    shutil.copytree(data_dir / "tiny", tmp_path / "data/tiny")
    shutil.copytree(data_dir / "tiny", tmp_path / "data/other")
    given = ["--arch_preset=llama3", "--max_iters=1", "--mixture={'tiny': 0.5, 'other': 0.5}"]
    ended = training(tmp_path / "data", tmp_path / "run", *given)
    assert ended.returncode == 0, ended.stderr
    done("export", tmp_path / "run", tmp_path / "hf", "--format=hf")
    assert "256 tokens of the datasets `tiny`, `other`" in (tmp_path / "hf/README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["legacy", "hf"], "cannot be represented: GPT2LMHeadModel has"),
        (["absent", "hf"], "there is no run folder absent"),
        (["llama", "hybrid"], "hybrid is there already: choose another folder"),
        (["llama", "/proc/hf"], "cannot write /proc/hf"),
        (["llama", "h" * 303], "cannot write hhhh"),
        (["llama", "no/where"], "cannot write no/where: No such file"),
        (["llama", "llama/checkpoints/step_00000004/hf"], "would be among the run's checkpoints"),
        (["llama", "hf", "--weights_only"], "--weights_only is for a file"),
        (["llama", "hf", "--force"], "--force is for a file"),
        (["llama", "hf", "--max_shard_size=5GiB"], "'5GiB' is no size, such as 500MB or 5GB"),
        (["llama", "hf", "--max_shard_size=0"], "'0' is no size"),
        (["llama", "hf", "--format=gguf"], "invalid choice: 'gguf'"),
    ],
)
def test_mistakes_of_an_export_are_one_line_and_leave_nothing(runs, monkeypatch, arguments, reason):
    monkeypatch.chdir(runs)
    arguments = arguments if any(a.startswith("--format") for a in arguments) else [*arguments, "--format=hf"]
    assert reason in error("export", *arguments)
    assert left_in(runs) == ["hybrid", "legacy", "llama"]


def test_a_shard_size_says_nothing_of_a_file(runs, tmp_path):
    assert "--max_shard_size is for --format hf" in error(
        "export", runs / "llama", tmp_path / "f", "--max_shard_size=1MB"
    )


def test_a_run_has_its_tokenizer_and_one_of_an_earlier_version_has_its_datasets(runs, data_dir, tmp_path):
    data = shutil.copytree(data_dir, tmp_path / "data")
    assert training(data, tmp_path / "run", "--max_iters=1", "--arch_preset=llama3", "--d_ff=64").returncode == 0
    shutil.rmtree(data)
    said = done("export", tmp_path / "run", tmp_path / "own", "--format=hf")
    assert "without a tokenizer" not in said and (tmp_path / "own/tokenizer.json").exists()
    without_its_tokenizer(tmp_path / "run")
    said = done("export", tmp_path / "run", tmp_path / "hf", "--format=hf")
    assert "note: without a tokenizer: there is no dataset folder" in said
    assert read(tmp_path / "hf").config.eos_token_id is None


TEXT = "def f(x):\n    return 'é 漢字', x  # <|endoftext|> it's  done\r\n"


def test_characters_as_a_tokenizer_of_theirs(tmp_path):
    characters = "".join(sorted(set(TEXT)))
    ours = tokenizer_from_meta({"kind": "characters", "end_of_document": None, "characters": characters})
    write_tokenizer(ours, 16, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(TEXT)["input_ids"] == ours.encode(TEXT) and theirs.decode(ours.encode(TEXT)) == TEXT


def test_gpt2s_tokenizer_as_one_of_theirs(tmp_path):
    cache = os.environ.get("TIKTOKEN_CACHE_DIR") or ROOT.parent / "shared/tiktoken_cache"
    if not Path(cache).is_dir():
        pytest.skip("needs TIKTOKEN_CACHE_DIR, tiktoken's folder with GPT-2's tokens")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
        ours = tokenizer_from_meta({"kind": "gpt2", "end_of_document": 50256})
        write_tokenizer(ours, 1024, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = (ROOT / "README.md").read_text() + TEXT.replace("<|endoftext|>", "")
    assert theirs(text)["input_ids"] == ours.encode(text) and theirs.decode(ours.encode(text)) == text
    assert theirs.eos_token_id == 50256 and theirs("<|endoftext|>")["input_ids"] == [50256]
