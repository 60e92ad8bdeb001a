"""ModelArchitectureConfig -> nn.Module."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from components.cross_entropy import linear_cross_entropy
from errors import UserError
from model_components import ResidualProjection, component
from model_config import ModelArchitectureConfig

INIT_STD = 0.02  # GPT-2's, for every matrix


class Block(nn.Module):
    """A mixer and an FFN, each around the residual stream: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()
        norm = component("normalization", config.normalization)
        self.norm_before = config.norm_position == "pre"
        self.mixer_norm = norm(config)
        self.mixer = component("mixer", "attention")(config)
        self.ffn_norm = norm(config)
        self.ffn = component("ffn_type", config.ffn_type)(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, score_bias: Tensor | None) -> Tensor:
        if self.norm_before:
            x = x + self.dropout(self.mixer(self.mixer_norm(x), rotation, score_bias))
            return x + self.dropout(self.ffn(self.ffn_norm(x)))
        x = self.mixer_norm(x + self.dropout(self.mixer(x, rotation, score_bias)))
        return self.ffn_norm(x + self.dropout(self.ffn(x)))


class LanguageModel(nn.Module):
    """A decoder-only language model. Its parameters hold no values until `init_weights` or a checkpoint gives them."""

    def __init__(self, config: ModelArchitectureConfig, activation_checkpointing: bool = False):
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("vocab_size is not resolved")
        self.config = config
        self.activation_checkpointing = activation_checkpointing
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.position = component("position_encoding", config.position_encoding)(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        pre_norm = config.norm_position == "pre"
        self.final_norm = component("normalization", config.normalization)(config) if pre_norm else nn.Identity()
        # A tied head is no module of its own: the embedding's one parameter serves both.
        self.lm_head = None if config.weight_tying else nn.Linear(config.n_embd, config.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """(V, D), what turns hidden states into logits."""
        return self.embedding.weight if self.lm_head is None else self.lm_head.weight

    def hidden(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) -> what the LM head reads (B, T, D)."""
        length = tokens.shape[1]
        if length > self.config.block_size:
            raise ValueError(f"{length} tokens are more than the block size {self.config.block_size}")
        x = self.dropout(self.position.embed(self.embedding(tokens)))
        rotation = self.position.rotation(length, tokens.device)
        score_bias = self.position.score_bias(length, tokens.device)
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, rotation, score_bias, use_reentrant=False)
            else:
                x = block(x, rotation, score_bias)
        return self.final_norm(x)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Tokens (B, T) -> logits (B, T, V); with targets (B, T), the mean loss in nats, and no logits at all."""
        hidden = self.hidden(tokens)
        if targets is None:
            return F.linear(hidden, self.head_weight)
        return linear_cross_entropy(hidden, self.head_weight, targets)

    def next_token_logits(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) -> logits (B, V) of what follows."""
        return F.linear(self.hidden(tokens)[:, -1], self.head_weight)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """GPT-2's initialisation (Radford et al. 2019): normal, smaller by sqrt(2 n_layer) into the residual stream.

        Matrices are drawn on the CPU, so that they depend on the seed alone and not on the device. Other modules
        with parameters, such as norms, initialise themselves by their `reset_parameters`; UserError without one.
        """
        torch.manual_seed(seed)
        for name, module in self.named_modules():
            self.init_module(name, module)

    def init_module(self, name: str, module: nn.Module) -> None:
        """One module's own parameters, not its children's."""
        if isinstance(module, nn.Linear | nn.Embedding):
            residual = isinstance(module, ResidualProjection)
            std = INIT_STD / math.sqrt(2 * self.config.n_layer) if residual else INIT_STD
            module.weight.copy_(torch.empty(module.weight.shape).normal_(0.0, std))
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        elif (reset := getattr(module, "reset_parameters", None)) is not None:
            reset()
        elif any(True for _ in module.parameters(recurse=False)):
            raise UserError(f"{name} ({type(module).__name__}) has parameters but no reset_parameters() to set them")


def build_model(
    config: ModelArchitectureConfig,
    device: torch.device | str = "cpu",
    seed: int | None = None,
    activation_checkpointing: bool = False,
) -> LanguageModel:
    """The model on a device, initialised from the seed; without a seed its values are whatever memory held."""
    with torch.device("meta"):  # nothing is drawn twice
        model = LanguageModel(config, activation_checkpointing)
    model.to_empty(device=device)
    if seed is not None:
        model.init_weights(seed)
    return model
