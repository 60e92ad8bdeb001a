"""What `--model_config` says about a model, as data and as text: against the plan of train.py, PyTorch's counters and
arithmetic by hand; and `--validate`."""

import json
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, environment
from hypothesis import given
from hypothesis import strategies as st
from test_memory import counting_kept_bytes
from torch.utils.flop_counter import FlopCounterMode

from common.errors import UserError
from components.ffns.experts.spec import Experts
from configurator import load, with_vocabulary
from data.dataset import open_dataset
from data.writer import DatasetWriter
from flops_parameter_counting import detailed_cost_analysis, validate
from flops_parameter_counting.costs.devices import DEVICES, find_device
from flops_parameter_counting.costs.memory import rank_memory, training_memory
from flops_parameter_counting.costs.model_cost import model_cost
from flops_parameter_counting.costs.report import as_text, describe
from flops_parameter_counting.costs.setting import Setting
from flops_parameter_counting.costs.sharding import parameters
from interop.model_files import Model, model_from_values
from model_builder import build_model
from model_config import resolve_architecture
from training.plan import plan_run

COMMAND = ROOT / "flops_parameter_counting/detailed_cost_analysis.py"
SMALL = resolve_architecture({"arch_preset": "llama3", "n_layer": 3, "n_head": 4, "n_embd": 32, "block_size": 24,
                              "num_key_value_heads": 2, "vocab_size": 61})  # fmt: skip


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """`command(*arguments)`: exit code, what it printed, and its data (None where none were written)."""

    def run(*arguments: str) -> tuple[int, str, dict | None]:
        file = tmp_path / "found.json"
        file.unlink(missing_ok=True)
        monkeypatch.setattr(sys, "argv", [str(COMMAND), *arguments])
        with pytest.raises(SystemExit) as end:
            detailed_cost_analysis.main()
        printed = capsys.readouterr()
        found = json.loads(file.read_text()) if file.exists() else None
        return int(end.value.code or 0), printed.out + printed.err, found

    return run


def small(**setting) -> dict:
    return describe(Model("small", "test", SMALL), Setting(**setting))


# The same figures as train.py's


def test_what_a_config_file_freezes_is_counted_as_the_run_counts_it(command, tmp_path):
    """FLOPs, time and memory are those of the plan."""
    file = tmp_path / "in_part.py"
    keys = {"arch_preset": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "vocab_size": 61,
            "batch_size": 2, "dtype": "float32", "frozen": "embedding.*,blocks.0.*"}  # fmt: skip
    file.write_text("".join(f"{key} = {value!r}\n" for key, value in keys.items()))
    configuration = load([str(file)])
    plan = plan_run(configuration, None)
    arguments = ["--json", str(tmp_path / "found.json"), "--tokens", "1e6", "--peak_flops", "1e12", "--mfu", "0.5"]
    code, printed, found = command("--model_config", str(file), *arguments)
    assert code == 0 and "not trained: embedding.*,blocks.0.*" in printed
    flops = found["flops_per_token"]
    assert flops["training"] == plan.flops_per_token["full"] < 3 * flops["forward"]
    assert flops["causal"]["training"] == plan.flops_per_token["causal"]
    assert flops["training_by_part"] == {part: count for part, count in plan.flops_by_part.items() if count}
    assert found["time"]["flops"] == 1e6 * flops["training"]
    assert found["memory"]["by_part"] == rank_memory(configuration.model, configuration.run, 1, "float32")


@pytest.mark.parametrize("name", ["quickstart", "arch_gpt2", "arch_llama3"])
def test_a_config_file_costs_what_its_plan_says(command, tmp_path, name):
    file = str(ROOT / f"config/{name}.py")
    code, out, found = command("--model_config", file, "--vocab_size=311", f"--json={tmp_path / 'found.json'}")
    assert code == 0, out
    configuration = load([file, "--vocab_size=311"])
    plan = plan_run(configuration, None)
    parameters, flops = found["parameters"], found["flops_per_token"]
    assert parameters["total"] == parameters["active"] == sum(parameters["by_part"].values()) == plan.cost.n_params
    assert (flops["training"], flops["causal"]["training"]) == tuple(plan.flops_per_token.values())
    assert sum(flops["by_part"].values()) == flops["forward"] == plan.cost.forward_flops()
    run = configuration.run
    memory = training_memory(configuration.model, run.batch_size, "bfloat16", run.activation_checkpointing)
    assert found["memory"]["by_part"] == memory and found["memory"]["total"] == sum(memory.values())
    for figure in (parameters["total"], flops["forward"], flops["causal"]["training"]):
        assert f"{figure:,}" in out


