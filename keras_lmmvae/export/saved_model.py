"""SavedModel export: raw keys and coordinates in, reconstructions out."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.effects.vocabulary import ServedTable
from keras_lmmvae.export.condition_signature import ConditionSignature, can_condition
from keras_lmmvae.export.input_names import LATENT, check_input_names
from keras_lmmvae.files import written_whole
from keras_lmmvae.fitted_model import FittedModel
from keras_lmmvae.rows import EFFECTS, FEATURES, Rows, encode_rows

__all__ = ["ServingModule", "Untracked", "export_saved_model", "write_saved_model"]

Columns = dict[str, tf.Tensor]
Answer = Callable[[Columns], Columns]


class ServingModule(tf.Module):
    """The variables, lookup tables and functions of a fitted model; each row is independent.

    The files of keys in `folder` become assets. Without a folder the keys are in the graph.
    """

    def __init__(self, model: FittedModel, folder: Path | None) -> None:
        super().__init__(name="lmmvae")
        self._model = Untracked(model)
        self.state = [variable.value for variable in _served_variables(model)]
        self.tables: dict[str, Any] = {}
        for number, term in enumerate(model.random_effects):
            for column, vocabulary in term.vocabularies().items():
                path = None if folder is None else folder / f"vocabulary_{number}.txt"
                self.tables[column] = ServedTable(vocabulary, path)
        convert = keras.ops.convert_to_numpy
        self._scaling = (convert(model.feature_mean), convert(model.feature_scale))

    # Signatures -------------------------------------------------------------------------------

    def signatures(self) -> dict[str, Any]:
        """Concrete functions by the name of their signature."""
        model = self._model.value
        columns = self._column_specs(model.random_effects)
        rows = {"x": tf.TensorSpec((None, model.num_features), tf.float32, name="x"), **columns}
        latent = tf.TensorSpec((None, model.latent_dim), tf.float32, name=LATENT)
        functions: dict[str, tuple[Answer, dict[str, tf.TensorSpec]]] = {
            "serving_default": (self._serve, rows),
            "encode": (self._encode, rows),
            "decode": (self._decode, {LATENT: latent, **columns}),
            "anomaly_score": (self._anomaly_score, rows),
        }
        functions |= self._term_functions()
        return {
            name: tf.function(answer, autograph=False).get_concrete_function(specs)
            for name, (answer, specs) in functions.items()
        }

    def _term_functions(self) -> dict[str, tuple[Answer, dict[str, tf.TensorSpec]]]:
        """`random_effects_<term>`, and `condition_<term>` for a closed-form posterior.

        If there is one term only, the signatures also have the names without the term.
        """
        model = self._model.value
        found: dict[str, tuple[Answer, dict[str, tf.TensorSpec]]] = {}
        for term in model.random_effects:
            specs = self._column_specs([term])
            found[f"random_effects_{term.name}"] = (self._random_effects(term), specs)
            if can_condition(model):
                condition = ConditionSignature(model, term, self._rows)
                specs = condition.input_specs(self._column_specs(model.random_effects))
                found[f"condition_{term.name}"] = (condition, specs)
        for name in ("random_effects", "condition"):
            own = [key for key in found if key.startswith(f"{name}_")]
            if len(own) == 1:
                found[name] = found[own[0]]
        return found

    def _column_specs(self, terms: list[RandomEffect]) -> dict[str, tf.TensorSpec]:
        specs: dict[str, tf.TensorSpec] = {}
        for term in terms:
            for column, dtype in term.column_dtypes().items():
                # If one term reads keys in a column and another numbers, requests hold keys.
                if column not in specs or column in term.vocabularies():
                    specs[column] = tf.TensorSpec((None,), dtype, name=column)
        return specs

    def _rows(self, columns: Columns, terms: list[RandomEffect] | None = None) -> Rows:
        """Encoded rows of raw columns, for all terms or some."""
        mean, scale = self._scaling
        chosen = self._model.value.random_effects if terms is None else terms
        count = tf.shape(columns[FEATURES])[0]
        for name, values in columns.items():
            # TensorFlow would broadcast a single key to all rows.
            message = f"The input {name} must have as many rows as the others."
            tf.debugging.assert_equal(tf.shape(values)[0], count, message)
        return encode_rows(columns, chosen, mean, scale, keep_mask=True, tables=self.tables)

    # Answers ----------------------------------------------------------------------------------

    def _serve(self, columns: Columns) -> Columns:
        model, rows = self._model.value, self._rows(columns)
        seen = model.infer(rows)
        deviation = tf.sqrt(model.predictive_variance(seen)) * model.feature_scale
        return {
            "reconstruction": model.to_units(seen.mean),
            "standard_deviation": deviation,
            "latent_mean": seen.latent_mean,
            **self._known(rows),
        }

    def _encode(self, columns: Columns) -> Columns:
        mean, log_var = self._model.value.infer(self._rows(columns)).latent
        return {"latent_mean": mean, "latent_log_var": log_var}

    def _decode(self, columns: Columns) -> Columns:
        model, latent = self._model.value, columns[LATENT]
        effects = {name: values for name, values in columns.items() if name != LATENT}
        rows = self._rows(self._without_features(effects, latent))
        seen = model.infer(rows)
        standard = seen.decoded(latent) + seen.contribution
        return {"reconstruction": model.to_units(standard), **self._known(rows)}

    def _anomaly_score(self, columns: Columns) -> Columns:
        """Squared errors over predictive variances, 1 on average for rows like the training's."""
        model, rows = self._model.value, self._rows(columns)
        observed = tf.cast(rows["observed"], tf.float32)
        error = model.infer(rows).error
        squares = observed * tf.square(error) / model.variance_given_latent(rows)
        cells = tf.reduce_sum(observed, axis=1)
        score = tf.math.divide_no_nan(tf.reduce_sum(squares, axis=1), cells)
        return {"score": score, "squared_residual": squares, **self._known(rows)}

    def _random_effects(self, term: RandomEffect) -> Answer:
        def answer(columns: Columns) -> Columns:
            model = self._model.value
            rows = self._rows(self._without_features(columns, *columns.values()), [term])
            variance = model.mixed_model.term_variance(term.label, rows)
            scale = tf.convert_to_tensor(model.feature_scale)
            return {
                "mean": model.mixed_model.parts(rows, [term])[term.label] * scale,
                "standard_deviation": tf.sqrt(variance) * scale,
                "known": rows[EFFECTS][term.label]["codes"] >= 0,
            }

        return answer

    def _known(self, rows: Rows) -> Columns:
        """Whether each term knows the row's level or place."""
        terms = self._model.value.random_effects
        return {f"known_{t.name}": rows[EFFECTS][t.label]["codes"] >= 0 for t in terms}

    def _without_features(self, columns: Columns, like: tf.Tensor, *_: tf.Tensor) -> Columns:
        """Adds features that are all missing, for answers that do not depend on them."""
        width = self._model.value.num_features
        return {**columns, FEATURES: tf.fill([tf.shape(like)[0], width], float("nan"))}


