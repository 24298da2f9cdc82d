"""Runs: a table and a configuration in, a folder with the fitted model and its results out.

What `keras-lmmvae fit`, `evaluate`, `transform` and `simulate` do.
"""

__all__: list[str] = []
