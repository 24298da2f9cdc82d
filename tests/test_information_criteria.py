"""Likelihoods of linear mixed models, against dense covariances and statsmodels; tests of terms."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
import tensorflow as tf
from reference import kernel_matrix
from scipy import stats
from small_models import DenseTerm, known_model, small_model

import keras_lmmvae as lmm
from keras_lmmvae.inspection.likelihood_ratio import _p_value

ROWS = 150
UNITS = np.array([1.0, 30.0, 0.1])
NOISE = np.array([0.5, 1.0, 1.5]) * UNITS**2
STORE = np.array([1.0, 0.3, 2.0]) * UNITS**2
ITEM = np.array([0.4, 1.0, 0.8]) * UNITS**2
PSI = np.array([[1.4, 0.3], [0.3, 0.6]])
LENGTH_SCALE = 0.8


def columns(seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of 3 features in different units, with all that the terms read."""
    rng = np.random.default_rng(seed)
    store, item = rng.integers(0, 12, ROWS), rng.integers(0, 20, ROWS)
    store[:12], item[:20] = np.arange(12), np.arange(20)
    places = rng.uniform(0.0, 4.0, size=(25, 2))[rng.integers(0, 25, ROWS)]
    x = 5.0 + rng.normal(size=(ROWS, 3)) + rng.normal(size=(12, 3))[store]
    x = UNITS * (x + 0.5 * rng.normal(size=(20, 3))[item])
    t = rng.uniform(0.0, 5.0, ROWS)
    return {"x": x, "store": store, "item": item, "t": t, "a": places[:, 0], "b": places[:, 1]}


def surface(data: dict[str, np.ndarray]) -> DenseTerm:
    """A Gaussian process whose places are all inducing points: one effect a row."""
    places = np.stack([data["a"], data["b"]], axis=1)
    covariance = kernel_matrix("matern32", places, places, LENGTH_SCALE)
    return DenseTerm(np.eye(ROWS), covariance, ITEM)


class Case(NamedTuple):
    """Terms of a model, and the same as dense matrices."""

    terms: Callable[[], list[Any]]
    dense: Callable[[dict[str, np.ndarray]], list[DenseTerm]]
    tolerance: float = 2e-3


def slopes_of(data: dict[str, np.ndarray]) -> DenseTerm:
    basis = np.stack([np.ones(ROWS), data["t"]], axis=1)
    return DenseTerm.of_levels(data["store"], STORE, basis, PSI)


def gaussian_process() -> lmm.SpatialEffect:
    return lmm.SpatialEffect(("a", "b"), "matern32", LENGTH_SCALE, name="place")


CASES = {
    "no term": Case(list, lambda data: []),
    "intercept": Case(
        lambda: [lmm.RandomIntercept("store")],
        lambda data: [DenseTerm.of_levels(data["store"], STORE)],
    ),
    "slopes": Case(lambda: [lmm.RandomSlopes("store", time="t")], lambda data: [slopes_of(data)]),
    "crossed": Case(
        lambda: [lmm.RandomIntercept("store"), lmm.RandomIntercept("item")],
        lambda data: [
            DenseTerm.of_levels(data["store"], STORE),
            DenseTerm.of_levels(data["item"], ITEM),
        ],
    ),
    # The basis is computed in float32.
    "surface": Case(lambda: [gaussian_process()], lambda data: [surface(data)], 0.02),
    "slopes, intercept and surface": Case(
        lambda: [
            lmm.RandomSlopes("store", time="t"),
            lmm.RandomIntercept("item"),
            gaussian_process(),
        ],
        lambda data: [slopes_of(data), DenseTerm.of_levels(data["item"], ITEM), surface(data)],
        0.02,
    ),
}


