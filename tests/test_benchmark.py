"""The benchmark: suites, resumable results, summaries, reports; the tiny suite runs whole."""

from __future__ import annotations

import dataclasses
import io
import json
import math

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from benchmarks import command, runner
from benchmarks.classification import measure_classification
from benchmarks.figures import draw_figures
from benchmarks.lmmvae_method import AmortizedMethod, LMMVAEMethod
from benchmarks.measure import measure_reconstruction
from benchmarks.methods import METHODS, applies, make_method, settings_of, training_of
from benchmarks.published import load_published, published_comparison
from benchmarks.recovery import latent_correlation
from benchmarks.report import write_report
from benchmarks.results import Results
from benchmarks.runner import pick_cells, run_suite
from benchmarks.settings import Training
from benchmarks.simulated import paper_full, paper_small
from benchmarks.suites import SUITES, find_suite
from benchmarks.summary import best_count, pivot, regret_ratios, within_one_error
from benchmarks.table import Source, Table, load_problem
from keras_lmmvae.effects import RandomIntercept

TINY = find_suite("tiny")
# Where it does not matter how well a method fits.
HASTY = dataclasses.replace(TINY, training=dataclasses.replace(TINY.training, epochs=2))
COLUMNS = {"suite", "dataset", "split", "d", "method", "seed"}
COLUMNS |= {"mse", "oracle", "loglik", "seconds", "peak_mb", "versions"}


def frame_of(values, seeds=(0,), **columns):
    """Results with `values[dataset][method]`, a number or one per seed."""
    rows = []
    for dataset, methods in values.items():
        for method, errors in methods.items():
            for seed, error in zip(seeds, np.broadcast_to(errors, len(seeds)), strict=True):
                rows.append(
                    {"dataset": dataset, "split": "rows", "d": 1, "method": method, "seed": seed}
                    | {"mse": float(error)}
                    | columns
                )
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """The whole tiny suite, as the command runs it."""
    folder = tmp_path_factory.mktemp("results")
    output = io.StringIO()
    failures = command.benchmark("tiny", folder, {}, console=Console(file=output, width=200))
    return folder, failures, output.getvalue()


@pytest.mark.slow
class TestTinySuite:
    def test_every_method_on_every_structure(self, tiny_run):
        folder, failures, output = tiny_run
        assert failures == 0, output
        frame = pd.read_csv(folder / "tiny.csv")
        assert set(frame.columns) >= COLUMNS
        assert set(frame["method"]) == set(METHODS)
        assert len(frame) == len(TINY.cells())
        assert (
            frame[["mse", "oracle", "loglik", "loglik_iw", "seconds", "peak_mb"]]
            .notna()
            .all(axis=None)
        )

    def test_numbers_make_sense(self, tiny_run):
        """Nobody beats the oracle by more than chance; LMMVAE knows its uncertainty."""
        frame = pd.read_csv(tiny_run[0] / "tiny.csv")
        assert (frame["mse"] > 0.95 * frame["oracle"]).all()
        np.testing.assert_allclose(frame["regret"], frame["mse"] - frame["oracle"], atol=1e-4)
        ours = frame[frame["method"] == "lmmvae"]
        assert ours["coverage"].between(0.75, 0.99).all()
        assert (ours["effects_correlation"] > 0.8).all()
        # 20 draws tighten the bound, but for chance.
        assert (frame["loglik_iw"] > frame["loglik"] - 0.5).all()

    def test_groups_help(self, tiny_run):
        frame = pd.read_csv(tiny_run[0] / "tiny.csv")
        mse = frame[frame["dataset"] == "categorical"].set_index("method")["mse"]
        assert mse["lmmvae"] < 0.7 * mse["vae"]
        assert mse["blup-vae"] < 0.7 * mse["vae"]
        assert mse["blup-pca"] < 0.7 * mse["pca"]

    def test_files(self, tiny_run):
        folder, _, output = tiny_run
        report = (folder / "tiny.md").read_text()
        for heading in (
            "Test MSE",
            "Regret of LMMVAE",
            "Recovery",
            "Negative log-likelihood",
            "Cost",
        ):
            assert f"## {heading}" in report
        for name in ("tiny.csv", "tiny.md", "tiny.png", "tiny-cost.png"):
            assert (folder / name).stat().st_size > 0
            assert name in output

    def test_a_second_run_fits_nothing(self, tiny_run, monkeypatch):
        def fail(*arguments):
            raise AssertionError("a finished cell was run again")

        monkeypatch.setattr(runner, "_run", fail)
        before = (tiny_run[0] / "tiny.csv").read_text()
        assert command.benchmark("tiny", tiny_run[0], {}, console=Console(file=io.StringIO())) == 0
        assert (tiny_run[0] / "tiny.csv").read_text() == before


