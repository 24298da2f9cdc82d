"""The sparse Gaussian process autoencoder: exact regression, the paper's objective, recovery."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import multivariate_normal, norm
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from keras_lmmvae.baselines import SVGPVAEBaseline, latent_variable
from keras_lmmvae.baselines.sparse_gp import (
    JITTER,
    InducingSums,
    inducing_posterior,
    inducing_sums,
    squared_exponential,
    whitened_basis,
)
from keras_lmmvae.baselines.svgpvae import (
    AuxiliaryPoints,
    GPAutoencoder,
    _inputs,
    inducing_centres,
    subject_scores,
)
from keras_lmmvae.effects.vocabulary import NULL_CODE, UNKNOWN_CODE
from keras_lmmvae.simulation import take

COLUMNS = {"coordinates": ("lon", "lat"), "subject": "subject", "time": "t"}
SMALL = SVGPVAEBaseline(
    2, **COLUMNS, num_inducing=12, hidden_units=(16, 8), epochs=3, batch_size=50, seed=4
)


def rows_of(n, seed, num_subjects=8):
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(3.0, 2.0, size=(n, 5)),
        "lon": rng.uniform(20.0, 30.0, n),
        "lat": rng.uniform(40.0, 45.0, n),
        "subject": rng.integers(0, num_subjects, n),
        "t": rng.uniform(0.0, 12.0, n),
    }


TRAIN, TEST = rows_of(130, seed=1), rows_of(40, seed=2)


@functools.cache
def one_fit():
    """The baseline that the tests only read."""
    return clone(SMALL).fit(TRAIN)


def rbf(x1, x2):
    """exp(-distance**2 / 2) by a slow loop over pairs."""
    return np.array([[np.exp(-0.5 * np.square(a - b).sum()) for b in x2] for a in x1])


class Regression:
    """Pseudo-observations of two latents at random points, with the paper's formulas in NumPy."""

    def __init__(self, n=25, num_inducing=7, seed=0):
        rng = np.random.default_rng(seed)
        self.points = rng.uniform(0.0, 6.0, (n, 2))
        self.inducing = self.points if num_inducing == n else rng.uniform(0, 6, (num_inducing, 2))
        self.values = rng.normal(size=(n, 2))
        self.variance = rng.uniform(0.1, 1.0, (n, 2))
        self.inner = rbf(self.inducing, self.inducing) + JITTER * np.eye(num_inducing)
        self.basis = whitened_basis(tf.constant(self.points), tf.constant(self.inducing))

    def sums(self, rows=slice(None)):
        basis = tf.constant(self.basis.numpy()[rows])
        return inducing_sums(basis, self.values[rows], self.variance[rows])

    def by_the_paper(self, channel, rows, scale):
        """mu and A of the inducing outputs, and the marginals of the rows: eq. (7) and below."""
        cross = rbf(self.inducing, self.points[rows])  # (m, b)
        weights = 1.0 / self.variance[rows, channel]
        sigma = self.inner + scale * (cross * weights) @ cross.T
        solved = self.inner @ np.linalg.inv(sigma)
        mu = scale * solved @ cross @ (weights * self.values[rows, channel])
        A = solved @ self.inner
        projection = np.linalg.solve(self.inner, cross)  # (m, b)
        open_variance = 1.0 - (cross * projection).sum(axis=0)
        traces = (projection * (A @ projection)).sum(axis=0)
        return mu, A, projection.T @ mu, open_variance, traces

    def divergence(self, mu, A):
        inverse = np.linalg.inv(self.inner)
        log_ratio = np.linalg.slogdet(self.inner)[1] - np.linalg.slogdet(A)[1]
        return 0.5 * (np.trace(inverse @ A) + mu @ inverse @ mu - len(mu) + log_ratio)


