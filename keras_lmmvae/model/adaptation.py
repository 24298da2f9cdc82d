"""`adapt`: what a model takes from the data before it is trained, and how it is built and saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_lmmvae.model.feature_names import check_feature_names, names_of
from keras_lmmvae.model.networks import (
    EffectsEncoder,
    LatentDecoder,
    LatentEncoder,
    dense_stack,
    layer_seeds,
)
from keras_lmmvae.model.part import ModelPart
from keras_lmmvae.model.rows import (
    FEATURES,
    Rows,
    dataset_columns,
    encode_rows,
    prepare_rows,
    raw_batches,
)
from keras_lmmvae.validation import received

__all__ = ["Adaptation", "FeatureMoments"]


class FeatureMoments:
    """Streaming count, mean and variance of the observed cells of every feature."""

    def __init__(self) -> None:
        self._shift: np.ndarray | None = None
        self._sums = np.zeros((3, 1))

    def update_state(self, x: np.ndarray) -> None:
        """Takes in rows `(n, p)`; NaN cells are left out."""
        x = x.astype(np.float64)
        if self._shift is None:
            # Sums around a value of the data keep the digits of features far from zero.
            first = np.argmax(np.isfinite(x), axis=0)
            self._shift = np.nan_to_num(x[first, np.arange(x.shape[1])])
            self._sums = np.zeros((3, x.shape[1]))
        observed = np.isfinite(x)
        moved = np.where(observed, x - self._shift, 0.0)
        self._sums += np.stack([observed.sum(0), moved.sum(0), (moved**2).sum(0)])

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the features, `(p,)` each.

        Raises:
            ValueError: If a feature has no observed cell, or does not vary.
        """
        count, first, second = self._sums
        if self._shift is None or not count.all():
            empty = [] if self._shift is None else np.flatnonzero(count == 0).tolist()
            raise ValueError(
                "Every feature needs at least one observed cell. " + received(empty_columns=empty)
            )
        mean = first / count
        variance = second / count - mean**2
        constant = variance <= 1e-12 * (mean**2 + self._shift**2 + 1e-30)
        if constant.any():
            raise ValueError(
                "Features must vary: drop constant columns of 'x'. "
                + received(constant_columns=np.flatnonzero(constant).tolist())
            )
        return self._shift + mean, np.sqrt(variance)


