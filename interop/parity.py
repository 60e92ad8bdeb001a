"""Our logits beside those that transformers computes from the same folder: measured, where it is installed."""

import dataclasses
import importlib.util
from pathlib import Path

import torch

from common.errors import UserError
from interop.hugging_face import FAMILIES
from interop.sources import read_configuration
from model_builder import LanguageModel

ROWS, TOKENS = 2, 64  # that are tried, drawn at random
TOLERANCE = 1e-3  # of the largest logit, in float32: far more than rounding does, far less than another function


@dataclasses.dataclass(frozen=True)
class Parity:
    """The largest absolute difference of two models' logits, and the largest of the logits themselves."""

    difference: float
    largest: float
    tokens: int
    beside: str = "transformers'"

    def __str__(self) -> str:
        return (
            f"logits beside {self.beside}, on {self.tokens} random tokens in float32: largest difference "
            f"{self.difference:.3g}, of logits up to {self.largest:.3g}"
        )


class NotCompared(Exception):
    """Why there is nothing to compare with."""


@torch.no_grad()
def measure(folder: Path, model: LanguageModel, called: Path) -> Parity:
    """The folder as transformers reads it, but for what `Family.compared_with` replaces, beside the model. Raises
    NotCompared where transformers is not installed or cannot read the folder, which users know as `called`, and
    UserError where it computes something else."""
    if importlib.util.find_spec("transformers") is None:
        raise NotCompared("transformers is not installed")
    try:
        from transformers import AutoModelForCausalLM, logging  # takes seconds to import

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        how = {"dtype": torch.float32, "local_files_only": True, "attn_implementation": "eager"}
        keys = FAMILIES[read_configuration(folder)["model_type"]].compared_with
        theirs = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **how, **keys).eval()
    except Exception as error:  # whatever it is, of whatever version
        raise NotCompared(f"transformers cannot read {called}: {' '.join(str(error).split())[:200]}") from None
    assert model.config.vocab_size is not None
    shape = (ROWS, min(TOKENS, model.config.block_size))
    tokens = torch.randint(model.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    logits, expected = model.eval()(tokens), theirs(tokens).logits
    found = Parity((logits - expected).abs().max().item(), expected.abs().max().item(), tokens.numel())
    if not found.difference <= TOLERANCE * found.largest:
        raise UserError(f"{called} is another function for transformers than here: {found}")
    return found
