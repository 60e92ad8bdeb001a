"""Group relative policy optimization: closed forms, gradients by hand and by TRL, and what is written in training."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from components.heads.spec import IGNORED
from data.dataset import open_dataset
from data.loader import Batch, split_batches
from data.packing import Cut
from data.questions import Question, write_questions
from data.tokenizers import tokenizer_from_meta
from data.writer import DatasetWriter
from finetuning.grpo import Completion, Reinforcement, Writer, advantages, kl_of_each, losses_of
from finetuning.rewards import Reward
from inference.generation import generate
from inference.sampling import Sampling
from interop.hugging_face import architecture_to_hugging_face, weights_to_hugging_face
from model_builder import build_model
from model_config import resolve_architecture

TINY = {"arch_preset": "llama3", "n_layer": 2, "n_head": 2, "num_key_value_heads": 1, "n_embd": 32}
TINY |= {"block_size": 24, "vocab_size": 257, "d_ff": 64}
PROMPTS = ["abcd", "wxyz"]
COMPLETIONS = [["e", "efg", "hij\n", "ab"], ["vvvvvvv", "v", "ustu", "tv"]]  # four of each, of lengths of their own
LONGEST = 8  # tokens that a completion may have


def vowels(prompt, completion, answer):
    return sum(completion.count(one) for one in "aeiou") - 0.2 * len(completion)


# ---------------------------------------------------------------------------------------------------------------------
# The arithmetic

groups = st.lists(st.lists(st.floats(-5, 5), min_size=4, max_size=4), min_size=1, max_size=3)


@given(groups, st.booleans())
def test_advantages_are_what_is_above_the_mean_of_the_group(rewards, by_std):
    expected = []
    for group in rewards:
        mean, std = statistics.fmean(group), statistics.stdev(group)
        is_equal = len(set(group)) == 1
        expected += [0.0 if is_equal else (one - mean) / (std + 1e-4 if by_std else 1) for one in group]
    found = advantages(torch.tensor(rewards, dtype=torch.float64).flatten(), 4, by_std)
    assert found.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_equal_rewards_teach_exactly_nothing():
    """Also where a mean of equal floats is none of them."""
    assert advantages(torch.tensor([0.1, 0.1, 0.1] * 2, dtype=torch.float64), 6).tolist() == [0.0] * 6


@given(st.floats(-20, -0.01), st.floats(-20, -0.01))
def test_the_estimate_of_the_divergence_is_never_negative(p, q):
    found = kl_of_each(torch.tensor(p, dtype=torch.float64), torch.tensor(q, dtype=torch.float64)).item()
    assert found >= 0 and found == pytest.approx(math.exp(q - p) - (q - p) - 1, rel=1e-9, abs=1e-12)


def test_the_estimate_of_the_divergence_is_right_in_the_mean():
    p, q = torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(1)
    assert (p.exp() * kl_of_each(p, q)).sum().item() == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# The objective


class Written(Writer):
    """Writes what it is told to."""

    def write(self, model, prompts, seeds):
        return [Completion([ord(one) for one in text], text, True) for group in COMPLETIONS for text in group]


class Beside:
    def __init__(self, model):
        self.model = model

    def beside(self, trained):
        return self.model


def models():
    config = resolve_architecture(TINY)
    return build_model(config, seed=0), build_model(config, seed=1)


def batch():
    tokens, documents = torch.zeros(8, 24, dtype=torch.long), torch.ones(8, 24, dtype=torch.long)
    for row in range(8):
        tokens[row, :4] = torch.tensor([ord(one) for one in PROMPTS[row // 4]])
        documents[row, :4] = 0
    questions = tuple(Question(PROMPTS[row // 4], "") for row in range(8))
    return Batch(tokens, torch.full((8, 24), IGNORED), documents, 8, questions=questions, seeds=tuple(range(8)))


def objective(loss, beta, base):
    rewards = (Reward("vowels", 1.0, vowels),)
    writer = Written(tokenizer_from_meta({"kind": "bytes", "end_of_document": 0}), None, LONGEST)
    return Reinforcement(loss, 4, beta, rewards, writer, Beside(base))


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


WAYS = [("grpo", 0.0), ("grpo", 0.04), ("dr_grpo", 0.0), ("dr_grpo", 0.04)]


@pytest.mark.parametrize(("loss", "beta"), WAYS)
def test_gradients_are_those_of_a_sum_over_tokens_by_hand(loss, beta):
    """In float64, where the gradient of the ratio is that of the log-probability; and what is told is minus the reward,
    and beta times the divergence."""
    model, base = (one.double() for one in models())
    parts = objective(loss, beta, base)(model, batch())
    parts.total().backward()
    found = gradients(model)
    model.zero_grad()
    total, told, divergences = 0.0, 0.0, 0.0
    for prompt, texts in zip(PROMPTS, COMPLETIONS, strict=True):
        scores = [vowels(prompt, text, "") for text in texts]
        spread = statistics.stdev(scores) + 1e-4 if loss == "grpo" else 1.0
        for text, reward in zip(texts, scores, strict=True):
            ids = torch.tensor([[ord(one) for one in prompt + text]])
            log_p, of_base = (one(ids[:, :-1])[0, 3:].log_softmax(1) for one in (model, base))
            divisor = len(text) if loss == "grpo" else LONGEST
            divergence = 0.0
            for place, token in enumerate(ids[0, 4:].tolist()):
                ratio = of_base[place, token].detach() - log_p[place, token]
                kl = ratio.exp() - ratio - 1
                advantage = (reward - statistics.fmean(scores)) / spread
                total = total + (-advantage * log_p[place, token] + beta * kl) / divisor
                divergence += kl.item()
            told += -reward + beta * divergence / divisor
            divergences += divergence / len(text)
    total.backward()
    for name, parameter in model.named_parameters():  # a head's losses are float32
        torch.testing.assert_close(found[name], parameter.grad, rtol=2e-4, atol=1e-6)
    assert parts.cross_entropy.item() == pytest.approx(told, rel=1e-5) and parts.n_targets == 8
    measured = {name: value.item() for name, value in parts.measured.items()}
    lengths = sum(len(text) for texts in COMPLETIONS for text in texts)
    rewards = sum(vowels("", text, "") for texts in COMPLETIONS for text in texts)
    expected = {"reward": rewards, "ended": 8, "length": lengths, "equal": 0} | ({"kl": divergences} if beta else {})
    assert measured.pop("rollout_ms") >= 0 and measured == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "beta"), WAYS)
def test_losses_and_gradients_are_trls(tmp_path, loss, beta):
    """Of a step of its GRPOTrainer, which scores the same completions by the same rewards, beside another model."""
    transformers, trl = pytest.importorskip("transformers"), pytest.importorskip("trl")
    from datasets import Dataset
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as kinds
    from trl.trainer.utils import add_fused_lm_head

    config, (ours, base) = resolve_architecture(TINY), models()
    described = architecture_to_hugging_face(config, {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0})

    def exported(model):
        model_class = transformers.AutoModelForCausalLM
        theirs = model_class.from_config(transformers.AutoConfig.for_model(**described), attn_implementation="eager")
        theirs.load_state_dict(weights_to_hugging_face(model.state_dict(), config), strict=False)
        return theirs

    library = Tokenizer(kinds.BPE(vocab={chr(number): number for number in range(257)}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=library, eos_token=chr(0), pad_token=chr(0))
    how = {"beta": 0.0, "loss_type": loss, "num_generations": 4, "per_device_train_batch_size": 8}
    how |= {"max_completion_length": LONGEST, "temperature": 1.0, "num_iterations": 1, "bf16": False, "use_cpu": True}
    how |= {"report_to": "none", "gradient_checkpointing": False, "save_strategy": "no"}
    how |= {"scale_rewards": "group" if loss == "grpo" else "none", "use_bias_correction_kl": False}
    trainer = trl.GRPOTrainer(
        exported(ours),
        lambda completions, **_: [vowels("", one, "") for one in completions],
        args=trl.GRPOConfig(str(tmp_path), **how),
        train_dataset=Dataset.from_list([{"prompt": one} for one in PROMPTS]),
        processing_class=tokenizer,
    )
    trainer.beta, trainer.ref_model = beta, exported(base)
    add_fused_lm_head(trainer.ref_model)
    trainer.current_gradient_accumulation_steps = 1
    texts = [text for group in COMPLETIONS for text in group]
    prompts = [prompt for prompt in PROMPTS for _ in range(4)]
    ids = [[[ord(one) for one in text] for text in some] for some in (prompts, texts)]
    trainer._generate = lambda _: (*ids, None, texts, None, {}, None, None)
    scored = trainer._generate_and_score_completions([{"prompt": prompt} for prompt in prompts])
    expected = trainer._compute_loss(trainer.model, scored)
    expected.backward()

    parts = objective(loss, beta, base)(ours, batch())
    (parts.total() / parts.n_targets).backward()
    of_ours = weights_to_hugging_face(gradients(ours), config)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(of_ours[name], parameter.grad, rtol=1e-5, atol=1e-5)

    longest = max(map(len, texts))
    ids = torch.tensor(
        [
            [ord(one) for one in (prompt + text).ljust(4 + longest, "\0")]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
    )
    counts = torch.arange(longest) < torch.tensor([[len(text)] for text in texts])
    log_p, of_base = (
        -F.cross_entropy(one(ids[:, :-1])[:, 3:].mT, ids[:, 4:], reduction="none").detach() * counts
        for one in (ours, base)
    )
    above = advantages(torch.tensor([vowels("", text, "") for text in texts]), 4, loss == "grpo")
    torch.testing.assert_close(above, scored["advantages"], rtol=1e-5, atol=1e-6)
    tokens = counts.sum(1) if loss == "grpo" else torch.full((8,), LONGEST)
    losses = losses_of(log_p, counts, above, tokens, kl_of_each(log_p, of_base) if beta else None, beta)
    assert losses.mean().item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# What is asked


def test_a_prompt_is_in_neighbouring_samples_with_seeds_of_their_own(tmp_path):
    """Once in an epoch, however batches divide it; and its question comes along."""
    questions = {"train": [Question(f"{number}?", "a" * number) for number in range(5)], "val": [Question("x?", "")]}
    with DatasetWriter(tmp_path, {"kind": "bytes", "end_of_document": 0}, 256, "a test", None, True, "prompts") as file:
        for split, some in questions.items():
            for one in some:
                ids = [ord(letter) for letter in one.prompt]
                file.add_marked(split, ids, [False] * len(ids), len(ids), 0)
    write_questions(tmp_path, None, questions)
    dataset, cut = open_dataset(tmp_path), Cut(8, "prompts", 3)
    loader = split_batches(dataset, "train", cut, 7, True, slice(None))
    whole, halves = loader.batch(0, 30), [loader.batch(first, 15) for first in (0, 15)]
    assert loader.n_windows == 15 and cut.n_windows(dataset, "val") == 3 and whole.n_targets == 30
    assert whole.seeds == halves[0].seeds + halves[1].seeds and len(set(whole.seeds)) == 30
    assert whole.questions == halves[0].questions + halves[1].questions
    prompts = [bytes(row[of == 0].tolist()).decode() for row, of in zip(whole.tokens, whole.documents, strict=True)]
    assert prompts == [one.prompt for one in whole.questions]
    groups = [set(prompts[first : first + 3]) for first in range(0, 30, 3)]
    assert all(len(group) == 1 for group in groups)
    for epoch in (groups[:5], groups[5:]):
        assert set().union(*epoch) == {one.prompt for one in questions["train"]}
    assert (whole.targets == IGNORED).all()
    other = split_batches(dataset, "train", cut, 8, True, slice(None)).batch(0, 30)
    assert set(whole.seeds).isdisjoint(other.seeds)


# ---------------------------------------------------------------------------------------------------------------------
# What is written


@pytest.mark.parametrize("end", [None, "e", "ab"])
def test_completions_are_the_engines_of_the_same_seeds(end):
    """Token by token, until a document's end, or the text of a turn's, or so many are there."""
    model = build_model(resolve_architecture({**TINY, "vocab_size": 16}), seed=0).eval()  # which draws any letter
    letters = {"kind": "characters", "end_of_document": 10, "characters": "abcdefghij"}
    tokenizer = tokenizer_from_meta(letters)
    prompts = [tokenizer.encode(text) for text in ("abcd", "j", "abcd", "eab") for _ in range(16)]
    seeds = [7 * number for number in range(len(prompts))]
    written = Writer(tokenizer, end, LONGEST).write(model, prompts, seeds)
    how, reasons = Sampling(1.0, 11, 1.0), set()
    for completion, prompt, seed in zip(written, prompts, seeds, strict=True):
        drawn = list(generate(model, prompt, tokenizer, how, LONGEST, torch.Generator().manual_seed(seed)))
        text, reason = tokenizer.decode(drawn), "full" if len(drawn) == LONGEST else "document"
        if end is not None and end in text:
            text, reason = text[: text.index(end)], "turn"
        expected = {"turn": tokenizer.encode(text + (end or "")), "full": drawn, "document": [*drawn, 10]}
        assert completion == Completion(expected[reason], text, reason != "full")
        reasons.add(reason)
    assert reasons == ({"full", "document"} if end is None else {"full", "document", "turn"})
