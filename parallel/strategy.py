"""From a configuration to a model as the ranks of a run train it, in this order:

1. the model, or a stage of it, on the meta device: it takes no memory yet;
2. tensor parallel: layers shared among neighbouring ranks; or expert parallel: experts; context parallel: sequences;
   codes are put in place of matrices, and adapters beside these; what the run does not train is frozen;
3. activation checkpointing;
4. compilation, block by block;
5. FSDP: block by block, what step 2 left, divided over the data ranks;
6. memory for this rank's part, and its initial values, which depend on the seed alone;
7. DDP around it, where nothing is sharded;
8. a pipeline around a stage.
"""

import contextlib
import dataclasses
import functools
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from components.parts import own_part
from components.quantized.module import QuantizedMatrix
from configurator import Configuration
from model_builder import LanguageModel
from parallel.compute import Compute
from parallel.context_parallel import divide_sequences
from parallel.expert_parallel import complete_gradient, share_experts, shares_experts
from parallel.pipeline import Pipeline, StageModel, groups_of
from parallel.ranks import Ranks
from parallel.tensor_parallel import shard_layers
from runs.config import RunConfig


def parallelize(configuration: Configuration, compute: Compute, compiles: bool) -> tuple[LanguageModel, nn.Module]:
    """The model, and the same in what wraps it: calling the latter trains. Needs the process group of the run.

    Raises UserError for a component that a strategy cannot share.
    """
    run, mesh, ranks, device = configuration.run, compute.mesh, compute.ranks, compute.device
    is_stage = run.pipeline_parallel > 1
    with torch.device("meta"):
        model = StageModel(configuration.model, compute) if is_stage else LanguageModel(configuration.model)
    if run.quantize_base is not None:
        model.quantize(run.quantize_base)
    if run.adapters is not None:
        model.adapt(run.adapters)
    if mesh is not None and run.tensor_parallel > 1:
        shard_layers(model, mesh["tensor"])
    experts = share_experts(model, ranks, run.expert_parallel, device) if run.expert_parallel > 1 else set()
    if run.context_parallel > 1:
        divide_sequences(model, ranks, device)
    freeze(model, run)
    model.activation_checkpointing = run.activation_checkpointing
    if compiles:
        for block in model.own_blocks.values():
            block.compile(dynamic=False)  # evaluations may have batches of another size: compiled apart
    fsdp = run.use_fsdp or (run.shares_layers and ranks.copies > 1)
    if mesh is not None and fsdp:
        shard_fully(model, run, compute, experts)
    model.to_empty(device="cpu" if run.fsdp_cpu_offload else device)
    init_weights(model, run.seed)
    model.begin_adapters()
    groups = groups_of(ranks, run, configuration.model.weight_tying) if is_stage else None
    wrapped: nn.Module = model
    if not fsdp and ranks.copies > 1:
        # The newer name for it, since torch 2.13, would still send buffers once.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        read_by_all = [name for name, one in model.named_parameters() if isinstance(one, QuantizedMatrix)]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, read_by_all)
        wrapped = DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            process_group=groups and groups.data,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,  # equal on all ranks anyway
        )
    if groups is None:
        return model, wrapped
    assert isinstance(model, StageModel)
    waits = functools.partial(without_gradient_sync, wrapped, run)
    return model, Pipeline(model, wrapped, run, groups, lambda is_last: waits(wanted=not is_last))


