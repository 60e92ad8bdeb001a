"""Answer tokens per second of a fine-tuning step, here and by TRL's SFTTrainer, and the most memory of each, in turn in
one run, on the same conversations and weights: a Hugging Face folder of a model with random weights.

    python benchmarks/finetuning.py
    python benchmarks/finetuning.py --block_size 1024 --batch_size 4 --rounds 5

Each contestant has a process of its own, which prepares the conversations and takes steps with AdamW in float32, of
which some are timed; loading and preparing are not. A micro-batch has --batch_size rows: conversations, padded, or
windows of --block_size tokens in which they are packed. TRL's defaults compute activations again in the backward pass,
which saves memory and takes time, so it is there without this, too. Its packing has one row in which conversations
follow one another, as it needs attention that no CPU has to keep them apart otherwise.

Conversations are one question and one answer of random words, the lengths of answers log-normal: a few are long. Tokens
are bytes, in ChatML; the head has a row for each of --vocab_size, as many as a tokenizer of words would want. Tokens
that count are those that each side's loss is of: TRL's has the line's end after an answer, too. Rates are of the
processor's time, which other work on the machine changes little, and of the clock's.
"""

import argparse
import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository runs without being installed

import torch

from benchmarks.evaluation import WORDS, write_folder
from common.errors import ArgumentParser, UserError, exit_cleanly, positive
from common.memory import peak_of_process
from configurator import load
from data.dataset import open_dataset
from data.loader import prefetch, split_batches
from data.tokenizers import choose
from finetuning.prepare import NAME, Task, prepare
from finetuning.templates import CHATML, ChatTemplate
from interop.sources import with_architecture_of
from model_config import ModelArchitectureConfig, resolve_architecture
from parallel.compute import Compute
from parallel.strategy import parallelize
from runs.checkpoint import Training
from runs.config import DATA
from runs.folder import Progress
from runs.initial import read_source
from training.optimizer import build_optimizer
from training.plan import cut_of
from training.step import take_step

UNTIMED = 2  # steps
QUESTION = (5, 30)  # words, fewest and most
ANSWER = (3.0, 0.9)  # mean and deviation of the logarithm of an answer's words
OF_TEMPLATE = 64  # bytes, at most, of ChatML about a question and an answer


@dataclasses.dataclass(frozen=True)
class Found:
    """Of the timed steps of a process: answer tokens, seconds of the processor and of the clock, and the most memory,
    bytes, from its beginning on."""

    tokens: int
    processor: float
    clock: float
    peak: int


