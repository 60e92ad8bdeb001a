"""From a config file and a command line to one checked configuration, and back to files that reproduce it."""

import json
import re
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from common.keys import check_value, key, keys_of, parse_value
from components import registry
from components.registry import PRESETS
from components.spec import Norm
from configurator import as_dict, configuration_keys, differences, from_dict, load, run_keys, with_vocabulary, write
from model_config import architecture_keys
from runs.config import RunConfig

ROOT = Path(__file__).parent.parent

# In nanoGPT's format: assignments with comments and arithmetic, and no arch_preset.
NANOGPT_FILE = """\
# a small model of characters, for a machine without a GPU
# python train.py config/small_char.py --device=cpu --compile=False
import time

out_dir = 'out-small-char'
eval_interval = 250 # the validation loss turns early
always_save_checkpoint = False

wandb_log = False # or on the command line
wandb_run_name='small-' + str(int(time.time()) // 10**12)

dataset = 'shakespeare_char'
# 5 micro-batches x 8 machines
gradient_accumulation_steps = 5 * 8
batch_size = 16

n_layer = 6
n_head = 6
n_embd = 6 * 64
dropout = 0.2

max_iters = 5e3
lr_decay_iters = 5000
weight_decay = 1e-1
beta2 = 0.99
"""


@pytest.fixture
def config_file(tmp_path):
    """A function that writes a config file and returns its path as a command-line argument."""

    def write_file(text: str, name: str = "mine.py") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write_file


def refusal(argv: list[str]) -> str:
    with pytest.raises(UserError) as error:
        load(argv)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# What wins over what


def test_without_arguments_the_defaults_hold():
    configuration = load([])
    assert configuration.run == RunConfig()
    assert configuration.model.arch_preset == "legacy"
    assert configuration.config_file is None
    assert configuration.name == configuration.model.name == "12L-12H-768D-AbsPos-LNnoBias-GELU-PreNorm"
    assert configuration.run_dir == Path("out") / configuration.name


def test_command_line_over_file_over_preset_over_default(config_file):
    file = config_file("arch_preset = 'llama3'\nrope_theta = 7e5\n")
    preset_only = config_file("arch_preset = 'llama3'\n", "preset_only.py")
    assert load([]).model.rope_theta == 1e4
    assert load([preset_only]).model.rope_theta == 5e5
    assert load([file]).model.rope_theta == 7e5
    assert load([file, "--rope_theta=9e5"]).model.rope_theta == 9e5


def test_a_preset_of_the_command_line_keeps_the_keys_of_the_file(config_file):
    file = config_file("arch_preset = 'team'\nnormalization = 'layernorm'\nlearning_rate = 1e-3\n")
    configuration = load([file, "--arch_preset=llama"])
    assert configuration.model.arch_preset == "llama"
    assert configuration.model.normalization == "layernorm"
    assert configuration.model.weight_tying is False  # Llama's
    assert configuration.run.learning_rate == 1e-3


def test_a_nanogpt_file_runs_as_it_is(config_file):
    configuration = load([config_file(NANOGPT_FILE, "small_char.py"), "--device=cpu", "--compile=False"])
    model, run = configuration.model, configuration.run
    assert model.arch_preset == "legacy"
    assert (model.n_layer, model.n_head, model.n_embd, model.d_ff, model.dropout) == (6, 6, 384, 1536, 0.2)
    assert (model.normalization, model.bias, model.weight_tying) == ("layernorm_nobias", False, True)
    assert run.gradient_accumulation_steps == 40
    assert run.max_iters == 5000 and type(run.max_iters) is int
    assert (run.device, run.compile, run.wandb_run_name) == ("cpu", False, "small-0")
    assert configuration.name == "small_char"
    assert configuration.run_dir == Path("out-small-char")


def test_the_run_folder_is_named_after_the_file(config_file):
    file = config_file("n_layer = 2\n", "tiny.py")
    assert load([file]).run_dir == Path("out/tiny")
    assert load([file, "--out_dir=elsewhere/x"]).run_dir == Path("elsewhere/x")


# ---------------------------------------------------------------------------------------------------------------------
# The command line


