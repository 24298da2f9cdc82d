"""What a row tells of the effects of its level."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_lmmvae.mixed_model.prior import LevelPrior

__all__ = ["Information"]


class Information(NamedTuple):
    """The precision that a row gives to the effects of its level, against that of the prior.

    With `M` the mean over rows of the precision of a row's residuals, and `D` the standard
    deviations of the effects under the prior,

        D M D = axes @ diag(signal) @ axes'

    Along an axis, a level whose Gram matrix has the eigenvalue `g` has the posterior variance
    `1 / (g * signal + 1)` in units of the prior's. Where the latent is known, `M` is
    `diag(1 / noise_variance)` and the axes are the features. Where it is integrated out, they are
    directions: in those that the latent moves, a row tells little of the effects.

    Where cells are missing, every axis has the share of cells of its features, each weighted by
    its squared entry in the axis. This is exact where the axes are the features.

    Attributes:
        effect_variance: Float tensor `(p,)`, prior variances of an effect.
        signal: Float tensor `(p,)`, of every axis.
        axes: Float tensor `(p, p)`, an axis in every column; `None`: the features.
    """

    effect_variance: tf.Tensor
    signal: tf.Tensor
    axes: tf.Tensor | None = None

    @classmethod
    def given_latent(cls, prior: LevelPrior, noise_variance: tf.Tensor) -> Information:
        """That of rows whose latent is known."""
        variance = tf.convert_to_tensor(prior.effect_variance)
        return cls(variance, variance / noise_variance)

    def precision(self) -> np.ndarray:
        """`M`, float64 `(p, p)`; its diagonal `(p,)` where the axes are the features."""
        variance = np.asarray(self.effect_variance, np.float64)
        signal = np.asarray(self.signal, np.float64)
        if self.axes is None:
            return np.asarray(signal / variance)
        scaled = np.asarray(self.axes, np.float64) / np.sqrt(variance)[:, None]
        return np.asarray((scaled * signal) @ scaled.T)

    # Along the axes -----------------------------------------------------------------------

    def strength(self, eigenvalues: tf.Tensor, cell_share: tf.Tensor | None = None) -> tf.Tensor:
        """`g * signal`, `(..., m, p)`: the precision that rows give, over that of the prior.

        Args:
            eigenvalues: Float tensor `(..., m)`, of the levels' Gram matrices.
            cell_share: Optional float tensor `(..., p)` or `(..., 1)`, the share of the Gram matrix
                that a feature's observed cells have. Defaults to 1.
        """
        strength = eigenvalues[..., None] * self.signal
        if cell_share is None:
            return strength
        return strength * self.share_of_axes(cell_share)[..., None, :]

    def share_of_axes(self, of_features: tf.Tensor) -> tf.Tensor:
        """Means over features, `(..., p)`, each weighted by its squared entry in the axis."""
        if self.axes is None or of_features.shape[-1] == 1:
            return of_features
        return _product(of_features, tf.square(self.axes))

    def kept(self, eigenvalues: tf.Tensor, cell_share: tf.Tensor | None = None) -> tf.Tensor:
        """Share of the least-squares effects that the posterior mean keeps, `(..., m, p)`."""
        strength = self.strength(eigenvalues, cell_share)
        return strength / (strength + 1.0)

    def to_axes(self, scores: tf.Tensor) -> tf.Tensor:
        """`axes' D @ scores`, `(..., p)`: scores of features, along the axes."""
        if self.axes is None:
            return scores * tf.sqrt(self.effect_variance)
        return _product(scores * tf.sqrt(self.effect_variance), self.axes)

    def from_axes(self, effects: tf.Tensor) -> tf.Tensor:
        """`D axes @ effects`, `(..., p)`: effects along the axes, of the features."""
        if self.axes is not None:
            effects = _product(effects, tf.transpose(self.axes))
        return effects * tf.sqrt(self.effect_variance)

    def of_features(self, along_axes: tf.Tensor) -> tf.Tensor:
        """Means of what is known along the axes, each weighted by its share of the feature."""
        if self.axes is None:
            return along_axes
        return _product(along_axes, tf.square(tf.transpose(self.axes)))

    # Of features --------------------------------------------------------------------------

    def gram_product(
        self, gram: tf.Tensor, effects: tf.Tensor, cell_share: tf.Tensor | None
    ) -> tf.Tensor:
        """What the rows' precision, `gram (x) M`, makes of effects, `(..., m, p)`."""
        along = tf.matmul(gram, self.to_axes(effects / self.effect_variance))
        along *= self.strength(tf.ones_like(gram[..., :1, 0]), cell_share)
        return self.from_axes(along) / self.effect_variance

    def posterior_variance(
        self, eigenvalues: tf.Tensor, cell_share: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Posterior variances of the features' rotated effects, `(..., m, p)`."""
        left = 1.0 / (self.strength(eigenvalues, cell_share) + 1.0)
        return self.of_features(left) * self.effect_variance


def _product(values: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """`values @ matrix` of tables `(..., p)`, as one product of two matrices.

    Where TensorFlow's oneDNN product spreads one matrix over a batch with two axes, it reads out
    of bounds (tensorflow/tensorflow#117700).
    """
    flat = tf.matmul(tf.reshape(values, (-1, matrix.shape[0])), matrix)
    return tf.reshape(flat, tf.shape(values))
