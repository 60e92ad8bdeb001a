"""What belongs to the text of a model that is fine-tuned: its tokenizer, and where its chat template may be."""

from pathlib import Path

from data.dataset import dataset_folder, open_dataset
from data.tokenizers import Kept, choose, content_of
from runs.folder import OF_THE_MODEL, RunFolder, read_state, saved_configuration


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


def template_folders(source: Path) -> list[Path]:
    """Where a template may be, the one that the run was itself fine-tuned with first."""
    return [source, source / OF_THE_MODEL]
