"""verify: how one knows that a hand-derived gradient is right.

`python -m verify` judges everything in `manual_bp`. Autodiff lives here, never there.
"""
