"""What a run is, besides its model: data, batch, optimizer, schedule, evaluation, logging, machine."""

import dataclasses
import fnmatch
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.keys import key
from components.lora.spec import Adapters, is_of_adapter
from components.quantized.spec import METHODS
from training.optimizers.registry import check_optimizer

# With which no rank has the whole model, or can read a text alone
PARTS_OF_THE_MODEL = ("use_fsdp", "tensor_parallel", "expert_parallel", "context_parallel", "pipeline_parallel")
DATA = "data"  # in a run's folder: datasets that were made for it
STARTS = ("scratch", "resume", "auto")
WITH_REFERENCE = ("dpo", "ipo", "kto")  # preferences that are compared with what another model says
OF_LABELS = ("kto",)  # those of answers that are labelled one by one, and not in pairs
OF_PREFERENCES = {  # keys, and the losses that have them
    "preference_beta": ("dpo", "ipo", "simpo", "orpo", "kto"),
    "preference_smoothing": ("dpo", "simpo", "orpo"),
    "preference_margin": ("simpo",),
    "preference_per_token": ("dpo",),
    "preference_desirable": ("kto",),
    "preference_undesirable": ("kto",),
}
REINFORCEMENTS = ("grpo", "dr_grpo")
OF_REINFORCEMENT = ("rewards", "group_size", "max_completion", "kl_beta")
OF_ADAPTERS = ("lora_r", "lora_alpha", "lora_dropout", "lora_targets", "use_rslora", "use_dora", "quantize_base")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The run's keys, with nanoGPT's names and defaults where nanoGPT has them."""

    out_dir: str | None = key(
        None,
        "the run's folder; None: out/<name of the config file>, or where a run's own config.py lies",
        group="Where to start and where to write",
        changes="name",
    )
    init_from: str = key(
        "scratch",
        "scratch; resume (from the run folder's last checkpoint); auto (resume if there is one, else scratch); or with "
        "the architecture and weights of another run or a Hugging Face model: its folder, or a name that Hugging "
        "Face's cache has, such as gpt2",
        changes="name",
    )
    seed: int = key(1337, "decides weights, data order and dropout", at_least=0, below=2**32)
    dry_run: bool = key(False, "print the startup report and exit without building anything", changes="name")
    verbose: bool = key(False, "print every key at the start, not only what differs from the preset", changes="name")
    components: str | None = key(
        None, "a folder with components of your own, whose code is executed (docs/extending.md)"
    )

    dataset: str = key("openwebtext", "a folder of data_dir, made by its prepare.py", group="Data and batch")
    mixture: str | dict | list | None = key(
        None,
        "several datasets of data_dir in place of `dataset`: {'c4': 0.3, 'code': 0.7}, shares of the samples; a list "
        "of such phases with their from_tokens; or a TOML file of them (docs/using/data.md)",
    )
    val_dataset: str | None = key(
        None, "evaluate on the validation text of this dataset, so that runs on several compare; None: on dataset's"
    )
    mask_documents: bool = key(
        False,
        "tokens meet those of their own document only, in every layer, and positions begin anew with each; False: the "
        "text of a window is one, and ends of documents are tokens like others",
    )
    packing: str = key(
        "windows",
        "windows: of block_size tokens of the text, which begin anywhere in a document; best_fit: whole documents are "
        "packed into them, and only those that are longer are cut; single: each document has one of its own; pairs: "
        "so, and every two that follow one another are seen together, as `preference` needs; prompts: each has one for "
        "each of its group_size completions, as `reinforce` needs; all but windows need "
        "mask_documents (docs/using/data.md)",
        choices=("windows", "best_fit", "single", "pairs", "prompts"),
    )
    data_dir: str | None = key(None, "where datasets lie; None: the repository's data folder", changes="name")
    batch_size: int = key(12, "sequences in a micro-batch", at_least=1)
    gradient_accumulation_steps: int = key(
        40,
        "micro-batches in a step, shared among the ranks: a step is gradient_accumulation_steps x batch_size x "
        "block_size tokens on any number of ranks",
        at_least=1,
    )

    max_iters: int | None = key(
        600000, "optimizer steps", at_least=0, group="Length: the run ends at the first of these that it reaches"
    )
    max_tokens: int | None = key(None, "training tokens", at_least=1)
    max_flops: float | None = key(None, "training FLOPs, in the full-attention convention", above=0)

    optimizer: str = key(
        "adamw",
        "adamw, or muon: for the matrices of linear layers, each alone, beside AdamW for embeddings, head, norms, "
        "routers, vectors and states (docs/optimizers.md)",
        group="Optimizer",
    )
    learning_rate: float = key(6e-4, "at its highest", at_least=0)
    weight_decay: float = key(0.1, "decoupled, on matrices only: none on norms, biases and other vectors", at_least=0)
    beta1: float = key(0.9, "decay of the gradient's running mean", at_least=0, below=1)
    beta2: float = key(0.95, "decay of the squared gradient's running mean", at_least=0, below=1)
    adam_eps: float = key(1e-8, "added to the root of the squared gradient's mean", above=0)
    muon_learning_rate: float | None = key(
        None,
        "of matrices, at its highest; its schedule is learning_rate's, in proportion; None: learning_rate",
        above=0,
    )
    muon_momentum: float = key(0.95, "decay of the running mean of a matrix's gradient", at_least=0, below=1)
    muon_nesterov: bool = key(True, "orthogonalise that mean and the gradient together (Nesterov's momentum)")
    muon_ns_steps: int = key(5, "Newton-Schulz iterations that orthogonalise it", at_least=1, below=100)
    muon_adjust_lr: str = key(
        "original",
        "learning rate of a matrix: original times sqrt(max(1, rows / columns)), or match_rms_adamw times "
        "0.2 sqrt(max(rows, columns)), which fits AdamW's learning rates",
        choices=("original", "match_rms_adamw"),
    )
    grad_clip: float = key(1.0, "largest global gradient norm; 0 clips nothing", at_least=0)
    frozen: str | None = key(
        None, "parameters that are not trained: patterns of their names, such as embedding.*,blocks.0.*; None: none"
    )
    use_lora: bool = key(
        False,
        "train low-rank adapters of the weights that init_from names, and nothing else (docs/using/adapters.md)",
        group="Adapters: LoRA, with PEFT's names",
    )
    lora_r: int = key(64, "their rank", at_least=1)
    lora_alpha: float | None = key(
        None, "what they add is multiplied by lora_alpha / lora_r; None: lora_r, and so by 1", above=0
    )
    lora_dropout: float = key(
        0.0, "dropout of what they are given, not of what the frozen matrix is", at_least=0, below=1
    )
    lora_targets: str | None = key(
        None,
        "modules that have one: patterns of their names, such as q_proj,v_proj or blocks.0.*; None: every linear layer "
        "of mixers and FFNs, and every expert's",
    )
    lora_from: str | None = key(
        None,
        "a folder of adapters in PEFT's format that they begin with: lora_r, lora_alpha, lora_targets, use_rslora and "
        "use_dora are theirs; None: adapters that add nothing yet",
        changes="name",
    )
    use_rslora: bool = key(False, "multiply by lora_alpha / sqrt(lora_r) instead (rsLoRA)")
    use_dora: bool = key(False, "train the length of every row of the adapted matrices, too (DoRA)")
    quantize_base: str | None = key(
        None,
        "keep all matrices and tables but theirs in 8 or 4 bits (QLoRA): int8, int8_dynamic, int4 or fp8; None: in "
        "float32",
        choices=(None, *METHODS),
    )
    preference: str | None = key(
        None,
        "in place of the next token's loss learn which of two answers is preferred: dpo, ipo, simpo or orpo, or which "
        "answers are desirable: kto (docs/using/finetuning.md)",
        choices=(None, "dpo", "ipo", "simpo", "orpo", "kto"),
        group="Preferences",
    )
    preference_beta: float = key(
        0.1, "dpo, ipo, simpo and kto: how far answers' log-probabilities count; orpo: the share of the odds", above=0
    )
    preference_smoothing: float = key(
        0.0, "share of pairs that are taken to be the wrong way round; not ipo's", at_least=0, below=0.5
    )
    preference_margin: float = key(0.0, "simpo: by how much the chosen answer's reward is to be higher", at_least=0)
    preference_per_token: bool = key(False, "dpo: log-probabilities of a token of the answer, not of all of it")
    preference_desirable: float = key(1.0, "kto: weight of answers that are labelled true", above=0)
    preference_undesirable: float = key(1.0, "kto: weight of answers that are labelled false", above=0)
    reinforce: str | None = key(
        None,
        "learn from rewards of what the model itself writes: grpo, or dr_grpo, without the standard deviation and the "
        "length of what was written, in place of the next token's loss (docs/using/finetuning.md)",
        choices=(None, *REINFORCEMENTS),
        group="Checkable rewards",
    )
    rewards: dict | None = key(
        None,
        "functions of the config file and their weights: {'right': 1.0, 'short': 0.1}; each is called with prompt, "
        "completion and answer, three strings, and returns a number",
    )
    group_size: int = key(8, "completions of each prompt, which are compared with one another", at_least=2)
    max_completion: int = key(64, "tokens of a completion, at most", at_least=1)
    kl_beta: float = key(
        0.0, "weight of the KL divergence from the model that training began with; 0: none, and no second model",
        at_least=0,
    )  # fmt: skip

    max_skipped_steps: int = key(10, "a run stops after so many steps in a row without a finite gradient", at_least=1)

    lr_schedule: str = key(
        "cosine", "after the warm-up: cosine, linear, wsd (stable, then linear decay) or constant",
        choices=("cosine", "linear", "wsd", "constant"), group="Learning-rate schedule",
    )  # fmt: skip
    decay_lr: bool = key(True, "False: learning_rate throughout, without warm-up or schedule")
    warmup_iters: int = key(2000, "steps of linear warm-up", at_least=0)
    lr_decay_iters: int | None = key(None, "the step at which min_lr is reached; None: the run's last", at_least=1)
    min_lr: float = key(6e-5, "where cosine, linear and wsd end", at_least=0)
    wsd_decay_fraction: float = key(0.2, "share of lr_decay_iters in which wsd decays", above=0)

    eval_interval: int = key(2000, "steps between evaluations", at_least=1, group="Evaluation and checkpoints")
    eval_iters: int = key(
        200,
        "an evaluation is eval_iters x eval_batch_size windows of the validation split, the same ones every time and "
        "for any batch_size; fewer if the split is short",
        at_least=1,
    )
    eval_batch_size: int = key(
        12, "windows that eval_iters counts in; at most batch_size of them are computed at once", at_least=1
    )
    eval_only: bool = key(False, "evaluate once and exit; an existing run is left as it is, its log too")
    eval_benchmarks: str | None = key(
        None,
        "asked of the model while it is trained, separated by commas: text, choice, cloze (questions made of the "
        "validation text), and benchmarks and tasks as evaluate.py takes them (docs/evaluation.md)",
    )
    eval_benchmarks_interval: int | None = key(
        None, "steps between benchmarks, which the run's end has too; None: eval_interval", at_least=1
    )
    eval_benchmarks_limit: int | None = key(None, "questions of each benchmark, the first ones; None: all", at_least=1)
    always_save_checkpoint: bool = key(True, "save at every evaluation; False: only where the loss improved")
    checkpoint_interval: int = key(
        0, "also save every so many steps; 0: only at evaluations and at the end", at_least=0
    )
    keep_last: int = key(2, "newest checkpoints to keep; the older one is for when the last is damaged", at_least=1)
    keep_best: bool = key(True, "keep the checkpoint with the lowest validation loss")
    keep_every: int = key(0, "keep every checkpoint whose step is a multiple of this; 0: none", at_least=0)

    log_interval: int = key(1, "steps between lines of the log", at_least=1, group="Log")
    gradient_stats_interval: int = key(0, "steps between gradient statistics by layer; 0: never", at_least=0)
    wandb_log: bool = key(
        False, "log to Weights & Biases too (extra: wandb); offline with WANDB_MODE=offline", changes="name"
    )
    wandb_project: str = key("isoflop", "its project", changes="name")
    wandb_run_name: str | None = key(None, "its run name; None: the run folder's name", changes="name")
    tensorboard_log: bool = key(
        False, "write TensorBoard events into the run's folder too (extra: tensorboard)", changes="name"
    )

    device: str = key("auto", "auto, cpu, cuda, cuda:N or mps", group="Machine")
    dtype: str = key(
        "auto",
        "compute dtype; master weights stay float32; auto: bfloat16 where the device computes in it, else float32",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    tf32: bool = key(True, "float32 matrix products in TF32 on CUDA")
    compile: bool | str = key(
        "auto", "compile each block; auto: when the run is long enough to pay for it", choices=(True, False, "auto")
    )
    activation_checkpointing: bool = key(False, "keep only each block's input, recompute the rest in backward")

    use_zero1: bool = key(
        False, "share the optimizer's state among the ranks (ZeRO stage 1)", group="Many ranks (docs/distributed.md)"
    )
    use_fsdp: bool = key(False, "share weights, gradients and optimizer state among the ranks (FSDP2, ZeRO stage 3)")
    fsdp_reshard_after_forward: bool = key(
        True, "give gathered weights back before backward; False keeps them for the step (ZeRO stage 2's trade)"
    )
    fsdp_cpu_offload: bool = key(False, "keep FSDP's parts, and update them, in main memory")
    fsdp_replicas: int = key(1, "copies of the model, each divided over ranks / replicas (hybrid sharding)", at_least=1)
    fsdp_reduce_dtype: str = key(
        "float32", "in which FSDP sums gradients over ranks: float32 or bfloat16", choices=("float32", "bfloat16")
    )
    tensor_parallel: int = key(1, "neighbouring ranks that share every layer; FSDP or DDP over the others", at_least=1)
    expert_parallel: int = key(
        1, "neighbouring ranks that share the experts of every layer; FSDP or DDP for the rest", at_least=1
    )
    context_parallel: int = key(
        1, "neighbouring ranks that divide every sequence; FSDP, ZeRO-1 or DDP over all of them", at_least=1
    )
    pipeline_parallel: int = key(
        1, "stages that the blocks are divided into, each of ranks / stages; FSDP or DDP within a stage", at_least=1
    )
    pipeline_schedule: str = key(
        "1f1b",
        "the order of a stage's micro-batches: 1f1b, or gpipe, which keeps the activations of all of them",
        choices=("1f1b", "gpipe"),
    )
    backend: str = key(
        "auto", "process-group backend: auto is nccl on CUDA and gloo on CPU", choices=("auto", "nccl", "gloo")
    )
    comm_timeout: int = key(
        600, "seconds that a rank waits for another before the run ends and names it", at_least=1, below=10**6
    )
    deepspeed_config: str | None = key(
        None,
        "a DeepSpeed configuration (*.json), whose keys become these: they win over the config file, the command line "
        "over them; None in what a run saves",
        changes="name",
    )
    world_size: int | None = key(None, "ranks that a dry run reports on; None: those that torchrun started", at_least=1)

    scaling_law: str | dict | None = key(
        None, "what the loss is held against: a law by its name, a law file *.json, or such a file's content as a dict",
        group="Prediction (docs/scaling_laws.md): changes nothing in the run, and stands in its log", changes="name",
    )  # fmt: skip
    predicted_loss: float | None = key(
        None,
        "validation loss at the run's end, nats per token; None: what scaling_law says",
        above=0,
        changes="name",
    )
    predicted_flops: float | None = key(
        None, "training FLOPs of the whole run, full attention", above=0, changes="name"
    )
    predicted_seconds: float | None = key(
        None, "in training steps, as train_seconds of the log", above=0, changes="name"
    )

    @property
    def source(self) -> str | None:
        """Whose weights the run begins with; None: drawn ones, or its own."""
        return None if self.init_from in STARTS else self.init_from

    @property
    def benchmarks(self) -> list[str]:
        """The names in eval_benchmarks, each once."""
        names = [] if self.eval_benchmarks is None else self.eval_benchmarks.split(",")
        return list(dict.fromkeys(name for given in names if (name := given.strip())))

    @property
    def sequences_per_step(self) -> int:
        return self.gradient_accumulation_steps * self.batch_size

    @property
    def adapters(self) -> Adapters | None:
        """What is trained in place of the model's own weights; None: these are."""
        if not self.use_lora:
            return None
        patterns = () if self.lora_targets is None else tuple(one.strip() for one in self.lora_targets.split(","))
        alpha = self.lora_r if self.lora_alpha is None else self.lora_alpha
        return Adapters(self.lora_r, alpha, patterns, self.lora_dropout, self.use_rslora, self.use_dora)

    def freezes(self, name: str) -> bool:
        """Whether a parameter of this name is not trained."""
        if self.use_lora:
            return not is_of_adapter(name)
        patterns = () if self.frozen is None else self.frozen.split(",")
        return any(fnmatch.fnmatchcase(name, pattern.strip()) for pattern in patterns)

    @property
    def frozen_names(self) -> Callable[[str], bool] | None:
        """`freezes`, or None where everything is trained."""
        return None if self.frozen is None and not self.use_lora else self.freezes

    @property
    def has_reference_model(self) -> bool:
        """Whether a model that is not trained is in memory beside the one that is: adapters' base is there anyway."""
        return self.reinforce is not None and self.kl_beta > 0 and not self.use_lora

    @property
    def keeps_start(self) -> bool:
        """Whether the run needs the checkpoint of step 0 as long as it goes on."""
        return self.use_lora or self.has_reference_model

    @property
    def is_sharded(self) -> bool:
        """Whether ranks have parts of parameters, or of what the optimizer keeps of them."""
        return self.use_zero1 or self.use_fsdp or self.shares_layers

    @property
    def shares_layers(self) -> bool:
        """Whether ranks compute with each other's parts of a layer."""
        return self.tensor_parallel > 1 or self.expert_parallel > 1


