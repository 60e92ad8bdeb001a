"""docs/extending.md is executed: its folder outside of the repository, its commands, and what it says of them."""

import math
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoints import same, tensors
from conftest import ROOT, environment
from test_readme import run

from runs.folder import RunFolder
from runs.logs import read_run

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs/extending.md").read_text()
FILES = dict(re.findall(r"`mine/([\w./]+)`:\n\n```python\n(.*?)```", PAGE, flags=re.DOTALL))
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The repository's code in a folder of its own, and beside it the page's."""
    folder = tmp_path_factory.mktemp("extending") / "checkout"
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("data", "out", "config", "ladder") and not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    for name, text in FILES.items():
        file = folder.parent / "mine" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    prepare = [sys.executable, str(ROOT / "data/python_stdlib/prepare.py"), "--out_dir"]
    subprocess.run([*prepare, str(folder / "data/python_stdlib")], check=True, capture_output=True, env=environment())
    return folder


@pytest.fixture(scope="module")
def printed(checkout):
    """What each command printed; in float32, in which a resumed run is the same to the last bit."""
    found = {}
    for command in COMMANDS:
        keys = " --dtype=float32" if "train.py" in command and not command.endswith("--dry_run") else ""
        done = run(command + keys, checkout)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        found[command] = done.stdout
    return found


def only(printed: dict[str, str], words: str) -> str:
    """What the first command with these words printed."""
    return next(text for command, text in printed.items() if words in command)


def test_the_page_has_two_rooms_a_config_and_commands_of_every_kind():
    rooms = {f"{room}/{file}" for room in ("gated_linear", "slots") for file in ("spec.py", "module.py")}
    assert FILES.keys() == rooms | {"small.py"}
    for words in (
        "--dry_run",
        "--init_from=auto",
        "torchrun",
        "sample.py",
        "--grid_search",
        "compare_architectures.py",
    ):
        assert any(words in command for command in COMMANDS), words


def test_the_plan_counts_what_there_is_and_what_a_token_meets(printed):
    """By hand: 2 mixers of each kind, 8 or 4 slots of 64 x 128 twice, 2 of them met."""
    linear, attention, slot, table = 4 * 64**2 + 64 * 4 + 4, 4 * 64**2, 2 * 64 * 128, 256 * 64
    for text, slots in ((only(printed, "small.py --dry_run"), 8), (only(printed, "--n_slots=4"), 4)):
        others = table + 2 * linear + 2 * attention + 4 * 64 * slots + 9 * 64
        total, active = others + 4 * slots * slot, others + 4 * 2 * slot
        assert f"Parameters:            {total:,}, of which a token meets {active:,}" in text
        products = 2 * (2 * linear - 2 * 4 + 2 * attention + 4 * 64 * slots + 4 * 2 * slot + table)
        scores = 4 * (4 * 128 * 64)
        assert f"FLOPs per token:       {3 * (products + scores):,} (training, full attention" in text


def test_keys_of_a_users_component_are_keys_like_others(checkout):
    helped = run("python train.py ../mine/small.py --help", checkout).stdout
    assert "--n_slots=8" in helped and "--linear_heads=4" in helped
    for key, words in (
        ("--n_slots=0", "n_slots=0 must be at least 1"),
        ("--n_slots=1", "n_slots_per_token=2 is more than n_slots=1"),
        ("--n_slot=4", "unknown key 'n_slot' (did you mean 'n_slots'?)"),
        ("--layer_pattern=A --linear_heads=8", "linear_heads=8 is given, but no layer has"),
        ("--n_embd=66 --n_head=2 --head_dim=32", "n_embd=66 is not divisible by linear_heads=4"),
    ):
        done = run(f"python train.py ../mine/small.py {key}", checkout)
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_the_run_logs_its_keys_its_active_parameters_and_what_training_adds(checkout, printed):
    log = read_run(checkout / "out/gated/log.jsonl")
    assert log.state == "finished"
    keys = log.run["config"]
    assert (keys["n_slots"], keys["n_slots_per_token"], keys["linear_heads"]) == (8, 2, 4)
    records = [line for line in (checkout / "out/gated/log.jsonl").read_text().splitlines() if '"iter"' in line]
    assert all('"auxiliary": {"balance": ' in line for line in records)
    assert Path(keys["components"]).is_absolute()


def test_a_killed_run_goes_on_bit_for_bit(checkout, printed):
    """kill -9 after the first checkpoint; the same at its end as the run that nobody killed."""
    command = next(command for command in COMMANDS if "--checkpoint_interval" in command)
    command = command.replace("out/gated", "out/killed") + " --dtype=float32"
    words = [sys.executable, *shlex.split(command)[1:], "--device=cpu", f"--data_dir={checkout / 'data'}"]
    process = subprocess.Popen(words, cwd=checkout, env=environment(), stdout=-1, stderr=-1)
    try:
        until = time.monotonic() + 120
        while not list((checkout / "out/killed").glob("checkpoints/*/state.json")) and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    resumed = run(command + " --init_from=auto", checkout)
    assert resumed.returncode == 0, resumed.stderr
    ours, theirs = (RunFolder(checkout / "out" / name).checkpoint_of(12) for name in ("killed", "gated"))
    assert same(tensors(ours), tensors(theirs))


def test_two_ranks_train_as_one(checkout, printed):
    one, two = (read_run(checkout / f"out/{name}/log.jsonl") for name in ("gated", "two"))
    for a, b in zip(one.iters, two.iters, strict=False):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["auxiliary"]["balance"] == pytest.approx(b["auxiliary"]["balance"], rel=0.1)  # by micro-batch


def test_tensor_parallelism_is_refused_before_and_in_the_run(checkout):
    keys = "--tensor_parallel=2 --gradient_accumulation_steps=2"
    planned = run(f"python train.py ../mine/small.py {keys} --dry_run --world_size=2", checkout)
    real = run(f"torchrun --standalone --nproc_per_node=2 train.py ../mine/small.py {keys}", checkout)
    for done in (planned, real):
        assert done.returncode != 0
        assert "tensor_parallel does not know how ranks share" in done.stderr


def test_the_search_goes_through_the_family_and_its_config_runs(checkout, printed):
    assert "Architecture     2L-1A1G-" in only(printed, "--grid_search")
    assert "the law is one of dense models" in only(printed, "--grid_search")
    emitted = (checkout / "out/best.py").read_text()
    assert f"components = {str(checkout.parent / 'mine')!r}" in emitted
    flops = float(
        re.search(r"FLOPs of the run:\s+([\d.e+]+) \(full\)", only(printed, "out/best.py --dry_run")).group(1)
    )
    assert 0.97e11 < flops <= 1e11


def test_equal_flops_are_compared(checkout, printed):
    ours, theirs = (read_run(checkout / f"out/{name}/log.jsonl") for name in ("slots", "llama"))
    a, b = (log.summary["flops"]["full"] for log in (ours, theirs))
    assert math.isclose(a, b, rel_tol=0.05)
    assert "slots" in only(printed, "compare_architectures.py")
    assert (checkout / "out/slots-llama.html").stat().st_size > 10_000


DECODE = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from configurator import load
from model_builder import build_model
model = build_model(load(["../mine/small.py", "--vocab_size=61"]).model, seed=3).double().eval()
tokens = torch.randint(61, (2, 40), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    whole, caches = model(tokens), model.empty_caches(2, 40)
    parts = torch.cat([model(part, caches=caches) for part in tokens.split([7, 1, 1, 20, 1, 10], dim=1)], dim=1)
print((whole - parts).abs().max().item() / whole.abs().max().item())
"""


def test_decoding_is_the_whole_forward_pass(checkout):
    done = subprocess.run(
        [sys.executable, "-c", DECODE, str(ROOT)], cwd=checkout, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5  # the state is float32
