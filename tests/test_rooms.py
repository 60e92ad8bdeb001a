"""The house: every component is held to its spec, imports go down, and no mixer is named outside its room."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from common.keys import keys_of
from components import registry
from components.spec import MicroBatch, Mixer
from flops_parameter_counting.costs.model_cost import model_cost, named_weights
from model_builder import LanguageModel
from model_components import registered
from model_config import ModelArchitectureConfig, resolve_architecture

# ---------------------------------------------------------------------------------------------------------------------
# What specs state of parameters is what the modules have (FLOPs: test_costs; kept bytes: test_memory; decoding:
# test_decoding; ranks: test_parallel and test_rank_costs)

LETTERS = [letter for letter, spec in registry.by_letter("mixer").items() if registry.has_module("mixer", spec.name)]
TINY = {"n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 53, "attention_window": 5, "mamba_head_dim": 8,
        "attention_backend": "manual"}  # fmt: skip
TINY |= {"linear_value_head_dim": 12, "linear_chunk_size": 8}
TINY |= {"kv_lora_rank": 10, "qk_nope_head_dim": 7, "qk_rope_head_dim": 6, "v_head_dim": 5}


@st.composite
def architectures(draw) -> ModelArchitectureConfig:
    """Any mixture of all components that can be built, in layers with values of their own."""
    built = registered()
    pattern = "".join(draw(st.lists(st.sampled_from(LETTERS), min_size=1, max_size=4)))
    keys = {
        "arch_preset": "custom",
        "layer_pattern": pattern,
        "n_layer": len(pattern),
        "ffn_pattern": draw(st.text("F-", min_size=len(pattern), max_size=len(pattern))),
        "position_encoding": draw(st.sampled_from(built["position_encoding"])) if set(pattern) & set("AC") else "none",
        "normalization": draw(st.sampled_from(built["normalization"])),
        "norm_position": draw(st.sampled_from(["pre", "post", "sandwich", "inside"])),
        "ffn_type": draw(st.sampled_from(built["ffn_type"])),
        "bias": draw(st.booleans()),
        "weight_tying": draw(st.booleans()),
    }
    own = {
        "num_key_value_heads": 2,
        "qk_norm": draw(st.sampled_from([True, "width"])),
        "attention_bias": "qkv",
        "head_dim": 6,
        "attention_sinks": True,
        "attention_output_gate": draw(st.sampled_from(["head", "element"])),
        "value_residual": True,
        "q_lora_rank": 9,
    }
    own |= {"linear_num_value_heads": 4, "linear_num_key_heads": 1, "linear_key_head_dim": 6}
    own |= {"linear_conv_kernel_dim": 3, "short_conv_bias": True}
    own |= {"mamba_conv_bias": False, "mamba_bias": True, "mamba_dt_rank": 3, "mamba_n_groups": 2}
    chosen = {name: own[name] for name in draw(st.sets(st.sampled_from(list(own))))}
    if draw(st.booleans()):
        gated = {"attention_output_gate": "head"} if "value_residual" in chosen else {"n_head": 8}
        of_others = {"C": {"n_head": 8}, "D": {"linear_num_value_heads": 2}, "K": {"linear_num_value_heads": 3}}
        of_others["V"] = {"short_conv_kernel_dim": 2}
        own_values = gated if pattern[0] in "AWU" else of_others.get(pattern[0], {"mamba_expand": 3})
        chosen["layer_values"] = {0: own_values}
    fitting = {name: value for name, value in {**TINY, **keys, **chosen}.items() if _is_of(name, pattern, keys)}
    return resolve_architecture(fitting)


def _is_of(name: str, pattern: str, keys: dict) -> bool:
    """Whether a layer has the key, which would be refused otherwise."""
    letters = registry.by_letter("mixer")
    has = {key for letter in pattern for key in keys_of(type(letters[letter]))}
    if name == "ffn_type":
        return "F" in keys["ffn_pattern"]
    return name not in registry.component_keys() or name in has


@given(architectures())
def test_every_parameter_is_stated_by_a_spec_under_its_name_and_shape(config):
    """Weight by weight; and the sum by part is what is counted."""
    with torch.device("meta"):
        model = LanguageModel(config)
    built = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    stated = {
        name: tuple(weights.shape)
        for found in named_weights(config)
        for weights in found.weights
        for name in weights.names
    }
    assert stated == built
    assert model_cost(config).n_params == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["mixer", "ffn_type"])
def test_what_writes_into_the_residual_stream_starts_smaller(kind):
    """One matrix of every half of a block, and with it every expert's."""
    config = resolve_architecture({**TINY, "layer_pattern": "AWMSCDK", "n_layer": 7})
    for spec in registry.specs(kind).values():
        writing = [weights for weights in spec.all_weights(config.replace(d_ff=8, activation="silu")) if weights.writes]
        assert writing and all(weights.multiplies for weights in writing), spec.name


