"""Generation: a text of a batch is what it is alone, whatever stands beside it, for every mixer and every encoding of
positions; and the protocol of caches that this rests on.

Tolerances, absolute, of log-probabilities: 1e-10 in float64, in which texts are compared token by token, and 1e-5 in
float32, where the tokens are given.
"""

import dataclasses
import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decoding import BUILT, TOLERANCE, small_model
from torch import Tensor, nn

from common.errors import UserError
from components import registry
from components.caches import Caches
from components.spec import Mixer, matrices
from data.tokenizers import Tokenizer
from inference import generation
from inference.generation import generate, generate_batch
from inference.sampling import Sampling
from model_components import register, register_spec

BLOCK, IDS = 12, 61
ALL = "".join(BUILT)
EVERYTHING = Sampling(temperature=1.0, top_k=IDS, top_p=1.0)


def encodings(pattern):
    """The encodings of positions that a model of these mixers can have."""
    uses_positions = any(registry.by_letter("mixer")[letter].uses_positions for letter in pattern)
    for name, position in registry.specs("position_encoding").items():
        if registry.has_module("position_encoding", name) and (position.acts_in != "mixers" or uses_positions):
            yield name


MODELS = [(pattern, position) for pattern in [*BUILT, ALL] for position in encodings(pattern)]
every_model = pytest.mark.parametrize(("pattern", "position"), MODELS, ids=map("-".join, MODELS))


@functools.cache
def model_of(pattern, position, dtype=torch.float64):
    return small_model(pattern, dtype, position_encoding=position, block_size=BLOCK)


def prompts(*lengths):
    rng = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(IDS, (length,), generator=rng).tolist() for length in lengths]


class Ids(Tokenizer):
    """Without a text."""

    vocab_size = IDS


def together(model, starts, count, end=None, forced=None):
    """The new tokens of every text, the likeliest ones or, the `forced` ones; and the log-probabilities
    (V,) of every draw."""
    tokens, logs = [[] for _ in starts], [[] for _ in starts]
    generators = [torch.Generator() for _ in starts]

    def draw(probabilities, generator):
        (text,) = (number for number, own in enumerate(generators) if own is generator)
        logs[text].append(probabilities.log())
        return int(probabilities.argmax()) if forced is None else forced[text][len(logs[text]) - 1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "draw", draw)
        for text, token in generate_batch(model, starts, Ids(end), EVERYTHING, count, generators):
            tokens[text].append(token)
    return tokens, logs


def alone(model, starts, count, end=None):
    """The same, one by one."""
    found = [together(model, [start], count, end) for start in starts]
    return [tokens for (tokens,), _ in found], [logs for _, (logs,) in found]


def assert_close(found, expected, dtype):
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.stack(mine), torch.stack(theirs), **TOLERANCE[dtype])


@pytest.fixture
def calls(monkeypatch):
    """`calls(model)`: of every call of the model for the next tokens, the shape of what it reads."""

    def watch(model):
        shapes, read = [], model.next_token_logits

        def recording(tokens, caches=None):
            assert caches is None or caches.batch == len(tokens)
            shapes.append(tuple(tokens.shape))
            return read(tokens, caches)

        monkeypatch.setattr(model, "next_token_logits", recording)
        return shapes

    return watch


# ---------------------------------------------------------------------------------------------------------------------
# Together as alone


LENGTHS = st.lists(st.integers(1, BLOCK + 3), min_size=1, max_size=5)  # some beyond the block


@every_model
@settings(max_examples=15)
@given(LENGTHS, st.integers(1, BLOCK))
def test_a_text_of_a_batch_is_what_it_is_alone(pattern, position, lengths, count):
    """Also where it slides beyond the block: at once, later, or never."""
    model, starts = model_of(pattern, position), prompts(*lengths)
    found, expected = together(model, starts, count), alone(model, starts, count)
    assert found[0] == expected[0]
    assert_close(found[1], expected[1], torch.float64)


@every_model
def test_in_float32_to_its_rounding(pattern, position):
    model, starts = model_of(pattern, position, torch.float32), prompts(3, 9, 1, 9, BLOCK, BLOCK + 2)
    tokens, expected = alone(model, starts, BLOCK)
    assert_close(together(model, starts, BLOCK, forced=tokens)[1], expected, torch.float32)


@every_model
@torch.no_grad()
def test_alone_is_what_the_whole_model_says_without_caches(pattern, position):
    """What the tests above compare with: the last block read whole for every token, or all, where that has no limit."""
    model, (start,) = model_of(pattern, position), prompts(5)
    (tokens,), (logs,) = together(model, [start], BLOCK + 3)
    whole, longest = model, BLOCK
    if model.context_limit is None:
        whole, longest = small_model(pattern, position_encoding=position, block_size=10 * BLOCK), 10 * BLOCK
    for number, found in enumerate(logs):
        context = [*start, *tokens[:number]][-longest:]
        expected = whole(torch.tensor([context]))[0, -1].log_softmax(-1)
        torch.testing.assert_close(found, expected, **TOLERANCE[torch.float64])


