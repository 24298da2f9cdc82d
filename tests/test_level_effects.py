"""A term's effects against dense best linear unbiased prediction, fold by fold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import tensorflow as tf
from reference import blup, dense_design, kernel_matrix, normal_kl
from term_contract import normalised

from keras_lmmvae import design
from keras_lmmvae.effects import RandomIntercept, RandomSlopes
from keras_lmmvae.kernels import KernelBasis, Stationary
from keras_lmmvae.mixed_model.effects_table import EffectsTable
from keras_lmmvae.mixed_model.information import Information
from keras_lmmvae.mixed_model.level_effects import LevelEffects
from keras_lmmvae.mixed_model.prior import EFFECT_VARIANCE_FLOOR, LevelPrior
from keras_lmmvae.mixed_model.table_rows import TableRows

FEATURES = 3
NOISE = np.array([0.5, 1.0, 2.0], np.float32)
EFFECT = np.array([2.0, 0.3, 1.0], np.float32)
PSI = np.array([[1.5, 0.4, -0.2], [0.4, 1.0, 0.1], [-0.2, 0.1, 0.5]], np.float32)
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


@dataclass
class Case:
    """Rows of one term and the effects that know their design.

    Attributes:
        effects: Effects that are not fitted yet.
        codes: Int array `(n,)`, missing ones included.
        fold: Int array `(n,)`.
        basis: Float array `(n, m)` or `None`.
        values: Float array `(n, p)`.
        weights: Float array `(n,)`.
    """

    effects: LevelEffects
    codes: np.ndarray
    fold: np.ndarray
    basis: np.ndarray | None
    values: np.ndarray
    weights: np.ndarray

    def exact(self, by_fold: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Dense BLUP with the folds in front: `(2, L, m, p)`, and covariances `(2, L, p, m, m)`.

        The levels of the folds are levels of their own. Without `by_fold` there is no such axis.
        """
        folds = 2 if by_fold else 1
        levels, size = folds * self.effects.num_levels, self.effects.basis_size
        shifted = self.codes + self.fold * self.effects.num_levels
        codes = np.where(self.codes >= 0, shifted, self.codes) if by_fold else self.codes
        prior = np.kron(np.eye(levels), self.effects.coefficient_covariance.numpy())
        dense = dense_design(codes, self.basis, levels)
        mean, covariance = blup(self.values, dense, NOISE, EFFECT, prior, self.weights)
        blocks = covariance.reshape(FEATURES, levels, size, levels, size)
        blocks = np.stack([blocks[:, level, :, level] for level in range(levels)])
        shape = (2, -1) if by_fold else (-1,)
        return mean.reshape(*shape, size, FEATURES), blocks.reshape(*shape, *blocks.shape[1:])

    @property
    def information(self) -> Information:
        return Information.given_latent(self.effects.prior, tf.constant(NOISE))

    def rows(
        self, rows: np.ndarray | slice = slice(None), fold: np.ndarray | None = None
    ) -> TableRows:
        """Some rows in the tables of their own folds, or of given ones."""
        basis = None if self.basis is None else tf.constant(self.basis[rows])
        fold = self.fold[rows] if fold is None else fold
        codes, folds = tf.constant(self.codes[rows]), self.effects.folds
        return TableRows(folds, self.effects.prior, codes, basis, tf.constant(fold))

    def read(self, fold: np.ndarray) -> np.ndarray:
        """What rows read of the tables of these folds."""
        return self.rows(fold=fold).product().numpy()

    def step(self, rows: np.ndarray | slice = slice(None)) -> None:
        """One step on some rows, with their residuals from the own fold's table."""
        read, weights = self.rows(rows), tf.constant(self.weights[rows])
        residual = (self.values[rows] - read.product()) * weights[:, None]
        self.effects.folds.add(read.increment(residual, tf.constant(NOISE), weights))

    def solve(self) -> None:
        """Sets the tables of the folds to the exact solution."""
        self.effects.folds.effects.assign(self.exact()[0])

    @property
    def table(self) -> np.ndarray:
        return self.effects.folds.effects.numpy()


