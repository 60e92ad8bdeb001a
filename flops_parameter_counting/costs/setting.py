"""What a report or a search is asked about: a model, and where and how it is trained and decoded.

It stands apart from what counts them, so that a search without devices starts without any of that.
"""

import dataclasses
from typing import Any

from model_config import ModelArchitectureConfig
from runs.config import RunConfig

COMPUTE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
DTYPE_BYTES = {**COMPUTE_BYTES, "tf32": 4}  # TF32 is an arithmetic; what it computes with is stored in float32

# What each strategy is called in a config file (docs/distributed.md).
STRATEGIES: dict[str, dict[str, Any]] = {"ddp": {}, "zero1": {"use_zero1": True}, "fsdp": {"use_fsdp": True}}


@dataclasses.dataclass(frozen=True)
class Model:
    """A model to describe; interop.model_files reads one from a file. `notes` say what was assumed; `run` is there for
    a config file of this repository; `is_ours` says whether this repository decodes it, and not transformers."""

    name: str
    family: str
    architecture: ModelArchitectureConfig
    notes: tuple[str, ...] = ()
    run: RunConfig | None = None
    is_ours: bool = True


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where and how the model is trained and decoded. `sequence_length` None: the model's.

    `tensor_parallel`, `expert_parallel`, `context_parallel`, `pipeline_parallel`, `fsdp_replicas`, `fsdp_cpu_offload`
    and `optimizer` (None: that of `of_file`) are the run's keys of these names. `peak_flops` is one device's dense peak
    in `dtype`, FLOP/s, and `hardware` the name it goes by; `device_memory` (bytes) and `bandwidth` (bytes per second)
    are known for devices of the table. What no field here says of a run is as `of_file` has it.
    """

    sequence_length: int | None = None
    micro_batch: int = 1
    dtype: str = "bfloat16"
    activation_checkpointing: bool = False
    devices: int = 1
    strategy: str = "ddp"
    tensor_parallel: int = 1
    expert_parallel: int = 1
    context_parallel: int = 1
    pipeline_parallel: int = 1
    fsdp_replicas: int = 1
    fsdp_cpu_offload: bool = False
    optimizer: str | None = None
    hardware: str | None = None
    peak_flops: float | None = None
    device_memory: float | None = None
    bandwidth: float | None = None
    tokens: float | None = None
    mfu: float | None = None
    of_file: RunConfig = dataclasses.field(default_factory=RunConfig)

    @property
    def run(self) -> RunConfig:
        """The keys with which train.py trains so."""
        strategies = dict.fromkeys((key for keys in STRATEGIES.values() for key in keys), False)
        return dataclasses.replace(
            self.of_file,
            batch_size=self.micro_batch,
            activation_checkpointing=self.activation_checkpointing,
            tensor_parallel=self.tensor_parallel,
            expert_parallel=self.expert_parallel,
            context_parallel=self.context_parallel,
            pipeline_parallel=self.pipeline_parallel,
            fsdp_replicas=self.fsdp_replicas,
            fsdp_cpu_offload=self.fsdp_cpu_offload,
            optimizer=self.optimizer or self.of_file.optimizer,
            **(strategies | STRATEGIES[self.strategy]),
        )
