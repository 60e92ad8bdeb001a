"""What a model costs, and what a compute budget buys: the architecture, the tokens, and a config file that train.py
runs unchanged.

  python flops_parameter_counting/detailed_cost_analysis.py --model_config config/arch_llama3.py
  python flops_parameter_counting/detailed_cost_analysis.py --model_config llama/config.json --sequence_length 4096 \\
      --device H100-SXM --devices 8 --strategy fsdp --tokens 1e11 --mfu 0.4
  python flops_parameter_counting/detailed_cost_analysis.py --model_config llama/config.json --audit
  python flops_parameter_counting/detailed_cost_analysis.py --validate
  python flops_parameter_counting/detailed_cost_analysis.py --grid_search 1e13 --emit config/mine.py
  python flops_parameter_counting/detailed_cost_analysis.py --grid_search 1.36e21 --law hoffmann --enforce_chinchilla
  python flops_parameter_counting/detailed_cost_analysis.py --grid_search --device H100-SXM --days 10 --mfu 0.45
  python flops_parameter_counting/detailed_cost_analysis.py --grid_search 1e19 --arch llama3,mamba2,hybrid \\
      --emit config/best_{arch}.py
  python flops_parameter_counting/detailed_cost_analysis.py --backward_config config/backward_h100.jsonc

Sizes are given as 64,128 or as first:end:step, without the end. What a search is not given follows from its budget.
"""

import argparse
import dataclasses
import functools
import math
import shlex
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository runs without being installed

from common.errors import ArgumentParser, UserError, did_you_mean, exit_cleanly
from common.files import check_target, write_json, write_whole
from components.registry import load_rooms
from flops_parameter_counting.costs.devices import dense_peak, device_names, named_device
from flops_parameter_counting.costs.setting import DTYPE_BYTES, STRATEGIES, Model, Setting
from flops_parameter_counting.laws.scaling_laws import LAWS, find_law
from flops_parameter_counting.option_values import (
    boolean,
    budget,
    check_signs,
    counts,
    interval,
    numbers,
    positive,
    sizes,
    whole,
)
from flops_parameter_counting.planner.published_formula import LAW as PUBLISHED_LAW
from flops_parameter_counting.planner.report import Report, as_json, as_text, report
from flops_parameter_counting.planner.search import DEFAULT_LAW, FLOPS_FORMULAS, KEPT, Search, grid_search, uncertainty
from flops_parameter_counting.planner.space import (
    SearchSpace,
    arch_names,
    default_aspect_ratio,
    default_space,
    default_tokens,
    without,
)
from flops_parameter_counting.planner.space import published as as_published
from model_config import presets
from runs.config import RunConfig, check_shared_experts, check_stages
from training.optimizers.registry import optimizers

FROM_HARDWARE = "from the hardware"
TOP_K = 10
DEFAULT_ARCH = "llama3"
DEFAULT_DTYPE = Setting.dtype


@exit_cleanly
def main() -> int:
    check_signs(sys.argv[1:])
    arguments = parser().parse_args()
    given = [name for name, value in vars(arguments).items() if value is not None]  # no option has another default
    asked = [name for name in COMMANDS if name in given]
    if not asked:
        raise UserError(
            "nothing to do: give --grid_search with a budget in FLOPs, for instance --grid_search 1e13, "
            "--model_config with a model's configuration, --backward_config with a file of model and machines, "
            "or --validate"
        )
    if len(asked) > 1:
        raise UserError(f"--{asked[0]} and --{asked[1]} are two commands: give one of them")
    if foreign := [name for name in given if name not in COMMANDS and not takes(asked[0], name)]:
        raise UserError(f"--{foreign[0]} says nothing beside --{asked[0]}: drop it")
    return COMMANDS[asked[0]](arguments, sys.argv[1:])


def parser() -> ArgumentParser:
    built = ArgumentParser(__doc__)
    add_model_arguments(built)
    add_search_arguments(built)
    add_backward_argument(built)
    add_shared_arguments(built)
    return built


