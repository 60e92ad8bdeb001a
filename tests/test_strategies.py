"""How train.py answers a wish for a strategy: what it costs on ranks that are not there, and why one cannot be had."""

import re
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, environment

from common.errors import SECONDS_TO_REPORT
from configurator import load
from flops_parameter_counting.costs.communication import sent_by_part, step_exchanges
from flops_parameter_counting.costs.memory import rank_memory
from flops_parameter_counting.costs.model_cost import model_cost

SIZES = "--n_layer=4 --n_head=8 --n_embd=1024 --num_key_value_heads=4 --block_size=64 --batch_size=2".split()
MODEL = ["--arch_preset=llama3", *SIZES, "--dtype=bfloat16", "--gradient_accumulation_steps=128"]
FSDP = "--use_fsdp=True"


UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def parts_of(text: str, heading: str) -> dict[str, float]:
    """In bytes, the rows below a line of the report."""
    (block,) = re.findall(rf"^{heading}.*\n((?:  .*\n)+)", text, flags=re.MULTILINE)
    rows = re.findall(r"^  (\w+) +([\d.]+) (\w+)$", block, flags=re.MULTILINE)
    return {name: float(size) * UNITS[unit] for name, size, unit in rows}


@pytest.mark.parametrize(
    ("keys", "ranks"),
    [
        ([FSDP], "1 replicas x 64 shards of one x 1 that share every layer"),
        (["--use_zero1=True"], "64 replicas x 1 shards of one x 1 that share every layer"),
        ([FSDP, "--tensor_parallel=4"], "1 replicas x 16 shards of one x 4 that share every layer"),
        (
            [FSDP, "--context_parallel=4"],
            "1 replicas x 64 shards of one x 1 that share every layer; each 4 divide every sequence",
        ),
    ],
    ids=["FSDP", "ZeRO-1", "tensor parallel x FSDP", "context parallel x FSDP"],
)
def test_a_dry_run_tells_what_64_ranks_would_hold_and_send(train, keys, ranks):
    done = train("--dry_run", "--world_size=64", *MODEL, *keys)
    assert done.returncode == 0, done.stderr
    configuration = load([*MODEL, "--vocab_size=256", *keys])
    model, run = configuration.model, configuration.run
    memory = rank_memory(model, run, 64, "bfloat16")
    sent = sent_by_part(step_exchanges(model, run, 64, "bfloat16"))
    assert f"Ranks:                 64 = {ranks}\n" in done.stdout
    assert parts_of(done.stdout, "Memory estimate:") == pytest.approx(memory, rel=5e-4)
    assert parts_of(done.stdout, "Sent in a step:") == pytest.approx(sent, rel=5e-4, abs=0.5)
    state = 8 if run.use_zero1 else 16
    whole = state * model_cost(model).n_params  # every size here divides by the ranks, of the state all but norms
    divided = memory["optimizer"] + (0 if run.use_zero1 else memory["weights"] + memory["gradients"])
    assert divided == pytest.approx(whole / 64, rel=1e-3)


FOUR = ["--gradient_accumulation_steps=4", "--n_head=4", "--n_embd=32"]
TENSOR = [*FOUR, "--tensor_parallel=4", "--dry_run", "--world_size=4"]
SHARED = [*FOUR, "--ffn_pattern=E", "--expert_parallel=4", "--dry_run", "--world_size=4"]

DIVIDED = [*FOUR, "--context_parallel=4", "--dry_run", "--world_size=4"]


