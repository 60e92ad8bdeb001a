"""What a model of transformers costs, counted by running its class once on the meta device, where tensors have shapes
and no values: for families that have no room here, and beside those that have one (interop/audit.py).

Counted is every matrix product and convolution that PyTorch runs (torch.utils.flop_counter), by the module that asks
for it. Attention is `eager`: its scores are products of matrices, in full (S x S), whatever a window hides. Experts are
one product for each choice of a token (`batched_mm`), since how many tokens an expert has is no shape. What a class
computes elementwise, such as the recurrence of a state, is not seen. No code but transformers' own is executed.
"""

import collections
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils import logging

from common.errors import UserError
from interop.configurations import no_room

# Of a config.json, but no business of a count: code beside it, how weights were stored, and which kernels run
_PASSED_OVER = ("auto_map", "quantization_config", "torch_dtype", "dtype", "_attn_implementation", "architectures")
_LONGEST_REASON = 200
_PRODUCTS_OF_MATRICES = ("mm", "addmm")  # of a matrix that is a parameter, in all but batched products
_PRODUCTS_OF_STATES = {"mamba": "scan", "delta": "delta_rule", "recurrence": "scan"}
_CONVOLUTIONS = {"mamba": "convolution", "delta": "short_convolution", "recurrence": "convolution"}


@dataclasses.dataclass(frozen=True)
class Traced:
    """What was counted: parameters by part, tied ones once; those that a token meets; forward FLOPs of one sequence by
    part; and for people what was passed over. `unlike`: parts whose products are another form's than a formula's."""

    model_class: str
    sequence_length: int
    parameters: dict[str, int]
    active: dict[str, int]
    flops: dict[str, int]
    unlike: tuple[str, ...]
    notes: tuple[str, ...]


def trace(values: Mapping[str, Any], sequence_length: int | None = None) -> Traced:
    """The content of a config.json -> what one sequence costs (None: of as many tokens as the model's context has).

    Raises UserError where transformers has no such class, or cannot run it without values.
    """
    config = _configuration(values)
    length = sequence_length or _context(config)
    with _refusing(config.model_type), torch.device("meta"), torch.no_grad(), _quiet():
        experts = {"experts_implementation": "batched_mm"}
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation="eager", dtype=torch.float32, trust_remote_code=False, **experts
        ).eval()
        counter = FlopCounterMode(display=False)
        with _WholeTexts(), counter:
            model(torch.zeros(1, length, dtype=torch.long), use_cache=False)
    parameters: dict[str, int] = collections.Counter()
    for name, parameter in model.named_parameters():
        parameters[part_of(model, name.rpartition(".")[0])] += parameter.numel()
    products = list(_products(model, counter))
    flops: dict[str, int] = collections.Counter()
    for module, operation, count in products:
        flops[_product_part(model, module, operation)] += _kept_outputs(model, module, operation, count, length)
    idle = _idle_parameters(model, products, length)
    active = {part: count - idle.get(part, 0) for part, count in parameters.items()}
    unlike = tuple(dict.fromkeys(_PRODUCTS_OF_STATES[part_of(model, name)] for name in _recurrences(model)))
    notes = tuple(_notes(model, length, parameters, active))
    in_order = dict(sorted(flops.items()))  # the counter's is that of a set
    return Traced(type(model).__name__, length, dict(parameters), active, in_order, unlike, notes)


# ---------------------------------------------------------------------------------------------------------------------
# The model


def _configuration(values: Mapping[str, Any]) -> Any:
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        raise UserError(f"{no_room(model_type)}; nor has transformers {transformers.__version__} a model of this type")
    known = {key: value for key, value in values.items() if key not in (*_PASSED_OVER, "model_type")}
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # which a small vocabulary may not have
    with _refusing(model_type), _quiet():
        config = transformers.AutoConfig.for_model(model_type, **(known | tokens))
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"model_type={model_type!r}: transformers has no causal language model of this type")
    return config


def _context(config: Any) -> int:
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    if type(length) is not int or length < 1:
        raise UserError(f"model_type={config.model_type!r} says no length of its context: give --sequence_length")
    return length


@contextlib.contextmanager
def _refusing(model_type: Any) -> Iterator[None]:
    """Whatever transformers raises of a configuration, or of a class that asks for values, as one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]} ..."
        raise UserError(f"model_type={model_type!r} cannot be traced by transformers: {reason}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


class _WholeTexts(TorchDispatchMode):
    """Answers what classes ask of masks before they run, `mask.all()`, with yes: there is one document and no padding.
    Anything else that they ask of values has no answer on the meta device, and raises."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta and args[0].dtype == torch.bool:
            return True
        return func(*args, **(kwargs or {}))


# ---------------------------------------------------------------------------------------------------------------------
# Parts


def part_of(model: Any, name: str) -> str:
    """What the parameters of a module are counted under: by the roles that the model names, by classes, and by names
    that transformers' classes have in common."""
    module = model.get_submodule(name)
    if module is model.get_input_embeddings():
        return "embedding"
    if module is model.get_output_embeddings():
        return "lm_head"
    if (recurrent := _recurrent_ancestor(model, name)) is not None:
        names = f"{recurrent} {type(model.get_submodule(recurrent)).__name__}".lower()
        return next((kind for kind in ("mamba", "delta") if kind in names), "recurrence")
    if isinstance(module, nn.Embedding):
        return "position"
    kind, segments = type(module).__name__.lower(), name.lower().split(".")
    if "norm" in kind:
        return "norms"
    named = (
        ("router", "router" in kind or segments[-1] in ("router", "gate")),
        ("shared_experts", _is_shared_expert(model, segments)),
        ("experts", any(one.startswith("experts") for one in segments)),
        ("attention", any("attn" in one or "attention" in one for one in segments)),
        ("ffn", any(word in one for one in segments for word in ("mlp", "ffn", "feed_forward", "fc", "ff"))),
        ("attention", "attention" in _classes(model, name)),  # of a half that names no kind, such as Nemotron-H's mixer
        ("ffn", "mlp" in _classes(model, name)),
    )
    return next((part for part, is_it in named if is_it), "other")


