"""What a grid search found, as text for the console and as data for a file."""

import dataclasses
import math
from typing import Any

from common.errors import UserError
from flops_parameter_counting.costs.model_cost import model_cost
from flops_parameter_counting.costs.setting import Setting
from flops_parameter_counting.laws.scaling_laws import (
    LAWS,
    N_MEANINGS,
    Law,
    RuleValue,
    count_parameters,
    knows_nothing,
    on_experts,
    on_state_spaces,
    training_rules,
)
from flops_parameter_counting.planner.published_formula import LAW
from flops_parameter_counting.planner.search import (
    Candidate,
    Result,
    Search,
    Uncertainty,
    at_the_edge,
    deciding,
    grid_search,
)
from flops_parameter_counting.planner.space import EXPERT_SIZES, PUBLISHED_BUDGET, default_space
from flops_parameter_counting.planner.space import published as as_published

CONVENTION = "multiply-add 2, backward twice forward, attention in full, logits included"


@dataclasses.dataclass(frozen=True)
class Report:
    """A result with everything that is said about it. `candidates` are its first ones, best first."""

    result: Result
    candidates: list[Candidate]
    uncertainty: Uncertainty | None
    rules: list[RuleValue]  # learning rate and batch of the best candidate
    notes: list[str]
    comparison: dict[str, Any] | None  # with the published search at the same budget
    by_law: list[dict[str, Any]]  # what each law of experts would choose, where the space has a choice of experts

    @property
    def best(self) -> Candidate:
        return self.candidates[0]


def report(result: Result, uncertainty: Uncertainty | None, top_k: int, notes: list[str]) -> Report:
    """`notes` are the caller's; what the law and the space call for is added."""
    search, candidates = result.search, result.candidates(top_k)
    best = candidates[0]
    cost = model_cost(best.config(search.space))
    n = count_parameters(cost, search.law.N)
    notes = notes + on_experts(search.law, cost) + search.law.of(cost).outside_range(n, best.tokens)
    notes += at_the_edge(result, best) + deciding(result, best) + _assumptions(result)
    comparison = None if search.is_published or search.space.arch != "llama3" else compare_with_published(search.budget)
    rules = training_rules(cost, best.tokens)
    return Report(result, candidates, uncertainty, rules, notes, comparison, by_laws_of_experts(result, best))


def by_laws_of_experts(result: Result, best: Candidate) -> list[dict[str, Any]]:
    """The best of the same space by each law of experts, and what that law says of `best`: where they disagree, nobody
    knows better."""
    search = result.search
    if len(search.space.kinds) < 2:
        return []
    cost, found = model_cost(best.config(search.space)), []
    for law in (law for law in LAWS.values() if law.is_of_experts):
        own = best
        if law != search.law:
            own = grid_search(dataclasses.replace(search, law=law, with_budget=None), keep=1).candidates(1)[0]
        of_best = law.of(cost).loss(count_parameters(cost, law.N), best.tokens, search.unique_tokens)
        found.append({"law": law.name, "best": as_dict(own), "loss_of_this_search": float(of_best)})
    return found


def _assumptions(result: Result) -> list[str]:
    search = result.search
    notes = notes_on_law(search.law, result.best["loss"][0], search.space.vocab_size, search.unique_tokens)
    if search.space.template.has_constant_state:
        notes += on_state_spaces(search.law)
    if search.aspect_ratio is None:
        notes.append("the law ignores shape and nothing bounds n_embd / n_layer here: --aspect_ratio does")
    if search.law.draws is not None and result.passed_flops > len(result.best["loss"]):
        notes.append(f"P(best), regret and the intervals compare the best {len(result.best['loss']):,} candidates only")
    return notes


def notes_on_law(law: Law, loss: float, vocab_size: int, unique_tokens: float | None) -> list[str]:
    """What must be said about a loss that the law predicts."""
    notes = ["losses are in nats per token of the law's own tokenizer and data; they do not transfer to others"]
    if knows_nothing(loss, vocab_size):
        notes.append(
            f"the predicted loss is above ln(vocabulary) = {math.log(vocab_size):.3f}, which a model has that knows "
            "nothing: as a loss it means nothing here, only as a ranking"
        )
    if unique_tokens is not None and law.repeats is None:
        notes.append(
            f"repeated tokens: {law.name} says nothing about them; their value is that of Muennighoff et al. 2023, "
            "whose law (--law muennighoff) also discounts parameters beyond what the unique tokens are best for"
        )
    if law.draws is None:
        why = "it has no bootstrap draws"
        if law.standard_errors:
            why = "its source gives a standard error of each constant, not how they vary together"
        notes.append(f"no interval, P(best) or regret for {law.name}: {why}; a fitted law (--law FILE.json) has them")
    return notes