def test_another_sequence_length_changes_scores_activations_and_cache_only():
    short, long = small(sequence_length=10), small(sequence_length=70)
    assert short["parameters"] == long["parameters"]
    for part, flops in short["flops_per_token"]["by_part"].items():
        factor = 7 if part == "attention_scores" else 1
        assert long["flops_per_token"]["by_part"][part] == factor * flops
    long_cache, short_cache = (found["memory"]["cache"]["bytes_per_sequence"] for found in (long, short))
    assert long_cache == 7 * short_cache == 70 * 3 * 2 * 2 * 8 * 2
    assert long["memory"]["by_part"]["weights"] == short["memory"]["by_part"]["weights"]
    activations = [small(sequence_length=t, dtype="float32")["memory"]["by_part"]["activations"] for t in (10, 70)]
    assert activations[1] == 7 * activations[0], "the fused kernel keeps no scores"


def test_estimates_are_off_by_what_they_count_wrongly():
    """6 N + 12 L H Q T takes the look-up and the norms for matrices, of an untied model with full attention; 6 N
    forgets the scores besides."""
    found = small()
    flops, parts = found["flops_per_token"], found["parameters"]["by_part"]
    wrong = 6 * (parts["embedding"] + parts["norms"])
    palm, plain = flops["estimates"]["6N+12LHQT"], flops["estimates"]["6N"]
    assert palm["training"] == flops["training"] + wrong
    assert palm["off_full_percent"] == pytest.approx(100 * wrong / flops["training"])
    assert (
        plain["training"] == palm["training"] - 12 * 3 * 32 * 24 == 6 * plain["n"] == 6 * found["parameters"]["total"]
    )
    assert plain["off_causal_percent"] == pytest.approx(100 * (plain["training"] / flops["causal"]["training"] - 1))


# Memory


@given(devices=st.integers(2, 4096), dtype=st.sampled_from(["float32", "tf32", "bfloat16", "float16"]))
def test_strategies_divide_what_they_share(devices, dtype):
    alone = small(dtype=dtype)["memory"]["by_part"]
    ddp, zero1, fsdp = (
        small(dtype=dtype, devices=devices, strategy=strategy)["memory"]["by_part"]
        for strategy in ("ddp", "zero1", "fsdp")
    )
    assert ddp == alone
    shared = {"zero1": (zero1, ["optimizer"]), "fsdp": (fsdp, ["weights", "gradients", "optimizer"])}
    a_row_of_each = sum(p.copies * p.width for p in parameters(SMALL).all)
    for held, parts in shared.values():
        for part in parts:
            bytes_each = {"optimizer": 8}.get(part, 4)
            assert 0 <= held[part] * devices - alone[part] <= (devices - 1) * bytes_each * a_row_of_each
    assert {part: zero1[part] for part in zero1 if part != "optimizer"} == {
        part: alone[part] for part in alone if part != "optimizer"
    }
    assert fsdp["gathered"] > 0 and fsdp["logits"] == alone["logits"]
    casts = alone["activations"] - fsdp["activations"]  # autocast's copies of the blocks' matrices
    blocks = small()["parameters"]["by_part"]
    assert casts == (2 * (blocks["attention"] + blocks["ffn"]) if dtype.endswith("16") else 0)


def test_the_planner_tells_what_the_dry_run_tells(command, tmp_path):
    """They are given the same keys: tensor parallelism, replicas and state in main memory among them."""
    file = str(ROOT / "config/full_llama3_8b.py")
    sharing = ["--strategy=fsdp", "--tensor_parallel=2", "--fsdp_replicas=2", "--fsdp_cpu_offload"]
    code, out, found = command("--model_config", file, "--devices=16", *sharing, f"--json={tmp_path / 'found.json'}")
    assert code == 0, out
    keys = ["--use_fsdp=True", "--tensor_parallel=2", "--fsdp_replicas=2", "--fsdp_cpu_offload=True"]
    configuration = load([file, *keys])
    parts = rank_memory(configuration.model, configuration.run, 16, "bfloat16")
    assert "on each of 16 devices, fsdp, 2 replicas, 2 share every layer" in out
    assert out.count("  in main memory") == 3
    assert found["memory"]["by_part"] == parts
    assert found["memory"]["total"] == parts["gathered"] + parts["activations"] + parts["logits"]
    assert parts["weights"] * 16 > 2 * 4 * found["parameters"]["total"], "two copies"


