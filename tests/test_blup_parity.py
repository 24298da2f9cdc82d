"""Random effects of the model = dense best linear unbiased prediction, in the features' units.

The decoder is a constant, so the model is a linear mixed model; its variances are given. The
dense side works on `x - mean`, which is what the model standardises.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from reference import gaussian_process_posterior, kernel_matrix
from small_models import DenseTerm, constant_decoder, dense_blup, known_model, small_model

import keras_lmmvae as lmm
from keras_lmmvae.mixed_model import equations
from keras_lmmvae.mixed_model.residuals import Residuals, Targets
from keras_lmmvae.rows import Pass, Rows, with_folds

NOISE = np.array([0.5, 1.0, 4.0])
STORE = np.array([1.5, 0.2, 3.0])
CITY = np.array([0.4, 2.0, 1.0])
PSI = np.array([[1.0, -0.3, 0.1], [-0.3, 0.5, -0.1], [0.1, -0.1, 0.2]])
OFFSET = np.array([100.0, -3.0, 0.0])
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def make_data(n: int = 160, missing: float = 0.0) -> dict[str, np.ndarray]:
    """Rows with effects of all kinds; keys are strings and integers, sizes uneven."""
    rng = np.random.default_rng(0)
    store = np.minimum(rng.geometric(0.15, n), 12)
    city = rng.integers(0, 7, n)
    t = rng.uniform(-2.0, 3.0, n)
    place = rng.integers(0, 12, n)
    x = OFFSET + rng.normal(size=(n, 3)) * np.sqrt(NOISE)
    x += rng.normal(size=(13, 3))[store] * np.sqrt(STORE) * (1 + 0.3 * t[:, None])
    x += rng.normal(size=(7, 3))[city] * np.sqrt(CITY)
    x += np.sin(place)[:, None]
    x[:, :2] = np.where(rng.uniform(size=(n, 2)) < missing, np.nan, x[:, :2])
    return {
        "x": x,
        "store": np.array([f"ståre {key}" for key in store]),
        "city": city * 10 - 20,
        "t": t,
        "east": place % 4 * 1.0,
        "north": place // 4 * 1.5,
    }


def centred(data: dict[str, np.ndarray]) -> np.ndarray:
    return data["x"] - np.nanmean(data["x"], axis=0)


def solved(terms: list, data: dict[str, np.ndarray], **variances) -> lmm.LMMVAE:
    model = known_model(terms, data, NOISE, **variances)
    model.update_random_effects(data, keep_history=False)
    return model


def solve_all_rows(model: lmm.LMMVAE, rows: Rows) -> None:
    """Makes the table for new rows the solution for these encoded rows."""
    system = model.mixed_model.equations(Pass(with_folds(rows)))
    system.solve(False, lambda batch: Targets(batch["x"]), model.effects_fit.noise_variance)


def powers(t: np.ndarray, degree: int) -> np.ndarray:
    return t[:, None] ** np.arange(degree + 1.0)


def places(data: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack([data["east"], data["north"]], axis=1)


def process_term(data: dict[str, np.ndarray], variance: np.ndarray) -> DenseTerm:
    """The rbf process with length scale 1.2 at the distinct places, as one effect a place."""
    distinct, codes = np.unique(places(data), axis=0, return_inverse=True)
    shape = kernel_matrix("rbf", distinct, distinct, 1.2)
    return DenseTerm(np.eye(len(distinct))[codes], shape, variance)


def surface() -> lmm.SpatialEffect:
    return lmm.SpatialEffect(("east", "north"), length_scale=1.2)


class TestOneTerm:
    @pytest.mark.parametrize("normalize", [True, False])
    def test_intercept(self, normalize):
        """Table and standard deviations: mean and root of the diagonal of the dense posterior."""
        data = make_data()
        data["x"] = data["x"] if normalize else centred(data)
        model = known_model(
            [lmm.RandomIntercept("store")], data, NOISE, {"store": STORE}, normalize=normalize
        )
        model.update_random_effects(data, keep_history=False)
        mean, covariance = dense_blup(
            centred(data), [DenseTerm.of_levels(data["store"], STORE)], NOISE
        )
        table = model.random_effects_table("store")
        assert table.index.tolist() == sorted(set(data["store"]))
        np.testing.assert_allclose(table, mean, **CLOSE)
        deviation = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)).T
        np.testing.assert_allclose(
            model.random_effects_table("store", std=True), deviation, **CLOSE
        )

    def test_fixed_noise_variance_is_in_units(self):
        """`noise_variance=` is in the features' squared units, one number for all features."""
        data = make_data()
        model = small_model(
            [lmm.RandomIntercept("city")], decoder=constant_decoder(3), noise_variance=2.0
        )
        model.adapt(data)
        scale = np.square(model.feature_scale)
        model.mixed_model.of("city").effect_variance.assign(CITY / scale)
        model.fitted.assign(1.0)
        model.update_random_effects(data, keep_history=False)
        mean, _ = dense_blup(centred(data), [DenseTerm.of_levels(data["city"], CITY)], 2.0)
        np.testing.assert_allclose(model.random_effects_table("city"), mean, **CLOSE)
        np.testing.assert_allclose(model.variance_components().loc["noise"], 2.0, rtol=1e-5)

    @pytest.mark.parametrize("degree", [1, 2])
    def test_slopes(self, degree):
        """Coefficients of (1, t, t**2) and their deviations, in the units of the time column.

        The deviations of rows at other times need the covariances between the coefficients.
        """
        data, psi = make_data(), PSI[: degree + 1, : degree + 1]
        model = solved(
            [lmm.RandomSlopes("store", time="t", degree=degree)],
            data,
            effect_variance={"store": STORE},
            coefficient_covariance={"store": psi},
        )
        term = DenseTerm.of_levels(data["store"], STORE, powers(data["t"], degree), psi)
        mean, covariance = dense_blup(centred(data), [term], NOISE)
        np.testing.assert_allclose(model.random_effects_table("store"), mean, **CLOSE)
        deviation = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)).T
        actual = model.random_effects_table("store", std=True)
        np.testing.assert_allclose(actual, deviation, **CLOSE)
        later = {**data, "t": data["t"] + 1.0}
        term = DenseTerm.of_levels(data["store"], STORE, powers(later["t"], degree), psi)
        prediction = model.predictive(later)
        np.testing.assert_allclose(prediction.contributions["store"], term.design @ mean, **CLOSE)
        variance = np.einsum("nq,fqr,nr->nf", term.design, covariance, term.design) + NOISE
        np.testing.assert_allclose(prediction.standard_deviation, np.sqrt(variance), **CLOSE)

    def test_slopes_of_covariates(self):
        """An intercept and a slope per covariate, each in its own units."""
        data = make_data()
        data["dose"] = 50.0 * data["east"] + data["t"]
        psi = np.diag([1.0, 0.2, 2e-4])
        term = lmm.RandomSlopes("store", covariates=["t", "dose"])
        model = solved(
            [term], data, effect_variance={"store": STORE}, coefficient_covariance={"store": psi}
        )
        basis = np.stack([np.ones(len(data["t"])), data["t"], data["dose"]], axis=1)
        dense = DenseTerm.of_levels(data["store"], STORE, basis, psi)
        mean, _ = dense_blup(centred(data), [dense], NOISE)
        table = model.random_effects_table("store")
        assert table.index[:3].tolist() == [
            ("ståre 1", "intercept"), ("ståre 1", "t"), ("ståre 1", "dose")
        ]  # fmt: skip
        np.testing.assert_allclose(table, mean, **CLOSE)
        np.testing.assert_allclose(
            model.reconstruct(data) - np.mean(data["x"], 0), dense.design @ mean, **CLOSE
        )

    def test_missing_cells(self):
        """NaN cells do not count: the mean is the BLUP over the observed cells, each feature's."""
        data = make_data(missing=0.3)
        intercept = (lmm.RandomIntercept("store"), None, None)
        slopes = (lmm.RandomSlopes("store", time="t"), powers(data["t"], 1), PSI[:2, :2])
        for term, basis, psi in (intercept, slopes):
            covariance = None if psi is None else {"store": psi}
            model = solved(
                [term], data, effect_variance={"store": STORE}, coefficient_covariance=covariance
            )
            dense = DenseTerm.of_levels(data["store"], STORE, basis, psi)
            mean, _ = dense_blup(centred(data), [dense], NOISE)
            np.testing.assert_allclose(model.random_effects_table("store"), mean, **CLOSE)

    def test_rows_without_a_level_do_not_count(self):
        """Null keys, and rows without their time, leave the effects of the others alone."""
        data = make_data()
        data["store"] = np.where(np.arange(160) % 5 == 0, None, data["store"].astype(object))
        data["t"][::7] = np.nan
        kept = np.flatnonzero((np.arange(160) % 5 != 0) & np.isfinite(data["t"]))
        term = lmm.RandomSlopes("store", time="t")
        model = solved(
            [term],
            data,
            effect_variance={"store": STORE},
            coefficient_covariance={"store": PSI[:2, :2]},
        )
        keys = data["store"][kept].astype(str)
        dense = DenseTerm.of_levels(keys, STORE, powers(data["t"][kept], 1), PSI[:2, :2])
        mean, _ = dense_blup(centred(data)[kept], [dense], NOISE)
        np.testing.assert_allclose(model.random_effects_table("store"), mean, **CLOSE)