@pytest.mark.slow
class TestRunner:
    CELLS = staticmethod(lambda: pick_cells(TINY, methods=["pca", "blup-pca"]))

    @pytest.mark.slow
    def test_same_seed_same_numbers(self, tmp_path):
        """Alone, or after the cells before it: a cell's numbers are those of its seed."""
        table = TINY.tables()[0]
        cells = pick_cells(TINY, methods=["vae", "lmmvae"], tables=[table.dataset])
        frame = run_suite(HASTY, tmp_path, cells).frame
        assert list(frame["method"]) == ["vae", "lmmvae"]
        (again,) = measure_reconstruction(table, 1, "lmmvae", 0, HASTY.training)
        for measure in ("mse", "loglik_iw"):
            assert f"{frame[measure].iloc[-1]:.6g}" == f"{again[measure]:.6g}"

    def test_interrupted_run_goes_on(self, tmp_path):
        """Cells done before the interruption stay and are not repeated."""
        done = []

        def interrupt(cell, outcome):
            done.append(cell)
            if len(done) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_suite(TINY, tmp_path, self.CELLS(), on_cell=interrupt)
        assert len(Results(tmp_path / "tiny.csv").frame) == 2
        fresh = []
        run_suite(
            TINY, tmp_path, self.CELLS(), on_cell=lambda cell, out: fresh.append(out is not None)
        )
        assert fresh.count(True) == len(self.CELLS()) - 2
        assert len(Results(tmp_path / "tiny.csv").frame) == len(self.CELLS())

    @pytest.mark.slow
    def test_interrupted_processes_leave_the_rest(self, tmp_path):
        """With processes, too: what was done is saved, what was waiting is dropped."""

        def interrupt(cell, outcome):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_suite(TINY, tmp_path, self.CELLS(), jobs=2, on_cell=interrupt)
        assert len(Results(tmp_path / "tiny.csv").frame) == 1

    def test_processes_fit_the_suite_that_they_are_given(self, tmp_path):
        """With processes, too, a suite may differ from the one of its name; errors are told."""
        training = dataclasses.replace(TINY.training, batch_size=-1)
        changed = dataclasses.replace(TINY, training=training)
        cells = pick_cells(TINY, methods=["pca", "vae"], tables=["categorical"])
        outcomes = {}
        results = run_suite(
            changed,
            tmp_path,
            cells,
            jobs=2,
            on_cell=lambda cell, outcome: outcomes.update({cell.method: outcome}),
        )
        assert list(results.frame["method"]) == ["pca"]
        assert outcomes["pca"].error == ""
        assert "batch_size=-1" in outcomes["vae"].error

    def test_other_settings_are_run_again(self, tmp_path):
        cells = pick_cells(TINY, methods=["vae"], tables=["categorical"])
        run_suite(HASTY, tmp_path, cells)
        training = dataclasses.replace(HASTY.training, batch_size=100)
        changed = dataclasses.replace(HASTY, training=training)
        seen = []
        run_suite(changed, tmp_path, cells, on_cell=lambda cell, outcome: seen.append(outcome))
        assert seen[0] is not None
        frame = Results(tmp_path / "tiny.csv").frame
        assert len(frame) == 1
        assert '"batch_size": 100' in frame["settings"][0]

    def test_a_failure_leaves_the_others(self, tmp_path, monkeypatch):
        def measure(table, latent_dim, method, seed, training):
            if method == "pca":
                raise ValueError("it broke")
            return [{"mse": 1.0, "seconds": 0.0}]

        monkeypatch.setitem(runner._MEASURES, "reconstruction", measure)
        outcomes = {}
        run_suite(
            TINY,
            tmp_path,
            pick_cells(TINY, methods=["pca", "blup-pca"], tables=["categorical"]),
            on_cell=lambda cell, outcome: outcomes.update({cell.method: outcome}),
        )
        assert outcomes["pca"].error == "ValueError: it broke"
        assert list(Results(tmp_path / "tiny.csv").frame["method"]) == ["blup-pca"]

    def test_processes_give_the_same(self, tmp_path):
        """Two processes: the same cells and numbers as one."""
        cells = pick_cells(TINY, methods=["pca"])
        alone = run_suite(TINY, tmp_path / "one", cells).frame
        together = run_suite(TINY, tmp_path / "two", cells, jobs=2).frame
        pd.testing.assert_series_equal(
            alone.set_index("dataset")["mse"],
            together.set_index("dataset")["mse"].loc[alone["dataset"]],
            rtol=1e-5,
        )

    @pytest.mark.parametrize(
        ("part", "value"),
        [("methods", "svm"), ("tables", "mars"), ("latent_dims", 7), ("seeds", 9)],
    )
    def test_unknown_part(self, part, value):
        message = rf"The suite has no such `{part}`, expected of .* Received: {part}=\[{value!r}\]"
        with pytest.raises(ValueError, match=message):
            pick_cells(TINY, **{part: [value]})

    def test_unknown_suite(self):
        with pytest.raises(ValueError, match=r"There is no suite 'x', expected .* suite='x'"):
            find_suite("x")