def freeze(model: nn.Module, run: RunConfig) -> None:
    """What the run does not train has no gradient."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not run.freezes(name))


def device_mesh(run: RunConfig, ranks: Ranks, device: torch.device) -> DeviceMesh | None:
    """The ranks as a block of `replica` x `shard` x `tensor`; None where a strategy needs none.

    FSDP divides the model over `shard` and keeps copies over `replica`; without FSDP every data rank has a copy. There
    is such a block for each `stage` of a pipeline.
    """
    if not run.is_sharded:
        return None
    replicas = run.fsdp_replicas if run.use_fsdp else ranks.copies
    # It warns that a norm over two axes of the mesh takes two exchanges, of one number each.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    shape = {"replica": replicas, "shard": ranks.copies // replicas, "tensor": run.tensor_parallel}
    if run.pipeline_parallel > 1:
        shape = {"stage": run.pipeline_parallel, **shape}
    return init_device_mesh(device.type, tuple(shape.values()), mesh_dim_names=tuple(shape))


def shard_fully(model: LanguageModel, run: RunConfig, compute: Compute, others: set[nn.Parameter]) -> None:
    """FSDP2, in place: a group for each block's mixer and FFN, and one for the rest: norms, positions, and the
    embedding, where a tied head meets it. `others` are left alone.

    Mixers and FFNs travel in the compute dtype, which autocast would round their matrices to anyway; norms of queries
    and keys, other vectors of mixers, and routers of experts are rounded with them. The rest, which computes in
    float32, travels in it, and so do blocks whose mixer does not bear to be rounded. Master weights, and their
    optimizer, are float32.
    """
    mesh, device, dtype = compute.mesh, compute.device, compute.dtype
    assert mesh is not None
    data = mesh["replica", "shard"] if mesh["replica"].size() > 1 or not run.use_fsdp else mesh["shard"]
    reduce_dtype = getattr(torch, run.fsdp_reduce_dtype)
    cast_to = getattr(torch, dtype) if run.use_fsdp and dtype != "float32" else None
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if run.fsdp_cpu_offload else OffloadPolicy()
    # A projection's output is a view, which matters to who writes into it; nobody does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    in_float32 = MixedPrecisionPolicy(reduce_dtype=reduce_dtype, cast_forward_inputs=False)
    cast = dataclasses.replace(in_float32, param_dtype=cast_to)
    shared: dict[str, Any] = {"mesh": data, "offload_policy": offload, "ignored_params": others}
    last = max(model.own_blocks)
    for index, block in model.own_blocks.items():
        layer = model.config.layers[index]
        # Backward begins with the last block, which would be gathered again at once.
        reshards = run.use_fsdp and run.fsdp_reshard_after_forward and index != last
        parts = [part for name, part in block.named_children() if name in ("mixer", "ffn")]
        policy = in_float32 if layer.mixer_spec.in_float32 else cast
        fully_shard(parts, reshard_after_forward=reshards, mp_policy=policy, **shared)
    fully_shard(model, reshard_after_forward=False, mp_policy=in_float32, **shared)


@torch.no_grad()
def init_weights(model: LanguageModel, seed: int) -> None:
    """`LanguageModel.init_weights` for a model of which this rank has a part: the same values, module by module.

    Each module is drawn whole on the CPU and this rank's part is kept. Drawing the parts would give every rank the
    same values, and would make them depend on the number of ranks.
    """
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if not isinstance(model, StageModel) and not any(isinstance(values, DTensor) for values in own.values()):
        model.init_weights(seed)
        return
    with torch.device("meta"):
        whole = LanguageModel(model.config)
    if isinstance(model, LanguageModel) and model.adapters is not None:
        whole.adapt(model.adapters)
    torch.manual_seed(seed)
    for name, module in whole.named_modules():
        module.to_empty(device="cpu", recurse=False)
        whole.init_module(name, module)
        for named, values in (
            *module.named_parameters(prefix=name, recurse=False), *module.named_buffers(prefix=name, recurse=False)
        ):  # fmt: skip
            if named in own:
                keep_part(own[named], values.detach())
        module.to_empty(device="meta", recurse=False)


def keep_part(parameter: Tensor, whole: Tensor) -> None:
    """Copy this rank's part of the whole values into a parameter, or a buffer."""
    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        whole = whole.to(mesh.device_type)
        whole = distribute_tensor(whole, mesh, parameter.placements, src_data_rank=None)  # cut here, nothing is sent
    own_part(parameter).copy_(own_part(whole))


@contextlib.contextmanager
def without_gradient_sync(model: nn.Module, run: RunConfig, wanted: bool) -> Iterator[None]:
    """For all micro-batches of a step but the last: what can wait for the last one does not travel.

    With DDP gradients add up locally. With FSDP they would have to be kept whole for that, which is what it is there
    to avoid: each micro-batch's are divided at once, and only the sums over replicas wait. Weights that are not given
    back after forward stay for the whole step.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_all_reduce(not wanted)
        model.set_reshard_after_backward(not wanted or run.fsdp_reshard_after_forward)
    with model.no_sync() if wanted and isinstance(model, DistributedDataParallel) else contextlib.nullcontext():
        yield


def give_back_weights(model: nn.Module) -> None:
    """After forward passes without backward: FSDP's parameters are this rank's parts again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(values: Tensor) -> Tensor:
    """All of something that may be distributed over the ranks, on every one of them."""
    return values.full_tensor() if isinstance(values, DTensor) else values


def settle_buckets(model: nn.Module, batch_size: int, length: int, device: torch.device) -> None:
    """One forward and backward pass, over `length` tokens of each sequence, that changes nothing.

    DDP packs gradients anew after its first backward pass, which rounds sums over the ranks in another way: without
    this, the first step after a resume would differ from the same step of a run that was not interrupted.
    """
    tokens = torch.zeros(batch_size, length, dtype=torch.long, device=device)
    if isinstance(model, Pipeline) and model.is_replicated:
        model.settle(tokens)
    if not isinstance(model, DistributedDataParallel):
        return
    model(tokens, tokens).total().backward()
    model.zero_grad(set_to_none=True)


def settle_gradients(model: nn.Module) -> None:
    """Complete the sums over ranks that tensor parallelism has left open (gradients of norms, and of what all heads
    share), and those of experts, once a step."""
    for parameter in model.parameters():
        gradient: Tensor | None = parameter.grad
        if gradient is not None and shares_experts(parameter):
            complete_gradient(parameter)
        elif isinstance(parameter, DTensor) and isinstance(gradient, DTensor):
            parameter.grad = gradient.redistribute(parameter.device_mesh, parameter.placements)
