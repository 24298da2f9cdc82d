"""What a fitted model offers to those who read it: reports, pictures, exports, callbacks."""

from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.inference import Inference
from keras_lmmvae.latent_prior import LatentPrior
from keras_lmmvae.likelihood import GaussianLikelihood
from keras_lmmvae.mixed_model.mixed_model import MixedModel, Parts
from keras_lmmvae.networks import LatentNetworks
from keras_lmmvae.rows import Pass, Rows
from keras_lmmvae.total_axes import TotalAxes

__all__ = ["FittedModel"]


class FittedModel(Protocol):
    """The parts of `LMMVAE` that do not depend on how it was fitted.

    Attributes:
        name: Name of the Keras model.
        latent_dim: `d`.
        num_features: `p`.
        posterior: "conjugate" or "amortized".
        seed: Seed of all sampling.
        random_effects: The terms.
        networks: Encoder and decoder.
        mixed_model: The effects and variances of the terms.
        latent_prior: Where the latents of the training rows lie.
        total_axes: Axes of the total representation.
        likelihood: How features come from their mean, with the noise variance.
        feature_mean: Weight `(p,)`, in the features' units.
        feature_scale: Weight `(p,)`, standard deviations in the features' units.
        noise_variance_setting: The noise variance that the user fixed, if any.
        effects_kl_weight: Weight of the effects' KL.
    """

    name: str
    latent_dim: int
    num_features: int
    posterior: str
    seed: int | None
    random_effects: list[RandomEffect]
    networks: LatentNetworks
    mixed_model: MixedModel
    latent_prior: LatentPrior
    total_axes: TotalAxes
    likelihood: GaussianLikelihood
    feature_mean: keras.Variable
    feature_scale: keras.Variable
    noise_variance_setting: float | None
    effects_kl_weight: float

    @property
    def feature_names(self) -> list[Any]:
        """Names of the features."""

    @property
    def noise_variance(self) -> keras.Variable:
        """Noise variance `(p,)`, in squared standardised units."""

    def feature_number(self, feature: int | str) -> int:
        """The column of a feature."""

    def require_fitted(self) -> None:
        """Raises a ValueError unless the model was fitted."""

    def find_term(self, name: str) -> RandomEffect:
        """The term of that name."""

    def encode(self, data: Any) -> np.ndarray:
        """Posterior means of the latent, `(n, d)`."""
        ...

    def decode(self, latent: Any) -> np.ndarray:
        """`f(u)` in the features' units, without random effects, `(n, p)`."""
        ...

    def encode_data(self, data: Any) -> Rows | tf.data.Dataset:
        """Encoded rows of raw columns."""

    def pass_over(self, data: Any) -> Pass:
        """A pass over the encoded rows of raw columns."""

    def infer(self, rows: Rows, parts: Parts | None = None) -> Inference:
        """What the model says of encoded rows."""

    def infer_refined(self, rows: Rows, steps: int, by_density: bool = False) -> Inference:
        """The same after so many Gauss-Newton steps on the latents."""

    def predictive_variance(self, seen: Inference) -> tf.Tensor:
        """Variance of a new observation around its mean, `(b, p)`, standardised."""

    def variance_given_latent(self, rows: Rows) -> tf.Tensor:
        """The same if the latent were known: noise and effects, `(b, p)`."""

    def to_units(self, standard: tf.Tensor) -> tf.Tensor:
        """From standardised units to those of the features."""

    def log_units(self, observed: tf.Tensor | None) -> tf.Tensor:
        """What a log density loses on the way to the features' units."""

    def variance_components(self) -> Any:
        """Data frame of variances, component x feature."""

    def term_effects(self, name: str, data: Any) -> tuple[np.ndarray, np.ndarray]:
        """Effect of one term on rows, with its standard deviation."""
