"""Baselines treated like LMMVAE: latents refined, noise calibrated on rows held out, by oracles."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.base import clone

import keras_lmmvae as lmm
from keras_lmmvae.baselines import BLUPPCA, BLUPVAE, PCABaseline, SVGPVAEBaseline, VAEBaseline
from keras_lmmvae.baselines.calibration import calibrated_noise, without_calibration_rows
from keras_lmmvae.likelihood import NOISE_VARIANCE_FLOOR
from keras_lmmvae.rows import FEATURES

pytestmark = pytest.mark.slow

ROWS, P, D = 400, 8, 2
# A decoder without activations is linear.
LINEAR = {"hidden_units": (8,), "activation": "linear", "epochs": 20, "batch_size": 50, "seed": 3}
LINEAR |= {"refine": 10, "calibration_split": 0.2, "kl_weight": 0.3}
KEYS = {"groups": ["store", "month"]}


def make_rows(n, seed):
    """Two crossed factors, a linear latent, and noise that differs by feature."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(9)
    store, month = rng.integers(0, 12, n), rng.integers(0, 6, n)
    x = 0.5 * (truth.normal(size=(12, P))[store] + truth.normal(size=(6, P))[month])
    x += rng.normal(size=(n, D)) @ truth.normal(size=(D, P)) + 3.0
    x += rng.normal(size=(n, P)) * np.linspace(0.4, 1.0, P)
    return {"x": 2.0 * x, "store": store, "month": month, "place": rng.uniform(0, 4, n)}


TRAIN, TEST = make_rows(ROWS, seed=0), make_rows(40, seed=1)
AUTOENCODERS = {
    "vae": VAEBaseline(D, **LINEAR),
    "vae-ohe": VAEBaseline(D, **KEYS, coding="one-hot", **LINEAR),
    "cvae": VAEBaseline(D, **KEYS, coding="embedding", condition_decoder=True, **LINEAR),
    "blup-vae": BLUPVAE(D, **KEYS, **LINEAR),
}
COMPONENTS = {
    "pca": PCABaseline(D, calibration_split=0.2, seed=3),
    "pca-ohe": PCABaseline(D, **KEYS, calibration_split=0.2, seed=3),
    "blup-pca": BLUPPCA(D, **KEYS, calibration_split=0.2, seed=3),
}


@pytest.fixture(scope="module")
def fitted():
    baselines = {**AUTOENCODERS, **COMPONENTS}
    return {name: clone(baseline).fit(TRAIN) for name, baseline in baselines.items()}


def linear_decoder(own, data):
    """`f(0)`, `(n, p)`, and the slopes of `f`, `(d, p)`, in units."""
    start = np.asarray(own._decode(tf.zeros((len(data["x"]), D)), data), np.float64)
    axes = [tf.tile(axis[None], (len(start), 1)) for axis in tf.eye(D)]
    slopes = [(np.asarray(own._decode(axis, data)) - start).mean(axis=0) for axis in axes]
    return start, np.stack(slopes)


def prior_of(own):
    root = own.latent_prior_.root.numpy().astype(np.float64)
    return own.latent_prior_.mean.numpy().astype(np.float64), root @ root.T


def noise_of(own):
    return own.density_.noise_variance if hasattr(own, "density_") else own.noise_variance_


def log_densities(own, data, noise):
    """Exact log density of every row, through its covariance, at a noise variance."""
    if hasattr(own, "density_"):
        centre = own._fixed(data) + own.pca_.mean_[:P] + np.zeros_like(data["x"])
        covariance = own.density_.loadings @ own.density_.loadings.T
        extra = own._fixed_variance(data)
    else:
        start, slopes = linear_decoder(own, data)
        mean, spread = prior_of(own)
        centre, covariance = start + mean @ slopes, slopes.T @ spread @ slopes
        extra = own._error_variance(data) - own.noise_variance_
    extra = extra + np.zeros_like(centre)
    return np.array(
        [
            multivariate_normal(centre[i], covariance + np.diag(noise + extra[i])).logpdf(x)
            for i, x in enumerate(data["x"])
        ]
    )


