"""Training on text: batches, checkpoints, a kill and a resumption, what is written down."""

import dataclasses
import hashlib
import json
import pathlib
import pydoc_data.topics
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_bp as mbp
from verify.curves import LIMIT
from verify.report import Report
from verify.text import __main__ as command
from verify.text import stage, training
from verify.text.checkpoints import checkpoints
from verify.text.corpus import Corpus, corpus

NOTEBOOKS = pathlib.Path(__file__).parent.parent / "notebooks"
STORED = {"gpt": "04_gpt.json", "char_lstm": "04_char_lstm.json"}
TEXT = Corpus("it is what it is. " * 40)
SHORT = {
    name: dataclasses.replace(settings, steps=12, evaluate_every=4, save_every=3)
    for name, settings in training.TINY.items()
}


def arguments(settings):
    """The settings as one would write them on the command line."""
    given = dataclasses.asdict(settings)
    model = given.pop("model")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    return [model, "--autodiff-check", "0", *options]


def test_the_text_is_that_of_python_s_help():
    text = corpus()
    topics = pydoc_data.topics.topics
    assert text.text.startswith(topics[min(topics)])
    assert len(text.text) == sum(map(len, topics.values()))
    assert 400_000 < len(text.text) < 600_000
    assert hashlib.sha256(text.text.encode()).hexdigest() in str(text)
    assert text.decode(text.tokens) == text.text
    assert list(text.vocabulary) == sorted(set(text.text))
    joined = np.concatenate([text.training, text.validation])
    assert (joined == text.tokens).all()
    assert len(text.validation) in (len(text.tokens) // 10, len(text.tokens) // 10 + 1)


def test_a_gpt_reads_windows_anywhere_and_the_same_ones_again():
    settings = SHORT["gpt"]
    batches = [training.batch_at(settings, TEXT.tokens, number) for number in (0, 1, 0)]
    assert (batches[0].tokens == batches[2].tokens).all()
    assert (batches[0].tokens != batches[1].tokens).any()
    for row in batches[0].tokens:
        assert len(row) == settings.context + 1
        assert TEXT.decode(row) in TEXT.text


def test_rows_of_a_recurrent_network_go_on_until_each_has_read_its_piece():
    settings, numbers = SHORT["char_lstm"], np.arange(100)
    piece = len(numbers) // settings.batch
    turn = (piece - 1) // settings.context
    batches = [training.batch_at(settings, numbers, number) for number in range(2 * turn)]
    for number, (tokens, fresh) in enumerate(batches):
        assert tokens.shape == (settings.batch, settings.context + 1)
        assert fresh == (number % turn == 0)
        assert (np.diff(tokens, axis=1) % 100 == 1).all()
        if not fresh:
            assert (tokens[:, 0] == batches[number - 1].tokens[:, -1]).all()
    read = np.concatenate([tokens[:, :-1] for tokens, _ in batches[:turn]], 1)
    assert len(np.unique(read)) == read.size


@pytest.mark.parametrize("model", SHORT)
def test_a_step_donates_what_it_carries_and_copies_nothing_of_the_caller_s(model):
    settings = SHORT[model]
    network = settings.network(len(TEXT.vocabulary))
    params = training.draw(settings, network)
    carry = training.begin(settings, network, params)
    step = training.manual_step(settings, network)
    after, loss = step(carry, *training.batch_at(settings, TEXT.tokens, 0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(carry.params))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((params, after, loss)))


KILLED_AT_STEP_7 = """
import os, signal, sys
from verify.text import __main__ as command, training

right = training.batch_at

def batch_at(settings, tokens, number):
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return right(settings, tokens, number)

training.batch_at = batch_at
command.main(sys.argv[1:])
"""


@pytest.mark.parametrize("model", SHORT)
def test_a_killed_run_goes_on_to_the_same_losses_to_the_last_bit(model, tmp_path):
    settings, text = SHORT[model], corpus()
    network = settings.network(len(text.vocabulary))
    *_, whole = training.train(settings, text, network, training.start(settings, network))

    command_line = [*arguments(settings), "--checkpoints", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", KILLED_AT_STEP_7, *command_line], check=False)
    assert done.returncode == -signal.SIGKILL

    with checkpoints(tmp_path, settings, text) as saved:
        before = saved.last(training.start(settings, network))
    assert before.step == 6
    assert np.isnan(before.history.losses[6:]).all()
    *_, resumed = training.train(settings, text, network, before)
    assert np.array_equal(resumed.history.losses, whole.history.losses)
    assert np.array_equal(resumed.history.validation, whole.history.validation)
    same = jax.tree.map(np.array_equal, resumed.carry, whole.carry)
    assert all(jax.tree.leaves(same))
    assert len(np.unique(whole.history.losses)) == settings.steps


def test_the_command_goes_on_from_its_checkpoints_and_writes_what_it_found(tmp_path, capsys):
    settings, path = SHORT["gpt"], tmp_path / "gpt.json"
    line = [*arguments(settings), "--checkpoints", str(tmp_path / "run"), "--json", str(path)]
    assert command.main([*line, "--minutes", "0"]) == 0
    assert json.loads(path.read_text())["steps"] == 1
    assert command.main(line) == 0
    out = capsys.readouterr().out
    assert "going on after step 1 of 12" in out
    assert corpus().sha256 in out.replace("\n", "")
    found = json.loads(path.read_text())
    assert found["steps"] == 12 == found["loss"][-1][0]
    assert [step for step, *_ in found["validation"]] == [4, 8, 12]
    assert found["settings"] == dataclasses.asdict(settings)
    assert found["command"].startswith("python -m verify.text gpt")
    assert found["sample"].startswith("The ")
    assert found["text"]["sha256"] == corpus().sha256
    network = settings.network(len(corpus().vocabulary))
    *_, whole = training.train(settings, corpus(), network, training.start(settings, network))
    assert found["loss"] == [
        [number, round(float(loss), 4)] for number, loss in enumerate(whole.history.losses, 1)
    ]


def test_checkpoints_of_another_training_are_refused(tmp_path):
    settings = SHORT["gpt"]
    network = settings.network(len(TEXT.vocabulary))
    start = training.start(settings, network)
    with checkpoints(tmp_path, settings, TEXT) as saved:
        saved.save(start)
        saved.save(start)  # twice: nothing happens
    other = dataclasses.replace(settings, rate=1.0)
    with (
        checkpoints(tmp_path, other, TEXT) as saved,
        pytest.raises(ValueError, match=r"another training: rate was 0\.01, is 1\.0"),
    ):
        saved.last(start)


@pytest.mark.parametrize("model", SHORT)
def test_a_sample_goes_on_from_its_prompt_and_is_the_same_again(model):
    settings = SHORT[model]
    network = settings.network(len(TEXT.vocabulary))
    params = training.draw(settings, network)

    def sample(seed, **options):
        key, options = jax.random.key(seed), {"prompt": "it ", "length": 20} | options
        return training.sample(settings, network, params, TEXT, key, **options)

    assert sample(1).startswith("it ")
    assert len(sample(1)) == 23  # beyond the context of 8
    assert sample(1) == sample(1) != sample(2)
    assert sample(1, temperature=1e-6) == sample(2, temperature=1e-6)  # the likeliest each time


@pytest.mark.parametrize("model", SHORT)
def test_the_likeliest_text_is_what_the_model_predicts_of_its_own_text(model):
    settings = SHORT[model]
    network = settings.network(len(TEXT.vocabulary))
    params = training.draw(settings, network)
    written = training.sample(
        settings,
        network,
        params,
        TEXT,
        jax.random.key(0),
        prompt="it is",
        length=12,
        temperature=1e-6,
    )
    tokens = TEXT.encode(written)
    for place in range(len("it is"), len(tokens)):
        first = max(place - settings.context, 0) if model == "gpt" else 0
        taken = {"state": None} if model == "char_lstm" else {}
        logits = mbp.predict(params, tokens[None, first:place], network=network, **taken)
        assert logits[0, -1].argmax() == tokens[place]


@pytest.mark.parametrize(("factor", "holds"), [(1, True), (1.001, False)])
def test_the_stage_sees_a_gradient_that_is_off(monkeypatch, factor, holds):
    right = mbp.manual_pass

    def off(*args, **settings):
        found = right(*args, **settings)
        (body,) = found.grads
        embedding = body[0]._replace(W=factor * body[0].W)
        return found._replace(grads=((embedding, *body[1:]),))

    monkeypatch.setattr(mbp, "manual_pass", off)
    monkeypatch.setattr(training, "TINY", {"gpt": training.TINY["gpt"]})
    report = Report()
    stage.run(report, quick=True)
    assert report.held == holds
    (level,) = report.levels.values()
    assert (level.worst <= LIMIT) == holds


@pytest.mark.parametrize("model", STORED)
def test_what_the_notebook_reads_is_of_these_settings_and_small(model):
    path = NOTEBOOKS / STORED[model]
    found = json.loads(path.read_text())
    assert found["settings"] == dataclasses.asdict(training.TASKS[model])
    assert found["command"] == f"python -m verify.text {model} --json notebooks/{STORED[model]}"
    assert found["steps"] == training.TASKS[model].steps
    assert found["autodiff"]["over_rounding"] <= LIMIT
    assert len(found["autodiff"]["manual"]) == 50
    assert path.stat().st_size < 60_000
    if model == "gpt":
        reached = next(seconds for _, loss, seconds in found["validation"] if loss < 1.9)
        assert reached < 600


def test_a_held_out_text_shorter_than_a_batch_is_read_in_fewer_rows():
    settings = dataclasses.replace(SHORT["gpt"], batch=1000)
    network = settings.network(len(TEXT.vocabulary))
    params = training.start(settings, network).carry.params
    tokens = TEXT.tokens[: 2 * settings.context + 1]
    one_by_one = dataclasses.replace(settings, batch=2)
    found = [training.validate(each, network, params, tokens) for each in (settings, one_by_one)]
    assert np.isfinite(found[0]) and found[0] == found[1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps must be an int from 1 on, got 0"),
        ({"batch": 2.5}, "batch must be an int from 1 on, got 2.5"),
        ({"heads": 0}, "heads must be an int from 1 on, got 0"),
        ({"seed": -1}, "seed must be an int from 0 on, got -1"),
        ({"rate": 0.0}, "rate must be a finite number above 0"),
        ({"clip": float("nan")}, "clip must be a finite number above 0"),
        ({"weight_decay": -0.1}, "weight_decay must be a finite number from 0 on"),
        ({"model": "gtp"}, "model must be 'gpt' or 'char_lstm', got 'gtp'"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_trained_with_are_errors(wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SHORT["gpt"], **wrong)


def test_the_command_line_names_a_wrong_setting(capsys):
    with pytest.raises(SystemExit):
        command.main(["gpt", "--steps", "-3"])
    assert "steps must be an int from 1 on, got -3" in capsys.readouterr().err