DEEPSEEK = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
            "moe_intermediate_size": 12, "n_routed_experts": 6, "num_experts_per_tok": 2, "vocab_size": 31,
            "q_lora_rank": None, "n_shared_experts": 0, "kv_lora_rank": 8,
            "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 3}  # fmt: skip


def test_what_nobody_has_written_down_is_said_and_not_counted(monkeypatch):
    def kept(self, batch):
        raise UserError("the memory of ffn_type='experts' is not known")

    monkeypatch.setattr(Experts, "kept", kept)
    deepseek = model_from_values({"model_type": "deepseek_v2", **DEEPSEEK}, "d")
    found = describe(deepseek, Setting(device_memory=1e12))
    n = found["parameters"]["total"]
    assert found["memory"]["by_part"] == {"weights": 4 * n, "gradients": 4 * n, "optimizer": 8 * n}
    assert found["memory"]["not_known"] and found["memory"]["fits"] is None
    text = as_text(found)
    assert "MEMORY OF TRAINING at least" in text and " GB\n  fits" not in text
    assert "activations and logits are not counted here: the memory of ffn_type='experts' is not known" in text


def test_what_ranks_hold_of_experts_and_latent_vectors():
    """Of 31, 6 and 12 rows four ranks have 8, 2 and 3 each; a stack of experts is divided by experts."""
    deepseek = model_from_values({"model_type": "deepseek_v2", **DEEPSEEK}, "d")
    shared = describe(deepseek, Setting(devices=4, strategy="fsdp"))["memory"]["by_part"]
    attention = 10 * 24 + 3 * 24 + 2 + 9 * 8 + 6 * 12  # queries; latent vector, its norm, out of it; output
    block = attention + 2 * 24 + 3 * (2 * 12 * 24)  # router, experts
    root = 2 * (8 * 24) + 5 * 6  # embedding and head, norms
    held = root + 2 * block
    fetched_ahead, gradients = 2 * 2, 2 + 4  # bytes of two blocks in bfloat16; of one's gradients, in float32 as well
    gathered = 4 * (8 * root + (fetched_ahead + gradients) * block)
    state = {"weights": 4 * held, "gradients": 4 * held, "optimizer": 8 * held}
    assert {part: shared[part] for part in (*state, "gathered")} == state | {"gathered": gathered}


@pytest.mark.parametrize("change", [{"time_step_rank": 7}, {"use_bias": True}, {"use_conv_bias": False}], ids=str)
def test_another_mamba_needs_what_its_model_does(change):
    """Steps of another rank, and biases of its own: against what autograd keeps of it, and the rows that ranks divide
    of each of its parameters."""
    keys = {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 62, **change}
    mamba = model_from_values(keys, "m")
    model = build_model(mamba.architecture, seed=0)
    with counting_kept_bytes(model) as kept:
        model.hidden(torch.randint(62, (3, 50)))
    found = describe(mamba, Setting(sequence_length=50, micro_batch=3, dtype="float32", device_memory=1e9))["memory"]
    assert found["not_known"] is None and found["fits"] is True
    assert found["by_part"]["activations"] == pytest.approx(sum(size for size, _ in kept.values()), rel=0.01)
    shared = describe(mamba, Setting(devices=5, strategy="fsdp"))["memory"]["by_part"]
    assert shared["weights"] == 4 * sum(-(-len(p) // 5) * (p.numel() // len(p)) for p in model.parameters())
    by_channels = describe(mamba, Setting(devices=2, tensor_parallel=2))["memory"]["by_part"]
    whole = sum(p.numel() for name, p in model.named_parameters() if name.endswith(("norm.weight", "o_proj.bias")))
    assert by_channels["weights"] == 4 * (sum(p.numel() for p in model.parameters()) + whole) / 2
    with pytest.raises(
        UserError, match=r"tensor_parallel=3 does not divide mamba_expand\*n_embd=64: change one of them"
    ):
        describe(mamba, Setting(devices=3, tensor_parallel=3))


# Decoding


def test_decoding_flops_are_those_that_pytorch_counts_for_the_next_token():
    """The last token of a sequence, with the cache of those before it."""
    transformers = pytest.importorskip("transformers")
    keys = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 31, "max_position_embeddings": 64}  # fmt: skip
    config = transformers.AutoConfig.for_model("qwen2", **keys)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        cache = model(torch.zeros(1, 16, dtype=torch.long), use_cache=True).past_key_values
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 1, dtype=torch.long), past_key_values=cache)
    found = describe(model_from_values({"model_type": "qwen2", **keys}, "q"), Setting(sequence_length=17))
    assert found["decoding"]["flops_per_token"] == counter.get_total_flops()