def test_what_is_not_stated_is_an_error_and_no_zero():
    class Silent(Mixer):
        name = "silent"

    batch = MicroBatch(resolve_architecture({}), 2, 4)
    with pytest.raises(UserError, match="the memory of mixer='silent' is not known"):
        Silent().kept(batch)
    assert not Silent().is_shared(batch.config)


# ---------------------------------------------------------------------------------------------------------------------
# Imports

# Lowest first: a module imports nothing from a line below its own.
LEVELS = (
    ("common.*",),
    ("components", "components.registry", "components.spec", "components.*.spec", "components.ffns.base",
     "components.mixers.state_space", "components.mixers.delta", "components.mixers.convolution", "training",
     "training.optimizers.*"),
    ("model_config",),
    ("runs.config", "runs.deepspeed", "parallel.ranks"),
    ("configurator", "runs.logs", "runs.older_logs", "data.best_fit", "data.dataset", "data.long_work",
     "data.mixture", "data.packing", "data.tokenizers", "data.tokenizers.*", "data.writer"),
    ("runs.evaluations", "runs.folder"),
    ("flops_parameter_counting.costs.*",),
    ("flops_parameter_counting.laws.*",),
    ("data.facts", "interop.configurations", "interop.keys.*", "interop.known_keys", "interop.model_files",
     "interop.samples", "interop.sources"),
    ("flops_parameter_counting.planner.*",),
    ("components.*",),
    ("model_components",),
    ("model_builder",),
    ("interop.*",),
    ("data.*", "parallel.*", "training.*", "runs.*", "inference.*", "training_logger"),
    ("evaluation.*", "finetuning.*"),
    ("comparison.*", "ladders.*"),
    ("*",),  # the commands
)  # fmt: skip
WITHOUT_TORCH = LEVELS[:10]


