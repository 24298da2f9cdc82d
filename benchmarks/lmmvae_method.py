"""LMMVAE as a method among the baselines: `fit`, `transform`, `reconstruct`, `log_likelihood`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import keras
import numpy as np

from keras_lmmvae.baselines import Baseline
from keras_lmmvae.baselines.base import Data, FloatArray
from keras_lmmvae.baselines.calibration import without_calibration_rows
from keras_lmmvae.baselines.schedule import cosine_adam
from keras_lmmvae.fitting.calibration import calibrate_noise
from keras_lmmvae.lmmvae import LMMVAE
from keras_lmmvae.metrics import mse
from keras_lmmvae.simulation import split, take
from keras_lmmvae.simulation.splits import SplitKind

__all__ = ["AmortizedMethod", "LMMVAEMethod"]


class LMMVAEMethod(Baseline):
    """`LMMVAE` with the conjugate posterior, trained like the other autoencoders.

    Args:
        latent_dim: Positive int, `d`.
        random_effects: Terms.
        hidden_units: Widths of the encoder's layers, mirrored.
        epochs: Epochs.
        batch_size: Rows a step.
        learning_rate: Of Adam at the first step; cosine decay to 0.
        kl_weight: Weight of the latent's KL.
        refine: Gauss-Newton steps to the best latent of each row.
        calibration_split: Share of the training rows that are held out of the fit and give the
            noise variance.
        latent_epochs: Values of the model's argument to choose from. With more than one, each is
            tried on validation rows, and the best is fitted to all rows.
        validation: Kind and column of the split that gives the validation rows.
        seed: Optional int.

    Attributes:
        model_: The fitted `LMMVAE`.
        latent_epochs_: The value that was chosen.
    """

    method = "lmmvae"

    def __init__(
        self,
        latent_dim: int,
        random_effects: Sequence[Any] = (),
        *,
        hidden_units: Sequence[int] = (1000, 500),
        epochs: int = 25,
        batch_size: int = 128,
        learning_rate: float = 2e-3,
        kl_weight: float = 1.0,
        refine: int = 0,
        calibration_split: float = 0.0,
        latent_epochs: Sequence[int] = (0,),
        validation: tuple[SplitKind, str | None] = ("rows", None),
        seed: int | None = None,
    ) -> None:
        self.latent_dim = latent_dim
        self.random_effects = random_effects
        self.hidden_units = hidden_units
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.kl_weight = kl_weight
        self.refine = refine
        self.calibration_split = calibration_split
        self.latent_epochs = latent_epochs
        self.validation = validation
        self.seed = seed

    def fit(self, data: Data) -> Self:
        """Adapts and fits the model to `data`, and returns the method."""
        self.latent_epochs_ = self._choose_latent_epochs(data)
        share = self.calibration_split
        self.model_ = self._fitted_model(data, self.latent_epochs_, share)
        return self

    def _choose_latent_epochs(self, data: Data) -> int:
        if len(self.latent_epochs) == 1:
            return self.latent_epochs[0]
        kind, on = self.validation
        train, valid = split(data, kind, on=on, seed=self.seed)
        held_out = take(data, valid)
        errors = {}
        for value in self.latent_epochs:
            model = self._fitted_model(take(data, train), value)
            errors[value] = mse(held_out["x"], model.reconstruct(held_out, refine=self.refine))
        return min(errors, key=errors.__getitem__)

    def _fitted_model(
        self, data: Data, latent_epochs: int, calibration_split: float = 0.0
    ) -> LMMVAE:
        model = self._make_model(latent_epochs)
        model.adapt(data)
        num_rows = len(data["x"]) - round(calibration_split * len(data["x"]))
        model.compile(optimizer=self._optimizer(num_rows))
        model.fit(
            data,
            epochs=self.epochs,
            batch_size=self.batch_size,
            verbose=0,
            calibration_split=calibration_split,
        )
        return model

    def _make_model(self, latent_epochs: int) -> LMMVAE:
        return LMMVAE(
            self.latent_dim,
            self.random_effects,
            hidden_units=self.hidden_units,
            kl_weight=self.kl_weight,
            latent_epochs=latent_epochs,
            seed=self.seed,
        )

    def _optimizer(self, num_rows: int) -> keras.optimizers.Optimizer:
        return cosine_adam(self.learning_rate, num_rows, self.batch_size, self.epochs)

    def transform(self, data: Data) -> FloatArray:
        """Returns the posterior means of the latent, `(n, d)`."""
        return np.asarray(self.model_.encode(dict(data), self.refine), np.float64)

    def reconstruct(self, data: Data) -> FloatArray:
        """Returns `f(E[u | x]) + Z B`, `(n, p)`."""
        return np.asarray(self.model_.reconstruct(dict(data), refine=self.refine), np.float64)

    def log_likelihood(self, data: Data, num_samples: int = 0) -> FloatArray:
        """Returns bounds of the rows' log densities given the effects, `(n,)`."""
        bound = self.model_.log_likelihood(dict(data), num_samples, refine=self.refine)
        return np.asarray(bound, np.float64)


class AmortizedMethod(LMMVAEMethod):
    """The paper's inference: squared error + kl_weight * (KL_u + KL_B).

    That is a noise variance of one half; the KL of the effects counts once per row, features are
    taken as they are, Adam's rate is constant. The paper's settings are `kl_weight` 0.01, batches
    of 1000 and a rate of 1e-3 (`methods.training_of`). After the fit the noise variance is
    learned from rows held out of it, or else set to the mean squared error of the training rows,
    by feature: without it a likelihood would say nothing.

    References:
        - [Simchoni & Rosset, 2024](https://arxiv.org/abs/2412.16899), sections 3 and 4.
    """

    method = "lmmvae-amortized"

    def fit(self, data: Data) -> Self:
        """Fits the model, then its noise variance, and returns the method."""
        data, held_out = without_calibration_rows(data, self.calibration_split, self.seed)
        self.latent_epochs_ = self._choose_latent_epochs(data)
        self.model_ = self._fitted_model(data, self.latent_epochs_)
        if held_out is not None:
            calibrate_noise(self.model_, self.model_.pass_over(dict(held_out)))
            return self
        squares = np.square(np.asarray(data["x"], np.float64) - self.reconstruct(data))
        scale = keras.ops.convert_to_numpy(self.model_.feature_scale)
        noise = np.maximum(np.nanmean(squares, axis=0) / scale**2, 1e-6)
        self.model_.noise_variance.assign(noise.astype(np.float32))
        return self

    def _make_model(self, latent_epochs: int) -> LMMVAE:
        return LMMVAE(
            self.latent_dim,
            self.random_effects,
            hidden_units=self.hidden_units,
            posterior="amortized",
            latent_epochs=latent_epochs,
            normalize=False,
            noise_variance=0.5,
            kl_weight=self.kl_weight,
            effects_kl_weight=self.kl_weight,
            effects_kl_reduction="row",
            seed=self.seed,
        )

    def _optimizer(self, num_rows: int) -> keras.optimizers.Optimizer:
        del num_rows
        return keras.optimizers.Adam(self.learning_rate)
