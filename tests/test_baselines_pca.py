"""PCA and BLUP-PCA: scikit-learn's contract, estimates, and the gain by grouping."""

import tracemalloc

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError

from keras_lmmvae.baselines import BLUPPCA, GroupMeans, PCABaseline
from keras_lmmvae.baselines.group_means import variance_components
from keras_lmmvae.metrics import mse, oracle_mse
from keras_lmmvae.simulation import simulate_categorical, split, take
from keras_lmmvae.simulation.blup import level_design

GROUPS = ["group_0", "group_1"]
SIMULATION = simulate_categorical(
    n=3000, num_features=12, cardinalities=(40, 100), effect_variances=(3.0, 1.0), seed=1
)
TRAIN_ROWS, TEST_ROWS = split(SIMULATION.data, seed=1)
TRAIN, TEST = take(SIMULATION.data, TRAIN_ROWS), take(SIMULATION.data, TEST_ROWS)
BASELINES = [PCABaseline(2), BLUPPCA(2, GROUPS), PCABaseline(2, groups=GROUPS)]


@pytest.mark.parametrize("baseline", BASELINES, ids=lambda baseline: baseline.method)
class TestEveryBaseline:
    def test_shapes_and_determinism(self, baseline):
        """`fit` returns the baseline. Two fits give the same scores and reconstructions."""
        first, second = clone(baseline), clone(baseline)
        assert first.fit(TRAIN) is first
        second.fit(TRAIN)
        assert first.transform(TEST).shape == (len(TEST_ROWS), 2)
        assert first.reconstruct(TEST).shape == TEST["x"].shape
        np.testing.assert_array_equal(first.transform(TEST), second.transform(TEST))

    def test_arguments_are_only_stored(self, baseline):
        """`get_params` returns the arguments, and a clone is not fitted."""
        assert baseline.get_params()["latent_dim"] == 2
        with pytest.raises(NotFittedError):
            clone(baseline).transform(TEST)

    @pytest.mark.parametrize("latent_dim", [0, 13, 1.5, True])
    def test_latent_dim_out_of_range(self, baseline, latent_dim):
        expected = "must be at most .* features, 12" if latent_dim == 13 else "expected an integer"
        message = rf"`latent_dim`,? {expected}.*\. Received: latent_dim={latent_dim}"
        with pytest.raises(ValueError, match=message):
            clone(baseline).set_params(latent_dim=latent_dim).fit(TRAIN)

    def test_missing_cells(self, baseline):
        x = TRAIN["x"].copy()
        x[5, 3] = np.nan
        with pytest.raises(
            ValueError, match=r"`x` must have no missing cells.*row=5, column=3, missing=1"
        ):
            clone(baseline).fit({**TRAIN, "x": x})

    @pytest.mark.parametrize(
        ("x", "message"),
        [
            (np.zeros(5), r"must be a matrix .*Received: x=array of shape \(5,\)"),
            (np.array([["a"]]), r"'x' must be numeric.*Received: x=array of shape \(1, 1\)"),
            (np.zeros((0, 2)), r"no rows, expected at least one\. Received: rows=0"),
            (np.array([[1.0, np.inf]]), r"must be finite .*row=0, column=1, value=inf"),
        ],
    )
    def test_features_that_are_no_matrix(self, baseline, x, message):
        with pytest.raises(ValueError, match=message):
            clone(baseline).fit({"x": x})

    def test_other_features_than_fitted(self, baseline):
        fitted = clone(baseline).fit(TRAIN)
        with pytest.raises(
            ValueError, match=r"12 features that were fitted\. Received: features=3"
        ):
            fitted.transform({**TEST, "x": TEST["x"][:, :3]})
        with pytest.raises(ValueError, match=r"lack the column\(s\) \['x'\].*Received: columns="):
            fitted.transform({"group_0": TEST["group_0"]})


@pytest.mark.parametrize("baseline", BASELINES[:2], ids=lambda baseline: baseline.method)
def test_full_rank_reconstructs_exactly(baseline):
    """With as many components as features the reconstruction is exact."""
    fitted = clone(baseline).set_params(latent_dim=12).fit(TRAIN)
    np.testing.assert_allclose(fitted.reconstruct(TEST), TEST["x"], rtol=1e-5, atol=1e-5)


