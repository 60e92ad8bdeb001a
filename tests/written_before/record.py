"""What a version of this repository computes. The files beside this one hold it of the version that stood before its
modules were put in order: this script made them of a checkout of that version, and tests/test_written_before.py has it
make the same of its own.

  python tests/written_before/record.py CHECKOUT [--only PART ...] [--into FOLDER]

calls the commands of a checkout, trains in float32 on a CPU, and writes:

  runs.json       the logs of two runs of 4 steps, whose folders, as train.py leaves them, are put in runs/
  continued.json  what the next 4 steps of the recorded two add to their logs, what sample.py makes of them,
                  and how they compare; the sentences call single runs by their names since
  losses.json     the first 20 steps of config/quickstart.py and config/quickstart_hybrid.py, on other data;
                  small_losses.json: in smaller batches
  costs.json      what the planner and the startup report say of all of config/*.py and of models.json. What FSDP and
                  ZeRO-1 pad, and what a window or Mamba of Hugging Face's keeps, was not known of models that
                  train.py did not build; it is since, and stands here as the version after says it (of eight models).
                  So does the state of Hugging Face's Mambas in bfloat16, which was half of what transformers keeps
  search.json     what the planner chooses for several budgets and architectures; of hybrids as it does since d_ff is a
                  multiple of 64

models.json is what is asked: configurations of published models, and small ones of every family that is counted.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TRAIN, SAMPLE, COMPARE = "train.py", "sample.py", "compare_architectures.py"
PLAN = "flops_parameter_counting/detailed_cost_analysis.py"

# Kernels that nearly every x86 processor has, instead of those that suit the one at hand: more machines round alike.
KERNELS = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2,STRICT", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def environment(checkout: Path, threads: int = 1) -> dict[str, str]:
    of_threads = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}  # others may need the cores
    return os.environ | KERNELS | of_threads | {"PYTHONPATH": str(checkout), "PYTHONUTF8": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--into", type=Path, default=HERE)
    arguments = parser.parse_args()
    checkout, into = arguments.checkout.resolve(), arguments.into.resolve()
    os.environ.update(environment(checkout))  # before torch is imported
    sys.path.insert(0, str(checkout))
    into.mkdir(parents=True, exist_ok=True)
    for part in arguments.only:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            found = PARTS[part](checkout, into)
        lines = (f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in found.items())
        (into / f"{part}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


# ---------------------------------------------------------------------------------------------------------------------
# Runs

# Later keys are common to both. The run ends after step 4 of the 8 that the learning rate is planned for.
MODELS = {
    "transformer": "--n_layer=2 --n_head=4 --num_key_value_heads=2 --dropout=0.1 --gradient_stats_interval=3 "
    "--normalization=rmsnorm --ffn_type=swiglu --position_encoding=rope --scaling_law=hoffmann",
    "hybrid": "--n_layer=4 --layer_pattern=AWMS --n_head=2 --attention_window=5 --ffn_after=attention "
    "--arch_preset=hybrid --mamba_head_dim=8 --mamba_d_state=4 --mamba_n_groups=2 --mamba_chunk_size=8",
}
COMMON = """
--n_embd=24 --d_ff=48 --block_size=32 --dataset=words --data_dir=data --out_dir=run --batch_size=4
--gradient_accumulation_steps=2 --eval_interval=2 --eval_iters=3 --eval_batch_size=4 --warmup_iters=2 --lr_decay_iters=8
--learning_rate=1e-2 --min_lr=1e-3 --keep_last=1 --keep_best=False --device=cpu --dtype=float32 --compile=False
"""
STEPS, LONGER = 4, 8

# What differs from one call to the next, at any depth of a record of the log.
MEASURED = {
    "time", "hardware", "versions", "git", "command", "seconds", "stall_seconds", "train_seconds", "step_ms",
    "tokens_per_second", "mfu", "model_flops_per_second", "peak_flops_per_second", "memory",
}  # fmt: skip


def run(checkout: Path, script: str, *arguments: str, threads: int = 1) -> str:
    """What a command prints."""
    command = [sys.executable, str(checkout / script), *arguments]
    done = subprocess.run(command, env=environment(checkout, threads), check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def train(checkout: Path, *keys: str, threads: int = 1) -> list[dict[str, Any]]:
    """The records that train.py adds to run/log.jsonl."""
    log = Path("run/log.jsonl")
    before = len(log.read_text().splitlines()) if log.exists() else 0
    run(checkout, TRAIN, *keys, threads=threads)
    return [json.loads(line) for line in log.read_text().splitlines()[before:]]


def write_dataset(folder: Path) -> None:
    """A dataset as the repository's writer makes it, of some 100,000 bytes that are the same everywhere."""
    words = ["loss", "model", "train", "token", "layer", "width", "depth", "scale", "def", "return"]
    folder.mkdir(parents=True)
    splits = {}
    for split, documents in (("train", 200), ("val", 20)):
        texts = [
            [words[zlib.crc32(f"{split} {d} {w}".encode()) % len(words)] for w in range(80)] for d in range(documents)
        ]
        content = b"".join(" ".join(text).encode() + b"\0" for text in texts)
        tokens = b"".join(bytes((byte, 0)) for byte in content)  # little-endian uint16
        (folder / f"{split}.bin").write_bytes(tokens)
        splits[split] = {
            "file": f"{split}.bin", "tokens": len(content), "bytes": len(content) - documents, "documents": documents,
            "checksum": f"crc32:{zlib.crc32(tokens):08x}",
        }  # fmt: skip
    tokenizer = {"kind": "bytes", "end_of_document": 0}
    meta = {"format": 1, "source": "generated", "tokenizer": tokenizer, "vocab_size": 256, "dtype": "uint16"}
    (folder / "meta.json").write_text(json.dumps(meta | {"splits": splits}))


