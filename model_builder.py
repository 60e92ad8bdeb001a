"""ModelArchitectureConfig -> nn.Module."""

import functools
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from common.errors import UserError
from common.machine import check_memory
from components.caches import Caches
from components.context import Context
from components.documents import HANDED
from components.heads.cross_entropy import each_cross_entropy, linear_cross_entropy
from components.heads.spec import IGNORED
from components.lora.module import Adapter, adapter_of, attach
from components.lora.spec import LORA, Adapters
from components.precision import wide
from components.quantized.module import QuantizedMatrix, empty, put
from components.quantized.spec import forms_of
from components.stacked import StackedLinear
from flops_parameter_counting.costs.model_cost import model_cost, named_weights
from model_components import component
from model_config import Layer, ModelArchitectureConfig

MOST_BUILT = 10_000  # layers: each is some fifty objects of Python's
INIT_STD = 0.02  # GPT-2's, for every matrix


class LossParts(NamedTuple):
    """What a batch costs, in parts that add up over micro-batches and ranks."""

    cross_entropy: Tensor  # the sum over the targets that count, nats
    n_targets: Tensor  # how many count
    auxiliary: dict[str, Tensor]  # what components add for training, weighted, by name: nats a target
    loads: dict[int, Tensor]  # by block, the share of its choices that each of an FFN's experts has, of these tokens
    measured: Mapping[str, Tensor] = MappingProxyType({})  # what an objective tells besides, summed over the targets

    @property
    def mean(self) -> Tensor:
        """The loss: nats a target, without what is added for training."""
        return self.cross_entropy / self.n_targets

    def total(self) -> Tensor:
        """What training makes smaller: the sum over the targets, with what is added."""
        return sum((term * self.n_targets for term in self.auxiliary.values()), self.cross_entropy)


class Block(nn.Module):
    """A mixer and, where the layer has one, an FFN, each around the residual stream: (B, T, D) -> (B, T, D), what the
    FFN adds to the loss, by name, its load, and what the mixer hands on, by name. The mixer returns (B, T, D), or that
    and the latter; the FFN (B, T, D), or that and a dict of terms, or these and the share of its choices that each of
    its experts has."""

    def __init__(self, config: ModelArchitectureConfig, layer: Layer):
        super().__init__()
        config = config.of(layer)
        norm = component("normalization", config.normalization)
        self.norm_position, self.norm_before = config.norm_position, config.norms_before
        self.is_parallel, self.multiplier = config.parallel_residual, config.residual_multiplier
        has_two = config.norms_before and config.norms_inside
        self.mixer_norm = norm(config)
        self.mixer_out_norm = norm(config) if has_two else None
        self.mixer = component("mixer", layer.mixer)(config)
        self.takes_documents = layer.mixer_spec.takes_documents
        self.has_ffn = layer.ffn is not None
        if layer.ffn is not None:
            self.ffn_norm = norm(config)
            self.ffn_out_norm = norm(config) if has_two else None
            self.ffn = component("ffn_type", layer.ffn)(config)
        self.dropout = nn.Dropout(config.dropout)

    @property
    def shared(self) -> dict[str, Any]:
        """What the mixer is handed beside x, by the names of its arguments, as functions (T, device, start) -> it."""
        return getattr(self.mixer, "shared", {})

    @property
    def hands_on(self) -> tuple[str, ...]:
        """What the mixer is handed by the first block that has it, by the names of its arguments."""
        return getattr(self.mixer, "hands_on", ())

    def forward(
        self, x: Tensor, cache: Any = None, last: int | None = None, **shared: Any
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | None, dict[str, Tensor]]:
        """`last`: of how many tokens at the end the output is wanted; None: of all. The mixer reads all in any case."""
        if cache is not None:
            shared["cache"] = cache
        y = self.mixer(self.mixer_norm(x) if self.norm_before else x, **shared)
        y, handed = y if isinstance(y, tuple) else (y, {})
        if last is not None:
            x, y = x[:, -last:], y[:, -last:]
        mixed = self._joined(x, y, self.mixer_out_norm or self.mixer_norm)
        if not self.has_ffn:
            return mixed, {}, None, handed
        x = x if self.is_parallel else mixed
        y = self.ffn(self.ffn_norm(x) if self.norm_before else x)
        y, auxiliary, load = (*y, None)[:3] if isinstance(y, tuple) else (y, {}, None)
        return self._joined(mixed, y, self.ffn_out_norm or self.ffn_norm), auxiliary, load, handed

    def _joined(self, x: Tensor, y: Tensor, norm: nn.Module) -> Tensor:
        """The residual stream with the output of a half of the block, of which the norm may be the inner one."""
        if self.norm_position in ("sandwich", "inside"):
            y = norm(wide(y))
        y = self.dropout(y)
        x = x + (y if self.multiplier == 1 else y * self.multiplier)
        return norm(x) if self.norm_position == "post" else x


