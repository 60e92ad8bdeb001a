"""From a config file and --key=value arguments to one checked configuration, and back to files that reproduce it.

`load` reads, `write` saves, `from_dict` reads back what was saved. `python configurator.py` prints
docs/configuration.md. The keys themselves are declared in model_config.py, in the rooms of components/, and in
runs/config.py.
"""

import ast
import contextlib
import dataclasses
import json
import re
import sys
import textwrap
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError, did_you_mean, exit_cleanly
from common.files import open_text, real, replace_file
from common.keys import Key, by_heading, check_value, keys_of, parse_value
from components.registry import load_rooms
from model_config import ModelArchitectureConfig, architecture_keys, preset_values, presets, resolve_architecture
from parallel.ranks import ranks_from_environment
from runs.config import RunConfig, check_run, in_folder
from runs.deepspeed import keys_from_deepspeed


def run_keys() -> dict[str, Key]:
    """The keys of a run, besides its model's."""
    return keys_of(RunConfig)


def configuration_keys() -> dict[str, Key]:
    """Every key, those of registered components among them."""
    return {**architecture_keys(), **run_keys()}


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One run: its model and everything else about it. Two are equal when these are, wherever they were read."""

    model: ModelArchitectureConfig
    run: RunConfig
    config_file: Path | None = dataclasses.field(default=None, compare=False)
    # The keys of the model as the user gave them, in a config file or on the command line.
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    # What `write` keeps of the config file besides its keys: imports, functions, a component of the user's own.
    carried_code: str = dataclasses.field(default="", compare=False, repr=False)
    # The functions that the config file defines or imports, by name.
    functions: Mapping[str, Callable[..., Any]] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The config file's name without .py; without a file, the architecture's name."""
        return self.config_file.stem if self.config_file else self.model.name

    @property
    def run_dir(self) -> Path:
        return Path(self.run.out_dir) if self.run.out_dir is not None else Path("out") / self.name


def load(argv: Sequence[str]) -> Configuration:
    """The configuration from a command line without the program's name, e.g. `["config/a.py", "--n_layer=6"]`.

    The command line wins over the config file, the file over the preset, the preset over the defaults.
    The config.py in a run's folder is of the run that lies there, wherever the folder was when it was written.
    Raises UserError, naming the file and line or the command line, for anything that cannot be honoured.
    `--help` (or `-h`) prints every key, those of the config file's own components too, and raises SystemExit(0).
    """
    wants_help = "--help" in argv or "-h" in argv
    path, arguments = _split_command_line([token for token in argv if token not in ("--help", "-h")])
    if (folder := dict(arguments).get("components")) is not None:
        load_rooms(Path(folder))
    file = _run_config_file(path) if path else _ConfigFile()
    if wants_help:
        print(help_text(), end="")
        raise SystemExit(0)
    command_line = _parse_arguments(arguments)
    given = file.values | _own_folder(path, file.values) | command_line
    with _naming_origins(file.origins | dict.fromkeys(command_line, "command line")):
        given |= _of_deepspeed(given) | command_line
        given.pop("deepspeed_config", None)
        known = run_keys()
        of_model = {k: v for k, v in given.items() if k not in known}
        model = resolve_architecture(of_model)
        run = RunConfig(**{k: check_value(known[k], v) for k, v in given.items() if k in known})
        check_run(run)
    if run.components is not None:  # wherever a saved configuration is read
        run = dataclasses.replace(run, components=str(real(Path(run.components))))
    return Configuration(model, run, path, of_model, file.carried_code, file.functions)


