"""What the autoencoders among the baselines share: a Gaussian latent, and bounds from it."""

from abc import abstractmethod

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from sklearn.utils.validation import check_is_fitted

from keras_lmmvae.baselines.base import Baseline, Data, FloatArray
from keras_lmmvae.elbo import Density, importance_bound, plain_bound
from keras_lmmvae.likelihood import gaussian_log_likelihood
from keras_lmmvae.validation import check_positive

__all__ = ["LatentVariableBaseline"]

tfd = tfp.distributions


class LatentVariableBaseline(Baseline):
    """Baseline with an encoder q(u[i]) and a decoder of each row's own latent.

        x[i] = f(u[i], columns[i]) + e[i],  u[i] ~ Normal(prior mean, prior variance)

    A method gives `_posterior`, `_decode` and `_error_variance`; the rest follows.

    Attributes:
        seed: Optional int that fixes initial weights and draws.
    """

    seed: int | None

    @abstractmethod
    def _posterior(self, data: Data) -> tfp.distributions.Normal:
        """Returns q(u), batch shape `(n, d)`, float32."""

    @abstractmethod
    def _decode(self, latent: tf.Tensor, data: Data) -> tf.Tensor:
        """Returns the reconstruction of `x` from latents `(n, d)`, float32 `(n, p)`, in units."""

    @abstractmethod
    def _error_variance(self, data: Data) -> FloatArray:
        """Returns the variance of `x` around its reconstruction, `(p,)` or `(n, p)`."""

    def _prior(self, data: Data) -> tfp.distributions.Normal:
        """Returns p(u), of a batch shape that broadcasts to `(n, d)`."""
        del data
        return tfd.Normal(0.0, 1.0)

    def transform(self, data: Data) -> FloatArray:
        """Returns the posterior means of the latent, float64 `(n, d)`."""
        check_is_fitted(self)
        self._known_features(data)
        return np.asarray(self._posterior(data).loc, np.float64)

    def reconstruct(self, data: Data) -> FloatArray:
        """Returns the decoded posterior means, float64 `(n, p)`, in the units of the features."""
        check_is_fitted(self)
        self._known_features(data)
        return np.asarray(self._decode(self._posterior(data).loc, data), np.float64)

    def log_likelihood(self, data: Data, num_samples: int = 0) -> FloatArray:
        """Returns bounds of the rows' log densities given the training rows, float64 `(n,)`."""
        check_is_fitted(self)
        check_positive("num_samples", num_samples, integer=True, minimum=0)
        x = tf.cast(self._known_features(data), tf.float32)
        posterior, prior = self._posterior(data), self._prior(data)
        variance = tf.cast(self._error_variance(data), tf.float32)

        def density(latent: tf.Tensor) -> tf.Tensor:
            return gaussian_log_likelihood(x - self._decode(latent, data), variance, None)

        return np.asarray(self._bound(density, posterior, prior, num_samples), np.float64)

    def _bound(
        self,
        density: Density,
        posterior: tfp.distributions.Normal,
        prior: tfp.distributions.Normal,
        num_samples: int,
    ) -> tf.Tensor:
        """Returns the plain bound, or the importance-weighted one if `num_samples` is positive."""
        if not num_samples:
            return plain_bound(density, posterior, prior)
        seed = 0 if self.seed is None else self.seed
        return importance_bound(density, posterior, prior, num_samples, seed)
