"""Gated experts of which a token meets a few, and shared ones that it meets besides (Shazeer et al. 2017; DeepSeek-AI
2024, DeepSeekMoE). No token is dropped.

N tokens, E experts, of which a token meets k, each of hidden width F.
"""

from typing import Any, ClassVar

from common.errors import UserError
from common.keys import key
from components.ffns.gated.spec import CLAMPED, GATES, Clamps
from components.registry import register_spec
from components.spec import Config, MicroBatch, Routing, Weights, matrices, vectors

OWN_RATIO = 8 / 3  # of the hidden width of all experts that a token meets to n_embd, unless a key says otherwise
OWN_MULTIPLE = 8  # the rows of grouped products begin at multiples of 16 bytes


@register_spec
class Experts(Clamps):
    name, label, letter = "experts", "MoE", "E"
    what = "experts"
    divides = ("expert_d_ff",)
    replaces: ClassVar[dict[str, tuple[str, ...]]] = {"expert_d_ff": ("expert_expansion_ratio",)}
    sums_parts = True
    own_ratio, own_multiple = OWN_RATIO, OWN_MULTIPLE

    n_experts: int = key(8, "experts of a layer", at_least=1, group="Architecture: experts")
    n_experts_per_token: int = key(2, "experts that a token meets", at_least=1)
    n_shared_experts: int = key(0, "experts that every token meets besides", at_least=0)
    expert_d_ff: int | None = key(
        None, "hidden width of an expert; None: from expert_expansion_ratio, up to a multiple of 8", at_least=1
    )
    expert_expansion_ratio: float | None = key(
        None, "expert_d_ff over n_embd; None: 8/3 over the number of experts that a token meets", above=0, below=1000
    )
    expert_type: str = key("swiglu", "the gated FFN that an expert is", choices=(*GATES, CLAMPED))
    expert_bias: bool = key(False, "biases in the router and in all experts but shared ones")
    shared_expert_gate: bool = key(False, "what shared experts give is multiplied by sigmoid(x . w)")
    router_scores: str = key("softmax", "of a token's logits over all experts", choices=("softmax", "sigmoid"))
    norm_topk_prob: bool = key(True, "the scores of the chosen experts are divided by their sum")
    routed_scaling_factor: float = key(1.0, "the scores of the chosen experts are multiplied by this", above=0)
    n_group: int = key(1, "groups that the experts are in, all of one size", at_least=1)
    topk_group: int = key(
        1,
        "groups that a token's experts are of: those of the largest score (softmax), or of the two largest (sigmoid)",
        at_least=1,
    )
    balance_bias: bool = key(
        False, "a bias of each expert, added to its score when experts are chosen; balance_rate moves it"
    )
    balance_rate: float = key(
        0.001, "after each step balance_bias goes up by this for experts with less than the mean load, and down for "
        "those with more", at_least=0, changes="speed",
    )  # fmt: skip
    balance_loss: float = key(
        0.01,
        "weight of the auxiliary loss E sum_e f_e P_e of each layer: f_e the share of the choices that are of expert "
        "e, P_e its mean share of the scores; 1 in balance",
        at_least=0,
        changes="speed",
    )
    balance_over: str = key("batch", "tokens that f and P are means of", choices=("batch", "sequence"), changes="speed")
    router_z_loss: float = key(
        0.0, "weight of the auxiliary loss of each layer: the mean square of logsumexp(logits)", at_least=0,
        changes="speed",
    )  # fmt: skip
    experts_backend: str = key(
        "auto",
        "loop (the readable reference), segments (sorted by expert, products of a few at once), grouped (one grouped "
        "product for all), or auto: grouped on a GPU that has it, else segments",
        choices=("auto", "loop", "segments", "grouped"),
        changes="speed",
    )

    def idle(self, config: Config) -> dict[str, str]:
        found = {} if config.expert_type == CLAMPED else {"swiglu_limit": f"expert_type={config.expert_type!r}"}
        found |= {} if config.balance_bias else {"balance_rate": "balance_bias=False"}
        return found | ({} if config.balance_loss else {"balance_over": "balance_loss=0"})

    def function(self, config: Config) -> dict[str, Any]:
        """Without a limit that clamps nothing, and groups of which all are met; ffn_type is of other layers."""
        own = super().function(config) | {"expert_expansion_ratio": None, "ffn_type": self.name}
        own |= {"n_group": 1, "topk_group": 1} if config.topk_group == config.n_group else {}
        return own if config.expert_type == CLAMPED else own | {"swiglu_limit": None}

    def derived(self, config: Config) -> dict[str, Any]:
        """expert_d_ff, after which the ratio has done its work."""
        given, ratio = config.expert_d_ff, config.expert_expansion_ratio
        if given is not None and ratio is not None:
            raise UserError(
                f"expert_d_ff={given} and expert_expansion_ratio={ratio} say the same thing twice; set one to None"
            )
        if given is None:
            ratio = ratio or OWN_RATIO / (config.n_experts_per_token + config.n_shared_experts)
            given = max(1, -(-round(ratio * config.n_embd, 6) // OWN_MULTIPLE)) * OWN_MULTIPLE
        return {"expert_d_ff": int(given), "expert_expansion_ratio": None}

    def check(self, config: Config) -> None:
        count, met, groups = config.n_experts, config.n_experts_per_token, config.n_group
        if met > count:
            raise UserError(f"n_experts_per_token={met} is more than n_experts={count}")
        if count % groups:
            raise UserError(f"n_experts={count} is not divisible by n_group={groups}")
        if config.topk_group > groups:
            raise UserError(f"topk_group={config.topk_group} is more than n_group={groups}")
        if met > config.topk_group * count // groups:
            raise UserError(
                f"n_experts_per_token={met} is more than the {config.topk_group * count // groups} experts of "
                f"topk_group={config.topk_group} of n_group={groups} groups"
            )
        if config.shared_expert_gate and not config.n_shared_experts:
            raise UserError("shared_expert_gate=True, but n_shared_experts=0: there is nothing to gate")
        if config.experts_backend == "grouped" and (config.n_embd % OWN_MULTIPLE or config.expert_d_ff % OWN_MULTIPLE):
            raise UserError(
                f"experts_backend='grouped' needs multiples of {OWN_MULTIPLE}: n_embd={config.n_embd} and expert_d_ff="
                f"{config.expert_d_ff}; take experts_backend='segments'"
            )

    def words(self, config: Config) -> str:
        """E.g. `MoE8of64+1`."""
        shared = f"+{config.n_shared_experts}" if config.n_shared_experts else ""
        return f"{self.label}{config.n_experts_per_token}of{config.n_experts}{shared}"

    def adds(self, config: Config) -> tuple[str, ...]:
        return ("balance",) * (config.balance_loss > 0) + ("router_z",) * (config.router_z_loss > 0)

    def loads(self, config: Config) -> int:
        return config.n_experts

    def averaged(self, config: Config, batch_size: int) -> tuple[int, int]:
        """How busy experts are, and their scores; and of logits one number."""
        means = config.n_experts * (batch_size if config.balance_over == "sequence" else 1)
        balance = means * (config.balance_loss > 0)
        return balance, balance + (config.router_z_loss > 0)

    def routing(self, config: Config) -> Routing:
        shared = config.n_shared_experts
        width = config.expert_d_ff / config.n_embd
        return Routing(config.n_experts_per_token + shared, config.n_experts + shared, width)

    def weights(self, config: Config) -> list[Weights]:
        count, width, hidden = config.n_experts, config.n_embd, config.expert_d_ff
        of_routed: dict[str, Any] = {
            "met": (config.n_experts_per_token, count), "part": "experts", "by_expert": True,
            "keeps_cast": config.experts_backend == "loop",
        }  # fmt: skip
        found = [
            *matrices("router", count, width, config.expert_bias, "sequence", part="router", in_float32=True),
            Weights(("gate_proj.weight", "up_proj.weight"), (count, hidden, width), True, divided="rows", **of_routed),
            Weights(
                ("down_proj.weight",), (count, width, hidden), True, divided="columns", writes=True, **of_routed
            ),
        ]  # fmt: skip
        if config.expert_bias:
            found.append(Weights(("gate_proj.bias", "up_proj.bias"), (count, hidden), divided="columns", **of_routed))
            found.append(Weights(("down_proj.bias",), (count, width), divided="sequence", **of_routed))
        return found + self._shared(config)

    def _shared(self, config: Config) -> list[Weights]:
        if not config.n_shared_experts:
            return []
        hidden, width = config.n_shared_experts * config.expert_d_ff, config.n_embd
        of_shared: dict[str, Any] = {"part": "shared_experts"}
        names = ("shared_gate_proj", "shared_up_proj")
        found = [
            *matrices(names, hidden, width, config.bias, "rows", **of_shared),
            *matrices("shared_down_proj", width, hidden, divided="columns", writes=True, fed_by=names, **of_shared),
        ]
        if config.bias:  # of which each rank adds a share
            found += vectors("shared_down_proj.bias", width, divided="sequence", **of_shared)
        if config.shared_expert_gate:
            found += matrices("shared_expert_gate", 1, width, divided="sequence", in_float32=True, **of_shared)
        return found

    def kept(self, batch: MicroBatch) -> int:
        """What is kept whole; what the activation of each expert is given, by both fast backends, twice; and what
        shared experts keep, as a gated FFN does."""
        config = batch.config
        choices = batch.tokens * config.n_experts_per_token
        if config.experts_backend == "loop":
            routed = self._kept_by_loop(batch)
        else:
            routed = 2 * choices * config.expert_d_ff * batch.e
        if batch.experts > 1:
            routed += self._kept_by_travelling(batch)
        shared = _between(config) * batch.tokens * config.n_shared_experts * config.expert_d_ff * batch.e
        if config.shared_expert_gate:  # its output, and what it multiplies
            shared += batch.tokens * (4 + config.n_embd * batch.e)
        return self.whole(batch) + routed + shared

    def _kept_by_loop(self, batch: MicroBatch) -> int:
        """For each choice the expert's input, its two products, the activation and what they make, and its output; this
        times the weight, in float32, and the weight; and the places of the row and of the choice."""
        config = batch.config
        numbers = batch.e * (2 * config.n_embd + _between(config) * config.expert_d_ff) + 4 * (config.n_embd + 1)
        return batch.tokens * config.n_experts_per_token * (numbers + 2 * 8)

    def _kept_by_travelling(self, batch: MicroBatch) -> int:
        """Where ranks share experts (parallel/expert_parallel.py): what came here, with a weight of one, and what comes
        back; the token of each choice, and its place there or, of the loop, here. The loop keeps neither what came, of
        which it takes copies, nor what an expert made, as the weight of one is no parameter. Without shared experts no
        cast of the input is kept."""
        config, choices = batch.config, batch.tokens * batch.config.n_experts_per_token
        loops = config.experts_backend == "loop"
        rows = choices * (2 * (not loops) * config.n_embd * batch.e + 8 + 8 + 4)
        is_idle_cast = batch.e < 4 and not loops and not config.n_shared_experts
        return rows - is_idle_cast * batch.tokens * config.n_embd * batch.e

    def whole(self, batch: MicroBatch) -> int:
        """The input in float32, which a router that is trained multiplies, and a cast of it; the scores; the places and
        the weights of the choices, before they are divided by their sum and after, and that; and what the auxiliary
        losses keep. The loop keeps no cast, order and weights of all."""
        config, tokens, is_cast = batch.config, batch.tokens, batch.e < 4
        choices, loops = tokens * config.n_experts_per_token, config.experts_backend == "loop"
        cast = batch.e * is_cast * (not loops or config.n_shared_experts > 0)
        is_kept = not batch.adapters or (not is_cast and (not loops or config.n_shared_experts > 0))
        inputs = tokens * config.n_embd * (4 * is_kept + cast)
        router = 4 * config.n_experts * config.n_embd * (is_cast and batch.weights_are_cast)  # back in float32
        scores = 4 * tokens * config.n_experts
        chosen = 8 * choices * (1 + (not loops))
        weights = 4 * choices * (config.norm_topk_prob + (not loops)) + 4 * tokens * config.norm_topk_prob
        balance = 4 * config.n_experts * (batch.batch_size if config.balance_over == "sequence" else 1)
        balance += 4 * tokens * (config.router_scores == "sigmoid")
        z_loss = 4 * tokens * (config.n_experts + 1)
        added = balance * (config.balance_loss > 0) + z_loss * (config.router_z_loss > 0)
        return inputs + router + scores + chosen + weights + added


def _between(config: Config) -> int:
    """How often the hidden width is kept between the products of a gated FFN: what they give, the activation and what
    it multiplies, and their product; clamped, also the two before, and the sigmoid in the activation."""
    return 7 if config.expert_type == CLAMPED else 4
