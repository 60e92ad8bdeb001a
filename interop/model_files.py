"""Reads a model's configuration from any file that holds one.

`read_model` takes a config file of this repository, a `config.json` (Hugging Face's, that of state-spaces/mamba, or the
one that a run leaves behind), each JSON with or without comments, or the folder of one. Keys that change no count are
passed over by name; what is made of unknown ones, interop/known_keys.py says. No torch.
"""

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError, did_you_mean
from common.json_files import read_json
from configurator import configuration_keys, from_dict, load, with_vocabulary
from data.facts import prepared
from data.mixture import sources
from flops_parameter_counting.costs.setting import Model
from interop.configurations import FAMILIES, check_size, counted_keys, has_room, no_room, with_model_type
from interop.configurations import notes as notes_on_keys
from model_config import ModelArchitectureConfig, resolve_architecture

# ---------------------------------------------------------------------------------------------------------------------
# Files


def read_model(path: Path, vocab_size: int | None = None) -> Model:
    """Raises UserError, naming the file and the key. A folder is read by its config.json. A config file may leave the
    vocabulary to its dataset, if that is prepared, or to `vocab_size`."""
    if path.suffix == ".py" and not path.is_dir():
        given = [] if vocab_size is None else [f"--vocab_size={vocab_size}"]
        configuration = load([str(path), *given])
        if configuration.model.vocab_size is None:
            run = configuration.run
            name = run.dataset if run.mixture is None else sources(run.mixture)[0]
            dataset = prepared(name, run.data_dir)
            if dataset is None:
                raise UserError(
                    f"{path}: its vocabulary is that of the dataset {name!r}, which is not prepared: prepare it, or "
                    "give a vocab_size"
                )
            configuration = with_vocabulary(configuration, dataset.vocab_size)
        return Model(configuration.name, "config file", configuration.model, run=configuration.run)
    file = path / "config.json" if path.is_dir() else path
    if vocab_size is not None:
        raise UserError(f"--vocab_size is for a config file; {file} says its own")
    name, values = _read(path)
    try:
        return model_from_values(values, name)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """The name of a model, and the content of its config.json."""
    file = path / "config.json" if path.is_dir() else path
    try:
        return path.absolute().name if path.is_dir() else path.stem, read_json(file)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def hugging_face_file(path: Path) -> tuple[str, dict[str, Any]] | None:
    """The name and the content of a config.json of Hugging Face's, that of state-spaces/mamba in its keys; None for a
    file of this repository's. Raises UserError."""
    if path.suffix == ".py" and not path.is_dir():
        return None
    name, values = _read(path)
    if "model_type" not in values and "ssm_cfg" in values:
        values = _from_mamba_ssm(values)
    values = with_model_type(values)
    return (name, values) if "model_type" in values else None


def check_can_trace(what: str) -> None:
    """Raises UserError where what runs transformers' classes (interop/tracing.py) is not installed."""
    if missing := [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]:
        raise UserError(f"{what}, for which {' and '.join(missing)} must be installed: pip install {' '.join(missing)}")


def model_from_values(values: Mapping[str, Any], name: str) -> Model:
    """The model of the content of a config.json. Raises UserError, naming the key."""
    if "model_type" not in values and "ssm_cfg" in values:
        values = _from_mamba_ssm(values)
    values = with_model_type(values)
    model_type = values.get("model_type")
    if model_type is None:
        if not values.keys() & configuration_keys().keys():
            raise UserError("no model_type, which names a Hugging Face model, and no key of this repository's")
        return Model(name, "saved configuration", from_dict(values))
    if not has_room(values):
        raise UserError(no_room(model_type))
    architecture = resolve_architecture({"arch_preset": "custom", **counted_keys(values)})
    return Model(name, model_type, architecture, tuple(_notes(values, architecture)), is_ours=False)


