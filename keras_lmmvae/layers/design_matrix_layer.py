"""Products with a random-effects design matrix, as a Keras layer."""

from typing import Any

import keras
import tensorflow as tf

from keras_lmmvae import design
from keras_lmmvae.layers.coded_rows import Shape, check_shapes, unpack, working_dtype
from keras_lmmvae.validation import check_positive, received

__all__ = ["DesignMatrixLayer"]


@keras.saving.register_keras_serializable(package="keras_lmmvae")
class DesignMatrixLayer(keras.Layer):
    """Gives every row the effects of its level: the rows of `Z @ B`.

        (Z @ B)[i] = B[codes[i]]                                   random intercepts
        (Z @ B)[i] = sum{ basis[i, j] * B[codes[i], j] : j=1...m }    slopes, curves, kernels

    `Z` is never built: the product is a gather, `Z' @ R` a segment sum, and `Z' @ Z` has one
    `(m, m)` block per level. So a step costs O(b * m * p) for any number of levels. Sums are in
    float32 under half-precision policies. The layer has no weights: `B` is an input, such as a
    weight of yours, or the output of another network or of `RandomEffectsAggregator`.

    Args:
        num_levels: Optional positive int, number of levels `L`. Only `transpose_product` and
            `gram` need it; if given, the first axis of `effects` must match.

    Call arguments:
        inputs: List `[effects, codes]` or `[effects, codes, basis]` with
            effects: Float tensor `(L, p)`, or `(L, m, p)` with a basis.
            codes: Int tensor `(b,)`. Negative codes mean "no level" and give 0. Codes from `L`
                on are an error of the caller: CPUs raise, XLA and GPUs do not.
            basis: Float tensor `(b, m)`. Without it, it is 1 with `m = 1`.

    Returns:
        contribution: Float tensor `(b, p)`.

    Raises:
        ValueError: If the inputs are not such a list, or their shapes do not match.

    Example:
        >>> import numpy as np
        >>> from keras_lmmvae.layers import DesignMatrixLayer
        >>> store_effects = np.array([[1.0, 10.0], [2.0, 20.0]])
        >>> store = np.array([1, 0, 1, -1])
        >>> DesignMatrixLayer()([store_effects, store]).numpy().tolist()
        [[2.0, 20.0], [1.0, 10.0], [2.0, 20.0], [0.0, 0.0]]

        Intercept and slope of one patient, read at the times 0 and 2:

        >>> patient_effects = np.array([[[5.0], [3.0]]])
        >>> basis = np.array([[1.0, 0.0], [1.0, 2.0]])
        >>> DesignMatrixLayer()([patient_effects, np.array([0, 0]), basis]).numpy().tolist()
        [[5.0], [11.0]]

    References:
        - [Simchoni & Rosset, 2024](https://arxiv.org/abs/2412.16899), section 3.
    """

    def __init__(self, num_levels: int | None = None, **kwargs: Any) -> None:
        if num_levels is not None:
            check_positive("num_levels", num_levels, integer=True, minimum=1)
        super().__init__(autocast=False, **kwargs)
        self.num_levels = num_levels

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        effects, codes, basis = unpack(self, "effects", inputs)
        self._check_table(tuple(effects.shape), None if basis is None else tuple(basis.shape))
        if len(effects.shape) == 2:
            effects = effects[:, None, :]
        return tf.cast(design.product(effects, codes, basis), self.compute_dtype)

    def transpose_product(
        self, values: tf.Tensor, codes: tf.Tensor, basis: tf.Tensor | None = None
    ) -> tf.Tensor:
        """`Z' @ R`: sums of `basis * values` by level.

        Args:
            values: Float tensor `(b, p)`.
            codes: Int tensor `(b,)`; rows with negative codes are left out.
            basis: Float tensor `(b, m)`, or `None` for ones.

        Returns:
            Float tensor `(L, m, p)`, float32 at least.
        """
        inputs = [values, codes] if basis is None else [values, codes, basis]
        return design.transpose_product(*unpack(self, "values", inputs, (2,)), self._levels())

    def gram(self, codes: tf.Tensor, basis: tf.Tensor | None = None) -> tf.Tensor:
        """`Z' @ Z` by level: the blocks on its diagonal. All others are zero.

        Args:
            codes: Int tensor `(b,)`; rows with negative codes are left out.
            basis: Float tensor `(b, m)`, or `None` for ones.

        Returns:
            Float tensor `(L, m, m)`, float32 at least.
        """
        ones = tf.ones((tf.shape(codes)[0], 1), working_dtype(self))
        rows, codes, _ = unpack(self, "basis", [ones if basis is None else basis, codes], (2,))
        return design.gram(codes, rows, self._levels())

    def compute_output_shape(self, input_shape: Any) -> Shape:
        effects, codes, basis = check_shapes(self, "effects", input_shape)
        self._check_table(effects, basis)
        return (codes[0], effects[-1])

    def _levels(self) -> int:
        if self.num_levels is None:
            raise ValueError(
                "Sums by level need the number of levels: DesignMatrixLayer(num_levels=...). "
                + received(num_levels=None)
            )
        return self.num_levels

    def _check_table(self, effects: Shape, basis: Shape | None) -> None:
        size = effects[1] if len(effects) == 3 else 1
        expected = 1 if basis is None else basis[1]
        levels_match = None in (effects[0], self.num_levels) or effects[0] == self.num_levels
        if not levels_match or (None not in (size, expected) and size != expected):
            levels = "levels" if self.num_levels is None else self.num_levels
            raise ValueError(
                f"The effects of layer '{self.name}' must have the shape ({levels}, features), or "
                f"({levels}, basis size, features) with a basis of that size. "
                + received(effects=effects, basis=basis)
            )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_levels": self.num_levels}
