"""What every random-effects term has in common: columns, a basis, a prior, a posterior."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_lmmvae import design
from keras_lmmvae.effects.vocabulary import Vocabulary
from keras_lmmvae.layers.conjugate_posterior import ConjugatePosterior
from keras_lmmvae.layers.design_matrix_layer import DesignMatrixLayer
from keras_lmmvae.layers.random_effects_aggregator import RandomEffectsAggregator
from keras_lmmvae.validation import received

__all__ = ["Encoded", "RandomEffect"]

# The features' column, and the mark of encoded rows.
_RESERVED = ("x", "_effects")

Encoded = dict[str, tf.Tensor]
"""One term's view of the rows: "codes" `(b,)` int32 and, if it has any, "inputs" `(b, c)`."""


class RandomEffect(keras.layers.Layer):
    """Base of the random-effects terms: `Z[i] = e_l (x) phi`, one code and one basis a row.

    A new correlation structure is a subclass with its columns (`__init__`), what it learns
    from the data (`update_state`, `finalize_state`), its rows (`encode`), its basis (`basis`)
    and, where it is not the identity, its prior.

    Args:
        columns: Names of the data columns that the term reads.
        name: String, the term's name in tables and signatures.

    Raises:
        ValueError: If a column name is not a non-empty string, stands twice or is kept for the
            features, or the name is not a string.
    """

    learn_coefficient_covariance = False
    posterior: ConjugatePosterior
    """The table of effects; made by `build_posterior`."""

    def __init__(self, columns: tuple[str, ...], name: str) -> None:
        _check_names(columns, name)
        super().__init__(name=re.sub(r"[^\w.-]", "_", name), trainable=False, dtype="float32")
        self.label = name
        self.columns = columns
        self.num_levels = 0
        self.basis_size = 1
        self.aggregator = RandomEffectsAggregator(name="aggregator", dtype="float32")
        self.design_matrix = DesignMatrixLayer(name="design_matrix", dtype="float32")

    # To be written by a subclass ------------------------------------------------------------

    def prepare(self, data: dict[str, Any]) -> dict[str, np.ndarray]:
        """Checks the term's columns on the host and returns them as arrays of fixed dtypes."""
        raise NotImplementedError

    def update_state(self, columns: dict[str, np.ndarray]) -> None:
        """Takes in the prepared columns of some rows during `adapt`."""
        raise NotImplementedError

    def finalize_state(self) -> None:
        """Ends `adapt`: sets `num_levels` and `basis_size`."""
        raise NotImplementedError

    def reset_state(self) -> None:
        """Forgets the rows that `update_state` took in, for an `adapt` that starts again."""
        raise NotImplementedError

    def encode(
        self, columns: dict[str, tf.Tensor], tables: dict[str, Any] | None = None
    ) -> Encoded:
        """Codes and basis inputs of prepared columns; runs in input pipelines and when served."""
        raise NotImplementedError

    def basis(self, encoded: Encoded) -> tf.Tensor | None:
        """Basis vectors `(b, m)` of encoded rows; `None` stands for ones with `m = 1`."""
        raise NotImplementedError

    def basis_of(self, encoded: Encoded) -> tf.Tensor | None:
        """The basis that `with_basis` has put to the rows, or `basis` itself."""
        return encoded["basis"] if "basis" in encoded else self.basis(encoded)

    def with_basis(self, encoded: Encoded) -> Encoded:
        """Rows that carry their basis, for those who use it more than once."""
        basis = self.basis_of(encoded)
        return encoded if basis is None else {**encoded, "basis": basis}

    def level_names(self) -> list[Any]:
        """Keys of the levels, in the order of their codes."""
        raise NotImplementedError

    def coefficient_names(self) -> list[str]:
        """Names of the basis functions."""
        return ["intercept"]

    def user_basis(self) -> np.ndarray:
        """Matrix `(m, m)` from the internal coefficients to those of the columns as given."""
        return np.eye(self.basis_size)

    # Shared ---------------------------------------------------------------------------------

    @property
    def is_adapted(self) -> bool:
        return self.num_levels > 0

    def build_posterior(self, num_features: int, *, is_amortized: bool = False) -> None:
        """Makes the state of the term; its sizes are known after `adapt`."""
        self.posterior = ConjugatePosterior(
            self.num_levels,
            self.basis_size,
            num_features,
            learn_coefficient_covariance=self.learn_coefficient_covariance,
            has_folds=not is_amortized,
            name="posterior",
        )
        self.posterior.build()
        if is_amortized:
            self.aggregation_count = self.add_weight(
                name="aggregation_count",
                shape=(self.num_aggregates,),
                initializer="zeros",
                trainable=False,
                autocast=False,
            )
        self.build_basis(is_amortized)
        self.built = True

    def build_basis(self, is_amortized: bool) -> None:
        """Makes the weights of the basis, if it has any."""

    @property
    def has_learned_basis(self) -> bool:
        """Whether `fit_basis` has anything to learn."""
        return False

    def fit_basis(self, inputs: np.ndarray, residual: np.ndarray) -> None:
        """Learns what the basis depends on from rows the term is to explain; see `SpatialEffect`.

        Args:
            inputs: Float array `(n, c)`, basis inputs.
            residual: Float array `(n, p)`.
        """

    @property
    def table(self) -> Any:
        """The table of effects that new rows read, a variable `(levels, m, p)`."""
        return self.posterior.effects.value

    def effects_in_units(self, noise_variance: tf.Tensor | None = None) -> np.ndarray:
        """Effects of all levels as coefficients of the columns as given, `(levels, c, p)`.

        Args:
            noise_variance: `None` for posterior means; a float tensor `(p,)` for the standard
                deviations that belong to this noise variance.

        Returns:
            Float array, in standardised units of the features.
        """
        basis = self.user_basis()
        if noise_variance is None:
            effects = keras.ops.convert_to_numpy(self.posterior.effects)
            return np.asarray(np.einsum("ij,ljf->lif", basis, effects))
        matrix = tf.constant(basis, tf.float32)
        return np.asarray(np.sqrt(self.posterior.marginal_variances(matrix, noise_variance)))

    def vocabularies(self) -> dict[str, Vocabulary]:
        """Column -> its keys, for terms that look keys up."""
        return {}

    def typical_values(self) -> dict[str, float]:
        """A usual value of every column with numbers, in its units."""
        return {}

    def column_dtypes(self) -> dict[str, tf.DType]:
        """Column -> dtype of what a request holds."""
        keys = {column: vocabulary.dtype for column, vocabulary in self.vocabularies().items()}
        return {column: keys.get(column, tf.float32) for column in self.columns}

    def served_variables(self) -> list[keras.Variable]:
        """Variables that an answer to a request reads."""
        return self.posterior.served_variables()

    def unmodelled_variance(self, codes: tf.Tensor, basis: tf.Tensor | None) -> tf.Tensor | float:
        """Prior variance of what the basis leaves out at some rows, `(b, p)`."""
        del codes, basis
        return 0.0

    def excess_variance(self, codes: tf.Tensor, basis: tf.Tensor | None) -> tf.Tensor | float:
        """What `unmodelled_variance` adds to the noise variance of new rows, `(b, p)`.

        The training rows' residuals hold what the basis leaves out, so the learned noise
        variance has its average over them already.
        """
        del codes, basis
        return 0.0

    def add_levels(self, columns: dict[str, np.ndarray]) -> bool:
        """Adds the levels of prepared columns that are new; returns whether there were any."""
        del columns
        return False

    def grow(self, num_levels: int) -> None:
        """Makes room for more levels behind the present ones; they start at the prior."""
        old = self.posterior
        self.num_levels = num_levels
        # A weight cannot change its shape: the state is made anew, and the old one forgotten.
        self._layers.remove(old)
        self.posterior = old.grown(num_levels)

    # The paper's inference: codes of the rows, averaged by level -------------------------------

    @property
    def code_size(self) -> int:
        """Number `c` of code vectors of a row."""
        return self.basis_size

    @property
    def num_aggregates(self) -> int:
        """Number of levels that codes are averaged over."""
        return self.num_levels

    def aggregation_codes(self, encoded: Encoded) -> tf.Tensor:
        """The levels that codes are averaged over, `(b,)`."""
        return encoded["codes"]

    def aggregate_batch(self, values: tf.Tensor, encoded: Encoded) -> tf.Tensor:
        """`Z @ B` with B the mini-batch's means by level of the rows' codes.

        Args:
            values: Float tensor `(b, c, p)`, codes.
            encoded: The rows.

        Returns:
            Float tensor `(b, p)`.
        """
        slots = design.compact_codes(encoded["codes"])
        basis = self.basis_of(encoded)
        inputs = [self.aggregator([values, slots]), slots]
        return self.design_matrix(inputs if basis is None else [*inputs, basis])

    def table_of_means(self, means: tf.Tensor) -> tf.Tensor:
        """The table `(levels, m, p)` that belongs to level means of codes `(levels, c, p)`."""
        return means

    # Saving -------------------------------------------------------------------------------------

    def adapted_state(self) -> dict[str, Any]:
        """What `adapt` found, as plain numbers and strings for the saved configuration."""
        return {"num_levels": self.num_levels, "basis_size": self.basis_size}

    def restore_adapted_state(self, state: dict[str, Any]) -> None:
        """Takes back what `adapted_state` gave."""
        self.num_levels = state["num_levels"]
        self.basis_size = state["basis_size"]

    def require_adapted(self) -> None:
        if not self.is_adapted:
            raise ValueError(
                f"The term '{self.label}' does not know its levels yet: call `model.adapt(data)` "
                "first. " + received(num_levels=self.num_levels)
            )

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {"name": self.label}


def _check_names(columns: tuple[Any, ...], name: Any) -> None:
    if not all(isinstance(column, str) and column for column in columns):
        raise ValueError(
            "Received invalid column names, expected non-empty strings. "
            + received(columns=columns)
        )
    if len(set(columns)) != len(columns):
        raise ValueError(
            "Received a column name twice in one term, expected distinct names. "
            + received(columns=columns)
        )
    if any(column in _RESERVED for column in columns):
        raise ValueError(
            f"The column names {list(_RESERVED)} are kept for the features: rename the effect "
            "column. " + received(columns=columns)
        )
    if not isinstance(name, str):
        raise ValueError(
            "Received an invalid value for `name`, expected a string. " + received(name=name)
        )
