"""The judges themselves: they run, they fail when they must, they say what to do."""

import ast
import json
import pathlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import find, given, settings

import manual_bp as mbp
from verify import __main__ as command
from verify import (
    architectures,
    interpreter,
    judges,
    networks,
    specs,
    strategies,
    training,
    wrong_formulas,
)
from verify.arithmetic.numpy import Float64
from verify.arithmetic.rounding import Bounded
from verify.forward import judge_layer, judge_loss
from verify.report import Report
from verify.rules import flat


def run(*arguments):
    return command.main(["--jobs", "1", *map(str, arguments)])


def test_the_command_holds_and_writes_json(tmp_path, capsys):
    path = tmp_path / "report.json"
    only = ["--only", "networks", "--only", "differences", "--only", "wrong formulas"]
    assert run("--trials", 8, "--quick", "--json", path, *only) == 0
    report = json.loads(path.read_text())
    assert report["held"]
    assert {"L4 bounds", "differences", "wrong formulas"} <= {
        level["name"] for level in report["levels"]
    }
    assert all(sum(level["counts"].values()) > 0 for level in report["levels"])
    assert not any(level["failures"] for level in report["levels"])
    assert "all held" in capsys.readouterr().out


def test_a_failure_is_reproducible_shrunk_and_named(capsys):
    with wrong_formulas.put_in("transpose missing in dW"):
        assert run("--trials", 3, "--only", "networks") == 1
    out = capsys.readouterr().out
    assert "FAILED: python -m verify --only networks --seed 0 --trial" in out
    assert "smallest that still fails: sequential(Dense(" in out
    assert "first wrong is dW" in out
    number = out.split("--trial ")[1].split("\n")[0]
    with wrong_formulas.put_in("transpose missing in dW"):
        assert run("--only", "networks", "--trial", number) == 1
    assert run("--only", "networks", "--trial", number) == 0


def test_the_budget_ends_a_run_and_the_report_says_so(capsys):
    assert run("--only", "networks", "--trials", 500, "--budget", 1) == 0
    assert "the budget ended it before 500" in capsys.readouterr().out


def test_two_processes_find_what_one_finds():
    reports = [Report(), Report()]
    for jobs, report in enumerate(reports, start=1):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            beside = pool if jobs > 1 else None
            architectures.Networks(3, list(range(24)), beside).finish(report, float("inf"))
    one, two = ({n: level.counts for n, level in report.levels.items()} for report in reports)
    assert one == two
    assert one["L4 bounds"]["networks"] > 20


@pytest.mark.parametrize(("factor", "holds"), [(1, True), (1.001, False)])
def test_training_on_digits_sees_a_gradient_that_is_off(monkeypatch, factor, holds):
    right = mbp.manual_value_and_grads

    def off(*args, **settings):
        loss, grads = right(*args, **settings)
        return loss, tuple(layer._replace(W=factor * layer.W) for layer in grads)

    monkeypatch.setattr(mbp, "manual_value_and_grads", off)
    with jax.enable_x64(True):
        assert (training.train(training.MLP, 20, np.float64).curves.ratio <= 2) == holds


def test_nothing_judged_is_no_success():
    assert not Report().held


def test_an_unknown_stage_is_named(capsys):
    with pytest.raises(SystemExit):
        run("--only", "nonsense")
    assert "--only 'nonsense' is none of no autodiff, structure" in capsys.readouterr().err


def test_the_smallest_failing_network_is_small():
    case = networks.draw_case(0, 5)
    wide = networks.smallest(case, lambda each: True)
    assert networks.describe_size(wide.network) == 1
    assert wide.x_shape == (1, 1)


def test_cases_are_the_same_whoever_draws_them_and_reach_the_ends():
    again = [networks.draw_case(4, number) for number in range(600)]
    assert again[:100] == [networks.draw_case(4, number) for number in range(100)]
    depths = {networks.describe_size(case.network) for case in again}
    assert {1, 12} <= depths
    batches = {case.x_shape[0] for case in again}
    assert {1, 64} <= batches
    assert max(case.x_shape[-1] for case in again) > 80
    assert {type(case.loss) for case in again} == {spec.loss for spec in specs.losses()}
    kinds = set()
    for case in again:
        both = (case.network, case.network.inference())  # some are judged as the latter
        for used in both:
            for layer in [*getattr(used, "layers", ()), *networks.leaves(used)]:
                kinds |= {type(layer), type(getattr(layer, "activation", layer))}
    assert {spec.layer for spec in specs.layers()} - {mbp.Dense} <= kinds | {type(again[0].network)}


