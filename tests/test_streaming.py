"""The closed-form steps inside training reach the exact effects; what must not matter does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from small_models import constant_decoder, known_model, small_model

import keras_lmmvae as lmm
from keras_lmmvae.layers import fold_moments
from keras_lmmvae.model import equations
from keras_lmmvae.model.rows import EFFECTS

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
        self.rows = self.model.encode_data(data)
        self.equations = equations.MixedModelEquations(self.model, self.rows)
        self.equations.set_designs()
        self.step = tf.function(self._step, autograph=False, reduce_retracing=True)

    def _step(self, rows: Any) -> None:
        terms = self.model.elbo_terms(rows, training=True)
        self.model.effects_fit.after_gradient(rows, terms.residual, terms.error)

    def take(self, chosen: np.ndarray) -> Any:
        return tf.nest.map_structure(lambda value: tf.gather(value, chosen), self.rows)

    @property
    def tables(self) -> list[np.ndarray]:
        return [term.posterior.fold_effects.numpy() for term in self.model.random_effects]

    def exact(self) -> list[np.ndarray]:
        """Both folds' joint solutions; `test_blup_parity` compares the solver with dense ones."""
        before = self.tables
        self._assign([np.zeros_like(table) for table in before])
        with mock.patch.object(equations, "_FOLD_TOLERANCE", 1e-6):
            self.equations.solve(True, lambda rows: rows["x"])
        exact = self.tables
        self._assign(before)
        return exact

    def _assign(self, tables: list[np.ndarray]) -> None:
        for term, table in zip(self.model.random_effects, tables, strict=True):
            term.posterior.fold_effects.assign(table)


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


def started(terms: list, data: dict[str, np.ndarray]) -> lmm.LMMVAE:
    """A model at the linear mixed model that training starts from."""
    model = small_model(terms, decoder=constant_decoder(3))
    model.adapt(data)
    model.effects_fit.begin(model.encode_data(data))
    model.fitted.assign(1.0)
    return model


class TestStart:
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

    def test_surface_without_correlation_is_categorical(self, monkeypatch):
        """A process with a tiny length scale: every place is a level of its own.

        But for the mean of the levels, which the variances of intercepts leave out.
        """
        monkeypatch.setattr(fold_moments, "is_centred", lambda posterior: False)
        data = make_data()
        data["place"] = data["east"].astype(int) * 3 + data["north"].astype(int)
        surface = lmm.SpatialEffect(("east", "north"), length_scale=0.01)
        categorical = started([lmm.RandomIntercept("place")], data)
        spatial = started([surface], data)
        np.testing.assert_allclose(
            spatial.variance_components(), categorical.variance_components(), rtol=1e-4
        )
        for std in (False, True):
            np.testing.assert_allclose(
                spatial.random_effects_table("east_north", std=std),
                categorical.random_effects_table("place", std=std),
                rtol=1e-4,
                atol=1e-5,
            )

    def test_order_of_the_rows_does_not_matter(self):
        """Folds follow the rows' values, not their places: permuted rows give the same model."""
        data, order = make_data(), np.random.default_rng(2).permutation(200)
        permuted = {name: column[order] for name, column in data.items()}
        models = [started(TERMS["slopes"](), rows) for rows in (data, permuted)]
        one, other = (model.variance_components() for model in models)
        np.testing.assert_allclose(one, other, rtol=1e-3)
        one, other = (model.random_effects_table("store") for model in models)
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)

    def test_names_of_the_levels_do_not_matter(self):
        """Relabelled levels: the same variances and the same effects under the new names."""
        data, names = make_data(), np.random.default_rng(3).permutation(10)
        relabelled = {**data, "store": np.array([f"store {name}" for name in names])[data["store"]]}
        models = [started(TERMS["slopes"](), rows) for rows in (data, relabelled)]
        one, other = (model.variance_components() for model in models)
        np.testing.assert_allclose(one, other, rtol=1e-3)
        one, other = (model.random_effects_table("store") for model in models)
        other = other.loc[[f"store {name}" for name in names]]
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)

    def test_order_of_the_terms_does_not_matter(self):
        """Terms are solved jointly; only the simulated calibration of their variances differs."""
        data = make_data()
        models = [started(terms, data) for terms in (TERMS["crossed"](), TERMS["crossed"]()[::-1])]
        one, other = (
            model.variance_components().loc[["store", "city", "noise"]] for model in models
        )
        np.testing.assert_allclose(one, other, rtol=0.2, atol=0.05)
