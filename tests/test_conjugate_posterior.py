"""ConjugatePosterior against dense best linear unbiased prediction, fold by fold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import tensorflow as tf
from reference import blup, dense_design, kernel_matrix, normal_kl

from keras_lmmvae import design, kernels
from keras_lmmvae.effects import RandomIntercept, RandomSlopes
from keras_lmmvae.layers import ConjugatePosterior
from keras_lmmvae.layers.fold_moments import (
    agreed_coefficient_covariance,
    fold_moments,
    sample_prior,
)

FEATURES = 3
NOISE = np.array([0.5, 1.0, 2.0], np.float32)
EFFECT = np.array([2.0, 0.3, 1.0], np.float32)
PSI = np.array([[1.5, 0.4, -0.2], [0.4, 1.0, 0.1], [-0.2, 0.1, 0.5]], np.float32)
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


@dataclass
class Case:
    """Rows of one term and the posterior that knows their design.

    Attributes:
        posterior: Its effects are not fitted yet.
        codes: Int array `(n,)`, missing ones included.
        fold: Int array `(n,)`.
        basis: Float array `(n, m)` or `None`.
        values: Float array `(n, p)`.
        weights: Float array `(n,)`.
    """

    posterior: ConjugatePosterior
    codes: np.ndarray
    fold: np.ndarray
    basis: np.ndarray | None
    values: np.ndarray
    weights: np.ndarray

    @property
    def own_codes(self) -> np.ndarray:
        shifted = self.codes + self.fold * self.posterior.num_levels
        return np.where(self.codes >= 0, shifted, self.codes)

    def exact(self, folds: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Dense BLUP: tables `(levels, m, p)` and covariances `(levels, p, m, m)`."""
        levels = self.posterior.num_levels * (2 if folds else 1)
        size = self.posterior.basis_size
        codes = self.own_codes if folds else self.codes
        prior = np.kron(np.eye(levels), self.posterior.coefficient_covariance.numpy())
        dense = dense_design(codes, self.basis, levels)
        mean, covariance = blup(self.values, dense, NOISE, EFFECT, prior, self.weights)
        blocks = covariance.reshape(FEATURES, levels, size, levels, size)
        blocks = np.stack([blocks[:, level, :, level] for level in range(levels)])
        return mean.reshape(levels, size, FEATURES), blocks

    def step(self, rows: np.ndarray | slice = slice(None)) -> None:
        """One step on some rows, with their residuals from the own fold's table."""
        basis = None if self.basis is None else tf.constant(self.basis[rows])
        codes = tf.constant(self.own_codes[rows])
        table = self.posterior.fold_effects.value
        residual = self.values[rows] - design.product(table, codes, basis)
        weights = tf.constant(self.weights[rows])
        self.posterior.step(residual * weights[:, None], codes, basis, tf.constant(NOISE), weights)

    def solve(self) -> None:
        """Sets the fold tables to the exact solution."""
        self.posterior.fold_effects.assign(self.exact()[0])

    @property
    def table(self) -> np.ndarray:
        return self.posterior.fold_effects.numpy()


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
    posterior = ConjugatePosterior(levels, size or 1, FEATURES, is_learned)
    posterior.build()
    posterior.effect_variance.assign(EFFECT)
    if is_learned:
        posterior.coefficient_covariance.assign(PSI)
    case = Case(posterior, codes, fold, basis, values, weights)
    own = tf.constant(case.own_codes)
    tensor = None if basis is None else tf.constant(basis)
    posterior.set_design(
        design.gram(own, tensor, 2 * levels, weights), design.count(own, 2 * levels, weights)
    )
    return case


@pytest.fixture(params=SHAPES)
def case(request) -> Case:
    return make_case(request.param)