def dense_log_likelihood(
    values: np.ndarray, terms: list[DenseTerm], method: str, weights: np.ndarray
) -> np.ndarray:
    """By the rows' covariance, each row standing there as often as its weight says."""
    found = []
    for feature in range(values.shape[1]):
        rows = np.repeat(np.arange(len(values)), weights)
        rows = rows[np.isfinite(values[rows, feature])]
        covariance = NOISE[feature] * np.eye(len(rows))
        for term in terms:
            design = term.design[rows]
            covariance += term.variance[feature] * design @ term.shape @ design.T
        inverse = np.linalg.inv(covariance)
        ones = inverse.sum()
        residual = values[rows, feature]
        residual = residual - inverse.sum(axis=0) @ residual / ones
        total = np.linalg.slogdet(covariance)[1] + residual @ inverse @ residual
        if method == "reml":
            total += (len(rows) - 1) * np.log(2.0 * np.pi) + np.log(ones)
        else:
            total += len(rows) * np.log(2.0 * np.pi)
        found.append(-0.5 * total)
    return np.array(found)


def linear(name: str, data: dict[str, np.ndarray], **options: Any) -> lmm.LMMVAE:
    """A linear mixed model with known variances."""
    terms = CASES[name].terms()
    variance = {"store": STORE, "item": ITEM, "place": ITEM}
    psi = {"store": PSI} if "slopes" in name else None
    model = known_model(terms, data, NOISE, variance, psi, **options)
    model.networks.in_use.assign([0.0])
    return model


def without_networks(terms: Any, data: dict[str, np.ndarray], **options: Any) -> lmm.LMMVAE:
    """A model that counts as fitted, its variances where they start."""
    model = small_model(terms, **options)
    model.adapt(data)
    model.fitted.assign(1.0)
    model.networks.in_use.assign([0.0])
    return model


def fitted(terms: Any, data: dict[str, np.ndarray], **options: Any) -> lmm.LMMVAE:
    model = small_model(terms, **options)
    model.adapt(data)
    model.compile()
    model.fit(data, epochs=0, batch_size=32, verbose=0)
    return model


def check_likelihoods(name: str, data: dict[str, np.ndarray], weights: np.ndarray) -> None:
    """Compares both likelihoods with those of dense matrices."""
    model, dense = linear(name, data), CASES[name].dense(data)
    for method in ("reml", "ml"):
        found = model.information_criteria(data, method, weights)["log_likelihood"]
        expected = dense_log_likelihood(data["x"], dense, method, weights)
        np.testing.assert_allclose(found.iloc[:3], expected, atol=CASES[name].tolerance)
        assert found["(all)"] == pytest.approx(found.iloc[:3].sum())


@pytest.mark.parametrize("name", CASES)
class TestAgainstDenseMatrices:
    def test_all_rows(self, name):
        """The likelihood by the inverse of the rows' covariance, in the features' units."""
        check_likelihoods(name, columns(), np.ones(ROWS, int))

    def test_missing_cells_and_weights(self, name):
        """Cells left out feature by feature; a row of weight 2 is two rows, of weight 0 none."""
        data, rng = columns(1), np.random.default_rng(0)
        data["x"][:, :2][rng.uniform(size=(ROWS, 2)) < 0.3] = np.nan
        check_likelihoods(name, data, rng.integers(0, 3, ROWS))


