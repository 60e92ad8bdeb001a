"""Tokens per second of a config's training step; with `--nanogpt DIR`, beside nanoGPT's, in turn in one run.

    python benchmarks/train_throughput.py config/quickstart.py --compile=True
    python benchmarks/train_throughput.py --nanogpt ../nanoGPT

A step is what train.py does for a global batch: forward, backward, clipping, AdamW. The data are random tokens; steps
are timed one by one and the contestants take turns, so that a machine whose speed drifts is unfair to nobody.
Without a config the shape is nanoGPT's character model: 6 layers x 384, batch 12 x 256, vocabulary 65.
"""

import dataclasses
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository runs without being installed

import torch
from torch import nn

from common.errors import ArgumentParser, UserError, exit_cleanly, positive
from configurator import Configuration, load
from data.loader import Batch
from parallel.compute import Compute
from parallel.device import choose_device, choose_dtype, device_name, device_peak, synchronize
from parallel.ranks import ALONE
from parallel.strategy import parallelize
from runs.checkpoint import Training
from runs.folder import Progress
from training.optimizer import build_optimizer
from training.plan import plan_run
from training.step import take_step

CHARACTER_MODEL = (
    "--n_layer=6 --n_head=6 --n_embd=384 --block_size=256 --vocab_size=65 --batch_size=12 "
    "--gradient_accumulation_steps=1 --learning_rate=1e-3 --beta2=0.99"
).split()

Step = Callable[[Batch], float]  # trains on one batch and returns its loss


@dataclasses.dataclass
class Contestant:
    name: str
    step: Step
    seconds: list[float] = dataclasses.field(default_factory=list)
    losses: list[float] = dataclasses.field(default_factory=list)

    def median(self) -> float:
        return statistics.median(self.seconds)


def ours(configuration: Configuration, device: torch.device, dtype: str, compiled: bool) -> tuple[nn.Module, Step]:
    """This project's model and training step."""
    run = configuration.run
    compute = Compute(device, dtype)
    model, _ = parallelize(configuration, compute, compiled)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == "float16")
    training = Training(model, build_optimizer(model, run), scaler, Progress())

    def step(batch: Batch) -> float:
        micro_batches: Iterator[Batch] = iter([batch] * run.gradient_accumulation_steps)
        return take_step(training, micro_batches, run, run.learning_rate, compute).loss

    return model, step