# ---------------------------------------------------------------------------------------------------------------------
# What several commands take


def add_shared_arguments(built: ArgumentParser) -> None:
    group = built.add_argument_group("for a model and for a search")
    add = group.add_argument
    add("--vocab_size", type=whole, help="where a config file leaves it to its dataset")
    add("--sequence_length", type=whole, help="tokens (default: the model's, or what fits the budget)")
    add("--json", type=Path, metavar="FILE", help="write everything as data (--backward_config too)")

    group = built.add_argument_group("hardware: a budget for a search, or where a model is trained")
    add = group.add_argument
    add("--device", metavar="NAME", help=", ".join(device_names()))
    add(
        "--peak_flops",
        type=positive,
        help="of a device that is not listed, such as a CPU: FLOP/s of a large matrix product in the compute dtype, "
        "which train.py measures and prints when it starts",
    )
    add("--devices", type=whole, help="how many (default: 1)")
    add("--mfu", type=positive, help="model FLOPs utilisation, full attention, above 0 and at most 1")
    add("--dtype", help=f"compute dtype: {', '.join(DTYPE_BYTES)} (default: {DEFAULT_DTYPE})")
    add("--device_memory", type=positive, metavar="GB", help="of a device that is not listed")
    add("--micro_batch", type=whole, help="sequences (default: the config file's batch_size, or 1)")
    add("--activation_checkpointing", action="store_true", default=None, help="keep only each block's input")
    add(
        "--strategy",
        help=f"{', '.join(STRATEGIES)}: what the devices share (default: the config file's; for a search on several "
        "devices fsdp, under which the largest models fit)",
    )


@dataclasses.dataclass(frozen=True)
class Hardware:
    """One device: dense peak, FLOP/s; memory, bytes; bandwidth, bytes per second. None: not known."""

    name: str | None
    peak_flops: float | None
    memory: float | None
    bandwidth: float | None = None


def hardware_from(arguments: argparse.Namespace, dtype: str) -> Hardware:
    """What --device names, or --peak_flops and --device_memory say. Raises UserError."""
    if arguments.mfu is not None and arguments.mfu > 1:
        raise UserError(f"--mfu={arguments.mfu:g} is more than the device can do: give a fraction, such as 0.45")
    if arguments.device is None:
        name = None if arguments.peak_flops is None else "device of --peak_flops"
        memory = None if arguments.device_memory is None else 1e9 * arguments.device_memory
        return Hardware(name, arguments.peak_flops, memory)
    for option in ("peak_flops", "device_memory"):
        if getattr(arguments, option) is not None:
            raise UserError(f"--device and --{option} contradict each other: give one of them")
    device = named_device(arguments.device)
    return Hardware(arguments.device, dense_peak(device, dtype), device.memory_bytes, device.bandwidth)


# ---------------------------------------------------------------------------------------------------------------------
# --model_config


def add_model_arguments(built: ArgumentParser) -> None:
    group = built.add_argument_group("what a model costs")
    add = group.add_argument
    add(
        "--model_config",
        type=Path,
        metavar="FILE",
        help="a config file (*.py; it is executed), or a config.json of Hugging Face or of a run, with comments or "
        "without, or the folder that has it; of a family that is not counted here, transformers' class is traced",
    )
    add(
        "--audit",
        action="store_true",
        default=None,
        help="of a config.json of Hugging Face: what transformers' class costs, traced beside what is counted here",
    )
    add("--tokens", type=positive, help="tokens of the training whose time is asked; with --mfu and a device")
    add(
        "--tensor_parallel",
        type=whole,
        metavar="N",
        help="devices that share every layer, as the config key of the name",
    )
    add("--expert_parallel", type=whole, metavar="N", help="devices that share the experts of every layer, likewise")
    add("--context_parallel", type=whole, metavar="N", help="devices that divide every sequence, likewise")
    add("--pipeline_parallel", type=whole, metavar="N", help="stages that the blocks are divided into, likewise")
    add("--fsdp_replicas", type=whole, metavar="N", help="copies of the model with --strategy fsdp, likewise")
    add("--fsdp_cpu_offload", action="store_true", default=None, help="with --strategy fsdp, likewise")
    add("--optimizer", metavar="NAME", help=f"{', '.join(optimizers())} (default: the config file's)")
    built.add_argument(
        "--validate",
        action="store_true",
        default=None,
        help="recount public models and small real ones, and audit every family",
    )


