"""Asks the model that preferences are compared with, once, before a run: what it says of each answer is kept beside the
pairs (data/reference.py)."""

from pathlib import Path

import numpy as np
import torch

from common.errors import UserError
from data.dataset import Dataset
from data.loader import PackedLoader
from data.packing import Cut
from data.reference import write_reference
from data.tokenizers import same_ids
from finetuning.models import tokenizer_of
from finetuning.preferences import answers_log_likelihood
from model_builder import build_model
from parallel.device import choose_device, choose_dtype, precision
from parallel.ranks import ALONE
from runs.config import RunConfig
from runs.initial import read_source


def ask_reference(source: Path, dataset: Dataset, cut: Cut, run: RunConfig) -> None:
    """Writes what the model of a run's folder, or of a Hugging Face model's, says of the pairs, in the dtype that the
    run computes in. Raises UserError for a model with other tokens."""
    check_tokens(source, dataset)
    architecture, weights, _ = read_source(source)
    device = choose_device(run.device, ALONE)
    longest = max(cut.block_size, architecture.block_size)
    model = build_model(architecture.replace(block_size=longest).portable(), "meta")
    model.load_state_dict(weights, assign=True)
    model.to(device).eval()
    dtype, found = choose_dtype(run.dtype, device), {}
    for split in dataset.splits:
        loader = PackedLoader(dataset, split, cut, seed=0)  # whatever is kept of an earlier reference
        answers = []
        for first in range(0, loader.n_windows, run.batch_size):
            windows = np.arange(first, min(first + run.batch_size, loader.n_windows))
            batch = loader.of_windows(windows).changed(lambda values: values.to(device))
            with torch.no_grad(), precision(device, dtype):
                answers.append(answers_log_likelihood(model, batch).cpu().numpy())
        found[split] = np.concatenate(answers)
    write_reference(dataset.folder, str(source), found)


def check_tokens(source: Path, dataset: Dataset) -> None:
    """Raises UserError where the reference would read other tokens."""
    if not same_ids(tokenizer_of(source, None).entry, dataset.tokenizer):
        raise UserError(f"--reference {source} has another tokenizer than the model: take one of the same family")