class TestSeveralTerms:
    @pytest.mark.parametrize("missing", [0.0, 0.3])
    def test_crossed_intercepts(self, missing):
        """Two crossed factors are solved jointly, not one after the other."""
        data = make_data(missing=missing)
        terms = [lmm.RandomIntercept("store"), lmm.RandomIntercept("city")]
        model = solved(terms, data, effect_variance={"store": STORE, "city": CITY})
        dense = [
            DenseTerm.of_levels(data[name], v) for name, v in (("store", STORE), ("city", CITY))
        ]
        mean, _ = dense_blup(centred(data), dense, NOISE)
        stores = dense[0].design.shape[1]
        np.testing.assert_allclose(model.random_effects_table("store"), mean[:stores], **CLOSE)
        np.testing.assert_allclose(model.random_effects_table("city"), mean[stores:], **CLOSE)
        apart, _ = dense_blup(centred(data), dense[:1], NOISE)
        assert np.abs(apart - mean[:stores]).max() > 0.1

    def test_terms_of_all_kinds(self):
        """Slopes, intercepts and a surface in one model: every part of every row."""
        data = make_data(missing=0.2)
        terms = [lmm.RandomSlopes("store", time="t"), lmm.RandomIntercept("city"), surface()]
        model = solved(
            terms,
            data,
            effect_variance={"store": STORE, "city": CITY, "east_north": 1.5},
            coefficient_covariance={"store": PSI[:2, :2]},
        )
        dense = {
            "store": DenseTerm.of_levels(data["store"], STORE, powers(data["t"], 1), PSI[:2, :2]),
            "city": DenseTerm.of_levels(data["city"], CITY),
            "east_north": process_term(data, 1.5),
        }
        mean, _ = dense_blup(centred(data), list(dense.values()), NOISE)
        prediction, start = model.predictive(data), 0
        for name, term in dense.items():
            part = mean[start : start + term.design.shape[1]]
            start += len(part)
            np.testing.assert_allclose(
                prediction.contributions[name], term.design @ part, err_msg=name, **CLOSE
            )
        total = prediction.population + sum(prediction.contributions.values())
        np.testing.assert_allclose(prediction.mean, total, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("by_fold", [False, True])
    def test_equations(self, by_fold, monkeypatch):
        """The solution of the equations is the dense one: of all rows, or of each fold's apart."""
        name = "_FOLD_TOLERANCE" if by_fold else "_FINAL_TOLERANCE"
        monkeypatch.setattr(equations, name, 1e-6)
        monkeypatch.setattr(equations, "_FOLD_ITERATIONS", 200)
        data = make_data(missing=0.2)
        terms = [lmm.RandomSlopes("store", time="t"), lmm.RandomIntercept("city")]
        model = known_model(
            terms, data, NOISE, {"store": STORE, "city": CITY}, {"store": PSI[:2, :2]}
        )
        rows = with_folds(model.encode_data(data))
        system = model.mixed_model.equations(Pass(rows))
        noise = model.effects_fit.noise_variance
        system.residuals = [Residuals(noise)]
        right_side = system.scores(rows["x"] / noise, system.chunks[0], by_fold)
        start = {name: tf.zeros_like(value) for name, value in right_side.items()}
        solution = system.solution(by_fold, right_side, start)
        assert solution.residual < 1e-6
        assert solution.iterations < 100
        fold = rows["_fold"].numpy()
        for part in (0, 1) if by_fold else (0,):
            kept = fold == part if by_fold else np.ones(len(fold), bool)
            dense = [
                DenseTerm.of_levels(data["store"], STORE, powers(data["t"], 1), PSI[:2, :2]),
                DenseTerm.of_levels(data["city"], CITY),
            ]
            mean, _ = dense_blup(centred(data), dense, NOISE, weights=kept * 1.0)
            scale = np.asarray(model.feature_scale)
            for term, expected in zip(model.random_effects, np.split(mean, [24]), strict=True):
                table = solution.effects[term.label].numpy()
                table = table[part] if by_fold else table
                table = np.einsum("ij,ljf->lif", term.user_basis(), table)
                np.testing.assert_allclose(
                    table.reshape(expected.shape) * scale, expected, err_msg=term.label, **CLOSE
                )


class TestSpatial:
    ELSEWHERE = np.array([[0.5, 0.7], [2.2, 2.9], [9.0, 9.0], [0.0, 0.0]])

    @pytest.fixture(scope="class")
    def data(self):
        return make_data()

    @pytest.fixture(scope="class")
    def model(self, data):
        return solved([surface()], data, effect_variance={"east_north": STORE})

    def at(self, points: np.ndarray) -> dict[str, np.ndarray]:
        return {"x": np.zeros((len(points), 3)), "east": points[:, 0], "north": points[:, 1]}

    def test_known_places(self, model, data):
        """At the places of the data: mean and deviation of the dense posterior."""
        mean, covariance = dense_blup(centred(data), [process_term(data, STORE)], NOISE)
        table = model.random_effects_table("east_north")
        distinct = np.unique(places(data), axis=0)
        np.testing.assert_allclose(table.index.to_frame(), distinct, atol=1e-5)
        np.testing.assert_allclose(table, mean, **CLOSE)
        deviation = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)).T
        actual = model.random_effects_table("east_north", std=True)
        np.testing.assert_allclose(actual, deviation, **CLOSE)

    def test_unseen_places(self, model, data):
        """Anywhere else: the Gaussian process's prediction, with its variance."""
        prediction = model.predictive(self.at(self.ELSEWHERE))
        rows = places(data)
        kernels = [
            kernel_matrix("rbf", a, b, 1.2)
            for a, b in ((rows, rows), (self.ELSEWHERE, rows), (self.ELSEWHERE, self.ELSEWHERE))
        ]
        for feature in range(3):
            train, cross, test = (STORE[feature] * kernel for kernel in kernels)
            values = centred(data)[:, [feature]]
            mean, covariance = gaussian_process_posterior(
                train, cross, test, values, NOISE[feature]
            )
            actual = prediction.contributions["east_north"][:, [feature]]
            np.testing.assert_allclose(actual, mean, **CLOSE)
            deviation = np.sqrt(np.diag(covariance) + NOISE[feature])
            actual = prediction.standard_deviation[:, feature]
            np.testing.assert_allclose(actual, deviation, **CLOSE)

    def test_tensorflow_probability(self, model, data):
        """The same from `tfd.GaussianProcessRegressionModel`, an independent implementation."""
        kernel = tfp.math.psd_kernels.ExponentiatedQuadratic(
            np.sqrt(STORE[1]), length_scale=np.float64(1.2)
        )
        process = tfp.distributions.GaussianProcessRegressionModel(
            kernel,
            index_points=self.ELSEWHERE,
            observation_index_points=places(data),
            observations=centred(data)[:, 1],
            observation_noise_variance=NOISE[1],
            predictive_noise_variance=NOISE[1],
        )
        prediction = model.predictive(self.at(self.ELSEWHERE))
        actual = prediction.contributions["east_north"][:, 1]
        np.testing.assert_allclose(actual, process.mean(), **CLOSE)
        np.testing.assert_allclose(prediction.standard_deviation[:, 1], process.stddev(), **CLOSE)

    def test_far_away_is_the_prior(self, model, data):
        """Far from all data the effect is 0 and its variance that of the prior."""
        prediction = model.predictive(self.at(np.array([[500.0, -500.0]])))
        np.testing.assert_allclose(prediction.contributions["east_north"], 0.0, atol=1e-5)
        np.testing.assert_allclose(
            prediction.standard_deviation, np.sqrt(STORE + NOISE)[None], rtol=1e-5
        )


