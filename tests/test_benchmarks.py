"""The benchmarks run, and the memory they promise is kept: that is the same on every run."""

import json

import jax.numpy as jnp
import pytest

import manual_bp as mbp
from benchmarks import __main__ as benchmarks
from benchmarks import (
    attention,
    clipping,
    diagnostics,
    linear_cross_entropy,
    lstm,
    per_example,
    stack,
)
from verify.judges import same

SMALL = stack.Size(features=64, examples=128, inside=256)


def test_every_row_is_measured_and_memory_is_within_its_targets(monkeypatch, tmp_path, capsys):
    measure = stack.measure
    monkeypatch.setattr(stack, "measure", lambda rounds: measure((SMALL,), (4, 16), rounds))
    benchmarks.main(["stack", "--rounds", "1", "--json", str(tmp_path / "found.json")])
    rows = json.loads((tmp_path / "found.json").read_text())["stack"]
    kinds = {row["what"].split(",")[0].partition(" over")[0] for row in rows}
    assert kinds == {
        "time to compile",
        "time of a gradient",
        "memory",
        "memory of reversible",
        "memory with checkpoint",
    }
    for row in rows:
        assert row["measured"] > 0 and row["against"] > 0
        assert row["ratio"] == row["measured"] / row["against"]
        if row["what"].startswith("memory"):
            assert row["ratio"] <= row["target"], row
    assert "target" in capsys.readouterr().out


def test_recurrent_layers_need_less_memory_than_the_scan(monkeypatch, capsys):
    measure = lstm.measure
    small = lstm.Size(steps=64, examples=8, features=64)
    monkeypatch.setattr(lstm, "measure", lambda rounds: measure((small,), rounds))
    benchmarks.main(["lstm", "--rounds", "1"])
    rows = measure((small,), 1)
    assert len(rows) == 4 * len(lstm.KINDS)
    for row in rows:
        if row.unit == "MiB":
            assert row.target is not None
            assert row.ratio <= row.target, row
    assert "LSTM, T 64" in capsys.readouterr().out


def test_the_fused_head_is_leaner_than_autodiff():
    size = linear_cross_entropy.Size(predictions=1024, classes=32_768, features=256)
    row = linear_cross_entropy.memory(size)
    assert row.target == 0.1 and 0 < row.ratio <= 0.1, row
    small = linear_cross_entropy.Size(predictions=64, classes=512, features=8)
    kinds = [each.what for each in linear_cross_entropy.measure((small,), rounds=1)]
    assert kinds == ["memory over jax.grad", "time over jax.grad"]


def test_an_unknown_benchmark_is_an_error(capsys):
    with pytest.raises(SystemExit):
        benchmarks.main(["stock"])
    assert "no benchmark stock" in capsys.readouterr().err


def test_attention_is_measured(monkeypatch, tmp_path):
    measure = attention.measure
    monkeypatch.setattr(attention, "measure", lambda rounds: measure(512, 256, rounds))
    benchmarks.main(["attention", "--rounds", "1", "--json", str(tmp_path / "found.json")])
    rows = json.loads((tmp_path / "found.json").read_text())["attention"]
    assert [row["block"] for row in rows] == ["in blocks of 256", "T x T"] + 2 * [
        "in blocks of 256"
    ]
    assert all(row["measured"] > 0 and row["against"] > 0 for row in rows)


def test_attention_in_blocks_needs_a_twentieth_of_the_memory_of_autodiff():
    (row,) = attention.measure_memory()
    assert row.target == 0.05 and 0 < row.ratio <= 0.05, row


def test_a_step_with_diagnostics_is_measured():
    network = mbp.mlp([4, 6, 3]), jnp.ones((5, 4))
    rows = diagnostics.measure({"small": network}, rounds=1, steps=1)
    assert [row.target for row in rows] == [1.05, None]
    assert all(row.measured > 0 and row.against > 0 for row in rows)


def test_norms_of_each_example_need_no_more_memory_than_a_gradient(monkeypatch):
    model = per_example.dense((64, 128, 128, 10), 32)
    *times, _, memory = per_example.rows_of(model, 1)
    assert len(times) == 1 + len(model.parts) and all(row.measured > 0 for row in times)
    assert memory.target == 1.2 and 0 < memory.ratio <= 1.2, memory
    small = (
        lambda: per_example.convolutional(8, 16, 4),
        lambda: per_example.transformer(4, 8, 16, 16),
    )
    assert len(per_example.measure(small, rounds=1)) == 2 * (len(times) + 2)


def test_a_clipped_sum_is_what_vmap_makes_and_all_rows_are_measured():
    widths, batch = (4, 5, 3), 6
    given = clipping.numbers(widths, batch)
    params, x, y = given
    assert same(
        lambda params, x: clipping.by_hand(widths)(params, x, y),
        lambda params, x: clipping.by_vmap(params, x, y),
        params,
        x,
    ).ok
    *times, memory = clipping.measure(widths, batch, rounds=1)
    assert all(row.measured > 0 for row in times)
    assert memory.measured > memory.against  # all errors are held