def model_command(arguments: argparse.Namespace, argv: list[str]) -> int:
    """Read the model, print what it costs, and write it as data if asked. Raises UserError where an audit differs."""
    from flops_parameter_counting.costs.report import as_text, describe
    from interop.configurations import has_room
    from interop.model_files import hugging_face_file, read_model

    check_target("json", arguments.json)
    theirs = hugging_face_file(arguments.model_config)
    if theirs is not None and not has_room(theirs[1]):
        return traced_command(arguments, *theirs)
    model = read_model(arguments.model_config, arguments.vocab_size)
    if model.architecture.vocab_size is None:
        raise UserError(f"{arguments.model_config}: the key vocab_size is missing")
    found, text = describe(model, setting_from(arguments, model)), []
    audited = audit_of(arguments, theirs) if arguments.audit else None
    if audited is not None:
        found["audit"] = audited.as_data()
        text = ["", audited.as_text()]
    if arguments.json is not None:
        write_json(arguments.json, found)
    print("\n".join([as_text(found), *text]))
    if audited is not None:
        audited.check()
    return 0


def audit_of(arguments: argparse.Namespace, theirs: tuple[str, dict[str, Any]] | None) -> Any:
    """The Audit of a config.json. What traces a class is imported here: the rest starts without it."""
    from interop.model_files import check_can_trace

    if theirs is None:
        raise UserError("--audit is for a config.json of Hugging Face, whose class is traced: drop it")
    check_can_trace("--audit traces the class of transformers")
    from interop.audit import audit

    name, values = theirs
    return audit(values, name, arguments.sequence_length)


def traced_command(arguments: argparse.Namespace, name: str, values: dict[str, Any]) -> int:
    """Of a family without a room: trace its class, print what that tells, and write it as data if asked."""
    from flops_parameter_counting.costs.report import CONVENTION
    from interop.configurations import no_room
    from interop.model_files import check_can_trace

    said = (option for option in OF_A_MODEL if getattr(arguments, option) is not None)
    if foreign := [option for option in said if option not in ("sequence_length", "json")]:
        raise UserError(f"{no_room(values['model_type'])}: it is traced, of which --{foreign[0]} says nothing; drop it")
    check_can_trace(f"{no_room(values['model_type'])}; of others the class in transformers is traced")
    from interop.audit import describe_traced, traced_as_text
    from interop.tracing import trace

    traced = trace(values, arguments.sequence_length)
    found = describe_traced(traced, name, values["model_type"], CONVENTION)
    if arguments.json is not None:
        write_json(arguments.json, found)
    print(traced_as_text(found))
    return 0


