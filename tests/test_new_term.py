"""A new kind of term is one class: here of seasons, which the package knows nothing of."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import keras
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from small_models import constant_decoder, small_model
from term_contract import adapted, check_term, normalised

import keras_lmmvae as lmm
from keras_lmmvae.effects.grouped_effect import GroupedEffect
from keras_lmmvae.effects.random_effect import Encoded
from keras_lmmvae.effects.scaling import as_numbers

matplotlib.use("Agg")
FORMULA = "season(t | store, period=12)"


@keras.saving.register_keras_serializable(package="test_new_term")
class Season(GroupedEffect):
    """x[i] = f(u[i]) + B_0[l] cos(2 pi t[i] / period) + B_1[l] sin(2 pi t[i] / period) + e[i]."""

    formula_name: ClassVar[str | None] = "season"

    def __init__(
        self, column: str, time: str, period: float = 1.0, name: str | None = None
    ) -> None:
        super().__init__(column, (time,), name)
        self.time = time
        self.period = period
        self.basis_size = 2

    @property
    def curve_column(self) -> str | None:
        return self.time

    def inputs(self, columns: dict[str, tf.Tensor]) -> tf.Tensor | None:
        phase = tf.math.floormod(as_numbers(columns[self.time]) / self.period, 1.0)
        return tf.cast(phase, tf.float32)[:, None]

    def basis(self, encoded: Encoded) -> tf.Tensor | None:
        angle = 2.0 * np.pi * encoded["inputs"]
        return tf.concat([tf.cos(angle), tf.sin(angle)], axis=1)

    def coefficient_names(self) -> list[str]:
        return ["cos", "sin"]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "time": self.time, "period": self.period}


STORES, FEATURES, VISITS = 40, 2, 25
EFFECT, NOISE = np.array([2.0, 0.5]), np.array([0.5, 0.3])


@pytest.fixture(scope="module")
def simulated() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Rows of stores with seasons of period 12, and the seasons' coefficients, `(stores, 2, p)`."""
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(STORES), VISITS)
    time = rng.uniform(0.0, 120.0, len(codes))
    angle = 2.0 * np.pi * time / 12.0
    effects = rng.normal(size=(STORES, 2, FEATURES)) * np.sqrt(EFFECT)
    waves = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    x = np.einsum("bm,bmf->bf", waves, effects[codes])
    x += rng.normal(size=x.shape) * np.sqrt(NOISE) + [10.0, -3.0]
    names = np.array([f"store {code:02d}" for code in codes])
    return {"x": x, "store": names, "t": time}, effects


@pytest.fixture(scope="module")
def model(simulated) -> lmm.LMMVAE:
    """A linear mixed model of seasons, by formula."""
    data, _ = simulated
    model = small_model(FORMULA, decoder=constant_decoder(FEATURES))
    model.adapt(data)
    model.compile("adam")
    model.fit(data, epochs=10, batch_size=100, verbose=0)
    return model


def test_the_class_is_short():
    """A term takes 40 lines at most, decorator included."""
    assert len(inspect.getsource(Season).splitlines()) <= 40


def test_formula_calls_the_class():
    """The name in a formula stands for the class, with its columns and options."""
    (term,) = lmm.LMMVAE(1, FORMULA).random_effects
    assert type(term) is Season
    assert (term.column, term.time, term.period, term.label) == ("store", "t", 12, "store")
    formula = "(1 | store) + season(t | store, period=12, name=season)"
    terms = lmm.random_effects_from_formula(formula)
    assert [type(one) for one in terms] == [lmm.RandomIntercept, Season]
    with pytest.raises(ValueError, match="unknown or repeated option 'phase', expected each of p"):
        lmm.random_effects_from_formula("season(t | store, phase=1)")


def test_term_keeps_the_contract(tmp_path):
    """The class passes the check that the package's own terms pass."""
    rng = np.random.default_rng(1)
    store = np.concatenate([np.arange(5), rng.integers(0, 5, 40)])
    data = {
        "x": rng.normal(size=(45, 2)) + rng.normal(size=(5, 2))[store],
        "store": np.array(["a", "b", "c", "d", "e"])[store],
        "t": rng.uniform(0.0, 30.0, 45),
    }
    check_term(lambda: Season("store", "t", 12.0, name="seasons"), data, tmp_path)


