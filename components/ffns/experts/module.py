"""Experts: (B, T, D) -> (B, T, D). N = B T tokens, E experts, of which a token meets k, each of hidden width F."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.context import Context
from components.ffns.experts.products import BACKENDS, Expert, counts_of, loop
from components.ffns.gated.module import clamped_swiglu
from components.ffns.gated.spec import CLAMPED, CLAMPED_GATE, GATES
from components.lora.module import adapter_of
from components.parts import PartLinear, SummandLinear, own_part, parts_of, ranks_of, summand_of
from components.precision import wide
from components.registry import module, register_module
from components.stacked import StackedLinear
from model_config import ModelArchitectureConfig

_NO_DIVISION_BY_ZERO = 1e-20  # DeepSeek-V3's: of sigmoids, all scores may be 0


class Routing:
    """Which experts a token meets, and how much each counts."""

    def __init__(self, config: ModelArchitectureConfig):
        self.n_met, self.n_groups, self.groups_met = config.n_experts_per_token, config.n_group, config.topk_group
        self.is_softmax, self.normalizes = config.router_scores == "softmax", config.norm_topk_prob
        self.factor = config.routed_scaling_factor

    def __call__(self, logits: Tensor, balance_bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The router's logits (N, E) -> the scores (N, E), the experts that are chosen (N, k), and their weights."""
        scores = logits.softmax(-1) if self.is_softmax else logits.sigmoid()
        chosen = self._chosen(scores.detach() if balance_bias is None else scores.detach() + balance_bias)
        weights = scores.gather(1, chosen)
        if self.normalizes:
            weights = weights / (weights.sum(-1, keepdim=True) + _NO_DIVISION_BY_ZERO)
        return scores, chosen, weights if self.factor == 1 else weights * self.factor

    def _chosen(self, scores: Tensor) -> Tensor:
        """The best of all, or of the best groups (DeepSeek-AI 2024, DeepSeek-V2, section 2.2.2, by the largest score of
        a group; DeepSeek-V3, section 2.1.2, by its two largest)."""
        if self.n_groups > 1:
            groups = scores.unflatten(1, (self.n_groups, -1))  # (N, groups, E / groups)
            counted = 1 if self.is_softmax else min(2, groups.shape[-1])
            best = groups.topk(counted).values.sum(-1).topk(self.groups_met).indices  # (N, groups that are met)
            others = torch.ones_like(groups[..., 0], dtype=torch.bool).scatter(1, best, False)
            scores = groups.masked_fill(others[..., None], -torch.inf).flatten(1)
        return scores.topk(self.n_met).indices


def in_float32(x: Tensor, layer: nn.Linear) -> Tensor:
    """What the layer makes of x, whatever autocast says (Zoph et al. 2022, ST-MoE, section 4.3, of routers)."""
    with torch.autocast(x.device.type, enabled=False):
        bias = None if layer.bias is None else wide(own_part(layer.bias))
        return F.linear(wide(x), wide(own_part(layer.weight)), bias)