def setting_from(arguments: argparse.Namespace, model: Model) -> Setting:
    """What the arguments say, then the config file's run, then the defaults. Raises UserError."""
    run = model.run
    run_dtype = run.dtype if run is not None and run.dtype != "auto" else DEFAULT_DTYPE
    dtype = choice("dtype", arguments.dtype or run_dtype, DTYPE_BYTES)
    hardware = hardware_from(arguments, dtype)
    wanted = {"tokens": arguments.tokens, "mfu": arguments.mfu}
    if any(wanted.values()):
        missing = [name for name, value in wanted.items() if value is None]
        if missing or hardware.peak_flops is None:
            lacking = missing[0] if missing else "device"
            raise UserError(f"the time of a training takes --tokens, --mfu and --device: --{lacking} is missing")
    sharing = sharing_from(arguments, run)
    for option in ("fsdp_replicas", "fsdp_cpu_offload"):
        if getattr(arguments, option) is not None and sharing["strategy"] != "fsdp":
            raise UserError(f"--{option} is for FSDP: add --strategy fsdp")
    if arguments.tensor_parallel is not None and sharing["strategy"] == "zero1":
        raise UserError("--strategy zero1 and --tensor_parallel exclude each other: take --strategy fsdp beside it")
    checkpointing = arguments.activation_checkpointing
    if checkpointing is None:
        checkpointing = run is not None and run.activation_checkpointing
    setting = Setting(
        sequence_length=arguments.sequence_length,
        micro_batch=arguments.micro_batch or (run.batch_size if run is not None else 1),
        dtype=dtype,
        activation_checkpointing=checkpointing,
        **sharing,
        optimizer=arguments.optimizer and choice("optimizer", arguments.optimizer, optimizers()),
        hardware=hardware.name,
        peak_flops=hardware.peak_flops,
        device_memory=hardware.memory,
        bandwidth=hardware.bandwidth,
        tokens=arguments.tokens,
        mfu=arguments.mfu,
        of_file=run or RunConfig(),
    )
    check_shared_experts(setting.run)
    check_stages(setting.run)
    return setting


def sharing_from(arguments: argparse.Namespace, run: RunConfig | None) -> dict[str, Any]:
    """What the devices share: the arguments', then the config file's, of which --strategy leaves tensor parallelism."""
    run = run or RunConfig()
    strategy = next((name for name, keys in STRATEGIES.items() if any(getattr(run, key) for key in keys)), "ddp")
    if arguments.strategy is not None:
        strategy = choice("strategy", arguments.strategy, STRATEGIES)
        run = dataclasses.replace(run, fsdp_replicas=1, fsdp_cpu_offload=False)
    tensor, replicas = arguments.tensor_parallel or run.tensor_parallel, arguments.fsdp_replicas or run.fsdp_replicas
    experts = arguments.expert_parallel or run.expert_parallel
    context = arguments.context_parallel or run.context_parallel
    stages = arguments.pipeline_parallel or run.pipeline_parallel
    return {
        "strategy": strategy,
        "tensor_parallel": tensor,
        "expert_parallel": experts,
        "context_parallel": context,
        "pipeline_parallel": stages,
        "fsdp_replicas": replicas,
        "fsdp_cpu_offload": arguments.fsdp_cpu_offload or run.fsdp_cpu_offload,
        "devices": arguments.devices or run.world_size or max(tensor * stages * replicas, tensor * context, experts),
    }


def choice(option: str, value: str, among: Collection[str]) -> str:
    if value not in among:
        raise UserError(f"--{option}={value} is none of: {', '.join(among)}{did_you_mean(value, among)}")
    return value


# ---------------------------------------------------------------------------------------------------------------------
# --validate


def validate_command(arguments: argparse.Namespace, argv: list[str]) -> int:
    from flops_parameter_counting.validate import validate

    return validate()


# ---------------------------------------------------------------------------------------------------------------------
# --grid_search