class TestResults:
    def test_columns_of_every_suite(self, tmp_path, monkeypatch):
        """The same first columns whatever is measured; what is not stays empty."""
        monkeypatch.setitem(
            runner._MEASURES, "reconstruction", lambda *arguments: [{"accuracy": 0.5}]
        )
        cells = pick_cells(TINY, methods=["pca"], tables=["categorical"])
        frame = run_suite(TINY, tmp_path, cells).frame
        assert set(frame.columns) == COLUMNS | {"accuracy", "settings"}
        assert frame[["mse", "oracle", "loglik"]].isna().all(axis=None)

    def test_foreign_file(self, tmp_path):
        (tmp_path / "tiny.csv").write_text("a,b\n1,2\n")
        with pytest.raises(ValueError, match=r"not a table of results.*columns=\['a', 'b'\]"):
            Results(tmp_path / "tiny.csv")

    def test_names_like_missing_values(self, tmp_path):
        """A data set may be called "null"; pandas must not take it for a missing value."""
        path = tmp_path / "x.csv"
        frame_of({"null": {"pca": 1.0}}, suite="x", settings="{}", versions="1").to_csv(
            path, index=False
        )
        assert list(Results(path).frame["dataset"]) == ["null"]

    def test_nothing_to_report(self, tmp_path):
        with pytest.raises(ValueError, match=r"There are no results to report\. Received: file="):
            command.benchmark("tiny", tmp_path, {}, report_only=True)


