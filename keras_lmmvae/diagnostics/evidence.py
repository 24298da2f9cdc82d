"""What one pass over rows collects for the checks."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_lmmvae import design
from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.effects.vocabulary import NULL_CODE, UNKNOWN_CODE
from keras_lmmvae.fitted_model import FittedModel
from keras_lmmvae.rows import EFFECTS, FEATURES, FOLD, Pass, Rows, row_weights, with_folds

__all__ = ["Evidence", "TermEvidence", "are_training_rows", "collect", "training_pass"]


class TermEvidence:
    """How the effects of one term fit rows.

    `zb` is the term's contribution to a row, and `r` is what the other terms and `f(u)` do not
    explain of it, both in standard units. `products` and `squares` are sums by group, and

        slope = sum{ r zb } / sum{ zb**2 }

    For effects that have not seen the row and are shrunken as they should be, it is 1 on average,
    since `E[B | other rows] = B-hat`. Below 1 the effects contain noise.

    The groups of a row are its level, or the nearest inducing point of a surface.
    """

    def __init__(self, term: RandomEffect) -> None:
        self.term = term
        self.is_surface = not term.has_levels
        size = term.num_aggregates if self.is_surface else term.num_levels
        self.products, self.squares = np.zeros(size), np.zeros(size)
        self._groups: list[np.ndarray] = []
        self._codes: list[np.ndarray] = []

    def update(self, rows: Rows, part: tf.Tensor, left: np.ndarray, cells: np.ndarray) -> None:
        """Adds a batch: the term's contribution, and the rows `left` without it."""
        encoded = rows[EFFECTS][self.term.label]
        codes = encoded["codes"].numpy()
        groups = self.term.aggregation_codes(encoded).numpy() if self.is_surface else codes
        contribution = part.numpy().astype(np.float64) * cells
        known = groups >= 0
        for sums, values in (
            (self.products, contribution * left),
            (self.squares, contribution**2),
        ):
            sums += np.bincount(groups[known], values.sum(axis=1)[known], len(sums))
        self._groups.append(groups)
        self._codes.append(codes)

    @property
    def groups(self) -> np.ndarray:
        return np.concatenate(self._groups)

    @property
    def codes(self) -> np.ndarray:
        return np.concatenate(self._codes)

    def unseen_share(self) -> float:
        """Share of the rows whose level the model does not know."""
        return float(np.mean(self.codes == UNKNOWN_CODE))

    def null_share(self) -> float:
        """Share of the rows without a key."""
        return float(np.mean(self.codes == NULL_CODE))

    def slope(self) -> tuple[float, float]:
        """The slope and its standard error over groups, infinite if all effects are 0."""
        total = self.squares.sum()
        if total <= 0.0:
            return 1.0, np.inf
        slope = self.products.sum() / total
        error = np.sqrt(np.square(self.products - slope * self.squares).sum()) / total
        return float(slope), float(error)


@dataclass
class Evidence:
    """Latents `(n, d)`, the fit of each term, cells by feature `(p,)`, and sums of errors.

    Errors are in standard units. `relative_error` sums squared errors over the variances that the
    model expects. `constant_cells` counts those that equal the feature's commonest value.
    """

    latent_mean: np.ndarray
    latent_log_var: np.ndarray
    terms: dict[str, TermEvidence]
    cells: np.ndarray
    constant_cells: np.ndarray
    squared_error: float
    relative_error: float

    @property
    def mean_squared_error(self) -> float:
        """Mean squared error of a cell."""
        return self.squared_error / max(self.cells.sum(), 1.0)

    @property
    def error_ratio(self) -> float:
        """Mean over cells of the squared error over its expected variance."""
        return self.relative_error / max(self.cells.sum(), 1.0)


def collect(model: FittedModel, data: Any, *, is_crossed: bool) -> Evidence:
    """Passes over rows once; if `is_crossed`, training rows read their out-of-fold effects."""
    size = model.num_features
    terms = {term.label: TermEvidence(term) for term in model.random_effects}
    means, log_vars, values = [], [], None
    cells, constant, squares, relative = np.zeros(size), np.zeros(size), 0.0, 0.0
    mixed_model = model.mixed_model
    for rows in training_pass(model, data) if is_crossed else model.pass_over(data):
        if is_crossed:
            parts = mixed_model.out_of_fold_parts(mixed_model.own_fold(rows))
        else:
            parts = mixed_model.parts(rows)
        seen = model.infer(rows, parts)
        expected = model.variance_given_latent(rows)
        mask = _mask(rows)
        error = seen.error.numpy().astype(np.float64) * mask
        for label, part in parts.items():
            terms[label].update(rows, part, error + part.numpy() * mask, mask)
        x = rows[FEATURES].numpy()
        if values is None:  # A value that nearly all cells have is the median of any batch.
            values = np.nanquantile(np.where(mask > 0, x, np.nan), 0.5, axis=0, method="lower")
        cells += mask.sum(axis=0)
        constant += ((x == values) * mask).sum(axis=0)
        squares += np.square(error).sum()
        relative += (np.square(error) / keras.ops.convert_to_numpy(expected)).sum()
        means.append(seen.latent[0].numpy())
        log_vars.append(seen.latent[1].numpy())
    return Evidence(
        np.concatenate(means),
        np.concatenate(log_vars),
        terms,
        cells,
        constant,
        float(squares),
        float(relative),
    )


def training_pass(model: FittedModel, data: Any) -> Pass:
    """A pass over training rows with the folds that they had in `fit`."""
    model.require_fitted()
    return Pass(with_folds(model.encode_data(data)))


def are_training_rows(model: FittedModel, data: Any) -> bool:
    """Whether rows have the fold counts of every level that the rows of `fit` had."""
    pairs = list(model.mixed_model.pairs())

    def counts(rows: Rows) -> list[tf.Tensor]:
        return [
            design.count(
                rows[EFFECTS][term.label]["codes"],
                effects.num_levels,
                row_weights(rows),
                rows[FOLD],
            )
            for term, effects in pairs
        ]

    found = training_pass(model, data).total(counts)
    return all(
        np.allclose(count, effects.folds.count, atol=0.01)
        for count, (_, effects) in zip(found, pairs, strict=True)
    )


def _mask(rows: Rows) -> np.ndarray:
    if "observed" in rows:
        return np.asarray(rows["observed"], np.float64)
    return np.ones(rows[FEATURES].shape)
