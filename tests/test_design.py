"""Products with Z against a dense Z, and the renumbering of a mini-batch's levels."""

import numpy as np
import pytest
import tensorflow as tf
from reference import dense_design, segment_mean

from keras_lmmvae import design

ROWS, FEATURES = 40, 3
CASES = {
    "intercept": (7, None),
    "one level": (1, 4),
    "two levels": (2, 3),
    "slopes": (7, 3),
    "one term": (7, 1),
    "one level, no basis": (1, None),
}


def draw(case: str) -> tuple[int, np.ndarray, np.ndarray | None, np.ndarray]:
    """Levels (one of them empty), codes with missing ones, basis and values of a case."""
    levels, size = CASES[case]
    rng = np.random.default_rng(0)
    codes = rng.integers(-2, max(levels - 1, 1), ROWS).astype(np.int32)
    basis = None if size is None else rng.normal(size=(ROWS, size)).astype(np.float32)
    return levels, codes, basis, rng.normal(size=(ROWS, FEATURES)).astype(np.float32)


@pytest.fixture(params=["eager", "graph", "jit"])
def compiled(request):
    """Runs a function eagerly, as a graph with unknown batch size, or by XLA."""

    def run(function, *inputs):
        if request.param == "eager":
            return function(*inputs).numpy()
        if request.param == "jit":
            return tf.function(function, jit_compile=True)(*inputs).numpy()
        signature = [tf.TensorSpec([None, *np.shape(x)[1:]], x.dtype) for x in inputs]
        return tf.function(function, input_signature=signature)(*inputs).numpy()

    return run


