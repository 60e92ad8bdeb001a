"""Runs that begin with the weights of a Hugging Face model or of another run, and nanoGPT's seven config files."""

import json

import pytest
import torch
from checkpoints import last_checkpoint, same, weights
from commands import command
from conftest import training
from safetensors.torch import save_file
from test_resume import curve
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

import checkpoint
import train as train_command
from data.dataset import open_dataset
from interop.folders import read_model

GPT2_NAMES = ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]
QUICK = ["--device=cpu", "--dtype=float32", "--compile=False", "--max_iters=2", "--eval_iters=1000", "--batch_size=1"]
QUICK += ["--gradient_accumulation_steps=2", "--wandb_log=False", "--eval_batch_size=1"]


def made(config, folder):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Hugging Face's cache with a small model under each name of GPT-2's: the second as the hub calls it without its
    owner, and beside each an older download."""
    home = tmp_path_factory.mktemp("home")
    for layers, name in enumerate(GPT2_NAMES, 1):
        folder = home / "hub" / f"models--{'' if layers == 2 else 'openai-community--'}{name}"
        config = GPT2Config(n_layer=layers, n_head=2, n_embd=16, n_positions=32, vocab_size=256)
        made(config, folder / "snapshots/new")
        (folder / "snapshots/ancient").mkdir()
        (folder / "snapshots/ancient/config.json").write_text("{")
        (folder / "refs").mkdir()
        (folder / "refs/main").write_text("new")
    return home


@pytest.fixture(scope="module")
def datasets(data_dir, tmp_path_factory):
    """`tiny` under the names that the files use."""
    folder = tmp_path_factory.mktemp("datasets")
    for name in ("openwebtext", "shakespeare", "shakespeare_char", "tiny"):
        (folder / name).symlink_to(data_dir / "tiny")
    return folder


@pytest.fixture
def call(home, datasets, tmp_path, monkeypatch):
    """train.py with a config file's text, in an empty folder."""
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(text, *keys):
        (tmp_path / "config_file.py").write_text(text)
        given = [*QUICK, f"--data_dir={datasets}", *keys]
        return command(train_command.main, "config_file.py", *{key.partition("=")[0]: key for key in given}.values())

    return run


def of_cache(home, name):
    (folder,) = home.glob(f"hub/*{name}/snapshots/new")
    return folder


@torch.no_grad()
def loss_of_transformers(folder, dataset, length):
    """Over the whole validation split, in windows one after the other."""
    split = open_dataset(dataset).splits["val"]
    tokens = torch.frombuffer(bytearray(split.shards[0].path.read_bytes()), dtype=torch.uint16).long()
    windows = split.n_windows(length)
    x, y = (tokens[start : start + windows * length].view(windows, length) for start in (0, 1))
    logits = AutoModelForCausalLM.from_pretrained(folder).eval()(x).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()).item()


# ---------------------------------------------------------------------------------------------------------------------
# nanoGPT's files: assignments with their keys


def evaluation(name):
    lines = ["batch_size = 8", "eval_iters = 500", "eval_only = True", "wandb_log = False", f"init_from = '{name}'"]
    return "\n".join(lines) + "\n"


FINETUNE = """
import time

out_dir = 'out-shakespeare'
eval_interval = 5
eval_iters = 40
wandb_log = False
wandb_project = 'shakespeare'
wandb_run_name = 'ft-' + str(time.time())

dataset = 'shakespeare'
init_from = 'gpt2-xl'
always_save_checkpoint = False

batch_size = 1
gradient_accumulation_steps = 32
max_iters = 20

learning_rate = 3e-5
decay_lr = False
"""
TRAIN = """
wandb_log = True
wandb_project = 'owt'
wandb_run_name = 'gpt2-124M'
batch_size = 12
block_size = 1024
gradient_accumulation_steps = 5 * 8
max_iters = 600000
lr_decay_iters = 600000
eval_interval = 1000
eval_iters = 200
log_interval = 10
weight_decay = 1e-1
"""
CHARACTERS = """
out_dir = 'out-shakespeare-char'
eval_interval = 250
eval_iters = 200
log_interval = 10
always_save_checkpoint = False
wandb_log = False
wandb_project = 'shakespeare-char'
wandb_run_name = 'mini-gpt'
dataset = 'shakespeare_char'
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256
n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2
learning_rate = 1e-3
max_iters = 5000
lr_decay_iters = 5000
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 100
"""


