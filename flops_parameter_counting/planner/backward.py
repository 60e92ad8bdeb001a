"""What given machines make of a given model: its N, their C, the D that C affords, and the loss that a law predicts.

The question is a JSON file (with comments or without) of these sections; config/backward_h100.jsonc is one, with its
keys explained. Every key is honoured or refused.

  architecture         keys of a config file, those of a Hugging Face config.json, or the path of a file with either
  training_gear        gpu_type, num_gpus, available_hours; dtype; peak_flops and device_memory_gb of unlisted devices
  training_efficiency  mfu; micro_batch, activation_checkpointing
  dataset_constraints  unique_tokens and epochs (at most so many), sequence_length; may be left out
  scaling_law          a law's name, file or constants; may be left out

Paths are relative to the file. `answer` gives data, and `as_text` makes them readable.
"""

import dataclasses
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError, did_you_mean
from common.json_files import read_json
from configurator import run_keys
from flops_parameter_counting.costs.devices import dense_peak, named_device
from flops_parameter_counting.costs.model_cost import model_cost
from flops_parameter_counting.costs.report import CONVENTION, describe
from flops_parameter_counting.costs.setting import DTYPE_BYTES, STRATEGIES, Setting
from flops_parameter_counting.laws.scaling_laws import (
    N_MEANINGS,
    Law,
    count_parameters,
    find_law,
    law_from,
    middle_95,
    on_experts,
    on_state_spaces,
)
from flops_parameter_counting.planner.report import notes_on_law
from flops_parameter_counting.planner.search import DEFAULT_LAW
from flops_parameter_counting.planner.space import family_of
from interop.model_files import Model, model_from_values, read_model
from model_config import ModelArchitectureConfig, presets


@dataclasses.dataclass(frozen=True)
class Question:
    """What a file asks. `setting` has the machines; `unique_tokens` and `epochs` are both None where data abound."""

    model: Model
    setting: Setting
    hours: float
    mfu: float
    law: Law
    unique_tokens: int | None = None
    epochs: float | None = None
    law_option: str = DEFAULT_LAW  # what --law takes for it

    @property
    def flops(self) -> float:
        """C: what the machines compute for the model in their time."""
        assert self.setting.peak_flops is not None
        return self.setting.peak_flops * self.setting.devices * self.hours * 3600 * self.mfu


# ---------------------------------------------------------------------------------------------------------------------
# Reading

Check = Callable[[Any], Any]  # the value as it is meant; raises UserError


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < 1e300:
        raise UserError("expected a number above 0")
    return float(value)


def _whole(value: Any) -> int:
    if _number(value) != int(value) or value > 10**18:
        raise UserError("expected a whole number, 1 or more")
    return int(value)


def _fraction(value: Any) -> float:
    if _number(value) > 1:
        raise UserError("is more than the device can do: give a fraction, such as 0.45")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise UserError("expected a text in quotes")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UserError("expected true or false")
    return value


def _dtype(value: Any) -> str:
    if _text(value) not in DTYPE_BYTES:
        raise UserError(f"is none of: {', '.join(DTYPE_BYTES)}{did_you_mean(value, DTYPE_BYTES)}")
    return value


_GEAR: dict[str, Check] = {
    "gpu_type": _text,
    "num_gpus": _whole,
    "available_hours": _number,
    "dtype": _dtype,
    "peak_flops": _number,
    "device_memory_gb": _number,
}
_EFFICIENCY: dict[str, Check] = {"mfu": _fraction, "micro_batch": _whole, "activation_checkpointing": _truth}
_DATASET: dict[str, Check] = {"unique_tokens": _whole, "epochs": _number, "sequence_length": _whole}
_SECTIONS = ("architecture", "training_gear", "training_efficiency", "dataset_constraints", "scaling_law")


def read_question(path: Path) -> Question:
    """Raises UserError, naming the section and the key."""
    return _question(read_json(path), path.parent)