class TestSuites:
    def test_paper_small(self):
        """n = 20,000, d = 1, two variance levels for each structure, all splits."""
        suite = SUITES["paper-small"]
        assert {cell.latent_dim for cell in suite.cells()} == {1}
        names = {table.name for table in paper_small()}
        for structure in ("nested", "crossed", "longitudinal", "spatial", "spatial-categorical"):
            assert {f"{structure}-0.3/rows", f"{structure}-3/rows"} <= names
        assert {"longitudinal-3/future", "spatial-3/groups", "sparse-0.3/rows"} <= names
        assert "no-effect/rows" in names

    def test_paper_full_has_every_published_cell(self):
        """8 x (1 + 2) + 4 x 2 tables, and each is found in the paper's results."""
        tables = paper_full()
        assert len(tables) == 32
        frame = pd.DataFrame(
            {"dataset": table.dataset, "split": table.split, "d": d, "method": "lmmvae"}
            | {"seed": 0, "mse": 1.5}
            for table in tables
            for d in (1, 2)
        )
        assert len(published_comparison(frame)) == 64

    def test_names_are_unique(self):
        for suite in SUITES.values():
            names = [table.name for table in suite.tables()]
            assert len(set(names)) == len(names)

    def test_real_tables(self):
        """Six data sets in all latent dimensions, and each split a second way with two."""
        tables = SUITES["real"].tables()
        second = [table.latent_dims == (2,) for table in tables]
        assert second == [False] * 6 + [True] * 6
        assert {table.split for table in tables[:6]} == {"rows"}
        assert [table.dataset for table in tables[:6]] == [table.dataset for table in tables[6:]]
        assert {"us-tracts/groups", "county-murders/future"} <= {table.name for table in tables}

    def test_census_tracts_of_a_table(self):
        """20,000 tracts with their places, and no county on both sides of its split."""
        (table,) = (one for one in SUITES["real"].tables() if one.name == "us-tracts/groups")
        problem = load_problem(table, 2, 0)
        train, test = problem.train, problem.test
        assert len(train["x"]) + len(test["x"]) == 20_000
        assert not set(train["county"]) & set(test["county"])
        np.testing.assert_allclose(train["x"].std(axis=0), 1.0, rtol=1e-4)
        needed = {column for term in table.effects() for column in term.columns}
        assert needed == set(train) - {"x"}

    def test_paper_settings(self):
        """The amortized model keeps the paper's settings whatever the suite's are."""
        own = training_of("lmmvae-amortized", Training(kl_weight=1.0, batch_size=10))
        assert (own.batch_size, own.learning_rate, own.kl_weight) == (1000, 1e-3, 0.01)
        assert settings_of("pca", Training()) == "{}"

    def test_methods_are_treated_alike(self):
        """Refinement and calibration are settings of all methods that have them, if in use."""
        plain, fair = Training(), Training(refine=10, calibration_split=0.05)
        for method in METHODS:
            own = json.loads(settings_of(method, fair))
            has = (own.get("refine", 0), own.get("calibration_split", 0.0))
            expected = {"vrae": (0, 0.0), "lmmvae-amortized": (0, 0.05)}
            is_linear = training_of(method, fair) is None
            assert has == expected.get(method, (0 if is_linear else 10, 0.05))
            assert not {"refine", "calibration_split"} & set(json.loads(settings_of(method, plain)))
        assert SUITES["real"].training.refine == 10
        assert SUITES["real"].training.calibration_split == 0.05

    def test_methods_are_built_with_them(self):
        table = TINY.tables()[0]
        for method in ("pca", "pca-ohe", "blup-pca", "vae", "cvae", "blup-vae", "lmmvae"):
            made = make_method(method, table, 1, Training(refine=7, calibration_split=0.3), 5)
            assert made.get_params()["calibration_split"] == 0.3
            assert made.get_params()["seed"] == 5
            assert made.get_params().get("refine", 7) == 7

    @pytest.mark.parametrize("method", [LMMVAEMethod, AmortizedMethod])
    def test_lmmvae_is_refined_and_calibrated(self, method):
        """Latents and reconstructions are its model's; rows held out give another noise."""
        data = labelled_table().load(1, 0).data
        settings = {"hidden_units": (8,), "epochs": 1, "seed": 0}
        own = method(1, [RandomIntercept("group")], **settings, refine=3, calibration_split=0.2)
        model = own.fit(data).model_
        np.testing.assert_allclose(own.transform(data), model.encode(data, 3), rtol=1e-5)
        expected = model.reconstruct(data, refine=3)
        np.testing.assert_allclose(own.reconstruct(data), expected, rtol=1e-5)
        expected = model.log_likelihood(data, refine=3)
        np.testing.assert_allclose(own.log_likelihood(data), expected, rtol=1e-5)
        other = method(1, [RandomIntercept("group")], **settings).fit(data).model_
        assert not np.allclose(model.noise_variance, other.noise_variance, rtol=1e-3)

    def test_methods_need_their_structure(self):
        categorical, future, unseen = TINY.tables()
        assert not applies("vrae", categorical)
        assert not applies("svgpvae", categorical)
        assert applies("vrae", future)
        assert applies("svgpvae", unseen)
        with pytest.raises(ValueError, match=r"There is no method 'x'.*Received: method='x'"):
            applies("x", categorical)


