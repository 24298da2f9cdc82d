"""Intervals of variance components: against closed forms, and how often they hold the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from small_models import constant_decoder, known_model, small_model

import keras_lmmvae as lmm
from keras_lmmvae.inspection.intervals import limits_of_variance


def fitted(terms: list[Any], data: dict[str, np.ndarray], **options: Any) -> lmm.LMMVAE:
    model = small_model(terms, decoder=constant_decoder(data["x"].shape[1]), **options)
    model.adapt(data)
    model.compile("adam")
    model.fit(data, batch_size=len(data["x"]), verbose=0)
    return model


def coverage(model: lmm.LMMVAE, component: str, truth: float) -> float:
    table = model.variance_intervals(0.9).loc[component]
    return float(((table["lower"] <= truth) & (truth <= table["upper"])).mean())


class TestLimits:
    @pytest.mark.parametrize("level", [0.5, 0.95])
    def test_known_units_give_the_chi_square_interval(self, level):
        """Without noise, 12 levels of which 11 are free: 11 * estimate / chi2(11)."""
        limits = limits_of_variance(np.ones((12, 1)), np.array([2.0 / 11.0]), level)
        tails = (0.5 + level / 2.0, 0.5 - level / 2.0)
        expected = [11.0 / stats.chi2.ppf(tail, 11) for tail in tails]
        np.testing.assert_allclose(np.ravel(limits), expected, rtol=1e-6)

    def test_balanced_levels(self):
        """Levels alike, the noise known: limits of the sum of both variances, less the noise's.

        The mean of 5 rows of noise variance 1 has the variance 0.2. At an estimate of 0.3 a level
        keeps 0.6, and `2 / (levels * 0.6**2)` is the variance of the estimate's logarithm.
        """
        levels, estimate, noise = 40, 0.3, 0.2
        kept = estimate / (estimate + noise)
        limits = limits_of_variance(
            np.full((levels, 1), kept), np.array([2.0 / (levels * kept**2)]), 0.9
        )
        tails = stats.chi2.ppf([0.95, 0.05], levels)
        expected = ((estimate + noise) * levels / tails - noise) / estimate
        np.testing.assert_allclose(np.ravel(limits), expected, rtol=1e-6)

    def test_upper_limit_of_nothing_is_the_noise_of_the_means(self):
        """An estimate of almost 0: lower limit 0, upper near z * noise * sqrt(2 / levels)."""
        tiny, levels = 1e-6, 400
        kept = tiny / (tiny + 1.0)
        lower, upper = limits_of_variance(
            np.full((levels, 1), kept), np.array([2.0 / (levels * kept**2)]), 0.9
        )
        assert lower == 0.0
        assert tiny * upper[0] == pytest.approx(1.645 * np.sqrt(2.0 / levels), rel=0.2)


class TestCoverage:
    """Features are repetitions: 300 of them, standard error of the coverage 0.017.

    The bounds are 3.5 standard errors from 0.9; intervals that are wrong by a factor of the
    square root of 2 would cover 0.76 or 0.98.
    """

    P, BOUND = 300, 0.06

    def test_unequal_groups(self):
        rng = np.random.default_rng(2)
        g = np.repeat(np.arange(80), rng.integers(1, 12, 80))
        x = rng.normal(size=(80, self.P))[g] + rng.normal(size=(len(g), self.P))
        model = fitted([lmm.RandomIntercept("g")], {"x": x, "g": g})
        assert coverage(model, "g", 1.0) == pytest.approx(0.9, abs=self.BOUND)
        assert coverage(model, "noise", 1.0) == pytest.approx(0.9, abs=self.BOUND)

    def test_few_levels(self):
        """Six levels: one of them is spent on the mean."""
        rng = np.random.default_rng(3)
        g = np.arange(600) % 6
        x = 2.0 * rng.normal(size=(6, self.P))[g] + rng.normal(size=(600, self.P))
        model = fitted([lmm.RandomIntercept("g")], {"x": x, "g": g})
        assert coverage(model, "g", 4.0) == pytest.approx(0.9, abs=self.BOUND)

    def test_nested_terms(self):
        """What classes vary is in the means of schools: by itself a school's interval is short."""
        rng = np.random.default_rng(4)
        classes = rng.integers(0, 160, 1600)
        school = classes // 4
        x = rng.normal(size=(40, self.P))[school] + rng.normal(size=(1600, self.P))
        x += np.sqrt(2.0) * rng.normal(size=(160, self.P))[classes]
        terms = [lmm.RandomIntercept("school"), lmm.RandomIntercept("class")]
        model = fitted(terms, {"x": x, "school": school, "class": classes})
        assert coverage(model, "school", 1.0) == pytest.approx(0.9, abs=self.BOUND)
        assert coverage(model, "class", 2.0) == pytest.approx(0.9, abs=self.BOUND)

    def test_slopes(self):
        """Both coefficients, in units of t."""
        rng = np.random.default_rng(5)
        g = np.repeat(np.arange(60), 10)
        t = rng.uniform(0.0, 4.0, len(g))
        effects = np.linalg.cholesky([[2.0, -0.4], [-0.4, 0.5]]) @ rng.normal(size=(60, 2, self.P))
        x = effects[g, 0] + effects[g, 1] * t[:, None] + rng.normal(size=(len(g), self.P))
        model = fitted([lmm.RandomSlopes("g", time="t")], {"x": x, "g": g, "t": t})
        assert coverage(model, "g: intercept", 2.0) == pytest.approx(0.9, abs=self.BOUND)
        assert coverage(model, "g: t", 0.5) == pytest.approx(0.9, abs=self.BOUND)