def test_a_seed_gives_the_same_text_in_any_batch():
    model, starts = model_of(ALL, "rope"), prompts(4, 2, 7)
    how = Sampling(temperature=1.0, top_k=20, top_p=0.9)

    def seeded(seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    expected = [
        list(generate(model, start, Ids(None), how, 10, generator))
        for start, generator in zip(starts, seeded((5, 6, 7)), strict=True)
    ]
    for order in itertools.permutations(range(3)):
        found = {text: [] for text in order}
        batch = [starts[text] for text in order], Ids(None), how, 10, seeded(5 + text for text in order)
        for number, token in generate_batch(model, *batch):
            found[order[number]].append(token)
        assert [found[text] for text in range(3)] == expected


# ---------------------------------------------------------------------------------------------------------------------
# What is read together


def test_the_shorter_go_on_until_they_are_as_long_as_the_next(calls):
    model = model_of("A", "rope")
    shapes = calls(model)
    together(model, prompts(3, 5, 5), 6)
    one_by_one = [(1, 3), (1, 1), (1, 1), (2, 5)]
    assert shapes == [*one_by_one, (3, 1), (3, 1), (3, 1), (2, 1), (2, 1)]


def test_texts_beyond_the_block_are_read_together_whichever_prompts_they_had(calls):
    model = model_of("A", "rope")
    shapes = calls(model)
    together(model, prompts(BLOCK - 1, BLOCK, BLOCK + 5), 4)
    assert shapes == [(1, BLOCK - 1), (1, 1), (3, BLOCK), (3, BLOCK), (2, BLOCK), (2, BLOCK)]


@pytest.mark.parametrize("pattern", [*BUILT, ALL])
def test_a_text_that_ended_leaves_the_batch(pattern, calls):
    """The end is a token that one of the texts gets third: they end at different times, or never."""
    model, starts = model_of(pattern, "none"), prompts(2, 2, 2, 5, BLOCK + 1)
    tokens, _ = alone(model, starts, 10)
    end = tokens[1][2]
    expected = [text[: text.index(end)] if end in text else text for text in tokens]
    shapes = calls(model)
    found, logs = together(model, starts, 10, end)
    assert found == expected and len(found[1]) <= 2
    draws = sum(min(len(text) + 1, 10) for text in expected)
    assert sum(rows for rows, _ in shapes) == sum(map(len, logs)) == draws


def test_a_prompt_longer_than_the_block_is_read_in_pieces_where_nothing_limits_it():
    model = model_of("MS", "none")
    starts = prompts(2 * BLOCK + 3, 3 * BLOCK, 4)
    found, expected = together(model, starts, 5), alone(model, starts, 5)
    assert found[0] == expected[0]
    assert_close(found[1], expected[1], torch.float64)


def test_no_texts_give_none_and_a_text_without_tokens_is_refused():
    model = model_of("A", "rope")
    assert together(model, [], 5) == ([], [])
    for starts, count in (([[1], []], 5), ([[1]], 0)):
        with pytest.raises(ValueError, match="at least one token"):
            together(model, starts, count)


def test_a_diverged_model_is_one_line():
    model = small_model("A", torch.float32, block_size=BLOCK)
    model.embedding.weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite"):
        together(model, prompts(3, 4), 5)


# ---------------------------------------------------------------------------------------------------------------------
# Caches


@torch.no_grad()
@every_model
def test_caches_go_on_after_texts_left_and_joined(pattern, position):
    model, tokens = model_of(pattern, position), torch.tensor(prompts(*[BLOCK] * 5))
    expected = model(tokens)
    caches, more = model.empty_caches(3, BLOCK), model.empty_caches(2, BLOCK)
    model.hidden(tokens[:3, :6], caches)
    model.hidden(tokens[3:, :6], more)
    one, together_bytes = model.empty_caches(1, BLOCK).bytes, caches.bytes + more.bytes
    caches.join(more)
    assert (caches.batch, caches.bytes) == (5, together_bytes) == (5, 5 * one)
    rows = [4, 0, 3]
    caches.keep(rows)
    assert (caches.batch, caches.bytes) == (3, 3 * one)
    found = torch.cat([model(piece, caches=caches) for piece in tokens[rows, 6:].split([1, 3, 2], dim=1)], dim=1)
    torch.testing.assert_close(found, expected[rows, 6:], **TOLERANCE[torch.float64])


@torch.no_grad()
@pytest.mark.parametrize("letter", BUILT)
def test_a_cache_is_a_dataclass_that_is_updated_in_place(letter):
    model = model_of(letter, "none")
    caches, tokens = model.empty_caches(2, BLOCK), torch.tensor(prompts(BLOCK, BLOCK))
    (cache,) = caches.layers
    assert dataclasses.is_dataclass(cache)
    tensors = [value for value in vars(cache).values() if isinstance(value, Tensor)]
    assert tensors and all(len(tensor) == 2 for tensor in tensors)
    places = [tensor.data_ptr() for tensor in tensors]
    for piece in tokens.split([4, 1, 1, BLOCK - 6], dim=1):
        model.hidden(piece, caches)
    assert caches.layers == [cache] and caches.length == BLOCK
    assert [value.data_ptr() for value in vars(cache).values() if isinstance(value, Tensor)] == places


def test_texts_of_other_lengths_or_room_do_not_join():
    model, tokens = model_of("A", "rope"), torch.zeros(1, 3, dtype=torch.long)
    caches = model.empty_caches(1, BLOCK)
    model.hidden(tokens, caches)
    with pytest.raises(ValueError, match="texts of 3 and 0 tokens"):
        caches.join(model.empty_caches(1, BLOCK))
    with pytest.raises(ValueError, match="or of other room"):
        model.empty_caches(1, BLOCK).join(model.empty_caches(1, BLOCK - 1))


@dataclasses.dataclass
class Odd:
    """What a cache is not, or is."""

    value: object


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.zeros(()), r"Odd.value is of shape \(\), not of 2 texts first"),
        (torch.zeros(3, 2), r"Odd.value is of shape \(3, 2\), not of 2 texts first"),
        ([torch.zeros(2)], "Odd.value is a list, no tensor, number or word"),
    ],
)
def test_a_cache_that_does_not_follow_the_protocol_is_named(value, reason):
    for change in (lambda caches: caches.keep([0]), lambda caches: caches.join(caches)):
        with pytest.raises(ValueError, match=reason):
            change(Caches([Odd(value)], batch=2, room=None))


