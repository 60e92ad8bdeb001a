"""What an optimizer of whole matrices costs: FLOPs of a step, who computes them, what that takes and sends. No torch.

AdamW's few operations an element are not counted, as norms are not. None of these FLOPs are in a model's: MFU is of
those alone.
"""

import dataclasses

from components.spec import Weights
from flops_parameter_counting.costs.model_cost import WHOLE, Stage, named_weights
from flops_parameter_counting.costs.sharding import Mesh
from model_config import ModelArchitectureConfig
from runs.config import RunConfig
from training.optimizers.dealing import Layout, Matrix, deal, size
from training.optimizers.registry import optimizer_spec


@dataclasses.dataclass(frozen=True)
class Update:
    """A step's update of matrices, by the ranks that have the parts of one copy of the model. `flops`: of all of them,
    each matrix once. `of_busiest`: of the rank that computes most. `travelling`: elements, of all ranks, that go to the
    rank which updates their matrix. `scratch`: bytes that a rank takes for it, at most."""

    flops: int
    of_busiest: int
    travelling: int
    scratch: int


def update_of(config: ModelArchitectureConfig, run: RunConfig, mesh: Mesh, stage: Stage = WHOLE) -> Update:
    """What the run's optimizer makes of its matrices in a step, or of a stage's; nothing but zeros where it takes
    none."""
    spec = optimizer_spec(run.optimizer)
    if not spec.takes_matrices:
        return Update(0, 0, 0, 0)
    shards = mesh.data if run.use_zero1 else mesh.shards
    matrices = trained_matrices(config, run, stage)
    apart = [_layout(_of_rank(one, mesh), 1) for one in matrices if one.by_expert and mesh.experts > 1]
    layouts = [_layout(one, mesh.tensor) for one in matrices if not one.by_expert or mesh.experts == 1]
    dealt = deal(layouts, shards, mesh.tensor, lambda m, n: spec.matrix_flops(m, n, run))
    own = [shape for layout in apart for shape in _shapes(layout)]  # of experts that each rank has whole
    flops = [sum(spec.matrix_flops(*shape, run) for shape in own)] * (shards * mesh.tensor)
    scratch = [max((spec.scratch(*shape, run, apart=False) for shape in own), default=0)] * len(flops)
    held = [0] * len(flops)
    for one in dealt:
        flops[one.owner] += spec.matrix_flops(*one.shape, run)
        scratch[one.owner] = max(scratch[one.owner], spec.scratch(*one.shape, run, apart=one.travels))
        for rank, part in enumerate(one.parts if one.travels else ()):
            held[rank] += 4 * size(part)
            held[one.owner] += 4 * size(part)
    return Update(
        flops=sum(spec.matrix_flops(*shape, run) for one in matrices for shape in _shapes(_layout(one, 1))),
        of_busiest=max(flops),
        travelling=sum(_elements(one) for one in dealt if one.travels),
        scratch=max(map(sum, zip(held, scratch, strict=True))),
    )


def trained_matrices(config: ModelArchitectureConfig, run: RunConfig, stage: Stage = WHOLE) -> list[Weights]:
    """The parameters that are matrices of linear layers, or stacks of them, one by one in the model's order."""
    found = [one for place in named_weights(config, stage, run.adapters) for one in place.weights if one.are_matrices]
    return [dataclasses.replace(one, names=(name,)) for one in found for name in one.names if not run.freezes(name)]


def _of_rank(weights: Weights, mesh: Mesh) -> Weights:
    """What one of the ranks that share experts has of these."""
    experts, *others = weights.shape
    return dataclasses.replace(weights, shape=(experts // mesh.experts, *others))


def _layout(weights: Weights, tensors: int) -> Layout:
    dims = {"rows": len(weights.shape) - 2, "columns": len(weights.shape) - 1}
    return Layout(weights.shape, weights.rows_of_matrices, dims.get(weights.divided) if tensors > 1 else None)


def _shapes(layout: Layout) -> list[tuple[int, int]]:
    return [(len(box[-2]), len(box[-1])) for box in layout.matrices]


def _elements(matrix: Matrix) -> int:
    return sum(map(size, matrix.parts))