@register_module("ffn_type", "experts")
class Experts(nn.Module):
    """(B, T, D) -> (B, T, D): E gated FFNs of hidden width F, of which a token meets the k that its router scores
    highest, and shared ones that it meets besides (Shazeer et al. 2017, Outrageously Large Neural Networks; DeepSeek-AI
    2024, DeepSeekMoE). No token is dropped.

        scores = softmax(router(x)), or sigmoid
        chosen = the k largest of scores + balance_bias, among those of the topk_group best of n_group groups
        weights = routed_scaling_factor scores[chosen], divided by their sum where norm_topk_prob says so
        y = sum over e in chosen of weights[e] expert_e(x) + shared(x)

    Returns beside (B, T, D) what it adds to the loss, by name, and the load: each expert's share of the choices.

    Tensor-parallel ranks call it on all tokens and with a part of every expert's hidden width; their outputs are added.
    Ranks that share experts have some of them whole, and `routed` brings the tokens (parallel/expert_parallel.py).
    """

    def __init__(self, config: ModelArchitectureConfig):
        super().__init__()
        count, width, hidden = config.n_experts, config.n_embd, config.expert_d_ff
        self.router = nn.Linear(width, count, config.expert_bias)
        self.routing = Routing(config)
        self.balance_rate = config.balance_rate
        self.register_buffer("balance_bias", torch.empty(count) if config.balance_bias else None)
        self.gate_proj, self.up_proj = (StackedLinear(count, hidden, width, config.expert_bias) for _ in range(2))
        self.down_proj = StackedLinear(count, width, hidden, config.expert_bias)
        self.is_clamped, self.limit = config.expert_type == CLAMPED, config.swiglu_limit
        gate = CLAMPED_GATE if self.is_clamped else GATES[config.expert_type]
        self.activation = module("activation", gate)(config)
        self.routed = BACKENDS[config.experts_backend]
        self.balance_loss, self.z_loss = config.balance_loss, config.router_z_loss
        self.by_sequence, self.has_shared = config.balance_over == "sequence", config.n_shared_experts > 0
        if self.has_shared:
            shared = config.n_shared_experts * hidden
            self.shared_gate_proj, self.shared_up_proj = (PartLinear(width, shared, config.bias) for _ in range(2))
            self.shared_down_proj = SummandLinear(shared, width, config.bias)
            self.shared_expert_gate = nn.Linear(width, 1, bias=False) if config.shared_expert_gate else None

    def reset_parameters(self) -> None:
        """Matrices are drawn as all are; the bias that balances begins at 0."""
        if self.balance_bias is not None:
            nn.init.zeros_(self.balance_bias)

    def hold_for_any_length(self) -> None:
        """For exporters (components/any_length.py): each expert with the rows that chose it, however many these are."""
        self.routed = loop

    balance_bias: Tensor | None
    context: Context | None = None

    @torch.no_grad()
    def after_step(self, load: Tensor) -> None:
        """Moves the bias of each expert against its load (E,) in the whole step (Wang et al. 2024, Auxiliary-Loss-Free
        Load Balancing Strategy, algorithm 1)."""
        if self.balance_bias is not None:
            own_part(self.balance_bias).add_(self.balance_rate * (load.mean() - load).sign())

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        tokens = x.flatten(0, 1)  # (N, D)
        logits = in_float32(tokens, self.router)  # (N, E)
        balance_bias = None if self.balance_bias is None else own_part(self.balance_bias)
        scores, chosen, weights = self.routing(logits, balance_bias)
        load = counts_of(chosen, scores.shape[1]) / chosen.numel()  # (E,)
        added = self._added(logits, scores, chosen, x.shape[0])
        adapters = (adapter_of(self.gate_proj), adapter_of(self.up_proj), adapter_of(self.down_proj))
        stacks = (parts_of(self.gate_proj), parts_of(self.up_proj), summand_of(self.down_proj))
        expert = Expert(self._gated, *stacks, adapters)
        compute = tokens.to(_compute_dtype(tokens))
        routed = self.routed if adapters == (None, None, None) else loop
        y = routed(compute, weights, chosen, expert)
        if self.has_shared:
            y = y + self._shared(tokens, compute)
        return y.view(x.shape), added, load

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """Elementwise."""
        if self.is_clamped:
            return clamped_swiglu(gate, up, self.limit, self.activation)
        return self.activation(gate) * up

    def _shared(self, tokens: Tensor, compute: Tensor) -> Tensor:
        gate, up = self.shared_gate_proj(compute), self.shared_up_proj(compute)
        y = self.shared_down_proj(self._gated(gate, up))
        return y if self.shared_expert_gate is None else y * in_float32(tokens, self.shared_expert_gate).sigmoid()

    def _added(self, logits: Tensor, scores: Tensor, chosen: Tensor, batch: int) -> dict[str, Tensor]:
        """What keeps experts equally busy (Fedus et al. 2021, Switch Transformers, section 2.2; over a sequence,
        DeepSeek-V3, section 2.1.2) and logits small (Zoph et al. 2022, ST-MoE, equation 5)."""
        found = {}
        if self.balance_loss:
            shares = scores if self.routing.is_softmax else scores / scores.sum(-1, keepdim=True)
            means = batch if self.by_sequence else 1
            with torch.no_grad():
                busy = self._mean(torch.zeros_like(scores).scatter(1, chosen, 1.0).view(means, -1, scores.shape[1]))
                busy = busy * (scores.shape[1] / chosen.shape[1])  # (1 or B, E): 1 in balance
            shares = self._mean(shares.view(means, -1, scores.shape[1]))
            found["balance"] = self.balance_loss * (busy * shares).sum() / means
        if self.z_loss:
            found["router_z"] = self.z_loss * self._mean(logits.logsumexp(-1).square()[None])[0]
        ranks = ranks_of(self.router.weight)
        return {name: term if ranks == 1 else _of_each_rank(term, ranks) for name, term in found.items()}

    def _mean(self, x: Tensor) -> Tensor:
        """(n, tokens, ...) -> (n, ...), over the tokens of all ranks that divide a sequence."""
        mean = x.mean(1)
        return mean if self.context is None else self.context.mean(mean)


def _of_each_rank(term: Tensor, ranks: int) -> Tensor:
    """The same, with a gradient that the ranks which all compute it add up to that of one."""
    return term / ranks + (term - term / ranks).detach()


def _compute_dtype(x: Tensor) -> torch.dtype:
    device: Any = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
