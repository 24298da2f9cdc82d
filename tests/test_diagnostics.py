"""Diagnostics: every finding on a model made sick on purpose, and none on healthy ones."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_models import small_model

import keras_lmmvae as lmm
from keras_lmmvae.diagnostics import Diagnosis, Finding
from keras_lmmvae.diagnostics.evidence import collect
from keras_lmmvae.diagnostics.grouping_share import group_share
from keras_lmmvae.rows import Pass, with_folds

Data = dict[str, np.ndarray]


def make_data(n: int = 800, num_levels: int = 40, effect: float = 1.0, seed: int = 0) -> Data:
    """Rows on a curve in six dimensions, moved by their store."""
    rng = np.random.default_rng(seed)
    loading = np.random.default_rng(100).normal(size=(2, 6))
    moves = np.random.default_rng(101).normal(size=(num_levels, 6))
    latent, store = rng.normal(size=(n, 1)), rng.integers(0, num_levels, n)
    x = np.concatenate([latent, np.sin(2 * latent)], axis=1) @ loading
    x = x + effect * moves[store] + 0.5 * rng.normal(size=(n, 6))
    return {"x": x, "store": store}


def fitted(data: Data, terms: Any = None, epochs: int = 12, **options: Any) -> lmm.LMMVAE:
    terms = [lmm.RandomIntercept("store")] if terms is None else terms
    model = small_model(terms, **{"hidden_units": (16,), **options})
    model.adapt(data)
    # A few steps take less time than their tracing.
    model.compile(keras.optimizers.Adam(0.01), run_eagerly=epochs <= 2)
    model.fit(data, epochs=epochs, batch_size=50, verbose=0)
    return model


@pytest.fixture(scope="module")
def data() -> Data:
    return make_data()


@pytest.fixture(scope="module")
def held_out() -> Data:
    return make_data(n=400, seed=1)


@pytest.fixture(scope="module")
def path(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A healthy model's file: every test spoils a copy of its own."""
    path = tmp_path_factory.mktemp("models") / "healthy.keras"
    fitted(data).save(path)
    return path


@pytest.fixture
def model(path: Path) -> lmm.LMMVAE:
    return keras.saving.load_model(path)


def only(diagnosis: Diagnosis, name: str) -> Finding:
    """The one finding of a check."""
    (finding,) = [finding for finding in diagnosis if finding.name == name]
    assert finding.message in str(diagnosis).replace("\n  ", " ")
    assert all(np.isfinite(value) for value in finding.numbers.values())
    return finding


def names(diagnosis: Diagnosis) -> set[str]:
    return {finding.name for finding in diagnosis}


