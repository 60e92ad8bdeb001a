"""A model that is fine-tuned: what tells it from others, its tokenizer, and where its chat template may be."""

import zlib
from pathlib import Path

from data.dataset import dataset_folder, open_dataset
from data.tokenizers import Kept, choose, content_of
from runs.folder import OF_THE_MODEL, RunFolder, read_state, saved_configuration

AT_AN_END = 1 << 20  # bytes


def tokenizer_of(source: Path, end: str | None) -> Kept:
    """The tokenizer of a run, or of the folder of a Hugging Face model; `end` is what the token is called that ends a
    text, where that folder does not say. Raises UserError."""
    if not RunFolder(source).checkpoints():
        return choose(str(source), end=end)
    checkpoint, _ = RunFolder(source).find(None)
    state = read_state(checkpoint)
    if "tokenizer" in state["data"]:
        return Kept(state["data"]["tokenizer"], content_of(state["data"]["tokenizer"], source))
    if (source / OF_THE_MODEL).is_dir():  # weights alone, which were imported
        return choose(str(source / OF_THE_MODEL), end=end)
    run = saved_configuration(state).run
    dataset = open_dataset(dataset_folder(run.dataset, run.data_dir), verify=False)
    return Kept(dataset.tokenizer, content_of(dataset.tokenizer, dataset.folder))


def identity_of(source: Path) -> dict[str, str]:
    """What tells the weights of a run, or of the folder of a Hugging Face model, from others: of each file of the run's
    checkpoint its checksum; of the folder, whose files may be large, size and checksum of the first and the last MiB.
    """
    if RunFolder(source).checkpoints():
        checkpoint, _ = RunFolder(source).find(None)
        return dict(read_state(checkpoint)["files"])
    files = [path for path in sorted(source.iterdir()) if path.suffix in (".safetensors", ".bin") and path.is_file()]
    return {path.name: f"{path.stat().st_size} bytes, {_ends(path)}" for path in files}


def _ends(path: Path) -> str:
    with path.open("rb") as content:
        first = content.read(AT_AN_END)
        content.seek(max(0, path.stat().st_size - AT_AN_END))
        return f"crc32:{zlib.crc32(content.read(), zlib.crc32(first)):08x}"


def template_folders(source: Path) -> list[Path]:
    """Where a template may be, the one that the run was itself fine-tuned with first."""
    return [source, source / OF_THE_MODEL]