def test_methods():
    """The name of the method depends on the arguments."""
    assert [baseline.method for baseline in BASELINES] == ["pca", "blup-pca", "pca-ohe"]


def test_pca_is_scikit_learn():
    """Scores and reconstruction are those of sklearn.decomposition.PCA."""
    expected = PCA(2).fit(TRAIN["x"].astype(float))
    baseline = PCABaseline(2).fit(TRAIN)
    scores = expected.transform(TEST["x"].astype(float))
    np.testing.assert_allclose(baseline.transform(TEST), scores, rtol=1e-10)
    np.testing.assert_allclose(baseline.reconstruct(TEST), expected.inverse_transform(scores))


@pytest.mark.parametrize("order", ["nested", "crossed"])
def test_blup_pca_beats_pca_on_grouped_data(order):
    """BLUP-PCA has less than half the error of PCA, but more than the oracle."""
    simulation = simulate_categorical(
        n=4000,
        num_features=12,
        cardinalities=(40, 100),
        effect_variances=(3.0, 3.0),
        order=order,
        seed=2,
    )
    rows = split(simulation.data, seed=2)
    train, test = (take(simulation.data, part) for part in rows)
    pca = mse(test["x"], PCABaseline(1).fit(train).reconstruct(test))
    blup_pca = mse(test["x"], BLUPPCA(1, GROUPS).fit(train).reconstruct(test))
    assert oracle_mse(simulation, *rows) < blup_pca < 0.5 * pca


def test_blup_pca_of_one_factor_by_hand():
    """One factor: shrunk means, then PCA of the residuals. Unseen and null keys have effect 0."""
    keys = np.array([f"store {code}" for code in TRAIN["group_0"]], dtype=object)
    baseline = BLUPPCA(1, ["store"]).fit({"x": TRAIN["x"], "store": keys})
    x = TRAIN["x"].astype(float)
    ratio = baseline.noise_variance_ / baseline.effect_variance_["store"]
    for place, key in enumerate(baseline.levels_["store"]):
        rows = x[keys == key] - x.mean(axis=0)
        expected = rows.sum(axis=0) / (len(rows) + ratio)
        np.testing.assert_allclose(baseline.effects_["store"][place], expected, rtol=1e-8)
    unknown = np.array(["elsewhere", None, np.nan], dtype=object)
    scores = baseline.transform({"x": TRAIN["x"][:3], "store": unknown})
    np.testing.assert_allclose(scores, baseline.pca_.transform(x[:3] - x.mean(axis=0)))


@pytest.mark.parametrize("order", ["nested", "crossed"])
def test_variance_components_are_recovered(order):
    """The estimates averaged over features are within 5 standard errors of the truth."""
    rng = np.random.default_rng(5)
    n, p, truth = 4000, 60, np.array([3.0, 1.0])
    codes = [np.sort(rng.integers(0, cardinality, n)) for cardinality in (60, 250)]
    if order == "crossed":
        codes = [rng.permutation(code) for code in codes]
    x = rng.normal(size=(n, p))
    for code, variance in zip(codes, truth, strict=True):
        x += rng.normal(scale=np.sqrt(variance), size=(code.max() + 1, p))[code]
    designs = [level_design(code, code.max() + 1) for code in codes]
    variance, noise = variance_components(designs, x)
    for estimate, true in [*zip(variance, truth, strict=True), (noise, 1.0)]:
        assert estimate.mean() == pytest.approx(true, abs=5 * estimate.std() / np.sqrt(p))


def test_variance_components_of_balanced_data_are_the_analysis_of_variance():
    """One balanced factor: noise = within mean square, effect = (between - within) / size."""
    rng = np.random.default_rng(6)
    x = (rng.normal(size=(30, 1, 4)) * 2 + rng.normal(size=(30, 8, 4))).reshape(240, 4)
    codes = np.repeat(np.arange(30), 8)
    means = x.reshape(30, 8, 4).mean(axis=1)
    within = np.square(x - means[codes]).sum(axis=0) / (240 - 30)
    between = 8 * np.square(means - x.mean(axis=0)).sum(axis=0) / 29
    variance, noise = variance_components([level_design(codes, 30)], x)
    np.testing.assert_allclose(noise, within, rtol=1e-8)
    np.testing.assert_allclose(variance[0], (between - within) / 8, rtol=1e-8)


