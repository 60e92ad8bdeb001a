"""checkpoint.py: a checkpoint as one file, and back."""

import json
import os
import shutil
import struct
import subprocess
import sys

import pytest
import torch
from checkpoints import last_checkpoint, same, tensors
from commands import command
from conftest import ROOT, environment, training
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_resume import curve
from test_run_logs import run_train

import checkpoint
import sample
from configurator import load
from model_builder import build_model
from parallel.ranks import ALONE
from runs.folder import RunFolder, damage, read_state, saved_configuration

KEYS = ["--dropout=0.1", "--keep_last=5", "--lr_decay_iters=12"]


@pytest.fixture(scope="module")
def runs(data_dir, tmp_path_factory):
    """`whole`, an uninterrupted run of 12 steps, and `begun`, its first 8, with checkpoints of steps 4 and 8."""
    folder = tmp_path_factory.mktemp("runs")
    for name, steps in (("whole", 12), ("begun", 8)):
        assert training(data_dir, folder / name, *KEYS, f"--max_iters={steps}").returncode == 0
    return folder


@pytest.fixture(scope="module")
def exported(runs):
    """`begun`'s last checkpoint, whole and as weights only."""
    for name, more in (("file", []), ("weights", ["--weights_only"])):
        done = call("export", runs / "begun", runs / f"{name}.safetensors", *more)
        assert done.returncode == 0, done.stderr
    return runs


@pytest.fixture
def file(exported, tmp_path):
    return shutil.copy(exported / "file.safetensors", tmp_path / "file.safetensors")


def call(*arguments):
    return command(checkpoint.main, *arguments)


def metadata(file):
    with safe_open(file, "pt") as content:
        return content.metadata()