class TestSummary:
    FRAME = frame_of(
        {
            "a": {"pca": [3.0, 3.2, 3.1], "lmmvae": [1.0, 1.2, 1.1]},
            "b": {"pca": [1.00, 1.30, 1.10], "lmmvae": [1.02, 1.28, 1.11]},
            "c": {"pca": [1.00, 1.30, 1.10], "lmmvae": [1.10, 1.40, 1.20]},
        },
        seeds=(0, 1, 2),
        oracle=0.9,
    )

    def test_means_and_errors(self):
        mean, error = pivot(self.FRAME, "mse")
        assert mean.loc[("a", "rows", 1), "pca"] == pytest.approx(3.1)
        assert error.loc[("a", "rows", 1), "pca"] == pytest.approx(0.1 / math.sqrt(3))

    def test_within_one_error(self):
        """b: the paired difference changes its sign; c: it is 0.1 in every seed."""
        found = within_one_error(self.FRAME)
        assert list(found["lmmvae"]) == [True, True, False]
        assert list(found["pca"]) == [False, True, True]
        assert dict(best_count(self.FRAME, "lmmvae")) == {"a": True, "b": True, "c": False}

    def test_regret_ratios(self):
        frame = frame_of({"a": {"lmmvae": 1.0, "lmmvae-amortized": 1.9}}, oracle=0.9)
        ratios = regret_ratios(frame).iloc[0]
        assert ratios["regret"] == pytest.approx(0.1)
        assert ratios["ratio"] == pytest.approx(0.1)
        assert ratios["of_oracle"] == pytest.approx(1.0 / 0.9)

    def test_published_comparison(self):
        """A cell by hand: longitudinal, variances 3/3/3, d = 1."""
        name = "longitudinal-3-3-3"
        row = published_comparison(frame_of({name: {"lmmvae": 1.2}})).iloc[0]
        table = load_published()
        rows = (table["suite"] == "simulated-longitudinal") & (table["split"] == "random")
        rows &= (table["d"] == 1) & (table["method"] == "lmmvae")
        for k in range(3):
            rows &= table[f"effect_variance_{k}"] == 3.0
        published = float(table.loc[rows, "mse"].item())
        assert row["published_mse"] == published
        assert row["ratio"] == pytest.approx((1.2 - 0.99) / (published - 0.99))

    def test_real_results_have_no_oracle(self, tmp_path):
        """Reports and figures of suites without a truth."""
        frame = self.FRAME.assign(oracle=np.nan, loglik=-1.0, loglik_iw=-0.9, versions="1")
        frame = frame.assign(seconds=1.0, cpu_seconds=1.0, peak_mb=10.0)
        write_report(SUITES["real"], frame, tmp_path / "real.md")
        text = (tmp_path / "real.md").read_text()
        assert "Regret" not in text
        assert "**1.100 ± 0.058**" in text
        assert [path.name for path in draw_figures("real", frame, tmp_path)] == ["real.png"]


