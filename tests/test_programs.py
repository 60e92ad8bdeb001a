"""Programs that a model wrote: what one of them does reaches nothing but its own answer; HumanEval and files of such
questions, on answers that a test gives."""

import json
import os
import signal
import socket
import tempfile
import threading
import time
from pathlib import Path

import pytest
from benchmark_data import apart, write
from commands import command
from conftest import training, write_words
from setups import LLAMA

import evaluate
from evaluation import harness, programs, sandbox
from evaluation.sandbox import missing, run_confined

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"no namespaces: {missing()}")


@pytest.fixture
def outside():
    """A folder that a program can see: /tmp is another one for it."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


def test_what_a_program_does_is_its_own(outside, tmp_path):
    """Each fails for its own reason, and leaves nothing; one that does no harm passes."""
    (there := outside / "there").write_text("kept")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ends = {
            f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)": "Network is unreachable",
            "bytearray(8 << 30)": "MemoryError",
            f"open({str(there)!r}, 'w').write('gone')": "Read-only file system",
            f"open({str(outside / 'new')!r}, 'w')": "Read-only file system",
            f"open({str(tmp_path / 'new')!r}, 'w')": "No such file or directory",
            "open('/dev/shm/new', 'w')": "Read-only file system",
            "open('large', 'w').write('x' * (64 << 20))": "File too large",
            "import os; os.kill(1234567, 9)": "ProcessLookupError",
            f"import os; os.kill({os.getpid()}, 9)": "ProcessLookupError",
            "assert 1 == 2": "AssertionError",
            "def f(:": "SyntaxError",
            "raise SystemExit(0)": "SystemExit",
            "import os; os._exit(0)": "ended with code 0",
            "print('passed')\nimport os; os._exit(0)": "ended with code 0",
            "import ctypes; ctypes.string_at(0)": "ended with code",
        }
        for program, said in ends.items():
            ending = run_confined(program)
            assert not ending.passed and said in ending.said, (program, ending)
    assert there.read_text() == "kept" and len(list(outside.iterdir())) == 1
    assert not list(tmp_path.iterdir()) and not Path("/dev/shm/new").exists()
    here = "import os, json, math\nassert os.listdir() == [] and 'HOME' not in os.environ\nopen('x', 'w').write('y')\n"
    assert run_confined(here + "assert open('x').read() == 'y'\nassert sorted(os.environ) == ['LANG', 'PATH']").passed
    assert run_confined(here).passed  # the folder is empty again


def test_rights_are_given_up():
    """A program can neither make files writable again nor signal the group of whoever began it."""
    again = "import ctypes\nassert ctypes.CDLL(None).mount(None, b'/', None, 32 | 4096, None) == 0"
    assert run_confined(again).said == "AssertionError"
    caught = []
    kept = signal.signal(signal.SIGTERM, lambda *_: caught.append(1))
    try:
        run_confined("import os; os.kill(0, 15)")
    finally:
        signal.signal(signal.SIGTERM, kept)
    assert caught == []


def test_what_never_ends_is_ended():
    """One that computes, one that sleeps and asked not to die with its parent, and one with children."""
    alive = "import ctypes, time\nctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\ntime.sleep(4321)"
    children = "import os, time\nfor _ in range(4):\n    if os.fork() == 0:\n        time.sleep(4321)\ntime.sleep(4321)"
    for program in ("while True: pass", alive, children):
        start = time.monotonic()
        assert run_confined(program, 1).said == "took longer than 1 s" and time.monotonic() - start < 8
    time.sleep(0.2)
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _readable(path)]
    assert not [line for line in running if b"evaluation/sandbox.py" in line and str(os.getpid()).encode() in line]


def _readable(path):
    try:
        return bool(path.read_bytes())
    except OSError:
        return False


# ---------------------------------------------------------------------------------------------------------------------
# Questions

QUESTIONS = [
    {"prompt": 'def add(a, b):\n    """The sum."""\n', "entry_point": "add",
     "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n"},
    {"prompt": 'def double(a):\n    """Twice a."""\n', "entry_point": "double",
     "test": "def check(candidate):\n    assert candidate(4) == 8\n"},
    {"prompt": 'def largest(values):\n    """The largest."""\n', "entry_point": "largest",
     "test": "def check(candidate):\n    assert candidate([1, 9, 3]) == 9\n"},
]  # fmt: skip
ANSWERS = {"add": "    return a + b\n", "double": "    return a + 2\n", "largest": "    while True: pass\n"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    write_words(folder / "data/words", {"train": 40, "val": 8}, length=80)
    assert training(folder / "data", folder / "run", *LLAMA, "--dataset=words", "--block_size=64").returncode == 0
    return folder / "run"


@pytest.fixture
def answers(monkeypatch):
    """A model that writes ANSWERS; what it was asked."""
    asked = []

    def generate(self, requests, disable_tqdm=False):
        asked.extend(request.args for request in requests)
        return [ANSWERS[request.doc["entry_point"]] for request in requests]

    monkeypatch.setattr(harness.Asked, "generate_until", generate)
    monkeypatch.setattr(programs, "MOST_TOKENS", 32)  # of a block of 64
    monkeypatch.setattr(programs, "run_confined", lambda program: run_confined(program, 2))
    return asked


def test_a_file_of_questions(run, answers, tmp_path):
    """One of three answers is right; the others say why not."""
    (file := tmp_path / "made.jsonl").write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    saved = [f"--save_results={tmp_path / 'r.json'}", f"--save_samples={tmp_path / 's.jsonl'}"]
    done = command(evaluate.main, run, f"--tasks={file}", "--run_generated_code", "--device=cpu", *saved)
    assert done.returncode == 0, done.stderr
    (figure,) = json.loads((tmp_path / "r.json").read_text())["figures"]
    assert (figure["task"], figure["metric"], figure["samples"]) == ("made", "pass@1", 3)
    assert figure["value"] == pytest.approx(1 / 3)
    samples = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [sample["ending"] for sample in samples] == ["passed", "AssertionError", "took longer than 2 s"]
    assert answers[0][1]["until"] == list(programs.STOPS) and threading.active_count() < 20


def test_humaneval_is_its_dataset(run, answers, tmp_path, monkeypatch):
    """From a folder with its columns, found where the command is called."""
    apart(monkeypatch, tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    line = refused(run, "--benchmarks=humaneval", "--run_generated_code")
    assert "hf download --repo-type dataset openai/openai_humaneval" in line
    row = lambda n: {"task_id": f"HumanEval/{n}", "canonical_solution": "", **QUESTIONS[n]}  # noqa: E731
    write(tmp_path, programs.DATASET, {"openai_humaneval": (row, {"test": 3})})
    done = command(evaluate.main, run, "--benchmarks=humaneval", "--run_generated_code", "--limit=2", "--device=cpu")
    assert done.returncode == 0, done.stderr
    _, row = done.stdout.splitlines()
    assert "humaneval (0-shot)" in row and "50.0%" in row and "0% (pass@1)" in row and "25%+" in row


def refused(run, *arguments):
    done = command(evaluate.main, run, *arguments, "--device=cpu")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and done.stdout == "", done.stderr
    return errors[0]


def test_what_is_refused(run, tmp_path, monkeypatch):
    (file := tmp_path / "made.jsonl").write_text(json.dumps(QUESTIONS[0]) + "\n")
    assert "--run_generated_code allows it" in refused(run, f"--tasks={file}")
    assert "--run_generated_code allows it" in refused(run, "--benchmarks=humaneval")
    assert "generates up to 512 tokens, and the model's block is of 64" in refused(
        run, f"--tasks={file}", "--run_generated_code"
    )
    again = tmp_path / "other"
    again.mkdir()
    (again / "made.jsonl").write_text(json.dumps({**QUESTIONS[0], "max_gen_toks": 8}))
    file.write_text((again / "made.jsonl").read_text())
    both = f"--tasks={file},{again / 'made.jsonl'}"
    assert "two tasks have the name made" in refused(run, both, "--run_generated_code")
    for text, said in (('{"prompt": "x"}', "has no test"), ("x", "is no JSON object"),
                       (json.dumps({**QUESTIONS[0], "max_gen_toks": "1"}), "is no whole number")):  # fmt: skip
        file.write_text(text)
        assert said in refused(run, f"--tasks={file}", "--run_generated_code")
    file.write_text(json.dumps({**QUESTIONS[0], "max_gen_toks": 8}))
    done = command(evaluate.main, run, f"--tasks={file}", "--run_generated_code", "--device=cpu")
    assert done.returncode == 0 and "0.0%" in done.stdout
    monkeypatch.setattr(programs, "missing", lambda: "there is no unshare")
    assert "confining it is not possible here: there is no unshare" in refused(
        run, f"--tasks={file}", "--run_generated_code"
    )


def test_without_unshare_nothing_runs(monkeypatch):
    monkeypatch.setattr(sandbox, "UNSHARE", ("an-unshare-that-is-not-there",))
    missing.cache_clear()
    assert "there is no unshare" in missing()
    monkeypatch.setattr(sandbox, "UNSHARE", ("false",))
    missing.cache_clear()
    assert "does not let its user make namespaces" in missing()
    missing.cache_clear()