def error(*arguments):
    done = call(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def left_in(folder):
    """Also what is hidden: nothing that was written aside may stay."""
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------------------------------------------------------
# What it does


def test_the_file_is_plain_safetensors_with_the_state_in_its_metadata(exported):
    run, file = exported / "begun", exported / "file.safetensors"
    assert same(load_file(file), tensors(last_checkpoint(run)))
    assert any(name.startswith("optimizer.") for name in load_file(file))
    state, found = read_state(last_checkpoint(run)), metadata(file)
    assert {key: json.loads(found[key]) for key in ("progress", "config", "data", "scaler")} == {
        key: state[key] for key in ("progress", "config", "data", "scaler")
    }


def test_the_bytes_are_those_that_safetensors_writes(exported, tmp_path):
    """The header apart, which may list the same in another order."""
    written = exported / "file.safetensors"
    save_file(load_file(written), tmp_path / "other.safetensors", metadata(written))
    contents = []
    for file in (written, tmp_path / "other.safetensors"):
        content = file.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        contents.append((json.loads(content[8 : 8 + length]), content[8 + length :], length % 8))
    assert contents[0] == contents[1]


def test_the_weights_alone_are_a_state_dict(exported):
    model = build_model(saved_configuration(read_state(last_checkpoint(exported / "begun"))).model)
    model.load_state_dict(load_file(exported / "weights.safetensors"), strict=True)
    assert same(dict(model.state_dict()), load_file(exported / "weights.safetensors"))
    assert "scaler" not in metadata(exported / "weights.safetensors")


def test_any_checkpoint_can_be_chosen(exported, tmp_path):
    run = exported / "begun"
    best = read_state(last_checkpoint(run))["progress"]["best_step"]
    for chosen, step in (("4", 4), ("8", 8), ("last", 8), ("best", best)):
        file = tmp_path / f"{chosen}.safetensors"
        done = call("export", run, file, f"--checkpoint={chosen}")
        assert done.returncode == 0 and f"step_{step:08d}" in done.stdout
        assert same(load_file(file), tensors(run / f"checkpoints/step_{step:08d}"))


def test_a_part_at_a_time(exported, tmp_path, monkeypatch):
    """However little is in memory at once, the file is the same."""
    loaded = []
    whole_load = checkpoint.load_tensors
    monkeypatch.setattr(checkpoint, "AT_ONCE", 10_000)
    monkeypatch.setattr(
        checkpoint, "load_tensors", lambda path, into: (loaded.append(list(into.values())), whole_load(path, into))
    )
    assert call("export", exported / "begun", tmp_path / "file.safetensors").returncode == 0
    assert (tmp_path / "file.safetensors").read_bytes() == (exported / "file.safetensors").read_bytes()
    assert len(loaded) > 10
    assert all(sum(x.nbytes for x in group) <= 10_000 or len(group) == 1 for group in loaded)


def test_an_imported_run_goes_on_bit_for_bit(exported, data_dir, tmp_path):
    done = call("import", exported / "file.safetensors", tmp_path / "copy")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "copy"
    assert left_in(tmp_path) == ["copy"] and [path.name for path in RunFolder(run).checkpoints()] == ["step_00000008"]
    assert damage(last_checkpoint(run), ALONE) is None
    assert call("export", run, tmp_path / "again.safetensors").returncode == 0
    assert (tmp_path / "again.safetensors").read_bytes() == (exported / "file.safetensors").read_bytes()

    assert f"python train.py {run}/config.py --init_from=resume" in done.stdout
    assert load([str(run / "config.py")]).run_dir == run
    resumed = training(data_dir, run, *KEYS, "--init_from=resume")
    assert resumed.returncode == 0, resumed.stderr
    values, expected = curve(run / "log.jsonl"), curve(exported / "whole/log.jsonl")
    assert values == {key: value for key, value in expected.items() if (key if isinstance(key, int) else key[1]) > 8}
    assert same(tensors(last_checkpoint(run)), tensors(last_checkpoint(exported / "whole")))


def test_weights_alone_can_be_sampled_and_training_begins_anew_and_that_is_said(exported, data_dir, tmp_path):
    run = tmp_path / "copy"
    done = call("import", exported / "weights.safetensors", run)
    assert done.returncode == 0 and "weights only" in done.stdout and "after 8 steps" in done.stdout
    assert "training cannot go on where it stopped, but begins anew at step 0" in done.stdout
    texts = [
        command(sample.main, folder, "--device=cpu", "--checkpoint=last", "--max_new_tokens=20").stdout
        for folder in (run, exported / "begun")
    ]
    assert texts[0] == texts[1] and len(texts[0]) > 10
    anew = training(data_dir, run, *KEYS, "--init_from=resume")
    assert anew.returncode == 0 and "resumed at step 0 from" in anew.stdout
    values, expected = curve(run / "log.jsonl"), curve(exported / "whole/log.jsonl")
    assert values.keys() == expected.keys() and values["eval", 0] == expected["eval", 8] != values["eval", 4]


def test_a_checkpoint_from_before_the_first_step_goes_there_and_back(data_dir, tmp_path, runs):
    """An optimizer has no state then, and there is nothing to refuse."""
    assert training(data_dir, tmp_path / "run", *KEYS, "--max_iters=0").returncode == 0
    assert call("export", tmp_path / "run", tmp_path / "file.safetensors").returncode == 0
    assert call("import", tmp_path / "file.safetensors", tmp_path / "copy").returncode == 0
    assert training(data_dir, tmp_path / "copy", *KEYS, "--init_from=resume").returncode == 0
    assert same(*(tensors(last_checkpoint(run)) for run in (tmp_path / "copy", runs / "whole")))


def test_a_run_with_components_of_its_own(data_dir, tmp_path):
    """Its config file is executed when it is named, and not otherwise; the new folder's one has it too."""
    own = tmp_path / "own.py"
    own.write_text(
        "import torch\n"
        "from components.spec import Activation\n"
        "from model_components import register, register_spec\n"
        "@register_spec\n"
        "class Spec(Activation):\n"
        "    name = 'cosine'\n"
        "@register('activation', 'cosine')\n"
        "class Cosine(torch.nn.Module):\n"
        "    def __init__(self, config):\n"
        "        super().__init__()\n"
        "    def forward(self, x):\n"
        "        return torch.cos(x)\n"
        "activation = 'cosine'\n"
    )
    assert run_train(data_dir, tmp_path / "run", str(own), "--max_iters=2") == 0
    file, copy = tmp_path / "file.safetensors", tmp_path / "copy"
    assert call("export", tmp_path / "run", file).returncode == 0
    assert "--config with its config.py" in error("import", file, copy)
    process = [sys.executable, ROOT / "checkpoint.py", "import", file, copy, f"--config={own}"]
    assert subprocess.run(process, env=environment(), timeout=60, capture_output=True).returncode == 0
    assert "class Cosine" in (copy / "config.py").read_text()


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes


def test_nothing_that_is_there_is_overwritten_unless_forced(exported, runs, tmp_path):
    file, run = tmp_path / "file.safetensors", tmp_path / "run"
    file.write_text("precious")
    assert "file.safetensors is there already: --force replaces it" in error("export", runs / "begun", file)
    assert file.read_text() == "precious"
    assert call("export", runs / "begun", file, "--force").returncode == 0
    assert same(load_file(file), load_file(exported / "file.safetensors"))

    shutil.copytree(runs / "whole", run)
    assert "is there already" in error("import", file, run)
    assert last_checkpoint(run).name == "step_00000012"
    with RunFolder(run).hold():
        assert "a live run holds" in error("import", file, run, "--force")
    assert last_checkpoint(run).name == "step_00000012"
    assert call("import", file, run, "--force").returncode == 0
    assert last_checkpoint(run).name == "step_00000008" and not (run / "log.jsonl").exists()

    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/mother.txt").write_text("precious")
    assert "is not the folder of a run" in error("import", file, tmp_path / "letters", "--force")
    assert left_in(tmp_path / "letters") == ["mother.txt"]
    (tmp_path / "empty").mkdir()
    assert call("import", file, tmp_path / "empty").returncode == 0
    assert left_in(tmp_path) == ["empty", "file.safetensors", "letters", "run"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "required: export | import"),
        (["convert"], "invalid choice: 'convert'"),
        (["export", "begun"], "required: file"),
        (["export", "absent", "x.safetensors"], "there is no run folder absent"),
        (["export", ".", "x.safetensors"], "has no checkpoint"),
        (["export", "begun", "x.safetensors", "--checkpoint=newest"], "'newest' is none of: best, last"),
        (
            ["export", "begun", "x.safetensors", "--checkpoint=5"],
            "no checkpoint of step 5: choose --checkpoint=last",
        ),
        (["export", "begun", "whole"], "whole is there already: name a file"),
        (["export", "begun", "no/folder/x.safetensors"], "cannot write no/folder/x.safetensors: No such file"),
        (["export", "begun", "begun/checkpoints/step_00000008/x.safetensors"], "would be among the run's checkpoints"),
        (["export", "begun", "x.safetensors", "--weights-only"], "unrecognized arguments: --weights-only"),
        (["import", "absent.safetensors", "copy"], "cannot read absent.safetensors"),
        (["import", "begun", "copy"], "cannot read begun"),
        (["import", "file.safetensors", "begun"], "begun is there already"),
        (["import", "file.safetensors", "file.safetensors"], "file.safetensors is there already"),
        (["import", "file.safetensors", "/proc/copy"], "cannot write /proc/copy"),
        (["import", "file.safetensors", "copy", "--config=absent.py"], "absent.py: cannot read the config file"),
    ],
)
def test_mistakes_are_one_line(exported, monkeypatch, arguments, reason):
    monkeypatch.chdir(exported)
    before = left_in(exported)
    assert reason in error(*arguments)
    assert left_in(exported) == before


