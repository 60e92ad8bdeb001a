"""A model on its way from checkpoint to checkpoint, as every rank sees it. (No conftest here: what ranks send back is
unpickled in a thread, where that cannot be imported.)"""

import dataclasses
from pathlib import Path

import torch
from checkpoints import same
from test_parallel import CPU, build, of_all_stages, small_configuration

import configurator
from data.dataset import open_dataset
from data.loader import WindowLoader
from parallel.collectives import from_first_rank
from parallel.compute import Compute
from parallel.ranks import Ranks
from parallel.strategy import whole
from runs.checkpoint import Checkpointer, Training, load_checkpoint
from runs.folder import RunFolder
from training.step import take_step

STEPS = 2  # before each save, and after it


@dataclasses.dataclass
class Hop:
    """What one rank saw of a model that was loaded from a checkpoint (or begun), saved, trained on, and resumed."""

    held: dict[str, torch.Tensor]  # whole, when it was saved
    losses: list[float]  # of the steps after that
    norms: list[float]
    samples: int
    resumed_exactly: bool  # the same steps again, from the saved checkpoint, with the same strategy


def everything(training: Training) -> dict[str, torch.Tensor]:
    """Copies of all tensors, whole, on every rank."""
    found = {name: whole(part.detach()).clone() for name, part in training.tensors().items()}
    return of_all_stages(training, found)


def hop(ranks: Ranks, keys: list[str], source: Path | None, target: Path, data: Path) -> Hop:
    configuration = small_configuration(*keys)
    otherwise = small_configuration(*keys, "--seed=99")  # other weights, so that all must come from the checkpoint
    run, model = configuration.run, configuration.model
    ranks = ranks.sharing(run)
    own_part = ranks.own_part(model.block_size)
    loader = WindowLoader(open_dataset(data), "train", model.block_size, run.seed, own_part=own_part)

    def steps(training: Training) -> tuple[list[float], list[float]]:
        results = []
        for _ in range(STEPS):
            first = training.progress.samples
            batches = (
                loader.batch(first + micro * run.batch_size, run.batch_size)
                for micro in ranks.share(range(run.gradient_accumulation_steps))
            )
            results.append(take_step(training, batches, run, run.learning_rate, Compute(CPU, "float32", ranks)))
            training.progress.step += 1
            training.progress.samples += run.sequences_per_step
        return [result.loss for result in results], [result.grad_norm for result in results]

    training = build(configuration if source is None else otherwise, ranks)
    if source is None:
        steps(training)
    else:
        load_checkpoint(source, training)
    held, samples = everything(training), training.progress.samples
    save(training, ranks, configuration, target)
    after = steps(training)
    resumed = build(otherwise, ranks)
    load_checkpoint(RunFolder(target).checkpoints()[0], resumed)
    exactly = steps(resumed) == after and same(everything(resumed), everything(training))
    return Hop(held, *after, samples, exactly)


def save(training: Training, ranks: Ranks, configuration: configurator.Configuration, target: Path) -> None:
    checkpointer = Checkpointer(RunFolder(target), training, ranks, configurator.as_dict(configuration), {})
    checkpointer.start()
    saved = checkpointer.settle(wait=True)
    checkpointer.close()
    assert saved is not None and (saved.path is not None or not ranks.is_first)
    from_first_rank(torch.zeros(1), ranks)  # in place before any rank reads it


def all_hops(ranks: Ranks, hops: list[tuple[list[str], Path | None, Path]], data: Path) -> list[Hop]:
    return [hop(ranks, keys, source, target, data) for keys, source, target in hops]