@pytest.mark.parametrize("name", GPT2_NAMES)
def test_the_files_that_evaluate_gpt2(name, call, home, datasets, tmp_path):
    """The loss is that of the model which transformers loads; nothing of its weights is left in the run's folder, and
    it can be evaluated again."""
    for _ in range(2):
        done = call(evaluation(name))
        assert done.returncode == 0, done.stderr
    run = tmp_path / "out/config_file"
    expected = loss_of_transformers(of_cache(home, name), datasets / "openwebtext", 32)
    assert curve(run / "log.jsonl")["eval", 0] == pytest.approx(expected, abs=1e-5)
    assert not list(run.glob("checkpoints/*"))
    saved = json.loads((run / "config.json").read_text())
    assert (saved["n_layer"], saved["vocab_size"], saved["bias"]) == (GPT2_NAMES.index(name) + 1, 256, True)


def test_the_file_that_finetunes_gpt2(call, home, datasets, tmp_path):
    """From its weights on, dropout as the file says and not as the model was trained; the run goes on by its own
    config file."""
    done = call(FINETUNE)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "out-shakespeare"
    expected = loss_of_transformers(of_cache(home, "gpt2-xl"), datasets / "shakespeare", 32)
    assert curve(run / "log.jsonl")["eval", 0] == pytest.approx(expected, abs=1e-5)
    assert json.loads((run / "config.json").read_text())["dropout"] == 0.0
    again = command(train_command.main, run / "config.py", "--init_from=resume", "--max_iters=4")
    assert again.returncode == 0 and "resumed at step 2 from" in again.stdout, again.stderr
    assert "train.py out-shakespeare/config.py --init_from=auto continues it" in call(FINETUNE).stderr


def test_the_files_that_train_from_scratch(call, tmp_path):
    small = ["--n_layer=1", "--n_head=2", "--n_embd=8", "--block_size=16", "--warmup_iters=0"]
    for text in (TRAIN, CHARACTERS):
        done = call(text, *small, "--lr_decay_iters=2")
        assert done.returncode == 0 and "finished at step 2 of 2" in done.stdout, done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Other sources


def test_a_context_that_is_extended(call, datasets, tmp_path):
    """The first loss is that of the model which transformers loads with the other frequencies, over longer windows."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    made(LlamaConfig(**sizes, vocab_size=256, max_position_embeddings=32, num_key_value_heads=2), tmp_path / "short")
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}
    text = f"""
