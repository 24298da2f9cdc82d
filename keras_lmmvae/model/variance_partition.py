"""Which part of every feature's variance is the latent's, the terms' and the noise's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from keras_lmmvae.effects.vocabulary import NULL_CODE
from keras_lmmvae.model.part import ModelPart
from keras_lmmvae.model.rows import EFFECTS, Rows, batches_of
from keras_lmmvae.validation import check_positive

__all__ = ["VariancePartition"]

# Draws from the prior that are decoded at once.
_CHUNK = 4096


class VariancePartition(ModelPart):
    """The part of `LMMVAE` that divides the variance of the features among its parts."""

    def variance_partition(self, data: Any = None, *, num_samples: int = 10_000) -> pd.DataFrame:
        """Shares of every feature's variance: of the latent part, of each term, of the noise.

            latent = Var(f(u))
            term k = effect_variance * mean over rows of phi' Psi phi
            noise  = noise_variance

        each over their sum. A term with slopes has one row, the variance of its effect on an
        average row. These are variances of the population that the levels come from, as in an
        intraclass correlation, not of the levels that happened to be seen.

        Without data, `u` is drawn from its prior N(0, I), and the rows are those of training:
        the variance of rows that the model itself makes. The prior is a good description of
        the latents only if the KL held them there (`kl_weight` not much below 1). With data,
        `u` is drawn from the rows' posteriors q(u), and the mean is over those rows: the
        variance in this population, whatever the latents' distribution. Prefer it where you
        have the training rows, or rows that represent the population of interest.

        Args:
            data: Optional dict of arrays of `n` rows, or a batched dataset of dicts. Rows
                without a level of a term do not count for that term.
            num_samples: Positive int, least number of draws of `u`; from rows as many each, one
                at least. They are fixed by the model's seed; the relative standard error of the
                variance of a linear `f` is `sqrt(2 / num_samples)`.

        Returns:
            A DataFrame, ("latent", terms by name, "noise") x features; columns sum to 1.

        Raises:
            ValueError: If `num_samples` is not a positive int, the posterior is amortized, or on
                bad data.

        Example:
            >>> import numpy as np
            >>> import keras_lmmvae as lmm
            >>> rng = np.random.default_rng(0)
            >>> data = {"store": rng.integers(0, 40, size=800)}
            >>> data["x"] = rng.normal(size=(40, 3))[data["store"]] + rng.normal(size=(800, 3))
            >>> model = lmm.LMMVAE(1, [lmm.RandomIntercept("store")], hidden_units=(8,), seed=0)
            >>> model.adapt(data)
            >>> model.compile()
            >>> history = model.fit(data, batch_size=100, verbose=0)
            >>> shares = model.variance_partition(data)
            >>> list(shares.index), np.allclose(shares.sum(), 1.0)
            (['latent', 'store', 'noise'], True)

        References:
            - Nakagawa, S. & Schielzeth, H. (2013), A general and simple method for obtaining R2
              from generalized linear mixed-effects models, eq. (26).
            - Johnson, P. C. D. (2014), Extension of Nakagawa & Schielzeth's R2 to random slopes
              models, eq. (10).
        """
        self.require_fitted()
        self.require_variances()
        check_positive("num_samples", num_samples, integer=True, minimum=1)
        if data is None:
            latent = self.latent_variance(num_samples)
            shares = [term.posterior.mean_prior_share() for term in self.random_effects]
        else:
            rows = self.encode_data(data)
            total = sum(int(batch["x"].shape[0]) for batch in batches_of(rows))
            latent = _variance(self._decoded_rows(rows, -(-num_samples // total)))
            shares = self._mean_prior_shares(rows)
        parts = {"latent": latent}
        for term, share in zip(self.random_effects, shares, strict=True):
            parts[term.label] = share * _numpy(term.posterior.effect_variance)
        parts["noise"] = _numpy(self.noise_variance)
        variances = np.stack(list(parts.values()))
        columns = self.variance_components().columns
        return pd.DataFrame(variances / variances.sum(axis=0), list(parts), columns)

    def latent_variance(self, num_samples: int) -> np.ndarray:
        """`Var(f(u))` with `u` from its prior, `(p,)`, in squared standardised units."""
        return _variance(self._decoded_prior(num_samples))

    def _decoded_prior(self, num_samples: int) -> Iterator[np.ndarray]:
        """`f(u)` of draws from the prior, in standardised units."""
        for number, start in enumerate(range(0, num_samples, _CHUNK)):
            size = min(_CHUNK, num_samples - start)
            seed = (0 if self.seed is None else self.seed, number)
            latent = tf.random.stateless_normal((size, self.latent_dim), seed)
            yield _numpy(self.decode_standard(latent))

    def _decoded_rows(self, rows: Any, num_draws: int) -> Iterator[np.ndarray]:
        """`f(u)` of draws from the rows' posteriors, in standardised units."""
        for number, batch in enumerate(batches_of(rows)):
            mean, log_var = self.latent_posterior(batch, self.effects_fit.contribution(batch))
            scale = tf.exp(0.5 * log_var)
            for draw in range(num_draws):
                seed = (0 if self.seed is None else self.seed, number * num_draws + draw)
                noise = tf.random.stateless_normal(tf.shape(mean), seed)
                yield _numpy(self.decode_standard(mean + scale * noise))

    def _mean_prior_shares(self, rows: Any) -> list[float]:
        """Means of `phi' Psi phi` over the rows that have a level, by term; 0 without any."""
        totals = np.zeros((len(self.random_effects), 2))
        for batch in batches_of(rows):
            for number, term in enumerate(self.random_effects):
                totals[number] += self._prior_share_sums(term, batch)
        return [float(total / max(count, 1.0)) for total, count in totals]

    @staticmethod
    def _prior_share_sums(term: Any, batch: Rows) -> tuple[float, float]:
        encoded = batch[EFFECTS][term.label]
        has_level = _numpy(encoded["codes"]) != NULL_CODE
        basis = term.basis_of(encoded)
        if basis is None:
            return float(has_level.sum()), float(has_level.sum())
        shape = term.posterior.coefficient_covariance
        quadratic = _numpy(tf.einsum("bi,ij,bj->b", basis, shape, basis))
        return float(quadratic[has_level].sum()), float(has_level.sum())


def _variance(chunks: Iterator[np.ndarray]) -> np.ndarray:
    """Variances by feature, `(p,)`, of chunks of rows `(b, p)` whose means are near 0."""
    count, first, second = 0, 0.0, 0.0
    for chunk in chunks:
        count += len(chunk)
        first, second = first + chunk.sum(axis=0), second + np.square(chunk).sum(axis=0)
    return np.asarray(second / count - np.square(first / count))


def _numpy(values: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(values), np.float64)
