"""Callbacks: their effect on a fit, in every mode and after an interrupt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from small_models import small_model

import keras_lmmvae as lmm
from keras_lmmvae.callbacks import KLAnnealing, RefreshEffects, VarianceComponentsLogger

MODES = {
    "xla": {"jit_compile": True},
    "graph": {"jit_compile": False},
    "eager": {"run_eagerly": True},
}


class Interrupt(keras.callbacks.Callback):
    """Interrupts a fit at the start of an epoch, like Ctrl-C."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.at = epoch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == self.at:
            raise KeyboardInterrupt


class Watch(keras.callbacks.Callback):
    """Records the state of the model at the end of every epoch, after earlier callbacks."""

    def __init__(self) -> None:
        super().__init__()
        self.annealing: list[float] = []
        self.components: list[pd.DataFrame] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.annealing.append(float(self.model.kl_annealing))
        self.components.append(self.model.variance_components())


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    store, latent = rng.integers(0, 8, 160), rng.normal(size=160)
    x = np.stack([2 * latent, latent**2, np.sin(2 * latent)], axis=1)
    x = x + rng.normal(size=(8, 3))[store] + 0.3 * rng.normal(size=(160, 3))
    return {"x": x, "store": store}


def new_model(data: dict[str, np.ndarray], mode: str = "eager", **options: Any) -> lmm.LMMVAE:
    """An adapted model. Steps are eager by default, which saves the time of tracing."""
    model = small_model([lmm.RandomIntercept("store")], **options)
    model.adapt(data)
    model.compile(keras.optimizers.Adam(0.01), **MODES[mode])
    return model


def fit(model: lmm.LMMVAE, data: Any, *callbacks: Any, epochs: int = 4, **options: Any) -> Any:
    return model.fit(
        data, epochs=epochs, batch_size=40, verbose=0, callbacks=list(callbacks), **options
    )


