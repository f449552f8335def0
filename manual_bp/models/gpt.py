"""GPT: a transformer that reads a text and predicts, at each place, the token that comes next.

Forward, for tokens at places t = 1, ..., T, with E the embedding, a row for each token, and P a row
for each place; N, N' and N'' are layer normalisations:

    X[0] = E[tokens] + P
    H[l] = X[l-1] + Attention(N(X[l-1]))             each place reads from those up to itself
    X[l] = H[l] + W₂ gelu(W₁ N'(H[l]) + b₁) + b₂     each place by itself; l = 1, ..., depth
    Z = N''(X[depth]) Eᵀ                             logits: the rows of E once more
    J = mean over places of -log softmax(Z)[next token]

Backward, with A = softmax(Z), Y the next tokens as unit vectors, w = 1/(m T) and F = N''(X[depth]):

    dZ = w (A - Y)
    dF = dZ E
    dX[depth] = N''*(dF)                             v* is the backward pass of v: dx for its dout

    for l = depth, ..., 1:
        a = gelu(W₁ N'(H) + b₁)
        dW₂ = dXᵀ a,  db₂ = Σ dX,  da = dX W₂
        dz = da ⊙ gelu'(W₁ N'(H) + b₁)
        dW₁ = dzᵀ N'(H),  db₁ = Σ dz
        dH = dX + N'*(dz W₁)                         the skip passes dX on as it is
        O = heads' outputs, dWo = dHᵀ O,  dO = dH Wo
        dV = Pᵀ dO,  dS = P ⊙ (dO Vᵀ - D),  dQ = dS K/√d,  dK = dSᵀ Q/√d       for each head
        dX[l-1] = dH + N*(dQ Wq + dK Wk + dV Wv)

    dP = Σ over examples of dX[0]
    dE = dZᵀ F + (dE[v] = Σ over places where the token is v of dX[0])

P in the lines of attention is its matrix of weights, D_t = Σ_s dP_ts P_ts; `manual_bp.layers`'
multi_head_attention derives them, layer_norm, dense, embedding and position_embedding the rest.

Derivation of the last line.  E is used at both ends. Had each end a table of its own, E₁ below and
E₂ above, J would have the gradients ∂J/∂E₁, a scatter of dX[0] over the rows that were read, and
∂J/∂E₂ = dZᵀ F, which has no row of zeros: softmax gives an error to every token, read or not. With
E₁ = E₂ = E they add.

Why it trains.  Along the skips dX[0] = dX[depth] + what the bodies add, with no product of
Jacobians between; and each body begins with a normalisation, so that what it adds does not depend
on how large X has grown. For the sum of 2 depth bodies to begin as large as one, each body's last
weights are drawn smaller by 1/√(2 depth).
"""

from __future__ import annotations

import math

from manual_bp.activations import gelu_tanh
from manual_bp.combinators.sequential import Sequential, sequential
from manual_bp.combinators.skip import skip
from manual_bp.combinators.stack import stack
from manual_bp.combinators.tied import Tied, tied
from manual_bp.layer import Layer
from manual_bp.layers.dense import Dense
from manual_bp.layers.dropout import Dropout
from manual_bp.layers.embedding import Embedding
from manual_bp.layers.layer_norm import LayerNorm
from manual_bp.layers.multi_head_attention import MultiHeadAttention
from manual_bp.layers.position_embedding import PositionEmbedding
from manual_bp.models._settings import check_counts

STD = 0.02
"""Of all weights as GPT-2 draws them."""


def gpt(
    vocabulary: int,
    *,
    context: int,
    width: int = 128,
    heads: int = 4,
    depth: int = 2,
    dropout: float = 0.0,
    block: int | None = None,
    head: bool = True,
) -> Tied | Sequential:
    """GPT-2: learned positions, `depth` pre-norm blocks, and a head tied to the embedding.

    Weights are drawn as GPT-2's: with standard deviation 0.02, divided by √(2 depth) in the last
    layer of each body. The blocks are compiled once, whatever the depth.

    Args:
        vocabulary: how many tokens there are.
        context: how many places a text has at most.
        width: features of each place.
        heads: of attention; they share the width.
        depth: blocks, of attention and an MLP four times as wide.
        dropout: the probability to drop a feature of the first sum and of what each body adds; then
            training takes key=...
        block: of `MultiHeadAttention`, whose memory is linear in T with one.
        head: whether it ends with logits; without, with the vectors that
            `LinearCrossEntropy(vocabulary, shared=(0, "W"))` takes, which never holds all logits.

    Returns:
        A network for tokens x of shape (m, T), T ≤ context. Its params are those of
        `manual_bp.tied`, with E at the embedding and () at the head; without a head they are
        those of `manual_bp.sequential`, with E at (0, "W").

    Raises:
        TypeError: for a setting of the wrong type.
        ValueError: for a width that isn't a multiple of heads; for a dropout that is no
            probability; at init and forward, for a longer text.

    Source: Radford et al. (2019), Language models are unsupervised multitask learners; the tied
    embedding: Press & Wolf (2017), arXiv:1608.05859.

    Example:
        >>> network = gpt(5, context=4, width=8, heads=2)
        >>> x = jnp.array([[0, 1, 4, 2], [3, 3, 0, 1]])
        >>> params = network.init(jax.random.key(0), x)
        >>> loss, grads = manual_value_and_grads(params, x[:, :-1], x[:, 1:], network=network)
        >>> grads[0][0].W.shape, grads[0][-1].W  # of E, from both its uses
        ((5, 8), ())

        The same by the fused head:

        >>> body, loss = gpt(5, context=4, width=8, heads=2, head=False), LinearCrossEntropy(
        ...     5, shared=(0, "W"))
        >>> grads = manual_grads(params[0][:-1], x[:, :-1], x[:, 1:], network=body, loss=loss)
        >>> grads[0].W.shape
        (5, 8)
    """
    counts = {"context": context, "width": width, "heads": heads, "depth": depth}
    check_counts("gpt", vocabulary=vocabulary, **counts)
    if width % heads:
        raise ValueError(f"gpt: width must be a multiple of heads, got {width} for {heads}.")
    drop = [Dropout(dropout)] if dropout else []
    last = STD / math.sqrt(2 * depth)
    attention = MultiHeadAttention(
        heads, causal=True, block=block, initial_std=STD, last_initial_std=last
    )
    mlp = [Dense(4 * width, gelu_tanh, initial_std=STD), Dense(width, initial_std=last)]
    both = sequential(
        skip(sequential(LayerNorm(), attention, *drop)),
        skip(sequential(LayerNorm(), *mlp, *drop)),
    )
    layers: list[Layer] = [
        Embedding(vocabulary, width, initial_std=STD),
        PositionEmbedding(context),
        *drop,
        stack(both, depth),
        LayerNorm(),
    ]
    if not head:
        return sequential(*layers)
    logits = Dense(vocabulary, bias=False)
    return tied(sequential(*layers, logits), ((0, "W"), (len(layers), "W")))
