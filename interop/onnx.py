"""A model as ONNX files, which onnxruntime and others run without PyTorch: whole texts, and texts that go on.

    model.onnx             input_ids (B, T) -> logits (B, T, V)
    model_with_cache.onnx  input_ids (B, T), past_key_values.I.NAME -> logits of these tokens, present.I.NAME

I is the layer; names are those of Hugging Face's optimum, `key` and `value`, where a cache is one of attention. B and T
are free, and so is how many tokens are past, from 0 on. All is float32.

PyTorch's own exporter makes the graph (torch.onnx, opset 23, which has attention and RMSNorm as operators). It says
nothing of a dimension that comes out fixed, against what it was asked: the program is therefore made by torch.export,
which does, and the files are run beside the model at lengths that no exporter saw.
"""

import contextlib
import dataclasses
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from common.errors import UserError
from components.caches import Caches
from interop.parity import TOLERANCE, NotCompared, Parity
from model_builder import LanguageModel, build_model

OPSET = 23
WHOLE, CACHED = "model.onnx", "model_with_cache.onnx"
EXAMPLE = (2, 6)  # texts and tokens that the exporter sees, and as many past; 1 would be a case of its own
SHAPES = ((1, 1), (1, 2), (3, 5), (5, 17), (2, 65), (1, 600))  # that are compared, as far as the block reaches


@dataclasses.dataclass(frozen=True)
class Field:
    """A tensor of a layer's cache."""

    layer: int
    name: str
    shape: tuple[int, ...]  # of one text that has no tokens yet
    grows: int | None  # the dimension of tokens; None: of one size

    @property
    def dimensions(self) -> dict[int, str]:
        return {0: "batch"} if self.grows is None else {0: "batch", self.grows: "past"}


@dataclasses.dataclass(frozen=True)
class Written:
    """The files, and for people what is missing."""

    files: dict[str, dict[str, Any]]  # by name, their inputs and outputs with dimensions
    notes: list[str]


def write_onnx(model: LanguageModel, folder: Path) -> Written:
    """The files of a model into an existing folder. Raises UserError where the model has no such form, and OSError."""
    check_installed()
    model = _twin(model)
    whole = _Whole(model)
    files = {WHOLE: _write(whole, (_tokens(model, *EXAMPLE),), folder / WHOLE, ["input_ids"], ["logits"])}
    fields, missing = cache_fields(model)
    if missing:
        return Written(files, [f"without {CACHED}: {missing}"])
    past = [_past(field, *EXAMPLE) for field in fields]
    cached = _Cached(model, fields)
    inputs = ["input_ids", *(f"past_key_values.{one.layer}.{one.name}" for one in fields)]
    outputs = ["logits", *(f"present.{one.layer}.{one.name}" for one in fields)]
    given = (_tokens(model, *EXAMPLE), past)
    return Written(files | {CACHED: _write(cached, given, folder / CACHED, inputs, outputs)}, [])


def check_installed() -> None:
    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise UserError(f"--format onnx needs {' and '.join(missing)}: pip install -e '.[onnx]'")


def check_exportable(model: LanguageModel) -> None:
    """Raises UserError for what no graph is of."""
    if model.turns_anew:
        kind = (model.config.rope_scaling or {}).get("rope_type")
        raise UserError(
            f"--format onnx: rope_scaling of {kind!r} turns a text's tokens by its length, which a graph cannot choose"
        )


def _twin(model: LanguageModel) -> LanguageModel:
    """The same tensors in a model whose components hold for any length."""
    check_exportable(model)
    twin = build_model(model.config, "meta")
    twin.load_state_dict(model.state_dict(), assign=True)
    for one in twin.modules():
        if (hold := getattr(one, "hold_for_any_length", None)) is not None:
            hold()
    return twin.eval()


# ---------------------------------------------------------------------------------------------------------------------
# What is traced


class _Whole(nn.Module):
    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model
        self.dimensions: tuple[Any, ...] = ({0: "batch", 1: "sequence"},)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids)