def compare_with_published(budget: float) -> dict[str, Any] | None:
    """What the published search chooses at this budget, what that really costs, and what the budget buys instead
    under the same law and space; None where its space and grid of tokens hold nothing for the budget."""
    space, law = default_space(PUBLISHED_BUDGET, "llama3"), LAWS[LAW]
    try:
        published = grid_search(Search(budget, law, as_published(space), "published"), keep=1).candidates(1)[0]
        exact = grid_search(Search(budget, law, space), keep=1).candidates(1)[0]
    except UserError:
        return None
    # 6 N + 12 L H Q T a token (Chowdhery et al. 2022, appendix B), H Q being the width
    palm = 6 * published.n_params + 12 * published.n_layer * published.n_embd * space.sequence_length
    return {
        "published_best": as_dict(published),
        "share_of_budget": published.true_flops / budget,
        "share_of_budget_without_logits": published.true_flops_without_logits / budget,
        "palm_flops": palm * published.tokens,
        "exact_best": as_dict(exact),
    }


def as_dict(candidate: Candidate) -> dict[str, Any]:
    """For JSON."""
    ratio = candidate.tokens_per_parameter
    values = dataclasses.asdict(candidate)
    if not candidate.n_experts:
        for name in ("n_active", *EXPERT_SIZES):
            del values[name]
    return values | {"tokens_per_parameter": ratio, "chinchilla_ratio": ratio / 20}


def as_json(found: Report) -> dict[str, Any]:
    """The whole report as data; `candidates` best first, `statistics`, and what was assumed."""
    search, uncertain = found.result.search, found.uncertainty
    candidates = [as_dict(candidate) for candidate in found.candidates]
    if uncertain is not None:
        for index, values in enumerate(candidates):
            values["p_best"] = float(uncertain.p_best[index])
            values["regret"] = float(uncertain.regret[index])
            values["within_noise"] = bool(uncertain.within_noise[index])
    space = dataclasses.asdict(search.space)
    if not search.space.family.has_experts:
        for name in (*EXPERT_SIZES[:3], "granularity"):
            del space[name]
    return {
        "budget": search.budget,
        "flops_formula": search.flops_formula,
        "convention": CONVENTION,
        "law": search.law.as_data(),
        "space": {name: list(value) if isinstance(value, range) else value for name, value in space.items()},
        "candidates": candidates,
        "statistics": {
            "configs_tried": found.result.configs_tried,
            "passed_chinchilla": found.result.passed_chinchilla,
            "passed_flops": found.result.passed_flops,
            "within_noise": None if uncertain is None else int(uncertain.within_noise.sum()),
        },
        "memory": search.training and _memory_as_dict(found.result, search.training),
        "intervals": uncertain and {name: getattr(uncertain, name) for name in ("loss", "n_params", "tokens")},
        "training_rules": [dataclasses.asdict(rule) for rule in found.rules],
        "comparison": found.comparison,
        **({"by_laws_of_experts": found.by_law} if found.by_law else {}),
        "notes": found.notes,
    }


def _memory_as_dict(result: Result, training: Setting) -> dict[str, Any]:
    names = ("strategy", "devices", "micro_batch", "dtype", "activation_checkpointing", "hardware", "device_memory")
    bound = result.bounds.get("memory")
    return {name: getattr(training, name) for name in names} | {"passed": bound and bound.passed}


# ---------------------------------------------------------------------------------------------------------------------
# Text


def as_text(found: Report) -> str:
    """Several paragraphs for the console."""
    paragraphs = [_assumed(found), _best(found), _table(found), _statistics(found), _rules(found)]
    if found.comparison is not None:
        paragraphs.append(_comparison(found))
    if found.by_law:
        paragraphs.append(_by_law(found.by_law))
    return "\n\n".join([*paragraphs, "\n".join(f"note: {note}" for note in found.notes)])


