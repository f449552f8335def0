"""flax.nnx with our modules in place of its own: the same state, outputs and gradients."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from interop_modules import assert_same, drawn, numbers, of_flax

import manual_bp.interop.flax as by_hand


@dataclasses.dataclass(frozen=True)
class Case:
    """A module of both libraries, and what it is called with."""

    kind: str
    sizes: tuple
    xs: tuple
    settings: dict = dataclasses.field(default_factory=dict)
    call: object = staticmethod(lambda module, *xs: module(*xs))

    def module(self, library):
        return getattr(library, self.kind)(*self.sizes, rngs=nnx.Rngs(0), **self.settings)

    def __str__(self):
        shown = {  # a function by its name: its address is another one in each process
            name: getattr(value, "__name__", value) for name, value in self.settings.items()
        }
        settings = ", ".join(f"{name}={value}" for name, value in shown.items())
        return f"{self.kind}({settings})"


def _step(module, c, h, x):
    return module((c, h), x)


def _causal(module, x):
    return module(x, is_causal=True, decode=False)


def _masked(module, x, mask):
    return module(x, mask=mask, decode=False)


def _cross(module, x, memory, mask):
    return module(x, memory, mask=mask, decode=False)


TOKENS = np.array([[1, 4, -1, 2, 1]])
PADDED = np.array([[1, 1, 0], [1, 0, 1]], bool)[:, None, None]
PAIRS = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1]], bool)

CASES = [
    Case("Linear", (3, 2), (numbers(4, 3),)),
    Case("Linear", (3, 2), (numbers(2, 4, 3),), {"use_bias": False}),
    Case("LinearGeneral", ((3, 2), (2, 2)), (numbers(4, 3, 2),), {"axis": (-2, -1)}),
    Case("Conv", (4, 6, (3, 2)), (numbers(2, 4, 3, 4),), {"feature_group_count": 2, "strides": 2}),
    Case("Conv", (2, 2, (2,)), (numbers(5, 2),), {"padding": "CAUSAL", "kernel_dilation": 2}),
    Case("Conv", (2, 2, (3,)), (numbers(1, 5, 2),), {"padding": "CIRCULAR"}),
    Case("Conv", (2, 2, (3, 2)), (numbers(2, 4, 3, 2),), {"padding": [1, (0, 1)]}),
    Case("Embed", (5, 3), (TOKENS,)),
    Case("Embed", (5, 3), (numbers(2, 3),), call=lambda module, x: module.attend(x)),
    Case("Embed", (1, 3), (TOKENS,)),
    Case("LayerNorm", (4,), (numbers(3, 2, 4),)),
    Case("LayerNorm", (4,), (numbers(3, 4),), {"use_scale": False, "epsilon": 0.1}),
    Case("RMSNorm", (4,), (numbers(3, 4),)),
    Case("GroupNorm", (4, 2), (numbers(2, 3, 4),)),
    Case("BatchNorm", (4,), (numbers(5, 4),)),
    Case("BatchNorm", (3,), (numbers(2, 3, 2),), {"axis": 1, "momentum": 0.5, "use_bias": False}),
    Case("BatchNorm", (4,), (numbers(5, 4),), {"use_running_average": True}),
    Case("MultiHeadAttention", (2, 8), (numbers(2, 3, 8),), call=_causal),
    Case("MultiHeadAttention", (2, 8), (numbers(2, 3, 8), PADDED), call=_masked),
    Case(
        "MultiHeadAttention",
        (4, 8),
        (numbers(1, 3, 8), PAIRS),
        {"num_kv_heads": 2, "normalize_qk": True, "use_bias": False},
        call=_masked,
    ),
    Case(
        "MultiHeadAttention",
        (2, 4, 6, 3),
        (numbers(2, 4, 4), numbers(2, 3, 5), PADDED),
        {"in_kv_features": 5},
        call=_cross,
    ),
    Case("LSTMCell", (3, 2), (numbers(2, 2), numbers(2, 2, seed=2), numbers(2, 3)), call=_step),
    Case("OptimizedLSTMCell", (3, 2), (numbers(2), numbers(2, seed=2), numbers(3)), call=_step),
    Case("GRUCell", (3, 2), (numbers(2, 2), numbers(2, 3))),
    Case("SimpleCell", (3, 2), (numbers(2, 2), numbers(2, 3)), {"residual": True}),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_module_is_flaxs(case):
    stock, ours = case.module(nnx), case.module(by_hand)
    assert isinstance(ours, type(stock))
    assert jax.tree.structure(nnx.state(ours)) == jax.tree.structure(nnx.state(stock))
    theirs, args = of_flax(stock, case.call, *case.xs)
    mine, _ = of_flax(ours, case.call, *case.xs)
    params, others, *xs = args
    statistics = jax.tree.map(lambda leaf: leaf * leaf + 1 if leaf.ndim else leaf, others)
    assert_same(mine, theirs, (drawn(params), statistics, *xs))
