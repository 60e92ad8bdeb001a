"""How a token is chosen beyond temperature, top_k and top_p: against transformers' processors; where a text stops."""

import pytest
import torch
import transformers
from commands import command
from conftest import BYTES, training
from hypothesis import given
from hypothesis import strategies as st
from setups import LLAMA

import sample
from data.tokenizers import tokenizer_from_meta
from inference.sampling import Sampling, distribution
from inference.text import has_ended, until

BYTE_TOKENIZER = tokenizer_from_meta(BYTES)


@given(st.data())
def test_what_stays_is_what_stays_in_transformers(data):
    """Its processors in the order of its `generate`, in float64. Where a sum of probabilities is within rounding of its
    bound, either may keep one more."""
    logits = data.draw(st.lists(st.floats(-20, 20), min_size=2, max_size=30, unique=True))
    seen = data.draw(st.lists(st.integers(0, len(logits) - 1), max_size=5))
    how = Sampling(
        temperature=data.draw(st.floats(0.3, 3)),
        top_k=data.draw(st.integers(1, 40)),
        top_p=data.draw(st.just(1.0) | st.floats(0.2, 0.99)),
        min_p=data.draw(st.just(0.0) | st.floats(0.01, 0.9)),
        typical_p=data.draw(st.just(1.0) | st.floats(0.1, 0.95)),
        repetition_penalty=data.draw(st.just(1.0) | st.floats(0.5, 2)),
    )
    processors = [
        transformers.RepetitionPenaltyLogitsProcessor(how.repetition_penalty),
        transformers.TemperatureLogitsWarper(how.temperature),
        transformers.TopKLogitsWarper(how.top_k),
        *([transformers.TopPLogitsWarper(how.top_p)] if how.top_p < 1 else []),
        transformers.MinPLogitsWarper(how.min_p),
        *([transformers.TypicalLogitsWarper(how.typical_p)] if how.typical_p < 1 else []),
    ]
    scores, ids = torch.tensor([logits], dtype=torch.float64), torch.tensor([seen], dtype=torch.long)
    for processor in processors:
        scores = processor(ids, scores)
    expected = scores[0].softmax(0)
    split = data.draw(st.integers(0, len(seen)))
    found = distribution(torch.tensor(logits, dtype=torch.float64), how, seen[:split], seen[split:])
    if torch.equal(found > 0, expected > 0):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    else:
        exact = torch.tensor(logits, dtype=torch.float64)
        of_all = distribution(exact, Sampling(how.temperature, how.top_k, 1.0, 0, 1, how.repetition_penalty), seen)
        bounds = [how.top_p, how.typical_p, how.min_p]
        assert any(is_near(of_all, bound) for bound in bounds), (found, expected)


def is_near(probabilities, bound):
    """Whether some sum of the largest, or a ratio to the largest, is within rounding of a bound, or two are equal."""
    ordered = probabilities.sort(descending=True).values
    near = (ordered.cumsum(0) - bound).abs().min() < 1e-9 or (ordered / ordered[0] - bound).abs().min() < 1e-9
    return bool(near or (ordered[:-1] - ordered[1:]).abs().min() < 1e-12)


def test_penalties_of_what_was_written_by_hand():
    """As OpenAI states them: of a token that came c times the logit is lower by presence, and by c times frequency. The
    prompt does not count."""
    logits, new = torch.tensor([1.0, 2.0, 3.0, 4.0]), [3, 3, 1]
    how = Sampling(1.0, 4, 1.0, presence_penalty=0.5, frequency_penalty=0.25)
    expected = (logits - torch.tensor([0.0, 0.75, 0.0, 1.0])).double().softmax(0)
    torch.testing.assert_close(distribution(logits, how, [0, 0], new), expected)
    greedy = Sampling(0.0, 4, 1.0, frequency_penalty=1.0)
    assert distribution(logits, greedy, [], new).tolist() == [0, 0, 1, 0]
    strong = Sampling(0.0, 4, 1.0, repetition_penalty=5.0)
    assert distribution(logits, strong, [3], [2]).tolist() == [0, 1, 0, 0]
    assert distribution(-logits, strong, [0], []).tolist() == [0, 1, 0, 0]


