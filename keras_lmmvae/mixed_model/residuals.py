"""What the effects are to explain, and the covariance of what they leave over."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from keras_lmmvae.validation import received

__all__ = ["Residuals", "Targets"]


class Targets(NamedTuple):
    """Rows as the mixed model sees them, linear in all that is not known.

        values[i] = loadings[i] @ u[i] + Z[i] B + e[i]
        u[i] ~ Normal(0, I),    e[i] ~ Normal(0, diag(noise_variance))

    Attributes:
        values: Float tensor `(b, p)`.
        loadings: Float tensor `(d, b, p)`, one axis of the latent after the other; `None` where
            rows have no latent.
    """

    values: tf.Tensor
    loadings: tf.Tensor | None = None


class Residuals(NamedTuple):
    """The covariance of `values - Z B`, a factor-analytic one: `Omega = L L' + diag(s)`.

    The latent is integrated out: two features of a row that the latent moves together do not
    tell of the effects what they would tell apart. By Woodbury's identity

        inv(Omega) = diag(1 / s) - K K',    K = diag(1 / s) L R,    R R' = inv(I + L' diag(1 / s) L)

    so a product costs `O(p * d)` a row.

    Attributes:
        noise_variance: Float tensor `(p,)`, `s`.
        factors: Float tensor `(d, b, p)`, `K` of every row; 0 in missing cells. `None` where rows
            have no latent.
    """

    noise_variance: tf.Tensor
    factors: tf.Tensor | None = None

    @classmethod
    def of(
        cls, loadings: tf.Tensor | None, noise_variance: tf.Tensor, cells: tf.Tensor | None = None
    ) -> Residuals:
        """The covariance of rows with these loadings.

        Args:
            loadings: Float tensor `(d, b, p)`, or `None`.
            noise_variance: Float tensor `(p,)`.
            cells: Weights of cells, `(b, p)` or `(b, 1)`, 0 for missing ones; `None`: all count.
        """
        if loadings is None:
            return cls(noise_variance)
        if cells is not None:
            loadings = tf.where(cells > 0.0, loadings, tf.zeros_like(loadings))
        scaled = loadings / tf.sqrt(noise_variance)
        inner = tf.einsum("kbp,lbp->bkl", scaled, scaled) + tf.eye(loadings.shape[0])
        # With inner = C C', the rows of inv(C) are those of R'.
        identity = tf.broadcast_to(tf.eye(loadings.shape[0]), tf.shape(inner))
        inverse = tf.linalg.triangular_solve(tf.linalg.cholesky(inner), identity)
        factors = tf.einsum("bkl,lbp->kbp", inverse, scaled) / tf.sqrt(noise_variance)
        return cls(noise_variance, factors)

    def precision_product(self, values: tf.Tensor) -> tf.Tensor:
        """`inv(Omega) @ values` of every row, `(b, p)`."""
        product = values / self.noise_variance
        if self.factors is None:
            return product
        for factor in tf.unstack(self.factors):
            product -= factor * tf.reduce_sum(factor * values, axis=1, keepdims=True)
        return product

    def lost_precision(self, weights: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        """Sum over rows of `K K'`, `(p, p)`, and the sum of the rows' weights.

        It is what a row tells less of the effects because its latent is not known.
        """
        if self.factors is None:
            raise ValueError("Rows without a latent lose nothing. " + received(factors=None))
        factors, count = self.factors, tf.cast(tf.shape(self.factors)[1], tf.float32)
        if weights is not None:
            factors, count = factors * tf.sqrt(weights)[:, None], tf.reduce_sum(weights)
        flat = tf.reshape(factors, (-1, factors.shape[-1]))
        return tf.matmul(flat, flat, transpose_a=True), count