class TestSparseGP:
    def test_kernel(self):
        rng = np.random.default_rng(1)
        x1, x2 = rng.normal(size=(4, 3)), rng.normal(size=(5, 3))
        np.testing.assert_allclose(squared_exponential(x1, x2), rbf(x1, x2), rtol=1e-12)

    def test_equals_exact_regression_with_all_rows_as_inducing_points(self):
        """Posterior means and variances of f are equal at the rows and at new points."""
        case = Regression(n=25, num_inducing=25)
        posterior = inducing_posterior(case.sums())
        new = np.random.default_rng(8).uniform(0.0, 6.0, (9, 2))
        for points in (case.points, new):
            basis = whitened_basis(tf.constant(points), tf.constant(case.inducing))
            mean, variance = posterior.marginals(basis)
            cross = rbf(points, case.points)
            for channel in range(2):
                total = rbf(case.points, case.points) + np.diag(case.variance[:, channel])
                exact = cross @ np.linalg.solve(total, case.values[:, channel])
                left = 1.0 - (cross * np.linalg.solve(total, cross.T).T).sum(axis=1)
                np.testing.assert_allclose(mean[:, channel], exact, atol=1e-4)
                np.testing.assert_allclose(variance[:, channel], left, atol=1e-4)

    @pytest.mark.parametrize(("rows", "scale"), [(slice(None), 1.0), (slice(3, 13), 2.5)])
    def test_equals_the_papers_formulas(self, rows, scale):
        """The marginals m and B follow from mu and A, for a batch weighted up to all rows."""
        case = Regression()
        posterior = inducing_posterior(case.sums(rows), scale)
        mean, variance = posterior.marginals(tf.constant(case.basis.numpy()[rows]))
        for channel in range(2):
            _, _, expected, left, traces = case.by_the_paper(channel, rows, scale)
            np.testing.assert_allclose(mean[:, channel], expected, rtol=1e-6, atol=1e-8)
            np.testing.assert_allclose(variance[:, channel], left + traces, rtol=1e-6)

    def test_cross_entropy_less_hensman_bound_is_the_kl(self):
        """For a batch, the difference of the paper's two terms is b / N times one KL."""
        case, rows, scale = Regression(), slice(3, 13), 2.5
        divergence = inducing_posterior(case.sums(rows), scale).divergence()
        for channel in range(2):
            mu, A, mean, left, traces = case.by_the_paper(channel, rows, scale)
            values, variance = case.values[rows, channel], case.variance[rows, channel]
            density = norm(mean, np.sqrt(variance)).logpdf(values)
            cross_entropy = (density - 0.5 * (left + traces) / variance).sum()
            hensman = density.sum() - (0.5 * (left + traces) / variance).sum()
            hensman -= case.divergence(mu, A) / scale
            kl = divergence[channel].numpy()
            np.testing.assert_allclose(kl, case.divergence(mu, A), rtol=1e-6)
            np.testing.assert_allclose(cross_entropy - hensman, kl / scale, rtol=1e-6)
            assert kl > 0.0

    def test_exact_evidence_with_all_rows_as_inducing_points(self):
        """E_q[log pseudo-likelihood] - KL is the log evidence, and lower with fewer points."""
        for num_inducing in (7, 25):
            case = Regression(n=25, num_inducing=num_inducing)
            posterior = inducing_posterior(case.sums())
            mean, variance = (value.numpy() for value in posterior.marginals(case.basis))
            density = norm(mean, np.sqrt(case.variance)).logpdf(case.values)
            bound = (density - 0.5 * variance / case.variance).sum(axis=0)
            bound = bound - posterior.divergence().numpy()
            kernel = rbf(case.points, case.points)
            for channel in range(2):
                total = kernel + np.diag(case.variance[:, channel])
                exact = multivariate_normal(np.zeros(25), total).logpdf(case.values[:, channel])
                if num_inducing == 25:
                    np.testing.assert_allclose(bound[channel], exact, rtol=1e-4)
                else:
                    assert bound[channel] < exact - 0.1

    def test_scaled_sums_of_batches_are_unbiased(self):
        """The mean of the scaled sums of equal batches is the sum over all rows."""
        case = Regression()
        batches = [case.sums(slice(first, first + 5)) for first in range(0, 25, 5)]
        full = case.sums()
        for name in ("precision", "information"):
            mean = np.mean([5.0 * getattr(one, name).numpy() for one in batches], axis=0)
            np.testing.assert_allclose(mean, getattr(full, name), rtol=1e-12)
        total = sum(batches[1:], batches[0])
        np.testing.assert_allclose(total.precision, full.precision, rtol=1e-12)

    def test_no_rows_leave_the_prior(self):
        """Without rows, the KL is 0, and all means are 0 and variances 1."""
        case = Regression()
        nothing = InducingSums(tf.zeros((2, 7, 7), tf.float64), tf.zeros((2, 7), tf.float64))
        posterior = inducing_posterior(nothing)
        mean, variance = posterior.marginals(case.basis)
        np.testing.assert_allclose(posterior.divergence(), 0.0, atol=1e-12)
        np.testing.assert_allclose(mean, 0.0)
        np.testing.assert_allclose(variance, 1.0, rtol=1e-9)

    def test_very_sure_pseudo_observations_stay_finite(self):
        """20,000 rows of variance exp(-14) at one point, which need float64."""
        case = Regression()
        basis = tf.repeat(case.basis[:1], 20_000, axis=0)
        values = np.full((20_000, 2), 0.7)
        posterior = inducing_posterior(inducing_sums(basis, values, np.full_like(values, 8e-7)))
        mean, variance = posterior.marginals(case.basis[:1])
        np.testing.assert_allclose(mean, 0.7, rtol=1e-5)
        assert np.isfinite(posterior.divergence()).all()
        assert (variance.numpy() > 0.0).all()


