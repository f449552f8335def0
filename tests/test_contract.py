"""The contract: what layers, combinators and losses do for those who build on them."""

import pickle
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manual_bp as mbp
from manual_bp.layer import Combinator, Layer, Loss, Static
from verify import architectures, engine, judges, no_autodiff, rules, specs
from verify.bench import Bench
from verify.networks import Case, draw_case
from verify.specification import LayerSpec

NETWORK = mbp.sequential(mbp.Dense(5, mbp.tanh), mbp.sequential(mbp.relu, mbp.Dense(3)))
X = jax.random.normal(jax.random.key(1), (4, 6))
Y = jnp.array([0, 1, 2, 0])


# --- a new layer, two files' worth ----------------------------------------------------------


class QuadraticParams(NamedTuple):
    scale: Any


@dataclass(frozen=True)
class Quadratic(Layer):
    """out = scale x² + x, one scale for each feature: manual_bp/layers/quadratic.py."""

    wrong: bool = False

    def init(self, key, x):
        return QuadraticParams(0.1 * jax.random.normal(key, x.shape[-1:], x.dtype))

    def forward(self, params, x, **taken):
        return params.scale * x**2 + x, x

    def backward(self, params, residuals, dout):
        x = residuals
        examples = tuple(range(x.ndim - 1))
        slope = (params.scale if self.wrong else 2 * params.scale) * x + 1
        return QuadraticParams((dout * x**2).sum(examples)), dout * slope


# verify/specs/quadratic.py
QUADRATIC = LayerSpec(
    layer=Quadratic,
    samples=((Quadratic(), (3, 2)),),
    reference=lambda layer, params, x, tap: jnp.multiply(params.scale, jnp.square(x)) + x,
    naive=lambda layer, params, x: np.array(
        [[s * v * v + v for s, v in zip(params.scale, row, strict=True)] for row in x]
    ),
    draw=lambda rng, shape: Quadratic(),
    exact=lambda layer: True,
)


def holds(layer: Layer, kind: type[Layer]) -> bool:
    if isinstance(layer, Combinator):
        return any(holds(child, kind) for child in layer.children)
    return isinstance(layer, kind)


def test_a_new_layer_is_picked_up_by_networks_judges_and_walk():
    with specs.registered(QUADRATIC):
        drawn = [draw_case(0, number) for number in range(60)]
        cases = [case for case in drawn if holds(case.network, Quadratic)][:3]
        assert cases, "no random network drew the new layer"
        for case in cases:
            found = architectures.judge_case(case)
            assert found
            assert architectures.first_wrong(found) is None
        for level in (judges.bounds, judges.rational):
            rule = rules.of_layer(Quadratic(), (3, 2))
            assert level(rule, rule.draw(rules.generator(0), "ties")).ok
        assert any(rule.family == "Quadratic" for rule in rules.of_specs())
        assert Bench(rule).mutants()
        network = mbp.sequential(mbp.Dense(3), Quadratic(), mbp.Dense(2))
        steps = mbp.intermediates(network.init(jax.random.key(0), X), X, Y[:4] % 2, network=network)
        assert {"out2", "dout2", "dscale2", "dZ1"} <= set(steps)


def test_a_wrong_new_layer_is_caught_and_named():
    with specs.registered(QUADRATIC):
        network = mbp.sequential(mbp.Dense(3), Quadratic(wrong=True), mbp.Dense(2))
        case = Case(network, mbp.SquaredError(), (4, 3))
        wrong = architectures.first_wrong(architectures.judge_case(case))
        assert wrong is not None
        assert wrong.level == "L4 bounds"
        assert wrong.verdict.first_wrong == "dA1"  # the error that leaves the quadratic layer


def test_a_layer_without_a_spec_is_an_error_that_says_so():
    with pytest.raises(LookupError, match="Quadratic has 0 specs, expected 1"):
        specs.of_layer(Quadratic())


def test_every_layer_combinator_and_loss_file_has_a_spec_of_its_name():
    import pathlib

    home, judges = pathlib.Path(mbp.__file__).parent, pathlib.Path(specs.__file__).parent
    for folder in ("layers", "combinators", "losses"):
        for path in (home / folder).glob("[a-z]*.py"):
            assert (judges / path.name).exists(), f"{path.name} has no spec"


# --- what is taken, observed, and left out when not training --------------------------------