class TestKLAnnealing:
    def test_linear_and_cyclical_shares(self):
        """The share rises from the start to 1 in every cycle and is 1 after the last one."""
        linear = KLAnnealing(epochs=4, start=0.2)
        np.testing.assert_allclose(
            [linear.share(epoch) for epoch in range(6)], [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
        )
        cycles = KLAnnealing(epochs=8, cycles=2, ramp=0.5)
        shares = [cycles.share(epoch) for epoch in range(10)]
        assert shares == [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0, 1.0]
        # Cycles have 1.4 epochs. With floats, the remainder of 7 by 1.4 would be 1.4.
        assert KLAnnealing(epochs=14, cycles=10).share(7) == 0.0

    # XLA compiles for long. `TestRefreshEffects` has a fast fit with XLA.
    @pytest.mark.parametrize(
        "mode", ["graph", "eager", pytest.param("xla", marks=pytest.mark.slow)]
    )
    def test_weight_acts_in_every_mode(self, data, mode):
        """loss = reconstruction_loss + kl_weight * latent_kl + effects_kl, epoch by epoch."""
        model, watch = new_model(data, mode, kl_weight=0.5), Watch()
        history = fit(model, data, KLAnnealing(epochs=2), watch, validation_data=data).history
        np.testing.assert_allclose(history["kl_weight"], [0.0, 0.25, 0.5, 0.5])
        np.testing.assert_allclose(watch.annealing, [0.0, 0.5, 1.0, 1.0])
        parts = {name: np.array(values) for name, values in history.items()}
        penalty = parts["kl_weight"] * parts["latent_kl"] + parts["effects_kl"]
        np.testing.assert_allclose(parts["loss"], parts["reconstruction_loss"] + penalty, rtol=1e-5)
        # Validation uses the full weight, so that its losses are comparable over epochs.
        np.testing.assert_allclose(
            parts["val_loss"], parts["val_reconstruction_loss"] + 0.5 * parts["val_latent_kl"], 1e-5
        )
        assert float(model.kl_annealing) == 1.0

    def test_full_share_changes_nothing(self, data):
        """Annealing that starts (almost) at the full weight does not change the fit."""
        plain = fit(new_model(data), data, epochs=2).history["loss"]
        warm = fit(new_model(data), data, KLAnnealing(2, start=1 - 1e-7), epochs=2).history["loss"]
        np.testing.assert_allclose(plain, warm, rtol=1e-5)
        cold = fit(new_model(data), data, KLAnnealing(2), epochs=2).history
        assert np.abs(np.subtract(cold["loss"], plain)).max() > 1e-3

    def test_saved_models_have_the_target(self, data, tmp_path):
        """A checkpoint during annealing has the full weight and no annealing variable."""
        checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
        model = new_model(data, kl_weight=0.5)
        fit(model, data, KLAnnealing(epochs=3), checkpoint, epochs=2)
        loaded = keras.saving.load_model(tmp_path / "1.keras")
        assert loaded.kl_weight == 0.5
        assert float(loaded.kl_annealing) == 1.0
        assert len(loaded.variables) == len(model.variables)
        assert all("annealing" not in variable.path for variable in model.variables)

    def test_interrupt_and_resume(self, data, tmp_path):
        """With backup and checkpoints, a resumed fit continues weights, losses and log."""

        def callbacks(name: str) -> list[Any]:
            return [
                KLAnnealing(epochs=4),
                VarianceComponentsLogger(tmp_path / name / "variances.csv"),
                keras.callbacks.ModelCheckpoint(tmp_path / name / "{epoch}.keras"),
                keras.callbacks.BackupAndRestore(tmp_path / name / "backup"),
            ]

        with pytest.raises(KeyboardInterrupt):
            fit(new_model(data, "graph"), data, *callbacks("cut"), Interrupt(2), epochs=6)
        log = tmp_path / "cut" / "variances.csv"
        assert pd.read_csv(log)["epoch"].unique().tolist() == [0, 1]
        first = log.read_text()
        again, watch = new_model(data, "graph"), Watch()
        history = fit(again, data, *callbacks("cut"), watch, epochs=6)
        assert history.epoch == [2, 3, 4, 5]
        np.testing.assert_allclose(watch.annealing, [0.5, 0.75, 1.0, 1.0])
        assert log.read_text().startswith(first)
        table = pd.read_csv(log)
        assert table["epoch"].unique().tolist() == [0, 1, 2, 3, 4, 5]
        assert not table.duplicated(["epoch", "component", "feature"]).any()
        assert keras.saving.load_model(tmp_path / "cut" / "6.keras").kl_weight == 1.0

    def test_fit_after_an_interrupt_has_the_full_weight(self, data):
        """A fit without the callback ignores the state of an interrupted one."""
        model = new_model(data)
        with pytest.raises(KeyboardInterrupt):
            fit(model, data, KLAnnealing(epochs=4), Interrupt(1))
        assert float(model.kl_annealing) == 0.25
        history = fit(model, data, epochs=1).history
        parts = [history[name][0] for name in ("reconstruction_loss", "latent_kl", "effects_kl")]
        np.testing.assert_allclose(history["loss"][0], sum(parts), rtol=1e-5)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"epochs": 0}, "`epochs`, expected an integer of at least 1. Received: epochs=0"),
            ({"epochs": 2, "cycles": 3}, "`cycles` must not be above `epochs`.*cycles=3, epochs=2"),
            ({"epochs": 2, "cycles": 0}, "`cycles`, expected an integer.*cycles=0"),
            ({"epochs": 2, "start": 1.0}, r"`start` must lie in \[0, 1\).*start=1.0"),
            (
                {"epochs": 2, "start": -0.1},
                "`start`, expected a finite number of at least 0.*start=-0.1",
            ),
            ({"epochs": 2, "ramp": 1.5}, r"`ramp` in \(0, 1\]. Received: start=0.0, ramp=1.5"),
            ({"epochs": 2, "ramp": 0}, "`ramp`, expected a finite number above 0.*ramp=0"),
        ],
    )
    def test_bad_arguments(self, options, message):
        """Errors name the argument, what was expected and what was received."""
        with pytest.raises(ValueError, match=message):
            KLAnnealing(**options)

    def test_no_weight_to_warm_up(self, data):
        """`kl_weight=0` cannot be annealed."""
        with pytest.raises(
            ValueError, match="needs a model with a positive `kl_weight`.*Received: kl_weight=0"
        ):
            fit(new_model(data, kl_weight=0), data, KLAnnealing(4))


