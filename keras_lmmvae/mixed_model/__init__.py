"""The linear mixed model of all terms: Henderson's equations, variances, posteriors of levels.

    r[i] = sum{ Z_k[i] @ B_k : k=1...K } + e[i]

It knows terms and rows, and no network: `r` is what it is given to explain.
"""

from keras_lmmvae.mixed_model.mixed_model import MixedModel

__all__ = ["MixedModel"]
