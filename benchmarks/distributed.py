"""What each strategy costs on the GPUs of this machine, or on two processes of its CPU: speed, memory, bytes sent, and
how long a checkpoint stalls it.

    python benchmarks/distributed.py
    python benchmarks/distributed.py config/quickstart.py --vocab_size=256 --ranks 4 --gradient_accumulation_steps=8

Starts its ranks itself, first for every strategy alone, to see what it holds and sends, then for all at once, which
take training steps in turn, so that a machine whose speed drifts is unfair to nobody. The data are random tokens.
Without a config the model is 6 layers x 384, micro-batches 4 x 256, one for each rank, vocabulary 256.
"""

import collections
import dataclasses
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository runs without being installed

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.train_throughput import merge, random_batches
from common.errors import ArgumentParser, UserError, exit_cleanly, positive
from components.parts import own_part
from configurator import Configuration, load
from flops_parameter_counting.costs.communication import Exchange
from parallel.collectives import process_group
from parallel.compute import Compute
from parallel.device import choose_device, choose_dtype, device_name, memory_in_use, synchronize
from parallel.ranks import Ranks
from parallel.strategy import device_mesh, parallelize, settle_buckets
from runs.checkpoint import Checkpointer, Training
from runs.folder import Progress, RunFolder
from training.optimizer import build_optimizer, optimizer_tensors
from training.plan import check_ranks
from training.step import take_step

MODEL = "--n_layer=6 --n_head=6 --n_embd=384 --block_size=256 --vocab_size=256 --batch_size=4".split()

STRATEGIES = {
    "DDP": "",
    "ZeRO-1": "--use_zero1=True",
    "FSDP": "--use_fsdp=True",
    "FSDP, weights kept": "--use_fsdp=True --fsdp_reshard_after_forward=False",
    "FSDP, offloaded": "--use_fsdp=True --fsdp_cpu_offload=True",
    "FSDP, 2 replicas": "--use_fsdp=True --fsdp_replicas=2",
    "tensor parallel 2": "--tensor_parallel=2",
    "tensor parallel 2, FSDP": "--tensor_parallel=2 --use_fsdp=True",
    "pipeline 2": "--pipeline_parallel=2",
}

# PyTorch's operators that send, their kind, and which argument is the whole (of the functional all_gather, and of
# all_to_all, a part: of the latter not all are equal, and only the mean over the ranks is that of the whole).
COLLECTIVES = {
    "c10d::allreduce_": ("all_reduce", 0),
    "c10d::_allgather_base_": ("all_gather", 0),
    "c10d::allgather_": ("all_gather", 0),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", 1),
    "c10d::broadcast_": ("broadcast", 0),
    "c10d::alltoall_base_": ("all_to_all", 1),
    "c10d::send": ("send", 0),
    "_c10d_functional::all_reduce": ("all_reduce", 0),
    "_c10d_functional::all_gather_into_tensor": ("all_gather", 0),
    "_c10d_functional::reduce_scatter_tensor": ("reduce_scatter", 0),
}
RECEIVES = "c10d::recv_"  # what another rank sends, and counts
SEND_NOTHING = ("wait_tensor", "_wrap_tensor_autograd")


class CollectiveBytes(TorchDispatchMode):
    """Counts what a block of code exchanges, whoever asks for it: DDP, FSDP, DTensor or this project.

    `payload` are the bytes of the whole of every collective, by its kind and the size of its group, as in
    `flops_parameter_counting.costs.communication.Exchange`; `calls` their number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.payload: collections.Counter[tuple[str, int]] = collections.Counter()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # DTensor takes it apart, and what it sends passes here again
        if func.namespace in ("c10d", "_c10d_functional", "_dtensor") and func._opname not in SEND_NOTHING:
            self.count(func.name().partition(".")[0], args)
        return func(*args, **(kwargs or {}))

    def count(self, operator: str, args: tuple) -> None:
        self.calls += 1
        if operator == RECEIVES:
            return
        if operator not in COLLECTIVES:
            raise NotImplementedError(f"{operator} sends bytes that are not counted: add it to COLLECTIVES")
        kind, index = COLLECTIVES[operator]
        ranks = group_of(args).size()
        parts = ranks if operator == "_c10d_functional::all_gather_into_tensor" or kind == "all_to_all" else 1
        if ranks > 1:
            self.payload[kind, ranks] += parts * nbytes(args[index])


def group_of(args: tuple) -> dist.ProcessGroup:
    """The functional operators end with the group's name, the others have it among their arguments."""
    if isinstance(args[-1], str):
        return dist.distributed_c10d._resolve_process_group(args[-1])  # type: ignore[arg-type]
    (group,) = (arg for arg in args if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg._type()))
    return dist.ProcessGroup.unbox(group)