@pytest.mark.parametrize("name", AUTOENCODERS)
class TestLinearDecoder:
    def test_latents_weigh_features_alike(self, fitted, name):
        """inv(W W' / s + kl_weight I) W (y - f(0)) / s for standardised features y."""
        own = fitted[name]
        start, slopes = linear_decoder(own, TEST)
        target, slopes = (TEST["x"] - start) / own.scaler_.scale_, slopes / own.scaler_.scale_
        noise = (own.noise_variance_ / own.scaler_.scale_**2).mean()
        curvature = slopes @ slopes.T / noise + 0.3 * np.eye(D)
        expected = np.linalg.solve(curvature, slopes @ target.T / noise).T
        np.testing.assert_allclose(own.transform(TEST), expected, rtol=2e-3, atol=2e-3)
        decoded = start + expected @ slopes * own.scaler_.scale_
        np.testing.assert_allclose(own.reconstruct(TEST), decoded, rtol=2e-3, atol=2e-2)
        assert np.abs(own._posterior(TEST).loc - expected).max() > 0.05

    def test_latents_of_a_density_are_those_of_factor_analysis(self, fitted, name):
        """inv(W D W' + inv(S)) (W D (x - f(0)) + inv(S) m), D the inverse error variances."""
        own = fitted[name]
        (start, slopes), (mean, spread) = linear_decoder(own, TEST), prior_of(own)
        precision = 1.0 / np.broadcast_to(own._error_variance(TEST), start.shape)
        inverse, posterior = np.linalg.inv(spread), own._inferred(TEST, by_density=True)
        for row in range(len(start)):
            curvature = (slopes * precision[row]) @ slopes.T + inverse
            right = slopes @ (precision[row] * (TEST["x"] - start)[row]) + inverse @ mean
            expected = np.linalg.solve(curvature, right)
            np.testing.assert_allclose(posterior.loc[row], expected, rtol=2e-3, atol=2e-3)
            covariance = posterior.covariance()[row]
            np.testing.assert_allclose(covariance, np.linalg.inv(curvature), rtol=2e-3, atol=1e-5)

    def test_bound_is_the_exact_density(self, fitted, name):
        """With q(u) the true posterior the bound is tight, under the prior of training latents."""
        own = fitted[name]
        expected = log_densities(own, TEST, own.noise_variance_)
        np.testing.assert_allclose(own.log_likelihood(TEST), expected, rtol=1e-3, atol=5e-3)

    def test_prior_is_that_of_the_training_latents(self, fitted, name):
        """Mean of the encoder's means; their covariance plus the mean of its variances."""
        own = fitted[name]
        posterior = own._posterior(without_calibration_rows(TRAIN, 0.2, 3)[0])
        covariance = np.cov(posterior.loc.numpy().T, ddof=0)
        covariance += np.diag(posterior.variance().numpy().mean(axis=0))
        mean, spread = prior_of(own)
        np.testing.assert_allclose(mean, posterior.loc.numpy().mean(axis=0), atol=1e-4)
        np.testing.assert_allclose(spread, covariance, rtol=1e-3, atol=1e-4)


def test_a_feature_without_noise_leaves_the_others_alone():
    """Loadings above a feature's variance: it is at the floor, the others are most likely."""
    rng = np.random.default_rng(4)
    loadings, noise = np.array([[3.0, 1.0, -1.0, 0.5]]), np.array([0.0, 0.5, 1.0, 2.0])
    x = 0.4 * rng.normal(size=(500, 1)) @ loadings + rng.normal(size=(500, 4)) * np.sqrt(noise)
    found = calibrated_noise(
        np.ones(4),
        lambda latent: tf.matmul(latent, tf.constant(loadings, tf.float32)),
        tf.constant(x, tf.float32),
        0.2,
        tf.zeros((500, 1)),
        tfp.distributions.MultivariateNormalDiag(tf.zeros(1), tf.ones(1)),
    )
    assert found[0] == NOISE_VARIANCE_FLOOR

    def likelihood(log_noise):
        covariance = loadings.T @ loadings + np.diag(np.append(1e-5, np.exp(log_noise)) + 0.2)
        return -multivariate_normal(np.zeros(4), covariance).logpdf(x).sum()

    best = minimize(likelihood, np.zeros(3))
    np.testing.assert_allclose(found[1:], np.exp(best.x), rtol=5e-3)