init_from = '{tmp_path / "short"}'
dataset = 'tiny'
position_encoding = 'rope'
block_size = 64
rope_scaling = {yarn}
rope_theta = 20000.0
eval_only = True
batch_size = 8
eval_iters = 500
"""
    done = call(text)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "short/config.json").read_text())
    config |= {"rope_parameters": {**yarn, "rope_theta": 20000.0}, "max_position_embeddings": 64}
    (tmp_path / "short/config.json").write_text(json.dumps(config))
    expected = loss_of_transformers(tmp_path / "short", datasets / "tiny", 64)
    assert curve(tmp_path / "out/config_file/log.jsonl")["eval", 0] == pytest.approx(expected, abs=1e-5)


def test_a_folder_by_its_path_and_the_context_that_is_asked_for(call, home, tmp_path):
    """Learned positions beyond it are left out, as nanoGPT crops them."""
    folder = of_cache(home, "gpt2-medium")
    done = call(f"init_from = {str(folder)!r}\nblock_size = 8\nalways_save_checkpoint = False\n", "--max_iters=0")
    assert done.returncode == 0, done.stderr
    _, expected, _ = read_model(folder)
    expected["position.embedding.weight"] = expected["position.embedding.weight"][:8]
    found = weights(last_checkpoint(tmp_path / "out/config_file"))
    assert same(found, expected)


def test_another_family_and_another_run(call, data_dir, tmp_path):
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24}
    made(LlamaConfig(**sizes, vocab_size=256, max_position_embeddings=32, eos_token_id=[7, 8]), tmp_path / "llama")
    assert call("init_from = 'llama'\n", "--out_dir=first", "--dataset=tiny").returncode == 0
    done = call("init_from = 'first'\n", "--out_dir=second", "--dataset=tiny", "--max_iters=0")
    assert done.returncode == 0, done.stderr
    assert same(*(weights(last_checkpoint(tmp_path / run)) for run in ("first", "second")))
    assert command(checkpoint.main, "export", "second", "hf", "--format=hf").returncode == 0
    assert json.loads((tmp_path / "hf/config.json").read_text())["eos_token_id"] == [7, 8]


def test_several_ranks_begin_with_the_same_weights(train, home, data_dir, tmp_path):
    """Whatever the strategy: the first rank writes them, each reads its parts."""
    source = f"--init_from={of_cache(home, 'gpt2')}"
    drop = ["--n_layer=1", "--n_head=2", "--n_embd=16"]
    assert training(data_dir, tmp_path / "one", source, *drop, "--bias=True").returncode == 0
    done = train(source, *drop, "--bias=True", "--use_fsdp=True", ranks=2)
    assert done.returncode == 0, done.stderr
    one, two = (curve(tmp_path / run / "log.jsonl") for run in ("one", "run"))
    assert [one["eval", step] for step in (0, 12)] == pytest.approx([two["eval", step] for step in (0, 12)], abs=1e-4)


def test_a_plan_of_a_model_needs_no_weights_and_no_torch(home, tmp_path):
    made(GPT2Config(n_layer=3, n_head=2, n_embd=16, n_positions=32, vocab_size=256), tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()
    done = command(train_command.main, f"--init_from={tmp_path / 'model'}", "--dry_run")
    assert done.returncode == 0 and "Architecture Name:     3L-2H-16D-AbsPos-LN" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("init_from = 'gpt3'", "init_from='gpt3' is none of scratch, resume, auto, no folder, and no model in Hugging"),
        ("init_from = 'gpt3'", "fetch it (hf download OWNER/MODEL), or give the folder of one: --init_from=FOLDER"),
        ("init_from = 'some/model'", "fetch it (hf download some/model)"),
        ("init_from = 'resum'", "(did you mean 'resume'?)"),
        ("init_from = 'a/b/c'", "init_from='a/b/c' is none of"),
        ("init_from = '.'", "the folder has no config.json, so it is neither a run nor a model"),
        ("init_from = 'gpt2'\nn_layer = 6", "n_layer=6 contradicts init_from="),
        ("init_from = 'gpt2'\nn_layer = 6", "whose model has 1: drop it"),
        ("init_from = 'gpt2'\nblock_size = 64", "block_size=64 is more than the 32 positions that the model of"),
    ],
)
def test_weights_that_cannot_be_had_are_one_line(text, reason, call, tmp_path):
    done = call(text + "\n")
    assert done.returncode == 2 and reason in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config_file.py"]


def test_a_device_that_is_not_there_leaves_no_run(call, tmp_path):
    for _ in range(2):
        done = call("init_from = 'gpt2'\n", "--device=cuda:99")
        assert done.returncode == 2 and "device=" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not [*tmp_path.glob("out/*/checkpoints/*")]


def test_a_folder_without_weights_leaves_no_run(call, tmp_path):
    GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=32, vocab_size=256).save_pretrained(tmp_path / "model")
    for _ in range(2):
        done = call("init_from = 'model'\n")
        assert done.returncode == 2 and "model has no weights: none of" in done.stderr, done.stderr


def test_a_head_that_differs_is_not_dropped(call, tmp_path):
    model = made(GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=32, vocab_size=256), tmp_path / "model")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["lm_head.weight"] += 1
    save_file(state, tmp_path / "model/model.safetensors", {"format": "pt"})
    assert "lm_head.weight is not the embedding" in call("init_from = 'model'\n", "--max_iters=0").stderr
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(
        json.dumps(config | {"tie_word_embeddings": False, "unsloth_fixed": True})
    )
    done = call("init_from = 'model'\n", "--max_iters=0")
    assert done.returncode == 0 and "weights of model\nnote: keys of no gpt2 in transformers" in done.stdout, (
        done.stderr
    )
    kept = weights(last_checkpoint(tmp_path / "out/config_file"))
    assert torch.equal(kept["lm_head.weight"], state["lm_head.weight"])


def test_no_network_is_asked(call, monkeypatch):
    """Also where there is one."""
    import socket

    def refuse(*arguments):
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert call("init_from = 'gpt2-tiny'\n").returncode == 2
    assert call(evaluation("gpt2")).returncode == 0
