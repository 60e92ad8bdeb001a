"""The order in which windows are shown, the batches, and their preparation in the background."""

import gc
import itertools
import math
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.dataset import open_dataset
from data.loader import Batch, WindowLoader, WindowOrder, prefetch
from data.writer import DatasetWriter

REPOSITORY = Path(__file__).resolve().parent.parent
PLAIN = {"kind": "bytes", "end_of_document": None}
seeds = st.integers(-(2**63), 2**64)


def write_dataset(folder, train, vocab_size=256):
    with DatasetWriter(folder, PLAIN, vocab_size, source="a test") as writer:
        writer.add("train", train, text_bytes=len(train))
        writer.add("val", train[:1000], text_bytes=len(train[:1000]))
    return open_dataset(folder)


# The order


@settings(max_examples=200)
@given(n_windows=st.integers(1, 3000), seed=seeds, epoch=st.integers(0, 1 << 30))
def test_every_window_once_per_epoch(n_windows, seed, epoch):
    order = WindowOrder(n_windows, seed)
    windows = order.window(epoch * n_windows + np.arange(n_windows))
    assert np.array_equal(np.sort(windows), np.arange(n_windows))


@settings(max_examples=50)
@given(n_windows=st.integers(1 << 16, 1 << 40), seed=seeds, start=st.integers(0, 1 << 60))
def test_a_huge_corpus_repeats_no_window_within_an_epoch(n_windows, seed, start):
    start -= start % n_windows
    windows = WindowOrder(n_windows, seed).window(start + np.arange(1 << 12))
    assert windows.min() >= 0 and windows.max() < n_windows
    assert len(np.unique(windows)) == len(windows)


@given(seed=seeds, indices=st.lists(st.integers(0, 1 << 60), max_size=20))
def test_a_window_depends_on_nothing_but_seed_and_index(seed, indices):
    together = WindowOrder(1000, seed).window(np.array(indices, dtype=np.int64))
    assert together.dtype == np.int64
    assert together.tolist() == [int(WindowOrder(1000, seed).window(index)) for index in indices]


def test_the_order_never_changes_between_versions():
    # A change of these numbers changes the data that a run sees after it is resumed.
    assert WindowOrder(10, 0).window(np.arange(20)).tolist() == [
        5,
        8,
        1,
        3,
        7,
        9,
        0,
        2,
        4,
        6,
        9,
        4,
        7,
        5,
        2,
        8,
        1,
        3,
        6,
        0,
    ]
    assert WindowOrder(10**6, 1337).window(np.arange(5)).tolist() == [776200, 676379, 663211, 321404, 576411]
    assert WindowOrder(2**40, 2**63).window(np.arange(3)).tolist() == [830574765120, 300126434705, 282927260394]


@pytest.mark.parametrize("n_windows", [1000, 2**16, 10**6])
def test_an_epoch_looks_like_a_random_permutation(n_windows):
    """Each statistic within five standard deviations of a uniformly random permutation (the seed is fixed)."""
    order = WindowOrder(n_windows, seed=1)
    first, second = order.window(np.arange(2 * n_windows)).reshape(2, n_windows)
    index = np.arange(n_windows)
    other_seed = WindowOrder(n_windows, seed=2).window(index)
    pairs = {
        "index and window": (index, first),
        "neighbours": (first[:-1], first[1:]),
        "neighbours but one": (first[:-2], first[2:]),
        "two epochs": (first, second),
        "two seeds": (first, other_seed),
    }
    for name, (a, b) in pairs.items():
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(n_windows), name
        assert np.sum(a == b) < 20, name  # about one in expectation
    displacement = np.abs(first - index).mean() / n_windows  # 1/3, variance of |u - v| is 1/18
    assert abs(displacement - 1 / 3) < 5 * math.sqrt(1 / 18 / n_windows)
    ascents = np.sum(first[1:] > first[:-1])  # (n - 1) / 2, variance (n + 1) / 12
    assert abs(ascents - (n_windows - 1) / 2) < 5 * math.sqrt((n_windows + 1) / 12)
    differences = len(np.unique(np.diff(first) % n_windows))  # as when n balls are thrown into n bins: 1 - 1/e are hit
    assert abs(differences / n_windows - (1 - 1 / math.e)) < 5 * 0.5 / math.sqrt(n_windows)