def test_decoding_reads_every_weight_but_the_embedding_and_the_cache():
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        found = small(dtype=dtype, peak_flops=1e3, bandwidth=1e15)
        weights = found["parameters"]["total"] - found["parameters"]["by_part"]["embedding"]
        assert found["decoding"]["bytes_by_part"] == {"weights": size * weights, "cache": size * 24 * 3 * 2 * 2 * 8}
        assert found["decoding"]["seconds_per_token_at_least"] == found["decoding"]["flops_per_token"] / 1e3
    slow = small(peak_flops=1e30, bandwidth=1e3)["decoding"]
    assert slow["seconds_per_token_at_least"] == slow["bytes_per_token"] / 1e3


def test_latent_attention_decodes_on_latent_vectors():
    """With the expanding matrices absorbed, a head meets each token by its latent vector (8) and the rotary part (4)
    for the score, and by the latent vector for the value."""
    found = describe(model_from_values({"model_type": "deepseek_v2", **DEEPSEEK}, "d"), Setting(sequence_length=50))
    scores = found["flops_per_token"]["by_part"]["attention_scores"]
    assert scores == 2 * 2 * 50 * 4 * (6 + 4 + 3)
    absorbed = 2 * 2 * 50 * 4 * (8 + 4 + 8)
    assert found["decoding"]["flops_per_token"] == found["flops_per_token"]["forward"] - scores + absorbed


# Hardware and time


def test_time_is_tokens_times_flops_over_peaks(command, tmp_path):
    arguments = "--device H100-SXM --devices 8 --strategy fsdp --tokens 1e11 --mfu 0.4".split()
    file = str(ROOT / "config/arch_llama3.py")
    code, out, found = command("--model_config", file, *arguments, f"--json={tmp_path / 'found.json'}")
    assert code == 0, out
    seconds = found["flops_per_token"]["training"] * 1e11 / (8 * 989.4e12 * 0.4)
    assert found["time"]["seconds"] == pytest.approx(seconds, rel=1e-12)
    assert found["time"]["device_hours"] == pytest.approx(8 * seconds / 3600)
    assert found["memory"]["fits"] is True and f"{8 * seconds / 3600:,.1f} device-hours" in out
    code, _, measured = command(
        "--model_config", file, *"--peak_flops 1e12 --tokens 1e9 --mfu 1".split(), f"--json={tmp_path / 'found.json'}"
    )
    assert code == 0
    assert measured["time"]["seconds"] == pytest.approx(found["flops_per_token"]["training"] * 1e9 / 1e12)


def test_devices_are_found_by_their_whole_name():
    """What a driver reports for its neighbours must not take a device's peak."""
    assert find_device("NVIDIA H100 80GB HBM3").name == "H100 SXM"
    assert find_device("NVIDIA A100-SXM4-40GB").memory_bytes == 40e9
    for other in ("NVIDIA L40S", "NVIDIA H200 NVL", "NVIDIA GB200", "NVIDIA GeForce RTX 4090 Laptop GPU"):
        assert find_device(other) is None
    reported = [name for device in DEVICES for name in device.reported]
    assert len(reported) == len(set(reported)), "no name is of two devices"


def test_no_peak_is_a_sparse_one():
    """Dense tensor-core arithmetic: TF32 takes half of bfloat16's rate on every device that has both, and what is
    printed as sparse would be twice too high beside the memory that feeds it."""
    for device in DEVICES:
        if "tf32" in device.peak_flops:
            assert device.peak_flops["bfloat16"] / device.peak_flops["tf32"] == pytest.approx(2, rel=0.02)
        assert 50 < max(device.peak_flops.values()) / device.bandwidth < 450
        assert device.memory_bytes >= 16e9 and device.source


