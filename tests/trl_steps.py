"""Steps of TRL's trainers on models that are ours, too, and what is needed for one."""

import functools
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers

from interop.hugging_face import architecture_to_hugging_face, weights_to_hugging_face
from model_builder import LanguageModel
from model_config import ModelArchitectureConfig, resolve_architecture

TINY = {"arch_preset": "llama3", "n_layer": 2, "n_head": 2, "num_key_value_heads": 1, "n_embd": 32}
TINY |= {"block_size": 48, "vocab_size": 257, "d_ff": 64}
HOW = {"bf16": False, "use_cpu": True, "report_to": "none", "gradient_checkpointing": False, "save_strategy": "no"}


@functools.cache
def tiny() -> ModelArchitectureConfig:
    return resolve_architecture(TINY)


def exported(model: LanguageModel) -> torch.nn.Module:
    """Ours as transformers' of the same weights."""
    described = architecture_to_hugging_face(tiny(), {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0})
    configuration = transformers.AutoConfig.for_model(**described)
    theirs = transformers.AutoModelForCausalLM.from_config(configuration, attn_implementation="eager")
    theirs.load_state_dict(weights_to_hugging_face(model.state_dict(), tiny()), strict=False)
    return theirs


def letters() -> transformers.PreTrainedTokenizerFast:
    """A token for each character."""
    library = Tokenizer(models.BPE(vocab={chr(number): number for number in range(257)}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=library, eos_token=chr(0), pad_token=chr(0))


def first_batch(trainer_class, arguments_class, folder: Path, model, rows: list[dict], reference=None, **how):
    """A trainer, with arguments of its own, and its first batch of these rows."""
    arguments = arguments_class(str(folder), per_device_train_batch_size=len(rows), **HOW, **how)
    models = (model,) if reference is None else (model, reference)
    data = Dataset.from_list(rows)
    trainer = trainer_class(*models, args=arguments, train_dataset=data, processing_class=letters())
    return trainer, next(iter(trainer.get_train_dataloader()))


def assert_same_gradients(ours: LanguageModel, theirs: torch.nn.Module, atol: float = 1e-5) -> None:
    gradients = weights_to_hugging_face({name: one.grad for name, one in ours.named_parameters()}, tiny())
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-5, atol=atol)