class TestStep:
    @pytest.mark.parametrize("mode", ["eager", "graph", "jit"])
    def test_full_batch_is_exact(self, case, mode):
        """One step on all rows is the BLUP of every fold, wherever its levels start."""
        has_rows = case.posterior.fold_count.numpy()[:, None, None] > 0
        start = has_rows * np.random.default_rng(1).normal(size=case.table.shape)
        case.posterior.fold_effects.assign(start)
        step = case.step
        if mode != "eager":
            step = tf.function(lambda: case.step(), autograph=False, jit_compile=mode == "jit")
        step()
        np.testing.assert_allclose(case.table, case.exact()[0], **CLOSE)

    def test_weighted_full_batch_is_exact(self):
        """With row weights w: the BLUP at noise variance / w; rows of weight 0 are left out."""
        for name in SHAPES:
            case = make_case(name, weighted=True)
            case.step()
            np.testing.assert_allclose(case.table, case.exact()[0], **CLOSE, err_msg=name)

    def test_batches_of_whole_levels_are_exact(self):
        """One epoch of batches that hold all rows of their levels is the BLUP."""
        for name in ("intercept", "learned slopes"):
            case = make_case(name)
            for level in range(-2, case.posterior.num_levels):
                case.step(np.flatnonzero(case.codes == level))
            np.testing.assert_allclose(case.table, case.exact()[0], **CLOSE, err_msg=name)

    def test_touches_only_levels_of_the_batch(self):
        """Tables of the other levels and folds do not change."""
        case = make_case("learned slopes")
        case.posterior.fold_effects.assign(np.ones(case.table.shape))
        rows = np.flatnonzero((case.codes == 2) & (case.fold == 1))
        case.step(rows)
        touched = case.posterior.num_levels + 2
        assert np.abs(case.table[touched] - 1).max() > 0.01
        np.testing.assert_array_equal(np.delete(case.table, touched, axis=0), 1.0)

    def test_mini_batches_are_unbiased_at_the_solution(self, case):
        """From the exact solution, the changes of the batches of an epoch add up to 0."""
        case.solve()
        exact, total, largest = case.table, 0.0, 0.0
        for rows in np.array_split(np.random.default_rng(2).permutation(len(case.codes)), 7):
            case.posterior.fold_effects.assign(exact)
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
    def test_codes_of_the_folds(self, case):
        """The tables of the folds lie one after the other; a row's own one is never the other."""
        own = case.posterior.own_codes(case.codes, case.fold)
        np.testing.assert_array_equal(own, case.own_codes)
        other = case.posterior.other_codes(case.codes, case.fold)
        expected = np.where(case.codes >= 0, case.posterior.num_levels, 0)
        np.testing.assert_array_equal(np.abs(own - other), expected)

    def test_rows_read_the_other_fold(self, case):
        """No row's own values reach the effects it reads; all rows of the other fold's do."""
        case.solve()
        before = design.product(
            case.posterior.fold_effects.value,
            case.posterior.other_codes(case.codes, case.fold),
            case.basis,
        )
        case.values = np.where(case.fold[:, None] == 0, case.values + 5, case.values)
        case.solve()
        after = design.product(
            case.posterior.fold_effects.value,
            case.posterior.other_codes(case.codes, case.fold),
            case.basis,
        )
        change = np.abs(after - before).max(axis=1)
        np.testing.assert_allclose(change[case.fold == 0], 0.0, atol=1e-6)
        assert change[(case.fold == 1) & (case.codes >= 0)].min() > 0
        np.testing.assert_array_equal(change[case.codes < 0], 0.0)

    @pytest.mark.parametrize("folds", [True, False])
    def test_contribution_variance(self, case, folds):
        """A row's posterior variance is phi' cov phi, and 0 without a level."""
        _, covariance = case.exact(folds)
        codes = case.own_codes if folds else case.codes
        ones = np.ones((len(codes), 1))
        phi = ones if case.basis is None else case.basis
        expected = np.einsum("bi,bfij,bj->bf", phi, covariance[np.maximum(codes, 0)], phi)
        expected[codes < 0] = 0.0
        actual = case.posterior.contribution_variance(codes, case.basis, NOISE, folds)
        np.testing.assert_allclose(actual, expected, **CLOSE)

    def test_level_without_rows_has_the_prior(self):
        """An empty level: effects 0, variance phi' Psi phi times the effect variance."""
        for name in ("intercept", "one basis function", "learned slopes"):
            case = make_case(name)
            case.step()
            case.posterior.pool(NOISE)
            empty = case.posterior.num_levels - 1
            np.testing.assert_array_equal(case.posterior.effects[empty], 0.0)
            codes = tf.fill([len(case.codes)], empty)
            actual = case.posterior.contribution_variance(codes, case.basis, NOISE, folds=False)
            prior = case.posterior.prior_contribution_variance(case.basis, len(case.codes))
            np.testing.assert_allclose(actual, prior, rtol=1e-4, err_msg=name)
            phi = np.ones((1, 1)) if case.basis is None else case.basis
            psi = case.posterior.coefficient_covariance.numpy()
            expected = np.einsum("bi,ij,bj->b", phi, psi, phi)[:, None] * EFFECT
            np.testing.assert_allclose(prior, np.broadcast_to(expected, prior.shape), rtol=1e-4)

    def test_marginal_variances(self, case):
        """Variances of combinations of every level's effects are c' cov c."""
        _, covariance = case.exact(folds=False)
        rows = np.random.default_rng(4).normal(size=(4, case.posterior.basis_size))
        rows = rows.astype(np.float32)
        expected = np.einsum("ci,lfij,cj->lcf", rows, covariance, rows)
        actual = case.posterior.marginal_variances(tf.constant(rows), NOISE)
        np.testing.assert_allclose(actual, expected, **CLOSE)

    @pytest.mark.parametrize("is_fitted", [False, True])
    def test_kl_shares_add_up_to_the_kl(self, case, is_fitted):
        """Summed over the rows: KL(q || p) once per level and fold, in closed form.

        An unfitted table has the posterior's covariance and mean 0.
        """
        mean, covariance = case.exact()
        if is_fitted:
            case.solve()
        else:
            mean = np.zeros_like(mean)
        psi = case.posterior.coefficient_covariance.numpy().astype(np.float64)
        expected = sum(
            normal_kl(mean[level, :, f], covariance[level, f], EFFECT[f] * psi)
            for level in range(len(mean))
            for f in range(FEATURES)
        )
        shares = case.posterior.kl_share(tf.constant(case.own_codes), NOISE)
        np.testing.assert_array_equal(shares[case.codes < 0], 0.0)
        np.testing.assert_allclose(np.sum(shares), expected, rtol=1e-4)

    def test_kl_is_zero_at_the_prior(self):
        """KL(p || p) = 0: without any row the posterior is the prior."""
        case = make_case("learned slopes")
        posterior = case.posterior
        posterior.set_design(tf.zeros_like(posterior.fold_gram), tf.ones_like(posterior.fold_count))
        share = posterior.kl_share(tf.range(2 * posterior.num_levels), NOISE)
        np.testing.assert_allclose(share, 0.0, atol=1e-5)


