"""The one list of components: what each is, its spec, and, where a model is built, what computes it, its module.

A component has a kind, which is the configuration key that chooses it (`activation`), or `mixer`, and a name (`gelu`).
Its room is a folder with `spec.py`, without PyTorch, and `module.py`; a config file may register both itself. Specs are
imported when `components` is, modules when the first one is asked for.
"""

import contextlib
import dataclasses
import functools
import importlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from common.errors import UserError, did_you_mean
from common.files import real
from common.keys import Key, keys_of

BUILT_IN = Path(__file__).parent
OWN = "own_components"  # the package that the user's folders are below
SPECS: dict[str, dict[str, Any]] = {}
MODULES: dict[str, dict[str, Any]] = {}
PRESETS: dict[str, dict[str, Any]] = {}
PRESET_SOURCES: dict[str, str] = {}
REFUSED: dict[str, str] = {}  # names of networks that are neither presets nor read, and why
OWN_PRESETS: dict[str, Path] = {}  # those that a folder of the user's registered, and the folder
CHOICES: list[Callable[..., "Choice"]] = []
_KEYS: dict[str, Key] = {}
_ROOMS: dict[str, bool] = {}  # the package of every room, and whether its module is imported
_loading: Path | None = None  # the user's folder whose specs are being imported


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a run computes with where a key leaves that to the machine: the key and its value, and in words, None where
    no layer asks; and how the words are headed, and called in the log."""

    key: str
    value: Any
    words: str | None
    heading: str
    log_field: str


_Spec = TypeVar("_Spec", bound=type)


def register_spec(spec_class: _Spec) -> _Spec:
    """Decorate the spec of one component, or, where it has `names`, of several that differ by their name only.

    Raises UserError for a name or a letter that exists, and for a key that others mean something else by.
    """
    kind, names = spec_class.kind, spec_class.names or (spec_class.name,)  # type: ignore[attr-defined]
    known = SPECS.setdefault(kind, {})
    for name in names:
        if name in known:
            raise UserError(f"{kind} {name!r} is registered already: choose another name")
    if (letter := getattr(spec_class, "letter", None)) is not None:
        for other in known.values():
            if other.letter == letter:
                raise UserError(f"{kind} {names[0]!r}: the letter {letter!r} is {other.name}'s: choose another")
    for key in keys_of(spec_class).values():
        if _KEYS.setdefault(key.name, key) != key:
            raise UserError(f"{kind} {names[0]!r}: the key {key.name!r} is another component's: choose another name")
    for name in names:
        known[name] = spec_class(name)
    return spec_class


def register_module(kind: str, *names: str) -> Any:
    """Decorate what computes the components of these names. Raises UserError for one that has no spec, which would be
    counted nowhere, and for one that has a module."""

    def store(module: Any) -> Any:
        for name in names:
            if name not in SPECS.get(kind, {}):
                raise UserError(
                    f"{kind} {name!r} has no spec, so that nothing would count it: register one first "
                    "(components.registry.register_spec)"
                )
            if name in MODULES.setdefault(kind, {}):
                raise UserError(f"{kind} {name!r} is registered already: choose another name")
            MODULES[kind][name] = module
        return module

    return store


def register_preset(name: str, values: Mapping[str, Any], source: str = "") -> None:
    """A value of `arch_preset`, what it says beyond the defaults, and where that comes from, for people. Raises
    UserError for a name that exists."""
    if name in PRESETS:
        raise UserError(f"arch_preset {name!r} exists already: choose another name")
    PRESETS[name], PRESET_SOURCES[name] = dict(values), source
    if _loading is not None:
        OWN_PRESETS[name] = _loading


def check_not_refused(what: str, name: Any) -> None:
    """Raises UserError, with the reason, for the name of a network that is known and cannot be had: `what` is called
    so."""
    if isinstance(name, str) and name in REFUSED:
        raise UserError(f"{what}={name!r} cannot be represented: {REFUSED[name]}")


def register_choice(choose: Callable[..., Choice]) -> Callable[..., Choice]:
    """Decorate, in a module, a function (config, device, dtype) -> Choice. It raises UserError for what cannot run."""
    CHOICES.append(choose)
    return choose


def choices(config: Any, device: Any, dtype: str) -> tuple[Choice, ...]:
    """What is decided for a run's model on its device."""
    _import_modules()
    return tuple(choose(config, device, dtype) for choose in CHOICES)