def _notes(values: Mapping[str, Any], architecture: ModelArchitectureConfig) -> list[str]:
    """What was assumed."""
    model_type = values["model_type"]
    counted = FAMILIES[model_type].counted
    mixers = {layer.mixer for layer in architecture.layer_counts}
    assumed = [key for key in _WORTH_A_NOTE if counted.get(key) is not None and key not in values]
    if "sliding_attention" not in mixers:
        assumed = [key for key in assumed if key != "sliding_window"]
    defaults = [f"{key}={counted[key]}" for key in assumed]
    notes = [f"not in the file, so as {model_type} has it by default: {', '.join(defaults)}"] if defaults else []
    notes += notes_on_keys(values)
    if mixers <= {"mamba1", "mamba2"}:
        from_a_chunk_on = f" from {architecture.mamba_chunk_size} tokens, a chunk, on" if "mamba2" in mixers else ""
        notes.append(f"a state-space model costs the same a token at any sequence length{from_a_chunk_on}")
    if values.get("num_nextn_predict_layers", values.get("num_mtp_layers", counted.get("num_nextn_predict_layers"))):
        notes.append("num_nextn_predict_layers: the layers that predict further tokens are not counted")
    if values.get("quantization_config") is not None:
        notes.append("quantization_config: scales are not counted, and bytes are those of --dtype")
    if values.get("dual_chunk_attention_config") is not None:
        notes.append("dual_chunk_attention_config: transformers does not read it, and attention is counted without it")
    return notes


# Optional keys whose default deserves a word, as it decides what is counted.
_WORTH_A_NOTE = (
    "sliding_window", "num_key_value_heads", "num_heads", "head_dim", "max_position_embeddings", "n_groups",
    "state_size", "expand", "conv_kernel", "time_step_rank", "mamba_n_heads", "mamba_n_groups", "mamba_d_state",
    "mamba_d_conv", "mamba_expand", "tie_word_embeddings", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim",
    "qk_rope_head_dim", "v_head_dim", "n_routed_experts", "n_shared_experts", "num_experts_per_tok",
    "moe_intermediate_size", "first_k_dense_replace",
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# The original Mambas' files

# What state-spaces/mamba calls the keys of Hugging Face's Mamba and Mamba-2, and its own defaults.
_MAMBA_SSM_NAMES = {
    "d_state": "state_size", "d_conv": "conv_kernel", "expand": "expand", "bias": "use_bias",
    "conv_bias": "use_conv_bias", "dt_rank": "time_step_rank", "headdim": "head_dim", "ngroups": "n_groups",
    "chunk_size": "chunk_size",
}  # fmt: skip
_MAMBA_SSM_KEYS = (
    "d_model", "n_layer", "vocab_size", "ssm_cfg", "rms_norm", "residual_in_fp32", "fused_add_norm",
    "pad_vocab_size_multiple", "tie_embeddings", "d_intermediate", "attn_layer_idx", "attn_cfg",
)  # fmt: skip


def _from_mamba_ssm(values: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of state-spaces/mamba-* and mamba2-* in Hugging Face's keys."""
    for key in values:
        if key not in _MAMBA_SSM_KEYS:
            raise UserError(f"unknown key {key!r} of a mamba_ssm configuration{did_you_mean(key, _MAMBA_SSM_KEYS)}")
    if values.get("rms_norm", True) is not True:
        raise UserError(f"rms_norm={values['rms_norm']!r} is not counted here; only true is")
    for key in ("attn_layer_idx", "d_intermediate"):
        if values.get(key):
            raise UserError(f"{key}={values[key]!r}: layers of attention or FFN are not counted in this format")
    for key in ("d_model", "n_layer", "vocab_size"):
        if key not in values:
            raise UserError(f"a mamba_ssm configuration needs {key}, which is missing")
        check_size(key, values[key])
    details = dict(values["ssm_cfg"]) if isinstance(values["ssm_cfg"], dict) else {}
    layer = details.pop("layer", "Mamba1")
    if layer not in ("Mamba1", "Mamba2"):
        raise UserError(f"ssm_cfg: layer={layer!r} is none of: Mamba1, Mamba2")
    for key in details:
        if key not in _MAMBA_SSM_NAMES:
            raise UserError(f"ssm_cfg: unknown key {key!r}{did_you_mean(key, _MAMBA_SSM_NAMES)}")
    multiple, vocab_size = values.get("pad_vocab_size_multiple", 8), values["vocab_size"]
    check_size("pad_vocab_size_multiple", multiple)
    theirs = {_MAMBA_SSM_NAMES[key]: value for key, value in details.items()}
    translated = {
        "model_type": layer.lower().removesuffix("1"),
        "hidden_size": values["d_model"],
        "num_hidden_layers": values["n_layer"],
        "vocab_size": math.ceil(vocab_size / multiple) * multiple,
        "tie_word_embeddings": values.get("tie_embeddings", True),
        "expand": 2,
    }
    if layer == "Mamba2":
        translated |= {"state_size": 128, "head_dim": 64, "n_groups": 1}
    translated |= theirs
    if layer == "Mamba2":
        for key in ("expand", "head_dim"):
            check_size(key, translated[key])
        translated["num_heads"] = translated["expand"] * translated["hidden_size"] // translated["head_dim"]
    return translated