class _Cached(nn.Module):
    def __init__(self, model: LanguageModel, fields: list[Field]):
        super().__init__()
        self.model, self.fields = model, fields
        self.kinds = [type(cache) for cache in model.empty_caches(1, 0).layers]
        self.dimensions = ({0: "batch", 1: "sequence"}, [field.dimensions for field in fields])

    def forward(self, input_ids: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        given: list[dict[str, Tensor]] = [{} for _ in self.kinds]
        length = 0
        for field, tensor in zip(self.fields, past, strict=True):
            given[field.layer][field.name] = tensor.clone()  # some caches are written to in place
            length = length if field.grows is None else tensor.shape[field.grows]
        layers = [kind(**tensors) for kind, tensors in zip(self.kinds, given, strict=True)]
        logits = self.model(input_ids, caches=Caches(layers, input_ids.shape[0], None, length))
        return logits, [getattr(layers[field.layer], field.name) for field in self.fields]


def cache_fields(model: LanguageModel) -> tuple[list[Field], str]:
    """What the caches hold, layer by layer, of a model that holds for any length; and why they cannot be inputs, if
    they cannot."""
    found = []
    for index, cache in enumerate(model.empty_caches(1, 0).layers):
        for field in dataclasses.fields(cache):
            value = getattr(cache, field.name)
            if not isinstance(value, Tensor):
                return [], f"{type(cache).__name__}.{field.name} of layer {index} is no tensor"
            found.append(Field(index, field.name, tuple(value.shape), getattr(cache, "grows", None)))
    position = model.config.component("position_encoding")
    if position.acts_in == "embedding" and all(field.grows is None for field in found):
        return [], f"no cache of these layers says how many tokens are past, which {position.name} wants to know"
    return found, ""


def _tokens(model: LanguageModel, batch: int, length: int) -> Tensor:
    """Random ones (batch, length), or as many as the block has."""
    assert model.config.vocab_size is not None
    shape = (batch, min(length, model.config.block_size))
    return torch.randint(model.config.vocab_size, shape, generator=torch.Generator().manual_seed(length))


def _past(field: Field, batch: int, tokens: int) -> Tensor:
    shape = [batch, *field.shape[1:]]
    if field.grows is not None:
        shape[field.grows] = tokens
    return torch.zeros(shape)


# ---------------------------------------------------------------------------------------------------------------------
# The files


@torch.no_grad()
def _write(
    module: "_Whole | _Cached", example: tuple[Any, ...], file: Path, inputs: list[str], outputs: list[str]
) -> dict[str, Any]:
    """Writes one, with weights above 2 GB beside it; returns its inputs and outputs, with their dimensions."""
    longest = {"sequence": module.model.config.block_size} if file.name == WHOLE else {}
    dims = {name: Dim(name, max=longest.get(name)) for name in ("batch", "sequence", "past")}
    shapes = _with_dims(module.dimensions, dims)
    try:
        with _quiet():
            program = torch.export.export(module, example, dynamic_shapes=shapes)
            made = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, input_names=inputs, output_names=outputs, verbose=False
            )
    except Exception as error:  # of any of three libraries
        layers = ", ".join(sorted(layer.mixer for layer in module.model.config.layer_counts))
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--format onnx: no graph of any length can be made of layers of {layers}: {reason}") from None
    assert made is not None
    graph = made.model.graph
    flat = [one for part in module.dimensions for one in (part if isinstance(part, list) else [part])]
    symbols: list[Any] = [value.shape for value in graph.inputs]
    for symbol, axes in zip(symbols, flat, strict=True):
        made.rename_axes({symbol[axis]: name for axis, name in axes.items()})
    for node in (*made.model.graph.all_nodes(), *(node for one in made.model.functions.values() for node in one)):
        node.metadata_props.clear()  # which name this machine's files
    made.save(file)
    return {
        "inputs": {value.name: _dimensions(value) for value in graph.inputs},
        "outputs": {value.name: _dimensions(value) for value in graph.outputs},
    }


def _with_dims(dimensions: Any, dims: dict[str, Dim]) -> Any:
    if isinstance(dimensions, dict):
        return {axis: dims[name] for axis, name in dimensions.items()}
    return type(dimensions)(_with_dims(one, dims) for one in dimensions)


def _dimensions(value: Any) -> list[int | str]:
    return [one if isinstance(one, int) else str(one.value) for one in value.shape]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of packages that are not needed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# ---------------------------------------------------------------------------------------------------------------------
# Beside the model


@torch.no_grad()
def measure_onnx(model: LanguageModel, folder: Path, files: dict[str, dict[str, Any]]) -> list[Parity]:
    """What onnxruntime computes from the files beside the model, one figure a file: whole texts of SHAPES; and such in
    pieces, of which some are single tokens. Raises NotCompared where it is not installed, and UserError where it
    computes something else."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise NotCompared("onnxruntime is not installed")
    import onnxruntime

    found = []
    for name in files:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        session = onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
        difference, largest, count = 0.0, 0.0, 0
        for shape in SHAPES:
            tokens = _tokens(model, *shape)
            logits, expected = _logits(session, tokens), model(tokens)
            difference = max(difference, (logits - expected).abs().nan_to_num(torch.inf).max().item())
            largest, count = max(largest, expected.abs().max().item()), count + tokens.numel()
        parity = Parity(difference, largest, count, f"those of {name} in onnxruntime {onnxruntime.__version__}")
        if not difference <= TOLERANCE * largest:
            raise UserError(f"--format onnx: {name} is another function than the model: {parity}")
        found.append(parity)
    return found


def _logits(session: Any, tokens: Tensor) -> Tensor:
    """(B, T) -> (B, T, V): at once, or, with a cache, a half, four tokens one by one, and the rest."""
    inputs = session.get_inputs()
    if len(inputs) == 1:
        return torch.from_numpy(session.run(None, {"input_ids": tokens.numpy()})[0])
    batch, length = tokens.shape
    given = {one.name: torch.zeros([_size(axis, batch) for axis in one.shape]).numpy() for one in inputs[1:]}
    sizes = [length - length // 2, *[1] * min(4, length // 2)]
    sizes += [length - sum(sizes)] * (sum(sizes) < length)
    logits = []
    for piece in tokens.split(sizes, dim=1):
        new, *present = session.run(None, {"input_ids": piece.numpy()} | given)
        given = dict(zip(given, present, strict=True))
        logits.append(torch.from_numpy(new))
    return torch.cat(logits, dim=1)


def _size(axis: int | str, batch: int) -> int:
    return axis if isinstance(axis, int) else {"batch": batch, "past": 0}[axis]