@pytest.mark.parametrize(("n_windows", "bound"), [(2, 23.9), (3, 35.9), (4, 71.1)])
def test_a_small_corpus_meets_all_its_orders_equally_often(n_windows, bound):
    """Pearson's statistic over 24,000 epochs against its 1 - 10^-6 quantile (n! - 1 degrees of freedom)."""
    epochs = WindowOrder(n_windows, seed=3).window(np.arange(24_000 * n_windows)).reshape(-1, n_windows)
    expected = 24_000 / math.factorial(n_windows)
    counts = Counter(map(tuple, epochs.tolist()))
    assert len(counts) == math.factorial(n_windows)
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < bound


def test_every_place_of_an_epoch_shows_every_window_equally_often():
    epochs = WindowOrder(10, seed=4).window(np.arange(20_000 * 10)).reshape(-1, 10)
    for place in range(10):
        counts = np.bincount(epochs[:, place], minlength=10)
        assert np.sum((counts - 2000.0) ** 2 / 2000) < 46.7  # 1 - 5e-7 quantile with 9 degrees of freedom


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="n_windows"):
        WindowOrder(0, seed=1)
    with pytest.raises(ValueError, match="start at 0"):
        WindowOrder(5, seed=1).window(np.array([3, -1]))


# The batches


@settings(max_examples=40)
@given(
    tokens=st.integers(2, 400),
    block_size=st.integers(1, 50),
    first=st.integers(0, 500),
    batch_size=st.integers(1, 9),
    vocab_size=st.sampled_from([1000, 100_000]),
    seed=seeds,
)
def test_a_batch_is_the_slices_of_the_file(tokens, block_size, first, batch_size, vocab_size, seed):
    block_size = min(block_size, tokens - 1)
    text = np.random.default_rng(0).integers(0, vocab_size, tokens)
    with tempfile.TemporaryDirectory() as folder:
        loader = WindowLoader(write_dataset(folder, text, vocab_size), "train", block_size, seed)
    assert loader.n_windows == len(range(0, tokens - block_size, block_size))
    batch = loader.batch(first, batch_size)
    inputs, targets = batch.tokens, batch.targets
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.shape == targets.shape == (batch_size, block_size)
    order = WindowOrder(loader.n_windows, seed)
    for row in range(batch_size):
        start = int(order.window(first + row)) * block_size
        assert inputs[row].tolist() == text[start : start + block_size].tolist()
        assert targets[row].tolist() == text[start + 1 : start + 1 + block_size].tolist()


def test_an_epoch_of_batches_trains_on_every_token_once(tmp_path):
    dataset = write_dataset(tmp_path, np.arange(1 + 64 * 8), vocab_size=1000)
    loader = WindowLoader(dataset, "train", block_size=8, seed=5)
    assert loader.n_windows == 64
    batches = [loader.batch(first, 16) for first in range(0, 64, 16)]
    assert sorted(torch.cat([batch.tokens for batch in batches]).ravel().tolist()) == list(range(512))
    assert sorted(torch.cat([batch.targets for batch in batches]).ravel().tolist()) == list(range(1, 513))


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_global_order_is_the_same_for_any_number_of_ranks(tmp_path, ranks):
    dataset = write_dataset(tmp_path, np.arange(5000) % 251)
    batch_size, accumulation, steps = 3, 4, 5

    def data_of(rank, ranks):
        """{(step, micro): inputs} that one rank reads, in its own process and with its own loader."""
        loader = WindowLoader(dataset, "train", block_size=16, seed=6)
        return {
            (step, micro): loader.batch((step * accumulation + micro) * batch_size, batch_size).tokens
            for step in range(steps)
            for micro in range(rank, accumulation, ranks)
        }

    alone = data_of(0, 1)
    shared = [data_of(rank, ranks) for rank in range(ranks)]
    assert sum(map(len, shared)) == len(alone)
    for part in shared:
        for place, inputs in part.items():
            assert torch.equal(inputs, alone[place])


