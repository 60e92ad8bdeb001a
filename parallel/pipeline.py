"""A pipeline: the blocks divided into stages, each on ranks of its own, through which the micro-batches of a step flow
(Huang et al. 2019, GPipe), in the order of one of PyTorch's schedules. That of 1f1b is Narayanan et al.'s (2021,
Megatron-LM, section 2.2.1).

    the first   tokens ─ embedding ─ blocks ─┐ the residual stream, and what blocks hand on
                  ┌──────────────────────────┘     (their gradients come back the same way)
    the next      └─ blocks ─┐
    the last                 └─ blocks ─ final norm ─ head ─ loss

Every stage reads the same micro-batches: targets and documents need not travel.
"""

import contextlib
import dataclasses
import datetime
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn.parallel import DistributedDataParallel

from components.heads.spec import IGNORED
from components.parts import own_part
from data.loader import Batch
from flops_parameter_counting.costs.pipeline import handed_over, in_flight, stages_of
from model_builder import LanguageModel, LossParts
from model_config import ModelArchitectureConfig
from parallel.compute import Compute
from parallel.device import precision
from parallel.ranks import Ranks
from parallel.zero import gather
from runs.config import RunConfig

SCHEDULES = {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}
Synchronizing = Callable[[bool], contextlib.AbstractContextManager]  # what a backward pass, the last or not, is made in


class StageModel(LanguageModel):
    """The model without what other stages have; what is here has the names that it has in the whole.

    Called, it takes a micro-batch through the stage, and notes in `found` what came of it: the LossParts, with a
    cross-entropy of 0 where another stage has the head. `weight` is that of a target in the gradients.
    """

    def __init__(self, config: ModelArchitectureConfig, compute: Compute):
        super().__init__(config)
        self.place = place = stages_of(config, compute.ranks.pipeline_parallel)[compute.ranks.stage]
        self.compute, self.weight = compute, 1.0
        self.found: list[LossParts] = []
        assert place.blocks is not None
        self.takes, self.gives = (handed_over(config, block) for block in (place.blocks.start, place.blocks.stop))
        for index in range(config.n_layer):
            if index not in place.blocks:
                self.blocks[index] = cast(Any, None)
        before = [] if place.is_first else ["position"] if self.has_copy else ["embedding", "position"]
        for name in before + ([] if place.is_last else ["final_norm", "lm_head"]):
            setattr(self, name, None)

    @property
    def has_copy(self) -> bool:
        """Whether it is the last stage, with a tied embedding, which the first one has too."""
        return self.config.weight_tying and self.place.is_last

    def forward(  # type: ignore[override]
        self, *arrived: Tensor, targets: Tensor, documents: Tensor | None = None
    ) -> tuple[Tensor, ...] | Tensor:
        """Tokens (B, T), or what the stage before sends -> the residual stream (B, T, D) and what blocks hand on to
        later stages; on the last stage what training makes smaller, a scalar."""
        with precision(self.compute.device, self.compute.dtype):  # here, since backward passes are to be outside
            return self._through_stage(arrived, targets, documents)

    def _through_stage(
        self, arrived: tuple[Tensor, ...], targets: Tensor, documents: Tensor | None
    ) -> tuple[Tensor, ...] | Tensor:
        own = {} if documents is None else self._of_documents(documents)
        first, *others = arrived
        x = self._embedded(first, 0, own) if self.place.is_first else first
        handed = dict(zip(self.takes, others, strict=True))
        x, auxiliary, loads, handed = self._through_blocks(x, 0, targets.shape[1], None, own, handed)
        loss = self._cross_entropy(self._for_head(x), targets) if self.place.is_last else x.new_zeros(())
        parts = LossParts(loss, (targets != IGNORED).sum(), auxiliary, loads)
        self.found.append(parts._replace(cross_entropy=loss.detach(), auxiliary=_detached(auxiliary)))
        total = parts.total() * self.weight
        if self.place.is_last:
            return total
        x = _Adding.apply(x, total) if auxiliary else x
        return (x, *(_Passing.apply(handed[name]) for name in self.gives))

    def arriving(self, batch_size: int) -> tuple[Tensor, ...]:
        """The shapes of what it is called with, on the meta device."""
        if self.place.is_first:
            return (torch.empty(batch_size, self.config.block_size, dtype=torch.long, device="meta"),)
        return self._crossing(batch_size, self.takes)

    def leaving(self, batch_size: int) -> tuple[Tensor, ...]:
        """The shapes of what it returns, on the meta device."""
        return (torch.empty((), device="meta"),) if self.place.is_last else self._crossing(batch_size, self.gives)

    def _crossing(self, batch_size: int, handed: dict[str, int]) -> tuple[Tensor, ...]:
        """As costs.pipeline.crossing counts it."""
        dtype, shape = getattr(torch, self.compute.dtype), (batch_size, self.config.block_size)
        stream = torch.empty(*shape, self.config.n_embd, device="meta", requires_grad=True)
        others = (torch.empty(*shape, size, dtype=dtype, device="meta", requires_grad=True) for size in handed.values())
        return (stream, *others)


