"""equinox with our modules in place of its own: the same leaves, outputs and gradients."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop_modules import assert_same, drawn, numbers, of_equinox

import manual_bp.interop.equinox as by_hand


@dataclasses.dataclass(frozen=True)
class Case:
    """A module of both libraries, and the examples that it is mapped over."""

    kind: str
    sizes: tuple
    xs: tuple
    settings: dict = dataclasses.field(default_factory=dict)
    call: object = staticmethod(lambda module, *xs: jax.vmap(module)(*xs))
    drawn: bool = True

    def module(self, library):
        key = {"key": jax.random.key(0)} if self.drawn else {}
        return getattr(library, self.kind)(*self.sizes, **self.settings, **key)

    def __str__(self):
        shown = {  # a function by its name: its address is another one in each process
            name: getattr(value, "__name__", value) for name, value in self.settings.items()
        }
        settings = ", ".join(f"{name}={value}" for name, value in shown.items())
        return f"{self.kind}({settings})"


def _itself(module, x):
    return jax.vmap(lambda x: module(x, x, x))(x)


def _masked(module, x, memory, mask):
    return jax.vmap(lambda x, memory: module(x, memory, memory, mask))(x, memory)


def _over_time(module, x, h, c):
    """As equinox's documentation has it, a scan, of one example."""

    def one(x, h, c):
        def step(state, x):
            state = module(x, state)
            return state, state[0]

        return jax.lax.scan(step, (h, c), x)

    return jax.vmap(one)(x, h, c)


NO_KEY = {"drawn": False}
BIASED = dict.fromkeys((f"use_{name}_bias" for name in ("query", "key", "value", "output")), True)
PAIRS = np.array([[1, 0, 0], [1, 1, 0]], bool)

CASES = [
    Case("Linear", (3, 2), (numbers(4, 3),)),
    Case("Linear", ("scalar", 2), (numbers(4),), {"use_bias": False}),
    Case("Linear", (3, "scalar"), (numbers(3),), call=lambda module, x: module(x)),
    Case("MLP", (3, 2, 4, 2), (numbers(4, 3),)),
    Case("MLP", (3, 2, 4, 1), (numbers(4, 3),), {"activation": jax.nn.gelu, "use_bias": False}),
    Case("MLP", (3, "scalar", 4, 1), (numbers(4, 3),), {"activation": jnp.sin}),
    Case("Conv1d", (2, 4, 3), (numbers(2, 2, 5),), {"padding": "SAME", "groups": 2}),
    Case("Conv2d", (2, 3, 2), (numbers(2, 2, 4, 3),), {"stride": 2, "padding": ((1, 0), (0, 1))}),
    Case("Conv3d", (1, 2, 2), (numbers(1, 3, 2, 3),), call=lambda module, x: module(x)),
    Case("Embedding", (5, 3), (np.array([1, 4, -1, 2, 1]),)),
    Case("LayerNorm", (4,), (numbers(3, 4),), **NO_KEY),
    Case("LayerNorm", ((2, 3),), (numbers(2, 2, 3),), {"use_weight": False}, **NO_KEY),
    Case("RMSNorm", (4,), (numbers(3, 4),), **NO_KEY),
    Case("GroupNorm", (2, 4), (numbers(2, 4, 3),), **NO_KEY),
    Case("MultiheadAttention", (2, 4), (numbers(2, 3, 4),), call=_itself),
    Case(
        "MultiheadAttention",
        (2, 4, 5, 5, 3),
        (numbers(2, 2, 4), numbers(2, 3, 5), PAIRS),
        {"qk_size": 3, "vo_size": 3, **BIASED},
        call=_masked,
    ),
    Case(
        "LSTMCell",
        (3, 2),
        (numbers(2, 3, 3), numbers(2, 2), numbers(2, 2, seed=3)),
        call=_over_time,
    ),
    Case("GRUCell", (3, 2), (numbers(2, 3), numbers(2, 2))),
    Case("GRUCell", (3, 2), (numbers(2, 3), numbers(2, 2)), {"use_bias": False}),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_module_is_equinoxs(case):
    stock, ours = drawn(case.module(eqx.nn)), drawn(case.module(by_hand))
    assert isinstance(ours, type(stock))
    assert all(map(np.array_equal, jax.tree.leaves(ours), jax.tree.leaves(stock)))
    theirs, args = of_equinox(stock, case.call, *case.xs)
    mine, ours_args = of_equinox(ours, case.call, *case.xs)
    assert_same(
        lambda leaves, *xs: mine(jax.tree.unflatten(jax.tree.structure(ours_args[0]), leaves), *xs),
        lambda leaves, *xs: theirs(jax.tree.unflatten(jax.tree.structure(args[0]), leaves), *xs),
        (jax.tree.leaves(args[0]), *case.xs),
    )
