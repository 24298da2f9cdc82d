"""Plots show the right numbers on the given axes."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from small_models import codes_of

import keras_lmmvae as lmm
from keras_lmmvae import plots

mpl.use("Agg")

NAMES = ("alpha", "beta", "gamma", "delta")
Fitted = tuple[lmm.LMMVAE, dict[str, Any]]


@pytest.fixture(autouse=True)
def closed_figures() -> Any:
    yield
    pyplot.close("all")


def fit(terms: list[Any], data: dict[str, Any], latent_dim: int = 2, **options: Any) -> lmm.LMMVAE:
    model = lmm.LMMVAE(latent_dim, terms, hidden_units=(8,), seed=0, **options)
    model.adapt(data, feature_names=NAMES)
    model.compile()
    model.fit(data, epochs=2, verbose=0, validation_data=data)
    return model


@pytest.fixture(scope="module")
def spatial() -> Fitted:
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(size=(2, 120))
    data = {"x": rng.normal(size=(120, 4)) + np.sin(5 * lon)[:, None], "lon": lon, "lat": lat}
    return fit([lmm.SpatialEffect(("lon", "lat"), num_inducing=20)], data), data


@pytest.fixture(scope="module")
def grouped() -> Fitted:
    """An intercept by store, 60 of unequal sizes, and a line by patient."""
    rng = np.random.default_rng(1)
    store = np.array([f"s{code}" for code in np.repeat(np.arange(60), rng.integers(1, 11, 60))])
    n = len(store)
    patient, t = rng.integers(0, 12, n), rng.uniform(0.0, 5.0, n)
    x = rng.normal(size=(60, 4))[codes_of(store)[0]] + rng.normal(size=(n, 4))
    x += (rng.normal(size=(12, 4)) / 2.0)[patient] * t[:, None]
    data = {"x": x, "store": store, "patient": patient, "t": t}
    return fit([lmm.RandomIntercept("store"), lmm.RandomSlopes("patient", time="t")], data), data


def test_matplotlib_is_imported_by_functions_only() -> None:
    """`import keras_lmmvae` does not import Matplotlib, and `lmm.plots` exists."""
    assert lmm.plots is plots
    for path in Path(plots.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "matplotlib" not in ast.unparse(node), path.name


def test_missing_matplotlib_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Matplotlib the error says how to install it."""
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install keras-lmmvae\[plots\]"):
        plots.plot_training({"loss": [1.0]})


class TestMap:
    def test_shows_the_effect_at_every_row(self, spatial: Fitted) -> None:
        """Colours are the term's contributions, symmetric around 0. Deviations are positive."""
        model, data = spatial
        ax = plots.plot_effects_map(model, "lon_lat", data, "beta", scale=2.0)
        points = ax.collections[0]
        expected = model.predictive(data).contributions["lon_lat"][:, 1]
        np.testing.assert_allclose(points.get_array(), expected, atol=1e-5)
        np.testing.assert_allclose(points.get_offsets()[:, 0], data["lon"] / 2.0)
        assert points.norm.vmin == -points.norm.vmax
        assert ax.get_xlabel() == "lon / 2"
        assert ax.figure.axes[1].get_ylabel() == "effect on beta"

    def test_deviations_and_inducing_points(self, spatial: Fitted) -> None:
        """Standard deviations are those of `term_effects`. The 20 points are inducing points."""
        model, data = spatial
        ax = plots.plot_effects_map(model, "lon_lat", data, 1, std=True, inducing_points=True)
        _, deviation = model.term_effects("lon_lat", data)
        np.testing.assert_allclose(ax.collections[0].get_array(), deviation[:, 1], rtol=1e-5)
        points = np.array(model.find_term("lon_lat").level_names())
        np.testing.assert_allclose(ax.lines[0].get_xydata(), points)

    def test_wrong_term(self, grouped: Fitted) -> None:
        model, data = grouped
        with pytest.raises(ValueError, match=r"surface over two coordinates.*RandomIntercept"):
            plots.plot_effects_map(model, "store", data)


