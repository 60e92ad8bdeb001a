"""A run's checkpoint as one file, and back; as the folder of a Hugging Face model, and back; as ONNX; or in few bits.

python checkpoint.py export out/quickstart model.safetensors
python checkpoint.py export out/quickstart weights.safetensors --weights_only --checkpoint=best
python checkpoint.py import model.safetensors out/copy
python train.py out/copy/config.py --init_from=resume

python checkpoint.py export out/quickstart quickstart-hf --format hf
python checkpoint.py import quickstart-hf out/copy

python checkpoint.py export out/quickstart quickstart-onnx --format onnx

python checkpoint.py quantize out/quickstart out/quickstart-int4 --method int4

The file is plain safetensors: the model's tensors under their names, the optimizer's under `optimizer.<parameter>.`,
each whole however many ranks had parts of it. Its metadata has the rest of the checkpoint as JSON: `progress`,
`config`, `data`, the tokenizer's file in base64 and the chat template where there are any and, unless it holds the
weights only, `scaler`. The folder is what transformers reads: config.json, safetensors in one file or in shards with
their index, tokenizer, chat template, settings of generation and a model card. Where transformers is installed, its
logits and ours are compared, and the largest difference is printed; so are onnxruntime's (docs/using/export.md). No
direction executes anything that it reads.
"""

import argparse
import base64
import contextlib
import dataclasses
import json
import math
import re
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

import configurator
from common.errors import ArgumentParser, UserError, exit_cleanly, zero_or_more
from common.files import aside, read_text, real, sync, written_aside
from components.quantized.module import method_of
from components.quantized.spec import METHODS
from configurator import Configuration
from data.tokenizers import FILES, content_of
from inference.quantization import quantize_model
from interop.folders import has_tensors
from interop.sources import architecture_from, read_configuration
from model_builder import build_model
from parallel.ranks import ALONE
from runs.base import BASE_STEP, base_of
from runs.checkpoint import OPTIMIZER, check_without_codes, load_tensors, tensors_of
from runs.folder import (
    CHAT_TEMPLATE,
    Progress,
    RunFolder,
    check_state,
    checkpoint_choice,
    checksum,
    damage,
    existing_run,
    read_state,
    saved_configuration,
)
from runs.hugging_face import Exchanged, adapters_from_run, folder_from_run, new_configuration, run_from_folder
from training.plan import prediction_of

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in TYPES.items()}
SHARD = 5 * 10**9  # bytes of a file of a Hugging Face model
WINDOWS = 128  # that int4 is fitted to, unless it is said
AT_ONCE = 1 << 28  # bytes of tensors in memory, or one tensor if it is larger
TOKENIZER, TEMPLATE = "tokenizer_file", "chat_template"  # in the metadata
NO_CHECKSUM = '"checksum":"crc32:00000000"'  # stands in the header until the tensors are written


