"""`encode`: what a row is within its groups, and in total."""

from __future__ import annotations

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf
from small_models import fit_briefly, small_model

import keras_lmmvae as lmm
from keras_lmmvae.rows import Pass
from keras_lmmvae.total_axes import TotalAxes

RNG = np.random.default_rng(3)
GROUP = RNG.integers(0, 12, 240)
# The kind of a group is the same in all its rows. Large features vary within groups only.
KIND = np.arange(12) % 2
X = RNG.normal(size=(240, 5)) * [1.0, 1.0, 4.0, 4.0, 1.0]
X[:, 0] += 6.0 * KIND[GROUP]
X[:, 2:4] += 3.0 * RNG.normal(size=(240, 1))
DATA = {"x": X, "group": GROUP}


@pytest.fixture(scope="module")
def model() -> lmm.LMMVAE:
    model = small_model([lmm.RandomIntercept("group")], latent_dim=2)
    fit_briefly(model, DATA, 40, epochs=10)
    return model


def share_between(values: np.ndarray) -> float:
    """Share of the variance that lies between the kinds of groups."""
    kind = KIND[GROUP]
    means = np.stack([values[kind == one].mean(axis=0) for one in (0, 1)])[kind]
    return float(means.var(axis=0).sum() / values.var(axis=0).sum())


def moments(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.cov(values.T, aweights=weight, ddof=0)


class TestAxes:
    @pytest.mark.parametrize("has_weights", [False, True])
    @pytest.mark.parametrize("has_missing_cells", [False, True])
    def test_generalised_eigenvectors(self, has_weights, has_missing_cells):
        """Leading solutions of `Cov(mean) a = ratio Cov(within) a`, by SciPy's dense solver."""
        mean, within = RNG.normal(size=(60, 4)) * [3.0, 1.0, 2.0, 1.0], RNG.normal(size=(60, 4))
        observed = RNG.random((60, 4)) > 0.3 if has_missing_cells else np.ones((60, 4), bool)
        weight = RNG.uniform(0.5, 2.0, 60) if has_weights else np.ones(60)
        rows = {"x": tf.constant(np.where(observed, within + 1.0, 0.0), tf.float32)}
        rows |= {"observed": tf.constant(observed)} if has_missing_cells else {}
        rows |= {"weight": tf.constant(weight, tf.float32)} if has_weights else {}
        seen = SimpleNamespace(
            mean=tf.constant(mean, tf.float32),
            contribution=tf.ones((60, 4)),
            population=tf.fill((60, 4), 0.5),
            observed=rows.get("observed"),
        )
        axes = TotalAxes(4, 2)
        axes.build()
        axes.fit(Pass(rows), lambda batch: seen)
        weight = weight * observed.mean(axis=1)
        filled = np.where(observed, within, 0.5)
        total, inner = moments(mean, weight), moments(filled, weight)
        _, expected = scipy.linalg.eigh(total, inner)
        expected = expected[:, :-3:-1]
        expected *= np.sign(np.take_along_axis(expected, np.abs(expected).argmax(0)[None], 0))
        np.testing.assert_allclose(axes.axes, expected, rtol=1e-3, atol=1e-3)
        found = axes.of(seen).numpy()
        np.testing.assert_allclose(np.average(found, axis=0, weights=weight), 0.0, atol=1e-4)
        np.testing.assert_allclose(
            found,
            (mean - np.average(mean, axis=0, weights=weight)) @ expected,
            rtol=1e-3,
            atol=2e-3,
        )

    def test_more_latents_than_features(self):
        """There are no more axes than features: the others are 0."""
        axes = TotalAxes(2, 3)
        axes.build()
        rows = {"x": tf.constant(X[:, :2], tf.float32)}
        seen = SimpleNamespace(
            mean=rows["x"], contribution=tf.zeros((240, 2)), population=None, observed=None
        )
        axes.fit(Pass(rows), lambda batch: seen)
        assert (np.abs(axes.axes).max(axis=0) > 0).tolist() == [True, True, False]


class TestEncode:
    def test_total_is_made_of_the_reconstruction(self, model):
        """The axes times `f(u) + Z B`; within groups its numbers have unit variance."""
        rows = model.encode_data(DATA)
        standard = (model.reconstruct(DATA) - model.feature_mean) / model.feature_scale
        expected = (standard - model.total_axes.mean) @ model.total_axes.axes.numpy()
        np.testing.assert_allclose(model.encode(DATA, include="total"), expected, atol=1e-4)
        within = (
            rows["x"] - model.infer(rows).contribution
        ).numpy() @ model.total_axes.axes.numpy()
        np.testing.assert_allclose(np.cov(within.T, ddof=0), np.eye(2), atol=1e-3)

    def test_total_knows_the_kind_of_a_group(self, model):
        """Groups are taken out of the latent; the first number of the total tells them."""
        total = model.encode(DATA, include="total")
        assert share_between(total[:, :1]) > 0.8
        assert share_between(model.encode(DATA)) < 0.2
        assert model.encode(DATA, include="within").shape == total.shape == (240, 2)

    def test_held_out_groups(self, model):
        """Groups never seen: their own rows tell their kind, nothing else does."""
        new = {**DATA, "group": GROUP + 100}
        without = model.encode(new, include="total")
        found = model.with_levels_of(new).encode(new, include="total")
        # All that the new groups share with the old ones are rows and variances.
        np.testing.assert_allclose(found, model.encode(DATA, include="total"), atol=0.5)
        assert share_between(found[:, :1]) > 0.8 > share_between(without[:, :1])

    def test_refined_latents_are_used(self, model):
        """`refine` changes both, as it changes `reconstruct`."""
        standard = (model.reconstruct(DATA, refine=5) - model.feature_mean) / model.feature_scale
        expected = (standard - model.total_axes.mean) @ model.total_axes.axes.numpy()
        found = model.encode(DATA, refine=5, include="total")
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert not np.allclose(found, model.encode(DATA, include="total"))

    def test_saved(self, model, tmp_path):
        """A file keeps the axes."""
        model.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
        for include in ("within", "total"):
            found, expected = (m.encode(DATA, include=include) for m in (again, model))
            np.testing.assert_array_equal(found, expected)

    def test_without_random_effects(self):
        """Without groups, both are the latent."""
        model = small_model(latent_dim=2)
        fit_briefly(model, {"x": X}, 40)
        total = model.encode({"x": X}, include="total")
        np.testing.assert_array_equal(total, model.encode({"x": X}))

    def test_amortized(self):
        """The paper's posterior has effects of its own, and axes like any other."""
        model = small_model([lmm.RandomIntercept("group")], posterior="amortized", latent_dim=2)
        fit_briefly(model, DATA, 40)
        assert np.ptp(model.encode(DATA, include="total"), axis=0).min() > 0

    def test_unknown_choice(self, model):
        with pytest.raises(ValueError, match=r"one of \['within', 'total'\].* include='both'"):
            model.encode(DATA, include="both")
        with pytest.raises(ValueError, match="`refine`.*refine=-1"):
            model.encode(DATA, refine=-1, include="total")
