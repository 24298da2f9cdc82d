"""PCA and BLUP-PCA: their contract, their estimates, and what grouping is worth."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError

from keras_lmmvae.baselines import BLUPPCA, PCABaseline
from keras_lmmvae.baselines.variance_components import variance_components
from keras_lmmvae.metrics import mse, oracle_mse
from keras_lmmvae.simulation import simulate_categorical, split, take
from keras_lmmvae.simulation.blup import level_design

GROUPS = ["group_0", "group_1"]
SIMULATION = simulate_categorical(
    n=3000, num_features=12, cardinalities=(40, 100), effect_variances=(3.0, 1.0), seed=1
)
TRAIN_ROWS, TEST_ROWS = split(SIMULATION.data, seed=1)
TRAIN, TEST = take(SIMULATION.data, TRAIN_ROWS), take(SIMULATION.data, TEST_ROWS)
BASELINES = [PCABaseline(2), BLUPPCA(2, GROUPS)]


@pytest.mark.parametrize("baseline", BASELINES, ids=lambda baseline: baseline.method)
class TestEveryBaseline:
    def test_shapes_and_determinism(self, baseline):
        """fit returns the baseline; two fits give the same scores and reconstructions."""
        first, second = clone(baseline), clone(baseline)
        assert first.fit(TRAIN) is first
        second.fit(TRAIN)
        assert first.transform(TEST).shape == (len(TEST_ROWS), 2)
        assert first.reconstruct(TEST).shape == TEST["x"].shape
        np.testing.assert_array_equal(first.transform(TEST), second.transform(TEST))

    def test_full_rank_reconstructs_exactly(self, baseline):
        """With as many components as features nothing is lost."""
        fitted = clone(baseline).set_params(latent_dim=12).fit(TRAIN)
        np.testing.assert_allclose(fitted.reconstruct(TEST), TEST["x"], rtol=1e-5, atol=1e-5)

    def test_arguments_are_only_stored(self, baseline):
        """scikit-learn's contract: get_params gives back what was passed; clone is unfitted."""
        assert baseline.get_params()["latent_dim"] == 2
        with pytest.raises(NotFittedError):
            clone(baseline).transform(TEST)

    @pytest.mark.parametrize("latent_dim", [0, 13, 1.5, True])
    def test_latent_dim_out_of_range(self, baseline, latent_dim):
        message = (
            rf"`latent_dim` must be an int .* features, 12\. Received: latent_dim={latent_dim}"
        )
        with pytest.raises(ValueError, match=message):
            clone(baseline).set_params(latent_dim=latent_dim).fit(TRAIN)

    def test_missing_cells(self, baseline):
        x = TRAIN["x"].copy()
        x[5, 3] = np.nan
        with pytest.raises(ValueError, match=r"`x` must be finite.*1 are NaN .*x\[5, 3\]=nan"):
            clone(baseline).fit({**TRAIN, "x": x})

    @pytest.mark.parametrize("x", [np.zeros(5), np.array([["a"]]), np.zeros((0, 2))])
    def test_features_that_are_no_matrix(self, baseline, x):
        with pytest.raises(ValueError, match=r"`x` must be a numeric matrix.*Received: x\.shape="):
            clone(baseline).fit({"x": x})

    def test_other_features_than_fitted(self, baseline):
        fitted = clone(baseline).fit(TRAIN)
        with pytest.raises(ValueError, match=r"12 features that were fitted.*x\.shape=\(600, 3\)"):
            fitted.transform({**TEST, "x": TEST["x"][:, :3]})
        with pytest.raises(ValueError, match=r"must have the features `x`\. Received: columns="):
            fitted.transform({"group_0": TEST["group_0"]})


def test_pca_is_scikit_learn():
    """Scores and reconstruction are those of sklearn.decomposition.PCA."""
    expected = PCA(2).fit(TRAIN["x"].astype(float))
    baseline = PCABaseline(2).fit(TRAIN)
    scores = expected.transform(TEST["x"].astype(float))
    np.testing.assert_allclose(baseline.transform(TEST), scores, rtol=1e-10)
    np.testing.assert_allclose(baseline.reconstruct(TEST), expected.inverse_transform(scores))


@pytest.mark.parametrize("order", ["nested", "crossed"])
def test_blup_pca_beats_pca_on_grouped_data(order):
    """Most of what grouping explains is gained; the oracle stays ahead."""
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
    """One factor: shrunken means, then PCA of the residuals; unseen and null keys get 0."""
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
    """Averaged over features, the estimates lie within 5 standard errors of the truth."""
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
        (["shop"], r"'shop' is missing\. Received: columns=\['group_0', 'group_1', 'x'\]"),
    ],
)
def test_blup_pca_bad_groups(groups, message):
    with pytest.raises(ValueError, match=message):
        BLUPPCA(1, groups).fit(TRAIN)


def test_blup_pca_bad_keys():
    rows = len(TRAIN_ROWS)
    with pytest.raises(ValueError, match=r"one key for each of the 2400 rows.*shape=\(3,\)"):
        BLUPPCA(1, ["key"]).fit({**TRAIN, "key": np.arange(3)})
    with pytest.raises(ValueError, match=r"at least two rows.*rows=2400, levels=2400"):
        BLUPPCA(1, ["key"]).fit({**TRAIN, "key": np.arange(rows)})
    fitted = BLUPPCA(1, ["group_0"]).fit(TRAIN)
    with pytest.raises(ValueError, match=r"of the type that was fitted, int64\. Received: group_0"):
        fitted.transform({**TEST, "group_0": TEST["group_0"].astype(str)})


class TestDensity:
    """The linear methods' log density is exact: that of a Gaussian with a factor covariance."""

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
        """Rows drawn from the model: the fitted density is near the true one's, out of sample."""
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
