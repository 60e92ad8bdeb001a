"""What the state-space mixers have in common, without PyTorch: keys, convolution, projections.

E channels (mamba_expand D), N state, K convolution width.
"""

from typing import Any

from common.keys import key
from components.mixers.convolution import kept_by_convolution
from components.spec import Config, MicroBatch, Mixer, Product, Remembered, Weights, matrices, vectors


class StateSpace(Mixer):
    """A layer whose state is all that a token learns of those before it."""

    what = "a state space"
    part = "mamba"
    products_parts = ("convolution", "scan")
    has_constant_state = in_float32 = True  # decays and steps do not bear to be rounded
    takes_documents, takes_context = "places", True
    divides, sums_parts = (), True
    own_state: int  # unless mamba_d_state gives it, as published

    mamba_d_state: int | None = key(
        None,
        "numbers of state a channel keeps; None: 128 in Mamba-2, 16 in Mamba-1",
        at_least=1,
        group="Architecture: state spaces",
    )
    mamba_expand: int = key(2, "channels of a Mamba layer over n_embd", at_least=1)
    mamba_d_conv: int = key(4, "tokens that the convolution before the scan sees, the current one included", at_least=1)
    mamba_conv_bias: bool = key(True, "a bias of that convolution")
    mamba_bias: bool | None = key(None, "biases of a Mamba layer's projections; None: as bias")

    def function(self, config: Config) -> dict[str, Any]:
        return {**super().function(config), "mamba_d_state": self.state(config), "mamba_bias": self.has_bias(config)}

    def width(self, config: Config) -> int:
        """Channels of a layer."""
        return config.mamba_expand * config.n_embd

    def state(self, config: Config) -> int:
        """Numbers of state a channel keeps."""
        return config.mamba_d_state or self.own_state

    def has_bias(self, config: Config) -> bool:
        return config.bias if config.mamba_bias is None else config.mamba_bias

    def convolved(self, config: Config) -> int:
        """Channels that the convolution sees."""
        return self.width(config)

    def convolution(
        self, names: str | tuple[str, ...], channels: int, config: Config, divided: str = "rows"
    ) -> list[Weights]:
        """Depthwise and causal: its products are no linear map, and counted apart."""
        names = (names,) if isinstance(names, str) else names
        found = [Weights(tuple(f"{name}.weight" for name in names), (channels, config.mamba_d_conv), divided=divided)]
        if config.mamba_conv_bias:
            found.append(Weights(tuple(f"{name}.bias" for name in names), (channels,), divided=divided))
        return found

    def output(self, config: Config) -> list[Weights]:
        """The output projection; of its bias each tensor-parallel rank adds a share."""
        found = matrices("o_proj", config.n_embd, self.width(config), divided="columns", writes=True)
        return [*found, *vectors("o_proj.bias", config.n_embd, divided="heads") * self.has_bias(config)]

    def convolution_product(self, config: Config) -> Product:
        """mamba_d_conv multiply-adds a channel."""
        return Product("convolution", 2 * config.mamba_d_conv * self.convolved(config))

    def convolution_kept(self, batch: MicroBatch, channels: int) -> int:
        """What a convolution of so many channels keeps."""
        return kept_by_convolution(batch, channels, batch.config.mamba_d_conv)

    def remembers(self, config: Config, length: int, with_current: bool) -> list[Remembered]:
        """The state, in float32 whatever is computed in, and the tokens that the convolution sees again."""
        again = config.mamba_d_conv - (not with_current)
        return [
            Remembered("state", self.width(config) * self.state(config), in_float32=True),
            Remembered("convolution", self.convolved(config) * again, whole=self.convolved_whole(config) * again),
        ]

    def convolved_whole(self, config: Config) -> Any:
        """Channels of the convolutions that every tensor-parallel rank has."""
        return 0
