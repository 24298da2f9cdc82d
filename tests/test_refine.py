"""Latents refined where they are read: the mode of every row, its curvature, never a worse row."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from small_models import small_model

import keras_lmmvae as lmm

NOISE = 0.4
# Near the mode rounding decides whether a last step is taken.
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


def make_data(n: int = 60, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)) * [1.0, 2.0, 0.5, 1.0]
    x[::5, 1] = np.nan
    return {"x": x, "store": rng.integers(0, 6, n)}


def curve(n: int, seed: int) -> dict[str, np.ndarray]:
    """Rows on a curve, moved by their store."""
    rng = np.random.default_rng(seed)
    stores = np.random.default_rng(9).normal(size=(10, 5))
    store, latent = rng.integers(0, 10, n), rng.normal(size=n)
    x = np.sin(latent[:, None] * np.linspace(0.5, 2.0, 5) + np.arange(5))
    return {"x": x + stores[store] + 0.1 * rng.normal(size=(n, 5)), "store": store}


@pytest.fixture(scope="module")
def trained() -> lmm.LMMVAE:
    options = {"hidden_units": (32,), "kl_weight": 0.1}
    model, data = small_model([lmm.RandomIntercept("store")], **options), curve(800, 0)
    model.adapt(data)
    model.compile(keras.optimizers.Adam(0.01))
    model.fit(data, epochs=10, batch_size=50, verbose=0)
    return model


class TestLinearDecoder:
    """f(u) = c + W'u: the posterior of u is normal, and a few steps find its mode."""

    @pytest.fixture(scope="class")
    def model(self) -> lmm.LMMVAE:
        decoder = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4)])
        options = {"latent_dim": 2, "decoder": decoder, "noise_variance": NOISE, "kl_weight": 0.3}
        model = small_model([lmm.RandomIntercept("store")], **options)
        model.adapt(make_data())
        model.fitted.assign(1.0)
        model.update_random_effects(make_data(), keep_history=False)
        return model

    @pytest.mark.parametrize(("by_density", "prior"), [(True, 1.0), (False, 0.3)])
    def test_mode_and_curvature_are_those_of_the_normal_posterior(self, model, by_density, prior):
        """inv(prior + W D W') W D (x - Z B - c), D = 1 / variance of the observed cells."""
        rows = model.encode_data(make_data())
        seen = model.infer_refined(rows, 5, by_density)
        start = model.networks.decode(np.zeros((1, 2), np.float32)).numpy()
        weights = model.networks.decode(np.eye(2, dtype=np.float32)).numpy() - start
        target = rows["x"].numpy() - seen.contribution.numpy() - start
        variance = np.broadcast_to(
            model.variance_given_latent(rows) if by_density else model.networks_noise_variance(),
            target.shape,
        )
        precision = rows["observed"].numpy() / variance
        for row in range(len(target)):
            curvature = (weights * precision[row]) @ weights.T + prior * np.eye(2)
            mode = np.linalg.solve(curvature, weights @ (precision[row] * target[row]))
            np.testing.assert_allclose(seen.latent_mean[row], mode, rtol=1e-3, atol=1e-3)
            deviation = 1.0 / np.sqrt(np.diag(curvature))
            np.testing.assert_allclose(seen.latent_std[row], deviation, rtol=1e-4)

    def test_methods_read_it(self, model):
        """`encode` gives the modes, `reconstruct` decodes them; 0 steps are the encoder's."""
        data = make_data()
        rows = model.encode_data(data)
        np.testing.assert_allclose(model.encode(data, 0), model.infer(rows).latent_mean, **CLOSE)
        seen = model.infer_refined(rows, 3)
        np.testing.assert_allclose(model.encode(data, refine=3), seen.latent_mean, **CLOSE)
        expected = model.to_units(seen.mean)
        np.testing.assert_allclose(model.reconstruct(data, refine=3), expected, **CLOSE)
        seen = model.infer_refined(rows, 3, by_density=True)
        prediction = model.predictive(data, refine=3)
        np.testing.assert_allclose(prediction.mean, model.to_units(seen.mean), **CLOSE)


class TestCurvedDecoder:
    def test_no_row_is_worse(self, trained):
        """Squared error and prior of every row: at most those of the encoder's answer."""
        rows = trained.encode_data(curve(200, 1))

        def misfit(steps: int) -> np.ndarray:
            seen = trained.infer_refined(rows, steps)
            squares = np.square(seen.error) / np.asarray(trained.networks_noise_variance())
            prior = trained.kl_weight * np.square(seen.latent_mean).sum(axis=1)
            return squares.sum(axis=1) + prior

        before, one, many = misfit(0), misfit(1), misfit(12)
        assert (one <= before * (1 + 1e-5)).all()
        assert (many <= one * (1 + 1e-5)).all()
        assert many.mean() < 0.9 * before.mean()
        # At the mode further steps find nothing.
        np.testing.assert_allclose(misfit(30).mean(), many.mean(), rtol=0.01)

    def test_errors_fall_and_likelihoods_rise(self, trained):
        data = curve(400, 2)
        errors = [lmm.metrics.mse(data["x"], trained.reconstruct(data, refine=k)) for k in (0, 10)]
        assert errors[1] < 0.95 * errors[0]
        for samples in (0, 20):
            plain, refined = (trained.log_likelihood(data, samples, k).mean() for k in (0, 10))
            assert refined > plain + 0.1

    @pytest.mark.parametrize("steps", [-1, 1.5])
    def test_out_of_range(self, trained, steps):
        data = curve(5, 3)
        for method in ("encode", "reconstruct", "predictive", "log_likelihood"):
            with pytest.raises(ValueError, match=rf"`refine`.*Received: refine={steps}"):
                getattr(trained, method)(data, refine=steps)