def nanogpts(
    configuration: Configuration, device: torch.device, folder: Path, compiled: bool
) -> tuple[nn.Module, Step]:
    """nanoGPT's model, optimizer and step as its train.py has them: bfloat16 autocast on a GPU, float32 on a CPU."""
    source, model_config, run = load_nanogpt(folder), configuration.model, configuration.run
    settings = source.GPTConfig(
        block_size=model_config.block_size, vocab_size=model_config.vocab_size, n_layer=model_config.n_layer,
        n_head=model_config.n_head, n_embd=model_config.n_embd, dropout=0.0, bias=model_config.bias,
    )  # fmt: skip
    model = source.GPT(settings).to(device)
    betas = (run.beta1, run.beta2)
    optimizer = model.configure_optimizers(run.weight_decay, run.learning_rate, betas, device.type)
    forward = torch.compile(model) if compiled else model

    def step(batch: Batch) -> float:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            _, loss = forward(batch.tokens, batch.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return model, step


def load_nanogpt(folder: Path) -> ModuleType:
    path = folder / "model.py"
    if not path.is_file():
        raise UserError(f"{folder} is no checkout of nanoGPT: it has no model.py")
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copy_weights_from_nanogpt(model: nn.Module, nanogpt: nn.Module) -> None:
    """Start both from the same weights: nanoGPT fuses queries, keys and values into one matrix."""
    theirs = nanogpt.state_dict()
    names = {"mixer_norm": "ln_1", "mixer.o_proj": "attn.c_proj", "ffn_norm": "ln_2", "ffn.up_proj": "mlp.c_fc",
             "ffn.down_proj": "mlp.c_proj"}  # fmt: skip
    state = {"embedding.weight": "wte.weight", "position.embedding.weight": "wpe.weight"}
    state["final_norm.weight"] = "ln_f.weight"
    new = {ours_: theirs["transformer." + name] for ours_, name in state.items()}
    for i in range(len(model.blocks)):  # type: ignore[arg-type]
        block = f"transformer.h.{i}."
        new |= {f"blocks.{i}.{mine}.weight": theirs[f"{block}{name}.weight"] for mine, name in names.items()}
        parts = theirs[block + "attn.c_attn.weight"].chunk(3)
        new |= {f"blocks.{i}.mixer.{x}_proj.weight": part for x, part in zip("qkv", parts, strict=True)}
    model.load_state_dict(new)


def random_batches(configuration: Configuration, device: torch.device, count: int) -> list[Batch]:
    """Tokens that can be learned a little: a few words in random order."""
    model, run = configuration.model, configuration.run
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, model.vocab_size or 0, (50, 8), generator=generator)
    length = model.block_size + 1
    batches = []
    for _ in range(count):
        chosen = torch.randint(0, 50, (run.batch_size, length // 8 + 1), generator=generator)
        rows = words[chosen].flatten(1)[:, :length].to(device)
        batches.append(Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()))
    return batches


def compare(contestants: list[Contestant], batches: list[Batch], device: torch.device) -> None:
    """Every contestant trains on every batch, in turn; the first three steps of each are not timed."""
    for number, batch in enumerate(batches):
        for contestant in contestants:
            synchronize(device)
            start = time.perf_counter()
            contestant.losses.append(contestant.step(batch))
            synchronize(device)
            if number >= 3:
                contestant.seconds.append(time.perf_counter() - start)


def report(configuration: Configuration, device: torch.device, contestants: list[Contestant]) -> None:
    """Medians, spread, MFU (full attention) in the dtype computed in, ratio to the fastest nanoGPT, and losses."""
    run, plan = configuration.run, plan_run(configuration, None)
    micro_batch = run.batch_size * configuration.model.block_size
    print(f"{configuration.model.name} on {device_name(device)}, torch {torch.__version__}")
    nanogpt = [contestant.median() for contestant in contestants if contestant.name.startswith("nanoGPT")]
    for contestant in contestants:
        tokens = micro_batch * (1 if contestant.name.startswith("nanoGPT") else run.gradient_accumulation_steps)
        rate = tokens / contestant.median()
        dtype = contestant.name.split()[1]
        mfu = rate * plan.flops_per_token["full"] / device_peak(device, dtype).flops_per_second
        low, high = min(contestant.seconds), max(contestant.seconds)
        line = f"{contestant.name:<28} {rate:>9,.0f} tokens/s   {1000 * contestant.median():8.1f} ms "
        line += f"({1000 * low:.1f} to {1000 * high:.1f})   MFU {100 * mfu:5.1f}%"
        if nanogpt:
            line += f"   {min(nanogpt) / contestant.median():5.2f} x nanoGPT's best"
        print(f"{line}   loss {contestant.losses[0]:.4f} -> {contestant.losses[-1]:.4f}")
    if nanogpt:
        reference = next(contestant for contestant in contestants if contestant.name.startswith("nanoGPT"))
        for contestant in contestants:
            differences = [abs(a - b) for a, b in zip(contestant.losses, reference.losses, strict=True)]
            print(f"largest difference of a loss from {reference.name}: {contestant.name} {max(differences):.2e}")


@exit_cleanly
def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--nanogpt", type=Path, metavar="DIR", help="a checkout of nanoGPT to compare with")
    parser.add_argument("--steps", type=positive, default=20, help="timed steps of each contestant")
    arguments, rest = parser.parse_known_args()
    configuration = load(rest if any(word.endswith(".py") for word in rest) else merge(CHARACTER_MODEL, rest))
    check_one_device(configuration)
    device = choose_device(configuration.run.device, ALONE)
    tf32 = configuration.run.tf32 and device.type == "cuda"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    contestants = choose_contestants(configuration, device, arguments.nanogpt)
    compare(contestants, random_batches(configuration, device, arguments.steps + 3), device)
    report(configuration, device, contestants)


def check_one_device(configuration: Configuration) -> None:
    """Raises UserError for what a benchmark of one device and random tokens would leave out without a word."""
    if configuration.model.vocab_size is None:
        raise UserError("give --vocab_size: the benchmark reads no dataset")
    if configuration.run.is_sharded:
        raise UserError(
            "the benchmark is of one device: benchmarks/distributed.py is of use_fsdp, use_zero1 and tensor_parallel"
        )


def merge(defaults: list[str], given: list[str]) -> list[str]:
    """Both, less the defaults that are given otherwise."""
    names = {word.partition("=")[0] for word in given}
    return [word for word in defaults if word.partition("=")[0] not in names] + given


def choose_contestants(configuration: Configuration, device: torch.device, nanogpt: Path | None) -> list[Contestant]:
    """The config as it is; against nanoGPT, both in all the ways that each can run here."""
    best = choose_dtype(configuration.run.dtype, device)
    if nanogpt is None:
        compiled = configuration.run.compile is True
        _, step = ours(configuration, device, best, compiled)
        return [Contestant(f"isoflop {best} {'compiled' if compiled else 'eager'}", step)]
    if configuration.run.gradient_accumulation_steps != 1 or configuration.model.arch_preset != "legacy":
        raise UserError("nanoGPT is compared on its own architecture (arch_preset='legacy') without accumulation")
    contestants, start = [], None
    their_dtype = "bfloat16" if device.type == "cuda" else "float32"
    for compiled in (False, True):
        model, step = nanogpts(configuration, device, nanogpt, compiled)
        start = start or {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(start)
        contestants.append(Contestant(f"nanoGPT {their_dtype} {'compiled' if compiled else 'eager'}", step))
    for dtype in dict.fromkeys((their_dtype, best)):
        for compiled in (False, True):
            mine, step = ours(configuration, device, dtype, compiled)
            copy_weights_from_nanogpt(mine, model)
            contestants.append(Contestant(f"isoflop {dtype} {'compiled' if compiled else 'eager'}", step))
    return contestants


if __name__ == "__main__":
    main()
