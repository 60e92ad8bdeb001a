"""What published laws say of experts: the constants as their papers print them, and the formulas around them.

Every function takes numbers or arrays that broadcast. How a model is brought to what a paper means stands at the laws
in scaling_laws.py.
"""

import math
from typing import Any

import numpy as np

# Ludziejewski et al. 2025, Joint MoE Scaling Laws (arXiv 2502.05172), table 3
JOINT_A, JOINT_ALPHA, JOINT_DELTA, JOINT_GAMMA = 35.91, -0.1889, -0.2285, 0.0098
JOINT_B, JOINT_BETA, JOINT_OMEGA, JOINT_ZETA = 35.98, -0.1775, 0.5529, -0.0259
JOINT_START, JOINT_MAX, JOINT_C = 2.0732, 290.4521, 1.3637
JOINT_EXPERTS = (1, 32)  # of the runs it was fitted to (appendix E)

# Tian et al. 2025, Towards Greater Leverage (arXiv 2507.17702), table 2
LEVERAGE_A, LEVERAGE_D, LEVERAGE_GAMMA, LEVERAGE_BETA = 1.23, -7.61e-2, 1.67e-2, -1.17e-1
LEVERAGE_START, LEVERAGE_MAX = 1.63e-2, 5.28e16
LEVERAGE_SHARES, LEVERAGE_GRANULARITIES, LEVERAGE_FLOPS = (0.008, 1), (2, 16), (3e18, 3e20)  # sections 3 and 4.1

# Abnar et al. 2025, Parameters vs FLOPs (arXiv 2501.12370), table 3, of equation 6
SPARSITY_C, SPARSITY_LAMBDA, SPARSITY_D, SPARSITY_DELTA, SPARSITY_GAMMA = 0.4598, -0.1666, 17.26, 0.1603, 0.1595
SPARSITY_LEVELS, SPARSITY_FLOPS = (0, 0.98), (3e19, 1e21)  # tables 1 and appendix D.1


def joint_constants(experts: Any) -> dict[str, Any]:
    """E, A, B, alpha and beta of L = a e^delta N^(alpha + gamma ln e) + b e^omega D^(beta + zeta ln e) + c (equation 6)
    for so many `experts` E, of which a token meets one: 1 / e = 1 / (E - 1 + 1 / (1 / start - 1 / max)) + 1 / max
    (equation 4)."""
    first = 1 / (1 / JOINT_START - 1 / JOINT_MAX)
    transformed = 1 / (1 / (experts - 1 + first) + 1 / JOINT_MAX)
    return {
        "E": JOINT_C,
        "A": JOINT_A * transformed**JOINT_DELTA,
        "B": JOINT_B * transformed**JOINT_OMEGA,
        "alpha": -(JOINT_ALPHA + JOINT_GAMMA * np.log(transformed)),
        "beta": -(JOINT_BETA + JOINT_ZETA * np.log(transformed)),
    }


def leverage(share: Any, granularity: Any, flops: Any) -> Any:
    """How many times the FLOPs a dense model needs for the loss of one whose tokens meet this `share` of the experts,
    `granularity` G = 2 n_embd / expert_d_ff, trained with so many FLOPs C: s^(a + d log C + gamma log(G)^2 + beta log
    G), where 1 / s = 1 / (share + 1 / (1 / start - 1 / max)) + 1 / max (equations 10 and 13).

    The paper does not say to which bases its logarithms are. To base 10 of C and to base 2 of G they give what it
    states: a leverage above 7 at 3.1 %, G = 12 and 1e22 FLOPs, and the best G near 12. No other of 2, e and 10 do.
    """
    transformed = 1 / (1 / (share + 1 / (1 / LEVERAGE_START - 1 / LEVERAGE_MAX)) + 1 / LEVERAGE_MAX)
    of_width = np.log2(granularity)
    exponent = LEVERAGE_A + LEVERAGE_D * np.log10(flops) + LEVERAGE_GAMMA * of_width**2 + LEVERAGE_BETA * of_width
    return transformed**exponent


def sparsity_terms(n: Any, sparsity: Any) -> Any:
    """c / (1 - S)^lambda + d / ((1 - S)^delta N^gamma), what equation 6 adds to the terms of N and D: S is the share of
    the experts that a token does not meet, N all parameters."""
    met = 1 - sparsity
    interaction = SPARSITY_D / (np.power(met, SPARSITY_DELTA) * np.power(n, SPARSITY_GAMMA, dtype=float))
    return SPARSITY_C / np.power(met, SPARSITY_LAMBDA) + interaction


# Kumar et al. 2024, Scaling Laws for Precision (arXiv 2411.04330), table 2: of weights, activations and the KV cache
PRECISION = {"weights": (2.6745, 0.3037), "activations": (2.2102, 1.4072), "kv": (0.9578, 2.4185)}
PRECISION_BITS = (4, 16)  # activations and KV caches of 3 bits were not fitted (appendix L); 16 is what they began from


def parameters_left(bits: int) -> float:
    """N_eff / N of training with weights, activations and KV cache of so many bits: the product of 1 - exp(n - P /
    gamma) (equation 4, with the offsets n of appendix K).

    The paper does not print the offset's sign. This one gives what it states, an optimum of 7 to 8 bits under
    C = 6 N D P / 16, and activations of 3 bits that leave nothing; the other gives neither.
    """
    return math.prod(1 - math.exp(offset - bits / gamma) for gamma, offset in PRECISION.values())
