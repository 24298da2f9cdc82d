"""Random effects of the levels from the rows of a mini-batch, as a Keras layer."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_lmmvae import design
from keras_lmmvae.layers.coded_rows import Shape, check_shapes, unpack, working_dtype
from keras_lmmvae.linalg import LevelPosterior, level_posterior
from keras_lmmvae.validation import check_positive, received

__all__ = ["RandomEffectsAggregator"]

METHODS = ("mean", "posterior")


@keras.saving.register_keras_serializable(package="keras_lmmvae")
class RandomEffectsAggregator(keras.Layer):
    """Makes a table of effects from rows: level means, or the posterior mean of B.

    "mean" is the paper's method: the rows' codes (draws of an encoder) are averaged by level.

        B[l] = sum of values over the rows of level l / their number

    For "posterior" the `values` are residuals `r` of a mixed model at known variances. The table
    is their BLUP, which shrinks small levels towards 0.

        r[i] = (Z @ B)[i] + e[i],    B[l, j] ~ Normal(0, effect_variance),    j = 1...m
        e[i] ~ Normal(0, noise_variance)

    Levels without rows get 0 in both methods. `DesignMatrixLayer` on the table, with the same
    codes and basis, gives the rows their effects. A call costs O(b * m * p), and "posterior" with
    m > 1 also O(b * m**2 + L * m**3). Sums and Cholesky roots are in float32 at least. The layer
    has no weights.

    Args:
        num_levels: Optional positive int, number of levels `L` of the data. With `None` the table
            has as many levels as the batch has rows, `L = b`, for any number of levels of the
            data. Use it with the codes of `layers.compact_codes`, here and in `DesignMatrixLayer`.
        method: "mean" or "posterior".
        noise_variance: Positive float, or one for each feature, in squared units of the values;
            for "posterior" only.
        effect_variance: Positive float, or one for each feature, the prior variance of the
            effects in the same units; for "posterior" only.

    Call arguments:
        inputs: List `[values, codes]` or `[values, codes, basis]` with
            values: Float tensor `(b, p)`. For "mean" also `(b, m, p)`, with codes for each basis
                function.
            codes: Int tensor `(b,)`. Rows with negative codes are left out. Codes from `L`
                on are an error of the caller: CPUs raise, XLA and GPUs leave them out.
            basis: Float tensor `(b, m)`. "mean" averages `basis[i, j] * values[i]`. Values
                `(b, m, p)` are averaged without the basis.

    Returns:
        effects: Float tensor `(L, p)`, or `(L, m, p)` with a basis or values `(b, m, p)`.

    Raises:
        ValueError: On an unknown method, a variance that is not positive, or inputs of
            shapes that do not match.

    Example:
        >>> import numpy as np
        >>> from keras_lmmvae.layers import (
        ...     DesignMatrixLayer, RandomEffectsAggregator, compact_codes
        ... )
        >>> values, store = np.array([[1.0], [3.0], [9.0]]), np.array([0, 0, 2])
        >>> RandomEffectsAggregator(num_levels=4)([values, store]).numpy().ravel().tolist()
        [2.0, 0.0, 9.0, 0.0]
        >>> blup = RandomEffectsAggregator(num_levels=4, method="posterior", noise_variance=2.0)
        >>> blup([values, store]).numpy().ravel().tolist()
        [1.0, 0.0, 3.0, 0.0]

        For any number of levels, with a table of the mini-batch only:

        >>> codes = compact_codes(np.array([70_000, 70_000, 12]))
        >>> table = RandomEffectsAggregator()([values, codes])
        >>> DesignMatrixLayer()([table, codes]).numpy().ravel().tolist()
        [2.0, 2.0, 9.0]

    References:
        - [Simchoni & Rosset, 2024](https://arxiv.org/abs/2412.16899), section 3.
        - Henderson, C. R. (1975), Best linear unbiased estimation and prediction.
    """

    def __init__(
        self,
        num_levels: int | None = None,
        method: str = "mean",
        noise_variance: float | Sequence[float] = 1.0,
        effect_variance: float | Sequence[float] = 1.0,
        **kwargs: Any,
    ) -> None:
        if num_levels is not None:
            check_positive("num_levels", num_levels, integer=True, minimum=1)
        if method not in METHODS:
            raise ValueError(
                f"Received an unknown method, expected one of {list(METHODS)}. "
                + received(method=method)
            )
        _check_variance("noise_variance", noise_variance)
        _check_variance("effect_variance", effect_variance)
        super().__init__(autocast=False, **kwargs)
        self.num_levels = num_levels
        self.method = method
        self.noise_variance = noise_variance
        self.effect_variance = effect_variance

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        values, codes, basis = unpack(self, "values", inputs, self._axes())
        self._check_sizes(tuple(values.shape), None if basis is None else tuple(basis.shape))
        if self.method == "posterior":
            effects = self.posterior(values, codes, basis).mean
            effects = effects[:, 0] if basis is None else effects
        else:
            if basis is not None and len(values.shape) == 2:
                values = basis[:, :, None] * values[:, None, :]
            effects = design.segment_mean(values, codes, self._levels(codes))
        return tf.cast(effects, self.compute_dtype)

    def posterior(
        self, values: tf.Tensor, codes: tf.Tensor, basis: tf.Tensor | None = None
    ) -> LevelPosterior:
        """Posterior mean, variance and covariance of the effects, for any `method`.

        Args:
            values: Float tensor `(b, p)`, residuals.
            codes: Int tensor `(b,)`; rows with negative codes are left out.
            basis: Float tensor `(b, m)`, or `None` for ones with `m = 1`.

        Returns:
            Tuple `(mean, variance, covariance)`: `mean` and `variance` `(L, m, p)`, and
            `covariance` `(L, p, m, m)`, or `(L, 1, m, m)` where both variances are one
            float and all features share it. Levels without rows have the prior.
        """
        inputs = [values, codes] if basis is None else [values, codes, basis]
        values, codes, basis = unpack(self, "values", inputs, (2,))
        dtype, levels = working_dtype(self), self._levels(codes)
        rows = tf.ones((tf.shape(codes)[0], 1), dtype) if basis is None else basis
        return level_posterior(
            design.gram(codes, rows, levels),
            design.transpose_product(values, codes, rows, levels),
            tf.reshape(tf.constant(self.noise_variance, dtype), (-1,)),
            tf.reshape(tf.constant(self.effect_variance, dtype), (-1,)),
        )

    def compute_output_shape(self, input_shape: Any) -> Shape:
        values, codes, basis = check_shapes(self, "values", input_shape, self._axes())
        self._check_sizes(values, basis)
        levels = codes[0] if self.num_levels is None else self.num_levels
        if len(values) == 3:
            return (levels, *values[1:])
        return (levels, values[-1]) if basis is None else (levels, basis[1], values[-1])

    def _axes(self) -> tuple[int, ...]:
        return (2,) if self.method == "posterior" else (2, 3)

    def _levels(self, codes: tf.Tensor) -> int | tf.Tensor:
        return tf.shape(codes)[0] if self.num_levels is None else self.num_levels

    def _check_sizes(self, values: Shape, basis: Shape | None) -> None:
        """Values `(b, m, p)` and a basis must agree; variances by feature must be `p`."""
        given = [np.size(self.noise_variance), np.size(self.effect_variance)]
        wrong = values[-1] is not None and any(size not in (1, values[-1]) for size in given)
        if self.method == "posterior" and wrong:
            raise ValueError(
                f"The variances of layer '{self.name}' must be floats, or one for each of the "
                f"{values[-1]} features. "
                + received(noise_variance=self.noise_variance, effect_variance=self.effect_variance)
            )
        if basis is not None and len(values) == 3 and values[1] != basis[1]:
            raise ValueError(
                f"The values of layer '{self.name}' must be (rows, features), or (rows, basis "
                "size, features) with a basis of that size. " + received(values=values, basis=basis)
            )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_levels": self.num_levels,
            "method": self.method,
            "noise_variance": np.asarray(self.noise_variance).tolist(),
            "effect_variance": np.asarray(self.effect_variance).tolist(),
        }


def _check_variance(name: str, value: Any) -> None:
    is_vector = isinstance(value, (list, tuple, np.ndarray))
    if is_vector and np.ndim(value) == 1 and np.size(value) > 0:
        for number in value:
            check_positive(name, number)
    else:
        check_positive(name, value)
