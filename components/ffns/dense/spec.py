"""The FFN of the first transformer: two matrices and an activation between them."""

from components.ffns.base import DenseFFN
from components.registry import register_spec, spec
from components.spec import Config, MicroBatch, Weights, matrices


@register_spec
class Standard(DenseFFN):
    name = "standard"
    own_ratio = 4.0

    def words(self, config: Config) -> str:
        activation = spec("activation", config.activation or self.own_activation())
        return activation.label or activation.name

    def weights(self, config: Config) -> list[Weights]:
        return [
            *matrices("up_proj", config.d_ff, config.n_embd, config.bias, "rows"),
            *matrices("down_proj", config.n_embd, config.d_ff, config.bias, "columns", writes=True),
        ]

    def kept(self, batch: MicroBatch) -> int:
        """The inputs of the two layers, and what the activation keeps."""
        config = batch.config
        (activation,) = self.within(config).values()
        return batch.linear_inputs(config.n_embd) + activation.kept(batch) + batch.tokens * config.d_ff * batch.e
