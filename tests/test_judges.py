"""The judges without tolerance: what they let pass, what they see, and what they say of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_bp as mbp
import verify
from verify import equivalence, judges, rules, specs
from verify.arithmetic.error_bound import Bounded, Doubtful, ErrorBound
from verify.arithmetic.multiprecision import Multiprecision
from verify.arithmetic.rational import Rational
from verify.bench import EQUIVALENT, Bench
from verify.interpreter import trace
from verify.judges import within_bounds
from verify.levels import bad_input, edges, lattice, low_precision, structure
from verify.networks import Case, draw_case, with_dtype
from verify.rules import Rule, generator

RNG = np.random.default_rng(5)
X = RNG.normal(size=(4, 3))


def rule(manual, autodiff, args=(X,), exact=False):
    return Rule("a rule", "test", manual, autodiff, lambda rng, kind: args, exact=exact)


# --- arithmetics ----------------------------------------------------------------------------

FUNCTIONS = [
    lambda x: jnp.exp(x) @ jnp.tanh(x).T,
    lambda x: jax.nn.softmax(x) * jnp.log1p(x**2),
    lambda x: (x / (1 + x**2)).sum(0) ** 3,
    lambda x: jax.nn.logsumexp(x, axis=0) - jnp.sqrt(jnp.abs(x)).mean(),
    lambda x: jax.nn.sigmoid(x) * jax.lax.erf(x) + jax.lax.erfc(x) * jnp.expm1(x),
    lambda x: jnp.where(x > 0, x, x**2).max(0) + jax.lax.rsqrt(1 + x**2).min(0),
    lambda x: jax.lax.scan(lambda c, v: (jnp.tanh(c + v), c), x[0], x)[1],
    lambda x: jax.lax.fori_loop(0, 4, lambda i, v: jnp.sin(v) + v / 3, x),
    lambda x: jnp.abs(x) ** 1.5 + jnp.log(2 + x**2) - jnp.clip(x, -0.5, 0.5),
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_bound_is_never_exceeded_and_is_tight(function):
    program = trace(function, X)
    exact = Multiprecision(50)
    truth = jax.tree.leaves(program.run((X,), exact))
    bounded = program.run((X,), ErrorBound())
    for each, right in zip([bounded], truth, strict=True):
        value, bound = each
        apart = np.abs(exact.lift(value) - right)
        assert (apart <= exact.lift(bound)).all()
        off = Bounded(value * (1 + 1e-11), bound)  # a bound that lets this pass bounds nothing
        assert not within_bounds({"out": Bounded(value, bound)}, {"out": off}).ok


def test_integers_are_exact_and_ties_are_ties():
    whole = RNG.integers(-3, 4, size=(5, 5)).astype(float)
    _, bound = trace(lambda a: (a @ a.T + a).sum(0) * 0.5, whole).run((whole,), ErrorBound())
    assert not bound.any()
    same = trace(lambda a: (a @ a) - (a @ a) > 0, whole).run((whole,), ErrorBound())
    assert isinstance(same, np.ndarray)
    doubt = trace(lambda a: jnp.exp(a) - jnp.exp(a) > 0, X).run((X,), ErrorBound())
    assert isinstance(doubt, Doubtful)
    assert doubt.doubt.all()


def test_what_a_doubtful_comparison_selects_is_bounded_over_both_cases():
    program = trace(lambda a: jnp.where(jnp.exp(a) > jnp.exp(a) + 0 * a, 1.0, 5.0), X)
    value, bound = program.run((X,), ErrorBound())
    assert (np.abs(1 - value) <= bound).all()
    assert (np.abs(5 - value) <= bound).all()


def test_fractions_have_no_rounding():
    program = trace(lambda a: (a / 3).sum() * 3 - a.sum(), X)
    assert program.run((X,), Rational()) == 0
    with pytest.raises(NotImplementedError, match="arithmetic 'rational' doesn't know .* 'exp'"):
        trace(jnp.exp, X).run((X,), Rational())


def test_constants_that_stand_for_irrational_numbers_are_those_numbers():
    exact = Multiprecision(40)
    root = trace(lambda a: a * 1.4142135623730951, np.ones(())).run((np.ones(()),), exact)
    assert root == exact.mp.sqrt(2)
    other = trace(lambda a: a * 1.41421356237309, np.ones(())).run((np.ones(()),), exact)
    assert other == exact.mp.mpf(1.41421356237309)


# --- judges ---------------------------------------------------------------------------------


def softmax_vjp(x):
    p = jax.nn.softmax(x)
    return {"dx": p * (x - (p * x).sum(-1, keepdims=True))}


def softmax_by_autodiff(x):
    return {"dx": jax.vjp(jax.nn.softmax, x)[1](x)[0]}


@pytest.mark.parametrize("judge", [judges.bounds, judges.digits])
def test_a_right_rule_passes_and_every_wrong_one_fails(judge):
    assert judge(rule(softmax_vjp, softmax_by_autodiff), (X,)).ok
    for factor in (1 + 1e-5, 1 + 1e-9, 1 + 1e-12, -1, 0):
        wrong = rule(lambda x, f=factor: {"dx": f * softmax_vjp(x)["dx"]}, softmax_by_autodiff)
        verdict = judge(wrong, (X,))
        assert not verdict.ok
        assert verdict.first_wrong == "dx"
    dropped = rule(lambda x: {"dx": jax.nn.softmax(x) * x}, softmax_by_autodiff)
    assert not judge(dropped, (X,)).ok


def test_fractions_see_a_tie_that_normal_numbers_never_meet():
    relu = rules.of_layer(mbp.relu, (4, 3))

    def passes_at_zero(params, x, dout):
        return {"out": jnp.maximum(x, 0), "dx": jnp.where(x >= 0, dout, 0)}

    wrong = Rule("relu", "test", passes_at_zero, relu.autodiff, relu.draw, exact=True)
    assert judges.bounds(wrong, relu.draw(generator(0), "normal")).ok
    assert not judges.rational(wrong, relu.draw(generator(0), "lattice")).ok
    assert not judges.bounds(wrong, relu.draw(generator(0), "lattice")).ok


def test_a_missing_extra_misshapen_or_nan_result_is_wrong():
    right = {"dx": Bounded(X, 0 * X)}
    assert within_bounds(right, right).ok
    assert not within_bounds({}, right).ok
    assert not within_bounds(right | {"dy": right["dx"]}, right).ok
    assert not within_bounds({"dx": Bounded(X.T, 0 * X.T)}, right).ok
    assert not within_bounds({"dx": Bounded(X * np.nan, 0 * X)}, right).ok
    unbounded = {"dx": Bounded(X, X * np.inf)}
    assert not within_bounds(unbounded, right).ok


def test_the_order_of_computation_names_the_first_wrong_result():
    off = Bounded(X + 1, 0 * X)
    right = {name: Bounded(X, 0 * X) for name in ("Z1", "dZ1", "dW1", "dZ2", "J")}
    wrong = right | {"dW1": off, "dZ1": off, "dZ2": off}
    assert within_bounds(wrong, right).first_wrong == "dZ2"


def test_structure_sees_what_is_not_linear_in_the_error():
    base = rules.of_layer(mbp.tanh, (4, 3))

    def bent(params, x, dout):
        results = base.manual(params, x, dout)
        return results | {"dx": results["dx"] + 1e-9 * dout**2}

    assert structure.faults(base) == []
    wrong = Rule("bent", "test", bent, base.autodiff, base.draw, cotangent=2)
    assert any("twice the cotangent" in fault for fault in structure.faults(wrong))
    shifted = Rule(
        "shifted",
        "test",
        lambda p, x, d: base.manual(p, x, d) | {"dx": base.manual(p, x, d)["dx"] + 1},
        base.autodiff,
        base.draw,
        cotangent=2,
    )
    assert any("zero cotangent" in fault for fault in structure.faults(shifted))


@pytest.mark.parametrize("layer", [mbp.Dense(3, mbp.relu), mbp.Dense(3, mbp.tanh)])  # exact, not
def test_structure_sees_batches_that_do_not_add_up_and_an_order_that_matters(layer):
    base = rules.of_layer(layer, (4, 2))

    def with_dW(change):
        def manual(params, x, dout):
            results = base.manual(params, x, dout)
            return results | {"dW": change(results["dW"], dout)}

        return dataclasses.replace(base, manual=manual, _traced={})

    assert structure.faults(base) == []
    averaged = with_dW(lambda dW, dout: dW / dout.shape[0])
    found = structure.faults(averaged)
    assert "the halves of a batch don't add up to the whole: dW" in found
    assert not any("order" in fault for fault in found)
    # An example's place in the batch, 1e-6 of it, and just one that is linear in the error.
    placed = with_dW(lambda dW, dout: dW + 1e-6 * (jnp.arange(4)[: len(dout), None] * dout).sum())
    assert "the order of examples matters: dW" in structure.faults(placed)
    shifted = dataclasses.replace(
        base, manual=lambda p, x, d: base.manual(p, x, jnp.roll(d, 1, 0)), _traced={}
    )
    assert any("the order of examples" in fault for fault in structure.faults(shifted))
    # What shares statistics of its batch isn't asked to add up.
    assert not any(
        "add up" in f for f in structure.faults(dataclasses.replace(averaged, mixes=True))
    )


def test_the_lattice_names_the_sample_whose_bits_differ():
    right = [rules.of_layer(mbp.Flatten(), (2, 2, 3)), rules.of_layer(mbp.Dense(2), (4, 3))]

    def off(*args):
        return {name: each * (1 + 2.0**-22) for name, each in right[1].manual(*args).items()}

    wrong = [right[0], dataclasses.replace(right[1], manual=off, _traced={})]
    assert not lattice.differing(lattice.together(right), 3, seed=0)[0]
    found = lattice.differing(lattice.together(wrong), 3, seed=0)[0]
    assert {name.split()[0] for name in found} == {"1"}


def test_every_rule_lowers_for_every_platform():
    each = rules.one_of_each(rules.of_specs())
    assert len(each) > 30
    assert structure.lowers(each) == []


def test_the_lattice_sees_a_wrong_bit_and_passes_right_networks():
    (right, *_) = lattice.networks(1, seed=1)
    assert not lattice.differing(right, 5, seed=0)[0]

    def off(*args):
        return {name: each * (1 + 2.0**-22) for name, each in right.manual(*args).items()}

    wrong = Rule("off", "test", off, right.autodiff, right.draw)
    assert lattice.differing(wrong, 5, seed=0)[0]


def test_low_precision_sees_a_sum_in_bfloat16():
    base = rules.of_loss(mbp.SquaredError(), (64, 8))
    good, bad = low_precision.ratios(
        [
            base,
            Rule(
                "rounded",
                "test",
                lambda a, y, w: {
                    name: (each.astype("bfloat16")).astype(each.dtype)
                    for name, each in base.manual(a, y, w).items()
                },
                base.autodiff,
                base.draw,
            ),
        ],
        jnp.float32,
    )
    assert good.ratio <= 2 < bad.ratio


# --- mutants --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "subject",
    [
        rules.of_layer(mbp.Dense(3, mbp.tanh), (3, 3)),
        rules.of_layer(mbp.relu, (3, 2)),
        rules.of_loss(mbp.SoftmaxCrossEntropy(), (3, 4)),
        rules.of_loss(mbp.MulticlassHinge(), (3, 4)),
        rules.of_case(
            Case(mbp.mlp([2, 3, 2]), mbp.SquaredError(), (4, 2), seed=(3,)),
            every_intermediate=False,
        ),
    ],
    ids=str,
)
def test_mutants_are_killed_or_the_same_function_for_a_listed_reason(subject):
    bench = Bench(subject)
    assert not any(bench.false_alarms())
    every = bench.mutants()
    assert len(every) > 30
    assert {"zeroed", "scaled by 1.00001"} <= {mutant.kind for mutant in every}
    outcomes = [bench.judge(mutant) for mutant in every[:: max(len(every) // 60, 1)]]
    for outcome in outcomes:
        assert outcome.killed or outcome.equivalent in EQUIVALENT, str(outcome.mutant)
    assert sum(outcome.killed for outcome in outcomes) > len(outcomes) / 2


def test_a_judge_that_is_blind_is_found_out():
    """With bounds as wide as a careless tolerance, small mutants survive and are reported."""
    bench = Bench(rules.of_layer(mbp.tanh, (3, 2)))
    small = [mutant for mutant in bench.mutants() if mutant.kind == "scaled by 1.00001"]
    bench._agree = lambda results, draw: True
    outcome = bench.judge(small[0])
    assert not outcome.killed
    assert "blind" in outcome.why


def test_an_equivalent_mutant_of_no_listed_class_is_unlisted(monkeypatch):
    bench = Bench(rules.of_loss(mbp.SoftmaxCrossEntropy(), (3, 4)))
    shifts = [mutant for mutant in bench.mutants() if mutant.function == "_finite_max"]
    assert shifts
    monkeypatch.setattr(equivalence, "EQUIVALENT", {})
    outcomes = [bench.judge(mutant) for mutant in shifts[:5]]
    assert "unlisted" in {outcome.equivalent for outcome in outcomes}


# --- tables ---------------------------------------------------------------------------------


def test_the_edge_table_is_long_enough_and_shows_autodiff_wrong():
    rows = edges.table()
    assert len(rows) >= 25
    wrong = [edge for _, edge in rows if edges.shown(edge.stated) != edges.shown(edge.recorded)]
    assert len(wrong) >= 25


def test_an_edge_that_is_not_as_stated_is_seen():
    _, edge = edges.table()[0]
    from dataclasses import replace

    assert edges.judge(edge)[0]
    assert not edges.judge(replace(edge, stated=123.0))[0]


def test_bad_input_that_raises_nothing_or_something_else_is_seen():
    from verify.specification import BadInput

    assert bad_input.fault(BadInput("nothing", lambda: None, ValueError, ())) == "raised nothing"
    other = BadInput("other", lambda: 1 / 0, ValueError, ())
    assert "raised ZeroDivisionError, expected ValueError" in bad_input.fault(other)
    text = BadInput("text", lambda: int("x"), ValueError, ("what to do",))
    assert "lacks ['what to do']" in bad_input.fault(text)


def test_every_spec_has_samples_and_every_omission_a_reason():
    for spec in specs.layers():
        assert len(spec.samples) >= 2, spec.layer
    for spec in (*specs.layers(), *specs.losses()):
        assert all(len(why) > 20 for why in spec.omitted.values())


# --- your own rules -------------------------------------------------------------------------

W, B = RNG.normal(size=(3, 3)), RNG.normal(size=3)


def forward(params, x):
    W, b = params[0]
    a = jnp.tanh(x @ W.T + b)
    return a, (x, a)


def backward(
    dx=lambda dz, W: dz @ W,
    slope=lambda a: 1 - a**2,
    dW=lambda dz, x: dz.T @ x,
    db=lambda dz: dz.sum(0),
):
    def run(params, residuals, dout):
        (W, _), (x, a) = params[0], residuals
        dz = dout * slope(a)
        return [(dW(dz, x), db(dz))], dx(dz, W)

    return run


def test_a_right_backward_pass_is_ok():
    result = verify.check(forward, backward(), [(W, B)], X)
    assert result
    assert "of the bound on" in str(result)


@pytest.mark.parametrize(
    ("wrong", "leaf", "cause"),
    [
        (backward(dx=lambda dz, W: dz @ W.T), "dx", "a transpose is missing in a product"),
        (backward(dW=lambda dz, x: x.T @ dz), "dparams.0.0", "it is the transpose"),
        (backward(slope=lambda a: a**2 - 1), "dparams", "the sign is wrong"),
        (backward(db=lambda dz: dz.mean(0)), "dparams.0.1", "1/4 of the right one"),
        (backward(db=lambda dz: dz), "dparams.0.1", "a sum over axis 0 is missing"),
        (backward(dx=lambda dz, W: 0 * dz), "dx", "it is zero"),
        (backward(dx=lambda dz, W: 2 * dz @ W), "dx", "2 times the right one"),
        (
            backward(dx=lambda dz, W: jnp.where(jnp.arange(4)[:, None] == 1, 0.5, dz @ W)),
            "dx",
            "rows 1 of 4 are wrong",
        ),
        (backward(dx=lambda dz, W: dz @ W - 0.25), "dx", "constant along axis"),
    ],
)
def test_a_wrong_backward_pass_is_named_with_its_likely_cause(wrong, leaf, cause):
    result = verify.check(forward, wrong, [(W, B)], X)
    assert not result
    assert result.first_wrong.startswith(leaf)
    assert cause in result.cause
    assert "verify.check(forward, backward, params, x, seed=0)" in str(result)


def test_integers_have_no_gradient_and_are_left_alone():
    def lookup(table, tokens):
        return jax.nn.one_hot(tokens, 3) @ table, tokens

    def back(table, tokens, dout):
        return jax.nn.one_hot(tokens, 3).T @ dout, tokens

    assert verify.check(lookup, back, RNG.normal(size=(3, 2)), np.array([0, 2, 0]))


def test_a_primitive_that_no_arithmetic_knows_is_judged_in_float32_and_said():
    def shifted(shift, x):
        return jax.lax.digamma(x + shift), x

    def back(order):
        def run(shift, x, dout):
            dx = dout * jax.lax.polygamma(jnp.full_like(x, order), x + shift)
            return dx.sum(0), dx

        return run

    shift, x = RNG.uniform(1, 3, size=3), RNG.uniform(1, 3, size=(4, 3))
    right = verify.check(shifted, back(1.0), shift, x)
    assert right
    assert "'digamma'" in str(right)
    assert not verify.check(shifted, back(2.0), shift, x)


def test_check_grads_names_a_missing_mean_and_a_wrong_tree():
    def loss(params, x):
        return jnp.mean(jnp.sum((x @ params["w"]) ** 2, -1))

    def grads(scale):
        return lambda params, x: {"w": scale * 2 * x.T @ (x @ params["w"])}

    params = {"w": RNG.normal(size=(3, 2))}
    assert verify.check_grads(grads(1 / 4), loss, params, X)
    result = verify.check_grads(grads(1), loss, params, X)
    assert result.first_wrong == "dparams.w"
    assert "is 1/4 missing?" in result.cause
    with pytest.raises(TypeError, match="expected gradients nested like params"):
        verify.check_grads(lambda p, x: [p["w"]], loss, params, X)
    with pytest.raises(TypeError, match="forward returned .*, expected the pair"):
        verify.check(lambda p, x: x, backward(), [(W, B)], X)


def test_networks_come_in_every_dtype_and_a_wrong_dtype_is_seen():
    drawn = [with_dtype(draw_case(0, number)) for number in range(200)]
    assert {case.dtype for case in drawn} == {"float64", "float32", "bfloat16", "float16"}
    case = next(case for case in drawn if case.dtype == "bfloat16")
    assert str(case).endswith(", bfloat16")
    rule = rules.of_case(case, every_intermediate=False)
    args = tuple(case.problem())
    assert structure.differing_dtypes(rule, args) == ""
    assert judges.bounds(rule, args).ok

    def wide(*args):
        return {name: each.astype(jnp.float32) for name, each in rule.manual(*args).items()}

    wrong = dataclasses.replace(rule, manual=wide, _traced={})
    assert "'float32') against" in structure.differing_dtypes(wrong, args)

    def off(*args):
        return {name: each * (1 + 2.0**-7) for name, each in rule.manual(*args).items()}

    assert not judges.bounds(dataclasses.replace(rule, manual=off, _traced={}), args).ok


def test_digits_judge_what_is_zero_in_truth():
    """The gradient of Σ (x - mean): 0, or a rounding at either precision."""

    def of_centred(x, dout):
        return jax.vjp(lambda x: (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1), x)[1](dout)[0]

    for seed in range(12):
        x = generator(seed).normal(size=(7, 3)) + 1
        zeros = lambda x, dout: jnp.zeros_like(x)  # noqa: E731
        assert judges.same(zeros, of_centred, x, np.ones_like(x), judge=judges.digits).ok
        small = lambda x, dout: jnp.full_like(x, 1e-12)  # noqa: E731
        assert not judges.same(small, of_centred, x, np.ones_like(x), judge=judges.digits).ok
