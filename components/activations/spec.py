"""The activations of an FFN: kept bytes; they have no parameters, and their FLOPs do not count."""

from components.registry import register_spec
from components.spec import Activation, MicroBatch

LABELS = {
    "gelu": "GELU",
    "gelu_tanh": "GELUtanh",
    "quick_gelu": "QuickGELU",
    "silu": "SiLU",
    "leaky_relu": "LeakyReLU",
    "relu": "ReLU",
    "relu_squared": "ReLU2",
}


class _Labelled(Activation):
    def __init__(self, name: str):
        super().__init__(name)
        self.label = LABELS[name]


@register_spec
class Smooth(_Labelled):
    names = ("gelu", "gelu_tanh", "silu", "leaky_relu")

    def kept(self, batch: MicroBatch) -> int:
        """The input."""
        return batch.tokens * batch.config.d_ff * batch.e


@register_spec
class QuickGELU(_Labelled):
    """Hendrycks and Gimpel 2016, Gaussian Error Linear Units: x sigmoid(1.702 x)."""

    names = ("quick_gelu",)

    def kept(self, batch: MicroBatch) -> int:
        """The input and the sigmoid."""
        return 2 * batch.tokens * batch.config.d_ff * batch.e


@register_spec
class ReLU(_Labelled):
    names = ("relu",)

    def kept(self, batch: MicroBatch) -> int:
        """Nothing: the output tells the derivative."""
        return 0


@register_spec
class ReLUSquared(_Labelled):
    """So et al. 2021, Primer."""

    names = ("relu_squared",)

    def kept(self, batch: MicroBatch) -> int:
        """What is squared."""
        return batch.tokens * batch.config.d_ff * batch.e
