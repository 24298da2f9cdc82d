"""RandomEffectsAggregator: its contract, level means, and the posterior against dense BLUP."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from layer_contract import check
from reference import blup, dense_design, segment_mean

from keras_lmmvae.layers import DesignMatrixLayer, RandomEffectsAggregator, compact_codes

LEVELS, ROWS, FEATURES, SIZE = 6, 40, 3, 2
RNG = np.random.default_rng(0)
CODES = RNG.integers(-1, LEVELS - 1, ROWS).astype("int32")  # the last level has no rows
BASIS = np.stack([np.ones(ROWS), RNG.uniform(-1, 1, ROWS)], axis=1).astype("float32")
VALUES = RNG.normal(size=(ROWS, FEATURES)).astype("float32")
WIDE_VALUES = RNG.normal(size=(ROWS, SIZE, FEATURES)).astype("float32")
NOISE, EFFECT = [0.5, 1.0, 2.0], [3.0, 0.2, 1.0]
POSTERIOR = {"method": "posterior", "noise_variance": NOISE, "effect_variance": EFFECT}


def make_model(layer, with_basis):
    """A functional model: encoded rows, their aggregate by `layer`, read back by every row."""
    features, codes = keras.Input((FEATURES,)), keras.Input((), dtype="int32")
    rows = [codes, keras.Input((SIZE,))] if with_basis else [codes]
    values = keras.layers.Dense(FEATURES, use_bias=False)(features)
    outputs = DesignMatrixLayer()([layer([values, *rows]), *rows])
    return keras.Model([features, *rows], outputs)


@pytest.mark.parametrize("with_basis", [False, True])
@pytest.mark.parametrize("num_levels", [LEVELS, None])
@pytest.mark.parametrize("options", [{}, POSTERIOR], ids=["mean", "posterior"])
def test_layer_contract(tmp_path, options, num_levels, with_basis):
    """The layer keeps the contract of all layers in every mode."""
    rows = [CODES, BASIS] if with_basis else [CODES]
    check(
        RandomEffectsAggregator,
        {"num_levels": num_levels, **options},
        [VALUES, *rows],
        lambda layer: make_model(layer, with_basis),
        [VALUES, *rows],
        tmp_path,
    )


class TestMean:
    def test_is_level_mean(self):
        """The table is inv(Z'Z) Z' R without a basis, and 0 for the level without rows."""
        table = RandomEffectsAggregator(LEVELS)([VALUES, CODES])
        np.testing.assert_allclose(table, segment_mean(VALUES, CODES, LEVELS), atol=1e-6)
        np.testing.assert_array_equal(table[-1], 0.0)

    def test_codes_by_basis_function_are_averaged_as_they_are(self):
        """Values `(b, m, p)` give level means of each of their m parts, basis or none."""
        expected = segment_mean(WIDE_VALUES, CODES, LEVELS)
        layer = RandomEffectsAggregator(LEVELS)
        for inputs in ([WIDE_VALUES, CODES], [WIDE_VALUES, CODES, BASIS]):
            np.testing.assert_allclose(layer(inputs), expected, atol=1e-6)

    def test_basis_spreads_the_values(self):
        """Values `(b, p)` with a basis give Z' R over the rows of the level."""
        table = RandomEffectsAggregator(LEVELS)([VALUES, CODES, BASIS])
        spread = BASIS[:, :, None] * VALUES[:, None]
        np.testing.assert_allclose(table, segment_mean(spread, CODES, LEVELS), atol=1e-6)
        sums = dense_design(CODES, BASIS, LEVELS).T @ VALUES
        counts = np.maximum(np.bincount(CODES[CODES >= 0], minlength=LEVELS), 1)
        expected = sums.reshape(LEVELS, SIZE, FEATURES) / counts[:, None, None]
        np.testing.assert_allclose(table, expected, atol=1e-6)

    def test_constant_basis_changes_nothing(self):
        """One basis function of ones is no basis."""
        layer = RandomEffectsAggregator(LEVELS)
        with_basis = layer([VALUES, CODES, np.ones((ROWS, 1), "float32")])
        np.testing.assert_array_equal(with_basis[:, 0], layer([VALUES, CODES]))


@pytest.mark.parametrize("basis", [None, BASIS[:, :1] * 2, BASIS], ids=["none", "one", "slopes"])
@pytest.mark.parametrize("is_shared", [False, True])
class TestPosterior:
    def layer(self, is_shared, **kwargs):
        options = {"noise_variance": 0.7, "effect_variance": 2.0} if is_shared else POSTERIOR
        return RandomEffectsAggregator(LEVELS, **{"method": "posterior", **options}, **kwargs)

    def expected(self, basis, is_shared):
        size = 1 if basis is None else basis.shape[1]
        noise = np.full(FEATURES, 0.7) if is_shared else np.array(NOISE)
        effect = np.full(FEATURES, 2.0) if is_shared else np.array(EFFECT)
        dense = dense_design(CODES, basis, LEVELS)
        mean, covariance = blup(VALUES, dense, noise, effect, np.eye(LEVELS * size))
        blocks = covariance.reshape(FEATURES, LEVELS, size, LEVELS, size)
        blocks = np.stack([blocks[:, level, :, level] for level in range(LEVELS)])
        return mean.reshape(LEVELS, size, FEATURES), blocks

    def test_mean_and_covariance_are_dense_blup(self, basis, is_shared):
        """Mean, covariance and its diagonal are those of the dense linear mixed model."""
        mean, covariance = self.expected(basis, is_shared)
        actual = self.layer(is_shared).posterior(VALUES, CODES, basis)
        np.testing.assert_allclose(actual.mean, mean, rtol=1e-4, atol=1e-5)
        assert actual.covariance.shape[1] == (1 if is_shared else FEATURES)
        shown = np.broadcast_to(actual.covariance, covariance.shape)
        np.testing.assert_allclose(shown, covariance, rtol=1e-4, atol=1e-5)
        diagonal = np.einsum("lfii->lif", covariance)
        np.testing.assert_allclose(actual.variance, diagonal, rtol=1e-4, atol=1e-5)

    def test_call_is_the_mean(self, basis, is_shared):
        """The layer's output is the posterior mean, `(L, p)` without a basis."""
        mean, _ = self.expected(basis, is_shared)
        inputs = [VALUES, CODES] if basis is None else [VALUES, CODES, basis]
        expected = mean[:, 0] if basis is None else mean
        np.testing.assert_allclose(self.layer(is_shared)(inputs), expected, rtol=1e-4, atol=1e-5)

    def test_float64_policy_is_exact(self, basis, is_shared):
        """Under a float64 policy only float64 rounding is left."""
        mean, _ = self.expected(basis, is_shared)
        double = None if basis is None else basis.astype("float64")
        layer = self.layer(is_shared, dtype="float64")
        actual = layer.posterior(VALUES.astype("float64"), CODES, double)
        np.testing.assert_allclose(actual.mean, mean, rtol=1e-9, atol=1e-12)

    def test_level_without_rows_has_the_prior(self, basis, is_shared):
        """A level without rows has the mean 0 and the effect variance."""
        actual = self.layer(is_shared).posterior(VALUES, CODES, basis)
        np.testing.assert_array_equal(actual.mean[-1], 0.0)
        effect = np.broadcast_to(2.0 if is_shared else EFFECT, actual.variance[-1].shape)
        np.testing.assert_allclose(actual.variance[-1], effect, rtol=1e-6)

    def test_compiled_is_eager(self, basis, is_shared):
        """XLA gives the same posterior."""
        layer = self.layer(is_shared)
        expected = layer.posterior(VALUES, CODES, basis)
        compiled = tf.function(lambda v: layer.posterior(v, CODES, basis), jit_compile=True)
        for actual, want in zip(compiled(VALUES), expected, strict=True):
            np.testing.assert_allclose(actual, want, rtol=1e-4, atol=1e-6)


def test_posterior_limits():
    """Without noise the BLUP is the level mean; with a tiny effect variance it is 0."""
    means = RandomEffectsAggregator(LEVELS)([VALUES, CODES])
    exact = RandomEffectsAggregator(LEVELS, "posterior", noise_variance=1e-6)([VALUES, CODES])
    np.testing.assert_allclose(exact, means, atol=1e-5)
    none = RandomEffectsAggregator(LEVELS, "posterior", effect_variance=1e-6)([VALUES, CODES])
    np.testing.assert_allclose(none, 0.0, atol=1e-4)


def test_gradient_with_respect_to_the_basis_is_finite():
    """A learned basis can be trained through the posterior, empty levels included."""
    layer = RandomEffectsAggregator(LEVELS, "posterior")
    basis = tf.Variable(BASIS)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(layer([VALUES, CODES, basis])))
    gradient = tf.convert_to_tensor(tape.gradient(loss, basis))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