@dataclass(frozen=True)
class Noise(Layer):
    """Adds noise in training; takes a key, observes the input's mean."""

    takes: ClassVar = ("key",)

    def forward(self, params, x, **taken):
        return x + jax.random.normal(taken["key"], x.shape), x.mean()

    def backward(self, params, residuals, dout):
        return (), dout

    def observe(self, residuals):
        return residuals

    def inference(self):
        return Shift()


@dataclass(frozen=True)
class Shift(Layer):
    """Not training: subtracts the observed mean."""

    takes: ClassVar = ("statistics",)

    def forward(self, params, x, **taken):
        return x - taken["statistics"], ()

    def backward(self, params, residuals, dout):
        return (), dout


NOISY = mbp.sequential(Noise(), mbp.sequential(mbp.Dense(6), Noise()), mbp.Dense(3))


def test_children_get_what_they_take_each_a_key_of_its_own():
    assert NOISY.takes == ("key",)
    seen = []

    @dataclass(frozen=True)
    class Spy(Noise):
        def forward(self, params, x, **taken):
            seen.append(jax.random.key_data(taken["key"]))
            return x, ()

    network = mbp.sequential(Spy(), mbp.Dense(6), mbp.sequential(Spy(), Spy()))
    params = ((), mbp.Dense(6).init(jax.random.key(0), X), ((), ()))
    network.forward(params, X, key=jax.random.key(7))
    assert len({tuple(np.asarray(key).tolist()) for key in seen}) == 3


def test_statistics_are_observed_outside_params_and_used_when_not_training():
    params = NOISY.init(jax.random.key(0), X)
    step = mbp.manual_pass(params, X, Y, network=NOISY, key=jax.random.key(3))
    assert jax.tree.structure(step.grads) == jax.tree.structure(params)
    assert jax.tree.structure(step.observed) == jax.tree.structure((0.0, ((), 0.0), ()))
    np.testing.assert_array_equal(step.observed[0], X.mean())
    statistics = optax.incremental_update(
        step.observed, jax.tree.map(jnp.zeros_like, step.observed), 0.1
    )
    logits = mbp.predict(params, X, network=NOISY, statistics=statistics)
    assert logits.shape == (4, 3)
    assert NOISY.inference().takes == ("statistics",)


@pytest.mark.parametrize(
    ("taken", "says"),
    [
        ({}, ("takes key", "given nothing", "pass key=...")),
        ({"key": jax.random.key(0), "mask": X}, ("given key, mask", "leave out mask")),
        ({"statistics": ()}, ("pass key=...", "leave out statistics", "network.inference()")),
    ],
)
def test_given_too_much_or_too_little_a_network_says_what_it_takes(taken, says):
    params = NOISY.init(jax.random.key(0), X)
    with pytest.raises(TypeError) as error:
        mbp.manual_grads(params, X, Y, network=NOISY, **taken)
    with pytest.raises(TypeError):
        NOISY.forward(params, X, **taken)
    for text in says:
        assert text in str(error.value)


LEAVES = [
    spec.samples[0] for spec in specs.layers() if not isinstance(spec.samples[0][0], Combinator)
]


@pytest.mark.parametrize(("layer", "shape"), LEAVES, ids=lambda each: str(each))
def test_given_too_much_a_layer_says_what_to_leave_out(layer, shape):
    x = jnp.ones(shape, jnp.float32 if specs.of_layer(layer).inputs is None else jnp.int32)
    taken = {name: layer.stand_in(name, x) for name in layer.takes}
    params = layer.init(jax.random.key(0), x)
    with pytest.raises(TypeError, match="leave out nonsense"):
        layer.forward(params, x, **taken, nonsense=1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: mbp.MaxPool(2, 2), "Write window=(2, 2)."),  # pyright: ignore[reportArgumentType]
        (lambda: mbp.AvgPool([2, 3]), "Write window=(2, 3)."),  # pyright: ignore[reportArgumentType]
        (
            lambda: mbp.MaxPool((3, 3), 1, [(1, 1), [0, 1]]),  # pyright: ignore[reportArgumentType]
            "Write padding=((1, 1), (0, 1)).",
        ),
        (
            lambda: mbp.Conv(2, (3, 3), padding=[(1, 1), [0, 1]]),  # pyright: ignore[reportArgumentType]
            "Write padding=((1, 1), (0, 1)).",
        ),
    ],
)
def test_settings_as_other_libraries_take_them_are_written_out(make, says):
    with pytest.raises(TypeError) as error:
        make()
    assert says in str(error.value)


