"""The registry's face: what computes each component, by its kind (a configuration key, or `mixer`) and its name.

A component is a room of its own below components/, or two classes in a config file or in a folder of the user's
(`--components`): a spec, which says what it is and costs, and a module, which computes it. docs/extending.md shows
both.

Shapes: B batch, T tokens, D n_embd, H query heads, K key-value heads, h head_dim, F d_ff.
"""

from components.registry import SPECS, has_module, register_module, register_preset, register_spec
from components.registry import module as component

__all__ = ["component", "register", "register_preset", "register_spec", "registered"]

# A module is called with the ModelArchitectureConfig, with a layer's own values where it is in a layer, and returns an
# nn.Module, except the backends, which are the functions themselves.
register = register_module


def registered() -> dict[str, list[str]]:
    """The names under every kind, of what can be built and not counted only."""
    return {kind: [name for name in names if has_module(kind, name)] for kind, names in SPECS.items()}