SHAPES = {
    "intercept": (6, None, False),
    "one basis function": (6, 1, False),
    "fixed slopes": (6, 3, False),
    "learned slopes": (6, 3, True),
    "one level": (1, 5, False),
    "one level, one function": (1, 1, False),
}


def make_case(name: str, rows: int = 60, weighted: bool = False) -> Case:
    """Random rows; where there are several levels, the last one has none."""
    levels, size, is_learned = SHAPES[name]
    rng = np.random.default_rng(0)
    codes = rng.integers(-2, max(levels - 1, 1), rows).astype(np.int32)
    fold = rng.integers(0, 2, rows).astype(np.int32)
    basis = None if size is None else rng.normal(size=(rows, size)).astype(np.float32)
    values = 2 * rng.normal(size=(rows, FEATURES)).astype(np.float32)
    weights = rng.choice([0.0, 0.5, 2.0], rows) if weighted else np.ones(rows)
    weights = weights.astype(np.float32)
    effects = LevelEffects(levels, size or 1, FEATURES, is_learned)
    effects.build()
    effects.effect_variance.assign(EFFECT)
    if is_learned:
        effects.coefficient_covariance.assign(PSI)
    tensor = None if basis is None else tf.constant(basis)
    effects.set_design(
        design.gram(codes, tensor, levels, weights, fold),
        design.count(codes, levels, weights, fold),
    )
    effects.set_information(np.diag(1.0 / NOISE))
    return Case(effects, codes, fold, basis, values, weights)


@pytest.fixture(params=SHAPES)
def case(request) -> Case:
    return make_case(request.param)


class TestStep:
    @pytest.mark.parametrize("mode", ["eager", "graph", "jit"])
    def test_full_batch_is_exact(self, case, mode):
        """One step on all rows is the BLUP of every fold, wherever its levels start."""
        has_rows = case.effects.folds.count.numpy()[..., None, None] > 0
        start = has_rows * np.random.default_rng(1).normal(size=case.table.shape)
        case.effects.folds.effects.assign(start)
        step = case.step
        if mode != "eager":
            step = tf.function(lambda: case.step(), autograph=False, jit_compile=mode == "jit")
        step()
        np.testing.assert_allclose(case.table, case.exact()[0], **CLOSE)

    def test_weighted_full_batch_is_exact(self):
        """Row weights w give the BLUP at noise variance / w; rows of weight 0 are left out."""
        for name in SHAPES:
            case = make_case(name, weighted=True)
            case.step()
            np.testing.assert_allclose(case.table, case.exact()[0], **CLOSE, err_msg=name)

    def test_batches_of_whole_levels_are_exact(self):
        """One epoch of batches that hold all rows of their levels is the BLUP."""
        for name in ("intercept", "learned slopes"):
            case = make_case(name)
            for level in range(-2, case.effects.num_levels):
                case.step(np.flatnonzero(case.codes == level))
            np.testing.assert_allclose(case.table, case.exact()[0], **CLOSE, err_msg=name)

    def test_touches_only_levels_of_the_batch(self):
        """Tables of the other levels and folds do not change."""
        case = make_case("learned slopes")
        case.effects.folds.effects.assign(np.ones(case.table.shape))
        rows = np.flatnonzero((case.codes == 2) & (case.fold == 1))
        case.step(rows)
        assert np.abs(case.table[1, 2] - 1).max() > 0.01
        np.testing.assert_array_equal(case.table[0], 1.0)
        np.testing.assert_array_equal(np.delete(case.table[1], 2, axis=0), 1.0)

    def test_increments_of_replicas_may_be_joined(self, case):
        """Increments of two parts of a batch, taken before any is added, are that of the batch."""
        folds = case.effects.folds
        start = np.random.default_rng(9).normal(size=case.table.shape)
        folds.effects.assign(start)
        case.step()
        together = case.table
        folds.effects.assign(start)
        increments = []
        for rows in (slice(0, None, 2), slice(1, None, 2)):
            read = case.rows(rows)
            residual = case.values[rows] - read.product()
            increments.append(read.increment(residual, tf.constant(NOISE)))
        for increment in increments:
            folds.add(increment)
        assert np.abs(together - start).max() > 0.1
        np.testing.assert_allclose(case.table, together, **CLOSE)

    def test_mini_batches_are_unbiased_at_the_solution(self, case):
        """From the exact solution, the changes of the batches of an epoch add up to 0."""
        case.solve()
        exact, total, largest = case.table, 0.0, 0.0
        for rows in np.array_split(np.random.default_rng(2).permutation(len(case.codes)), 7):
            case.effects.folds.effects.assign(exact)
            case.step(rows)
            total += case.table - exact
            largest = max(largest, np.abs(case.table - exact).max())
        assert largest > 0.01
        np.testing.assert_allclose(total, 0.0, atol=1e-3 * largest)

    def test_mini_batches_converge_to_the_solution(self, case):
        """Steps on independent random halves of the rows wander around the BLUP: their mean is it.

        The expected step is half the way to the solution, so 20 steps forget the start. The mean
        of 500 tables with a correlation time of about 4 steps is within 5 / sqrt(125) of a
        table's own spread.
        """
        rng = np.random.default_rng(3)
        exact, tables = case.exact()[0], []
        for number in range(520):
            case.step(np.flatnonzero(rng.uniform(size=len(case.codes)) < 0.5))
            if number >= 20:
                tables.append(case.table)
        spread = np.std(tables, axis=0)
        bound = 5 / np.sqrt(125) * spread + 1e-4
        assert (np.abs(np.mean(tables, axis=0) - exact) < bound).all()
        assert spread.mean() < np.abs(exact).mean()


