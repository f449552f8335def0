"""Bad input: a named error before anything runs. The table of each spec, and the engine's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_bp as mbp
from manual_bp import formulas, inputs
from verify import judges, specs
from verify.specification import BadInput

NETWORK = mbp.mlp([4, 3, 2], hidden=mbp.tanh)
X = jnp.ones((5, 4))
Y = jnp.array([0, 1, 0, 1, 0])
PARAMS = NETWORK.init(jax.random.key(0), X)
(W1, B1), (W2, B2) = PARAMS


def grads(params=PARAMS, x=X, y=Y, network=NETWORK, **settings):
    return lambda: mbp.manual_grads(params, x, y, network=network, **settings)


ENGINE = (
    BadInput(
        "an empty batch",
        grads(x=X[:0], y=Y[:0]),
        ValueError,
        ("x has shape (0, 4)", "at least one example"),
    ),
    BadInput("a scalar x", grads(x=jnp.ones(())), ValueError, ("x has shape ()",)),
    BadInput(
        "more targets than examples",
        grads(y=jnp.zeros(6, jnp.int32)),
        ValueError,
        ("x has 5 examples", "y has shape (6,)"),
    ),
    BadInput(
        "x features x examples",
        grads(x=X.T),
        ValueError,
        ("x.T would fit", "manual_bp.formulas"),
    ),
    BadInput(
        "x and y features x examples",
        grads(x=X.T, y=jax.nn.one_hot(Y, 2).T),
        ValueError,
        ("x.T and y.T would fit", "manual_bp.formulas"),
    ),
    BadInput(
        "y classes x examples",
        grads(y=jnp.ones((2, 5))),
        ValueError,
        ("y has shape (2, 5)", "y.T would fit"),
    ),
    BadInput(
        "x as a list",
        grads(x=[[1.0] * 4] * 5),
        TypeError,
        ("x must be an array", "list", "jnp.asarray(x)"),
    ),
    BadInput("y as a list", grads(y=[0, 1, 0, 1, 0]), TypeError, ("y must be an array", "list")),
    BadInput(
        "pixels",
        grads(x=jnp.ones((5, 4), jnp.uint8)),
        TypeError,
        ("in layer 1, Dense(3, tanh, inputs=4)", "uint8 (5, 4)", "x / 255"),
    ),
    BadInput(
        "weights for a column",
        grads(weights=jnp.ones((5, 1))),
        ValueError,
        ("weights have shape (5, 1)", "expected (5,)", "not broadcast"),
    ),
    BadInput(
        "one weight for all",
        grads(weights=jnp.ones(1)),
        ValueError,
        ("weights have shape (1,)", "expected (5,)"),
    ),
    BadInput("a weight that is a number", grads(weights=2.0), TypeError, ("weights", "float")),
    BadInput(
        "a class too high",
        grads(y=Y.at[2].set(2)),
        ValueError,
        ("class 2 of target [2]", "2 classes 0 to 1", "weight 0", "ignored_class"),
    ),
    BadInput(
        "class -1",
        grads(y=np.array([0, 1, 0, -1, 0])),
        ValueError,
        ("class -1 of target [3]", "2 classes 0 to 1"),
    ),
    BadInput(
        "class -1 where another class is ignored",
        grads(y=np.array([0, 9, 0, -1, 0]), loss=mbp.SoftmaxCrossEntropy(ignored_class=9)),
        ValueError,
        ("class -1 of target [3]",),
    ),
    BadInput(
        "labels (m,) against (m, 1)",
        grads(
            params=((W1, B1), (W2[:1], B2[:1])),
            network=None,
            y=jnp.ones(5),
            loss=mbp.SquaredError(),
        ),
        ValueError,
        ("targets have shape (5,)", "expected (5, 1)", "y[..., None]"),
    ),
    BadInput(
        "integer labels where one-hot is due",
        grads(loss=mbp.SquaredError()),
        TypeError,
        ("integers of shape (5,)", "jax.nn.one_hot(y, 2)"),
    ),
    BadInput(
        "a network's class",
        grads(network=mbp.Dense),
        TypeError,
        ("network must be a layer", "mbp.mlp"),
    ),
    BadInput("a loss's class", grads(loss=mbp.SquaredError), TypeError, ("loss", "Call it.")),
    BadInput(
        "a function for a loss",
        grads(loss=jnp.square),
        TypeError,
        ("loss must be a Loss", "mbp.SquaredError()"),
    ),
    BadInput(
        "a layer too few",
        grads(params=PARAMS[:1]),
        ValueError,
        ("2 layers", "got a tuple of 1"),
    ),
    BadInput(
        "a layer that doesn't fit the next, without a network",
        grads(params=[(W1, B1), (jnp.ones((2, 7)), B2)], network=None),
        ValueError,
        ("in layer 2, Dense(2)", "x has shape (5, 3)", "expected (..., 7)"),
    ),
    BadInput(
        "W transposed, without a network",
        grads(params=[(W1.T, B1), (W2, B2)], network=None),
        ValueError,
        ("in layer 1, Dense(4, relu)", "b has shape (3,)", "expected (4,)"),
    ),
    BadInput(
        "bias (1,)",
        grads(params=[(W1, B1[:1]), (W2, B2)], network=None),
        ValueError,
        ("in layer 1,", "b has shape (1,)", "expected (3,)", "not broadcast"),
    ),
    BadInput(
        "bias (n, 1)",
        grads(params=[(W1, B1[:, None]), (W2, B2)], network=None),
        ValueError,
        ("in layer 1,", "b has shape (3, 1)", "manual_bp.formulas", "b[:, 0]"),
    ),
    BadInput(
        "a vector for W",
        grads(params=[(B1, B1)], network=None),
        ValueError,
        ("in layer 1, W has shape (3,)", "(n_out, n_in)"),
    ),
    BadInput(
        "three in a pair",
        grads(params=[(W1, B1, B1)], network=None),
        TypeError,
        ("params[0] has 3 entries", "expected 2"),
    ),
    BadInput(
        "a pair with other names",
        grads(params=[{"W": W1, "bias": B1}], network=None),
        TypeError,
        ("params[0] has fields ['W', 'bias']", "expected W and b"),
    ),
    BadInput(
        "layers in a dict",
        grads(params={"first": (W1, B1)}, network=None),
        TypeError,
        ("dict with keys ['first']", "no order", "network=..."),
    ),
    BadInput("no layers", grads(params=[], network=None), TypeError, ("empty list", "pairs")),
    BadInput(
        "no bias",
        grads(params=[(W1, None)], network=None),
        TypeError,
        ("params[0]: b is NoneType", "expected an array"),
    ),
    BadInput(
        "a number for W",
        grads(params=[(W1, B1), (2.0, B2)], network=None),
        TypeError,
        ("params[1][0] must be an array", "float: 2.0"),
    ),
    BadInput(
        "integer W",
        grads(params=[(W1, B1), (W2.astype(int), B2)], network=None),
        TypeError,
        ("in layer 2,", "W must be a floating-point array", "int32"),
    ),
    BadInput("params that are no tree", grads(params="W", network=None), TypeError, ("str",)),
    BadInput(
        "an argument nobody takes",
        grads(key=jax.random.key(0)),
        TypeError,
        ("takes nothing", "given key"),
    ),
    BadInput(
        "an argument nobody takes, without a network",
        grads(network=None, training=True),
        TypeError,
        ("The MLP of the notes takes nothing", "leave out training"),
    ),
    BadInput("sizes of mlp", lambda: mbp.mlp([3]), TypeError, ("sizes", "(3,)")),
    BadInput(
        "predict with features x examples",
        lambda: mbp.predict(PARAMS, X.T, network=NETWORK),
        ValueError,
        ("x.T would fit",),
    ),
    BadInput(
        "intermediates with an empty batch",
        lambda: mbp.intermediates(PARAMS, X[:0], Y[:0], network=NETWORK),
        ValueError,
        ("at least one example",),
    ),
    BadInput(
        "formulas: examples first",
        lambda: formulas.pre_activation(W1, X, B1[:, None]),
        ValueError,
        ("A_prev (5, 4)", "A_prev.T would fit"),
    ),
    BadInput(
        "formulas: a bias that is no column",
        lambda: formulas.pre_activation(W1, X.T, B1),
        ValueError,
        ("b has shape (3,)", "expected (3, 1)", "b[:, None]"),
    ),
    BadInput(
        "formulas: Y examples first",
        lambda: formulas.output_error(jnp.ones((2, 5)), jnp.ones((5, 2))),
        ValueError,
        ("Y has shape (5, 2)", "expected (2, 5)", "Y.T would fit"),
    ),
)

SPECS = tuple(row for spec in (*specs.layers(), *specs.losses()) for row in spec.errors)


@pytest.mark.parametrize("row", ENGINE + SPECS, ids=lambda row: row.name)
def test_bad_input_raises_a_named_error(row):
    with pytest.raises(row.error) as error:
        row.call()
    assert type(error.value) is row.error
    for text in row.says:
        assert text in str(error.value)


def test_shapes_are_checked_under_the_callers_jit_too():
    grads = jax.jit(lambda x, y: mbp.manual_grads(PARAMS, x, y, network=NETWORK))
    with pytest.raises(ValueError, match=r"x\.T would fit"):
        grads(X.T, Y[:4])
    with pytest.raises(ValueError, match="at least one example"):
        grads(X[:0], Y[:0])
    with pytest.raises(TypeError, match="must be integers"):
        grads(X, Y.astype(float))


# --- integer classes ------------------------------------------------------------------------


def test_inside_jit_a_class_that_does_not_exist_poisons_loss_and_gradient():
    step = jax.jit(lambda y: mbp.manual_value_and_grads(PARAMS, X, y, network=NETWORK))
    for wrong in (2, -1):
        loss, found = step(Y.at[2].set(wrong))
        assert np.isnan(loss)
        assert all(np.isnan(leaf).any() for leaf in jax.tree.leaves(found))
    loss, found = step(Y)
    assert np.isfinite(loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_a_class_that_does_not_exist_is_welcome_where_it_does_not_count():
    wrong, weights = Y.at[2].set(7), jnp.ones(5).at[2].set(0)
    expected = mbp.manual_grads(PARAMS, X, Y, network=NETWORK, weights=weights)
    found = mbp.manual_grads(PARAMS, X, wrong, network=NETWORK, weights=weights)
    jax.tree.map(np.testing.assert_array_equal, found, expected)

    def ignoring(params, x, y):
        loss = mbp.SoftmaxCrossEntropy(ignored_class=7)
        return mbp.manual_grads(params, x, y, network=NETWORK, loss=loss)

    def without(params, x, y):
        kept = [jnp.concatenate([each[:2], each[3:]]) for each in (x, y)]
        return mbp.manual_grads(params, *kept, network=NETWORK)

    x = np.random.default_rng(0).normal(size=X.shape)
    verdict = judges.same(ignoring, without, PARAMS, x, wrong)
    assert verdict.ok, verdict


def test_queued_work_is_not_waited_for():
    ready = jax.block_until_ready(jax.jit(lambda y: y + 5)(Y))
    assert inputs.at_hand(ready)
    assert inputs.at_hand(np.array(Y))

    class Queued(jax.Array):
        """A JAX array whose value is still being computed."""

        is_fully_addressable = True  # pyright: ignore[reportAssignmentType]

        def is_ready(self):
            return False

    Queued.__abstractmethods__ = frozenset()
    assert not inputs.at_hand(Queued())  # pyright: ignore[reportAbstractUsage]
    seen = []
    jax.jit(lambda y: seen.append(inputs.at_hand(y)))(Y)
    assert seen == [False]
