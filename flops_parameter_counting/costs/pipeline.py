"""How a pipeline divides a model: which blocks each stage has, what goes from one to the next, and how long stages wait
for each other (Huang et al. 2019, GPipe; Narayanan et al. 2021, Megatron-LM, section 2.2). No torch.
"""

from common.arrays import product
from common.errors import UserError
from flops_parameter_counting.costs.model_cost import WHOLE, Stage, named_weights, places_of, products_of
from model_config import Layer, ModelArchitectureConfig
from runs.config import RunConfig


def stages_of(config: ModelArchitectureConfig, count: int) -> list[Stage]:
    """The model's blocks as `count` contiguous stages, of which the busiest has as few FLOPs as one can have; the head
    is the last one's. Where several divisions are as good, the later stages have more blocks: under 1f1b the earlier
    ones keep more micro-batches, and the first has the embedding. One stage is the WHOLE."""
    if count == 1:
        return [WHOLE]
    of_layers = {layer: block_flops(layer, config) for layer in config.layer_counts}
    costs = [of_layers[layer] for layer in config.layers]
    runs = divided([*costs[:-1], costs[-1] + head_flops(config)], count)
    return [Stage(run, run.start == 0, run.stop == len(costs), index) for index, run in enumerate(runs)]


def divided(costs: list[int], count: int) -> list[range]:
    """Items as `count` contiguous runs of at least one, the largest sum of which is the least that there can be."""
    low, high = max(costs), sum(costs)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_filled(costs, middle, 1)) <= count else (middle + 1, high)
    return _filled(costs, low, count)


def _filled(costs: list[int], most: int, count: int) -> list[range]:
    """From the last item on, runs that are as long as `most` allows, but leave an item each for `count` in all."""
    found, stop = list[range](), len(costs)
    while stop:
        start, left = stop - 1, costs[stop - 1]
        while start > max(0, count - len(found) - 1) and left + costs[start - 1] <= most:
            start, left = start - 1, left + costs[start - 1]
        found.insert(0, range(start, stop))
        stop = start
    return found


def block_flops(layer: Layer, config: ModelArchitectureConfig) -> int:
    """Forward FLOPs per token of a block, full attention."""
    total = 0
    for place in places_of(layer, config):
        stated = place.spec.all_weights(place.config)
        total += sum(2 * weights.of_these_met(weights.size) for weights in stated if weights.multiplies)
        total += sum(product.flops for product in products_of(place, config.block_size, None))
    return total


def head_flops(config: ModelArchitectureConfig) -> int:
    """Forward FLOPs per token of the LM head."""
    return 2 * (config.vocab_size or 0) * config.n_embd


def stage_flops(config: ModelArchitectureConfig, stage: Stage) -> int:
    """Forward FLOPs per token of a stage, full attention."""
    blocks = sum(count * block_flops(layer, config) for layer, count in stage.counts(config).items())
    return blocks + stage.is_last * head_flops(config)


def handed_over(config: ModelArchitectureConfig, block: int) -> dict[str, int]:
    """What blocks before this one hand to it or to later ones beside the residual stream: numbers a token, in the
    compute dtype, by name."""
    found: dict[str, int] = {}
    for layer in config.layers[:block]:
        for name, factors in layer.mixer_spec.hands_on(config.of(layer)).items():
            found.setdefault(name, product(factors.values()))
    wanted = {name for layer in config.layers[block:] for name in layer.mixer_spec.hands_on(config.of(layer))}
    return {name: size for name, size in found.items() if name in wanted}


def crossing(config: ModelArchitectureConfig, block: int, e: int) -> int:
    """Bytes a token that a stage which begins with this block is sent, and whose gradients it sends back: the residual
    stream, in float32, and what is handed over, in a compute dtype of `e` bytes. None for the first block."""
    return 4 * config.n_embd + e * sum(handed_over(config, block).values()) if block else 0


def micro_batches(run: RunConfig, data_ranks: int) -> int:
    """Those that flow through each pipeline in a step."""
    return max(1, run.gradient_accumulation_steps // data_ranks)


def in_flight(run: RunConfig, stage: Stage, count: int) -> int:
    """Micro-batches, of `count` in a step, whose activations a stage keeps at once, at most: under 1f1b it has begun as
    many as there are stages from it on before it has the first gradient (Narayanan et al. 2021, section 2.2.1), under
    gpipe all."""
    return count if run.pipeline_schedule == "gpipe" else min(count, run.pipeline_parallel - stage.index)


def bubble(stages: int, count: int) -> float:
    """The share of a step in which a stage has nothing to do, of equally busy ones: (n-1) / (m+n-1) with n stages and m
    micro-batches, under either schedule (Huang et al. 2019, section 2.3)."""
    return (stages - 1) / (count + stages - 1)


def check_divided(config: ModelArchitectureConfig, run: RunConfig) -> None:
    """Raises UserError for a model that a pipeline cannot divide into as many stages."""
    stages = run.pipeline_parallel
    if stages > config.n_layer:
        raise UserError(f"pipeline_parallel={stages} is more than n_layer={config.n_layer}: a stage has one at least")
    if config.dropout:
        raise UserError(
            "pipeline_parallel needs dropout=0: what a stage drops would depend on what those before it have drawn"
        )
    for stage in stages_of(config, stages) if run.frozen is not None else ():
        of_stage = (found for found in named_weights(config, stage) if not (found.is_head and config.weight_tying))
        if all(run.freezes(name) for found in of_stage for one in found.weights for name in one.names):
            raise UserError(
                f"frozen={run.frozen!r} leaves nothing to be trained in {in_words(stage)}, one of the "
                f"pipeline_parallel={stages} stages: take fewer stages"
            )


def in_words(stage: Stage) -> str:
    """Its blocks."""
    assert stage.blocks is not None
    first, last = stage.blocks[0], stage.blocks[-1]
    return f"block {first}" if first == last else f"blocks {first}-{last}"