class TestRefreshEffects:
    @pytest.mark.parametrize(
        ("mode", "at", "moves"),
        [
            ("graph", [], [False, False, True]),
            ("xla", [3], [False, True, True]),
            ("eager", [3], [False, True, True]),
        ],
    )
    def test_variances_are_estimated_anew(self, data, mode, at, moves):
        """Effect variances change after epochs 1 and 4, and with the callback after 3, too."""
        watch = Watch()
        fit(new_model(data, mode), data, RefreshEffects(at=at), watch)
        values = [table.loc["store"].to_numpy() for table in watch.components]
        assert [bool((a != b).any()) for a, b in zip(values, values[1:], strict=False)] == moves

    def test_validation_sees_the_new_effects(self, data):
        """There is one refresh, before the validation of the epoch."""

        class Look(keras.callbacks.Callback):
            tables: list[np.ndarray] = []

            def on_test_begin(self, logs: Any = None) -> None:
                self.tables.append(self.model.mixed_model.of("store").effect_variance.numpy())

        look, watch = Look(), Watch()
        fit(
            new_model(data), data, RefreshEffects(at=[2]), look, watch,
            epochs=2, validation_data=data,
        )  # fmt: skip
        assert (look.tables[0] != look.tables[1]).any()
        scale = watch.components[1].loc["store"] / look.tables[1]
        np.testing.assert_allclose(watch.components[0].loc["store"] / look.tables[0], scale, 1e-6)

    def test_effects_are_exact(self, data):
        """Solving again after a refresh hardly changes the effects. Without a refresh it does."""

        class Gap(keras.callbacks.Callback):
            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                fit, effects = self.model.effects_fit, self.model.mixed_model.of("store")
                table = effects.folds.effects
                before = table.numpy()
                fit.equations.solve(True, fit.training_targets, fit.noise_variance)
                self.gap = np.abs(table.numpy() - before).max()
                table.assign(before)

        gaps = []
        for callbacks in ([], [RefreshEffects(every=2)]):
            gap = Gap()
            fit(new_model(data), data, *callbacks, gap, epochs=2)
            gaps.append(gap.gap)
        assert gaps[1] < 0.2 * gaps[0], gaps

    def test_evaluation_on_its_own_refreshes_nothing(self, data):
        """A callback of `evaluate` does not change the model."""
        model = new_model(data)
        fit(model, data, epochs=1)
        before = model.variance_components()
        model.evaluate(data, callbacks=[RefreshEffects(every=1)], verbose=0)
        pd.testing.assert_frame_equal(model.variance_components(), before)

    def test_no_effects(self, data):
        """A model without random effects trains with the callback."""
        model = small_model([])
        model.adapt(data)
        model.compile("adam")
        assert len(fit(model, data, RefreshEffects(every=1), epochs=2).history["loss"]) == 2

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "either `every`, a number.*Received: every=None, at=None"),
            ({"every": 2, "at": [1]}, r"either `every`, a number.*Received: every=2, at=\[1\]"),
            ({"every": 0}, "`every`, expected an integer of at least 1. Received: every=0"),
            ({"at": [2, 1.5]}, "`at`, expected an integer of at least 1. Received: at=1.5"),
        ],
    )
    def test_bad_arguments(self, options, message):
        """Errors name the argument, what was expected and what was received."""
        with pytest.raises(ValueError, match=message):
            RefreshEffects(**options)

    def test_amortized_posterior(self, data):
        """Effects from an encoder have no exact solution."""
        model = new_model(data, posterior="amortized")
        with pytest.raises(ValueError, match="no exact solution.*Received: posterior='amortized'"):
            fit(model, data, RefreshEffects(every=1))

    def test_other_models(self, data):
        """Another Keras model raises an error that names LMMVAE."""
        model = keras.Sequential([keras.layers.Dense(1)])
        model.compile("adam", "mse")
        with pytest.raises(ValueError, match="`RefreshEffects` is a callback of `LMMVAE.fit`.*Seq"):
            model.fit(data["x"], data["x"][:, :1], callbacks=[RefreshEffects(2)], verbose=0)