def test_problems_are_not_special():
    for number in range(40):
        problem = networks.draw_case(1, number).problem()
        for leaf in jax.tree.leaves(problem.params):
            assert (leaf != 0).all()
            assert (leaf != 1).all()
        assert problem.x.dtype == np.float64 or problem.x.dtype.kind == "i"  # of tokens


# --- the interpreter ------------------------------------------------------------------------


def evaluated(function, *args):
    return interpreter.trace(function, *args).run(args, Float64())


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.where(x > 0, x, -x).max(),
        lambda x: jax.lax.fori_loop(0, 5, lambda i, v: v * 0.9 + i, x),
        lambda x: jax.lax.while_loop(lambda v: v.sum() < 10, lambda v: v + 1, x),
        lambda x: jax.lax.cond(x.sum() > 100, jnp.sin, lambda v: 2 * v, x),
        lambda x: jax.lax.switch(1, [lambda v: v, lambda v: v + 3], x),
        lambda x: jax.lax.scan(lambda c, v: (c + v, c * v), x[0], x),
        lambda x: jax.lax.scan(lambda c, v: (c + v, c * v), x[0], x, reverse=True),
        lambda x: jax.jit(jax.nn.relu)(x) + jax.nn.silu(x),
        lambda x: jax.checkpoint(jnp.tanh)(x),
        lambda x: jnp.pad(x, ((1, 2), (0, 1))) @ jnp.ones((3, 2)),
        lambda x: jnp.einsum("ij,kj->ik", x, x),
        lambda x: jnp.concatenate([x, x[::-1]], axis=1)[:, 1:3],
        lambda x: jax.lax.dynamic_slice(x, (1, 0), (2, 1)),
        lambda x: jax.lax.dynamic_update_slice(x, 0 * x[:1], (2, 0)),
        lambda x: jnp.split(x, 2, axis=1),
        lambda x: jax.lax.pad(x, 0.0, ((-1, 1, 2), (0, 0, 0))),
        lambda x: jax.nn.log_softmax(x) ** 3,
        lambda x: jnp.sign(x) * jnp.abs(x) ** 0.5,
        jax.grad(lambda x: jax.nn.logsumexp(x) + jax.nn.gelu(x, approximate=False).sum()),
    ],
)
def test_the_interpreter_computes_what_jax_does(function):
    """Within the error bound of the program, which holds for whatever order XLA sums in."""
    x = np.random.default_rng(0).normal(size=(3, 2))
    program = interpreter.trace(lambda x: flat("out", function(x)), x)
    bounded, ours = (program.run((x,), each) for each in (judges.BOUNDS, Float64()))
    with jax.enable_x64(True):
        theirs = flat("out", function(jnp.asarray(x)))
    ours, theirs = (
        {name: Bounded(np.asarray(each), bounded[name].bound) for name, each in values.items()}
        for values in (ours, theirs)
    )
    verdict = judges.within_bounds(ours, theirs)
    assert verdict.ok, verdict


def test_an_unknown_primitive_is_named_with_the_arithmetic():
    with pytest.raises(NotImplementedError, match="arithmetic 'float64' doesn't know .* 'lgamma'"):
        evaluated(jax.lax.lgamma, np.ones(2))


def test_a_hook_sees_every_equation_inner_ones_too():
    seen = []

    def hook(place, equation, inputs, run):
        seen.append((place, equation.primitive.name))
        return run(*inputs)

    program = interpreter.trace(lambda x: jax.jit(lambda v: jnp.tanh(v) * 2)(x) + 1, np.ones(2))
    program.run((np.ones(2),), Float64(), hook)
    names = [name for _, name in seen]
    assert names[-1] == "add"
    assert {"tanh", "mul"} <= set(names)
    assert len({place for place, _ in seen}) == len(seen)


