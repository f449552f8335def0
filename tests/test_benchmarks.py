"""The benchmarks' own machinery: what is measured, told, drawn, and called worse."""

import json

import jax
import jax.numpy as jnp
import pytest

import manual_bp as mbp
from benchmarks import __main__ as benchmarks
from benchmarks import groups, measuring, regression, report
from benchmarks.flops import product_flops
from benchmarks.measuring import Measured, Result
from benchmarks.row import (
    IDIOMATIC,
    MEMORY,
    OURS,
    RATE,
    SAME,
    TIME,
    TORCH,
    Eager,
    Group,
    Row,
    Target,
    Way,
)
from benchmarks.ways import by_autodiff, by_hand, of_layer, of_network
from verify.judges import digits, same

LAYER, X = mbp.Dense(3, mbp.relu), jnp.ones((4, 5))


def small() -> Group:
    def ways() -> dict[str, Way | Eager]:
        return of_layer(LAYER, X, **{"another": Way(jnp.sum, (X,)), TORCH: Eager(lambda: X)})

    targets = (Target(TIME, 1e9), Target(TIME, 1e-9, TORCH), Target(MEMORY, 1e9), Target(RATE, 0))
    row = Row("Dense(3)", ways, targets, note="kept: x", against_idiomatic="none")
    untimed = Row("unrun", lambda: of_layer(LAYER, X), (Target(TIME, 1.0),), timed=False)
    return Group("small", "A small group", (row, untimed), (Target(MEMORY, 1e9),), "Of one layer.")


@pytest.fixture
def only_small(monkeypatch):
    monkeypatch.setattr(groups, "GROUPS", {"small": small})
    monkeypatch.setattr(measuring, "PER_WAY", 0.0)
    monkeypatch.setattr(measuring, "SHORTEST", 1e-9)
    monkeypatch.setattr(measuring, "MATRIX", 8)


def measured(seconds=1.0, memory=100, flops=10, compile=1.0, rate=0.5) -> Measured:
    return Measured(seconds, memory, flops, None, compile, rate)


def a_result(ours: Measured, theirs: Measured, *targets: Target) -> Result:
    row = Row("row", lambda: {}, targets)
    return Result(row, {OURS: ours, SAME: theirs})


def test_a_row_is_measured_told_drawn_and_written(only_small, tmp_path, capsys):
    files = {name: tmp_path / f"found.{name}" for name in ("json", "svg", "md")}
    flags = dict(zip(("--json", "--plot", "--markdown"), files.values(), strict=True))
    benchmarks.main(["--rounds", "1", *(each for pair in flags.items() for each in map(str, pair))])
    (group,) = json.loads(files["json"].read_text())["groups"]
    first, unrun = group["rows"]
    assert list(first["ways"]) == [OURS, SAME, "another", TORCH]
    assert first["ways"][OURS]["flops"] == 3 * 2 * 4 * 5 * 3 == first["ways"][SAME]["flops"]
    assert all(way["seconds"] > 0 for way in first["ways"].values())
    assert first["ways"][TORCH]["memory"] is None and unrun["ways"][OURS]["seconds"] is None
    assert unrun["targets"][0]["ratio"] is None
    page, said = files["md"].read_text(), capsys.readouterr().out
    for text in (
        "Of 6 targets 4 are met, 1 missed, 1 not measured.",
        "![time and memory beside jax.grad's, for each row](found.svg)",
        "time of PyTorch ≤ 1e-09: missed",
        "time ≤ 1: not measured",
        "- Dense(3): idiomatic: none",
        "- Dense(3): kept: x",
        "- Dense(3): ÷ another (",
        "Of one layer.",
        "python -m benchmarks small",
        f"jax {jax.__version__}",
    ):
        assert text in page, text
    assert "Dense(3): time ≤ 1e+09: met" in said and "small: A small group" in said
    assert files["svg"].read_text().count("Dense(3)") > 0