def states(letter: str, *keys: str) -> list[str]:
    """Layers with a state beside those of attention."""
    return [*TENSOR, "--arch_preset=hybrid", f"--layer_pattern=A{letter}", *keys]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["--world_size=2"], "world_size=2 is for --dry_run=True"),
        (
            [*FOUR, "--dry_run", "--world_size=6", "--tensor_parallel=4"],
            "6 ranks are no multiple of tensor_parallel x fsdp_replicas = 4 x 1",
        ),
        (
            ["--dry_run", "--world_size=6", FSDP, "--fsdp_replicas=4"],
            "6 ranks are no multiple of tensor_parallel x fsdp_replicas = 1 x 4",
        ),
        (
            ["--dry_run", "--world_size=64", FSDP],
            "gradient_accumulation_steps=2 is not divisible by the 64 ranks that share a step's micro-batches",
        ),
        ([*TENSOR, "--n_head=2"], "tensor_parallel=4 does not divide n_head=2: change one of them"),
        ([*TENSOR, "--num_key_value_heads=2"], "tensor_parallel=4 does not divide num_key_value_heads=2"),
        ([*TENSOR, "--vocab_size=258"], "tensor_parallel=4 does not divide vocab_size=258"),
        ([*TENSOR, "--d_ff=66"], "tensor_parallel=4 does not divide d_ff=66"),
        ([*TENSOR, "--layer_values={0: {'d_ff': 66}}"], "tensor_parallel=4 does not divide d_ff=66"),
        ([*TENSOR, "--qk_norm=True"], "tensor_parallel does not share norms of queries and keys: take qk_norm=False"),
        ([*TENSOR, "--position_encoding=alibi"], "tensor_parallel does not share ALiBi's slopes"),
        ([*TENSOR, "--dropout=0.1"], "tensor_parallel needs dropout=0"),
        (
            states("M", "--mamba_head_dim=32"),
            "does not divide mamba_expand*n_embd/mamba_head_dim=2: change one of them",
        ),
        (states("M", "--mamba_head_dim=8", "--mamba_n_groups=2"), "does not divide mamba_n_groups=2: change one of"),
        (
            states("S", "--n_embd=34", "--head_dim=8", "--mamba_expand=1", "--d_ff=64"),
            "tensor_parallel=4 does not divide mamba_expand*n_embd=34: change one of them",
        ),
        (states("D", "--linear_num_value_heads=6"), "does not divide linear_num_value_heads=6: change one of them"),
        (states("D", "--linear_num_value_heads=8", "--linear_num_key_heads=2"), "linear_num_key_heads=2: change one"),
        (states("K"), "tensor_parallel=4 does not divide linear_num_value_heads=1: change one of them"),
        (["--use_zero1=True", FSDP], "use_zero1 and use_fsdp exclude each other"),
        ([*TENSOR, "--use_zero1=True"], "use_zero1 and tensor_parallel exclude each other"),
        (
            [*SHARED, "--ffn_pattern=F"],
            "expert_parallel=4, but no layer has experts: drop it, or write E into",
        ),
        ([*SHARED, "--n_experts=6"], "expert_parallel=4 does not divide n_experts=6: change one of them"),
        ([*SHARED, "--layer_values={0: {'n_experts': 6}}"], "expert_parallel=4 does not divide n_experts=6"),
        ([*SHARED, "--world_size=6"], "6 ranks are no multiple of expert_parallel=4"),
        ([*SHARED, "--tensor_parallel=2"], "tensor_parallel and expert_parallel exclude each other: take one of them"),
        (
            [*SHARED, "--use_zero1=True"],
            "use_zero1 and expert_parallel exclude each other: beside",
        ),
        ([*SHARED, FSDP, "--fsdp_cpu_offload=True"], "fsdp_cpu_offload does not offload experts that ranks share"),
        ([*DIVIDED, "--world_size=6"], "6 ranks are no multiple of tensor_parallel x context_parallel = 1 x 4"),
        (
            [*DIVIDED, "--tensor_parallel=2"],
            "4 ranks are no multiple of tensor_parallel x context_parallel = 2 x 4",
        ),
        ([*DIVIDED, "--block_size=30"], "context_parallel=4 does not divide block_size=30: change one of them"),
        (
            [*DIVIDED, "--block_size=36", "--tensor_parallel=4", "--world_size=16"],
            "tensor_parallel=4 does not divide block_size/context_parallel=9",
        ),
        ([*DIVIDED, "--dropout=0.1"], "context_parallel needs dropout=0: ranks would drop the same places of their"),
        (
            [
                *DIVIDED,
                "--arch_preset=llama3",
                "--rope_scaling={'rope_type': 'dynamic', 'factor': 4.0, 'original_max_position_embeddings': 16}",
            ],
            "context_parallel: this rope_scaling turns tokens by the length of their text",
        ),
        (["--fsdp_cpu_offload=True"], "fsdp_cpu_offload=True is for FSDP: add --use_fsdp=True"),
        (["--fsdp_replicas=2"], "fsdp_replicas=2 is for FSDP: add --use_fsdp=True"),
        (["--fsdp_reshard_after_forward=False"], "fsdp_reshard_after_forward=False is for FSDP"),
        (["--fsdp_reduce_dtype=bfloat16", "--use_zero1=True"], "fsdp_reduce_dtype='bfloat16' is for FSDP"),
    ],
)
def test_a_strategy_that_cannot_be_is_one_line(train, tmp_path, keys, message):
    done = train(*keys)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


