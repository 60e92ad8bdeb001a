"""Runs that train adapters: what they keep, how they go on, and what is refused."""

import re
import shutil

import pytest
import torch
from checkpoints import last_checkpoint, same, tensors, weights
from commands import command
from conftest import LLAMA, ROOT, training

import checkpoint as checkpoint_command
import sample as sample_command
import train as train_command
from configurator import load
from inference.loading import configuration_of
from inference.loading import load as load_model_of
from model_builder import build_model
from runs.checkpoint import load_tensors
from runs.folder import read_state, write_state

LORA = ["--use_lora=True", "--lora_r=4", "--lora_alpha=8", "--learning_rate=1e-2", "--decay_lr=False"]
FREQUENT = ["--eval_interval=2", "--max_iters=6", "--keep_best=False"]


@pytest.fixture(scope="module")
def base(data_dir, tmp_path_factory):
    run = tmp_path_factory.mktemp("base") / "base"
    done = training(data_dir, run, *LLAMA, "--max_iters=6")
    assert done.returncode == 0, done.stderr
    return run


def adapt(data_dir, base, run, *keys):
    return training(data_dir, run, f"--init_from={base}", *LORA, *FREQUENT, *keys)


@pytest.fixture(scope="module")
def adapted(data_dir, base, tmp_path_factory):
    """A run of adapters with dropout, and what it said."""
    run = tmp_path_factory.mktemp("adapted") / "run"
    done = adapt(data_dir, base, run, "--lora_dropout=0.1", "--use_dora=True")
    assert done.returncode == 0, done.stderr
    return run, done


def test_only_adapters_are_saved_and_the_base_stays(base, adapted):
    """Of a checkpoint after step 0 nothing is the model's own; the base, however old, is never deleted."""
    run, done = adapted
    steps = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert steps == ["step_00000000", "step_00000004", "step_00000006"]
    last, first = last_checkpoint(run), run / "checkpoints/step_00000000"
    assert same(weights(first), weights(last_checkpoint(base)))
    assert all(".lora." in name for name in tensors(last))
    assert any(name.startswith("optimizer.") for name in tensors(last))
    assert read_state(last)["base"] == read_state(first)["files"]
    (said,) = re.findall(r"Adapters: +(DoRA, r=4, times 2, beside every .*)", done.stdout)
    trained = sum(value.numel() for value in weights(last).values())
    assert f"{trained:,} of {trained + sum(value.numel() for value in weights(first).values()):,}" in said


def test_a_run_that_was_stopped_goes_on_to_the_bit(data_dir, base, adapted, tmp_path):
    """From a later checkpoint, and from the base alone, which has no adapters yet."""
    keys = ["--lora_dropout=0.1", "--use_dora=True"]
    whole, run = last_checkpoint(adapted[0]), tmp_path / "run"
    assert adapt(data_dir, base, run, *keys, "--max_iters=4").returncode == 0
    assert training(data_dir, run, *keys, *LORA, *FREQUENT, *LLAMA, "--init_from=auto").returncode == 0
    assert same(tensors(last_checkpoint(run)), tensors(whole))
    for folder in sorted((run / "checkpoints").iterdir())[1:]:
        shutil.rmtree(folder)
    (run / "log.jsonl").unlink()
    assert training(data_dir, run, *keys, *LORA, *FREQUENT, *LLAMA, "--init_from=resume").returncode == 0
    assert same(tensors(last_checkpoint(run)), tensors(whole))


