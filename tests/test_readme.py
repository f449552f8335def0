"""The README runs as written."""

import pathlib
import re

import jax.numpy as jnp

import manual_bp.formulas
from benchmarks import regression, report

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
(SHOWN,) = re.findall(r"```\n(WRONG.*?)```", README, re.DOTALL)
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_python_blocks_run_one_after_the_other(capsys):
    names = {}
    for block in BLOCKS:
        exec(block, names)
    quickstart, _, judged = capsys.readouterr().out.partition("\n")
    assert float(quickstart.split()[-1]) > 0.97
    assert judged == SHOWN
    assert names["grads"][0]["W"].shape == (3, 2)
    assert isinstance(names["steps"]["dZ1"], jnp.ndarray)
    flax, by_hand, equinox, by_hand_too = names["mebibytes"]
    assert by_hand < flax / 4
    assert by_hand_too < equinox / 4


def test_the_quickstart_has_at_most_15_lines():
    assert len(BLOCKS[0].strip().splitlines()) <= 15


def test_the_table_of_formulas_names_functions_that_exist():
    rows = re.findall(r"^\| [\w ]+ \| .* \| (`.*`) \|$", README, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    public = {
        name
        for name, value in vars(manual_bp.formulas).items()
        if callable(value) and getattr(value, "__module__", "") == "manual_bp.formulas"
    }
    assert named == public


def test_every_file_it_links_to_exists():
    root = pathlib.Path(__file__).parent.parent
    links = re.findall(r"\]\(([\w.]+[./][\w./]+)\)", README)
    assert links
    for link in links:
        assert (root / link).exists(), link


def test_commands_named_are_targets_of_the_makefile():
    root = pathlib.Path(__file__).parent.parent
    makefile = (root / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile, target


def test_its_ratios_are_those_that_were_recorded():
    section = README.partition("## Performance")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\w+: .*?) \| (.*?) \| (.*?) \|$", section, re.MULTILINE)
    assert len(rows) >= 10
    known = regression.recorded()
    for name, time, memory in rows:
        found = known[name]
        assert time == report.ratio(found.get("time")), name
        assert memory == report.ratio(found.get("memory")), name
