"""AdamW (Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization), PyTorch's, fused on every device."""

from typing import Any

from training.optimizers.registry import OptimizerSpec, Run, register_optimizer


@register_optimizer
class AdamW(OptimizerSpec):
    """Two means of every element, float32."""

    name, title = "adamw", "AdamW"

    def numbers(self, is_matrix: bool) -> int:
        return 2

    def new_state(self, parameter: Any) -> dict[str, Any]:
        import torch

        return {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }

    def build(self, groups: list[dict[str, Any]], run: Run) -> Any:
        import torch

        betas = (run.beta1, run.beta2)
        return torch.optim.AdamW(groups, lr=run.learning_rate, betas=betas, eps=run.adam_eps, fused=True)
