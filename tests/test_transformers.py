"""Whole language models: every gradient and intermediate equals jax.grad's of a model in plain jnp.

The plain models, in verify/text/plain.py, share no line with manual_bp; verify's own references are
put together out of the layers' specs, these are written down as a whole.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manual_bp as mbp
from manual_bp.layer import output_shape
from verify import judges, networks
from verify.text import plain

GPT = mbp.gpt(5, context=4, width=4, heads=2, depth=2)
SMALL = mbp.gpt(3, context=2, width=4, heads=1, depth=1)  # 1/√4 is exact in all arithmetics
LLAMA = mbp.llama(5, width=16, heads=4, kv_heads=2, depth=2)
SMALL_LLAMA = mbp.llama(3, width=8, heads=2, kv_heads=1, depth=1, features_inside=2)
LSTM = mbp.char_lstm(5, width=3, depth=2)
SMALL_LSTM = mbp.char_lstm(3, width=2)

BLOCK = {
    "out1.3.1.1.1.1": "N",
    "out1.3.1.1.1.2": "attention",
    "out1.3.1.2.1.1": "N'",
    "Z1.3.1.2.1.2": "Z",
    "A1.3.1.2.1.2": "A",
    "Z1.3.1.2.1.3": "mlp",
}
"""Intermediates by their place in the network, and by their name in plain.gpt."""
OUTSIDE = {"out1.1": "embedded", "out1.2": "X0", "out1.4": "F", "Z1.5": "logits"}


def problem(network, rows, length, vocabulary, seed=0):
    """Random parameters, inputs and next tokens, and the state of a network that has one."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(vocabulary, size=(rows, length + 1))
    x, y = tokens[:, :-1], tokens[:, 1:]
    params = networks.draw_params(rng, network, x)
    if "state" not in network.takes:
        return params, x, y
    return params, x, y, networks.draw_taken(rng, network, network, params, x)["state"]