class TestRows:
    def test_rows_without_a_level(self):
        """A missing key: the row has no effect of the term, and counts."""
        data = columns()
        store = data["store"].astype(object)
        store[[3, 50, 51]] = None
        data["store"] = np.array(store)
        model = linear("intercept", data)
        found = model.information_criteria(data)["log_likelihood"].iloc[:3]
        (term,) = CASES["intercept"].dense(columns())
        term.design[[3, 50, 51]] = 0.0
        expected = dense_log_likelihood(data["x"], [term], "reml", np.ones(ROWS, int))
        np.testing.assert_allclose(found, expected, atol=2e-3)

    def test_units_do_not_matter(self):
        """Standardised inside or not: the same likelihood."""
        data = columns()
        found = [
            linear("crossed", data, normalize=normalize).information_criteria(data)
            for normalize in (True, False)
        ]
        pd.testing.assert_frame_equal(*found, rtol=1e-5)

    def test_datasets(self):
        """Batches of a dataset give what arrays give."""
        data = columns()
        model = linear("slopes", data)
        batches = tf.data.Dataset.from_tensor_slices(data).batch(40)
        found = model.information_criteria(batches)
        pd.testing.assert_frame_equal(found, model.information_criteria(data))

    def test_small_noise(self):
        """Noise at 1e-5 of the variance: no digits are lost in float64."""
        data = columns()
        model = linear("crossed", data, normalize=False)
        small = {"noise": 1e-5 * NOISE[0], "scale": float(STORE[0])}
        model.noise_variance.assign(np.full(3, small["noise"]))
        found = model.information_criteria(data)["log_likelihood"].iloc[0]
        covariance = small["noise"] * np.eye(ROWS)
        for term in CASES["crossed"].dense(data):
            covariance += term.variance[0] * term.design @ term.design.T
        inverse = np.linalg.inv(covariance)
        values = data["x"][:, 0].astype(np.float32).astype(np.float64)
        residual = values - inverse.sum(axis=0) @ values / inverse.sum()
        log_det = np.linalg.slogdet(covariance)[1] + np.log(inverse.sum())
        expected = (ROWS - 1) * np.log(2 * np.pi) + log_det + residual @ inverse @ residual
        assert found == pytest.approx(-0.5 * expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:The MLE may be on the boundary")
class TestAgainstStatsmodels:
    @pytest.fixture(scope="class")
    def data(self):
        return columns(2)

    def frame(self, data, feature):
        return pd.DataFrame({"y": data["x"][:, feature], "store": data["store"]})

    def test_restricted_likelihood(self, data):
        """`llf` of a REML fit at its maximum: the constants are the same."""
        found = fitted("(1 | store)", data).information_criteria(data)["log_likelihood"]
        for feature in range(3):
            reml = smf.mixedlm("y ~ 1", self.frame(data, feature), groups="store").fit(reml=True)
            assert found[feature] == pytest.approx(reml.llf, abs=1e-3)

    def test_full_likelihood(self, data):
        """`llf`, AIC and BIC of an ML fit, at its own variances."""
        model = fitted("(1 | store)", data)
        for feature in range(3):
            full = smf.mixedlm("y ~ 1", self.frame(data, feature), groups="store").fit(reml=False)
            scale = np.asarray(model.feature_scale, np.float64)[feature] ** 2
            model.likelihood.fix(np.full(3, full.scale / scale))
            (effects,) = model.mixed_model.effects
            effects.set_prior(np.full(3, float(full.cov_re.iloc[0, 0]) / scale), None)
            found = model.information_criteria(data, "ml").loc[feature]
            assert found["log_likelihood"] == pytest.approx(full.llf, abs=1e-3)
            assert found["aic"] == pytest.approx(full.aic, abs=2e-3)
            assert found["bic"] == pytest.approx(full.bic, abs=2e-3)


class TestParameters:
    @pytest.mark.parametrize(
        ("terms", "options", "own", "shared"),
        [
            ((), {}, 2, 0),
            ("(1 | store)", {}, 3, 0),
            ("(1 | store)", {"noise_variance": 1.0}, 2, 0),
            ("(1 + t | store) + (1 | item)", {}, 4, 2),
            ("(1 + t + a | store)", {}, 3, 5),
            ("(1 | store) + gp(a, b, num_inducing=10)", {}, 4, 1),
            ("gp(a, b, num_inducing=10, length_scale=1.0)", {}, 3, 0),
        ],
    )
    def test_counts(self, terms, options, own, shared):
        """Intercept, noise if learned, a variance a term; entries of Psi and length scales once."""
        data = columns()
        found = without_networks(terms, data, **options).information_criteria(data)
        assert found["parameters"].to_dict() == {0: own, 1: own, 2: own, "(all)": 3 * own + shared}

    def test_criteria_follow_from_the_likelihood(self):
        """AIC has 2 a parameter, BIC the log of a feature's cells, or of all for shared ones."""
        data = columns()
        data["x"][:30, 1] = np.nan
        model = without_networks("(1 + t | store)", data)
        table = model.information_criteria(data)
        likelihood, parameters = table["log_likelihood"], np.array([3, 3, 3, 11])
        np.testing.assert_allclose(table["aic"], 2 * parameters - 2 * likelihood)
        cells = np.array([150, 120, 150])
        penalty = np.append(3 * np.log(cells), 3 * np.log(cells).sum() + 2 * np.log(420))
        np.testing.assert_allclose(table["bic"], penalty - 2 * likelihood)

    def test_cells_are_counted_by_weight(self):
        """BIC of rows of weight 3 has the logarithm of three times as many cells."""
        data = columns()
        model = linear("intercept", data)
        table = model.information_criteria(data, sample_weight=np.full(ROWS, 3.0))
        penalty = (table["bic"] + 2 * table["log_likelihood"]).iloc[0]
        assert penalty == pytest.approx(2 * np.log(3 * ROWS))


class TestLikelihoodRatio:
    @pytest.fixture(scope="class")
    def null(self):
        """200 features without effects, 40 levels of 5 rows."""
        rng = np.random.default_rng(0)
        group = np.repeat(np.arange(40), 5)
        data = {"x": rng.normal(size=(200, 200)), "g": group, "t": rng.uniform(size=200)}
        return data, fitted((), data), fitted("(1 | g)", data)

    def test_statistic(self):
        """Twice the difference of the log likelihoods; half the tail of chi-square(1).

        All 3 features: chi-squares of 0, 1, 2, 3 with the weights 1, 3, 3, 1 over 8.
        """
        data = columns()
        one, other = (fitted(terms, data) for terms in ("(1 | store)", "(1 | store) + (1 | item)"))
        for method in ("reml", "ml"):
            found = lmm.likelihood_ratio_test(one, other, data, method)
            tables = [model.information_criteria(data, method) for model in (one, other)]
            difference = tables[1]["log_likelihood"] - tables[0]["log_likelihood"]
            np.testing.assert_allclose(found["statistic"], np.maximum(2 * difference, 0.0))
            assert found["degrees_of_freedom"].to_dict() == {0: 1, 1: 1, 2: 1, "(all)": 3}
            expected = 0.5 * stats.chi2.sf(found["statistic"].iloc[:3], 1)
            np.testing.assert_allclose(found["p_value"].iloc[:3], expected)
            tails = stats.chi2.sf(found.loc["(all)", "statistic"], [1, 2, 3])
            assert found.loc["(all)", "p_value"] == pytest.approx(tails @ [3, 3, 1] / 8)

    def test_weights_reach_both_models(self):
        """The statistic of weighted rows is that of their likelihoods."""
        data, weights = columns(), np.random.default_rng(0).integers(1, 4, ROWS)
        models = [fitted((), data), fitted("(1 | store)", data)]
        found = lmm.likelihood_ratio_test(*models, data, sample_weight=weights)["statistic"]
        one, other = (model.information_criteria(data, "reml", weights) for model in models)
        expected = 2 * (other["log_likelihood"] - one["log_likelihood"])
        np.testing.assert_allclose(found, expected)

    def test_size(self, null):
        """No effects: of 200 features about 5 % have p < 0.05, and about half p = 1.

        Standard errors 0.015 and 0.035. With 40 levels the estimate is 0 in 53 % of the tables.
        """
        data, one, other = null
        found = lmm.likelihood_ratio_test(one, other, data)["p_value"]
        assert 0.02 <= (found.iloc[:-1] < 0.05).mean() <= 0.09
        assert 0.42 <= (found.iloc[:-1] > 0.5).mean() <= 0.64
        assert found["(all)"] > 0.05

    def test_small_effects_of_many_features(self, null):
        """Effects of variance 0.1 in all features: "(all)" sees what most features do not."""
        data, one, _ = null
        rng = np.random.default_rng(1)
        x = data["x"] + np.sqrt(0.1) * rng.normal(size=(40, 200))[data["g"]]
        data = {**data, "x": x}
        found = lmm.likelihood_ratio_test(fitted((), data), fitted("(1 | g)", data), data)
        assert (found["p_value"].iloc[:-1] > 0.05).mean() > 0.4
        assert found.loc["(all)", "p_value"] < 1e-9

    def test_further_slopes(self):
        """An intercept against slopes: 2 further entries of Psi, chi-squares of 1 and 2."""
        rng, data = np.random.default_rng(0), columns()
        data["x"] = rng.normal(size=(ROWS, 3)) + rng.normal(size=(12, 3))[data["store"]]
        data["x"] += 0.3 * rng.normal(size=(12, 3))[data["store"]] * data["t"][:, None]
        one, other = (fitted(f"({part} | store)", data) for part in ("1", "1 + t"))
        found = lmm.likelihood_ratio_test(one, other, data)
        assert found["degrees_of_freedom"].tolist() == [2, 2, 2, 2]
        statistic = found["statistic"]
        expected = 0.5 * stats.chi2.sf(statistic, 1) + 0.5 * stats.chi2.sf(statistic, 2)
        np.testing.assert_allclose(found["p_value"], expected)
        assert found.loc["(all)", "p_value"] < 1e-4
        further = lmm.likelihood_ratio_test(without_networks((), data), other, data)
        assert further["degrees_of_freedom"].tolist() == [3, 3, 3, 5]

    def test_all_features(self):
        """The sum of 5 squares of normals, each counted where positive, by 200,000 draws.

        The standard error of a tail probability is at most 0.0011.
        """
        draws = np.maximum(np.random.default_rng(0).normal(size=(200_000, 5)), 0.0)
        sums = np.square(draws).sum(axis=1)
        for statistic in (0.5, 3.0, 8.0):
            assert _p_value(statistic, 5, 5) == pytest.approx((sums > statistic).mean(), abs=0.005)

    @pytest.mark.parametrize("features", [1, 10, 40])
    def test_slopes_of_all_features(self, features):
        """A further term with slopes: rejects at most 5 %, by 2,000 draws of the limit.

        With scores `g[f]` of independent standard normals the statistic is the largest of
        `sum{ max(0, <Psi, g[f]>)^2 }` over 2 x 2 covariances `Psi` of norm 1.
        """
        angles = np.linspace(0.0, np.pi / 4.0, 12)  # the cone of covariances, by its axis
        turns = np.linspace(0.0, 2.0 * np.pi, 25)[:-1]
        angle, turn = (grid.ravel() for grid in np.meshgrid(angles, turns))
        shapes = np.stack(
            [np.cos(angle), np.sin(angle) * np.cos(turn), np.sin(angle) * np.sin(turn)]
        )
        scores = np.random.default_rng(0).normal(size=(2000, features, 3))
        squares = [np.square(np.maximum(draw @ shapes, 0.0)).sum(axis=0).max() for draw in scores]
        p_values = np.array([_p_value(square, features + 2, 1) for square in squares])
        assert (p_values < 0.05).mean() <= 0.05

    @pytest.mark.parametrize("freedom", [1, 3])
    def test_no_difference(self, freedom):
        """A statistic of 0 has p-value 1."""
        assert _p_value(0.0, freedom, 1) == 1.0

    def test_lower_likelihood_of_the_larger(self):
        """Variances away from the maximum: the statistic is 0 and its p-value 1."""
        data = columns()
        one, other = fitted((), data), fitted("(1 | item)", data)
        other.likelihood.fix(np.full(3, 10.0))
        found = lmm.likelihood_ratio_test(one, other, data)
        assert found[["statistic", "p_value"]].to_numpy().tolist() == [[0.0, 1.0]] * 4


class TestErrors:
    @pytest.fixture(scope="class")
    def data(self):
        return columns()

    @pytest.fixture(scope="class")
    def model(self, data):
        return without_networks("(1 | store)", data)

    def test_method(self, data, model):
        with pytest.raises(ValueError, match=r"expected 'reml' or 'ml'\. Received: method='REML'"):
            model.information_criteria(data, "REML")

    def test_not_fitted(self, data):
        model = small_model("(1 | store)")
        model.adapt(data)
        with pytest.raises(ValueError, match="not fitted yet"):
            model.information_criteria(data)

    def test_networks(self, data):
        model = without_networks("(1 | store)", data)
        model.networks.in_use.assign([1.0])
        text = "fit with `epochs=0`; `log_likelihood` is a lower bound.*networks_in_use=True"
        with pytest.raises(ValueError, match=text):
            model.information_criteria(data)

    @pytest.mark.parametrize("terms", ["(1 | store)", ()])
    def test_amortized(self, data, terms):
        model = without_networks(terms, data, posterior="amortized")
        with pytest.raises(ValueError, match="posterior='conjugate'.*Received: posterior="):
            model.information_criteria(data)

    def test_weight_of_the_kl(self, data):
        model = without_networks("(1 | store)", data, effects_kl_weight=2.0)
        with pytest.raises(ValueError, match=r"REML's only with.*effects_kl_weight=2\.0"):
            model.information_criteria(data)

    def test_unknown_levels(self, data, model):
        store = data["store"].copy()
        store[7:9] = 99
        text = "levels of 'store' that the model was not fitted to.*rows=2, first=7"
        with pytest.raises(ValueError, match=text):
            model.information_criteria({**data, "store": store})

    @pytest.mark.parametrize("weight", [np.ones(3), np.full(ROWS, -1.0)])
    def test_weights(self, data, model, weight):
        with pytest.raises(ValueError, match="must be 150 finite non-negative numbers"):
            model.information_criteria(data, sample_weight=weight)

    def test_weights_of_a_dataset(self, data, model):
        batches = tf.data.Dataset.from_tensor_slices(data).batch(40)
        with pytest.raises(ValueError, match="goes with arrays, not with a dataset"):
            model.information_criteria(batches, sample_weight=np.ones(ROWS))

    def test_no_models(self, data, model):
        text = "compares two LMMVAEs. Received: larger='str'"
        with pytest.raises(ValueError, match=text):
            lmm.likelihood_ratio_test(model, "(1 | store)", data)

    def test_features(self, data, model):
        other = without_networks("(1 | store) + (1 | item)", {**data, "x": data["x"][:, :2]})
        text = r"same features. Received: smaller=\[0, 1, 2\], larger=\[0, 1\]"
        with pytest.raises(ValueError, match=text):
            lmm.likelihood_ratio_test(model, other, data)

    def test_noise(self, data, model):
        other = without_networks("(1 | store) + (1 | item)", data, noise_variance=1.0)
        text = r"or be given the same. Received: smaller=None, larger=1\.0"
        with pytest.raises(ValueError, match=text):
            lmm.likelihood_ratio_test(model, other, data)

    @pytest.mark.parametrize(
        ("larger", "text"),
        [
            ("(1 | item)", "lacks the term(s) ['store'] of the smaller"),
            ("(1 | store)", "Both models have the same terms, expected more of the larger"),
        ],
    )
    def test_terms(self, data, model, larger, text):
        with pytest.raises(ValueError, match=re.escape(text)):
            lmm.likelihood_ratio_test(model, without_networks(larger, data), data)

    def test_other_terms_of_one_name(self, data, model):
        other = without_networks([lmm.RandomIntercept("item", name="store")], data)
        text = "The term 'store' of the smaller model is not a part of that of the larger"
        with pytest.raises(ValueError, match=text):
            lmm.likelihood_ratio_test(model, other, data)