def test_degenerate_features_stay_finite():
    """A constant feature, one constant within its group, and one without group effect."""
    rng = np.random.default_rng(7)
    codes = rng.integers(0, 10, 200)
    level = rng.normal(size=10)
    x = np.stack([np.full(200, 3.0), level[codes], rng.normal(size=200)], axis=1)
    baseline = BLUPPCA(1, ["key"]).fit({"x": x, "key": codes})
    reconstruction = baseline.reconstruct({"x": x, "key": codes})
    assert np.isfinite(reconstruction).all()
    np.testing.assert_allclose(reconstruction[:, :2], x[:, :2], atol=1e-4)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], r"`groups` must be a list of at least one column name\. Received: groups=\[\]"),
        ("group_0", r"`groups` must be a list .*groups='group_0'"),
        (["shop"], r"column\(s\) \['shop'\].*Received: columns=\['x', 'group_0', 'group_1'\]"),
    ],
)
def test_blup_pca_bad_groups(groups, message):
    with pytest.raises(ValueError, match=message):
        BLUPPCA(1, groups).fit(TRAIN)


def test_blup_pca_bad_keys():
    rows = len(TRAIN_ROWS)
    with pytest.raises(ValueError, match=r"number of rows\. .*lengths=\{'x': 2400, 'key': 3\}"):
        BLUPPCA(1, ["key"]).fit({**TRAIN, "key": np.arange(3)})
    with pytest.raises(ValueError, match=r"at least two rows.*rows=2400, levels=2400"):
        BLUPPCA(1, ["key"]).fit({**TRAIN, "key": np.arange(rows)})
    fitted = BLUPPCA(1, ["group_0"]).fit(TRAIN)
    with pytest.raises(ValueError, match=r"'group_0' must be of the type that was fitted, int64\."):
        fitted.transform({**TEST, "group_0": TEST["group_0"].astype(str)})