# The command


CONFIG = str(ROOT / "config/full_gpt2_124m.py")
WITHOUT_TORCH = """
import sys
from flops_parameter_counting import detailed_cost_analysis
try:
    detailed_cost_analysis.main()
except SystemExit as end:
    assert not end.code
assert "torch" not in sys.modules
"""


def test_the_command_starts_without_torch_and_in_half_a_second():
    """The fastest of some: whatever else the machine does only slows it down. Where it never rests, in less than four
    times what a process takes that imports NumPy alone, in turn with it."""
    times: list[float] = []
    of_numpy: list[float] = []
    while len(times) < 3 or (min(times) >= 0.5 and len(times) < 10):
        done, seconds = timed("-c", WITHOUT_TORCH, "--model_config", CONFIG)
        assert done.returncode == 0 and "124,439,808" in done.stdout, done.stderr
        times.append(seconds)
        of_numpy.append(timed("-c", "import numpy")[1])
    assert min(times) < max(0.5, 4 * min(of_numpy))


def timed(*arguments: str) -> tuple[subprocess.CompletedProcess, float]:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], env=environment(), capture_output=True, text=True, timeout=60)
    return done, time.perf_counter() - start


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model_config nowhere.json", "nowhere.json: cannot read it"),
        ("--model_config nowhere.py", "nowhere.py: cannot read the config file"),
        (f"--model_config {CONFIG} --sequence_length 2048", "learned positions for 1024 tokens and no more"),
        (f"--model_config {CONFIG} --strategy zero4", "--strategy=zero4 is none of: ddp, zero1, fsdp"),
        (f"--model_config {CONFIG} --fsdp_replicas 2 --devices 4", "--fsdp_replicas is for FSDP: add --strategy fsdp"),
        (f"--model_config {CONFIG} --fsdp_cpu_offload", "--fsdp_cpu_offload is for FSDP: add --strategy fsdp"),
        (f"--model_config {CONFIG} --tensor_parallel 2 --devices 4 --strategy zero1", "exclude each other"),
        (f"--model_config {CONFIG} --expert_parallel 2 --devices 4 --strategy zero1", "exclude each other"),
        (f"--model_config {CONFIG} --expert_parallel 2 --devices 4", "no layer has experts"),
        (f"--model_config {CONFIG} --tensor_parallel 4 --devices 6", "6 ranks are no multiple of tensor_parallel x"),
        (f"--model_config {CONFIG} --tensor_parallel 5 --devices 5", "tensor_parallel=5 does not divide n_head=12"),
        ("--grid_search 1e20 --tensor_parallel 2", "--tensor_parallel says nothing beside --grid_search: drop it"),
        (f"--model_config {CONFIG} --dtype bf16", "--dtype=bf16 is none of: float32, bfloat16"),
        (f"--model_config {CONFIG} --device V100", "V100 does not compute in 'bfloat16'; it has float16, float32"),
        (f"--model_config {CONFIG} --device A6000 --dtype float64", "--dtype=float64 is none of"),
        (f"--model_config {CONFIG} --device H100", "(did you mean 'H100-PCIe' or 'H100-SXM'?)"),
        (f"--model_config {CONFIG} --device H20", "(did you mean 'H200'?)"),
        (f"--model_config {CONFIG} --devices -8", "--devices -8: no option takes a number below 0"),
        (f"--model_config {CONFIG} --arch llama3", "--arch says nothing beside --model_config"),
        (f"--model_config {CONFIG} --top_k 10", "--top_k says nothing beside --model_config"),
        (f"--model_config {CONFIG} --flops_formula exact", "--flops_formula says nothing beside --model_config"),
        ("--validate --top_k 10", "--top_k says nothing beside --validate"),
        (f"--model_config {CONFIG} --device cpu", "the peak of a CPU is measured"),
        (f"--model_config {CONFIG} --device H200 --peak_flops 1e15", "contradict each other"),
        (f"--model_config {CONFIG} --device H200 --tokens 1e9", "--mfu is missing"),
        (f"--model_config {CONFIG} --tokens 1e9 --mfu 0.4", "--device is missing"),
        (f"--model_config {CONFIG} --device H200 --tokens 1e9 --mfu 40", "more than the device can do"),
        (f"--model_config {CONFIG} --devices 0", "'0' is not a whole number above 0"),
        (f"--model_config {CONFIG} --law hoffmann", "--law says nothing beside --model_config"),
        (f"--model_config {CONFIG} --grid_search 1e13", "are two commands"),
        ("--grid_search 1e13 --micro_batch 4", "--micro_batch says nothing beside --grid_search"),
        ("--validate --device H200", "--device says nothing beside --validate"),
    ],
)
def test_bad_input_is_one_line(command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    takes_json = [] if "--validate" in arguments else ["--json=found.json"]
    code, out, found = command(*arguments.split(), *takes_json)
    assert code == 2 and found is None and list(tmp_path.iterdir()) == []
    assert out.startswith("error: ") and message in out and out.count("\n") == 1


@pytest.mark.parametrize("preset", ["team", "legacy"])
def test_the_vocabulary_is_that_of_the_prepared_dataset(command, tmp_path, data_dir, preset):
    config = tmp_path / "mine.py"
    config.write_text(f"arch_preset = {preset!r}\ndataset = 'tiny'\ndata_dir = {str(data_dir)!r}\n")
    code, out, found = command("--model_config", str(config), f"--json={tmp_path / 'found.json'}")
    assert code == 0, out
    configuration = load([str(config)])
    plan = plan_run(with_vocabulary(configuration, open_dataset(data_dir / "tiny").vocab_size), None)
    assert found["parameters"]["total"] == plan.cost.n_params


def test_gpt2s_vocabulary_is_padded_as_in_training(command, tmp_path):
    with DatasetWriter(tmp_path / "gpt2", {"kind": "gpt2", "end_of_document": 1}, 50257, "generated") as writer:
        for split in ("train", "val"):
            writer.add(split, [2, 3, 1], 3)
    config = tmp_path / "mine.py"
    config.write_text(f"arch_preset = 'legacy'\ndataset = 'gpt2'\ndata_dir = {str(tmp_path)!r}\n")
    _, _, found = command("--model_config", str(config), f"--json={tmp_path / 'found.json'}")
    assert found["parameters"]["by_part"]["embedding"] == 768 * 50304


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (None, "'mine', which is not prepared: prepare it, or give a vocab_size"),
        ("{", "is damaged: prepare the dataset again"),
        ('{"vocab_size": 0, "splits": {"train": {"tokens": 5}}}', "is damaged"),
        ('{"vocab_size": 5, "splits": []}', "is damaged"),
    ],
)
def test_a_dataset_that_says_no_vocabulary(command, tmp_path, meta, message):
    (tmp_path / "mine").mkdir()
    if meta is not None:
        (tmp_path / "mine/meta.json").write_text(meta)
    config = tmp_path / "config.py"
    config.write_text(f"dataset = 'mine'\ndata_dir = {str(tmp_path)!r}\n")
    code, out, _ = command("--model_config", str(config))
    assert code == 2 and message in out and out.count("\n") == 1