class TestReading:
    def test_rows_read_the_table_of_a_fold(self, case):
        """A row reads Z @ B of the fold that it names, and 0 without a level."""
        case.effects.folds.effects.assign(np.random.default_rng(6).normal(size=case.table.shape))
        dense = dense_design(case.codes, case.basis, case.effects.num_levels)
        by_fold = np.stack([dense @ part.reshape(-1, FEATURES) for part in case.table])
        for fold in (case.fold, 1 - case.fold):
            expected = by_fold[fold, np.arange(len(fold))]
            np.testing.assert_allclose(case.read(fold), expected, rtol=1e-5, atol=1e-5)

    def test_rows_read_the_other_fold(self, case):
        """No row's own values reach the effects it reads; all rows of the other fold's do."""
        case.solve()
        before = case.read(1 - case.fold)
        case.values = np.where(case.fold[:, None] == 0, case.values + 5, case.values)
        case.solve()
        change = np.abs(case.read(1 - case.fold) - before).max(axis=1)
        np.testing.assert_allclose(change[case.fold == 0], 0.0, atol=1e-6)
        assert change[(case.fold == 1) & (case.codes >= 0)].min() > 0
        np.testing.assert_array_equal(change[case.codes < 0], 0.0)

    @pytest.mark.parametrize("by_fold", [True, False])
    def test_row_variance(self, case, by_fold):
        """A row's posterior variance is phi' cov phi, and 0 without a level."""
        _, covariance = case.exact(by_fold)
        codes = np.maximum(case.codes, 0)
        ones = np.ones((len(codes), 1))
        phi = ones if case.basis is None else case.basis
        own = covariance[case.fold, codes] if by_fold else covariance[codes]
        expected = np.einsum("bi,bfij,bj->bf", phi, own, phi)
        expected[case.codes < 0] = 0.0
        table = case.effects.folds if by_fold else case.effects.table
        fold = case.fold if by_fold else None
        actual = TableRows(table, case.effects.prior, case.codes, case.basis, fold).variance(
            case.information
        )
        np.testing.assert_allclose(actual, expected, **CLOSE)

    def test_level_without_rows_has_the_prior(self):
        """An empty level has effects 0 and the prior variance phi' Psi phi * effect variance."""
        for name in ("intercept", "one basis function", "learned slopes"):
            case = make_case(name)
            case.step()
            case.effects.pool()
            empty, table = case.effects.num_levels - 1, case.effects.table
            np.testing.assert_array_equal(table.effects[empty], 0.0)
            codes = tf.fill([len(case.codes)], empty)
            actual = TableRows(table, case.effects.prior, codes, case.basis).variance(
                case.information
            )
            prior = case.effects.prior.row_variance(case.basis, len(case.codes))
            np.testing.assert_allclose(actual, prior, rtol=1e-4, err_msg=name)
            phi = np.ones((1, 1)) if case.basis is None else case.basis
            psi = case.effects.coefficient_covariance.numpy()
            expected = np.einsum("bi,ij,bj->b", phi, psi, phi)[:, None] * EFFECT
            np.testing.assert_allclose(prior, np.broadcast_to(expected, prior.shape), rtol=1e-4)

    def test_level_variance(self, case):
        """Variances of combinations of every level's effects are c' cov c."""
        _, covariance = case.exact(by_fold=False)
        rows = np.random.default_rng(4).normal(size=(4, case.effects.basis_size))
        rows = rows.astype(np.float32)
        expected = np.einsum("ci,lfij,cj->lcf", rows, covariance, rows)
        table = case.effects.table
        actual = table.level_variance(tf.constant(rows), case.information)
        np.testing.assert_allclose(actual, expected, **CLOSE)

    @pytest.mark.parametrize("is_fitted", [False, True])
    def test_kl_shares_add_up_to_the_kl(self, case, is_fitted):
        """The rows' shares add up to KL(q || p), once per level and fold, in closed form.

        An unfitted table has the posterior's covariance and mean 0.
        """
        mean, covariance = case.exact()
        if is_fitted:
            case.solve()
        else:
            mean = np.zeros_like(mean)
        psi = case.effects.coefficient_covariance.numpy().astype(np.float64)
        expected = sum(
            normal_kl(mean[fold, level, :, f], covariance[fold, level, f], EFFECT[f] * psi)
            for fold in range(2)
            for level in range(case.effects.num_levels)
            for f in range(FEATURES)
        )
        shares = case.rows().kl_share(NOISE)
        np.testing.assert_array_equal(shares[case.codes < 0], 0.0)
        np.testing.assert_allclose(np.sum(shares), expected, rtol=1e-4)

    def test_kl_is_zero_at_the_prior(self):
        """The KL is 0 without any row, for the posterior is the prior."""
        case = make_case("learned slopes")
        folds, levels = case.effects.folds, case.effects.num_levels
        case.effects.set_design(tf.zeros_like(folds.gram), tf.ones_like(folds.count))
        for fold in range(2):
            rows = (tf.range(levels), None, tf.fill([levels], fold))
            share = TableRows(folds, case.effects.prior, *rows).kl_share(NOISE)
            np.testing.assert_allclose(share, 0.0, atol=1e-5)


