"""Effects with the latent integrated out: against dense covariances and exact BLUPs."""

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

import keras_lmmvae as lmm
from keras_lmmvae.fitting.calibration import calibrate_noise
from keras_lmmvae.latent_prior import LatentPrior
from keras_lmmvae.mixed_model import equations
from keras_lmmvae.mixed_model.information import Information
from keras_lmmvae.mixed_model.mixed_model import MixedModel
from keras_lmmvae.mixed_model.residuals import Residuals
from keras_lmmvae.rows import Pass, with_folds

ROWS, FEATURES, LATENT = 40, 5, 2
NOISE = np.array([0.2, 0.5, 1.0, 0.3, 2.0])
EFFECT = np.array([0.5, 2.0, 1.0, 0.1, 0.7])
CLOSE = {"rtol": 2e-3, "atol": 2e-3}


def covariances(loadings: np.ndarray) -> np.ndarray:
    """`Omega` of every row, of loadings `(d, b, p)`."""
    return np.einsum("kbp,kbq->bpq", loadings, loadings) + np.diag(NOISE)


def tensor(values: np.ndarray) -> tf.Tensor:
    return tf.constant(values, tf.float32)


class TestResiduals:
    LOADINGS = np.random.default_rng(0).normal(size=(LATENT, ROWS, FEATURES))

    def test_precision_product(self):
        """The product with inv(Omega) of every row."""
        residuals = Residuals.of(tensor(self.LOADINGS), tensor(NOISE))
        values = np.random.default_rng(1).normal(size=(ROWS, FEATURES))
        expected = np.linalg.solve(covariances(self.LOADINGS), values[..., None])[..., 0]
        np.testing.assert_allclose(
            residuals.precision_product(tensor(values)), expected, rtol=1e-4, atol=1e-4
        )

    def test_missing_cells_are_left_out(self):
        """Observed cells have the inverse of their own block of Omega."""
        cells = np.random.default_rng(2).uniform(size=(ROWS, FEATURES)) < 0.6
        values = np.random.default_rng(3).normal(size=(ROWS, FEATURES)) * cells
        residuals = Residuals.of(tensor(self.LOADINGS), tensor(NOISE), tensor(2.0 * cells))
        found = residuals.precision_product(tensor(values)).numpy()
        for row, omega in enumerate(covariances(self.LOADINGS)):
            seen = cells[row]
            expected = np.linalg.solve(omega[np.ix_(seen, seen)], values[row, seen])
            np.testing.assert_allclose(found[row, seen], expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("is_weighted", [False, True])
    def test_lost_precision(self, is_weighted):
        """diag(1 / s) less the mean of the rows' inv(Omega), and the rows' weights."""
        weights = np.random.default_rng(4).uniform(size=ROWS) if is_weighted else np.ones(ROWS)
        residuals = Residuals.of(tensor(self.LOADINGS), tensor(NOISE))
        lost, count = residuals.lost_precision(tensor(weights) if is_weighted else None)
        each = np.diag(1.0 / NOISE) - np.linalg.inv(covariances(self.LOADINGS))
        np.testing.assert_allclose(
            lost, np.einsum("b,bpq->pq", weights, each), rtol=1e-3, atol=1e-3
        )
        np.testing.assert_allclose(count, weights.sum(), rtol=1e-5)

    def test_rows_without_a_latent(self):
        """They have the noise alone, and lose nothing."""
        residuals = Residuals.of(None, tensor(NOISE))
        ones = tf.ones((3, FEATURES))
        np.testing.assert_allclose(
            residuals.precision_product(ones), np.tile(1 / NOISE, (3, 1)), rtol=1e-6
        )
        with pytest.raises(ValueError, match=r"lose nothing. Received: factors=None"):
            residuals.lost_precision(None)


def table_with(precision: np.ndarray, size: int) -> tuple[MixedModel, np.ndarray]:
    """A term of `size` basis functions that knows some rows, and its levels' Gram matrices."""
    rng = np.random.default_rng(size)
    data = {"x": rng.normal(size=(ROWS, FEATURES)), "g": rng.integers(0, 4, ROWS)}
    data["t"] = rng.normal(size=ROWS)
    term = (
        lmm.RandomIntercept("g") if size == 1 else lmm.RandomSlopes("g", time="t", degree=size - 1)
    )
    model = lmm.LMMVAE(latent_dim=LATENT, random_effects=[term], hidden_units=(8,), seed=0)
    model.adapt(data)
    model.mixed_model.equations(Pass(with_folds(model.encode_data(data))))
    (effects,) = model.mixed_model.effects
    effects.prior.assign(EFFECT)
    effects.set_information(precision)
    return model.mixed_model, effects.table.gram.numpy()


def dense_precision(gram: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """The precision of a level's effects, coefficients before features."""
    prior = np.kron(np.eye(len(gram)), np.diag(1.0 / EFFECT))
    return np.kron(gram, precision) + prior


@pytest.mark.parametrize("size", [1, 3])
class TestInformation:
    PRECISION = np.linalg.inv(covariances(TestResiduals.LOADINGS)).mean(axis=0)

    def test_posterior_of_levels(self, size):
        """Variances and solutions are those of the dense precision of every level."""
        mixed_model, grams = table_with(self.PRECISION, size)
        (effects,) = mixed_model.effects
        effects.coefficient_covariance.assign(np.eye(size))
        effects.table.refresh(effects.prior)
        basis = np.random.default_rng(5).normal(size=(2, size))
        scores = np.random.default_rng(6).normal(size=(len(grams), size, FEATURES))
        variance = effects.table.level_variance(tensor(basis), effects.information)
        solved = effects.table.solve(tensor(scores), effects.information)
        product = effects.table.precision_product(solved, effects.prior, effects.information)
        np.testing.assert_allclose(product, scores, **CLOSE)
        for level, gram in enumerate(grams):
            covariance = np.linalg.inv(dense_precision(gram, self.PRECISION))
            expected = (covariance @ scores[level].ravel()).reshape(size, FEATURES)
            np.testing.assert_allclose(solved[level], expected, **CLOSE)
            blocks = covariance.reshape(size, FEATURES, size, FEATURES)
            by_feature = np.einsum("ifjf->fij", blocks)
            expected = np.einsum("ci,fij,cj->cf", basis, by_feature, basis)
            np.testing.assert_allclose(variance[level], expected, **CLOSE)

    def test_a_new_prior_keeps_the_precision_of_rows(self, size):
        """What a row tells does not depend on the prior."""
        (effects,) = table_with(self.PRECISION, size)[0].effects
        np.testing.assert_allclose(effects.information.precision(), self.PRECISION, **CLOSE)
        effects.set_prior(3.0 * EFFECT[::-1], None)
        np.testing.assert_allclose(effects.information.precision(), self.PRECISION, **CLOSE)

    def test_known_latent_has_the_features_for_axes(self, size):
        """A diagonal precision gives what the noise alone gives, along the features."""
        (effects,) = table_with(np.diag(1.0 / NOISE), size)[0].effects
        known = Information.given_latent(effects.prior, tensor(NOISE))
        np.testing.assert_array_equal(effects.axes, np.eye(FEATURES))
        for information in (effects.information, known):
            variance = effects.table.rotated_variance(information)
            gram = effects.table.eigenvalues.numpy()[..., None]
            np.testing.assert_allclose(variance, 1 / (gram / NOISE + 1 / EFFECT), rtol=1e-4)


def linear_model(data: dict, terms: list) -> tuple[lmm.LMMVAE, np.ndarray]:
    """A model with a linear decoder and known variances, and the decoder's matrix `(d, p)`."""
    decoder = keras.Sequential([keras.Input((LATENT,)), keras.layers.Dense(FEATURES)])
    model = lmm.LMMVAE(
        latent_dim=LATENT, random_effects=terms, hidden_units=(8,), decoder=decoder, seed=0,
        normalize=False,
    )  # fmt: skip
    model.adapt(data)
    rng = np.random.default_rng(7)
    weights = rng.normal(size=(LATENT, FEATURES))
    decoder.layers[-1].set_weights([weights, rng.normal(size=FEATURES)])
    model.likelihood.fix(NOISE)
    for effects in model.mixed_model.effects:
        effects.prior.assign(EFFECT)
    model.latent_prior.mean.assign([0.5, -1.0])
    model.latent_prior.root.assign([[1.5, 0.0], [0.4, 0.8]])
    model.fitted.assign(1.0)
    return model, weights


def make_data(missing: float = 0.0) -> dict:
    rng = np.random.default_rng(8)
    x = rng.normal(size=(ROWS, FEATURES))
    x[rng.uniform(size=x.shape) < missing] = np.nan
    return {"x": x, "g": rng.integers(0, 5, ROWS), "h": rng.integers(0, 4, ROWS)}


def centred(model: lmm.LMMVAE, weights: np.ndarray, data: dict) -> np.ndarray:
    """Rows less the mean that decoder and latent prior give."""
    bias = model.networks.decoder.trunk.layers[-1].get_weights()[1]
    return np.asarray(data["x"] - bias - model.latent_prior.mean.numpy() @ weights)


def omega(model: lmm.LMMVAE, weights: np.ndarray) -> np.ndarray:
    root = model.latent_prior.root.numpy()
    return np.asarray(weights.T @ root @ root.T @ weights + np.diag(NOISE))


def dense_effects(
    values: np.ndarray, designs: list[np.ndarray], covariance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """BLUP and covariance of all effects, levels before features, missing cells left out."""
    design = np.hstack(designs)
    size = design.shape[1] * FEATURES
    precision, score = np.zeros((size, size)), np.zeros(size)
    for phi, row in zip(design, values, strict=True):
        seen = np.isfinite(row)
        block = np.zeros((FEATURES, FEATURES))
        block[np.ix_(seen, seen)] = np.linalg.inv(covariance[np.ix_(seen, seen)])
        precision += np.kron(np.outer(phi, phi), block)
        score += np.kron(phi, block @ np.nan_to_num(row))
    posterior = np.linalg.inv(precision + np.kron(np.eye(design.shape[1]), np.diag(1 / EFFECT)))
    return (posterior @ score).reshape(-1, FEATURES), posterior


class TestEquations:
    @pytest.mark.parametrize("missing", [0.0, 0.3])
    @pytest.mark.parametrize("by_fold", [False, True])
    def test_crossed_terms_with_a_linear_decoder(self, missing, by_fold, monkeypatch):
        """The joint BLUP of two terms at the marginal covariance of the rows, of each fold."""
        monkeypatch.setattr(equations, "_FOLD_TOLERANCE", 1e-6)
        monkeypatch.setattr(equations, "_FOLD_ITERATIONS", 300)
        data = make_data(missing)
        model, weights = linear_model(data, [lmm.RandomIntercept("g"), lmm.RandomIntercept("h")])
        fit, rows = model.effects_fit, with_folds(model.encode_data(data))
        system = model.mixed_model.equations(Pass(rows))
        system.solve(by_fold, fit.training_targets, fit.noise_variance)
        fold, values = rows["_fold"].numpy(), centred(model, weights, data)
        designs = [np.eye(5)[data["g"]], np.eye(4)[data["h"]]]
        for part in (0, 1) if by_fold else (0,):
            kept = fold == part if by_fold else np.ones(ROWS, bool)
            chosen = [design[kept] for design in designs]
            mean, _ = dense_effects(values[kept], chosen, omega(model, weights))
            for effects, expected in zip(
                model.mixed_model.effects, np.split(mean, [5]), strict=True
            ):
                table = (effects.folds if by_fold else effects.table).effects.numpy()
                np.testing.assert_allclose(
                    (table[part] if by_fold else table)[:, 0], expected, **CLOSE
                )

    def test_targets_do_not_depend_on_what_the_encoder_reads(self):
        """With a linear decoder the values are the same whatever effects are taken out before."""
        model, weights = linear_model(data := make_data(), [lmm.RandomIntercept("g")])
        rows, found = model.encode_data(data), []
        for value in (0.0, 3.0):
            part = tf.fill((ROWS, FEATURES), value)
            found.append(model.infer(rows, {"g": part}).targets(model.latent_prior))
        np.testing.assert_allclose(found[0].values, found[1].values, atol=1e-4)
        np.testing.assert_allclose(found[0].values, centred(model, weights, data), atol=1e-4)
        dense = np.einsum("kbp,kbq->bpq", *[found[0].loadings.numpy()] * 2) + np.diag(NOISE)
        np.testing.assert_allclose(dense, np.tile(omega(model, weights), (ROWS, 1, 1)), rtol=1e-3)

    def test_given_rows_of_a_level(self):
        """`condition` is the BLUP and its deviation at the marginal covariance of the rows."""
        data = make_data()
        model, weights = linear_model(data, [lmm.RandomIntercept("g")])
        fit, rows = model.effects_fit, with_folds(model.encode_data(data))
        system = model.mixed_model.equations(Pass(rows))
        system.solve(False, fit.training_targets, fit.noise_variance)
        few = {"x": data["x"][:6], "g": np.full(6, 99)}
        found = model.condition(few, "g")
        values = centred(model, weights, few)
        mean, covariance = dense_effects(values, [np.ones((6, 1))], omega(model, weights))
        np.testing.assert_allclose(found.effects, mean, **CLOSE)
        np.testing.assert_allclose(
            found.standard_deviation[0], np.sqrt(np.diag(covariance)), **CLOSE
        )
        deviation = model.random_effects_table("g", std=True).to_numpy()
        counts = np.bincount(data["g"])
        for level, count in enumerate(counts):
            ones = np.ones((count, 1))
            _, covariance = dense_effects(
                np.zeros((count, FEATURES)), [ones], omega(model, weights)
            )
            np.testing.assert_allclose(deviation[level], np.sqrt(np.diag(covariance)), **CLOSE)


def test_latent_prior_takes_moments():
    """Its mean and covariance are those of the latents, by weight."""
    rng = np.random.default_rng(9)
    latent, weight = rng.normal(size=(50, 3)) + 1.0, rng.uniform(size=50)
    prior, log_var = LatentPrior(3), np.log(rng.uniform(size=(50, 3)))
    prior.build()
    rows = {"x": tensor(latent), "weight": tensor(weight)}
    prior.fit(Pass(rows), lambda batch: (batch["x"], tensor(log_var)))
    np.testing.assert_allclose(prior.mean, np.average(latent, axis=0, weights=weight), rtol=1e-4)
    root = prior.root.numpy()
    expected = np.cov(latent.T, aweights=weight, ddof=0)
    expected += np.diag(np.average(np.exp(log_var), axis=0, weights=weight))
    np.testing.assert_allclose(prior.precision(), np.linalg.inv(expected), rtol=1e-2, atol=1e-3)
    density = prior.distribution().log_prob(tensor(latent))
    exact = scipy.stats.multivariate_normal(prior.mean.numpy(), expected).logpdf(latent)
    np.testing.assert_allclose(density, exact, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(root @ root.T, expected, rtol=1e-3, atol=1e-4)


class TestLikelihood:
    def test_linear_decoder_is_exact(self):
        """Refined, the bound is the density itself, with one draw as with many."""
        data = make_data(missing=0.2)
        model, weights = linear_model(data, [lmm.RandomIntercept("g")])
        model.update_random_effects(data, keep_history=False)
        rows = model.encode_data(data)
        variance = model.variance_given_latent(rows).numpy()
        effects = model.infer(rows).contribution.numpy()
        expected = []
        for x, own in zip(centred(model, weights, data) - effects, variance, strict=True):
            seen = np.isfinite(x)
            covariance = omega(model, weights) - np.diag(NOISE) + np.diag(own)
            block = covariance[np.ix_(seen, seen)]
            expected.append(scipy.stats.multivariate_normal(cov=block).logpdf(x[seen]))
        for samples in (0, 1, 20):
            found = model.log_likelihood(data, samples)
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-2)
        assert (model.log_likelihood(data, refine=0) < np.array(expected) + 1e-2).all()


class TestCalibration:
    @pytest.mark.parametrize("factor", [0.05, 20.0])
    def test_finds_the_noise_of_held_out_rows(self, factor):
        """From a wrong start, the noise variances that the rows were simulated with."""
        rng = np.random.default_rng(10)
        data = {"x": rng.normal(size=(ROWS, FEATURES)), "g": rng.integers(0, 5, ROWS)}
        model, weights = linear_model(data, [lmm.RandomIntercept("g")])
        root, rows = model.latent_prior.root.numpy(), 4000
        latent = model.latent_prior.mean.numpy() + rng.normal(size=(rows, LATENT)) @ root.T
        bias = model.networks.decoder.trunk.layers[-1].get_weights()[1]
        x = latent @ weights + bias + rng.normal(size=(rows, FEATURES)) * np.sqrt(NOISE)
        held_out = {"x": x, "g": np.full(rows, 1)}
        (effects,) = model.mixed_model.effects
        effects.prior.assign(np.full(FEATURES, 1e-6))
        effects.set_information(np.diag(1.0 / NOISE))
        model.likelihood.fix(factor * NOISE)
        calibrate_noise(model, model.pass_over(held_out))
        # The standard error of a variance from 4,000 rows, of which the latent takes a share.
        np.testing.assert_allclose(model.noise_variance, NOISE, rtol=0.15)

    @pytest.mark.slow
    def test_held_out_rows_make_likelihoods_hold(self):
        """Networks that overfit: new rows are likelier with the noise of rows held out."""
        rng = np.random.default_rng(11)
        effects = rng.normal(size=(20, 8))

        def sample(size: int) -> dict[str, np.ndarray]:
            store, latent = rng.integers(0, 20, size), rng.normal(size=(size, 1))
            x = np.sin(latent * np.arange(1, 9)) + effects[store] + 0.3 * rng.normal(size=(size, 8))
            return {"x": x, "store": store}

        train, test, means = sample(400), sample(400), []
        for share in (0.0, 0.1):
            model = lmm.LMMVAE(
                5, [lmm.RandomIntercept("store")], hidden_units=(100,), kl_weight=0.01, seed=0
            )
            model.adapt(train)
            model.compile(keras.optimizers.Adam(0.005))
            model.fit(train, epochs=80, batch_size=50, verbose=0, calibration_split=share)
            means.append(model.log_likelihood(test, num_samples=20).mean())
        assert means[1] > means[0] + 0.5

    def test_effects_are_those_of_all_rows(self):
        """Rows that are held out teach the noise, and at the end the effects."""
        rng = np.random.default_rng(12)
        store = np.concatenate([rng.integers(0, 20, 300), [20, 21, 22]])
        x = 2.0 * rng.normal(size=(23, 4))[store] + rng.normal(size=(303, 4))
        data = {"x": x, "store": store}
        model = lmm.LMMVAE(1, [lmm.RandomIntercept("store")], hidden_units=(4,), seed=1)
        model.adapt(data)
        model.compile(run_eagerly=True)
        model.fit(data, epochs=1, batch_size=50, verbose=0, calibration_split=0.4)
        (effects,) = model.mixed_model.effects
        np.testing.assert_array_equal(effects.table.count, np.bincount(store))
        assert (np.abs(model.random_effects_table("store").to_numpy()).max(axis=1) > 0.05).all()

    @pytest.mark.parametrize(
        ("rows", "options", "share"),
        [
            (10_000, {}, 0.05),
            (9_999, {}, 0.0),
            (10_000, {"noise_variance": 1.0}, 0.0),
            (10_000, {"epochs": 0}, 0.0),
            (10_000, {"posterior": "amortized"}, 0.0),
        ],
    )
    def test_default_share(self, rows, options, share):
        """By default 5 % of 10,000 rows or more are held out, if networks learn the noise."""
        rng = np.random.default_rng(13)
        data = {"x": rng.normal(size=(rows, 3)), "store": rng.integers(0, 20, rows)}
        options = dict(options)
        epochs, noises = options.pop("epochs", 1), []
        for given in (None, share):
            model = lmm.LMMVAE(
                1, [lmm.RandomIntercept("store")], hidden_units=(4,), seed=0, **options
            )
            model.adapt(data)
            model.compile(run_eagerly=True)
            model.fit(data, epochs=epochs, batch_size=5000, verbose=0, calibration_split=given)
            noises.append(np.asarray(model.noise_variance))
        np.testing.assert_allclose(*noises, rtol=1e-5)

    def test_a_dataset_has_no_share(self):
        """Rows of a dataset cannot be chosen at random: none is held out."""
        rng = np.random.default_rng(14)
        data = {"x": rng.normal(size=(10_000, 3)), "store": rng.integers(0, 20, 10_000)}
        model = lmm.LMMVAE(1, [lmm.RandomIntercept("store")], hidden_units=(4,), seed=0)
        model.adapt(data)
        model.compile(run_eagerly=True)
        model.fit(tf.data.Dataset.from_tensor_slices(data).batch(5000), verbose=0)
        (effects,) = model.mixed_model.effects
        np.testing.assert_array_equal(effects.table.count, np.bincount(data["store"]))

    def test_bad_arguments(self):
        data = make_data()
        model = lmm.LMMVAE(1, [lmm.RandomIntercept("g")], hidden_units=(4,), seed=0)
        model.adapt(data)
        model.compile()
        expected = r"`calibration_split` must lie in \(0, 1\).*Received: calibration_split=1.5"
        with pytest.raises(ValueError, match=expected):
            model.fit(data, calibration_split=1.5)
        dataset = tf.data.Dataset.from_tensor_slices(data).batch(20)
        with pytest.raises(ValueError, match="goes with arrays, not with a dataset"):
            model.fit(dataset, calibration_split=0.1)
        given = lmm.LMMVAE(1, [], hidden_units=(4,), noise_variance=1.0)
        given.adapt(data)
        given.compile()
        expected = "learns the noise variance, which is given. Received: calibration_split=0.1"
        with pytest.raises(ValueError, match=expected):
            given.fit(data, calibration_split=0.1)
        expected = r"goes with networks that are trained.*Received: calibration_split=0.1"
        with pytest.raises(ValueError, match=expected):
            model.fit(data, epochs=0, calibration_split=0.1)


@pytest.mark.slow
def test_intervals_in_the_span_of_the_decoder():
    """With a linear truth 90 % intervals cover 85-95 %, and the error is that of the exact BLUP.

    150 levels of 20 rows, 13 features, 5 latents. Given the latent, as before, the intervals
    cover about half in the span of the decoder.
    """
    rng = np.random.default_rng(0)
    p, d, levels = 13, 5, 150
    loadings = rng.normal(size=(p, d)) / np.sqrt(d)
    truth = rng.normal(size=(levels, p)) * np.sqrt(0.3)
    code = np.repeat(np.arange(levels), 20)
    x = rng.normal(size=(len(code), d)) @ loadings.T + truth[code]
    x += rng.normal(size=x.shape) * np.sqrt(0.3)
    inverse = np.linalg.inv(loadings @ loadings.T + 0.3 * np.eye(p))
    sums = np.stack([(x - x.mean(axis=0))[code == level].sum(axis=0) for level in range(levels)])
    exact = sums @ inverse @ np.linalg.inv(20 * inverse + np.eye(p) / 0.3)
    model = lmm.LMMVAE(
        latent_dim=d, hidden_units=(100, 50), random_effects=[lmm.RandomIntercept("g")], seed=0
    )
    data = {"x": x, "g": code}
    model.adapt(data)
    model.compile()
    model.fit(data, epochs=60, batch_size=256, verbose=0)
    (effects,) = model.mixed_model.effects
    span, _ = np.linalg.qr(loadings)
    truth -= truth.mean(axis=0)
    error = model.random_effects_table("g").to_numpy() - truth
    axes = effects.information.from_axes(tf.eye(p)).numpy() * np.asarray(model.feature_scale)
    left = 1.0 / (effects.information.strength(effects.table.eigenvalues.value)[:, 0] + 1.0)
    deviation = np.sqrt(np.einsum("lq,qa->la", left, np.square(axes @ span)))
    coverage = np.mean(np.abs(error @ span) < 1.645 * deviation)
    assert 0.85 < coverage < 0.95
    ratio = np.sqrt(np.mean(error**2) / np.mean((exact - truth) ** 2))
    assert ratio < 1.05