def test_ratios_and_targets_are_of_the_way_that_is_named():
    result = a_result(measured(2.0, 50), measured(4.0, 200), Target(TIME, 0.5), Target(MEMORY, 0.2))
    assert result.ratio(TIME, SAME) == 0.5 and result.ratio(MEMORY, SAME) == 0.25
    assert result.missed() == [Target(MEMORY, 0.2)]
    assert report.verdicts(result) == ["time ≤ 0.5: met, 0.50", "memory ≤ 0.2: missed, 0.25"]
    fast = a_result(measured(rate=0.9), measured(), Target(RATE, 0.95), Target(RATE, 0.9))
    assert report.verdicts(fast) == ["rate ≥ 0.95: missed, 0.90", "rate ≥ 0.9: met, 0.90"]
    assert fast.missed() == [Target(RATE, 0.95)]


def test_a_mean_is_geometric_and_of_all_rows_or_none():
    results = [a_result(measured(2.0), measured(1.0)), a_result(measured(1.0), measured(8.0))]
    group = Group("g", "", tuple(each.row for each in results), (Target(TIME, 0.4),))
    ((target, mean),) = report.Findings(group, results).means()
    assert target == Target(TIME, 0.4) and f"{mean:.6f}" == "0.500000"
    assert report.Findings(group, results[:1]).means() == [(Target(TIME, 0.4), None)]


def test_ways_take_turns_and_the_median_is_told(monkeypatch):
    calls, now = [], [0.0]
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now[0])
    waits = {"quick": [1.0, 1.0, 5.0, 2.0, 3.0], "slow": [7.0] * 5}
    taken = {name: (each for one in every for each in (one, one)) for name, every in waits.items()}

    def run(name: str) -> None:
        calls.append(name)
        now[0] += next(taken[name])

    found = measuring.seconds_in_turn(4, lambda: run("quick"), lambda: run("slow"))
    assert found == [2.5, 7.0]
    rounds = [set(calls[each : each + 4]) for each in range(4, len(calls), 4)]
    assert rounds == [{"quick", "slow"}] * 4


def test_flops_are_of_what_is_needed_and_as_often_as_a_loop_runs():
    x, W = jnp.ones((4, 5)), jnp.ones((3, 5))
    product = 2 * 4 * 5 * 3
    assert product_flops(lambda x: x @ W.T, x) == product
    assert product_flops(jax.jit(lambda x: (x @ W.T, x @ x.T)[0]), x) == product
    inner = jax.jit(lambda x: (x @ W.T, x @ x.T))
    assert product_flops(lambda x: inner(x)[0], x) == product
    both = jax.lax.cond(True, lambda: x @ W.T, lambda: x[:, :3])
    assert both.shape == (4, 3)
    assert product_flops(lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ W.T, lambda: x[:, :3]), x)
    image, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 7))
    conv = mbp.Conv(7, (3, 3), stride=2, padding="SAME", bias=False)
    params = conv.init(jax.random.key(0), image)
    products = 3 * 2 * (2 * 4 * 4 * 7) * (3 * 3 * 3)  # of out, dW and dx, without their zeros
    for way in (by_hand(conv), by_autodiff(conv)):
        assert product_flops(way, params, image) == products
    assert product_flops(
        lambda image: jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        image,
    ) == 2 * (2 * 6 * 6 * 7) * (3 * 3 * 3)


def test_nothing_is_found_traced(only_small):
    traced = []

    @jax.jit
    def inner(x):
        traced.append(x)
        return x

    row = Row("row", lambda: {OURS: Way(inner, (X,))}, (Target("compile", 1.0),), timed=False)
    measuring.measure(row, compilations=3)
    assert len(traced) >= 3


def test_rows_are_chosen_by_group_or_by_part_of_their_name(only_small, capsys):
    names = lambda *given: [row.name for each in groups.chosen(list(given)) for row in each.rows]  # noqa: E731
    assert names() == names("small") == ["Dense(3)", "unrun"]
    assert names("small: Den") == ["Dense(3)"] and names("unr") == ["unrun"]
    (part,) = groups.chosen(["unrun"])
    assert part.means == ()  # a mean of a part would pass for that of the whole
    with pytest.raises(SystemExit):
        benchmarks.main(["stock"])
    message = capsys.readouterr().err
    assert "no row is meant by 'stock'; there are" in message and "small: Dense(3)" in message


