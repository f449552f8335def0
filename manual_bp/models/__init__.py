"""Networks worth naming, made of layers and combinators."""
