"""flax.nnx with hand-derived gradients: change one import, keep the model.

    from flax.nnx import LayerNorm, Linear, MultiHeadAttention, gelu
    from manual_bp.interop.flax import LayerNorm, Linear, MultiHeadAttention, gelu

Each module is a subclass of flax's of the same name. Constructor, attributes, parameter names and
state are flax's own, so checkpoints, `nnx.split`, optimisers and isinstance go on working. What
`__call__` computes is the same function, with the backward pass of manual_bp. A setting that the
backward pass doesn't serve raises when the module is called; for such a module keep flax's own,
the two may be mixed at will.

| module | backward of |
|---|---|
| Linear, LinearGeneral, Conv, Embed | Dense, Conv, Embedding |
| LayerNorm, RMSNorm, GroupNorm, BatchNorm | the same |
| MultiHeadAttention, dot_product_attention | attention in blocks: no T x S matrix |
| LSTMCell, OptimizedLSTMCell, GRUCell, SimpleCell | one step of LSTM, GRU, RNN |
| RNN over such a cell | LSTM, GRU, RNN: one product for dW over all steps |
| relu, gelu, ... | activations, by `jax.custom_jvp` |

Where flax's own result is another one:

- a query that may read nothing gives 0; in flax its scores are all the same large negative number,
  so it gives the mean of all values;
- a token beyond the table gives NaN in both, and here it makes the table's gradient NaN too;
- the variance of a norm is ⟨(x - ⟨x⟩)²⟩; with use_fast_variance, flax's default, flax takes
  ⟨x²⟩ - ⟨x⟩², which is the same number but for rounding, and for that by more.

`from_module` and `to_module` carry weights over to manual_bp's layers and back.
"""

try:
    import flax.nnx as _needed  # noqa: F401
except ImportError as error:
    raise ImportError(
        "manual_bp.interop.flax needs flax, which isn't installed: "
        "pip install 'manual_bp[interop]', or pip install flax."
    ) from error

from manual_bp.interop.flax.activations import celu as celu
from manual_bp.interop.flax.activations import elu as elu
from manual_bp.interop.flax.activations import gelu as gelu
from manual_bp.interop.flax.activations import hard_sigmoid as hard_sigmoid
from manual_bp.interop.flax.activations import hard_silu as hard_silu
from manual_bp.interop.flax.activations import hard_swish as hard_swish
from manual_bp.interop.flax.activations import hard_tanh as hard_tanh
from manual_bp.interop.flax.activations import leaky_relu as leaky_relu
from manual_bp.interop.flax.activations import log_sigmoid as log_sigmoid
from manual_bp.interop.flax.activations import log_softmax as log_softmax
from manual_bp.interop.flax.activations import relu as relu
from manual_bp.interop.flax.activations import relu6 as relu6
from manual_bp.interop.flax.activations import selu as selu
from manual_bp.interop.flax.activations import sigmoid as sigmoid
from manual_bp.interop.flax.activations import silu as silu
from manual_bp.interop.flax.activations import soft_sign as soft_sign
from manual_bp.interop.flax.activations import softmax as softmax
from manual_bp.interop.flax.activations import softplus as softplus
from manual_bp.interop.flax.activations import swish as swish
from manual_bp.interop.flax.activations import tanh as tanh
from manual_bp.interop.flax.attention import MultiHeadAttention as MultiHeadAttention
from manual_bp.interop.flax.attention import dot_product_attention as dot_product_attention
from manual_bp.interop.flax.convert import from_module as from_module
from manual_bp.interop.flax.convert import to_module as to_module
from manual_bp.interop.flax.linear import Conv as Conv
from manual_bp.interop.flax.linear import Embed as Embed
from manual_bp.interop.flax.linear import Linear as Linear
from manual_bp.interop.flax.linear import LinearGeneral as LinearGeneral
from manual_bp.interop.flax.norms import BatchNorm as BatchNorm
from manual_bp.interop.flax.norms import GroupNorm as GroupNorm
from manual_bp.interop.flax.norms import LayerNorm as LayerNorm
from manual_bp.interop.flax.norms import RMSNorm as RMSNorm
from manual_bp.interop.flax.recurrent import RNN as RNN
from manual_bp.interop.flax.recurrent import GRUCell as GRUCell
from manual_bp.interop.flax.recurrent import LSTMCell as LSTMCell
from manual_bp.interop.flax.recurrent import OptimizedLSTMCell as OptimizedLSTMCell
from manual_bp.interop.flax.recurrent import SimpleCell as SimpleCell