def _question(values: dict[str, Any], folder: Path) -> Question:
    _check_keys(values, _SECTIONS, required=_SECTIONS[:3], what="section")
    gear = _section(values, "training_gear", _GEAR, required=("gpu_type", "num_gpus", "available_hours"))
    efficiency = _section(values, "training_efficiency", _EFFICIENCY, required=("mfu",))
    dataset = _section(values, "dataset_constraints", _DATASET)
    for given, missing in (("unique_tokens", "epochs"), ("epochs", "unique_tokens")):
        if given in dataset and missing not in dataset:
            raise UserError(f"dataset_constraints: {given} says nothing without {missing}, which is missing")
    question = Question(
        model=_architecture(values["architecture"], folder),
        setting=Setting(
            sequence_length=dataset.get("sequence_length"),
            micro_batch=efficiency.get("micro_batch", 1),
            activation_checkpointing=efficiency.get("activation_checkpointing", False),
            devices=gear["num_gpus"],
            **_hardware(gear),
        ),
        hours=gear["available_hours"],
        mfu=efficiency["mfu"],
        law=_law(values.get("scaling_law", DEFAULT_LAW), folder),
        law_option=_law_option(values.get("scaling_law", DEFAULT_LAW), folder),
        unique_tokens=dataset.get("unique_tokens"),
        epochs=dataset.get("epochs"),
    )
    if not question.flops < math.inf:
        raise UserError("training_gear: its FLOPs are beyond arithmetic: check num_gpus and available_hours")
    return question


def _check_keys(values: Any, known: Any, required: Any, what: str = "key") -> None:
    if not isinstance(values, dict):
        raise UserError("expected an object of keys and values, {...}")
    for key in values:
        if key not in known:
            raise UserError(f"unknown {what} {key!r}{did_you_mean(key, known)}; it knows {', '.join(known)}")
    for key in required:
        if key not in values:
            raise UserError(f"the {what} {key} is missing")


def _section(values: dict[str, Any], name: str, keys: dict[str, Check], required: tuple[str, ...] = ()) -> Any:
    """The section's values as they are meant; empty for one that is left out."""
    section = values.get(name, {})
    try:
        _check_keys(section, keys, required)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    found = {}
    for key, value in section.items():
        try:
            found[key] = keys[key](value)
        except UserError as error:
            raise UserError(f"{name}: {key}={value!r}: {error}") from None
    return found


def _hardware(gear: dict[str, Any]) -> dict[str, Any]:
    """The keys of a Setting that say what one device is called, can do and holds."""
    name, dtype = gear["gpu_type"], gear.get("dtype", Setting.dtype)
    own = [key for key in ("peak_flops", "device_memory_gb") if key in gear]
    try:
        device = named_device(name)
    except UserError as error:
        if "peak_flops" not in gear:
            raise UserError(f"training_gear: gpu_type: {error}") from None
        memory = 1e9 * gear["device_memory_gb"] if "device_memory_gb" in gear else None
        return {"hardware": name, "dtype": dtype, "peak_flops": gear["peak_flops"], "device_memory": memory}
    if own:
        raise UserError(f"training_gear: {own[0]} contradicts gpu_type={name!r}, which is in the table: drop it")
    try:
        peak = dense_peak(device, dtype)
    except UserError as error:
        raise UserError(f"training_gear: dtype: {error}") from None
    return {"hardware": name, "dtype": dtype, "peak_flops": peak, "device_memory": device.memory_bytes}


def _architecture(value: Any, folder: Path) -> Model:
    try:
        if isinstance(value, str):
            model = read_model(folder / _text(value))
        elif isinstance(value, dict):
            model = model_from_values(value, "the architecture")
        else:
            raise UserError("expected an object of keys and values, or the path of a file that holds one")
    except UserError as error:
        raise UserError(f"architecture: {error}") from None
    if isinstance(value, dict) and model.is_ours and (of_runs := [key for key in value if key in run_keys()]):
        raise UserError(f"architecture: {of_runs[0]} is a key of runs, which says nothing here: drop it")
    if model.architecture.vocab_size is None:
        raise UserError("architecture: the key vocab_size is missing, which no dataset decides here")
    return model


def _law(value: Any, folder: Path) -> Law:
    try:
        if isinstance(value, str):
            return find_law(_law_option(value, folder))
        if isinstance(value, dict):
            return law_from(value, "the law of the file")
        raise UserError("expected a law's name, its file or an object of its constants")
    except UserError as error:
        raise UserError(f"scaling_law: {error}") from None


def _law_option(value: Any, folder: Path) -> str:
    """What --law takes: a name, a file's path, and for constants a file that the reader makes of them."""
    if not isinstance(value, str):
        return "law.json"
    return str(folder / value) if value.endswith(".json") else value