def add_search_arguments(built: ArgumentParser) -> None:
    group = built.add_argument_group("what a budget buys")
    add = group.add_argument
    add(
        "--grid_search",
        metavar="FLOPS",
        nargs="?",
        const=FROM_HARDWARE,
        help="the budget; without a number, --device's",
    )
    add(
        "--law",
        help=f"{', '.join(LAWS)} (kumar:8: of training in 8 bits), or a fitted law's JSON file (default: "
        f"{DEFAULT_LAW}; published: {PUBLISHED_LAW})",
    )
    add(
        "--flops_formula",
        help=f"{' or '.join(FLOPS_FORMULAS)} (which reproduces the published tables; default: exact)",
    )
    add("--enforce_chinchilla", action="store_true", default=None, help="only 0.5 <= D / (20 N) <= 1.5")
    add("--unique_tokens", type=whole, help="tokens of the dataset: beyond them training repeats")
    add("--days", type=positive, help="of the hardware, which then makes the budget")
    add("--inference_tokens", type=whole, help="the budget also pays for so many tokens of inference")
    add("--tokens_min", type=positive)
    add("--tokens_max", type=positive)
    add("--max_params", type=positive)
    add("--top_k", type=whole, help=f"candidates to print (default: {TOP_K})")

    group = built.add_argument_group("the space of architectures")
    add = group.add_argument
    add(
        "--arch",
        metavar="NAMES",
        help=f"{', '.join(presets())} (default: llama3); several, with commas between them, are searched one by one, "
        "and their bests stand side by side",
    )
    add(
        "--components",
        type=Path,
        metavar="DIR",
        help="a folder with components of your own, whose presets --arch can name; its code is executed",
    )
    add("--hidden_sizes", type=sizes, metavar="SIZES", help="1024:8192:256, for instance")
    add("--layers", type=sizes, metavar="SIZES")
    add("--head_dims", type=sizes, metavar="SIZES")
    add("--kv_heads", type=sizes, metavar="SIZES", help="key and value heads")
    add("--no_gqa", action="store_true", default=None, help="as many key and value heads as heads")
    add(
        "--ffn_expansion_ratio",
        type=positive,
        help="d_ff over n_embd; where all FFNs are experts, of the dense FFN that --granularity divides (default: as "
        "wide as all that a token meets in the preset)",
    )
    add("--n_experts", type=sizes, metavar="SIZES", help="routed experts of a layer (default: the preset's)")
    add("--n_experts_per_token", type=sizes, metavar="SIZES", help="of which a token meets so many (likewise)")
    add("--n_shared_experts", type=counts, metavar="SIZES", help="that it meets besides (likewise; may be 0)")
    add("--granularity", type=numbers, metavar="NUMBERS", help="d_ff of a dense FFN over an expert's (likewise)")
    add("--weight_tying", type=boolean, metavar="BOOL", nargs="?", const=True)
    add("--aspect_ratio", type=interval, metavar="LOW:HIGH", help="n_embd / n_layer; 0:inf bounds nothing")

    group = built.add_argument_group("the config file")
    add = group.add_argument
    add(
        "--emit",
        type=Path,
        metavar="FILE.py",
        help="write the best candidate as a config file; of several --arch, {arch} in its name stands for each one's",
    )
    add("--dataset", help="its dataset (default: python_stdlib for bytes, openwebtext for GPT-2's vocabulary)")
    add("--data_dir", metavar="DIR", help="where datasets lie, as the config key (default: the repository's data)")
    add("--force", action="store_true", default=None, help="overwrite it")


def search_command(arguments: argparse.Namespace, argv: list[str]) -> int:
    """Search, write what was asked for, and print; nothing is written when anything is wrong."""
    check_emit_options(arguments)
    check_target("json", arguments.json)
    if arguments.components is not None:
        load_rooms(arguments.components)
    names = arch_names(arguments.arch or DEFAULT_ARCH)
    targets = emit_targets(arguments, names)
    budget, training, notes = budget_from(arguments)
    several = len(names) > 1
    each = [of_several(arguments, name, budget) for name in names] if several else [arguments]
    searches = [search_with(own, training, budget) for own in each]
    reports, texts = zip(*(best_of(arguments, search, notes, command(argv)) for search in searches), strict=True)
    if several:
        from flops_parameter_counting.planner import side_by_side
    if arguments.json is not None:
        write_json(arguments.json, side_by_side.as_data(reports) if several else as_json(reports[0]))
    for target, text in zip(targets, texts, strict=False):
        write_whole(target, text.encode())
    print(side_by_side.as_text(reports) if several else as_text(reports[0]))
    for index, target in enumerate(targets):
        newline = "" if index else "\n"
        print(f"{newline}wrote {target}: python train.py {target} --dry_run shows what it will do")
    return 0


def best_of(arguments: argparse.Namespace, search: Search, notes: list[str], made_by: str) -> tuple[Report, str]:
    """What one search finds, and its config file, empty where none is asked for."""
    top_k = arguments.top_k or TOP_K

    def searched() -> Report:
        result = grid_search(search, keep=max(top_k, KEPT))
        return report(result, uncertainty(result), top_k, notes)

    if arguments.emit is None:
        return searched(), ""
    from flops_parameter_counting.planner.emit import choose_dataset, config_text

    dataset = choose_dataset(arguments.dataset, arguments.data_dir, search.space.vocab_size)  # before it searches long
    found = searched()
    return found, config_text(found.best, search, found.rules, dataset, made_by)


