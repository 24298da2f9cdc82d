"""Effects for new rows and new levels, with the networks frozen."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_lmmvae.model import solver
from keras_lmmvae.model.conjugate_fit import ConjugateFit
from keras_lmmvae.model.equations import MixedModelEquations
from keras_lmmvae.model.part import ModelPart
from keras_lmmvae.model.rows import raw_batches
from keras_lmmvae.validation import received

__all__ = ["Updating"]

# Residuals depend on the effects through the encoder: the equations are solved again for these.
_ROUNDS = 3


class Updating(ModelPart):
    """The part of `LMMVAE` that takes in rows after training, without touching the networks."""

    def update_random_effects(self, data: Any, keep_history: bool = True) -> None:
        """Updates the effects from new rows; levels never seen before are added.

        The rows seen so far enter as what they left behind: every level's Gram matrix and
        posterior mean. With one term the result is the posterior given old and new rows
        together; with several, what old rows said of two terms jointly is not kept. Networks,
        variances and scales stay.

        Args:
            data: Dict of arrays of new rows, or a batched dataset of dicts.
            keep_history: Whether rows seen so far count; `False` takes `data` for all rows
                there are, so that levels without rows go back to zero.

        Raises:
            ValueError: If the model is not fitted, or its posterior is amortized.
        """
        self.require_fitted()
        fit = self.effects_fit
        if not isinstance(fit, ConjugateFit):
            raise ValueError(
                "Only the conjugate posterior can be updated without training. "
                + received(posterior=self.posterior)
            )
        if not self.random_effects:
            raise ValueError("The model has no random effects to update. " + received(terms=0))
        self._add_levels(data)
        history = self._history() if keep_history else None
        equations = MixedModelEquations(self, self.encode_data(data))
        equations.set_designs(None if history is None else history.grams)
        for term in self.random_effects:
            effects = tf.convert_to_tensor(term.posterior.effects)
            start = effects if keep_history else tf.zeros_like(effects)
            term.posterior.fold_effects.assign(tf.concat([start, start], axis=0))
        for _ in range(_ROUNDS):
            equations.solve(True, self.training_residual, _doubled(history))
        equations.set_common_designs(None if history is None else history.grams)
        equations.solve(False, self.training_residual, history)
        fit.equations = equations

    def _add_levels(self, data: Any) -> None:
        """Grows the terms' tables for keys that are not in their vocabularies."""
        grown = False
        for batch in raw_batches(data, self.random_effects, self.num_features):
            for term in self.random_effects:
                grown |= term.add_levels(batch)
        if grown:
            # Compiled functions hold the old tables.
            self.train_function = self.test_function = self.predict_function = None

    def _history(self) -> solver.History:
        """Sufficient statistics of the rows seen so far."""
        noise = self.effects_noise_variance()
        grams, scores = {}, {}
        for term in self.random_effects:
            posterior = term.posterior
            gram = tf.identity(posterior.gram)
            effects = tf.convert_to_tensor(posterior.effects)
            grams[term.label] = gram
            scores[term.label] = tf.matmul(gram, effects) / noise + posterior.prior_product(effects)
        return solver.History(grams, scores)


def _doubled(history: solver.History | None) -> solver.History | None:
    """The same history for both folds: their tables lie one behind the other."""
    if history is None:
        return None
    double = {
        part: {name: tf.concat([value, value], axis=0) for name, value in values.items()}
        for part, values in (("grams", history.grams), ("scores", history.scores))
    }
    return solver.History(**double)