# ---------------------------------------------------------------------------------------------------------------------
# Answering


def answer(path: Path) -> dict[str, Any]:
    """`backward` of the question in a file. Raises UserError, naming the file, the section and the key."""
    try:
        return backward(read_question(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def backward(question: Question) -> dict[str, Any]:
    """Everything about the training that the machines can do, as data for JSON. Raises UserError where that is none."""
    try:
        cost = describe(question.model, question.setting)
    except UserError as error:
        section = "dataset_constraints" if str(error).startswith("--sequence_length") else "architecture"
        raise UserError(f"{section}: {str(error).removeprefix('--')}") from None
    per_token, length = cost["flops_per_token"]["training"], cost["sequence_length"]
    law = question.law.of(model_cost(question.model.architecture, length))
    question = dataclasses.replace(question, law=law)
    n = law_parameters(question.model.architecture, question.law)
    tokens = _tokens(question, per_token, length)
    loss = _loss(question, n, tokens["D"])
    setting = question.setting
    return {
        "model": {
            "name": question.model.name,
            "family": question.model.family,
            "architecture": question.model.architecture.name,
            "sequence_length": length,
            "n_params": cost["parameters"]["total"],
            "n_active": cost["parameters"]["active"],
            "n_of_law": n,
            "flops_per_token": per_token,
            "convention": CONVENTION,
        },
        "compute": {
            "flops": question.flops,
            "hardware": setting.hardware,
            "peak_flops_per_device": setting.peak_flops,
            "devices": setting.devices,
            "hours": question.hours,
            "mfu": question.mfu,
            "dtype": setting.dtype,
        },
        "tokens": tokens | {"tokens_per_parameter": tokens["D"] / cost["parameters"]["total"]},
        "law": {"name": question.law.name, "N": question.law.N, "source": question.law.source},
        "loss": loss,
        "optimum": _optimum(question, n, per_token, tokens["allowed_by_data"], loss["predicted"]),
        "memory": [
            describe(question.model, dataclasses.replace(setting, strategy=strategy))["memory"]
            for strategy in STRATEGIES
        ],
        "search": _search(question),
        "notes": _notes(question, n, tokens["D"], loss["predicted"]),
    }


def law_parameters(config: ModelArchitectureConfig, law: Law) -> int:
    """N as the law means it; of experts, those that a token meets."""
    return int(count_parameters(model_cost(config), law.N))


def _tokens(question: Question, per_token: int, length: int) -> dict[str, Any]:
    """D = C / FLOPs per token, unless unique tokens x epochs are fewer, and what then is left of the time."""
    afforded = int(question.flops) // per_token
    allowed, unique = None, question.unique_tokens
    if unique is not None and question.epochs is not None:
        allowed = int(unique * question.epochs)
    for count, what in ((afforded, "the machines afford"), (allowed, "the dataset allows")):
        if count is not None and count < length:
            raise UserError(f"{what} {count:,} tokens, less than one sequence of {length:,}: nothing can be trained")
    tokens = afforded if allowed is None else min(afforded, allowed)
    return {
        "afforded_by_compute": afforded,
        "allowed_by_data": allowed,
        "D": tokens,
        "binds": "compute" if tokens == afforded else "data",
        "flops": tokens * per_token,
        "hours": question.hours * tokens * per_token / question.flops,
        "unique_tokens": unique,
        "epochs_allowed": question.epochs,
        "epochs": None if unique is None else tokens / unique,
    }


def _loss(question: Question, n: float, tokens: float) -> dict[str, Any]:
    """The law's loss and the middle 95 % of its draws; `worth` is D' of Muennighoff et al. 2023 where tokens repeat."""
    law, unique = question.law, question.unique_tokens
    interval = None
    if law.draws is not None:
        interval = middle_95(np.array([law.drawn(constants).loss(n, tokens, unique) for constants in law.draws]))
    repeats = unique is not None and tokens > unique
    return {
        "predicted": float(law.loss(n, tokens, unique)),
        "interval_95": interval,
        "worth_in_unique_tokens": float(law.effective(n, tokens, unique)[1]) if unique and repeats else None,
    }


def _optimum(question: Question, n: int, per_token: int, allowed: int | None, loss: float) -> dict[str, Any]:
    """The best N for the same C and data, were a token to cost as many FLOPs a parameter as here."""
    product = question.flops / (per_token / n)  # N x D
    sizes = np.append(n * np.geomspace(1e-8, 1e8, 32_001), n)  # 0.1 % apart
    tokens = product / sizes
    if allowed is not None:  # the smallest N that can spend C is a kink of the loss
        sizes = np.append(sizes, product / allowed)
        tokens = np.minimum(product / sizes, allowed)
    sizes, tokens = sizes[tokens >= 1], tokens[tokens >= 1]
    losses = question.law.loss(sizes, tokens, question.unique_tokens)
    best = int(losses.argmin())
    return {
        "n_of_law": float(sizes[best]),
        "tokens": float(tokens[best]),
        "loss": float(losses[best]),
        "n_over_optimum": n / float(sizes[best]),
        "loss_above_optimum": loss - float(losses[best]),
    }


def _preset(model: ModelArchitectureConfig) -> str | None:
    """The preset whose components the model has: its own, or the first one; None where no preset has them, or no module
    computes one of them."""

    def components(config: ModelArchitectureConfig) -> Any:
        layers = {(layer.mixer, layer.ffn) for layer in config.layer_counts}
        return layers, config.position_encoding, config.normalization

    names = dict.fromkeys((model.arch_preset, "llama3", "gpt2", *presets()))
    return next((name for name in names if components(family_of(name).example) == components(model)), None)


def _search(question: Question) -> str | None:
    """The command that searches a better architecture of this kind for the same machines, law and data: in the space of
    this one alone it finds this one, on as many tokens. None where no preset is of this kind."""
    setting, model = question.setting, question.model.architecture
    if (arch := _preset(model)) is None:
        return None
    options: dict[str, Any] = {"device": setting.hardware}
    try:
        named_device(str(setting.hardware))
    except UserError:
        options = {"peak_flops": _shortest(setting.peak_flops)}
        if setting.device_memory is not None:
            options["device_memory"] = _shortest(setting.device_memory / 1e9)
    options |= {"devices": setting.devices, "days": _shortest(question.hours / 24), "mfu": _shortest(question.mfu)}
    options |= {"dtype": setting.dtype, "micro_batch": setting.micro_batch, "law": question.law_option}
    options["arch"] = arch
    options |= {"vocab_size": model.vocab_size, "sequence_length": setting.sequence_length or model.block_size}
    options["weight_tying"] = model.weight_tying
    if question.unique_tokens is not None and question.epochs is not None:
        options |= {
            "unique_tokens": question.unique_tokens,
            "tokens_max": int(question.unique_tokens * question.epochs),
        }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    if setting.activation_checkpointing:
        words.append("--activation_checkpointing")
    return shlex.join(["python", "flops_parameter_counting/detailed_cost_analysis.py", "--grid_search", *words])


def _shortest(value: float | None) -> str:
    """The shortest text that Python reads again to the last bit."""
    return repr(value).removesuffix(".0")


def _notes(question: Question, n: int, tokens: int, loss: float) -> list[str]:
    config, law, unique = question.model.architecture, question.law, question.unique_tokens
    assert config.vocab_size is not None
    notes = [*question.model.notes, *law.outside_range(n, tokens)]
    notes += on_experts(law, model_cost(config))
    if config.has_constant_state:
        notes += on_state_spaces(law)
    return notes + notes_on_law(law, loss, config.vocab_size, None if unique is None or tokens <= unique else unique)


# ---------------------------------------------------------------------------------------------------------------------
# Text


def as_text(found: dict[str, Any]) -> str:
    """What `backward` found, in several paragraphs."""
    paragraphs = [_model_text(found), _compute_text(found["compute"]), _tokens_text(found), _loss_text(found)]
    paragraphs += [_memory_text(found["memory"]), "\n".join(f"note: {note}" for note in found["notes"])]
    return "\n\n".join(paragraphs)


def _model_text(found: dict[str, Any]) -> str:
    model, law = found["model"], found["law"]
    lines = [
        f"MODEL {model['architecture']} ({model['family']}), sequences of {model['sequence_length']:,} tokens",
        f"  N                         {model['n_params']:>22,}",
    ]
    if model["n_active"] != model["n_params"]:
        lines.append(f"  of which a token meets    {model['n_active']:>22,}")
    lines += [
        f"  N of the law              {model['n_of_law']:>22,}  {law['name']}: {N_MEANINGS[law['N']]}",
        f"  FLOPs per token           {model['flops_per_token']:>22,}  training",
        f"  {model['convention']}",
    ]
    return "\n".join(lines)


def _compute_text(compute: dict[str, Any]) -> str:
    return (
        f"COMPUTE C = {compute['flops']:.4e} FLOPs\n"
        f"  = {compute['peak_flops_per_device']:.4g} FLOP/s ({compute['hardware']}, {compute['dtype']}, dense) "
        f"x {compute['devices']:,} x {compute['hours']:g} hours x 3,600 s x MFU {compute['mfu']:g}"
    )


def _tokens_text(found: dict[str, Any]) -> str:
    tokens, hours = found["tokens"], found["compute"]["hours"]
    ratio = tokens["tokens_per_parameter"]
    lines = [
        f"TOKENS D = {tokens['D']:,}",
        f"  that C affords            {tokens['afforded_by_compute']:>22,}  C / FLOPs per token",
    ]
    if tokens["allowed_by_data"] is not None:
        binds = "the machines' time" if tokens["binds"] == "compute" else "the dataset"
        product = f"{tokens['unique_tokens']:,} unique x {tokens['epochs_allowed']:g} epochs"
        lines += [
            f"  that the data allow       {tokens['allowed_by_data']:>22,}  {product}",
            f"  {binds} binds: {tokens['epochs']:.3g} epochs",
        ]
    used = f"{tokens['hours']:,.4g} of {hours:,.4g} hours"
    left = f"{hours - tokens['hours']:,.4g} hours ({100 * (1 - tokens['hours'] / hours):.1f} %) are left"
    lines += [
        f"  training takes {used}" + (f"; {left}" if tokens["binds"] == "data" else ""),
        f"  D/N {ratio:.2f}   D/(20N) {ratio / 20:.3f}",
    ]
    return "\n".join(lines)


def _loss_text(found: dict[str, Any]) -> str:
    loss, best, law = found["loss"], found["optimum"], found["law"]
    interval = loss["interval_95"]
    sure = "" if interval is None else "   95 % interval {:.5f} to {:.5f}".format(*interval)
    search = found["search"]
    of_constants = ", with scaling_law saved as law.json:" if search and "--law law.json" in search else ":"
    lines = [f"PREDICTED LOSS {loss['predicted']:.6f}{sure}", f"  {law['name']}: {law['source']}"]
    if loss["worth_in_unique_tokens"] is not None:
        worth = f"{loss['worth_in_unique_tokens']:.4g}"
        lines.append(f"  repeated: D is worth {worth} unique tokens (Muennighoff et al. 2023)")
    lines += [
        f"  the best N for this C and these data is {best['n_of_law']:.4g} with D = {best['tokens']:.4g}, loss "
        f"{best['loss']:.6f},",
        f"  at as many FLOPs a token and parameter; this N is {best['n_over_optimum']:.3g} times that, and costs "
        f"{best['loss_above_optimum']:.6f}",
        *(
            [f"  an architecture of this kind for these machines{of_constants}", f"    {search}"]
            if search
            else ["  no preset has the components of this architecture, so that no search finds a better one"]
        ),
    ]
    return "\n".join(lines)


def _memory_text(memories: list[dict[str, Any]]) -> str:
    first = memories[0]
    checkpointing = ", activation checkpointing" if first["activation_checkpointing"] else ""
    devices = "1 device" if first["devices"] == 1 else f"each of {first['devices']:,} devices"
    lines = [f"MEMORY OF TRAINING on {devices} (micro-batch {first['micro_batch']}, {first['dtype']}{checkpointing})"]
    for memory in memories:
        verdict = "its device's memory is not known: device_memory_gb"
        if memory["fits"] is not None:
            verdict = f"{'fits' if memory['fits'] else 'does not fit'} in {memory['device_memory'] / 1e9:,g} GB"
        if memory["not_known"]:
            verdict = f"at least; {memory['not_known']}"
        lines.append(f"  {memory['strategy']:<26}{memory['total'] / 1e9:>22,.2f} GB  {verdict}")
    return "\n".join(lines)
