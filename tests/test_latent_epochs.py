"""Networks first, effects after: the argument `latent_epochs`."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from small_models import small_model

import keras_lmmvae as lmm
from benchmarks.lmmvae_method import LMMVAEMethod
from keras_lmmvae.metrics import mse
from keras_lmmvae.mixed_model.prior import EFFECT_VARIANCE_FLOOR

EPOCHS = 4


def curved_data(n: int = 2000, levels: int = 100, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows on one curve, whose groups differ along it and in nothing else."""
    rng = np.random.default_rng(seed)
    store = rng.integers(0, levels, n)
    position = rng.normal(size=levels)[store] + 0.5 * rng.normal(size=n)
    angles = position[:, None] * np.linspace(0.5, 1.5, 5)
    x = np.sin(angles + np.arange(5)) + 0.1 * rng.normal(size=(n, 5))
    return {"x": x, "store": store, "city": rng.integers(0, 6, n)}


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    return curved_data()


def terms() -> list[lmm.RandomIntercept]:
    return [lmm.RandomIntercept("store"), lmm.RandomIntercept("city")]


def adapted(data: dict[str, np.ndarray], latent_epochs: int, **compiled: bool) -> lmm.LMMVAE:
    model = small_model(terms(), latent_epochs=latent_epochs, hidden_units=(32,))
    model.adapt(data)
    model.compile(keras.optimizers.Adam(0.01), **compiled)
    return model


class Record(keras.callbacks.Callback):
    """Largest effect of the folds and largest variance after every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.effects: list[float] = []
        self.variances: list[float] = []

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        effects = self.model.mixed_model.of("store")
        self.effects.append(float(np.abs(effects.folds.effects.numpy()).max()))
        self.variances.append(float(effects.effect_variance.numpy().max()))


@pytest.mark.parametrize("compiled", [{"jit_compile": True}, {"jit_compile": False}])
def test_effects_start_after_the_networks(data, compiled):
    model, record = adapted(data, 2, **compiled), Record()
    model.fit(data, epochs=EPOCHS, batch_size=200, verbose=0, callbacks=[record])
    # At a prior variance of 1e-6 effects are shrunken to nothing beside features of variance 1.
    assert record.variances[0] == pytest.approx(EFFECT_VARIANCE_FLOOR)
    assert record.effects[0] < 1e-3
    assert min(record.variances[1:]) > 0.01
    assert min(record.effects[1:]) > 0.1


def test_fit_that_ends_before_still_has_effects(data):
    model = adapted(data, 10)
    model.fit(data, epochs=2, batch_size=200, verbose=0)
    assert model.random_effects_table("store").abs().to_numpy().max() > 0.1


def test_resumed_fit_starts_effects_at_their_epoch(data, tmp_path):
    first = adapted(data, 3)
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "model.keras")
    stop = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: _interrupt())
    with pytest.raises(KeyboardInterrupt):
        first.fit(data, epochs=6, batch_size=200, verbose=0, callbacks=[checkpoint, stop])
    model, record = keras.saving.load_model(tmp_path / "model.keras"), Record()
    assert model.latent_epochs == 3
    model.fit(data, initial_epoch=1, epochs=4, batch_size=200, verbose=0, callbacks=[record])
    assert record.variances[0] == pytest.approx(EFFECT_VARIANCE_FLOOR)
    assert min(record.variances[1:]) > 0.01


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_second_fit_keeps_effects(data):
    model, record = adapted(data, 2), Record()
    model.fit(data, epochs=3, batch_size=200, verbose=0)
    model.fit(data, epochs=1, batch_size=200, verbose=0, callbacks=[record])
    assert record.variances[0] > 0.01


@pytest.mark.slow
def test_the_start_decides_who_explains_the_groups():
    """Groups that differ along the curve only: the latent can keep them, and unseen ones gain."""
    data, unseen = curved_data(seed=0), curved_data(seed=1)
    unseen["store"] = unseen["store"] + 1000
    variances, errors = [], []
    for latent_epochs in (0, 10):
        model = adapted(data, latent_epochs)
        model.fit(data, epochs=30, batch_size=100, verbose=0)
        variances.append(model.variance_components().loc["store"].mean())
        errors.append(mse(unseen["x"], model.reconstruct(unseen)))
    assert variances[1] < 0.2 * variances[0]
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.slow
def test_method_takes_what_validation_prefers():
    data = curved_data()
    method = LMMVAEMethod(
        1,
        terms(),
        hidden_units=(32,),
        epochs=12,
        batch_size=100,
        learning_rate=0.01,
        latent_epochs=(0, 6),
        validation=("groups", "store"),
        seed=0,
    ).fit(data)
    assert method.latent_epochs_ == method.model_.latent_epochs == 6


def test_amortized_has_none():
    with pytest.raises(ValueError, match=r"goes with posterior='conjugate'.*latent_epochs=3"):
        small_model(terms(), posterior="amortized", latent_epochs=3)


@pytest.mark.parametrize("latent_epochs", [-1, 1.5])
def test_out_of_range(latent_epochs):
    with pytest.raises(ValueError, match="latent_epochs"):
        small_model(terms(), latent_epochs=latent_epochs)
