"""The benchmarks run, and the memory they promise is kept: that is the same on every run."""

import json

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import stack

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


def test_an_unknown_benchmark_is_an_error(capsys):
    with pytest.raises(SystemExit):
        benchmarks.main(["stock"])
    assert "no benchmark stock" in capsys.readouterr().err
