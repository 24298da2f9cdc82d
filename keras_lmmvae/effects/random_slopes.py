"""Random intercepts and slopes: repeated measures over time, or over covariates."""

from math import comb
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_lmmvae.effects.grouped_effect import GroupedEffect
from keras_lmmvae.effects.random_effect import Encoded
from keras_lmmvae.validation import check_positive, received

__all__ = ["RandomSlopes"]


@keras.saving.register_keras_serializable(package="keras_lmmvae")
class RandomSlopes(GroupedEffect):
    """A polynomial in time, or a linear form in covariates, per level of a factor.

        x[i] = f(u[i]) + B_0[l] + B_1[l] t[i] + B_2[l] t[i]**2 + e[i],    l = level[i]
        (B_0, B_1, B_2)[l, f] ~ Normal(0, effect_variance[f] * Psi)

    `Psi`, the covariance between intercept and slopes, is learned and shared by the features.
    Time and covariates are centred and scaled inside the term. Tables are in the columns' units.
    A row without its time or one of its covariates counts as a row without a level.

    Args:
        column: Name of the data column that holds the keys of the levels (strings or integers).
        time: Optional name of the time column.
        degree: Non-negative int, degree of the polynomial in `time`. 0 is a random intercept,
            which does not read the time.
        covariates: Names of numeric columns with a slope each.
        name: Optional string, the term's name. Defaults to `column`.

    Raises:
        ValueError: If neither `time` nor `covariates` is given, `degree` is negative, or a
            column's name is not a non-empty string or occurs twice.

    Example:
        >>> import keras_lmmvae as lmm
        >>> lmm.RandomSlopes("patient", time="t", degree=2).coefficient_names()
        ['intercept', 't', 't^2']

    References:
        - [Simchoni & Rosset, 2024](https://arxiv.org/abs/2412.16899), section 3.2.
        - Laird, N. M. & Ware, J. H. (1982), Random-effects models for longitudinal data.
    """

    learn_coefficient_covariance = True

    def __init__(
        self,
        column: str,
        time: str | None = None,
        degree: int = 1,
        covariates: list[str] | tuple[str, ...] = (),
        name: str | None = None,
    ) -> None:
        if not isinstance(covariates, (list, tuple)):
            raise ValueError(
                "Received invalid `covariates`, expected a list of column names. "
                + received(covariates=covariates)
            )
        if time is None and not covariates:
            raise ValueError(
                "RandomSlopes needs a `time` column or `covariates`; without them use "
                "RandomIntercept. " + received(time=time, covariates=covariates)
            )
        check_positive("degree", degree, integer=True, minimum=0)
        powers = degree if time is not None else 0
        numbers = (*((time,) if powers else ()), *covariates)
        super().__init__(column, numbers, name)
        self.time = time
        self.degree = degree
        self.covariates = tuple(covariates)
        self.basis_size = 1 + powers + len(self.covariates)
        self.learn_coefficient_covariance = self.basis_size > 1

    @property
    def _powers(self) -> int:
        """Number of basis functions that are powers of the time."""
        return self.degree if self.time is not None else 0

    @property
    def curve_column(self) -> str | None:
        return self.time if self._powers else None

    def inputs(self, columns: dict[str, tf.Tensor]) -> tf.Tensor | None:
        return self.scaling.scale(columns) if self.numbers else None

    def basis(self, encoded: Encoded) -> tf.Tensor | None:
        if self.basis_size == 1:
            return None
        inputs = encoded["inputs"]
        powers = [inputs[:, :1] ** power for power in range(1, self._powers + 1)]
        covariates = inputs[:, 1 if powers else 0 :]
        return tf.concat([tf.ones_like(inputs[:, :1]), *powers, covariates], axis=1)  # (b, m)

    def coefficient_names(self) -> list[str]:
        powers = [f"{self.time}^{power}" for power in range(2, self._powers + 1)]
        time = [str(self.time)] if self._powers else []
        return ["intercept", *time, *powers, *self.covariates]

    def user_basis(self) -> np.ndarray:
        """Matrix that undoes centring and scaling: `((t - c) / s)**k` in powers of `t`."""
        matrix = np.zeros((self.basis_size, self.basis_size))
        matrix[0, 0] = 1.0
        scales = list(zip(self.scaling.center, self.scaling.spread, strict=True))
        if self._powers:
            center, scale = scales.pop(0)
            for k in range(1, self._powers + 1):
                for j in range(k + 1):
                    matrix[j, k] = comb(k, j) * (-center) ** (k - j) / scale**k
        for row, (center, scale) in enumerate(scales, start=1 + self._powers):
            matrix[row, row] = 1.0 / scale
            matrix[0, row] = -center / scale
        return matrix

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "time": self.time,
            "degree": self.degree,
            "covariates": list(self.covariates),
        }