@pytest.mark.parametrize("case", CASES)
class TestAgainstDenseDesign:
    def test_product(self, case, compiled):
        """`product` is Z @ B; missing codes give 0."""
        levels, codes, basis, _ = draw(case)
        size = 1 if basis is None else basis.shape[1]
        effects = np.random.default_rng(1).normal(size=(levels, size, FEATURES))
        effects = tf.constant(effects, tf.float32)
        expected = dense_design(codes, basis, levels) @ effects.numpy().reshape(-1, FEATURES)
        rest = [] if basis is None else [basis]
        actual = compiled(lambda c, *b: design.product(effects, c, *b), codes, *rest)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)

    def test_transpose_product(self, case, compiled):
        """`transpose_product` is Z' @ R."""
        levels, codes, basis, values = draw(case)
        expected = dense_design(codes, basis, levels).T @ values
        rest = [] if basis is None else [basis]

        def transpose_product(v, c, b=None):
            return design.transpose_product(v, c, b, levels)

        actual = compiled(transpose_product, values, codes, *rest)
        np.testing.assert_allclose(
            actual, expected.reshape(levels, -1, FEATURES), rtol=1e-5, atol=1e-5
        )

    @pytest.mark.parametrize("is_weighted", [False, True])
    def test_gram(self, case, compiled, is_weighted):
        """`gram` holds the diagonal blocks of Z' W Z; the others are 0."""
        levels, codes, basis, _ = draw(case)
        size = 1 if basis is None else basis.shape[1]
        weights = np.random.default_rng(2).uniform(size=ROWS).astype(np.float32)
        if not is_weighted:
            weights = np.ones(ROWS, np.float32)
        dense = dense_design(codes, basis, levels)
        expected = (dense.T @ (weights[:, None] * dense)).reshape(levels, size, levels, size)
        rest = [] if basis is None else [basis]

        def gram(w, c, b=None):
            return design.gram(c, b, levels, w if is_weighted else None)

        actual = compiled(gram, weights, codes, *rest)
        for one in range(levels):
            for other in range(levels):
                block = actual[one] if one == other else np.zeros((size, size))
                np.testing.assert_allclose(expected[one, :, other], block, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
class TestFolds:
    """A table by fold is one table of each half of the rows, on an axis in front."""

    FOLD = np.random.default_rng(5).integers(0, 2, ROWS).astype(np.int32)

    @pytest.mark.parametrize("is_variable", [False, True])
    def test_product_reads_the_table_of_the_fold(self, case, compiled, is_variable):
        """Rows of fold k get Z @ B of its own table, which may be a variable."""
        levels, codes, basis, _ = draw(case)
        size = 1 if basis is None else basis.shape[1]
        effects = np.random.default_rng(1).normal(size=(2, levels, size, FEATURES))
        effects = (tf.Variable if is_variable else tf.constant)(effects, dtype=tf.float32)
        rest = [] if basis is None else [basis]
        actual = compiled(
            lambda c, f, *b: design.product(effects, c, *(b or (None,)), f), codes, self.FOLD, *rest
        )
        dense = dense_design(codes, basis, levels)
        for fold in range(2):
            expected = dense @ effects[fold].numpy().reshape(-1, FEATURES)
            rows = fold == self.FOLD
            np.testing.assert_allclose(actual[rows], expected[rows], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("is_variable", [False, True])
    def test_level_rows(self, case, compiled, is_variable):
        """A row gets its level's entry of its fold, of tensors and of variables alike."""
        levels, codes, _, _ = draw(case)
        table = np.random.default_rng(1).normal(size=(2, levels, 3, FEATURES))
        table = tf.Variable(table) if is_variable else tf.constant(table)
        actual = compiled(lambda c, f: design.level_rows(table, c, f), codes, self.FOLD)
        expected = table.numpy()[self.FOLD, np.maximum(codes, 0)]
        np.testing.assert_array_equal(actual, expected)
        alone = compiled(lambda c: design.level_rows(table, c, None), np.minimum(codes, 1))
        np.testing.assert_array_equal(alone, table.numpy()[np.clip(codes, 0, 1)])

    @pytest.mark.parametrize("is_weighted", [False, True])
    def test_sums_are_those_of_the_halves(self, case, compiled, is_weighted):
        """Z' R, Z' Z and counts by fold are those of the rows of each half alone."""
        levels, codes, basis, values = draw(case)
        weights = np.random.default_rng(2).uniform(size=ROWS).astype(np.float32)
        rest = [] if basis is None else [basis]

        def sums(w, v, c, b, f):
            given = w if is_weighted else None
            return [
                design.transpose_product(v, c, b, levels, f),
                design.gram(c, b, levels, given, f),
                design.count(c, levels, given, f),
            ]

        for number in range(3):
            actual = compiled(
                lambda w, v, c, f, *b, number=number: sums(w, v, c, b[0] if b else None, f)[number],
                weights, values, codes, self.FOLD, *rest,
            )  # fmt: skip
            for fold in range(2):
                rows = fold == self.FOLD
                half = None if basis is None else basis[rows]
                expected = sums(weights[rows], values[rows], codes[rows], half, None)[number]
                np.testing.assert_allclose(actual[fold], expected, rtol=1e-5, atol=1e-5)
            assert actual.shape[0] == 2


def test_count_is_column_sums_of_intercept_design(compiled):
    """`count` counts rows, or adds up their weights."""
    levels, codes, _, _ = draw("intercept")
    dense = dense_design(codes, None, levels)
    np.testing.assert_array_equal(compiled(lambda c: design.count(c, levels), codes), dense.sum(0))
    weights = np.arange(ROWS, dtype=np.float32)
    actual = compiled(lambda c, w: design.count(c, levels, w), codes, weights)
    np.testing.assert_allclose(actual, weights @ dense, rtol=1e-6)


@pytest.mark.parametrize("shape", [(FEATURES,), (2, FEATURES)])
def test_segment_mean_is_dense_mean(compiled, shape):
    """`segment_mean` is inv(Z'Z) Z' R, and 0 for levels without rows."""
    levels, codes, _, _ = draw("intercept")
    values = np.random.default_rng(3).normal(size=(ROWS, *shape)).astype(np.float32)
    actual = compiled(lambda v, c: design.segment_mean(v, c, levels), values, codes)
    np.testing.assert_allclose(actual, segment_mean(values, codes, levels), rtol=1e-5, atol=1e-6)


def test_transpose_product_is_the_adjoint_of_product():
    """<Z B, R> = <B, Z' R>, so one is the gradient of the other."""
    levels, codes, basis, values = draw("slopes")
    effects = tf.Variable(tf.random.stateless_normal((levels, 3, FEATURES), (0, 1)))
    with tf.GradientTape() as tape:
        inner = tf.reduce_sum(design.product(effects, codes, basis) * values)
    gradient = tf.convert_to_tensor(tape.gradient(inner, effects))
    expected = design.transpose_product(values, codes, basis, levels)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
class TestCompactCodes:
    def test_keeps_equality_and_order(self, compiled, dtype):
        """Numbers are below b, equal exactly where codes are, and ordered as they are."""
        codes = np.random.default_rng(4).choice([3, 900_000, 17, 5, 2_000_000_000], 20)
        slots = compiled(design.compact_codes, codes.astype(dtype))
        assert slots.min() >= 0
        assert slots.max() < len(codes)
        np.testing.assert_array_equal(
            np.sign(slots[:, None] - slots), np.sign(codes[:, None] - codes)
        )

    def test_keeps_negative_codes(self, compiled, dtype):
        """Negative codes stay as they are; the others stay apart from them."""
        codes = np.array([-1, 8, -2, 8, 0, -1], dtype)
        slots = compiled(design.compact_codes, codes)
        np.testing.assert_array_equal(slots[codes < 0], codes[codes < 0])
        assert slots[1] == slots[3] != slots[4]
        assert 0 <= slots[4] < len(codes)

    @pytest.mark.parametrize("size", [0, 1])
    def test_tiny_batches(self, dtype, size):
        """A batch of one row or none is no special case."""
        slots = design.compact_codes(np.full(size, 7, dtype))
        np.testing.assert_array_equal(slots, np.zeros(size))
