"""Losses: values as optax's, stable where exponentials aren't, errors that add up."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manual_bp as mbp
from verify import judges, specs
from verify.levels.edges import shown

Z = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32) * 3
CLASSES = np.array([0, 3, 1, 2, 2])
SOFT = np.random.default_rng(1).random((5, 4)).astype(np.float32) * 2
YES_NO = (SOFT > 1).astype(np.float32)
SIGNS = 2 * YES_NO - 1
COUNTS = np.floor(SOFT * 3)
SHARES = SOFT / SOFT.sum(-1, keepdims=True)


def equal(ours, theirs, *args):
    """One function of args, by L3: what is left between the two shrinks as the digits grow."""
    verdict = judges.same(ours, theirs, *args, judge=judges.digits)
    assert verdict.ok, verdict


def test_values_are_optaxs():
    softmax = mbp.SoftmaxCrossEntropy()
    equal(softmax.value, optax.softmax_cross_entropy, Z, SOFT)
    for smoothing in (0, 0.125):  # a share of 1/8, since 1 - 0.1 is rounded where it is written

        def of_classes(z, classes, smoothing=smoothing):
            y = optax.smooth_labels(jax.nn.one_hot(classes, 4), smoothing)
            return optax.softmax_cross_entropy(z, y)

        equal(mbp.SoftmaxCrossEntropy(smoothing).value, of_classes, Z, CLASSES)

    def yes_no(z, y):
        return optax.sigmoid_binary_cross_entropy(z, y).sum(-1)

    equal(mbp.SigmoidBinaryCrossEntropy().value, yes_no, Z, YES_NO)
    equal(mbp.SquaredError().value, lambda a, y: optax.l2_loss(a, y).sum(-1), Z, SOFT)


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
    np.testing.assert_array_equal(value[3], jnp.log(2.0))
    right = [[down and -1, down and 1], [up and -1, up and 1], [up and 1, up and -1], [0.5, -0.5]]
    np.testing.assert_array_equal(error, np.sign(right) * np.abs(right).clip(0, 1))
    sigmoid, target = mbp.SigmoidBinaryCrossEntropy(), jnp.array([[0.0, 1.0]])
    both = jnp.array([[size, size]])
    np.testing.assert_array_equal(sigmoid.value(both, target), [abs(size)])
    np.testing.assert_array_equal(sigmoid.error(both, target), [[up and 1, down and -1]])


def test_a_class_that_is_ruled_out_by_minus_infinity_is_no_nan():
    z = jnp.array([[0.0, -jnp.inf, 0.0]])
    loss = mbp.SoftmaxCrossEntropy()
    np.testing.assert_array_equal(loss.value(z, jnp.array([0])), [jnp.log(2.0)])
    np.testing.assert_array_equal(loss.error(z, jnp.array([0])), [[-0.5, 0.0, 0.5]])


def test_the_error_of_softmax_sums_to_zero_for_any_soft_labels():
    loss = mbp.SoftmaxCrossEntropy(label_smoothing=0.25)
    for y in (SOFT, np.eye(4)[CLASSES]):
        equal(lambda z, y: loss.error(z, y).sum(-1), lambda z, y: 0 * z[:, 0], Z, y)
        assert (loss.error(Z, y) != 0).all()


def test_output_activations_are_the_canonical_ones():
    for loss, activation, y in (
        (mbp.SoftmaxCrossEntropy(), jax.nn.softmax, np.eye(4, dtype=np.float32)[CLASSES]),
        (mbp.SigmoidBinaryCrossEntropy(), jax.nn.sigmoid, YES_NO),
        (mbp.SquaredError(), lambda z: z, SOFT),
        (mbp.PoissonNegativeLogLikelihood(), jnp.exp, COUNTS),
    ):
        equal(loss.activate, activation, Z)
        equal(loss.error, lambda z, y, g=activation: g(z) - y, Z, y)  # dZ[L] = A[L] - Y


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, bool])
def test_classes_and_one_hot_labels_of_any_integer_type(dtype):
    with jax.enable_x64(True):
        one_hot = np.eye(4)[CLASSES].astype(dtype)
        expected = mbp.SoftmaxCrossEntropy().error(Z, CLASSES)
        np.testing.assert_array_equal(mbp.SoftmaxCrossEntropy().error(Z, one_hot), expected)
        if dtype is not bool:
            classes = CLASSES.astype(dtype)
            np.testing.assert_array_equal(mbp.SoftmaxCrossEntropy().error(Z, classes), expected)


# --- beside optax ---------------------------------------------------------------------------

# (loss, targets, optax's values for each prediction)
BESIDE_OPTAX = [
    (mbp.AbsoluteError(), SOFT, lambda a, y: jnp.abs(a - y).sum(-1)),
    (mbp.CosineSimilarity(), SOFT, optax.cosine_distance),
    (
        mbp.CosineSimilarity(epsilon=9.0),  # some of Z are shorter than 3, some longer
        SOFT,
        lambda a, y: optax.cosine_distance(a, y, epsilon=9.0),
    ),
    (mbp.Focal(), YES_NO, lambda z, y: optax.sigmoid_focal_loss(z, y).sum(-1)),
    (
        mbp.Focal(alpha=0.25, gamma=0.5),
        SOFT / 2,
        lambda z, y: optax.sigmoid_focal_loss(z, y, alpha=0.25, gamma=0.5).sum(-1),
    ),
    (mbp.Hinge(), SIGNS, lambda z, y: optax.hinge_loss(z, y).sum(-1)),
    (mbp.Huber(), SOFT, lambda a, y: optax.huber_loss(a, y).sum(-1)),
    (mbp.Huber(delta=0.3), SOFT, lambda a, y: optax.huber_loss(a, y, delta=0.3).sum(-1)),
    (mbp.KLDivergence(), SHARES, optax.kl_divergence),
    (mbp.LogCosh(), SOFT, lambda a, y: optax.log_cosh(a, y).sum(-1)),
    (mbp.MulticlassHinge(), CLASSES, optax.losses.multiclass_hinge_loss),
]
BY_NAME = {"ids": lambda value: repr(value) if isinstance(value, mbp.layer.Loss) else ""}


@pytest.mark.parametrize(("loss", "y", "theirs"), BESIDE_OPTAX, **BY_NAME)
def test_values_and_errors_are_optaxs_and_its_gradients(loss, y, theirs):
    equal(loss.value, theirs, Z, y)
    equal(loss.error, jax.grad(lambda z, y: theirs(z, y).sum()), Z, y)


def test_every_new_loss_stands_beside_optax_or_the_distribution_itself():
    poisson = mbp.PoissonNegativeLogLikelihood()
    named = {type(loss) for loss, _, _ in BESIDE_OPTAX} | {type(poisson)}
    first = {mbp.SoftmaxCrossEntropy, mbp.SigmoidBinaryCrossEntropy, mbp.SquaredError}
    first |= {mbp.LinearCrossEntropy}  # in a file of its own
    assert named | first == {spec.loss for spec in specs.losses()}

    def without_the_factorials(z, y):
        rate = jnp.exp(z)
        return -jnp.log(jnp.exp(-rate) * rate**y).sum(-1)  # P(y) = e^-rate rate^y / y!

    equal(poisson.value, without_the_factorials, Z, COUNTS)


def test_at_kinks_errors_are_what_the_docstrings_state():
    def stated(loss, a, y, error):
        np.testing.assert_array_equal(loss.error(jnp.array(a), jnp.array(y)), error)

    stated(mbp.AbsoluteError(), [[1.0, 2.0, 3.0]], [[2.0, 2.0, 2.0]], [[-1, 0, 1]])
    stated(mbp.Huber(2.0), [[2.0, -2.0, 0.0]], [[0.0, 0.0, 0.0]], [[2, -2, 0]])
    stated(mbp.Hinge(), [[1.0, -1.0, 1.5]], [[1.0, -1.0, 1.0]], [[-0.5, 0.5, 0]])
    two, three = [[1.0, 0.0, -5.0]], [[1.0, 0.0, 0.0]]
    stated(mbp.MulticlassHinge(), two, [0], [[-0.5, 0.5, 0]])
    third = np.float32(1) / 3
    stated(mbp.MulticlassHinge(), three, [0], [[third - 1, third, third]])
    stated(mbp.CosineSimilarity(), [[0.0, 0.0]], [[1.0, 2.0]], [[0, 0]])
    stated(mbp.CosineSimilarity(4.0), [[2.0, 0.0]], [[2.0, 0.0]], [[-0.5, 0]])  # at |a| = √ε
    stated(mbp.CosineSimilarity(4.0), [[0.0, 0.0]], [[2.0, 0.0]], [[-0.5, 0]])


# --- tails ----------------------------------------------------------------------------------

BIG = jnp.array([[1e4, -1e4]])


def values_and_errors(loss, prediction, target):
    prediction, target = jnp.asarray(prediction), jnp.asarray(target)
    return loss.value(prediction, target), loss.error(prediction, target)


def test_residuals_of_1e4():
    zeros = jnp.zeros((1, 2))
    for loss, value, error in (
        (mbp.AbsoluteError(), 2e4, [[1, -1]]),
        (mbp.Huber(0.5), 2 * 0.5 * (1e4 - 0.25), [[0.5, -0.5]]),
        (mbp.LogCosh(), 2 * (1e4 - np.log(2)), [[1, -1]]),  # one subtraction, rounded once
    ):
        found, slope = values_and_errors(loss, BIG, zeros)
        np.testing.assert_array_equal(found, np.float32([value]))
        np.testing.assert_array_equal(slope, error)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_at_logits_of_1e4(gamma):
    loss = mbp.Focal(gamma=gamma)
    for y, value, error in (([[1, 1]], 1e4, [[0, -1]]), ([[0, 0]], 1e4, [[1, 0]])):
        found, slope = values_and_errors(loss, BIG, y)
        np.testing.assert_array_equal(found, [value])
        np.testing.assert_array_equal(slope, error)
    # A soft label is half wrong on both sides: w = ½, H = ½ |z|, and only H moves.
    found, slope = values_and_errors(loss, BIG, [[0.5, 0.5]])
    assert shown(found) == shown([2 * 0.5**gamma * 5e3])
    assert shown(slope) == shown(0.5**gamma * np.array([[0.5, -0.5]]))


def test_focal_keeps_the_tail_where_powers_of_rounded_probabilities_vanish():
    for z in (17.0, 40.0, 80.0):
        # y = 1: -q^γ (q + γ p log1p(e^-z)), and q = log1p(e^-z) = e^-z, p = 1 but for e^-2z
        found = mbp.Focal(gamma=0.5).error(jnp.array([[z]]), jnp.ones((1, 1)))
        assert shown(found) == shown(np.float32(-1.5 * np.exp(-1.5 * z)))


def test_poisson_at_log_rates_of_1e4():
    loss = mbp.PoissonNegativeLogLikelihood()
    value, error = values_and_errors(loss, [[-1e4], [-1e4], [-jnp.inf]], [[0], [3], [0]])
    np.testing.assert_array_equal(value, [0, 3e4, 0])
    np.testing.assert_array_equal(error, [[0], [-3], [0]])
    value, error = values_and_errors(loss, [[1e4]], [[3]])  # e^10000 is past every float
    np.testing.assert_array_equal([value[0], error[0, 0]], [np.inf, np.inf])


def test_scores_of_1e4():
    value, error = values_and_errors(mbp.Hinge(), BIG, [[-1.0, -1.0]])
    np.testing.assert_array_equal(value, [10001])
    np.testing.assert_array_equal(error, [[1, 0]])
    value, error = values_and_errors(mbp.MulticlassHinge(), jnp.tile(BIG, (2, 1)), [0, 1])
    np.testing.assert_array_equal(value, [0, 20001])
    np.testing.assert_array_equal(error, [[0, 0], [1, -1]])
    value, error = values_and_errors(mbp.KLDivergence(), BIG, [[0.0, 1.0]])
    np.testing.assert_array_equal(value, [1e4])
    np.testing.assert_array_equal(error, [[0, -1]])


def test_multiclass_hinge_keeps_its_margin_where_all_scores_are_large():
    value = mbp.MulticlassHinge().value(jnp.array([[2.0**24, 2.0**24]]), jnp.array([0]))
    np.testing.assert_array_equal(value, [1])  # optax adds 1 to 2²⁴, which is 2²⁴ again


@pytest.mark.parametrize("r", [1e-1, 1e-2, 1e-3, 1e-6])
def test_log_cosh_keeps_its_digits_near_zero(r):
    right = np.log1p(2 * np.sinh(r / 2) ** 2)
    assert shown(mbp.LogCosh().value(jnp.array([[r]]), jnp.zeros((1, 1)))) == shown(right)


@pytest.mark.parametrize("size", [1e-30, 1e4, 1e30])
def test_cosine_knows_directions_of_any_length(size):
    a = np.float32([[3, 4]]) * np.float32(size)
    value, error = values_and_errors(mbp.CosineSimilarity(), a, [[0.0, 1e-20]])
    assert shown(value) == shown(0.2)
    # -(ŷ - 0.8 â)/|a| = -(-0.48, 0.36)/(5 size)
    assert shown(error) == shown(np.array([0.48, -0.36]) / (5 * size))


def test_cosine_ignores_lengths_and_its_error_is_across():
    loss = mbp.CosineSimilarity()
    value, error = values_and_errors(loss, Z, SOFT)
    np.testing.assert_array_equal(value, loss.value(8 * Z, SOFT / 4))
    np.testing.assert_array_equal(error, 8 * loss.error(8 * Z, SOFT / 4))
    equal(lambda a, y: (loss.error(a, y) * a).sum(-1), lambda a, y: 0 * a[:, 0], Z, SOFT)
    assert (error != 0).all()
    np.testing.assert_array_equal(loss.error(Z, 0 * SOFT), 0 * Z)
    np.testing.assert_array_equal(loss.value(Z, 0 * SOFT), 1)


# --- conventions ----------------------------------------------------------------------------


def test_focal_without_its_settings_is_the_cross_entropy():
    plain, cross_entropy = mbp.Focal(gamma=0.0), mbp.SigmoidBinaryCrossEntropy()
    for y in (YES_NO, SOFT / 2):
        equal(plain.value, cross_entropy.value, Z, y)
        equal(plain.error, cross_entropy.error, Z, y)
    yes, no = mbp.Focal(alpha=1.0), mbp.Focal(alpha=0.0)
    np.testing.assert_array_equal(no.error(Z, YES_NO)[YES_NO == 1], 0)
    np.testing.assert_array_equal(yes.error(Z, YES_NO)[YES_NO == 0], 0)
    equal(lambda z, y: yes.error(z, y) + no.error(z, y), mbp.Focal().error, Z, YES_NO)


def test_kl_of_a_log_softmax_has_the_error_of_softmax_cross_entropy():
    y = SHARES * [[1], [1], [1], [2], [0]]  # a sum of 2, and none at all

    def error(z, y):
        log_p = jax.nn.log_softmax(z)
        through = mbp.KLDivergence().error(log_p, y)
        return through - jnp.exp(log_p) * through.sum(-1, keepdims=True)

    def with_entropy(z, y):
        value = mbp.KLDivergence().value(jax.nn.log_softmax(z), y)
        return value - jnp.where(y > 0, y * jnp.log(jnp.where(y > 0, y, 1)), 0).sum(-1)

    equal(error, mbp.SoftmaxCrossEntropy().error, Z, y)
    equal(with_entropy, mbp.SoftmaxCrossEntropy().value, Z, y)


def test_kl_takes_0_log_0_as_0():
    log_p = jnp.array([[-jnp.inf, 0.0], [-1.0, -jnp.inf]])
    value, error = values_and_errors(mbp.KLDivergence(), log_p, [[0.0, 1.0], [0.0, 1.0]])
    np.testing.assert_array_equal(value, [0, np.inf])
    np.testing.assert_array_equal(error, [[0, -1], [0, -1]])


@pytest.mark.parametrize("dtype", [np.int8, np.int32])
def test_targets_may_be_integers(dtype):
    one_hot = np.eye(4, dtype=np.float32)[CLASSES]
    for loss, y in (
        (mbp.Hinge(), SIGNS),
        (mbp.PoissonNegativeLogLikelihood(), COUNTS),
        (mbp.KLDivergence(), one_hot),
        (mbp.Focal(), YES_NO),
        (mbp.Focal(alpha=0.25), YES_NO),
        (mbp.CosineSimilarity(), COUNTS),
        (mbp.Huber(), COUNTS),
        (mbp.AbsoluteError(), COUNTS),
        (mbp.LogCosh(), COUNTS),
    ):
        integers = jnp.asarray(y, dtype)
        np.testing.assert_array_equal(loss.error(Z, integers), loss.error(Z, y), repr(loss))
        np.testing.assert_array_equal(loss.value(Z, integers), loss.value(Z, y), repr(loss))
        loss.check(Z, integers)


@pytest.mark.parametrize("dtype", [np.uint8, bool])
def test_yes_and_no_may_be_unsigned(dtype):
    for loss in (mbp.Focal(), mbp.KLDivergence(), mbp.PoissonNegativeLogLikelihood()):
        found = loss.error(Z, jnp.asarray(YES_NO, dtype))
        np.testing.assert_array_equal(found, loss.error(Z, YES_NO), repr(loss))


def a_target(loss):
    return specs.of_loss(loss).target(np.random.default_rng(7), loss, Z.shape)


SAMPLES = [loss for spec in specs.losses() for loss in spec.samples]
WITHOUT_PARAMETERS = [loss for loss in SAMPLES if not loss.parametric]


@pytest.mark.parametrize("loss", WITHOUT_PARAMETERS, ids=repr)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_is_computed_in_float32(loss, dtype):
    z, y = jnp.asarray(Z, dtype), a_target(loss)
    for found, wide in (
        (loss.value(z, y), loss.value(z.astype(jnp.float32), y)),
        (loss.error(z, y), loss.error(z.astype(jnp.float32), y)),
    ):
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, wide)


@pytest.mark.parametrize("loss", SAMPLES, ids=repr)
def test_a_weight_of_0_contributes_nothing_whatever_is_there(loss):
    network = mbp.sequential(mbp.Dense(4))
    params = network.init(jax.random.key(1), Z)
    if loss.parametric:
        params = params, loss.init(jax.random.key(2), Z)
    weights = jnp.array([0.3, 0.0, 0.2, 0.1, 0.4])
    y = np.array(a_target(loss))
    wrong = y.copy()
    wrong[1] = 99 if y.dtype.kind in "iu" else np.nan

    def run(y):
        settings = {"network": network, "loss": loss, "weights": weights}
        return mbp.manual_value_and_grads(params, Z, y, **settings)

    expected, found = run(y), run(wrong)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found[1]))


def test_labels_that_are_at_hand_are_checked_unless_their_weight_is_0():
    params = (jnp.ones((2, 4)), jnp.zeros(2))
    for loss, right, wrong, says in (
        (mbp.Hinge(), 1, 0, r"target \[3, 1\] is 0, expected -1 or 1"),
        (mbp.PoissonNegativeLogLikelihood(), 0, -2, r"target \[3, 1\] is -2, expected a count"),
        (mbp.KLDivergence(), 1, -1, r"target \[3, 1\] is -1, expected a probability"),
    ):
        y = np.full((5, 2), right)
        mbp.manual_grads(params, Z, y, loss=loss)
        y[3, 1] = wrong
        with pytest.raises(ValueError, match=says):
            mbp.manual_grads(params, Z, y, loss=loss)
        with pytest.raises(ValueError, match=says):
            mbp.manual_grads(params, Z, y, loss=loss, weights=jnp.ones(5))
        mbp.manual_grads(params, Z, y, loss=loss, weights=jnp.array([1.0, 1, 1, 0, 1]))
        jax.jit(lambda y, loss=loss: mbp.manual_grads(params, Z, y, loss=loss))(y)  # unseen there


def test_a_wrong_shape_of_labels_is_named_before_their_values():
    params = (jnp.ones((2, 4)), jnp.zeros(2))
    with pytest.raises(TypeError, match=r"2 \* jax.nn.one_hot\(y, 2\) - 1, or MulticlassHinge"):
        mbp.manual_grads(params, Z, np.zeros(5, int), loss=mbp.Hinge())
    with pytest.raises(ValueError, match="weights have shape"):
        mbp.manual_grads(
            params, Z, np.zeros((5, 2), int), loss=mbp.Hinge(), weights=jnp.ones((2, 5))
        )


@pytest.mark.parametrize("wrong", [-1, 4])
def test_inside_jit_multiclass_hinge_poisons_a_class_that_does_not_exist(wrong):
    loss = mbp.MulticlassHinge()
    y = jnp.asarray(CLASSES).at[1].set(wrong)
    value, error = jax.jit(loss.value)(Z, y), jax.jit(loss.error)(Z, y)
    np.testing.assert_array_equal(np.isnan(value), [False, True, False, False, False])
    np.testing.assert_array_equal(np.isnan(error), np.arange(5)[:, None] == [[1, 1, 1, 1]])
    params = (jnp.ones((4, 4)), jnp.zeros(4))
    with pytest.raises(ValueError, match=f"class {wrong} of target \\[1\\]"):
        mbp.manual_grads(params, Z, np.asarray(y), loss=loss)


# --- narrow integers ------------------------------------------------------------------------------


@pytest.mark.parametrize("ignored", [None, -1, -100])
@pytest.mark.parametrize("classes", [200, 256, 300])
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8])
def test_classes_in_8_bits_are_those_in_32(dtype, classes, ignored):
    """Next to an array a Python int takes its dtype: in uint8 300 is 44, and -100 the class 156."""
    rng = np.random.default_rng(4)
    top = min(classes - 1, jnp.iinfo(dtype).max)
    y = np.array([0, 1, top, min(156, top), top - 1])
    if ignored is not None and dtype == jnp.int8:
        y[1] = ignored
    h, W = rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=(classes, 3))
    z = rng.normal(size=(5, classes)).astype(np.float32)
    linear = mbp.LinearCrossEntropy(classes, chunk=2, ignored_class=ignored)
    params = linear.init(jax.random.key(0), h)._replace(W=W.astype(np.float32))
    softmax = mbp.SoftmaxCrossEntropy(ignored_class=ignored)
    hinge = mbp.MulticlassHinge()
    of_hinge = np.where(y < 0, 0, y)

    def found(dtype):
        target = jnp.asarray(y, dtype)
        weights = jnp.ones(5)
        shown = [linear.counts(h, target), linear.sweep(params, h, target, weights)]
        shown += [softmax.counts(z, target), softmax.sweep((), z, target, weights)]
        shown += [softmax.value(z, target), softmax.error(z, target)]
        shown += [hinge.sweep((), z, jnp.asarray(of_hinge, dtype), weights)]
        return shown

    expected = found(jnp.int32)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
    jax.tree.map(np.testing.assert_array_equal, found(dtype), expected)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.uint16, jnp.uint32])
@pytest.mark.parametrize("ignored", [-1, -100, 2**40])
def test_an_ignored_class_that_unsigned_targets_cannot_hold_is_none_of_them(dtype, ignored):
    y = jnp.asarray(
        [jnp.iinfo(dtype).max, jnp.iinfo(dtype).max - 99], dtype
    )  # -1 and -100, if wrapped
    settings = {"ignored_class": ignored}
    for loss in (mbp.LinearCrossEntropy(3, **settings), mbp.SoftmaxCrossEntropy(**settings)):
        np.testing.assert_array_equal(loss.counts(jnp.zeros((2, 3)), y), [True, True])
