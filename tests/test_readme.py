"""The README's first hour is run as it stands, only shorter; its config file and its links too."""

import itertools
import math
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from commands import Done
from conftest import ROOT, environment

from configurator import load
from runs.logs import read_run
from training.plan import check_ranks

PAGES = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/reference").glob("*.md")]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(PAGES)]
README = (ROOT / "README.md").read_text()
SHORTER = {
    "quickstart.py": "--max_iters=3 --eval_iters=1 --n_layer=1 --n_embd=48",
    "laptop.py --": "--max_iters=3 --eval_iters=1",
    "sample.py": "--max_new_tokens=5",
    "evaluate.py": "--limit=5",
    "ladder.py plan": "--budget=2e10 --block_size=32",
}


def first_hour() -> list[str]:
    return [line for block in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL) for line in block.splitlines()]


def shortened(command: str) -> str:
    """The same command on fewer steps of a smaller model; the resumed run goes on for two more."""
    for named, keys in SHORTER.items():
        if named in command:
            command = re.sub(r"--(max_iters|max_new_tokens)=\S+", "", command) + f" {keys}"
    return command.replace("--max_iters=3", "--max_iters=5") if "--init_from=auto" in command else command


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The repository's code in a folder of its own, where runs and data may be written."""
    folder = tmp_path_factory.mktemp("checkout")
    for path in ROOT.iterdir():
        if path.name not in ("data", "out", "config", "ladder") and not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    shutil.copytree(ROOT / "config", folder / "config")
    prepare = [
        sys.executable,
        str(ROOT / "data/python_stdlib/prepare.py"),
        "--out_dir",
        str(folder / "data/python_stdlib"),
    ]
    subprocess.run(prepare, check=True, capture_output=True, env=environment())
    return folder


def run(command: str, folder: Path) -> Done:
    """A `python` or `torchrun` command, in a process that need not import PyTorch first (`make quickstart` shows that
    a fresh one can)."""
    program, *arguments = shlex.split(command)
    before = list(itertools.takewhile(lambda argument: not argument.endswith(".py"), arguments))
    script, *keys = arguments[len(before) :]
    assert program == ("torchrun" if before else "python")
    if script == "train.py" or (script, keys[0]) == ("ladder.py", "plan"):
        keys += [f"--data_dir={folder / 'data'}", "--device=cpu"]
    return processes.run(folder / script, keys, folder, environment(), before)


@pytest.mark.slow
def test_the_first_hour(checkout):
    commands = [command for command in first_hour() if not command.startswith("source ")]
    assert len(commands) >= 8 and any("torchrun" in command for command in commands)
    for command in commands:
        done = run(shortened(command), checkout)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    one, two = (read_run(checkout / "out" / name) for name in ("rope", "two"))
    assert one.run["dtype"] == two.run["dtype"] == "float32" and two.run["hardware"]["ranks"] == 2
    losses = [dict(log.val_losses()) for log in (one, two)]
    assert list(losses[1]) == [0, 3] and losses[1] == pytest.approx(
        {step: losses[0][step] for step in (0, 3)}, abs=1e-4
    )
    assert (checkout / "out/rope-alibi.png").stat().st_size > 10_000
    for page in ("ladder/first/report.html", "out/rope-alibi.html"):
        assert "gpt2" in (text := (checkout / page).read_text()) or "alibi" in text


def test_the_config_file_with_a_component_of_its_own(checkout):
    (config,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    (checkout / "sine.py").write_text(config)
    done = run("python train.py sine.py --max_iters=2 --eval_iters=1 --warmup_iters=0", checkout)
    assert done.returncode == 0 and "finished at step 2" in done.stdout, done.stderr


def train_commands() -> list[str]:
    """Those of the guides, which need more ranks, data or hours than a test has."""
    texts = [(ROOT / name).read_text() for name in ("README.md", "TRAINING_GUIDE.md", "docs/distributed.md")]
    blocks = [block for text in texts for block in re.findall(r"```\n(.*?)```", text, flags=re.DOTALL)]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return sorted({line for line in lines if re.match(r"(python|torchrun) (.* )?train\.py config/", line)})


@pytest.mark.parametrize("command", train_commands())
def test_the_guides_train_commands_are_accepted(command):
    launcher, _, keys = command.partition("train.py ")
    configuration = load([str(ROOT / key) if key.startswith("config/") else key for key in keys.split()])
    numbers = {name: int(number) for name, number in re.findall(r"--(nnodes|nproc_per_node)=(\d+)", launcher)}
    check_ranks(configuration, configuration.run.world_size or math.prod(numbers.values()))


def anchors(document: Path) -> set[str]:
    """What `#...` of a link can name: the headings, as they are spelled there."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", document.read_text()):
        path = document.parent / target if target else document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def test_the_index_names_every_document_under_one_of_three_headings():
    parts = re.split(r"^## (.+)$", (ROOT / "docs/README.md").read_text(), flags=re.MULTILINE)
    assert parts[1::2] == ["Using", "Reference", "Extending"]
    named = [name for part in parts[2::2] for name in set(re.findall(r"\]\(((?:reference/)?[\w.]+\.md)\)", part))]
    pages = {str(path.relative_to(ROOT / "docs")) for path in PAGES}
    assert sorted(named) == sorted(pages - {"README.md"})
