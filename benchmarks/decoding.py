"""Time per token and bytes of the caches when decoding, by the length of the text so far: a transformer, a hybrid and a
Mamba-2 with the same number of parameters, or a model of each of several patterns of layers, in turn in one run.

    python benchmarks/decoding.py
    python benchmarks/decoding.py --n_embd 768 --n_layer 12 --device cuda
    python benchmarks/decoding.py --patterns A W C M S D K V DDDA

A text of that length is not read first: the caches are filled with noise, on which the time does not depend. The
Mamba-2 has two layers, without FFNs, where the others have one with its FFN, whose width makes the parameters equal; of
patterns every layer has an FFN.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository runs without being installed

import torch
from torch import Tensor

from common.errors import ArgumentParser, UserError, exit_cleanly, positive
from components.caches import Caches
from flops_parameter_counting.costs.model_cost import model_cost
from model_builder import LanguageModel, build_model
from model_config import ModelArchitectureConfig, resolve_architecture
from parallel.device import choose_device, synchronize
from parallel.ranks import ALONE
from runs.config import RunConfig, check_run

HEAD_DIM = 64


@exit_cleanly
def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    device = choose_device(options.device, ALONE)
    configs = of_patterns(options) if options.patterns else contestants(options)
    models = {name: build_model(config, device, seed=0).eval() for name, config in configs.items()}
    for name, model in models.items():
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print(f"{name:12s} {parameters:>12,} parameters  {model.config.name}")
    print(
        f"float32, {device}, {options.threads} threads, batch {options.batch}, "
        f"median of {options.rounds} rounds of {options.tokens} tokens\n"
    )
    if options.patterns:
        print_tables(configs, list(models.values()), options)
        return
    print(f"{'context':>9s}" + "".join(f"{name:>28s}" for name in models))
    print(f"{'tokens':>9s}" + f"{'ms per token':>16s}{'cache MB':>12s}" * len(models))
    for context in options.contexts:
        row = f"{context:>9,}"
        for seconds, held in measure(list(models.values()), context, options):
            row += f"{1e3 * seconds:>16.2f}{held / 1e6:>12.2f}"
        print(row, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    option = parser.add_argument
    option("--n_embd", type=positive, default=512, metavar="N", help=f"a multiple of {2 * HEAD_DIM} (512)")
    option("--n_layer", type=positive, default=8, metavar="N", help="of the transformer and the hybrid (8)")
    option("--vocab_size", type=positive, default=8192, metavar="N", help="(8192)")
    option("--contexts", type=positive, nargs="+", default=[1024 * 2**n for n in range(6)], help="(1024 to 32768)")
    option("--patterns", nargs="+", metavar="P", help="letters of layer_pattern, a model of each (three models)")
    option("--batch", type=positive, default=1, metavar="N", help="texts at once (1)")
    option("--tokens", type=positive, default=16, metavar="N", help="of each round (16)")
    option("--rounds", type=positive, default=5, metavar="N", help="(5)")
    option("--threads", type=positive, default=2, metavar="N", help="(2)")
    option("--device", default="cpu", metavar="D", help="auto, cpu, cuda, cuda:N or mps (cpu)")
    options = parser.parse_args()
    check_run(RunConfig(device=options.device))  # the names are those of train.py's key
    if options.n_layer < 2 and not options.patterns:
        raise UserError("--n_layer=1: the hybrid has both attention and Mamba-2, and takes 2 or more")
    if options.n_embd % (2 * HEAD_DIM):
        raise UserError(
            f"--n_embd={options.n_embd} must be a multiple of {2 * HEAD_DIM}: heads of {HEAD_DIM}, by pairs"
        )
    return options


def contestants(options: argparse.Namespace) -> dict[str, ModelArchitectureConfig]:
    """Half as many key-value heads as heads; attention in three of eight layers of the hybrid."""
    heads = options.n_embd // HEAD_DIM
    sizes = {
        "n_embd": options.n_embd,
        "vocab_size": options.vocab_size,
        "block_size": max(options.contexts) + options.tokens,
    }
    attention = {"n_layer": options.n_layer, "n_head": heads, "num_key_value_heads": heads // 2}
    mamba2 = resolve_architecture({"arch_preset": "mamba2", "n_layer": 2 * options.n_layer, **sizes})
    others = {
        name: with_parameters(
            resolve_architecture({"arch_preset": "hybrid", "hybrid_attention_ratio": ratio, **attention, **sizes}),
            parameters(mamba2),
        )
        for name, ratio in (("transformer", 1.0), ("hybrid", 0.375))
    }
    return {**others, "Mamba-2": mamba2}


def of_patterns(options: argparse.Namespace) -> dict[str, ModelArchitectureConfig]:
    """Of each pattern a model with rotary positions, if it has any, and with the parameters of one of attention alone,
    whose FFN is as wide as Llama's. Windows are of 1,024 tokens; latent attention has DeepSeek's proportions."""
    plain = pattern_config(options, "A")
    return {
        pattern: with_parameters(pattern_config(options, pattern), parameters(plain)) for pattern in options.patterns
    }


def pattern_config(options: argparse.Namespace, pattern: str) -> ModelArchitectureConfig:
    keys: dict[str, Any] = {
        "arch_preset": "llama",
        "n_layer": options.n_layer,
        "n_embd": options.n_embd,
        "layer_pattern": pattern,
        "vocab_size": options.vocab_size,
        "block_size": max(options.contexts) + options.tokens,
    }
    of_letters: dict[str, dict[str, Any]] = {
        "AWUC": {"n_head": options.n_embd // HEAD_DIM},
        "W": {"attention_window": 1024},
        "C": {"kv_lora_rank": options.n_embd // 4, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64},
    }
    for letters, of in of_letters.items():
        keys |= of if set(letters) & set(pattern) else {}
    if not set("AWC") & set(pattern):
        keys["position_encoding"] = "none"
    return resolve_architecture(keys)


def print_tables(
    configs: dict[str, ModelArchitectureConfig], models: list[LanguageModel], options: argparse.Namespace
) -> None:
    """FLOPs, cache and time, a row for each pattern."""
    measured = [measure(models, context, options) for context in options.contexts]
    print_table("MFLOPs a token, forward, causal", configs, [1024 * 2**n for n in range(8)], mflops)
    for what, column, unit in (("cache, MB", 1, 1e-6), ("ms a token", 0, 1e3)):
        cells = {name: [of[index][column] * unit for of in measured] for index, name in enumerate(configs)}
        print_table(what, cells, options.contexts, lambda values, index: values[index])


def print_table(what: str, of_rows: dict[str, Any], contexts: list[int], cell: Callable[[Any, int], float]) -> None:
    print(f"| {what} | " + " | ".join(f"{context:,}" for context in contexts) + " |")
    print("|---|" + "---:|" * len(contexts))
    for name, of_row in of_rows.items():
        print(f"| `{name}` | " + " | ".join(f"{cell(of_row, index):,.2f}" for index in range(len(contexts))) + " |")
    print(flush=True)


def mflops(config: ModelArchitectureConfig, index: int) -> float:
    """Of a token of texts of 1,024 x 2^index tokens, on average."""
    return model_cost(config, 1024 * 2**index).forward_flops("causal") / 1e6


def parameters(config: ModelArchitectureConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in LanguageModel(config).parameters())


def with_parameters(config: ModelArchitectureConfig, wanted: int) -> ModelArchitectureConfig:
    """With the FFN's width, a multiple of 8, that comes nearest: the parameters grow linearly with it."""
    narrow, wide = (parameters(config.replace(d_ff=d_ff)) for d_ff in (8, 16))
    return config.replace(d_ff=max(8, 8 * round(1 + (wanted - narrow) / (wide - narrow))))


