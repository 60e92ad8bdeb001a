"""Several linear layers of one shape, as one parameter."""

from typing import ClassVar

import torch
from torch import Tensor, nn


class StackedLinear(nn.Module):
    """`copies` matrices (rows, columns), each of which multiplies other tokens; whoever has them says which."""

    takes_adapters: ClassVar[bool] = True
    bias: Tensor | None

    def __init__(self, copies: int, rows: int, columns: int, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(copies, rows, columns))
        self.register_parameter("bias", nn.Parameter(torch.empty(copies, rows)) if bias else None)
