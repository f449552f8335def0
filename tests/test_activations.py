import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_bp as mbp
from manual_bp import activation as base
from manual_bp import activations as table
from verify import accuracy
from verify.forward import judge_layer
from verify.levels import low_precision
from verify.report import Report
from verify.specs import activations as specs

ALL = accuracy.JUDGED
KINDS = tuple(specs.JAX)
MASKED = (table.Relu, table.LeakyRelu, table.Relu6, table.HardTanh, table.HardSigmoid)
EDGES = [edge for edges in specs.EDGES.values() for edge in edges]
ERRORS = [bad for errors in specs.ERRORS.values() for bad in errors]
FAMILIES = {"leaky_relu": "slope", "elu": "alpha", "celu": "alpha", "squareplus": "b"}


@pytest.fixture(scope="module")
def cells():
    return accuracy.table(seed=0, count=100)


def test_the_table_is_complete():
    names = {repr(kind()).removesuffix("()") for kind in KINDS}
    assert names == {
        *("identity", "relu", "leaky_relu", "relu6", "elu", "selu", "celu", "gelu", "gelu_tanh"),
        *("silu", "mish", "sigmoid", "log_sigmoid", "hard_sigmoid", "hard_silu", "tanh"),
        *("hard_tanh", "softplus", "softsign", "squareplus", "squared_relu"),
    }
    for name in names:
        exported = getattr(mbp, name)
        assert isinstance(exported, type) == (name in FAMILIES)
        assert f"| {name}" in str(table.__doc__)
    written = {
        each
        for each in vars(table).values()
        if isinstance(each, type) and issubclass(each, table.Activation) and "value" in vars(each)
    } - {table.Activation}
    assert written == set(KINDS) == set(accuracy.TRUE)


@pytest.mark.parametrize("layer", ALL, ids=repr)
def test_g_is_what_its_definition_says(layer):
    verdict = judge_layer(layer, (40, 5))
    assert verdict.ok, verdict


def test_g_equals_that_of_jax_nn():
    """L5's rule: in float32, pooled over the range that networks see; the truth is float64's."""
    z = np.random.default_rng(0).normal(size=2000).astype(np.float32) * 4
    with jax.enable_x64(True):
        wide = jnp.asarray(z, jnp.float64)
        true = jax.jit(lambda v: [specs.reference(layer, v) for layer in ALL])(wide)
    ours = jax.jit(lambda v: [layer.forward((), v)[0] for layer in ALL])(z)
    theirs = jax.jit(lambda v: [specs.reference(layer, v) for layer in ALL])(z)
    for layer, mine, other, exact in zip(ALL, ours, theirs, true, strict=True):
        errors = [accuracy.pooled(each, (np.asarray(exact), 0)) for each in (mine, other)]
        size = float(np.linalg.norm(exact))
        assert low_precision.over(*errors, size, np.float32) <= 2, (layer, errors)
        assert size > 0


def test_no_decade_of_g_prime_is_less_accurate_than_autodiff(cells):
    assert len(cells) == len(ALL) * sum(len(accuracy.decades(d)) for d in accuracy.DTYPES)
    worse = [cell for cell in cells if not cell.holds]
    assert worse == []
    assert max(cell.ratio for cell in cells) <= 1


def test_autodiff_does_lose_tails(cells):
    """The judge sees a difference where there is one."""
    for name in ("tanh", "sigmoid", "elu()", "selu", "gelu_tanh", "squareplus()"):
        wide = [cell for cell in cells if cell.dtype == "float64"]
        chosen = [cell for cell in wide if repr(cell.activation) == name]
        mended = all(cell.autodiff <= cell.ours for cell in chosen[-3:])  # by a newer JAX
        assert mended or any(cell.ours < 0.01 * cell.autodiff for cell in chosen), name


def test_the_accuracy_judge_sees_a_lost_tail(monkeypatch):
    monkeypatch.setattr(accuracy, "JUDGED", (mbp.tanh, mbp.sigmoid))
    monkeypatch.setattr(accuracy, "DTYPES", ("float32",))
    monkeypatch.setattr(accuracy, "curvatures", lambda seed: [])
    monkeypatch.setattr(table.Tanh, "derivative", lambda layer, z: 1.001 - jnp.tanh(z) ** 2)
    report = Report()
    accuracy.run(report)
    assert not report.held
    assert all("tanh' in float32, |z| from 1e" in line for line in report.failures)


