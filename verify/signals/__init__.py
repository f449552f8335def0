"""Rules of the signals: what `manual_bp.signals` gives beside the gradient, and its definition.

Every module here that defines `rules()` is found by itself, and its rules are judged as all others
are, mutants included. A definition is computed with jax.grad, jax.jacobian or jax.hessian of the
judge's own network.
"""

from __future__ import annotations

import importlib
import pkgutil

from verify.rules import Rule


def rules() -> list[Rule]:
    """The rules of all signals."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = [importlib.import_module(f"{__name__}.{name}") for name in modules]
    return [rule for module in found if hasattr(module, "rules") for rule in module.rules()]
