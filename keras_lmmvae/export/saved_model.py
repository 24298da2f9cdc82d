"""SavedModel export: raw keys and coordinates in, reconstructions out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from keras_lmmvae.model.rows import EFFECTS, encode_rows

if TYPE_CHECKING:
    from keras_lmmvae.model.lmmvae import LMMVAE

__all__ = ["export_saved_model"]


def export_saved_model(model: LMMVAE, filepath: str | Path) -> None:
    """Writes the SavedModel of a fitted model; see `LMMVAE.export`.

    The folder is written beside its place and renamed: a failed export leaves what was there
    before.

    Args:
        model: A fitted model.
        filepath: Folder to write.
    """
    target = Path(filepath)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
        fresh = Path(folder) / "model"
        vocabularies = Path(folder) / "vocabularies"
        vocabularies.mkdir()
        module = _ServingModule(model, vocabularies)
        tf.saved_model.save(module, str(fresh), signatures=module.signatures())
        if target.exists():
            os.replace(target, Path(folder) / "old")
        os.replace(fresh, target)


class _ServingModule(tf.Module):
    """What a SavedModel holds: the variables, tables and functions of a fitted model."""

    def __init__(self, model: LMMVAE, folder: Path) -> None:
        super().__init__(name="lmmvae")
        self._model = _Untracked(model)
        self.state = [variable.value for variable in _served_variables(model)]
        self.tables: dict[str, Any] = {}
        for number, term in enumerate(model.random_effects):
            for column, vocabulary in term.vocabularies().items():
                path = folder / f"vocabulary_{number}.txt"
                vocabulary.save(path)
                self.tables[column] = vocabulary.file_table(str(path))
        convert = keras.ops.convert_to_numpy
        self._scaling = (convert(model.feature_mean), convert(model.feature_scale))

    def signatures(self) -> dict[str, Any]:
        """Concrete functions by signature."""
        specs = self._input_specs()
        answers: dict[str, Callable[..., dict[str, tf.Tensor]]] = {
            "serving_default": self._serve,
            "encode": self._encode,
        }
        return {
            name: tf.function(answer).get_concrete_function(specs)
            for name, answer in answers.items()
        }

    def _input_specs(self) -> dict[str, tf.TensorSpec]:
        model = self._model.value
        specs = {"x": tf.TensorSpec((None, model.num_features), tf.float32, name="x")}
        for term in model.random_effects:
            for column, dtype in term.column_dtypes().items():
                # A column that one term takes for keys and another for numbers travels as keys.
                if column not in specs or column in term.vocabularies():
                    specs[column] = tf.TensorSpec((None,), dtype, name=column)
        return specs

    def _rows(self, columns: dict[str, tf.Tensor]) -> Any:
        mean, scale = self._scaling
        terms = self._model.value.random_effects
        return encode_rows(columns, terms, mean, scale, keep_mask=True, tables=self.tables)

    def _serve(self, columns: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        model, rows = self._model.value, self._rows(columns)
        contribution = model.effects_fit.contribution(rows)
        mean, _ = model.latent_posterior(rows, contribution)
        answer = {
            "reconstruction": model.to_units(model.decode_standard(mean) + contribution),
            "latent_mean": mean,
        }
        for term in model.random_effects:
            answer[f"known_{term.name}"] = rows[EFFECTS][term.label]["codes"] >= 0
        return answer

    def _encode(self, columns: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        model, rows = self._model.value, self._rows(columns)
        mean, log_var = model.latent_posterior(rows, model.effects_fit.contribution(rows))
        return {"latent_mean": mean, "latent_log_var": log_var}


class _Untracked:
    """Holds an object that a tf.Module must not look into."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _served_variables(model: LMMVAE) -> list[keras.Variable]:
    """Variables that an answer reads: networks, scales, effects; not what training keeps."""
    variables = [*model.latent_encoder.variables, *model.latent_decoder.variables]
    variables += [model.feature_mean, model.feature_scale, model.residual_scale]
    for term in model.random_effects:
        variables += term.served_variables()
    return variables