class TestTable:
    @pytest.fixture(scope="class")
    def data(self):
        rng = np.random.default_rng(6)
        return {"x": 3.0 * rng.normal(size=(80, 2)), "g": np.arange(80) % 10}

    def test_form(self, data):
        """Component and feature by limits; estimates are `variance_components`, in their units."""
        model = fitted([lmm.RandomIntercept("g")], data)
        table = model.variance_intervals()
        assert table.index.names == ["component", "feature"]
        assert list(table.columns) == ["lower", "estimate", "upper"]
        components = model.variance_components()
        np.testing.assert_allclose(table["estimate"].unstack().loc[components.index], components)
        assert (table["lower"] <= table["estimate"]).all()
        assert (table["estimate"] <= table["upper"]).all()
        wider = model.variance_intervals(0.99)
        assert (wider["upper"] > table["upper"]).all()

    def test_a_given_noise_variance_is_known(self, data):
        model = fitted([lmm.RandomIntercept("g")], data, noise_variance=2.0)
        np.testing.assert_allclose(model.variance_intervals().loc["noise"], 2.0, rtol=1e-5)

    def test_one_level_says_nothing_of_a_variance(self, data):
        """One level: from 0 to infinity."""
        one = {**data, "g": np.zeros(80, int)}
        model = known_model([lmm.RandomIntercept("g")], one, 9.0, {"g": 1.0})
        table = model.variance_intervals().loc["g"]
        assert (table["lower"] == 0.0).all()
        assert np.isinf(table["upper"]).all()

    def test_errors(self, data):
        model = fitted([lmm.RandomIntercept("g")], data)
        with pytest.raises(ValueError, match=r"`level`.*between 0 and 1. Received: level=90"):
            model.variance_intervals(90)
        plain = small_model()
        plain.adapt(data)
        with pytest.raises(ValueError, match=r"not fitted yet"):
            plain.variance_intervals()
        plain.fitted.assign(1.0)
        with pytest.raises(ValueError, match=r"no random effects.*Received: terms=0"):
            plain.variance_intervals()
        amortized = small_model([lmm.RandomIntercept("g")], posterior="amortized")
        amortized.adapt(data)
        amortized.fitted.assign(1.0)
        with pytest.raises(ValueError, match=r"does not learn the var.*posterior='amortized'"):
            amortized.variance_intervals()
