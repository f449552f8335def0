"""equinox with hand-derived gradients: change one import, keep the model.

    from equinox.nn import MLP, LayerNorm, MultiheadAttention
    from manual_bp.interop.equinox import MLP, LayerNorm, MultiheadAttention

Each module is a subclass of equinox's of the same name. Constructor, fields and leaves are
equinox's own, so `eqx.filter_jit`, `eqx.partition`, serialised leaves, optimisers and isinstance go
on working. What `__call__` computes is the same function, with the backward pass of manual_bp. It
is of one example, as equinox has it; under `jax.vmap` all examples go through the layer at once.

| module | backward of |
|---|---|
| Linear, MLP, Conv, Conv1d, Conv2d, Conv3d, Embedding | Dense, Conv, Embedding |
| LayerNorm, RMSNorm, GroupNorm | the same |
| MultiheadAttention | attention in blocks: no T x S matrix |
| LSTMCell, GRUCell | one step of LSTM, GRU |

Where equinox's own result is another one: a query that may read nothing gives 0, not the mean of
all values; a token that doesn't exist gives NaN, not the nearest token's vector.

`from_module` and `to_module` carry weights over to manual_bp's layers and back.
"""

try:
    import equinox as _needed  # noqa: F401
except ImportError as error:
    raise ImportError(
        "manual_bp.interop.equinox needs equinox, which isn't installed: "
        "pip install 'manual_bp[interop]', or pip install equinox."
    ) from error

from manual_bp.interop.equinox.attention import MultiheadAttention as MultiheadAttention
from manual_bp.interop.equinox.convert import from_module as from_module
from manual_bp.interop.equinox.convert import to_module as to_module
from manual_bp.interop.equinox.linear import MLP as MLP
from manual_bp.interop.equinox.linear import Conv as Conv
from manual_bp.interop.equinox.linear import Conv1d as Conv1d
from manual_bp.interop.equinox.linear import Conv2d as Conv2d
from manual_bp.interop.equinox.linear import Conv3d as Conv3d
from manual_bp.interop.equinox.linear import Embedding as Embedding
from manual_bp.interop.equinox.linear import Linear as Linear
from manual_bp.interop.equinox.norms import GroupNorm as GroupNorm
from manual_bp.interop.equinox.norms import LayerNorm as LayerNorm
from manual_bp.interop.equinox.norms import RMSNorm as RMSNorm
from manual_bp.interop.equinox.recurrent import GRUCell as GRUCell
from manual_bp.interop.equinox.recurrent import LSTMCell as LSTMCell
