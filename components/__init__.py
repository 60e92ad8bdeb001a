"""Interchangeable parts of a model, a room each: what it is and costs (spec.py) beside what it computes (module.py)."""

from components import registry

registry.load_rooms(registry.BUILT_IN, package="components")
