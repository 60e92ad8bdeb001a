"""Losses of preferences: closed forms by hand, and TRL's gradients on the same weights and answers."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from components.heads.spec import IGNORED
from data.loader import Batch
from finetuning.preferences import Answers, Preference, answers_log_likelihood, dpo, ipo, orpo, simpo
from model_builder import build_model
from model_config import resolve_architecture

TINY = {"arch_preset": "llama3", "n_layer": 2, "n_head": 2, "num_key_value_heads": 1, "n_embd": 32}
TINY |= {"block_size": 48, "vocab_size": 257, "d_ff": 64}

numbers = st.floats(-30, -0.01)
probabilities = st.lists(numbers, min_size=4, max_size=4)


@given(probabilities, probabilities, st.sampled_from([0.05, 0.5]), st.sampled_from([0.0, 0.2]))
def test_closed_forms(found, reference, beta, smoothing):
    """Of answers of 1, 2, 3 and 4 tokens, written with logarithms of sums of powers of e."""
    answers = Answers(
        torch.tensor(found, dtype=torch.float64), torch.arange(1, 5), torch.tensor(reference, dtype=torch.float64)
    )
    tokens = [1, 2, 3, 4]
    how = Preference("dpo", beta, smoothing, margin=0.3)

    def logistic(x):
        return (1 - smoothing) * math.log1p(math.exp(-x)) + smoothing * math.log1p(math.exp(x))

    def pairs(numbers, loss):
        return pytest.approx([loss(numbers[0] - numbers[1]), loss(numbers[2] - numbers[3])], rel=1e-9, abs=1e-12)

    ratios = [a - b for a, b in zip(found, reference, strict=True)]
    means = [ratio / count for ratio, count in zip(ratios, tokens, strict=True)]
    assert dpo(answers, how)[0].tolist() == pairs(ratios, lambda x: logistic(beta * x))
    per_token = Preference("dpo", beta, smoothing, per_token=True)
    assert dpo(answers, per_token)[0].tolist() == pairs(means, lambda x: logistic(beta * x))
    assert ipo(answers, how)[0].tolist() == pairs(means, lambda x: (x - 1 / (2 * beta)) ** 2)
    alone = [one / count for one, count in zip(found, tokens, strict=True)]
    assert simpo(answers, how)[0].tolist() == pairs(alone, lambda x: logistic(beta * x - 0.3))
    odds = [math.exp(one) / -math.expm1(one) for one in alone]
    log_odds = [math.log(one) for one in odds]
    expected = [beta * logistic(log_odds[row] - log_odds[row + 1]) - alone[row] for row in (0, 2)]
    assert orpo(answers, how)[0].tolist() == pytest.approx(expected, rel=1e-9)


def test_a_certain_answer_has_finite_odds_and_gradients():
    likely = torch.tensor([0.0, -1e-9, -700.0, -0.5], requires_grad=True)
    losses, _ = orpo(Answers(likely, torch.ones(4)), Preference("orpo", 0.1))
    losses.sum().backward()
    assert losses.isfinite().all() and likely.grad.isfinite().all()


def rows(reference=None):
    """Three pairs of sequences, of different lengths, of which the ends are answers."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(257, (6, 20), generator=generator)
    tokens[1::2, :5] = tokens[0::2, :5]
    targets = tokens.roll(-1, 1)
    lengths = torch.tensor([9, 12, 18, 6, 7, 15])
    places = torch.arange(20)
    targets[(places < 4) | (places >= lengths[:, None])] = IGNORED
    return Batch(tokens, targets, n_targets=3, reference=reference)


@pytest.mark.parametrize("loss", ["dpo", "ipo", "simpo", "orpo"])
def test_the_objective_is_the_loss_of_the_answers(loss):
    """Against log-softmax of all logits, with gradients, and what it tells."""
    model = build_model(resolve_architecture(TINY), seed=0)
    reference = torch.linspace(-80, -30, 6)
    batch, how = rows(reference), Preference(loss, 0.3, 0.1, margin=0.2)
    parts = how(model, batch)
    parts.total().backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    each = -F.cross_entropy(model(batch.tokens).mT, batch.targets, reduction="none", ignore_index=IGNORED)
    counts = (batch.targets != IGNORED).sum(1)
    formula = {"dpo": dpo, "ipo": ipo, "simpo": simpo, "orpo": orpo}[loss]
    losses, rewards = formula(Answers(each.sum(1), counts, reference), how)
    losses.sum().backward()
    torch.testing.assert_close(parts.cross_entropy, losses.sum())
    assert parts.n_targets == 3 and parts.measured["accuracy"] == (rewards[0::2] > rewards[1::2]).sum()
    torch.testing.assert_close(parts.measured["margin"], (rewards[0::2] - rewards[1::2]).sum().detach())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(answers_log_likelihood(model, batch).float(), each.sum(1))


# ---------------------------------------------------------------------------------------------------------------------
# TRL