class Adaptation(ModelPart):
    """The part of `LMMVAE` that learns sizes, levels and scales, and makes the weights."""

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
        moments = FeatureMoments()
        for term in self.random_effects:
            term.reset_state()
        for batch in raw_batches(data, self.random_effects):
            _check_rows_observed(batch[FEATURES])
            moments.update_state(batch[FEATURES])
            for term in self.random_effects:
                term.update_state(batch)
        mean, scale = moments.result()
        names = names_of(data) if feature_names is None else feature_names
        names = check_feature_names(names, len(mean))
        for term in self.random_effects:
            term.finalize_state()
        self._make_weights(len(mean))
        self._feature_names = names
        if self.normalize:
            self.feature_mean.assign(mean)
            self.feature_scale.assign(scale)
        self.reset_noise_variance(np.ones(self.num_features))

    def _make_weights(self, num_features: int) -> None:
        """Makes networks and states; sizes of the terms are known."""
        self.num_features = num_features
        self._make_networks()
        for name, initial in (
            ("feature_mean", "zeros"),
            ("feature_scale", "ones"),
            ("residual_scale", "ones"),
            ("noise_variance", "ones"),
        ):
            self._add_state(name, (num_features,), initial)
        terms = len(self.random_effects)
        for name, shape, initial in (
            # Joint over block-wise variance of the effects' sum: of the folds, of the common table.
            ("inflation", (2,), "ones"),
            # How moments of the terms mix where they share rows; see `retained_moments`.
            ("moment_matrix", (num_features, terms, terms), "zeros"),
            ("fitted", (), "zeros"),
        ):
            self._add_state(name, shape, initial)
        self.moment_matrix.assign(np.broadcast_to(np.eye(terms), (num_features, terms, terms)))
        for term in self.random_effects:
            term.build_posterior(num_features, is_amortized=self.posterior == "amortized")
        self.built = True

    def _add_state(self, name: str, shape: tuple[int, ...], initializer: Any) -> None:
        """Adds an attribute that is saved but not trained, in float32 whatever the policy."""
        weight = self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            trainable=False,
            autocast=False,
            dtype="float32",
        )
        setattr(self, name, weight)

    def _make_networks(self) -> None:
        features, policy = (None, self.num_features), self.dtype_policy
        seeds = layer_seeds(self.seed)
        trunk = self.given_encoder or dense_stack(
            self.hidden_units, self.activation, "encoder_trunk", policy, next(seeds)
        )
        self.latent_encoder = LatentEncoder(trunk, self.latent_dim, next(seeds), dtype=policy)
        self.latent_encoder.build(features)
        decoder = self.given_decoder
        has_head = decoder is None or decoder.compute_output_shape((None, self.latent_dim)) != (
            None,
            self.num_features,
        )
        decoder = decoder or dense_stack(
            self.hidden_units[::-1], self.activation, "decoder_trunk", policy, next(seeds)
        )
        self.latent_decoder = LatentDecoder(
            decoder, self.num_features, has_head, next(seeds), dtype=policy
        )
        self.latent_decoder.build((None, self.latent_dim))
        if self.posterior == "amortized" and self.random_effects:
            sizes = [term.code_size for term in self.random_effects]
            own = None if self.shared_encoder else dense_stack(
                self.hidden_units, self.activation, "effects_trunk", policy, next(seeds)
            )  # fmt: skip
            self.effects_encoder = EffectsEncoder(
                sizes, self.num_features, own, next(seeds), dtype=policy
            )
            hidden = trunk.compute_output_shape(features) if self.shared_encoder else features
            self.effects_encoder.build(hidden)

    def build(self, input_shape: Any = None) -> None:
        """Weights are made by `adapt`, which learns their sizes."""
        self.require_adapted()

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

    def encode_data(self, data: Any) -> Rows | tf.data.Dataset:
        """Turns raw columns into encoded rows: standardised features, codes, basis inputs.

        Args:
            data: Dict of arrays, or a batched `tf.data.Dataset` of dicts.

        Returns:
            A dict of tensors, or a dataset of such dicts.
        """
        self.require_adapted()
        terms, mean, scale = self.random_effects, *self._feature_scaling()
        if isinstance(data, tf.data.Dataset):
            return dataset_columns(data, terms, self.num_features).map(
                lambda batch: encode_rows(batch, terms, mean, scale, keep_mask=True),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
        prepared = prepare_rows(data, terms, self.num_features)
        keep_mask = bool(np.isnan(prepared[FEATURES]).any())
        return encode_rows(prepared, terms, mean, scale, keep_mask=keep_mask)

    def _feature_scaling(self) -> tuple[np.ndarray, np.ndarray]:
        convert = keras.ops.convert_to_numpy
        return convert(self.feature_mean), convert(self.feature_scale)

    def get_build_config(self) -> dict[str, Any]:
        """What `adapt` found, for the saved file; keys and weights are stored apart."""
        return {
            "num_features": self.num_features,
            "feature_names": list(self._feature_names) if self._feature_names else None,
            "terms": [term.adapted_state() for term in self.random_effects],
        }

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Makes the weights of a loaded model, before their values are read."""
        if not config or not config.get("num_features"):
            return
        for term, state in zip(self.random_effects, config["terms"], strict=True):
            term.restore_adapted_state(state)
        self._make_weights(config["num_features"])
        # Files of version 0.1 have none.
        self._feature_names = check_feature_names(config.get("feature_names"), self.num_features)


def _check_rows_observed(x: np.ndarray) -> None:
    empty = np.flatnonzero(np.isnan(x).all(axis=1))
    if len(empty):
        raise ValueError(
            "Every row needs at least one observed cell: drop rows of 'x' that are all NaN. "
            + received(rows=len(empty), first=int(empty[0]))
        )
