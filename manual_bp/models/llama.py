"""Llama: a transformer without biases or centring, that turns queries and keys by their place.

Forward, for tokens at places t = 1, ..., T; N are RMS normalisations:

    X[0] = E[tokens]
    H[l] = X[l-1] + Attention(N(X[l-1]))             queries and keys turned by R(θ_t)
    X[l] = H[l] + W_down (silu(W_gate N'(H[l])) ⊙ W_up N'(H[l]))
    Z = N''(X[depth]) Wᵀ                             logits, by a matrix of their own

What differs from `manual_bp.models.gpt`, backward:

    Places        S_ts = (R(θ_t) q_t) · (R(θ_s) k_s)/√d, so
                  dq_t = R(θ_t)ᵀ (Σ_s dS_ts R(θ_s) k_s)/√d: the error is turned back; no parameters
    Heads         a group of queries' heads reads the same keys and values: their dK and dV add
    Gate          dU = dH ⊙ silu(Z),  dZ = dH ⊙ U ⊙ silu'(Z), for the two factors of the product
    Norm          dx = r (g - x̂ ⟨g ⊙ x̂⟩): layer normalisation's without its mean
    Head          dW = dZᵀ F alone, and dE the scatter alone: they are not tied

`manual_bp.layers`' rms_norm, rotary, multi_head_attention and gated_mlp derive them.
"""

from __future__ import annotations

from manual_bp.combinators.sequential import Sequential, sequential
from manual_bp.combinators.skip import skip
from manual_bp.combinators.stack import stack
from manual_bp.layers.dense import Dense
from manual_bp.layers.embedding import Embedding
from manual_bp.layers.gated_mlp import GatedMLP
from manual_bp.layers.multi_head_attention import MultiHeadAttention
from manual_bp.layers.rms_norm import RMSNorm
from manual_bp.models._settings import check_counts


def llama(
    vocabulary: int,
    *,
    width: int = 128,
    heads: int = 4,
    kv_heads: int = 2,
    depth: int = 2,
    features_inside: int | None = None,
    rotary: float = 10000.0,
    block: int | None = None,
    head: bool = True,
) -> Sequential:
    """Llama: RMSNorm, rotary positions, grouped heads, SwiGLU, no biases, a head of its own.

    The blocks are compiled once, whatever the depth.

    Args:
        vocabulary: how many tokens there are.
        width: features of each place.
        heads: of queries; they share the width.
        kv_heads: of keys and values, each read by heads / kv_heads of the queries'.
        depth: blocks, of attention and a gated MLP.
        features_inside: of the gated MLP; 8/3 of the width unless given, so that its three matrices
            have as many parameters as two would with four times the width.
        rotary: the base of the angles.
        block: of `MultiHeadAttention`, whose memory is linear in T with one.
        head: whether it ends with logits; without, with the vectors that
            `LinearCrossEntropy(vocabulary)` takes, which never holds all logits.

    Returns:
        A network for tokens x of shape (m, T), T as long as memory allows.

    Raises:
        TypeError: for a setting of the wrong type.
        ValueError: for a width that isn't a multiple of heads, or heads of kv_heads; at init, for
            heads with an odd number of features.

    Source: Touvron et al. (2023), LLaMA, arXiv:2302.13971; grouped heads: Llama 2,
    arXiv:2307.09288.

    Example:
        >>> network = llama(5, width=8, heads=4, kv_heads=2)
        >>> x = jnp.array([[0, 1, 4, 2], [3, 3, 0, 1]])
        >>> params = network.init(jax.random.key(0), x)
        >>> predict(params, x, network=network).shape
        (2, 4, 5)
    """
    counts = {"width": width, "heads": heads, "kv_heads": kv_heads, "depth": depth}
    check_counts("llama", vocabulary=vocabulary, **counts)
    inside = 8 * width // 3 if features_inside is None else features_inside
    check_counts("llama", features_inside=inside)
    if width % heads:
        raise ValueError(f"llama: width must be a multiple of heads, got {width} for {heads}.")
    attention = MultiHeadAttention(
        heads, kv_heads=kv_heads, causal=True, rotary=rotary, bias=False, block=block
    )
    both = sequential(
        skip(sequential(RMSNorm(), attention)),
        skip(sequential(RMSNorm(), GatedMLP(inside))),
    )
    logits = (Dense(vocabulary, bias=False),) if head else ()
    return sequential(Embedding(vocabulary, width), stack(both, depth), RMSNorm(), *logits)
