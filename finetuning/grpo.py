"""Reinforcement with checkable rewards, by group relative policy optimization (Shao et al. 2024, DeepSeekMath,
section 4): what a step makes smaller in place of the next token's loss.

A batch has a prompt in group_size neighbouring rows, and it counts rows. The model completes each of them, rewards say
how good that is, and what a group's completions are better or worse than one another is how much likelier they are
made. Where all of a group have the same reward nothing is learned of it.

A completion is drawn from the model's whole distribution, at temperature 1, and is learned from once. So the model that
is trained is the one that wrote, the ratio of both probabilities is 1 with the gradient of the log-probability, and
the ratio's clipping, which is for several updates from one rollout, would never act. Dropout, if there is some, is in
the training pass alone.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.errors import UserError
from components.heads.spec import IGNORED
from configurator import Configuration
from data.loader import Batch
from data.mixture import Data
from data.packing import lengths_of_documents
from data.questions import end_of_completions
from data.tokenizers import Tokenizer, tokenizer_from_meta
from finetuning.rewards import Reward, rewards_of, score
from inference.generation import generate_batch
from inference.loading import same_weights
from inference.sampling import Sampling
from model_builder import LanguageModel, LossParts, build_model
from runs.base import BASE_STEP
from runs.checkpoint import load_model
from runs.folder import RunFolder

LEAST_STD = 1e-4  # added to the standard deviation of a group's rewards, as TRL does


@dataclasses.dataclass(frozen=True)
class Completion:
    """The `tokens` that the model wrote, what ends them included if it is `ended`, and their `text` without that."""

    tokens: list[int]
    text: str
    ended: bool


@dataclasses.dataclass(frozen=True)
class Writer:
    """How a model completes prompts: until `end`, or the tokenizer's end of a document, or so many tokens."""

    tokenizer: Tokenizer
    end: str | None
    max_completion: int

    def write(self, model: LanguageModel, prompts: Sequence[list[int]], seeds: Sequence[int]) -> list[Completion]:
        """A completion of each prompt, drawn with a generator of its own: no other prompt, and no other call, changes
        it."""
        how = Sampling(temperature=1.0, top_k=self.tokenizer.vocab_size, top_p=1.0)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        found: list[list[int]] = [[] for _ in prompts]
        ended: set[int] = set()
        drawn = generate_batch(model, prompts, self.tokenizer, how, self.max_completion, generators, ended)
        for row, token in drawn:
            found[row].append(token)
            if self._is_at_end(found[row]):
                ended.add(row)
        return [self._completion(tokens, row in ended) for row, tokens in enumerate(found)]

    def _is_at_end(self, tokens: list[int]) -> bool:
        """Whether the last ones, none of which stands for no byte, spell the end."""
        if self.end is None:
            return False
        end = self.end.encode()
        return self.tokenizer.decode_bytes(tokens[-len(end) :], continued=True).endswith(end)

    def _completion(self, tokens: list[int], at_end: bool) -> Completion:
        content = self.tokenizer.decode_bytes(tokens)
        if at_end and self.end is not None:
            content = content.removesuffix(self.end.encode())
        elif len(tokens) < self.max_completion:  # a document's end was drawn, which the engine keeps to itself
            assert self.tokenizer.end_of_document is not None
            tokens, at_end = [*tokens, self.tokenizer.end_of_document], True
        return Completion(tokens, content.decode("utf-8", "replace"), at_end)


# ---------------------------------------------------------------------------------------------------------------------
# The arithmetic


def advantages(rewards: Tensor, group_size: int, by_std: bool = True) -> Tensor:
    """Rewards (B,), those of a group after one another -> by how much each is above its group's mean, (B,), in units of
    their standard deviation (Shao et al. 2024, section 4.1.2), or not (Liu et al. 2025, Dr. GRPO); 0 where all are
    equal."""
    groups = rewards.view(-1, group_size)
    above = groups - groups.mean(1, keepdim=True)
    above = torch.where(all_equal(groups), 0.0, above)
    return (above / (groups.std(1, keepdim=True) + LEAST_STD) if by_std else above).flatten()


