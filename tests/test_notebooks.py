"""What notebooks read from files is what the commands beside it say."""

import dataclasses
import json
import pathlib

import numpy as np

from verify.scale import __main__ as scale

NOTEBOOKS = pathlib.Path(__file__).parent.parent / "notebooks"


def test_trainings_of_the_sixth_notebook_are_those_of_their_commands():
    runs = json.loads((NOTEBOOKS / "06_training.json").read_text())
    assert len({run["text"] for run in runs.values()}) == 1
    devices = []
    for run in runs.values():
        python, flag, module, *arguments = run["command"].split()
        assert (python, flag, module) == ("python", "-m", "verify.scale")
        options = scale._parser().parse_args(arguments)
        settings, axes, asked = scale._checked(options)
        assert dataclasses.asdict(settings) == run["settings"]
        assert (axes or {"data": asked or 1}) == run["layout"]["mesh"]
        assert (asked or 1) == run["layout"]["devices"]
        assert options.processes == run["layout"]["processes"]
        assert options.fully_sharded == run["layout"]["fully_sharded"]
        assert len(run["losses"]) == settings.steps and np.isfinite(run["losses"]).all()
        devices.append((run["layout"]["devices"], options.processes))
    assert devices == [(1, 1), (8, 1), (8, 1), (8, 1), (8, 2)]
    assert (NOTEBOOKS / "06_training.json").stat().st_size < 20_000
