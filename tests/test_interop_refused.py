"""What our modules don't serve raises: the setting, its value, what is expected, what to do."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import manual_bp.interop.equinox as for_equinox
import manual_bp.interop.flax as for_flax

RNGS, KEY = nnx.Rngs(0), jax.random.key(0)
x = jnp.ones((2, 3, 4))
bits = jnp.ones((2, 3, 4), bool)


def attention(**settings):
    return for_flax.MultiHeadAttention(2, 4, decode=False, rngs=RNGS, **settings)


def equinox_attention(**settings):
    return for_equinox.MultiheadAttention(2, 4, key=KEY, **settings)


FLAX = "isn't served by the hand-derived backward, expected"
REFUSED = [
    (
        lambda: for_flax.Linear(4, 2, precision="highest", rngs=RNGS)(x),
        f"manual_bp.interop.flax.Linear: precision='highest' {FLAX} None. Or keep flax.nnx.Linear "
        "here: the two mix.",
    ),
    (
        lambda: for_flax.Linear(4, 2, dot_general=jnp.dot, rngs=RNGS)(x),
        f"manual_bp.interop.flax.Linear: dot_general=dot {FLAX} dot_general.",
    ),
    (
        lambda: for_flax.Linear(4, 2, rngs=RNGS)(x, out_sharding="x"),
        f"manual_bp.interop.flax.Linear: out_sharding='x' {FLAX} None.",
    ),
    (
        lambda: for_flax.LinearGeneral((3, 4), 2, axis=(0, 2), rngs=RNGS)(jnp.ones((3, 2, 4))),
        f"manual_bp.interop.flax.LinearGeneral: axis=(-3, -1) {FLAX} (-2, -1).",
    ),
    (
        lambda: for_flax.Conv(4, 2, 2, input_dilation=2, rngs=RNGS)(x),
        f"manual_bp.interop.flax.Conv: input_dilation=(2,) {FLAX} (1,).",
    ),
    (
        lambda: for_flax.Embed(4, 2, rngs=RNGS)(jnp.array([4])),
        "token 4",
    ),
    (
        lambda: for_flax.LayerNorm(3, reduction_axes=1, feature_axes=1, rngs=RNGS)(x),
        f"manual_bp.interop.flax.LayerNorm: reduction_axes=1 {FLAX} -1 or 2",
    ),
    (
        lambda: for_flax.RMSNorm(4, rngs=RNGS)(x, mask=bits),
        "manual_bp.interop.flax.RMSNorm: mask=",
    ),
    (
        lambda: for_flax.GroupNorm(4, 2, axis_name="batch", rngs=RNGS)(x),
        f"manual_bp.interop.flax.GroupNorm: axis_name='batch' {FLAX} None.",
    ),
    (
        lambda: for_flax.BatchNorm(4, use_running_average=None, rngs=RNGS)(x),
        f"manual_bp.interop.flax.BatchNorm: use_running_average=None {FLAX} True or False.",
    ),
    (
        lambda: attention(dropout_rate=0.5)(x),
        f"manual_bp.interop.flax.MultiHeadAttention: dropout_rate=0.5 {FLAX} 0",
    ),
    (
        lambda: attention()(x, sow_weights=True),
        f"manual_bp.interop.flax.MultiHeadAttention: sow_weights=True {FLAX} False.",
    ),
    (
        lambda: attention(precision="highest")(x),
        "precision='highest'",
    ),
    (
        lambda: for_flax.dot_product_attention(x[None], x[None], x[None], bias=x),
        "manual_bp.interop.flax.dot_product_attention: bias=",
    ),
    (
        lambda: for_flax.GRUCell(4, 2, gate_fn=nnx.relu, rngs=RNGS)(jnp.ones(2), jnp.ones(4)),
        f"manual_bp.interop.flax.GRUCell: gate_fn=relu {FLAX} sigmoid",
    ),
    (
        lambda: for_equinox.MLP(4, 2, 3, 2, scan=True, key=KEY)(x[0, 0]),
        f"manual_bp.interop.equinox.MLP: scan=True {FLAX} False. Or keep equinox.nn.MLP here",
    ),
    (
        lambda: for_equinox.Linear(4, 2, key=KEY)(x),
        "Linear takes one example, of shape (4,), got (2, 3, 4); for a batch write "
        "jax.vmap(linear)(x).",
    ),
    (
        lambda: for_equinox.Conv1d(3, 2, 2, padding_mode="REFLECT", key=KEY)(x[0]),
        f"manual_bp.interop.equinox.Conv1d: padding_mode='REFLECT' {FLAX} 'ZEROS'.",
    ),
    (
        lambda: for_equinox.Conv2d(3, 2, 2, key=KEY)(x[0]),
        "Conv2d takes one example, (channels, *space) of 3 axes, got (3, 4); for a batch write "
        "jax.vmap(conv)(x).",
    ),
    (
        lambda: for_equinox.LayerNorm(4)(x),
        "LayerNorm takes one example, of shape (4,), got (2, 3, 4); for a batch write "
        "jax.vmap(norm)(x).",
    ),
    (
        lambda: for_equinox.Embedding(3, 2, key=KEY)(jnp.array([1, 2])),
        "Embedding takes one token, of shape (), got (2,); for several write "
        "jax.vmap(embedding)(tokens).",
    ),
    (
        lambda: equinox_attention(dropout_p=0.5)(x[0], x[0], x[0]),
        f"manual_bp.interop.equinox.MultiheadAttention: dropout_p=0.5 {FLAX} 0",
    ),
    (
        lambda: equinox_attention(vo_size=3)(x[0], x[0], x[0]),
        f"manual_bp.interop.equinox.MultiheadAttention: vo_size=3 {FLAX} 2.",
    ),
]


@pytest.mark.parametrize(("call", "text"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_not_served_is_refused(call, text):
    with pytest.raises((TypeError, ValueError), match=re.escape(text)):
        call()


def test_dropout_is_no_matter_in_inference():
    assert attention(dropout_rate=0.5)(x, deterministic=True).shape == x.shape
    frozen = eqx.nn.inference_mode(equinox_attention(dropout_p=0.5))
    assert frozen(x[0], x[0], x[0]).shape == x[0].shape


def test_decoding_is_flaxs_own():
    ours, stock = (
        of.MultiHeadAttention(2, 4, decode=True, rngs=nnx.Rngs(0)) for of in (for_flax, nnx)
    )
    for module in (ours, stock):
        module.init_cache((1, 3, 4))
    for step in range(3):
        token = x[:1, step : step + 1] * step
        assert (ours(token) == stock(token)).all()
    assert ours.cache_index is not None and stock.cache_index is not None
    assert ours.cache_index[...] == stock.cache_index[...] == 3


def test_a_query_that_may_read_nothing_gives_the_bias_of_the_last_projection():
    nothing = jnp.zeros((2, 1, 3, 3), bool)
    module = attention()
    bias = module.out.bias
    assert bias is not None
    assert (module(x, mask=nothing) == bias[...]).all()


def test_a_projection_of_ones_own_is_called():
    module, mlp = attention(), for_equinox.MLP(4, 2, 3, 1, key=KEY)

    class Doubled(nnx.Module):
        def __init__(self, inner):
            self.inner = inner

        def __call__(self, x):
            return 2 * self.inner(x)

    out = module(x)
    module.out = Doubled(module.out)
    assert (module(x) == 2 * out).all()

    class Half(eqx.nn.Linear):
        def __call__(self, x, *, key=None):
            return 0.5 * super().__call__(x)

    halved = eqx.tree_at(lambda m: m.layers[-1], mlp, Half(3, 2, key=KEY))
    whole = eqx.tree_at(lambda m: m.layers[-1], mlp, for_equinox.Linear(3, 2, key=KEY))
    assert (halved(x[0, 0]) == 0.5 * whole(x[0, 0])).all()