def test_in_half_precision_scale_rounds_once():
    near_one = jnp.array([1.0078125], jnp.bfloat16)  # its square takes twice the digits
    params = mbp.Scale(bias=True).init(jax.random.key(0), near_one)
    params = params._replace(scale=near_one, shift=jnp.array([0.00390625], jnp.bfloat16))
    out, _ = mbp.Scale(bias=True).forward(params, near_one)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out.astype(jnp.float32), [1.0234375])


def test_statistics_of_another_network_are_an_error():
    params = NOISY.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="statistics must be nested like the network"):
        mbp.predict(params, X, network=NOISY, statistics=(jnp.zeros(()),))


# --- walk -----------------------------------------------------------------------------------


def test_the_gradient_is_the_walk_of_each_layers_own_backward():
    params = NETWORK.init(jax.random.key(0), X)
    out, residuals = NETWORK.forward(params, X)
    dout = jax.random.normal(jax.random.key(2), out.shape)
    expected = NETWORK.backward(params, residuals, dout)
    seen = NETWORK.walk(
        lambda layer, dout, params, residuals: layer.backward(params, residuals, dout),
        dout,
        params,
        residuals,
    )
    chex.assert_trees_all_equal(seen, expected)


def test_a_walk_takes_any_trees_and_sees_every_leaf_with_its_error():
    params = NETWORK.init(jax.random.key(0), X)
    out, residuals = NETWORK.forward(params, X)
    numbers = ("first", ("second", "third"))

    def visit(layer, dout, params, residuals, name):
        return (name, repr(layer), dout.shape), layer.backward(params, residuals, dout)[1]

    seen, dx = NETWORK.walk(visit, jnp.ones_like(out), params, residuals, numbers)
    assert seen == (
        ("first", "Dense(5, tanh)", (4, 5)),
        (("second", "relu", (4, 5)), ("third", "Dense(3)", (4, 3))),
    )
    assert dx.shape == X.shape


def test_a_walk_may_carry_the_error_by_another_rule():
    """Feedback alignment: the error passes through B instead of W (Lillicrap et al. 2016)."""
    params = NETWORK.init(jax.random.key(0), X)
    other = NETWORK.init(jax.random.key(9), X)
    out, residuals = NETWORK.forward(params, X)

    def visit(layer, dout, params, residuals, feedback):
        dparams, _ = layer.backward(params, residuals, dout)
        return dparams, layer.backward(feedback, residuals, dout)[1]

    dout = jnp.ones_like(out)
    true, _ = NETWORK.backward(params, residuals, dout)
    aligned, _ = NETWORK.walk(visit, dout, params, residuals, other)
    chex.assert_trees_all_equal(aligned[1], true[1])  # the last layer's needs no transport
    assert (aligned[0].W != true[0].W).any()


# --- Static, Loss.sweep, settings -----------------------------------------------------------


def test_static_rides_in_residuals_through_jit_and_scan():
    @jax.jit
    def double(box):
        return box, 2 * box[0]

    box, _ = double((jnp.ones(2), Static((3, "split"))))
    assert box[1] == Static((3, "split"))

    def body(carry, x):
        return carry, x

    carry, _ = jax.lax.scan(body, (jnp.zeros(()), Static(4)), jnp.ones(3))
    assert carry[1].value == 4


def test_networks_are_values():
    again = pickle.loads(pickle.dumps(NETWORK))
    assert again == NETWORK
    assert hash(again) == hash(NETWORK)
    assert repr(NETWORK) == "sequential(Dense(5, tanh), sequential(relu, Dense(3)))"
    assert mbp.Dense(5, mbp.tanh) != mbp.Dense(5, mbp.relu)
    assert mbp.leaky_relu(0.2) != mbp.leaky_relu(0.1)
    assert repr(mbp.Dense(5, mbp.leaky_relu(0.2), inputs=3)) == (
        "Dense(5, leaky_relu(0.2), inputs=3)"
    )
    assert jax.tree.leaves((NETWORK, mbp.SquaredError())) == []


def test_a_network_may_be_an_argument_of_jit_and_vmap():
    params = NETWORK.init(jax.random.key(0), X)
    call = jax.jit(lambda network, params: mbp.predict(params, X, network=network))
    many = jax.vmap(lambda network, x: mbp.predict(params, x, network=network), (None, 0))
    expected = mbp.predict(params, X, network=NETWORK)
    np.testing.assert_array_equal(call(NETWORK, params), expected)
    assert many(NETWORK, X[None]).shape == (1, 4, 3)


class HeadParams(NamedTuple):
    V: Any