def plain_loss(logits, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def by_hand(network):
    def run(params, x, y, *state):
        taken = {"state": state[0]} if state else {}
        step = mbp.manual_pass(params, x, y, network=network, **taken)
        return {"J": step.loss, "grads": step.grads, "dstate": step.dtaken, "end": step.observed}

    return run


def by_autodiff(forward, end=lambda state: state):
    """jax.grad of a plain model, whose forward(params, x, *state) returns logits and a state."""

    def run(params, x, y, *state):
        def objective(params, *state):
            logits, after = forward(params, x, *state)
            return plain_loss(logits, y), after

        grad = jax.value_and_grad(objective, tuple(range(1 + len(state))), has_aux=True)
        (loss, after), (grads, *dstate) = grad(params, *state)
        dtaken = {"state": dstate[0]} if state else {}
        return {"J": loss, "grads": grads, "dstate": dtaken, "end": after}

    return run


def without_end(run):
    return lambda *args: {name: each for name, each in run(*args).items() if name != "end"}


def gpt(heads):
    return without_end(by_autodiff(lambda params, x: (plain.gpt(params, x, heads=heads), ())))


def llama(heads, kv_heads):
    def forward(params, x):
        return plain.llama(params, x, heads=heads, kv_heads=kv_heads), ()

    return without_end(by_autodiff(forward))


@pytest.mark.parametrize(
    ("network", "theirs", "sizes", "judge"),
    [
        (GPT, gpt(2), (3, 4, 5), judges.bounds),
        (GPT, gpt(2), (1, 1, 5), judges.bounds),
        (SMALL, gpt(1), (1, 2, 3), judges.digits),
        (LLAMA, llama(4, 2), (3, 4, 5), judges.bounds),
        (LLAMA, llama(4, 2), (2, 1, 5), judges.bounds),
        (SMALL_LLAMA, llama(2, 1), (1, 2, 3), judges.digits),
    ],
    ids=["gpt", "gpt, one place", "gpt, digits", "llama", "llama, one place", "llama, digits"],
)
def test_every_gradient_of_a_transformer_is_that_of_one_in_plain_jnp(network, theirs, sizes, judge):
    args = problem(network, *sizes)
    verdict = judges.same(without_end(by_hand(network)), theirs, *args, judge=judge)
    assert verdict.ok, verdict


@pytest.mark.parametrize(
    ("network", "sizes", "judge"),
    [
        (LSTM, (2, 4, 5), judges.bounds),
        (SMALL_LSTM, (1, 3, 3), judges.digits),
    ],
    ids=["two layers", "digits"],
)
def test_every_gradient_of_char_lstm_and_its_state_are_those_of_one_in_plain_jnp(
    network, sizes, judge
):
    args = problem(network, *sizes)
    verdict = judges.same(by_hand(network), by_autodiff(plain.char_lstm), *args, judge=judge)
    assert verdict.ok, verdict


def test_every_intermediate_of_a_two_layer_gpt_is_that_of_one_in_plain_jnp():
    args = problem(GPT, 3, 4, 5)

    def ours(params, x, y):
        found = mbp.intermediates(params, x, y, network=GPT)
        shown = {}
        for place, name in (BLOCK | OUTSIDE).items():
            shown[name] = found[place]
            error = "d" + place if place != "Z1.3.1.2.1.3" else "dZ1.3.1.2.1.3"
            shown["d" + name] = found[error]
        return shown

    def theirs(params, x, y):
        def run(zeros):
            seen = {}

            def tap(name, value):
                seen[name] = value + zeros.get(name, 0)
                return seen[name]

            return plain_loss(plain.gpt(params, x, heads=2, tap=tap), y), seen

        shapes = jax.eval_shape(run, {})[1]
        zeros = {name: jnp.zeros(each.shape, each.dtype) for name, each in shapes.items()}
        errors, values = jax.grad(run, has_aux=True)(zeros)
        shown = {}
        for name in OUTSIDE.values():
            shown |= {name: values[name], "d" + name: errors[name]}
        for name in BLOCK.values():
            both = [f"{name}{l}" for l in (1, 2)]
            shown[name] = jnp.stack([values[each] for each in both])
            shown["d" + name] = jnp.stack([errors[each] for each in both])
        return shown

    verdict = judges.same(ours, theirs, *args)
    assert verdict.ok, verdict


def test_both_uses_of_the_embedding_count():
    params, x, y = problem(GPT, 1, 3, 5)

    def tied(params, x, y):
        (grads,) = mbp.manual_grads(params, x, y, network=GPT)
        assert grads[-1].W == ()
        return grads[0].W

    def apart(params, x, y):
        (body,), embedding = params, params[0][0].W
        filled = (*body[:-1], body[-1]._replace(W=embedding))
        below, *_, above = mbp.manual_grads(filled, x, y, network=GPT.body)
        return below.W, above.W

    verdict = judges.same(tied, lambda *args: sum(apart(*args)), params, x, y)
    assert verdict.ok, verdict
    below, above = apart(params, x, y)
    unread = np.setdiff1d(np.arange(5), x)
    assert unread.size
    assert (below[unread] == 0).all()
    assert (above[unread] != 0).all()


def test_a_shared_loss_gives_the_gradient_of_a_tied_head():
    params, x, y = problem(GPT, 2, 3, 5)
    headless = mbp.gpt(5, context=4, width=4, heads=2, depth=2, head=False)
    loss = mbp.LinearCrossEntropy(5, shared=(0, "W"))

    def tied(params, x, y):
        value, (grads,) = mbp.manual_value_and_grads(params, x, y, network=GPT)
        return value, grads[:-1]

    def shared(params, x, y):
        settings = {"network": headless, "loss": loss}
        return mbp.manual_value_and_grads(params[0][:-1], x, y, **settings)

    verdict = judges.same(shared, tied, params, x, y)
    assert verdict.ok, verdict


def test_a_gpt_is_compiled_once_for_all_its_blocks():
    def size(depth):
        network = mbp.gpt(5, context=4, width=4, heads=2, depth=depth)
        params, x, y = problem(network, 2, 4, 5)
        return len(str(jax.make_jaxpr(by_hand(network))(params, x, y)))

    assert size(12) < 1.1 * size(2)


def test_gpt_draws_its_weights_as_gpt_2_does():
    network = mbp.gpt(300, context=50, width=64, heads=4, depth=8)
    x = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    ((embedding, position, (((attention,), (mlp,)),), _, head),) = network.init(
        jax.random.key(0), x
    )
    assert head.W == () and head.b == ()
    drawn = [embedding.W, position.P, *attention[1][:3], mlp[1].W]
    last = [attention[1].Wo, mlp[2].W]
    for leaves, std in ((drawn, 0.02), (last, 0.02 / 4)):
        for leaf in leaves:
            assert abs(float(leaf.std()) / std - 1) < 3 / np.sqrt(2 * leaf.size)
    for bias in (*attention[1][4:], mlp[1].b, mlp[2].b):
        assert not bias.any()


def test_dropout_is_for_training_alone():
    network = mbp.gpt(5, context=4, width=4, heads=2, dropout=0.5)
    assert network.takes == ("key",)
    assert network.inference().takes == ()
    params, x, y = problem(mbp.gpt(5, context=4, width=4, heads=2), 2, 4, 5)
    ((embedding, position, (((attention,), (mlp,)),), norm, head),) = params
    with_places = ((((*attention, ()),), ((*mlp, ()),)),)
    dropped = ((embedding, position, (), with_places, norm, head),)
    losses = [
        mbp.manual_pass(dropped, x, y, network=network, key=jax.random.key(seed)).loss
        for seed in (1, 1, 2)
    ]
    assert losses[0] == losses[1] != losses[2]
    without = mbp.predict(params, x, network=mbp.gpt(5, context=4, width=4, heads=2))
    assert (mbp.predict(dropped, x, network=network) == without).all()


@pytest.mark.parametrize("network", [GPT, LLAMA], ids=["gpt", "llama"])
def test_no_place_sees_what_comes_later(network):
    params, x, _ = problem(network, 1, 4, 5)
    other = x.copy()
    other[0, 2] = (x[0, 2] + 1) % 5
    one, two = (mbp.predict(params, each, network=network) for each in (x, other))
    assert (one[0, :2] == two[0, :2]).all()
    assert (one[0, 2:] != two[0, 2:]).any(-1).all()


def test_char_lstm_in_pieces_reads_as_it_would_in_one():
    def read(params, x, y, state):
        step = mbp.manual_pass(params, x, y, network=LSTM, state=state)
        return step.prediction, step.observed

    def in_two(params, x, y, state):
        first, state = read(params, x[:, :2], y[:, :2], state)
        then, state = read(params, x[:, 2:], y[:, 2:], state)
        return jnp.concatenate([first, then], 1), state

    verdict = judges.same(in_two, read, *problem(LSTM, 2, 4, 5))
    assert verdict.ok, verdict


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: mbp.gpt(5, context=0), TypeError, "gpt: context must be a positive int, got 0"),
        (lambda: mbp.gpt(5.0, context=3), TypeError, "gpt: vocabulary must be a positive int"),
        (lambda: mbp.gpt(5, context=3, width=6, heads=4), ValueError, "a multiple of heads, got 6"),
        (lambda: mbp.gpt(5, context=3, dropout=1.5), ValueError, "1.5"),
        (lambda: mbp.llama(5, depth=True), TypeError, "llama: depth must be a positive int"),
        (lambda: mbp.llama(5, width="8"), TypeError, "llama: width must be a positive int"),
        (lambda: mbp.llama(5, width=6, heads=4), ValueError, "a multiple of heads, got 6"),
        (lambda: mbp.llama(5, heads=4, kv_heads=3), ValueError, "heads must be a multiple of kv"),
        (lambda: mbp.char_lstm(0), TypeError, "char_lstm: vocabulary must be a positive int"),
        (lambda: mbp.char_lstm(5, width=None), TypeError, "char_lstm: width"),
    ],
)
def test_bad_settings_of_a_model_are_named(make, error, says):
    with pytest.raises(error) as raised:
        make()
    assert says in str(raised.value)


