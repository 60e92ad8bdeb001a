"""The norms: parameters and kept bytes."""

from components.registry import register_spec
from components.spec import Config, MicroBatch, Norm, Weights, vectors


class _LayerNorm(Norm):
    def kept(self, batch: MicroBatch) -> int:
        """Its input, and a mean and a deviation for each token."""
        return batch.tokens * 4 * (batch.config.n_embd + 2)


@register_spec
class LayerNorm(_LayerNorm):
    name, label = "layernorm", "LN"

    def weights(self, config: Config) -> list[Weights]:
        return vectors(("weight", "bias"), config.n_embd)


@register_spec
class LayerNormWithoutBias(_LayerNorm):
    name, label = "layernorm_nobias", "LNnoBias"

    def weights(self, config: Config) -> list[Weights]:
        return vectors("weight", config.n_embd)


@register_spec
class RMSNorm(Norm):
    """Zhang and Sennrich 2019, Root Mean Square Layer Normalization."""

    name, label = "rmsnorm", "RMS"

    def weights(self, config: Config) -> list[Weights]:
        return vectors("weight", config.n_embd)

    def kept(self, batch: MicroBatch) -> int:
        """Its input, the normalized input for the gradient of its weight, and a root mean square for each token."""
        return batch.tokens * 4 * ((1 if batch.adapters else 2) * batch.config.n_embd + 1)


@register_spec
class ZeroCentredRMSNorm(RMSNorm):
    """Multiplies by 1 + weight, so that decaying a weight pulls it to 1 (Gemma Team 2024, Gemma)."""

    name, label = "rmsnorm_zero_centred", "RMS1p"
    is_zero_centred = True

    def kept(self, batch: MicroBatch) -> int:
        """1 + weight besides."""
        return super().kept(batch) + 4 * batch.config.n_embd