def in_folder(keys: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The `out_dir` of a run's keys, and the `data_dir` if the run has its data in its folder, as finetune.py makes
    them, where that folder is this one now."""
    found: dict[str, Any] = {"out_dir": str(folder)}
    out_dir, data_dir = keys.get("out_dir"), keys.get("data_dir")
    if out_dir is not None and data_dir is not None and Path(data_dir) == Path(out_dir) / DATA:
        found["data_dir"] = str(folder / DATA)
    return found


def evaluated_windows(config: Mapping[str, Any]) -> int | None:
    """How many windows an evaluation asks for, by a run's saved keys: before there was an eval_batch_size they were
    counted in batch_size. None where the keys do not say."""
    batches, size = config.get("eval_iters"), config.get("eval_batch_size") or config.get("batch_size")
    return batches * size if batches and size else None


def check_run(config: RunConfig) -> None:
    """Raises UserError, with the reason, for values that cannot work together."""
    if config.max_iters is None and config.max_tokens is None and config.max_flops is None:
        raise UserError("the run has no end: set max_iters, max_tokens or max_flops")
    if config.wsd_decay_fraction > 1:
        raise UserError(f"wsd_decay_fraction={config.wsd_decay_fraction} must be at most 1")
    decays = config.decay_lr and config.lr_schedule != "constant"
    if decays and config.min_lr > config.learning_rate:
        raise UserError(f"min_lr={config.min_lr} is above learning_rate={config.learning_rate}")
    if decays and config.lr_decay_iters is not None and config.lr_decay_iters < config.warmup_iters:
        raise UserError(
            f"lr_decay_iters={config.lr_decay_iters} is before the end of warmup_iters={config.warmup_iters}"
        )
    if config.world_size is not None and not config.dry_run:
        raise UserError(f"world_size={config.world_size} is for --dry_run=True: torchrun decides how many ranks run")
    check_benchmarks(config)
    if config.packing != "windows" and not config.mask_documents:
        raise UserError(f"packing={config.packing!r} keeps whole documents apart: add --mask_documents=True")
    defaults = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    _check_adapters(config, defaults)
    _check_preference(config, defaults)
    _check_reinforcement(config, defaults)
    check_optimizer(config, defaults)
    _check_strategy(config, defaults)
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", config.device):
        raise UserError(f"device={config.device!r} is none of: auto, cpu, cuda, cuda:N, mps")


def _check_strategy(config: RunConfig, defaults: dict[str, Any]) -> None:
    if config.use_zero1 and config.use_fsdp:
        raise UserError("use_zero1 and use_fsdp exclude each other: FSDP divides the optimizer's state already")
    if config.use_zero1 and config.tensor_parallel > 1:
        raise UserError("use_zero1 and tensor_parallel exclude each other: beside tensor_parallel take use_fsdp")
    check_shared_experts(config)
    check_stages(config)
    if config.pipeline_schedule != defaults["pipeline_schedule"] and config.pipeline_parallel == 1:
        raise UserError(f"pipeline_schedule={config.pipeline_schedule!r} is for a pipeline: add --pipeline_parallel")
    for name in ("fsdp_reshard_after_forward", "fsdp_cpu_offload", "fsdp_replicas", "fsdp_reduce_dtype"):
        if getattr(config, name) != defaults[name] and not config.use_fsdp:
            raise UserError(f"{name}={getattr(config, name)!r} is for FSDP: add --use_fsdp=True")


def _check_adapters(config: RunConfig, defaults: dict[str, Any]) -> None:
    if not config.use_lora:
        for name in (*OF_ADAPTERS, "lora_from"):
            if getattr(config, name) != defaults[name]:
                raise UserError(f"{name}={getattr(config, name)!r} is for adapters: add --use_lora=True")
        return
    if config.frozen is not None:
        raise UserError("frozen and use_lora exclude each other: all but the adapters is frozen; choose lora_targets")
    check_shared_adapters(config)


def check_shared_adapters(config: RunConfig) -> None:
    """Raises UserError for what excludes that adapters are trained."""
    for name in ("tensor_parallel", "expert_parallel", "pipeline_parallel"):
        if config.use_lora and getattr(config, name) > 1:
            raise UserError(f"use_lora and {name} exclude each other: ranks share adapters with use_fsdp or use_zero1")
    if config.quantize_base is not None and config.compile is True:
        raise UserError(
            "quantize_base and compile=True exclude each other: PyTorch does not compile products with codes"
        )
    if config.quantize_base is not None and config.use_fsdp:
        raise UserError("quantize_base and use_fsdp exclude each other: ranks share these adapters with use_zero1")


def _check_preference(config: RunConfig, defaults: dict[str, Any]) -> None:
    loss = config.preference
    if (config.packing == "pairs") != (loss is not None):
        raise UserError(f"packing={config.packing!r} and preference={loss!r}: preferences are of pairs, and no others")
    for name, losses in OF_PREFERENCES.items():
        if getattr(config, name) != defaults[name] and loss not in losses:
            raise UserError(f"{name}={getattr(config, name)!r} is for preference={' or '.join(losses)}")
    if loss is None:
        return
    if config.mixture is not None:
        raise UserError("preference and mixture exclude each other: put the pairs into one dataset")
    for name in ("batch_size", "eval_batch_size"):
        if getattr(config, name) % 2:
            raise UserError(f"{name}={getattr(config, name)} has half of a pair in it: take an even one")
    for name in ("context_parallel", "pipeline_parallel", "tensor_parallel"):
        if getattr(config, name) > 1:
            raise UserError(f"preference and {name} exclude each other: divide the model with use_fsdp")


def _check_reinforcement(config: RunConfig, defaults: dict[str, Any]) -> None:
    loss = config.reinforce
    if (config.packing == "prompts") != (loss is not None):
        raise UserError(f"packing={config.packing!r} and reinforce={loss!r}: rewards are of prompts, and no others")
    if loss is None:
        for name in OF_REINFORCEMENT:
            if getattr(config, name) != defaults[name]:
                raise UserError(f"{name}={getattr(config, name)!r} is for reinforce={' or '.join(REINFORCEMENTS)}")
        return
    if not config.rewards:
        raise UserError(f"reinforce={loss!r} needs rewards: the names of functions of the config file, with weights")
    for name, weight in config.rewards.items():
        if type(weight) not in (int, float) or not math.isfinite(weight):
            raise UserError(f"rewards: the weight of {name} is {weight!r}, which is no finite number")
    if config.mixture is not None:
        raise UserError("reinforce and mixture exclude each other: put the prompts into one dataset")
    for name in ("batch_size", "eval_batch_size"):
        if getattr(config, name) % config.group_size:
            raise UserError(
                f"{name}={getattr(config, name)} divides a group of completions: take a multiple of "
                f"group_size={config.group_size}"
            )
    shared = [name for name in PARTS_OF_THE_MODEL if (value := getattr(config, name)) is True or value > 1]
    if shared:
        raise UserError(
            f"reinforce and {shared[0]} exclude each other: a rank writes with the whole model; DDP or use_zero1"
        )


def check_benchmarks(config: RunConfig) -> None:
    """Raises UserError for benchmarks that no rank could ask, and for keys of them without them."""
    for name in ("eval_benchmarks_interval", "eval_benchmarks_limit"):
        if getattr(config, name) is not None and config.eval_benchmarks is None:
            raise UserError(f"{name} is for benchmarks: name some with --eval_benchmarks")
    if config.eval_benchmarks is None:
        return
    if not config.benchmarks:
        raise UserError(f"eval_benchmarks={config.eval_benchmarks!r} names none: text, choice, cloze, or tasks")
    shared = [name for name in PARTS_OF_THE_MODEL if (value := getattr(config, name)) is True or value > 1]
    if shared:
        raise UserError(
            f"eval_benchmarks asks the whole model, and with {shared[0]} no rank has it: drop one of them, and ask the "
            "checkpoints beside the run: evaluate.py RUN --all_checkpoints --watch"
        )


def check_shared_experts(config: RunConfig) -> None:
    """Raises UserError for what excludes that ranks share experts."""
    if config.expert_parallel == 1:
        return
    if config.use_zero1:
        raise UserError("use_zero1 and expert_parallel exclude each other: beside expert_parallel take use_fsdp")
    if config.tensor_parallel > 1:
        raise UserError("tensor_parallel and expert_parallel exclude each other: take one of them")
    if config.fsdp_cpu_offload:
        raise UserError("fsdp_cpu_offload does not offload experts that ranks share: drop it, or expert_parallel")


def check_stages(config: RunConfig) -> None:
    """Raises UserError for what excludes that ranks are stages of a pipeline."""
    if config.pipeline_parallel == 1:
        return
    for name in ("tensor_parallel", "expert_parallel", "context_parallel"):
        if getattr(config, name) > 1:
            raise UserError(f"{name} and pipeline_parallel exclude each other: beside pipeline_parallel take use_fsdp")
    if config.use_zero1:
        raise UserError("use_zero1 and pipeline_parallel exclude each other: beside pipeline_parallel take use_fsdp")
    if config.dtype == "float16":
        raise UserError(
            "dtype='float16' and pipeline_parallel exclude each other: a stage does not know of what is not finite in "
            "another; take bfloat16"
        )