class TestHealthy:
    def test_no_findings(self, model, data, held_out):
        """A fit of the model that made the data: nothing, with and without held-out rows."""
        alone, both = lmm.diagnose(model, data), lmm.diagnose(model, data, held_out)
        assert names(alone) == names(both) == set()
        assert alone.is_healthy
        assert bool(alone)
        assert str(both) == "11 checks: no warnings, no notes."
        assert set(alone.skipped) == {"error_above_expected", "unseen_levels"}
        assert "Not checked: unseen_levels, no `held_out` rows" in str(alone)
        assert both.to_frame().empty

    @pytest.mark.parametrize("kind", ["slopes", "surface", "plain", "missing"])
    def test_other_structures(self, kind):
        """Slopes, a surface, a plain VAE, missing cells: no warnings."""
        rng = np.random.default_rng(3)
        data = make_data(effect=0.0)
        terms: list[Any] = []
        if kind == "slopes":
            data["t"] = rng.uniform(size=800)
            slopes = rng.normal(size=(2, 40, 6))
            data["x"] += slopes[0][data["store"]] + slopes[1][data["store"]] * data["t"][:, None]
            terms = [lmm.RandomSlopes("store", time="t")]
        elif kind == "surface":
            places = rng.uniform(-1, 1, size=(60, 2))[rng.integers(0, 60, 800)]
            data |= {"east": places[:, 0], "north": places[:, 1]}
            waves = np.sin(3 * places @ rng.normal(size=(2, 6)) + rng.uniform(0, 6, 6))
            data["x"] += 1.5 * waves
            terms = [lmm.SpatialEffect(("east", "north"), num_inducing=30)]
        elif kind == "missing":
            data = make_data()
            data["x"][rng.uniform(size=(800, 6)) < 0.2] = np.nan
            data["x"][:, 0] = make_data()["x"][:, 0]
            terms = [lmm.RandomIntercept("store")]
        with warnings.catch_warnings():
            warnings.simplefilter("error", lmm.LMMVAEWarning)
            model = fitted(data, terms, epochs=6)
        diagnosis = lmm.diagnose(model, data)
        assert diagnosis.is_healthy, str(diagnosis)

    def test_dataset_is_the_same_as_arrays(self, model, data, held_out):
        """A dataset of the rows gives the numbers of the arrays."""
        batches = tf.data.Dataset.from_tensor_slices(data).batch(64)
        for is_crossed in (False, True):
            arrays = collect(model, data, is_crossed=is_crossed)
            dataset = collect(model, batches, is_crossed=is_crossed)
            np.testing.assert_allclose(arrays.latent_mean, dataset.latent_mean, atol=1e-5)
            one, other = (evidence.terms["store"].slope() for evidence in (arrays, dataset))
            np.testing.assert_allclose(one, other, rtol=1e-4)
        shifted = {**held_out, "store": held_out["store"] + 100}
        made = tf.data.Dataset.from_tensor_slices(shifted).batch(64)
        assert names(lmm.diagnose(model, batches, made)) == {"unseen_levels"}

    def test_seed_fixes_the_report(self, model, data):
        """The same seed, the same report; the model's own state stays as it is."""
        model.mixed_model.of("store").table.effects.assign(tf.zeros((40, 1, 6)))
        before = [weight.numpy() for weight in model.weights]
        reports = [str(lmm.diagnose(model, data, seed=seed)) for seed in (1, 1, 2)]
        assert reports[0] == reports[1] != reports[2]
        for old, new in zip(before, model.weights, strict=True):
            np.testing.assert_array_equal(old, new)