def _assumed(found: Report) -> str:
    search = found.result.search
    space = search.space
    kv = "as many as heads" if space.kv_heads is None else _sizes(space.kv_heads)
    heads = f"head dims {_sizes(space.head_dims)}; key and value heads {kv}; " if space.family.has_heads else ""
    d_ff = f"d_ff {space.ffn_expansion_ratio:g} x; " if space.family.has_d_ff else ""
    lines = [
        *assumed_of_law(search),
        f"Space:          {space.arch}, vocabulary {space.vocab_size:,}, {space.sequence_length:,} tokens a sequence",
        f"                hidden sizes {_sizes(space.hidden_sizes)}; layers {_sizes(space.layers)}",
        f"                {heads}{d_ff}{'tied' if space.weight_tying else 'untied'} head",
    ]
    if space.family.has_experts:
        of_dense = ", ".join(f"{granularity:g}" for granularity in space.granularity)
        lines.append(
            f"                experts {_sizes(space.n_experts)}, of which a token meets "
            f"{_sizes(space.n_experts_per_token)}; {_sizes(space.n_shared_experts)} shared; an expert is "
            f"{space.ffn_expansion_ratio:g} x over {of_dense} wide (granularity)"
        )
    if search.aspect_ratio is not None:
        lines.append("                n_embd / n_layer {:g} to {:g}".format(*search.aspect_ratio))
    if search.unique_tokens is not None:
        lines.append(f"Unique tokens:  {search.unique_tokens:.4g}; further ones are repetitions")
    if search.training is not None:
        lines.append(f"Memory:         {memory_in_words(search.training)}")
    return "\n".join(lines)


def assumed_of_law(search: Search) -> list[str]:
    """The budget, the law and how FLOPs are counted, as lines."""
    law = search.law
    return [
        f"Budget:         {search.budget:.4e} FLOPs" + _inference(search),
        f"Law:            {law.name}: {law.formula}",
        f"                {law.source}; N: {N_MEANINGS[law.N]}",
        f"FLOPs:          {_formula(search)}",
    ]


def memory_in_words(training: Setting) -> str:
    """Of what, and what bounds it."""
    limit = "not bounded" if training.device_memory is None else f"at most {training.device_memory / 1e9:,g} GB"
    on = "the one device" if training.devices == 1 else f"each of {training.devices:,} devices, {training.strategy}"
    checkpointing = ", activation checkpointing" if training.activation_checkpointing else ""
    return f"{limit} on {on} (micro-batch {training.micro_batch}, {training.dtype}{checkpointing}, AdamW)"


def _inference(search: Search) -> str:
    return f", for training and for {search.inference_tokens:,} tokens of inference" if search.inference_tokens else ""


def _formula(search: Search) -> str:
    if search.is_published:
        return "published formula: scores counted once a head, no logits (true FLOPs stand beside it)"
    return f"exact: {CONVENTION}; D solved from the budget"


def _sizes(sizes: Any) -> str:
    if isinstance(sizes, range) and len(sizes) > 2:
        return f"{sizes[0]:,} to {sizes[-1]:,} by {sizes.step:,}"
    return (
        ", ".join(f"{size:,}" for size in sizes)
        if len(sizes) <= 12
        else f"{len(sizes)} from {min(sizes):,} to {max(sizes):,}"
    )