def test_g_second_is_autodiffs_of_jax_nn():
    """The rule of VERIFICATION.md's L5: in float32, pooled, against float64."""
    z = np.random.default_rng(0).normal(size=1000).astype(np.float32) * 3

    def twice(layer, v):
        return jax.vmap(jax.grad(jax.grad(lambda each: specs.reference(layer, each))))(v)

    theirs = jax.jit(lambda v: [twice(layer, v) for layer in ALL])
    ours = jax.jit(lambda v: [layer.curvature(v) for layer in ALL])
    mine, other = ours(z), theirs(z)
    with jax.enable_x64(True):
        true = theirs(jnp.asarray(z, jnp.float64))
    for layer, *values, exact in zip(ALL, mine, other, true, strict=True):
        errors = [accuracy.pooled(each, (np.asarray(exact), 0)) for each in values]
        size = float(np.linalg.norm(exact))
        assert low_precision.over(*errors, size, np.float32) <= 2, (layer, errors)


def test_autodiff_of_silus_value_is_right_at_its_centre():
    """Who differentiates the forward pass twice meets no kink there."""
    second = jax.grad(jax.grad(lambda z: mbp.silu.value(z)))
    assert [float(second(jnp.float32(z))) for z in (0.0, -0.0)] == [0.5, 0.5]


def test_g_second_has_its_tails():
    found = accuracy.curvatures(seed=0, count=3)
    assert len({cell.activation for cell in found}) > 10
    assert all(np.isfinite(cell.ours) for cell in found)
    tails = [cell for cell in found if cell.decade == 2 and cell.autodiff > 0]
    assert sum(cell.ours <= cell.autodiff for cell in tails) > len(tails) / 2


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])  # bfloat16 is float32
def test_nothing_is_nan_at_any_finite_number(dtype):
    top = float(jnp.finfo(dtype).max)
    sizes = np.array([0, 1e-6, 0.5, 1, 3, 6, 20, 90, 200, 800, 1e4, top**0.5, top / 4, top])
    with jax.enable_x64(dtype == "float64"):
        z = jnp.asarray(np.concatenate([sizes, -sizes]), dtype)

        def everything(z):
            wide = z.astype(jnp.promote_types(z.dtype, jnp.float32))
            return [
                (layer.forward((), z)[0], accuracy.delivered(layer, z), layer.curvature(wide))
                for layer in ALL
            ]

        for layer, values in zip(ALL, jax.jit(everything)(z), strict=True):
            for name, value in zip(("g", "g'", "g''"), values, strict=True):
                assert not np.isnan(np.asarray(value, np.float64)).any(), (layer, name)
            bounded = not isinstance(layer, table.SquaredRelu)  # g' = 2z overflows with z
            assert np.isfinite(np.asarray(values[1], np.float64)).all() or not bounded, layer


@pytest.mark.parametrize("dtype", accuracy.DTYPES)
def test_edges(dtype):
    """To the digits that a table shows: three, in bfloat16 the two it has."""
    chosen = [edge for edge in EDGES if edge.dtype == dtype]
    with jax.enable_x64(dtype == "float64"):
        points = [jnp.asarray([edge.point], dtype) for edge in chosen]
        pairs = list(zip(chosen, points, strict=True))
        ours = jax.jit(lambda given: [e.manual(z) for e, z in zip(chosen, given, strict=True)])(
            points
        )
        theirs = [edge.autodiff(z) for edge, z in pairs]  # compiled as one, float16 is float32
    shown = "{:.1e}".format if dtype == "bfloat16" else "{:.2e}".format
    for edge, mine, other in zip(chosen, ours, theirs, strict=True):
        assert float(shown(float(mine[0]))) == float(shown(edge.stated)), edge
        known = {shown(edge.recorded), shown(edge.stated)}  # the latter once a JAX is mended
        assert float(other[0]) + 0 == edge.recorded or shown(float(other[0])) in known, edge


def test_there_are_edges_enough():
    wrong = [edge for edge in EDGES if edge.stated != edge.recorded]
    assert len(EDGES) >= 40 and len(wrong) >= 30


