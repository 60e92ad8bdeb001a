"""Curation past one machine, through datatrove's executors: the same bytes as on one. SLURM's commands are played by
scripts that run what they are given; Ray runs where it is installed."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("datatrove")

from test_curation import CURATE, contents, dataclasses, small_plan

SBATCH = """
import os, re, subprocess, sys

file, script = sys.argv[-1], open(sys.argv[-1]).read()
options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", script, re.MULTILINE))
export = next((one for one in sys.argv if one.startswith("--export=ALL,")), "--export=ALL,RUN_OFFSET=0")
variable, value = export.removeprefix("--export=ALL,").split("=")
job = len(open("jobs").readlines()) + 1 if os.path.exists("jobs") else 1
with open("jobs", "a") as jobs:
    print(job, sorted(options.items()), sys.argv[1:-1], file=jobs)
print("Submitted batch job", job, flush=True)
assert "wait" in options
codes = []
first, last = map(int, options["array"].partition("%")[0].split("-"))
for task in range(first, last + 1):
    own = {variable: value, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_JOB_ID": str(job), "SLURM_NODELIST": "node[1-2]"}
    log = open(options["output"].replace("%A", str(job)).replace("%a", str(task)), "w")
    codes.append(subprocess.run(["bash", file], env=os.environ | own, stdout=log, stderr=log).returncode)
sys.exit(max(codes))
"""
SRUN = "import os, sys\nos.execvp(sys.argv[4], sys.argv[4:])\n"  # after -l -n 1
SCONTROL = "print('node1\\nnode2')\n"


def curate_with(folder: Path, path: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PATH": path}
    command = [sys.executable, CURATE, "--config=production", "--input=texts", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture
def slurm(tmp_path):
    """A PATH on which SLURM's commands are."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(f"#!{sys.executable}\n{text}")
        (folder / name).chmod(stat.S_IRWXU)
    return f"{folder}:{os.environ['PATH']}"


GIVEN = ["--good=texts/examples.jsonl"]
ON_SLURM = ["--executor=slurm", "--workers=3", "--sbatch", "partition=cpu", "time=01:00:00", "account=us"]


@pytest.mark.slow
def test_slurm_leaves_the_same_bytes_also_after_a_task_failed(tmp_path, slurm):
    plan = small_plan(tmp_path / "texts")
    assert curate_with(tmp_path, slurm, *GIVEN, "--output_dir=one", "--workers=1").returncode == 0
    broken = tmp_path / "texts/1.jsonl"
    (tmp_path / "aside").write_bytes(broken.read_bytes())
    times = broken.stat()
    broken.write_bytes(b"\xff" * times.st_size)
    os.utime(broken, ns=(times.st_atime_ns, times.st_mtime_ns))
    done = curate_with(tmp_path, slurm, *GIVEN, "--output_dir=two", *ON_SLURM)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    log = tmp_path / "two/.curation/log/documents/logs/task_00001.log"
    assert "documents: 1 tasks failed or were ended, see two/.curation/log/documents/logs/task_00001.log" in done.stderr
    assert "is not UTF-8 text" in log.read_text() and not (tmp_path / "two/manifest.json").exists()
    broken.write_bytes((tmp_path / "aside").read_bytes())
    os.utime(broken, ns=(times.st_atime_ns, times.st_mtime_ns))
    done = curate_with(tmp_path, slurm, *GIVEN, "--output_dir=two", *ON_SLURM)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "1 of 4 tasks are left" in done.stdout
    one, two = (contents(dataclasses.replace(plan, output_dir=tmp_path / name)) for name in ("one", "two"))
    assert one == two
    jobs = (tmp_path / "jobs").read_text()
    assert "('account', 'us')" in jobs and "('partition', 'cpu')" in jobs and "('array', '0-3%3')" in jobs
    assert all(f"curate_{stage.name}" in jobs for stage in plan.stages)


@pytest.mark.slow
def test_ray_leaves_the_same_bytes(tmp_path):
    pytest.importorskip("ray")
    plan = small_plan(tmp_path / "texts")
    path = os.environ["PATH"]
    assert curate_with(tmp_path, path, *GIVEN, "--output_dir=one", "--workers=1").returncode == 0
    done = curate_with(tmp_path, path, *GIVEN, "--output_dir=two", "--executor=ray", "--workers=2")
    assert done.returncode == 0, done.stderr
    one, two = (contents(dataclasses.replace(plan, output_dir=tmp_path / name)) for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("given, message", [
    (["--executor=slurm"], "--executor slurm needs --sbatch partition=..., too"),
    (["--executor=slurm", "--sbatch", "partition=cpu"], "--executor slurm needs --sbatch time=..., too"),
    (["--executor=slurm", "--sbatch", "cpu"], "--sbatch cpu: it takes options of sbatch as key=value"),
    (["--executor=slurm", "--sbatch", "partition=cpu", "time=1"], "there is no sbatch here"),
    (["--sbatch", "partition=cpu"], "--sbatch is for --executor slurm"),
])  # fmt: skip
def test_a_cluster_that_cannot_be_used_is_one_line(tmp_path, given, message):
    small_plan(tmp_path / "texts")
    done = curate_with(tmp_path, "/nowhere", *GIVEN, "--output_dir=out", *given)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "out").exists()


def test_without_ray_the_extra_is_named(tmp_path):
    small_plan(tmp_path / "texts")
    (tmp_path / "none/ray").mkdir(parents=True)
    (tmp_path / "none/ray/__init__.py").write_text("raise ImportError('no ray')\n")
    done = subprocess.run(
        [sys.executable, CURATE, "--input=texts", "--output_dir=out", "--executor=ray"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path / "none")}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr == "error: --executor ray needs the ray package: pip install -e '.[ray]'\n"