def _best(found: Report) -> str:
    search, best = found.result.search, found.best
    uncertain, interval = found.uncertainty, {"loss": "", "n": "", "d": ""}
    if uncertain is not None:
        interval = {
            "loss": "   95 % interval {:.5f} to {:.5f}".format(*uncertain.loss),
            "n": "   best N {:.3g} to {:.3g} in 95 % of draws".format(*uncertain.n_params),
            "d": "   best D {:.3g} to {:.3g} in 95 % of draws".format(*uncertain.tokens),
        }
    family = search.space.family
    heads = f", {best.n_head} heads, {best.num_key_value_heads} KV heads" if family.has_heads else ""
    d_ff = f", d_ff {best.d_ff}" if family.has_d_ff else ""
    d_ff += f", {best.n_experts} experts of {best.expert_d_ff}" if family.has_experts else ""
    active, of_active = "", ""
    if best.n_active != best.n_params:
        active, of_active = f", of which a token meets {best.n_active:,}", " (of those that a token meets)"
    lines = [
        "BEST CONFIG",
        f"  Architecture     {best.config(search.space).name}",
        f"                   {best.n_layer} layers x {best.n_embd}{heads}{d_ff}",
        _headline(found) + interval["loss"],
        f"  N                {best.n_params:,}{active}{interval['n']}",
        f"  D                {_number(best.tokens)}{interval['d']}",
        f"  D/N              {best.tokens_per_parameter:.2f}   D/(20N) {best.tokens_per_parameter / 20:.3f}{of_active}",
    ]
    if search.is_published:
        lines.append(f"  FLOPs            {best.flops:.4e} by the published formula ({_share(best.flops, search)})")
    lines += [
        f"  True FLOPs       {best.true_flops:.4e} with logits ({_share(best.true_flops, search)}), "
        f"{best.true_flops_without_logits:.4e} without",
        f"  FLOPs per token  {best.flops_per_token:,} (training, full attention, with logits)",
    ]
    if best.memory_per_device is not None:
        lines.append(f"  Memory           {best.memory_per_device / 1e9:,.2f} GB a device")
    if search.inference_tokens:
        lines.append(f"  Inference        {best.inference_flops:.4e} ({_share(best.inference_flops, search)})")
    return "\n".join(lines)


def _headline(found: Report) -> str:
    """The predicted loss, unless it is none."""
    loss, vocab_size = found.best.loss, found.result.search.space.vocab_size
    if knows_nothing(loss, vocab_size):
        uniform = f"ln({vocab_size:,}) = {math.log(vocab_size):.3f}"
        return f"  Predicted loss   none: the law's {loss:.6f} only ranks, above the {uniform} of knowing nothing"
    return f"  Predicted loss   {loss:.6f}"


def _number(tokens: float) -> str:
    return f"{tokens:,}" if isinstance(tokens, int) else f"{tokens:,.0f}"


def _share(flops: float, search: Search) -> str:
    return f"{100 * flops / search.budget:.1f} % of the budget"