class TestOneHotPCA:
    """PCA of the features and the one-hot coded groups, against the dense computation."""

    @staticmethod
    def dense(rows):
        """[x, one-hot of both columns, levels in the order of the training rows]."""
        parts = [rows["x"].astype(float)]
        for name in GROUPS:
            levels = list(dict.fromkeys(TRAIN[name]))
            parts.append((rows[name][:, None] == np.array(levels)).astype(float))
        return np.hstack(parts)

    def test_equals_the_dense_computation(self):
        """Scores are equal up to sign, and so is the reconstruction of the features."""
        expected = PCA(3, svd_solver="full").fit(self.dense(TRAIN))
        fitted = PCABaseline(3, groups=GROUPS).fit(TRAIN)
        scores = expected.transform(self.dense(TEST))
        signs = np.sign((fitted.pca_.components_ * expected.components_).sum(axis=1))
        np.testing.assert_allclose(fitted.transform(TEST) * signs, scores, rtol=1e-6, atol=1e-8)
        features = expected.inverse_transform(scores)[:, :12]
        np.testing.assert_allclose(fitted.reconstruct(TEST), features, rtol=1e-8)

    def test_likelihood_is_that_of_the_features(self):
        """It is the marginal density of x in a probabilistic PCA of all columns."""
        columns = self.dense(TRAIN)
        values, vectors = np.linalg.eigh(np.cov(columns.T))
        scale = np.sqrt(values[-2:] - values[:-2].mean())
        loadings = (vectors[:, -2:] * scale)[:12]
        variance = TRAIN["x"].astype(float).var(axis=0, ddof=1)
        covariance = loadings @ loadings.T
        covariance += np.diag(variance - np.diagonal(covariance))
        density = multivariate_normal(columns.mean(axis=0)[:12], covariance)
        fitted = PCABaseline(2, groups=GROUPS).fit(TRAIN)
        expected = density.logpdf(TEST["x"].astype(float))
        np.testing.assert_allclose(fitted.log_likelihood(TEST), expected, rtol=1e-6)

    def test_unseen_and_null_keys_are_zeros(self):
        rows = {**TEST, "group_0": np.full(600, 9999), "group_1": np.full(600, np.nan)}
        fitted = PCABaseline(2, groups=GROUPS).fit(TRAIN)
        columns = self.dense(rows)
        assert not columns[:, 12:].any()
        scores = (columns - fitted.pca_.mean_) @ fitted.pca_.components_.T
        np.testing.assert_allclose(fitted.transform(rows), scores, rtol=1e-8)

    def test_many_levels_take_little_memory(self):
        """About 6,300 levels of 10,000 rows: a dense matrix would take 500 MB."""
        rng = np.random.default_rng(0)
        rows = {"x": rng.normal(size=(10_000, 5)), "key": rng.integers(0, 10_000, 10_000)}
        tracemalloc.start()
        fitted = PCABaseline(2, groups=["key"]).fit(rows)
        fitted.reconstruct(rows)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert fitted.pca_.n_features_in_ > 6000
        assert peak < 50e6

    def test_errors(self):
        few = take(TRAIN, np.arange(3))
        message = r"must be below the number of rows\. Received: latent_dim=3, rows=3"
        with pytest.raises(ValueError, match=message):
            PCABaseline(3, groups=GROUPS).fit(few)
        with pytest.raises(ValueError, match=r"list of column names\. Received: groups='group_0'"):
            PCABaseline(1, groups="group_0").fit(TRAIN)
        with pytest.raises(
            ValueError, match=r"lack the column\(s\) \['shop'\].*Received: columns="
        ):
            PCABaseline(1, groups=["shop"]).fit(TRAIN)
        null = {**TRAIN, "group_0": np.full(len(TRAIN_ROWS), None, object)}
        with pytest.raises(ValueError, match=r"one key that is not null.*rows=2400, levels=0"):
            PCABaseline(1, groups=GROUPS).fit(null)


class TestGroupMeans:
    """Posterior means and variances of the group effects."""

    X = TRAIN["x"].astype(float)

    def test_variance_of_one_factor_is_the_posterior(self):
        """Dense: v - v 1' inv(v 1 1' + noise I) 1 v for the rows of a level."""
        means = GroupMeans(["group_0"]).fit(self.X, TRAIN)
        actual = means.contribution_variance(TEST)
        for row in range(5):
            m = int((TRAIN["group_0"] == TEST["group_0"][row]).sum())
            for feature in range(3):
                v, noise = (
                    means.effect_variance_["group_0"][feature],
                    means.noise_variance_[feature],
                )
                ones = np.ones(m)
                precision = np.linalg.inv(v * np.outer(ones, ones) + noise * np.eye(m))
                assert actual[row, feature] == pytest.approx(v - v * ones @ precision @ ones * v)

    def test_variances_of_factors_add_up(self):
        """The sum of both for known levels, the prior variance for unseen keys, 0 for null keys."""
        means = GroupMeans(GROUPS).fit(self.X, TRAIN)
        null = {name: np.full(600, None, object) for name in GROUPS}
        one, other = (
            means.contribution_variance({**TEST, **null, name: TEST[name]}) for name in GROUPS
        )
        np.testing.assert_allclose(means.contribution_variance(TEST), one + other)
        unseen = means.contribution_variance({**TEST, **null, "group_1": np.full(600, -5)})
        np.testing.assert_allclose(unseen, np.tile(means.effect_variance_["group_1"], (600, 1)))
        assert (one < means.effect_variance_["group_0"]).all()
        np.testing.assert_array_equal(means.contribution_variance({**TEST, **null}), 0.0)
        np.testing.assert_array_equal(means.contribution({**TEST, **null}), 0.0)

    def test_empty_text_and_none_are_null(self):
        """As in `LMMVAE`, None, NaN and the empty string are null keys."""
        key = np.array(["a", "b", "", None] * 600, dtype=object)
        means = GroupMeans(["key"]).fit(self.X, {"x": self.X, "key": key})
        assert list(means.levels_["key"]) == ["a", "b"]

    def test_covers_new_rows_and_new_levels(self):
        """95 % of new rows are within 1.96 standard deviations, for known and for unseen levels."""
        rng = np.random.default_rng(0)
        codes = rng.integers(0, 300, 3000)
        x = 2.0 * rng.normal(size=(300, 6))[codes] + rng.normal(size=(3000, 6))
        is_test = (codes >= 200) | (rng.random(3000) < 0.3)
        train, test = ({"x": x[rows], "key": codes[rows]} for rows in (~is_test, is_test))
        means = GroupMeans(["key"]).fit(train["x"], train)
        variance = means.noise_variance_ + means.contribution_variance(test)
        error = test["x"] - means.mean_ - means.contribution(test)
        inside = np.abs(error) < 1.96 * np.sqrt(variance)
        for part in (test["key"] < 200, test["key"] >= 200):
            assert inside[part].mean() == pytest.approx(0.95, abs=0.025)

    def test_likelihood_of_blup_pca_counts_what_is_unknown(self):
        """It is a dense Gaussian with the posterior variance of effects added to the noise."""
        rows = {**TEST, "group_0": np.where(np.arange(600) % 2, 9999, TEST["group_0"])}
        fitted = BLUPPCA(2, GROUPS).fit(TRAIN)
        means, density = fitted.group_means_, fitted.density_
        actual = fitted.log_likelihood(rows)
        centre = means.mean_ + means.contribution(rows) + fitted.pca_.mean_
        extra = means.contribution_variance(rows)
        for row in range(6):
            covariance = density.loadings @ density.loadings.T
            covariance += np.diag(density.noise_variance + extra[row])
            expected = multivariate_normal(centre[row], covariance).logpdf(rows["x"][row])
            assert actual[row] == pytest.approx(expected, rel=1e-8)


