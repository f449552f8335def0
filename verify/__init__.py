"""verify: how one knows that a hand-derived gradient is right.

`python -m verify` judges everything in `manual_bp`. `verify.check` and `verify.check_grads` judge
anybody's own backward pass. Autodiff lives here, never in `manual_bp`.
"""

from verify.your_own import check as check
from verify.your_own import check_grads as check_grads