def all_equal(groups: Tensor) -> Tensor:
    """Rewards (groups, group_size) -> which groups have but one, (groups, 1)."""
    return (groups == groups[:, :1]).all(1, keepdim=True)


def kl_of_each(log_p: Tensor, reference: Tensor) -> Tensor:
    """What each token, drawn by the model, says of the KL divergence from the reference: never negative, and right in
    the mean (Shao et al. 2024, equation 4; Schulman 2020, k3). Log-probabilities (...) -> (...)."""
    difference = reference - log_p
    return difference.exp() - difference - 1


def losses_of(
    log_p: Tensor, counts: Tensor, advantage: Tensor, tokens: Tensor, kl: Tensor | None, beta: float
) -> Tensor:
    """The loss of each completion (B,), by Shao et al. 2024, equation 3, where the model is the one that wrote: of the
    log-probabilities log_p (B, T) and the KL (B, T) of those tokens that it wrote, which `counts` (B, T) says; the sum
    over these by `tokens`, which is how many they are (B,), or for Dr. GRPO (Liu et al. 2025) a constant ()."""
    each = -advantage[:, None] * (log_p - log_p.detach()).exp()
    if kl is not None:
        each = each + beta * kl
    return (each * counts).sum(1) / tokens


# ---------------------------------------------------------------------------------------------------------------------
# The objective


@dataclasses.dataclass(frozen=True)
class Reinforcement:
    """How rewards are learned: `loss` is the key `reinforce`, `beta` the weight of the KL divergence from the
    reference."""

    loss: str
    group_size: int
    beta: float
    rewards: tuple[Reward, ...]
    writer: Writer
    reference: "Reference"

    def __call__(self, model: nn.Module, batch: Batch) -> LossParts:
        """The objective. The loss that it tells is what is to become smaller in truth: minus the reward, and beta times
        the KL divergence. Its gradient is that of `losses_of`, whose own value says nothing, as the advantages of a
        group add up to 0."""
        assert batch.questions is not None and batch.seeds is not None and batch.documents is not None
        trained = cast(LanguageModel, model.module if isinstance(model, DistributedDataParallel) else model)
        began = time.perf_counter()
        prompts = [row[of == 0].tolist() for row, of in zip(batch.tokens, batch.documents, strict=True)]
        completions = self.writer.write(same_weights(trained), prompts, batch.seeds)
        seconds = time.perf_counter() - began
        scores = [score(self.rewards, *one) for one in zip(batch.questions, (c.text for c in completions), strict=True)]
        totals = [sum(reward.weight * found[reward.name] for reward in self.rewards) for found in scores]
        rewards = torch.tensor(totals, dtype=torch.float64)

        whole = completed(batch, prompts, completions)
        counts = whole.targets != IGNORED
        tokens = counts.sum(1) if self.loss == "grpo" else torch.tensor(self.writer.max_completion)
        parts = _of_each_token(model, whole)
        log_p, kl = -parts.cross_entropy, None
        if self.beta:
            with torch.no_grad():
                reference = -_of_each_token(self.reference.beside(trained), whole).cross_entropy
            kl = kl_of_each(log_p, reference)
        advantage = advantages(rewards, self.group_size, by_std=self.loss == "grpo").to(log_p)
        surrogate = losses_of(log_p, counts, advantage, tokens, kl, self.beta).sum()
        told = -rewards.sum().to(log_p) + (0.0 if kl is None else self.beta * (kl.detach().sum(1) / tokens).sum())
        measured = self._measured(completions, scores, rewards) | {"rollout_ms": 1000 * seconds}
        if kl is not None:
            measured["kl"] = (kl.detach().sum(1) / counts.sum(1)).sum()
        on_device = {name: torch.as_tensor(value).to(log_p) for name, value in measured.items()}
        loss, n_rows = told + (surrogate - surrogate.detach()), torch.tensor(len(completions), device=log_p.device)
        return LossParts(loss, n_rows, parts.auxiliary, parts.loads, on_device)

    def _measured(
        self, completions: Sequence[Completion], scores: Sequence[dict[str, float]], rewards: Tensor
    ) -> dict[str, Tensor | float]:
        """What is told of the completions, summed over them: the reward, and each one's own where there are several;
        whether it ended by itself, and how many tokens it has; whether it is in a group of equal rewards, of which
        nothing is learned."""
        several = {} if len(self.rewards) == 1 else {f"reward_{one.name}": one.name for one in self.rewards}
        return {
            "reward": rewards.sum(),
            **{told: sum(found[name] for found in scores) for told, name in several.items()},
            "ended": sum(one.ended for one in completions),
            "length": sum(len(one.tokens) for one in completions),
            "equal": all_equal(rewards.view(-1, self.group_size)).sum() * self.group_size,
        }