@exit_cleanly
def main() -> None:
    arguments = parse_arguments()
    if arguments.command == "export" and arguments.config is not None:
        configurator.load([arguments.config])
    if arguments.command == "quantize":
        quantize(arguments)
    elif arguments.command == "import":
        import_from(arguments.file, arguments.run, arguments.config, arguments.force)
    elif arguments.format == "hf":
        export_hugging_face(arguments)
    elif arguments.format == "onnx":
        export_onnx(arguments)
    elif arguments.format == "peft":
        export_adapters(arguments)
    else:
        if arguments.max_shard_size is not None:
            raise UserError("--max_shard_size is for --format hf: a file is one")
        export_checkpoint(arguments.run, arguments.file, arguments.checkpoint, arguments.weights_only, arguments.force)


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="export | import | quantize")
    export = commands.add_parser("export", description="A checkpoint of a run, to a file or a folder.")
    export.add_argument("run", type=Path, help="the run's folder, such as out/quickstart")
    export.add_argument("file", type=Path, help="to write, such as model.safetensors; with --format a folder")
    of_formats = "hf: as a Hugging Face model; onnx: as ONNX files; peft: adapters as PEFT has them (file)"
    export.add_argument("--format", choices=("file", "hf", "onnx", "peft"), default="file", help=of_formats)
    export.add_argument("--max_shard_size", type=size, metavar="SIZE", help="of a file of --format hf, as 500MB (5GB)")
    export.add_argument("--checkpoint", type=checkpoint_choice, default="last", help="best, last or a step (last)")
    export.add_argument("--weights_only", action="store_true", help="leave out what only training needs")
    export.add_argument("--force", action="store_true", help="replace the file")
    what = "A file that export wrote, or a Hugging Face model, to the folder of a new run."
    back = commands.add_parser("import", description=what)
    back.add_argument(
        "file", type=Path, help="such as model.safetensors; of a Hugging Face model its folder or its config.json"
    )
    back.add_argument("run", type=Path, help="the new run's folder, such as out/copy")
    back.add_argument("--config", metavar="FILE", help="its config.py, if it registers components; it is executed")
    back.add_argument("--force", action="store_true", help="replace the run in that folder, all of it")
    few = commands.add_parser("quantize", description="A run's weights in few bits, to the folder of a new run.")
    few.add_argument("run", type=Path, help="the run's folder, such as out/quickstart")
    few.add_argument("folder", type=Path, help="the new run's folder, such as out/quickstart-int4")
    few.add_argument("--method", choices=METHODS, required=True, help="8 or 4 bits, and how they multiply")
    of_windows = f"of the training data that int4 is fitted to; 0: nearest codes ({WINDOWS})"
    few.add_argument("--windows", type=zero_or_more, default=None, metavar="N", help=of_windows)
    few.add_argument("--text", type=Path, metavar="FILE", help="to measure on, instead of the run's validation text")
    few.add_argument("--checkpoint", type=checkpoint_choice, default=None, help="best, last or a step (best)")
    for command in (export, few):
        command.add_argument(
            "--config", metavar="FILE", help="the run's config.py, if it registers components; it is executed"
        )
    return parser.parse_args()


def size(text: str) -> int:
    """An argparse type: bytes, in decimal units."""
    match = re.fullmatch(r"([1-9]\d{,14})([KMGT]?)B?", text, re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, such as 500MB or 5GB")
    return int(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " ")


# ---------------------------------------------------------------------------------------------------------------------
# Export


def export_checkpoint(run: Path, file: Path, wanted: str | int, weights_only: bool, force: bool) -> None:
    """Write a checkpoint's whole tensors and its state to one file, a part at a time, aside and renamed."""
    checkpoint, which = existing_run(run).find(wanted)
    with told(f"cannot write {file}"):
        if file.is_dir() or (file.exists() and not force):
            raise UserError(f"{file} is there already: " + ("name a file" if file.is_dir() else "--force replaces it"))
        check_is_outside(file, checkpoint)
    if wrong := damage(checkpoint, ALONE):
        raise UserError(wrong)
    tensors, state = tensors_of(checkpoint), read_state(checkpoint)
    check_without_codes(checkpoint)
    if base_of(checkpoint, state) is not None:
        raise UserError(
            f"{checkpoint} has adapters: --format hf exports the model with them merged, --format peft them alone"
        )
    if weights_only:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(OPTIMIZER)}
    kept = ("progress", "config", "data") if weights_only else ("progress", "config", "data", "scaler")
    metadata = {key: json.dumps(state[key]) for key in kept} | tokenizer_in_metadata(checkpoint, state)
    template = checkpoint.parent.parent / CHAT_TEMPLATE
    metadata |= {TEMPLATE: read_text(template, newline="")} if template.is_file() else {}
    with told(f"cannot write {file}"), written_aside(file, on_disk=True) as new, new.open("wb") as out:
        write_safetensors(out, checkpoint, tensors, metadata)
    print(f"{checkpoint} ({which}) -> {file}: {contents(tensors)}, {file.stat().st_size / 1e6:,.1f} MB")


def tokenizer_in_metadata(checkpoint: Path, state: dict[str, Any]) -> dict[str, str]:
    content = content_of(state["data"].get("tokenizer", {}), checkpoint.parent.parent)
    return {} if content is None else {TOKENIZER: base64.b64encode(zlib.compress(content)).decode("ascii")}


