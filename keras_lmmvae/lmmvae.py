"""The LMMVAE model: networks, a linear mixed model, their ELBO, and Keras' verbs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from sklearn.preprocessing import StandardScaler

from keras_lmmvae import inspection
from keras_lmmvae.arguments import check_arguments, clone_terms
from keras_lmmvae.columns import FEATURES, Columns
from keras_lmmvae.diagnostics.diagnose import warn_of_findings
from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.elbo import ElboTerms, latent_kl
from keras_lmmvae.export.saved_model import export_saved_model
from keras_lmmvae.feature_moments import checked_moments
from keras_lmmvae.feature_names import check_feature_names, feature_number, names_of
from keras_lmmvae.files import written_whole
from keras_lmmvae.fitting import (
    AmortizedFit,
    ConjugateFit,
    EffectsFit,
    EffectsSchedule,
    fit_new_levels,
)
from keras_lmmvae.fitting.calibration import calibrate_noise
from keras_lmmvae.inference import Inference
from keras_lmmvae.inspection import Conditioned, Prediction
from keras_lmmvae.latent_prior import LatentPrior
from keras_lmmvae.likelihood import GaussianLikelihood
from keras_lmmvae.mixed_model import MixedModel
from keras_lmmvae.mixed_model.mixed_model import Parts
from keras_lmmvae.model_bytes import copied
from keras_lmmvae.networks import EffectsEncoder, LatentNetworks, dense_stack, layer_seeds
from keras_lmmvae.rows import (
    Pass,
    Rows,
    draw_held_out,
    encode_rows,
    is_encoded,
    num_rows,
    shuffled_batches,
    take_rows,
    with_bases,
    with_folds,
    with_weights,
)
from keras_lmmvae.total_axes import TotalAxes
from keras_lmmvae.validation import check_positive, received
from keras_lmmvae.version import __version__, check_saved_version

__all__ = ["LMMVAE"]

# By default a fit to so many rows holds this share of them out, to learn the noise variance.
_FEWEST_ROWS, _CALIBRATION_SHARE = 10_000, 0.05


@keras.saving.register_keras_serializable(package="keras_lmmvae")
class LMMVAE(keras.Model):
    """Variational autoencoder with the random effects of linear mixed models.

        x[i] = f(u[i]) + sum{ Z_k[i] @ B_k : k=1...K } + e[i]
        u[i] ~ Normal(0, I_d)
        B_k ~ MatrixNormal(0, level_covariance_k, diag(effect_variance_k))
        e[i] ~ Normal(0, diag(noise_variance))

    Rows that share a store, a patient or a place are not independent. The effects `B` take out
    what they share, and the latent `u` describes what is left. Given the decoder `f` the effects
    have a closed-form posterior with the latents integrated out: `f` is taken to be linear around
    what the encoder says of a row, so that `J J'`, with the decoder's derivatives `J`, adds to
    the covariance of its noise. Steps of training follow the effects in between. Every training
    row reads out-of-fold effects, estimated from other rows only. Without `random_effects` this
    is a plain VAE.

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
        feature_weights: How the networks' loss weighs the standardised features. "equal", as
            PCA does: by their mean noise variance. "precision", as factor analysis does: by
            their own, so that the latent serves the features it can explain best. A given
            `noise_variance` is used as it is. Effects always use the features' own.
        latent_epochs: Conjugate only: epochs in which the networks train alone, before the
            effects start from what the networks leave. Differences between groups can be
            explained by the latent or by the random effects, and the one that is fitted first
            takes most of them. With 0 the effects go first, and the latent is rid of group
            differences. With 5, say, the latent keeps what it can explain and the effects are
            smaller. That is often better for groups never seen, for forecasts, and where `d` is
            not small beside `p`. Validation data tell which one to choose.
        effects_dropout: Float in [0, 1), conjugate only: share of a step's rows whose effects are
            hidden from the networks, as those of levels never seen are. Such a row is scored with
            the effects' prior variance added to the noise. It prepares the networks for rows of
            new groups.
        normalize: Whether features are standardised inside; results are in the features' units
            either way.
        seed: Optional int that fixes initial weights of the default networks and all sampling.
        **kwargs: Of `keras.Model`: `name`, `dtype`.

    Attributes:
        networks: Encoder and decoder, a `LatentNetworks`; made by `adapt`, like the rest.
        mixed_model: Effects and variances of the terms, a `MixedModel`.
        likelihood: The noise variance, a `GaussianLikelihood`.
        latent_prior: Where the latents of the training rows lie, a `LatentPrior`.
        total_axes: Axes of the total representation, a `TotalAxes`.
        feature_mean: Weight `(p,)`, means of the features.
        feature_scale: Weight `(p,)`, standard deviations of the features.

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

    networks: LatentNetworks
    mixed_model: MixedModel
    likelihood: GaussianLikelihood
    latent_prior: LatentPrior
    total_axes: TotalAxes
    feature_mean: keras.Variable
    feature_scale: keras.Variable

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
        effects_dropout: float = 0.0,
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
            effects_dropout=effects_dropout,
        )
        # The networks cast for themselves. Rows and effects stay in float32 whatever the policy.
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
        self.effects_kl_weight = effects_kl_weight
        self.effects_kl_reduction = effects_kl_reduction
        self.noise_variance_setting = noise_variance
        self.feature_weights = feature_weights
        self.latent_epochs = latent_epochs
        self.effects_dropout = effects_dropout
        self.normalize = normalize
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        # What callbacks make of the KL's weight during a fit. A tf.Variable is not saved.
        self.kl_annealing = tf.Variable(1.0, trainable=False, dtype=tf.float32)
        self.trackers = [
            keras.metrics.Mean(name=name)
            for name in ("loss", "reconstruction_loss", "latent_kl", "effects_kl", "mse")
        ]
        self.num_features = 0
        self._columns = Columns(self.random_effects)
        self._feature_names: tuple[str, ...] | None = None
        # In a tuple, which Keras does not look into: it refers to layers that have their place.
        self._fit: tuple[EffectsFit, ...] = ()

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return list(self.trackers)

    # What is learned before training ----------------------------------------------------------

    def adapt(self, data: Any, feature_names: Sequence[str] | None = None) -> None:
        """Learns vocabularies, level counts, coordinates and the features' scales.

        Args:
            data: Dict of arrays of `n` rows, or a batched `tf.data.Dataset` of such dicts (one
                pass). Use the training rows.
            feature_names: Optional names of the `p` features, for tables and reports. Defaults
                to those that the data bring: of `from_dataframe`, or of a data frame under "x".

        Raises:
            ValueError: If the model is adapted already, or on bad data or names.
        """
        if self.num_features:
            raise ValueError(
                "The model is adapted already; to add levels use `update_random_effects`, to start "
                "anew make another model. " + received(num_features=self.num_features)
            )
        scaler, has_missing_cells = StandardScaler(), False
        for term in self.random_effects:
            term.reset_state()
        for batch in self._columns.batches(data):
            _check_rows_observed(batch[FEATURES])
            has_missing_cells |= bool(np.isnan(batch[FEATURES]).any())
            with np.errstate(invalid="ignore"):  # a column without any cell is told below
                scaler.partial_fit(batch[FEATURES].astype(np.float64))
            for term in self.random_effects:
                term.update_state(batch)
        mean, scale = checked_moments(scaler)
        names = names_of(data) if feature_names is None else feature_names
        names = check_feature_names(names, len(mean))
        for term in self.random_effects:
            term.finalize_state()
        self._make_state(len(mean), names, has_missing_cells)
        if self.normalize:
            self.feature_mean.assign(mean)
            self.feature_scale.assign(scale)
        if self.noise_variance_setting is not None:
            scale = keras.ops.convert_to_numpy(self.feature_scale)
            fixed = np.full(self.num_features, self.noise_variance_setting)
            self.likelihood.fix(fixed / scale**2)

    def _make_state(
        self, num_features: int, feature_names: tuple[str, ...] | None, has_missing_cells: bool
    ) -> None:
        """Makes all networks and weights; the terms know their sizes."""
        is_amortized = self.posterior == "amortized"
        self.num_features = num_features
        self._feature_names = feature_names
        seeds, policy = layer_seeds(self.seed), self.dtype_policy
        self.networks = LatentNetworks.of(
            num_features,
            self.latent_dim,
            self.hidden_units,
            self.activation,
            seeds,
            encoder=self.given_encoder,
            decoder=self.given_decoder,
            reads_effects=is_amortized,
            policy=policy,
        )
        self.networks.build((None, num_features))
        self.effects_encoder: EffectsEncoder | None = None
        if is_amortized and self.random_effects:
            own = None if self.shared_encoder else dense_stack(
                self.hidden_units, self.activation, "effects_trunk", policy, next(seeds)
            )  # fmt: skip
            sizes = [term.code_size for term in self.random_effects]
            self.effects_encoder = EffectsEncoder(
                sizes, num_features, own, next(seeds), dtype=policy
            )
            hidden = self.networks.encoder.trunk.compute_output_shape((None, num_features))
            self.effects_encoder.build(hidden if self.shared_encoder else (None, num_features))
        self.likelihood = GaussianLikelihood(
            num_features, is_learned=self.noise_variance_setting is None, name="likelihood"
        )
        self.likelihood.build()
        self.mixed_model = MixedModel(
            self.random_effects, is_amortized, has_missing_cells, name="mixed_model"
        )
        self.mixed_model.build((None, num_features))
        self.latent_prior = LatentPrior(self.latent_dim, name="latent_prior")
        self.latent_prior.build()
        self.total_axes = TotalAxes(num_features, self.latent_dim, name="total_axes")
        self.total_axes.build()
        self.feature_mean = self._state("feature_mean", (num_features,))
        self.feature_scale = self._state("feature_scale", (num_features,), "ones")
        self.fitted = self._state("fitted", ())
        self._fit = (self._make_fit(is_amortized),)
        self.built = True

    def _state(
        self, name: str, shape: tuple[int, ...], initializer: str = "zeros"
    ) -> keras.Variable:
        """A weight that is saved but not trained, in float32 whatever the policy."""
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            trainable=False,
            autocast=False,
            dtype="float32",
        )

    def _make_fit(self, is_amortized: bool) -> EffectsFit:
        parts = (self.mixed_model, self.networks, self.likelihood)
        if is_amortized:
            is_by_row = self.effects_kl_reduction == "row"
            return AmortizedFit(*parts, self.effects_encoder, self.seed_generator, is_by_row)
        return ConjugateFit(
            *parts,
            self.latent_prior,
            self.effects_kl_weight,
            self.latent_epochs,
            self.effects_dropout,
            self.seed_generator,
        )

    def build(self, input_shape: Any = None) -> None:
        """Weights are made by `adapt`, which learns their sizes."""
        self.require_adapted()

    @property
    def effects_fit(self) -> EffectsFit:
        """How the effects are fitted: a `ConjugateFit` or an `AmortizedFit`."""
        self.require_adapted()
        return self._fit[0]

    def require_adapted(self) -> None:
        """Raises a ValueError unless the model knows its features and levels."""
        if not self.num_features:
            raise ValueError(
                "The model does not know its features and levels yet: call `model.adapt(data)` "
                "first. " + received(num_features=self.num_features)
            )

    def require_fitted(self) -> None:
        """Raises a ValueError unless the model was fitted (or loaded so)."""
        self.require_adapted()
        if not self.is_fitted:
            raise ValueError(
                "The model is not fitted yet: call `model.fit(data)` first. "
                + received(is_fitted=False)
            )

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` has been called, on this model or on the one it was loaded from."""
        return bool(self.num_features) and bool(keras.ops.convert_to_numpy(self.fitted))

    @property
    def noise_variance(self) -> keras.Variable:
        """Noise variance `(p,)`, in squared standardised units."""
        self.require_adapted()
        return self.likelihood.noise_variance

    @property
    def feature_names(self) -> list[Any]:
        """Names of the `p` features: strings, or the numbers `0 ... p - 1` if none were given."""
        return list(self._feature_names or range(self.num_features))

    def feature_number(self, feature: int | str) -> int:
        """The column of "x" that a feature's name, or its number, stands for.

        Args:
            feature: A name of `feature_names`, or an int in `[0, p)`.

        Returns:
            Int in `[0, p)`.

        Raises:
            ValueError: If the model is not adapted, or has no such feature.
        """
        self.require_adapted()
        return feature_number(feature, self._feature_names or (), self.num_features)

    def find_term(self, name: str) -> RandomEffect:
        """The term of that name.

        Raises:
            ValueError: If there is none.
        """
        for term in self.random_effects:
            if term.label == name:
                return term
        raise ValueError(
            f"There is no term '{name}', expected one of "
            f"{[term.label for term in self.random_effects]}. " + received(name=name)
        )

    # From columns to what the model says of them ------------------------------------------------

    def encode_data(self, data: Any) -> Rows | tf.data.Dataset:
        """Turns raw columns into encoded rows: standardised features, codes, basis inputs.

        Args:
            data: Dict of arrays, or a batched `tf.data.Dataset` of dicts.

        Returns:
            A dict of tensors, or a dataset of such dicts.
        """
        self.require_adapted()
        terms = self.random_effects
        mean = keras.ops.convert_to_numpy(self.feature_mean)
        scale = keras.ops.convert_to_numpy(self.feature_scale)
        if isinstance(data, tf.data.Dataset):
            return self._columns.checked_dataset(data, self.num_features).map(
                lambda batch: encode_rows(batch, terms, mean, scale, keep_mask=True),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
        columns = self._columns.normalised(data, self.num_features)
        keep_mask = bool(np.isnan(columns[FEATURES]).any())
        return encode_rows(columns, terms, mean, scale, keep_mask=keep_mask)

    def pass_over(self, data: Any) -> Pass:
        """A pass over the encoded rows of raw columns, for a fitted model.

        Args:
            data: Dict of arrays, or a batched `tf.data.Dataset` of dicts.
        """
        self.require_fitted()
        return Pass(self.encode_data(data))

    def infer(self, rows: Rows, parts: Parts | None = None, training: bool = False) -> Inference:
        """What the model says of encoded rows, in standardised units; see `Inference`.

        Args:
            rows: Encoded rows.
            parts: Contributions of the terms. Defaults to those of new rows.
            training: Whether the networks are trained.
        """
        found = self.mixed_model.parts(rows) if parts is None else parts
        return Inference(self.networks, rows, found, training)

    def infer_refined(self, rows: Rows, steps: int, by_density: bool = False) -> Inference:
        """What the model says of encoded rows after so many Gauss-Newton steps on their latents.

        Args:
            rows: Encoded rows.
            steps: Non-negative int.
            by_density: Whether a row's latent is the mode of its posterior density, every cell
                weighed by its own variance. By default features weigh as in training, which
                gives smaller errors.
        """
        seen = self.infer(rows)
        if not steps:
            return seen
        if by_density:
            prior = self.latent_prior
            variance = self.variance_given_latent(rows)
            return seen.refined(variance, prior.mean.value, prior.precision(), steps)
        precision = self.kl_weight * tf.eye(self.latent_dim)
        mean = tf.zeros(self.latent_dim)
        return seen.refined(self.networks_noise_variance(), mean, precision, steps)

    def call(self, inputs: Rows, training: bool = False) -> tf.Tensor:
        """Reconstruction `f(E[u | x]) + Z B` of encoded rows, `(b, p)`, in the features' units."""
        return self.to_units(self.infer(inputs, training=training).mean)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Takes encoded rows, or a dict of raw columns outside of graphs."""
        rows = inputs if is_encoded(inputs) else self.encode_data(inputs)
        return super().__call__(rows, *args, **kwargs)

    def to_units(self, standard: tf.Tensor) -> tf.Tensor:
        """From standardised units to those of the features."""
        return standard * self.feature_scale + self.feature_mean

    def log_units(self, observed: tf.Tensor | None) -> tf.Tensor:
        """What the log density loses on the way from standardised to the features' units."""
        logs = tf.math.log(tf.convert_to_tensor(self.feature_scale))
        if observed is None:
            return tf.reduce_sum(logs)
        return tf.reduce_sum(tf.cast(observed, tf.float32) * logs, axis=-1)

    def networks_noise_variance(self) -> tf.Tensor:
        """Noise variance by which the networks' loss weighs the features, `(p,)`."""
        noise = tf.convert_to_tensor(self.noise_variance)
        if self.feature_weights == "precision" or self.noise_variance_setting is not None:
            return noise
        return tf.fill(noise.shape, tf.reduce_mean(noise))

    def predictive_variance(self, seen: Inference) -> tf.Tensor:
        """Variance of a new observation around its mean, `(b, p)`, in standardised units.

        Noise, what is not known of the effects, and what is not known of the latent.
        """
        return self.variance_given_latent(seen.rows) + seen.latent_variance

    def variance_given_latent(self, rows: Rows) -> tf.Tensor:
        """The same if the latent were known: noise and what is not known of the effects."""
        effects = self.mixed_model.variance(rows)
        return self.noise_variance + effects

    # The ELBO and its steps ---------------------------------------------------------------------

    def train_step(self, rows: Rows) -> dict[str, tf.Tensor]:
        """Gradient step on the networks, then the closed-form step on the effects.

        The effects are those of the other fold, and `u` is drawn from q(u).
        """
        (rows,) = rows if isinstance(rows, tuple) else (rows,)
        rows = with_bases(rows, self.random_effects)
        fit = self.effects_fit
        with tf.GradientTape() as tape:
            effects = fit.training_effects(rows)
            seen = self.infer(rows, effects.parts, training=True)
            draws = keras.random.normal(
                tf.shape(seen.latent_mean), dtype="float32", seed=self.seed_generator
            )
            residual = rows[FEATURES] - seen.decoded(seen.latent_mean + seen.latent_std * draws)
            error = residual - seen.contribution
            variance = self.networks_noise_variance() + effects.variance
            terms = self._elbo_terms(seen, error, variance, effects.kl)
            kl_weight = self.kl_weight * self.kl_annealing
            negative = terms.negative_elbo(kl_weight, self.effects_kl_weight)
            loss = _weighted_mean(negative, rows.get("weight"))
            scaled = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(scaled, variables), variables)
        fit.after_gradient(rows, effects, tf.stop_gradient(residual), tf.stop_gradient(error))
        return self._track(terms, negative, rows.get("weight"))

    def test_step(self, rows: Rows) -> dict[str, tf.Tensor]:
        """Negative ELBO of new rows given the effects of the training rows.

        The effects' remaining variance is added to the noise; their KL belongs to training. The
        expectation over q(u) is by `2 d` cubature points, exact for a linear decoder, so that
        the loss has no randomness.
        """
        (rows,) = rows if isinstance(rows, tuple) else (rows,)
        rows = with_bases(rows, self.random_effects)
        seen = self.infer(rows)
        no_kl, variance = tf.zeros(tf.shape(rows[FEATURES])[0]), self.variance_given_latent(rows)
        terms = self._elbo_terms(seen, seen.error, variance, no_kl)
        blurred = 0.5 * seen.latent_variance / variance
        if seen.observed is not None:
            blurred = tf.where(seen.observed, blurred, tf.zeros_like(blurred))
        expected = terms.log_likelihood - tf.reduce_sum(blurred, axis=-1)
        terms = replace(terms, log_likelihood=expected)
        negative = terms.negative_elbo(self.kl_weight, self.effects_kl_weight)
        return self._track(terms, negative, rows.get("weight"))

    def _elbo_terms(
        self, seen: Inference, error: tf.Tensor, variance: tf.Tensor, effects_kl: tf.Tensor
    ) -> ElboTerms:
        """The parts of the ELBO of rows with these errors, `(b, p)`, around their means."""
        excess = variance - self.noise_variance
        x, observed = seen.rows[FEATURES], seen.observed
        log_prob = self.likelihood.log_prob(x, x - error, excess, observed)
        squares = tf.square(error * self.feature_scale)
        cells = tf.ones_like(squares) if observed is None else tf.cast(observed, tf.float32)
        total = tf.reduce_sum(cells * squares, axis=-1)
        return ElboTerms(
            log_prob - self.log_units(observed),
            latent_kl(*seen.latent),
            effects_kl,
            tf.math.divide_no_nan(total, tf.reduce_sum(cells, axis=-1)),
        )

    def _track(
        self, terms: ElboTerms, negative_elbo: tf.Tensor, weight: tf.Tensor | None
    ) -> dict[str, tf.Tensor]:
        parts = (
            negative_elbo,
            -terms.log_likelihood,
            terms.latent_kl,
            terms.effects_kl,
            terms.squared_error,
        )
        for tracker, part in zip(self.trackers, parts, strict=True):
            tracker.update_state(part, sample_weight=weight)
        return {tracker.name: tracker.result() for tracker in self.trackers}

    # Keras' verbs -------------------------------------------------------------------------------

    def compile(self, optimizer: Any = "adam", **kwargs: Any) -> None:
        """Configures training; the loss is the negative ELBO and cannot be given.

        Args:
            optimizer: Keras optimizer of the networks; effects and variances have closed forms.
            **kwargs: `jit_compile`, `run_eagerly`, `steps_per_execution`, `auto_scale_loss`.

        Raises:
            ValueError: If a loss or metrics are given.
        """
        given = [
            name
            for name in ("loss", "loss_weights", "metrics", "weighted_metrics")
            if kwargs.get(name) is not None
        ]
        if given:
            raise ValueError(
                "The loss is the negative ELBO and its parts are the metrics: compile with an "
                "optimizer only. " + received(given=given)
            )
        super().compile(optimizer=optimizer, **kwargs)

    def get_compile_config(self) -> dict[str, Any] | None:
        """The arguments of `compile`, for the saved file."""
        return self._compile_config.serialize() if self.compiled else None

    def compile_from_config(self, config: dict[str, Any] | None) -> None:
        """Compiles a loaded model as the saved one was, with its optimizer's state to come."""
        if config is None:
            return
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def fit(
        self,
        x: Any,
        y: None = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Sequence[keras.callbacks.Callback] | None = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        sample_weight: Any = None,
        steps_per_epoch: int | None = None,
        calibration_split: float | None = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains the networks by gradient steps and the effects in closed form.

        Before the first epoch the linear mixed model without the latent part is fitted by REML
        (with `latent_epochs`: after so many epochs, to what the networks left). After the last,
        the effects are solved exactly given the networks.

        With `epochs=0` the networks stay out of use: the model is a linear mixed model of many
        features,

            x = intercept + Z B + e

        with REML's variances, the intercept of generalised least squares and the BLUPs of the
        effects, as lme4 gives them feature by feature. Its likelihood, AIC and BIC are in
        `information_criteria`.

        Args:
            x: Dict of arrays of `n` rows, or a batched `tf.data.Dataset` of such dicts, which
                is read several times and must give the same rows each time.
            y: Must be `None`: the features are their own target.
            batch_size: Rows a step, for arrays. Defaults to 32.
            epochs: Last epoch's number; 0: the linear mixed model.
            verbose: As in Keras.
            callbacks: Keras callbacks.
            validation_split: Share of the last rows to hold out, for arrays.
            validation_data: Data of the same form, or a tuple `(data, None, sample_weight)`;
                its levels may be unseen.
            shuffle: Whether arrays are shuffled.
            sample_weight: Optional array `(n,)` of non-negative row weights: a row counts so
                many times, for the networks and for the effects.
            steps_per_epoch: Steps an epoch; needed for datasets without end.
            calibration_split: Share of the rows, chosen by the model's seed, that neither
                networks nor effects see while they are trained, for arrays. At the end the noise
                variance becomes what these rows show, and then the effects are solved for from
                all rows. With 0 the noise is that of rows that the networks were trained on: too
                small where they overfit, and so are densities and intervals of new rows. `None`:
                0.05 if there are 10,000 rows or more, given as arrays, and the noise variance is
                learned by networks; 0 otherwise.
            **kwargs: `initial_epoch`, `validation_steps`, `validation_batch_size`,
                `validation_freq`.

        Returns:
            The Keras history, in nats per row: `loss`, what the networks are trained on, with
            its parts `reconstruction_loss`, `latent_kl` and `effects_kl`, and `mse` in squared
            units. The effects of `loss` are out-of-fold, `u` is drawn, and cells weigh as
            `feature_weights` says: it is a cross-fitted score, no bound. `val_loss` is the
            negative ELBO of the validation rows, see `test_step`; stop early by that.

        Raises:
            ValueError: If the model is not adapted, or on bad data.

        Warns:
            LMMVAEWarning: At the end, of what needs no further pass over the rows: a term most
                of whose levels have one row, a noise variance at its floor, a length scale at
                its bound. `keras_lmmvae.diagnose` looks for more.
        """
        self.require_adapted()
        _check_no_target(y)
        self._check_replicas()
        rows = self._training_rows(x, sample_weight, batch_size, steps_per_epoch)
        if validation_split and validation_data is None:
            rows, validation = _split(rows, validation_split)
        else:
            validation = self._encoded_validation(validation_data)
        has_epochs = epochs > kwargs.get("initial_epoch", 0)
        all_rows, held_out = rows, None
        share = self._calibration_share(rows, calibration_split, has_epochs)
        if share:
            rows, held_out = self._without_calibration_rows(rows, share)
        seen = rows if steps_per_epoch is None else _limited(rows, steps_per_epoch)
        had_missing_cells = self.mixed_model.has_missing_cells
        if has_epochs or not self.is_fitted:
            self.networks.in_use.assign([float(has_epochs)])
        self.effects_fit.begin(Pass(seen), self.is_fitted)
        if not isinstance(rows, tf.data.Dataset):
            rows = self.effects_fit.rows.rows  # they carry their bases
        if self.mixed_model.has_missing_cells != had_missing_cells:
            self._forget_functions()
        self.fitted.assign(1.0)
        # A fit that was interrupted may have left it anywhere.
        self.kl_annealing.assign(1.0)
        if shuffle and not isinstance(rows, tf.data.Dataset):
            # Keras' own shuffling cannot be seeded.
            kwargs.setdefault("validation_batch_size", batch_size)
            rows, batch_size = shuffled_batches(rows, batch_size or 32, self.seed), None
            rows = rows if steps_per_epoch is None else rows.repeat()
        if self.compiled and not self.optimizer.built:
            # A step that makes the optimizer's variables itself would be traced twice.
            self.optimizer.build(self.trainable_variables)
        history = super().fit(
            rows,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=[EffectsSchedule(self.effects_fit), *(callbacks or [])],
            validation_data=validation,
            shuffle=False,
            steps_per_epoch=steps_per_epoch,
            **kwargs,
        )
        self._end_fit(Pass(seen), Pass(all_rows), held_out)
        warn_of_findings(self, stacklevel=2)
        return history

    def _end_fit(self, rows: Pass, all_rows: Pass, held_out: Rows | None) -> None:
        """Makes final what follows from the networks in closed form."""
        self.effects_fit.end()
        self.latent_prior.fit(rows, lambda batch: self.infer(batch).latent)
        if held_out is not None:
            calibrate_noise(self, Pass(held_out))
            had_missing_cells = self.mixed_model.has_missing_cells
            self.effects_fit.take_rows(all_rows)
            if self.mixed_model.has_missing_cells != had_missing_cells:
                self._forget_functions()
        if self.random_effects:
            self.total_axes.fit(rows, self.infer)

    def _forget_functions(self) -> None:
        """Has the steps traced anew: traced ones hold tables that are no longer there."""
        self.train_function = self.test_function = self.predict_function = None

    def _check_replicas(self) -> None:
        replicas = self.distribute_strategy.num_replicas_in_sync if self.distribute_strategy else 1
        if replicas > 1:
            raise ValueError(
                "The closed-form step updates one copy of the effects: train on one device. "
                + received(num_replicas=replicas)
            )

    def _training_rows(
        self, x: Any, sample_weight: Any, batch_size: int | None, steps: int | None
    ) -> Any:
        rows = with_weights(self.encode_data(x), sample_weight)
        if isinstance(rows, tf.data.Dataset):
            if steps is None and rows.cardinality() == tf.data.INFINITE_CARDINALITY:
                raise ValueError(
                    "A dataset without end needs `steps_per_epoch`. "
                    + received(steps_per_epoch=steps)
                )
            return with_folds(rows, is_read_whole=steps is None)
        if num_rows(rows) < (batch_size or 32):
            raise ValueError(
                "There are fewer rows than `batch_size`, so that not one batch is full. "
                + received(rows=num_rows(rows), batch_size=batch_size or 32)
            )
        return with_folds(rows)

    def _calibration_share(self, rows: Any, share: float | None, has_epochs: bool) -> float:
        """The share of the rows to hold out that `calibration_split` stands for."""
        if share and not has_epochs:
            raise ValueError(
                "`calibration_split` goes with networks that are trained; without epochs the noise "
                "variance is REML's, from all rows. " + received(calibration_split=share)
            )
        if share is not None:
            return share
        is_needed = has_epochs and self.noise_variance_setting is None
        is_possible = not isinstance(rows, tf.data.Dataset) and self.posterior == "conjugate"
        if not is_needed or not is_possible or num_rows(rows) < _FEWEST_ROWS:
            return 0.0
        return _CALIBRATION_SHARE

    def _without_calibration_rows(self, rows: Any, share: float) -> tuple[Rows, Rows]:
        """Training rows, and those that are held out of the whole fit, at random."""
        if isinstance(rows, tf.data.Dataset) or not 0.0 < share < 1.0:
            raise ValueError(
                "`calibration_split` must lie in (0, 1), and goes with arrays, not with a dataset. "
                + received(calibration_split=share)
            )
        if self.noise_variance_setting is not None:
            raise ValueError(
                "`calibration_split` learns the noise variance, which is given. "
                + received(calibration_split=share, noise_variance=self.noise_variance_setting)
            )
        is_held_out = draw_held_out(num_rows(rows), share, self.seed)

        def where(chosen: np.ndarray) -> Rows:
            return tf.nest.map_structure(lambda value: tf.boolean_mask(value, chosen), rows)

        return where(~is_held_out), where(is_held_out)

    def _encoded_validation(self, data: Any) -> Any:
        if data is None:
            return None
        data, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        _check_no_target(y)
        rows = with_weights(self.encode_data(data), sample_weight)
        return rows if isinstance(rows, tf.data.Dataset) else (rows,)

    def evaluate(self, x: Any, y: None = None, sample_weight: Any = None, **kwargs: Any) -> Any:
        """Loss, its parts and mean squared error on new rows; arguments as in Keras."""
        if not is_encoded(x) and not kwargs.get("_use_cached_eval_dataset"):
            self.require_fitted()
            _check_no_target(y)
            x = with_weights(self.encode_data(x), sample_weight)
        return super().evaluate(x, **kwargs)

    def predict(self, x: Any, batch_size: int | None = None, **kwargs: Any) -> np.ndarray:
        """Reconstructions `f(E[u | x]) + Z B`, `(n, p)`, in the features' units.

        Args:
            x: Dict of arrays or a batched dataset of dicts.
            batch_size: Rows at once, for arrays. Defaults to 32.
            **kwargs: `verbose`, `steps`, `callbacks`.
        """
        self.require_fitted()
        found: np.ndarray = super().predict(self.encode_data(x), batch_size=batch_size, **kwargs)
        return found

    # What a fitted model says of rows -------------------------------------------------------------

    def encode(self, data: Any, refine: int = 0, include: str = "within") -> np.ndarray:
        """What rows are, in `d` numbers each: within their groups, or in total.

            within[i] = E[u[i] | x, B]
            total[i] = axes' @ (f(within[i]) + Z[i] @ B - mean)

        *within* is the latent, a row with its groups taken out. So it does not know what is
        constant in a group, such as the speaker of an utterance. *total* is the row with its
        groups: the principal components of `f(u) + Z B`, measured by what varies within groups,
        see `TotalAxes`. Take it for labels and clusters of groups. Groups never seen have no
        effects; `with_levels_of` gives them those that their own rows say.

        Args:
            data: Dict of arrays of `n` rows, or a batched dataset of dicts.
            refine: Non-negative int, Gauss-Newton steps from the encoder's answer to the best
                latent of each row; see `Inference.refined`. About 10 are enough.
            include: "within" or "total". Without random effects they are the same.

        Returns:
            Float array `(n, d)`. Within a group the numbers of *total* have variance 1.

        Raises:
            ValueError: If `include` is none of the two, or `refine` is out of its range.
        """
        return inspection.encode(self, data, refine, include)

    def decode(self, latent: Any) -> np.ndarray:
        """`f(u)` in the features' units, without random effects.

        Args:
            latent: Float array `(n, d)`.

        Returns:
            Float array `(n, p)`.
        """
        self.require_fitted()
        return np.asarray(self.to_units(self.networks.decode(tf.cast(latent, tf.float32))))

    def reconstruct(self, data: Any, include_effects: bool = True, refine: int = 0) -> np.ndarray:
        """Reconstructions of rows.

        Args:
            data: Dict of arrays of `n` rows, or a batched dataset of dicts.
            include_effects: Whether `Z B` is added to `f(E[u | x])`; without, the row as it
                would be in the average store, patient or place.
            refine: Non-negative int, Gauss-Newton steps from the encoder's answer to the best
                latent of each row; see `Inference.refined`. With 0 the result is that of
                `predict` and of an export. 10 lower the error: by 8 to 16 % on the county
                murders, baseball and pines of the benchmark.

        Returns:
            Float array `(n, p)`, in the features' units.
        """
        check_positive("refine", refine, integer=True, minimum=0)

        def batch(rows: Rows) -> tuple[tf.Tensor, ...]:
            seen = self.infer_refined(rows, refine)
            return (self.to_units(seen.mean if include_effects else seen.population),)

        return self.pass_over(data).collect(batch)[0]

    def predictive(self, data: Any, refine: int = 0) -> Prediction:
        """Reconstructions with their uncertainty and what each term contributes.

        Args:
            data: Dict of arrays of `n` rows, or a batched dataset of dicts.
            refine: Non-negative int, Gauss-Newton steps from the encoder's answer to the best
                latent of each row; see `Inference.refined`. About 10 are enough.
                Here every cell is weighed by its own variance, as in `log_likelihood`.

        Returns:
            A `Prediction`. Levels never seen contribute 0 and add their variance; rows with a
            null key contribute 0 and add none.
        """
        return inspection.predictive(self, data, refine)

    def term_effects(self, name: str, data: Any) -> tuple[np.ndarray, np.ndarray]:
        """Effect of one term on rows, `Z_k B_k`, with its posterior standard deviation.

        Args:
            name: The term's name.
            data: Dict of arrays of `n` rows, or a batched dataset of dicts.

        Returns:
            mean: Float array `(n, p)`, in the features' units.
            standard_deviation: Float array `(n, p)`, of this term by itself, the others unknown
                too; zeros for an amortized posterior.
        """
        return inspection.term_effects(self, name, data)

    def log_likelihood(self, data: Any, num_samples: int = 0, refine: int = 10) -> np.ndarray:
        """Lower bound of every row's log density given the training rows.

            log p(x[i]) >= E_q[log p(x[i] | u, B-hat)] - KL(q(u[i]) || p(u))

        The effects are those of the training rows; their remaining variance is added to the
        noise. `p(u)` is the normal distribution of the latents of the training rows,
        `latent_prior`. Missing cells are left out.

        Args:
            data: Dict of arrays of `n` rows, or a batched dataset of dicts.
            num_samples: 0: the bound, its expectation over q(u) by `2 d` cubature points, exact
                for a linear decoder. Positive: the tighter importance-weighted bound
                with that many draws from q(u), fixed by the model's seed.
            refine: Non-negative int, Gauss-Newton steps from the encoder's answer to the most
                likely latent of each row; see `Inference.refined`. The encoder alone, 0, is
                faster and leaves the bound looser.

        Returns:
            Float array `(n,)`, nats, for the density in the features' units.

        References:
            - Burda, Grosse & Salakhutdinov (2016), Importance weighted autoencoders, eq. (8).
        """
        return inspection.log_likelihood(self, data, num_samples, refine)

    # What a fitted model says of itself -----------------------------------------------------------

    def random_effects_table(
        self, name: str, std: bool = False, feature_names: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Posterior means of a term's effects B, or their standard deviations.

        Args:
            name: The term's name.
            std: Whether to give posterior standard deviations instead of means.
            feature_names: Optional names of the `p` features. Defaults to those of the model.

        Returns:
            A DataFrame, levels x features; for slopes its index has the levels and the
            coefficients, in the units of time and covariates as given; for a spatial term the
            values of the surface at the inducing points.

        Raises:
            ValueError: If there is no such term, or `std` is asked of an amortized posterior.
        """
        return inspection.random_effects_table(self, name, std, feature_names)

    def variance_components(self, feature_names: Sequence[str] | None = None) -> pd.DataFrame:
        """Variances of the random effects and of the noise.

        Args:
            feature_names: Optional names of the `p` features. Defaults to those of the model.

        Returns:
            A DataFrame, term x feature, in squared units of the features: a row per term
            ("store"), per coefficient of a term with slopes ("patient: t"), and "noise". With
            the amortized posterior the terms' variances are those of the prior, 1 in
            standardised units: it learns none.
        """
        return inspection.variance_components(self, feature_names)

    def coefficient_covariance(self, name: str) -> pd.DataFrame:
        """The shape `Psi` of a term's prior: covariance of its coefficients, features apart.

            Cov(B[l, :, f]) = effect_variance[f] * Psi

        Args:
            name: The term's name.

        Returns:
            A DataFrame, coefficients x coefficients, in the units of the columns as given; the
            1 x 1 identity for terms with one coefficient and for surfaces.
        """
        return inspection.coefficient_covariance(self, name)

    def variance_intervals(self, level: float = 0.9) -> pd.DataFrame:
        """Confidence intervals of `variance_components`.

        They take effects and noise as normal, and the networks and a kernel's length scale as
        known. In particular the noise variance holds what the networks have not learned yet, and
        its interval is one of that sum. They belong to the rows of `fit`: take them before
        `update_random_effects`.

        Measured by benchmarks/variance_intervals.py, intervals of 90 % held the truth of terms
        in 86 to 94 % of the cases, that of the noise without networks in 86 to 90 %. Those of
        surfaces have not been measured.

        Args:
            level: Float in (0, 1), the probability that an interval is to hold the truth with.

        Returns:
            A DataFrame, (component, feature) x ("lower", "estimate", "upper"), in squared units
            of the features. A term with one level has no upper limit; a given
            `noise_variance` has no uncertainty.

        Raises:
            ValueError: If `level` is out of its range, the model has no random effects, or its
                posterior is amortized.

        References:
            - Satterthwaite, F. E. (1946), An approximate distribution of estimates of variance
              components, eq. (17).
            - Searle, Casella & McCulloch (1992), Variance components, section 3.5.
        """
        return inspection.variance_intervals(self, level)

    def information_criteria(
        self, data: Any, method: str = "reml", sample_weight: Any = None
    ) -> pd.DataFrame:
        """Log likelihood, AIC and BIC of the linear mixed model that `fit(epochs=0)` makes.

            V = noise_variance * I + sum{ Z_k @ prior covariance_k @ Z_k' : k=1...K }
            r = x[:, f] - intercept
            ML:   -1/2 (n log(2 pi) + log|V| + r' inv(V) r)
            REML: -1/2 ((n - 1) log(2 pi) + log|V| + r' inv(V) r + log(1' inv(V) 1))

        for every feature, the effects integrated out. The constant of REML is that of lme4 and
        statsmodels, so that values compare with theirs. Models with the same rows and features
        compare with each other: the lower AIC or BIC is better. `likelihood_ratio_test` tests
        further terms.

        The parameters of a feature are its intercept, its noise variance unless that is given, and
        one variance a term. "(all)" has those of all features and the parameters that they
        share: the free entries of every learned `Psi`, `m (m + 1) / 2 - 1` each, and learned
        length scales. BIC multiplies a feature's parameters by `log(n)`, with `n` its observed
        cells, and shared ones by the logarithm of all observed cells.

        A sparse matrix over all effects, terms by levels by coefficients, is factorised for each
        feature in float64. With one grouping factor this is linear in the levels. Levels that are
        crossed fill it in, at worst cubic in their number; a surface's block is dense, with
        memory of `n * num_inducing` numbers for its rows.

        Args:
            data: The training rows, dict of arrays or a batched dataset of dicts.
            method: "reml"; or "ml", the full likelihood, which is evaluated at REML's estimates and
                not at its own maximum. `logLik(fit, REML=FALSE)` of lme4 and nlme does so after
                it has multiplied the variances by `(n - 1) / n`, which adds about `1 / (4 n)`.
            sample_weight: Optional array `(n,)`, the row weights of the fit: a row of weight 2
                counts as two rows, also in `n`.

        Returns:
            A DataFrame, features and "(all)" x ("log_likelihood", "parameters", "aic", "bic"),
            in nats, for densities in the features' units.

        Raises:
            ValueError: If the model is not fitted, its networks are in use, its posterior is
                amortized, `effects_kl_weight` is not 1, `method` is unknown, rows have levels
                that are not those of the training rows, or on bad data.

        Example:
            >>> import numpy as np
            >>> import keras_lmmvae as lmm
            >>> rng = np.random.default_rng(0)
            >>> data = {"store": rng.integers(0, 20, size=200)}
            >>> data["x"] = rng.normal(size=(20, 2))[data["store"]] + rng.normal(size=(200, 2))
            >>> model = lmm.LMMVAE(1, "(1 | store)", hidden_units=(8,), seed=0)
            >>> model.adapt(data)
            >>> model.compile()
            >>> history = model.fit(data, epochs=0)
            >>> model.information_criteria(data)["parameters"].to_dict()
            {0: 3, 1: 3, '(all)': 6}

        References:
            - Harville, D. A. (1977), Maximum likelihood approaches to variance component
              estimation.
            - Bates et al. (2015), Fitting linear mixed-effects models using lme4, section 3.
        """
        return inspection.information_criteria(self, data, method, sample_weight)

    def variance_partition(self, data: Any = None, *, num_samples: int = 10_000) -> pd.DataFrame:
        """Shares of every feature's variance: of the latent part, of each term, of the noise.

            latent = Var(f(u))
            term k = effect_variance * mean over rows of phi' Psi phi
            noise  = noise_variance

        each over their sum. A term with slopes has one row, the variance of its effect on an
        average row. These are variances of the population that the levels come from, as in an
        intraclass correlation, not of the levels that happened to be seen.

        Without data, `u` is drawn from its prior N(0, I), and the rows are those of training:
        the variance of rows that the model itself makes. The prior is a good description of
        the latents only if the KL held them there (`kl_weight` not much below 1). With data,
        `u` is drawn from the rows' posteriors q(u), and the mean is over those rows: the
        variance in this population, whatever the latents' distribution. Prefer it where you
        have the training rows, or rows that represent the population of interest.

        Args:
            data: Optional dict of arrays of `n` rows, or a batched dataset of dicts. Rows
                without a level of a term do not count for that term.
            num_samples: Positive int, least number of draws of `u`; from rows as many each, one
                at least. They are fixed by the model's seed; the relative standard error of the
                variance of a linear `f` is `sqrt(2 / num_samples)`.

        Returns:
            A DataFrame, ("latent", terms by name, "noise") x features; columns sum to 1.

        Raises:
            ValueError: If `num_samples` is not a positive int, the posterior is amortized, or on
                bad data.

        Example:
            >>> import numpy as np
            >>> import keras_lmmvae as lmm
            >>> rng = np.random.default_rng(0)
            >>> data = {"store": rng.integers(0, 40, size=800)}
            >>> data["x"] = rng.normal(size=(40, 3))[data["store"]] + rng.normal(size=(800, 3))
            >>> model = lmm.LMMVAE(1, [lmm.RandomIntercept("store")], hidden_units=(8,), seed=0)
            >>> model.adapt(data)
            >>> model.compile()
            >>> history = model.fit(data, batch_size=100, verbose=0)
            >>> shares = model.variance_partition(data)
            >>> list(shares.index), np.allclose(shares.sum(), 1.0)
            (['latent', 'store', 'noise'], True)

        References:
            - Nakagawa, S. & Schielzeth, H. (2013), A general and simple method for obtaining R2
              from generalized linear mixed-effects models, eq. (26).
            - Johnson, P. C. D. (2014), Extension of Nakagawa & Schielzeth's R2 to random slopes
              models, eq. (10).
        """
        return inspection.variance_partition(self, data, num_samples=num_samples)

    # Further rows, after training -----------------------------------------------------------------

    def condition(self, rows: Any, on: str) -> Conditioned:
        """Effects of a level given a few of its rows, and their reconstructions.

        The level starts at what the model knows of it: the prior for a level never seen, its
        posterior for a level of the training rows, the surface as it is for new places. Given
        the networks the result is the exact posterior (BLUP); networks, variances and all other
        effects stay, and the model remembers nothing of the rows. As in training, the encoder
        reads every row less the effects that the other rows say.

        Args:
            rows: Dict of arrays of `n` rows of one level; missing cells are left out.
            on: Name of the term.

        Returns:
            A `Conditioned`.

        Raises:
            ValueError: If there is no such term, the rows are of more than one level, the key
                is null, or the posterior is amortized.

        Example:
            >>> import numpy as np
            >>> import keras_lmmvae as lmm
            >>> rng = np.random.default_rng(0)
            >>> data = {"x": rng.normal(size=(200, 3)), "store": rng.integers(0, 20, 200)}
            >>> model = lmm.LMMVAE(1, [lmm.RandomIntercept("store")], hidden_units=(8,), seed=0)
            >>> model.adapt(data)
            >>> model.compile("adam")
            >>> history = model.fit(data, epochs=1, batch_size=50, verbose=0)
            >>> opened = {"x": rng.normal(size=(4, 3)) + 1.0, "store": np.full(4, 99)}
            >>> model.condition(opened, on="store").effects.shape
            (1, 3)
        """
        return inspection.condition(self, rows, on)

    def update_random_effects(self, data: Any, keep_history: bool = True) -> None:
        """Updates the effects from new rows; levels never seen before are added.

        The rows seen so far enter as what they left behind: every level's Gram matrix and
        posterior mean. With one term the result is the posterior given old and new rows
        together; with several, what old rows said of two terms jointly is not kept. Networks,
        variances and scales stay.

        Args:
            data: Dict of arrays of new rows, or a batched dataset of dicts.
            keep_history: Whether rows seen so far count; `False` takes `data` for all rows
                there are, so that levels without rows go back to zero.

        Raises:
            ValueError: If the model is not fitted, or its posterior is amortized.
        """
        fit = self._require_conjugate_fit()
        batches = self._columns.batches(data, self.num_features)
        had_missing_cells = self.mixed_model.has_missing_cells
        has_grown = any([self.mixed_model.add_levels(batch) for batch in batches])
        earlier = self.mixed_model.earlier_rows() if keep_history else None
        fit.update(Pass(with_folds(self.encode_data(data))), earlier)
        if has_grown or self.mixed_model.has_missing_cells != had_missing_cells:
            self._forget_functions()

    def with_levels_of(self, data: Any) -> LMMVAE:
        """A copy of the model that also knows the levels of `data` that were never seen.

        Their effects are the posterior means given their own rows, all at once, with everything
        else as it is: networks, variances and the effects of known levels. So rows of known levels
        change nothing, and the model itself stays as it was. Use it to describe groups that came
        after training by what their own rows say:

            model.with_levels_of(new).encode(new)

        Args:
            data: Dict of arrays of rows, or a batched dataset of dicts.

        Returns:
            A fitted `LMMVAE`, not compiled; this model's like in everything but these levels.

        Raises:
            ValueError: If the model is not fitted, has no random effects, or its posterior is
                amortized.

        Example:
            >>> import numpy as np
            >>> import keras_lmmvae as lmm
            >>> rng = np.random.default_rng(0)
            >>> data = {"x": rng.normal(size=(200, 3)), "store": rng.integers(0, 20, 200)}
            >>> model = lmm.LMMVAE(1, [lmm.RandomIntercept("store")], hidden_units=(8,), seed=0)
            >>> model.adapt(data)
            >>> model.compile("adam")
            >>> history = model.fit(data, epochs=1, batch_size=50, verbose=0)
            >>> opened = {"x": rng.normal(size=(40, 3)), "store": rng.integers(20, 30, 40)}
            >>> len(model.with_levels_of(opened).random_effects_table("store"))
            30
        """
        self._require_conjugate_fit()
        copy: LMMVAE = copied(self)
        for batch in copy._columns.batches(data, self.num_features):
            for term in copy.random_effects:
                term.add_levels(batch)
        fit_new_levels(copy._require_conjugate_fit(), Pass(with_folds(copy.encode_data(data))))
        return copy

    def _require_conjugate_fit(self) -> ConjugateFit:
        """How the effects are fitted, where rows can change them without training."""
        self.require_fitted()
        fit = self.effects_fit
        if not isinstance(fit, ConjugateFit):
            raise ValueError(
                "Only the conjugate posterior can be updated without training. "
                + received(posterior=self.posterior)
            )
        if not self.random_effects:
            raise ValueError("The model has no random effects to update. " + received(terms=0))
        return fit

    # Files ----------------------------------------------------------------------------------------

    def save(
        self,
        filepath: str | Path,
        overwrite: bool = True,
        zipped: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Saves the model; arguments as in Keras.

        A `.keras` file is written beside its place and renamed: a failed save leaves what was
        there before.

        Args:
            filepath: File to write, "....keras".
            overwrite: Whether to replace a file that is there without asking.
            zipped: Whether to write one file instead of a folder.
            **kwargs: Keras' further arguments.
        """
        target = Path(filepath)
        is_asking = not overwrite and target.exists()
        if is_asking or zipped is False or target.suffix != ".keras" or "://" in str(filepath):
            super().save(filepath, overwrite=overwrite, zipped=zipped, **kwargs)
            return
        with written_whole(target) as fresh:
            super().save(fresh, zipped=zipped, **kwargs)

    def export(self, filepath: str | Path, *, keys_in_graph: bool = False, **kwargs: Any) -> None:
        """Writes a SavedModel for TensorFlow Serving, whose signatures take raw columns.

        `serving_default`, `encode`, `decode`, `anomaly_score`, `random_effects_<term>`, and
        `condition_<term>`; see docs/serving.md for their inputs and outputs. Rows are independent
        of each other, the batch size is free, floats are float32; keys are strings or int64, as
        those adapted to. The empty string, the smallest int64 and NaN stand for missing keys and
        coordinates. `keras_lmmvae.export.publish` adds a model card, warm-up requests and a check.

        Args:
            filepath: Folder to write, for TensorFlow Serving `models/<name>/<version>`.
            keys_in_graph: Whether keys are constants of the graph instead of asset files: for
                OpenVINO, which reads no assets; not for millions of keys.
            **kwargs: Keras' `format="tf_saved_model"` and `verbose`, nothing else.

        Raises:
            ValueError: If the model is not fitted, a column's name cannot be that of a
                SavedModel's input (ASCII letters, digits, "_", "." and "-"), or on further
                arguments.
        """
        kwargs.pop("verbose", None)
        if kwargs.pop("format", "tf_saved_model") != "tf_saved_model" or kwargs:
            raise ValueError(
                "The only export format is 'tf_saved_model', without further arguments. "
                + received(kwargs=sorted(kwargs) or "another format")
            )
        self.require_fitted()
        export_saved_model(self, filepath, keys_in_graph=keys_in_graph)

    def get_build_config(self) -> dict[str, Any]:
        """What `adapt` found, for the saved file; keys and weights are stored apart."""
        return {
            "num_features": self.num_features,
            "feature_names": list(self._feature_names) if self._feature_names else None,
            "has_missing_cells": self.num_features > 0 and self.mixed_model.has_missing_cells,
            "terms": [term.adapted_state() for term in self.random_effects],
        }

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Makes the weights of a loaded model, before their values are read."""
        if not config or not config.get("num_features"):
            return
        for term, state in zip(self.random_effects, config["terms"], strict=True):
            term.restore_adapted_state(state)
        size = config["num_features"]
        names = check_feature_names(config["feature_names"], size)
        self._make_state(size, names, config["has_missing_cells"])

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        given = {"encoder": self.given_encoder, "decoder": self.given_decoder}
        return {
            "version": __version__,
            "latent_dim": self.latent_dim,
            "random_effects": [serialize(term) for term in self.random_effects],
            "hidden_units": self.hidden_units,
            "activation": keras.activations.serialize(self.activation),
            **{name: None if net is None else serialize(net) for name, net in given.items()},
            "posterior": self.posterior,
            "shared_encoder": self.shared_encoder,
            "kl_weight": self.kl_weight,
            "effects_kl_weight": self.effects_kl_weight,
            "effects_kl_reduction": self.effects_kl_reduction,
            "noise_variance": self.noise_variance_setting,
            "feature_weights": self.feature_weights,
            "latent_epochs": self.latent_epochs,
            "effects_dropout": self.effects_dropout,
            "normalize": self.normalize,
            "seed": self.seed,
            "name": self.name,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> LMMVAE:
        config = dict(config)
        check_saved_version(config.pop("version", None))
        deserialize = keras.saving.deserialize_keras_object
        for name in ("encoder", "decoder", "dtype"):
            if isinstance(config.get(name), dict):
                config[name] = deserialize(config[name], custom_objects)
        config["random_effects"] = [
            deserialize(term, custom_objects) for term in config["random_effects"]
        ]
        return cls(**config)


def _check_rows_observed(x: np.ndarray) -> None:
    empty = np.flatnonzero(np.isnan(x).all(axis=1))
    if len(empty):
        raise ValueError(
            "Every row needs at least one observed cell: drop rows of 'x' that are all NaN. "
            + received(rows=len(empty), first=int(empty[0]))
        )


def _check_no_target(y: Any) -> None:
    if y is not None:
        raise ValueError(
            "`y` must be None: the features are their own target. " + received(y=type(y))
        )


def _split(rows: Any, share: float) -> tuple[Rows, tuple[Rows]]:
    """First and last rows, as Keras splits arrays."""
    if isinstance(rows, tf.data.Dataset) or not 0.0 < share < 1.0:
        raise ValueError(
            "`validation_split` must lie in (0, 1), and goes with arrays, not with a dataset. "
            + received(validation_split=share)
        )
    total = num_rows(rows)
    cut = int(total * (1.0 - share))
    return take_rows(rows, 0, cut), (take_rows(rows, cut, total),)


def _limited(rows: Any, steps: int) -> Any:
    return rows.take(steps) if isinstance(rows, tf.data.Dataset) else rows


def _weighted_mean(values: tf.Tensor, weight: tf.Tensor | None) -> tf.Tensor:
    """Mean over rows of `weight * values`; as in Keras, weights are not normalised."""
    return tf.reduce_mean(values if weight is None else values * weight)