def spec(kind: str, name: str) -> Any:
    """The spec of a component. Raises UserError for an unknown name."""
    known = SPECS.get(kind, {})
    if name not in known:
        raise UserError(f"{kind}={name!r} is none of: {', '.join(known)}{did_you_mean(name, known)}")
    return known[name]


def specs(kind: str) -> dict[str, Any]:
    """All specs of a kind, by name."""
    return SPECS[kind]


def by_letter(kind: str) -> dict[str, Any]:
    """The specs of a kind that have a letter, by it, those of one part of a model together."""
    lettered = (found for found in SPECS[kind].values() if found.letter is not None)
    return {found.letter: found for found in sorted(lettered, key=lambda found: (found.part, found.letter))}


def default_letter() -> str:
    """The letter of the mixer that every layer has unless a key says otherwise."""
    return next(letter for letter, found in by_letter("mixer").items() if found.is_default)


def module(kind: str, name: str) -> Any:
    """What computes a component. Raises UserError for an unknown name, and for one that can only be counted."""
    spec(kind, name)
    _import_modules()
    if name not in MODULES.get(kind, {}):
        raise UserError(f"{kind}={name!r} can be counted, but no module computes it yet")
    return MODULES[kind][name]


def has_module(kind: str, name: str) -> bool:
    """Whether what a component is made of can be built, and not counted only. Imports nothing."""
    if name in MODULES.get(kind, {}):
        return True
    return _has_module_beside(sys.modules[type(spec(kind, name)).__module__].__file__)


@functools.cache
def _has_module_beside(file: str | None) -> bool:
    """Kept, because a search asks of every component, and the disk is slow to answer."""
    return file is not None and Path(file).name == "spec.py" and Path(file).with_name("module.py").exists()


def component_keys() -> dict[str, Key]:
    """The keys that components have of their own, by name."""
    return dict(_KEYS)


# ---------------------------------------------------------------------------------------------------------------------
# Rooms


def load_rooms(folder: Path, package: str | None = None) -> None:
    """Import the specs of all rooms in a folder: of every `spec.py` in it or below it. Those of a folder that was
    loaded before are there already. Raises UserError for a folder without one."""
    global _loading
    rooms = sorted(path.parent for path in folder.rglob("spec.py") if path.parent != BUILT_IN)
    if package is None:
        if not rooms:
            raise UserError(f"components={str(folder)!r} has no spec.py, nor has a folder below it")
        _loading = real(folder)
        package = _own_package(_loading)
    try:
        for path in rooms:
            room = ".".join((package, *path.relative_to(folder).parts))
            if room not in _ROOMS:
                _import(f"{room}.spec")
                _ROOMS[room] = not (path / "module.py").exists()
    finally:
        _loading = None


def _own_package(folder: Path) -> str:
    """The name of a package that is this folder of the user's, wherever it lies: its files may import one another."""
    name = f"{OWN}.{folder.name}"
    for package, path in ((OWN, []), (name, [str(folder)])):
        if package not in sys.modules:
            sys.modules[package] = types.ModuleType(package)
            sys.modules[package].__path__ = path
    if (loaded := list(sys.modules[name].__path__)) != [str(folder)]:
        raise UserError(f"components={str(folder)!r}: another folder of this name is loaded already, {loaded[0]}")
    return name


def _import_modules() -> None:
    for room, is_imported in list(_ROOMS.items()):
        if not is_imported:
            _ROOMS[room] = True
            _import(f"{room}.module")


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:
        if isinstance(error, UserError) or not name.startswith(OWN):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".splitlines())
        raise UserError(f"{name.replace('.', '/')}.py: {reason}") from None


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """What is registered inside is taken back afterwards: for tests that register components."""
    before = {kind: set(names) for kind, names in SPECS.items()}
    flat: tuple[dict[str, Any], ...] = (PRESETS, PRESET_SOURCES, OWN_PRESETS, _KEYS, _ROOMS)
    names_before = [set(table) for table in flat]
    try:
        yield
    finally:
        for table in (SPECS, MODULES):
            for kind, names in table.items():
                for name in set(names) - before.get(kind, set()):
                    del names[name]
        for entries, names_kept in zip(flat, names_before, strict=True):
            for name in set(entries) - names_kept:
                del entries[name]
        for name in [name for name in sys.modules if name.partition(".")[0] == OWN]:
            del sys.modules[name]