@pytest.mark.parametrize("form", ["--{}={}", "--{} {}"])
@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("learning_rate", "1", 1.0),
        ("learning_rate", "1e-3", 1e-3),
        ("max_iters", "1e5", 100000),
        ("max_iters", "None", None),
        ("max_flops", "1000000000000000000000", 1e21),
        ("out_dir", "5", "5"),
        ("out_dir", "None", None),
        ("out_dir", "a=b=c", "a=b=c"),
        ("wandb_project", "None", "None"),  # this key takes no None
        ("decay_lr", "False", False),
        ("decay_lr", "false", False),
        ("dry_run", "True", True),
        ("compile", "true", True),
        ("compile", "auto", "auto"),
        ("d_ff", "1_000", 1000),
        ("min_lr", "0", 0.0),
    ],
)
def test_values_have_their_keys_type(name, text, value, form):
    configuration = load([*form.format(name, text).split(" "), "--max_tokens=1"])
    parsed = as_dict(configuration)[name]
    assert parsed == value
    assert type(parsed) is type(value)


def test_a_dict_on_the_command_line():
    argv = ["--position_encoding=rope", "--rope_scaling", "{'rope_type': 'linear', 'factor': 2}"]
    assert load(argv).model.rope_scaling == {"rope_type": "linear", "factor": 2}


def test_tuples_parse():
    class WithTuple:
        betas: tuple = key((0.9, 0.95), "a pair")

    betas = keys_of(WithTuple)["betas"]
    assert check_value(betas, parse_value(betas, "(0.8, 0.9)")) == (0.8, 0.9)
    assert check_value(betas, parse_value(betas, "[0.8, 0.9]")) == (0.8, 0.9)
    with pytest.raises(UserError, match=r"betas='0\.8;0\.9': expected tuple, not str"):
        check_value(betas, parse_value(betas, "0.8;0.9"))


def test_a_flag_alone_is_true_and_takes_only_a_truth_value(config_file):
    file = config_file("n_layer = 2\n")
    assert load(["--dry_run"]).run.dry_run is True
    assert load(["--dry_run", "--n_layer=3"]).run.dry_run is True
    assert load(["--decay_lr", "False"]).run.decay_lr is False
    configuration = load(["--dry_run", file])  # the file is not the flag's value
    assert configuration.run.dry_run is True
    assert configuration.config_file == Path(file)


def test_the_config_file_may_stand_anywhere(config_file):
    file = config_file("n_layer = 2\n")
    for argv in ([file, "--n_head", "4"], ["--n_head", "4", file], ["--dry_run", file, "--n_head=4"]):
        model = load(argv).model
        assert (model.n_layer, model.n_head) == (2, 4)


def test_a_negative_number_is_a_value():
    assert "min_lr=-1.0 must be at least 0" in refusal(["--min_lr", "-1"])


# ---------------------------------------------------------------------------------------------------------------------
# The config file


def test_helpers_are_no_keys(config_file):
    file = config_file(
        "import math\n"
        "from math import pi, sqrt\n"
        "from functools import lru_cache\n"
        "_width = 64\n"
        "@lru_cache\n"
        "def heads(n):\n"
        "    unknown_inside = n\n"
        "    return unknown_inside\n"
        "class Component:\n"
        "    n_layer = 'not a key either'\n"
        "double = lambda x: 2 * x\n"
        "n_head = heads(4)\n"
        "n_embd = n_head * _width\n"
        "n_layer = double(math.floor(sqrt(pi)))\n"
    )
    model = load([file]).model
    assert (model.n_head, model.n_embd, model.n_layer) == (4, 256, 2)