# Under torchrun


def one_line_of_two_ranks(done: subprocess.CompletedProcess) -> str:
    """torchrun's own exit code is 1, and its report has those of the ranks: 2, or -15 of one that it ended itself."""
    codes = set(re.findall(r"exitcode *: (-?\d+)", done.stderr))
    assert done.returncode == 1 and {"2"} <= codes <= {"2", "-15"}
    (line,) = re.findall(r"^.*error: .*$", done.stderr, flags=re.MULTILINE)
    return line


ONLY_COUNTED = """
from components.registry import register_spec
from components.spec import FFN, matrices

@register_spec
class Planned(FFN):
    name = "planned"

    def weights(self, config):
        return matrices("proj", config.n_embd, config.n_embd, writes=True)

    def kept(self, batch):
        return batch.linear_inputs(batch.config.n_embd)
"""


def test_what_can_only_be_counted_is_planned_and_refused(train, tmp_path):
    """A dry run says so, and the run itself begins nothing."""
    (tmp_path / "planned").mkdir()
    (tmp_path / "planned/spec.py").write_text(ONLY_COUNTED)
    keys = ["--components=planned", "--ffn_type=planned"]
    reason = "ffn_type='planned' can be counted, but there is no module that computes it yet"
    planned = train(*keys, "--dry_run")
    assert planned.returncode == 0 and f"the run itself is refused: {reason}" in planned.stdout
    refused = train(*keys, "--out_dir=run")
    assert (refused.returncode, refused.stderr) == (2, f"error: {reason}\n")
    assert not (tmp_path / "run").exists()


def test_heads_that_ranks_do_not_divide_are_told_once(train, tmp_path):
    keys = ["--layer_pattern=AK", "--linear_num_value_heads=3", "--tensor_parallel=2"]
    line = one_line_of_two_ranks(train(*keys, ranks=2))
    assert line == "error: tensor_parallel=2 does not divide linear_num_value_heads=3: change one of them"
    assert not (tmp_path / "run").exists()


def test_ranks_that_do_not_factor_are_told_once(train):
    line = one_line_of_two_ranks(train("--use_fsdp=True", "--fsdp_replicas=4", ranks=2))
    assert line == "error: 2 ranks are no multiple of tensor_parallel x fsdp_replicas = 1 x 4"


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="this machine has GPUs enough")
def test_more_ranks_than_gpus_are_told_once(train):
    line = one_line_of_two_ranks(train("--device=cuda", ranks=2))
    if torch.cuda.is_available():
        assert "2 GPUs are wanted here, but PyTorch sees 1; start fewer processes" in line
    else:
        assert "device='cuda' needs an NVIDIA GPU that PyTorch sees; --device=cpu runs anywhere" in line


@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_rendezvous_is_told(data_dir, tmp_path, rank):
    """The ranks start as a script that sets them itself would start them. The second rank leaves the first the time to
    speak: it is for torchrun to end it before it speaks itself."""
    told = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    env = {name: value for name, value in environment().items() if name not in ("MASTER_ADDR", "MASTER_PORT")}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--dataset=tiny", f"--data_dir={data_dir}", "--out_dir=run"],
        cwd=tmp_path, env=env | told, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    line = "error: WORLD_SIZE=2, but MASTER_ADDR and MASTER_PORT do not say where the ranks meet: start them with "
    assert done.stderr == f"{line}torchrun\n"
    assert (time.monotonic() - began > SECONDS_TO_REPORT) == (rank == 1)
