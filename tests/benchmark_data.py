"""Small data with the columns of the benchmarks' own, as folders that `datasets` finds where a command is called."""

import json

import datasets
import huggingface_hub

WORDS = "loss model train token layer width depth scale".split()


def sentence(number, length=4):
    return " ".join(WORDS[(number + 3 * step) % 8] for step in range(length))


def hellaswag(n):
    return {"activity_label": "Training", "ctx_a": f"A {sentence(n)}.", "ctx_b": "the loss", "label": str(n % 4),
            "endings": [f"falls {sentence(n + other)}." for other in range(4)]}  # fmt: skip


def arc(n):
    letters = "ABCD" if n % 3 else "123"
    choices = {"text": [sentence(n + other, 2) for other in range(len(letters))], "label": list(letters)}
    return {"question": f"Which {sentence(n)}?", "answerKey": letters[n % len(letters)], "choices": choices}


def truthful(n):
    choices = [sentence(n + other, 3) for other in range(2 + n % 3)]
    targets = {"choices": choices, "labels": [1] + [0] * (len(choices) - 1)}
    return {"question": f"What is {sentence(n)}?", "mc1_targets": targets, "mc2_targets": targets}


def piqa(n):
    return {"goal": f"To {sentence(n)}", "sol1": sentence(n, 3), "sol2": sentence(n + 1, 3), "label": n % 2}


def winogrande(n):
    return {"sentence": f"The {WORDS[n % 8]} beat the token as _ was small.", "option1": f"the {WORDS[n % 8]}",
            "option2": "the token", "answer": str(1 + n % 2)}  # fmt: skip


def boolq(n):
    return {"passage": f"A {sentence(n, 6)}.", "question": f"is a {sentence(n, 2)}", "label": n % 2}


def gsm8k(n):
    return {
        "question": f"A model has {n} layers and gets 2 more. How many?",
        "answer": f"{n} + 2 = {n + 2}\n#### {n + 2}",
    }


def mmlu(n):
    return {"question": f"Which {sentence(n)}?", "subject": "any", "choices": [sentence(n + m, 2) for m in range(4)],
            "answer": n % 4}  # fmt: skip


DATASETS = {  # by path and configuration: a row's function, and rows by split
    "Rowan/hellaswag": {"default": (hellaswag, {"train": 16, "validation": 8})},
    "allenai/ai2_arc": dict.fromkeys(("ARC-Easy", "ARC-Challenge"), (arc, {"train": 4, "validation": 4, "test": 8})),
    "truthfulqa/truthful_qa": {"multiple_choice": (truthful, {"validation": 8})},
    "baber/piqa": {"default": (piqa, {"train": 4, "validation": 8})},
    "allenai/winogrande": {"winogrande_xl": (winogrande, {"train": 4, "validation": 8})},
    "aps/super_glue": {"boolq": (boolq, {"train": 12, "validation": 8})},
    "openai/gsm8k": {"main": (gsm8k, {"train": 6, "test": 4})},
}


def write(folder, path, configurations):
    place = folder / path
    place.mkdir(parents=True)
    said = ["---", "configs:"]
    for name, (row, splits) in configurations.items():
        said += [f"- config_name: {name}", "  data_files:"]
        for split, count in splits.items():
            said += [f"  - split: {split}", f"    path: {name}.{split}.jsonl"]
            rows = "".join(json.dumps(row(n)) + "\n" for n in range(count))
            (place / f"{name}.{split}.jsonl").write_text(rows)
    (place / "README.md").write_text("\n".join([*said, "---", ""]))


def apart(monkeypatch, folder):
    """No hub, and a cache of its own: datasets' is keyed by the relative name of a folder, whatever is in it."""
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder))


def write_all(folder):
    for path, configurations in DATASETS.items():
        write(folder, path, configurations)


def write_mmlu(folder, harness_tasks):
    """Its 57 subjects, which the harness's files name."""
    import yaml

    files = (harness_tasks / "mmlu/default").glob("mmlu_*.yaml")
    subjects = [yaml.safe_load(file.read_text()).get("dataset_name") for file in sorted(files)]
    subjects = [subject for subject in subjects if subject]
    write(folder, "cais/mmlu", {subject: (mmlu, {"dev": 5, "test": 2}) for subject in subjects})
    return subjects
