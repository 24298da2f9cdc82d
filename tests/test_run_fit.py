"""`fit`, `evaluate`, `transform`: what a run writes, and what is left of one that was stopped."""

import inspect
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import yaml
from rich.console import Console

import keras_lmmvae as lmm
from keras_lmmvae.runs import command, pictures, running
from keras_lmmvae.runs.checkpoints import Checkpoints
from keras_lmmvae.runs.config import TrainingSettings
from keras_lmmvae.runs.fitting import FitProgress, early_stopping, make_optimizer
from keras_lmmvae.runs.folder import load_run

ROOT = Path(__file__).parents[1]
CONFIG = {
    "random_effects": "(1 + t | patient) + (1 | store)",
    "model": {"latent_dim": 2, "hidden_units": [4]},
    "training": {"epochs": 3, "batch_size": 50, "validation": 0.2},
}
FEATURES = ["a", "b", "c"]
QUICK = {**CONFIG, "features": FEATURES, "random_effects": "(1 | store)"}
# TensorFlow warns of input pipelines where nothing is compiled.
pytestmark = pytest.mark.filterwarnings("ignore:Even though the `tf.config")


def table(rows=100):
    rng = np.random.default_rng(0)
    patient, store = rng.integers(0, 12, rows), rng.integers(0, 5, rows)
    effects = rng.normal(size=(12, 3))[patient] + rng.normal(size=(5, 3))[store]
    frame = pd.DataFrame(effects + rng.normal(size=(rows, 3)), columns=FEATURES)
    return frame.assign(
        patient=[f"p{k}" for k in patient], t=rng.uniform(size=rows), store=store, note="text"
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder with config.yaml and data.csv, as `fit` gets them."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text("# mine\n" + yaml.safe_dump(CONFIG))
    table().to_csv(folder / "data.csv", index=False)
    return folder


def fit(files, output, *, config=QUICK, data="data.csv", **options):
    """Runs `fit` and returns what it printed."""
    config_file = files / "config.yaml"
    if config is not CONFIG:
        config_file = files / "other.yaml"
        config_file.write_text(yaml.safe_dump(config))
    console = Console(file=io.StringIO(), width=200)
    command.fit(config_file, files / data, output, console=console, **options)
    return console.file.getvalue()


def changed(**training):
    return {**QUICK, "training": {**CONFIG["training"], **training}}


@pytest.fixture(scope="module")
def run(files):
    """A finished run, and what was printed."""
    output = files / "runs" / "first"
    return output, fit(files, output, config=CONFIG)


@pytest.fixture(autouse=True)
def quick(run, monkeypatch):
    """All runs but the first are made without compiling, and draw nothing."""
    del run
    monkeypatch.setattr(running, "draw_pictures", lambda *arguments: ["a picture"])
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def stop_after(monkeypatch):
    """Interrupts fits, as Ctrl-C does, after so many epochs; 0: no more."""

    def at(epochs):
        def stop(self, epoch, logs=None):
            if epoch + 1 == epochs:
                raise KeyboardInterrupt

        monkeypatch.setattr(FitProgress, "on_epoch_end", stop)

    return at


class TestFolder:
    def test_all_files_are_there(self, run):
        output, _ = run
        names = {path.relative_to(output).as_posix() for path in output.rglob("*.*")}
        plots = ["training", "reconstruction", "variance_partition", "latent", "effects_store"]
        plots += ["effects_patient", "trajectories_patient"]
        assert names == {
            "config.yaml",
            "data.json",
            "history.csv",
            "metrics.json",
            "model.keras",
            "resolved.yaml",
            "run.log",
            "variance_components.csv",
            "variance_partition.csv",
            *(f"random_effects/{name}.csv" for name in ("patient", "patient_std")),
            *(f"random_effects/{name}.csv" for name in ("store", "store_std")),
            *(f"plots/{name}.png" for name in plots),
        }
        assert not output.with_name("first.partial").exists()

    def test_configuration_as_given_and_in_full(self, files, run):
        output, _ = run
        assert (output / "config.yaml").read_text() == (files / "config.yaml").read_text()
        full = yaml.safe_load((output / "resolved.yaml").read_text())
        assert full["features"] == FEATURES
        assert [term["column"] for term in full["random_effects"]] == ["patient", "store"]
        assert full["training"]["learning_rate"] == 0.002

    def test_tables_are_those_of_the_model(self, run):
        output, _ = run
        model = load_run(output)
        for term in ("patient", "store"):
            for ending, std in (("", False), ("_std", True)):
                written = pd.read_csv(output / "random_effects" / f"{term}{ending}.csv")
                expected = model.random_effects_table(term, std=std).reset_index()
                pd.testing.assert_frame_equal(written, expected, check_dtype=False, rtol=1e-5)
        written = pd.read_csv(output / "variance_components.csv", index_col="component")
        expected = model.variance_components()
        np.testing.assert_allclose(written, expected, rtol=1e-5)
        assert list(written.index) == list(expected.index)
        shares = pd.read_csv(output / "variance_partition.csv", index_col="part")
        np.testing.assert_allclose(shares.sum(), 1.0, rtol=1e-5)

    def test_metrics_and_history(self, run):
        output, printed = run
        metrics = json.loads((output / "metrics.json").read_text())
        history = pd.read_csv(output / "history.csv")
        assert history["epoch"].tolist() == [1, 2, 3]
        assert metrics["epochs"] == 3
        assert (metrics["train"]["rows"], metrics["validation"]["rows"]) == (80, 20)
        assert metrics["train"]["known"] == {"patient": 1.0, "store": 1.0}
        assert metrics["train"]["mse"] < metrics["train"]["mse_population"]
        assert metrics["seconds"] >= history["seconds"].iloc[-1] > 0
        assert metrics["versions"]["keras"] == keras.__version__
        assert metrics["data"]["train_rows"] == 80
        assert "80 rows to learn from, 20 held out; 3 features: a, b, c" in printed
        assert f"{metrics['validation']['mse']:.4g}" in printed

    def test_log_tells_the_epochs(self, run):
        log = (run[0] / "run.log").read_text()
        assert "epoch 3 of 3: " in log
        assert log.rstrip().endswith("complete")

    def test_same_seed_gives_the_same_run(self, files, tmp_path):
        """History and effects are equal but for the seconds."""
        tables = {}
        for name in ("one", "two"):
            fit(files, tmp_path / name, config=changed(epochs=1))
            history = pd.read_csv(tmp_path / name / "history.csv").drop(columns="seconds")
            effects = pd.read_csv(tmp_path / name / "random_effects" / "store.csv")
            tables[name] = np.concatenate([history.to_numpy().ravel(), effects.to_numpy().ravel()])
        np.testing.assert_array_equal(tables["one"], tables["two"])

    def test_parquet_gives_parquet(self, files, tmp_path):
        pytest.importorskip("pyarrow")
        table().to_parquet(files / "data.parquet")
        fit(files, tmp_path / "run", data="data.parquet", config=changed(epochs=1))
        effects = pd.read_parquet(tmp_path / "run" / "random_effects" / "store.parquet")
        assert list(effects) == ["store", *FEATURES]

    def test_amortized_run_has_no_deviations(self, files, tmp_path, monkeypatch):
        config = changed(epochs=1)
        config["model"] = {**CONFIG["model"], "posterior": "amortized"}
        monkeypatch.setattr(running, "draw_pictures", pictures.draw_pictures)
        fit(files, tmp_path / "run", config=config)
        effects = {path.name for path in (tmp_path / "run" / "random_effects").iterdir()}
        assert effects == {"store.csv"}
        assert not (tmp_path / "run" / "variance_partition.csv").exists()
        drawn = {path.stem for path in (tmp_path / "run" / "plots").iterdir()}
        assert drawn == {"training", "reconstruction", "latent"}

    def test_without_matplotlib_it_says_so(self, files, tmp_path, monkeypatch):
        monkeypatch.setattr(running, "draw_pictures", pictures.draw_pictures)
        monkeypatch.setattr(pictures, "find_spec", lambda name: None)
        printed = fit(files, tmp_path / "run", config=changed(epochs=1))
        assert "no pictures: they need Matplotlib, `pip install keras-lmmvae[plots]`" in printed
        assert not (tmp_path / "run" / "plots").exists()

    @pytest.mark.parametrize(("share", "monitor"), [(0.2, "val_loss"), (None, "loss")])
    def test_patience_stops_early(self, files, tmp_path, monkeypatch, share, monitor):
        """The loss of the rows held out is watched, without them that of training."""
        seen = {}

        def stop(self, *arguments, callbacks, **options):
            seen["callback"] = callbacks[0]
            raise ValueError("seen enough")

        monkeypatch.setattr(lmm.LMMVAE, "fit", stop)
        with pytest.raises(ValueError, match="seen enough"):
            fit(files, tmp_path / "run", config=changed(patience=3, validation=share))
        callback = seen["callback"]
        assert isinstance(callback, keras.callbacks.EarlyStopping)
        assert (callback.monitor, callback.patience) == (monitor, 3)
        assert callback.restore_best_weights

    @pytest.mark.parametrize("schedule", ["constant", "cosine"])
    def test_schedules(self, schedule):
        """Constant, or a cosine that is 0 at the last step."""
        settings = TrainingSettings(epochs=2, batch_size=50, schedule=schedule, learning_rate=0.1)
        optimizer = make_optimizer(settings, 120)
        optimizer.build([keras.Variable(0.0)])
        first = float(optimizer.learning_rate)
        optimizer.iterations.assign(6)
        last = float(optimizer.learning_rate)
        assert first == pytest.approx(0.1)
        assert last == pytest.approx(0.1 if schedule == "constant" else 0.0, abs=1e-7)


class TestOverwriting:
    def test_a_run_is_not_overwritten(self, files, run):
        with pytest.raises(ValueError, match="holds a run already.*`--overwrite` it. Received: "):
            fit(files, run[0])

    def test_overwrite_replaces_all_of_it(self, files, tmp_path):
        output = tmp_path / "run"
        fit(files, output, config=changed(epochs=1))
        (output / "old.txt").write_text("old")
        fit(files, output, config=changed(epochs=2), overwrite=True)
        assert len(pd.read_csv(output / "history.csv")) == 2
        assert not (output / "old.txt").exists()
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["run"]

    def test_failed_overwrite_leaves_the_old_run(self, files, run, monkeypatch):
        """And nothing of the new one: it had no epoch."""
        output, _ = run
        before = (output / "metrics.json").read_text()
        with pytest.raises(ValueError, match="fewer rows than `batch_size`"):
            fit(files, output, config=changed(batch_size=999), overwrite=True)
        assert (output / "metrics.json").read_text() == before
        assert not output.with_name("first.partial").exists()

    @pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
    @pytest.mark.parametrize("name", ["run", "run.partial"])
    def test_other_folders_are_left_alone(self, files, tmp_path, options, name):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("years of work")
        with pytest.raises(ValueError, match="is no folder of a run|is none of a run"):
            fit(files, tmp_path / "run", **options)
        assert (tmp_path / name / "thesis.tex").read_text() == "years of work"

    def test_a_file_is_no_folder(self, files, tmp_path):
        (tmp_path / "run").write_text("a file")
        with pytest.raises(ValueError, match="is no folder of a run.*Received: output="):
            fit(files, tmp_path / "run", overwrite=True)

    def test_overwrite_and_resume(self, files, tmp_path):
        with pytest.raises(ValueError, match="not both. Received: overwrite=True, resume=True"):
            fit(files, tmp_path / "run", overwrite=True, resume=True)


class TestResuming:
    def test_interrupted_run_goes_on(self, files, tmp_path, stop_after):
        """From the epoch it stopped at; the folder appears at the end only."""
        output = tmp_path / "run"
        stop_after(2)
        with pytest.raises(KeyboardInterrupt, match="after epoch 2 of 3; go on .* --resume"):
            fit(files, output)
        assert not output.exists()
        assert "interrupted" in (tmp_path / "run.partial" / "run.log").read_text()
        with pytest.raises(ValueError, match="was interrupted: go on with `--resume`"):
            fit(files, output)
        stop_after(0)
        before = Checkpoints(tmp_path / "run.partial" / "checkpoints")
        fit(files, output, resume=True)
        history = pd.read_csv(output / "history.csv")
        assert history["epoch"].tolist() == [1, 2, 3]
        pd.testing.assert_frame_equal(history[:2], before.history)
        assert history["seconds"].is_monotonic_increasing
        assert not (output / "checkpoints").exists()
        assert not (tmp_path / "run.partial").exists()

    def test_interrupted_before_the_first_epoch(self, files, tmp_path, monkeypatch):
        def stop(*arguments, **options):
            raise KeyboardInterrupt

        monkeypatch.setattr(lmm.LMMVAE, "fit", stop)
        with pytest.raises(KeyboardInterrupt, match="before the first epoch was done; nothing"):
            fit(files, tmp_path / "run")
        assert list(tmp_path.iterdir()) == []

    def test_interrupted_results_do_not_train_anew(self, files, tmp_path, monkeypatch):
        output = tmp_path / "run"

        def stop(*arguments):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(running, "draw_pictures", stop)
            with pytest.raises(KeyboardInterrupt, match="after epoch 3 of 3"):
                fit(files, output)
        kept = (tmp_path / "run.partial" / "model.keras").read_bytes()
        monkeypatch.setattr(running, "fit_job", stop)
        fit(files, output, resume=True)
        assert (output / "model.keras").read_bytes() == kept
        assert len(pd.read_csv(output / "history.csv")) == 3

    def test_failure_after_an_epoch_can_be_resumed(self, files, tmp_path, monkeypatch):
        """What failed is in the log."""

        def fail(*arguments):
            raise RuntimeError("no space left")

        with monkeypatch.context() as patch:
            patch.setattr(running, "write_metrics", fail)
            with pytest.raises(RuntimeError, match="no space left"):
                fit(files, tmp_path / "run", config=changed(epochs=1))
        assert "RuntimeError: no space left" in (tmp_path / "run.partial" / "run.log").read_text()
        fit(files, tmp_path / "run", config=changed(epochs=1), resume=True)
        assert (tmp_path / "run" / "metrics.json").exists()

    def test_other_configuration_or_data(self, files, tmp_path, stop_after):
        stop_after(1)
        with pytest.raises(KeyboardInterrupt):
            fit(files, tmp_path / "run")
        with pytest.raises(ValueError, match="its resolved.yaml differs from .* Received: file="):
            fit(files, tmp_path / "run", config=changed(epochs=9), resume=True)
        table(99).to_csv(files / "less.csv", index=False)
        with pytest.raises(ValueError, match="its data.json differs"):
            fit(files, tmp_path / "run", data="less.csv", resume=True)

    def test_complete_run_stays_as_it_is(self, files, run):
        before = (run[0] / "run.log").read_text()
        assert "nothing to resume" in fit(files, run[0], config=CONFIG, resume=True)
        assert (run[0] / "run.log").read_text() == before
        with pytest.raises(ValueError, match="differs from what is given now"):
            fit(files, run[0], config=changed(epochs=9), resume=True)

    def test_nothing_to_resume_starts(self, files, tmp_path):
        printed = fit(files, tmp_path / "run", config=changed(epochs=1), resume=True)
        assert "nothing to resume: starting at the first epoch" in printed
        assert (tmp_path / "run" / "model.keras").exists()


def small_model(seed=0):
    """A compiled model, adapted to the table, with its rows."""
    model = lmm.LMMVAE(1, "(1 | store)", hidden_units=(4,), seed=seed)
    data = lmm.from_dataframe(table(), FEATURES, model.random_effects)
    model.adapt(data)
    model.compile()
    return model, data


def fit_with(checkpoints, epochs):
    model, data = small_model()
    model.fit(data, epochs=epochs, batch_size=50, verbose=0, callbacks=[checkpoints])
    return model


class TestCheckpoints:
    def test_state_is_restored(self, tmp_path, monkeypatch):
        """Networks, effects and the optimizer's steps are those of the last epoch."""
        model, data = small_model()
        # The exact solution comes after the last epoch, so it is in no checkpoint.
        monkeypatch.setattr(model, "_end_fit", lambda *rows: None)
        callbacks = [Checkpoints(tmp_path)]
        model.fit(data, epochs=2, batch_size=50, verbose=0, callbacks=callbacks)
        other, _ = small_model(seed=1)
        checkpoints = Checkpoints(tmp_path)
        checkpoints.set_model(other)
        checkpoints.on_train_begin()
        assert checkpoints.epoch == 2
        assert checkpoints.seconds >= callbacks[0].history["seconds"].iloc[-1]
        for one, two in zip(model.weights, other.weights, strict=True):
            if "seed_generator" not in one.path:
                np.testing.assert_array_equal(one, two, err_msg=one.path)
        assert int(other.optimizer.iterations) == int(model.optimizer.iterations) == 4

    def test_only_the_last_is_kept(self, tmp_path):
        fit_with(Checkpoints(tmp_path), 2)
        assert [path.name for path in tmp_path.iterdir()] == ["epoch-000002"]

    def test_interruption_while_saving_keeps_the_one_before(self, tmp_path, monkeypatch):
        save = lmm.LMMVAE.save_weights

        def stop(self, path):
            save(self, path)
            if "epoch-000002" in str(path):
                raise KeyboardInterrupt  # before history and epoch are written

        monkeypatch.setattr(lmm.LMMVAE, "save_weights", stop)
        with pytest.raises(KeyboardInterrupt):
            fit_with(Checkpoints(tmp_path), 2)
        assert [path.name for path in tmp_path.iterdir()] == ["epoch-000001"]
        assert Checkpoints(tmp_path).epoch == 1


class FixedLosses(keras.callbacks.Callback):
    """Gives the epochs losses of the test's choice, and notes the weights after each."""

    def __init__(self, losses):
        super().__init__()
        self.losses = losses
        self.weights = {}

    def on_epoch_end(self, epoch, logs=None):
        logs["loss"] = self.losses[epoch]
        self.weights[epoch + 1] = self.model.get_weights()


class StopAfter(keras.callbacks.Callback):
    """Interrupts a fit, as Ctrl-C does, and notes the weights that it ends with otherwise."""

    def __init__(self, epochs):
        super().__init__()
        self.epochs = epochs
        self.weights = None

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == self.epochs:
            raise KeyboardInterrupt

    def on_train_end(self, logs=None):
        self.weights = self.model.get_weights()


class TestBestWeights:
    """Early stopping goes on where it was: losses 1, 0.5, 0.7, 0.8 with a patience of 2."""

    LOSSES = (1.0, 0.5, 0.7, 0.8, 0.1)

    def session(self, folder, stop_after=None):
        """Fits from the last checkpoint; the weights after each epoch, and what saw the end."""
        stopping = early_stopping(TrainingSettings(patience=2, validation=None))
        checkpoints = Checkpoints(folder, stopping)
        losses, stop = FixedLosses(self.LOSSES), StopAfter(stop_after)
        model, data = small_model()
        try:
            model.fit(
                data,
                epochs=5,
                initial_epoch=checkpoints.initial_epoch(5),
                batch_size=50,
                verbose=0,
                callbacks=[losses, stopping, checkpoints, stop],
            )
        except KeyboardInterrupt:
            assert checkpoints.epoch == stop_after
        return losses.weights, checkpoints, stop

    def assert_equal(self, one, two):
        for value, other in zip(one, two, strict=True):
            np.testing.assert_array_equal(value, other)

    def test_they_outlive_an_interruption(self, tmp_path):
        """The best epoch was in the first session, the last one in the second."""
        first, _, interrupted = self.session(tmp_path, stop_after=3)
        assert interrupted.weights is None
        second, checkpoints, stop = self.session(tmp_path)
        assert checkpoints.history["loss"].tolist() == [1.0, 0.5, 0.7, 0.8]
        assert list(first) == [1, 2, 3]
        assert list(second) == [4]
        assert not all(np.array_equal(a, b) for a, b in zip(first[2], second[4], strict=True))
        self.assert_equal(stop.weights, first[2])

    def test_a_fit_that_was_stopped_is_not_gone_on_with(self, tmp_path):
        """Its best weights are restored; the epoch with loss 0.1 is never reached."""
        weights, checkpoints, stop = self.session(tmp_path)
        assert checkpoints.epoch == 4
        assert Checkpoints(tmp_path).initial_epoch(5) == 5
        again, checkpoints, end = self.session(tmp_path)
        assert again == {}
        assert len(checkpoints.history) == 4
        self.assert_equal(end.weights, weights[2])
        self.assert_equal(end.weights, stop.weights)


class SmallModel:
    """What `Checkpoints` needs of a model: its weights are the number of the epoch."""

    stop_training = False

    def __init__(self, epoch):
        self.epoch = epoch

    def save_weights(self, path):
        Path(path).write_text(str(self.epoch))


# A process without this one's threads: a copy of a process keeps locks that they held.
KILLED = f"""
import os, shutil, sys
from pathlib import Path
import pandas as pd
from keras_lmmvae.runs.checkpoints import Checkpoints

{inspect.getsource(SmallModel)}
def killing(act, *, before):
    def killed(*arguments, **options):
        if before:
            os._exit(9)
        act(*arguments, **options)
        os._exit(9)
    return killed

TARGETS = {{
    "mkdir": (Path, "mkdir", True),
    "save_weights": (SmallModel, "save_weights", False),
    "history": (pd.DataFrame, "to_csv", False),
    "state": (Path, "write_text", False),
    "rename": (os, "replace", True),
    "renamed": (os, "replace", False),
    "removal": (shutil, "rmtree", True),
    "removed": (shutil, "rmtree", False),
}}
for place, (owner, name, before) in TARGETS.items():
    checkpoints = Checkpoints(Path(sys.argv[1], place))
    checkpoints.set_model(SmallModel(1))
    checkpoints.on_epoch_end(0, {{"loss": 1.0}})
    child = os.fork()
    if child == 0:
        checkpoints.set_model(SmallModel(2))
        setattr(owner, name, killing(getattr(owner, name), before=before))
        checkpoints.on_epoch_end(1, {{"loss": 0.5}})
        os._exit(1)  # The program looked for a function that is not called.
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, place
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_may_be_killed_at_any_moment(tmp_path):
    """A checkpoint is there, and epoch, weights and history in it belong together."""
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    folders = {folder.name: folder for folder in tmp_path.iterdir()}
    assert len(folders) == 8
    for place, folder in folders.items():
        found = Checkpoints(folder)
        is_whole = place in ("renamed", "removal", "removed")
        assert found.epoch == (2 if is_whole else 1), place
        assert found.history["loss"].tolist() == [1.0, 0.5][: found.epoch]
        (weights,) = folder.glob(f"epoch-{found.epoch:06d}/state.weights.h5")
        assert weights.read_text() == str(found.epoch)
        found.set_model(SmallModel(found.epoch + 1))
        found.on_epoch_end(found.epoch, {"loss": 0.2})
        assert Checkpoints(folder).epoch == found.epoch


class TestEvaluate:
    def evaluate(self, run, frame, tmp_path, **options):
        frame.to_csv(tmp_path / "new.csv", index=False)
        console = Console(file=io.StringIO(), width=200)
        command.evaluate(run, tmp_path / "new.csv", console=console, **options)
        return console.file.getvalue()

    def test_scores_are_those_of_the_model(self, run, tmp_path):
        """Errors by hand; missing cells and columns nobody reads are left out."""
        frame = table().assign(a=lambda f: f["a"].where(f.index > 9), c=np.nan)
        scores = json.loads(self.evaluate(run[0], frame, tmp_path, as_json=True))
        model = load_run(run[0])
        data = lmm.from_dataframe(frame, FEATURES, model.random_effects)
        for name, included in (("mse", True), ("mse_population", False)):
            squares = np.square(data["x"] - model.reconstruct(data, include_effects=included))
            assert scores[name] == pytest.approx(np.nanmean(squares), rel=1e-5)
            assert scores["features"]["a"][name] == pytest.approx(np.nanmean(squares[:, 0]))
        assert scores["features"]["b"]["variance"] == pytest.approx(frame["b"].var(ddof=0))
        assert scores["features"]["c"] == {"mse": None, "mse_population": None, "variance": None}
        assert scores["log_likelihood"] == pytest.approx(
            model.log_likelihood(data).mean(), rel=1e-5
        )
        assert scores["rows"] == 100

    def test_known_levels_are_counted(self, run, tmp_path):
        """Unseen and missing keys are not known; nor are rows without their time."""
        frame = table()
        frame.loc[:9, "patient"] = "nobody"
        frame.loc[10:14, "patient"] = None
        frame.loc[15:19, "t"] = np.nan
        scores = json.loads(self.evaluate(run[0], frame, tmp_path, as_json=True))
        assert scores["known"] == {"patient": 0.8, "store": 1.0}
        assert "80.0%" in self.evaluate(run[0], frame, tmp_path)

    def test_a_model_file_will_do(self, run, tmp_path):
        whole = self.evaluate(run[0], table(), tmp_path)
        assert self.evaluate(run[0] / "model.keras", table(), tmp_path) == whole
        assert "Mean squared error by feature" in whole

    def test_missing_column(self, run, tmp_path):
        with pytest.raises(ValueError, match=r"lack the column\(s\) \['b'\].*Received: columns="):
            self.evaluate(run[0], table().drop(columns="b"), tmp_path)

    def test_no_run(self, tmp_path):
        with pytest.raises(ValueError, match="There is no model"):
            self.evaluate(tmp_path / "none", table(), tmp_path)


class TestTransform:
    def transform(self, run, frame, tmp_path, **options):
        frame.to_csv(tmp_path / "new.csv", index=False)
        console = Console(file=io.StringIO(), width=200)
        command.transform(
            run, tmp_path / "new.csv", tmp_path / "out.csv", console=console, **options
        )
        return pd.read_csv(tmp_path / "out.csv")

    def test_latents_stand_beside_the_keys(self, run, tmp_path):
        out = self.transform(run[0], table(), tmp_path)
        assert list(out) == ["patient", "t", "store", "latent_0", "latent_1"]
        assert out["patient"].tolist() == table()["patient"].tolist()
        model = load_run(run[0])
        data = lmm.from_dataframe(table(), FEATURES, model.random_effects)
        np.testing.assert_allclose(out[["latent_0", "latent_1"]], model.encode(data), atol=1e-6)

    def test_reconstructions_and_deviations(self, run, tmp_path):
        out = self.transform(run[0], table(), tmp_path, reconstruct=True, std=True)
        model = load_run(run[0])
        prediction = model.predictive(lmm.from_dataframe(table(), FEATURES, model.random_effects))
        mean = out[[f"{name}_reconstruction" for name in FEATURES]]
        np.testing.assert_allclose(mean, prediction.mean, atol=1e-5)
        deviation = out[[f"{name}_std" for name in FEATURES]]
        np.testing.assert_allclose(deviation, prediction.standard_deviation, atol=1e-5)
        # An approximate posterior that KL keeps at the prior or narrower.
        assert ((out["latent_0_std"] > 0) & (out["latent_0_std"] < 1.5)).all()
        only = self.transform(run[0], table(), tmp_path, reconstruct=True)
        np.testing.assert_allclose(only[list(mean)], mean, atol=1e-5)
        assert not [name for name in only if name.endswith("_std")]

    def test_the_table_itself_is_not_overwritten(self, run, tmp_path):
        table().to_csv(tmp_path / "d.csv")
        with pytest.raises(ValueError, match="The output is the table itself. Received: output="):
            command.transform(run[0], tmp_path / "d.csv", tmp_path / "." / "d.csv")

    def test_other_suffix(self, run, tmp_path):
        with pytest.raises(ValueError, match="A table must be a file"):
            command.transform(run[0], tmp_path / "d.csv", tmp_path / "d.txt")


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_commands_from_a_shell(files, tmp_path):
    """fit, Ctrl-C, fit --resume, evaluate, transform, export, inspect: as processes."""
    config = tmp_path / "config.yaml"
    # So many epochs that the signal comes before the last.
    config.write_text(yaml.safe_dump(changed(epochs=5_000)))
    fitting = ["fit", str(config), str(files / "data.csv"), "-o", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", "keras_lmmvae.cli", *fitting],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Tests in the background have it ignored, and children inherit that.
        preexec_fn=_heed_interrupts,
    )  # fmt: skip
    partial = tmp_path / "run.partial"
    while process.poll() is None and not list(partial.glob("checkpoints/epoch-*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "go on with the same command and --resume." in errors
    # TensorFlow's own lines are not shown.
    assert len(errors.splitlines()) == 1
    # What was asked for is done with the next epoch.
    done = Checkpoints(partial / "checkpoints").epoch
    shorter = yaml.safe_dump(changed(epochs=done + 1))
    config.write_text(shorter)
    full = yaml.safe_load((partial / "resolved.yaml").read_text())
    full["training"]["epochs"] = done + 1
    (partial / "resolved.yaml").write_text(yaml.safe_dump(full, sort_keys=False))
    data, run = str(files / "data.csv"), str(tmp_path / "run")
    commands = [
        [*fitting, "--resume"],
        ["evaluate", run, data, "--json"],
        ["transform", run, data, "-o", str(tmp_path / "latents.csv")],
        ["export", run, "-o", str(tmp_path / "models" / "m" / "1"), "--no-warmup"],
        ["inspect", run],
    ]
    # One process for these, for each start takes seconds.
    program = """
import json, sys
from keras_lmmvae import cli
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["keras-lmmvae", *arguments]
    try:
        cli.main()
    except SystemExit as stop:
        assert not stop.code, (arguments, stop.code)
"""
    result = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert len(pd.read_csv(tmp_path / "run" / "history.csv")) == done + 1
    assert len(pd.read_csv(tmp_path / "latents.csv")) == 100
    assert '"mse_population"' in result.stdout
    assert "RandomIntercept of store" in result.stdout
    assert (tmp_path / "models" / "m" / "1" / "saved_model.pb").exists()