def test_what_the_config_file_says_of_its_devices_holds(command, tmp_path):
    """The planner counts as train.py --dry_run does; --strategy takes the place of it."""
    config = tmp_path / "mine.py"
    config.write_text("arch_preset = 'llama3'\nn_layer = 4\nn_head = 4\nn_embd = 64\nvocab_size = 100\nbatch_size = 3\n"
                      "use_fsdp = True\nfsdp_replicas = 2\ntensor_parallel = 2\n"
                      "fsdp_reshard_after_forward = False\n")  # fmt: skip
    run = load([str(config)])
    _, _, found = command("--model_config", str(config), "--devices=8", f"--json={tmp_path / 'found.json'}")
    assert found["memory"]["by_part"] == rank_memory(run.model, run.run, 8, "bfloat16")
    assert (found["memory"]["strategy"], found["memory"]["fsdp_replicas"]) == ("fsdp", 2)
    _, _, found = command("--model_config", str(config), "--strategy=ddp", f"--json={tmp_path / 'found.json'}")
    assert (found["memory"]["strategy"], found["memory"]["tensor_parallel"]) == ("ddp", 2)
    config.write_text("arch_preset = 'llama3'\nvocab_size = 100\nuse_zero1 = True\ndry_run = True\nworld_size = 4\n")
    _, _, found = command("--model_config", str(config), f"--json={tmp_path / 'found.json'}")
    assert (found["memory"]["strategy"], found["memory"]["devices"]) == ("zero1", 4)
    config.write_text("arch_preset = 'mixtral'\nvocab_size = 100\nuse_fsdp = True\nexpert_parallel = 4\n")
    _, out, found = command("--model_config", str(config), f"--json={tmp_path / 'found.json'}")
    assert (found["memory"]["devices"], found["memory"]["expert_parallel"]) == (4, 4)
    assert "on each of 4 devices, fsdp, 4 share the experts" in out
    run = load([str(config)])
    assert found["memory"]["by_part"] == rank_memory(run.model, run.run, 4, "bfloat16")