def test_a_damaged_checkpoint_is_not_exported(runs, tmp_path):
    run = shutil.copytree(runs / "begun", tmp_path / "run")
    (tensors_file,) = last_checkpoint(run).glob("*.safetensors")
    content = bytearray(tensors_file.read_bytes())
    content[-1] ^= 1
    tensors_file.write_bytes(content)
    assert f"{tensors_file} is damaged: its checksum" in error("export", run, tmp_path / "x.safetensors")
    assert call("export", run, tmp_path / "x.safetensors", "--checkpoint=4").returncode == 0, "the other one is whole"
    (last_checkpoint(run) / "state.json").write_text("{}")
    assert "is damaged" in error("export", run, tmp_path / "y.safetensors")
    assert call("export", run, tmp_path / "y.safetensors", "--checkpoint=4").returncode == 0
    assert left_in(tmp_path) == ["run", "x.safetensors", "y.safetensors"]


def rewritten(file, drop=(), change=None, **new):
    """The file with other metadata or tensors, as safetensors writes them."""
    content, state = load_file(file), metadata(file)
    content = {name: x for name, x in content.items() if not name.startswith(tuple(drop))} | (change or {})
    save_file(content, file, {key: value for key, value in (state | new).items() if value is not None})


def flipped(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "cannot read"),
        (lambda file: file.write_bytes(b""), "cannot read"),
        (lambda file: file.write_bytes(b"\x80\x04K\x01."), "cannot read"),
        (flipped, "is damaged: the checksum of its tensors"),
        (lambda file: rewritten(file, config=None), "has no 'config' in its metadata: checkpoint.py did not write it"),
        (lambda file: rewritten(file, progress=None), "has no 'progress'"),
        (lambda file: rewritten(file, checksum=None), "has no 'checksum'"),
        (lambda file: rewritten(file, config="{"), "is damaged"),
        (lambda file: rewritten(file, config="[" * 100_000), "is damaged"),
        (lambda file: rewritten(file, config="[]"), "is damaged"),
        (lambda file: rewritten(file, config='{"__import__": 1}'), "unknown key '__import__'"),
        (lambda file: rewritten(file, progress='{"step": "../x"}'), "is damaged"),
        (lambda file: rewritten(file, drop=["embedding"]), "has no tensor embedding.weight"),
        (lambda file: rewritten(file, drop=["optimizer."]), "has no optimizer state"),
        (lambda file: rewritten(file, change={"more": torch.zeros(2)}), "has no tensor more"),
        (lambda file: rewritten(file, change={"embedding.weight": torch.zeros(2, 2)}), "embedding.weight is [2, 2]"),
        (lambda file: rewritten(file, change={"embedding.weight": torch.zeros(2, dtype=torch.float8_e4m3fn)}), "F8"),
    ],
)
def test_a_file_that_is_not_as_it_was_exported_is_refused(file, tmp_path, spoil, reason):
    spoil(file)
    assert reason in error("import", file, tmp_path / "copy")
    assert left_in(tmp_path) == ["file.safetensors"], "nothing is left behind"


@pytest.mark.parametrize("to", ["export", "import"])
def test_a_full_disk_is_one_line_and_leaves_nothing(exported, tmp_path, monkeypatch, to):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    source = exported / ("begun" if to == "export" else "file.safetensors")
    assert f"cannot write {tmp_path}/x: No space left on device" in error(to, source, tmp_path / "x")
    assert left_in(tmp_path) == []