def test_preparing_the_dataset_anew_does_not_change_the_data_of_a_run(tmp_path):
    loader = WindowLoader(write_dataset(tmp_path, np.full(1000, 1)), "train", block_size=10, seed=7)
    write_dataset(tmp_path, np.full(500, 2))
    inputs = loader.batch(0, loader.n_windows).tokens
    assert torch.all(inputs == 1)


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_stays_flat_while_the_whole_file_is_read(tmp_path):
    file_bytes = 64 << 20
    dataset = write_dataset(tmp_path, np.zeros(file_bytes // 2, dtype=np.uint8))
    loader = WindowLoader(dataset, "train", block_size=1024, seed=8)
    loader.batch(0, 32)
    before = resident_bytes()
    highest = 0
    for first in range(0, loader.n_windows, 32):
        loader.batch(first, 32)
        highest = max(highest, resident_bytes())
    assert highest - before < file_bytes / 4

    mapped = np.memmap(
        dataset.splits["train"].shards[0].path, dtype=np.uint16, mode="r"
    )  # a map that stays open does grow
    mapped.sum()
    assert resident_bytes() - before > file_bytes / 2


# The background


class Recorder:
    """Stands in for a loader: batches that tell their index, and events that tell which have been prepared."""

    def __init__(self, fails_at=None):
        self.prepared = [threading.Event() for _ in range(100)]
        self.fails_at = fails_at

    def batch(self, first_sample, batch_size):
        if first_sample == self.fails_at:
            raise OSError("the disk went away")
        self.prepared[first_sample].set()
        both = torch.full((batch_size, 2), first_sample)
        return Batch(both, both + 1)


def test_prefetched_batches_are_the_direct_ones(tmp_path):
    loader = WindowLoader(write_dataset(tmp_path, np.arange(3000) % 199), "train", block_size=16, seed=9)
    for depth in (0, 1, 2, 50):
        firsts = list(range(0, 40, 4))
        batches = list(prefetch(loader, iter(firsts), 4, "cpu", depth=depth))
        assert len(batches) == len(firsts)
        for first, batch in zip(firsts, batches, strict=True):
            assert torch.equal(batch.tokens, loader.batch(first, 4).tokens)
            assert torch.equal(batch.targets, loader.batch(first, 4).targets)


def test_the_next_batches_are_prepared_while_the_caller_works():
    recorder = Recorder()
    batches = prefetch(recorder, itertools.count(), 1, "cpu", depth=2)
    assert next(batches).tokens[0, 0] == 0
    # The caller asks for nothing now: only a thread beside it can prepare the next two.
    assert recorder.prepared[1].wait(timeout=60) and recorder.prepared[2].wait(timeout=60)
    assert next(batches).tokens[0, 0] == 1
    assert recorder.prepared[3].wait(timeout=60)
    batches.close()
    assert not recorder.prepared[4].is_set()  # no more than `depth` ahead


def test_an_error_in_the_background_reaches_the_caller_in_its_place():
    batches = prefetch(Recorder(fails_at=2), itertools.count(), 1, "cpu")
    assert [next(batches).tokens[0, 0].item() for _ in range(2)] == [0, 1]
    with pytest.raises(OSError, match="the disk went away"):
        next(batches)
    assert not prefetch_threads()


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("end", ["close", "drop"])
def test_closing_or_dropping_stops_the_thread(end):
    batches = prefetch(Recorder(), itertools.count(), 1, "cpu")
    next(batches)
    assert prefetch_threads()
    if end == "close":
        batches.close()
    else:
        del batches
        gc.collect()
    assert not prefetch_threads()


ENDLESS = """
import itertools, sys, time, torch
from data.loader import Batch, prefetch

class Slow:
    def batch(self, first_sample, batch_size):
        time.sleep(0.05)
        return Batch(torch.zeros(1, 1), torch.zeros(1, 1))

batches = prefetch(Slow(), itertools.count(), 1, "cpu")
next(batches)
print("running", flush=True)
"""


def test_an_abandoned_prefetch_does_not_keep_the_interpreter_alive():
    done = subprocess.run([sys.executable, "-c", ENDLESS], cwd=REPOSITORY, timeout=120, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "running\n", "")


def test_ctrl_c_ends_a_program_that_waits_for_batches():
    program = ENDLESS + "for _ in batches:\n    pass\n"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, stdout=-1, stderr=-1, text=True)
    assert process.stdout.readline() == "running\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.gpu
def test_prefetched_batches_arrive_on_the_gpu_unchanged(tmp_path):
    loader = WindowLoader(write_dataset(tmp_path, np.arange(3000) % 199), "train", block_size=16, seed=9)
    for first, batch in zip(range(0, 40, 4), prefetch(loader, range(0, 40, 4), 4, "cuda"), strict=True):
        inputs, targets = batch.tokens, batch.targets
        assert inputs.is_cuda and targets.is_cuda
        assert torch.equal(inputs.cpu(), loader.batch(first, 4).tokens)
        assert torch.equal(targets.cpu(), loader.batch(first, 4).targets)
