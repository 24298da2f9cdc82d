"""Random intercepts of a grouping factor."""

import keras

from keras_lmmvae.effects.grouped_effect import GroupedEffect
from keras_lmmvae.validation import received

__all__ = ["RandomIntercept"]


@keras.saving.register_keras_serializable(package="keras_lmmvae")
class RandomIntercept(GroupedEffect):
    """One effect per level of a factor: stores, patients, flights, players, places.

        x[i] = f(u[i]) + B[level[i]] + e[i],    B[l] ~ Normal(0, diag(effect_variance))

    A model can have any number of factors, crossed or nested. A step of training gathers and
    scatters the rows of a mini-batch, so its cost does not depend on the number of levels.

    Args:
        column: Name of the data column that holds the keys (strings or integers).
        name: Optional string, the term's name. Defaults to `column`.

    Raises:
        ValueError: If `column` is not a non-empty string, or is "x", the features' name.

    Example:
        >>> import keras_lmmvae as lmm
        >>> lmm.RandomIntercept("store").columns
        ('store',)

    References:
        - [Simchoni & Rosset, 2024](https://arxiv.org/abs/2412.16899), section 3.1.
    """

    def __init__(self, column: str, name: str | None = None) -> None:
        if not isinstance(column, str) or not column:
            raise ValueError(
                "Received an invalid value for `column`, expected the name of a data column. "
                + received(column=column)
            )
        super().__init__(column, name=name)