@torch.inference_mode()
def measure(models: list[LanguageModel], context: int, options: argparse.Namespace) -> list[tuple[float, int]]:
    """Seconds per token, the median of the rounds but the first, and the bytes of the caches at the context."""
    seconds: list[list[float]] = [[] for _ in models]
    held = [model.empty_caches(options.batch, context).bytes for model in models]
    for _ in range(options.rounds + 1):
        for model, taken in zip(models, seconds, strict=True):
            caches = filled(model, options.batch, context, context + options.tokens)
            taken.append(decode(model, caches, options))
    return [(statistics.median(taken[1:]), size) for taken, size in zip(seconds, held, strict=True)]


def filled(model: LanguageModel, batch: int, context: int, room: int) -> Caches:
    """Caches as if a text had been read: of their tokens, (..., tokens, numbers), a window keeps the last ones."""
    caches = model.empty_caches(batch, room)
    caches.length = context
    for layer in caches.layers:
        tensors = [value.normal_() for value in vars(layer).values() if isinstance(value, Tensor)]
        for name, value in vars(layer).items():
            if not isinstance(value, Tensor):
                setattr(layer, name, min(context, *(one.shape[-2] for one in tensors)))
    return caches


def decode(model: LanguageModel, caches: Caches, options: argparse.Namespace) -> float:
    """Seconds per token, every one the likeliest after the last."""
    device = model.embedding.weight.device
    token = torch.zeros(options.batch, 1, dtype=torch.long, device=device)
    synchronize(device)
    start = time.perf_counter()
    for _ in range(options.tokens):
        token = model.next_token_logits(token, caches).argmax(-1, keepdim=True)
    synchronize(device)
    return (time.perf_counter() - start) / options.tokens


if __name__ == "__main__":
    main()
