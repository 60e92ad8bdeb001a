"""sample.py: the distribution it draws from, and the text it makes of a real run's checkpoint."""

import itertools
import json
import math
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from checkpoints import weights, without_its_tokenizer
from conftest import BYTES, ROOT, environment
from hypothesis import assume, given
from hypothesis import strategies as st
from test_run_logs import run_train

import sample
from configurator import from_dict
from data.tokenizers import tokenizer_from_meta
from data.writer import DatasetWriter
from inference.generation import generate
from inference.sampling import Sampling, distribution, draw
from inference.text import decode_stream
from model_builder import build_model
from runs.folder import read_state, write_state

BYTE_TOKENIZER = tokenizer_from_meta(BYTES)


@pytest.fixture(scope="module")
def folder(data_dir, tmp_path_factory):
    """A folder with the run out/small, whose checkpoints are those of steps 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("sample")
    assert run_train(data_dir, folder / "out/small", "--keep_last=3") == 0
    return folder


@pytest.fixture
def say(folder, monkeypatch, capsys):
    """`say(*arguments)` calls the command in `folder`; returns its exit code, what it printed, and its errors."""

    def call(*arguments):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["sample.py", "--device=cpu", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            sample.main()
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return call


def sample_process(cwd, *arguments):
    command = [sys.executable, str(ROOT / "sample.py"), "--device=cpu", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, timeout=60)


# ---------------------------------------------------------------------------------------------------------------------
# The distribution


def naive_distribution(logits, temperature, top_k, top_p):
    """{token: probability}, one token at a time; None where rounding could decide whether a token belongs to it."""
    ranked = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if temperature == 0:
        return {ranked[0]: 1.0}
    ranked = ranked[:top_k]
    weights = {token: math.exp((logits[token] - logits[ranked[0]]) / temperature) for token in ranked}
    whole = math.fsum(weights.values())
    nucleus, reached = {}, 0.0
    for token in ranked:
        nucleus[token] = weights[token] / whole
        reached = math.fsum(nucleus.values())
        if top_p < 1 and abs(reached - top_p) < 1e-9:
            return None
        if top_p < 1 and reached > top_p:
            break
    return {token: probability / reached for token, probability in nucleus.items()}


LOGITS = st.lists(
    st.floats(-20, 20, width=32) | st.integers(-3, 3).map(float),  # the integers make ties likely
    min_size=1,
    max_size=30,
)


@given(LOGITS, st.just(0.0) | st.floats(0.05, 10), st.integers(1, 40), st.just(1.0) | st.floats(1e-3, 0.999))
def test_the_distribution_is_what_a_naive_one_gives(logits, temperature, top_k, top_p):
    expected = naive_distribution(logits, temperature, top_k, top_p)
    assume(expected is not None)
    found = distribution(torch.tensor(logits), Sampling(temperature, top_k, top_p))
    assert found.dtype == torch.float64 and found.shape == (len(logits),)
    assert {token for token, probability in enumerate(found.tolist()) if probability > 0} <= expected.keys()
    for token in range(len(logits)):
        assert found[token].item() == pytest.approx(expected.get(token, 0.0), rel=1e-9, abs=1e-12)


def test_temperature_top_k_and_top_p_by_hand():
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()

    def probabilities(temperature=1.0, top_k=4, top_p=1.0):
        return distribution(logits, Sampling(temperature, top_k, top_p)).tolist()

    assert probabilities() == pytest.approx([0.5, 0.25, 0.125, 0.125])
    assert probabilities(temperature=0.5) == pytest.approx([16 / 22, 4 / 22, 1 / 22, 1 / 22])
    assert probabilities(top_k=2) == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert probabilities(top_p=0.6) == pytest.approx([2 / 3, 1 / 3, 0, 0])  # 0.5 does not reach it
    assert probabilities(top_k=3, top_p=0.9) == pytest.approx([4 / 7, 2 / 7, 1 / 7, 0])  # of what top_k left
    assert probabilities(temperature=1e-300) == probabilities(temperature=0) == [1, 0, 0, 0]


def test_draws_come_as_often_as_they_are_likely():
    """10,000 draws: a count of mean 10,000 p stays within five standard deviations."""
    probabilities = torch.tensor([0.7, 0.0, 0.25, 0.05], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    counts = torch.bincount(torch.tensor([draw(probabilities, generator) for _ in range(10_000)]), minlength=4)
    for count, p in zip(counts.tolist(), probabilities.tolist(), strict=True):
        assert abs(count - 10_000 * p) <= 5 * math.sqrt(10_000 * p * (1 - p))


# ---------------------------------------------------------------------------------------------------------------------
# The loop


class Alphabet(torch.nn.Module):
    """A model that follows each byte by the next one, and prefers an id beyond the bytes to both."""

    def __init__(self, block_size, context_limit):
        super().__init__()
        self.config = type("Config", (), {"block_size": block_size})
        self.context_limit = context_limit
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.contexts = []

    def empty_caches(self, batch, length):
        assert batch == 1 and (self.context_limit is None or length <= self.context_limit)
        return []

    def hidden(self, tokens, caches, last=None):
        self.contexts.append((bytes(caches), bytes(tokens[0].tolist())))
        caches += tokens[0].tolist()

    def next_token_logits(self, tokens, caches=None):
        self.hidden(tokens, [] if caches is None else caches)
        logits = torch.full((1, 300), -10.0)
        logits[0, tokens[0, -1] + 1] = 10.0
        logits[0, 299] = 20.0
        return logits


GREEDY = Sampling(temperature=0, top_k=200, top_p=1.0)


def generated(model, start, tokenizer=BYTE_TOKENIZER, max_new_tokens=5):
    tokens = generate(model, list(start), tokenizer, GREEDY, max_new_tokens, torch.Generator())
    return bytes(tokens)


def test_every_token_is_read_once_until_the_block_is_full_and_then_the_last_block_again():
    model = Alphabet(block_size=5, context_limit=5)
    assert generated(model, b"abc") == b"defgh"
    in_caches = [(b"", b"abc"), (b"abc", b"d"), (b"abcd", b"e")]
    assert model.contexts == [*in_caches, (b"", b"bcdef"), (b"", b"cdefg")]


def test_of_a_prompt_beyond_the_block_the_last_block_is_read():
    model = Alphabet(block_size=3, context_limit=3)
    assert generated(model, b"abcab") == b"cdefg"
    assert model.contexts == [(b"", b"cab"), (b"", b"abc"), (b"", b"bcd"), (b"", b"cde"), (b"", b"def")]


def test_without_a_limit_all_is_read_once_a_block_at_a_time():
    model = Alphabet(block_size=3, context_limit=None)
    assert generated(model, b"abcdefg", max_new_tokens=3) == b"hij"
    assert [piece for _, piece in model.contexts] == [b"abc", b"def", b"g", b"h", b"i"]
    assert all(before == b"abcdefghi"[: len(before)] for before, _ in model.contexts)


def test_the_end_of_the_document_ends_the_text():
    ends_at_e = tokenizer_from_meta({"kind": "bytes", "end_of_document": ord("e")})
    assert generated(Alphabet(8, 8), b"a", ends_at_e, max_new_tokens=100) == b"bcd"
    assert generated(Alphabet(8, 8), b"e", ends_at_e, max_new_tokens=3) == b"fgh"


@given(st.text())
def test_a_streamed_text_is_whole_and_no_character_is_torn(text):
    ids = BYTE_TOKENIZER.encode(text)
    assume(0 not in ids)
    pieces = list(decode_stream(BYTE_TOKENIZER, [], iter(ids)))
    assert "".join(pieces) == text and max(map(len, pieces)) <= 1
    for cut in range(len(ids) + 1):  # a prompt's last character may go on in the model's first token
        assert "".join(decode_stream(BYTE_TOKENIZER, ids[:cut], iter(ids[cut:]))) == text


def test_bytes_that_are_no_text_are_shown_as_such():
    assert "".join(decode_stream(BYTE_TOKENIZER, [], iter(b"a\xffb\xe2\x82"))) == "a\ufffdb\ufffd"


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_a_greedy_text_is_the_argmax_of_the_checkpoint_step_by_step(folder, data_dir):
    """The whole command as a process, against the weights as they are on the disk."""
    prompt = "layer model token layer model token scale"  # longer than the block of 32
    done = sample_process(folder, "out/small", f"--prompt={prompt}", "--temperature=0", "--max_new_tokens=20")
    assert done.returncode == 0, done.stderr
    checkpoint = folder / "out/small/checkpoints/step_00000012"
    assert str(checkpoint.relative_to(folder)) in done.stderr.decode()
    model = build_model(from_dict(json.loads((checkpoint / "state.json").read_text())["config"]))
    model.load_state_dict(weights(checkpoint))
    ids = list(prompt.encode())
    for _ in range(20):
        ids.append(int(model(torch.tensor([ids[-32:]]))[0, -1].argmax()))
    assert 0 not in ids
    assert done.stdout.decode() == bytes(ids).decode("utf-8", errors="replace") + "\n"


def test_the_same_seed_gives_the_same_text(say):
    form = ["out/small", "--prompt=loss", "--max_new_tokens=40", "--top_p=0.95"]
    code, text, _ = say(*form, "--seed=1")
    assert code == 0 and text.startswith("loss") and len(text) > 20
    assert say(*form, "--seed=1", "--no_stream")[1] == text
    assert say("--out_dir=out/small", "--start=loss", "--max_new_tokens=40", "--top_p=0.95", "--seed=1")[1] == text
    assert say(*form, "--seed=2")[1] != text
    texts = say(*form, "--seed=1", "--num_samples=3")[1].split("-" * 20 + "\n")
    assert texts[0] == text and len(set(texts)) == 3


def test_texts_of_a_batch_are_those_that_stream(say, monkeypatch):
    """The n-th is the first of the n-th seed; a long row of them is made in several batches."""
    form = ["out/small", "--prompt=loss", "--max_new_tokens=40", "--seed=7"]
    streamed = say(*form, "--num_samples=5")[1]
    assert say(*form, "--num_samples=5", "--no_stream")[1] == streamed
    monkeypatch.setattr(sample, "AT_ONCE", 2)
    assert say(*form, "--num_samples=5", "--no_stream")[1] == streamed
    assert streamed.split("-" * 20 + "\n")[3] == say(*form[:-1], "--seed=10")[1]


def test_a_prompt_from_a_file(say, tmp_path):
    (tmp_path / "prompt.txt").write_text("tôken ")
    assert say("out/small", f"--prompt=FILE:{tmp_path}/prompt.txt", "--max_new_tokens=1")[1].startswith("tôken ")


def test_without_a_prompt_a_new_document_begins(say, monkeypatch):
    starts = []
    monkeypatch.setattr(sample, "generate", lambda model, start, *_: starts.append(start) or iter([]))
    assert say("out/small")[:2] == (0, "\n")
    assert starts == [[0]]


def test_the_checkpoint_that_is_asked_for(say, folder):
    def used(*arguments):
        code, _, errors = say("out/small", "--max_new_tokens=1", *arguments)
        assert code == 0, errors
        return errors.split(" (")[0], errors.split("(")[1].split(")")[0]

    state = json.loads((folder / "out/small/checkpoints/step_00000012/state.json").read_text())
    best = f"out/small/checkpoints/step_{state['progress']['best_step']:08d}"
    assert used() == used("--checkpoint=best") == (best, "best")
    assert used("--checkpoint=last") == ("out/small/checkpoints/step_00000012", "last")
    assert used("--checkpoint=4")[0] == "out/small/checkpoints/step_00000004"


def test_a_run_without_its_best_checkpoint_gives_its_last_one_and_says_so(say, folder, tmp_path):
    run = shutil.copytree(folder / "out/small", tmp_path / "run")
    checkpoint = run / "checkpoints/step_00000012"
    state = read_state(checkpoint)
    state["progress"]["best_step"] = 10
    write_state(checkpoint, state)
    assert "step_00000012 (last)" in say(run, "--max_new_tokens=1")[2]
    code, _, error = say(run, "--checkpoint=best")
    assert code == 2 and "choose --checkpoint=last, or a step of 4, 8, 12" in error


def test_a_component_from_the_config_file_and_a_padded_vocabulary(data_dir, tmp_path):
    """At this temperature a text of 300 ids without a mask would have one beyond the bytes, which has no text."""
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "from components.spec import Activation\n"
        "from model_components import register, register_spec\n"
        "@register_spec\n"
        "class Spec(Activation):\n"
        "    name = 'sine'\n"
        "@register('activation', 'sine')\n"
        "class Sine(torch.nn.Module):\n"
        "    def __init__(self, config):\n"
        "        super().__init__()\n"
        "    def forward(self, x):\n"
        "        return torch.sin(x)\n"
        "activation = 'sine'\n"
        "vocab_size = 320\n"
    )
    assert run_train(data_dir, tmp_path / "run", str(tmp_path / "own.py"), "--max_iters=2") == 0
    (tmp_path / "own.py").unlink()
    refused = sample_process(tmp_path, "run")
    assert refused.returncode == 2 and b"--config run/config.py" in refused.stderr, (
        "nothing of a run is executed unasked"
    )
    done = sample_process(
        tmp_path,
        "run",
        "--temperature=100",
        "--top_k=1000",
        "--max_new_tokens=300",
        "--seed=3",
        "--config=run/config.py",
    )
    assert done.returncode == 0, done.stderr
    assert b"sine" in done.stderr and len(done.stdout) > 100


def test_ctrl_c_ends_it_quietly(folder):
    command = [
        sys.executable,
        str(ROOT / "sample.py"),
        "out/small",
        "--device=cpu",
        "--prompt=xy",
        "--num_samples=9999",
    ]
    with subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.read(2) == b"xy"  # it streams: the text comes before the command ends
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and b"Traceback" not in errors


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "name a run's folder"),
        (["out/small", "--out_dir=out/other"], "two runs"),
        (["out/absent"], "no run folder out/absent"),
        (["out"], "out has no checkpoint"),
        (["out/small", "--temperature=-0.1"], "--temperature: '-0.1'"),
        (["out/small", "--temperature=nan"], "--temperature: 'nan'"),
        (["out/small", "--top_k=0"], "--top_k: '0'"),
        (["out/small", "--top_k=many"], "--top_k: 'many'"),
        (["out/small", "--top_p=0"], "--top_p: '0'"),
        (["out/small", "--top_p=1.01"], "--top_p: '1.01'"),
        (["out/small", "--max_new_tokens=0"], "--max_new_tokens: '0'"),
        (["out/small", "--num_samples=0"], "--num_samples: '0'"),
        (["out/small", "--seed=-1"], "--seed: '-1'"),
        (["out/small", "--checkpoint=newest"], "--checkpoint: 'newest'"),
        (["out/small", "--checkpoint=5"], "no checkpoint of step 5: choose --checkpoint=last, or a step of 4, 8, 12"),
        (["out/small", "--prompt=FILE:absent.txt"], "cannot read the prompt absent.txt"),
        (["out/small", "--device=tpu"], "device='tpu' is none of"),
        (["out/small", "--temprature=1"], "unrecognized arguments: --temprature=1"),
    ],
)
def test_mistakes_are_one_line(say, arguments, reason):
    code, text, errors = say(*arguments)
    assert (code, text) == (2, "")
    (line,) = errors.splitlines()
    assert line.startswith("error: ") and reason in line


def test_a_dataset_of_characters_names_what_it_cannot_encode(say, tmp_path):
    tokenizer = {"kind": "characters", "end_of_document": None, "characters": "abc "}
    with DatasetWriter(tmp_path / "data/chars", tokenizer, 4, "a test") as writer:
        for split in ("train", "val"):
            writer.add(split, list(itertools.islice(itertools.cycle(range(4)), 400)), 400)
    assert run_train(tmp_path / "data", tmp_path / "run", "--dataset=chars", "--max_iters=1") == 0
    code, text, errors = say(tmp_path / "run", "--prompt=abc", "--max_new_tokens=20")
    assert code == 0 and len(text) == 24 and set(text) <= set("abc \n")
    code, _, errors = say(tmp_path / "run", "--prompt=abz")
    assert code == 2 and "the character 'z'" in errors and len(errors.splitlines()) == 1
    code, _, errors = say(tmp_path / "run")
    assert code == 2 and "--prompt" in errors and len(errors.splitlines()) == 1
    shutil.rmtree(tmp_path / "data/chars")
    without_its_tokenizer(tmp_path / "run")
    code, _, errors = say(tmp_path / "run", "--prompt=abc")
    assert code == 2 and "there is no dataset folder" in errors and len(errors.splitlines()) == 1


def prepare_characters(folder, characters, first=0):
    tokenizer = {"kind": "characters", "end_of_document": None, "characters": characters}
    with DatasetWriter(folder, tokenizer, len(characters), "a test") as writer:
        for split in ("train", "val"):
            ids = itertools.cycle(range(len(characters)))
            writer.add(split, list(itertools.islice(ids, first, 400 + first)), 400)


def test_a_run_has_its_own_tokenizer(say, tmp_path):
    """Text of another alphabet of equal size, prepared where the run's dataset was, changes nothing of the run; that it
    goes on with such data is refused."""
    prepare_characters(tmp_path / "data/chars", "abc ")
    keys = [tmp_path / "data", tmp_path / "run", "--dataset=chars"]
    assert run_train(*keys, "--max_iters=1") == 0
    _, before, _ = say(tmp_path / "run", "--prompt=abc", "--max_new_tokens=20")
    prepare_characters(tmp_path / "data/chars", "wxyz")
    code, after, _ = say(tmp_path / "run", "--prompt=abc", "--max_new_tokens=20")
    assert (code, after) == (0, before)
    assert run_train(*keys, "--max_iters=2", "--init_from=resume") == 2
    shutil.rmtree(tmp_path / "data")
    assert say(tmp_path / "run", "--prompt=abc", "--max_new_tokens=20")[:2] == (0, before)


def test_a_run_of_an_earlier_version_is_not_read_in_another_alphabet(say, tmp_path):
    """It kept no tokenizer, but the checksums of its data."""
    prepare_characters(tmp_path / "data/chars", "abc ")
    assert run_train(tmp_path / "data", tmp_path / "run", "--dataset=chars", "--max_iters=1") == 0
    without_its_tokenizer(tmp_path / "run")
    assert say(tmp_path / "run", "--prompt=abc")[0] == 0
    prepare_characters(tmp_path / "data/chars", "wxyz", first=1)
    code, _, errors = say(tmp_path / "run", "--prompt=wxy")
    assert code == 2 and "was prepared anew since" in errors and len(errors.splitlines()) == 1


def test_a_damaged_checkpoint_is_one_line(say, folder, tmp_path):
    run = shutil.copytree(folder / "out/small", tmp_path / "run")
    (tensors,) = (run / "checkpoints/step_00000012").glob("*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:1000])
    code, _, errors = say(run, "--checkpoint=last")
    assert code == 2 and f"{tensors.name} is damaged" in errors and len(errors.splitlines()) == 1
