"""Why a mutant computes the same function: one that does, for each reason, and one that doesn't."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_bp as mbp
from verify import rules
from verify.arithmetic.rational import Rational
from verify.bench import Bench
from verify.interpreter import trace
from verify.rules import Rule
from verify.vanishing import Recording, differs


def outcomes(function, primitive, kind, *, draw=rules.numbers, exact=True, shape=(4, 3)):
    """What becomes of the mutants of this kind of one function of x."""

    def results(x):
        return {"y": function(x)}

    rule = Rule(
        "a rule", "test", results, results, lambda rng, how: (draw(rng, how, shape),), exact=exact
    )
    bench = Bench(rule)
    found = [
        bench.judge(mutant)
        for mutant in bench.mutants()
        if (mutant.primitive, mutant.kind) == (primitive, kind)
    ]
    assert found
    return {"killed" if each.killed else each.equivalent for each in found}


def narrow(rng, kind, shape):
    """Numbers between -½ and ½: draws that reach no threshold."""
    return np.clip(rules.numbers(rng, kind, shape), -0.5, 0.5)


def zeros(rng, kind, shape):
    return np.zeros(shape)


def kink(x):
    return jnp.where(x > 0, 2 * x, x)


def normalised(x):
    return x / x.sum()


MEMBERS = {
    "constant": (lambda x: jnp.where(x > 0, x, 0), "broadcast_in_dim", "scaled by 2"),
    "neutral operand": (lambda x: x * 1.0 + 1, "mul", "only operand 0"),
    "not read": (lambda x: jnp.stack([2 * x, x])[1], "mul", "scaled by 2"),
    "agreement at the kink": (lambda x: jnp.where(x > 0, 2 * x, x), "gt", "made ge"),
    "two forms of one function": (
        lambda x: jnp.where(x > 0.3, x * x - 1, (x - 1) * (x + 1)),
        "gt",
        "made ge",
    ),
    "even function": (lambda x: jnp.square(3 * x), "mul", "scaled by -1"),
    "sign test": (lambda x: jnp.where(3 * x > 0, x + 1, 5), "mul", "scaled by 1.00001"),
    "cancellation": (lambda x: normalised(jnp.exp(x)), "exp", "scaled by 2"),
    "left out": (
        lambda x: jnp.where(x > 0, x + 1, jnp.minimum(x, 0)),
        "min",
        "only operand 0",
    ),
    "guard": (lambda x: jnp.where(x < jnp.inf, x, 0), "lt", "made le"),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_a_mutant_that_computes_the_same_function_is_of_its_class(name):
    function, primitive, kind = MEMBERS[name]
    exact = name != "cancellation"
    assert outcomes(function, primitive, kind, exact=exact) == {name}


EVEN = {
    "a length": lambda y: jnp.einsum("mi,mi->m", y, y),
    "products of vectors": lambda y: y @ y.T,
    "vectors, some of whose features turn": lambda y: (
        jnp.concatenate([y[:, :1], 1 - jnp.abs(y)], 1) @ jnp.concatenate([y[:, :1], y * y], 1).T
    ),
    "a comparison with 0": lambda y: jnp.where(y == 0, 1.0, 2.0),
}


@pytest.mark.parametrize("name", EVEN)
def test_signs_that_change_together_are_taken_away(name):
    found = outcomes(lambda x: EVEN[name](3.5 * x), "mul", "scaled by -1")
    assert "even function" in found and "unlisted" not in found


def test_a_sign_that_only_zeros_took_away_is_unlisted():
    def product(x):
        return (3.5 * x + 1) @ (x * x).T

    assert outcomes(product, "add", "scaled by -1", draw=zeros) == {"unlisted"}
    assert outcomes(product, "add", "scaled by -1") == {"killed"}


def test_a_sum_over_one_element_is_its_maximum():
    found = outcomes(lambda x: x.sum(1), "reduce_sum", "made a maximum", shape=(4, 1))
    assert found == {"one term"}


WRONG = {
    # A threshold or a bound that no draw comes near is none of the reasons.
    "a kink that isn't met": (lambda x: jnp.where(x > 2, 2 * x, x), "gt", "made ge"),
    "a case that is never selected": (lambda x: jnp.where(x > 2, 2 * x, x), "mul", "scaled by 2"),
    "a bound that isn't met": (lambda x: jnp.minimum(x, 2), "min", "only operand 0"),
    "a constant that isn't used": (
        lambda x: jnp.where(x > 2, 5, x),
        "broadcast_in_dim",
        "scaled by 2",
    ),
    "a threshold off, that isn't met": (lambda x: jnp.where(3 * x > 7, x, 1), "mul", "scaled by 2"),
    "a sign that is always the same": (
        lambda x: jnp.where(jnp.abs(x) < 3, x, 0),
        "abs",
        "scaled by 1.00001",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_draws_never_reach_is_unlisted_and_with_wider_draws_killed(name):
    assert outcomes(*WRONG[name], draw=narrow) == {"unlisted"}
    assert outcomes(*WRONG[name]) == {"killed"}


def test_what_is_the_same_for_a_zero_alone_is_unlisted():
    for primitive, kind in (("reduce_sum", "made a maximum"), ("mul", "scaled by 2")):
        found = outcomes(lambda x: (x * x[::-1]).sum(0), primitive, kind, draw=zeros)
        assert found == {"unlisted"}


def test_of_a_product_both_operands_must_change_their_sign():
    def of_itself(x):
        turned = 3 * x
        return turned @ turned.T

    assert outcomes(of_itself, "mul", "scaled by -1") == {"even function"}
    assert outcomes(lambda x: (3 * x) @ x.T, "mul", "scaled by -1") == {"killed"}
    assert outcomes(of_itself, "mul", "scaled by -1", draw=zeros) == {"unlisted"}


def test_an_odd_function_takes_no_sign_away_and_other_factors_do_not_cancel():
    assert outcomes(lambda x: (3 * x) ** 3, "mul", "scaled by -1") == {"killed"}
    assert outcomes(lambda x: (3 * x) / (1 + x * x), "mul", "scaled by 2") == {"killed"}
    assert outcomes(lambda x: jnp.where(2 * x > 1, x, 5), "mul", "scaled by 1.00001") == {"killed"}


def test_a_number_is_not_infinity_however_many_digits_pass_for_rounding():
    numbers = np.array([1, np.inf, np.nan, np.inf], object)
    others = np.array([1 + 1e-50, 3, np.nan, np.inf], object)
    assert list(differs(numbers, others, 1e-40)) == [False, True, False, False]


def of_kind(rule, primitive, kind, function=""):
    bench = Bench(rule)
    found = [
        bench.judge(mutant)
        for mutant in bench.mutants()
        if (mutant.primitive, mutant.kind) == (primitive, kind) and function in mutant.function
    ]
    assert found
    return {"killed" if each.killed else each.equivalent for each in found}


def test_terms_that_are_summed_again_may_be_summed_in_any_order():
    found = outcomes(lambda x: x.sum(1).sum(), "reduce_sum", "over axis 0", shape=(3, 3))
    assert found == {"summed again"}

    def weighted(x):
        return (jnp.arange(3.0) * x.sum(1)).sum()

    assert outcomes(weighted, "reduce_sum", "over axis 0", shape=(3, 3)) == {"killed"}


def test_random_bits_hardly_ever_equal_a_threshold_and_often_a_coarse_one():
    dropout = rules.of_layer(mbp.Dropout(0.5), (5, 4))
    assert of_kind(dropout, "ge", "made gt") == {"random bits"}
    assert of_kind(dropout, "ge", "made le") == {"killed"}

    def coarse(seed, x):
        bits = jax.random.bits(jax.random.key(seed), x.shape, jnp.uint8) // 16
        return {"y": jnp.where(bits >= 8, x, 0)}

    def draw(rng, kind):
        return np.uint32(rng.integers(2**32)), rules.numbers(rng, kind, (4, 3))

    assert of_kind(Rule("coarse", "test", coarse, coarse, draw), "ge", "made gt") == {"killed"}


def test_the_sign_of_an_infinity_that_is_divided_by_and_of_one_that_is_not():
    cosine = rules.of_loss(mbp.CosineSimilarity(), (5, 4))  # no zero vector among its draws
    found = of_kind(cosine, "broadcast_in_dim", "scaled by -1", "_length")
    assert found == {"sign of infinity", "killed"}

    def shown(x):
        return jnp.where(x == 0.7, jnp.inf, x)

    found = outcomes(shown, "broadcast_in_dim", "scaled by -1", draw=narrow)
    assert "sign of infinity" not in found


def test_a_change_in_a_later_step_is_compared_with_that_step():
    """Calls in a scan that needn't run again are counted as passed."""

    def run(x):
        square = jax.jit(lambda v: v * v)
        return {"out": jax.lax.scan(lambda c, s: (c + square(s + 1), None), 0.0, x)[0]}

    args = (np.array([1.0, 2.0]),)
    recording = Recording(trace(run, *args), args, Rational(), 0)
    (place,) = {
        place
        for (place, _), step in recording.steps.items()
        if len(place) == 2 and np.array_equal(step.outputs[0], 2)
    }
    steps = iter((1, -1))

    def change(equation, inputs, run):
        return [next(steps) * each for each in run(*inputs)]

    _, vanishings = recording.follow({place: change})
    (event,) = [each for each in vanishings if len(each.place) == 3]
    assert [*map(int, event.before)] == [3, 3] and [*map(int, event.after)] == [-3, -3]
