"""The same rules inside other people's JAX: hand-derived gradients that jax.grad uses.

    f = as_function(layer);   jax.grad(lambda params: cost(f(params, x)))(params)

`as_function` and `as_loss` make functions of layers and losses, `elementwise` of activations;
`manual_bp.interop.functions` has the functional forms, layer_norm(x, scale, shift) and its sisters;
`manual_bp.interop.flax` and `manual_bp.interop.equinox` are modules in place of theirs, and convert
weights both ways.
"""

from manual_bp.interop.elementwise import elementwise as elementwise
from manual_bp.interop.function import as_function as as_function
from manual_bp.interop.function import as_loss as as_loss
