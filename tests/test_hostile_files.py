"""Files and arguments that were found to end a command in a traceback: each is one line and exit code 2, and nothing
is left behind. tests/hostile.py makes more of them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import command
from conftest import ROOT, environment, small_run, training
from hostile import DEEP, with_checksum
from safetensors.torch import load_file, save_file

import checkpoint
import compare_architectures
import ladder
import sample
import train as train_command
from common.locks import lock
from flops_parameter_counting import detailed_cost_analysis

SIZE = "--n_layer=1 --n_embd=16 --block_size=16 --batch_size=2 --max_iters=1 --eval_iters=1 --arch_preset=llama".split()
TOO_LONG = "a" * 303
LLAMA = {
    "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 256,
    "num_key_value_heads": 2, "intermediate_size": 64, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(data_dir, tmp_path_factory):
    """A small run, and it as a file."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(data_dir, folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert training("data", "run", *SIZE, "--compile=False").returncode == 0
        assert command(checkpoint.main, "export", "run", "model.safetensors").returncode == 0
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A copy of it, to spoil."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def refused(main, *arguments, folder="."):
    """The one line of a command that leaves everything as it was."""
    before = sorted(os.walk(folder))
    done = command(main, *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("error: ")
    assert sorted(os.walk(folder)) == before
    return done.stderr


def rewritten(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# ---------------------------------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_split_cannot_have_any_name(here, name):
    meta = here / "data/tiny/meta.json"
    splits = json.loads(meta.read_text())["splits"]
    rewritten(meta, splits=splits | {"val": splits["val"] | {"file": name}})
    assert "the val split's file cannot be called" in refused(train_command.main, *small_run("data", "--out_dir=new"))


def test_deep_nesting(here):
    (here / "data/tiny/meta.json").write_text(DEEP)
    assert "nested too deeply" in refused(train_command.main, *small_run("data", "--out_dir=new"))
    (here / "plan.json").write_text(DEEP)
    for what in ("run", "report", "fit"):
        assert "plan.json is damaged" in refused(ladder.main, what, ".")


@pytest.mark.parametrize("end", ["a", 1.5, True, -1, 256, 10**30, [], "\x1b[2J"])
def test_the_end_of_documents_is_a_token(here, end):
    (state,) = here.glob("run/checkpoints/*/state.json")
    whole = json.loads(state.read_text())
    whole["data"]["tokenizer"] = {"kind": "bytes", "end_of_document": end}
    state.write_text(json.dumps(with_checksum(whole)))
    assert "end_of_document" in refused(sample.main, "run", "--prompt=a")


def test_a_log_that_is_a_folder(here):
    (here / "new/log.jsonl").mkdir(parents=True)
    keys = small_run("data", "--out_dir=new", "--init_from=auto")
    assert "new/log.jsonl: Is a directory" in refused(train_command.main, *keys)
    assert "Is a directory" in refused(compare_architectures.main, "new")


def test_tensors_without_dimensions(here):
    tensors = {name: torch.zeros(()) for name in load_file("model.safetensors")}
    (here / "hf").mkdir()
    save_file(tensors, here / "hf/model.safetensors")
    (here / "hf/config.json").write_text(json.dumps(LLAMA))
    refused(checkpoint.main, "import", "hf", "new")
    names = [name for name in weights_of_llama() if "lm_head" not in name]
    save_file({name: torch.zeros(()) for name in [*names, "lm_head.weight"]}, here / "hf/model.safetensors")
    assert "embedding.weight is ()" in refused(checkpoint.main, "import", "hf", "new")


def weights_of_llama():
    layer = (
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj mlp.gate_proj mlp.up_proj mlp.down_proj"
    )
    norms = "input_layernorm post_attention_layernorm"
    return ["model.embed_tokens.weight", "model.norm.weight"] + [
        f"model.layers.0.{name}.weight" for name in f"{layer} {norms}".split()
    ]


@pytest.mark.parametrize("layers", [10**40, 10**12, 1e40, -1, True])
def test_impossible_numbers_of_layers(here, layers):
    (here / "config.json").write_text(json.dumps(LLAMA | {"num_hidden_layers": layers}))
    assert "num_hidden_layers" in refused(detailed_cost_analysis.main, "--model_config", "config.json")
    assert "num_hidden_layers" in refused(checkpoint.main, "import", "config.json", "new")


def with_metadata(file, part, **changes):
    """The file with another part of its metadata."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header["__metadata__"]
    metadata[part] = json.dumps(json.loads(metadata[part]) | changes)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("progress", {"step": 10**30}),
        ("progress", {"tokens": -1}),
        ("progress", {"best_val_loss": float("nan")}),
        ("config", {"scaling_law": {"E": float("nan"), "A": 1, "B": 1, "alpha": 1, "beta": 1, "N": "total"}}),
        ("config", {"n_layer": 10**12}),
        ("config", {"vocab_size": 10**12}),
    ],
)
def test_an_import_that_cannot_be(here, part, changes):
    with_metadata(here / "model.safetensors", part, **changes)
    refused(checkpoint.main, "import", "model.safetensors", "new")


def test_a_checkpoint_of_a_stranger(here):
    """Who can compute checksums."""
    (state,) = here.glob("run/checkpoints/*/state.json")
    whole = json.loads(state.read_text())
    for config in (
        {"n_embd": 10**9},
        {"n_layer": 90_000},
        {"block_size": 10**15, "position_encoding": "learned_absolute"},
    ):
        state.write_text(json.dumps(with_checksum(whole | {"config": whole["config"] | config})))
        refused(sample.main, "run", "--prompt=a")


# ---------------------------------------------------------------------------------------------------------------------
# Arguments


@pytest.mark.parametrize("option", ["--csv=", "--png=", "--json=", "--markdown=", "--report=", "--png=--"])
def test_a_file_without_a_name(here, option):
    refused(compare_architectures.main, "run", option)


@pytest.mark.parametrize("target", [TOO_LONG, "/proc/new", "data/tiny/meta.json/new", f"{TOO_LONG}/a"])
def test_exports_to_where_nothing_can_be(here, target):
    refused(checkpoint.main, "export", "run", target)
    refused(checkpoint.main, "export", "run", target, "--format", "hf")
    refused(checkpoint.main, "import", "model.safetensors", target)
    refused(train_command.main, *small_run("data", f"--out_dir={target}"))


def test_what_is_no_file_is_not_replaced(here):
    os.mkfifo("pipe")
    message = refused(checkpoint.main, "export", "run", "pipe", "--force")
    assert "it is no file that could be replaced" in message and (here / "pipe").is_fifo()


def test_many_minus_signs(here):
    for main in (train_command.main, sample.main, checkpoint.main, compare_architectures.main, ladder.main):
        refused(main, "-" * 5000)
    refused(detailed_cost_analysis.main, "--grid_search", "-" * 5000)
    refused(train_command.main, f"--max_tokens={'-' * 5000}1")


@pytest.mark.parametrize(
    "key", ["--d_ff=1000000000", "--n_layer=1000000000000", "--batch_size=1000000000000", "--n_embd=20000000"]
)
def test_what_cannot_fit_is_refused_before_it_is_allocated(here, key):
    keys = small_run("data", "--out_dir=new", key)
    message = refused(train_command.main, *keys)
    assert "this machine has" in message or "must be below 100001" in message
    if "n_layer" not in key:
        assert command(train_command.main, *keys, "--dry_run").returncode == 0, "any size can be planned"


def test_an_error_takes_back_what_it_made(here):
    assert "no checkpoint" in refused(train_command.main, *small_run("data", "--out_dir=a/b/c", "--init_from=resume"))
    (here / "mine").mkdir()
    refused(train_command.main, *small_run("data", "--out_dir=mine", "--init_from=resume"))
    assert (here / "mine").is_dir(), "which was there before"


def test_a_lock_whose_file_is_gone_holds_nothing(tmp_path):
    """As of a command that took back its folder while another waited for it."""
    first = lock(tmp_path)
    (tmp_path / ".lock").unlink()
    with first, lock(tmp_path) as second:
        assert os.path.samestat(os.fstat(second.fileno()), (tmp_path / ".lock").stat())


# ---------------------------------------------------------------------------------------------------------------------
# Output

COMMANDS = {
    "train.py": ["--dry_run", "--vocab_size=256"],
    "sample.py": ["run", "--max_new_tokens=1"],
    "checkpoint.py": ["export", "run", "exported.safetensors"],
    "compare_architectures.py": ["run"],
    "ladder.py": "plan --budget 1e11 --arch gpt2 --dataset tiny --data_dir data --block_size 16 --out ladder".split(),
    "flops_parameter_counting/detailed_cost_analysis.py": ["--model_config", "run/config.json"],
    "flops_parameter_counting/validate.py": [],
    "configurator.py": [],
}


@pytest.mark.slow
@pytest.mark.parametrize("script", COMMANDS)
def test_a_full_disk_below_the_output_is_one_line(here, script):
    command = [sys.executable, str(ROOT / script), *COMMANDS[script]]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
        assert done.stderr.splitlines()[-1] == "error: cannot write the output: No space left on device"
        assert len(done.stderr.splitlines()) == 1 + (script == "sample.py"), "which says there what it reads"
        assert done.returncode == 1


def test_an_output_that_is_closed(here):
    for redirected in (">&-", ">&- 2>&-", ">/dev/full 2>/dev/full"):
        line = f"{sys.executable} {ROOT}/compare_architectures.py run {redirected}"
        done = subprocess.run(line, shell=True, env=environment(), capture_output=True, text=True)
        assert done.stderr == "" and done.returncode == ("full" in redirected)


def test_a_terminal_without_the_letters(here):
    env = environment() | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "flops_parameter_counting/detailed_cost_analysis.py"), "--grid_search", "1e13"],
        env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_link_to_itself(here):
    (here / "loop").symlink_to("loop")
    for main in (sample.main, compare_architectures.main):
        refused(main, "loop")
    refused(train_command.main, *small_run("loop", "--out_dir=new"))
    refused(train_command.main, *small_run("data", "--out_dir=loop"))
    refused(checkpoint.main, "export", "run", "loop/a")
    refused(detailed_cost_analysis.main, "--model_config", "loop")


@pytest.mark.slow
def test_too_little_memory_is_one_line(here):
    """Found by PyTorch, where the estimate let the run go on."""
    limit = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (6 * 10**9, 6 * 10**9)); import train; train.main()"
    )
    keys = small_run("data", "--out_dir=new", "--n_embd=4096", "--n_layer=6", "--compile=False")
    done = subprocess.run([sys.executable, "-c", limit, *keys], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "there is not enough memory" in done.stderr


def test_a_device_without_an_end(here):
    (here / "endless.json").symlink_to("/dev/zero")
    (here / "new").mkdir()
    (here / "new/log.jsonl").symlink_to("/dev/zero")
    refused(compare_architectures.main, "new")
    refused(compare_architectures.main, "endless.json")
    refused(detailed_cost_analysis.main, "--model_config", "endless.json")
    refused(sample.main, "run", "--prompt=FILE:endless.json")