class TestSick:
    def test_latent_collapse(self, data):
        """A KL of a hundred times its weight leaves the latent nothing to say: a warning."""
        diagnosis = lmm.diagnose(fitted(data, epochs=4, kl_weight=100.0), data)
        finding = only(diagnosis, "latent_collapse")
        assert finding.severity == "warning"
        assert finding.numbers["kl"] < 0.01
        assert "KLAnnealing" in finding.remedy
        assert not diagnosis.is_healthy

    def test_one_dimension_collapsed(self, data):
        """One dimension of two that is the prior: a note about that one."""
        model = small_model(latent_dim=2)
        model.adapt(data)
        model.fitted.assign(1.0)
        for head in (model.networks.encoder.mean_head, model.networks.encoder.log_var_head):
            kernel, bias = (weight.numpy() for weight in head.weights)
            kernel[:, 1], bias[1] = 0.0, 0.0
            head.set_weights([kernel, bias])
        finding = only(lmm.diagnose(model, data), "latent_collapse")
        assert (finding.severity, finding.where) == ("note", "latent dimension 1")
        assert finding.numbers == {"kl": 0.0, "variance_of_means": 0.0}

    def test_constant_latent_is_collapsed(self, model, data):
        """A dead encoder: the same narrow posterior for every row, however large its KL."""
        encoder = model.networks.encoder
        encoder.mean_head.kernel.assign(tf.zeros_like(encoder.mean_head.kernel))
        encoder.mean_head.bias.assign([2.0])
        finding = only(lmm.diagnose(model, data), "latent_collapse")
        assert finding.numbers["kl"] > 1.0
        assert finding.numbers["variance_of_means"] == 0.0

    def test_term_collapse(self):
        """Keys that mean nothing: a note, no warning, neither from `fit`."""
        data = make_data(num_levels=150, effect=0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("error", lmm.LMMVAEWarning)
            model = fitted(data, epochs=2)
        diagnosis = lmm.diagnose(model, data)
        finding = only(diagnosis, "term_collapse")
        assert finding.severity == "note"
        assert finding.numbers["mean_share"] < 0.01
        assert diagnosis.is_healthy, str(diagnosis)

    def test_effects_overfit(self):
        """Effects of noise, hardly shrunken: the other fold's rows do not bear them out."""
        data, held_out = make_data(400, 150, 0.0), make_data(400, 150, 0.0, seed=1)
        model = fitted(data, epochs=1)
        model.mixed_model.of("store").effect_variance.assign([10.0] * 6)
        fit = model.effects_fit
        for by_fold in (True, False):
            fit.equations.solve(by_fold, fit.training_targets, fit.noise_variance)
        for diagnosis in (lmm.diagnose(model, data), lmm.diagnose(model, data, held_out)):
            finding = only(diagnosis, "effects_overfit")
            assert finding.severity == "warning"
            # No effects at all: the slope is 0 but for its error.
            assert abs(finding.numbers["slope"]) < 4 * finding.numbers["standard_error"]
            errors = [value for name, value in finding.numbers.items() if "error_" in name]
            assert errors[1] > 1.3 * errors[0]

    def test_amortized_effects_overfit(self):
        """The paper's effects in groups of three rows: held-out rows show less than they say."""
        data, held_out = make_data(450, 150, 0.0), make_data(400, 150, 0.0, seed=1)
        model = fitted(data, posterior="amortized", epochs=6)
        alone = lmm.diagnose(model, data)
        assert "amortized posterior has no folds" in alone.skipped["effects_overfit"]
        assert "does not learn effect variances" in alone.skipped["term_collapse"]
        diagnosis = lmm.diagnose(model, data, held_out)
        assert only(diagnosis, "effects_overfit").numbers["slope"] < 0.5

    def test_latent_predicts_group(self, model, data):
        """Without its effects the latent has the stores in it; with them it has not."""
        model.mixed_model.of("store").table.effects.assign(tf.zeros((40, 1, 6)))
        finding = only(lmm.diagnose(model, data), "latent_predicts_group")
        assert finding.numbers["latent_0"] > 0.1 > finding.numbers["by_chance"]

    def test_singletons(self, data):
        """Four levels of five with one row: `fit` warns, from the line that called it."""
        rare = {
            **data,
            "store": np.where(np.arange(800) < 500, np.arange(800) + 100, data["store"]),
        }
        rare = {name: values[:560] for name, values in rare.items()}
        with pytest.warns(lmm.LMMVAEWarning, match="levels of 'store' have one row") as caught:
            model = fitted(rare, epochs=1)
        (warning,) = [one for one in caught if one.category is lmm.LMMVAEWarning]
        assert warning.filename == __file__
        assert "coarser grouping" in str(warning.message)
        finding = only(lmm.diagnose(model, rare), "singleton_levels")
        single = np.unique(rare["store"], return_counts=True)[1] == 1
        assert finding.numbers["single_levels"] == pytest.approx(single.mean())
        assert finding.numbers["single_rows"] == pytest.approx(single.sum() / 560)

    def test_noise_floor(self, data):
        """A feature that its store fixes: `fit` warns, and says which."""
        fixed = {**data, "x": data["x"].copy()}
        fixed["x"][:, 3] = np.cos(data["store"])
        with pytest.warns(lmm.LMMVAEWarning, match="noise variance of feature 3 is at its floor"):
            model = fitted(fixed, epochs=1)
        finding = only(lmm.diagnose(model, fixed), "noise_floor")
        assert (finding.where, finding.severity) == ("feature 3", "warning")

    def test_given_noise_is_no_floor(self, data):
        """A noise variance that the user fixed is not looked at."""
        model = small_model(noise_variance=1e-7)
        model.adapt(data)
        model.fitted.assign(1.0)
        assert lmm.diagnose(model, data).skipped["noise_floor"] == "`noise_variance` is given"

    @pytest.mark.parametrize(("scale", "side"), [(0.02, "lower"), (0.021, "lower"), (4.9, "upper")])
    def test_length_scale(self, scale, side):
        """A learned length scale at an end of its search; a given one may be anything."""
        data = make_data(200)
        data |= {"east": data["store"] % 3 * 1.0, "north": data["store"] // 3 * 1.0}

        def found(**options: Any) -> Diagnosis:
            term = lmm.SpatialEffect(("east", "north"), num_inducing=50, **options)
            model = small_model([term])
            model.adapt(data)
            model.random_effects[0].set_scaled_length_scale(scale)
            model.fitted.assign(1.0)
            rows = Pass(with_folds(model.encode_data(data)))
            model.effects_fit.begin(rows, is_fitted=True)
            return lmm.diagnose(model, data)

        finding = only(found(), "length_scale_bound")
        assert f"{side} bound" in finding.message
        assert finding.numbers["standardised"] == pytest.approx(scale)
        assert "length_scale_bound" not in names(found(length_scale=1.0))

    def test_inducing_points(self):
        """A rough surface on 20 points: most of what is called noise lies between them."""
        rng = np.random.default_rng(5)
        places = rng.uniform(size=(400, 2))
        distance = np.linalg.norm(places[:, None] - places, axis=-1)
        root = np.linalg.cholesky(np.exp(-distance / 0.3))
        data = {"x": root @ rng.normal(size=(400, 6)) + 0.3 * rng.normal(size=(400, 6))}
        data |= {"east": places[:, 0], "north": places[:, 1]}

        def found(num_inducing: int) -> Diagnosis:
            terms = f"gp(east, north, kernel=matern12, num_inducing={num_inducing})"
            model = small_model(lmm.random_effects_from_formula(terms))
            model.adapt(data)
            model.compile()
            model.fit(data, epochs=0, verbose=0)
            return lmm.diagnose(model, data)

        with pytest.warns(lmm.LMMVAEWarning, match="20 inducing points of 'east_north' leave"):
            finding = only(found(20), "inducing_points")
        assert finding.severity == "warning"
        assert finding.numbers["over_noise"] > 0.5
        assert "inducing_points" not in names(found(400))

    def test_nearly_constant(self, model, data):
        """Five cells of 800 that differ: a note; eighty: none."""
        for count, expected in ((5, {"nearly_constant"}), (80, set())):
            x = data["x"].copy()
            x[count:, 2] = 7.0
            diagnosis = lmm.diagnose(model, {**data, "x": x})
            assert names(diagnosis) & {"nearly_constant"} == expected
        x[5:, 2] = 7.0
        finding = only(lmm.diagnose(model, {**data, "x": x}), "nearly_constant")
        assert (finding.where, finding.severity) == ("feature 2", "note")
        assert finding.numbers["largest_share"] == pytest.approx(795 / 800)

    def test_held_out_rows_of_another_kind(self, model, data, held_out):
        """Three times the noise: errors above what the model expects; unseen keys: told."""
        noise = 1.5 * np.random.default_rng(2).normal(size=(400, 6))
        wild = {"x": held_out["x"] + noise, "store": held_out["store"] + 20}
        diagnosis = lmm.diagnose(model, data, wild)
        finding = only(diagnosis, "error_above_expected")
        assert finding.severity == "warning"
        assert finding.numbers["error_ratio"] > 1.5
        unseen = only(diagnosis, "unseen_levels").numbers["unseen_rows"]
        assert unseen == pytest.approx(np.mean(wild["store"] >= 40))
        assert [finding.severity for finding in diagnosis][0] == "warning"
        frame = diagnosis.to_frame()
        assert list(frame["name"]) == [finding.name for finding in diagnosis]
        assert set(frame["severity"]) == {"warning", "note"}


class TestMeasures:
    def test_group_share_is_the_intraclass_correlation(self):
        """Known variances between and within groups; 0 on average without groups."""
        rng = np.random.default_rng(0)
        groups = rng.integers(0, 500, 3000)
        values = np.stack([rng.normal(size=500)[groups], np.zeros(3000)], axis=1)
        values += rng.normal(size=(3000, 2))
        found = group_share(values, groups, seed=0)
        # Standard error of an intraclass correlation of 1/2, 500 groups of 6 rows: about 0.024.
        assert found.share[0] == pytest.approx(0.5, abs=0.1)
        np.testing.assert_array_less(np.abs(found.share[1:]), 5 * found.deviation[1:])
        np.testing.assert_array_less(np.abs(found.chance), found.deviation)
        unknown = np.where(np.arange(3000) < 300, -1, groups)
        part = group_share(values[300:], groups[300:], seed=0)
        np.testing.assert_array_equal(group_share(values, unknown, seed=0).share, part.share)

    def test_group_share_by_hand(self):
        """Two groups of two: mean squares 4 and 1, so (4 - 1) / (4 + 1)."""
        values = np.array([[0.0], [2**0.5], [2.0], [2 + 2**0.5]])
        found = group_share(values, np.array([0, 0, 5, 5]), seed=0)
        assert found.share[0] == pytest.approx(3 / 5)

    def test_groups_that_say_nothing(self):
        """One group, or single rows only: no share."""
        values = np.arange(4.0)[:, None]
        assert group_share(values, np.zeros(4, int), seed=0) is None
        assert group_share(values, np.arange(4), seed=0) is None
        assert group_share(values, np.full(4, -1), seed=0) is None

    def test_slope_is_least_squares(self, model, data):
        """Slope and errors are those of the residuals on the contributions, by NumPy."""
        found = collect(model, data, is_crossed=False)
        scale = model.feature_scale.numpy()
        prediction = model.predictive(data)
        part = prediction.contributions["store"] / scale
        left = (data["x"] - prediction.population) / scale
        slope, _ = found.terms["store"].slope()
        assert slope == pytest.approx((left * part).sum() / (part**2).sum(), rel=1e-4)
        assert found.mean_squared_error == pytest.approx(np.mean((left - part) ** 2), rel=1e-4)
        variance = model.variance_given_latent(model.encode_data(data)).numpy() * scale**2
        ratio = (data["x"] - prediction.mean) ** 2 / variance
        assert found.error_ratio == pytest.approx(ratio.mean(), rel=1e-4)

    def test_crossed_effects_have_not_seen_the_row(self, model, data):
        """A row that moves far away moves its crossed effect by nothing."""
        before = collect(model, data, is_crossed=True)
        seen = collect(model, data, is_crossed=False)
        assert before.mean_squared_error > seen.mean_squared_error


class TestArguments:
    def test_not_fitted(self, data):
        """A model without a fit has nothing to be looked at."""
        model = small_model([lmm.RandomIntercept("store")])
        with pytest.raises(ValueError, match="does not know its features.*num_features=0"):
            lmm.diagnose(model, data)
        model.adapt(data)
        with pytest.raises(ValueError, match="not fitted yet.*Received: is_fitted=False"):
            lmm.diagnose(model, data)

    def test_bad_arguments(self, model, data):
        """Errors say what was expected and what was received."""
        with pytest.raises(ValueError, match="looks at an LMMVAE. Received: model='str'"):
            lmm.diagnose("model.keras", data)
        with pytest.raises(ValueError, match="`seed`, expected an integer of at least 0.*seed=-1"):
            lmm.diagnose(model, data, seed=-1)
        with pytest.raises(ValueError, match="'store'"):
            lmm.diagnose(model, data, held_out={"x": data["x"]})