def test_the_model_that_is_loaded_is_the_adapted_one(adapted):
    """Base and adapters merged: against the same model with adapters beside its matrices."""
    last = last_checkpoint(adapted[0])
    saved = configuration_of(last)
    merged = load_model_of(last, saved, torch.device("cpu"))
    model = build_model(saved.model)
    model.adapt(saved.run.adapters)
    state = model.state_dict()
    load_tensors(last.parent / "step_00000000", {name: value for name, value in state.items() if ".lora." not in name})
    load_tensors(last, {name: value for name, value in state.items() if ".lora." in name})
    ids = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    plain = build_model(saved.model)
    load_tensors(last.parent / "step_00000000", plain.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(merged(ids), model.eval()(ids), rtol=1e-5, atol=1e-5)
        assert (merged(ids) - plain(ids)).abs().max() > 0.05


def test_it_is_sampled_exported_and_begun_from(data_dir, adapted, tmp_path):
    run, _ = adapted
    assert command(sample_command.main, run, "--max_new_tokens=4").returncode == 0
    done = command(checkpoint_command.main, "export", run, tmp_path / "hf", "--format", "hf")
    assert done.returncode == 0, done.stderr
    (difference,) = re.findall(r"largest difference ([0-9.e-]+),", done.stdout)
    assert float(difference) < 1e-5
    done = command(checkpoint_command.main, "export", run, tmp_path / "file.safetensors")
    assert done.returncode == 2 and "--format hf exports the model with them merged" in done.stderr
    new = tmp_path / "new"
    assert training(data_dir, new, f"--init_from={run}", "--max_iters=0").returncode == 0
    model = load_model_of(last_checkpoint(run), configuration_of(last_checkpoint(run)), torch.device("cpu"))
    assert same(weights(new / "checkpoints/step_00000000"), dict(model.state_dict()))


def test_it_starts_where_the_base_ended(data_dir, base, adapted, tmp_path):
    """To the bit: adapters add nothing before they are trained."""
    plain, others = tmp_path / "plain", tmp_path / "others"
    assert training(data_dir, plain, f"--init_from={base}", "--max_iters=0").returncode == 0
    assert adapt(data_dir, base, others, "--max_iters=0", "--use_dora=True").returncode == 0
    losses = [re.findall(r"val loss ([0-9.]+)", (run / "log.jsonl").read_text()) for run in (plain, others)]
    assert losses[0] == losses[1]


def test_adapters_of_another_base_are_refused(data_dir, base, adapted, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(adapted[0], run)
    first = run / "checkpoints/step_00000000"
    state = read_state(first)
    write_state(first, state | {"files": dict.fromkeys(state["files"], "crc32:00000000")})
    for done in (
        command(sample_command.main, run),
        training(data_dir, run, *LORA, *FREQUENT, "--init_from=resume", "--use_dora=True", *LLAMA, "--max_iters=8"),
    ):
        assert done.returncode == 2 and re.search(
            r"has adapters of another base than .*crc32:.*, not crc32", done.stderr
        )
    shutil.rmtree(first)
    done = command(sample_command.main, run)
    assert done.returncode == 2 and "has adapters, but not their base" in done.stderr


PAGE = ROOT / "docs/using/adapters.md"
COMMANDS = {"train.py": train_command, "sample.py": sample_command, "checkpoint.py": checkpoint_command}


def test_the_pages_commands(data_dir, tmp_path, monkeypatch):
    """As they stand, but for the data and the length of their runs."""
    (tmp_path / "config").symlink_to(ROOT / "config")
    monkeypatch.chdir(tmp_path)
    commands = [line.split()[1:] for line in PAGE.read_text().splitlines() if line.startswith("python ")]
    assert [name for name, *_ in commands].count("train.py") == 2 and len(commands) == 6
    short = "--dataset=tiny --block_size=16 --batch_size=1 --max_iters=2 --eval_iters=1 --eval_batch_size=1".split()
    short += [f"--data_dir={data_dir}", "--warmup_iters=1", "--device=cpu", "--dtype=float32"]
    for name, *arguments in (["train.py", "config/quickstart.py"], *commands):
        done = command(COMMANDS[name].main, *arguments, *(short if name == "train.py" else []))
        assert done.returncode == 0, (name, done.stderr)
    assert last_checkpoint(tmp_path / "out/again").name == "step_00000002"


REFUSED = [
    (["--lora_targets=q_proj,nothing"], r"lora_targets: 'nothing' is no module's name: they are such as down_proj"),
    (
        ["--lora_targets=lm_head"],
        r"lora_targets: 'lm_head' is no linear layer of a mixer or an FFN: embedding and head",
    ),
    (["--lora_targets=embedding"], r"'embedding' is no linear layer"),
    (["--lora_targets=*norm"], r"'\*norm' is no linear layer"),
    (["--lora_r=0"], r"lora_r.*at least 1"),
    (["--use_lora=False"], r"lora_r=4 is for adapters: add --use_lora=True"),
    (["--frozen=blocks.0.*"], r"frozen and use_lora exclude each other"),
    (["--tensor_parallel=2"], r"use_lora and tensor_parallel exclude each other"),
    (["--pipeline_parallel=2"], r"use_lora and pipeline_parallel exclude each other"),
    (["--init_from=scratch", *LLAMA], r"use_lora trains adapters of weights that are there: --init_from"),
]


@pytest.mark.parametrize(("keys", "message"), REFUSED, ids=[keys[0] for keys, _ in REFUSED])
def test_what_cannot_be_is_refused_in_one_line(keys, message, data_dir, base, tmp_path):
    done = adapt(data_dir, base, tmp_path / "run", *keys)
    assert done.returncode == 2 and re.search(message, done.stderr) and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_the_adapters_that_it_has(data_dir, adapted, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(adapted[0], run)
    keys = [*LORA, *FREQUENT, *LLAMA, "--init_from=resume", "--use_dora=True"]
    done = training(data_dir, run, *keys, "--lora_r=8", "--max_iters=8")
    assert done.returncode == 2 and "has other adapters: lora_r was 4 and is 8" in done.stderr
    done = training(data_dir, run, *keys[len(LORA) : -1], "--max_iters=8")
    assert done.returncode == 2 and "use_lora was True and is False" in done.stderr
    assert load([f"{run}/config.py"]).run.adapters.title == "DoRA, r=4, times 2"