class Untracked:
    """Holds an object that a tf.Module must not look into."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _served_variables(model: FittedModel) -> list[keras.Variable]:
    """Variables that answers read: networks, scales and effects, without the state of training."""
    variables = [*model.networks.variables, model.feature_mean, model.feature_scale]
    variables += [model.noise_variance, *model.latent_prior.variables]
    variables += model.mixed_model.served_variables()
    return list({id(variable): variable for variable in variables}.values())


def export_saved_model(
    model: FittedModel, filepath: str | Path, *, keys_in_graph: bool = False
) -> None:
    """Writes the SavedModel of a fitted model; see `LMMVAE.export`.

    The folder is replaced if it exists. A failed export leaves it as it was.
    """
    check_input_names(model)
    with written_whole(filepath) as fresh:
        write_saved_model(model, fresh, keys_in_graph=keys_in_graph)


def write_saved_model(model: FittedModel, folder: Path, *, keys_in_graph: bool = False) -> None:
    """Writes the SavedModel of a fitted model into a folder that does not exist yet."""
    # TensorFlow copies the files of keys into the SavedModel.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".vocabularies-") as vocabularies:
        module = ServingModule(model, None if keys_in_graph else Path(vocabularies))
        tf.saved_model.save(module, str(folder), signatures=module.signatures())
