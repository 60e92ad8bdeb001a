"""What the dense FFNs have in common, without PyTorch: keys, width, activation. F is d_ff."""

import math
from typing import Any, ClassVar

from common.errors import UserError
from common.keys import key
from components.registry import spec
from components.spec import FFN, Config, Spec


class DenseFFN(FFN):
    """An FFN that every token meets whole."""

    divides = ("d_ff",)
    replaces: ClassVar[dict[str, tuple[str, ...]]] = {"d_ff": ("ffn_expansion_ratio", "ffn_multiple_of")}
    own_ratio: float  # of d_ff to n_embd, unless a key says otherwise
    own_multiple: int = 1

    d_ff: int | None = key(None, "hidden width of the FFN; None: from ffn_expansion_ratio", at_least=1)
    ffn_expansion_ratio: float | None = key(
        None, "d_ff over n_embd; None: 4 for the standard FFN, 8/3 for a gated one", above=0, below=1000
    )
    ffn_multiple_of: int | None = key(
        None, "d_ff is rounded up to a multiple of this; None: 1 for the standard FFN, 64 for a gated one", at_least=1
    )
    activation: str | None = key(
        None,
        "of the standard FFN: gelu (exact; the default), gelu_tanh, quick_gelu, silu, relu, relu_squared, leaky_relu; "
        "a gated FFN has its own",
    )

    def own_activation(self) -> str:
        """The activation unless a key says otherwise."""
        return "gelu"

    def derived(self, config: Config) -> dict[str, Any]:
        """d_ff, after which ratio and multiple have done their work."""
        return {
            "d_ff": self._d_ff(config),
            "ffn_expansion_ratio": None,
            "ffn_multiple_of": None,
            "activation": config.activation or self.own_activation(),
        }

    def _d_ff(self, config: Config) -> int:
        d_ff, ratio, multiple = config.d_ff, config.ffn_expansion_ratio, config.ffn_multiple_of
        if d_ff is not None and ratio is not None:
            raise UserError(
                f"d_ff={d_ff} and ffn_expansion_ratio={ratio} say the same thing twice; set one of them to None"
            )
        if d_ff is None:
            multiple = multiple or self.own_multiple
            # The small subtraction keeps 7/3 x 108 at 252 although 7/3 is not a binary fraction.
            return max(1, math.ceil((ratio or self.own_ratio) * config.n_embd / multiple - 1e-9)) * multiple
        if multiple is not None and d_ff % multiple:
            raise UserError(f"d_ff={d_ff} is not a multiple of ffn_multiple_of={multiple}")
        return d_ff

    def within(self, config: Config) -> dict[str, Spec]:
        return {"activation": spec("activation", config.activation or self.own_activation())}
