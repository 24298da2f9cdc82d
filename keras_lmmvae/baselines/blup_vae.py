"""BLUPs of group means, then a variational autoencoder of the residuals."""

from collections.abc import Sequence
from typing import Any, Self

import tensorflow as tf
import tensorflow_probability as tfp

from keras_lmmvae.baselines.base import Data, FloatArray
from keras_lmmvae.baselines.group_means import GroupMeans
from keras_lmmvae.baselines.latent_variable import LatentVariableBaseline
from keras_lmmvae.baselines.vae import VAEBaseline

__all__ = ["BLUPVAE"]


class BLUPVAE(LatentVariableBaseline):
    """Linear mixed model of each feature, then a plain VAE of the residuals.

        x[i] = mean + sum{ B_k[code_k[i]] : k=1...K } + f(u[i]) + e[i]

    The mixed model is `GroupMeans`, the autoencoder `VAEBaseline`. They are fitted one after the
    other, while `LMMVAE` fits both parts jointly.

    Args:
        latent_dim: Positive int, `d`, at most the number of features.
        groups: Names of the columns of the factors, str or int keys. The effect of null keys and
            of unseen keys is 0.
        hidden_units: Widths of the dense layers of the encoder. The decoder has the same in
            reverse order. Defaults to (1000, 500).
        activation: Activation of these layers. Defaults to "relu".
        epochs: Positive int. Defaults to 25.
        batch_size: Positive int. Defaults to 128.
        learning_rate: Positive float, learning rate of the first step. Defaults to 2e-3.
        kl_weight: Non-negative float, weight of KL(q(u) || p(u)). Defaults to 1.0.
        seed: Optional int that fixes initial weights, order of the rows and draws.

    Attributes:
        group_means_: The fitted `GroupMeans`.
        vae_: The fitted `VAEBaseline` of the residuals.
        n_features_in_: Int, number of features `p`.

    Raises:
        ValueError: In `fit`, if an argument is out of its range, `x` has missing cells or a
            constant feature, a column of `groups` is missing, or all of its levels have only one
            row.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(1)
        >>> data = {"x": rng.normal(size=(50, 4)), "store": rng.integers(0, 5, 50)}
        >>> baseline = BLUPVAE(2, ["store"], hidden_units=(8,), epochs=1, seed=0)
        >>> baseline.fit(data).reconstruct(data).shape
        (50, 4)
    """

    def __init__(
        self,
        latent_dim: int,
        groups: Sequence[str],
        *,
        hidden_units: Sequence[int] = (1000, 500),
        activation: Any = "relu",
        epochs: int = 25,
        batch_size: int = 128,
        learning_rate: float = 2e-3,
        kl_weight: float = 1.0,
        seed: int | None = None,
    ) -> None:
        self.latent_dim = latent_dim
        self.groups = groups
        self.hidden_units = hidden_units
        self.activation = activation
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.kl_weight = kl_weight
        self.seed = seed

    @property
    def method(self) -> str:
        return "blup-vae"

    def fit(self, data: Data) -> Self:
        """Fits variances and group effects, then trains the networks, and returns the baseline."""
        x = self._fit_features(data, self.latent_dim)
        self.group_means_ = GroupMeans(self.groups).fit(x, data)
        settings = self.get_params()
        del settings["groups"]
        self.vae_ = VAEBaseline(**settings).fit(self._residual(data))
        return self

    def _posterior(self, data: Data) -> tfp.distributions.Normal:
        return self.vae_._posterior(self._residual(data))

    def _decode(self, latent: tf.Tensor, data: Data) -> tf.Tensor:
        decoded = self.vae_._decode(latent, {})
        return decoded + tf.cast(self._population_and_groups(data), tf.float32)

    def _error_variance(self, data: Data) -> FloatArray:
        """Returns noise variance plus posterior variance of the group effects, `(n, p)`."""
        return self.vae_.noise_variance_ + self.group_means_.contribution_variance(data)

    def _residual(self, data: Data) -> dict[str, FloatArray]:
        """Returns the features minus mean and group effects, without other columns."""
        return {"x": self._known_features(data) - self._population_and_groups(data)}

    def _population_and_groups(self, data: Data) -> FloatArray:
        return self.group_means_.mean_ + self.group_means_.contribution(data)
