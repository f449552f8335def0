"""Losses: values as optax's, stable where exponentials aren't, errors that add up."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manual_bp as mbp

Z = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32) * 3
CLASSES = np.array([0, 3, 1, 2, 2])
SOFT = np.random.default_rng(1).random((5, 4)).astype(np.float32) * 2
YES_NO = (SOFT > 1).astype(np.float32)


def close(ours, theirs):
    """Two ways to round the same number in float32: a few units in the last place."""
    scale = np.maximum(np.abs(theirs), 1)
    assert np.max(np.abs(np.asarray(ours, np.float64) - theirs) / scale) < 16 * 2**-24


def test_values_are_optaxs():
    softmax = mbp.SoftmaxCrossEntropy()
    close(
        softmax.value(Z, CLASSES),
        optax.softmax_cross_entropy_with_integer_labels(Z, CLASSES),
    )
    close(softmax.value(Z, SOFT), optax.softmax_cross_entropy(Z, SOFT))
    smooth = optax.smooth_labels(jax.nn.one_hot(CLASSES, 4), 0.1)
    close(
        mbp.SoftmaxCrossEntropy(label_smoothing=0.1).value(Z, CLASSES),
        optax.softmax_cross_entropy(Z, smooth),
    )
    close(
        mbp.SigmoidBinaryCrossEntropy().value(Z, YES_NO),
        optax.sigmoid_binary_cross_entropy(Z, YES_NO).sum(-1),
    )
    close(mbp.SquaredError().value(Z, SOFT), optax.l2_loss(Z, SOFT).sum(-1))


def test_an_ignored_class_has_no_value_no_error_and_does_not_count():
    loss = mbp.SoftmaxCrossEntropy(ignored_class=2)
    value, error = loss.value(Z, CLASSES), loss.error(Z, CLASSES)
    np.testing.assert_array_equal(value[3:], 0)
    np.testing.assert_array_equal(error[3:], 0)
    counts = loss.counts(Z, CLASSES)
    np.testing.assert_array_equal(counts, [True, True, True, False, False])
    np.testing.assert_array_equal(value[:3], mbp.SoftmaxCrossEntropy().value(Z, CLASSES)[:3])


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_stable_at_huge_logits(size):
    z = jnp.array([[size, 0.0], [0.0, size], [size, -size], [size, size]])
    y = jnp.array([0, 0, 1, 1])
    value, error = mbp.SoftmaxCrossEntropy().value(z, y), mbp.SoftmaxCrossEntropy().error(z, y)
    up, down = max(size, 0.0), max(-size, 0.0)
    np.testing.assert_array_equal(value[:3], [down, up, 2 * up])
    np.testing.assert_array_max_ulp(value[3], np.float32(np.log(2)), maxulp=1)
    right = [[down and -1, down and 1], [up and -1, up and 1], [up and 1, up and -1], [0.5, -0.5]]
    np.testing.assert_array_equal(error, np.sign(right) * np.abs(right).clip(0, 1))
    sigmoid, target = mbp.SigmoidBinaryCrossEntropy(), jnp.array([[0.0, 1.0]])
    both = jnp.array([[size, size]])
    np.testing.assert_array_equal(sigmoid.value(both, target), [abs(size)])
    np.testing.assert_array_equal(sigmoid.error(both, target), [[up and 1, down and -1]])


def test_a_class_that_is_ruled_out_by_minus_infinity_is_no_nan():
    z = jnp.array([[0.0, -jnp.inf, 0.0]])
    loss = mbp.SoftmaxCrossEntropy()
    np.testing.assert_array_max_ulp(loss.value(z, jnp.array([0])), np.float32([np.log(2)]), 1)
    np.testing.assert_array_equal(loss.error(z, jnp.array([0])), [[-0.5, 0.0, 0.5]])


def test_the_error_of_softmax_sums_to_zero_for_any_soft_labels():
    for y in (SOFT, jax.nn.one_hot(CLASSES, 4)):
        error = mbp.SoftmaxCrossEntropy(label_smoothing=0.3).error(Z, y)
        assert np.abs(error.sum(-1)).max() < 8 * 2**-24 * np.abs(y).sum(-1).max()


def test_output_activations_are_the_canonical_ones():
    for loss, activation, y in (
        (mbp.SoftmaxCrossEntropy(), jax.nn.softmax, np.eye(4, dtype=np.float32)[CLASSES]),
        (mbp.SigmoidBinaryCrossEntropy(), jax.nn.sigmoid, YES_NO),
        (mbp.SquaredError(), lambda z: z, SOFT),
    ):
        close(loss.activate(Z), activation(Z))
        close(loss.error(Z, y), activation(Z) - y)  # dZ[L] = A[L] - Y


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, bool])
def test_classes_and_one_hot_labels_of_any_integer_type(dtype):
    with jax.enable_x64(True):
        one_hot = np.eye(4)[CLASSES].astype(dtype)
        expected = mbp.SoftmaxCrossEntropy().error(Z, CLASSES)
        np.testing.assert_array_equal(mbp.SoftmaxCrossEntropy().error(Z, one_hot), expected)
        if dtype is not bool:
            classes = CLASSES.astype(dtype)
            np.testing.assert_array_equal(mbp.SoftmaxCrossEntropy().error(Z, classes), expected)