def _detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: term.detach() for name, term in terms.items()}


class _Adding(torch.autograd.Function):
    """The residual stream as it is, (B, T, D). What components add to the loss, a scalar, has its gradient from it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, added: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient.new_ones(())


class _Passing(torch.autograd.Function):
    """What blocks hand to later stages, as it is. Its gradient is a copy: of what only passes through, that which has
    arrived would be sent on, while the next one is received in its place."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clone()


@dataclasses.dataclass(frozen=True)
class Groups:
    """Those with which a rank exchanges: one rank of each stage; of these the first and the last, where they have
    copies of a tied embedding; and the ranks of its stage."""

    stages: dist.ProcessGroup
    ends: dist.ProcessGroup | None
    data: dist.ProcessGroup


def groups_of(ranks: Ranks, run: RunConfig, is_tied: bool) -> Groups:
    """Made by all ranks together."""
    timeout = datetime.timedelta(seconds=run.comm_timeout)

    def own(groups: list[list[int]]) -> Any:
        return dist.new_subgroups_by_enumeration(groups, timeout=timeout)[0]

    pipelines = [list(range(first, ranks.size, ranks.data_size)) for first in range(ranks.data_size)]
    ends = own([[pipeline[0], pipeline[-1]] for pipeline in pipelines]) if is_tied else None
    return Groups(own(pipelines), ends, own([list(stage) for stage in zip(*pipelines, strict=True)]))


class Pipeline(nn.Module):
    """This rank's stage, in exchange with the others of its pipeline.

    `trained` is the stage's model as data ranks share it: in DistributedDataParallel, divided by FSDP, or as it is.
    """

    def __init__(
        self, model: StageModel, trained: nn.Module, run: RunConfig, groups: Groups, synchronizing: Synchronizing
    ):
        super().__init__()
        self.model, self.groups, self.place = model, groups, model.place
        self.is_replicated = isinstance(trained, DistributedDataParallel)
        self.count = run.gradient_accumulation_steps // model.compute.ranks.data_size  # micro-batches in a step
        stage = _Stage(
            trained if self.is_replicated else _Unseen(trained),
            self.place.index,
            groups.stages.size(),
            model.compute.device,
            input_args=model.arriving(run.batch_size),
            output_args=model.leaving(run.batch_size),
            group=groups.stages,
        )
        stage.synchronizing, stage.begun = synchronizing, in_flight(run, self.place, self.count)
        # The last stage's output is its loss: the weights of its head may be there for its forward pass only
        self.schedule = SCHEDULES[run.pipeline_schedule](
            stage, self.count, loss_fn=lambda total, targets: total, scale_grads=False
        )

    def forward(self, tokens: Tensor, targets: Tensor, documents: Tensor | None = None) -> LossParts:
        """A batch of an evaluation, as the model has it, which flows on to the next stage. On stages before the last
        the cross-entropy is 0. Without gradients."""
        here, group, device = self.place.index, self.groups.stages, self.model.compute.device
        arrived: tuple[Tensor, ...] = (tokens,)
        if not self.place.is_first:
            arrived = tuple(torch.empty_like(one, device=device) for one in self.model.arriving(len(tokens)))
            for values in arrived:
                dist.recv(values, group=group, group_src=here - 1)
        left = self.model(*arrived, targets=targets, documents=documents)
        if not self.place.is_last:
            for values in left:
                dist.send(values.contiguous(), group=group, group_dst=here + 1)
        return self.model.found.pop()

    def backward_pass(
        self, batches: Sequence[Batch], weight: float
    ) -> tuple[Tensor, dict[str, Tensor], dict[int, Tensor]]:
        """All micro-batches of a step, forward and backward, each target with a weight. Returns on every stage the sums
        over targets, scalars, of the loss and of what components add, by name; and the sums of loads, by block."""
        self.model.weight, self.model.found = weight, []
        given: dict[str, Any] = {"targets": torch.cat([batch.targets for batch in batches])}
        if batches[0].documents is not None:
            given["documents"] = torch.cat([cast(Tensor, batch.documents) for batch in batches])
        tokens = [torch.cat([batch.tokens for batch in batches])] if self.place.is_first else []
        target = given["targets"] if self.place.is_last else None
        with _as_it_was_raised():
            self.schedule.step(*tokens, target=target, return_outputs=False, **given)
        if self.groups.ends is not None and (gradient := self.model.embedding.weight.grad) is not None:
            dist.all_reduce(own_part(gradient), group=self.groups.ends)
        return self._together()

    def _together(self) -> tuple[Tensor, dict[str, Tensor], dict[int, Tensor]]:
        """What the stages have found, each of its blocks, and the last of the loss."""
        terms, experts = noted(self.model.config)
        zero = torch.zeros((), device=self.model.compute.device)
        loss, sums = zero.clone(), {name: zero.clone() for name in terms}
        loads = {block: zero.repeat(size) for block, size in experts.items()}
        for parts in self.model.found:
            loss += parts.cross_entropy
            for name, term in parts.auxiliary.items():
                sums[name] += term * parts.n_targets
            for block, load in parts.loads.items():
                loads[block] += load
        numbers = torch.cat((torch.stack((loss, *sums.values())), *loads.values()))
        dist.all_reduce(numbers, group=self.groups.stages)
        first, *of_blocks = numbers.split([1 + len(sums), *experts.values()])
        return first[0], dict(zip(sums, first[1:], strict=True)), dict(zip(loads, of_blocks, strict=True))

    def norm(self, norm_of: Callable[[list[Tensor]], Tensor]) -> Tensor:
        """The norm of the gradients of all stages together, (), from that of this one's, of which a copy is none."""
        copy = self.model.embedding.weight if self.model.has_copy else None
        parameters = (parameter for parameter in self.model.parameters() if parameter is not copy)
        own = norm_of([parameter.grad for parameter in parameters if parameter.grad is not None])
        norms = own.new_empty(self.groups.stages.size())
        gather(norms, own.reshape(1), group=self.groups.stages)
        return torch.linalg.vector_norm(norms)

    def of_all_stages(self, found: dict[str, Any]) -> dict[str, Any]:
        """What each stage has found, of its own things by name, together in the model's order."""
        every: list[Any] = [None] * self.groups.stages.size()
        dist.all_gather_object(every, found, group=self.groups.stages)
        return {name: value for of_stage in every for name, value in of_stage.items()}

    def settle(self, tokens: Tensor) -> None:
        """The backward pass of a step, of equal micro-batches of tokens (B, T), that changes nothing."""
        self.backward_pass([Batch(tokens, tokens)] * self.count, 1.0)
        self.model.zero_grad(set_to_none=True)