def nbytes(tensors: Any) -> int:
    """The bytes of a tensor, or of any depth of lists of them."""
    return tensors.nbytes if isinstance(tensors, Tensor) else sum(nbytes(one) for one in tensors)


# One rank


@dataclasses.dataclass(frozen=True)
class Cost:
    """Bytes of one rank: weights and moments, the most that its process or GPU held, and what it sends in a step; then
    the seconds in which a checkpoint pauses training, and until it is in place."""

    state: int
    peak: int
    sent: float
    stall: float
    save: float


def prepare(configuration: Configuration, ranks: Ranks, device: torch.device, compiles: bool) -> Callable[[], Training]:
    """A function that takes a training step, as train.py does."""
    run = configuration.run
    ranks = ranks.sharing(run)
    dtype = choose_dtype(run.dtype, device)
    compute = Compute(device, dtype, ranks, device_mesh(run, ranks, device))
    model, wrapped = parallelize(configuration, compute, compiles)
    settle_buckets(wrapped, run.batch_size, configuration.model.block_size // run.context_parallel, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == "float16")
    training = Training(model, build_optimizer(model, run, compute.mesh), scaler, Progress(), wrapped)
    batches = random_batches(configuration, device, run.gradient_accumulation_steps)

    def step() -> Training:
        mine = ranks.share(range(len(batches)))
        take_step(training, iter(batches[mine.start : mine.stop]), run, run.learning_rate, compute)
        return training

    return step


def cost(ranks: Ranks, device: torch.device, configuration: Configuration, folder: str) -> Cost:
    """The cost of a strategy alone, not compiled: PyTorch's operators are seen, those of a compiled graph are not."""
    step = prepare(configuration, ranks, device, compiles=False)
    step()
    training = step()
    synchronize(device)
    peak = memory_in_use(device)["peak"] or 0
    with CollectiveBytes() as counter:
        step()
    moments = optimizer_tensors(training.model, training.optimizer).values()
    held = [parameter.detach() for parameter in training.model.parameters()] + list(moments)
    state = sum(own_part(value).nbytes for value in held)
    sent = sum(Exchange("", kind, size, payload).sent for (kind, size), payload in counter.payload.items())
    return Cost(state, peak, sent, *saving(training, ranks, RunFolder(Path(folder))))


def saving(training: Training, ranks: Ranks, folder: RunFolder) -> tuple[float, float]:
    """Seconds of stall and of all of it, of the second checkpoint: the first one allocates what the copies lie in."""
    checkpointer = Checkpointer(folder, training, ranks, {}, {})
    for number in range(2):
        training.progress.step = number
        checkpointer.start()
        saved = checkpointer.settle(wait=True)
        dist.barrier()
    checkpointer.close()
    assert saved is not None
    return saved.stall_seconds, saved.seconds


def race(
    ranks: Ranks, device: torch.device, configurations: dict[str, Configuration], steps: int
) -> dict[str, list[float]]:
    """Seconds of each step of each strategy; the first two of each are not timed."""
    contestants = {
        name: prepare(configuration, ranks, device, configuration.run.compile is True)
        for name, configuration in configurations.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(steps + 2):
        for name, step in contestants.items():
            dist.barrier()
            synchronize(device)
            start = time.perf_counter()
            step()
            synchronize(device)
            if number >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


# All ranks


def on_ranks(size: int, configuration: Configuration, body: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`body(ranks, device, *arguments)` on each of `size` new processes; what they returned, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    context = mp.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        mp.spawn(_one_rank, args=(environment, results, configuration, body, arguments), nprocs=size)
        return [results[rank] for rank in range(size)]


def _one_rank(
    rank: int, environment: dict[str, str], results: Any, configuration: Configuration, body: Callable, arguments: tuple
) -> None:
    os.environ |= {**environment, "RANK": str(rank)}
    size = int(environment["WORLD_SIZE"])
    ranks = Ranks(rank, rank, size, local_size=size)
    device = choose_device(configuration.run.device, ranks)
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // size))
    with process_group(ranks, device, dataclasses.replace(configuration.run, use_fsdp=True)):  # for one rank too
        results[rank] = body(ranks, device, *arguments)


def possible(arguments: list[str], size: int) -> dict[str, Configuration]:
    """The strategies that so many ranks can take; says which they cannot, and why."""
    configurations = {}
    for name, keys in STRATEGIES.items():
        try:
            configuration = load([*arguments, *keys.split()])
            check_ranks(configuration, size)
        except UserError as error:
            print(f"not compared: {name}: {error}")
            continue
        configurations[name] = configuration
    return configurations


def report(
    configurations: dict[str, Configuration], costs: dict[str, list[Cost]], seconds: dict[str, list[float]]
) -> None:
    """Medians; memory of the rank that holds the most; the ratio is of speed, to DDP's."""
    ddp = statistics.median(seconds["DDP"])
    columns = f"{'tokens/s':>10}{'of DDP':>8}{'state MB':>10}{'peak MB':>9}{'sent MB/step':>14}{'save s':>8}"
    print(f"{'':<24}{columns}{'stall s':>9}{'of a step':>11}   (of a rank; weights and moments are its state)")
    for name, configuration in configurations.items():
        tokens = configuration.run.sequences_per_step * configuration.model.block_size
        median = statistics.median(seconds[name])
        state, peak, sent = (max(getattr(one, what) for one in costs[name]) / 1e6 for what in ("state", "peak", "sent"))
        stall, save = (max(getattr(one, what) for one in costs[name]) for what in ("stall", "save"))
        print(
            f"{name:<24}{tokens / median:>10,.0f}{ddp / median:>8.2f}{state:>10,.1f}{peak:>9,.1f}{sent:>14,.1f}"
            f"{save:>8.2f}{stall:>9.3f}{100 * stall / median:>10.1f}%"
        )


@exit_cleanly
def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--ranks", type=positive, help="processes to start (default: one a GPU, 2 on a CPU)")
    parser.add_argument("--steps", type=positive, default=5, help="timed steps of each strategy")
    arguments, rest = parser.parse_known_args()
    size = arguments.ranks or torch.cuda.device_count() or 2
    if not any(word.endswith(".py") for word in rest):
        rest = merge([*MODEL, f"--gradient_accumulation_steps={size}"], rest)
    configurations = possible(rest, size)
    if not configurations:
        raise UserError(f"{size} ranks can take no strategy with this configuration")
    base = next(iter(configurations.values()))
    if base.model.vocab_size is None:
        raise UserError("give --vocab_size: the benchmark reads no dataset")
    costs = {}
    for name, one in configurations.items():
        with tempfile.TemporaryDirectory() as folder:
            costs[name] = on_ranks(size, base, cost, one, folder)
    seconds = on_ranks(size, base, race, configurations, arguments.steps)[0]
    device = choose_device(base.run.device, Ranks(0, 0, 1))
    dtype = choose_dtype(base.run.dtype, device)
    print(f"{base.model.name}, {dtype}, {size} ranks on {device_name(device)}, torch {torch.__version__}")
    report(configurations, costs, seconds)


if __name__ == "__main__":
    main()