def _is_shared_expert(model: Any, segments: list[str]) -> bool:
    """Whether it is called so, and other experts stand beside it: Granite 4 calls its only FFN so, too."""
    for depth, segment in enumerate(segments):
        if segment.startswith(("shared_expert", "shared_mlp")):
            beside = (name for name, _ in model.get_submodule(".".join(segments[:depth])).named_children())
            return any("expert" in name or "moe" in name for name in beside if name != segment)
    return False


def _classes(model: Any, name: str) -> str:
    """The names of the classes of a module and of the one that it is in."""
    modules = (model.get_submodule(one) for one in (name, name.rpartition(".")[0]))
    return " ".join(type(one).__name__ for one in modules).lower()


def _recurrent_ancestor(model: Any, name: str) -> str | None:
    """The outermost module around this one, or itself, that keeps a state."""
    found = None
    while name:
        if _keeps_state(model.get_submodule(name)):
            found = name
        name = name.rpartition(".")[0]
    return found


def _keeps_state(module: nn.Module) -> bool:
    """Whether it has the decay of a state, itself or, beside its convolution, in a part."""
    children = list(module.children())
    has_convolution = any(isinstance(one, nn.Conv1d) for one in children)
    parts = (module, *children) if has_convolution else (module,)
    return any("A_log" in dict(one.named_parameters(recurse=False)) for one in parts)


def _recurrences(model: Any) -> list[str]:
    return [name for name, _ in model.named_modules() if _recurrent_ancestor(model, name) == name]


def _products(model: Any, counter: FlopCounterMode) -> Iterator[tuple[str, str, int]]:
    """(the innermost module that asked, the operation, FLOPs)."""
    root = type(model).__name__  # what is not below it, such as a module that is made on the way, is its parent's too
    found_of = counter.get_flop_counts().items()
    counts = {name: dict(found) for name, found in found_of if name.partition(".")[0] == root}
    own = {name: collections.Counter(found) for name, found in counts.items()}
    for name, found in counts.items():
        parent = name.rpartition(".")[0]
        while parent and parent not in counts:
            parent = parent.rpartition(".")[0]
        if parent:
            own[parent].subtract(found)
    for name, left in own.items():
        for operation, count in left.items():
            if count:
                yield name.removeprefix(root).removeprefix("."), str(operation).rpartition(".")[2], count


def _product_part(model: Any, name: str, operation: str) -> str:
    """What a product is counted under: with a parameter, or, in attention and a recurrence, between activations."""
    part = part_of(model, name)
    if part in ("norms", "other", "position") or "rotary" in name:
        return "other"
    if part in _PRODUCTS_OF_STATES:
        by_operation = dict.fromkeys(_PRODUCTS_OF_MATRICES, f"{part}_projections")
        return {**by_operation, "convolution": _CONVOLUTIONS[part]}.get(operation, _PRODUCTS_OF_STATES[part])
    if part == "attention":
        has_matrix = any(one.ndim == 2 for one in model.get_submodule(name).parameters(recurse=False))
        is_projection = has_matrix or operation in _PRODUCTS_OF_MATRICES
        return "attention_projections" if is_projection else "attention_scores"
    return part


def _kept_outputs(model: Any, name: str, operation: str, count: int, length: int) -> int:
    """Without the outputs that a causal convolution pads its input for and then drops."""
    module = model.get_submodule(name)
    paddings = {one.padding[0] for one in (module, *module.children()) if isinstance(one, nn.Conv1d)}
    if operation != "convolution" or len(paddings) != 1 or not isinstance(padding := paddings.pop(), int):
        return count
    return count * length // (length + padding)


def _idle_parameters(model: Any, products: list[tuple[str, str, int]], length: int) -> dict[str, int]:
    """Of stacked experts, those that a token does not meet: of so many, as many as their products are fewer than those
    with all."""
    found: dict[str, int] = collections.Counter()
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        matrices = sum(one.numel() for one in own.values() if one.ndim == 3)
        if matrices and part_of(model, name) == "experts":
            made, whole = sum(count for of, _, count in products if of == name), 2 * length * matrices
            everything = sum(one.numel() for one in own.values())
            found["experts"] += everything - everything * made // whole
    return found


def _notes(model: Any, length: int, parameters: dict[str, int], active: dict[str, int]) -> Iterator[str]:
    yield (
        f"counted by tracing transformers' {type(model).__name__}, without values: the matrix products and "
        "convolutions that PyTorch runs; what is computed elementwise is not seen"
    )
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    if window is not None and window < length:
        yield f"sliding_window={window}: attention is counted in full, as `eager` attention computes it"
    if active.get("experts") and active["experts"] == parameters["experts"]:
        yield "experts: the class multiplies every token with all of them, so that all count as active"
    if _recurrences(model):
        kinds = dict.fromkeys(type(model.get_submodule(name)).__name__ for name in _recurrences(model))
        yield (
            f"the state of {', '.join(kinds)}: products are those of transformers' form without kernels, in whole "
            "chunks, of which a part is elementwise and not seen"
        )
