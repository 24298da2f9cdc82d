"""Networks and kernel of the sparse Gaussian process autoencoder."""

from collections.abc import Sequence

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from keras_lmmvae.baselines.auxiliary_points import AuxiliaryRows
from keras_lmmvae.baselines.base import FloatArray
from keras_lmmvae.baselines.sparse_gp import whitened_basis
from keras_lmmvae.networks import LatentDecoder, LatentEncoder, dense_stack

__all__ = ["GPAutoencoder", "inducing_centres", "subject_scores"]

_FIRST_LENGTH_SCALE = 0.5  # initial length scale of standardised coordinates and times
_FIRST_SUBJECT_SCALE = 1.0  # initial standard deviation of subject vectors, as in their prior


class GPAutoencoder(keras.Layer):
    """Encoder, decoder and trainable parameters of the kernel, in standardised units.

        k(a, a') = product over parts{ exp(-|a_part - a'_part|**2 / (2 length_scale_part**2)) }

    The parts are the coordinates, the time and the vector of the subject (length scale 1).

    Args:
        latent_dim: Positive int, `d`.
        num_features: Positive int, `p`.
        hidden_units: Widths of the layers of the encoder. The decoder has the same in reverse
            order.
        parts: Numbers of place columns with a common length scale.
        subject_vectors: Initial vectors of the subjects, float array `(q, r)`. `(1, 0)` if there
            are no subjects.
        inducing_points: Initial points, float array `(m, c + r)`: places, then subject vectors.
        seed: Int that fixes the initial weights.
    """

    def __init__(
        self,
        latent_dim: int,
        num_features: int,
        hidden_units: Sequence[int],
        parts: Sequence[int],
        subject_vectors: FloatArray,
        inducing_points: FloatArray,
        seed: int,
    ) -> None:
        super().__init__()
        self.parts = tuple(parts)
        trunk = dense_stack(hidden_units, "relu", "encoder_trunk", None, seed)
        self.encoder = LatentEncoder(trunk, latent_dim, seed + 100)
        trunk = dense_stack(hidden_units[::-1], "relu", "decoder_trunk", None, seed + 200)
        self.decoder = LatentDecoder(trunk, num_features, seed=seed + 300)
        self.encoder.build((None, num_features))
        self.decoder.build((None, latent_dim))
        self.log_length_scales = self._weight(np.full(len(parts), np.log(_FIRST_LENGTH_SCALE)))
        self.subject_vectors = self._weight(subject_vectors)
        self.inducing_points = self._weight(inducing_points)

    def _weight(self, values: FloatArray) -> keras.Variable:
        weight = self.add_weight(shape=values.shape, initializer="zeros", trainable=values.size > 0)
        weight.assign(values)
        return weight

    def vectors(self, subjects: tf.Tensor) -> tf.Tensor:
        """Vectors of subjects `(b, r)`. A negative code gives 0, the prior mean of the vectors."""
        known = tf.gather(tf.convert_to_tensor(self.subject_vectors), tf.maximum(subjects, 0))
        return tf.where((subjects < 0)[:, None], 0.0, known)

    def basis(self, places: tf.Tensor, subjects: tf.Tensor) -> tf.Tensor:
        """Whitened kernel features of rows, float64 `(b, m)`.

        Args:
            places: Float tensor `(b, c)`.
            subjects: Int tensor `(b,)`.
        """
        points = tf.concat([places, self.vectors(subjects)], axis=1)
        inducing_points = tf.convert_to_tensor(self.inducing_points)
        return whitened_basis(self._in_scales(points), self._in_scales(inducing_points))

    def _in_scales(self, points: tf.Tensor) -> tf.Tensor:
        """Points in units of the length scales, float64."""
        log_scales = tf.repeat(tf.convert_to_tensor(self.log_length_scales), self.parts)
        rest = points.shape[1] - sum(self.parts)
        scales = tf.exp(tf.concat([log_scales, tf.zeros(rest)], axis=0))
        return tf.cast(points, tf.float64) / tf.cast(scales, tf.float64)


def subject_scores(x: FloatArray, subjects: np.ndarray, subject_dim: int) -> FloatArray:
    """Initial subject vectors: principal component scores of the mean features of subjects.

    The scores of each component are scaled to variance 1.

    Args:
        x: Standardised features, float array `(n, p)`.
        subjects: Int array `(n,)`, codes `0 ... q - 1`. Rows with a negative code are left out.
        subject_dim: Positive int `r`.

    Returns:
        vectors: Float64 array `(q, r)`. Components beyond the rank of the means are 0.

    Example:
        >>> vectors = subject_scores(np.array([[1.0], [3.0], [3.0]]), np.array([0, 1, 1]), 2)
        >>> np.abs(vectors).round(6).tolist()
        [[1.0, 0.0], [1.0, 0.0]]
    """
    known = subjects >= 0
    rows = pd.DataFrame(x[known].astype(np.float64))
    means = rows.groupby(subjects[known]).mean().to_numpy()
    rank = min(subject_dim, *means.shape)
    scores = PCA(rank, svd_solver="full").fit_transform(means)
    scales = np.sqrt(np.square(scores).mean(axis=0))
    vectors = np.zeros((len(means), subject_dim))
    vectors[:, :rank] = _FIRST_SUBJECT_SCALE * scores / np.where(scales > 1e-9, scales, 1.0)
    return vectors


def inducing_centres(
    rows: AuxiliaryRows, vectors: FloatArray, num_inducing: int, seed: int
) -> FloatArray:
    """Initial inducing points by k-means over the rows, float64 `(m, c + r)`.

    Args:
        rows: Auxiliary data of the training rows.
        vectors: Initial subject vectors, float array `(q, r)`. `(1, 0)` if there are no subjects.
        num_inducing: Positive int, maximum number of inducing points. There are fewer if the rows
            have fewer distinct points.
        seed: Int that fixes the clusters.
    """
    known = np.where((rows.subjects < 0)[:, None], 0.0, vectors[np.maximum(rows.subjects, 0)])
    points = np.concatenate([rows.places, known], axis=1)
    size = min(num_inducing, len(np.unique(points, axis=0)))
    clusters = KMeans(size, n_init=1, random_state=seed).fit(points)
    return np.asarray(clusters.cluster_centers_, np.float64)