def test_a_hook_may_change_what_an_equation_gives():
    def zero(place, equation, inputs, run):
        return (
            [0 * each for each in run(*inputs)]
            if equation.primitive.name == "tanh"
            else run(*inputs)
        )

    program = interpreter.trace(lambda x: jnp.tanh(x) + 1, np.ones(2))
    np.testing.assert_array_equal(program.run((np.ones(2),), Float64(), zero), [1, 1])


# --- specs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", specs.layers(), ids=lambda spec: spec.layer.__name__)
def test_forward_equals_its_naive_form(spec):
    for layer, shape in spec.samples:
        verdict = judge_layer(layer, shape)
        assert verdict.ok, (layer, verdict)


@pytest.mark.parametrize("spec", specs.losses(), ids=lambda spec: spec.loss.__name__)
def test_losses_equal_their_naive_form(spec):
    for loss in spec.samples:
        for shape in spec.shapes:
            verdict = judge_loss(loss, shape)
            assert verdict.ok, (loss, verdict)


@given(strategies.cases())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_architecture_holds(case):
    wrong = architectures.first_wrong(architectures.judge_case(case, every_intermediate=False))
    assert wrong is None, architectures.describe(wrong)


def test_hypothesis_shrinks_to_a_small_architecture():
    found = find(
        strategies.cases(),
        lambda case: networks.describe_size(case.network) >= 2,
        settings=settings(max_examples=200, deadline=None, derandomize=True, database=None),
    )
    assert networks.describe_size(found.network) == 2
    assert found.x_shape[0] <= 2


# --- no tolerance ---------------------------------------------------------------------------

EXACT = {"rtol", "atol", "decimal", "decimals", "approx", "maxulp", "nulp", "tol", "tolerance"}
EXACT |= {"spacing", "nextafter"}
BEGINNINGS = (
    "assert_almost",
    "assert_approx",
    "assert_array_almost",
    "assert_array_max",
    "isclose",
)
TINY = 1e-4
"""What is compared with a number below this is compared with a tolerance."""

DERIVED = {
    ("verify/arithmetic/rounding.py", "finfo().eps"): "the unit roundoff u of a dtype",
    ("verify/curves.py", "nextafter"): "moves parameters by a rounding: the yardstick itself",
    ("verify/diagnosis.py", "comparison with a number"): "finds words for what is judged wrong",
    ("verify/scale/collectives.py", "rounded to digits"): "KiB of a program, for a table",
    ("verify/scale/__main__.py", "rounded to digits"): "seconds of a file for a table",
    ("verify/text/__main__.py", "rounded to digits"): "losses and seconds of a file for pictures",
    ("tests/test_text.py", "rounded to digits"): "the same, made again",
    ("tests/test_transport.py", "finfo().eps"): "the unit roundoff, in bounds derived beside it",
}
"""Where something of the kind isn't a tolerance, and why."""


def tolerances(source):
    """(line, what) wherever a source holds something against a tolerance.

    By the names that people use for it, and by comparisons of a difference with a number.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        for field in ("arg", "attr", "id", "name"):
            name = getattr(node, field, None)
            if isinstance(name, str) and (
                name in EXACT
                or "allclose" in name
                or "all_close" in name
                or name.startswith(BEGINNINGS)
            ):
                found.append((line, name))
        if isinstance(node, ast.Attribute) and node.attr in ("eps", "resolution"):
            found += [(line, "finfo().eps")] if "finfo" in ast.unparse(node.value) else []
        if isinstance(node, ast.Call) and name_of(node.func) in ("round", "around"):
            found += [(line, "rounded to digits")] if len(node.args) > 1 else []
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            for left, sign, right in zip(sides, node.ops, sides[1:], strict=False):
                greater, less = ((ast.Gt, ast.GtE), (ast.Lt, ast.LtE))
                small, large = (right, left) if isinstance(sign, greater) else (left, right)
                if isinstance(sign, greater + less) and is_tolerance(small, large):
                    found.append((line, "comparison with a number"))
    return found


def is_tolerance(small, large):
    """Whether small < large holds a difference, or anything at all, against a chosen number."""
    parts = [abs(number(part) or 0) for part in ast.walk(large)]
    if any(0 < part < TINY for part in parts) or any(map(is_unit, ast.walk(large))):
        return True
    sizes = [
        each
        for each in ast.walk(small)
        if isinstance(each, ast.Call) and name_of(each.func) in ("abs", "absolute", "fabs", "norm")
    ]
    differs = any(isinstance(each, ast.Sub) for size in sizes for each in ast.walk(size))
    return differs and (bool(number(large)) or any(0 < part < 1 for part in parts))


def is_unit(node):
    """A unit roundoff by its name, or as a power: UNIT, 2.0**-52, mpf(10) ** -38."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return (number(node.right) or 0) < -9
    return name_of(node) in ("UNIT", "LIBRARY_ULPS")