def of_several(arguments: argparse.Namespace, arch: str, budget: float) -> argparse.Namespace:
    """The arguments for one of several architectures, with what all of them share."""
    vocab_size, sequence_length = default_tokens(budget)
    shared = {
        "arch": arch,
        "vocab_size": arguments.vocab_size or vocab_size,
        "sequence_length": arguments.sequence_length or sequence_length,
    }
    return argparse.Namespace(**(vars(arguments) | shared))


def check_emit_options(arguments: argparse.Namespace) -> None:
    """Raises UserError for options of a config file that is not asked for."""
    if arguments.emit is None:
        for option in ("dataset", "data_dir", "force"):
            if getattr(arguments, option) is not None:
                raise UserError(f"--{option} is for the config file: give --emit too")


def emit_targets(arguments: argparse.Namespace, names: list[str]) -> list[Path]:
    """The config file of each architecture; none where none is asked for. Raises UserError for one that cannot be
    written, before anything is computed."""
    if arguments.emit is None:
        return []
    pattern = str(arguments.emit)
    if len(names) > 1 and "{arch}" not in arguments.emit.name:
        raise UserError(
            f"--emit={pattern} is one file, and --arch names {len(names)}: write {{arch}} in its name, as in "
            f"{arguments.emit.stem}_{{arch}}.py"
        )
    targets = [Path(pattern.replace("{arch}", name)) for name in names]
    for target in targets:
        check_target("emit", target, ".py", bool(arguments.force))
    return targets


def search_with(arguments: argparse.Namespace, training: Setting | None, budget: float) -> Search:
    """With this budget, which also decides what the arguments leave open."""
    flops_formula = arguments.flops_formula or "exact"
    published = flops_formula == "published"
    space = space_from(arguments, default_space(budget, arguments.arch or DEFAULT_ARCH))
    aspect_ratio = arguments.aspect_ratio
    if aspect_ratio is None and not published:
        aspect_ratio = default_aspect_ratio(budget)
    return Search(
        budget=budget,
        law=find_law(arguments.law or (PUBLISHED_LAW if published else DEFAULT_LAW)),
        space=as_published(space) if published else space,
        flops_formula=flops_formula,
        tokens_min=arguments.tokens_min,
        tokens_max=arguments.tokens_max,
        aspect_ratio=aspect_ratio,
        enforce_chinchilla=bool(arguments.enforce_chinchilla),
        max_params=arguments.max_params,
        unique_tokens=arguments.unique_tokens,
        inference_tokens=arguments.inference_tokens or 0,
        training=training,
        with_budget=functools.partial(search_with, arguments, training),
    )


def space_from(arguments: argparse.Namespace, default: SearchSpace) -> SearchSpace:
    """The default space with what the user gave in its place."""
    names = [field.name for field in dataclasses.fields(SearchSpace) if hasattr(arguments, field.name)]
    names.remove("arch")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if arguments.no_gqa:
        if arguments.kv_heads is not None:
            raise UserError("--no_gqa and --kv_heads contradict each other: give one of them")
        if not default.family.has_heads:
            raise UserError(f"no_gqa: {default.arch} has {without(default.family)}: drop it, or take another --arch")
        given["kv_heads"] = None
    return dataclasses.replace(default, **given)


