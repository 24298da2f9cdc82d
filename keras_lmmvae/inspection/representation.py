"""What a row is, in `d` numbers: with its groups taken out, or with them."""

from typing import Any

import numpy as np
import tensorflow as tf

from keras_lmmvae.fitted_model import FittedModel
from keras_lmmvae.rows import Rows
from keras_lmmvae.validation import check_positive, received

__all__ = ["encode"]

_CHOICES = ("within", "total")


def encode(model: FittedModel, data: Any, refine: int, include: str) -> np.ndarray:
    """Representations of rows; see `LMMVAE.encode`."""
    check_positive("refine", refine, integer=True, minimum=0)
    if include not in _CHOICES:
        raise ValueError(
            f"`include` must be one of {list(_CHOICES)}: what a row is within its groups, or in "
            "total. " + received(include=include)
        )
    is_total = include == "total" and bool(model.random_effects)

    def batch(rows: Rows) -> tuple[tf.Tensor, ...]:
        seen = model.infer_refined(rows, refine)
        return (model.total_axes.of(seen) if is_total else seen.latent_mean,)

    return model.pass_over(data).collect(batch)[0]
