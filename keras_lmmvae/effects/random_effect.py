"""What every random-effects term has in common: columns, levels, a basis, a prior."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import keras
import numpy as np
import tensorflow as tf

from keras_lmmvae import design
from keras_lmmvae.effects.scaling import finite_or_zero
from keras_lmmvae.effects.vocabulary import NULL_CODE, Vocabulary
from keras_lmmvae.layers.design_matrix_layer import DesignMatrixLayer
from keras_lmmvae.layers.random_effects_aggregator import RandomEffectsAggregator
from keras_lmmvae.layers.state_layer import StateLayer
from keras_lmmvae.validation import received

__all__ = ["FEATURES", "Encoded", "RandomEffect", "term_classes"]

FEATURES = "x"
"""The column of the features."""

# What no column of a term may be called; the second marks encoded rows.
_RESERVED = (FEATURES, "_effects")

Encoded = dict[str, tf.Tensor]
"""One term's view of the rows: "codes" `(b,)` int32 and, if it has any, "inputs" `(b, c)`."""


class RandomEffect(StateLayer):
    """Base of the random-effects terms: `Z[i] = e_l (x) phi`, one code and one basis a row.

        B[l, :, f] ~ Normal(0, effect_variance[f] * Psi),    l = 1...L

    A new correlation structure is a subclass in one file. It says which columns it reads, what
    it learns from them, and what its basis is. It holds no effects and no variances: they belong
    to the mixed model. Columns reach it checked and normalised.

    A subclass writes

    - `__init__`, which names the `keys` and the `numbers` among its columns,
    - `codes`, the level of every row; a `GroupedEffect` has it already,
    - `inputs` and `basis`, the basis functions, unless it is an intercept,
    - `update_state`, `finalize_state` and `reset_state` if it learns more than its levels,
    - `get_config`, and `adapted_state` and `restore_adapted_state` for what it has learned.

    Args:
        keys: Names of the columns that hold keys of levels, strings or integers.
        numbers: Names of the columns that hold numbers.
        name: String, the term's name in tables and signatures.

    Raises:
        ValueError: If a column name is not a non-empty string, stands twice or is kept for the
            features, or the name is not a string.
    """

    formula_name: ClassVar[str | None] = None
    """What the term is called in formulas, as "gp" in "gp(lon, lat)"; `None`: it has a bar."""

    learn_coefficient_covariance = False
    """Whether `Psi` is learned; otherwise it is the identity."""

    def __init__(self, keys: Sequence[str], numbers: Sequence[str], name: str) -> None:
        columns = (*keys, *numbers)
        _check_names(columns, name)
        super().__init__(name=re.sub(r"[^\w.-]", "_", name))
        self.label = name
        self.columns = columns
        self.keys = tuple(keys)
        self.numbers = tuple(numbers)
        self.num_levels = 0
        self.basis_size = 1
        self.aggregator = RandomEffectsAggregator(name="aggregator", dtype="float32")
        self.design_matrix = DesignMatrixLayer(name="design_matrix", dtype="float32")

    # What a term declares -------------------------------------------------------------------

    @property
    def has_levels(self) -> bool:
        """Whether there are levels of a population; a surface has places in their stead."""
        return bool(self.keys)

    @property
    def curve_column(self) -> str | None:
        """The column along which every level has a curve, to be drawn over it."""
        return None

    @property
    def map_columns(self) -> tuple[str, str] | None:
        """The two columns over which the effect is a surface, to be drawn as a map."""
        return None

    @property
    def map_aspect_is_geographic(self) -> bool:
        """Whether the columns of the map are degrees of longitude and latitude."""
        return False

    # From columns to rows -------------------------------------------------------------------

    def conform(self, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Checks what only this term knows of its columns, and returns those that it changes.

        Args:
            columns: Normalised columns: keys are int64 or strings, numbers are float64.

        Raises:
            ValueError: If a column does not hold what the term was adapted to.
        """
        del columns
        return {}

    def update_state(self, columns: dict[str, np.ndarray]) -> None:
        """Takes in some rows during `adapt`: the term's columns, and the features under "x"."""
        raise NotImplementedError(f"{type(self).__name__} must write `update_state`.")

    def finalize_state(self) -> None:
        """Ends `adapt`: sets `num_levels` and `basis_size`."""
        raise NotImplementedError(f"{type(self).__name__} must write `finalize_state`.")

    def reset_state(self) -> None:
        """Forgets the rows that `update_state` took in, for an `adapt` that starts again."""
        raise NotImplementedError(f"{type(self).__name__} must write `reset_state`.")

    def codes(self, columns: dict[str, tf.Tensor], tables: Mapping[str, Any] | None) -> tf.Tensor:
        """The level of every row, `(b,)` int32, negative for none.

        Args:
            columns: Columns as tensors.
            tables: Optional lookup tables by column, in place of those of the vocabularies.
        """
        raise NotImplementedError(f"{type(self).__name__} must write `codes`.")

    def inputs(self, columns: dict[str, tf.Tensor]) -> tf.Tensor | None:
        """What the basis is computed from, `(b, c)` float32; NaN where a row lacks it.

        It runs in input pipelines and in served graphs: TensorFlow operations only.
        """
        del columns
        return None

    def basis(self, encoded: Encoded) -> tf.Tensor | None:
        """Basis vectors `(b, m)` of encoded rows; `None` stands for ones with `m = 1`.

        Coefficients are independent with equal variance a priori, unless
        `learn_coefficient_covariance` is set.
        """
        del encoded
        return None

    def encode(
        self, columns: dict[str, tf.Tensor], tables: Mapping[str, Any] | None = None
    ) -> Encoded:
        """Codes and inputs of columns. A row that lacks an input has no level."""
        return self._complete(self.codes(columns, tables), self.inputs(columns))

    def encode_of_one_level(self, columns: dict[str, tf.Tensor]) -> Encoded:
        """The same for rows of one level that needs no key: its code is 0."""
        values = next(iter(columns.values()))
        return self._complete(tf.zeros(tf.shape(values)[0], tf.int32), self.inputs(columns))

    @staticmethod
    def _complete(codes: tf.Tensor, inputs: tf.Tensor | None) -> Encoded:
        if inputs is None:
            return {"codes": codes}
        inputs, are_finite = finite_or_zero(inputs)
        is_complete = tf.reduce_all(are_finite, axis=1)
        return {
            "codes": tf.where(is_complete, codes, NULL_CODE),
            "inputs": tf.where(is_complete[:, None], inputs, tf.zeros_like(inputs)),
        }

    def basis_of(self, encoded: Encoded) -> tf.Tensor | None:
        """The basis that `with_basis` has put to the rows, or `basis` itself."""
        return encoded["basis"] if "basis" in encoded else self.basis(encoded)

    def with_basis(self, encoded: Encoded) -> Encoded:
        """Rows that carry their basis, for those who use it more than once."""
        basis = self.basis_of(encoded)
        return encoded if basis is None else {**encoded, "basis": basis}

    # Names and units ------------------------------------------------------------------------

    def level_names(self) -> list[Any]:
        """Keys of the levels, in the order of their codes."""
        raise NotImplementedError(f"{type(self).__name__} must write `level_names`.")

    def level_columns(self) -> list[str]:
        """Names of the parts of a level's name."""
        return [self.label]

    def coefficient_names(self) -> list[str]:
        """Names of the basis functions."""
        if self.basis_size == 1:
            return ["intercept"]
        return [f"basis_{number}" for number in range(self.basis_size)]

    def component_names(self) -> list[str]:
        """The rows that the term has in a table of variance components."""
        names = self.coefficient_names()
        return [self.label] if len(names) == 1 else [f"{self.label}: {name}" for name in names]

    def user_basis(self) -> np.ndarray:
        """Matrix `(c, m)` from the internal coefficients to those that tables show."""
        return np.eye(self.basis_size)

    def vocabularies(self) -> dict[str, Vocabulary]:
        """Column -> its keys, for terms that look keys up."""
        return {}

    def typical_values(self) -> dict[str, float]:
        """A usual value of every column with numbers, in its units."""
        return dict.fromkeys(self.numbers, 0.0)

    def column_dtypes(self) -> dict[str, tf.DType]:
        """Column -> dtype of what a request holds."""
        keys = {column: vocabulary.dtype for column, vocabulary in self.vocabularies().items()}
        return {column: keys.get(column, tf.float32) for column in self.columns}

    # What a basis may learn -----------------------------------------------------------------

    def build_basis(self, is_amortized: bool) -> None:
        """Makes the weights of the basis, if it has any; its sizes are known after `adapt`."""

    def basis_variables(self) -> list[keras.Variable]:
        """Weights that the basis of a request's rows is computed from."""
        return []

    @property
    def has_learned_basis(self) -> bool:
        """Whether `fit_basis` has anything to learn."""
        return False

    def fit_basis(self, inputs: np.ndarray, residual: np.ndarray) -> None:
        """Learns what the basis depends on from rows that the term is to explain.

        Args:
            inputs: Float array `(n, c)`, basis inputs.
            residual: Float array `(n, p)`.
        """

    def fit_limits(self) -> tuple[float, float, float] | None:
        """What `fit_basis` has learned, with the limits of its search: (value, low, high)."""
        return None

    @property
    def fitted_length_scale(self) -> float | None:
        """The length scale that `fit_basis` has learned, in the columns' units; `None`: none."""
        return None

    def missing_share(self, basis: tf.Tensor | None, variance: tf.Tensor | float) -> Any:
        """Share of the prior variance of rows that the basis leaves out, `(b,)`; `None`: none.

        Args:
            basis: Float tensor `(b, m)`.
            variance: Float, the share that a row may have in all.
        """
        del basis, variance
        return None

    def add_levels(self, columns: dict[str, np.ndarray]) -> bool:
        """Adds the levels of some rows that are new; returns whether there were any."""
        del columns
        return False

    # The paper's inference: codes of the rows, averaged by level ----------------------------

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
        codes = design.compact_codes(encoded["codes"])
        basis = self.basis_of(encoded)
        inputs = [self.aggregator([values, codes]), codes]
        return self.design_matrix(inputs if basis is None else [*inputs, basis])

    def table_of_means(self, means: tf.Tensor) -> tf.Tensor:
        """The table `(levels, m, p)` that belongs to level means of codes `(levels, c, p)`."""
        return means

    # Saving ---------------------------------------------------------------------------------

    @property
    def is_adapted(self) -> bool:
        """Whether `adapt` has told the term its levels."""
        return self.num_levels > 0

    def require_adapted(self) -> None:
        """Raises a ValueError unless `adapt` has told the term its levels."""
        if not self.is_adapted:
            raise ValueError(
                f"The term '{self.label}' does not know its levels yet: call `model.adapt(data)` "
                "first. " + received(num_levels=self.num_levels)
            )

    def adapted_state(self) -> dict[str, Any]:
        """What `adapt` found, as plain numbers and strings for the saved configuration."""
        return {"num_levels": self.num_levels, "basis_size": self.basis_size}

    def restore_adapted_state(self, state: dict[str, Any]) -> None:
        """Takes back what `adapted_state` gave."""
        self.num_levels = state["num_levels"]
        self.basis_size = state["basis_size"]

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {"name": self.label}

    @classmethod
    def from_formula(cls, columns: Sequence[str], group: str | None, **options: Any) -> Self:
        """The term that `name(column, ... | group, option=value, ...)` stands for."""
        if group is None:
            return cls(tuple(columns), **options)  # type: ignore[call-arg, arg-type]
        return cls(group, *columns, **options)  # type: ignore[arg-type]


def term_classes(base: type[RandomEffect] = RandomEffect) -> Iterator[type[RandomEffect]]:
    """All subclasses of a class of terms that are imported, its own name left out."""
    for kind in base.__subclasses__():
        yield kind
        yield from term_classes(kind)


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
