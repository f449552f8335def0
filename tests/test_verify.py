"""The judges themselves: they run, they fail when they must, they say what to do."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_bp as mbp
from verify import __main__ as command
from verify import architectures, interpreter, networks, specs, wrong_formulas
from verify.arithmetic.numpy import Float64
from verify.forward import judge_layer, judge_loss
from verify.report import Report


def run(*arguments):
    return command.main([str(each) for each in arguments])


def test_the_command_holds_and_writes_json(tmp_path, capsys):
    path = tmp_path / "report.json"
    only = ["--only", "architectures", "--only", "differences", "--only", "wrong formulas"]
    assert run("--trials", 8, "--json", path, *only) == 0
    report = json.loads(path.read_text())
    assert report["held"]
    assert [row["name"] for row in report["rows"]] == [
        *("architectures", "differences", "wrong formulas")
    ]
    assert all(row["count"] > 0 and row["failures"] == 0 for row in report["rows"])
    assert "all held" in capsys.readouterr().out


def test_a_failure_is_reproducible_shrunk_and_named(capsys):
    with wrong_formulas.put_in("transpose missing in dW"):
        assert run("--trials", 3, "--only", "architectures") == 1
    out = capsys.readouterr().out
    assert "architectures FAILED: python -m verify --only architectures --seed 0 --trial" in out
    assert "smallest that still fails: sequential(Dense(" in out
    assert "first wrong is dW" in out
    assert "failed." in out
    number = out.split("--trial ")[1].split("\n")[0]
    with wrong_formulas.put_in("transpose missing in dW"):
        assert run("--only", "architectures", "--trial", number) == 1
    assert run("--only", "architectures", "--trial", number) == 0


def test_nothing_judged_is_no_success():
    assert not Report().held


def test_an_unknown_judge_is_named(capsys):
    with pytest.raises(SystemExit):
        run("--only", "nonsense")
    assert "--only 'nonsense' is none of no autodiff, architectures" in capsys.readouterr().err


def test_the_smallest_failing_network_is_small():
    case = networks.draw_case(0, 5)
    wide = networks.smallest(case, lambda each: True)
    assert networks.describe_size(wide.network) == 1
    assert wide.x_shape == (1, 1)


def test_cases_are_the_same_whoever_draws_them_and_reach_the_ends():
    again = [networks.draw_case(4, number) for number in range(300)]
    assert again == [networks.draw_case(4, number) for number in range(300)]
    depths = {networks.describe_size(case.network) for case in again}
    assert {1, 12} <= depths
    batches = {case.x_shape[0] for case in again}
    assert {1, 64} <= batches
    assert max(case.x_shape[-1] for case in again) > 90
    assert {type(case.loss) for case in again} == {spec.loss for spec in specs.losses()}
    kinds = set()
    for case in again:
        for layer in getattr(case.network, "layers", ()):
            kinds.add(type(getattr(layer, "activation", layer)))
    assert {spec.layer for spec in specs.layers()} - {mbp.Dense} <= kinds | {type(again[0].network)}


def test_problems_are_not_special():
    for number in range(40):
        problem = networks.draw_case(1, number).problem()
        for leaf in jax.tree.leaves(problem.params):
            assert (leaf != 0).all()
            assert (leaf != 1).all()
        assert problem.x.dtype == np.float64


def test_a_zero_gradient_or_a_missing_intermediate_is_a_difference():
    ones = {"dW1": np.ones(3)}
    assert architectures.compare({"dW1": np.zeros(3)}, ones, "j")[0].relative == 1
    assert architectures.compare(ones, {"dW1": np.zeros(3)}, "j")[0].relative == np.inf
    assert architectures.compare({"dW1": np.zeros(3)}, {"dW1": np.zeros(3)}, "j")[0].relative == 0
    assert architectures.compare({}, ones, "j")[0].relative == np.inf
    assert architectures.compare({"dW1": np.full(3, np.nan)}, ones, "j")[0].relative == np.inf
    assert architectures.compare({"dW1": np.ones((3, 1))}, ones, "j")[0].relative == np.inf


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
    x = np.random.default_rng(0).normal(size=(3, 2))
    with jax.enable_x64(True):
        expected = function(jnp.asarray(x))
    for ours, theirs in zip(
        jax.tree.leaves(evaluated(function, x)), jax.tree.leaves(expected), strict=True
    ):
        assert ours.shape == theirs.shape
        assert np.linalg.norm(ours - np.asarray(theirs)) <= 1e-14 * (1 + np.linalg.norm(theirs))


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
        assert judge_layer(layer, shape) < 1e-13


@pytest.mark.parametrize("spec", specs.losses(), ids=lambda spec: spec.loss.__name__)
def test_losses_equal_their_naive_form(spec):
    for loss in spec.samples:
        assert judge_loss(loss, (5, 4)) < 1e-13
        assert judge_loss(loss, (2, 3, 2)) < 1e-13
