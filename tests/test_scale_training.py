"""One training on one device, on eight, in two processes; killed, and gone on with."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from verify.curves import LIMIT, NEIGHBOURS, Curves, neighbour
from verify.scale import __main__ as command
from verify.scale import meshes, processes
from verify.scale import train as training
from verify.text.checkpoints import checkpoints
from verify.text.corpus import corpus

TINY = dataclasses.replace(
    training.TASK,
    steps=12,
    batch=8,
    context=8,
    width=16,
    heads=2,
    rate=1e-2,
    warmup=2,
    save_every=3,
    dtype="float64",  # in which a wrong factor is as far off as ten million roundings
)
SETTINGS = [
    f"--{name.replace('_', '-')}={value}"
    for name, value in dataclasses.asdict(TINY).items()
    if name not in ("model", "evaluate_every")
]
RUN = [sys.executable, "-m", "verify.scale", "train", *SETTINGS]


QUICKLY = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    """As the processes do that tests start: where XLA fuses, parameters are drawn otherwise."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def ended(*options):
    """The command in a process of its own, when it has ended."""
    return subprocess.run(
        [*RUN, *options], capture_output=True, text=True, check=False, env=QUICKLY
    )


def losses_of(directory, *options):
    """What a training reports that comes to its end, and what it printed."""
    path = directory / "losses.json"
    done = ended("--checkpoints", str(directory), "--json", str(path), *options)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())["losses"], done.stdout


# --- one device -----------------------------------------------------------------------------


@functools.cache
def one_device():
    """The training, its compiled step, and its start as NumPy arrays."""
    with jax.enable_x64(True):
        mesh = meshes.auto_mesh(data=1)
        run = training.prepare(TINY, corpus(), mesh, fully_sharded=False)
        start = training.start(run)
        carry = jax.tree.map(np.asarray, start.carry)
        return run, training.compiled_step(run), start._replace(carry=carry)


@functools.cache
def on_one_device(number=None):
    """Losses and last params of one device, or of its neighbour of this number.

    The neighbour has its params moved by a rounding, and each batch in an order of its own.
    """
    run, step, start = one_device()
    with jax.enable_x64(True):
        carry, losses, rng = start.carry, [], np.random.default_rng(number)
        for place in range(TINY.steps):
            batch = training.batch_at(run, place)
            if number is not None:
                carry = carry._replace(params=neighbour(carry.params, rng))
                batch = np.asarray(batch)[rng.permutation(TINY.batch)]
            carry, loss = step(carry, batch)
            losses.append(float(loss))
        return np.array(losses), jax.tree.map(np.asarray, carry.params)


def last_params(directory):
    """Of the last checkpoint, whatever devices wrote it, on none."""
    with checkpoints(directory, TINY, corpus()) as saved:
        last = saved.last(one_device()[2])
    assert last.step == TINY.steps
    return last.carry.params


def curves(losses):
    others = np.array([on_one_device(number)[0] for number in range(NEIGHBOURS)])
    return Curves(np.array(losses), on_one_device()[0], others, TINY.steps)


def assert_as_on_one_device(losses, params):
    """Within twice what rounding does to one device's losses and last params: verify.curves."""
    assert curves(losses).ratio <= LIMIT, curves(losses)

    def apart(params):
        leaves = zip(jax.tree.leaves(params), jax.tree.leaves(on_one_device()[1]), strict=True)
        return np.sqrt(sum(np.sum((ours - theirs) ** 2) for ours, theirs in leaves))

    farthest = max(apart(on_one_device(number)[1]) for number in range(NEIGHBOURS))
    assert apart(params) <= LIMIT * farthest, (apart(params), farthest)
    assert farthest > 0


# --- layouts --------------------------------------------------------------------------------