@pytest.mark.parametrize(
    ("layer", "at", "stated"),
    [
        *((mbp.relu, 0, 0), (mbp.leaky_relu(0.2), 0, 1), (mbp.squared_relu, 0, 0)),
        *((mbp.relu6, 0, 0), (mbp.relu6, 6, 0), (mbp.hard_tanh, -1, 1), (mbp.hard_tanh, 1, 1)),
        *((mbp.hard_sigmoid, -3, 0), (mbp.hard_sigmoid, 3, 0)),
        *((mbp.hard_silu, -3, 0), (mbp.hard_silu, 3, 1)),
        *((mbp.elu(0.5), 0, 0.5), (mbp.celu(0.5), 0, 1)),
    ],
    ids=repr,
)
def test_kinks_are_as_stated_and_as_jax_nn_has_them(layer, at, stated):
    z = jnp.asarray([float(at)])
    assert accuracy.delivered(layer, z)[0] == layer.derivative(z)[0] == stated
    assert accuracy.by_autodiff(layer, z)[0] == stated


def test_curvature_at_kinks_of_g_prime():
    at = jnp.zeros(1)
    assert mbp.softsign.curvature(at)[0] == 0
    assert mbp.squared_relu.curvature(at)[0] == 0
    assert mbp.elu(0.5).curvature(at)[0] == 0.5
    assert mbp.celu(0.5).curvature(at)[0] == 2


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_backward_keeps_one_array_and_a_mask_where_that_will_do(dtype):
    z = jnp.linspace(-4, 4, 60, dtype=dtype).reshape(3, 20)
    # Powers of two, by which g' is multiplied exactly.
    dout = jnp.asarray(np.random.default_rng(0).choice([-4, -2, -1, 1, 2, 4], z.shape), dtype)
    for layer in ALL:
        _, kept = layer.forward((), z)
        leaves = jax.tree.leaves(kept)
        assert [each.shape for each in leaves] == [z.shape] * (layer != mbp.identity)
        assert all(each.dtype == (bool if isinstance(layer, MASKED) else dtype) for each in leaves)
        dparams, dz = layer.backward((), kept, dout)
        assert dparams == () and dz.dtype == dtype
        np.testing.assert_array_equal(dz, dout * accuracy.delivered(layer, z))


def test_they_are_values():
    for layer in ALL:
        again = pickle.loads(pickle.dumps(layer))
        assert again == layer and hash(again) == hash(layer) and repr(again) == repr(layer)
        assert eval(repr(layer), vars(mbp)) == layer
        assert jax.tree.leaves(layer) == []
    assert len(set(ALL)) == len(ALL)
    assert repr(mbp.elu()) == "elu()" and repr(mbp.elu(0.5)) == "elu(0.5)"
    assert repr(mbp.squareplus(b=1.0)) == "squareplus(1.0)"
    assert repr(mbp.gelu_tanh) == "gelu_tanh" and repr(mbp.relu6) == "relu6"
    assert repr(mbp.Dense(3, mbp.celu(2.0))) == "Dense(3, celu(2.0))"


@pytest.mark.parametrize("bad", ERRORS, ids=lambda bad: bad.name)
def test_settings_are_checked(bad):
    with pytest.raises(bad.error) as raised:
        bad.call()
    for words in bad.says:
        assert words in str(raised.value)


def test_weights_are_drawn_after_them():
    lecun = {table.Identity, table.Selu}
    glorot = {table.Tanh, table.Sigmoid, table.HardTanh, table.HardSigmoid, table.Softsign}
    for kind in KINDS:
        expected = base.lecun if kind in lecun else base.glorot if kind in glorot else base.he
        assert kind.initializer is expected


def test_what_is_exact_is_said():
    exact = {kind for kind in KINDS if specs.is_exact(kind())}
    assert exact - {table.HardSigmoid, table.HardSilu} == set(specs.DYADIC)
    assert specs.on_lattice(mbp.leaky_relu(0.25)) and not specs.on_lattice(mbp.leaky_relu(0.01))
    assert not specs.on_lattice(mbp.hard_silu)
    lattice = jnp.arange(-8.0, 9.0)
    for layer in ALL:
        if specs.on_lattice(layer):
            np.testing.assert_array_equal(
                accuracy.delivered(layer, lattice), accuracy.by_autodiff(layer, lattice)
            )