@pytest.mark.parametrize("network", [GPT, LLAMA, LSTM], ids=["gpt", "llama", "char_lstm"])
def test_a_token_that_does_not_exist_is_named(network):
    params, x, y, *_ = problem(network, 2, 3, 5)
    taken = {"state": None} if "state" in network.takes else {}
    with pytest.raises(ValueError, match="Embedding"):
        mbp.manual_grads(params, np.where(x == x[0, 0], 5, x), y, network=network, **taken)


def test_a_text_longer_than_the_context_is_named():
    params, x, _ = problem(GPT, 2, 4, 5)
    longer = np.concatenate([x, x], 1)
    with pytest.raises(ValueError, match="PositionEmbedding"):
        mbp.predict(params, longer, network=GPT)


@pytest.mark.parametrize("network", [GPT, LLAMA], ids=["gpt", "llama"])
def test_models_say_the_shape_of_their_logits(network):
    x = jax.ShapeDtypeStruct((2, 3), jnp.int32)
    params = jax.eval_shape(network.init, jax.random.key(0), x)
    assert output_shape(network, params, x).shape == (2, 3, 5)


def test_the_judges_see_a_wrong_tied_gradient(monkeypatch):
    """The check of the check: the head's gradient left out of the embedding's."""
    args = problem(GPT, 2, 3, 5)

    def gather(self, dparams):
        each = self.body.gather(dparams[0])
        for _, *others in self.groups:
            for path in others:
                each = self._with(each, path, ())
        return (each,)

    monkeypatch.setattr(type(GPT), "gather", gather)
    jax.clear_caches()
    verdict = judges.same(without_end(by_hand(GPT)), gpt(2), *args)
    jax.clear_caches()
    assert verdict.first_wrong == "out.grads.0.0.W"