def test_eight_devices_have_the_losses_of_one_and_go_on_after_a_kill(tmp_path):
    eight = ["--devices", "8"]

    def killed_and_gone_on_with(directory):
        done = ended(*eight, "--checkpoints", str(directory), "--kill-after", "7")
        assert done.returncode == -signal.SIGKILL, done.stderr
        return losses_of(directory, *eight)

    with ThreadPoolExecutor(2) as both:
        whole = both.submit(losses_of, tmp_path / "whole", *eight)
        killed = both.submit(killed_and_gone_on_with, tmp_path / "killed")
        (losses, _), (again, out) = whole.result(), killed.result()
    assert "going on after step 6 of 12" in out
    assert again == losses
    assert len(set(losses)) == TINY.steps
    params = [last_params(tmp_path / name) for name in ("whole", "killed")]
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, *params)))
    assert_as_on_one_device(losses, params[0])


def by_hand(*options, of_process_1):
    """Two processes as on two hosts, each started by a command of its own: what each comes to."""
    join = f"--coordinator=127.0.0.1:{processes.free_port()}"
    started = [
        subprocess.Popen(
            [*RUN, *options, join, f"--process-id={number}", *own],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=QUICKLY,
        )
        for number, own in enumerate(([], of_process_1))
    ]
    return [(*process.communicate(), process.returncode) for process in started]


def test_two_processes_have_the_losses_of_one_device_and_go_on_after_kills(tmp_path):
    two = ["--devices=8", "--processes=2"]

    def killed_twice_and_gone_on_with(directory):
        here = [*two, f"--checkpoints={directory}"]
        (out, said, status), (_, _, killed) = by_hand(*here, of_process_1=["--kill-after=4"])
        assert killed == -signal.SIGKILL
        assert status in (1, -signal.SIGABRT), said
        if status == 1:  # else JAX's own watch over processes was quicker, and ended it
            assert "Process 0 can't go on, most likely since another one has ended" in said
            assert "the same commands go on from the last one" in said
        assert "process 0 reads 4 of 8 rows" in out
        done = ended(*here, "--kill-after", "8")
        assert done.returncode == 128 + signal.SIGKILL
        expected = "Process 1 was killed by SIGKILL; the others were stopped. It printed nothing."
        assert expected in done.stderr
        assert "going on after step 3 of 12" in done.stdout
        return losses_of(directory, *two)

    with ThreadPoolExecutor(2) as both:
        whole = both.submit(losses_of, tmp_path / "whole", *two)
        killed = both.submit(killed_twice_and_gone_on_with, tmp_path / "killed")
        (losses, out), (again, out_again) = whole.result(), killed.result()
    assert "cpu devices: 8, processes: 2, mesh: data=8; process 0 reads 4 of 8 rows" in out
    assert "Gloo" not in out
    assert "going on after step 6 of 12" in out_again
    assert again == losses
    params = [last_params(tmp_path / name) for name in ("whole", "killed")]
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, *params)))
    assert_as_on_one_device(losses, params[0])


LAYOUTS = {
    "data and tensor": ["--devices=8", "--mesh=data=4,tensor=2"],
    "tensor across processes": ["--devices=4", "--processes=2", "--mesh=tensor=4"],
    "fully sharded": ["--devices=8", "--processes=2", "--fully-sharded"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shared_parameters_give_the_losses_of_one_device(layout, tmp_path):
    losses, _ = losses_of(tmp_path, *LAYOUTS[layout])
    assert_as_on_one_device(losses, last_params(tmp_path))


def test_a_factor_off_by_a_millionth_is_seen():
    losses = on_one_device()[0]
    off = losses * (1 + 1e-6)
    assert curves(off).ratio > LIMIT
    shifted = np.roll(losses, 1)
    assert curves(shifted).ratio > LIMIT


# --- processes that end early ---------------------------------------------------------------


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A module to be run in processes in place of the training: this code in it."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    def write(code):
        start = "import sys, time\nnumber = int(sys.argv[2].removeprefix('--process-id='))\n"
        (tmp_path / "stand_in.py").write_text(start + code)
        return ["stand_in"]

    return write


def test_the_first_process_that_fails_ends_all_and_is_named(stand_in, tmp_path, capfd):
    code = f"""
import os, pathlib
here = pathlib.Path({str(tmp_path / "process_0")!r})
if number == 0:
    here.write_text(str(os.getpid()))
    time.sleep(60)
while not here.exists() or not here.read_text():
    time.sleep(0.01)
sys.exit("there is no text here")
"""
    before = time.perf_counter()
    assert processes.run_all(stand_in(code), 3) == 1
    assert time.perf_counter() - before < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "process_0").read_text()), 0)
    said = capfd.readouterr().err
    assert "ended with status 1; the others were stopped. It printed:\nthere is no text" in said
    assert said.startswith(("Process 1", "Process 2"))


