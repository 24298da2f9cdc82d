"""Means and standard deviations of features, checked."""

import numpy as np
from sklearn.preprocessing import StandardScaler

from keras_lmmvae.validation import received

__all__ = ["checked_moments"]

# A feature whose variance is below this share of its squared mean varies by rounding only.
_CONSTANT_SHARE = 1e-12


def checked_moments(scaler: StandardScaler) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of the features, `(p,)` each.

    Raises:
        ValueError: If a feature has no observed cell, or does not vary.
    """
    empty = np.flatnonzero(np.broadcast_to(scaler.n_samples_seen_, scaler.mean_.shape) == 0)
    if len(empty):
        raise ValueError(
            "Every feature needs at least one observed cell. "
            + received(empty_columns=empty.tolist())
        )
    constant = np.flatnonzero(scaler.var_ <= _CONSTANT_SHARE * (scaler.mean_**2 + 1e-30))
    if len(constant):
        raise ValueError(
            "Features must vary: drop constant columns of 'x'. "
            + received(constant_columns=constant.tolist())
        )
    return scaler.mean_, np.sqrt(scaler.var_)