def _of_each_token(model: nn.Module, batch: Batch) -> LossParts:
    return model(batch.tokens, batch.targets, documents=batch.documents, each=True)


class Reference:
    """The model that training began with, in a run's folder: the checkpoint of step 0, which is read when it is first
    needed; of adapters their base, which is in memory anyway."""

    def __init__(self, run: Path):
        self.run = run
        self._kept: LanguageModel | None = None

    def beside(self, trained: LanguageModel) -> LanguageModel:
        if trained.adapters is not None:
            return same_weights(trained, with_adapters=False)
        if self._kept is None:
            checkpoint = RunFolder(self.run).checkpoint_of(BASE_STEP)
            assert checkpoint is not None  # as reinforcement_of and runs/base.py have looked
            found = build_model(trained.config.portable())
            load_model(checkpoint, found)
            self._kept = found.to(next(trained.parameters()).device).eval().requires_grad_(False)
        return self._kept


def completed(batch: Batch, prompts: Sequence[list[int]], completions: Sequence[Completion]) -> Batch:
    """The batch with what was written after the prompts, whose tokens are its targets."""
    assert batch.documents is not None
    tokens, targets = batch.tokens.cpu().clone(), torch.full(batch.targets.shape, IGNORED)
    documents = torch.ones(batch.documents.shape, dtype=torch.long)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        text, first = torch.tensor([*prompt, *completion.tokens]), len(prompt)
        tokens[row, : len(text)] = text
        targets[row, first - 1 : len(text) - 1] = text[first:]
        documents[row, : len(text)] = 0
    device = batch.tokens.device
    return Batch(tokens.to(device), targets.to(device), documents.to(device), batch.n_targets)


def reinforcement_of(configuration: Configuration, dataset: Data) -> Reinforcement:
    """That of a run's keys. Raises UserError for rewards that there are not, prompts without room, and a run without a
    beginning that it could be compared with."""
    run, (prompts,) = configuration.run, dataset.sources.values()
    rewards, room = rewards_of(configuration), configuration.model.block_size - run.max_completion
    for source in (*dataset.sources.values(), *dataset.validation_sources.values()):
        for split in source.splits.values():
            longest = int(lengths_of_documents(split, source.dtype, source.tokenizer["end_of_document"]).max())
            if longest > room:
                raise UserError(
                    f"max_completion={run.max_completion} has no room after a prompt of {longest:,} tokens in "
                    f"block_size={configuration.model.block_size:,}: take less, or prepare the prompts for it"
                )
    if run.has_reference_model and run.source is None and RunFolder(configuration.run_dir).checkpoint_of(0) is None:
        raise UserError(
            f"kl_beta={run.kl_beta:g} compares with the model that training began with, and "
            f"{configuration.run_dir} has none: --init_from names one"
        )
    tokenizer = tokenizer_from_meta(prompts.tokenizer, prompts.folder)
    writer = Writer(tokenizer, end_of_completions(prompts), run.max_completion)
    assert run.reinforce is not None
    reference = Reference(configuration.run_dir)
    return Reinforcement(run.reinforce, run.group_size, run.kl_beta, rewards, writer, reference)
