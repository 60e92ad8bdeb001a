"""A decoding step of latent attention beside the same layer in transformers (DeepseekV3Attention, with its
DynamicCache), of equal weights and equal caches, in turn in one run.

    python benchmarks/latent_decoding.py
    python benchmarks/latent_decoding.py --contexts 1024 8192 32768 --device cuda

Both caches hold the latent vectors, here of noise, on which the time does not depend. That the two layers give the same
is seen to before anything is timed.
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
from components.mixers.latent_attention.module import LatentAttention, LatentCache
from interop.hugging_face import architecture_to_hugging_face
from interop.latent_models import DEEPSEEK_V3
from model_config import ModelArchitectureConfig, resolve_architecture
from parallel.device import choose_device, synchronize
from parallel.ranks import ALONE
from runs.config import RunConfig, check_run

Step = Callable[[Tensor, int], Tensor]  # x (B, 1, D) and its position -> (B, 1, D); the cache takes the token in


@exit_cleanly
@torch.inference_mode()
def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    device = choose_device(options.device, ALONE)
    print(
        f"float32, {device}, {options.threads} threads, batch {options.batch}, transformers' {options.attention}; "
        f"medians of {options.rounds} rounds of {options.tokens} tokens, and quartiles of the ratios\n"
    )
    print(
        f"{'context':>9s}{'ours':>12s}{'theirs':>12s}{'ratio':>8s}{'quartiles':>16s}{'cache':>12s}{'difference':>12s}"
    )
    for context in options.contexts:
        print(compare(architecture(options, context), context, device, options), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    option = parser.add_argument
    option("--contexts", type=positive, nargs="+", default=[8192], help="tokens before the step (8192)")
    option("--n_embd", type=positive, default=1024, metavar="N", help="(1024)")
    option("--n_head", type=positive, default=16, metavar="N", help="(16)")
    option("--q_lora_rank", type=positive, default=512, metavar="N", help="(512)")
    option("--kv_lora_rank", type=positive, default=512, metavar="N", help="(512)")
    option("--batch", type=positive, default=1, metavar="N", help="texts at once (1)")
    option("--tokens", type=positive, default=4, metavar="N", help="of each round (4)")
    option("--rounds", type=positive, default=7, metavar="N", help="(7)")
    option("--threads", type=positive, default=2, metavar="N", help="(2)")
    option("--attention", choices=("sdpa", "eager"), default="sdpa", help="of transformers (sdpa)")
    option("--device", default="cpu", metavar="D", help="auto, cpu, cuda, cuda:N or mps (cpu)")
    options = parser.parse_args()
    check_run(RunConfig(device=options.device))  # the names are those of train.py's key
    return options


def architecture(options: argparse.Namespace, context: int) -> ModelArchitectureConfig:
    """Of one layer; the widths of heads are DeepSeek's, 128 and 64, and 128 of values."""
    keys = {name: getattr(options, name) for name in ("n_embd", "n_head", "q_lora_rank", "kv_lora_rank")}
    sizes = {"n_layer": 1, "vocab_size": 8, "block_size": context + options.tokens}
    return resolve_architecture({"arch_preset": "deepseek_dense", **keys, **sizes})


def compare(config: ModelArchitectureConfig, context: int, device: torch.device, options: argparse.Namespace) -> str:
    """A row: milliseconds a token of each, the ratio and its quartiles, the bytes of the cache, and by how much outputs
    differ, of the largest."""
    torch.manual_seed(0)
    with device:
        theirs = their_layer(config, options.attention)
        ours = LatentAttention(config).eval()
        latents = torch.randn(options.batch, context, config.kv_lora_rank + config.qk_rope_head_dim)
        tokens = torch.randn(options.tokens, options.batch, 1, config.n_embd)
    load_weights(ours, theirs, config)
    steps = [lambda: our_step(ours, latents, config), lambda: their_step(theirs, latents, config)]
    expected, found = (decode(make(), tokens, context)[1] for make in reversed(steps))
    seconds = [[decode(make(), tokens, context)[0] for make in steps] for _ in range(options.rounds)]
    ratios = statistics.quantiles([b / a for a, b in seconds], n=4) if options.rounds > 1 else [0.0] * 3
    of_ours, of_theirs = (1e3 * statistics.median(taken) for taken in zip(*seconds, strict=True))
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    return (
        f"{context:>9,}{of_ours:>9.2f} ms{of_theirs:>9.2f} ms{ratios[1]:>8.1f}{ratios[0]:>8.1f}{ratios[2]:>8.1f}"
        f"{latents.nbytes / 1e6:>9.2f} MB{difference:>12.1e}"
    )


def decode(step: Step, tokens: Tensor, context: int) -> tuple[float, Tensor]:
    """Seconds per token, and the outputs."""
    synchronize(tokens.device)
    start = time.perf_counter()
    outputs = [step(token, context + index) for index, token in enumerate(tokens)]
    synchronize(tokens.device)
    return (time.perf_counter() - start) / len(tokens), torch.stack(outputs)


def our_step(layer: LatentAttention, latents: Tensor, config: ModelArchitectureConfig) -> Step:
    """With a cache that has read these."""
    cache, context = layer.empty_cache(len(latents), config.block_size), latents.shape[1]
    cache.latents[:, :context] = latents
    cache = LatentCache(cache.latents, context)
    rotation = layer.shared["rotation"]
    return lambda x, position: layer(x, rotation=rotation(1, x.device, position), cache=cache)


def their_step(layer: Any, latents: Tensor, config: ModelArchitectureConfig) -> Step:
    from transformers import DynamicCache
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding

    cache, rotary = DynamicCache(), DeepseekV3RotaryEmbedding(layer.config).to(latents.device)
    latent, turned = latents[:, None].split((config.kv_lora_rank, config.qk_rope_head_dim), dim=-1)
    cache.update(latent.contiguous(), turned.contiguous(), 0)

    def step(x: Tensor, position: int) -> Tensor:
        angles = rotary(x, torch.full((len(x), 1), position, device=x.device))
        return layer(x, angles, None, past_key_values=cache)[0]

    return step


def their_layer(config: ModelArchitectureConfig, attention: str) -> Any:
    """transformers' attention of this architecture, with weights as at a start."""
    try:
        from transformers import DeepseekV3Config
        from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention
    except ImportError:
        raise UserError("transformers is not installed: it is what the benchmark compares with") from None
    theirs = DeepseekV3Config(**architecture_to_hugging_face(config))
    theirs._attn_implementation = attention
    return DeepseekV3Attention(theirs, layer_idx=0).eval()


def load_weights(ours: LatentAttention, theirs: Any, config: ModelArchitectureConfig) -> None:
    """Theirs, in the order that our rows have."""
    weights = theirs.state_dict()
    for name, place in DEEPSEEK_V3.mixers["C"].items():
        of_theirs = name.removeprefix("self_attn.") + ".weight"
        if name.startswith("self_attn.") and of_theirs in weights:
            (module,) = place.modules
            parameter = ours.get_parameter(module.removeprefix("mixer.") + ".weight")
            parameter.copy_(place.to_ours(weights[of_theirs], config))


if __name__ == "__main__":
    main()