@dataclass(frozen=True)
class LinearHead(Loss):
    """A loss with parameters: squared error of prediction Vᵀ, through sweep alone."""

    parametric: ClassVar[bool] = True

    def init(self, key, prediction):
        return HeadParams(jax.random.normal(key, (2, prediction.shape[-1])))

    def sweep(self, params, prediction, target, weights):
        error = prediction @ params.V.T - target
        weighted = weights[:, None] * error
        dparams = HeadParams(weighted.T @ prediction)
        return 0.5 * (error**2).sum(-1), dparams, weighted @ params.V


def judge_loss_with_parameters(network, loss, params, x, y, objective):
    """The bounds' verdict on J and every gradient."""

    def named(value, grads):
        return {"J": value, **rules.flat("d", grads)}

    rule = rules.Rule(
        name="a loss with parameters",
        family="test",
        manual=lambda p, v: named(*mbp.manual_value_and_grads(p, v, y, network=network, loss=loss)),
        autodiff=lambda p, v: named(*jax.value_and_grad(lambda q: objective(q, v))(p)),
        draw=lambda rng, kind: (params, x),
    )
    return judges.bounds(rule, (params, x))


def test_a_loss_with_parameters_gets_and_gives_its_own():
    network, loss = mbp.sequential(mbp.Dense(5, mbp.tanh), mbp.Dense(3)), LinearHead()
    y = jax.random.normal(jax.random.key(5), (4, 2))
    params = (network.init(jax.random.key(0), X), loss.init(jax.random.key(1), jnp.zeros((4, 3))))

    def objective(params, x=X):
        (p1, p2), head = params
        z = jnp.tanh(x @ p1.W.T + p1.b) @ p2.W.T + p2.b
        return 0.5 * jnp.mean(jnp.sum((z @ head.V.T - y) ** 2, -1))

    with jax.enable_x64(True):
        params, wide = jax.tree.map(lambda a: a.astype("float64"), (params, X))
        value, grads = mbp.manual_value_and_grads(params, wide, y, network=network, loss=loss)
        expected_value, expected = jax.value_and_grad(objective)(params)
        verdict = judge_loss_with_parameters(network, loss, params, wide, y, objective)
        assert verdict.ok, verdict
        assert jax.tree.structure(grads) == jax.tree.structure(expected)
        chex.assert_trees_all_equal_shapes((value, grads), (expected_value, expected))
    with pytest.raises(TypeError, match=r"LinearHead\(\) has parameters: params must be the pair"):
        mbp.manual_grads(list(params), X, y, network=network, loss=loss)


def test_unfinished_layers_say_what_they_lack():
    class Half(Layer):
        pass

    class Joined(Combinator):
        children = ()

    with pytest.raises(NotImplementedError, match=r"Half must define forward\(params, x\)"):
        Half().forward((), X)
    with pytest.raises(NotImplementedError, match="Half must define backward"):
        Half().backward((), (), X)
    with pytest.raises(NotImplementedError, match="Joined must define walk"):
        Joined().walk(lambda *args: args, X, (), ())
    with pytest.raises(NotImplementedError, match="must define stand_in"):
        Shift().stand_in("statistics", X)


# --- no autodiff ----------------------------------------------------------------------------


def test_manual_grads_runs_with_autodiff_forbidden():
    params = NETWORK.init(jax.random.key(0), X)
    jax.clear_caches()
    with no_autodiff.forbidden():
        mbp.manual_grads(params, X, Y, network=NETWORK)
        mbp.intermediates(params, X, Y, network=NETWORK)


def test_forbidden_autodiff_raises():
    with no_autodiff.forbidden(), pytest.raises(AssertionError, match="autodiff was called"):
        jax.grad(jnp.sum)(X)


def test_order_of_computation_is_the_walk_back():
    names = ["dW1", "A1", "J", "dZ2", "Z1", "dA1", "dZ1", "Z2"]
    assert engine.in_order_of_computation(names) == [
        *("Z1", "A1", "Z2"),
        *("J", "dZ2", "dA1", "dZ1", "dW1"),
    ]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "layer",
    [
        mbp.Dense(2),
        mbp.Conv(2, 3),
        mbp.LayerNorm(),
        mbp.LSTM(3),
        mbp.LastStep(),
        mbp.skip(mbp.Dense(4)),
    ],
    ids=repr,
)
def test_numpy_float64_is_welcome_at_init_and_forward(layer):
    x = np.ones((3, 5, 4))
    params = layer.init(jax.random.key(0), x)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} <= {"float32"}
    out, _ = layer.forward(params, x, **dict.fromkeys(layer.takes))
    assert isinstance(out, jax.Array)