def test_the_most_typical_of_a_skewed_distribution_is_not_the_likeliest():
    """Of 0.5 and ten of 0.05 the entropy is 1.844 nats: nearer to the surprise of the ten, 2.996, than to 0.693."""
    logits = torch.tensor([0.5, *[0.05] * 10], dtype=torch.float64).log()
    assert distribution(logits, Sampling(1.0, 11, 1.0, typical_p=0.4)).tolist() == pytest.approx([1, *[0] * 10])
    logits = torch.tensor([0.8, *[0.02] * 10], dtype=torch.float64).log()  # 0.961: 0.223 is nearer than 3.912
    assert distribution(logits, Sampling(1.0, 11, 1.0, typical_p=0.5)).tolist() == pytest.approx([1, *[0] * 10])
    logits = torch.tensor([0.3, *[0.07] * 10], dtype=torch.float64).log()  # 2.223: 2.659 is nearer than 1.204
    found = distribution(logits, Sampling(1.0, 11, 1.0, typical_p=0.2)).tolist()
    assert found == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, *[0] * 7])


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_a_text_ends_before_its_first_stop_however_it_is_divided(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    expected = text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]
    found = list(until(iter(pieces), stops))
    assert "".join(found) == expected
    new = list(text.encode())
    first = next((n for n in range(1, len(new) + 1) if has_ended(BYTE_TOKENIZER, new[:n], stops)), None)
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    assert first == (min(ends) if ends else None)


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    run = tmp_path_factory.mktemp("sampling") / "run"
    assert training(data_dir, run, *LLAMA, "--max_iters=3").returncode == 0
    return run


def test_the_command_stops_where_it_is_told_to_and_takes_every_option(run):
    plain = command(sample.main, run, "--prompt=loss", "--device=cpu", "--max_new_tokens=24").stdout
    stop = plain[len("loss") + 8 : len("loss") + 10]
    options = [
        run,
        "--prompt=loss",
        "--device=cpu",
        "--max_new_tokens=24",
        f"--stop={stop}",
        "--stop=nowhere to be found",
    ]
    expected = plain[: plain.index(stop, len("loss"))] + "\n"
    for more in ([], ["--no_stream"]):
        assert command(sample.main, *options, *more).stdout == expected
    kinds = (
        "--min_p=0.1 --typical_p=0.9 --repetition_penalty=1.3 --presence_penalty=0.5 --frequency_penalty=-0.5".split()
    )
    done = command(sample.main, run, "--prompt=loss", "--device=cpu", "--max_new_tokens=24", *kinds)
    assert done.returncode == 0 and done.stdout.startswith("loss") and done.stdout != plain
    again = command(sample.main, run, "--prompt=loss", "--device=cpu", "--max_new_tokens=24", *kinds, "--no_stream")
    assert again.stdout == done.stdout


@given(st.data())
def test_penalties_of_any_size_leave_a_distribution(data):
    """Whatever they are, of logits of which some are of ids that are not to be chosen, which stay so."""
    penalties = st.sampled_from([1e308, -1e308, 1e-320, -3.0, 0.0])
    how = Sampling(
        temperature=data.draw(st.sampled_from([0.0, 1e-310, 1.0, 1e308])),
        top_k=data.draw(st.integers(1, 6)),
        top_p=data.draw(st.sampled_from([1e-320, 0.5, 1.0])),
        min_p=data.draw(st.sampled_from([0.0, 1.0])),
        typical_p=data.draw(st.sampled_from([1e-320, 0.5, 1.0])),
        repetition_penalty=data.draw(st.sampled_from([5e-324, 1e-300, 1.0, 1e308])),
        presence_penalty=data.draw(penalties),
        frequency_penalty=data.draw(penalties),
    )
    seen = data.draw(st.lists(st.integers(0, 4), max_size=8))
    found = distribution(torch.tensor([1.5, -2.0, 0.0, 30.0, 1.0, -torch.inf]), how, seen[:3], seen[3:])
    assert found.sum().item() == pytest.approx(1) and found.min() >= 0 and found[5] == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--stop=\udcff", "--stop: '\\udcff' in its text is half of a character"),
        ("--prompt=\udcff", "--prompt: '\\udcff' in its text is half of a character"),
        ("--min_p=2", "'2' is not a number from 0 to 1"),
        ("--typical_p=0", "'0' is not a number above 0, at most 1"),
        ("--repetition_penalty=0", "'0' is not a number above 0"),
        ("--presence_penalty=nan", "'nan' is not a number"),
        ("--stop=", "an empty text would end every text"),
    ],
)
def test_bad_options(run, option, message):
    done = command(sample.main, run, option)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
