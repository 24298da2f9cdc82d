"""The latents of rows as a table, beside the keys of the rows."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import tensorflow as tf

from keras_lmmvae.data_frame import from_dataframe
from keras_lmmvae.effects.combined_keys import parts_of
from keras_lmmvae.lmmvae import LMMVAE
from keras_lmmvae.rows import Rows

__all__ = ["transform_rows"]


def transform_rows(
    model: LMMVAE, frame: pd.DataFrame, *, reconstruct: bool = False, std: bool = False
) -> pd.DataFrame:
    """Posterior means of the latents, a row for each row of a table."""
    data = from_dataframe(frame, model.feature_names, model.random_effects)
    keys = frame[_term_columns(model, frame)].reset_index(drop=True)
    latents = [f"latent_{k}" for k in range(model.latent_dim)]
    mean, deviation = _latent_posterior(model, data)
    parts = [keys, pd.DataFrame(mean, columns=latents)]
    if std:
        parts.append(pd.DataFrame(deviation, columns=_named(latents, "std")))
    if reconstruct and std:
        prediction = model.predictive(data)
        parts.append(_features(model, prediction.mean, "reconstruction"))
        parts.append(_features(model, prediction.standard_deviation, "std"))
    elif reconstruct:
        parts.append(_features(model, model.reconstruct(data), "reconstruction"))
    return pd.concat(parts, axis=1)


def _term_columns(model: LMMVAE, frame: pd.DataFrame) -> list[str]:
    """The columns that the terms read, each once. A combined column is replaced by its parts."""
    columns = [column for term in model.random_effects for column in term.columns]
    found = [part for name in columns for part in ([name] if name in frame else parts_of(name))]
    return list(dict.fromkeys(found))


def _latent_posterior(model: LMMVAE, data: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of q(u), `(n, d)` each."""

    def latents(rows: Rows) -> tuple[tf.Tensor, tf.Tensor]:
        seen = model.infer(rows)
        return seen.latent_mean, seen.latent_std

    mean, deviation = model.pass_over(data).collect(latents)
    return mean, deviation


def _features(model: LMMVAE, values: np.ndarray, ending: str) -> pd.DataFrame:
    return pd.DataFrame(values, columns=_named(model.feature_names, ending))


def _named(names: Sequence[str], ending: str) -> list[str]:
    return [f"{name}_{ending}" for name in names]
