"""Combinators of combinators, and what stack, checkpoint, reversible and tied promise beside."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_bp as mbp
from manual_bp.layer import Combinator, Layer, Static
from verify import judges, reference, rules, specs
from verify.networks import Case
from verify.specification import LayerSpec

X = jax.random.normal(jax.random.key(1), (3, 4))
Y = jnp.array([0, 1, 2])
DENSE = mbp.Dense(4, mbp.tanh)
RELU = mbp.Dense(4, mbp.relu)
BLOCK = mbp.skip(mbp.sequential(mbp.Dense(3, mbp.relu), mbp.Dense(4)))
TWICE = mbp.tied(mbp.sequential(RELU, mbp.Dense(4, mbp.relu)), ((0,), (1,)))
HALF = mbp.Dense(2, mbp.relu)


# --- layers that take and observe -----------------------------------------------------------


@dataclass(frozen=True)
class Drop(Layer):
    """Zeroes half of its input; takes a key, observes how many it kept, holds a static box."""

    takes: ClassVar = ("key",)

    def forward(self, params, x, **taken):
        kept = jax.random.bits(taken["key"], x.shape, "uint8") < 128
        return jnp.where(kept, x, 0), (kept, Static(("split", 3)))

    def backward(self, params, residuals, dout):
        kept, box = residuals
        assert box == Static(("split", 3))
        return (), jnp.where(kept, dout, 0)

    def observe(self, residuals):
        return residuals[0].sum(0)

    def inference(self):
        return Minus()


@dataclass(frozen=True)
class Minus(Layer):
    """Not training: takes away what was observed."""

    takes: ClassVar = ("statistics",)

    def forward(self, params, x, **taken):
        return x - taken["statistics"].astype(x.dtype), ()

    def backward(self, params, residuals, dout):
        return (), dout

    def stand_in(self, name, x):
        return jnp.zeros(x.shape[-1:]) if name == "statistics" else super().stand_in(name, x)


@dataclass(frozen=True)
class Masked(Layer):
    """Takes the mean of the examples that count away from all."""

    takes: ClassVar = ("mask",)

    def forward(self, params, x, **taken):
        share = taken["mask"].astype(x.dtype)[:, None] / taken["mask"].sum()
        return x - (share * x).sum(0), share

    def backward(self, params, share, dout):
        return (), dout - share * dout.sum(0)


def masked_reference(layer, params, x, tap, mask):
    weight = jnp.where(mask, 1.0, 0.0) / jnp.count_nonzero(mask)
    return x - jnp.einsum("m,m...->...", weight, x)


OWN = (
    LayerSpec(
        layer=Drop,
        samples=(),
        reference=lambda layer, params, x, tap, key: (
            x * (jax.random.bits(key, x.shape, "uint8") < 128)
        ),
        naive=lambda *args: np.zeros(0),
        draw=lambda rng, shape: None,
        exact=lambda layer: True,
    ),
    LayerSpec(
        layer=Minus,
        samples=(),
        reference=lambda layer, params, x, tap, statistics: x - statistics,
        naive=lambda *args: np.zeros(0),
        draw=lambda rng, shape: None,
        exact=lambda layer: True,
    ),
    LayerSpec(
        layer=Masked,
        samples=(),
        reference=masked_reference,
        naive=lambda *args: np.zeros(0),
        draw=lambda rng, shape: None,
        exact=lambda layer: True,
        mixes=lambda layer: True,
    ),
)


# --- nested in every way --------------------------------------------------------------------

NESTED = (
    mbp.stack(BLOCK, 3),
    mbp.stack(mbp.checkpoint(BLOCK), 2),
    mbp.checkpoint(mbp.stack(RELU, 2)),
    mbp.stack(mbp.stack(DENSE, 2), 2),
    mbp.skip(mbp.stack(RELU, 2)),
    mbp.sequential(mbp.stack(RELU, 2), mbp.reversible(HALF, HALF, 2), mbp.Dense(3)),
    mbp.stack(mbp.reversible(HALF, mbp.Dense(2), 1), 2),
    mbp.reversible(mbp.stack(HALF, 2), mbp.checkpoint(HALF), 2),
    mbp.reversible(mbp.reversible(mbp.Dense(1), mbp.Dense(1), 2), mbp.tanh, 2),
    mbp.checkpoint(mbp.checkpoint(DENSE)),
    mbp.stack(TWICE, 2),
    mbp.reversible(HALF, mbp.tied(mbp.sequential(HALF, HALF), ((0,), (1,))), 2),
    mbp.tied(mbp.sequential(mbp.stack(RELU, 2), mbp.relu, mbp.stack(RELU, 2)), ((0,), (2,))),
    mbp.tied(mbp.sequential(BLOCK, mbp.Dense(4), BLOCK), ((0,), (2,))),
    mbp.tied(mbp.sequential(TWICE, RELU), ((0, 0, 0, "W"), (1, "W"))),
    mbp.tied(mbp.reversible(HALF, HALF, 2), ((0,), (1,))),
    mbp.parallel(mbp.stack(RELU, 2), mbp.checkpoint(RELU), combine="sum"),
    mbp.stack(mbp.skip(mbp.sequential(mbp.Dense(4), Drop())), 3),
    mbp.stack(mbp.checkpoint(mbp.sequential(RELU, Drop())), 2),
    mbp.checkpoint(mbp.stack(mbp.sequential(Drop(), mbp.Dense(4)), 2)),
    mbp.stack(mbp.stack(mbp.sequential(Drop(), RELU), 2), 2),
    mbp.reversible(mbp.sequential(HALF, Drop()), mbp.sequential(Drop(), mbp.Dense(2)), 2),
    mbp.stack(mbp.sequential(mbp.Dense(4), Masked()), 2),
    mbp.reversible(mbp.sequential(HALF, Masked()), mbp.checkpoint(Masked()), 2),
)


@pytest.mark.parametrize("network", NESTED, ids=repr)
def test_nested_combinators_are_autodiffs(network):
    with specs.registered(*OWN):
        case = Case(mbp.sequential(network, mbp.Dense(3)), mbp.SoftmaxCrossEntropy(), (3, 4))
        rule = rules.of_case(case)
        for kind in ("normal", "ties"):
            verdict = judges.bounds(rule, rule.draw(rules.generator(0), kind))
            assert verdict.ok, verdict
        case = Case(network, mbp.SquaredError(), (3, 4), "given")
        rule = rules.of_case(case)
        args = rule.draw(rules.generator(0), "lattice")
        verdict = (judges.rational if rule.exact else judges.bounds)(rule, args)
        assert verdict.ok, verdict


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtypes_are_kept(dtype):
    network = mbp.sequential(mbp.stack(BLOCK, 2), mbp.reversible(HALF, HALF, 2), TWICE)
    x = X.astype(dtype)
    params = network.init(jax.random.key(0), x)
    out, residuals = jax.eval_shape(network.forward, params, x)
    grads, dx = jax.eval_shape(network.backward, params, residuals, out)
    assert out.dtype == dx.dtype == dtype
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(params), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


def test_a_stack_of_one_draws_what_sequential_draws():
    stacked = mbp.stack(DENSE, 3).init(jax.random.key(5), X)
    apart = mbp.sequential(DENSE, DENSE, DENSE).init(jax.random.key(5), X)
    jax.tree.map(np.testing.assert_array_equal, stacked[0], jax.tree.map(_stack, *apart))


def _stack(*leaves):
    return jnp.stack(leaves)


# --- what is shown of them ------------------------------------------------------------------


def test_intermediates_of_repeated_and_tied_layers_have_names_of_their_own():
    network = mbp.sequential(mbp.stack(BLOCK, 5), TWICE, mbp.Dense(3))
    params = network.init(jax.random.key(0), X)
    steps = mbp.intermediates(params, X, Y, network=network)
    assert steps["Z1.1.1.1"].shape == (5, 3, 3)
    assert steps["dW1.1.1.2"].shape == (5, 4, 3)
    assert {"dW2.1.1", "dZ2.1.1", "dZ2.1.2"} <= set(steps)
    assert not {"dW2.1.2", "db2.1.2"} & set(steps)
    assert list(steps)[:5] == ["A0", *(f"{name}1.1.1.1" for name in ("Z", "A", "dA", "dZ"))]
    grads = mbp.manual_grads(params, X, Y, network=network)
    for name, each in reference.named_params(network, grads):
        np.testing.assert_array_equal(steps[name], each)


def test_only_the_last_layer_of_a_chain_has_the_losss_activation():
    network = mbp.skip(mbp.Dense(3))
    x = X[:, :3]
    params = network.init(jax.random.key(0), x)
    steps = mbp.intermediates(params, x, Y, network=network)
    np.testing.assert_array_equal(steps["A1"], steps["Z1"])
    assert "dA1" in steps


# --- keys, masks, statistics ----------------------------------------------------------------


def test_each_step_gets_a_key_of_its_own():
    network = mbp.stack(Drop(), 4)
    _, residuals = network.forward(((),), jnp.ones((8, 8)), key=jax.random.key(0))
    kept = np.asarray(*jax.tree.leaves(residuals))
    assert len({each.tobytes() for each in kept}) == 4
    network = mbp.reversible(Drop(), Drop(), 3)
    forward = network.forward(((), ()), jnp.ones((8, 8)), key=jax.random.key(0))
    observed = jnp.concatenate(network.observe(forward[1]))
    assert len({np.asarray(each).tobytes() for each in observed}) == 6


STATEFUL = (
    mbp.stack(mbp.sequential(mbp.Dense(4), Drop()), 3),
    mbp.stack(mbp.checkpoint(mbp.sequential(mbp.Dense(4), Drop())), 3),
    mbp.checkpoint(mbp.stack(mbp.stack(Drop(), 2), 2)),
    mbp.reversible(mbp.sequential(mbp.Dense(2), Drop()), Drop(), 2),
    mbp.tied(mbp.sequential(mbp.Dense(4), Drop(), mbp.Dense(4)), ((0,), (2,))),
)


@pytest.mark.parametrize("network", STATEFUL, ids=repr)
def test_what_is_observed_is_what_inference_takes(network):
    with specs.registered(*OWN):
        params = network.init(jax.random.key(0), X)
        observed = mbp.manual_pass(params, X, Y, network=network, key=jax.random.key(2)).observed
        used = network.inference()
        assert used.takes == ("statistics",)

        def ours(params, x, observed):
            return used.forward(params, x, statistics=observed)[0]

        def theirs(params, x, observed):
            taken = {"statistics": observed}
            return reference.forward(used, params, x, lambda name, value: value, taken=taken)

        verdict = judges.same(ours, theirs, params, X, observed)
        assert verdict.ok, verdict


def test_statistics_of_another_depth_are_an_error():
    network = mbp.stack(Minus(), 3)
    with pytest.raises(ValueError, match=r"statistics has shape \(2, 4\), expected a first axis"):
        network.forward(((),), X, statistics=(jnp.zeros((2, 4)),))


# --- walks ----------------------------------------------------------------------------------


def visit(layer, dout, params, residuals, feedback):
    """Feedback alignment; the norm of the error is seen too."""
    dparams, _ = layer.backward(params, residuals, dout)
    _, dx = layer.backward(feedback, residuals, dout)
    return (dparams, (dout**2).sum()), dx


def _at(tree: Any, step: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[step], tree)


@pytest.mark.parametrize("body", [mbp.skip(DENSE), mbp.checkpoint(DENSE)], ids=repr)
def test_a_walk_through_a_stack_is_one_through_the_layers_apart(body):
    stacked, apart = mbp.stack(body, 3), mbp.sequential(*[body] * 3)
    params, others = (stacked.init(jax.random.key(seed), X) for seed in (0, 1))

    def of_stack(params, others, x, dout):
        _, residuals = stacked.forward(params, x)
        (seen,), dx = stacked.walk(visit, dout, params, residuals, others)
        return seen, dx

    def of_layers(params, others, x, dout):
        params, others = (tuple(_at(tree[0], i) for i in range(3)) for tree in (params, others))
        _, residuals = apart.forward(params, x)
        seen, dx = apart.walk(visit, dout, params, residuals, others)
        return jax.tree.map(_stack, *seen), dx

    verdict = judges.same(of_stack, of_layers, params, others, X, X[::-1])
    assert verdict.ok, verdict


def test_a_walk_sees_each_use_of_tied_params_apart():
    apart = mbp.sequential(DENSE, DENSE)
    network = mbp.tied(apart, ((0,), (1,)))
    params, others = (network.init(jax.random.key(seed), X) for seed in (0, 1))

    def of_tied(params, others, x, dout):
        _, residuals = network.forward(params, x)
        return network.walk(visit, dout, params, residuals, others)

    def of_layers(params, others, x, dout):
        twice = [(tree[0][0],) * 2 for tree in (params, others)]
        _, residuals = apart.forward(twice[0], x)
        seen, dx = apart.walk(visit, dout, twice[0], residuals, twice[1])
        return (seen,), dx

    verdict = judges.same(of_tied, of_layers, params, others, X, X[::-1])
    assert verdict.ok, verdict


def test_a_walk_through_reversible_takes_other_trees():
    network = mbp.reversible(mbp.Dense(2, mbp.tanh), mbp.Dense(2, mbp.sigmoid), 2)
    params, others = (network.init(jax.random.key(seed), X) for seed in (0, 1))
    written_out = mbp.sequential(*[Coupling(network.f), Coupling(network.g, True)] * 2)

    def of_reversible(params, others, x, dout):
        _, residuals = network.forward(params, x)
        return network.walk(visit, dout, params, residuals, others)

    def of_steps(params, others, x, dout):
        params, others = (
            tuple((_at(tree[index], step),) for step in range(2) for index in (0, 1))
            for tree in (params, others)
        )
        _, residuals = written_out.forward(params, x)
        seen, dx = written_out.walk(visit, dout, params, residuals, others)
        f, g = (jax.tree.map(_stack, *(each[0] for each in seen[index::2])) for index in (0, 1))
        return (f, g), dx

    verdict = judges.same(of_reversible, of_steps, params, others, X, X[::-1])
    assert verdict.ok, verdict


@dataclass(frozen=True)
class Coupling(Combinator):
    """Adds to one half of the features what a layer makes of the other; keeps what it needs."""

    layer: Layer
    second: bool = False

    @property
    def children(self):
        return (self.layer,)

    def forward(self, params, x, **taken):
        first, second = jnp.split(x, 2, -1)
        source = first if self.second else second
        added, residuals = self.layer.forward(params[0], source)
        nothing = jnp.zeros_like(added)
        both = (nothing, added) if self.second else (added, nothing)
        return x + jnp.concatenate(both, -1), (residuals,)

    def walk(self, visit, dout, params, residuals, *others):
        first, second = jnp.split(dout, 2, -1)
        error = second if self.second else first
        seen, dx = self.layer.walk(visit, error, params[0], residuals[0], *(t[0] for t in others))
        nothing = jnp.zeros_like(dx)
        return (seen,), dout + jnp.concatenate((dx, nothing) if self.second else (nothing, dx), -1)


# --- size: of programs and of what is kept --------------------------------------------------


def gradient(network):
    def run(params, x):
        out, residuals = network.forward(params, x)
        return network.backward(params, residuals, out)

    return run


def equations(jaxpr) -> int:
    return sum(
        1
        + sum(
            equations(inner)
            for inner in jax.tree.leaves(equation.params, is_leaf=is_jaxpr)
            if is_jaxpr(inner)
        )
        for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns
    )


def is_jaxpr(value) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


@pytest.mark.parametrize(
    "deep",
    [
        lambda depth: mbp.stack(BLOCK, depth),
        lambda depth: mbp.stack(mbp.checkpoint(BLOCK), depth),
        lambda depth: mbp.reversible(HALF, HALF, depth),
    ],
)
def test_the_program_does_not_grow_with_depth(deep):
    sizes = []
    for depth in (8, 64):
        network = deep(depth)
        params = jax.eval_shape(network.init, jax.random.key(0), X)
        sizes.append(equations(jax.make_jaxpr(gradient(network))(params, X)))
    assert sizes[0] == sizes[1] > 10


def kept(network) -> int:
    params = jax.eval_shape(network.init, jax.random.key(0), X)
    _, residuals = jax.eval_shape(network.forward, params, X)
    return sum(leaf.size for leaf in jax.tree.leaves(residuals))


def test_what_is_kept():
    wide = mbp.skip(mbp.sequential(mbp.Dense(50, mbp.relu), mbp.Dense(4)))
    assert kept(mbp.checkpoint(wide)) == X.size
    assert kept(mbp.stack(mbp.checkpoint(wide), 7)) == 7 * X.size
    # and once what relu and the layer above it both keep
    assert kept(mbp.stack(wide, 7)) == 7 * X.size + 7 * len(X) * 50
    plain = mbp.Dense(X.shape[-1], mbp.relu)
    assert kept(mbp.stack(plain, 7)) == 8 * X.size  # A[0] to A[7], each for two layers
    assert kept(mbp.reversible(HALF, HALF, 2)) == kept(mbp.reversible(HALF, HALF, 9)) == X.size
    assert kept(TWICE) == kept(TWICE.body)


def lowered(network) -> str:
    params = jax.eval_shape(network.init, jax.random.key(0), X)
    return jax.jit(gradient(network)).lower(params, X).as_text()


def test_checkpoint_computes_again_behind_a_barrier():
    body = mbp.sequential(DENSE, DENSE, DENSE)
    once, again = lowered(body), lowered(mbp.checkpoint(body))
    assert again.count("dot_general") == once.count("dot_general") + 3
    assert again.count("optimization_barrier") == 1


def test_the_barrier_holds_back_the_input_the_key_and_the_error():
    network = mbp.checkpoint(Drop())
    _, residuals = network.forward(((),), X, key=jax.random.key(0))
    jaxpr = jax.make_jaxpr(lambda *args: network.backward(((),), *args))(residuals, X)
    (barrier,) = [each for each in jaxpr.eqns if each.primitive.name == "optimization_barrier"]
    assert [str(each.aval.dtype) for each in barrier.invars] == ["float32", "key<fry>", "float32"]


# --- what is said where it goes wrong -------------------------------------------------------


def test_errors_deep_inside_name_every_level():
    network = mbp.sequential(mbp.tanh, mbp.stack(mbp.skip(mbp.Dense(4, inputs=4)), 2))
    params = network.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"in layer 2, stack\(.*in layer 1, skip\(.*in layer 1, D"):
        network.forward(params, X[:, :3])


def test_layers_of_this_kind_are_values():
    network = mbp.sequential(*NESTED[:3], TWICE)
    assert hash(network) == hash(mbp.sequential(*NESTED[:3], TWICE))
    assert repr(TWICE) == ("tied(sequential(Dense(4, relu), Dense(4, relu)), ((0,), (1,)))")
    assert repr(mbp.stack(mbp.checkpoint(HALF), 2)) == "stack(checkpoint(Dense(2, relu)), 2)"
    assert repr(mbp.reversible(HALF, mbp.tanh, 2)) == "reversible(Dense(2, relu), tanh, 2)"
    assert jax.tree.leaves(network) == []
