"""No command line and no file brings a traceback, takes all memory, takes for ever, or leaves half of something."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from commands import command
from conftest import ROOT, training
from hostile import faults, files_in, hostile_case, run
from test_older_logs import OLDER

import checkpoint
import ladder

SEED, CASES, AT_ONCE = 0, 400, 2
SIZE = "--n_layer=1 --n_embd=16 --block_size=16 --batch_size=2 --max_iters=1 --eval_iters=1 --arch_preset=llama".split()
PLAN = "plan --budget 1e10 --arch gpt2,llama3 --seeds 1 --dataset tiny --data_dir data --block_size 16 --out ladder"


@pytest.fixture(scope="session")
def world(data_dir, tmp_path_factory):
    """A good file of each kind that a command reads."""
    return make_world(data_dir, tmp_path_factory.mktemp("hostile") / "world")


def make_world(data_dir, folder):
    folder.mkdir()
    shutil.copytree(data_dir, folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done(training("data", "out/run", *SIZE, "--compile=False"))
        done(command(checkpoint.main, "export", "out/run", "model.safetensors"))
        done(command(checkpoint.main, "export", "out/run", "hf", "--format", "hf"))
        done(command(ladder.main, *PLAN.split()))
        done(command(ladder.main, "run", "ladder"))
    shutil.copy(ROOT / "docs/results/isoflop/law.json", folder / "law.json")
    shutil.copy(ROOT / "config/backward_h100.jsonc", folder / "backward.jsonc")
    (folder / "old.json").write_text(json.dumps(OLDER))
    points = [f"{n},{d},{1.7 + 400 / n**0.34 + 400 / d**0.28}" for n in (1e6, 3e6, 1e7, 3e7) for d in (1e8, 1e9, 1e10)]
    (folder / "points.csv").write_text("\n".join(["N,D,loss", *points]) + "\n")
    (folder / "text").mkdir()
    (folder / "empty").mkdir()
    (folder / "text/a.txt").write_text("some words\n\nand more of them\n" * 40)
    (folder / "text/a.jsonl").write_text('{"text": "some words and more of them", "id": null}\n' * 40)
    (folder / "text/b.json").write_text(json.dumps([{"text": "some words"}] * 40))
    (folder / "chats.jsonl").write_text('{"prompt": "ab", "answer": "c"}\n' * 8)
    turns = "{% for m in messages %}{{ m.role[0] + m.content + '.' }}{% endfor %}"
    (folder / "t.jinja").write_text(turns + "{% if add_generation_prompt %}a{% endif %}\n")
    for name, target in {"loop": "loop", "full": "/dev/full", "null": "/dev/null"}.items():
        (folder / name).symlink_to(target)
    return folder


def done(ended):
    assert ended.returncode == 0, ended.stderr


def judged(world, folder, seed):
    """What is wrong with how the seed's command ended, in a line each."""
    case = hostile_case(world, folder, seed)
    before = files_in(folder)
    ended = run(case)
    found = [f"seed {seed}: {fault}: {case}\n{ended.stderr[-3000:]}" for fault in faults(case, ended, before)]
    shutil.rmtree(folder)
    return found


@pytest.mark.soak
def test_hostile_commands(world, tmp_path):
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(lambda seed: judged(world, tmp_path / str(seed), seed), range(SEED, SEED + CASES))
        wrong = [line for of_case in found for line in of_case]
    assert not wrong, "\n".join([f"{len(wrong)} faults", *wrong])