def _unit(value: float) -> tuple[float, str]:
    """The unit in which a column's figures read well, judged by the best candidate's."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= 0.5 * size:
            return size, letter
    return 1.0, ""


def _table(found: Report) -> str:
    (n_unit, n_letter), (d_unit, d_letter) = _unit(found.best.n_params), _unit(found.best.tokens)
    sure = found.uncertainty
    lines = [
        f"TOP {len(found.candidates)}",
        f"   #      loss  {'N (' + n_letter + ')':>9}  {'D (' + d_letter + ')':>10}       D/N  D/(20N)"
        "  layers   width  heads   KV    d_ff       FLOPs"
        + (f"  {'active (' + n_letter + ')':>10}  {'experts':>16}" if found.best.n_experts else "")
        + ("" if found.best.memory_per_device is None else "  GB/device")
        + ("" if sure is None else "  P(best)    regret  noise"),
    ]
    for index, row in enumerate(found.candidates):
        ratio = row.tokens_per_parameter
        line = (
            f"{index + 1:>4}  {row.loss:.6f}  {row.n_params / n_unit:>8.3f}  {row.tokens / d_unit:>10.3f}  "
            f"{ratio:>8.2f}  {ratio / 20:>7.3f}  {row.n_layer:>6}  {row.n_embd:>6}  {row.n_head:>5}  "
            f"{row.num_key_value_heads:>3}  {row.d_ff:>6}  {row.flops:.4e}"
        )
        if row.n_experts:
            line += f"  {row.n_active / n_unit:>10.3f}  {_experts(dataclasses.asdict(row)):>16}"
        if row.memory_per_device is not None:
            line += f"  {row.memory_per_device / 1e9:>9,.2f}"
        if sure is not None:
            within = "yes" if sure.within_noise[index] else "no"
            line += f"  {sure.p_best[index]:>7.3f}  {sure.regret[index]:>8.5f}  {within:>5}"
        lines.append(line)
    return "\n".join(lines)


def _by_law(found: list[dict[str, Any]]) -> str:
    lines = [
        "BY EACH LAW OF EXPERTS, its own best of this space, and what it says of the best above",
        "  law                loss  of the above        experts      N (M)  active (M)       D (M)  layers   width",
    ]
    for row in found:
        own = row["best"]
        lines.append(
            f"  {row['law']:<13}  {own['loss']:.6f}      {row['loss_of_this_search']:.6f}  {_experts(own):>13}  "
            f"{own['n_params'] / 1e6:>9,.0f}  {own['n_active'] / 1e6:>10,.0f}  {own['tokens'] / 1e6:>10,.0f}  "
            f"{own['n_layer']:>6}  {own['n_embd']:>6}"
        )
    shares = {row["law"]: _share_met(row["best"]) for row in found}
    if len(set(shares.values())) == 1:
        lines.append(f"  They agree that a token should meet {100 * next(iter(shares.values())):.3g} % of the experts.")
    else:
        each = ", ".join(f"{law} {100 * share:.3g} %" for law, share in shares.items())
        lines.append(f"  They disagree on how much of the experts a token should meet: {each}.")
    return "\n".join(lines)


def _experts(own: dict[str, Any]) -> str:
    """`2of8+1 x 768`."""
    shared = f"+{own['n_shared_experts']}" if own["n_shared_experts"] else ""
    return f"{own['n_experts_per_token']}of{own['n_experts']}{shared} x {own['expert_d_ff']}"


def _share_met(own: dict[str, Any]) -> float:
    shared = own["n_shared_experts"]
    return (own["n_experts_per_token"] + shared) / (own["n_experts"] + shared)


def _statistics(found: Report) -> str:
    result = found.result
    lines = ["SEARCH STATISTICS", f"  Configs tried        {result.configs_tried:,}"]
    if result.passed_chinchilla is not None:
        lines.append(f"  Passed Chinchilla    {result.passed_chinchilla:,} (0.5 <= D/(20N) <= 1.5)")
    lines.append(f"  Passed FLOPs         {result.passed_flops:,}")
    lines += [
        f"  {bound.name}: {bound.passed:,} of {bound.entered:,} within the bound"
        for name, bound in result.bounds.items()
        if name in ("aspect", "params", "memory") and bound.passed < bound.entered
    ]
    if found.uncertainty is not None:
        lines.append(
            f"  Within the noise     {int(found.uncertainty.within_noise.sum()):,} (as good in 5 % of draws or more)"
        )
    return "\n".join(lines)


def _rules(found: Report) -> str:
    space, rules = found.result.search.space, found.rules
    rates, batches = [rule.learning_rate for rule in rules], [rule.batch_tokens for rule in rules]
    lines = [
        f"LEARNING RATE {min(rates):.2g} to {max(rates):.2g}, BATCH {min(batches):,.0f} to {max(batches):,.0f} TOKENS"
    ]
    lines += [
        f"  {rule.name:<12} {rule.learning_rate:.2e}  {rule.batch_tokens:>12,.0f} tokens "
        f"({rule.batch_tokens / space.sequence_length:,.1f} sequences)  {rule.source}"
        for rule in rules
    ]
    return "\n".join(lines)


def _comparison(found: Report) -> str:
    values, budget = found.comparison or {}, found.result.search.budget
    old, new = values["published_best"], values["exact_best"]
    return (
        f"THE PUBLISHED SEARCH (--flops_formula=published; its space, its law {LAW}) chooses at this budget\n"
        f"  {old['n_layer']} layers x {old['n_embd']}, predicted {old['loss']:.5f}.\n"
        f"  It really costs {old['true_flops_without_logits']:.3g} FLOPs without logits "
        f"({100 * values['share_of_budget_without_logits']:.0f} %), {old['true_flops']:.3g} with them "
        f"({100 * values['share_of_budget']:.0f} % of the budget).\n"
        f"  (6 N + 12 L H Q T says {values['palm_flops']:.3g}, {100 * values['palm_flops'] / budget:.0f} %: "
        "with the input embedding, a look-up, as a product.)\n"
        f"  The whole budget, logits counted once, buys under the same law and space {new['n_layer']} layers x "
        f"{new['n_embd']}, {new['n_head']} heads:\n"
        f"  N = {new['n_params']:.4g}, D = {new['tokens']:.4g}, predicted {new['loss']:.5f}."
    )