def labelled_table(num_rows=600, seed=0):
    """Two features tell the label, the others are noise."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, num_rows)
    x = rng.normal(size=(num_rows, 6))
    x[:, :2] += 4.0 * label[:, None]
    labels = np.where(rng.random(num_rows) < 0.1, None, label.astype(object))
    source = Source({"x": x, "group": rng.integers(0, 30, num_rows)}, labels=labels)
    return Table("labelled", lambda d, s: source, list, "groups", "group", standardise=True)


class TestClassification:
    @pytest.mark.parametrize("method", ["raw", "pca"])
    def test_separable_labels_are_told(self, method):
        rows = measure_classification(labelled_table(), 1, method, 0, Training())
        assert [row["classifier"] for row in rows] == ["logistic regression", "gradient boosting"]
        assert all(row["accuracy"] > 0.95 and row["balanced_accuracy"] > 0.95 for row in rows)

    def test_both_representations_of_one_fit(self):
        """Labels of held-out groups: LMMVAE's total tells them, the latent within does not."""
        rng = np.random.default_rng(0)
        group = rng.integers(0, 40, 800)
        x = rng.normal(size=(800, 6))
        x[:, 0] += 6.0 * (group % 2)
        x[:, 1:3] += 3.0 * rng.normal(size=(800, 1))
        source = Source({"x": x, "group": group}, labels=(group % 2).astype(object))
        table = dataclasses.replace(
            labelled_table(),
            groups=("group",),
            load=lambda d, s: source,
            effects=lambda: [RandomIntercept("group")],
        )
        rows = measure_classification(table, 1, "lmmvae", 0, Training((16,), 5))
        found = {(row["method"], row["classifier"]): row["accuracy"] for row in rows}
        assert len(found) == len(rows) == 4
        assert found["lmmvae-total", "logistic regression"] > 0.9
        assert found["lmmvae", "logistic regression"] < 0.7
        for row in measure_classification(table, 1, "lda", 0, Training()):
            assert row["method"] == "lda"
            assert row["accuracy"] > 0.9

    def test_representations_are_replaced_together(self, tmp_path):
        """A cell that is run again, with other settings, leaves no rows of before."""
        results, cell = Results(tmp_path / "r.csv"), TINY.cells()[0]
        for settings in ("old", "new"):
            rows = [{"method": name, "settings": settings} for name in (cell.method, "other")]
            results.add(cell, [{"suite": "tiny", "versions": "1"} | row for row in rows])
        assert results.frame["settings"].tolist() == ["new", "new"]
        assert results.has(cell, "new")
        assert not results.has(cell, "old")

    def test_labels_of_no_use(self):
        """Shuffled labels: no better than chance."""
        table = labelled_table()
        source = table.load(1, 0)
        shuffled = np.random.default_rng(1).permutation(source.labels)
        table = dataclasses.replace(
            table, load=lambda d, s: dataclasses.replace(source, labels=shuffled)
        )
        rows = measure_classification(table, 1, "raw", 0, Training())
        assert all(row["accuracy"] < 0.7 for row in rows)

    def test_no_labels(self):
        with pytest.raises(ValueError, match=r"must have labels\. Received: dataset='categorical'"):
            measure_classification(TINY.tables()[0], 1, "raw", 0, Training())

    def test_report(self, tmp_path):
        rows = [
            {"dataset": "a", "split": "groups", "d": 1, "method": method, "seed": 0}
            | {"classifier": "logistic regression", "accuracy": value, "versions": "1"}
            for method, value in (("raw", 0.7), ("lmmvae", 0.8))
        ]
        frame = pd.DataFrame(rows)
        write_report(SUITES["classification"], frame, tmp_path / "c.md")
        assert "**0.800**" in (tmp_path / "c.md").read_text()
        assert draw_figures("c", frame, tmp_path)[0].exists()


class TestTables:
    def test_standardised_by_the_training_rows(self):
        problem = load_problem(labelled_table(), 1, 0)
        np.testing.assert_allclose(problem.train["x"].mean(axis=0), 0.0, atol=1e-5)
        np.testing.assert_allclose(problem.train["x"].std(axis=0), 1.0, atol=1e-5)
        assert not set(problem.train["group"]) & set(problem.test["group"])
        assert problem.oracle is None

    def test_latent_correlation(self):
        rng = np.random.default_rng(0)
        u = rng.normal(size=(1500, 2))
        turned = u @ np.array([[0.6, 0.8], [-0.8, 0.6]])
        assert latent_correlation(np.sinh(turned), u) > 0.97
        assert abs(latent_correlation(rng.normal(size=(1500, 2)), u)) < 0.15
