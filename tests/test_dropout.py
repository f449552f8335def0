"""What no spec can say of Dropout: how often, which mask, and what it is when not training."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_bp as mbp

COUNT = 2**20
ONES = jnp.ones(COUNT)
STANDARD_ERRORS = 6
"""A right count lies further off once in 5e8 runs."""


def mask_of(rate, key=0, x=ONES):
    return mbp.Dropout(rate).forward((), x, key=jax.random.key(key))[1].kept


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_the_rate_says(rate):
    dropped = COUNT - int(mask_of(rate).sum())
    spread = np.sqrt(COUNT * rate * (1 - rate))
    assert np.abs(dropped - COUNT * rate) < STANDARD_ERRORS * spread


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_mean_is_kept(rate):
    x = jax.random.normal(jax.random.key(1), (COUNT,)) + 1
    out, _ = mbp.Dropout(rate).forward((), x, key=jax.random.key(2))
    spread = np.sqrt(rate / (1 - rate) * float(jnp.square(x).sum()))
    assert np.abs(float(out.sum() - x.sum())) < STANDARD_ERRORS * spread


def test_the_smallest_and_the_largest_rates():
    assert mask_of(0.0).all()
    np.testing.assert_array_equal(mbp.Dropout(0.0).forward((), ONES, key=jax.random.key(0))[0], 1)
    assert not mask_of(1 - 2.0**-32).any()  # one in 2³² would be kept
    assert mask_of(2.0**-32).all()
    with pytest.raises(ValueError, match="0 <= rate < 1"):
        mbp.Dropout(1 - 2.0**-33)


def test_the_same_key_gives_the_same_mask_and_another_another():
    np.testing.assert_array_equal(mask_of(0.5), mask_of(0.5))
    np.testing.assert_array_equal(mask_of(0.5), jax.jit(mask_of, static_argnums=0)(0.5))
    same = int((mask_of(0.5) == mask_of(0.5, key=1)).sum())
    assert np.abs(same - COUNT / 2) < STANDARD_ERRORS * np.sqrt(COUNT) / 2


def test_children_have_masks_of_their_own_and_backward_uses_them():
    network = mbp.sequential(mbp.Dropout(0.5), mbp.skip(mbp.Dropout(0.5)), mbp.Dropout(0.5))
    x = jnp.ones((64, 8))
    params = network.init(jax.random.key(0), x)
    out, residuals = network.forward(params, x, key=jax.random.key(3))
    (first,), ((second,),), (third,) = residuals
    assert (first != second).any() and (second != third).any() and (first != third).any()
    expected = 2.0 * first * (1 + 2 * second) * 2 * third
    np.testing.assert_array_equal(out, expected)
    dout = jax.random.randint(jax.random.key(4), x.shape, -4, 5).astype(jnp.float32)
    np.testing.assert_array_equal(network.backward(params, residuals, dout)[1], dout * expected)


def test_not_training_it_is_the_identity():
    network = mbp.sequential(mbp.Dense(4, mbp.relu), mbp.Dropout(0.5), mbp.Dense(2))
    params = network.init(jax.random.key(0), jnp.ones((3, 5)))
    without = mbp.sequential(mbp.Dense(4, mbp.relu), mbp.identity, mbp.Dense(2))
    assert network.inference() == without
    x = jax.random.normal(jax.random.key(1), (3, 5))
    chex.assert_trees_all_equal(
        mbp.predict(params, x, network=network), mbp.predict(params, x, network=without)
    )


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_in_half_precision_what_is_kept_is_rounded_once(dtype):
    x = jnp.arange(1, 200).astype(dtype)
    out, (mask,) = mbp.Dropout(0.1).forward((), x, key=jax.random.key(0))
    wide = (x.astype(jnp.float32) * np.float32(1 / 0.9)).astype(dtype)
    np.testing.assert_array_equal(out[mask], wide[mask])
    assert out.dtype == dtype and mask.dtype == bool