@exit_cleanly
def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    if options.contestant is not None:
        print(json.dumps(vars(CONTESTANTS[options.contestant](options))))
        return
    try:
        import trl
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install -e '.[dev]'") from None
    config = architecture(options)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(config, folder)
        talks = conversations(options)
        (folder / "chats.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
        mean = statistics.mean(len(talk["completion"]) for talk in talks)
        print(
            f"{config.name}, {options.block_size:,} tokens, vocabulary {config.vocab_size:,}; {len(talks):,} "
            f"conversations, answers of {mean:,.0f} bytes in the mean; TRL {trl.__version__}, threads: "
            f"{options.threads}, {options.steps} steps of {options.batch_size} rows, median of {options.rounds} rounds",
            flush=True,
        )
        found: dict[str, list[Found]] = {name: [] for name in CONTESTANTS}
        for _ in range(options.rounds):
            for name, rounds in found.items():
                rounds.append(in_own_process(name, folder, options.threads))
    report(found)


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    option = parser.add_argument
    option("--conversations", type=positive, default=512, metavar="N", help="(512)")
    option("--block_size", type=positive, default=512, metavar="N", help="tokens of a window, at least 256 (512)")
    option("--batch_size", type=positive, default=8, metavar="N", help="rows of a micro-batch, one a step (8)")
    option("--vocab_size", type=positive, default=8192, metavar="N", help="at least 256, of the model (8192)")
    option("--n_layer", type=positive, default=6, metavar="N", help="(6)")
    option("--n_embd", type=positive, default=256, metavar="N", help="a multiple of 64 (256)")
    option("--steps", type=positive, default=8, metavar="N", help="timed steps of a round (8)")
    option("--rounds", type=positive, default=3, metavar="N", help="(3)")
    option("--threads", type=positive, default=1, metavar="N", help="(1)")
    option("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)  # what a process of its own is called with
    option("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.n_embd % 64:
        raise UserError(f"--n_embd={options.n_embd} must be a multiple of 64")
    for name in ("vocab_size", "block_size"):
        if getattr(options, name) < 256:
            raise UserError(f"--{name}={getattr(options, name)} is too small: take at least 256")
    return options


def architecture(options: argparse.Namespace) -> ModelArchitectureConfig:
    heads = options.n_embd // 64
    keys = {"arch_preset": "llama3", "n_head": heads, "num_key_value_heads": heads}
    of_options = ("n_layer", "n_embd", "vocab_size", "block_size")
    return resolve_architecture(keys | {name: getattr(options, name) for name in of_options})


def conversations(options: argparse.Namespace) -> list[dict[str, str]]:
    """Always the same ones, each of which fits into a window."""
    draw, found = random.Random(0), []
    for _ in range(options.conversations):
        asked = " ".join(draw.choices(WORDS, k=draw.randint(*QUESTION)))
        said = " ".join(draw.choices(WORDS, k=1 + int(draw.lognormvariate(*ANSWER))))
        found.append({"prompt": asked, "completion": said[: options.block_size - OF_TEMPLATE - len(asked)].strip()})
    return found


# ---------------------------------------------------------------------------------------------------------------------
# In a process of its own


def in_own_process(contestant: str, folder: Path, threads: int) -> Found:
    """What one finds in a round. Raises UserError with what it last said."""
    arguments = [sys.executable, __file__, *sys.argv[1:], f"--contestant={contestant}", f"--folder={folder}"]
    variables = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(arguments, capture_output=True, text=True, env=variables, check=False)
    if done.returncode:
        raise UserError(f"{contestant}: {(done.stderr.strip() or 'it was killed').splitlines()[-1]}")
    return Found(**json.loads(done.stdout.splitlines()[-1]))


def here(options: argparse.Namespace) -> Found:
    """Conversations packed into windows, as finetune.py has them by config/sft.py."""
    keys = [f"--batch_size={options.batch_size}", "--gradient_accumulation_steps=1", "--device=cpu", "--dtype=float32"]
    configuration = with_architecture_of(options.folder, load(["config/sft.py", *keys]))
    run, device = configuration.run, torch.device("cpu")
    with tempfile.TemporaryDirectory() as name:
        template, kept = ChatTemplate("chatml", CHATML), choose("byte")
        prepare(Task("", (options.folder / "chats.jsonl",), (), 0.01, kept, template, options.block_size), Path(name))
        dataset = open_dataset(Path(name) / DATA / NAME)
        loader = split_batches(dataset, "train", cut_of(configuration), 0, True, slice(None))
        compute = Compute(device, "float32")
        model, wrapper = parallelize(configuration, compute, False)
        model.load_state_dict(read_source(options.folder)[1])
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        training = Training(model, build_optimizer(model, run), scaler, Progress(), wrapper)
        firsts = range(0, (UNTIMED + options.steps) * run.batch_size, run.batch_size)
        batches, timed = prefetch(loader, firsts, run.batch_size, device), Timed()
        for number in range(len(firsts)):
            if number == UNTIMED:
                timed.begin()
            timed.tokens += take_step(training, batches, run, run.learning_rate, compute).targets
        return timed.end()


def by_trl(options: argparse.Namespace, **how: Any) -> Found:
    """With its own tokenization, batches and loop."""
    import transformers
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    timed = Timed()

    class Counting(SFTTrainer):
        def compute_loss(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
            timed.tokens += int((inputs["labels"][:, 1:] != -100).sum())
            return super().compute_loss(model, inputs, *rest, **named)

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == UNTIMED:
                timed.begin()

    tokenizer = transformers.AutoTokenizer.from_pretrained(options.folder)
    tokenizer.chat_template = CHATML
    tokenizer.eos_token = tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    talks = map(json.loads, (options.folder / "chats.jsonl").read_text().splitlines())
    roles = {"prompt": "user", "completion": "assistant"}
    rows = [{name: [{"role": role, "content": talk[name]}] for name, role in roles.items()} for talk in talks]
    arguments = SFTConfig(
        str(options.folder / "trl"), max_steps=UNTIMED + options.steps, max_length=options.block_size,
        per_device_train_batch_size=options.batch_size, use_cpu=True, bf16=False, report_to="none", save_strategy="no",
        disable_tqdm=True, **how,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32)
    data = Dataset.from_list(rows)
    Counting(model, arguments, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()]).train()
    return timed.end()


class Timed(types.SimpleNamespace):
    """Tokens and seconds of the steps since it began."""

    tokens = 0

    def begin(self) -> None:
        self.tokens, self.start = 0, (time.process_time(), time.perf_counter())

    def end(self) -> Found:
        processor, clock = time.process_time() - self.start[0], time.perf_counter() - self.start[1]
        return Found(self.tokens, processor, clock, peak_of_process())


CONTESTANTS: dict[str, Callable[[argparse.Namespace], Found]] = {
    "here, packed": here,
    "TRL, its defaults": by_trl,
    "TRL, nothing recomputed": lambda options: by_trl(options, gradient_checkpointing=False),
    "TRL, packed, nothing recomputed": lambda options: by_trl(options, packing=True, gradient_checkpointing=False),
}


# ---------------------------------------------------------------------------------------------------------------------
# The report


def report(found: dict[str, list[Found]]) -> None:
    """Rates, memory, and how many times as fast the first one was in a round as each other, with the least and the most
    of the rounds."""
    first, *others = found
    for name, rounds in found.items():
        rates = [
            f"{statistics.median(one.tokens / getattr(one, unit) for one in rounds):>9,.0f} per {word}"
            for unit, word in (("processor", "processor second"), ("clock", "second"))
        ]
        peak = statistics.median(one.peak for one in rounds)
        print(f"{name:32s} {'   '.join(rates)}   peak {peak / 1e6:>7,.0f} MB")
    for name in others:
        pairs = [*zip(found[first], found[name], strict=True)]
        faster = [(ours.tokens / ours.processor) / (theirs.tokens / theirs.processor) for ours, theirs in pairs]
        memory = [ours.peak / theirs.peak for ours, theirs in pairs]
        print(f"beside {name}: {spread(faster)} times as many per processor second, {spread(memory)} of its memory")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
