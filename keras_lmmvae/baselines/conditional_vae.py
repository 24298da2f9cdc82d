"""Keras model of the variational autoencoders, with or without groups as inputs."""

from collections.abc import Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from keras_lmmvae.baselines.level_layers import LevelTable, OneHotDense
from keras_lmmvae.baselines.noise import mean_noise_log_likelihood, updated_noise_variance
from keras_lmmvae.elbo import latent_kl
from keras_lmmvae.networks import LatentDecoder, LatentEncoder, dense_stack, layer_seeds

__all__ = ["Coding", "ConditionalVAE"]

Coding = Literal["ignore", "one-hot", "embedding"]
Rows = dict[str, tf.Tensor]


class ConditionalVAE(keras.Model):
    """Variational autoencoder whose networks may have the levels of factors as inputs.

        x[i] = f(u[i], c[i]) + e[i],  u[i] ~ Normal(0, I_d),  e[i] ~ Normal(0, diag(noise_variance))
        q(u[i]) = Normal(encoder(x[i], c[i]))

    c[i] are the embedded or one-hot coded levels. Without them the model is
    `LMMVAE(latent_dim, ())`: it has the same networks, initial weights, draws and loss. The noise
    variance is the running mean of the squared training errors of each feature.

    Args:
        latent_dim: Positive int, `d`.
        num_features: Positive int, `p`.
        num_levels: Levels of all factors together, `q`. 0 if `coding` is "ignore".
        num_groups: Number of factors, `K`.
        coding: How the encoder uses the levels: "ignore", "one-hot" or "embedding".
        condition_decoder: Whether the decoder has the embeddings as inputs, too.
        embedding_dim: Positive int, length of the embedding of a factor.
        hidden_units: Widths of the dense layers of the encoder. The decoder has the same in
            reverse order.
        activation: Activation of these layers.
        kl_weight: Non-negative float, weight of KL(q(u) || p(u)).
        seed: Optional int that fixes initial weights and draws.

    Example:
        >>> vae = ConditionalVAE(2, num_features=5, hidden_units=(8,), seed=0)
        >>> mean, log_var = vae.posterior({"x": tf.zeros((3, 5))})
        >>> vae.decode(mean, {}).shape
        TensorShape([3, 5])

    References:
        - Sohn, Lee & Yan (2015), Learning structured output representation using deep
          conditional generative models.
    """

    def __init__(
        self,
        latent_dim: int,
        num_features: int,
        *,
        num_levels: int = 0,
        num_groups: int = 0,
        coding: Coding = "ignore",
        condition_decoder: bool = False,
        embedding_dim: int = 10,
        hidden_units: Sequence[int] = (1000, 500),
        activation: Any = "relu",
        kl_weight: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(autocast=False)
        self.num_features = num_features
        self.coding = coding
        self.condition_decoder = condition_decoder
        self.kl_weight = kl_weight
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.loss_tracker = keras.metrics.Mean(name="loss")
        *network_seeds, level_seed = list(layer_seeds(seed))[:5]
        # Input widths of encoder and decoder.
        widths, hidden = [num_features, latent_dim], list(hidden_units)
        if coding == "one-hot":
            widths[0] = hidden.pop(0)
            self.first = OneHotDense(widths[0], num_features, num_levels, activation, level_seed)
            self.first.build()
        elif coding == "embedding":
            uniform = keras.initializers.RandomUniform(-0.05, 0.05, seed=level_seed)
            self.embedding = LevelTable(num_levels, embedding_dim, uniform)
            self.embedding.build()
            widths[0] += num_groups * embedding_dim
            widths[1] += num_groups * embedding_dim if condition_decoder else 0
        self._make_networks(
            latent_dim, widths, [hidden, hidden_units[::-1]], activation, network_seeds
        )
        self.noise_variance = self.add_weight(
            name="noise_variance",
            shape=(num_features,),
            initializer="ones",
            trainable=False,
            autocast=False,
            dtype="float32",
        )
        self.built = True

    def _make_networks(
        self,
        latent_dim: int,
        widths: Sequence[int],
        hidden_units: Sequence[Sequence[int]],
        activation: Any,
        seeds: Sequence[int | None],
    ) -> None:
        """Makes encoder and decoder with the given input widths and hidden layers."""
        policy = self.dtype_policy
        trunks = [
            dense_stack(units, activation, name, policy, seed) if units else keras.layers.Identity()
            for units, name, seed in zip(
                hidden_units, ("encoder_trunk", "decoder_trunk"), seeds[::2], strict=True
            )
        ]
        self.latent_encoder = LatentEncoder(trunks[0], latent_dim, seeds[1], dtype=policy)
        self.latent_encoder.build((None, widths[0]))
        self.latent_decoder = LatentDecoder(
            trunks[1], self.num_features, seed=seeds[3], dtype=policy
        )
        self.latent_decoder.build((None, widths[1]))

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [self.loss_tracker]

    def build(self, input_shape: Any = None) -> None:
        """Does nothing: `__init__` makes all weights, because its arguments give all sizes."""

    def posterior(self, rows: Rows, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and log variance of q(u), `(b, d)` each.

        Args:
            rows: Dict with "x", float32 `(b, p)`, standardised. Unless `coding` is "ignore", it
                also has "codes", int `(b, K)`: positions among the levels of all factors. They
                are negative for unseen and null keys.
            training: Whether the call is part of a training step.
        """
        values = rows["x"]
        if self.coding == "one-hot":
            values = self.first(values, rows["codes"])
        elif self.coding == "embedding":
            values = tf.concat([values, self._embedded(rows)], axis=1)
        return self.latent_encoder(values, training=training)

    def decode(self, latent: tf.Tensor, rows: Rows, training: bool = False) -> tf.Tensor:
        """`f(u, c)` of latents `(b, d)` and `rows["codes"]`: `(b, p)`, standardised."""
        if self.condition_decoder:
            latent = tf.concat([latent, self._embedded(rows)], axis=1)
        return self.latent_decoder(latent, training=training)

    def call(self, inputs: Rows, training: bool = False) -> tf.Tensor:
        """Reconstruction `f(E[u | x, c], c)`, `(b, p)`, standardised."""
        return self.decode(self.posterior(inputs, training)[0], inputs, training)

    def _embedded(self, rows: Rows) -> tf.Tensor:
        """Concatenated embeddings of the levels of each row, `(b, K * embedding_dim)`."""
        vectors = self.embedding(rows["codes"])
        return tf.reshape(vectors, (-1, vectors.shape[1] * vectors.shape[2]))

    def train_step(self, rows: Rows) -> dict[str, tf.Tensor]:
        """Gradient step for the networks, then an update of the noise variance."""
        (rows,) = rows if isinstance(rows, tuple) else (rows,)
        noise = tf.convert_to_tensor(self.noise_variance)
        with tf.GradientTape() as tape:
            mean, log_var = self.posterior(rows, training=True)
            draws = keras.random.normal(tf.shape(mean), dtype="float32", seed=self.seed_generator)
            latent = mean + tf.exp(0.5 * log_var) * draws
            error = rows["x"] - self.decode(latent, rows, training=True)
            log_likelihood = mean_noise_log_likelihood(error, noise)
            negative_elbo = self.kl_weight * latent_kl(mean, log_var) - log_likelihood
            loss = self.optimizer.scale_loss(tf.reduce_mean(negative_elbo))
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        self.noise_variance.assign(updated_noise_variance(noise, error))
        self.loss_tracker.update_state(negative_elbo)
        return {"loss": self.loss_tracker.result()}
