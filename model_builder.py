"""ModelArchitectureConfig -> nn.Module."""

import dataclasses
import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from common.errors import UserError
from components.cross_entropy import linear_cross_entropy
from components.mamba import MambaCache
from model_components import AttentionCache, ResidualProjection, component
from model_config import ATTENTION, MIXERS, ModelArchitectureConfig

INIT_STD = 0.02  # GPT-2's, for every matrix


LayerCache = AttentionCache | MambaCache


@dataclasses.dataclass
class Caches:
    """What a LanguageModel keeps of the tokens that it has read, to go on from them."""

    layers: list[LayerCache]
    room: int | None  # tokens that fit; None: any number
    length: int = 0  # tokens read

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for layer in self.layers for t in vars(layer).values() if isinstance(t, Tensor))


class Block(nn.Module):
    """A mixer and, unless ffn_after leaves it out, an FFN, each around the residual stream: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: ModelArchitectureConfig, letter: str):
        super().__init__()
        norm = component("normalization", config.normalization)
        self.norm_before = config.norm_position == "pre"
        self.mixer_norm = norm(config)
        self.mixer = component("mixer", MIXERS[letter])(config)
        self.has_ffn = config.has_ffn(letter)
        if self.has_ffn:
            self.ffn_norm = norm(config)
            self.ffn = component("ffn_type", config.ffn_type)(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        score_bias: Tensor | None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        if self.norm_before:
            x = x + self.dropout(self.mixer(self.mixer_norm(x), rotation, score_bias, cache=cache))
            return x + self.dropout(self.ffn(self.ffn_norm(x))) if self.has_ffn else x
        x = self.mixer_norm(x + self.dropout(self.mixer(x, rotation, score_bias, cache=cache)))
        return self.ffn_norm(x + self.dropout(self.ffn(x))) if self.has_ffn else x


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
        self.blocks = nn.ModuleList(Block(config, letter) for letter in config.pattern)
        pre_norm = config.norm_position == "pre"
        self.final_norm = component("normalization", config.normalization)(config) if pre_norm else nn.Identity()
        # A tied head is no module of its own: the embedding's one parameter serves both.
        self.lm_head = None if config.weight_tying else nn.Linear(config.n_embd, config.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """(V, D), what turns hidden states into logits."""
        return self.embedding.weight if self.lm_head is None else self.lm_head.weight

    @property
    def context_limit(self) -> int | None:
        """Tokens that a prediction can rest on: block_size; None where the layers keep a state of constant size and
        no position has an embedding."""
        config = self.config
        unlimited = not config.layers_with(ATTENTION) and config.position_encoding == "none"
        return None if unlimited else config.block_size

    def empty_caches(self, batch: int, length: int) -> Caches:
        """Caches for decoding `batch` texts of up to `length` tokens each, on the model's device."""
        limit = self.context_limit
        if limit is not None and length > limit:
            raise ValueError(f"caches of {length} tokens are more than the block size {limit}")
        blocks = cast("Iterable[Block]", self.blocks)
        layers = [block.mixer.empty_cache(batch, length) for block in blocks]
        return Caches(layers, room=None if limit is None else length)

    def hidden(self, tokens: Tensor, caches: Caches | None = None) -> Tensor:
        """Tokens (B, T) -> what the LM head reads (B, T, D).

        With caches, the tokens follow those that the caches have seen, which they then have seen too: a prompt first,
        then token by token, or in any other pieces. Without gradients.
        """
        length, start = tokens.shape[1], 0 if caches is None else caches.length
        room = self.config.block_size if caches is None else caches.room
        if room is not None and start + length > room:
            what = "the block size" if caches is None else "the caches' room of"
            raise ValueError(f"{start + length} tokens are more than {what} {room}")
        x = self.dropout(self.position.embed(self.embedding(tokens), start))
        rotation = self.position.rotation(length, tokens.device, start)
        score_bias = self.position.score_bias(length, tokens.device, start)
        for index, block in enumerate(self.blocks):
            if caches is not None:
                x = block(x, rotation, score_bias, caches.layers[index])
            elif self.activation_checkpointing and self.training:
                x = checkpoint(block, x, rotation, score_bias, use_reentrant=False)
            else:
                x = block(x, rotation, score_bias)
        if caches is not None:
            caches.length += length
        return self.final_norm(x)

    def forward(self, tokens: Tensor, targets: Tensor | None = None, caches: Caches | None = None) -> Tensor:
        """Tokens (B, T) -> logits (B, T, V); with targets (B, T), the mean loss in nats, and no logits at all.
        With caches, as in `hidden`."""
        hidden = self.hidden(tokens, caches)
        if targets is None:
            return F.linear(hidden, self.head_weight)
        return linear_cross_entropy(hidden, self.head_weight, targets)

    def next_token_logits(self, tokens: Tensor, caches: Caches | None = None) -> Tensor:
        """Tokens (B, T) -> logits (B, V) of what follows. With caches, as in `hidden`."""
        return F.linear(self.hidden(tokens, caches)[:, -1], self.head_weight)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """GPT-2's initialisation (Radford et al. 2019): normal, smaller into the residual stream by the root of the
        number of mixers and FFNs that write there.

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
            writers = self.config.n_layer + self.config.ffn_layers
            std = INIT_STD / math.sqrt(writers) if residual else INIT_STD
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