class TestPooling:
    def test_pool_is_blup_of_all_rows(self, case):
        """The folds' tables together hold what the BLUP of all rows needs."""
        case.solve()
        case.posterior.pool(NOISE)
        np.testing.assert_allclose(case.posterior.effects, case.exact(folds=False)[0], **CLOSE)

    def test_apply_inverse_undoes_precision_product(self, case):
        """inv(precision) @ precision @ B = B."""
        table = np.random.default_rng(5).normal(size=case.table.shape).astype(np.float32)
        scores = case.posterior.precision_product(NOISE, tf.constant(table))
        actual = case.posterior.apply_inverse(scores, NOISE)
        np.testing.assert_allclose(actual, table, rtol=1e-3, atol=1e-3)

    def test_grown_keeps_levels_and_adds_priors(self):
        """More levels: the old ones keep their effects in both folds, new ones are empty."""
        case = make_case("learned slopes")
        case.solve()
        case.posterior.pool(NOISE)
        levels = case.posterior.num_levels
        larger = case.posterior.grown(levels + 3)
        np.testing.assert_array_equal(larger.effects[:levels], case.posterior.effects)
        tables = larger.fold_effects.numpy().reshape(2, levels + 3, 3, FEATURES)
        np.testing.assert_array_equal(tables[:, :levels].reshape(case.table.shape), case.table)
        np.testing.assert_array_equal(tables[:, levels:], 0.0)
        np.testing.assert_array_equal(larger.effect_variance, EFFECT)
        np.testing.assert_array_equal(larger.coefficient_covariance, PSI)


