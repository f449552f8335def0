"""Checks what a reader fills in: notebooks 3, 4, 6 and 7, whose right answers are exact."""

import numpy as np


def hint(mine, right):
    """What a wrong array has to do with the right one, if anything simple."""
    if mine.shape != right.shape:
        return f"its shape is {mine.shape}, expected {right.shape}"
    if not np.isfinite(mine).all():
        return "it has entries that are not finite"
    if mine.shape == mine.T.shape and (mine == right.T).all():
        return "it is the transpose of the right value"
    if mine.ndim and (mine[::-1] == right).all():
        return "it is the right value back to front along the first axis"
    factor = (mine * right).sum() / (right * right).sum()
    if (mine == factor * right).all():
        return f"it is {factor:.4g} times the right value"
    return f"{(mine != right).sum()} of {right.size} entries are wrong"


def check_answer(answer, arguments, right):
    """Call the answer and name its first wrong result, in the order of `right`."""
    try:
        found = answer(*arguments)
    except Exception as error:  # whatever the reader's code does
        print(f"Your function raised {type(error).__name__}: {error}")
        return False
    for name, value in right.items():
        if not isinstance(found, dict) or found.get(name) is None:
            print(f"{name} is not filled in yet.")
            return False
        mine, expected = np.asarray(found[name]), np.asarray(value)
        if mine.shape != expected.shape or not (mine == expected).all():
            print(f"{name} is the first wrong one: {hint(mine, expected)}.")
            return False
    print("All right:", ", ".join(right))
    return True