def noted(config: ModelArchitectureConfig) -> tuple[list[str], dict[int, int]]:
    """The names of what components add to the loss, and by block the experts that have loads: as their specs say."""
    terms, loads = dict[str, None](), dict[int, int]()
    for index, layer in enumerate(config.layers):
        if layer.ffn_spec is not None:
            terms |= dict.fromkeys(layer.ffn_spec.adds(config.of(layer)))
            loads[index] = layer.ffn_spec.loads(config.of(layer))
    return list(terms), {index: size for index, size in loads.items() if size}


class _Stage(PipelineStage):
    """PyTorch's stage, which makes its backward passes as the strategy of the data ranks wants it, and has room for
    what arrives of as many micro-batches as it has `begun` at most, and for the gradients of one: PyTorch's own has it
    for all micro-batches of a step."""

    synchronizing: Synchronizing
    begun: int

    def _prepare_forward_infra(self, num_microbatches: int, *args: Any, **kwargs: Any) -> Any:
        found = super()._prepare_forward_infra(self.begun, *args, **kwargs)
        for index in range(self.begun, num_microbatches):
            self.args_recv_info[index] = self.args_recv_info[index % self.begun]
        return found

    def _prepare_backward_infra(self, num_microbatches: int, *args: Any, **kwargs: Any) -> Any:
        found = super()._prepare_backward_infra(1, *args, **kwargs)
        self.chunks = num_microbatches
        for index in range(1, num_microbatches):
            self.grad_recv_info[index] = self.grad_recv_info[0]
        return found

    def backward_one_chunk(
        self, bwd_chunk_id: int, loss: Any = None, full_backward: bool = True, last_backward: bool = False
    ) -> None:
        with self.synchronizing(last_backward):
            super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)


class _Unseen(nn.Module):
    """A module as PyTorch's stage does not know it: FSDP's it would have keep whole gradients until the step's end."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *arrived: Tensor, **given: Tensor) -> Any:
        return self.module(*arrived, **given)


@contextlib.contextmanager
def _as_it_was_raised() -> Iterator[None]:
    """An error of a pass through a stage is what PyTorch puts into another, with the shapes of all tensors."""
    try:
        yield
    except RuntimeError as error:
        raise error.__cause__ or error from None
