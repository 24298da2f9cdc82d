"""Variational autoencoders that ignore the groups, have them as inputs, or see only residuals."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self, get_args

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from sklearn.preprocessing import StandardScaler

from keras_lmmvae.baselines.base import Data, FloatArray, Levels, check_groups
from keras_lmmvae.baselines.calibration import without_calibration_rows
from keras_lmmvae.baselines.group_means import GroupMeans
from keras_lmmvae.baselines.latent_variable import LatentVariableBaseline, in_chunks, joined
from keras_lmmvae.baselines.schedule import (
    cosine_adam,
    mean_noise_log_likelihood,
    updated_noise_variance,
)
from keras_lmmvae.elbo import Gaussian, latent_kl
from keras_lmmvae.networks import LatentDecoder, LatentEncoder, dense_stack, layer_seeds
from keras_lmmvae.refinement import Decoder
from keras_lmmvae.rows import shuffled_batches
from keras_lmmvae.validation import check_positive, received

__all__ = ["BLUPVAE", "Coding", "ConditionalVAE", "LevelTable", "OneHotDense", "VAEBaseline"]

Coding = Literal["ignore", "one-hot", "embedding"]
Rows = dict[str, tf.Tensor]
_AFTER_TRAINING = ("refine", "calibration_split")
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
    - "cvae" if the decoder has these embeddings as inputs, too, and its output layer the one-hot
      coded levels: a linear effect of each level on each feature. Embeddings alone are slow to
      learn crossed factors, whose effects add up.

    The features are standardised. Unseen keys and null keys are coded as zeros.

    Args:
        latent_dim: Positive int, `d`, at most the number of features.
        groups: Names of the columns of the factors, str or int keys.
        coding: "ignore", "one-hot" or "embedding".
        condition_decoder: Whether the decoder has the embeddings and the one-hot coded levels as
            inputs, too. It requires `coding="embedding"`.
        embedding_dim: Positive int, length of the embedding of a factor.
        hidden_units: Widths of the dense layers of the encoder. The decoder has the same in
            reverse order.
        activation: Activation of these layers.
        epochs: Positive int.
        batch_size: Positive int.
        learning_rate: Positive float, learning rate of the first step.
        kl_weight: Non-negative float, weight of KL(q(u) || p(u)).
        refine: Non-negative int, Gauss-Newton steps to the best latent of each row.
        calibration_split: Share of the training rows that are held out of the fit and give the
            noise variance.
        seed: Optional int that fixes initial weights, order of the rows and draws.

    Attributes:
        model_: The fitted `ConditionalVAE`.
        levels_: Dict of `pandas.Index`, the keys of the levels of each column.
        scaler_: `StandardScaler` of the features.
        noise_variance_: Float64 array `(p,)`, in squared units of the features.
        latent_prior_: The normal distribution of the latents of the training rows, the prior in
            `log_likelihood`.
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
        refine: int = 0,
        calibration_split: float = 0.0,
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
        self.refine = refine
        self.calibration_split = calibration_split
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
        data, held_out = without_calibration_rows(data, self.calibration_split, self.seed)
        x = self._known_features(data)
        self.scaler_ = StandardScaler().fit(x)
        self.vocabulary_ = Levels(data, () if self.coding == "ignore" else self.groups)
        self.levels_ = self.vocabulary_.keys
        settings = self.get_params()
        for name in ("groups", "epochs", "batch_size", "learning_rate", *_AFTER_TRAINING):
            del settings[name]
        self.model_ = ConditionalVAE(x.shape[1], list(self.vocabulary_.sizes.values()), **settings)
        optimizer = cosine_adam(self.learning_rate, len(x), self.batch_size, self.epochs)
        # A step that makes the optimizer's variables itself would be traced twice.
        optimizer.build(self.model_.trainable_variables)
        self.model_.compile(optimizer)
        batches = shuffled_batches(self._rows(data), self.batch_size, self.seed)
        history = self.model_.fit(batches, epochs=self.epochs, shuffle=False, verbose=0)
        self.history_ = history.history
        self.noise_variance_ = self._noise_in_units(self.model_.noise_variance)
        self._fit_prior(self._posterior(data))
        self._calibrate(held_out)
        return self

    def _posterior(self, data: Data) -> Gaussian:
        mean, log_var = joined(in_chunks(self.model_.posterior, self._rows(data)))
        return tfd.MultivariateNormalDiag(mean, tf.exp(0.5 * log_var))

    def _decoder(self, data: Data) -> Decoder:
        codes, total = self._codes(data), len(data["x"])

        def decode(rows: Rows) -> tf.Tensor:
            return self.model_.decode(rows["latent"], rows)

        def decoder(latent: tf.Tensor) -> tf.Tensor:
            copies = (latent.shape[0] // total, 1)
            repeated = {name: tf.tile(value, copies) for name, value in codes.items()}
            return joined(in_chunks(decode, {"latent": latent, **repeated}))

        return decoder

    def _rows(self, data: Data) -> Rows:
        """Returns standardised features and codes."""
        return {"x": self._standardised(data), **self._codes(data)}

    def _codes(self, data: Data) -> Rows:
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
            reverse order.
        activation: Activation of these layers.
        epochs: Positive int.
        batch_size: Positive int.
        learning_rate: Positive float, learning rate of the first step.
        kl_weight: Non-negative float, weight of KL(q(u) || p(u)).
        refine: Non-negative int, Gauss-Newton steps to the best latent of each row.
        calibration_split: Share of the training rows that are held out of the fit and give the
            noise variance.
        seed: Optional int that fixes initial weights, order of the rows and draws.

    Attributes:
        group_means_: The fitted `GroupMeans`.
        vae_: The fitted `VAEBaseline` of the residuals. The next three attributes are its, with
            the noise variance calibrated.
        scaler_: `StandardScaler` of the residuals.
        noise_variance_: Float64 array `(p,)`, in squared units of the features.
        latent_prior_: The normal distribution of the latents of the training rows.
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

    method: ClassVar[str] = "blup-vae"

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
        refine: int = 0,
        calibration_split: float = 0.0,
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
        self.refine = refine
        self.calibration_split = calibration_split
        self.seed = seed

    def fit(self, data: Data) -> Self:
        """Fits variances and group effects, then trains the networks, and returns the baseline."""
        self._fit_features(data, self.latent_dim)
        data, held_out = without_calibration_rows(data, self.calibration_split, self.seed)
        self.group_means_ = GroupMeans(self.groups).fit(self._known_features(data), data)
        settings = self.get_params()
        for name in ("groups", *_AFTER_TRAINING):
            del settings[name]
        vae = self.vae_ = VAEBaseline(**settings).fit(self._residual(data))
        self.scaler_, self.noise_variance_ = vae.scaler_, vae.noise_variance_
        self.latent_prior_ = vae.latent_prior_
        self._calibrate(held_out)
        return self

    def _posterior(self, data: Data) -> Gaussian:
        return self.vae_._posterior(self._residual(data))

    def _decoder(self, data: Data) -> Decoder:
        return self.vae_._decoder(data)

    def _standardised(self, data: Data) -> tf.Tensor:
        return self.vae_._standardised(self._residual(data))

    def _in_units(self, standardised: tf.Tensor, data: Data) -> FloatArray:
        """Returns decoded values plus mean and group effects, `(n, p)`, in units."""
        residual: FloatArray = self.scaler_.inverse_transform(standardised)
        return residual + self.group_means_.predict(data)

    def _error_variance(self, data: Data) -> FloatArray:
        """Returns noise variance plus posterior variance of the group effects, `(n, p)`."""
        return self.noise_variance_ + self.group_means_.contribution_variance(data)

    def _residual(self, data: Data) -> dict[str, FloatArray]:
        """Returns the features minus mean and group effects, without other columns."""
        return {"x": self._known_features(data) - self.group_means_.predict(data)}


class ConditionalVAE(keras.Model):
    """Networks and training step of `VAEBaseline`, for standardised features.

    Without levels the model is `LMMVAE(latent_dim, ())`: it has the same networks, initial
    weights, draws and loss. The noise variance is the running mean of the squared training errors
    of each feature.

    Args:
        num_features: Positive int, `p`.
        num_levels: Numbers of levels of the `K` factors.
        **settings: Arguments of `VAEBaseline`.

    Example:
        >>> vae = ConditionalVAE(5, [], 2, hidden_units=(8,), seed=0)
        >>> mean, log_var = vae.posterior({"x": tf.zeros((3, 5))})
        >>> vae.decode(mean, {}).shape
        TensorShape([3, 5])
    """

    def __init__(
        self,
        num_features: int,
        num_levels: Sequence[int],
        latent_dim: int,
        *,
        coding: Coding = "ignore",
        condition_decoder: bool = False,
        embedding_dim: int = 10,
        hidden_units: Sequence[int] = (1000, 500),
        activation: Any = "relu",
        kl_weight: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(autocast=False)
        self.coding = coding
        self.condition_decoder = condition_decoder
        self.kl_weight = kl_weight
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.loss_tracker = keras.metrics.Mean(name="loss")
        *seeds, level_seed = list(layer_seeds(seed))[:5]
        width, hidden, embedded = num_features, list(hidden_units), 0
        if coding == "one-hot":
            width = hidden.pop(0)
            self.first = OneHotDense(width, num_features, sum(num_levels), activation, level_seed)
            self.first.build()
        elif coding == "embedding":
            embedded = len(num_levels) * embedding_dim
            uniform = keras.initializers.RandomUniform(-0.05, 0.05, seed=level_seed)
            self.embedding = LevelTable(sum(num_levels), embedding_dim, uniform)
            self.embedding.build()
        if condition_decoder:
            self.level_effects = LevelTable(sum(num_levels), num_features, "zeros")
            self.level_effects.build()
        policy = self.dtype_policy
        trunk: keras.Layer = keras.layers.Identity()
        if hidden:
            trunk = dense_stack(hidden, activation, "encoder_trunk", policy, seeds[0])
        self.latent_encoder = LatentEncoder(trunk, latent_dim, seeds[1], dtype=policy)
        self.latent_encoder.build((None, width + embedded))
        trunk = dense_stack(hidden_units[::-1], activation, "decoder_trunk", policy, seeds[2])
        self.latent_decoder = LatentDecoder(trunk, num_features, seed=seeds[3], dtype=policy)
        self.latent_decoder.build((None, latent_dim + (embedded if condition_decoder else 0)))
        self.noise_variance = self.add_weight(
            name="noise_variance",
            shape=(num_features,),
            initializer="ones",
            trainable=False,
            autocast=False,
            dtype="float32",
        )
        self.built = True

    def build(self, input_shape: Any = None) -> None:
        """Does nothing: `__init__` makes all weights, because its arguments give all sizes."""

    def posterior(self, rows: Rows, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and log variance of q(u), `(b, d)` each, of `rows["x"]`, `(b, p)`, and "codes".

        Codes `(b, K)` are positions among the levels of all factors, negative for unseen and null
        keys.
        """
        values = rows["x"]
        if self.coding == "one-hot":
            values = self.first(values, rows["codes"])
        elif self.coding == "embedding":
            values = tf.concat([values, self._embedded(rows)], axis=1)
        return self.latent_encoder(values, training=training)

    def decode(self, latent: tf.Tensor, rows: Rows, training: bool = False) -> tf.Tensor:
        """`f(u, c)` of latents `(b, d)` and `rows["codes"]`: `(b, p)`, standardised."""
        if not self.condition_decoder:
            return self.latent_decoder(latent, training=training)
        values = tf.concat([latent, self._embedded(rows)], axis=1)
        effects = tf.reduce_sum(self.level_effects(rows["codes"]), axis=1)
        return self.latent_decoder(values, training=training) + effects

    def _embedded(self, rows: Rows) -> tf.Tensor:
        """Concatenated embeddings of the levels of each row, `(b, K * embedding_dim)`."""
        vectors = self.embedding(rows["codes"])
        return tf.reshape(vectors, (-1, vectors.shape[1] * vectors.shape[2]))

    def train_step(self, rows: Rows) -> dict[str, tf.Tensor]:
        """Gradient step for the networks, then an update of the noise variance."""
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


