"""The folder of a run whose one checkpoint has another's weights, with matrices in few bits."""

import dataclasses
from pathlib import Path

from torch import Tensor

import configurator
from components.quantized.module import flat
from configurator import Configuration
from data.loader import training_batches
from data.mixture import open_data
from data.tokenizers import content_of
from interop.folders import save_tensors
from model_builder import LanguageModel
from runs.config import OF_ADAPTERS, RunConfig
from runs.folder import Progress, RunFolder, checksum, data_of
from runs.initial import FILE, keep_beside
from training.plan import cut_of

AT_ONCE = 8  # windows


def training_windows(saved: Configuration, count: int) -> list[Tensor]:
    """Tokens (B, T) of the first so many windows that the run trained on; of none, its data need not be there. Raises
    UserError where they are gone."""
    if not count:
        return []
    run = saved.run
    data = open_data(run.dataset, run.mixture, run.val_dataset, run.data_dir, verify=False)
    batches = training_batches(data, cut_of(saved), run.seed, run.mask_documents, slice(None))
    return [batches.batch(first, min(AT_ONCE, count - first)).tokens for first in range(0, count, AT_ONCE)]


def write_quantized(model: LanguageModel, checkpoint: Path, saved: Configuration, new: RunFolder, run: Path) -> int:
    """Fills the new run's folder, which will be called `run`, with the model, which may be of adapters that are merged
    by now; returns the bytes of its weights' file. Raises UserError and OSError."""
    defaults, source, data = RunConfig(), checkpoint.parent.parent, data_of(checkpoint)
    of_adapters = {name: getattr(defaults, name) for name in ("use_lora", "lora_from", *OF_ADAPTERS)}
    keys = dataclasses.replace(saved.run, out_dir=str(run), init_from="scratch", **of_adapters)
    configuration = dataclasses.replace(saved, run=keys, config_file=Path("config.py"))
    content = new.aside(0)
    content.mkdir(parents=True)
    save_tensors(flat(model.state_dict()), content / FILE)
    entry = data.get("tokenizer", {})
    if (tokenizer := content_of(entry, source)) is not None:
        (new.path / entry["file"]).write_bytes(tokenizer)
    keep_beside(source, new.path)
    said = {"progress": dataclasses.asdict(Progress()), "config": configurator.as_dict(configuration), "scaler": {}}
    size = (content / FILE).stat().st_size
    new.put_in_place(0, {**said, "data": data, "files": {FILE: checksum(content / FILE)}})
    configurator.write(configuration, new.path)
    return size