class TestVarianceComponentsLogger:
    def test_file_is_the_table(self, data, tmp_path):
        """The lines of an epoch are its variance components. "mean" is their average."""
        path, watch = tmp_path / "new" / "variances.csv", Watch()
        fit(new_model(data), data, VarianceComponentsLogger(path), watch, epochs=2)
        table = pd.read_csv(path)
        assert table.columns.tolist() == ["epoch", "component", "feature", "variance"]
        for epoch, components in enumerate(watch.components):
            logged = table[table["epoch"] == epoch].pivot(
                index="component", columns="feature", values="variance"
            )
            single = logged.loc[components.index, ["0", "1", "2"]].to_numpy()
            np.testing.assert_array_equal(single, components)
            np.testing.assert_allclose(
                logged.loc[components.index, "mean"], components.mean(axis=1), 1e-6
            )
        assert [one.name for one in path.parent.iterdir()] == [path.name]

    @pytest.mark.parametrize(("append", "epochs"), [(False, [0]), (True, [0, 1, 0])])
    def test_another_run(self, data, tmp_path, append, epochs):
        """A fit from epoch 0 replaces the file. With `append` it adds lines."""
        logger = VarianceComponentsLogger(tmp_path / "v.csv", append=append, per_feature=False)
        model = new_model(data)
        fit(model, data, logger, epochs=2)
        fit(model, data, logger, epochs=1)
        table = pd.read_csv(tmp_path / "v.csv")
        assert set(table["feature"]) == {"mean"}
        assert table.loc[table["component"] == "noise", "epoch"].tolist() == epochs

    def test_lines_cut_off_are_dropped(self, data, tmp_path):
        """An incomplete last line is dropped. The lines before it are not changed."""
        path = tmp_path / "v.csv"
        path.write_text("epoch,component,feature,variance\n0,store,mean,0.5\n1,store,me")
        model = new_model(data)
        fit(model, data, VarianceComponentsLogger(path), epochs=3, initial_epoch=2)
        table = pd.read_csv(path)
        assert table["epoch"].unique().tolist() == [0, 2]
        assert table["variance"].notna().all()

    def test_foreign_files_are_kept(self, data, tmp_path):
        """A file with other columns raises an error before the training and is not changed."""
        path = tmp_path / "results.csv"
        path.write_text("a,b\n1,2\n")
        with pytest.raises(
            ValueError, match="results.csv' is not a log of variance comp.*Received"
        ):
            fit(new_model(data), data, VarianceComponentsLogger(path))
        assert path.read_text() == "a,b\n1,2\n"

    def test_tensorboard(self, data, tmp_path):
        """Scalars of every epoch are readable during the fit."""
        watch, model = Watch(), new_model(data)
        logger = VarianceComponentsLogger(log_dir=tmp_path)
        with pytest.raises(KeyboardInterrupt):
            fit(model, data, logger, watch, Interrupt(2))
        found = {
            (event.step, value.tag): float(tf.make_ndarray(value.tensor))
            for file in tmp_path.iterdir()
            for event in tf.compat.v1.train.summary_iterator(str(file))
            for value in event.summary.value
        }
        assert len(found) == 2 * 2 * (1 + 3)
        for epoch, components in enumerate(watch.components):
            for name in ("store", "noise"):
                tag = f"variance_components/{name}"
                assert found[epoch, f"{tag}/1"] == pytest.approx(components.loc[name, 1], rel=1e-6)
                mean = components.loc[name].mean()
                assert found[epoch, f"{tag}/mean"] == pytest.approx(mean, rel=1e-6)

    def test_nowhere_to_write(self):
        """A file or a folder must be given."""
        with pytest.raises(
            ValueError, match="Give `filename` for a CSV.*filename=None, log_dir=None"
        ):
            VarianceComponentsLogger()


def test_interrupted_replacement_keeps_the_file(data, tmp_path, monkeypatch):
    """A fit that fails while it replaces a file does not change the file."""
    path: Path = tmp_path / "variances.csv"
    fit(new_model(data), data, VarianceComponentsLogger(path), epochs=1)
    before = path.read_text()

    def fail(*arguments: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="No space"):
        fit(new_model(data), data, VarianceComponentsLogger(path), epochs=1)
    assert path.read_text() == before