class LevelTable(keras.Layer):
    """Embedding of levels. A negative code gives zeros.

        output[i, k] = table[codes[i, k]] if codes[i, k] >= 0 else 0

    The zeros are not a row of the table, so training does not change them. Keras' `Embedding`
    does not accept negative codes.

    Example:
        >>> LevelTable(3, 2, initializer="ones")(tf.constant([[1], [-1]])).numpy()[:, 0]
        array([[1., 1.],
               [0., 0.]], dtype=float32)
    """

    def __init__(self, num_levels: int, width: int, initializer: Any) -> None:
        super().__init__(autocast=False)
        self.num_levels = num_levels
        self.width = width
        self.initializer = keras.initializers.get(initializer)

    def build(self, input_shape: Any = None) -> None:
        self.table = self.add_weight(
            name="table",
            shape=(self.num_levels, self.width),
            initializer=self.initializer,
            dtype="float32",
            autocast=False,
        )
        self.built = True

    def call(self, codes: tf.Tensor) -> tf.Tensor:
        rows = tf.gather(tf.convert_to_tensor(self.table), tf.maximum(codes, 0))
        return tf.where((codes >= 0)[..., None], rows, tf.zeros_like(rows))


class OneHotDense(keras.Layer):
    """Dense layer on the features and the one-hot coded levels, without the one-hot columns.

        output[i] = activation(x[i] @ kernel + sum{ table[codes[i, k]] : k=1...K } + bias)

    A one-hot vector times a kernel is a row of the kernel. `table` has the rows of the kernel that
    belong to the levels, and the layer gathers them. Function, gradients and the distribution of
    the initial weights are those of a dense layer. The cost is `K` rows instead of `q` columns.
    A negative code is coded as zeros.

    Example:
        >>> layer = OneHotDense(4, num_features=2, num_levels=3, activation="relu", seed=0)
        >>> layer(tf.zeros((5, 2)), tf.zeros((5, 1), tf.int32)).shape
        TensorShape([5, 4])
    """

    def __init__(
        self,
        units: int,
        num_features: int,
        num_levels: int,
        activation: Any,
        seed: int | None = None,
    ) -> None:
        super().__init__(autocast=False)
        # The limit of Glorot's initializer for a kernel with p + q inputs.
        limit = math.sqrt(6.0 / (num_features + num_levels + units))
        uniforms = [
            keras.initializers.RandomUniform(-limit, limit, seed=None if seed is None else seed + i)
            for i in range(2)
        ]
        self.dense = keras.layers.Dense(units, kernel_initializer=uniforms[0], dtype=self.dtype)
        self.levels = LevelTable(num_levels, units, uniforms[1])
        self.activation = keras.activations.get(activation)
        self.num_features = num_features

    def build(self, *input_shapes: Any, **named_shapes: Any) -> None:
        self.dense.build((None, self.num_features))
        self.levels.build()
        self.built = True

    def call(self, x: tf.Tensor, codes: tf.Tensor) -> tf.Tensor:
        return self.activation(self.dense(x) + tf.reduce_sum(self.levels(codes), axis=1))
