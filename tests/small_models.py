"""Small models whose answers are known in closed form, and dense float64 versions of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from reference import blup, dense_design
from scipy.linalg import block_diag

import keras_lmmvae as lmm

__all__ = [
    "DenseTerm",
    "codes_of",
    "constant_decoder",
    "dense_blup",
    "fit_briefly",
    "known_model",
    "small_model",
]

Data = dict[str, np.ndarray]


def constant_decoder(num_features: int, latent_dim: int = 1) -> keras.Model:
    """A decoder that is 0 everywhere and stays so: what is left is a linear mixed model."""
    head = keras.layers.Dense(num_features, kernel_initializer="zeros", trainable=False)
    return keras.Sequential([keras.Input((latent_dim,)), head])


def small_model(terms: Sequence[Any] = (), **options: Any) -> lmm.LMMVAE:
    """A model that trains in a second."""
    options = {"hidden_units": (8,), "seed": 0, **options}
    return lmm.LMMVAE(options.pop("latent_dim", 1), terms, **options)


def fit_briefly(model: lmm.LMMVAE, data: Data, batch_size: int, epochs: int = 1) -> None:
    """Fits a model whose training is not what a test is about.

    Its few steps are made eagerly: they take less time than their tracing.
    """
    model.adapt(data)
    model.compile("adam", run_eagerly=True)
    model.fit(data, epochs=epochs, batch_size=batch_size, verbose=0)


def known_model(
    terms: Sequence[Any],
    data: Data,
    noise_variance: Any,
    effect_variance: dict[str, Any],
    coefficient_covariance: dict[str, np.ndarray] | None = None,
    **options: Any,
) -> lmm.LMMVAE:
    """A linear mixed model with known variances; its effects are still zero.

    Args:
        terms: The terms.
        data: Columns to adapt to.
        noise_variance: Float or array `(p,)`, in squared units of the features.
        effect_variance: Term name -> float or array `(p,)`, in squared units of the features.
        coefficient_covariance: Term name -> `(m, m)`, Psi in the units of time and covariates.
        **options: Of the model.
    """
    decoder = constant_decoder(data["x"].shape[1])
    # A given noise variance is never re-estimated; its value follows, by feature.
    model = small_model(terms, decoder=decoder, noise_variance=1.0, **options)
    model.adapt(data)
    scale = np.asarray(model.feature_scale, np.float64) ** 2
    model.noise_variance.assign(np.broadcast_to(noise_variance, scale.shape) / scale)
    for term in model.random_effects:
        variance = np.broadcast_to(effect_variance[term.label], scale.shape)
        effects = model.mixed_model.of(term.label)
        effects.effect_variance.assign(variance / scale)
        if coefficient_covariance and term.label in coefficient_covariance:
            inner = np.linalg.inv(term.user_basis())
            effects.coefficient_covariance.assign(
                inner @ coefficient_covariance[term.label] @ inner.T
            )
    model.fitted.assign(1.0)
    return model


@dataclass
class DenseTerm:
    """One term as a dense mixed model sees it.

    Attributes:
        design: Z of all rows, `(n, q)`.
        shape: Prior covariance of the `q` effects over `variance`, `(q, q)`.
        variance: Float or array `(p,)`.
    """

    design: np.ndarray
    shape: np.ndarray
    variance: Any

    @classmethod
    def of_levels(
        cls, keys: np.ndarray, variance: Any, basis: np.ndarray | None = None, psi: Any = None
    ) -> DenseTerm:
        """Levels in the order of their keys, each with coefficients of covariance `psi`."""
        codes, levels = codes_of(keys)
        psi = np.eye(1) if psi is None else psi
        return cls(dense_design(codes, basis, levels), np.kron(np.eye(levels), psi), variance)


def codes_of(keys: np.ndarray) -> tuple[np.ndarray, int]:
    """Positions of the keys in their sorted vocabulary, and its size."""
    vocabulary, codes = np.unique(keys, return_inverse=True)
    return codes, len(vocabulary)


def dense_blup(
    values: np.ndarray,
    terms: Sequence[DenseTerm],
    noise_variance: Any,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Joint posterior of all effects: mean `(q, p)` and covariance `(p, q, q)`.

    Args:
        values: Float array `(n, p)`; NaN cells are left out.
        terms: The terms; their effects lie one behind the other.
        noise_variance: Float or array `(p,)`.
        weights: Optional row weights `(n,)`.
    """
    design = np.concatenate([term.design for term in terms], axis=1)
    weights = np.ones(len(values)) if weights is None else weights
    means, covariances = [], []
    for feature, column in enumerate(np.asarray(values, np.float64).T):
        observed = np.isfinite(column)
        prior = block_diag(*[
            term.shape * np.broadcast_to(term.variance, values.shape[1])[feature] for term in terms
        ])  # fmt: skip
        noise = np.broadcast_to(noise_variance, values.shape[1])[[feature]]
        cells = np.where(observed, column, 0.0)[:, None]
        mean, covariance = blup(cells, design, noise, np.ones(1), prior, weights * observed)
        means.append(mean[:, 0])
        covariances.append(covariance[0])
    return np.stack(means, axis=1), np.stack(covariances)