def test_check_compares_with_what_was_recorded(only_small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(regression, "RECORD", tmp_path / "ratios.json")
    monkeypatch.setattr(regression, "ALLOWED", {MEMORY: 1.1, "flops": 1.02})
    benchmarks.main(["small", "--record", "--rounds", "1"])
    with pytest.raises(SystemExit, match="0"):
        benchmarks.main(["small", "--check", "--rounds", "1"])
    assert "2 rows: no ratio is worse than recorded" in capsys.readouterr().out
    file = tmp_path / "ratios.json"
    kept = json.loads(file.read_text())
    kept["ratios"]["small: Dense(3)"]["flops"] = 0.9
    file.write_text(json.dumps(kept))
    with pytest.raises(SystemExit, match="1"):
        benchmarks.main(["small", "--check", "--rounds", "1"])
    complaint = "small: Dense(3): flops is 1 of jax.grad's, was 0.9 (allowed: 1.02 times that)"
    assert complaint in capsys.readouterr().out
    del kept["ratios"]["small: unrun"]
    file.write_text(json.dumps(kept))
    with pytest.raises(SystemExit, match="1"):
        benchmarks.main(["unrun", "--check"])
    assert "small: unrun: nothing is recorded of it" in capsys.readouterr().out


def test_a_time_is_worse_only_if_it_stays_so(monkeypatch):
    slow, quick = (a_result(measured(each), measured(1.0)) for each in (2.0, 1.0))
    known = {"g: row": {TIME: 1.0, MEMORY: 1.0}}
    later = iter([slow, quick])
    monkeypatch.setattr(benchmarks, "measure", lambda row, rounds: next(later))
    assert benchmarks._judged("g: row", slow.row, slow, known, 1) == (quick, [])
    always = lambda row, rounds: slow  # noqa: E731
    monkeypatch.setattr(benchmarks, "measure", always)
    _, found = benchmarks._judged("g: row", slow.row, slow, known, 1)
    assert found == ["g: row: time is 2 of jax.grad's, was 1 (allowed: 1.3 times that)"]
    lost = a_result(measured(float("nan")), measured())
    assert regression.worse("g: row", lost, known)
    fat = a_result(measured(memory=200), measured())
    monkeypatch.delattr(benchmarks, "measure")  # what is the same in every run isn't run again
    assert benchmarks._judged("g: row", fat.row, fat, known, 1)[1] == [
        "g: row: memory is 2 of jax.grad's, was 1 (allowed: 1.1 times that)"
    ]


def test_what_is_checked_by_default_is_recorded():
    known = regression.recorded()
    names = [
        regression.key(group.name, row.name)
        for group in groups.chosen(list(benchmarks.SHORT))
        for row in group.rows
    ]
    assert len(names) >= 8 and set(names) <= set(known)


def test_by_hand_is_what_autodiff_makes():
    x = jax.random.normal(jax.random.key(1), X.shape)
    assert same(by_hand(LAYER), by_autodiff(LAYER), LAYER.init(jax.random.key(0), x), x).ok
    y = jnp.array([0, 2, 1, 1])
    ways = of_network(mbp.mlp([5, 4, 3]), x, y, written_out)
    ours, theirs, idiomatic = (ways[name] for name in (OURS, SAME, IDIOMATIC))
    for other in (theirs, idiomatic):
        assert same(
            lambda params, x: ours.function(params, x, y),
            lambda params, x, other=other: other.function(params, x, y),
            *ours.args[:2],
            judge=digits,
        ).ok


def written_out(params, x):
    first, second = params
    return jax.nn.relu(x @ first.W.T + first.b) @ second.W.T + second.b