def budget_from(arguments: argparse.Namespace) -> tuple[float, Setting | None, list[str]]:
    """FLOPs, given or from the hardware; how the hardware trains; and notes. Raises UserError where both or neither
    say the budget."""
    given = [name for name in (*HARDWARE, "days") if getattr(arguments, name) is not None]
    if arguments.grid_search != FROM_HARDWARE:
        if given:
            raise UserError(f"the budget is given twice: drop --{given[0]} or the number after --grid_search")
        if foreign := [name for name in ON_DEVICES if getattr(arguments, name) is not None]:
            raise UserError(
                f"--{foreign[0]} says nothing beside --grid_search with a number: memory is asked where the budget "
                "comes from the hardware; drop it"
            )
        return budget(arguments.grid_search), None, []
    wanted = ("peak_flops" if "peak_flops" in given else "device", "days", "mfu")
    if missing := [name for name in wanted if name not in given]:
        raise UserError(f"--grid_search without a number takes the budget from the hardware: --{missing[0]} is missing")
    dtype = choice("dtype", arguments.dtype or DEFAULT_DTYPE, DTYPE_BYTES)
    hardware = hardware_from(arguments, dtype)
    assert hardware.peak_flops is not None
    devices = arguments.devices or 1
    flops = float(devices) * hardware.peak_flops * arguments.mfu * arguments.days * 86_400
    if not 0 < flops < math.inf:
        raise UserError(f"the hardware's budget of {flops:g} FLOPs is beyond arithmetic: check --devices and --days")
    training = Setting(
        micro_batch=arguments.micro_batch or 1,
        dtype=dtype,
        activation_checkpointing=bool(arguments.activation_checkpointing),
        devices=devices,
        strategy=choice("strategy", arguments.strategy or ("fsdp" if devices > 1 else "ddp"), STRATEGIES),
        hardware=hardware.name,
        peak_flops=hardware.peak_flops,
        device_memory=hardware.memory,
        mfu=arguments.mfu,
    )
    notes = [
        f"budget = {devices} x {hardware.peak_flops:.4g} FLOP/s ({hardware.name}, {dtype}, dense) x MFU "
        f"{arguments.mfu:g} x {arguments.days:g} days = {flops:.4g}"
    ]
    if hardware.memory is None:
        notes.append("whether a candidate fits the device's memory is not checked: --device_memory says what it has")
    return flops, training, notes


# ---------------------------------------------------------------------------------------------------------------------
# --backward_config


def add_backward_argument(built: ArgumentParser) -> None:
    group = built.add_argument_group("what given machines make of a given model")
    add = group.add_argument
    add("--backward_config", type=Path, metavar="FILE.jsonc", help="config/backward_h100.jsonc shows its sections")


def backward_command(arguments: argparse.Namespace, argv: list[str]) -> int:
    from flops_parameter_counting.planner.backward import answer, as_text

    check_target("json", arguments.json)
    found = answer(arguments.backward_config)
    if arguments.json is not None:
        write_json(arguments.json, found)
    print(as_text(found))
    return 0


# ---------------------------------------------------------------------------------------------------------------------
# The commands. Each imports what only it needs when it is called: a search starts without the rest.


def command(argv: list[str]) -> str:
    return shlex.join(["python", "flops_parameter_counting/detailed_cost_analysis.py", *argv])


HARDWARE = ("device", "peak_flops", "devices", "mfu", "dtype")
ON_DEVICES = ("device_memory", "micro_batch", "activation_checkpointing", "strategy")
OF_A_MODEL_ONLY = (
    "audit", "tokens", "optimizer", "tensor_parallel", "expert_parallel", "context_parallel", "pipeline_parallel",
    "fsdp_replicas", "fsdp_cpu_offload",
)  # fmt: skip
OF_A_MODEL = ("vocab_size", "sequence_length", "json", *OF_A_MODEL_ONLY, *HARDWARE, *ON_DEVICES)
COMMANDS: dict[str, Callable[[argparse.Namespace, list[str]], int]] = {
    "model_config": model_command,
    "grid_search": search_command,
    "backward_config": backward_command,
    "validate": validate_command,
}


def takes(command: str, option: str) -> bool:
    """Whether the option says anything to the command."""
    if command == "grid_search":
        return option not in OF_A_MODEL_ONLY
    return option in {"model_config": OF_A_MODEL, "backward_config": ("json",)}.get(command, ())


if __name__ == "__main__":
    main()