class TestLatent:
    def test_a_point_a_row(self, spatial: Fitted) -> None:
        """Points are the latent means. Colours are the numbers of a column or a feature."""
        model, data = spatial
        for colour, expected in (("lon", data["lon"]), ("gamma", data["x"][:, 2])):
            ax = plots.plot_latent(model, data, colour)
            np.testing.assert_allclose(
                ax.collections[0].get_offsets(), model.encode(data), atol=1e-5
            )
            np.testing.assert_allclose(ax.collections[0].get_array(), expected)
            assert ax.figure.axes[1].get_ylabel() == colour

    def test_categories_have_a_colour_each(self, spatial: Fitted) -> None:
        """Of ten categories, the eight most frequent have names and the rest are "others"."""
        model, data = spatial
        groups = np.array([f"g{min(number // 8, 9)}" for number in range(120)])
        ax = plots.plot_latent(model, data, groups, label="group")
        names = [text.get_text() for text in ax.get_legend().get_texts()]
        assert names[0] == "others"
        assert len(names) == 9
        assert names[1] == "g9"
        sizes = [len(part.get_offsets()) for part in ax.collections]
        assert sizes == [16, 48, *[8] * 7]

    def test_errors(self, spatial: Fitted) -> None:
        model, data = spatial
        with pytest.raises(ValueError, match=r"There is no such feature.*'height'"):
            plots.plot_latent(model, data, "height")
        with pytest.raises(ValueError, match=r"each of the 120 rows. Received: length=3"):
            plots.plot_latent(model, data, np.arange(3))
        with pytest.raises(ValueError, match=r"from 0 to 1. Received: dimensions=\(0, 2\)"):
            plots.plot_latent(model, data, dimensions=(0, 2))
        with pytest.raises(ValueError, match=r"two latent dimensions.*latent_dim=1"):
            plots.plot_latent(fit([], {"x": data["x"]}, latent_dim=1), data)


class TestShrinkage:
    def test_means_and_blups(self, grouped: Fitted) -> None:
        """x are mean residuals by store, y the effects of the table, colours the rows by store."""
        model, data = grouped
        ax = plots.plot_shrinkage(model, "store", data, "delta")
        parts = model.predictive(data)
        residual = (data["x"] - parts.population - parts.contributions["patient"])[:, 3]
        codes, _ = codes_of(data["store"])
        sizes = np.bincount(codes)
        points = ax.collections[0]
        np.testing.assert_allclose(
            points.get_offsets()[:, 0], np.bincount(codes, residual) / sizes, atol=1e-4
        )
        effects = model.random_effects_table("store")["delta"].sort_index()
        np.testing.assert_allclose(points.get_offsets()[:, 1], effects, atol=1e-4)
        np.testing.assert_array_equal(points.get_array(), sizes)
        assert ax.get_xlabel() == "mean residual of the group, delta"

    def test_wrong_term(self, grouped: Fitted) -> None:
        model, data = grouped
        with pytest.raises(ValueError, match=r"one with an intercept. Received: term='RandomSl"):
            plots.plot_shrinkage(model, "patient", data)
        with pytest.raises(ValueError, match=r"There is no term 'shop'"):
            plots.plot_shrinkage(model, "shop", data)