def modules() -> dict[str, Path]:
    """Every module of the repository but tests, by its dotted name."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] not in ("tests", "config", "docs", "out", "findings") and not any(p.startswith(".") for p in parts):
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


@functools.cache
def imports() -> dict[str, dict[str, bool]]:
    """For each module those of the repository that it imports, and whether at its top or within a function."""
    known = modules()
    return {name: _imports_of(path, known) for name, path in known.items()}


def _imports_of(path: Path, known: dict[str, Path]) -> dict[str, bool]:
    tree = ast.parse(path.read_text())
    at_top, found = set(ast.iter_child_nodes(tree)), {}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module or ""]
        for name in names:
            if name in known and known[name] != path:
                found[name] = found.get(name, False) or node in at_top
    return found


def level(module: str) -> int:
    def matches(pattern: str) -> bool:
        first, star, last = pattern.partition("*")
        return (
            f"{module}." == first
            or module == pattern
            or bool(star and module.startswith(first) and module.endswith(last))
        )

    return next(number for number, patterns in enumerate(LEVELS) if any(map(matches, patterns)))


def test_imports_go_down():
    upward = [
        f"{module} -> {imported}"
        for module, found in imports().items()
        for imported in found
        if level(imported) > level(module)
    ]
    assert upward == []


def cycles() -> list[str]:
    """The modules that import themselves by way of others, in functions too."""
    reached: dict[str, set[str]] = {}

    def reach(module: str) -> set[str]:
        found, todo = set(), [module]
        while todo:
            for imported in imports()[todo.pop()]:
                if imported not in found:
                    found.add(imported)
                    todo.append(imported)
        return found

    reached = {module: reach(module) for module in imports()}
    return sorted(module for module, found in reached.items() if module in found)


def test_no_module_imports_itself_by_way_of_others():
    assert cycles() == []


def test_the_lower_half_starts_without_torch():
    lower = [name for name in modules() if level(name) < len(WITHOUT_TORCH) and not name.startswith("data.")]
    program = (
        f"import importlib, sys\nfor name in {lower!r}: importlib.import_module(name)\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_registry_and_its_rooms_have_no_late_imports():
    late = {module for module, found in imports().items() if not all(found.values())}
    assert not {module for module in late if module.startswith(("components", "model_"))}


# ---------------------------------------------------------------------------------------------------------------------
# One fact, one place


def lines_that_edit_the_path() -> dict[str, int]:
    counts = {name: path.read_text().count("sys.path.insert(") for name, path in modules().items()}
    tests = {path.stem: path.read_text().count("sys.path.insert(0, ") for path in (ROOT / "tests").rglob("test_*.py")}
    return {name: count for name, count in (counts | tests).items() if count}


COMMANDS = ("flops_parameter_counting.", "benchmarks.", "ladders.measure", "data.")


def test_only_commands_that_are_called_by_their_path_edit_it():
    found = lines_that_edit_the_path()
    own = {"test_extending", "test_rooms"}  # whose programs are given the repository's folder, and this count
    assert all(name.startswith(COMMANDS) for name in found.keys() - own), found
    assert sum(count for name, count in found.items() if name not in own) == 38


def test_the_root_holds_the_commands_and_five_modules():
    assert {path.stem for path in ROOT.glob("*.py")} == {
        "train", "sample", "evaluate", "finetune", "checkpoint", "ladder", "compare_architectures",
        "configurator", "model_config", "model_components", "model_builder", "training_logger",
    }  # fmt: skip


def places_that_name_a_mixer(root: Path = ROOT) -> list[str]:
    """Strings that are a mixer's name, or a letter beside one, outside components/. Of the rest: tests, benchmarks and
    documents are about some; interop/ says how Hugging Face's models are ours, validate.py has published ones; laws
    have constants A, B and E; D is tokens and a width, and K any number, elsewhere; and `ffn_after` has a published
    value that is a mixer's name."""
    names, letters = (
        {"attention", "sliding_attention", "unplaced_attention", "latent_attention", "mamba1", "mamba2"}
        | {"gated_delta", "kimi_delta", "short_convolution"},
        set("AWUMSCV"),
    )
    rooms = ("components", "tests", "benchmarks", "interop", "config", "docs", "out", "findings")
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        exempt = parts[0] in rooms or "laws" in parts or parts[-1] == "validate.py"
        if exempt or any(part.startswith(".") for part in parts):
            continue
        text = path.read_text()
        looked_for = names | (letters if re.search(r"model_config|components", text) else set())
        tree = ast.parse(text)
        choices = [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "choices"]
        published = {id(inner) for node in choices for inner in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in looked_for and id(node) not in published:
                found.append(f"{path.relative_to(root)}:{node.lineno}: {node.value}")
    return found


def test_no_mixer_is_named_outside_its_room():
    assert places_that_name_a_mixer() == []


def test_the_page_on_extending_states_these_counts():
    page = (ROOT / "docs/extending.md").read_text()
    rows = {row.split("|")[1].strip(): row.split("|")[3].strip() for row in page.splitlines() if row.startswith("| ")}
    files = re.findall(r"`mine/gated_linear/(?:spec|module)\.py`:\n\n```python\n(.*?)```", page, re.DOTALL)
    assert rows["files touched for the mixer"] == f"1 folder of {len(files)}"
    spec, module = (len(file.splitlines()) for file in files)
    assert rows["lines of it"] == f"{spec + module}: {spec} of spec, {module} of module"
    assert rows["cycles of imports"] == str(len(cycles()))
    edited = sum(count for name, count in lines_that_edit_the_path().items() if not name.startswith("test_"))
    assert rows["lines that edit `sys.path`"].startswith(f"{edited},")
    assert rows["modules at the root"] == str(len(list(ROOT.glob("*.py"))))
    assert rows["places that name a mixer outside its room"] == str(len(places_that_name_a_mixer()))
