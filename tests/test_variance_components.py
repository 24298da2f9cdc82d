"""Variance components: against REML of statsmodels, and against simulated truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from small_models import constant_decoder, small_model

import keras_lmmvae as lmm


def fitted(terms: list, data: dict[str, np.ndarray], **options: Any) -> lmm.LMMVAE:
    """A linear mixed model, fitted as any model is."""
    model = small_model(terms, decoder=constant_decoder(data["x"].shape[1]), **options)
    model.adapt(data)
    model.compile("adam")
    model.fit(data, batch_size=len(data["x"]), verbose=0)
    return model


def draw(rng: np.random.Generator, levels: int, variance: np.ndarray) -> np.ndarray:
    """Effects of some levels, `(levels, p)`, whose mean square is `variance` exactly."""
    effects = rng.normal(size=(levels, len(variance)))
    return effects * np.sqrt(variance / np.mean(effects**2, axis=0))


class TestAgainstREML:
    """One feature, 150 levels of 6 to 14 rows.

    Not equal to REML: the effect variance is what two halves of the rows agree on, which is
    as unbiased but spends some of the data; the difference of the two estimates has a
    standard deviation of about 2 % here, the bounds are 5 % and, for slopes, 8 %.
    """

    @pytest.fixture(scope="class")
    def data(self):
        rng = np.random.default_rng(0)
        store = np.repeat(np.arange(150), rng.integers(6, 15, 150))
        t = rng.uniform(0.0, 4.0, len(store))
        root = np.linalg.cholesky([[2.0, -0.4], [-0.4, 0.5]])
        effects = rng.normal(size=(150, 2)) @ root.T
        noise = rng.normal(size=len(store)) * np.sqrt(1.5)
        intercepts = 5.0 + effects[store, 0] + noise
        return {
            "store": store,
            "t": t,
            "x": intercepts[:, None],
            "slopes": (intercepts + effects[store, 1] * t)[:, None],
        }

    def test_random_intercept(self, data):
        """Effect and noise variance of `y ~ 1 + (1 | store)`."""
        frame = pd.DataFrame({"y": data["x"][:, 0], "store": data["store"]})
        reml = smf.mixedlm("y ~ 1", frame, groups="store").fit(reml=True)
        components = fitted([lmm.RandomIntercept("store")], data).variance_components()[0]
        assert components["store"] == pytest.approx(float(reml.cov_re.iloc[0, 0]), rel=0.05)
        assert components["noise"] == pytest.approx(reml.scale, rel=0.05)

    def test_random_slopes(self, data):
        """Covariance of intercepts and slopes of `y ~ 1 + (1 + t | store)`, in units of t."""
        frame = pd.DataFrame({"y": data["slopes"][:, 0], "store": data["store"], "t": data["t"]})
        frame["y"] -= frame["y"].mean()
        model = fitted([lmm.RandomSlopes("store", time="t")], {**data, "x": data["slopes"]})
        reml = smf.mixedlm("y ~ 0", frame, groups="store", re_formula="~ t").fit(reml=True)
        components = model.variance_components()[0]
        psi = model.coefficient_covariance("store")
        covariance = psi * (components["store: t"] / psi.loc["t", "t"])
        assert covariance.loc["intercept", "intercept"] == pytest.approx(
            components["store: intercept"], rel=1e-5
        )
        np.testing.assert_allclose(covariance, reml.cov_re, rtol=0.08, atol=0.05)
        assert components["noise"] == pytest.approx(reml.scale, rel=0.05)


class TestRecovery:
    VARIANCES = np.array([0.3, 1.0, 3.0, 1.0, 0.3, 1.0])
    NOISE = np.array([1.0, 0.5, 2.0, 1.0, 1.0, 2.0])

    def simulate(self, codes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(1)
        n = len(next(iter(codes.values())))
        x = 10.0 + rng.normal(size=(n, 6)) * np.sqrt(self.NOISE)
        for number, column in enumerate(codes.values()):
            x += draw(rng, column.max() + 1, np.roll(self.VARIANCES, number))[column]
        return {"x": x, **codes}

    def check(self, data: dict[str, np.ndarray], names: list[str]) -> None:
        model = fitted([lmm.RandomIntercept(name) for name in names], data)
        components = model.variance_components()
        for number, name in enumerate(names):
            ratio = components.loc[name] / np.roll(self.VARIANCES, number)
            assert ratio.mean() == pytest.approx(1.0, abs=0.15), name
        np.testing.assert_allclose(components.loc["noise"], self.NOISE, rtol=0.1)

    def test_crossed_factors(self):
        """Two crossed factors: each one's variance within 15 % on average over the features."""
        rng = np.random.default_rng(2)
        codes = {"store": rng.integers(0, 120, 3000), "item": rng.integers(0, 80, 3000)}
        self.check(self.simulate(codes), ["store", "item"])

    def test_nested_factors(self):
        """Classes within schools: what classes of one school share is the school's."""
        rng = np.random.default_rng(3)
        classes = rng.integers(0, 400, 3000)
        codes = {"school": classes // 5, "class": classes}
        self.check(self.simulate(codes), ["school", "class"])

    def test_no_effect(self):
        """Levels without any effect: variances near 0, tables near 0, the noise keeps it all.

        An estimate from the product of half means of about 5 rows has, over 200 levels, a
        standard error of noise / 5 / sqrt(200) = 1.4 % of the noise; bound: 5 of them.
        """
        rng = np.random.default_rng(4)
        x = rng.normal(size=(2000, 6)) * np.sqrt(self.NOISE)
        data = {"x": x, "store": rng.integers(0, 200, 2000), "item": rng.integers(0, 150, 2000)}
        model = fitted([lmm.RandomIntercept("store"), lmm.RandomIntercept("item")], data)
        components = model.variance_components()
        for name in ("store", "item"):
            assert (components.loc[name] < 0.07 * self.NOISE).all()
            assert (components.loc[name] / self.NOISE).mean() < 0.02
        np.testing.assert_allclose(components.loc["noise"], x.var(axis=0), rtol=0.05)

    @pytest.mark.parametrize("step", [1.0, 4.0])
    def test_features_with_few_values(self, step):
        """Rounded features, where many rows are equal: the estimates of the analysis of variance.

        The folds must be random samples of the rows, although equal rows look the same; a fold
        that says which value a row has makes these variances 0. The estimates differ by about
        2 %, as those of `TestAgainstREML` do.
        """
        rng = np.random.default_rng(7)
        store = rng.integers(0, 100, 3000)
        x = np.round((draw(rng, 100, np.array([1.0]))[store] + rng.normal(size=(3000, 1))) / step)
        counts = np.bincount(store)
        means = np.bincount(store, x[:, 0]) / counts
        noise = np.sum((x[:, 0] - means[store]) ** 2) / (3000 - 100)
        between = means.var(ddof=1) - noise * np.mean(1 / counts)
        model = fitted([lmm.RandomIntercept("store")], {"x": x, "store": store})
        components = model.variance_components()[0]
        assert components["store"] == pytest.approx(between, rel=0.1)
        assert components["noise"] == pytest.approx(noise, rel=0.03)

    def test_given_noise_variance_stays(self):
        """`noise_variance=` is not learned; effects are shrunken by it."""
        rng = np.random.default_rng(5)
        data = self.simulate({"store": rng.integers(0, 50, 600)})
        model = fitted([lmm.RandomIntercept("store")], data, noise_variance=3.0)
        np.testing.assert_allclose(model.variance_components().loc["noise"], 3.0, rtol=1e-5)

    def test_names_of_the_features(self):
        """Components are term x feature, under the names given."""
        rng = np.random.default_rng(6)
        data = self.simulate({"store": rng.integers(0, 20, 200)})
        data["t"] = rng.uniform(size=200)
        model = fitted([lmm.RandomSlopes("store", time="t", degree=2)], data)
        components = model.variance_components(list("abcdef"))
        assert components.columns.tolist() == list("abcdef")
        assert components.index.tolist() == ["store: intercept", "store: t", "store: t^2", "noise"]
        assert (components > 0).all(axis=None)


class TestFewLevels:
    """Six levels, 4000 features alike: the mean estimate shows what a single one is biased by."""

    LEVELS, FEATURES, ROWS = 6, 4000, 120

    def table(self, shift: float) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        store = np.arange(self.ROWS) % self.LEVELS
        effects = shift + rng.normal(size=(self.LEVELS, self.FEATURES))
        x = effects[store] + rng.normal(size=(self.ROWS, self.FEATURES))
        return {"x": 0.2 * x, "store": store}

    def variances(self, data: dict[str, np.ndarray], **options: Any) -> np.ndarray:
        model = fitted([lmm.RandomIntercept("store")], data, **options)
        return model.variance_components().loc["store"].to_numpy() / 0.2**2

    @pytest.mark.slow
    def test_unbiased_though_the_mean_is_estimated(self):
        """E[estimate] = 1; without the level that the mean takes it would be 5/6."""
        estimate = self.variances(self.table(0.0)).mean()
        # Standard deviation of the mean: sqrt(2 / 5 * (1 + 1 / 20)**2 / 4000) is 0.010.
        assert estimate == pytest.approx(1.0, abs=0.04)

    @pytest.mark.slow
    def test_what_all_levels_share_is_no_variance(self):
        """A mean that nothing else takes up, as where a surface has a level of its own."""
        plain = self.variances(self.table(0.0), normalize=False)
        shifted = self.variances(self.table(3.0), normalize=False)
        assert shifted.mean() == pytest.approx(plain.mean(), rel=0.05)
