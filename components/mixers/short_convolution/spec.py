"""The gated short convolution of LFM2 (Liquid AI 2025, LFM2 Technical Report, section 2.1): a layer that sees a few
tokens, beside which a few layers of attention see all.

K tokens, D = n_embd channels.
"""

from typing import Any

from common.keys import key
from components.mixers.convolution import kept_by_convolution
from components.registry import register_spec
from components.spec import Config, MicroBatch, Mixer, Product, Remembered, Weights, matrices, vectors


@register_spec
class ShortConvolution(Mixer):
    name, label, letter, title = "short_convolution", "ShortConv", "V", "gated short convolution"
    what = "a short convolution"
    part = "short_conv"
    products_parts = ("short_convolution",)
    has_constant_state = True
    takes_documents, takes_context = "places", True
    divides, sums_parts = (), True

    short_conv_kernel_dim: int = key(
        3,
        "tokens that a short-convolution layer sees, the current one included",
        at_least=1,
        group="Architecture: short convolutions",
    )
    short_conv_bias: bool = key(False, "biases of a short-convolution layer: its projections' and the convolution's")

    def weights(self, config: Config) -> list[Weights]:
        width, bias = config.n_embd, config.short_conv_bias
        found = matrices(("B_proj", "C_proj", "x_proj"), width, width, bias, "rows")
        found.append(Weights(("conv.weight",), (width, config.short_conv_kernel_dim), divided="rows"))
        found += vectors("conv.bias", width, divided="rows") if bias else []
        found += matrices("o_proj", width, width, divided="columns", writes=True)
        return found + (vectors("o_proj.bias", width, divided="heads") if bias else [])

    def shared_sizes(self, config: Config) -> dict[str, Any]:
        return {"n_embd": config.n_embd}

    def products(self, config: Config, length: int) -> list[Product]:
        return [Product("short_convolution", 2 * config.short_conv_kernel_dim * config.n_embd)]

    def kept(self, batch: MicroBatch) -> int:
        """The input of three projections, and what they give; the convolution; the input of the output projection."""
        width = batch.config.n_embd
        convolution = kept_by_convolution(batch, width, batch.config.short_conv_kernel_dim)
        return self.whole(batch) + convolution + 4 * batch.tokens * width * batch.e

    def whole(self, batch: MicroBatch) -> int:
        """The input of three projections."""
        return batch.linear_inputs(batch.config.n_embd, layers=3)

    def remembers(self, config: Config, length: int, with_current: bool) -> list[Remembered]:
        """The tokens that the convolution sees again."""
        again: Any = config.short_conv_kernel_dim - (not with_current)
        return [Remembered("convolution", config.n_embd * again)]