def number(node):
    """The number that an expression of nothing but numbers stands for, None for others."""
    arithmetic = (ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop)
    for part in ast.walk(node):
        numeric = isinstance(part, ast.Constant) and isinstance(part.value, int | float)
        if not numeric and not isinstance(part, arithmetic):
            return None
    return eval(ast.unparse(node)) if isinstance(node, ast.expr) else None


def name_of(node):
    return getattr(node, "attr", getattr(node, "id", None))


def test_no_tolerance_is_set_by_hand():
    """In verify and the tests, but for the file that re-enacts other people's checkers.

    By the names people use for it, ulps and multiples of eps among them, and by comparisons of
    differences with numbers. It doesn't see a number that has been given a name of its own, nor
    how many digits `edges.shown` shows, which is what the edge table states.
    """
    root, derived = pathlib.Path(__file__).parent.parent, set()
    for path in [*(root / "verify").rglob("*.py"), *(root / "tests").rglob("*.py")]:
        where = path.relative_to(root).as_posix()
        if where != "verify/other_checkers.py":
            found = tolerances(path.read_text())
            derived |= {(where, what) for _, what in found} & set(DERIVED)
            assert [each for each in found if (where, each[1]) not in DERIVED] == [], where
    assert derived == set(DERIVED)  # none is excused that isn't there


@pytest.mark.parametrize(
    "source",
    [
        "np.testing.assert_allclose(a, b)",
        "np.allclose(a, b)",
        "from numpy import allclose",
        "f(a, rtol=1e-3)",
        "chex.assert_trees_all_close(a, b, atol=1)",
        "assert a == pytest.approx(b)",
        "np.testing.assert_almost_equal(a, b, decimal=3)",
        "jnp.isclose(a, b)",
        "np.testing.assert_array_max_ulp(a, b, 4)",
        "f(a, b, maxulp=4)",
        "np.testing.assert_array_almost_equal(a, b)",
        "np.testing.assert_array_almost_equal_nulp(a, b)",
        "f(a, b, nulp=8)",
        "unit = 64 * np.finfo(np.float64).eps",
        "unit = jnp.finfo(a.dtype).eps / 2",
        "allowed = 4 * np.spacing(a)",
        "assert a <= np.nextafter(b, np.inf)",
        "tol = 1e-3",
        "assert abs(a - b) < 0.03",
        "assert 0.03 >= abs(a - b)",
        "assert abs(a / b - 1) <= 3",
        "assert np.max(np.abs(a - b) / c) < 0.01 * np.abs(b).max()",
        "assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(b)",
        "assert apart < 1e-6",
        "assert (apart <= 16 * 2**-24 * size).all()",
        "assert 0 <= apart < 2.0**-20",
        "assert apart <= 4 * UNIT * size",
        "assert apart < mp.mpf(10) ** -38",
        "assert round(a, 3) == round(b, 3)",
        "assert np.round(a, decimals=3) == b",
    ],
)
def test_a_tolerance_would_be_seen(source):
    assert tolerances(source)


@pytest.mark.parametrize(
    "source",
    [
        "assert (np.abs(ours - theirs) <= bound).all()",
        "assert low_precision.over(ours, theirs, size, dtype) <= 2",
        "assert np.abs(error).max() > 0.01",
        "assert abs(mean - variance) < 6 * deviation / np.sqrt(count)",
        "top = np.finfo(dtype).max",
        "y = np.round(2 * y) / 2",
        "right = value * (1 + 1e-12)",
        "assert layer.eps > 0",
    ],
)
def test_what_is_no_tolerance_is_left_alone(source):
    assert not tolerances(source)
