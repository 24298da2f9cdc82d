"""The LMMVAE model: its parts, its ELBO and its training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.model.adaptation import Adaptation
from keras_lmmvae.model.amortized_fit import AmortizedFit
from keras_lmmvae.model.arguments import check_arguments, clone_terms
from keras_lmmvae.model.conditioning import Conditioning
from keras_lmmvae.model.conjugate_fit import ConjugateFit
from keras_lmmvae.model.effects_fit import NOISE_VARIANCE_FLOOR, EffectsFit
from keras_lmmvae.model.feature_names import FeatureNames
from keras_lmmvae.model.predicting import Predicting
from keras_lmmvae.model.reporting import Reporting
from keras_lmmvae.model.rows import FEATURES, Rows, is_encoded
from keras_lmmvae.model.saving import Saving
from keras_lmmvae.model.steps import Steps
from keras_lmmvae.model.training import Training
from keras_lmmvae.model.updating import Updating
from keras_lmmvae.model.variance_intervals import VarianceIntervals
from keras_lmmvae.model.variance_partition import VariancePartition

__all__ = ["LMMVAE"]


@keras.saving.register_keras_serializable(package="keras_lmmvae")
class LMMVAE(
    Training,
    Steps,
    Predicting,
    Conditioning,
    FeatureNames,
    Reporting,
    VarianceIntervals,
    VariancePartition,
    Updating,
    Saving,
    Adaptation,
    keras.Model,
):
    """Variational autoencoder with the random effects of linear mixed models.

        x[i] = f(u[i]) + sum{ Z_k[i] @ B_k : k=1...K } + e[i]
        u[i] ~ Normal(0, I_d)
        B_k ~ MatrixNormal(0, level_covariance_k, diag(effect_variance_k))
        e[i] ~ Normal(0, diag(noise_variance))

    Rows that share a store, a patient, a place are not independent: what they share is taken
    out by the effects `B`, and the latent `u` describes what is left. Given the decoder `f` the
    effects have a closed-form posterior, which training follows step by step; every row reads
    effects estimated from other rows only. Without `random_effects` this is a plain VAE.

    Use it as `adapt`, `compile`, `fit`, then `encode`, `reconstruct`, `predictive`,
    `random_effects_table`, `variance_components`. Data are a dict of arrays with the features
    under "x" and the effects' columns under their names, or a `tf.data.Dataset` of such dicts
    in batches. NaN in "x" marks a missing cell.

    Args:
        latent_dim: Positive int, `d`.
        random_effects: Terms, such as `RandomIntercept("store")`, of which the model takes
            copies; or a formula, "(1 | store)": see `random_effects_from_formula`.
        hidden_units: Widths of the encoder's dense layers, mirrored in the decoder.
        activation: Activation of these layers.
        encoder: Optional Keras model `(b, p) -> (b, h)` instead of them; reads standardised
            features. Dense heads for the latent's mean and variance are put on top.
        decoder: Optional Keras model `(b, d) -> (b, p)`; its output is in standard units.
        posterior: "conjugate", closed form; "amortized", the paper's second encoder.
        shared_encoder: Amortized only: whether one trunk serves latent and effects.
        kl_weight: Non-negative float, weight of KL(q(u) || p(u)).
        effects_kl_weight: Positive float, weight of KL(q(B) || p(B)). With the conjugate
            posterior the effects are shrunken as if the noise variance were so many times larger.
        effects_kl_reduction: Amortized only: "level" counts the KL once per level, "row" once
            per row, as published.
        noise_variance: Optional positive float, in squared units of the features; `None`:
            learned for every feature.
        feature_weights: How the networks' loss weighs the standardised features: "equal", as
            PCA does, by their mean noise variance; "precision", as factor analysis does, by
            their own, so that the latent serves the features it can explain best. A given
            `noise_variance` is used as it is. Effects always use the features' own.
        latent_epochs: Conjugate only: epochs in which the networks train alone; then the effects
            start from what the networks leave. What groups differ in, `f(u)` and `Z B` can both
            explain wherever the decoder reaches, and the start decides who does. With 0 the
            effects go first and take all that groups differ in: the latent is rid of them. With
            5, say, the latent keeps what it can explain and the effects are smaller: often
            better for groups never seen, for forecasts, and where `d` is not small beside `p`.
            Validation data tell which one to choose.
        normalize: Whether features are standardised inside; results are in the features' units
            either way.
        seed: Optional int that fixes initial weights of the default networks and all sampling.
        **kwargs: Of `keras.Model`: `name`, `dtype`.

    Raises:
        ValueError: On an argument out of its range.

    Example:
        >>> import numpy as np
        >>> import keras_lmmvae as lmm
        >>> rng = np.random.default_rng(0)
        >>> store = rng.integers(0, 20, size=400)
        >>> x = rng.normal(size=(20, 5))[store] + rng.normal(size=(400, 5))
        >>> model = lmm.LMMVAE(1, [lmm.RandomIntercept("store")], hidden_units=(16,), seed=0)
        >>> model.adapt({"x": x, "store": store})
        >>> model.compile(optimizer="adam")
        >>> history = model.fit({"x": x, "store": store}, epochs=2, batch_size=50, verbose=0)
        >>> model.random_effects_table("store").shape
        (20, 5)

    References:
        - [Simchoni & Rosset, 2024](https://arxiv.org/abs/2412.16899), section 3.
        - Henderson, C. R. (1975), Best linear unbiased estimation and prediction.
        - Hoffman et al. (2013), Stochastic variational inference.
    """

    def __init__(
        self,
        latent_dim: int,
        random_effects: Sequence[RandomEffect] | str = (),
        *,
        hidden_units: Sequence[int] = (1000, 500),
        activation: Any = "relu",
        encoder: keras.Layer | None = None,
        decoder: keras.Layer | None = None,
        posterior: str = "conjugate",
        shared_encoder: bool = False,
        kl_weight: float = 1.0,
        effects_kl_weight: float = 1.0,
        effects_kl_reduction: str = "level",
        noise_variance: float | None = None,
        feature_weights: str = "equal",
        latent_epochs: int = 0,
        normalize: bool = True,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        check_arguments(
            latent_dim=latent_dim,
            hidden_units=hidden_units,
            posterior=posterior,
            kl_weight=kl_weight,
            effects_kl_weight=effects_kl_weight,
            effects_kl_reduction=effects_kl_reduction,
            noise_variance=noise_variance,
            feature_weights=feature_weights,
            latent_epochs=latent_epochs,
        )
        # The networks cast for themselves; rows and effects stay in float32 whatever the policy.
        super().__init__(autocast=False, **kwargs)
        self.latent_dim = latent_dim
        self.random_effects = clone_terms(random_effects)
        self.hidden_units = tuple(hidden_units)
        self.activation = keras.activations.get(activation)
        self.given_encoder = encoder
        self.given_decoder = decoder
        self.posterior = posterior
        self.shared_encoder = shared_encoder
        self.kl_weight = kl_weight
        # What training makes of it, for callbacks; a tf.Variable is neither trained nor saved.
        self.kl_annealing = tf.Variable(1.0, trainable=False, dtype=tf.float32)
        self.effects_kl_weight = effects_kl_weight
        self.effects_kl_reduction = effects_kl_reduction
        self.noise_variance_setting = noise_variance
        self.feature_weights = feature_weights
        self.latent_epochs = latent_epochs
        self.normalize = normalize
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.num_features = 0
        self._feature_names: tuple[str, ...] | None = None
        self.trackers = [
            keras.metrics.Mean(name=name)
            for name in ("loss", "reconstruction_loss", "latent_kl", "effects_kl", "mse")
        ]
        kind = ConjugateFit if posterior == "conjugate" else AmortizedFit
        # Not a layer: a plain object that must not be tracked, for it refers back to the model.
        self._fit_box: tuple[EffectsFit, ...] = (kind(self),)

    @property
    def effects_fit(self) -> EffectsFit:
        """How the effects are fitted: `ConjugateFit` or `AmortizedFit`."""
        return self._fit_box[0]

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return list(self.trackers)

    # The model ----------------------------------------------------------------------------------

    def call(self, inputs: Rows, training: bool = False) -> tf.Tensor:
        """Reconstruction `f(E[u | x]) + Z B` of encoded rows, `(b, p)`, in the features' units."""
        contribution = self.effects_fit.contribution(inputs)
        mean, _ = self.latent_posterior(inputs, contribution, training)
        return self.to_units(self.decode_standard(mean, training) + contribution)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Takes encoded rows, or a dict of raw columns outside of graphs."""
        return super().__call__(
            inputs if is_encoded(inputs) else self.encode_data(inputs), *args, **kwargs
        )

    def latent_posterior(
        self, rows: Rows, contribution: tf.Tensor, training: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and log variance of q(u), `(b, d)` each; reads the rows less their effects."""
        return self.latent_encoder(self._encoder_input(rows, contribution), training=training)

    def _encoder_input(self, rows: Rows, contribution: tf.Tensor) -> tf.Tensor:
        values = rows[FEATURES]
        if self.effects_fit.encoder_sees_residual:
            values = values - contribution
        values = values / self.residual_scale
        if "observed" in rows:
            values = tf.where(rows["observed"], values, 0.0)
        return values

    def decode_standard(self, latent: tf.Tensor, training: bool = False) -> tf.Tensor:
        """`f(u)`, `(b, p)`, in standardised units."""
        return self.latent_decoder(latent, training=training) * self.residual_scale

    def to_units(self, standard: tf.Tensor) -> tf.Tensor:
        """From standardised units to those of the features."""
        return standard * self.feature_scale + self.feature_mean

    def effect_codes(self, rows: Rows) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """Amortized posterior: means and log variances of the terms' codes."""
        if not self.random_effects:
            return []
        values = self._encoder_input(rows, tf.zeros_like(rows[FEATURES]))
        if self.shared_encoder:
            values = self.latent_encoder.hidden(values)
        return self.effects_encoder(values)

    def standard_normal(self, shape: Any) -> tf.Tensor:
        """Standard normal draws from the model's own generator."""
        return keras.random.normal(shape, dtype="float32", seed=self.seed_generator)

    def training_residual(self, rows: Rows) -> tf.Tensor:
        """`x - f(E[u])` of training rows, each with the effects of the other fold, `(b, p)`."""
        contribution = self.effects_fit.training_effects(rows).contribution
        mean, _ = self.latent_posterior(rows, contribution)
        return rows[FEATURES] - self.decode_standard(mean)

    def effects_noise_variance(self) -> tf.Tensor:
        """Noise variance that the effects' posterior sees, `(p,)`: tempered by the KL's weight."""
        return self.effects_kl_weight * tf.convert_to_tensor(self.noise_variance)

    def networks_noise_variance(self) -> tf.Tensor:
        """Noise variance by which the networks' loss weighs the features, `(p,)`."""
        noise = tf.convert_to_tensor(self.noise_variance)
        if self.feature_weights == "precision" or self.noise_variance_setting is not None:
            return noise
        return tf.fill(noise.shape, tf.reduce_mean(noise))

    def reset_noise_variance(self, values: np.ndarray) -> None:
        """Sets the noise variance, in standardised units, unless the user fixed it."""
        if self.noise_variance_setting is not None:
            scale = keras.ops.convert_to_numpy(self.feature_scale)
            values = np.full(self.num_features, self.noise_variance_setting) / scale**2
        self.noise_variance.assign(np.maximum(values, NOISE_VARIANCE_FLOOR))
