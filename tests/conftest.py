"""What several tests need: a small dataset, and the commands as real subprocesses."""

import functools
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # leaves the second core to the other test worker; read by torch

import processes
import pytest
from commands import Done, command
from hypothesis import settings
from setups import LLAMA

import train as train_command
from data.tokenizers import tokenizer_from_meta
from data.writer import DatasetWriter
from evaluation import scoring

# How long an example takes is not what these tests are about, and a busy machine would fail them.
settings.register_profile("unhurried", parent=settings(), deadline=None)
settings.load_profile("unhurried")

# A job in the background of a shell ignores SIGINT, one under nohup SIGHUP, and so would the commands that the tests
# interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = Path(__file__).resolve().parent.parent
BYTES = {"kind": "bytes", "end_of_document": 0}


# The longest files begin, so that at the end no worker is left alone with one of them.
LONGEST = """
test_parallel test_checkpoint test_ladder test_faults test_resume test_readme test_rank_costs test_rank_memory
test_slurm test_interrupts test_docs test_report_page test_training test_hugging_face test_written_before
""".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the dataset `tiny`: some 20,000 bytes of a text that a small model can learn; and `short`, of
    documents of a word or two."""
    folder = tmp_path_factory.mktemp("data")
    write_words(folder / "tiny", {"train": 40, "val": 8}, length=80)
    write_words(folder / "short", {"train": 400, "val": 80}, length=2)
    return folder


def write_words(folder: Path, documents: dict[str, int], length: int) -> None:
    """So many documents of so many words."""
    rng, tokenizer = random.Random(0), tokenizer_from_meta(BYTES)
    words = ["loss", "model", "train", "token", "layer", "width", "depth", "scale"]
    with DatasetWriter(folder, BYTES, 256, "generated") as writer:
        for split, count in documents.items():
            for _ in range(count):
                text = " ".join(rng.choice(words) for _ in range(length))
                writer.add(split, [*tokenizer.encode(text), 0], len(text))


SMALL = """
--dataset=tiny --n_layer=2 --n_head=2 --n_embd=32 --block_size=32 --batch_size=4 --gradient_accumulation_steps=2
--max_iters=12 --eval_interval=4 --eval_iters=4 --warmup_iters=2 --learning_rate=1e-2 --min_lr=1e-3 --log_interval=1
--device=cpu --dtype=float32
""".split()


def training(data_dir: Path, run: Path | str, *keys: str) -> Done:
    """train.py in this process, on a small model; later keys replace earlier ones."""
    return command(train_command.main, *small_run(data_dir, f"--out_dir={run}", *keys))


def run_of_its_own(folder: Path) -> Path:
    """A short run of a small Llama, `run` in the folder, on data beside it that nobody else uses."""
    write_words(folder / "data/words", {"train": 40, "val": 8}, length=80)
    done = training(folder / "data", folder / "run", *LLAMA, "--dataset=words", "--block_size=64")
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def one_size_of_batch() -> Iterator[None]:
    """How many texts are read at once is found by the clock otherwise, and float32 rounds differently beside others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "LARGEST_BATCH", scoring.FIRST_BATCH)
        yield


def small_run(data_dir: Path, *keys: str) -> list[str]:
    given = [*SMALL, f"--data_dir={data_dir}", *keys]
    return list({key.partition("=")[0]: key for key in given}.values())


@pytest.fixture
def train(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """`train(*keys, ranks=1, script="train.py")` runs a small model in `tmp_path`: in this process, unless there are
    several ranks or another script."""
    monkeypatch.chdir(tmp_path)

    def run(*keys: str, ranks: int = 1, script: Path | None = None) -> Done:
        if ranks == 1 and script is None:
            return training(data_dir, "run", *keys)
        torchrun = ["--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
        given = small_run(data_dir, "--out_dir=run", *keys)
        return processes.run(script or ROOT / "train.py", given, tmp_path, environment(), torchrun)

    return run


@pytest.fixture(scope="session", autouse=True)
def peak_measured_once() -> Iterator[None]:
    """A run on a CPU measures its peak for half a second."""
    from parallel import device

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "measure_matmul", functools.cache(device.measure_matmul))
        yield


def environment() -> dict[str, str]:
    """Subprocesses find the project."""
    return os.environ | {"PYTHONPATH": str(ROOT)}
