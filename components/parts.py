"""What a tensor-parallel rank has of a parameter, for modules that are given plain tensors and return a summand."""

from torch import Tensor
from torch.distributed.tensor import DTensor, Partial


def own_part(parameter: Tensor) -> Tensor:
    """This rank's part, or all of what every rank has whole; of that, the gradient is the sum of all ranks'."""
    if not isinstance(parameter, DTensor):
        return parameter
    gradients = [Partial() if one.is_replicate() else one for one in parameter.placements]
    return parameter.to_local(grad_placements=gradients)


def ranks_of(parameter: Tensor) -> int:
    """How many ranks compute with it."""
    return parameter.device_mesh.size() if isinstance(parameter, DTensor) else 1