def test_basis_is_periodic():
    """A time and the same time a hundred periods later have one basis: that of its angle."""
    data = {"store": ["a", "a", "b"], "t": [0.5, 3.0, 7.25]}
    term = adapted(Season("store", "t", period=12), data)
    rows = [term.encode(normalised(term, {**data, "t": np.add(data["t"], s)})) for s in (0, 1200)]
    angle = 2.0 * np.pi * np.array(data["t"]) / 12.0
    for encoded in rows:
        expected = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        np.testing.assert_allclose(term.basis(encoded), expected, atol=1e-5)


def test_seasons_are_recovered(model, simulated):
    """Errors of the coefficients and of the variances are within their standard errors.

    The errors of a BLUP over their posterior standard deviations have the mean square 1, with a
    standard error of sqrt(2 / n) for n coefficients. The variance of n coefficients and the noise
    variance of n rows have the relative standard error sqrt(2 / n), where the rows tell the
    coefficients well. Bounds are 5 standard errors.
    """
    _, effects = simulated
    table, deviation = (model.random_effects_table("store", std=std) for std in (False, True))
    assert list(table.index[:2]) == [("store 00", "cos"), ("store 00", "sin")]
    truth = effects.reshape(-1, FEATURES)
    ratio = np.mean(((table - truth) / deviation).to_numpy() ** 2, axis=0)
    assert (np.abs(ratio - 1.0) < 5 * np.sqrt(2 / len(truth))).all(), ratio
    components = model.variance_components()
    assert list(components.index) == ["store: cos", "store: sin", "noise"]
    error = components.loc["store: cos"] / EFFECT - 1.0
    assert (np.abs(error) < 5 * np.sqrt(2 / len(truth))).all(), error
    error = components.loc["noise"] / NOISE - 1.0
    assert (np.abs(error) < 5 * np.sqrt(2 / (STORES * VISITS))).all(), error
    correlations = [np.corrcoef(table.iloc[:, f], truth[:, f])[0, 1] for f in range(FEATURES)]
    assert min(correlations) > 0.9


def test_loaded_model_predicts_the_same(model, simulated, tmp_path):
    """A `.keras` file gives the term with its period, and the same predictions."""
    data, _ = simulated
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    (term,) = again.random_effects
    assert (type(term), term.period, term.time) == (Season, 12, "t")
    np.testing.assert_array_equal(again.predict(data, verbose=0), model.predict(data, verbose=0))
    later = {**data, "t": data["t"] + 12.0}
    np.testing.assert_allclose(
        again.predict(later, verbose=0), model.predict(data, verbose=0), atol=1e-3
    )


def few_rows(store: str) -> dict[str, np.ndarray]:
    """Five rows of one store."""
    rng = np.random.default_rng(2)
    time = np.array([0.0, 2.0, 5.0, 7.0, 11.0])
    wave = np.cos(2.0 * np.pi * time / 12.0)[:, None] * [3.0, -1.0]
    x = [10.0, -3.0] + wave + rng.normal(size=(5, FEATURES)) * 0.3
    return {"x": x, "store": np.full(5, store), "t": time}


def test_condition_is_ridge_regression(model):
    """A store never seen gets the ridge regression of its rows on the waves."""
    rows = few_rows("a new one")
    found = model.condition(rows, "store")
    angle = 2.0 * np.pi * rows["t"] / 12.0
    waves = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    components = model.variance_components()
    centred = rows["x"] - model.decode(np.zeros((1, model.latent_dim)))
    for f in range(FEATURES):
        noise, variance = components.loc["noise"].iloc[f], components.loc["store: cos"].iloc[f]
        precision = waves.T @ waves / noise + np.eye(2) / variance
        expected = np.linalg.solve(precision, waves.T @ centred[:, f] / noise)
        np.testing.assert_allclose(found.effects[:, f], expected, rtol=1e-3, atol=1e-4)
        deviation = np.sqrt(np.diag(np.linalg.inv(precision)))
        np.testing.assert_allclose(found.standard_deviation[:, f], deviation, rtol=1e-3)