def runs(checkout: Path, into: Path) -> dict[str, Any]:
    """In the log of the folder that stays, what names the machine or this checkout is replaced."""
    write_dataset(Path("data/words"))
    found: dict[str, Any] = {"arithmetic": torch_arithmetic()}
    for name, keys in MODELS.items():
        records = train(checkout, *keys.split(), *COMMON.split(), f"--max_iters={STEPS}")
        found[name] = in_order(records)
        records[0]["command"][0] = TRAIN
        records[0]["hardware"] |= {"device_name": "a CPU", "host": "a host", "system": "a system"}
        records[0]["git"] = None
        Path("run/log.jsonl").write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        target = into / "runs" / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree("run", target, ignore=shutil.ignore_patterns(".*"))
        shutil.rmtree("run")
    return found


def continued(checkout: Path, into: Path) -> dict[str, Any]:
    """Of the recorded runs, wherever the result is put."""
    write_dataset(Path("data/words"))
    found: dict[str, Any] = {"arithmetic": torch_arithmetic()}
    for name, keys in MODELS.items():
        shutil.copytree(HERE / "runs" / name, name)
        shutil.copytree(name, "run")
        text = run(checkout, SAMPLE, "run", "--prompt=the model", "--max_new_tokens=40", "--device=cpu", "--no_stream")
        records = train(checkout, *keys.split(), *COMMON.split(), f"--max_iters={LONGER}", "--init_from=resume")
        found |= {name: in_order(records), f"{name}, sampled": text}
        shutil.rmtree("run")
    run(checkout, COMPARE, *MODELS, "--json=compared.json")
    found["compared"] = not_measured(json.loads(Path("compared.json").read_text()))
    return found


