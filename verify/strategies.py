"""Random architectures as hypothesis strategies, for property tests; they shrink.

The choices are those of `verify.networks`, made by hypothesis: so it can take them back one by one
until the smallest case that still fails is left. Needs hypothesis, which the extra `test` installs.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from hypothesis import strategies as st

import manual_bp as mbp
from manual_bp.layer import Layer
from verify import rules, specs
from verify.networks import Case, prediction_shape, with_dtype
from verify.specification import LayerSpec


@st.composite
def layers(draw: st.DrawFn, shape: tuple[int, ...]) -> Layer:
    """A layer of any kind that has a spec and fits inputs of this shape; dense ones come first."""
    of_floats = [spec for spec in specs.layers() if spec.inputs is None]
    fitting = [spec for spec in of_floats if _fits(spec, shape)]
    kinds = sorted(fitting, key=lambda spec: spec.layer is not mbp.Dense)
    spec = kinds[draw(st.integers(0, len(kinds) - 1))]
    for seed in range(draw(st.integers(0, 2**16)), 2**17):
        layer = spec.draw(rules.generator(seed), shape)
        if layer is not None:
            return layer
    raise AssertionError(f"{spec.layer.__name__} fits no input of shape {shape}")


def _fits(spec: LayerSpec, shape: tuple[int, ...]) -> bool:
    """Whether such a layer can be drawn: batch normalisation has no use for a batch of one."""
    return any(spec.draw(rules.generator(seed), shape) is not None for seed in range(10))


@st.composite
def cases(draw: st.DrawFn, most_layers: int = 5) -> Case:
    """A chain of layers with a loss, an input shape and a seed for the numbers."""
    shape: tuple[int, ...] = (draw(st.integers(1, 8)), draw(st.integers(1, 8)))
    x_shape = shape
    chosen: list[Layer] = []
    for _ in range(draw(st.integers(0, most_layers - 1))):
        chosen.append(draw(layers(shape)))
        shape = _shape_after(chosen[-1], shape)
    chosen.append(mbp.Dense(draw(st.integers(1, 8))))
    kinds = specs.losses()
    kind = kinds[draw(st.integers(0, len(kinds) - 1))]
    loss = kind.draw(rules.generator(draw(st.integers(0, 100))))
    weighting = draw(st.sampled_from(["mean", "ones", "given"]))
    seed = draw(st.integers(0, 2**16))
    case = Case(mbp.sequential(*chosen), loss, x_shape, weighting, (seed,))
    return with_dtype(case) if draw(st.booleans()) else case


def _shape_after(layer: Layer, shape: Any) -> tuple[int, ...]:
    struct = jax.ShapeDtypeStruct(shape, jnp.float32)
    params = jax.eval_shape(layer.init, jax.random.key(0), struct)
    return prediction_shape(layer, params, struct)