class TestDensity:
    """The log density of linear methods is that of a Gaussian with a factor covariance."""

    def test_equals_the_dense_gaussian(self):
        fitted = PCABaseline(2).fit(TRAIN)
        covariance = fitted.density_.loadings @ fitted.density_.loadings.T
        covariance += np.diag(fitted.density_.noise_variance)
        dense = multivariate_normal(TRAIN["x"].astype(np.float64).mean(axis=0), covariance)
        np.testing.assert_allclose(
            fitted.log_likelihood(TEST), dense.logpdf(TEST["x"].astype(np.float64)), rtol=1e-8
        )

    def test_extra_variance_is_added_to_the_noise(self):
        fitted = PCABaseline(2).fit(TRAIN)
        residual = TEST["x"][:5] - fitted.pca_.mean_
        extra = np.random.default_rng(1).uniform(0.1, 2.0, residual.shape)
        density = fitted.density_.log_density(residual, extra)
        for i in range(5):
            covariance = fitted.density_.loadings @ fitted.density_.loadings.T
            covariance += np.diag(fitted.density_.noise_variance + extra[i])
            expected = multivariate_normal(np.zeros(12), covariance).logpdf(residual[i])
            np.testing.assert_allclose(density[i], expected, rtol=1e-8)

    def test_recovers_a_factor_model(self):
        """For rows from the model the held-out log density is close to the true one."""
        rng = np.random.default_rng(3)
        loadings = rng.normal(size=(8, 2))
        covariance = loadings @ loadings.T + 0.5 * np.eye(8)
        x = rng.multivariate_normal(np.zeros(8), covariance, size=6000)
        fitted = PCABaseline(2).fit({"x": x[:5000]})
        truth = multivariate_normal(np.zeros(8), covariance).logpdf(x[5000:]).mean()
        assert truth - 0.02 < fitted.log_likelihood({"x": x[5000:]}).mean() < truth + 0.02

    def test_groups_raise_the_likelihood(self):
        ignoring = PCABaseline(2).fit(TRAIN).log_likelihood(TEST).mean()
        assert BLUPPCA(2, GROUPS).fit(TRAIN).log_likelihood(TEST).mean() > ignoring + 1.0