def simulated_folds(
    levels: int, psi: np.ndarray, effect: np.ndarray, noise: np.ndarray, seed: int
) -> ConjugatePosterior:
    """A posterior whose fold tables are the BLUPs of simulated rows, at starting variances.

    Two to six rows per level and fold, each with its own basis vector.
    """
    rng = np.random.default_rng(seed)
    size, width = len(psi), len(effect)
    counts = rng.integers(2, 7, 2 * levels)
    codes = np.repeat(np.arange(2 * levels), counts).astype(np.int32)
    basis = rng.normal(size=(len(codes), size)).astype(np.float32)
    basis[:, 0] = 1.0
    root = np.linalg.cholesky(psi)
    effects = root @ rng.normal(size=(levels, size, width)) * np.sqrt(effect)
    signal = np.einsum("bm,bmf->bf", basis, effects[codes % levels])
    values = signal + rng.normal(size=signal.shape) * np.sqrt(noise)
    posterior = ConjugatePosterior(levels, size, width, learn_coefficient_covariance=size > 1)
    posterior.build()
    posterior.set_design(
        design.gram(codes, tf.constant(basis), 2 * levels), design.count(codes, 2 * levels)
    )
    scores = design.transpose_product(
        tf.constant(values, tf.float32), codes, tf.constant(basis), 2 * levels
    )
    posterior.fold_effects.assign(posterior.apply_inverse(scores / noise, noise))
    return posterior


def update_variances(posterior: ConjugatePosterior, noise: np.ndarray) -> None:
    """What a model of one term does between epochs: the prior that the folds agree on."""
    tables = tf.convert_to_tensor(posterior.fold_effects)
    product, factor = fold_moments(posterior, tables, noise)
    psi = (
        agreed_coefficient_covariance(posterior, noise)
        if posterior.learn_coefficient_covariance
        else None
    )
    posterior.set_prior(np.divide(product, factor), psi, noise)


class TestVariances:
    # Starting at 1 and the identity, a factor of 20 away.
    EFFECT = np.array([0.05, 0.5, 3.0, 20.0], np.float32)
    NOISE = np.array([0.5, 1.0, 2.0, 1.0], np.float32)

    @pytest.mark.parametrize("psi", [np.eye(1), PSI[:2, :2] * 2 / 2.5, PSI], ids=["1", "2", "3"])
    def test_recovers_variances(self, psi):
        """Repeated updates find the variances that the rows were simulated with.

        With 3,000 levels a variance of well-measured effects has a relative standard error of
        sqrt(2 / 3000) = 2.6 %; that of the faintest feature, with 4 noisy rows per level and
        fold, about 5 times that: bounds of 5 standard errors.
        """
        posterior = simulated_folds(3000, psi, self.EFFECT, self.NOISE, seed=0)
        for _ in range(25):
            update_variances(posterior, self.NOISE)
        error = posterior.effect_variance.numpy() / self.EFFECT - 1
        assert (np.abs(error) < [0.65, 0.25, 0.15, 0.13]).all(), error
        np.testing.assert_allclose(posterior.coefficient_covariance, psi, atol=0.13)

    def test_update_does_not_depend_on_where_it_starts(self):
        """The fixed point is one, whatever the variances were before."""
        found = []
        for start in (0.1, 10.0):
            posterior = simulated_folds(500, PSI, self.EFFECT, self.NOISE, seed=1)
            scores = posterior.precision_product(self.NOISE, posterior.fold_effects.value)
            posterior.effect_variance.assign(np.full(4, start))
            posterior.fold_effects.assign(posterior.apply_inverse(scores, self.NOISE))
            for _ in range(60):
                update_variances(posterior, self.NOISE)
            found.append(
                [*posterior.effect_variance.numpy(), *np.ravel(posterior.coefficient_covariance)]
            )
        np.testing.assert_allclose(found[0], found[1], rtol=0.02, atol=0.01)

    def test_first_update_is_close_at_once(self):
        """One update from a wrong start already finds most of the way to the truth."""
        posterior = simulated_folds(3000, PSI, self.EFFECT, self.NOISE, seed=0)
        update_variances(posterior, self.NOISE)
        ratio = posterior.effect_variance.numpy() / self.EFFECT
        assert (np.abs(np.log(ratio)) < np.log(2)).all(), ratio

    def test_keeps_the_tables_at_their_blup(self):
        """After an update the tables are the BLUPs of the same rows at the new variances."""
        case = make_case("learned slopes")
        case.solve()
        scores = case.posterior.precision_product(NOISE, case.posterior.fold_effects.value)
        update_variances(case.posterior, NOISE)
        again = case.posterior.precision_product(NOISE, case.posterior.fold_effects.value)
        np.testing.assert_allclose(again, scores, rtol=1e-2, atol=1e-2)

    def test_absent_effects_have_no_variance(self):
        """Without any effect the estimate is about 0: below 5 standard errors, 1 / sqrt(levels)."""
        posterior = simulated_folds(2000, np.eye(1), np.full(4, 1e-12), self.NOISE, seed=2)
        for _ in range(10):
            update_variances(posterior, self.NOISE)
        # The product of two means of about 4 rows has the standard deviation noise / 4.
        assert (posterior.effect_variance.numpy() < 5 * self.NOISE / 3 / np.sqrt(2000)).all()
        assert np.isfinite(posterior.fold_effects).all()

    def test_prior_draws_have_the_prior_covariance(self):
        """`sample_prior`: covariance effect_variance * Psi, within 5 / sqrt(levels)."""
        posterior = ConjugatePosterior(4000, 3, FEATURES, learn_coefficient_covariance=True)
        posterior.build()
        posterior.effect_variance.assign(EFFECT)
        posterior.coefficient_covariance.assign(PSI)
        draws = sample_prior(posterior, seed=0).numpy() / np.sqrt(EFFECT)
        for feature in range(FEATURES):
            covariance = draws[:, :, feature].T @ draws[:, :, feature] / 4000
            np.testing.assert_allclose(covariance, PSI, atol=5 / np.sqrt(4000) * PSI.max())


