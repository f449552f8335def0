"""Training on real English text with hand-derived gradients: python -m verify.text gpt.

The text comes with Python itself, so that nothing is downloaded: `verify.text.corpus`. A model
learns to predict each next character, is compared with jax.grad of the same model written in plain
jnp over the first steps, and writes some text at the end.
"""