class TestKernelOfTheNetwork:
    def network(self, inducing_points):
        vectors = np.random.default_rng(1).normal(size=(4, 2))
        network = GPAutoencoder(2, 5, (8,), (2, 1), vectors, inducing_points, seed=1)
        network.log_length_scales.assign(np.log([0.7, 1.9]))
        return network, vectors

    def test_is_a_product_over_coordinates_time_and_subject(self):
        """With the rows as inducing points, basis @ basis' is the kernel matrix."""
        rng = np.random.default_rng(2)
        places, subjects = rng.normal(size=(20, 3)), rng.integers(0, 4, 20)
        vectors = self.network(np.zeros((20, 5)))[1]
        network, _ = self.network(np.concatenate([places, vectors[subjects]], axis=1))
        basis = network.basis(tf.constant(places, tf.float32), tf.constant(subjects)).numpy()
        expected = rbf(places[:, :2] / 0.7, places[:, :2] / 0.7)
        expected *= rbf(places[:, 2:] / 1.9, places[:, 2:] / 1.9)
        expected *= rbf(vectors[subjects], vectors[subjects])
        np.testing.assert_allclose(basis @ basis.T, expected, atol=1e-4)

    def test_unseen_subjects_stand_at_zero(self):
        network, vectors = self.network(np.zeros((3, 5)))
        found = network.vectors(tf.constant([2, UNKNOWN_CODE, NULL_CODE, 0])).numpy()
        expected = [vectors[2], [0.0, 0.0], [0.0, 0.0], vectors[0]]
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    def test_all_of_the_kernel_is_trained(self):
        """Length scales, subject vectors and inducing points differ from their initial values."""
        begun = clone(SMALL).set_params(epochs=1, learning_rate=1e-9).fit(TRAIN).network_
        for name in ("log_length_scales", "subject_vectors", "inducing_points"):
            move = getattr(one_fit().network_, name).numpy() - getattr(begun, name).numpy()
            assert np.abs(move).max() > 1e-3


class TestBeginnings:
    def test_subject_vectors_are_scores_of_subject_means(self):
        rng = np.random.default_rng(1)
        subjects = np.concatenate([np.arange(6), rng.integers(-1, 6, 60)])
        x = rng.normal(size=(66, 4))
        vectors = subject_scores(x, subjects, 2)
        means = np.stack([x[subjects == code].mean(axis=0) for code in range(6)])
        left = means - means.mean(axis=0)
        u, s, _ = np.linalg.svd(left, full_matrices=False)
        expected = np.abs(u[:, :2] * np.sqrt(6.0))
        np.testing.assert_allclose(np.abs(vectors), expected, rtol=1e-6)

    def test_inducing_points_are_no_more_than_distinct_places(self):
        data = {"x": np.zeros((6, 1)), "lon": np.array([1.0, 2.0, 1.0, 5.0, 2.0, 1.0])}
        rows = AuxiliaryPoints(data, ["lon"], None, None).rows(data)
        points = inducing_centres(rows, np.zeros((1, 0)), 50, seed=0)
        np.testing.assert_allclose(np.sort(points.ravel()), np.unique(rows.places), rtol=1e-9)

    def test_coordinates_share_a_scale_and_time_has_its_own(self):
        rows = AuxiliaryPoints(TRAIN, ("lon", "lat"), None, "t").rows(TEST)
        lon, lat = TRAIN["lon"], TRAIN["lat"]
        scale = np.sqrt((lon.var() + lat.var()) / 2.0)
        np.testing.assert_allclose(rows.places[:, 0], (TEST["lon"] - lon.mean()) / scale)
        np.testing.assert_allclose(rows.places[:, 1], (TEST["lat"] - lat.mean()) / scale)
        expected = (TEST["t"] - TRAIN["t"].mean()) / TRAIN["t"].std()
        np.testing.assert_allclose(rows.places[:, 2], expected)