class TestEquivalence:
    def test_spatial_without_correlation_is_categorical(self):
        """A process whose kernel matrix is the identity: every place has its own effect."""
        categorical = make_case("intercept")
        places = np.arange(6, dtype=np.float64)[:, None]
        np.testing.assert_allclose(kernel_matrix("rbf", places, places, 0.05), np.eye(6), atol=1e-9)
        matrix = kernels.kernel_matrix("rbf", tf.constant(places), tf.constant(places), 0.05)
        phi = matrix.numpy() @ kernels.karhunen_loeve_projection("rbf", places, 0.05)
        basis = phi[np.maximum(categorical.codes, 0)].astype(np.float32)
        posterior = ConjugatePosterior(1, 6, FEATURES)
        posterior.build()
        posterior.effect_variance.assign(EFFECT)
        spatial = Case(
            posterior, np.minimum(categorical.codes, 0), categorical.fold, basis,
            categorical.values, categorical.weights,
        )  # fmt: skip
        own = tf.constant(spatial.own_codes)
        posterior.set_design(design.gram(own, tf.constant(basis), 2), design.count(own, 2))
        categorical.step()
        spatial.step()
        at_places = np.einsum("qm,tmf->tqf", phi, spatial.table)
        np.testing.assert_allclose(
            at_places.reshape(categorical.table.shape), categorical.table, **CLOSE
        )
        np.testing.assert_allclose(
            posterior.contribution_variance(own, tf.constant(basis), NOISE, folds=True),
            categorical.posterior.contribution_variance(
                tf.constant(categorical.own_codes), None, NOISE, folds=True
            ),
            **CLOSE,
        )
        np.testing.assert_allclose(
            np.sum(posterior.kl_share(own, NOISE)),
            np.sum(categorical.posterior.kl_share(tf.constant(categorical.own_codes), NOISE)),
            rtol=1e-4,
        )

    def test_slopes_of_degree_zero_are_intercepts(self):
        """RandomSlopes of degree 0 encodes rows, basis and prior as RandomIntercept does."""
        data = {"g": np.array(["a", "b", "a", "b", "c"]), "t": np.arange(5.0)}
        terms = [RandomIntercept("g"), RandomSlopes("g", time="t", degree=0)]
        encoded = []
        for term in terms:
            columns = term.prepare(data)
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
        case.posterior.fold_effects.assign(tf.zeros_like(expected))
        case.basis = np.ones((len(case.codes), 1), np.float32)
        case.step()
        np.testing.assert_allclose(case.table, expected, rtol=1e-6)

    def test_features_apart_are_features_together(self):
        """Every feature has its own variances and does not see the others."""
        case = make_case("learned slopes")
        case.step()
        expected = case.table
        case.values = case.values * [1, 0, 0]
        case.posterior.fold_effects.assign(tf.zeros_like(expected))
        case.step()
        np.testing.assert_allclose(case.table[..., 0], expected[..., 0], rtol=1e-6)
        np.testing.assert_array_equal(case.table[..., 1:], 0.0)


@pytest.mark.parametrize("name", SHAPES)
def test_config_round_trip(name):
    """The configuration makes a layer with weights of the same shapes."""
    posterior = make_case(name).posterior
    again = ConjugatePosterior.from_config(posterior.get_config())
    again.build()
    assert [w.shape for w in again.weights] == [w.shape for w in posterior.weights]
    assert not again.trainable_weights