def export_hugging_face(arguments: argparse.Namespace) -> None:
    """Write a checkpoint as the folder of a Hugging Face model."""
    checkpoint, which, folder = folder_to_write(arguments)
    with told(f"cannot write {folder}"):
        found = folder_from_run(checkpoint, folder, arguments.max_shard_size or SHARD)
    print(f"{checkpoint} ({which}) -> {folder}: {found.architecture.name}, {found.parameters:,} parameters")
    say(found)


def export_onnx(arguments: argparse.Namespace) -> None:
    """Write a checkpoint as ONNX files."""
    from runs.onnx import onnx_from_run

    if arguments.max_shard_size is not None:
        raise UserError("--max_shard_size is for --format hf: an ONNX file is one")
    checkpoint, which, folder = folder_to_write(arguments)
    with told(f"cannot write {folder}"):
        found = onnx_from_run(checkpoint, folder)
    print(f"{checkpoint} ({which}) -> {folder}: {found.architecture.name}, {found.parameters:,} parameters")
    say(found)


def export_adapters(arguments: argparse.Namespace) -> None:
    """Write the adapters of a checkpoint as PEFT reads them."""
    if arguments.max_shard_size is not None:
        raise UserError("--max_shard_size is for --format hf: adapters are one file")
    checkpoint, which, folder = folder_to_write(arguments)
    with told(f"cannot write {folder}"):
        adapters, parameters = adapters_from_run(checkpoint, folder)
    print(f"{checkpoint} ({which}) -> {folder}: {adapters.title}, {parameters:,} parameters")
    if (method := read_state(checkpoint)["config"].get("quantize_base")) is not None:
        print(f"their base is in {method}, which PEFT does not read: --format hf exports the model with them merged")
    else:
        print(f"their base: python checkpoint.py export {arguments.run} FOLDER --format hf --checkpoint={BASE_STEP}")


def folder_to_write(arguments: argparse.Namespace) -> tuple[Path, str, Path]:
    """The checkpoint that is exported, in a word which one, and where to. Raises UserError."""
    for option in ("weights_only", "force"):
        if getattr(arguments, option):
            raise UserError(f"--{option} is for a file: a folder has weights only, and one that is there is kept")
    checkpoint, which = existing_run(arguments.run).find(arguments.checkpoint)
    with told(f"cannot write {arguments.file}"):
        check_is_free(arguments.file)
        check_is_outside(arguments.file, checkpoint)
    return checkpoint, which, arguments.file


def check_is_free(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} is there already: choose another folder")


def check_can_be_made(folder: Path) -> None:
    """Raises OSError where it cannot, before anything is computed."""
    above = next(path for path in folder.absolute().parents if path.exists())
    aside(above / folder.name).mkdir()
    aside(above / folder.name).rmdir()


def check_is_outside(path: Path, checkpoint: Path) -> None:
    if real(checkpoint.parent) in real(path).parents:
        raise UserError(f"{path} would be among the run's checkpoints: write it elsewhere")


def say(found: Exchanged) -> None:
    for note in found.notes:
        print(f"note: {note}")
    print(found.compared)


