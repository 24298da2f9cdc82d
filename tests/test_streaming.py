"""The closed-form steps inside training reach the exact effects; what must not matter does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_models import constant_decoder, known_model, small_model

import keras_lmmvae as lmm
from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.mixed_model import equations
from keras_lmmvae.mixed_model.residuals import Targets
from keras_lmmvae.rows import EFFECTS, FOLD, Pass, with_folds

NOISE = np.array([0.5, 1.0, 2.0])
VARIANCE = {"store": np.array([1.5, 0.2, 3.0]), "city": np.array([0.4, 2.0, 1.0]), "place": 1.0}
PSI = {"store": np.array([[1.0, -0.3], [-0.3, 0.5]])}
TERMS: dict[str, Callable[[], list]] = {
    "intercept": lambda: [lmm.RandomIntercept("store")],
    "crossed": lambda: [lmm.RandomIntercept("store"), lmm.RandomIntercept("city")],
    "slopes": lambda: [lmm.RandomSlopes("store", time="t")],
    "surface": lambda: [lmm.SpatialEffect(("east", "north"), length_scale=1.2, name="place")],
    "all": lambda: [
        lmm.RandomSlopes("store", time="t"),
        lmm.RandomIntercept("city"),
        lmm.SpatialEffect(("east", "north"), length_scale=1.2, name="place"),
    ],
}


def make_data(n: int = 200) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    store, city, place = rng.integers(0, 10, n), rng.integers(0, 6, n), rng.integers(0, 9, n)
    x = rng.normal(size=(n, 3)) * np.sqrt(NOISE)
    x += (rng.normal(size=(10, 3)) * np.sqrt(VARIANCE["store"]))[store]
    x += (rng.normal(size=(6, 3)) * np.sqrt(VARIANCE["city"]))[city]
    t = rng.uniform(-2.0, 2.0, n)
    east, north = place % 3 * 1.0, place // 3 * 1.0
    return {"x": x, "store": store, "city": city, "t": t, "east": east, "north": north}


class Stream:
    """A model at known variances whose fold tables start at zero, and steps on its rows."""

    def __init__(self, terms: str) -> None:
        data = make_data()
        made = TERMS[terms]()
        psi = PSI if isinstance(made[0], lmm.RandomSlopes) else None
        self.model = known_model(made, data, NOISE, VARIANCE, psi)
        self.rows = with_folds(self.model.encode_data(data))
        self.equations = self.model.mixed_model.equations(Pass(self.rows))
        self.step = tf.function(self._step, autograph=False, reduce_retracing=True)

    def _step(self, rows: Any) -> None:
        fit = self.model.effects_fit
        effects = fit.training_effects(rows)
        seen = self.model.infer(rows, effects.parts)
        fit.after_gradient(rows, effects, seen.residual, seen.error)

    def take(self, chosen: np.ndarray) -> Any:
        return tf.nest.map_structure(lambda value: tf.gather(value, chosen), self.rows)

    @property
    def tables(self) -> list[np.ndarray]:
        return [effects.folds.effects.numpy() for effects in self.model.mixed_model.effects]

    def exact(self) -> list[np.ndarray]:
        """Both folds' joint solutions; `test_blup_parity` compares the solver with dense ones."""
        before = self.tables
        self._assign([np.zeros_like(table) for table in before])
        with mock.patch.object(equations, "_FOLD_TOLERANCE", 1e-6):
            noise = self.model.effects_fit.noise_variance
            self.equations.solve(True, lambda rows: Targets(rows["x"]), noise)
        exact = self.tables
        self._assign(before)
        return exact

    def _assign(self, tables: list[np.ndarray]) -> None:
        for effects, table in zip(self.model.mixed_model.effects, tables, strict=True):
            effects.folds.effects.assign(table)


