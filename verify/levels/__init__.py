"""The levels of verification, a file each; what they have in common is `verify.judges`."""