@pytest.mark.parametrize("mode", ["eager", "graph", "jit"])
@pytest.mark.parametrize("method", ["mean", "posterior"])
def test_mini_batch_table_equals_full_table(method, mode):
    """With compact codes, a table of b slots gives the rows what the table of all levels does."""
    many = np.where(CODES >= 0, CODES * 100_000, CODES).astype("int32")

    def read(values, codes):
        slots = compact_codes(codes)
        table = RandomEffectsAggregator(method=method)([values, slots])
        return DesignMatrixLayer()([table, slots])

    if mode != "eager":
        specs = [tf.TensorSpec([None, FEATURES], tf.float32), tf.TensorSpec([None], tf.int32)]
        read = tf.function(read, specs, autograph=False, jit_compile=mode == "jit")
    full = RandomEffectsAggregator(LEVELS, method)([VALUES, CODES])
    expected = DesignMatrixLayer()([full, CODES])
    np.testing.assert_allclose(read(VALUES, many), expected, atol=1e-6)


def test_compact_codes_inside_a_saved_functional_model(tmp_path):
    """`compact_codes` works as a Lambda of a functional model, and is found again on loading."""
    features, codes = keras.Input((FEATURES,)), keras.Input((), dtype="int32")
    slots = keras.layers.Lambda(compact_codes)(codes)
    outputs = DesignMatrixLayer()([RandomEffectsAggregator()([features, slots]), slots])
    model = keras.Model([features, codes], outputs)
    expected = segment_mean(VALUES, CODES, LEVELS)[CODES] * (CODES >= 0)[:, None]
    np.testing.assert_allclose(model([VALUES, CODES]), expected, atol=1e-6)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again([VALUES, CODES]), expected, atol=1e-6)