@pytest.mark.parametrize("name", [*AUTOENCODERS, *COMPONENTS])
class TestCalibration:
    def test_noise_is_the_most_likely_of_the_held_out_rows(self, fitted, name):
        """The slope of the dense log likelihood in each log noise variance is 0."""
        own = fitted[name]
        held_out = without_calibration_rows(TRAIN, 0.2, 3)[1]
        noise = noise_of(own)
        for feature in range(P):
            change = np.exp(0.02 * np.eye(P)[feature])
            up, down = (
                log_densities(own, held_out, noise * factor).sum()
                for factor in (change, 1 / change)
            )
            # A scoring step of 0.1 % changes the slope by 0.05 % of the number of rows.
            assert abs(up - down) / 0.04 < 0.005 * len(held_out["x"])

    def test_nothing_else_sees_the_rows(self, fitted, name):
        """Reconstructions without refinement are those of a fit to the other rows alone."""
        split = clone({**AUTOENCODERS, **COMPONENTS}[name])
        if name in AUTOENCODERS:
            split.set_params(refine=0, epochs=1)
        alone = clone(split).set_params(calibration_split=0.0)
        alone.fit(without_calibration_rows(TRAIN, 0.2, 3)[0])
        split.fit(TRAIN)
        np.testing.assert_allclose(split.reconstruct(TEST), alone.reconstruct(TEST), rtol=1e-6)
        assert not np.allclose(noise_of(split), noise_of(alone), rtol=0.02)

    @pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, 1e-6])
    def test_share_out_of_range(self, name, share):
        baseline = clone({**AUTOENCODERS, **COMPONENTS}[name]).set_params(calibration_split=share)
        expected = rf"`calibration_split` must lie in \[0, 1\).*calibration_split={share}, rows=400"
        with pytest.raises(ValueError, match=expected):
            baseline.fit(TRAIN)


def test_rows_held_out_are_those_of_lmmvae():
    """The same seed holds the same rows out of every method."""
    model = lmm.LMMVAE(D, (), hidden_units=(4,), seed=3)
    model.adapt(TRAIN)
    rows = model.encode_data({"x": TRAIN["x"]})
    _, expected = model._without_calibration_rows(rows, 0.05)
    held_out = without_calibration_rows(TRAIN, 0.05, 3)[1]
    assert len(held_out["x"]) == 20
    np.testing.assert_array_equal(model.encode_data(held_out)["x"], expected[FEATURES])


def test_refinement_and_calibration_with_a_process_for_prior():
    """SVGPVAE: each row has its own prior. Refined latents are its modes, and bounds rise."""
    settings = {"coordinates": ("place",), "hidden_units": (16,), "epochs": 5, "batch_size": 100}
    settings |= {"num_inducing": 8, "calibration_split": 0.2, "seed": 1}
    refined = SVGPVAEBaseline(D, **settings).fit(TRAIN)
    bounds = [refined.set_params(refine=steps).log_likelihood(TEST).mean() for steps in (0, 10)]
    assert bounds[1] > bounds[0]
    settings["calibration_split"] = 0.0
    alone = SVGPVAEBaseline(D, **settings).fit(without_calibration_rows(TRAIN, 0.2, 1)[0])
    np.testing.assert_allclose(alone.transform(TEST), refined._posterior(TEST).loc, rtol=1e-5)
    assert not np.allclose(noise_of(alone), noise_of(refined), rtol=0.02)
    posterior, prior = refined._inferred(TEST, by_density=True), refined._prior(TEST)
    decoder = refined._decoder(TEST)

    def misfit(latent):
        error = refined._standardised(TEST) - decoder(latent)
        squares = tf.reduce_sum(error**2 / refined._standard_variance(TEST), axis=1)
        return squares + tf.reduce_sum((latent - prior.loc) ** 2 / prior.variance(), axis=1)

    best = misfit(posterior.loc).numpy()
    assert best.mean() < misfit(refined._posterior(TEST).loc).numpy().mean() - 1e-3
    for step in (-0.05, 0.05):
        for axis in np.eye(D, dtype=np.float32):
            assert (misfit(posterior.loc + step * axis).numpy() > best - 1e-3).all()


def test_bad_refine():
    with pytest.raises(ValueError, match=r"`refine`.*at least 0.*refine=-1"):
        clone(AUTOENCODERS["vae"]).set_params(refine=-1).fit(TRAIN)