def test_served_model_answers_as_the_model(model, simulated, tmp_path):
    """`serving_default`, `random_effects_store` and `condition_store` give what the model gives."""
    data, _ = simulated
    model.export(tmp_path / "served")
    signatures = tf.saved_model.load(str(tmp_path / "served")).signatures
    some = {name: column[::50] for name, column in data.items()}
    request = {"store": tf.constant(some["store"]), "t": tf.constant(some["t"], tf.float32)}
    answer = signatures["serving_default"](x=tf.constant(some["x"], tf.float32), **request)
    predicted = model.predict(some, verbose=0)
    np.testing.assert_allclose(answer["reconstruction"], predicted, rtol=1e-4, atol=1e-3)
    mean, deviation = model.term_effects("store", some)
    answer = signatures["random_effects_store"](**request)
    np.testing.assert_allclose(answer["mean"], mean, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(answer["standard_deviation"], deviation, rtol=1e-3, atol=1e-4)

    rows = few_rows("a new one")
    found = model.condition(rows, "store")
    x, time = tf.constant(rows["x"], tf.float32), tf.constant(rows["t"], tf.float32)
    answer = signatures["condition_store"](
        x=x, t=time, support=tf.repeat(x[None], 5, axis=0),
        support_t=tf.repeat(time[None], 5, axis=0), support_mask=tf.ones((5, 5)),
    )  # fmt: skip
    np.testing.assert_allclose(answer["reconstruction"], found.reconstruction, rtol=1e-4, atol=1e-3)


def test_pictures_show_the_term(model, simulated):
    """The caterpillar is of one coefficient; trajectories are waves along `curve_column`."""
    data, _ = simulated
    ax = lmm.plots.plot_caterpillar(model, "store", 0, coefficient="sin")
    table = model.random_effects_table("store").xs("sin", level="coefficient").iloc[:, 0]
    drawn = np.concatenate([np.asarray(line.get_xdata()) for line in ax.lines])
    assert set(np.float32(table)) <= set(np.float32(drawn))
    assert "sin" in ax.get_xlabel()
    (panel,) = lmm.plots.plot_trajectories(model, "store", data, 1, levels=["store 03"])
    assert panel.get_xlabel() == "t"
    (curve,) = (line for line in panel.lines if line.get_label() == "fitted curve")
    time, values = (np.asarray(part, np.float64) for part in curve.get_data())
    cos, sin = model.random_effects_table("store").loc["store 03"].iloc[:, 1]
    angle = 2.0 * np.pi * time / 12.0
    wave = cos * np.cos(angle) + sin * np.sin(angle)
    np.testing.assert_allclose(values - values.mean(), wave - wave.mean(), atol=1e-3)
    plt.close("all")


def test_data_frame_brings_the_columns(model, simulated):
    """`from_dataframe` takes keys and times of the term, dates as days, and leaves the features."""
    data, _ = simulated
    days = pd.Timestamp("1970-01-01") + pd.to_timedelta(data["t"], unit="D")
    frame = pd.DataFrame({"a": data["x"][:, 0], "b": data["x"][:, 1], "store": data["store"]})
    for time in (data["t"], days):
        columns = lmm.from_dataframe(frame.assign(t=time), random_effects=FORMULA)
        assert columns.feature_names == ["a", "b"]
        np.testing.assert_allclose(columns["t"], data["t"], atol=1e-6)
        np.testing.assert_allclose(
            model.predict(columns, verbose=0), model.predict(data, verbose=0), atol=1e-4
        )


def test_other_verbs_take_the_term(simulated):
    """Partition, intervals, diagnosis and update know the term by what it declares."""
    data, _ = simulated
    model = small_model(FORMULA, decoder=constant_decoder(FEATURES))
    model.adapt(data)
    model.compile("adam")
    model.fit(data, epochs=10, batch_size=100, verbose=0)
    components = model.variance_components()
    # cos**2 + sin**2 = 1: the variance of the effect is that of a coefficient.
    total = components.loc["store: cos"] + components.loc["noise"]
    shares = model.variance_partition()
    np.testing.assert_allclose(shares.loc["store"], components.loc["store: cos"] / total, rtol=1e-4)
    np.testing.assert_allclose(shares.sum(), 1.0, rtol=1e-6)
    intervals = model.variance_intervals(0.9)
    rows = [(name, f) for name in ("store: cos", "store: sin", "noise") for f in range(FEATURES)]
    assert list(intervals.index) == rows
    assert (intervals["lower"] < intervals["estimate"]).all()
    assert (intervals["estimate"] < intervals["upper"]).all()
    assert not [finding for finding in lmm.diagnose(model, data) if finding.severity == "warning"]
    rows = few_rows("a new one")
    expected = model.condition(rows, "store").effects
    model.update_random_effects(rows)
    table = model.random_effects_table("store")
    assert len(table) == 2 * (STORES + 1)
    np.testing.assert_allclose(table.loc["a new one"], expected, rtol=1e-3, atol=1e-3)