class TestPooling:
    def test_pool_is_blup_of_all_rows(self, case):
        """The folds' tables together hold what the BLUP of all rows needs."""
        case.solve()
        case.effects.pool()
        exact = case.exact(by_fold=False)[0]
        np.testing.assert_allclose(case.effects.table.effects, exact, **CLOSE)

    def test_solve_undoes_precision_product(self, case):
        """The solution of `precision @ B` is B, in both folds and in the table of all rows."""
        for table in (case.effects.folds, case.effects.table):
            values = np.random.default_rng(5).normal(size=table.effects.shape).astype(np.float32)
            prior = case.effects.prior
            scores = table.precision_product(tf.constant(values), prior, case.information)
            actual = table.solve(scores, case.information)
            np.testing.assert_allclose(actual, values, rtol=1e-3, atol=1e-3)

    def test_design_of_all_rows_is_the_sum_of_the_folds(self, case):
        """Gram matrices and counts add up; rows seen before count in both folds and once in all."""
        folds, table = case.effects.folds, case.effects.table
        np.testing.assert_allclose(table.gram, np.sum(folds.gram, axis=0), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(table.count, np.sum(folds.count, axis=0), rtol=1e-6)
        gram, count = tf.identity(folds.gram), tf.identity(folds.count)
        earlier = 3.0 * np.eye(case.effects.basis_size, dtype=np.float32)
        earlier = np.broadcast_to(earlier, table.gram.shape)
        case.effects.set_design(gram, count, earlier_gram=earlier)
        np.testing.assert_allclose(folds.gram, gram + earlier, rtol=1e-6)
        np.testing.assert_allclose(table.gram, np.sum(gram, axis=0) + earlier, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(folds.count, count)

    def test_grown_keeps_levels_and_adds_priors(self):
        """A grown table keeps the old levels' effects in both folds; new levels have the prior."""
        case = make_case("learned slopes")
        case.solve()
        case.effects.pool()
        levels = case.effects.num_levels
        larger = case.effects.grown(levels + 3)
        assert larger.num_levels == levels + 3
        np.testing.assert_array_equal(larger.table.effects[:levels], case.effects.table.effects)
        np.testing.assert_array_equal(larger.table.effects[levels:], 0.0)
        tables = larger.folds.effects.numpy()
        assert tables.shape == (2, levels + 3, 3, FEATURES)
        np.testing.assert_array_equal(tables[:, :levels], case.table)
        np.testing.assert_array_equal(tables[:, levels:], 0.0)
        np.testing.assert_array_equal(larger.effect_variance, EFFECT)
        np.testing.assert_array_equal(larger.coefficient_covariance, PSI)
        every = tf.range(levels + 3)
        basis = tf.constant(np.random.default_rng(7).normal(size=(levels + 3, 3)), tf.float32)
        variance = TableRows(larger.table, larger.prior, every, basis).variance(case.information)
        old = TableRows(
            case.effects.table, case.effects.prior, every[:levels], basis[:levels]
        ).variance(case.information)
        np.testing.assert_allclose(variance[:levels], old, rtol=1e-6)
        prior = larger.prior.row_variance(basis[levels:], 3)
        np.testing.assert_allclose(variance[levels:], prior, rtol=1e-4)


class TestPrior:
    @pytest.fixture
    def prior(self) -> LevelPrior:
        prior = LevelPrior(3, FEATURES, learn_coefficient_covariance=True)
        prior.build()
        prior.assign(EFFECT, PSI)
        return prior

    def test_product_is_the_prior_precision(self, prior):
        """`product` multiplies by inv(effect_variance * Psi), feature by feature."""
        values = np.random.default_rng(8).normal(size=(2, 4, 3, FEATURES)).astype(np.float32)
        actual = prior.product(tf.constant(values))
        for f in range(FEATURES):
            expected = np.einsum("ij,klj->kli", np.linalg.inv(EFFECT[f] * PSI), values[..., f])
            np.testing.assert_allclose(actual[..., f], expected, rtol=1e-3, atol=1e-3)

    def test_inverse_block_is_the_inverse(self, prior):
        """`inverse_block` is inv(Psi), and the identity where Psi is not learned."""
        expected = np.linalg.inv(PSI.astype(np.float64))
        np.testing.assert_allclose(prior.inverse_block("float64"), expected, rtol=1e-4, atol=1e-5)
        fixed = LevelPrior(3, FEATURES)
        fixed.build()
        np.testing.assert_array_equal(fixed.inverse_block(), np.eye(3))

    def test_variances_have_a_floor(self, prior):
        """A variance of 0 is raised to the floor; Psi stays if none is given."""
        prior.assign(np.zeros(FEATURES))
        np.testing.assert_allclose(prior.effect_variance, EFFECT_VARIANCE_FLOOR, rtol=1e-6)
        np.testing.assert_array_equal(prior.coefficient_covariance, PSI)


class TestEquivalence:
    def test_spatial_without_correlation_is_categorical(self):
        """A process whose kernel matrix is the identity gives every place its own effect."""
        categorical = make_case("intercept")
        places = np.arange(6, dtype=np.float64)[:, None]
        np.testing.assert_allclose(kernel_matrix("rbf", places, places, 0.05), np.eye(6), atol=1e-9)
        features = KernelBasis.of(Stationary("rbf"), places, 0.05, "float64")
        phi = features.features(tf.constant(places)).numpy()
        basis = phi[np.maximum(categorical.codes, 0)].astype(np.float32)
        effects = LevelEffects(1, 6, FEATURES)
        effects.build()
        effects.effect_variance.assign(EFFECT)
        codes, fold = np.minimum(categorical.codes, 0), categorical.fold
        spatial = Case(effects, codes, fold, basis, categorical.values, categorical.weights)
        effects.set_design(
            design.gram(codes, tf.constant(basis), 1, fold=fold), design.count(codes, 1, fold=fold)
        )
        categorical.step()
        spatial.step()
        at_places = np.einsum("qm,kmf->kqf", phi, spatial.table[:, 0])
        np.testing.assert_allclose(at_places, categorical.table[:, :, 0], **CLOSE)
        np.testing.assert_allclose(
            spatial.rows().variance(spatial.information),
            categorical.rows().variance(categorical.information),
            **CLOSE,
        )
        np.testing.assert_allclose(
            np.sum(spatial.rows().kl_share(NOISE)),
            np.sum(categorical.rows().kl_share(NOISE)),
            rtol=1e-4,
        )

    def test_slopes_of_degree_zero_are_intercepts(self):
        """RandomSlopes of degree 0 encodes rows, basis and prior as RandomIntercept does."""
        data = {"g": np.array(["a", "b", "a", "b", "c"]), "t": np.arange(5.0)}
        terms = [RandomIntercept("g"), RandomSlopes("g", time="t", degree=0)]
        encoded = []
        for term in terms:
            columns = normalised(term, data)
            term.update_state(columns)
            term.finalize_state()
            encoded.append(term.encode(columns))
            assert term.basis(encoded[-1]) is None
            assert not term.learn_coefficient_covariance
            assert (term.num_levels, term.basis_size) == (3, 1)
        np.testing.assert_array_equal(encoded[0]["codes"], encoded[1]["codes"])

    def test_constant_basis_is_no_basis(self):
        """One basis function of ones gives the random intercept's table."""
        case = make_case("intercept")
        case.step()
        expected = case.table
        case.effects.folds.effects.assign(tf.zeros_like(expected))
        case.basis = np.ones((len(case.codes), 1), np.float32)
        case.step()
        np.testing.assert_allclose(case.table, expected, rtol=1e-6)

    def test_features_apart_are_features_together(self):
        """Every feature has its own variances and does not see the others."""
        case = make_case("learned slopes")
        case.step()
        expected = case.table
        case.values = case.values * [1, 0, 0]
        case.effects.folds.effects.assign(tf.zeros_like(expected))
        case.step()
        np.testing.assert_allclose(case.table[..., 0], expected[..., 0], rtol=1e-6)
        np.testing.assert_array_equal(case.table[..., 1:], 0.0)


@pytest.mark.parametrize("name", SHAPES)
def test_config_round_trip(name):
    """The configurations make layers with weights of the same shapes."""
    effects = make_case(name).effects
    for layer in (effects, effects.prior, effects.table, effects.folds):
        again = type(layer).from_config(layer.get_config())
        again.build()
        assert [w.shape for w in again.weights] == [w.shape for w in layer.weights]
        assert again.get_config() == layer.get_config()
        assert not again.trainable_weights


def test_table_without_design_has_means_only():
    """An amortized term's table keeps its effects and no Gram matrices."""
    table = EffectsTable(4, 2, FEATURES, has_design=False)
    table.build()
    assert [weight.shape for weight in table.weights] == [(4, 2, FEATURES)]