def write_safetensors(out: Any, checkpoint: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """The format, as safetensors itself would write it, but without all tensors in memory: the length of the header,
    the header, and the tensors one after another, those of larger elements first so that each is aligned.

    The metadata gains the checksum of everything after the header.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata, "checksum": "crc32:00000000"}}
    offset = 0
    for name in names:
        end = offset + tensors[name].nbytes
        header[name] = {
            "dtype": NAMES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [offset, end]
        }  # fmt: skip
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    out.write(struct.pack("<Q", len(text)) + text)
    crc = 0
    for content in contents_of(checkpoint, names, tensors):
        crc = zlib.crc32(content, crc)
        out.write(content)
    out.seek(8 + text.index(NO_CHECKSUM.encode()))
    out.write(f'"checksum":"crc32:{crc:08x}"'.encode())


def contents_of(checkpoint: Path, names: list[str], tensors: dict[str, Tensor]) -> Iterator[memoryview]:
    """The bytes of the tensors, in the order of the names."""
    for group in groups(names, tensors):
        values = {name: torch.empty_like(tensors[name], device="cpu") for name in group}
        load_tensors(checkpoint, values)
        for name in group:
            yield values.pop(name).reshape(-1).view(torch.uint8).numpy().data


def groups(names: list[str], tensors: dict[str, Tensor]) -> Iterator[list[str]]:
    """The names, in their order, in lists that may be in memory together."""
    group: list[str] = []
    size = 0
    for name in names:
        if group and size + tensors[name].nbytes > AT_ONCE:
            yield group
            group, size = [], 0
        group.append(name)
        size += tensors[name].nbytes
    if group:
        yield group


# ---------------------------------------------------------------------------------------------------------------------
# Import


def import_from(file: Path, run: Path, config: str | None, force: bool) -> None:
    """Make a run's folder of what the file is."""
    if not force and run.exists() and not (run.is_dir() and not any(run.iterdir())):
        raise UserError(f"{run} is there already: choose another folder; --force replaces the run in it")
    if file.is_dir() or file.suffix == ".json":
        if config is not None:
            raise UserError(f"--config is for a file that export wrote: {file} says its own configuration")
        import_hugging_face(file, run)
    else:
        import_checkpoint(file, run, config)


def import_hugging_face(source: Path, run: Path) -> None:
    """Make a run's folder whose one checkpoint has the model's weights, aside and renamed. A config.json that is named
    stands for its folder; without weights beside it, the run has the architecture only."""
    folder = source if source.is_dir() else source.parent
    if source.name != "config.json" and not source.is_dir():
        raise UserError(f"{source} is neither a file that export wrote nor a Hugging Face config.json")
    if RunFolder(folder).checkpoints():
        raise UserError(
            f"cannot read {folder} as a Hugging Face model: it is the folder of a run, from which train.py begins with "
            f"--init_from={folder}"
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: it is not the folder of a Hugging Face model")
    new = RunFolder(aside(run.absolute()))
    try:
        with told(f"cannot write {run}"):
            if source.is_dir() or has_tensors(folder):
                found = run_from_folder(folder, new, run)
            else:
                architecture = architecture_from(folder, read_configuration(folder))
                configurator.write(new_configuration(architecture, run), new.path)
                found = None
            put_in_place(new.path, run)
    finally:
        shutil.rmtree(new.path, ignore_errors=True)
    if found is None:
        print(f"{source} -> {run}: {architecture.name}, without weights, since there are none beside it")
        print(f"training begins with drawn ones: python train.py {run}/config.py --dataset=NAME")
        return
    print(f"{source} -> {run}: {found.architecture.name}, {found.parameters:,} parameters")
    say(found)
    print(f"training begins from these weights: python train.py {run}/config.py --dataset=NAME --init_from=resume")


def import_checkpoint(file: Path, run: Path, config: str | None) -> None:
    """Make a run's folder whose one checkpoint is the file, aside and renamed."""
    tensors, state = read_file(file)
    configuration = configuration_of(state, run, config)
    progress, whole = Progress(**state["progress"]), "scaler" in state
    check_tensors(file, tensors, configuration, needs_optimizer=whole and progress.has_updated)
    if not whole:  # as of a run that was stopped before its first step
        state |= {"progress": dataclasses.asdict(Progress()), "scaler": {}}
    step = state["progress"]["step"]
    folder = RunFolder(aside(run.absolute()))
    try:
        with told(f"cannot write {run}"):
            content = folder.aside(step)
            content.mkdir(parents=True)
            with file.open("rb") as source, (content / "model.safetensors").open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 22)
            sync(content / "model.safetensors")
            check_content(content / "model.safetensors", state.pop("checksum"), file)
            files = {"model.safetensors": checksum(content / "model.safetensors")}
            put_tokenizer_back(state, state.pop(TOKENIZER), folder.path, file)
            if (template := state.pop(TEMPLATE)) is not None:
                (folder.path / CHAT_TEMPLATE).write_text(template, encoding="utf-8", newline="")
            folder.put_in_place(step, state | {"files": files})
            configurator.write(configuration, folder.path)
            put_in_place(folder.path, run)
    finally:
        shutil.rmtree(folder.path, ignore_errors=True)
    print(f"{file} -> {run}: {contents(tensors)} after {progress.step:,} steps")
    print(f"text: python sample.py {run}")
    command = f"python train.py {run}/config.py --init_from=resume"
    if whole:
        print(f"training goes on as if it had not stopped: {command}")
    else:
        print(
            "the file has weights only: training cannot go on where it stopped, but begins anew at step 0 from these "
            f"weights, with a new optimizer and schedule: {command}"
        )


def read_file(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What an exported file says that it holds: tensors on the meta device, and the state with the `checksum`."""
    try:
        with safe_open(file, "pt") as content:
            metadata, names = content.metadata() or {}, content.keys()
            if foreign := sorted({"progress", "config", "data", "checksum"} - metadata.keys()):
                raise UserError(
                    f"{file} has no {foreign[0]!r} in its metadata: checkpoint.py did not write it; of a Hugging Face "
                    "model name the folder"
                )
            slices = {name: content.get_slice(name) for name in names}  # nothing is read yet
            tensors = {
                name: torch.empty(part.get_shape(), dtype=TYPES[part.get_dtype()], device="meta")
                for name, part in slices.items()
            }
        parts = {key: json.loads(metadata[key]) for key in ("progress", "config", "data", "scaler") if key in metadata}
        check_state({"scaler": {}, "files": {}, **parts})
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise UserError(f"cannot read {file} as safetensors: {reason}") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{file} is damaged: {error}") from None
    beside = {name: metadata.get(name) for name in (TOKENIZER, TEMPLATE)}
    return tensors, {**parts, "checksum": metadata["checksum"], **beside}


def configuration_of(state: dict[str, Any], run: Path, config: str | None) -> Configuration:
    """The configuration that the file was trained with, for the new folder. A config file that has components of its
    own is executed if it is named, and not otherwise."""
    code = configurator.load([config]).carried_code if config is not None else ""
    try:
        saved = saved_configuration(state)
    except UserError as error:
        raise UserError(f"{error}; if the run has components of its own: --config with its config.py") from None
    prediction_of(saved.run)  # whose law may be none
    keys = dataclasses.replace(saved.run, out_dir=str(run))
    return dataclasses.replace(saved, run=keys, config_file=Path("config.py"), carried_code=code)


def check_tensors(file: Path, tensors: dict[str, Tensor], configuration: Configuration, needs_optimizer: bool) -> None:
    """Raises UserError unless they are the model's, with its optimizer's if that is needed."""
    model = build_model(configuration.model, "meta").state_dict()
    for name, expected in model.items():
        if name not in tensors:
            raise UserError(f"{file} has no tensor {name}: it is not of the model that its config describes")
        if (tensors[name].shape, tensors[name].dtype) != (expected.shape, expected.dtype):
            raise UserError(
                f"{file}: {name} is {list(tensors[name].shape)} of {tensors[name].dtype}, the model that its config "
                f"describes has {list(expected.shape)} of {expected.dtype}"
            )
    rest = tensors.keys() - model.keys()
    if unknown := sorted(name for name in rest if not name.startswith(OPTIMIZER)):
        raise UserError(f"{file}: the model that its config describes has no tensor {unknown[0]}")
    if needs_optimizer and not rest:
        raise UserError(f"{file} has no optimizer state, although it is not of weights only: export it anew")


def check_content(copy: Path, expected: str, file: Path) -> None:
    with copy.open("rb") as content:
        (header,) = struct.unpack("<Q", content.read(8))
    found = checksum(copy, start=8 + header)
    if found != expected:
        raise UserError(f"{file} is damaged: the checksum of its tensors is {found}, not {expected}")


def put_tokenizer_back(state: dict[str, Any], packed: str | None, folder: Path, file: Path) -> None:
    """The tokenizer's file into the run's folder, with its hash checked."""
    if packed is None:
        return
    entry = state["data"].get("tokenizer", {})
    try:
        content = zlib.decompress(base64.b64decode(packed))
        (folder / FILES[entry["kind"]]).write_bytes(content)
    except (ValueError, zlib.error, KeyError, TypeError):
        raise UserError(f"{file} is damaged: its tokenizer cannot be read") from None
    content_of(entry, folder)


def put_in_place(new: Path, run: Path) -> None:
    """Rename a folder; a run that is there is replaced, unless it is alive."""
    if not run.is_dir() or not any(run.iterdir()):
        new.rename(run)
        return
    if not (RunFolder(run).log.exists() or RunFolder(run).checkpoints()):
        raise UserError(f"{run} is not the folder of a run: choose another")
    with RunFolder(run).hold():
        old = run.rename(new.with_name(f"{new.name}.old"))
        new.rename(run)
        shutil.rmtree(old)


# ---------------------------------------------------------------------------------------------------------------------
# Few bits


def quantize(arguments: argparse.Namespace) -> None:
    """Make a run's folder whose one checkpoint has the weights in few bits, and say what that cost and gained."""
    from evaluation.held_out import READ, text_of, validation_text
    from evaluation.quantized import state_of, table_of_losses, table_of_states
    from evaluation.subject import find_subject
    from runs.quantized import training_windows, write_quantized

    method, folder = arguments.method, arguments.folder
    if method != "int4" and arguments.windows is not None:
        raise UserError("--windows is what int4 is fitted to: drop it")
    code = configurator.load([arguments.config]).carried_code if arguments.config is not None else ""
    checkpoint, which = existing_run(arguments.run).find(arguments.checkpoint)
    with told(f"cannot write {folder}"):
        check_is_free(folder)
        check_is_outside(folder, checkpoint)
        check_can_be_made(folder)
    subject = find_subject(checkpoint, None, torch.device("cpu"), None)
    assert subject.run is not None
    saved = dataclasses.replace(subject.run.configuration, carried_code=code)
    if (found := saved.run.quantize_base or method_of(subject.model.state_dict())) is not None:
        raise UserError(f"{checkpoint} has its matrices in {found} already: quantize the run that it was made of")
    count = (WINDOWS if arguments.windows is None else arguments.windows) if method == "int4" else 0
    windows = training_windows(saved, count)
    named = arguments.text
    text = validation_text(subject.run) if named is None else text_of(named, subject.tokenizer)
    print(f"{checkpoint} ({which}), {saved.model.name}; text: {text.name}, {text.described}")
    size_there = sum(tensor.nbytes for tensor in subject.model.state_dict().values())
    states = [state_of(subject, text, READ if named is None else None)]
    every = quantize_model(subject.model, method, windows)
    losses = list(tqdm(every, desc=method, disable=None, leave=False, unit=" matrices"))
    fitted = f", fitted to {count:,} windows of the training data" if windows else ""
    print("\n".join([f"{method}{fitted}", *table_of_losses(losses)]))
    states.append(state_of(subject, text, READ if named is None else None))
    new = RunFolder(aside(folder.absolute()))
    try:
        with told(f"cannot write {folder}"):
            size_here = write_quantized(subject.model, checkpoint, saved, new, folder)
            put_in_place(new.path, folder)
    finally:
        shutil.rmtree(new.path, ignore_errors=True)
    print("\n".join(["", *table_of_states(states[0], states[1], (size_there, size_here))]))
    print(f"{folder}: python sample.py {folder}, python evaluate.py {folder}")


# ---------------------------------------------------------------------------------------------------------------------
# What both say


def contents(tensors: dict[str, Tensor]) -> str:
    parameters = sum(math.prod(tensor.shape) for name, tensor in tensors.items() if not name.startswith(OPTIMIZER))
    optimizer = any(name.startswith(OPTIMIZER) for name in tensors)
    what = "model and optimizer" if optimizer else "weights only"
    return f"{what}, {parameters:,} parameters"


@contextlib.contextmanager
def told(failure: str) -> Iterator[None]:
    """What the system refuses becomes one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{failure}: {error.strerror}") from None


if __name__ == "__main__":
    main()