def test_process_0_is_heard_at_once_and_the_others_warnings_at_the_end(stand_in, capfd):
    code = "print('I am', number)\nif number: print('a warning', file=sys.stderr)"
    assert processes.run_all(stand_in(code), 2) == 0
    said = capfd.readouterr()
    assert said.out == "I am 0\n"
    assert "Process 1 printed:\n" in said.err and "a warning" in said.err
    assert "Process 0" not in said.err


def test_processes_end_with_the_command_that_started_them(stand_in):
    code = (
        "from verify.scale.processes import end_with\n"
        "end_with(int(sys.argv[3].removeprefix('--started-by=')))\n"
        "print('started', flush=True)\n"
        "time.sleep(60)"
    )
    start = f"from verify.scale import processes; processes.run_all({stand_in(code)!r}, 1)"
    # Its pipe is open for as long as one of the two runs.
    with subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == b"started\n"
        before = time.perf_counter()
        started.kill()
        started.stdout.read()
    assert time.perf_counter() - before < 30


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--devices 8 --processes 3", "--devices must be a multiple of the 3 --processes, got 8."),
        ("--devices 0", "--devices must be a multiple of the 1 --processes, got 0."),
        ("--processes 0", "--processes must be 1 or more, got 0."),
        ("--processes 2 --process-id 1", "--process-id and --coordinator belong together"),
        (
            "--processes 2 --process-id 2 --coordinator 127.0.0.1:1",
            "--process-id must be from 0 to 1, got 2.",
        ),
        ("--devices 8 --mesh data=4", "The mesh data=4 is one of 4 devices, there being 8: "),
        ("--mesh data=2", "The mesh data=2 is one of 2 devices, there being 1: "),
        ("--mesh data=4,model=2", "--mesh must be like data=4,tensor=2, got 'data=4,model=2'."),
        ("--mesh data=4,tensor", "--mesh must be like data=4,tensor=2, got 'data=4,tensor'."),
        ("--mesh data=0", "--mesh must be like data=4,tensor=2, got 'data=0'."),
        (
            "--devices 8 --batch 12",
            "A batch of 12 rows can't be shared evenly along data=8 of the mesh data=8: give a "
            "batch that is a multiple of 8.",
        ),
        (
            "--devices 2 --mesh tensor=2 --fully-sharded",
            "--fully-sharded is along data alone: give it, or a mesh with tensor.",
        ),
        ("--kill-after 0", "--kill-after must be 1 or more, got 0."),
        ("--steps 0", "steps must be an int from 1 on, got 0."),
        ("--dtype float16", "dtype must be 'float32' or 'float64', got 'float16'."),
    ],
)
def test_what_cannot_be_trained_is_an_error(options, message, capsys):
    assert command.main(["train", *options.split()]) == 2
    assert f"python -m verify.scale: error: {message}" in capsys.readouterr().err


def test_checkpoints_of_another_training_are_refused(tmp_path, capsys):
    given = ["train", *SETTINGS, "--dtype=float32", "--checkpoints", str(tmp_path)]
    assert command.main([*given, "--steps=1", "--warmup=0"]) == 0
    assert command.main([*given, "--steps=1", "--warmup=0", "--rate=0.5"]) == 2
    said = capsys.readouterr().err
    assert "are of another training: rate was 0.01, is 0.5. Use another directory" in said


def test_a_gpt_is_what_it_trains():
    with pytest.raises(ValueError, match="model must be 'gpt', got 'char_lstm'"):
        dataclasses.replace(TINY, model="char_lstm")