class TestRowWeights:
    WEIGHTS = np.random.default_rng(3).choice([0.0, 0.5, 1.0, 2.0], 160)

    @pytest.mark.parametrize("missing", [0.0, 0.3])
    def test_weighted_rows(self, missing):
        """A row of weight w has the noise variance / w: 0 leaves it out."""
        data = make_data(missing=missing)
        terms = [lmm.RandomSlopes("store", time="t"), lmm.RandomIntercept("city")]
        model = known_model(
            terms, data, NOISE, {"store": STORE, "city": CITY}, {"store": PSI[:2, :2]}
        )
        weight = tf.constant(self.WEIGHTS, tf.float32)
        solve_all_rows(model, {**model.encode_data(data), "weight": weight})
        dense = [
            DenseTerm.of_levels(data["store"], STORE, powers(data["t"], 1), PSI[:2, :2]),
            DenseTerm.of_levels(data["city"], CITY),
        ]
        mean, _ = dense_blup(centred(data), dense, NOISE, self.WEIGHTS)
        np.testing.assert_allclose(model.random_effects_table("store"), mean[:24], **CLOSE)
        np.testing.assert_allclose(model.random_effects_table("city"), mean[24:], **CLOSE)

    def test_weight_two_is_the_row_twice(self):
        """Rows of weight 2 and the same rows twice: one solution."""
        data, counts = make_data(), np.random.default_rng(4).integers(0, 3, 160)
        repeated = {name: np.repeat(column, counts, axis=0) for name, column in data.items()}
        tables = []
        for rows, weights in ((data, counts), (repeated, np.ones(counts.sum()))):
            terms = [lmm.RandomSlopes("store", time="t"), lmm.RandomIntercept("city")]
            model = known_model(
                terms, data, NOISE, {"store": STORE, "city": CITY}, {"store": PSI[:2, :2]}
            )
            weight = tf.constant(weights, tf.float32)
            solve_all_rows(model, {**model.encode_data(rows), "weight": weight})
            tables.append([model.random_effects_table(name) for name in ("store", "city")])
        for weighted, twice in zip(*tables, strict=True):
            np.testing.assert_allclose(weighted, twice, **CLOSE)

    def test_weight_zero_is_no_row(self):
        """The whole fit, variances and tables: rows of weight 0 might as well not be there."""
        data = make_data()
        # They stand last: the folds of the others go by their row numbers.
        is_kept = np.arange(160) < 112
        kept = {name: column[is_kept] for name, column in data.items()}
        results = []
        for rows, weights in ((data, is_kept), (kept, None)):
            model = small_model([lmm.RandomSlopes("store", time="t")], decoder=constant_decoder(3))
            model.adapt(data)
            model.compile("sgd")
            model.fit(rows, batch_size=len(rows["t"]), sample_weight=weights, verbose=0)
            results.append((model.variance_components(), model.random_effects_table("store")))
        for weighted, twice in zip(*results, strict=True):
            np.testing.assert_allclose(weighted, twice, rtol=1e-3, atol=1e-3)
