"""Networks worth naming: their shapes, what they take, and what they say to bad settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_bp as mbp
from manual_bp.layer import output_shape


@pytest.mark.parametrize("network", [mbp.lenet(7), mbp.resnet(7), mbp.resnet(7, [8], 3)])
@pytest.mark.parametrize("size", [8, 32])
def test_images_of_digits_and_of_32x32_become_logits(network, size):
    x = jax.ShapeDtypeStruct((5, size, size, 3), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), x)
    assert output_shape(network, params, x).shape == (5, 7)
    assert not {"key", "mask"} & set(network.takes)


def test_each_stage_but_the_first_halves_the_image_and_has_its_own_width():
    network = mbp.resnet(widths=(4, 8), blocks=2)
    x = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    shapes = []
    for layer in network.layers[:5]:
        params = jax.eval_shape(layer.init, jax.random.key(0), x)
        x = output_shape(layer, params, x)
        shapes.append(x.shape[1:])
    assert shapes == [(8, 8, 4)] * 3 + [(4, 4, 8)] * 2
    assert network.inference().takes == ("statistics",)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"widths": 16}, "resnet: widths must be a tuple of positive ints"),
        ({"widths": ()}, "got ()"),
        ({"widths": (16, 0)}, "got (16, 0)"),
        ({"widths": "ab"}, "got 'ab'"),
        ({"blocks": 0}, "resnet: blocks must be a positive int"),
        ({"blocks": True}, "got True"),
        ({"blocks": (2, 2)}, "as in resnet(widths=(16, 32), blocks=2); got (2, 2)"),
    ],
)
def test_bad_settings_of_a_resnet_are_named(settings, says):
    with pytest.raises(TypeError) as error:
        mbp.resnet(**settings)
    assert says in str(error.value)


@pytest.mark.parametrize(("dtype", "side"), [("float16", 512), ("bfloat16", 17)])
def test_a_global_average_divides_by_more_places_than_half_precision_holds(dtype, side):
    layer, x = mbp.GlobalAvgPool(), jnp.ones((1, side, side, 1), dtype)
    out, residuals = layer.forward((), x)
    assert out.dtype == dtype
    assert out[0, 0] == 1
    dout = jnp.full((1, 1), 1.9921875, dtype)
    _, dx = layer.backward((), residuals, dout)
    right = jnp.asarray(np.float64(dout[0, 0]) / side**2, dtype)  # rounded once
    assert dx.dtype == dtype
    assert (dx == right).all()
    assert right > 0
