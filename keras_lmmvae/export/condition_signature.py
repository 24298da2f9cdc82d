"""The served `condition`: rows of an unseen level travel in the request."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.effects.random_intercept import RandomIntercept
from keras_lmmvae.model.conditioning import CONDITION_ROUNDS
from keras_lmmvae.model.rows import FEATURES, Rows

if TYPE_CHECKING:
    from keras_lmmvae.model.lmmvae import LMMVAE

__all__ = ["MASK", "SUPPORT", "ConditionSignature", "can_condition"]

SUPPORT, MASK = "support", "support_mask"
Columns = dict[str, tf.Tensor]
Encode = Callable[[Columns, list[RandomEffect]], Rows]


def can_condition(model: LMMVAE, term: RandomEffect) -> bool:
    """Whether a term has the signature: intercepts, in closed form; no factorisation served."""
    return isinstance(term, RandomIntercept) and model.posterior == "conjugate"


class ConditionSignature:
    """Effects of an unseen level given its support rows, and the reconstruction of a row of it.

        effects = sum_s r[s] / (count + noise_variance / effect_variance),  r = x - f(u) - others

    as `LMMVAE.condition` for a level never seen. A request's row brings its own support, so that
    batches of a server's clients cannot mix.

    Args:
        model: A fitted model with the conjugate posterior.
        term: The term with intercepts whose level is new.
        encode: Function that encodes raw columns for some terms.
    """

    def __init__(self, model: LMMVAE, term: RandomEffect, encode: Encode) -> None:
        self._model, self._term, self._encode = model, term, encode
        self.others = [other for other in model.random_effects if other is not term]

    def input_specs(self, columns: dict[str, tf.TensorSpec]) -> dict[str, tf.TensorSpec]:
        """Inputs: the row "x" `(b, p)`, "support" `(b, m, p)` with "support_mask" `(b, m)`.

        The columns of the other terms come along, for the row as they are and for the support
        rows as "support_<column>" `(b, m)`.

        Args:
            columns: Specifications of the other terms' columns.
        """
        width = self._model.num_features
        specs = {
            FEATURES: tf.TensorSpec((None, width), tf.float32, name=FEATURES),
            SUPPORT: tf.TensorSpec((None, None, width), tf.float32, name=SUPPORT),
            MASK: tf.TensorSpec((None, None), tf.float32, name=MASK),
        }
        for name, spec in columns.items():
            support = f"{SUPPORT}_{name}"
            specs[name] = spec
            specs[support] = tf.TensorSpec((None, None), spec.dtype, name=support)
        return specs

    def __call__(self, inputs: Columns) -> Columns:
        """Reconstruction `(b, p)`, effects and their deviations, in the features' units."""
        model = self._model
        rows = self._encode({name: inputs[name] for name in self._row_columns()}, self.others)
        effects, variance = self._effects(inputs)
        contribution = self._others(rows) + effects
        mean, _ = model.latent_posterior(rows, contribution)
        scale = tf.convert_to_tensor(model.feature_scale)
        return {
            "reconstruction": model.to_units(model.decode_standard(mean) + contribution),
            "effects": effects * scale,
            "standard_deviation": tf.sqrt(variance) * scale,
        }

    def _row_columns(self) -> list[str]:
        return [FEATURES, *dict.fromkeys(column for term in self.others for column in term.columns)]

    def _effects(self, inputs: Columns) -> tuple[tf.Tensor, tf.Tensor]:
        """Posterior mean and variance of the level's effects, `(b, p)` each, standardised."""
        model, shape = self._model, tf.shape(inputs[SUPPORT])
        rows, cells = self._support_rows(inputs)
        others = self._others(rows)
        noise = model.effects_noise_variance()
        ratio = noise / self._term.posterior.effect_variance
        count = tf.reduce_sum(cells, axis=1)  # (b, p)
        left_out = tf.zeros_like(cells)
        for _ in range(CONDITION_ROUNDS):
            flat = tf.reshape(left_out, (-1, shape[2]))
            mean, _ = model.latent_posterior(rows, others + flat)
            residual = rows[FEATURES] - model.decode_standard(mean) - others
            weighted = cells * tf.reshape(residual, shape)
            total = tf.reduce_sum(weighted, axis=1, keepdims=True)
            # Every support row reads what the other rows say: its own part is taken out.
            rest = tf.maximum(count[:, None, :] - cells, 0.0)
            left_out = (total - weighted) / (rest + ratio)
        return total[:, 0] / (count + ratio), noise / (count + ratio)

    def _support_rows(self, inputs: Columns) -> tuple[Rows, tf.Tensor]:
        """Encoded support rows, one below the other, and which cells count, `(b, m, p)`."""
        support = inputs[SUPPORT]
        shape = tf.shape(support)
        columns: dict[str, Any] = {FEATURES: tf.reshape(support, (-1, shape[2]))}
        for name in self._row_columns()[1:]:
            columns[name] = tf.reshape(inputs[f"{SUPPORT}_{name}"], (-1,))
        rows = self._encode(columns, self.others)
        mask = tf.cast(inputs[MASK] > 0.0, tf.float32)
        observed = tf.cast(tf.reshape(rows["observed"], shape), tf.float32)
        return rows, observed * mask[:, :, None]

    def _others(self, rows: Rows) -> tf.Tensor:
        """Contributions of the other terms, `(rows, p)`."""
        total = tf.zeros_like(rows[FEATURES])
        for other in self.others:
            total += self._model.effects_fit.term_contribution(other, rows)
        return total