class TestSteps:
    @pytest.mark.parametrize("terms", TERMS)
    def test_full_batches_reach_the_exact_folds(self, terms):
        """Steps on all rows, term after term: the joint solution of every fold's equations."""
        stream = Stream(terms)
        for _ in range(200):
            stream.step(stream.rows)
        for actual, expected in zip(stream.tables, stream.exact(), strict=True):
            np.testing.assert_allclose(actual, expected, atol=1e-4)

    @pytest.mark.parametrize("terms", ["intercept", "slopes"])
    def test_batches_of_whole_levels_reach_the_exact_folds(self, terms):
        """One epoch of batches that hold all rows of their levels: the exact solution."""
        stream = Stream(terms)
        codes = stream.rows[EFFECTS]["store"]["codes"].numpy()
        for levels in np.array_split(np.arange(10), 4):
            stream.step(stream.take(np.flatnonzero(np.isin(codes, levels))))
        for actual, expected in zip(stream.tables, stream.exact(), strict=True):
            np.testing.assert_allclose(actual, expected, atol=1e-4)

    @pytest.mark.parametrize("terms", ["intercept", "crossed", "slopes", "surface"])
    def test_mini_batches_are_right_on_average(self, terms):
        """Steps on random mini-batches move around the exact solution.

        A step weighs the rows of its batch more than those seen long ago, so a table is noisy;
        but it expects to move nowhere from the exact solution. So the mean of the tables, every
        fifth of which hardly knows of the one before, is exact within 5 standard errors.
        """
        stream, rng, seen = Stream(terms), np.random.default_rng(1), []
        for number in range(2000):
            stream.step(stream.take(rng.permutation(200)[:40]))
            if number >= 50 and number % 5 == 0:
                seen.append(stream.tables)
        for actual, expected in zip(zip(*seen, strict=True), stream.exact(), strict=True):
            error = np.abs(np.mean(actual, axis=0) - expected)
            bound = 5 * 1.5 * np.std(actual, axis=0) / np.sqrt(len(actual))
            assert (error < bound + 1e-4).all(), (error / (bound + 1e-4)).max()
            assert bound.mean() < 0.1


def started(terms: list, data: dict[str, np.ndarray], fold: np.ndarray | None = None) -> lmm.LMMVAE:
    """A model at the linear mixed model that training starts from, with given folds or its own."""
    model = small_model(terms, decoder=constant_decoder(3))
    model.adapt(data)
    rows = with_folds(model.encode_data(data))
    if fold is not None:
        rows[FOLD] = tf.constant(fold, tf.int32)
    model.effects_fit.begin(Pass(rows), is_fitted=False)
    model.fitted.assign(1.0)
    return model


