"""The served `condition`: rows of an unseen level travel in the request."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_lmmvae.effects.random_effect import Encoded, RandomEffect
from keras_lmmvae.effects.vocabulary import UNKNOWN_CODE
from keras_lmmvae.fitted_model import FittedModel
from keras_lmmvae.inspection.conditioning import condition_on_support
from keras_lmmvae.rows import FEATURES, Rows

__all__ = ["MASK", "SUPPORT", "ConditionSignature", "can_condition"]

SUPPORT, MASK = "support", "support_mask"
Columns = dict[str, tf.Tensor]
Encode = Callable[[Columns, list[RandomEffect]], Rows]


def can_condition(model: FittedModel) -> bool:
    """Whether the terms have the signature: a closed-form posterior is needed."""
    return model.posterior == "conjugate"


class ConditionSignature:
    """Effects of a level given its support rows, and the reconstruction of a row of it.

    The level of a factor is one never seen, and starts at the prior. A surface starts at what
    the model knows of it. The effects are the posterior means that `LMMVAE.condition` gives, and
    are read at the row. A request's row brings its own support, so that batches of a server's
    clients cannot mix.

    Args:
        model: A fitted model with the conjugate posterior.
        term: The term.
        encode: Function that encodes raw columns for some terms.
    """

    def __init__(self, model: FittedModel, term: RandomEffect, encode: Encode) -> None:
        self._model, self._term, self._encode = model, term, encode
        self.others = [other for other in model.random_effects if other is not term]
        # The level's key does not travel: it is one that the model does not know.
        names = [column for other in self.others for column in other.columns]
        self.columns = list(dict.fromkeys([*names, *term.numbers]))

    def input_specs(self, columns: dict[str, tf.TensorSpec]) -> dict[str, tf.TensorSpec]:
        """Inputs: the row "x" `(b, p)`, "support" `(b, s, p)` with "support_mask" `(b, s)`.

        The columns of the other terms, and the numbers of the term itself, come along: for the
        row as they are, and for the support rows as "support_<column>" `(b, s)`.
        """
        width = self._model.num_features
        specs = {
            FEATURES: tf.TensorSpec((None, width), tf.float32, name=FEATURES),
            SUPPORT: tf.TensorSpec((None, None, width), tf.float32, name=SUPPORT),
            MASK: tf.TensorSpec((None, None), tf.float32, name=MASK),
        }
        for name in self.columns:
            support = f"{SUPPORT}_{name}"
            specs[name] = columns[name]
            specs[support] = tf.TensorSpec((None, None), columns[name].dtype, name=support)
        return specs

    def __call__(self, inputs: Columns) -> Columns:
        """Reconstruction `(b, p)`, the row's effects and their deviations, in features' units."""
        shape = (None, None, self._model.num_features)
        inputs = {**inputs, SUPPORT: tf.ensure_shape(inputs[SUPPORT], shape)}
        size = tf.shape(inputs[SUPPORT])
        for name, value in inputs.items():
            # Rows of another number would be spread over the others.
            if name != SUPPORT:
                message = f"The input {name} must have as many rows as {SUPPORT}."
                is_support = name.startswith(SUPPORT)
                expected = size[:2] if is_support else size[:1]
                found = tf.shape(value)[: 2 if is_support else 1]
                tf.debugging.assert_equal(found, expected, message)
        if self._term.has_levels:
            return self._answer(inputs)

        # The matrices of a surface are large: one row of the request after the other.
        @tf.autograph.experimental.do_not_convert
        def one(row: Columns) -> Columns:
            answer = self._answer({name: value[None] for name, value in row.items()})
            return {name: value[0] for name, value in answer.items()}

        signature = tf.TensorSpec((self._model.num_features,), tf.float32)
        outputs = ("reconstruction", "effects", "standard_deviation")
        return tf.map_fn(one, inputs, fn_output_signature=dict.fromkeys(outputs, signature))

    def _answer(self, inputs: Columns) -> Columns:
        model, term, size = self._model, self._term, tf.shape(inputs[SUPPORT])
        columns = {name: inputs[name] for name in (FEATURES, *self.columns)}
        rows, own = self._encoded(columns)
        support, level = self._encoded(self._support_columns(inputs))
        cells = self._cells(inputs, support, level)
        posterior = condition_on_support(
            model,
            term,
            support,
            model.mixed_model.parts(support, self.others),
            tf.reshape(self._basis(level), (size[0], size[1], term.basis_size)),
            cells,
            UNKNOWN_CODE if term.has_levels else 0,
        )
        basis = self._basis(own)  # (b, m)
        effects = tf.reduce_sum(basis[:, :, None] * posterior.mean, axis=1)
        product = tf.reduce_sum(posterior.covariance * basis[:, None, None, :], axis=-1)
        variance = tf.reduce_sum(product * basis[:, None, :], axis=-1)
        parts = {**model.mixed_model.parts(rows, self.others), term.label: effects}
        scale = tf.convert_to_tensor(model.feature_scale)
        return {
            "reconstruction": model.to_units(model.infer(rows, parts).mean),
            "effects": effects * scale,
            "standard_deviation": tf.sqrt(tf.maximum(variance, 0.0)) * scale,
        }

    def _encoded(self, columns: Columns) -> tuple[Rows, Encoded]:
        """Rows encoded for the other terms, and for the level that the request is about."""
        names = {FEATURES, *(name for other in self.others for name in other.columns)}
        rows = self._encode({k: v for k, v in columns.items() if k in names}, self.others)
        return rows, self._term.encode_of_one_level(columns)

    def _basis(self, encoded: Encoded) -> tf.Tensor:
        """Basis vectors `(rows, m)`; 0 for rows that lack an input."""
        present = tf.cast(encoded["codes"] >= 0, tf.float32)[:, None]
        basis = self._term.basis(encoded)
        return present if basis is None else basis * present

    def _support_columns(self, inputs: Columns) -> Columns:
        """Columns of the support rows, one below the other."""
        columns: dict[str, Any] = {
            FEATURES: tf.reshape(inputs[SUPPORT], (-1, self._model.num_features))
        }
        for name in self.columns:
            columns[name] = tf.reshape(inputs[f"{SUPPORT}_{name}"], (-1,))
        return columns

    def _cells(self, inputs: Columns, rows: Rows, level: Encoded) -> tf.Tensor:
        """Which cells of the support count, `(b, s, p)`."""
        mask = tf.reshape(tf.cast(inputs[MASK] > 0.0, tf.float32), (-1,))
        mask *= tf.cast(level["codes"] >= 0, tf.float32)
        cells = tf.cast(rows["observed"], tf.float32) * mask[:, None]
        return tf.reshape(cells, tf.shape(inputs[SUPPORT]))
