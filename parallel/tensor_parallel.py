"""Tensor parallelism: every layer shared by neighbouring ranks (Shoeybi et al. 2019, Megatron-LM), the norms and the
residual stream along the sequence (Korthikanti et al. 2022).

    tokens ─ embedding (rows of the vocabulary) ─ positions ─┐ sequence split
      ┌──────────────────────────────────────────────────────┘
      │  norm ─ gather ─ q, k, v by heads ─ attention ─ o ─ sum and split ─ (+)      each block
      │  norm ─ gather ─ gate, up by columns ─ activation ─ down ─ sum and split ─ (+)
      └─ final norm ─ gather ─ head (rows of the vocabulary) ─ loss of all rows
"""

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from common.errors import UserError
from model_builder import LanguageModel
from model_components import Attention, GatedFFN, StandardFFN

WHOLE, BY_SEQUENCE = Replicate(), Shard(1)  # of activations (B, T, D)


class Replicated(ParallelStyle):
    """A module that every rank computes whole, on activations that every rank has whole."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return distribute_module(
            module,
            device_mesh,
            input_fn=lambda _, inputs, mesh: tuple(  # type: ignore[arg-type]
                DTensor.from_local(x, mesh, [WHOLE]) for x in inputs
            ),
            output_fn=lambda _, output, mesh: output.to_local(),
        )


def shard_layers(model: LanguageModel, mesh: DeviceMesh) -> None:
    """Share the model's layers, in place, among the ranks of a one-dimensional mesh.

    The head needs no plan: the loss sees that its weight is distributed (components/cross_entropy.py).
    Raises UserError for a component of whose sharing nothing is known.
    """
    by_rows = RowwiseParallel(input_layouts=WHOLE, output_layouts=WHOLE)
    plan: dict[str, ParallelStyle] = {
        "embedding": by_rows,
        "dropout": PrepareModuleOutput(output_layouts=WHOLE, desired_output_layouts=BY_SEQUENCE),
        "final_norm": SequenceParallel(use_local_output=False),
    }
    if model.lm_head is not None:
        plan["lm_head"] = ColwiseParallel()
    for name, module in model.position.named_modules(prefix="position"):
        if any(True for _ in module.parameters(recurse=False)):
            plan[name] = Replicated()
    for index, block in enumerate(model.blocks):
        plan |= {f"blocks.{index}.{name}": style for name, style in _block_plan(block).items()}
    parallelize_module(model, mesh, plan)


def _block_plan(block: nn.Module) -> dict[str, ParallelStyle]:
    if not isinstance(block.mixer, Attention):
        raise _unknown(block.mixer)
    mixer = {**dict.fromkeys(("q_proj", "k_proj", "v_proj"), ColwiseParallel()), "o_proj": _sum_and_split()}
    if isinstance(block.ffn, GatedFFN):
        ffn = {**dict.fromkeys(("gate_proj", "up_proj"), ColwiseParallel()), "down_proj": _sum_and_split()}
    elif isinstance(block.ffn, StandardFFN):
        ffn = {"up_proj": ColwiseParallel(), "down_proj": _sum_and_split()}
    else:
        raise _unknown(block.ffn)
    return {
        "mixer_norm": SequenceParallel(use_local_output=True),
        "mixer": _gather(also_given=2),  # the rotation and the score bias
        **{f"mixer.{name}": style for name, style in mixer.items()},
        "ffn_norm": SequenceParallel(use_local_output=True),
        "ffn": _gather(),
        **{f"ffn.{name}": style for name, style in ffn.items()},
    }


def _gather(also_given: int = 0) -> ParallelStyle:
    rest = (None,) * also_given
    return PrepareModuleInput(input_layouts=(BY_SEQUENCE, *rest), desired_input_layouts=(WHOLE, *rest))


def _sum_and_split() -> ParallelStyle:
    return RowwiseParallel(output_layouts=BY_SEQUENCE)


def _unknown(module: object) -> UserError:
    return UserError(
        f"tensor_parallel does not know how ranks share {type(module).__name__}: take --use_fsdp=True instead"
    )
