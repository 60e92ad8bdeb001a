"""docs/reference/components.md: what is generated, and that every component says its formula and its source."""

import argparse
import inspect
import re

import pytest
import torch
import transformers
from conftest import ROOT

from benchmarks import decoding
from components import reference, registry
from components.reference import KINDS, components_of_families, costs, documentation, entries, example, formula
from interop.configurations import FAMILIES
from interop.samples import small
from model_builder import LanguageModel
from model_components import registered

PAGE = ROOT / "docs/reference/components.md"
BUILT = [(kind, spec.name) for kind in KINDS for group in entries(kind) for spec in group]


def test_the_page_is_the_generated_one():
    command = "python -m components.reference > docs/reference/components.md"
    assert PAGE.read_text() == documentation(), f"regenerate: {command}"
    assert command in inspect.getdoc(reference) and command in (ROOT / "Makefile").read_text()


def test_the_page_has_every_component():
    assert {kind: {name for k, name in BUILT if k == kind} for kind in KINDS} == {
        kind: set(names) for kind, names in registered().items()
    }


@pytest.mark.parametrize(("kind", "name"), BUILT)
def test_a_component_says_its_shapes_its_formula_and_its_source(kind, name):
    text = formula(kind, registry.spec(kind, name))
    assert re.search(r"\(.*\) -> .*\(.*\)", text.splitlines()[0] + text.splitlines()[1]), "shapes"
    assert re.search(r"^    .*(=|softmax)", text, re.MULTILINE), "a formula, in an indented block"
    assert re.search(r"\b(19|20)\d\d\b", text), "a source and its year"


def test_a_preset_says_its_source():
    ours = {name for name in registry.PRESETS if name not in registry.OWN_PRESETS}
    assert all(registry.PRESET_SOURCES[name] for name in ours)


@pytest.mark.parametrize("name", [name for kind, name in BUILT if kind == "mixer"])
def test_the_parameters_of_the_example_are_the_modules(name):
    spec = registry.spec("mixer", name)
    with torch.device("meta"):
        model = LanguageModel(example("mixer", spec))
    assert costs("mixer", spec).parameters == sum(one.numel() for one in model.blocks[0].mixer.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_the_norms_and_the_activation_of_transformers_class(family):
    """Of which the class and its configuration say something in their own words."""
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    values = {key: value for key, value in small(family).items() if key != "model_type"}
    config = transformers.AutoConfig.for_model(family, **tokens, **values)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    having = {kind: {name for (k, name), who in components_of_families().items() if k == kind and family in who}
              for kind in KINDS}  # fmt: skip
    norms = [module for module in model.modules() if type(module).__name__.endswith("Norm")]
    assert all((getattr(norm, "bias", None) is not None) == ("layernorm" in having["normalization"]) for norm in norms)
    assert ("learned_absolute" in having["position_encoding"]) == hasattr(config, "n_positions")
    rotates = any("rotary" in type(module).__name__.lower() for module in model.modules())
    assert ("rope" in having["position_encoding"]) == rotates
    assert bool(having["activation"]) == bool(having["ffn_type"] - {"experts"})


# ---------------------------------------------------------------------------------------------------------------------
# The mixers side by side

MIXERS_PAGE = (ROOT / "docs/reference/mixers.md").read_text()


def test_every_mixer_stands_beside_the_others_with_the_diagram_of_its_module():
    for name, spec in registry.specs("mixer").items():
        if registry.has_module("mixer", name):
            assert re.search(rf"^### .*`{spec.letter}`", MIXERS_PAGE, re.MULTILINE), name
            text = inspect.getdoc(inspect.getmodule(registry.module("mixer", name)))
            diagram = re.findall(r"^    .+$", text.partition("\nShapes")[0], re.MULTILINE)
            assert "\n".join(diagram) in MIXERS_PAGE


def test_the_mixers_figures_are_what_the_benchmark_computes():
    """All but the times, which it measures."""
    (command,) = re.findall(r"^    python benchmarks/decoding.py (.*)$", MIXERS_PAGE, re.MULTILINE)
    options = argparse.Namespace(
        patterns=command.removeprefix("--patterns ").split(), n_embd=512, n_layer=8, vocab_size=8192,
        contexts=[1024 * 2**n for n in range(6)], tokens=16,
    )  # fmt: skip
    rows = re.findall(r"^\| `(\w+)` \| ([\d., |]+) \|$", MIXERS_PAGE, re.MULTILINE)
    tables = [dict(rows[start : start + len(options.patterns)]) for start in range(0, len(rows), len(options.patterns))]
    flops, caches, times = ({name: numbers(row) for name, row in table.items()} for table in tables)
    assert set(flops) == set(caches) == set(times) == set(options.patterns)
    counts = set()
    for pattern, config in decoding.of_patterns(options).items():
        counts.add(decoding.parameters(config))
        assert flops[pattern] == [round(decoding.mflops(config, index), 2) for index in range(8)]
        with torch.device("meta"):
            model = LanguageModel(config)
        held = [model.empty_caches(1, context).bytes / 1e6 for context in options.contexts]
        assert caches[pattern] == [round(size, 2) for size in held]
        assert len(times[pattern]) == len(options.contexts)
    assert max(counts) / min(counts) < 1.0025


def numbers(row: str) -> list[float]:
    return [float(cell.replace(",", "")) for cell in row.split("|")]
