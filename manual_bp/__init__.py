"""manual_bp: hand-derived gradients of neural networks, as pure functions in JAX.

    grads = manual_bp.manual_grads(params, x, y, network=network)

`manual_bp.formulas` holds the notes' formulas literally; `manual_bp.layer` the contract that every
layer keeps; `manual_bp.gradients` the sweep that makes a gradient of them.
"""

from manual_bp import formulas as formulas
from manual_bp.activations import celu as celu
from manual_bp.activations import elu as elu
from manual_bp.activations import gelu as gelu
from manual_bp.activations import gelu_tanh as gelu_tanh
from manual_bp.activations import hard_sigmoid as hard_sigmoid
from manual_bp.activations import hard_silu as hard_silu
from manual_bp.activations import hard_tanh as hard_tanh
from manual_bp.activations import identity as identity
from manual_bp.activations import leaky_relu as leaky_relu
from manual_bp.activations import log_sigmoid as log_sigmoid
from manual_bp.activations import mish as mish
from manual_bp.activations import relu as relu
from manual_bp.activations import relu6 as relu6
from manual_bp.activations import selu as selu
from manual_bp.activations import sigmoid as sigmoid
from manual_bp.activations import silu as silu
from manual_bp.activations import softplus as softplus
from manual_bp.activations import softsign as softsign
from manual_bp.activations import squared_relu as squared_relu
from manual_bp.activations import squareplus as squareplus
from manual_bp.activations import tanh as tanh
from manual_bp.combinators.checkpoint import checkpoint as checkpoint
from manual_bp.combinators.parallel import parallel as parallel
from manual_bp.combinators.reversible import reversible as reversible
from manual_bp.combinators.sequential import sequential as sequential
from manual_bp.combinators.skip import skip as skip
from manual_bp.combinators.stack import stack as stack
from manual_bp.combinators.tied import tied as tied
from manual_bp.gradients import manual_grads as manual_grads
from manual_bp.gradients import manual_pass as manual_pass
from manual_bp.gradients import manual_value_and_grads as manual_value_and_grads
from manual_bp.gradients import predict as predict
from manual_bp.layers.avg_pool import AvgPool as AvgPool
from manual_bp.layers.batch_norm import BatchNorm as BatchNorm
from manual_bp.layers.batch_norm import FrozenBatchNorm as FrozenBatchNorm
from manual_bp.layers.batch_norm import Statistics as Statistics
from manual_bp.layers.conv import Conv as Conv
from manual_bp.layers.conv_transpose import ConvTranspose as ConvTranspose
from manual_bp.layers.dense import Dense as Dense
from manual_bp.layers.dropout import Dropout as Dropout
from manual_bp.layers.embedding import Embedding as Embedding
from manual_bp.layers.flatten import Flatten as Flatten
from manual_bp.layers.gated_mlp import GatedMLP as GatedMLP
from manual_bp.layers.global_avg_pool import GlobalAvgPool as GlobalAvgPool
from manual_bp.layers.group_norm import GroupNorm as GroupNorm
from manual_bp.layers.gru import GRU as GRU
from manual_bp.layers.last_step import LastStep as LastStep
from manual_bp.layers.layer_norm import LayerNorm as LayerNorm
from manual_bp.layers.linear_recurrence import LinearRecurrence as LinearRecurrence
from manual_bp.layers.log_softmax import LogSoftmax as LogSoftmax
from manual_bp.layers.lstm import LSTM as LSTM
from manual_bp.layers.max_pool import MaxPool as MaxPool
from manual_bp.layers.multi_head_attention import MultiHeadAttention as MultiHeadAttention
from manual_bp.layers.position_embedding import PositionEmbedding as PositionEmbedding
from manual_bp.layers.prelu import PReLU as PReLU
from manual_bp.layers.rms_norm import RMSNorm as RMSNorm
from manual_bp.layers.rnn import RNN as RNN
from manual_bp.layers.rotary import Rotary as Rotary
from manual_bp.layers.scale import Scale as Scale
from manual_bp.layers.softmax import Softmax as Softmax
from manual_bp.losses.absolute_error import AbsoluteError as AbsoluteError
from manual_bp.losses.cosine_similarity import CosineSimilarity as CosineSimilarity
from manual_bp.losses.focal import Focal as Focal
from manual_bp.losses.hinge import Hinge as Hinge
from manual_bp.losses.huber import Huber as Huber
from manual_bp.losses.kl_divergence import KLDivergence as KLDivergence
from manual_bp.losses.linear_cross_entropy import LinearCrossEntropy as LinearCrossEntropy
from manual_bp.losses.log_cosh import LogCosh as LogCosh
from manual_bp.losses.multiclass_hinge import MulticlassHinge as MulticlassHinge
from manual_bp.losses.poisson_negative_log_likelihood import (
    PoissonNegativeLogLikelihood as PoissonNegativeLogLikelihood,
)
from manual_bp.losses.sigmoid_binary_cross_entropy import (
    SigmoidBinaryCrossEntropy as SigmoidBinaryCrossEntropy,
)
from manual_bp.losses.softmax_cross_entropy import SoftmaxCrossEntropy as SoftmaxCrossEntropy
from manual_bp.losses.squared_error import SquaredError as SquaredError
from manual_bp.models.bidirectional import bidirectional as bidirectional
from manual_bp.models.char_lstm import char_lstm as char_lstm
from manual_bp.models.gpt import gpt as gpt
from manual_bp.models.lenet import lenet as lenet
from manual_bp.models.llama import llama as llama
from manual_bp.models.mlp import mlp as mlp
from manual_bp.models.resnet import resnet as resnet
from manual_bp.signals.clipping import clipped_grads as clipped_grads
from manual_bp.signals.clipping import clipped_pass as clipped_pass
from manual_bp.signals.curvature import empirical_fisher as empirical_fisher
from manual_bp.signals.curvature import ggn_diagonal as ggn_diagonal
from manual_bp.signals.curvature_products import ggn_vector_product as ggn_vector_product
from manual_bp.signals.curvature_products import (
    hessian_vector_product as hessian_vector_product,
)
from manual_bp.signals.diagnostics import DiagnosedPass as DiagnosedPass
from manual_bp.signals.diagnostics import diagnosed_pass as diagnosed_pass
from manual_bp.signals.diagnostics import gradient_norms as gradient_norms
from manual_bp.signals.diagnostics import update_ratios as update_ratios
from manual_bp.signals.intermediates import intermediates as intermediates
from manual_bp.signals.kfac import ConvFactors as ConvFactors
from manual_bp.signals.kfac import DenseFactors as DenseFactors
from manual_bp.signals.kfac import TableFactors as TableFactors
from manual_bp.signals.kfac import kfac_factors as kfac_factors
from manual_bp.signals.kfac_optimizer import KFACState as KFACState
from manual_bp.signals.kfac_optimizer import kfac as kfac
from manual_bp.signals.moments import cosine_similarities as cosine_similarities
from manual_bp.signals.moments import gradient_moments as gradient_moments
from manual_bp.signals.moments import gradient_noise as gradient_noise
from manual_bp.signals.per_example import gradient_gram as gradient_gram
from manual_bp.signals.per_example import per_example_grads as per_example_grads
from manual_bp.signals.per_example import per_example_norms as per_example_norms
from manual_bp.signals.per_example import per_example_squared_norms as per_example_squared_norms
from manual_bp.signals.transport import TransportedPass as TransportedPass
from manual_bp.signals.transport import transported_grads as transported_grads
from manual_bp.signals.transport import transported_pass as transported_pass
from manual_bp.signals.transport_contract import Carried as Carried
from manual_bp.signals.transport_contract import Transport as Transport
from manual_bp.signals.transport_direct import DirectFeedbackAlignment as DirectFeedbackAlignment
from manual_bp.signals.transport_rules import FeedbackAlignment as FeedbackAlignment
from manual_bp.signals.transport_rules import NoisyErrors as NoisyErrors
from manual_bp.signals.transport_rules import QuantizedErrors as QuantizedErrors
from manual_bp.signals.transport_rules import SignSymmetry as SignSymmetry

__version__ = "0.1.0"
