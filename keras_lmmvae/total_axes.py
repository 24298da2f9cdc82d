"""The axes of the total representation: what a row is, its groups included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from scipy.linalg import eigh

from keras_lmmvae import linalg
from keras_lmmvae.inference import Inference
from keras_lmmvae.layers.state_layer import StateLayer
from keras_lmmvae.rows import FEATURES, Pass, Rows, row_weights

__all__ = ["TotalAxes"]


class TotalAxes(StateLayer):
    """Axes along which rows with their groups vary most, measured by what varies within groups.

        total[i] = axes' @ (f(u[i]) + Z[i] @ B - mean)
        Cov(f(u) + Z B) @ axes = Cov(x - Z B) @ axes @ diag(ratio)
        axes' @ Cov(x - Z B) @ axes = I

    These are the principal components of the denoised rows, once the covariance within groups is
    made the identity, those of the largest ratios. Within a group every axis varies alike, so
    that an axis stands out by what it tells of the groups, however small the features are that
    tell it. Without the effects, the ratio is the share of an axis that the latent explains.

    Args:
        num_features: Positive int, `p`.
        latent_dim: Positive int, `d`. If it is above `p`, the last axes are 0.

    Attributes:
        mean: Weight `(p,)`, of the denoised training rows, in standardised units.
        axes: Weight `(p, d)`, an axis in every column.

    References:
        - Fisher, R. A. (1936), The use of multiple measurements in taxonomic problems.
        - Hatch, A. O., Kajarekar, S. & Stolcke, A. (2006), Within-class covariance normalization
          for SVM-based speaker recognition.
    """

    def __init__(self, num_features: int, latent_dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_features = num_features
        self.latent_dim = latent_dim

    def build(self, input_shape: Any = None) -> None:
        self.mean = self.state("mean", (self.num_features,))
        self.axes = self.state("axes", (self.num_features, self.latent_dim))

    def of(self, seen: Inference) -> tf.Tensor:
        """The total representation of rows, `(b, d)`."""
        return tf.matmul(seen.mean - self.mean, self.axes.value)

    def fit(self, rows: Pass, infer: Callable[[Rows], Inference]) -> None:
        """Takes the axes of some rows.

        Args:
            rows: The rows.
            infer: What the model says of rows. A missing cell counts with what it says.
        """

        def sums(batch: Rows) -> tuple[tf.Tensor, ...]:
            seen, weight = infer(batch), row_weights(batch)
            within = batch[FEATURES] - seen.contribution
            if seen.observed is not None:
                within = tf.where(seen.observed, within, seen.population)
            found = []
            for values in (tf.cast(seen.mean, tf.float64), tf.cast(within, tf.float64)):
                ones = tf.ones_like(values[:, 0]) if weight is None else weight
                weighted = tf.cast(ones, tf.float64)[:, None] * values
                products = tf.matmul(weighted, values, transpose_a=True)
                found += [tf.reduce_sum(weighted, axis=0), products]
            return (tf.reduce_sum(tf.cast(ones, tf.float64)), *found)

        count, *found = (value.numpy() for value in rows.total(sums))
        mean, total = _moments(count, *found[:2])
        _, within = _moments(count, *found[2:])
        size, width = self.num_features, min(self.latent_dim, self.num_features)
        ridge = linalg.JITTER * max(np.trace(within) / size, linalg.JITTER)
        _, axes = eigh(
            total, within + ridge * np.eye(size), subset_by_index=[size - width, size - 1]
        )
        axes = axes[:, ::-1]
        largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
        axes = axes * np.where(largest < 0.0, -1.0, 1.0)
        self.mean.assign(mean)
        self.axes.assign(np.pad(axes, [(0, 0), (0, self.latent_dim - width)]))


def _moments(
    count: float, total: np.ndarray, products: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean `(p,)` and covariance `(p, p)` of sums."""
    mean = total / count
    return mean, products / count - np.outer(mean, mean)
