"""Variational autoencoders that ignore the groups or have them as inputs."""

from collections.abc import Sequence
from typing import Any, Self, get_args

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from sklearn.preprocessing import StandardScaler

from keras_lmmvae.baselines.base import Data
from keras_lmmvae.baselines.columns import Levels, check_groups
from keras_lmmvae.baselines.conditional_vae import Coding, ConditionalVAE
from keras_lmmvae.baselines.latent_variable import LatentVariableBaseline, in_chunks, joined
from keras_lmmvae.baselines.schedule import cosine_adam
from keras_lmmvae.rows import shuffled_batches
from keras_lmmvae.validation import check_positive, received

__all__ = ["VAEBaseline"]

METHODS = {"ignore": "vae", "one-hot": "vae-ohe", "embedding": "vae-embed"}

tfd = tfp.distributions


class VAEBaseline(LatentVariableBaseline):
    """Variational autoencoder. The groups are ignored, or they are inputs of the networks.

        x[i] = f(u[i], c[i]) + e[i],  u[i] ~ Normal(0, I_d),  e[i] ~ Normal(0, diag(noise_variance))
        q(u[i]) = Normal(encoder(x[i], c[i]))

    c[i] are the coded levels of the row. The method is called

    - "vae" without c. It is `LMMVAE(latent_dim, ())`, trained by `cosine_adam`.
    - "vae-ohe" if the encoder has the one-hot coded levels as inputs. The one-hot vectors are
      never built (`OneHotDense`).
    - "vae-embed" if the encoder has trained embeddings of the levels as inputs.
    - "cvae" if the decoder has these embeddings as inputs, too.

    The features are standardised. Unseen keys and null keys are coded as zeros.

    Args:
        latent_dim: Positive int, `d`, at most the number of features.
        groups: Names of the columns of the factors, str or int keys. Defaults to ().
        coding: "ignore", "one-hot" or "embedding". Defaults to "ignore".
        condition_decoder: Whether the decoder has the embeddings as inputs, too. It requires
            `coding="embedding"`. Defaults to False.
        embedding_dim: Positive int, length of the embedding of a factor. Defaults to 10.
        hidden_units: Widths of the dense layers of the encoder. The decoder has the same in
            reverse order. Defaults to (1000, 500).
        activation: Activation of these layers. Defaults to "relu".
        epochs: Positive int. Defaults to 25.
        batch_size: Positive int. Defaults to 128.
        learning_rate: Positive float, learning rate of the first step. Defaults to 2e-3.
        kl_weight: Non-negative float, weight of KL(q(u) || p(u)). Defaults to 1.0.
        seed: Optional int that fixes initial weights, order of the rows and draws.

    Attributes:
        model_: The fitted `ConditionalVAE`.
        levels_: Dict of `pandas.Index`, the keys of the levels of each column.
        scaler_: `StandardScaler` of the features.
        noise_variance_: Float64 array `(p,)`, in squared units of the features.
        history_: Dict with the negative ELBO per row of each epoch, for standardised features.
        n_features_in_: Int, number of features `p`.

    Raises:
        ValueError: In `fit`, if an argument is out of its range, `x` has missing cells or a
            constant feature, or a column of `groups` is missing.

    Example:
        >>> rng = np.random.default_rng(1)
        >>> data = {"x": rng.normal(size=(50, 4)), "store": rng.integers(0, 5, 50)}
        >>> baseline = VAEBaseline(2, groups=["store"], coding="embedding", hidden_units=(8,),
        ...                        epochs=1, seed=0)
        >>> baseline.method, baseline.fit(data).reconstruct(data).shape
        ('vae-embed', (50, 4))

    References:
        - Kingma & Welling (2014), Auto-encoding variational Bayes.
        - Sohn, Lee & Yan (2015), Learning structured output representation using deep
          conditional generative models.
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        groups: Sequence[str] = (),
        coding: Coding = "ignore",
        condition_decoder: bool = False,
        embedding_dim: int = 10,
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
        self.coding = coding
        self.condition_decoder = condition_decoder
        self.embedding_dim = embedding_dim
        self.hidden_units = hidden_units
        self.activation = activation
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.kl_weight = kl_weight
        self.seed = seed

    @property
    def method(self) -> str:
        return "cvae" if self.condition_decoder else METHODS[self.coding]

    def fit(self, data: Data) -> Self:
        """Trains the networks on `data` and returns the baseline."""
        x = self._fit_features(data, self.latent_dim)
        self._check_settings()
        constant = np.flatnonzero(np.ptp(x, axis=0) == 0)
        if len(constant):
            raise ValueError(
                "Features must vary: drop constant columns of `x`. "
                + received(constant_columns=constant.tolist())
            )
        self.scaler_ = StandardScaler().fit(x)
        self.vocabulary_ = Levels(data, () if self.coding == "ignore" else self.groups)
        self.levels_ = self.vocabulary_.keys
        self.model_ = self._make_model()
        rows = self._rows(data)
        self.model_.compile(cosine_adam(self.learning_rate, len(x), self.batch_size, self.epochs))
        batches = shuffled_batches(rows, self.batch_size, self.seed)
        history = self.model_.fit(batches, epochs=self.epochs, shuffle=False, verbose=0)
        self.history_ = history.history
        self.noise_variance_ = self._noise_in_units(self.model_.noise_variance)
        return self

    def _make_model(self) -> ConditionalVAE:
        sizes = self.vocabulary_.sizes
        return ConditionalVAE(
            self.latent_dim,
            self.n_features_in_,
            num_levels=sum(sizes.values()),
            num_groups=len(sizes),
            coding=self.coding,
            condition_decoder=self.condition_decoder,
            embedding_dim=self.embedding_dim,
            hidden_units=self.hidden_units,
            activation=self.activation,
            kl_weight=self.kl_weight,
            seed=self.seed,
        )

    def _posterior(self, data: Data) -> tfp.distributions.Normal:
        mean, log_var = joined(in_chunks(self.model_.posterior, self._rows(data)))
        return tfd.Normal(mean, tf.exp(0.5 * log_var))

    def _decode(self, latent: tf.Tensor, data: Data) -> tf.Tensor:
        def decode(rows: dict[str, tf.Tensor]) -> tf.Tensor:
            return self._in_units(self.model_.decode(rows["latent"], rows))

        return joined(in_chunks(decode, {"latent": latent, **self._codes(data)}))

    def _rows(self, data: Data) -> dict[str, tf.Tensor]:
        """Returns standardised features and codes."""
        return {"x": self._standardised(data), **self._codes(data)}

    def _codes(self, data: Data) -> dict[str, tf.Tensor]:
        """Returns positions among the levels of all factors, `(n, K)`, if the model uses them."""
        if self.coding == "ignore":
            return {}
        columns = self.vocabulary_.codes(data).values()
        starts = np.cumsum([0, *self.vocabulary_.sizes.values()])
        positions = [
            np.where(codes >= 0, codes + start, codes)
            for codes, start in zip(columns, starts, strict=False)
        ]
        return {"codes": tf.constant(np.stack(positions, axis=1), tf.int32)}

    def _check_settings(self) -> None:
        """Raises a ValueError on an argument out of its range."""
        if self.coding not in get_args(Coding):
            raise ValueError(
                f"`coding` must be one of {get_args(Coding)}. " + received(coding=self.coding)
            )
        check_groups(self.groups, minimum=int(self.coding != "ignore"))
        if self.condition_decoder and self.coding != "embedding":
            raise ValueError(
                "`condition_decoder=True` needs `coding='embedding'`. "
                + received(condition_decoder=self.condition_decoder, coding=self.coding)
            )
        self._check_training()
        check_positive("embedding_dim", self.embedding_dim, integer=True, minimum=1)
