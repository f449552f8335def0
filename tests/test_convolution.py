"""conv_general_dilated in every arithmetic against XLA's: equal, on small integers."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from verify.arithmetic.convolution import convolve
from verify.arithmetic.error_bound import Bounded, ErrorBound
from verify.arithmetic.multiprecision import Multiprecision
from verify.arithmetic.numpy import Float64
from verify.arithmetic.rational import Rational
from verify.interpreter import trace
from verify.rules import generator


def drawn(seed):
    """Two arrays of small integers, and settings with which they can be convolved."""
    rng = generator(seed)
    rank = int(rng.integers(1, 4))
    most = {1: 7, 2: 5, 3: 3}[rank]

    def sizes(low, high):
        return [int(size) for size in rng.integers(low, high + 1, rank)]

    groups, batch_groups = [(1, 1), (1, 1), (2, 1), (3, 1), (1, 2), (1, 3)][seed % 6]
    channels, features = int(rng.integers(1, 3)), int(rng.integers(1, 3)) * groups * batch_groups
    examples = int(rng.integers(1, 3)) * batch_groups
    space, kernel = sizes(2, most), sizes(1, 3)
    settings = {
        "window_strides": sizes(1, 3),
        "lhs_dilation": sizes(1, 2),
        "rhs_dilation": sizes(1, 3),
        "padding": list(zip(sizes(-1, 4), sizes(0, 4), strict=True)),
        "feature_group_count": groups,
        "batch_group_count": batch_groups,
    }
    orders = [tuple(int(axis) for axis in rng.permutation(rank + 2)) for _ in range(3)]
    settings["dimension_numbers"] = jax.lax.ConvDimensionNumbers(*orders)

    def array(shape, order):
        stored = [0] * len(shape)
        for size, axis in zip(shape, order, strict=True):
            stored[axis] = size
        return rng.integers(-3, 4, stored).astype(np.float64)

    left = array((examples, groups * channels, *space), orders[0])
    right = array((features, channels, *kernel), orders[1])
    return left, right, settings


@pytest.mark.parametrize("chunk", range(6))
def test_every_arithmetic_convolves_as_xla_does(chunk):
    compared = 0
    for seed in range(chunk, 60, 6):
        left, right, settings = drawn(seed)
        narrow = jnp.asarray(left, jnp.float32), jnp.asarray(right, jnp.float32)
        expected = np.asarray(jax.lax.conv_general_dilated(*narrow, **settings))
        program = trace(
            lambda x, w, s=settings: jax.lax.conv_general_dilated(x, w, **s), left, right
        )
        for arithmetic in (Float64(), Rational(), Multiprecision(20), ErrorBound()):
            found = program.run((left, right), arithmetic)
            assert arithmetic.lower(found).shape == expected.shape
            assert np.array_equal(arithmetic.lower(found), expected), (seed, arithmetic.name)
            if isinstance(found, Bounded):
                assert not found.bound.any()  # sums of products of small integers are exact
        compared += expected.any()
    assert compared >= 5  # of ten: elsewhere the window meets gaps and padding alone, or nothing


def test_the_bound_of_a_convolution_holds():
    rng = generator(0)
    x, w = rng.normal(size=(2, 6, 3)), rng.normal(size=(3, 3, 2))
    program = trace(
        lambda x, w: jax.lax.conv_general_dilated(
            x, w, (2,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        ),
        x,
        w,
    )
    bounded = program.run((x, w), ErrorBound())
    exact = program.run((x, w), Rational())
    pairs = zip(bounded.value.flat, bounded.bound.flat, exact.flat, strict=True)
    assert all(abs(Fraction(v) - right) <= Fraction(e) for v, e, right in pairs)
    assert bounded.bound.all()


def test_products_with_padding_are_left_out():
    taken = []

    class Counted(Fraction):
        def __mul__(self, other):
            taken.append(other)
            return Fraction(self) * other

    x = np.array([[[Counted(1)], [Counted(2)]]], object)
    w = np.array([[[Counted(3)]], [[Counted(5)]], [[Counted(7)]]], object)
    params = {
        "dimension_numbers": jax.lax.ConvDimensionNumbers((0, 2, 1), (2, 1, 0), (0, 2, 1)),
        "window_strides": (1,),
        "padding": ((4, 4),),
        "lhs_dilation": (3,),
        "rhs_dilation": (1,),
        "feature_group_count": 1,
        "batch_group_count": 1,
    }
    found = convolve(params, x, w)
    assert found.ravel().tolist() == [0, 0, 7, 5, 3, 14, 10, 6, 0, 0]
    assert len(taken) == 6
