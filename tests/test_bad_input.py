"""A user's mistake is one line on stderr and exit code 2, found before torch is imported and with nothing written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment, small_run
from processes import start_speaking

# Stops the command if it imports torch: these mistakes are found before any device is touched.
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; import train; train.main()"


def without_torch(data_dir: Path, folder: Path, *keys: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", WITHOUT_TORCH, *small_run(data_dir, "--out_dir=run", *keys)]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=120)


def refused(train, *keys: str) -> str:
    """The message of a command that must refuse its input."""
    done = train(*keys)
    assert done.returncode == 2, done.stderr + done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["nowhere.py"], "nowhere.py"),
        (["--n_leyer=3"], "unknown key 'n_leyer' (did you mean 'n_layer'?)"),
        (["--n_layer=three"], "n_layer"),
        (["--n_layer=0"], "n_layer=0 must be at least 1"),
        (["--batch_size=-4"], "batch_size=-4 must be at least 1"),
        (["--n_head=3"], "n_embd=32 is not divisible by n_head=3"),
        (["--n_head=4", "--num_key_value_heads=3"], "n_head=4 is not divisible by num_key_value_heads=3"),
        (["--n_head=32", "--position_encoding=rope"], "must be even"),
        (["--block_size=5000"], "set --block_size to at most"),
        (["--vocab_size=100"], "set --vocab_size to at least 256"),
        (["--dataset=tinny"], "there is no dataset folder"),
        (["--arch_preset=lama"], "did you mean 'llama'?"),
        (["--normalization=rmsnrom"], "normalization='rmsnrom' is none of: layernorm, layernorm_nobias, rmsnorm"),
        (["--activation=rellu"], "did you mean 'relu'?"),
        (["--position_encoding=rotary"], "position_encoding='rotary' is none of"),
        (["--ffn_type=swigl"], "did you mean 'swiglu'?"),
        (["--attention_backend=flash"], "attention_backend='flash' is none of: sdpa, manual"),
        (["--dtype=float8"], "dtype='float8' is none of"),
        (["--device=gpu"], "device='gpu' is none of: auto, cpu, cuda, cuda:N, mps"),
        (["--init_from=resume"], "no checkpoint to resume from"),
        (
            ["--init_from=resum"],
            "init_from='resum' is none of scratch, resume, auto (did you mean 'resume'?), no folder",
        ),
        (["--out_dir=/proc/run"], "cannot write to the run's folder /proc/run"),
    ],
)
def test_mistakes_are_named_before_torch_is_imported(data_dir, tmp_path, keys, message):
    done = without_torch(data_dir, tmp_path, *keys)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.name not in ("run", ".lock")] == []


def test_a_dry_run_needs_no_torch_and_writes_nothing(train, data_dir, tmp_path):
    done = without_torch(data_dir, tmp_path, "--dry_run")
    assert done.returncode == 0, done.stderr
    for part in (
        "Architecture Name:",
        "Parameters:",
        "FLOPs per token:",
        "Memory estimate:",
        "Tokens per step:",
        "Epochs:",
    ):
        assert part in done.stdout
    assert not (tmp_path / "run").exists()
    assert "fewer than eval_iters x eval_batch_size = 12,000" in train("--dry_run", "--eval_iters=1000").stdout


def test_the_missing_dataset_names_its_prepare_command(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--dataset=shakespeare_char", f"--data_dir={tmp_path}"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "python data/shakespeare_char/prepare.py" in done.stderr


def test_a_relative_data_folder_is_named_whole(tmp_path):
    """Such as that of a run which is continued from another folder."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--dataset=tiny", "--data_dir=data"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and f"there is no dataset folder {tmp_path}/data/tiny" in done.stderr


def test_accumulation_must_be_shared_evenly_and_only_one_rank_says_so(train):
    done = train("--gradient_accumulation_steps=3", ranks=2)
    assert done.returncode == 1  # torchrun's
    assert done.stderr.count("error: gradient_accumulation_steps=3 is not divisible by the 2 ranks") == 1


def test_a_device_that_is_not_there(train, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "--device=cpu runs anywhere" in refused(train, "--device=cuda")
    assert not list((tmp_path / "run").glob("[!.]*"))


def test_an_out_folder_that_a_live_run_holds(data_dir, tmp_path, train):
    keys = small_run(data_dir, "--out_dir=run", "--max_iters=1000000", "--compile=False")
    live, output = start_speaking(ROOT / "train.py", keys, tmp_path, environment())
    for line in output:
        if line.startswith("Iter 1"):
            break
    try:
        assert "a live run holds run" in refused(train, "--init_from=auto")
    finally:
        live.kill()
        live.join()
        output.close()


def test_a_damaged_dataset_is_refused(train, data_dir, tmp_path):
    folder = tmp_path / "data/tiny"
    folder.mkdir(parents=True)
    for file in (data_dir / "tiny").glob("[!.]*"):
        (folder / file.name).write_bytes(file.read_bytes())
    content = bytearray((folder / "train.bin").read_bytes())
    content[100] ^= 1
    (folder / "train.bin").write_bytes(content)
    assert "train.bin is damaged: its checksum" in refused(train, f"--data_dir={tmp_path / 'data'}")


def test_checkpoints_that_are_all_damaged_are_named(train, tmp_path):
    assert train().returncode == 0
    for checkpoint in (tmp_path / "run/checkpoints").iterdir():
        (tensors,) = checkpoint.glob("*.safetensors")
        tensors.write_bytes(tensors.read_bytes()[: tensors.stat().st_size // 2])
    message = refused(train, "--init_from=auto", "--max_iters=20")
    assert "no checkpoint is whole" in message and f"{tensors.name} is damaged: its checksum" in message
    for checkpoint in (tmp_path / "run/checkpoints").iterdir():
        (checkpoint / "state.json").write_text(json.dumps({"progress": {}})[:-3])
    assert "no checkpoint is whole" in refused(train, "--init_from=auto", "--max_iters=20")


@pytest.mark.parametrize("extra", ["wandb", "tensorboard"])
def test_a_missing_extra_is_named(train, tmp_path, extra):
    script = tmp_path / "without_extra.py"
    script.write_text(f"import sys; sys.modules[{extra!r}] = None\nimport train; train.main()\n")
    done = train(f"--{extra}_log=True", script=script)
    assert done.returncode == 2 and f"pip install -e '.[{extra}]'" in done.stderr