def in_order(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By type and step: that of a checkpoint comes when its files are written, sooner or later."""
    records = sorted(records, key=lambda record: (record["type"], record.get("step", 0)))
    return [not_measured(record) for record in records]


def losses(checkout: Path, into: Path, *more: str, threads: int = 2) -> dict[str, Any]:
    """Losses and gradient norms, with words in the place of Python's source."""
    keys = ["--data_dir=data", "--out_dir=run", "--max_iters=20", "--eval_iters=1", "--log_interval=1"]
    keys = [*keys, "--device=cpu", "--dtype=float32", "--compile=False", *more]
    write_dataset(Path("data/python_stdlib"))
    found: dict[str, Any] = {"arithmetic": torch_arithmetic(), "keys": keys, "threads": threads}
    for name in ("config/quickstart.py", "config/quickstart_hybrid.py"):
        records = train(checkout, str(checkout / name), *keys, threads=threads)
        steps = [record for record in records if record["type"] == "iter"]
        found[name] = {field: [step[field] for step in steps] for field in ("loss", "grad_norm")}
        shutil.rmtree("run")
    return found


def small_losses(checkout: Path, into: Path) -> dict[str, Any]:
    """The same with 2 sequences in a batch, in seconds; one thread does not wait for another on a busy machine."""
    return losses(checkout, into, "--batch_size=2", threads=1)


def not_measured(value: Any) -> Any:
    """Without what differs from one call to the next."""
    if isinstance(value, dict):
        return {key: not_measured(member) for key, member in value.items() if key not in MEASURED}
    return [not_measured(member) for member in value] if isinstance(value, list) else value


# ---------------------------------------------------------------------------------------------------------------------
# Plans


def call(checkout: Path, script: str, *arguments: object) -> str | int:
    """What a command that needs no torch prints; if it fails, its exit code."""
    out, before = io.StringIO(), sys.argv
    sys.argv = [script, *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            runpy.run_path(str(checkout / script), run_name="__main__")
    except SystemExit as end:
        if end.code:
            return end.code
    finally:
        sys.argv = before
    return out.getvalue()


# Of the files that leave it to their dataset.
VOCABULARIES = {"quickstart": 256, "quickstart_hybrid": 256, "quickstart_delta": 256, "train_gpt2": 50257}
VOCABULARIES["train_shakespeare_char"] = 65
SETTINGS = {
    "FSDP over 4": "--devices=4 --strategy=fsdp",
    "ZeRO-1 over 2": "--devices=2 --strategy=zero1",
    "every layer over 2": "--devices=2 --strategy=ddp --tensor_parallel=2",
    "checkpointing": "--activation_checkpointing --micro_batch=3 --dtype=float32",
    "on H100s": "--device=H100-SXM --devices=8 --strategy=fsdp --tokens=1e11 --mfu=0.4",
}
RANKS = {
    "alone": "",
    "DDP over 2": "--world_size=2 --gradient_accumulation_steps=6",
    "FSDP over 2": "--world_size=2 --gradient_accumulation_steps=6 --use_fsdp=True",
    "every layer over 2": "--world_size=2 --gradient_accumulation_steps=6 --tensor_parallel=2",
}


def costs(checkout: Path, into: Path) -> dict[str, Any]:
    """Of every model: all that the planner says of it alone, its memory in other settings, and the startup report's
    length, memory and communication. A number stands for a refusal: the exit code."""
    found = {}
    for file in sorted((checkout / "config").glob("*.py")):
        vocabulary = [f"--vocab_size={VOCABULARIES[file.stem]}"] if file.stem in VOCABULARIES else []
        found[f"config/{file.name}"] = planned(checkout, file, *vocabulary) | {
            f"startup, {ranks}": started(checkout, file, *vocabulary, *keys.split()) for ranks, keys in RANKS.items()
        }
    for name, model in json.loads((HERE / "models.json").read_text()).items():
        Path("config.json").write_text(json.dumps(model))
        found[name] = planned(checkout, Path("config.json"))
    return found


def planned(checkout: Path, file: Path, *arguments: str) -> dict[str, Any]:
    """By the planner; no prose, and not what was asked."""

    def ask(setting: str = "") -> Any:
        printed = call(checkout, PLAN, "--model_config", file, *arguments, *setting.split(), "--json=found.json")
        return printed if isinstance(printed, int) else json.loads(Path("found.json").read_text())

    found = {"alone": ask()}
    if isinstance(found["alone"], int):  # such as a config file without a model of its own
        return found
    for key in ("convention", "notes", "name"):
        del found["alone"][key]
    for setting, keys in SETTINGS.items():
        answer = ask(keys)
        if isinstance(answer, dict):
            memory = {part: answer["memory"][part] for part in ("by_part", "in_main_memory", "total", "fits")}
            answer = memory | {part: answer[part] for part in ("decoding", "time") if answer["time"]}
        found[setting] = answer
    return found


def started(checkout: Path, *arguments: object) -> list[str] | int:
    """By the startup report; spaces that only align are dropped."""
    printed = call(checkout, TRAIN, *arguments, "--dry_run", "--data_dir=none")
    if isinstance(printed, int):
        return printed
    wanted = ("Tokens per step", "Memory estimate", "Ranks")
    paragraphs = [paragraph for paragraph in printed.split("\n\n") if paragraph.startswith(wanted)]
    return [re.sub("  +", "  ", line.strip()) for paragraph in paragraphs for line in paragraph.splitlines()]


SEARCHES = {
    "exact": "--grid_search 1.36e21",
    "published": "--grid_search 1.36e21 --flops_formula published",
    "published, near Chinchilla": "--grid_search 1.36e21 --flops_formula published --enforce_chinchilla",
    "hardware": "--grid_search --device H100-SXM --devices 8 --days 10 --mfu 0.45",
    **{arch: f"--grid_search 1e13 --arch {arch}" for arch in ("gpt2", "llama3", "mamba1", "mamba2", "hybrid")},
}


def search(checkout: Path, into: Path) -> dict[str, Any]:
    """The best 10 and what is said of them."""
    found: dict[str, Any] = {"arithmetic": numpy_arithmetic()}
    for name, arguments in SEARCHES.items():
        call(checkout, PLAN, *arguments.split(), "--json=found.json")
        found[name] = json.loads(Path("found.json").read_text())
        Path("found.json").unlink()
        for key in ("convention", "notes"):
            del found[name][key]
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Arithmetic: where these are as they were recorded, numbers are the same to the last bit; elsewhere nearly so


def torch_arithmetic() -> str:
    """PyTorch's version, and a hash of what its kernels make of some numbers."""
    import torch
    from torch.nn import functional as F

    def made(*shape: int) -> torch.Tensor:
        numbers = torch.arange(torch.Size(shape).numel()) * 7919 % 1009 / 504.5 - 1
        return numbers.float().reshape(shape).requires_grad_()

    assert torch.get_num_threads() == 1
    outputs = []
    for width in (32, 192):
        x, up, down = made(4, width, width), made(3 * width, width), made(width, 3 * width)
        heads = x.unflatten(-1, (-1, 8)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(heads, heads, heads, is_causal=True).transpose(1, 2).flatten(-2)
        scanned = F.conv1d(attended.mT, made(width, 1, 4), groups=width, padding=3).mT[:, :width].exp().cumsum(1)
        normed = F.rms_norm(scanned, (width,)) + F.layer_norm(attended, (width,)) + F.softplus(x)
        hidden = F.linear(F.silu(F.linear(normed, up)) + F.gelu(F.linear(normed, up)), down) / width
        loss = F.cross_entropy(hidden.flatten(0, 1), torch.arange(4 * width) % width)
        outputs += [loss, *torch.autograd.grad(loss, (x, up, down))]
    digest = hashlib.sha256(b"".join(output.detach().numpy().tobytes() for output in outputs))
    return f"torch {torch.__version__} {digest.hexdigest()[:16]}"


def numpy_arithmetic() -> str:
    """A hash of NumPy's powers and logarithms."""
    import numpy as np

    x = np.linspace(1, 1e9, 4099)
    digest = hashlib.sha256(b"".join(y.tobytes() for y in (x**-0.3478, np.log(x), np.exp(-x / 1e8))))
    return f"numpy {digest.hexdigest()[:16]}"


PARTS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "runs": runs,
    "continued": continued,
    "losses": losses,
    "small_losses": small_losses,
    "costs": costs,
    "search": search,
}

if __name__ == "__main__":
    main()