class LanguageModel(nn.Module):
    """A decoder-only language model. Its parameters hold no values until `init_weights` or a checkpoint gives them.

    Where ranks divide sequences it is called on the tokens of one of them, and on documents of all (`context`).
    """

    context: Context | None = None
    adapters: Adapters | None = None

    def __init__(self, config: ModelArchitectureConfig, activation_checkpointing: bool = False):
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("vocab_size is not resolved")
        check_countable(config)
        self.config = config
        self.activation_checkpointing = activation_checkpointing
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.position = component("position_encoding", config.position_encoding)(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in config.layers)
        norm = component("normalization", config.normalization)
        self.final_norm = norm(config) if config.has_final_norm else nn.Identity()
        # A tied head is no module of its own: the embedding's one parameter serves both.
        self.lm_head = None if config.weight_tying else nn.Linear(config.n_embd, config.vocab_size, bias=False)

    @property
    def own_blocks(self) -> dict[int, Block]:
        """The blocks that are here, by their index: all, unless the model is a stage of a pipeline."""
        return {index: cast("Block", block) for index, block in enumerate(self.blocks) if block is not None}

    @property
    def head_weight(self) -> Tensor:
        """(V, D), what turns hidden states into logits."""
        return self.embedding.weight if self.lm_head is None else self.lm_head.weight

    @property
    def context_limit(self) -> int | None:
        """Tokens that a prediction can rest on: block_size; None where the layers keep a state of constant size and
        no position has an embedding."""
        config = self.config
        constant = all(layer.mixer_spec.has_constant_state for layer in config.layer_counts)
        return None if constant and config.component("position_encoding").acts_in is None else config.block_size

    @property
    def turns_anew(self) -> bool:
        """Whether tokens that were read change as their text becomes longer, since positions depend on its length."""
        return self._turning(0) != self._turning(self.config.block_size)

    def empty_caches(self, batch: int, length: int) -> Caches:
        """Caches for decoding `batch` texts of up to `length` tokens each, on the model's device."""
        limit = self.context_limit
        if limit is not None and length > limit:
            raise ValueError(f"caches of {length} tokens are more than the block size {limit}")
        texts = self.embedding.weight.new_empty(batch, 0, dtype=torch.long) if self.turns_anew else None
        room = None if limit is None else length
        return Caches(self._empty_layers(batch, length), batch, room, texts=texts)

    def _empty_layers(self, batch: int, length: int) -> list[Any]:
        return [block.mixer.empty_cache(batch, length) for block in cast("Iterable[Block]", self.blocks)]

    def _turning(self, length: int) -> list[Any]:
        """What of the blocks' positions depends on how long a text is."""
        shared = (make for block in cast("Iterable[Block]", self.blocks) for make in block.shared.values())
        return [make.state(length) for make in shared if hasattr(make, "state")]

    def hidden(self, tokens: Tensor, caches: Caches | None = None, last: int | None = None) -> Tensor:
        """Tokens (B, T) -> what the LM head reads (B, T, D); where only the `last` tokens' is wanted, (B, last, D), for
        less work in the last block.

        With caches, the tokens follow those that the caches have seen, which they then have seen too: a prompt first,
        then token by token, or in any other pieces. Without gradients.
        """
        if last is not None and last < 1:
            raise ValueError(f"last={last}: at least one token's output is wanted")
        return self._read(tokens, caches, last=last)[0]

    def _read(
        self, tokens: Tensor, caches: Caches | None = None, documents: Tensor | None = None, last: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor], dict[int, Tensor]]:
        """What the LM head reads, as `hidden`, what the blocks add to the loss, added up by name, and their loads.
        Where tokens that were read turn anew in a text of this length, it is read from its start."""
        if caches is not None and caches.texts is not None:
            caches.texts, seen = torch.cat((caches.texts, tokens), dim=1), caches.length
            if seen and self._turning(seen) != self._turning(caches.texts.shape[1]):
                caches.layers, caches.length = self._empty_layers(caches.batch, caches.room or 0), 0
                return self._pass(caches.texts, caches, last=tokens.shape[1] if last is None else last)
        return self._pass(tokens, caches, documents, last)

    def _pass(
        self, tokens: Tensor, caches: Caches | None = None, documents: Tensor | None = None, last: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor], dict[int, Tensor]]:
        """Once through the blocks."""
        length, start = tokens.shape[1], 0 if caches is None else caches.length
        if self.context is not None:
            start = self.context.start(length)
        room = self.config.block_size if caches is None else caches.room
        if room is not None and start + length > room:
            what = "the block size" if caches is None else "the caches' room of"
            raise ValueError(f"{start + length} tokens are more than {what} {room}")
        own = {} if documents is None else self._of_documents(documents, slice(start, start + length))
        x = self._embedded(tokens, start, own)
        x, auxiliary, loads, _ = self._through_blocks(x, start, length, caches, own, {}, last)
        if caches is not None:
            caches.length += length
        return self._for_head(x), auxiliary, loads

    def _embedded(self, tokens: Tensor, start: int, own: dict[str, Tensor]) -> Tensor:
        """Tokens (B, T), the first of them in place `start` -> the residual stream (B, T, D). `own` is what
        `_of_documents` makes."""
        x = self.embedding(tokens)
        x = x if (factor := self.config.embedding_factor) == 1 else x * factor
        return self.dropout(self.position.embed(x, start, own["places"]) if own else self.position.embed(x, start))

    def _through_blocks(
        self,
        x: Tensor,
        start: int,
        length: int,
        caches: Caches | None,
        own: Mapping[str, Tensor],
        handed: dict[str, Tensor],
        last: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor], dict[int, Tensor], dict[str, Tensor]]:
        """The residual stream of `length` tokens, the first of them in place `start`, through the blocks that are here,
        what these add to the loss, added up by name, their loads, and what was handed on by them, or `handed` to them
        by earlier ones. `last`: as Block has it, of the last one."""
        auxiliary: dict[str, Tensor] = {}
        loads: dict[int, Tensor] = {}
        made: dict[Any, Any] = {}  # once, however many layers share it
        for index, block in self.own_blocks.items():
            for make in block.shared.values():
                if make not in made:
                    made[make] = make(length, x.device, start)
            shared = {name: made[make] for name, make in block.shared.items()}
            shared |= {name: handed[name] for name in block.hands_on if name in handed}
            if own:
                shared[block.takes_documents] = own[block.takes_documents]
            if last is not None and index == len(self.blocks) - 1:
                shared["last"] = last
            if caches is not None:
                x, added, load, given = block(x, caches.layers[index], **shared)
            elif self.activation_checkpointing and self.training:
                x, added, load, given = checkpoint(block, x, use_reentrant=False, **shared)
            else:
                x, added, load, given = block(x, **shared)
            handed = handed | given
            for name, term in added.items():
                auxiliary[name] = auxiliary[name] + term if name in auxiliary else term
            if load is not None:
                loads[index] = load
        return x, auxiliary, loads, handed

    def _for_head(self, x: Tensor) -> Tensor:
        """What the head reads of the residual stream."""
        x = self.final_norm(x)
        return x if (scaling := self.config.logits_scaling) == 1 else x / scaling

    def _of_documents(self, documents: Tensor, own: slice = slice(None)) -> dict[str, Tensor]:
        """(B, T) -> what blocks and positions are handed of them for their `own` tokens, by name."""
        taken = {"places"}
        for layer in self.config.layer_counts:
            if layer.mixer_spec.takes_documents is None:
                raise ValueError(f"a layer of {layer.mixer} does not keep the documents of a sequence apart")
            taken.add(layer.mixer_spec.takes_documents)
        return {name: HANDED[name](documents, own) for name in taken}

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        caches: Caches | None = None,
        documents: Tensor | None = None,
        each: bool = False,
    ) -> Any:
        """Tokens (B, T) -> logits (B, T, V); with targets (B, T), of ids or IGNORED, the LossParts, and no logits at
        all: with `each`, their cross-entropy is that of each target (B, T), not yet added up. With caches, as in
        `hidden`. `documents` (B, T) says which document of its sequence a token is of, and tokens then meet those of
        their own only; None: all are of one."""
        hidden, auxiliary, loads = self._read(tokens, caches, documents)
        if targets is None:
            return self.logits(hidden)
        if each:
            losses = each_cross_entropy(hidden, self.head_weight, targets, self.config.final_logit_softcapping)
            return LossParts(losses, (targets != IGNORED).sum(), auxiliary, loads)
        return LossParts(self._cross_entropy(hidden, targets), (targets != IGNORED).sum(), auxiliary, loads)

    def _cross_entropy(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """What the head reads (B, T, D) and targets (B, T) -> the sum over those that count, nats."""
        return linear_cross_entropy(hidden, self.head_weight, targets, self.config.final_logit_softcapping)

    def next_token_logits(self, tokens: Tensor, caches: Caches | None = None) -> Tensor:
        """Tokens (B, T) -> logits (B, V) of what follows. With caches, as in `hidden`."""
        return self.logits(self.hidden(tokens, caches, last=1)[:, -1])

    def logits(self, hidden: Tensor) -> Tensor:
        """What `hidden` gives, (..., D) -> logits (..., V) of what follows each."""
        logits, cap = F.linear(hidden, self.head_weight), self.config.final_logit_softcapping
        return logits if cap is None else cap * (logits / cap).tanh()

    def after_step(self, loads: Mapping[int, Tensor]) -> None:
        """Lets FFNs adapt to the loads of a step, by block, after it was taken: those that have an `after_step`, and
        are trained."""
        if self.adapters is not None:
            return
        for index, block in self.own_blocks.items():
            if index in loads and (adapt := getattr(block.ffn, "after_step", None)) is not None:
                adapt(loads[index])

    def adapt(self, adapters: Adapters) -> None:
        """Puts adapters beside matrices, which compute nothing else until these are trained. Raises UserError."""
        for name in adapted_modules(self.config, adapters):
            attach(name, self.get_submodule(name), adapters)
        self.adapters = adapters

    def quantize(self, method: str) -> None:
        """Puts codes in place of matrices and tables, which a checkpoint or a conversion is to fill."""
        every = (one for found in named_weights(self.config) for one in found.weights)
        for name, form in forms_of(method, every).items():
            put(self, name, empty(self.get_parameter(name), form))

    @property
    def adapted(self) -> dict[str, tuple[nn.Module, Adapter]]:
        """The modules that have one, by their names, with it."""
        found = ((name, module, adapter_of(module)) for name, module in self.named_modules())
        return {name: (module, adapter) for name, module, adapter in found if adapter is not None}

    def begin_adapters(self) -> None:
        """Beside the weights that the model has by now."""
        for module, adapter in self.adapted.values():
            weight: Any = module.weight
            adapter.begin(weight)

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

    @functools.cached_property
    def residual_weights(self) -> set[str]:
        """The parameters that write into the residual stream, as the specs of their components say."""
        return {
            f"blocks.{index}.{half}.{name}"
            for index, layer in enumerate(self.config.layers)
            for half, spec in (("mixer", layer.mixer_spec), ("ffn", layer.ffn_spec))
            if spec is not None
            for weights in spec.all_weights(self.config.of(layer))
            if weights.writes
            for name in weights.names
        }

    def init_module(self, name: str, module: nn.Module) -> None:
        """Draws one module's own parameters, not its children's."""
        if isinstance(module, nn.Linear | nn.Embedding | StackedLinear):
            if isinstance(module.weight, QuantizedMatrix):
                return  # a checkpoint brings it
            writers = self.config.n_layer + self.config.ffn_layers
            std = INIT_STD / math.sqrt(writers) if f"{name}.weight" in self.residual_weights else INIT_STD
            module.weight.copy_(torch.empty(module.weight.shape).normal_(0.0, std))
            if not isinstance(module, nn.Embedding) and module.bias is not None:
                module.bias.zero_()
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
        elif any(True for _ in module.parameters(recurse=False)):
            raise UserError(f"{name} ({type(module).__name__}) has parameters but no reset_parameters() to set them")


def adapted_modules(config: ModelArchitectureConfig, adapters: Adapters) -> list[str]:
    """The names of those that adapters are beside."""
    names = (name for found in named_weights(config, adapters=adapters) for one in found.weights for name in one.names)
    return [name.removesuffix(suffix) for name in names if name.endswith(suffix := f".{LORA}.A")]


def check_countable(config: ModelArchitectureConfig) -> None:
    """Raises UserError for a model that can be planned, but is no tensors that PyTorch can address, or too many."""
    if config.n_layer > MOST_BUILT:
        raise UserError(f"n_layer={config.n_layer:,} can be planned; a model that is built has at most {MOST_BUILT:,}")
    if 4 * model_cost(config).n_params >= 2**63:
        raise UserError(f"{config.name} can be planned; no machine has the memory that building it takes")


def build_model(
    config: ModelArchitectureConfig,
    device: torch.device | str = "cpu",
    seed: int | None = None,
    activation_checkpointing: bool = False,
) -> LanguageModel:
    """The model on a device, initialised from the seed; without a seed its values are whatever memory held."""
    if torch.device(device).type == "cpu":
        check_memory(f"the model {config.name}", 4 * model_cost(config).n_params, "take a smaller one")
    with torch.device("meta"):  # nothing is drawn twice
        model = LanguageModel(config, activation_checkpointing)
    model.to_empty(device=device)
    if seed is not None:
        model.init_weights(seed)
    return model
