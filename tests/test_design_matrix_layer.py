"""DesignMatrixLayer: its contract, its products and its errors."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from layer_contract import check
from reference import dense_design

from keras_lmmvae.layers import DesignMatrixLayer, RandomEffectsAggregator

LEVELS, ROWS, FEATURES, SIZE = 5, 30, 3, 2
RNG = np.random.default_rng(0)
CODES = RNG.integers(-1, LEVELS, ROWS).astype("int32")
BASIS = RNG.normal(size=(ROWS, SIZE)).astype("float32")
VALUES = RNG.normal(size=(ROWS, FEATURES)).astype("float32")
EFFECTS = RNG.normal(size=(LEVELS, SIZE, FEATURES)).astype("float32")


class OwnTable(keras.Model):
    """A subclassed model that hands its own weight to the layer: a fixed-effects regression."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.design = DesignMatrixLayer(LEVELS)
        self.table = self.add_weight(
            name="table", shape=(LEVELS, SIZE, FEATURES), initializer="zeros"
        )

    def call(self, inputs):
        codes, basis = inputs
        return self.design([self.table, codes, basis])


def make_model(layer, is_slopes):
    """A functional model whose table of effects comes from the rows and is read by `layer`."""
    features, codes = keras.Input((FEATURES,)), keras.Input((), dtype="int32")
    rows = [codes, keras.Input((SIZE,))] if is_slopes else [codes]
    values = keras.layers.Dense(FEATURES, use_bias=False)(features)
    table = RandomEffectsAggregator(LEVELS)([values, *rows])
    return keras.Model([features, *rows], layer([table, *rows]))


@pytest.mark.parametrize("is_slopes", [False, True])
def test_layer_contract(tmp_path, is_slopes):
    """The layer keeps the contract of all layers, with and without a basis."""
    rows = [CODES, BASIS] if is_slopes else [CODES]
    check(
        DesignMatrixLayer,
        {"num_levels": LEVELS},
        [EFFECTS if is_slopes else EFFECTS[:, 0], *rows],
        lambda layer: make_model(layer, is_slopes),
        [VALUES, *rows],
        tmp_path,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
class TestProducts:
    """Against a dense Z, within rounding of the layer's float type."""

    def test_call_is_dense_product(self, dtype):
        """The layer is Z @ B; effects `(L, p)` are effects `(L, 1, p)`."""
        layer = DesignMatrixLayer(dtype=dtype)
        tolerance = {"float32": 1e-5, "float64": 1e-12}[dtype]
        table, basis = EFFECTS.astype(dtype), BASIS.astype(dtype)
        expected = dense_design(CODES, BASIS, LEVELS) @ EFFECTS.reshape(-1, FEATURES)
        np.testing.assert_allclose(layer([table, CODES, basis]), expected, atol=tolerance)
        expected = dense_design(CODES, None, LEVELS) @ EFFECTS[:, 0]
        for effects in (table[:, 0], table[:, :1]):
            np.testing.assert_allclose(layer([effects, CODES]), expected, atol=tolerance)

    def test_transpose_product_and_gram(self, dtype):
        """The methods are Z' @ R and the diagonal blocks of Z' @ Z."""
        layer = DesignMatrixLayer(LEVELS, dtype=dtype)
        tolerance = {"float32": 1e-4, "float64": 1e-12}[dtype]
        for basis in (None, BASIS.astype(dtype)):
            size = 1 if basis is None else SIZE
            dense = dense_design(CODES, basis, LEVELS)
            scores = layer.transpose_product(VALUES.astype(dtype), CODES, basis)
            assert scores.dtype == dtype
            np.testing.assert_allclose(
                scores, (dense.T @ VALUES).reshape(LEVELS, size, FEATURES), atol=tolerance
            )
            blocks = (dense.T @ dense).reshape(LEVELS, size, LEVELS, size)
            expected = blocks[np.arange(LEVELS), :, np.arange(LEVELS)]
            np.testing.assert_allclose(layer.gram(CODES, basis), expected, atol=tolerance)


def test_sums_are_not_in_half_precision():
    """Under a half-precision policy 4,000 ones add up to 4,000, which bfloat16 could not count."""
    layer = DesignMatrixLayer(1, dtype="mixed_bfloat16")
    codes = np.zeros(4000, "int32")
    assert float(layer.gram(codes)[0, 0, 0]) == 4000.0
    assert float(layer.transpose_product(np.ones((4000, 1)), codes)[0, 0, 0]) == 4000.0


@pytest.mark.parametrize("jit_compile", [False, True])
def test_own_weight_learns_the_level_regressions(jit_compile):
    """A weight read through the layer is trained to every level's least-squares fit."""
    codes = np.repeat(np.arange(LEVELS, dtype="int32"), ROWS // LEVELS)
    targets = dense_design(codes, BASIS, LEVELS) @ EFFECTS.reshape(-1, FEATURES)
    model = OwnTable()
    optimizer = keras.optimizers.SGD(0.3 * FEATURES * LEVELS)
    model.compile(optimizer, "mse", jit_compile=jit_compile)
    data = [np.tile(codes, 200), np.tile(BASIS, (200, 1))]
    model.fit(data, np.tile(targets, (200, 1)), batch_size=ROWS, shuffle=False, verbose=0)
    np.testing.assert_allclose(model.table, EFFECTS, atol=1e-3)


class TestErrors:
    def test_levels_are_needed_for_sums(self):
        """Sums over levels without their number raise an error."""
        with pytest.raises(ValueError, match=r"need the number of levels.*num_levels=None"):
            DesignMatrixLayer().gram(CODES)

    @pytest.mark.parametrize("num_levels", [0, -1, 2.5, True])
    def test_invalid_number_of_levels(self, num_levels):
        """A number of levels that is no positive int raises an error."""
        with pytest.raises(ValueError, match=r"`num_levels`, expected an integer.*Received"):
            DesignMatrixLayer(num_levels)

    @pytest.mark.parametrize(
        "inputs",
        [
            [EFFECTS[:, 0]],
            [EFFECTS[:, 0], CODES[:, None]],
            [EFFECTS[0, 0], CODES],
            [EFFECTS, CODES, BASIS[:, :, None]],
        ],
    )
    def test_wrong_inputs(self, inputs):
        """Inputs of another number or rank raise an error."""
        with pytest.raises(ValueError, match=r"must be called on \[effects, codes\].*Received: "):
            DesignMatrixLayer()(inputs)

    @pytest.mark.parametrize("inputs", [[EFFECTS, CODES], [EFFECTS[:, :1], CODES, BASIS]])
    def test_effects_that_do_not_fit_the_basis(self, inputs):
        """Effects of another basis size raise an error, for arrays and for symbols."""
        with pytest.raises(ValueError, match=r"basis size, features.*Received: effects=\(5, "):
            DesignMatrixLayer()(inputs)
        symbolic = [keras.KerasTensor(x.shape, x.dtype.name) for x in inputs]
        with pytest.raises(ValueError, match="basis size, features"):
            DesignMatrixLayer()(symbolic)

    def test_effects_of_another_number_of_levels(self):
        """Effects of another number of levels than the layer's raise an error."""
        with pytest.raises(ValueError, match=r"shape \(9, features\).*effects=\(5, 3\)"):
            DesignMatrixLayer(9)([EFFECTS[:, 0], CODES])

    def test_codes_must_be_integers(self):
        """Codes that are floats raise an error."""
        with pytest.raises(ValueError, match=r"must be integers.*dtype='float32'"):
            DesignMatrixLayer()([EFFECTS[:, 0], tf.cast(CODES, tf.float32)])
