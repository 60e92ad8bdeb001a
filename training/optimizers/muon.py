"""Muon (Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks), PyTorch's: the running mean of a
matrix's gradient is orthogonalised by a few Newton-Schulz iterations, in bfloat16. AdamW has what is no matrix.

The learning rate of a matrix is adjusted by its shape: `original` times sqrt(max(1, rows / columns)); `match_rms_adamw`
times 0.2 sqrt(max(rows, columns)), so that AdamW's learning rates fit (Liu et al. 2025, Muon is Scalable for LLM
Training, section 2.2).
"""

from collections.abc import Sequence
from typing import Any

from common.errors import UserError
from training.optimizers.adamw import AdamW
from training.optimizers.registry import Run, register_optimizer


@register_optimizer
class Muon(AdamW):
    """One mean of every element of a matrix, float32; of anything else, AdamW's two."""

    name, title = "muon", "Muon with AdamW"
    keys = ("muon_learning_rate", "muon_momentum", "muon_nesterov", "muon_ns_steps", "muon_adjust_lr")
    takes_matrices = True

    def check(self, run: Run) -> None:
        if run.muon_learning_rate is not None and not run.learning_rate:
            raise UserError(
                f"muon_learning_rate={run.muon_learning_rate} follows the schedule of learning_rate, which is 0: "
                "give both, or neither"
            )

    def numbers(self, is_matrix: bool) -> int:
        return 1 if is_matrix else 2

    def matrix_flops(self, rows: int, columns: int, run: Run) -> int:
        """Of an iteration on X (m, n), the shorter side first: A = X X^T, b A + c A A, and a X + (b A + c A A) X."""
        m, n = sorted((rows, columns))
        return run.muon_ns_steps * (2 * m * m * n + 2 * m**3 + 2 * m * m * n)

    def scratch(self, rows: int, columns: int, run: Run, apart: bool) -> int:
        """The iterate, its successor, a copy that the product of some CPUs makes of it, and two squares, in bfloat16;
        before them, in float32, what is orthogonalised: with Nesterov's momentum a tensor of its own. Away from its
        parameter a matrix has a gradient, a buffer and a result."""
        m, n = sorted((rows, columns))
        in_float32 = 3 if apart else int(run.muon_nesterov)
        return 4 * in_float32 * m * n + 2 * (3 * m * n + 2 * m * m)

    def learning_rate_of_matrices(self, run: Run) -> float:
        return run.learning_rate if run.muon_learning_rate is None else run.muon_learning_rate

    def new_matrix_state(self, parameter: Any) -> dict[str, Any]:
        import torch

        return {"momentum_buffer": torch.zeros_like(parameter)}

    def build_of_matrices(self, matrices: Sequence[Any], run: Run, **instead: Any) -> Any:
        import torch

        arguments = {
            "lr": self.learning_rate_of_matrices(run),
            "weight_decay": run.weight_decay,
            "momentum": run.muon_momentum,
            "nesterov": run.muon_nesterov,
            "ns_steps": run.muon_ns_steps,
            "adjust_lr_fn": run.muon_adjust_lr,
        }
        return torch.optim.Muon(matrices, **(arguments | instead))
