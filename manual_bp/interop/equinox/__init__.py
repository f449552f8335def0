"""equinox with hand-derived gradients: change one import, keep the model.

    from equinox.nn import MLP, LayerNorm, MultiheadAttention
    from manual_bp.interop.equinox import MLP, LayerNorm, MultiheadAttention

Each module is a subclass of equinox's of the same name. Constructor, fields and leaves are
equinox's own, so `eqx.filter_jit`, `eqx.partition`, serialised leaves, optimisers and isinstance go
on working. What `__call__` computes is the same function, with the backward pass of manual_bp. It
is of one example, as equinox has it; under `jax.vmap` all examples go through the layer at once.

`from_module` and `to_module` carry weights over to manual_bp's layers and back.
"""

try:
    import equinox as _needed  # noqa: F401
except ImportError as error:
    raise ImportError(
        "manual_bp.interop.equinox needs equinox, which isn't installed: "
        "pip install 'manual_bp[interop]', or pip install equinox."
    ) from error

from manual_bp.interop.equinox.convert import from_module as from_module
from manual_bp.interop.equinox.convert import to_module as to_module