def test_numbers_that_differ_by_text_do_not_join():
    one, other = (Caches([Odd(value)], batch=1, room=None) for value in (3, 4))
    with pytest.raises(ValueError, match="two of Odd with as many tokens differ in more than their texts"):
        one.join(other)


# ---------------------------------------------------------------------------------------------------------------------
# A user's own mixer


@dataclasses.dataclass(frozen=True)
class Faded:
    state: Tensor  # (B, D)


@dataclasses.dataclass
class Everything:
    seen: Tensor  # (B, S, D)
    count: int = 0


class Fading(nn.Module):
    """y = W s, s <- s / 2 + x: its cache is the state alone."""

    def __init__(self, config):
        super().__init__()
        self.o_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def empty_cache(self, batch, room):
        return Faded(self.o_proj.weight.new_zeros(batch, len(self.o_proj.weight)))

    def forward(self, x, cache=None):
        state, outputs = torch.zeros_like(x[:, 0]) if cache is None else cache.state, []
        for token in x.unbind(1):
            state = state / 2 + token
            outputs.append(state)
        if cache is not None:
            cache.state.copy_(state)
        return self.o_proj(torch.stack(outputs, dim=1))


class Mean(Fading):
    """y = W times the mean of all tokens so far: its cache grows, and counts them."""

    def empty_cache(self, batch, room):
        return Everything(self.o_proj.weight.new_zeros(batch, 0, len(self.o_proj.weight)))

    def forward(self, x, cache=None):
        seen = x if cache is None else torch.cat((cache.seen, x), dim=1)
        if cache is not None:
            cache.seen, cache.count = seen, cache.count + x.shape[1]
        counts = torch.arange(1, seen.shape[1] + 1, dtype=x.dtype)[:, None]
        return self.o_proj((seen.cumsum(1) / counts)[:, -x.shape[1] :])


@pytest.fixture(params=[Fading, Mean])
def own_mixer(request):
    """Its letter, registered as a user's config file would."""
    with registry.kept():

        @register_spec
        class OwnSpec(Mixer):
            name, letter, title, part = "own", "O", "a mixer of the user's", "own"
            has_constant_state = request.param is Fading

            def weights(self, config):
                return matrices("o_proj", config.n_embd, config.n_embd, writes=True)

        register("mixer", "own")(request.param)
        yield "O"


@pytest.mark.parametrize("others", ["", "A", "M"])
@pytest.mark.parametrize("position", ["learned_absolute", "none"])
def test_a_users_mixer_is_batched_without_a_line_of_its_own(own_mixer, others, position):
    model = small_model(own_mixer + others, position_encoding=position, block_size=BLOCK)
    starts = prompts(3, 8, 1, 3, BLOCK + 2)
    tokens, expected = alone(model, starts, BLOCK)
    end = tokens[0][4]
    cut = [text[: text.index(end)] if end in text else text for text in tokens]
    found, logs = together(model, starts, BLOCK, end)
    assert found == cut
    assert_close(logs, [theirs[: len(mine)] for mine, theirs in zip(logs, expected, strict=True)], torch.float64)
