"""A language model of characters: an LSTM that reads one and predicts the next.

    x_t = W_e[token_t]                             a vector for each character
    (h_t, c_t) = LSTM(x_t, (h_{t-1}, c_{t-1}))     as many layers as there are, one above the other
    z_t = W h_t + b,  p_t = softmax(z_t)           of the character that comes next

    J = mean over t of -log p_t[token_{t+1}]

Backward, with y_t = token_{t+1} as a unit vector, and w_t = 1/(m T):

    dz_t = w_t (p_t - y_t)
    dh_t = Wᵀ dz_t + Uᵀ dgates_{t+1}               from its own prediction, and from all later ones
    dW_e[v] = Σ over t where token_t = v of dx_t

The middle line is `manual_bp.layers.lstm`'s; it runs from the last step to the first.

In pieces (truncated backpropagation through time).  A text is one sequence, too long for one sweep.
It is read in pieces of T characters: the state at the end of one is where the next begins, so that
forward nothing is lost; but dh at the beginning of a piece is not handed back to the one before.
What is learnt is thus the gradient with the state given, which leaves out how earlier parameters
made it:

    step = manual_pass(params, x, y, network=network, state=state)
    state = step.observed                          state=None at the beginning: zeros

step.dtaken["state"] is what the piece before would have got.
"""

from __future__ import annotations

from manual_bp.combinators.sequential import Sequential, sequential
from manual_bp.layers.dense import Dense
from manual_bp.layers.embedding import Embedding
from manual_bp.layers.lstm import LSTM
from manual_bp.models._settings import check_counts


def char_lstm(vocabulary: int, *, width: int = 256, depth: int = 1) -> Sequential:
    """Embedding, LSTM layers, Dense: logits of the next token after each.

    Args:
        vocabulary: how many tokens there are.
        width: features of the embedding and of each LSTM.
        depth: LSTM layers, one above the other.

    Returns:
        A network for tokens x of shape (m, T) that takes state=..., what the sweep before observed
        or None, and observes its final state.

    Raises:
        TypeError: when a setting isn't a positive int.

    Source: Graves (2013), Generating sequences with recurrent neural networks, arXiv:1308.0850;
    Williams & Peng (1990), An efficient gradient-based algorithm for on-line training of recurrent
    network trajectories (truncation).

    Example:
        >>> network = char_lstm(5, width=3)
        >>> x = jnp.array([[0, 1, 4, 2], [3, 3, 0, 1]])
        >>> params = network.init(jax.random.key(0), x)
        >>> first = manual_pass(params, x[:, :2], x[:, 1:3], network=network, state=None)
        >>> then = manual_pass(
        ...     params, x[:, 2:3], x[:, 3:], network=network, state=first.observed)
        >>> then.prediction.shape
        (2, 1, 5)
    """
    check_counts("char_lstm", vocabulary=vocabulary, width=width, depth=depth)
    lstms = [LSTM(width, stateful=True) for _ in range(depth)]
    return sequential(Embedding(vocabulary, width), *lstms, Dense(vocabulary))