def test_keys_may_come_from_another_config_file(config_file, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    config_file("n_layer = 3\nn_head = 4\ndropout = 0.1\n", "base_for_this_test.py")
    file = config_file(
        "from base_for_this_test import n_layer, n_head\nfrom base_for_this_test import *\nbatch_size = 2"
    )
    configuration = load([file])
    assert (configuration.model.n_layer, configuration.model.n_head, configuration.model.dropout) == (3, 4, 0.1)


def test_branches_and_updates_are_no_duplicates(config_file):
    file = config_file("_large = False\nn_layer = 2\nif _large:\n    n_layer = 12\nbatch_size = 4\nbatch_size *= 2\n")
    configuration = load([file])
    assert (configuration.model.n_layer, configuration.run.batch_size) == (2, 8)


def test_classes_of_a_config_file_can_be_found_by_their_module(config_file, monkeypatch):
    # torch.compile, pickle and dataclasses look up sys.modules[cls.__module__].
    parts = types.ModuleType("parts_for_this_test")
    parts.classes = []
    monkeypatch.setitem(sys.modules, "parts_for_this_test", parts)
    load(
        [
            config_file(
                "from __future__ import annotations\n"
                "import dataclasses, typing\n"
                "import parts_for_this_test\n"
                "@dataclasses.dataclass\n"
                "class Part:\n"
                "    kind: typing.ClassVar[str] = 'norm'\n"
                "parts_for_this_test.classes.append(Part)\n"
            )
        ]
    )
    part = parts.classes[0]
    assert vars(sys.modules[part.__module__])["Part"] is part


# ---------------------------------------------------------------------------------------------------------------------
# Bad input: one line that says what was wrong, and where


BAD_COMMAND_LINES = {
    "unknown key": (["--embedding_colour=3"], ["command line", "unknown key 'embedding_colour'"]),
    "misspelt key": (["--n_layers=3"], ["command line", "'n_layers'", "did you mean 'n_layer'?"]),
    "dashes for underscores": (["--learning-rate=1"], ["did you mean 'learning_rate'?"]),
    "duplicate key": (["--n_layer=3", "--n_layer", "4"], ["command line", "--n_layer", "twice"]),
    "one dash": (["-n_layer=4"], ["'-n_layer=4'", "--key=value"]),
    "no name": (["--=4"], ["'--=4'", "--key=value"]),
    "no dashes": (["n_layer=4"], ["'n_layer=4'", "--n_layer=4"]),
    "no value": (["--n_layer"], ["--n_layer needs a value"]),
    "a key for a value": (["--out_dir", "--n_layer=4"], ["--out_dir needs a value"]),
    "empty value": (["--out_dir="], ["command line", "out_dir=''", "empty"]),
    "a stray word": (["quickstart"], ["'quickstart' is not a config file"]),
    "a value that a flag does not take": (["--dry_run", "yes"], ["'yes'"]),
    "word for an int": (["--n_layer=six"], ["command line", "n_layer='six'", "expected int"]),
    "fraction for an int": (["--n_layer=1.5"], ["n_layer=1.5", "expected int"]),
    "word for a float": (["--learning_rate=fast"], ["learning_rate='fast'", "expected float"]),
    "word for a flag": (["--decay_lr=maybe"], ["decay_lr='maybe'", "expected bool"]),
    "number for a flag": (["--decay_lr=1"], ["decay_lr=1", "expected bool"]),
    "None where it is not taken": (["--n_layer=None"], ["n_layer=None", "expected int"]),
    "tuple for a dict": (["--rope_scaling=(1, 2)"], ["rope_scaling=(1, 2)", "expected dict or None, not tuple"]),
    "infinity": (["--learning_rate=1e999"], ["learning_rate=inf", "finite"]),
    "too long for 64 bits": (["--n_layer=99999999999999999999"], ["n_layer=", "64 bits"]),
    "too long for a float": (["--learning_rate=1" + 400 * "0"], ["command line", "learning_rate", "too large"]),
    "zero layers": (["--n_layer=0"], ["n_layer=0", "at least 1"]),
    "negative width": (["--n_embd=-768"], ["n_embd=-768", "at least 1"]),
    "zero heads": (["--n_head=0"], ["n_head=0", "at least 1"]),
    "zero KV heads": (["--num_key_value_heads=0"], ["num_key_value_heads=0", "at least 1"]),
    "zero context": (["--block_size=0"], ["block_size=0", "at least 1"]),
    "zero vocabulary": (["--vocab_size=0"], ["vocab_size=0", "at least 1"]),
    "zero d_ff": (["--d_ff=0"], ["d_ff=0", "at least 1"]),
    "negative ratio": (["--ffn_expansion_ratio=-4"], ["ffn_expansion_ratio=-4.0", "above 0"]),
    "zero batch": (["--batch_size=0"], ["batch_size=0", "at least 1"]),
    "zero accumulation": (["--gradient_accumulation_steps=0"], ["gradient_accumulation_steps=0", "at least 1"]),
    "negative learning rate": (["--learning_rate=-1e-3"], ["learning_rate=-0.001", "at least 0"]),
    "dropout of one": (["--dropout=1"], ["dropout=1.0", "below 1"]),
    "negative steps": (["--max_iters=-1"], ["max_iters=-1", "at least 0"]),
    "heads do not divide the width": (["--n_head=7"], ["command line", "n_embd=768", "n_head=7", "not divisible"]),
    "KV heads do not divide the heads": (
        ["--num_key_value_heads=5"],
        ["command line", "n_head=12", "num_key_value_heads=5", "not divisible"],
    ),
    "odd RoPE dimension": (
        ["--position_encoding=rope", "--n_embd=60"],
        ["command line", "head dimension", "= 5", "even"],
    ),
    "unknown preset": (["--arch_preset=lama"], ["command line", "arch_preset='lama'", "did you mean 'llama'?"]),
    "unknown dtype": (["--dtype=bfloat"], ["command line", "dtype='bfloat'", "did you mean 'bfloat16'?"]),
    "unknown device": (["--device=tpu"], ["command line", "device='tpu'", "cuda:N"]),
    "device without its number": (["--device=cuda:"], ["device='cuda:'"]),
    "cpu with a number": (["--device=cpu:1"], ["device='cpu:1'"]),
    "unknown schedule": (["--lr_schedule=cosin"], ["lr_schedule='cosin'", "did you mean 'cosine'?"]),
    "unknown norm position": (["--norm_position=mid"], ["norm_position='mid'", "pre, post"]),
    "no end": (["--max_iters=None"], ["no end", "max_tokens"]),
    "decay before the warm-up ends": (["--lr_decay_iters=10"], ["lr_decay_iters=10", "warmup_iters=2000"]),
    "a minimum above the maximum": (["--min_lr=1"], ["min_lr=1.0", "learning_rate=0.0006"]),
}


@pytest.mark.parametrize("case", BAD_COMMAND_LINES)
def test_bad_command_lines(case):
    argv, words = BAD_COMMAND_LINES[case]
    message = refusal(argv)
    assert all(word in message for word in words), message


BAD_FILES = {
    "unknown key": ("n_layer = 2\n\nembedding_colour = 3\n", [":3:", "unknown key 'embedding_colour'"]),
    "misspelt key": ("# a comment\nn_layers = 2\n", [":2:", "'n_layers'", "did you mean 'n_layer'?"]),
    "misspelt in a branch": ("if True:\n    batchsize = 2\n", [":2:", "did you mean 'batch_size'?"]),
    "helper without underscore": ("for i in range(3):\n    pass\n", [":1:", "unknown key 'i'", "starts with _"]),
    "duplicate key": ("n_layer = 2\nn_head = 2\nn_layer = 3\n", [":3:", "n_layer is assigned twice", "line 1"]),
    "duplicate in a tuple": ("n_layer, n_head = 2, 2\nn_head = 4\n", [":2:", "n_head is assigned twice"]),
    "duplicate with a type": ("n_layer: int = 2\nn_layer: int = 3\n", [":2:", "n_layer is assigned twice"]),
    "wrong type": ("n_layer = 2\nn_head = '4'\n", [":2:", "n_head='4'", "expected int, not str"]),
    "number for a string": ("out_dir = 5\n", [":1:", "out_dir=5", "expected str or None, not int"]),
    "a flag for a number": ("n_layer = True\n", [":1:", "n_layer=True", "expected int, not bool"]),
    "a function for a key": ("activation = abs\n", [":1:", "activation=", "expected str or None"]),
    "zero size": ("block_size = 0\n", [":1:", "block_size=0", "at least 1"]),
    "too large a number": ("n_layer = 10**5000\n", [":1:", "n_layer", "too large"]),
    "unknown preset": ("arch_preset = 'GPT-2'\n", [":1:", "arch_preset='GPT-2'", "did you mean 'gpt2'?"]),
    "unknown dtype": ("dtype = 'float8'\n", [":1:", "dtype='float8'"]),
    "heads": ("n_layer = 2\nn_embd = 100\nn_head = 3\n", [":2, ", ":3: ", "n_embd=100", "n_head=3"]),
    "syntax error": ("n_layer = 2\nn_head = = 3\n", [":2:", "invalid syntax"]),
    "null byte": ("n_layer = 2\0\n", ["null byte"]),
    "undefined name": ("n_layer = 2\nn_embd = n_head * 64\n", [":2:", "NameError", "n_head"]),
    "exception in a function": ("def f():\n    return 1 / 0\nn_layer = f()\n", [":2:", "ZeroDivisionError"]),
    "many-line exception": ("raise ValueError('one\\ntwo')\n", [":1:", "ValueError: one two"]),
    "missing module": ("import no_such_module_at_all\n", [":1:", "ModuleNotFoundError", "no_such_module_at_all"]),
    "it exits": ("n_layer = 2\nraise SystemExit(0)\n", [":2:", "SystemExit"]),
    "refused by what it calls": (
        "from common.errors import UserError\nraise UserError('norm mine is registered twice')\n",
        [":2: norm mine is registered twice"],
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(case, config_file):
    text, words = BAD_FILES[case]
    path = config_file(text)
    message = refusal([path])
    assert message.startswith(path)
    assert all(word in message for word in words), message


def test_unreadable_files(tmp_path):
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "circle.py").symlink_to(tmp_path / "circle.py")
    (tmp_path / "latin.py").write_bytes(b"n_layer = 2  # caf\xe9\n")
    (tmp_path / "notes.txt").write_text("n_layer = 2\n")
    for name, words in {
        "missing.py": "No such file",
        "folder.py": "Is a directory",
        "circle.py": "symbolic links",
        "latin.py": "not UTF-8",
        "notes.txt": "is not a config file",
    }.items():
        message = refusal([str(tmp_path / name)])
        assert name in message and words in message


def test_two_config_files(config_file):
    first, second = config_file("n_layer = 2\n", "a.py"), config_file("n_layer = 3\n", "b.py")
    assert "two config files" in refusal([first, second])


def test_a_message_names_every_place_that_is_at_fault(config_file):
    path = config_file("\nn_head = 8\n")
    assert refusal([path, "--n_embd=100"]).startswith(f"command line, {path}:2: ")


def test_a_command_reports_bad_input_in_one_line_with_exit_code_2(tmp_path):
    program = (
        "import sys\n"
        "from configurator import load\n"
        "from common.errors import exit_cleanly\n"
        "exit_cleanly(lambda: print(load(sys.argv[1:]).model.name))()\n"
    )

    def run(*argv: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", program, *argv]
        environment = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    good = run("--arch_preset=team", "--n_layer", "2")
    assert (good.returncode, good.stdout, good.stderr) == (0, "2L-12H-768D-RoPE-RMS-SwiGLU-PreNorm\n", "")
    bad = run("--n_layers=2")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert re.fullmatch(r"error: command line: unknown key 'n_layers'.*\n", bad.stderr)
    assert list(tmp_path.iterdir()) == []


def test_configuration_needs_neither_torch_nor_numpy():
    program = "import sys, configurator; configurator.load([]); print({'torch', 'numpy'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


# ---------------------------------------------------------------------------------------------------------------------
# Vocabulary


@pytest.mark.parametrize(
    ("argv", "dataset", "vocab_size"),
    [
        ([], 50257, 50304),  # nanoGPT's padding
        ([], 65, 65),
        (["--arch_preset=gpt2"], 50257, 50257),
        (["--vocab_size=50257"], 50257, 50257),
        (["--vocab_size=100"], 65, 100),
    ],
)
def test_vocabulary(argv, dataset, vocab_size):
    before = load(argv)
    after = with_vocabulary(before, dataset)
    assert after.model.vocab_size == vocab_size
    assert after.model.replace(vocab_size=None) == before.model.replace(vocab_size=None)
    assert after.run == before.run


# ---------------------------------------------------------------------------------------------------------------------
# Saving and reading back


# Of their own patterns, cut to n_layer, no layer may have attention, whose keys are always given below.
OF_OTHER_MIXERS = {"hybrid"} | {name for name, of in PRESETS.items() if of.get("layer_pattern", "A")[0] not in "AWU"}


@st.composite
def command_lines(draw) -> list[str]:
    """Any valid command line: a legal shape, and any of the other keys with any legal value."""
    group, kv_heads, half_head = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 16))
    n_head = group * kv_heads
    keys = {
        "arch_preset": draw(st.sampled_from(list(PRESETS))),
        "n_head": n_head,
        "n_embd": n_head * half_head * 8,  # of a quarter of a head too there are pairs
        "num_key_value_heads": draw(st.sampled_from([None, kv_heads])),
    }
    small = st.integers(1, 10**6)
    rate = st.floats(0, 0.99)
    optional = {
        "n_layer": st.integers(1, 10**5),
        "block_size": small,
        "vocab_size": st.none() | small,
        "normalization": st.sampled_from(["layernorm", "layernorm_nobias", "rmsnorm"]),
        "norm_eps": st.floats(1e-12, 1, exclude_min=True),
        "norm_position": st.sampled_from(["pre", "post", "sandwich", "inside"]),
        "ffn_type": st.sampled_from(["standard", "swiglu", "geglu"]),
        "position_encoding": st.sampled_from(["learned_absolute", "rope", "alibi", "none"]),
        "rope_theta": st.floats(1e-3, 1e9),
        "attention_backend": st.sampled_from(["sdpa", "manual"]),
        "attention_output_gate": st.sampled_from([None, "head", "element"]),
        "value_residual": st.booleans(),
        "bias": st.booleans(),
        "weight_tying": st.booleans(),
        "dropout": rate,
        "out_dir": st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
        "init_from": st.sampled_from(["scratch", "resume", "auto", "gpt2"]),
        "seed": st.integers(0, 2**32 - 1),
        "dataset": st.sampled_from(["openwebtext", "it's", 'two "words"', "a\\b", "zeile\nzwei"]),
        "max_iters": st.integers(0, 10**9),
        "max_tokens": st.none() | small,
        "max_flops": st.none() | st.floats(1, 1e30),
        "learning_rate": st.floats(1e-4, 1),
        "beta2": rate,
        "lr_schedule": st.sampled_from(["cosine", "linear", "wsd", "constant"]),
        "decay_lr": st.booleans(),
        "device": st.sampled_from(["auto", "cpu", "cuda:3", "mps"]),
        "compile": st.sampled_from([True, False, "auto"]),
    }
    keys |= draw(st.fixed_dictionaries({}, optional=optional))
    if draw(st.booleans()) or keys["arch_preset"] in OF_OTHER_MIXERS:
        keys |= {"n_layer": 2 * draw(st.integers(1, 20)), "layer_pattern": draw(st.sampled_from(["AM", "MA", "A"]))}
        if "M" in keys["layer_pattern"]:
            keys |= {"mamba_head_dim": 2, "mamba_n_groups": 1}
    if keys["arch_preset"] in ("gemma2", "gpt_oss"):
        keys.pop("attention_backend", None)  # sdpa has no cap, and no sinks
    if "E" in PRESETS[keys["arch_preset"]].get("ffn_pattern", ""):
        keys["ffn_pattern"] = "F"  # whose keys are given here
    if keys.get("attention_backend") == "manual":
        keys["attention_sinks"] = draw(st.booleans())
    width = draw(st.sampled_from(["d_ff", "ffn_expansion_ratio", "ffn_multiple_of", None]))
    if width is not None:
        keys[width] = draw(st.floats(0.01, 100) if width == "ffn_expansion_ratio" else small)
    if keys.get("position_encoding") == "rope" and draw(st.booleans()):
        keys["rope_scaling"] = {"rope_type": "linear", "factor": draw(st.floats(1, 100))}
    if keys.get("ffn_type") == "standard" and draw(st.booleans()):
        keys["activation"] = draw(st.sampled_from(["gelu", "gelu_tanh", "quick_gelu", "silu", "relu_squared"]))
    return [f"--{name}={value}" for name, value in keys.items()]


@given(command_lines())
def test_the_saved_files_reproduce_the_configuration(argv):
    configuration = load(argv)
    with tempfile.TemporaryDirectory() as folder:
        write(configuration, Path(folder))
        assert load([f"{folder}/config.py"]) == configuration
        saved = json.loads((Path(folder) / "config.json").read_text())
        assert sorted(path.name for path in Path(folder).iterdir()) == ["config.json", "config.py"]
    assert list(saved) == list(configuration_keys())
    assert from_dict(saved) == configuration.model
    assert from_dict(configuration.model.as_dict()) == configuration.model


CONFIG_FILES_WITH_CODE = {
    "nanoGPT's": NANOGPT_FILE,
    "a component": """\
\"\"\"Trains with a component of its own.\"\"\"
from __future__ import annotations
import registry_for_this_test
from registry_for_this_test import register; n_layer = 2

_scale = 3

@register("norm",
          name="mine")
class Mine:
    '''Its text stays
    as it is.'''
    scale = _scale

    def forward(self, x): return x * self.scale

normalization = "mine"
batch_size = 4
batch_size *= 2
""",
    "code that uses the keys": """\
# its own comments
n_head = 4
_width = 16 * n_head
n_embd = 2 * _width
from registry_for_this_test import register
@register("norm", name="mine")
class Mine:
    scale = n_head
normalization = "mine"
if n_embd > 100:
    n_layer = 3
n_layer_of_the_draft = None
del n_layer_of_the_draft
""",
    "a call that registers": """\
from registry_for_this_test import register
class _Mine:
    scale = 3
normalization = register("norm", name="mine")(_Mine) and "mine"
""",
}


@pytest.mark.parametrize("overrides", [[], ["--n_head=8", "--n_layer=5", "--batch_size=3", "--max_iters=7"]])
@pytest.mark.parametrize("case", CONFIG_FILES_WITH_CODE)
def test_the_saved_file_carries_over_what_the_original_defined(case, overrides, config_file, tmp_path, monkeypatch):
    of_this_test = types.ModuleType("registry_for_this_test")
    registered: dict[str, int] = {}

    def register(kind, *, name):
        def keep(component):
            registered[name] = component.scale
            return component

        return keep

    of_this_test.register = register
    monkeypatch.setitem(sys.modules, "registry_for_this_test", of_this_test)
    monkeypatch.setitem(registry.SPECS["normalization"], "mine", Norm("mine"))
    argv = [config_file(CONFIG_FILES_WITH_CODE[case]), *overrides]
    original = load(argv)
    components = dict(registered)
    assert bool(components) == (case != "nanoGPT's")

    folder, again = tmp_path / "run", tmp_path / "run of the run"
    for source, copy in ((original, folder), (None, again)):
        registered.clear()
        write(source or load([str(folder / "config.py")]), copy)
        registered.clear()
        assert load([str(copy / "config.py")]) == original
        assert registered == components
    without_header = [(f / "config.py").read_text().split("\n", 1)[1] for f in (folder, again)]
    assert without_header[0] == without_header[1]


def test_writing_replaces_what_was_there_and_leaves_nothing_else(tmp_path):
    write(load(["--n_layer=1"]), tmp_path)
    write(load(["--n_layer=2"]), tmp_path)
    assert load([str(tmp_path / "config.py")]).model.n_layer == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "config.py"]


