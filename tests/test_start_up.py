"""Start-up: names are imported when they are used, saved files find their classes, TensorFlow is
quiet."""

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_lmmvae as lmm
from keras_lmmvae._backend import REGISTERED

ROOT = Path(lmm.__file__).parents[1]


def run_python(program, *arguments, path=()):
    """A fresh process."""
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))},
        capture_output=True,
        text=True,
        check=False,
    )


def output_of(program, *arguments):
    result = run_python(program, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().splitlines()[-1]


class TestLaziness:
    def test_import_is_light(self):
        """Neither the package nor its names cost TensorFlow until one is used."""
        program = """
import sys
import keras_lmmvae as lmm
dir(lmm), lmm.__version__, hasattr(lmm, "nothing_of_this_name")
print(sorted({"tensorflow", "keras", "pandas", "numpy"} & set(sys.modules)))
"""
        assert output_of(program) == "[]"

    def test_data_need_no_tensorflow(self):
        """Whoever only simulates or reads data does not wait for it."""
        program = """
import sys
import keras_lmmvae as lmm
lmm.simulation.split, lmm.datasets.load_houses, lmm.metrics.mse
print(sorted({"tensorflow", "keras"} & set(sys.modules)))
"""
        assert output_of(program) == "[]"

    @pytest.mark.parametrize("name", lmm.__all__)
    def test_names_are_there(self, name):
        assert name in dir(lmm)
        value = getattr(lmm, name)
        assert value is getattr(lmm, name)
        if not inspect.ismodule(value):
            assert value.__name__ == name

    def test_type_checkers_see_the_same_names(self):
        """The block for type checkers lists what `__all__` and `__getattr__` do."""
        (block,) = (
            node
            for node in ast.parse(Path(lmm.__file__).read_text()).body
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        )
        imported = [node for node in block.body if isinstance(node, ast.ImportFrom)]
        names = [alias.name for node in imported for alias in node.names]
        assert sorted(names) == sorted(lmm.__all__)

    def test_unknown_names(self):
        with pytest.raises(AttributeError, match="module 'keras_lmmvae' has no attribute 'LMVAE'"):
            _ = lmm.LMVAE

    def test_rooms_can_be_named(self):
        assert lmm.effects.RandomIntercept is lmm.RandomIntercept


class TestSavedFiles:
    def test_stand_ins_are_complete(self):
        """Everything that registers itself in the source has a stand-in."""
        names = set()
        for path in (ROOT / "keras_lmmvae").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                decorators = getattr(node, "decorator_list", [])
                if any("register_keras_serializable" in ast.unparse(one) for one in decorators):
                    names.add(node.name)
        assert {"LMMVAE", "RandomIntercept", "compact_codes"} <= names
        assert names <= {*REGISTERED, *lmm.__all__}

    def test_classes_that_no_file_holds(self):
        """A file may name any exported class, but only those of Keras are made."""
        name = "keras_lmmvae>LMMVAETransformer"
        config = {"class_name": "LMMVAETransformer", "config": {}, "registered_name": name}
        with pytest.raises(ValueError, match="cannot be saved. Received: name='LMMVAETransformer'"):
            keras.saving.deserialize_keras_object({**config, "module": "keras_lmmvae.transformer"})

    @pytest.fixture(scope="class")
    def files(self, tmp_path_factory):
        """A folder with a model, what it answers, and a layer with a function."""
        folder = tmp_path_factory.mktemp("files")
        model = lmm.LMMVAE(1, [lmm.RandomIntercept("store")], hidden_units=(4,), seed=0)
        data = {"x": np.random.default_rng(0).normal(size=(40, 3)), "store": np.arange(40) % 8}
        model.adapt(data)
        model.compile()
        model.fit(data, epochs=1, batch_size=20, verbose=0)
        model.save(folder / "model.keras")
        np.savez(folder / "expected.npz", reconstruction=model.reconstruct(data), **data)
        codes = keras.Input((), dtype="int32")
        slots = keras.layers.Lambda(lmm.layers.compact_codes, output_shape=())(codes)
        keras.Model(codes, slots).save(folder / "layers.keras")
        return folder

    @pytest.mark.parametrize("imports", ["keras, keras_lmmvae", "keras_lmmvae, keras"])
    def test_files_are_loaded_after_the_import_alone(self, files, imports):
        """In either order; a model, a layer and a function, which are then saved again."""
        program = f"""
import sys
import {imports}
assert "keras_lmmvae.layers" not in sys.modules
layers = keras.saving.load_model(sys.argv[1] + "/layers.keras")
assert layers(keras.ops.array([7, 3, 7])).numpy().tolist() == [1, 0, 1]
layers.save(sys.argv[1] + "/again.keras")
keras.saving.load_model(sys.argv[1] + "/again.keras")
import numpy as np
data = dict(np.load(sys.argv[1] + "/expected.npz"))
expected = data.pop("reconstruction")
model = keras.saving.load_model(sys.argv[1] + "/model.keras")
assert type(model) is keras_lmmvae.LMMVAE
np.testing.assert_allclose(model.reconstruct(data), expected, rtol=1e-4, atol=1e-5)
print("loaded")
"""
        assert output_of(program, files) == "loaded"


class TestBackend:
    @pytest.mark.parametrize(
        "imports", ["import keras, keras_lmmvae", "import keras_lmmvae, keras"]
    )
    def test_other_backends(self, tmp_path, imports):
        """The error comes as soon as both are imported, in either order, and says what to do.

        A Keras that only knows its backend stands in for those of other backends, which need not
        be installed.
        """
        (tmp_path / "keras.py").write_text(
            "class backend:\n    backend = staticmethod(lambda: 'jax')\n"
        )
        result = run_python(imports, path=[tmp_path])
        assert result.returncode != 0
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("ImportError: keras_lmmvae needs Keras on the TensorFlow backend")
        assert "KERAS_BACKEND=tensorflow" in last
        assert last.endswith("Received: backend='jax'")


class TestQuietDescriptor:
    PROGRAM = """
import os, sys, warnings
from keras_lmmvae.runs.start import quiet_descriptor
with quiet_descriptor():
    os.write(2, b"a line of a library\\n")
    {inside}
warnings.warn("a warning of Python")
os.write(2, b"a later line\\n")
"""

    def test_lines_of_libraries_are_not_shown(self):
        """What is written after it is shown as ever, Python's warnings as well."""
        result = run_python(self.PROGRAM.format(inside="pass"))
        assert result.returncode == 0
        assert "a line of a library" not in result.stderr
        assert "a warning of Python" in result.stderr
        assert "a later line" in result.stderr

    def test_lines_are_shown_if_the_import_fails(self):
        """They may say why."""
        result = run_python(self.PROGRAM.format(inside="raise ImportError('no driver')"))
        assert result.returncode != 0
        assert "a line of a library" in result.stderr
        assert result.stderr.strip().endswith("ImportError: no driver")

    def test_closed_standard_error(self):
        """A process without one still starts."""
        program = (
            "import os\nos.close(2)\n"
            + self.PROGRAM.format(inside="")
            .replace('os.write(2, b"a line of a library\\n")', "print('done')")
            .split("warnings.warn")[0]
        )
        assert output_of(program) == "done"
