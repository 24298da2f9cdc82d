"""A few rows of a level, after training: its effects given them, without any update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.effects.vocabulary import UNKNOWN_CODE
from keras_lmmvae.model.conjugate_fit import ConjugateFit
from keras_lmmvae.model.part import ModelPart
from keras_lmmvae.model.rows import EFFECTS, FEATURES, Rows
from keras_lmmvae.validation import received

__all__ = ["CONDITION_ROUNDS", "Conditioned", "Conditioning", "GaussianEffects"]

CONDITION_ROUNDS = 3
"""The encoder reads rows less their effects, so residuals and effects are found in turns."""


@dataclass(frozen=True)
class Conditioned:
    """What `condition` says of a level given `n` of its rows, in the features' units.

    Attributes:
        effects: Posterior mean of the level's effects, array `(m, p)`, coefficients of the
            columns as given; for a surface its values at the rows, `(n, p)`.
        standard_deviation: Posterior standard deviations of `effects`, the same shape.
        reconstruction: Reconstructions of the rows with these effects, array `(n, p)`.
    """

    effects: np.ndarray
    standard_deviation: np.ndarray
    reconstruction: np.ndarray


@dataclass(frozen=True)
class GaussianEffects:
    """Normal distribution of one level's effects, feature by feature, float64.

    Attributes:
        mean: Array `(m, p)`.
        precision: Array `(p, m, m)`.
    """

    mean: np.ndarray
    precision: np.ndarray

    def given(
        self, residual: np.ndarray, basis: np.ndarray, cells: np.ndarray, noise: np.ndarray
    ) -> tuple[GaussianEffects, np.ndarray]:
        """The posterior given rows, and each row's effect given the others.

            precision' = precision + sum_s cells[s] phi_s phi_s' / noise
            mean' = inv(precision') @ (precision @ mean + sum_s cells[s] phi_s r_s / noise)

        The second follows from the posterior by the leverages of the rows, as in any ridge
        regression: (fit - leverage * r) / (1 - leverage).

        Args:
            residual: Array `(n, p)`, what the effects are to explain.
            basis: Array `(n, m)`.
            cells: Array `(n, p)`, 1 where a cell counts, 0 where it is missing.
            noise: Array `(p,)`, a variance.

        Returns:
            The posterior, and the left-out fits, array `(n, p)`.
        """
        weights = cells / noise  # (n, p)
        gram = np.einsum("nf,ni,nj->fij", weights, basis, basis, optimize=True)
        precision = self.precision + gram
        score = np.einsum("fij,jf->if", self.precision, self.mean)
        score += basis.T @ (weights * residual)
        mean = np.linalg.solve(precision, score.T[..., None])[..., 0].T  # (m, p)
        solved = np.linalg.solve(precision, np.broadcast_to(basis.T, (len(noise), *basis.T.shape)))
        leverage = np.einsum("ni,fin->nf", basis, solved, optimize=True) * weights
        left_out = (basis @ mean - leverage * residual) / np.maximum(1.0 - leverage, 1e-9)
        return GaussianEffects(mean, precision), np.where(cells > 0, left_out, basis @ mean)

    def deviations(self, basis: np.ndarray) -> np.ndarray:
        """Standard deviations of `basis @ effects`, `(c, p)`, for a basis `(c, m)`."""
        size = (len(self.precision), *basis.T.shape)
        solved = np.linalg.solve(self.precision, np.broadcast_to(basis.T, size))
        variance = np.einsum("ci,fic->cf", basis, solved, optimize=True)
        return np.sqrt(np.maximum(variance, 0.0))


class Conditioning(ModelPart):
    """The part of `LMMVAE` that answers for a level with the rows it gets along."""

    def condition(self, rows: Any, on: str) -> Conditioned:
        """Effects of a level given a few of its rows, and their reconstructions.

        The level starts at what the model knows of it: the prior for a level never seen, its
        posterior for a level of the training rows, the surface as it is for new places. Given
        the networks the result is the exact posterior (BLUP); networks, variances and all other
        effects stay, and the model remembers nothing of the rows. As in training, the encoder
        reads every row less the effects that the other rows say.

        Args:
            rows: Dict of arrays of `n` rows of one level; missing cells are left out.
            on: Name of the term.

        Returns:
            A `Conditioned`.

        Raises:
            ValueError: If there is no such term, the rows are of more than one level, the key
                is null, or the posterior is amortized.

        Example:
            >>> import numpy as np
            >>> import keras_lmmvae as lmm
            >>> rng = np.random.default_rng(0)
            >>> data = {"x": rng.normal(size=(200, 3)), "store": rng.integers(0, 20, 200)}
            >>> model = lmm.LMMVAE(1, [lmm.RandomIntercept("store")], hidden_units=(8,), seed=0)
            >>> model.adapt(data)
            >>> model.compile("adam")
            >>> history = model.fit(data, epochs=1, batch_size=50, verbose=0)
            >>> opened = {"x": rng.normal(size=(4, 3)) + 1.0, "store": np.full(4, 99)}
            >>> model.condition(opened, on="store").effects.shape
            (1, 3)
        """
        self.require_fitted()
        term = self.find_term(on)
        if not isinstance(self.effects_fit, ConjugateFit):
            raise ValueError(
                "Only the conjugate posterior has effects given rows. "
                + received(posterior=self.posterior)
            )
        encoded = self.encode_data(rows)
        basis = _basis_of(term, encoded)
        known = _level_known(self, term, _single_code(term, encoded))
        others = self._others(term, encoded)
        cells = _cells(encoded)
        noise = np.asarray(self.effects_noise_variance(), np.float64)
        left_out = basis @ known.mean
        for _ in range(CONDITION_ROUNDS):
            residual = self._residual(encoded, others + tf.cast(left_out, tf.float32)) - others
            posterior, left_out = known.given(np.asarray(residual, np.float64), basis, cells, noise)
        return self._conditioned(term, encoded, posterior, others, basis)

    def _others(self, term: RandomEffect, rows: Rows) -> tf.Tensor:
        """What the other terms contribute to the rows, `(n, p)`."""
        total = tf.zeros_like(rows[FEATURES])
        for other in self.random_effects:
            if other is not term:
                total += self.effects_fit.term_contribution(other, rows)
        return total

    def _residual(self, rows: Rows, contribution: tf.Tensor) -> tf.Tensor:
        """`x - f(E[u])`, `(n, p)`, the encoder reading the rows less `contribution`."""
        mean, _ = self.latent_posterior(rows, contribution)
        return rows[FEATURES] - self.decode_standard(mean)

    def _conditioned(
        self,
        term: RandomEffect,
        rows: Rows,
        posterior: GaussianEffects,
        others: tf.Tensor,
        basis: np.ndarray,
    ) -> Conditioned:
        contribution = others + tf.cast(basis @ posterior.mean, tf.float32)
        mean, _ = self.latent_posterior(rows, contribution)
        scale = np.asarray(self.feature_scale, np.float64)
        shown = basis if term.num_levels == 1 and term.basis_size > 1 else term.user_basis()
        return Conditioned(
            effects=shown @ posterior.mean * scale,
            standard_deviation=posterior.deviations(shown) * scale,
            reconstruction=np.asarray(self.to_units(self.decode_standard(mean) + contribution)),
        )


def _single_code(term: RandomEffect, rows: Rows) -> int:
    """The code that all rows share."""
    codes = np.unique(np.asarray(rows[EFFECTS][term.label]["codes"]))
    if len(codes) != 1 or codes[0] < UNKNOWN_CODE:
        raise ValueError(
            f"The rows to condition on must be of one level of '{term.label}', none of them with "
            "a missing key. " + received(codes=codes.tolist())
        )
    return int(codes[0])


def _level_known(model: Any, term: RandomEffect, code: int) -> GaussianEffects:
    """What the model knows of a level: its prior (code -1) or its posterior."""
    posterior = term.posterior
    covariance = np.asarray(posterior.coefficient_covariance, np.float64)
    variance = np.asarray(posterior.effect_variance, np.float64)
    jitter = 1e-6 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    precision = np.linalg.inv(covariance + jitter) / variance[:, None, None]
    if code == UNKNOWN_CODE:
        return GaussianEffects(np.zeros((term.basis_size, len(variance))), precision)
    noise = np.asarray(model.effects_noise_variance(), np.float64)
    gram = np.asarray(posterior.gram[code], np.float64)
    mean = np.asarray(posterior.effects[code], np.float64)
    return GaussianEffects(mean, precision + gram / noise[:, None, None])


def _basis_of(term: RandomEffect, rows: Rows) -> np.ndarray:
    basis = term.basis_of(rows[EFFECTS][term.label])
    count = int(rows[FEATURES].shape[0])
    return np.ones((count, 1)) if basis is None else np.asarray(basis, np.float64)


def _cells(rows: Rows) -> np.ndarray:
    observed = rows.get("observed")
    return np.ones(rows[FEATURES].shape) if observed is None else np.asarray(observed, np.float64)
