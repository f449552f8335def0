"""What every doctest may use without importing it, as the README's first lines import it."""

import jax
import jax.numpy as jnp
import pytest

import manual_bp
import verify

collect_ignore = ["tests/on_eight_devices.py", "tests/on_meshes.py"]
"""What tests run in a process of its own, with eight devices."""


@pytest.fixture(autouse=True)
def _names(doctest_namespace):
    doctest_namespace.update(vars(manual_bp))
    doctest_namespace.update(jax=jax, jnp=jnp, mbp=manual_bp)
    doctest_namespace.update(check=verify.check, check_grads=verify.check_grads)
