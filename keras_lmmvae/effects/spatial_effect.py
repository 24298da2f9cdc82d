"""Spatial random effects: a Gaussian process over coordinates."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf
from sklearn.cluster import MiniBatchKMeans

from keras_lmmvae import design
from keras_lmmvae.effects.length_scale import ProcessLikelihood
from keras_lmmvae.effects.random_effect import FEATURES, Encoded, RandomEffect
from keras_lmmvae.effects.row_sample import RowSample
from keras_lmmvae.effects.scaling import (
    ColumnScaling,
    check_degrees,
    check_metric,
    from_positions,
    to_positions,
)
from keras_lmmvae.kernels import Kernel, KernelBasis, as_kernel
from keras_lmmvae.validation import check_positive, received

__all__ = ["LENGTH_SCALE_BOUNDS", "SpatialEffect"]

LENGTH_SCALE_BOUNDS = (0.02, 5.0)
"""Limits of the search for a length scale, in standardised coordinates. No basis resolves the lower
one, and a surface with the upper one is flat over the map."""

_INITIAL_LENGTH_SCALE = 0.5
# The paper's length scale in the units of the coordinates; the amortized posterior uses it.
_PUBLISHED_LENGTH_SCALE = 1.0
# The search for a length scale that decides how many inducing points there are reads at most so
# many rows and features, and the points are chosen from at most so many distinct places.
_SEARCH_ROWS, _SEARCH_FEATURES = 10_000, 32
_MAX_PLACES = 100_000
# Up to so many distinct places are inducing points, all of them.
_ALL_PLACES = 256
# Otherwise there is the smallest of these numbers with which the variance of the surface between
# the points is at most this share of the noise variance. It is measured at so many places.
_NUMBERS_OF_POINTS = (64, 128, 256, 512, 1_000)
_MOST_MISSING, _TEST_PLACES = 0.05, 2_000


@keras.saving.register_keras_serializable(package="keras_lmmvae")
class SpatialEffect(RandomEffect):
    """A smooth random surface over coordinates for every feature.

        x[i] = f(u[i]) + B(s[i]) + e[i]
        B[:, f] ~ GaussianProcess(0, effect_variance[f] * kernel(s, s'))

    A kernel is divided by its own variance `kernel(s, s)`, so that `effect_variance` is the
    variance of the surface for a sum of kernels, too.

    The process is written as `phi(s) @ coefficients` with Karhunen-Loeve features `phi` of the
    kernel on inducing points. This is exact if every distinct location is an inducing point.
    Otherwise it is a projection of the process. The effect at new coordinates is the prediction of
    the process there. Each row costs O(num_inducing**2).

    A rough surface needs more points than a smooth one. By default up to 256 distinct locations
    are all inducing points. For more there are as many points as it takes, up to 1,000, until the
    variance of the surface between them is no more than 5 % of the noise variance. A fit
    warns where that limit leaves more.

    Args:
        columns: Names of the coordinate columns; (longitude, latitude) for "haversine".
        kernel: "rbf", "matern12", "matern32" or "matern52"; or a `kernels.Kernel`, such as the
            sum of two.
        length_scale: Positive float in the units of the coordinates ("haversine": kilometres).
            `None`: it is learned by maximum likelihood, before and after the networks.
        metric: "euclidean", or "haversine" for degrees on the globe.
        num_inducing: Positive int, most inducing points. `None`: chosen by `adapt`.
        name: Optional string, the term's name. Defaults to the joined columns.
        seed: Int that fixes the choice of the inducing points.

    Raises:
        ValueError: On unusable columns, an unknown kernel or metric, a non-positive length scale
            or number of features, or a negative seed.

    Example:
        >>> import keras_lmmvae as lmm
        >>> lmm.SpatialEffect(("lon", "lat"), kernel="rbf").label
        'lon_lat'

    References:
        - [Simchoni & Rosset, 2024](https://arxiv.org/abs/2412.16899), section 3.3.
        - Rasmussen, C. E. & Williams, C. K. I. (2006), Gaussian Processes, sections 4.3, 8.1.
    """

    formula_name: ClassVar[str | None] = "gp"

    def __init__(
        self,
        columns: tuple[str, ...] | list[str],
        kernel: Kernel | str = "rbf",
        length_scale: float | None = None,
        metric: str = "euclidean",
        num_inducing: int | None = None,
        name: str | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(columns, (tuple, list)) or len(columns) == 0:
            raise ValueError(
                "Received invalid `columns`, expected the names of the coordinate columns, such "
                "as ('lon', 'lat'). " + received(columns=columns)
            )
        as_kernel(kernel)
        check_metric(metric, columns)
        if num_inducing is not None:
            check_positive("num_inducing", num_inducing, integer=True, minimum=1)
        if length_scale is not None:
            check_positive("length_scale", length_scale)
        check_positive("seed", seed, integer=True)
        super().__init__((), tuple(columns), name or "_".join(map(str, columns)))
        self.kernel = kernel
        self.length_scale = length_scale
        self.metric = metric
        self.num_inducing = num_inducing
        self.seed = seed
        axes = ("_x", "_y", "_z") if metric == "haversine" else self.columns
        self.scaling = ColumnScaling(axes, is_common=True)
        self._initial_points: np.ndarray | None = None
        self._initial_length_scale = _INITIAL_LENGTH_SCALE
        self._places = np.zeros((0, len(axes)))
        self._sample = RowSample(_SEARCH_ROWS, seed)

    @property
    def map_columns(self) -> tuple[str, str] | None:
        return (self.columns[0], self.columns[1]) if len(self.columns) == 2 else None

    @property
    def map_aspect_is_geographic(self) -> bool:
        return self.metric == "haversine"

    def conform(self, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.metric == "haversine":
            check_degrees(self.columns, {name: columns[name] for name in self.columns})
        return {}

    def update_state(self, columns: dict[str, np.ndarray]) -> None:
        positions = {name: value.numpy() for name, value in self._positions(columns).items()}
        self.scaling.update_state(positions)
        of_rows = np.stack(list(positions.values()), axis=1)
        is_known = np.isfinite(of_rows).all(axis=1)
        places = np.unique(np.concatenate([self._places, of_rows[is_known]]), axis=0)
        if len(places) > _MAX_PLACES:
            rng = np.random.default_rng(self.seed)
            places = places[np.sort(rng.choice(len(places), _MAX_PLACES, replace=False))]
        self._places = places
        if self.num_inducing is None and FEATURES in columns:
            x = np.asarray(columns[FEATURES])
            some = np.unique(np.linspace(0, x.shape[1] - 1, _SEARCH_FEATURES).astype(int))
            self._sample.update(of_rows[is_known], x[is_known][:, some].astype(np.float64))

    def finalize_state(self) -> None:
        """Chooses the inducing points; raises a ValueError without two distinct places."""
        places = self._places
        try:
            self.scaling.finalize_state()
        except ValueError as error:
            raise ValueError(
                f"The coordinates {list(self.columns)} must be known at two distinct places at "
                "least. " + received(places=min(len(places), 1))
            ) from error
        points = self._inducing_points(self._standardised(places))
        self._initial_points = points.astype(np.float32)
        self.num_levels, self.basis_size = 1, len(points)
        self._forget_rows()

    def _standardised(self, positions: np.ndarray) -> np.ndarray:
        scaled = (positions - self.scaling.center) / np.array(self.scaling.spread)
        return np.asarray(scaled)

    def _inducing_points(self, places: np.ndarray) -> np.ndarray:
        """Places that stand for all of them: as many as given, or as the length scale needs."""
        if self.length_scale is not None:
            self._initial_length_scale = self.length_scale / self.scaling.spread[0]
        if len(places) <= (self.num_inducing or _ALL_PLACES):
            return places
        if self.num_inducing is not None:
            return self._centres(places, self.num_inducing)
        kernel, length_scale, signal_to_noise = as_kernel(self.kernel), *self._first_look()
        rng = np.random.default_rng(self.seed)
        some = places[rng.permutation(len(places))[:_TEST_PLACES]]
        for number in _NUMBERS_OF_POINTS:
            points = self._centres(places, min(number, len(places)))
            features = KernelBasis.of(kernel, points, length_scale).features(
                tf.constant(some, tf.float32)
            )
            missing = float(tf.reduce_mean(KernelBasis.missing(features)))
            if missing * signal_to_noise <= _MOST_MISSING:
                break
        return points

    def _centres(self, places: np.ndarray, number: int) -> np.ndarray:
        """Centres of clusters of places."""
        if number == len(places):
            return places
        clusters = MiniBatchKMeans(number, random_state=self.seed, n_init=1, batch_size=4096)
        return np.asarray(clusters.fit(places).cluster_centers_)

    def _first_look(self) -> tuple[float, float]:
        """Length scale and signal-to-noise ratio that the features have before any fit.

        Without features they are what a fit would start from.
        """
        if not self._sample.rows():
            return self._initial_length_scale, 1.0
        positions, x = self._sample.rows()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a feature without cells here
            x = np.nan_to_num(x - np.nanmean(x, axis=0))
        places = self._standardised(positions)
        likelihood = ProcessLikelihood(as_kernel(self.kernel), places, x, self.seed)
        if self.length_scale is None:
            self._initial_length_scale = likelihood.best_length_scale(LENGTH_SCALE_BOUNDS)
        return self._initial_length_scale, likelihood.signal_to_noise(self._initial_length_scale)

    def _forget_rows(self) -> None:
        self._places = self._places[:0]
        self._sample = RowSample(_SEARCH_ROWS, self.seed)

    def reset_state(self) -> None:
        self.scaling.reset_state()
        self._forget_rows()

    def build_basis(self, is_amortized: bool) -> None:
        size, width = self.basis_size, len(self.scaling.columns)
        self.inducing_points = self.state("inducing_points", (size, width))
        self.projection = self.state("projection", (size, size))
        self.scaled_length_scale = self.state("scaled_length_scale", ())
        self.is_amortized = is_amortized
        if is_amortized:
            self.code_root = self.state("code_root", (size, size))
        if self._initial_points is not None:
            self.inducing_points.assign(self._initial_points)
            fixed = self.length_scale
            if fixed is None and is_amortized:
                fixed = _PUBLISHED_LENGTH_SCALE
            self.set_scaled_length_scale(
                self._initial_length_scale if fixed is None else fixed / self.scaling.spread[0]
            )

    def set_scaled_length_scale(self, length_scale: float) -> None:
        """Sets the length scale, in standardised coordinates, and the basis that depends on it."""
        points = keras.ops.convert_to_numpy(self.inducing_points)
        basis = KernelBasis.of(as_kernel(self.kernel), points, length_scale, "float64")
        self.scaled_length_scale.assign(length_scale)
        self.projection.assign(basis.projection)
        if self.is_amortized:
            self.code_root.assign(basis.root())

    @property
    def fitted_length_scale(self) -> float:
        """The length scale in the units of the coordinates ("haversine": kilometres)."""
        return float(self.scaled_length_scale.numpy()) * self.scaling.spread[0]

    def _positions(self, columns: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        return to_positions(self.metric, self.columns, dict(columns))

    def codes(self, columns: dict[str, tf.Tensor], tables: Mapping[str, Any] | None) -> tf.Tensor:
        del tables
        return tf.zeros(tf.shape(columns[self.columns[0]])[0], tf.int32)

    def inputs(self, columns: dict[str, tf.Tensor]) -> tf.Tensor | None:
        self.require_adapted()
        return self.scaling.scale(self._positions(columns))

    @property
    def kernel_basis(self) -> KernelBasis:
        """The features of the process on the inducing points, at the current length scale."""
        return KernelBasis(
            as_kernel(self.kernel),
            self.inducing_points.value,
            self.scaled_length_scale.value,
            tf.convert_to_tensor(self.projection),
        )

    def basis(self, encoded: Encoded) -> tf.Tensor | None:
        return self.kernel_basis.features(encoded["inputs"])

    def basis_variables(self) -> list[keras.Variable]:
        return [self.inducing_points, self.projection, self.scaled_length_scale]

    @property
    def has_learned_basis(self) -> bool:
        return self.length_scale is None

    def fit_basis(self, inputs: np.ndarray, residual: np.ndarray) -> None:
        """Learns the length scale by maximum likelihood."""
        likelihood = ProcessLikelihood(as_kernel(self.kernel), inputs, residual, self.seed)
        self.set_scaled_length_scale(likelihood.best_length_scale(LENGTH_SCALE_BOUNDS))

    def fit_limits(self) -> tuple[float, float, float] | None:
        if not self.has_learned_basis or self.is_amortized:
            return None
        return float(keras.ops.convert_to_numpy(self.scaled_length_scale)), *LENGTH_SCALE_BOUNDS

    def missing_share(self, basis: tf.Tensor | None, variance: tf.Tensor | float) -> Any:
        """Variance of the process at a place, given its values at the inducing points."""
        return KernelBasis.missing(basis, variance)

    @property
    def code_size(self) -> int:
        return 1

    @property
    def num_aggregates(self) -> int:
        return self.basis_size

    def aggregation_codes(self, encoded: Encoded) -> tf.Tensor:
        """The nearest inducing point of every row, or its location if all locations are points."""
        points = tf.convert_to_tensor(self.inducing_points)
        cross = tf.matmul(encoded["inputs"], points, transpose_b=True)
        distance = tf.reduce_sum(tf.square(points), axis=1) - 2.0 * cross
        nearest = tf.argmin(distance, axis=1, output_type=tf.int32)
        return tf.where(encoded["codes"] >= 0, nearest, encoded["codes"])

    def aggregate_batch(self, values: tf.Tensor, encoded: Encoded) -> tf.Tensor:
        """`Z @ L @ A` with the batch's mean codes by location `A` and a root `L` of the kernel."""
        means = design.segment_mean(values, self.aggregation_codes(encoded), self.basis_size)
        return design.product(self.table_of_means(means), encoded["codes"], self.basis_of(encoded))

    def table_of_means(self, means: tf.Tensor) -> tf.Tensor:
        return tf.matmul(tf.convert_to_tensor(self.code_root), means[:, 0])[None]

    def user_basis(self) -> np.ndarray:
        """Matrix from the coefficients to values of the surface at the inducing points."""
        points = tf.convert_to_tensor(self.inducing_points)
        return np.asarray(self.kernel_basis.features(points), np.float64)

    def typical_values(self) -> dict[str, float]:
        return dict(zip(self.columns, self.level_names()[0], strict=True))

    def level_columns(self) -> list[str]:
        """Names of the coordinates in `level_names`."""
        return list(self.columns)

    def level_names(self) -> list[Any]:
        """Coordinates of the inducing points, in the units of the columns."""
        points = self.inducing_points.numpy() * np.array(self.scaling.spread) + self.scaling.center
        points = from_positions(self.metric, points)
        return [tuple(float(value) for value in point) for point in points]

    def coefficient_names(self) -> list[str]:
        return ["intercept"]

    def adapted_state(self) -> dict[str, Any]:
        return {**super().adapted_state(), "scaling": self.scaling.state()}

    def restore_adapted_state(self, state: dict[str, Any]) -> None:
        super().restore_adapted_state(state)
        self.scaling.restore(state["scaling"])

    def get_config(self) -> dict[str, Any]:
        kernel = self.kernel
        if isinstance(kernel, Kernel):
            kernel = keras.saving.serialize_keras_object(kernel)
        return {
            "columns": list(self.columns),
            "kernel": kernel,
            "length_scale": self.length_scale,
            "metric": self.metric,
            "num_inducing": self.num_inducing,
            "seed": self.seed,
            **super().get_config(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SpatialEffect:
        kernel = config["kernel"]
        if isinstance(kernel, dict):
            kernel = keras.saving.deserialize_keras_object(kernel)
        return cls(**{**config, "kernel": kernel})
