"""What a rank has of a tensor that may be distributed."""

from torch import Tensor
from torch.distributed.tensor import DTensor, Partial


def own_part(values: Tensor) -> Tensor:
    """This rank's part, or all of what every rank has whole, in the same memory; of the latter, the gradient is the sum
    of all ranks'."""
    if not isinstance(values, DTensor):
        return values
    gradients = [Partial() if one.is_replicate() else one for one in values.placements]
    return values.to_local(grad_placements=gradients)


def ranks_of(parameter: Tensor) -> int:
    """How many ranks compute with it."""
    return parameter.device_mesh.size() if isinstance(parameter, DTensor) else 1