class TestErrors:
    def test_unknown_method(self):
        """An unknown method raises an error that lists the known ones."""
        with pytest.raises(ValueError, match=r"\['mean', 'posterior'\].*method='median'"):
            RandomEffectsAggregator(method="median")

    @pytest.mark.parametrize("name", ["noise_variance", "effect_variance"])
    @pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), "1", None, [1.0, -1.0], []])
    def test_invalid_variances(self, name, value):
        """A variance that is not above 0 raises an error."""
        with pytest.raises(ValueError, match=f"`{name}`.*above 0.*Received: {name}="):
            RandomEffectsAggregator(**{name: value})

    @pytest.mark.parametrize("num_levels", [0, 1.5])
    def test_invalid_number_of_levels(self, num_levels):
        """A number of levels that is no positive int raises an error."""
        with pytest.raises(ValueError, match=r"`num_levels`, expected an integer.*Received"):
            RandomEffectsAggregator(num_levels)

    def test_variances_of_another_number_of_features(self):
        """Variances of another number of features raise an error."""
        layer = RandomEffectsAggregator(LEVELS, "posterior", noise_variance=[1.0, 2.0])
        with pytest.raises(ValueError, match=r"each of the 3 features.*\[1.0, 2.0\]"):
            layer([VALUES, CODES])

    def test_values_that_do_not_fit_the_basis(self):
        """Values of another basis size raise an error."""
        with pytest.raises(ValueError, match=r"basis size, features.*basis=\(40, 1\)"):
            RandomEffectsAggregator(LEVELS)([WIDE_VALUES, CODES, BASIS[:, :1]])

    def test_posterior_takes_plain_values(self):
        """The posterior of values by basis function raises an error."""
        with pytest.raises(ValueError, match=r"values has 2 axes"):
            RandomEffectsAggregator(LEVELS, "posterior")([WIDE_VALUES, CODES])