def test_a_broken_pipe_loses_no_file(tmp_path):
    """Whoever reads stdout may go away before the report is there."""
    for arguments in (["--model_config", CONFIG], ["--grid_search", "1e13", "--emit=made.py"]):
        command = f"{sys.executable} {COMMAND} {' '.join(arguments)} --json=found.json | true"
        env = environment() | {"PYTHONUNBUFFERED": "1"}
        subprocess.run(["bash", "-c", command], cwd=tmp_path, env=env, timeout=60)
        json.loads((tmp_path / "found.json").read_text())
        (tmp_path / "found.json").unlink()
    assert (tmp_path / "made.py").exists()


# --validate

# Public parameter counts: safetensors on the Hugging Face hub, without buffers, tied tensors once.
PUBLIC = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "qwen2.5-0.5b": 494_032_768,
    "mamba-130m": 129_135_360,
    "mamba2-130m": 128_989_632,
    "bamba-9b": 9_780_235_392,
    "deepseek-v2-lite": 15_706_484_224,
}


@pytest.fixture
def few_audits(monkeypatch):
    """All of them: tests/test_audit.py."""
    few = [(name, values) for name, values in validate.audited() if name in ("audit of a small llama",)]
    monkeypatch.setattr(validate, "audited", lambda: iter(few))


def test_validate_passes_and_checks_every_public_count(command, few_audits):
    code, out, _ = command("--validate")
    assert code == 0 and "FAIL" not in out
    for name, count in PUBLIC.items():
        line = next(line for line in out.splitlines() if line.startswith(f"{name}: parameters"))
        assert line.split()[-3:] == [f"{count:,}", f"{count:,}", "PASS"]
    for name in ("mamba-130m", "mamba2-130m", "bamba-9b"):
        ours = next(line for line in out.splitlines() if line.startswith(f"{name}, by arch_preset="))
        assert ours.split()[-3:] == [f"{PUBLIC[name]:,}", f"{PUBLIC[name]:,}", "PASS"]
    assert "deepseek-v2-lite: active parameters" in out and "2,661,150,208" in out
    assert "small gpt2: training FLOPs" in out and "audit of a small llama: FLOPs" in out


def test_validate_fails_where_a_count_is_wrong(command, monkeypatch, few_audits):
    monkeypatch.setitem(validate.PUBLISHED, "gpt2", (validate.PUBLISHED["gpt2"][0], 124_439_809))
    code, out, _ = command("--validate")
    assert code == 1 and out.count("FAIL") == 1


def test_validate_without_torch_says_what_it_left_out(command, monkeypatch):
    monkeypatch.setattr(validate.importlib.util, "find_spec", lambda name: None)
    code, out, _ = command("--validate")
    assert code == 0 and "not checked, PyTorch is not installed" in out and "small gpt2: parameters" not in out
    assert "the audit of every family: not made, for which torch and transformers must be installed" in out


def test_deepseek_v3_without_its_extra_layer():
    """671B total and 37B active, as its report says (DeepSeek-AI 2024): here to their last digit as the modules of
    transformers count them, without the routers' correction biases, which are buffers there."""
    keys = {"model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
            "num_attention_heads": 128, "vocab_size": 129280, "moe_intermediate_size": 2048, "n_routed_experts": 256,
            "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "q_lora_rank": 1536,
            "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}  # fmt: skip
    cost = model_cost(model_from_values(keys, "v3").architecture, 4096)
    assert cost.n_params == 671_026_404_352
    assert cost.n_active == pytest.approx(37e9, rel=0.02)