class TestBound:
    def test_training_loss_by_hand(self):
        """The loss is the KLs divided by n minus the mean log density at draws of the marginals."""
        fitted = clone(SMALL).set_params(kl_weight=0.4).fit(TRAIN)
        network, rows = fitted.network_, fitted.auxiliary_.rows(TRAIN)
        x = fitted._standardised(TRAIN)[:30]
        draws = np.random.default_rng(3).normal(size=(30, 2)).astype(np.float32)
        inputs = [part[:30] for part in _inputs(rows)]
        loss, error = fitted._loss(x, inputs, 130, tf.constant(draws))
        value, log_var = (part.numpy().astype(float) for part in network.encoder(x))
        basis = network.basis(*inputs).numpy()
        mean, variance, divergence = np.empty((30, 2)), np.empty((30, 2)), 0.0
        for channel in range(2):
            weights = np.exp(-log_var[:, channel])
            covariance = np.linalg.inv(np.eye(12) + 130 / 30 * (basis.T * weights) @ basis)
            w = covariance @ basis.T @ (weights * value[:, channel]) * 130 / 30
            mean[:, channel] = basis @ w
            variance[:, channel] = 1.0 + ((basis @ (covariance - np.eye(12))) * basis).sum(axis=1)
            log_determinant = np.linalg.slogdet(covariance)[1]
            divergence += 0.5 * (np.trace(covariance) + w @ w - 12 - log_determinant)
        latent = tf.constant(mean + np.sqrt(variance) * draws, tf.float32)
        decoded = network.decoder(latent).numpy()
        noise = np.sqrt((fitted.noise_variance_ / fitted.scaler_.var_).mean())
        density = norm(decoded, noise).logpdf(x).sum(axis=1).mean()
        vectors = 0.5 * np.square(network.subject_vectors.numpy()).sum()
        expected = (0.4 * divergence + vectors) / 130 - density
        np.testing.assert_allclose(loss, expected, rtol=1e-4)
        np.testing.assert_allclose(error, x - decoded, atol=1e-4)

    def test_prior_is_the_process_given_all_training_rows(self, monkeypatch):
        """It is a dense regression on the whitened values. Chunk size has no influence."""
        network = one_fit().network_
        x = one_fit()._standardised(TRAIN)
        value, log_var = (part.numpy().astype(float) for part in network.encoder(x))
        bases = [
            network.basis(*_inputs(one_fit().auxiliary_.rows(data))).numpy()
            for data in (TRAIN, TEST)
        ]
        prior = one_fit()._prior(TEST)
        for channel in range(2):
            precision = np.eye(12) + (bases[0].T * np.exp(-log_var[:, channel])) @ bases[0]
            information = bases[0].T @ (np.exp(-log_var[:, channel]) * value[:, channel])
            w = np.linalg.solve(precision, information)
            np.testing.assert_allclose(prior.loc[:, channel], bases[1] @ w, rtol=1e-3, atol=1e-4)
            left = np.linalg.inv(precision) - np.eye(12)
            variance = 1.0 + (bases[1] @ left * bases[1]).sum(axis=1)
            np.testing.assert_allclose(prior.variance()[:, channel], variance, rtol=1e-3)
        at_once = one_fit().reconstruct(TEST)
        monkeypatch.setattr(latent_variable, "ROWS_AT_ONCE", 17)
        again = one_fit()._given_all(x, one_fit().auxiliary_.rows(TRAIN))
        np.testing.assert_allclose(again.mean, one_fit().posterior_.mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(one_fit()._prior(TEST).loc, prior.loc, atol=1e-5)
        np.testing.assert_allclose(one_fit().reconstruct(TEST), at_once, atol=1e-4)

    def test_posterior_is_the_prior_with_the_rows_own_observation(self):
        """The product of Gaussians equals an update by the row's pseudo-observation."""
        value, log_var = one_fit().network_.encoder(one_fit()._standardised(TEST))
        own = np.exp(log_var.numpy())
        prior, posterior = one_fit()._prior(TEST), one_fit()._posterior(TEST)
        gain = prior.variance().numpy() / (prior.variance().numpy() + own)
        expected = prior.loc.numpy() + gain * (value.numpy() - prior.loc.numpy())
        np.testing.assert_allclose(posterior.loc, expected, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(posterior.variance(), gain * own, rtol=1e-4)
        np.testing.assert_allclose(one_fit().transform(TEST), posterior.loc, rtol=1e-6)

    def test_rows_are_answered_one_by_one(self):
        for answer in (one_fit().transform, one_fit().reconstruct, one_fit().log_likelihood):
            one = take(TEST, np.array([7]))
            np.testing.assert_allclose(answer(one)[0], answer(TEST)[7], rtol=1e-4, atol=1e-5)

    def test_bounds_in_order(self):
        """The importance-weighted bound is higher on average."""
        plain = one_fit().log_likelihood(TEST).mean()
        weighted = one_fit().log_likelihood(TEST, num_samples=200).mean()
        assert plain - 0.01 < weighted < plain + 5.0

    def test_units(self):
        """Other units give the same latents and change log densities by the log of the units."""
        factors = {"x": 8.0, "lon": 4.0, "lat": 4.0, "t": 0.5, "subject": 1}
        train, test = (
            {name: data[name] * factor for name, factor in factors.items()}
            for data in (TRAIN, TEST)
        )
        other = clone(SMALL).fit(train)
        np.testing.assert_allclose(other.transform(test), one_fit().transform(TEST), atol=1e-3)
        expected = one_fit().log_likelihood(TEST) - 5 * np.log(8.0)
        np.testing.assert_allclose(other.log_likelihood(test), expected, atol=0.01)


def field_data(n, seed):
    """A smooth field on a square, observed by 10 sines with much noise."""
    rng = np.random.default_rng(seed)
    lon, lat = rng.uniform(-1.0, 1.0, (2, n))
    field = np.sin(2.5 * lon) + np.cos(2.0 * lat + lon)
    signal = np.sin(field[:, None] * np.linspace(0.3, 1.2, 10)) * 2.0
    x = signal + 2.0 * rng.normal(size=signal.shape)
    return {"x": x, "lon": lon, "lat": lat}, signal


def curve_data(rng, num_subjects, n):
    """Sine curves in time with a phase for each subject and much noise."""
    phase = rng.uniform(0.0, 3.0, num_subjects)
    subject, t = rng.integers(0, num_subjects, n), rng.uniform(0.0, 3.0, n)
    angle = (phase[subject] + t)[:, None] + np.array([0.0, 0.3, 0.6, 0.9, 1.2, 1.5, 1.8, 2.1])
    return {"x": np.sin(angle) + rng.normal(size=angle.shape), "subject": subject, "t": t}, angle


def signal_error(signal, decoded):
    return np.square(signal - decoded).mean() / signal.var(axis=0).mean()


class TestFit:
    def test_recovers_a_smooth_field(self):
        """At new places the error is small, and smaller than with the encoder alone."""
        train, _ = field_data(3000, seed=1)
        test, signal = field_data(500, seed=2)
        fitted = SVGPVAEBaseline(
            1, coordinates=["lon", "lat"], num_inducing=30, hidden_units=(50, 25), seed=1
        )
        fitted.set_params(batch_size=200, learning_rate=5e-3, epochs=20).fit(train)
        own = fitted._decode(fitted._pseudo_observation(test).loc, test).numpy()
        error = signal_error(signal, fitted.reconstruct(test))
        assert error < 0.15
        assert error < 0.8 * signal_error(signal, own)
        gaussian = norm(train["x"].mean(axis=0), train["x"].std(axis=0)).logpdf(test["x"])
        assert fitted.log_likelihood(test).mean() > gaussian.sum(axis=1).mean() + 1.0
        assert fitted.losses_[-1] < fitted.losses_[0]
        np.testing.assert_allclose(fitted.noise_variance_.mean(), 4.0, rtol=0.15)

    def test_recovers_curves_of_subjects(self):
        """The error on held-out rows of known subjects is small, with the process alone, too."""
        data, angle = curve_data(np.random.default_rng(3), 40, 2400)
        train, test = take(data, np.arange(2000)), take(data, np.arange(2000, 2400))
        fitted = SVGPVAEBaseline(
            2, subject="subject", time="t", num_inducing=40, hidden_units=(50, 25), seed=1
        )
        fitted.set_params(batch_size=100, learning_rate=5e-3, epochs=20).fit(train)
        signal = np.sin(angle[2000:])
        assert signal_error(signal, fitted.reconstruct(test)) < 0.3
        process = fitted._decode(fitted._prior(test).loc, test).numpy()
        assert signal_error(signal, process) < 0.3

    def test_unseen_and_missing_subjects_are_the_mean_subject(self):
        """Both have the subject vector 0. A place far away has the prior Normal(0, 1)."""
        unseen = {**TEST, "subject": np.full(40, 99)}
        missing = {**TEST, "subject": np.full(40, np.nan)}
        assert (one_fit().auxiliary_.rows(unseen).subjects == UNKNOWN_CODE).all()
        np.testing.assert_array_equal(one_fit().transform(unseen), one_fit().transform(missing))
        assert not np.allclose(one_fit()._prior(unseen).loc, one_fit()._prior(TEST).loc, atol=0.01)
        far = one_fit()._prior({**TEST, "lon": TEST["lon"] + 1000.0})
        np.testing.assert_allclose(far.loc, 0.0, atol=1e-6)
        np.testing.assert_allclose(far.stddev(), 1.0, rtol=1e-6)

    @pytest.mark.parametrize("part", ["coordinates", "subject", "time"])
    def test_each_part_alone(self, part):
        settings = {name: COLUMNS[name] if name == part else None for name in COLUMNS}
        fitted = clone(SMALL).set_params(**settings, epochs=1).fit(TRAIN)
        assert np.isfinite(fitted.log_likelihood(TEST)).all()

    def test_missing_keys_in_training(self):
        keys = np.where(np.arange(130) % 5 == 0, np.nan, TRAIN["subject"].astype(float))
        fitted = clone(SMALL).set_params(epochs=1).fit({**TRAIN, "subject": keys})
        assert np.isfinite(fitted.log_likelihood(TEST)).all()

    def test_same_seed_same_result(self):
        again = clone(SMALL).fit(TRAIN)
        np.testing.assert_array_equal(again.reconstruct(TEST), one_fit().reconstruct(TEST))
        other = clone(SMALL).set_params(seed=5).fit(TRAIN)
        assert not np.allclose(other.reconstruct(TEST), one_fit().reconstruct(TEST))

    def test_contract(self):
        assert clone(one_fit()).get_params() == SMALL.get_params()
        for answer in ("transform", "reconstruct", "log_likelihood"):
            with pytest.raises(NotFittedError):
                getattr(clone(SMALL), answer)(TEST)
        assert one_fit().reconstruct(TEST).shape == TEST["x"].shape
        assert one_fit().transform(TEST).shape == (40, 2)


NOTHING = {"coordinates": None, "subject": None, "time": None}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (NOTHING, r"must name a column, .* coordinates=None, subject=None, time=None"),
        ({"coordinates": "lon"}, r"a sequence of column names\. Received: coordinates='lon'"),
        ({"coordinates": ["x2"]}, r"lack the column\(s\) \['x2'\].*Received: columns=\['x', 'lon'"),
        ({"num_inducing": 0}, r"`num_inducing`, expected an integer .* num_inducing=0"),
        ({"subject_dim": 0}, r"`subject_dim`, expected an integer .* subject_dim=0"),
        ({"latent_dim": 0}, r"`latent_dim`, expected an integer .*latent_dim=0"),
        ({"hidden_units": []}, r"at least one layer\. Received: hidden_units=\[\]"),
        ({"kl_weight": -0.5}, r"`kl_weight`, expected .* of at least 0\..*kl_weight=-0\.5"),
    ],
)
def test_bad_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        clone(SMALL).set_params(**settings).fit(TRAIN)


def test_bad_columns():
    lat = TEST["lat"].copy()
    lat[[3, 9]] = np.nan
    with pytest.raises(ValueError, match=r"'lat' must have no missing values.*row=3, missing=2"):
        one_fit().transform({**TEST, "lat": lat})
    with pytest.raises(ValueError, match=r"'subject' must be of the type that was fitted, int64"):
        one_fit().transform({**TEST, "subject": TEST["subject"].astype(str)})
    with pytest.raises(ValueError, match=r"'subject' must have at least one key.*levels=0"):
        clone(SMALL).fit({**TRAIN, "subject": np.full(130, np.nan)})
