"""Functional forms: the layers as functions of arrays, with their hand-derived gradients.

    from manual_bp.interop.functions import attention, layer_norm, linear_cross_entropy

Each is `as_function` or `as_loss` of one layer or loss, whose file has formula, derivation and
source; settings come last, by name. Activations have the names of the table in
manual_bp/activations.py.
"""

from manual_bp.interop.functions.activations import celu as celu
from manual_bp.interop.functions.activations import elu as elu
from manual_bp.interop.functions.activations import gelu as gelu
from manual_bp.interop.functions.activations import gelu_tanh as gelu_tanh
from manual_bp.interop.functions.activations import hard_sigmoid as hard_sigmoid
from manual_bp.interop.functions.activations import hard_silu as hard_silu
from manual_bp.interop.functions.activations import hard_tanh as hard_tanh
from manual_bp.interop.functions.activations import leaky_relu as leaky_relu
from manual_bp.interop.functions.activations import log_sigmoid as log_sigmoid
from manual_bp.interop.functions.activations import mish as mish
from manual_bp.interop.functions.activations import relu as relu
from manual_bp.interop.functions.activations import relu6 as relu6
from manual_bp.interop.functions.activations import selu as selu
from manual_bp.interop.functions.activations import sigmoid as sigmoid
from manual_bp.interop.functions.activations import silu as silu
from manual_bp.interop.functions.activations import softplus as softplus
from manual_bp.interop.functions.activations import softsign as softsign
from manual_bp.interop.functions.activations import squared_relu as squared_relu
from manual_bp.interop.functions.activations import squareplus as squareplus
from manual_bp.interop.functions.activations import tanh as tanh
from manual_bp.interop.functions.attention import attention as attention
from manual_bp.interop.functions.cross_entropy import linear_cross_entropy as linear_cross_entropy
from manual_bp.interop.functions.cross_entropy import softmax_cross_entropy as softmax_cross_entropy
from manual_bp.interop.functions.layers import avg_pool as avg_pool
from manual_bp.interop.functions.layers import batch_norm as batch_norm
from manual_bp.interop.functions.layers import conv as conv
from manual_bp.interop.functions.layers import dense as dense
from manual_bp.interop.functions.layers import embedding as embedding
from manual_bp.interop.functions.layers import group_norm as group_norm
from manual_bp.interop.functions.layers import layer_norm as layer_norm
from manual_bp.interop.functions.layers import log_softmax as log_softmax
from manual_bp.interop.functions.layers import max_pool as max_pool
from manual_bp.interop.functions.layers import rms_norm as rms_norm
from manual_bp.interop.functions.layers import softmax as softmax
from manual_bp.interop.functions.recurrent import gru as gru
from manual_bp.interop.functions.recurrent import lstm as lstm
from manual_bp.interop.functions.recurrent import rnn as rnn
