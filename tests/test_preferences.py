"""Losses of preferences: closed forms by hand, and TRL's gradients on the same weights and answers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from components.heads.spec import IGNORED
from data.loader import Batch
from finetuning.preferences import Answers, Preference, answers_log_likelihood, dpo, ipo, orpo, simpo
from interop.hugging_face import architecture_to_hugging_face, weights_to_hugging_face
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "smoothing", "theirs", "count"),
    [("dpo", 0.0, "sigmoid", 3), ("dpo", 0.2, "aot", 1), ("ipo", 0.0, "ipo", 3)],
)
def test_gradients_are_trls(tmp_path, loss, smoothing, theirs, count):
    """Of a step of its DPOTrainer, on its own batch, with a reference that is another model. TRL 1.16 does not smooth
    the labels of "sigmoid", whatever it is given; its "aot" of a single pair is the same loss with smoothed ones."""
    transformers, trl = pytest.importorskip("transformers"), pytest.importorskip("trl")
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers

    config = resolve_architecture(TINY)
    ours, base = build_model(config, seed=0), build_model(config, seed=1)
    described = architecture_to_hugging_face(config, {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0})

    def exported(model):
        model_class = transformers.AutoModelForCausalLM
        theirs = model_class.from_config(transformers.AutoConfig.for_model(**described), attn_implementation="eager")
        theirs.load_state_dict(weights_to_hugging_face(model.state_dict(), config), strict=False)
        return theirs

    letters = {chr(number): number for number in range(257)}
    library = Tokenizer(models.BPE(vocab=letters, merges=[]))
    library.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=library, eos_token=chr(0), pad_token=chr(0))
    pairs = [("two and two", " is four", " is a colour"), ("up", " down", " up, up"), ("a", "bcd", "z")]
    dataset = Dataset.from_list([{"prompt": p, "chosen": c, "rejected": r} for p, c, r in pairs])
    how = {"beta": 0.3, "loss_type": theirs, "label_smoothing": smoothing, "per_device_train_batch_size": count}
    how |= {"bf16": False, "use_cpu": True, "report_to": "none", "gradient_checkpointing": False, "save_strategy": "no"}
    model = exported(ours)
    trainer = trl.DPOTrainer(
        model,
        exported(base),
        args=trl.DPOConfig(str(tmp_path), **how),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(model, inputs)
    expected.backward()

    ids, mask = inputs["input_ids"], inputs["completion_mask"]  # chosen answers, then the rejected ones
    order = torch.arange(2 * count).reshape(2, count).T.flatten()
    tokens, targets = ids[order, :-1], ids.masked_fill(mask == 0, IGNORED)[order, 1:]
    batch = Batch(tokens, targets, n_targets=count)
    with torch.no_grad():
        reference = answers_log_likelihood(base, batch).float()
    parts = Preference(loss, 0.3, smoothing)(ours, Batch(tokens, targets, None, count, reference))
    mean = parts.total() / parts.n_targets
    assert mean.item() == pytest.approx(expected.item(), rel=1e-5)
    mean.backward()
    gradients = weights_to_hugging_face({name: one.grad for name, one in ours.named_parameters()}, config)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-5, atol=1e-5)
