"""A saved model is the same model: what it says, what it knows, and how it goes on."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from small_models import constant_decoder, fit_briefly, small_model

import keras_lmmvae as lmm

KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": lambda: {"given": []},
    "integers": lambda: {"given": [lmm.RandomIntercept("store")], "latent_dim": 2},
    "strings": lambda: {"given": [lmm.RandomIntercept("name"), lmm.RandomIntercept("store")]},
    "slopes": lambda: {"given": [lmm.RandomSlopes("name", time="t", degree=2)]},
    "surface": lambda: {"given": [lmm.SpatialEffect(("east", "north"))], "kl_weight": 0.5},
    "globe": lambda: {"given": [lmm.SpatialEffect(("lon", "lat"), metric="haversine")]},
    "amortized": lambda: {
        "given": [lmm.RandomIntercept("name"), lmm.SpatialEffect(("east", "north"))],
        "posterior": "amortized",
        "effects_kl_reduction": "row",
        "shared_encoder": True,
    },
    "half": lambda: {"given": [lmm.RandomIntercept("name")], "dtype": "mixed_bfloat16"},
    "networks": lambda: {
        "given": [lmm.RandomIntercept("store", name="a store")],
        "encoder": keras.Sequential([keras.Input((3,)), keras.layers.Dense(5, "tanh")]),
        "decoder": keras.Sequential([keras.Input((1,)), keras.layers.Dense(4, "tanh")]),
        "noise_variance": 0.5,
        "normalize": False,
    },
}


def make_data(n: int = 150) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    store = rng.integers(0, 10, n)
    names = np.array(
        ["œuvre", "数据", "🙂 two words", " space ", "a,b;c", "'\"\\", "0", "nan", "é", "e"]
    )
    x = rng.normal(size=(10, 3))[store] + rng.normal(size=(n, 3))
    x[::9, 1] = np.nan
    place = rng.integers(0, 8, n)
    return {
        "x": x,
        "store": store * 10**15,
        "name": names[store],
        "t": 2000.0 + rng.uniform(size=n),
        "east": place * 1.0,
        "north": place % 3 * 1.0,
        "lon": place * 20.0 - 80.0,
        "lat": place * 5.0 - 20.0,
    }


def fitted(given: list, **options: Any) -> lmm.LMMVAE:
    model, data = small_model(given, **options), make_data()
    fit_briefly(model, data, 50)
    return model


def saved_and_loaded(model: lmm.LMMVAE, folder: Path) -> lmm.LMMVAE:
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras")


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    return make_data()


class TestRoundTrip:
    @pytest.mark.parametrize("kind", KINDS)
    def test_fitted_model(self, kind, data, tmp_path):
        """Answers, tables, variances and keys are those of the model that was saved, to the bit."""
        model = fitted(**KINDS[kind]())
        again = saved_and_loaded(model, tmp_path)
        assert json.dumps(again.get_config()) == json.dumps(model.get_config())
        assert again.is_fitted
        new = {**data, "store": data["store"] + 10**15, "name": np.roll(data["name"], 3)}
        new["name"][:5] = ["unseen", "", "NULL", "0", "é"]
        for rows in (data, new):
            np.testing.assert_array_equal(again.encode(rows), model.encode(rows))
            one, other = again.predictive(rows), model.predictive(rows)
            np.testing.assert_array_equal(one.mean, other.mean)
            np.testing.assert_array_equal(one.standard_deviation, other.standard_deviation)
        np.testing.assert_array_equal(
            again.predict(data, verbose=0), model.predict(data, verbose=0)
        )
        pd.testing.assert_frame_equal(again.variance_components(), model.variance_components())
        for term in model.random_effects:
            for std in (False, True) if model.posterior == "conjugate" else (False,):
                pd.testing.assert_frame_equal(
                    again.random_effects_table(term.label, std=std),
                    model.random_effects_table(term.label, std=std),
                )
        assert again.dtype_policy.name == model.dtype_policy.name

    def test_before_adapt(self, data, tmp_path):
        """A model that knows nothing yet can be saved, and adapted afterwards."""
        with pytest.warns(UserWarning, match="not yet been built"):
            again = saved_and_loaded(small_model([lmm.RandomIntercept("name")]), tmp_path)
        fit_briefly(again, data, 50)
        assert np.isfinite(again.reconstruct(data)).all()

    def test_before_fit(self, data, tmp_path):
        """An adapted model is saved with its keys and scales, and trains as it would have."""
        models = [small_model([lmm.RandomIntercept("name")]) for _ in range(2)]
        for model in models:
            model.adapt(data)
        models[1] = saved_and_loaded(models[1], tmp_path)
        assert not models[1].is_fitted
        results = []
        for model in models:
            model.compile("adam")
            model.fit(data, batch_size=50, verbose=0, shuffle=False)
            results.append(model.reconstruct(data))
        np.testing.assert_allclose(results[0], results[1], rtol=1e-5)

    def test_training_goes_on(self, data, tmp_path):
        """Optimizer, its state and the compiled options are saved; a further fit continues."""
        model = fitted([lmm.RandomSlopes("name", time="t")])
        again = saved_and_loaded(model, tmp_path)
        assert again.compiled
        assert int(again.optimizer.iterations) == 3
        for one, other in zip(again.optimizer.variables, model.optimizer.variables, strict=True):
            np.testing.assert_array_equal(one, other)
        results = []
        for resumed in (model, again):
            # Keras saves no state of random numbers.
            resumed.seed_generator.state.assign([0, 0])
            history = resumed.fit(data, batch_size=50, epochs=2, verbose=0, shuffle=False).history
            results.append([*history["loss"], *history["mse"]])
            assert int(resumed.optimizer.iterations) == 9
        np.testing.assert_allclose(results[0], results[1], rtol=1e-4)

    def test_grown_model(self, data, tmp_path):
        """Levels added after training are in the file."""
        model = fitted([lmm.RandomIntercept("name")])
        model.update_random_effects({"x": data["x"][:4], "name": ["new", "new", "é", "later"]})
        again = saved_and_loaded(model, tmp_path)
        table = again.random_effects_table("name")
        assert {"new", "later"} <= set(table.index)
        pd.testing.assert_frame_equal(table, model.random_effects_table("name"))
        again.fit(data, batch_size=50, verbose=0)

    def test_weights_alone(self, data, tmp_path):
        """`save_weights` and `load_weights` carry everything but the keys."""
        model = fitted([lmm.RandomSlopes("name", time="t"), lmm.SpatialEffect(("east", "north"))])
        model.save_weights(tmp_path / "model.weights.h5")
        again = lmm.LMMVAE.from_config(model.get_config())
        again.adapt(data)
        again.load_weights(tmp_path / "model.weights.h5")
        np.testing.assert_array_equal(again.reconstruct(data), model.reconstruct(data))


class TestConfig:
    @pytest.mark.parametrize("kind", KINDS)
    def test_config_is_json_and_makes_the_same_model(self, kind):
        """from_config(get_config()): the same arguments, nothing learned, no shared state."""
        options = KINDS[kind]()
        model = small_model(options.pop("given"), **options)
        config = json.loads(json.dumps(model.get_config()))
        again = lmm.LMMVAE.from_config(config)
        assert json.dumps(again.get_config()) == json.dumps(model.get_config())
        assert not again.built
        assert all(
            a is not b for a, b in zip(again.random_effects, model.random_effects, strict=True)
        )

    def test_config_does_not_change(self, data):
        """Adapting and fitting leave the configuration as it was."""
        model = small_model([lmm.SpatialEffect(("east", "north")), lmm.RandomIntercept("name")])
        before = json.dumps(model.get_config())
        fit_briefly(model, data, 50)
        assert json.dumps(model.get_config()) == before

    def test_terms_are_copied(self, data):
        """One list of terms serves several models; each learns its own levels."""
        given = [lmm.RandomIntercept("name")]
        one, other = small_model(given), small_model(given)
        one.adapt(data)
        assert not other.random_effects[0].is_adapted
        assert not given[0].is_adapted
        other.adapt({name: column[:75] for name, column in data.items()})


class TestFiles:
    @pytest.fixture(scope="class")
    def path(self, tmp_path_factory) -> Path:
        path = tmp_path_factory.mktemp("files") / "model.keras"
        fitted([lmm.RandomIntercept("name")]).save(path)
        return path

    def rewritten(
        self, path: Path, target: Path, change: Callable[[str, bytes], bytes | None]
    ) -> Path:
        """The same archive with members changed, or left out where `change` gives None."""
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
            for name in source.namelist():
                content = change(name, source.read(name))
                if content is not None:
                    copy.writestr(name, content)
        return target

    def test_corrupt_files(self, path, tmp_path):
        """Garbage, half a file, no file: a ValueError, not a half-loaded model."""
        whole = path.read_bytes()
        for content in (b"", b"garbage", whole[: len(whole) // 2]):
            (tmp_path / "bad.keras").write_bytes(content)
            with pytest.raises(ValueError, match="bad.keras"):
                keras.saving.load_model(tmp_path / "bad.keras")
        with pytest.raises(ValueError, match="nowhere.keras"):
            keras.saving.load_model(tmp_path / "nowhere.keras")

    @pytest.mark.parametrize("content", [b"a\nb", b"a\n", b"", b"\xff\n" * 10])
    def test_damaged_keys(self, path, tmp_path, content):
        """A file of keys that is cut, has another length or is no text is an error."""

        def change(name: str, old: bytes) -> bytes:
            return content if name.endswith("vocabulary.txt") else old

        with pytest.raises(ValueError, match="file of the keys of column 'name'"):
            keras.saving.load_model(self.rewritten(path, tmp_path / "bad.keras", change))

    def test_missing_keys(self, path, data, tmp_path):
        """Without its file of keys a model answers no request, and says why."""

        def change(name: str, old: bytes) -> bytes | None:
            return None if name.endswith("vocabulary.txt") else old

        model = keras.saving.load_model(self.rewritten(path, tmp_path / "bad.keras", change))
        with pytest.raises(ValueError, match="keys of column 'name' are missing"):
            model.reconstruct(data)

    def test_unknown_class(self, path, tmp_path):
        """A foreign class in the file is not imported: an error."""

        def change(name: str, content: bytes) -> bytes:
            return content.replace(b'"LMMVAE"', b'"Other"').replace(
                b"keras_lmmvae>LMMVAE", b"x>Other"
            )

        with pytest.raises((TypeError, ValueError), match="Other"):
            keras.saving.load_model(self.rewritten(path, tmp_path / "bad.keras", change))

    def test_wrong_sizes(self, path, tmp_path):
        """Weights of another model do not fit, and say so."""

        def change(name: str, content: bytes) -> bytes:
            return content.replace(b'"num_levels": 10', b'"num_levels": 11')

        message = r"'folds'.*expected=\[\(2, 11, 1, 3\),.*found=\[\(2, 10, 1, 3\),"
        with pytest.raises(ValueError, match=message):
            keras.saving.load_model(self.rewritten(path, tmp_path / "bad.keras", change))

    @staticmethod
    def with_version(version: str | None) -> Callable[[str, bytes], bytes]:
        """Writes another version into the configuration, or none."""

        def change(name: str, content: bytes) -> bytes:
            if name != "config.json":
                return content
            config = json.loads(content)
            assert config["config"].pop("version") == lmm.__version__
            if version is not None:
                config["config"]["version"] = version
            return json.dumps(config).encode()

        return change

    @pytest.mark.parametrize("version", [None, "0.1.3", "0.1", "0.3.0", "1.2.0", "0.20.0"])
    def test_other_versions_are_refused(self, path, tmp_path, version):
        """A file of another minor version is an error that names both; 0.1 wrote no version."""
        found = re.escape(f"keras_lmmvae {version or '0.1'}, and this is keras_lmmvae")
        message = rf"saved by {found} {re.escape(lmm.__version__)}.*Received: version={version!r}"
        bad = self.rewritten(path, tmp_path / "bad.keras", self.with_version(version))
        with pytest.raises(ValueError, match=message):
            keras.saving.load_model(bad)

    def test_patches_of_a_version_read_its_files(self, path, data, tmp_path):
        """The last number of the version does not matter: the loaded model is the same."""
        later = ".".join([*lmm.__version__.split(".")[:2], "999"])
        good = self.rewritten(path, tmp_path / "good.keras", self.with_version(later))
        model, same = (keras.saving.load_model(file) for file in (good, path))
        np.testing.assert_array_equal(model.reconstruct(data), same.reconstruct(data))
        assert model.get_config()["version"] == lmm.__version__

    def test_failed_save_keeps_the_earlier_file(self, data, tmp_path, monkeypatch):
        """A save that fails half-way leaves the old file, and nothing beside it."""
        model = fitted([lmm.RandomIntercept("name")])
        model.save(tmp_path / "model.keras")
        before = (tmp_path / "model.keras").read_bytes()

        def fail(folder: str) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr(model.random_effects[0].grouping, "save", fail)
        with pytest.raises(OSError, match="No space"):
            model.save(tmp_path / "model.keras")
        assert (tmp_path / "model.keras").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]

    def test_saving_twice_replaces(self, path, tmp_path):
        """A second save takes the place of the first."""
        model = small_model([], decoder=constant_decoder(3))
        model.adapt(make_data())
        target = tmp_path / "model.keras"
        target.write_bytes(path.read_bytes())
        model.save(target)
        assert keras.saving.load_model(target).random_effects == []
        model.save(str(target))

    def test_names_without_keras_suffix_are_refused(self, tmp_path):
        """As in Keras: the file's name must end in `.keras`."""
        model = small_model([])
        with pytest.raises(ValueError, match="filepath"):
            model.save(tmp_path / "model.zip")