class TestCaterpillar:
    def test_sorted_effects_with_intervals(self, grouped: Fitted) -> None:
        """Lines are the sorted effects +- 1.645 standard deviations. The largest have labels."""
        model, _ = grouped
        ax = plots.plot_caterpillar(model, "store", 2, num_labels=5)
        table = model.random_effects_table("store")["gamma"]
        deviations = model.random_effects_table("store", std=True)["gamma"]
        order = table.argsort().to_numpy()
        drawn = np.concatenate([part.get_segments() for part in ax.collections])
        drawn = drawn[np.argsort(drawn[:, 0, 1])]
        low = (table - 1.644854 * deviations).to_numpy()[order]
        np.testing.assert_allclose(drawn[:, 0, 0], low, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(drawn.mean(axis=1)[:, 0], table.to_numpy()[order], atol=1e-5)
        names = {text.get_text() for text in ax.texts}
        assert names == set(table.abs().nlargest(5).index)
        clear = (table.abs() > 1.644854 * deviations).sum()
        assert len(ax.collections[1].get_segments()) == clear

    def test_few_levels_are_all_named(self, grouped: Fitted) -> None:
        """Sorted slopes of 12 patients."""
        model, _ = grouped
        ax = plots.plot_caterpillar(model, "patient", "beta", coefficient="t")
        slopes = model.random_effects_table("patient")["beta"].xs("t", level="coefficient")
        names = [text.get_text() for text in ax.get_yticklabels()]
        assert names == [str(key) for key in slopes.sort_values().index]
        assert ax.get_xlabel() == "effect on beta: t, 90% intervals"

    def test_errors(self, grouped: Fitted, spatial: Fitted) -> None:
        with pytest.raises(ValueError, match=r"\['intercept', 't'\]. Received: coefficient='t\^2'"):
            plots.plot_caterpillar(grouped[0], "patient", coefficient="t^2")
        with pytest.raises(ValueError, match=r"intercepts or slopes. Received: term='SpatialEff"):
            plots.plot_caterpillar(spatial[0], "lon_lat")
        with pytest.raises(ValueError, match=r"`level`.*between 0 and 1. Received: level=90"):
            plots.plot_caterpillar(grouped[0], "store", level=90)


class TestTrajectories:
    def test_curve_passes_through_the_effects(self, grouped: Fitted) -> None:
        """Curve minus base line is the effect, from the first to the last row of the patient."""
        model, data = grouped
        axes = plots.plot_trajectories(model, "patient", data, "alpha", levels=[7, 3])
        assert [ax.get_title() for ax in axes] == ["7", "3"]
        for ax, key in zip(axes, (7, 3), strict=True):
            rows = np.flatnonzero(data["patient"] == key)
            base, curve, points = ax.lines
            np.testing.assert_allclose(np.sort(points.get_ydata()), np.sort(data["x"][rows, 0]))
            first, last = rows[data["t"][rows].argmin()], rows[data["t"][rows].argmax()]
            effects, deviations = model.term_effects("patient", data)
            height = np.array(curve.get_ydata()) - base.get_ydata()[0]
            np.testing.assert_allclose(height[[0, -1]], effects[[first, last], 0], atol=1e-4)
            band = ax.collections[0].get_paths()[0].get_extents()
            assert band.y1 >= curve.get_ydata()[0] + 1.644 * deviations[first, 0]

    def test_base_line_is_the_average_row(self, grouped: Fitted) -> None:
        """Mean of f(E[u | x]) over all rows plus mean of the stores over the patient's rows."""
        model, data = grouped
        (ax,) = plots.plot_trajectories(model, "patient", data, 2, levels=[5])
        parts = model.predictive(data)
        stores = parts.contributions["store"][data["patient"] == 5, 2]
        expected = parts.population[:, 2].mean() + stores.mean()
        np.testing.assert_allclose(ax.lines[0].get_ydata()[0], expected, atol=1e-5)

    def test_default_levels_have_the_most_rows(self, grouped: Fitted) -> None:
        model, data = grouped
        axes = plots.plot_trajectories(model, "patient", data, num_levels=4)
        counts = np.bincount(data["patient"])
        shown = [int(ax.get_title()) for ax in axes]
        assert counts[shown].min() >= np.sort(counts)[-4]
        assert len(set(shown)) == 4

    def test_errors(self, grouped: Fitted) -> None:
        model, data = grouped
        with pytest.raises(ValueError, match=r"slopes over time. Received: term='RandomIntercept"):
            plots.plot_trajectories(model, "store", data)
        with pytest.raises(ValueError, match=r"`levels` must be at least one key.*unknown=\[99\]"):
            plots.plot_trajectories(model, "patient", data, levels=[1, 99])
        with pytest.raises(ValueError, match=r"`axes` must be 2 axes.*axes=1"):
            plots.plot_trajectories(
                model, "patient", data, levels=[1, 2], axes=[pyplot.subplots()[1]]
            )
        others = lmm.simulation.take(data, data["patient"] != 1)
        with pytest.raises(ValueError, match=r"rows of every plotted level.*level=1"):
            plots.plot_trajectories(model, "patient", others, levels=[1])


def test_reconstruction_shares(grouped: Fitted) -> None:
    """Points are 1 - SSE / SST of both reconstructions, sorted by the second one."""
    model, data = grouped
    ax = plots.plot_reconstruction(model, data)
    total = data["x"].var(axis=0)
    expected = [
        1.0 - np.mean((data["x"] - model.reconstruct(data, include_effects=has)) ** 2, 0) / total
        for has in (False, True)
    ]
    order = expected[1].argsort()
    for line, shares in zip(ax.lines, expected, strict=False):
        np.testing.assert_allclose(line.get_xdata(), shares[order], atol=1e-5)
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == [NAMES[number] for number in order]


def test_variance_bars_are_the_partition(grouped: Fitted) -> None:
    """Widths are the shares. Every bar starts at the end of the previous one."""
    model, data = grouped
    ax = plots.plot_variance_partition(model, data)
    shares = model.variance_partition(data)
    for bars, (_, row) in zip(ax.containers, shares.iterrows(), strict=True):
        np.testing.assert_allclose([bar.get_width() for bar in bars], row, atol=1e-6)
    ends = [bar.get_x() + bar.get_width() for bar in ax.containers[-1]]
    np.testing.assert_allclose(ends, 1.0, atol=1e-6)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["latent, f(u)", "store", "patient", "noise"]


def test_training_curves_have_the_loss_and_its_parts(spatial: Fitted, tmp_path: Path) -> None:
    """There is a line for each part and each loss. A loaded model has no history."""
    model = spatial[0]
    figure, given = pyplot.subplots()
    ax = plots.plot_training(model, ax=given)
    assert ax is given
    labels = [line.get_label() for line in ax.lines]
    assert labels[0] == "loss"
    assert labels[-1] == "loss, held out"
    assert len(labels) == 5
    np.testing.assert_allclose(ax.lines[0].get_ydata(), model.history.history["loss"])
    same = plots.plot_training(model.history.history)
    np.testing.assert_allclose(same.lines[2].get_ydata(), ax.lines[2].get_ydata())
    with pytest.raises(ValueError, match=r"There is no history to show.*history=\[\]"):
        plots.plot_training(lmm.LMMVAE(1))