def test_writing_where_one_cannot(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match=r"taken.*cannot write"):
        write(load([]), tmp_path / "taken")


def test_a_saved_model_is_checked_like_a_config_file():
    saved = as_dict(load(["--arch_preset=llama", "--num_key_value_heads=4"]))
    assert from_dict(saved).num_key_value_heads == 4
    for change, words in (
        ({"n_layer": "12"}, "n_layer='12': expected int"),
        ({"num_key_value_heads": 5}, "not divisible"),
        ({"n_layers": 12}, "unknown key 'n_layers'.*'n_layer'"),
    ):
        with pytest.raises(UserError, match=words):
            from_dict(saved | change)


def test_differences():
    old = load(["--arch_preset=team"])
    new = load(["--arch_preset=team", "--n_layer=6", "--num_key_value_heads=4", "--learning_rate=1"])
    assert differences(old.model, old.model) == []
    assert differences(old.model, new.model) == ["n_layer: 12 -> 6", "num_key_value_heads: 12 -> 4"]


# ---------------------------------------------------------------------------------------------------------------------
# Help and documentation


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["--n_layer=2", "--help"]])
def test_help_prints_every_key_and_its_meaning(argv, capsys):
    with pytest.raises(SystemExit) as leaving:
        load(argv)
    assert leaving.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: ")
    assert max(map(len, printed.splitlines())) <= 120
    in_one_line = " ".join(printed.split())
    for one in configuration_keys().values():
        assert f"--{one.name}={one.default} {' '.join(one.help.split())} [" in in_one_line
    assert "compute dtype" in in_one_line and "[auto, float32, bfloat16, float16]" in in_one_line


def test_no_key_is_declared_twice():
    assert not architecture_keys().keys() & run_keys().keys()
    assert len(configuration_keys()) == len(architecture_keys()) + len(run_keys())


def test_the_documentation_is_the_generated_one():
    generated = subprocess.run(
        [sys.executable, "configurator.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    committed = (ROOT / "docs" / "configuration.md").read_text()
    assert committed == generated.stdout, "regenerate: python configurator.py > docs/configuration.md"