def with_places(data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows with the number of their place, 0 to 8, in the order of the coordinates."""
    return {**data, "place": data["east"].astype(int) * 3 + data["north"].astype(int)}


def uncorrelated_surface() -> lmm.SpatialEffect:
    """A process whose values at two places have nothing to do with each other."""
    return lmm.SpatialEffect(("east", "north"), length_scale=0.01, name="place")


def indicator_of_places() -> RandomEffect:
    """A term with one level, whose basis is the indicator of the place."""

    @keras.saving.register_keras_serializable(package="tests")
    class Indicator(RandomEffect):
        def __init__(self, name: str = "place") -> None:
            super().__init__((), ("place",), name)

        def update_state(self, columns: dict[str, np.ndarray]) -> None:
            pass

        def finalize_state(self) -> None:
            self.num_levels, self.basis_size = 1, 9

        def reset_state(self) -> None:
            pass

        def codes(self, columns: Any, tables: Any) -> tf.Tensor:
            return tf.zeros(tf.shape(columns["place"])[0], tf.int32)

        def inputs(self, columns: Any) -> tf.Tensor:
            return tf.cast(columns["place"], tf.float32)[:, None]

        def basis(self, encoded: Any) -> tf.Tensor:
            return tf.one_hot(tf.cast(encoded["inputs"][:, 0], tf.int32), 9)

        def level_names(self) -> list[Any]:
            return list(range(9))

        def coefficient_names(self) -> list[str]:
            return ["intercept"]

    return Indicator()


def assert_same_tables(one: lmm.LMMVAE, other: lmm.LMMVAE) -> None:
    """Effects of the places and their standard deviations agree."""
    for std in (False, True):
        np.testing.assert_allclose(
            one.random_effects_table("place", std=std),
            other.random_effects_table("place", std=std),
            rtol=1e-4,
            atol=1e-5,
        )


class TestStart:
    FOLD = np.random.default_rng(5).integers(0, 2, 200)

    def test_slopes_of_degree_zero_are_intercepts(self):
        """One term of time is a random intercept: the same start, and the same whole fit."""
        data = make_data()
        tables = []
        for term in (lmm.RandomIntercept("store"), lmm.RandomSlopes("store", time="t", degree=0)):
            model = started([term], data)
            tables.append([model.variance_components(), model.random_effects_table("store")])
            model = small_model([term])
            model.adapt(data)
            model.compile("adam")
            model.fit(data, epochs=2, batch_size=50, shuffle=False, verbose=0)
            tables[-1] += [model.variance_components(), model.reconstruct(data)]
        for intercept, slopes in zip(*tables, strict=True):
            np.testing.assert_array_equal(intercept, slopes)

    def test_surface_without_correlation_is_categorical(self):
        """A process with a tiny length scale has an independent effect for every place.

        At the same variances it is the random intercept of the places. Learned, its variances
        are those of a term whose basis is the indicator of the place.
        """
        data = with_places(make_data())
        spatial, categorical = (
            known_model([term], data, NOISE, {"place": VARIANCE["city"]})
            for term in (uncorrelated_surface(), lmm.RandomIntercept("place"))
        )
        for model in (spatial, categorical):
            model.update_random_effects(data, keep_history=False)
        assert_same_tables(spatial, categorical)
        spatial, indicator = (
            started([term], data) for term in (uncorrelated_surface(), indicator_of_places())
        )
        np.testing.assert_allclose(
            spatial.variance_components(), indicator.variance_components(), rtol=1e-4
        )
        assert_same_tables(spatial, indicator)

    def test_order_of_the_rows_does_not_matter(self):
        """Rows in another order, each in the fold that it was in, give the same model."""
        data, order = make_data(), np.random.default_rng(2).permutation(200)
        permuted = {name: column[order] for name, column in data.items()}
        pairs = ((data, self.FOLD), (permuted, self.FOLD[order]))
        models = [started(TERMS["slopes"](), *pair) for pair in pairs]
        one, other = (model.variance_components() for model in models)
        np.testing.assert_allclose(one, other, rtol=1e-3)
        one, other = (model.random_effects_table("store") for model in models)
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)

    def test_names_of_the_levels_do_not_matter(self):
        """Relabelled levels, the folds as before: the same variances, and the same effects under
        the new names."""
        data, names = make_data(), np.random.default_rng(3).permutation(10)
        relabelled = {**data, "store": np.array([f"store {name}" for name in names])[data["store"]]}
        models = [started(TERMS["slopes"](), rows, self.FOLD) for rows in (data, relabelled)]
        one, other = (model.variance_components() for model in models)
        np.testing.assert_allclose(one, other, rtol=1e-3)
        one, other = (model.random_effects_table("store") for model in models)
        other = other.loc[[f"store {name}" for name in names]]
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)

    def test_order_of_the_terms_does_not_matter(self):
        """Terms are solved jointly; only the simulated calibration of their variances differs."""
        data = make_data()
        orders = (TERMS["crossed"](), TERMS["crossed"]()[::-1])
        models = [started(terms, data, self.FOLD) for terms in orders]
        one, other = (
            model.variance_components().loc[["store", "city", "noise"]] for model in models
        )
        np.testing.assert_allclose(one, other, rtol=0.2, atol=0.05)