def _of_deepspeed(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that a DeepSpeed configuration says, for the ranks that a dry run reports on or that were started."""
    known = run_keys()
    own = {name: check_value(known[name], value) for name, value in given.items() if name in known}
    if (path := own.get("deepspeed_config")) is None:
        return {}
    return keys_from_deepspeed(Path(path), own.get("world_size") or ranks_from_environment().size, own)


def _own_folder(path: Path | None, values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that say where a run is, of a config file that it has written into its folder; none of any other."""
    if path is None or path.name != "config.py" or not (path.parent / "log.jsonl").is_file():
        return {}
    return in_folder(values, path.parent if path.parent.name else real(path.parent))


def with_run_dir(configuration: Configuration) -> Configuration:
    """The configuration with the folder where the run writes, in words."""
    run = dataclasses.replace(configuration.run, out_dir=str(configuration.run_dir))
    return dataclasses.replace(configuration, run=run)


def with_vocabulary(configuration: Configuration, dataset_vocab_size: int) -> Configuration:
    """The configuration with the dataset's vocabulary where `vocab_size` was left None.

    The legacy preset pads GPT-2's 50257 to 50304, a multiple of 64, as nanoGPT does.
    """
    model = configuration.model
    if model.vocab_size is not None:
        return configuration
    padded = model.arch_preset == "legacy" and dataset_vocab_size == 50257
    vocab_size = 50304 if padded else dataset_vocab_size
    return dataclasses.replace(configuration, model=model.replace(vocab_size=vocab_size))


@contextlib.contextmanager
def _naming_origins(origins: Mapping[str, str]) -> Iterator[None]:
    """Puts in front of a UserError where the keys that it names were given."""
    try:
        yield
    except UserError as error:
        message = " ".join(str(error).splitlines())
        places = ", ".join(dict.fromkeys(origins[word] for word in re.findall(r"\w+", message) if word in origins))
        raise UserError(f"{places}: {message}" if places else message) from None


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def _split_command_line(argv: Sequence[str]) -> tuple[Path | None, list[tuple[str, str | None]]]:
    """The config file, if one is named, and the keys given as `--key=value`, `--key value` or `--flag` (None).

    A key may be one that the config file's own components declare, which are not known yet.
    """
    path: Path | None = None
    arguments: list[tuple[str, str | None]] = []
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        if not token.startswith("-"):
            _check_is_config_file(token, path)
            path = Path(token)
            continue
        name, equals, text = token.removeprefix("--").partition("=")
        if not token.startswith("--") or not name:
            raise UserError(f"command line: {token!r} is no argument; a key is given as --key=value")
        arguments.append((name, text if equals else _separate_value(name, tokens)))
    return path, arguments


def _parse_arguments(arguments: Sequence[tuple[str, str | None]]) -> dict[str, Any]:
    """The values of the keys of a command line."""
    values: dict[str, Any] = {}
    known = configuration_keys()
    for name, text in arguments:
        if name not in known:
            raise UserError(f"command line: unknown key {name!r}{_nearest_key(name)}")
        if name in values:
            raise UserError(f"command line: --{name} is given twice")
        if text is None and bool not in known[name].types:
            raise UserError(f"command line: --{name} needs a value, as in --{name}=...")
        values[name] = True if text is None else parse_value(known[name], text)
    return values


def _check_is_config_file(token: str, already: Path | None) -> None:
    if not token.endswith(".py"):
        is_key = token.partition("=")[0] in configuration_keys()
        hint = f"; a key is given as --{token}" if is_key and "=" in token else ""
        raise UserError(f"command line: {token!r} is not a config file (a Python file, *.py){hint}")
    if already is not None:
        raise UserError(f"command line: two config files, {already} and {token}; a run has one")


def _separate_value(name: str, tokens: list[str]) -> str | None:
    """The text after a `--key` without `=`, taken off the tokens; None of a flag that stands alone, and of a key that
    is not known yet before the config file."""
    following, key = tokens[0] if tokens else None, configuration_keys().get(name)
    if following is None or following.startswith("--"):
        return None
    if key is not None and bool in key.types:
        values = [str(choice) for choice in key.choices or ()] + ["True", "False", "true", "false"]
        return tokens.pop(0) if following in values else None
    return tokens.pop(0) if key is not None or not following.endswith(".py") else None


def _nearest_key(name: str) -> str:
    return did_you_mean(name.replace("-", "_"), configuration_keys()) or "; --help prints every key"


# ---------------------------------------------------------------------------------------------------------------------
# The config file

_NOT_VALUES = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclasses.dataclass(frozen=True)
class _ConfigFile:
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    origins: dict[str, str] = dataclasses.field(default_factory=dict)  # key -> file:line
    carried_code: str = ""
    functions: Mapping[str, Callable[..., Any]] = dataclasses.field(default_factory=dict)


def _run_config_file(path: Path) -> _ConfigFile:
    """Executes the file, as nanoGPT does, and takes its assignments as keys."""
    source = _read(path)
    try:
        tree = ast.parse(source, str(path))
    except (SyntaxError, ValueError) as error:  # ValueError: a null byte, before Python 3.12
        line = getattr(error, "lineno", None)
        raise UserError(f"{_place(path, line)}: {getattr(error, 'msg', error)}") from None
    _top_level_assignments(tree, path)
    bindings = _bindings(tree)
    values, origins = {}, {}
    defined = _execute(tree, path)
    if isinstance(folder := defined.get("components"), str):
        load_rooms(Path(folder))
    known = configuration_keys()
    for name, value in defined.items():
        binding = bindings.get(name, bindings.get("*"))
        if not _is_meant_as_key(name, value, binding, known):
            continue
        origin = _place(path, binding.lineno if binding else None)
        if name not in known:
            raise UserError(f"{origin}: unknown key {name!r}{_nearest_key(name)}; a helper's name starts with _")
        values[name], origins[name] = value, origin
    functions = {name: value for name, value in defined.items() if isinstance(value, types.FunctionType)}
    return _ConfigFile(values, origins, _carried_code(source, tree, known), functions)


def _is_meant_as_key(name: str, value: Any, binding: ast.AST | None, known: Mapping[str, Key]) -> bool:
    if name.startswith("_"):
        return False
    if binding is None or isinstance(binding, ast.Name):
        return name in known or not isinstance(value, _NOT_VALUES)
    # Imported or defined, such as `from math import pi`: only what another config file may have given.
    return name in known and not isinstance(value, _NOT_VALUES)


def _read(path: Path) -> str:
    try:
        with open_text(path) as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot read the config file: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: cannot read the config file: it is not UTF-8 text") from None


def _execute(tree: ast.Module, path: Path) -> dict[str, Any]:
    """The names that the file defines.

    The file runs as a module of its own that others can look up by name: torch.compile and dataclasses do so
    for the functions and classes that a config file registers.
    """
    module = types.ModuleType("config_file_" + re.sub(r"\W", "_", path.stem))
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        exec(compile(tree, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        lines = [
            line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == str(path)
        ]
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{_place(path, lines[-1] if lines else None)}: {' '.join(reason.splitlines())}") from None
    return dict(module.__dict__)


def _place(path: Path, line: int | None) -> str:
    return f"{path}:{line}" if line else str(path)


def _top_level_assignments(tree: ast.Module, path: Path) -> set[str]:
    """The names that the file assigns at its top level (not in an `if` or a loop) and does not delete again.

    Raises UserError for one that is assigned twice: the first value would be silently lost.
    """
    lines: dict[str, int] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Delete):
            for deleted in _names(statement, ast.Del):
                lines.pop(deleted, None)
        elif isinstance(statement, ast.Assign) or (isinstance(statement, ast.AnnAssign) and statement.value):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for name in (name for target in targets for name in _names(target, ast.Store)):
                if name in lines and not name.startswith("_"):
                    first, second = lines[name], statement.lineno
                    raise UserError(f"{path}:{second}: {name} is assigned twice, first in line {first}; keep one")
                lines[name] = statement.lineno
    return set(lines)


def _bindings(tree: ast.Module) -> dict[str, ast.Name | ast.alias | ast.stmt]:
    """The node that binds each name of the module last: an assignment's target, an import, a def or a class."""
    found: dict[str, ast.Name | ast.alias | ast.stmt] = {}
    for node in _module_level_nodes(tree):
        if isinstance(node, _DEFINITIONS):
            found[node.name] = node
        elif isinstance(node, ast.alias):
            found[(node.asname or node.name).partition(".")[0]] = node
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found[node.id] = node
    return found


def _module_level_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The node and those below it in the order of the source, without the bodies of functions and classes."""
    yield node
    if not isinstance(node, (*_DEFINITIONS, ast.Lambda)):
        for child in ast.iter_child_nodes(node):
            yield from _module_level_nodes(child)


def _names(node: ast.AST, context: type[ast.expr_context] = ast.expr_context) -> list[str]:
    return [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, context)]


# ---------------------------------------------------------------------------------------------------------------------
# What a reproducing file takes over


def _carried_code(source: str, tree: ast.Module, known: Mapping[str, Key]) -> str:
    """What the file does besides giving keys.

    Where that mentions keys, it is the file as it stands, up to the last such statement, so that they are there.
    """
    others = [statement for statement in tree.body if not _only_gives_keys(statement, known)]
    if any(name in known for statement in others for name in _names(statement)):
        lines = source.split("\n")[_first_line(tree.body[0]) - 1 : others[-1].end_lineno]
        return "\n".join(lines) + "\n"
    return "".join(f"{_source_of(source, statement)}\n" for statement in others)


def _only_gives_keys(statement: ast.stmt, known: Mapping[str, Key]) -> bool:
    """Whether a statement assigns or deletes keys and does nothing else.

    A call may do something else, such as registering a component.
    """
    calls = any(isinstance(node, ast.Call) for node in ast.walk(statement))
    rebinds = isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Delete) and not calls
    return rebinds and all(name in known for name in _names(statement, ast.Store) + _names(statement, ast.Del))


def _source_of(source: str, statement: ast.stmt) -> str:
    decorators = source.split("\n")[_first_line(statement) - 1 : statement.lineno - 1]
    return "\n".join([*decorators, ast.get_source_segment(source, statement) or ""])


def _first_line(statement: ast.stmt) -> int:
    """A decorated definition starts at its first decorator, not at `def`."""
    return min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])


# ---------------------------------------------------------------------------------------------------------------------
# Saving, and reading back what was saved


def as_dict(configuration: Configuration) -> dict[str, Any]:
    """Every key in force, flat, of the model and the run, ready for JSON."""
    return configuration.model.as_dict() | dataclasses.asdict(configuration.run)


def from_dict(values: Mapping[str, Any]) -> ModelArchitectureConfig:
    """The model of a saved configuration: of `as_dict` as it is, or of its architecture keys alone.

    The checks are those of a config file. A key that is absent (because it did not exist yet when the
    configuration was saved) takes its preset's value or its default. Raises UserError.
    """
    known, of_run = configuration_keys(), run_keys()
    for key in values:
        if key not in known:
            raise UserError(f"saved configuration: unknown key {key!r}{did_you_mean(key, known)}")
    return resolve_architecture({k: v for k, v in values.items() if k not in of_run})


def differences(old: ModelArchitectureConfig, new: ModelArchitectureConfig) -> list[str]:
    """`key: old -> new` for every key in which two models differ."""
    before, after = old.as_dict(), new.as_dict()
    return [f"{key}: {value!r} -> {after[key]!r}" for key, value in before.items() if value != after[key]]


def write(configuration: Configuration, folder: Path) -> None:
    """Writes `config.json` (`as_dict`) and `config.py`, which `load` reads to an equal model and run.

    Each is replaced whole, so that no reader meets half a file. Raises UserError if it cannot.
    """
    texts = {
        "config.json": json.dumps(as_dict(configuration), indent=2) + "\n",
        "config.py": _as_config_file(configuration),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            replace_file(folder / name, text.encode())
    except OSError as error:
        raise UserError(f"{folder}: cannot write the configuration: {error.strerror}") from None


def _as_config_file(configuration: Configuration) -> str:
    parts = [
        f"# Every key in force in {configuration.name}: a config file that reproduces the run.\n"
        "# What was derived, such as d_ff, stands here as a number.\n"
    ]
    if configuration.carried_code:
        parts.append(configuration.carried_code)
        tree = ast.parse(configuration.carried_code)
        assigned = [key for key in configuration_keys() if key in _top_level_assignments(tree, Path("config.py"))]
        if assigned:
            names = textwrap.fill(", ".join(assigned), 100, initial_indent="    ", subsequent_indent="    ")
            parts.append(f"# The keys as the file gave them stop here; below are those in force.\ndel (\n{names},\n)\n")
    values = as_dict(configuration)
    for heading, keys in by_heading(configuration_keys().values()).items():
        parts.append(f"# {heading}\n" + "".join(f"{key.name} = {values[key.name]!r}\n" for key in keys))
    return "\n".join(parts)


# ---------------------------------------------------------------------------------------------------------------------
# Help and documentation

_USAGE = """\
usage: python train.py [CONFIG.py] [--key=value | --key value | --flag] ...

The command line wins over the config file, the file over the preset (arch_preset), the preset over the defaults.
A config file is Python, which is executed: its assignments are keys.

  python train.py config/quickstart.py
  python train.py config/arch_team.py --n_layer=6 --num_key_value_heads=2 --dry_run
  python train.py --arch_preset=llama --dataset=shakespeare --learning_rate=3e-4 --rope_theta=5e5
"""


def help_text() -> str:
    """Every key with its default, meaning, and type or choices, as `--help` prints them."""
    known = configuration_keys().values()
    indent = 4 + max(len(f"--{key.name}={key.default}") for key in known)
    paragraphs = [_USAGE]
    for heading, keys in by_heading(known).items():
        lines = [heading]
        for key in keys:
            start = f"  --{key.name}={key.default}".ljust(indent)
            meaning = f"{key.help} [{key.type_and_bounds}]"
            lines.append(textwrap.fill(meaning, 110, initial_indent=start, subsequent_indent=" " * indent))
        paragraphs.append("\n".join(lines) + "\n")
    return "\n".join(paragraphs)


_DOCUMENTATION_START = """\
# Configuration

<!-- Generated from the dataclasses: python configurator.py > docs/configuration.md -->

A run is described by keys. `--key=value`, `--key value` or, for a flag, `--key` on the command line wins over the
config file, the file over the preset (`arch_preset`), the preset over the defaults below. A preset never swallows an
override.

A config file is a Python file of assignments, one per key, and may compute: `gradient_accumulation_steps = 5 * 8`.
The names of its own helpers start with an underscore; modules, functions, classes and other imported names are no
keys. nanoGPT's config files run as they are; for those with `init_from = 'gpt2'`
[hugging_face.md](hugging_face.md) says where the weights come from.

**A config file is a program, and naming it executes it**: to `train.py`, to `--model_config` and `--config`, also with
`--dry_run`. So does the `config.py` of a run's folder, and so do the modules of `components`. Of a stranger's run, read
them first; its `config.json`, its log and its checkpoints hold data alone and are read without executing anything.

A key that does not exist, one given twice, a value of the wrong type, one that is impossible, and a combination that
cannot work end the command with one line that says where the mistake stands. So does a run on a CPU whose memory
estimate is more than twice what the machine has, before anything is allocated; `--dry_run` plans any size.

The run's folder receives every key in force as `config.json` and as `config.py`, a config file that reproduces the
run, and continues it from its folder: `train.py out/a/config.py --init_from=auto` goes on with the run in `out/a`, also
where the folder has been moved or renamed. It carries over what the original file defined besides keys, but not other
files that it read or imported.

## Presets

What each value of `arch_preset` sets; an empty cell is the default of the key. With `legacy`, as in nanoGPT,
`bias=True` also gives the norms a bias (`layernorm`), and without a `vocab_size` GPT-2's 50257 tokens are padded to
50304. The preset's `ffn_expansion_ratio` and `ffn_multiple_of` give way to a `d_ff`, and they and its `activation` to
an `ffn_type` of the other kind (gated or not).

"""


def documentation() -> str:
    """docs/configuration.md: precedence, presets, and a table for each group of keys."""
    parts = [_DOCUMENTATION_START + _presets_table()]
    for heading, keys in by_heading(configuration_keys().values()).items():
        rows = [(f"`{key.name}`", key.type_and_bounds, f"`{key.default}`", key.help) for key in keys]
        parts.append(f"## {heading}\n\n" + _table(("Key", "Takes", "Default", "Meaning"), rows))
    return "\n".join(parts)


def _presets_table() -> str:
    values = {preset: preset_values(preset, {}) for preset in presets()}
    keys = [key for key in architecture_keys() if any(key in of_preset for of_preset in values.values())]
    rows = [(f"`{key}`", *(_short(of_preset.get(key, "")) for of_preset in values.values())) for key in keys]
    return _table(("Key", *(f"`{preset}`" for preset in values)), rows)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) and value < 1e4 else str(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in line) + " |\n" for line in lines
    )


@exit_cleanly
def main() -> None:
    print(documentation(), end="")


if __name__ == "__main__":
    main()