PAIRS = [("two and two", " is four", " is a colour"), ("up", " down", " up, up"), ("a", "bcd", "z")]
PAIRS = [{"prompt": asked, "chosen": chosen, "rejected": rejected} for asked, chosen, rejected in PAIRS]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "smoothing", "theirs", "count"),
    [("dpo", 0.0, "sigmoid", 3), ("dpo", 0.2, "aot", 1), ("ipo", 0.0, "ipo", 3)],
)
def test_gradients_are_trls(tmp_path, loss, smoothing, theirs, count):
    """Of a step of its DPOTrainer, on its own batch, with a reference that is another model. TRL 1.16 does not smooth
    the labels of "sigmoid", whatever it is given; its "aot" of a single pair is the same loss with smoothed ones."""
    trl = pytest.importorskip("trl")
    from trl_steps import exported, first_batch

    ours, base = build_model(resolve_architecture(TINY), seed=0), build_model(resolve_architecture(TINY), seed=1)
    how, model = {"beta": 0.3, "loss_type": theirs, "label_smoothing": smoothing}, exported(ours)
    rows, reference = PAIRS[:count], exported(base)
    trainer, inputs = first_batch(trl.DPOTrainer, trl.DPOConfig, tmp_path, model, rows, reference, **how)
    ids, mask = inputs["input_ids"], inputs["completion_mask"]  # chosen answers, then the rejected ones
    batch = in_turns(ids, ids.masked_fill(mask == 0, IGNORED))
    with torch.no_grad():
        batch = dataclasses.replace(batch, reference=answers_log_likelihood(base, batch).float())
    assert_same_step(Preference(loss, 0.3, smoothing), ours, batch, model, trainer.compute_loss(model, inputs))


def in_turns(ids, labels):
    """A batch of pairs, of which the chosen answers came first and then the rejected ones."""
    count = len(ids) // 2
    order = torch.arange(2 * count).reshape(2, count).T.flatten()
    return Batch(ids[order, :-1], labels[order, 1:], n_targets=count)


def assert_same_step(preference, ours, batch, theirs, expected):
    """Loss and gradients, within 1e-5."""
    from trl_steps import assert_same_gradients

    expected.backward()
    parts = preference(ours, batch)
    mean = parts.total() / parts.n_targets
    assert mean.item() == pytest.approx(expected.item(), rel=1e-5)
    mean.backward()
    assert_same_gradients(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_simpos_gradients_are_trls(tmp_path, smoothing):
    """Of its CPOTrainer with loss_type="simpo", which adds the chosen answers' loss unless cpo_alpha=0."""
    cpo = pytest.importorskip("trl.experimental.cpo")
    ours, model, trainer, inputs, batch = experimental_step(
        cpo.CPOTrainer, cpo.CPOConfig, tmp_path, loss_type="simpo", cpo_alpha=0.0, simpo_gamma=0.5, beta=2.0,
        label_smoothing=smoothing,
    )  # fmt: skip
    how = Preference("simpo", 2.0, smoothing, margin=0.5)
    assert_same_step(how, ours, batch, model, trainer.compute_loss(model, inputs))


@pytest.mark.slow
def test_orpos_gradients_are_trls_but_for_what_is_learned_of_the_chosen_answer(tmp_path):
    """Of its ORPOTrainer, whose odds are ours. Beside these it learns every token of the chosen conversations, the
    prompts' too, in the mean over all tokens; ours is the mean over the answers of the means over their tokens, as
    equations 2 and 6 of the paper have it."""
    orpo = pytest.importorskip("trl.experimental.orpo")
    ours, model, trainer, inputs, batch = experimental_step(orpo.ORPOTrainer, orpo.ORPOConfig, tmp_path, beta=0.3)
    ids, mask = inputs["chosen_input_ids"], inputs["chosen_attention_mask"]
    logits = model(ids, attention_mask=mask).logits[:, :-1].mT
    theirs = F.cross_entropy(logits, ids.masked_fill(mask == 0, IGNORED)[:, 1:], ignore_index=IGNORED)
    targets = inputs["chosen_labels"][:, 1:].where(inputs["chosen_labels"][:, 1:] != -100, IGNORED)
    each = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    of_answers = (each.sum(1) / (targets != IGNORED).sum(1)).mean()
    expected = trainer.compute_loss(model, inputs) - theirs + of_answers
    assert_same_step(Preference("orpo", 0.3), ours, batch, model, expected)


def experimental_step(trainer_class, arguments_class, folder, **how):
    """Our model, the same as transformers', a trainer of TRL's experimental ones, its first batch, and that as ours."""
    from trl_steps import exported, first_batch

    ours = build_model(resolve_architecture(TINY), seed=0)
    model = exported(ours)
    trainer, inputs = first_batch(trainer_class, arguments_class, folder, model, PAIRS, **how)
    width = max(inputs[f"{which}_input_ids"].shape[1] for which in ("chosen", "rejected"))

    def both(name, filler):
        of_each = (inputs[f"{which}_{name}"] for which in ("chosen", "rejected"))
        return torch.cat([F.pad(one, (0, width - one.shape[1]), value=filler) for one in of_each])

    labels = both("labels", -100)
    return ours, model, trainer, inputs, in_turns(both("input_ids", 0), labels.where(labels != -100, IGNORED))
