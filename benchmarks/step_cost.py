"""Cost of a training step against a stock Keras VAE with the same networks.

    python benchmarks/step_cost.py                 # about 3 minutes on 2 cores

Both are trained with Keras' own `fit`, in one process, turn by turn; the ratio of every pair
of turns is taken, the median quoted. The stock VAE is written as in the Keras guides: encoder,
sampling, decoder, squared error and KL, Adam. Also reports how the peak memory grows with the
number of levels and the batch.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

import keras_lmmvae as lmm
from keras_lmmvae.rows import Pass

__all__ = [
    "StepClock",
    "StockVAE",
    "compare",
    "fitted_lmmvae",
    "main",
    "timed",
]

NUM_FEATURES = 50
HIDDEN = (1000, 500)
LATENT_DIM = 2
RESULTS = Path(__file__).parent / "results"


class StockVAE(keras.Model):
    """A plain VAE, as in the Keras guide on custom training steps."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = keras.Sequential([keras.layers.Dense(h, activation="relu") for h in HIDDEN])
        self.mean_head = keras.layers.Dense(LATENT_DIM)
        self.log_var_head = keras.layers.Dense(LATENT_DIM)
        self.decoder = keras.Sequential(
            [keras.layers.Dense(h, activation="relu") for h in HIDDEN[::-1]]
            + [keras.layers.Dense(NUM_FEATURES)]
        )
        self.seed_generator = keras.random.SeedGenerator(0)
        self.trackers = [keras.metrics.Mean(name=n) for n in ("loss", "reconstruction", "kl")]

    @property
    def metrics(self) -> list[Any]:
        return self.trackers

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.decoder(self.mean_head(self.trunk(x)))

    def train_step(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            hidden = self.trunk(x)
            mean, log_var = self.mean_head(hidden), self.log_var_head(hidden)
            noise = keras.random.normal(tf.shape(mean), seed=self.seed_generator)
            output = self.decoder(mean + tf.exp(0.5 * log_var) * noise)
            reconstruction = tf.reduce_sum(tf.square(x - output), axis=-1)
            kl = -0.5 * tf.reduce_sum(1 + log_var - tf.square(mean) - tf.exp(log_var), axis=-1)
            loss = tf.reduce_mean(reconstruction + kl)
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        for tracker, value in zip(self.trackers, (loss, reconstruction, kl), strict=True):
            tracker.update_state(value)
        return {tracker.name: tracker.result() for tracker in self.trackers}


class StepClock(keras.callbacks.Callback):
    """Seconds between the end of the first batch and the end of the last."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 0:
            self.start = time.perf_counter()
        self.stop, self.steps = time.perf_counter(), batch

    def step(self) -> float:
        return (self.stop - self.start) / self.steps


def fitted_lmmvae(num_levels: int, batch_size: int, steps: int, terms: int) -> tuple[Any, Any]:
    """A compiled LMMVAE that has taken in its levels, and encoded rows for its steps."""
    rng = np.random.default_rng(0)
    rows = max(2 * num_levels, steps * batch_size)
    x = rng.normal(size=(rows, NUM_FEATURES)).astype(np.float32)
    data = {"x": x}
    for number in range(terms):
        data[f"level_{number}"] = rng.permutation(np.arange(rows) % num_levels)
    effects = [lmm.RandomIntercept(f"level_{number}") for number in range(terms)]
    model = lmm.LMMVAE(LATENT_DIM, effects, hidden_units=HIDDEN, seed=0)
    model.adapt(data)
    model.compile(optimizer="adam")
    encoded = model.encode_data(data)
    model.effects_fit.begin(Pass(encoded), is_fitted=False)
    model.fitted.assign(1.0)
    chosen = rng.permutation(rows)[: steps * batch_size]
    return model, tf.nest.map_structure(lambda value: tf.gather(value, chosen), encoded)


def timed(model: keras.Model, rows: Any, batch_size: int) -> float:
    """Milliseconds of a step of Keras' loop, without the effects' work around epochs."""
    clock = StepClock()
    keras.Model.fit(model, rows, batch_size=batch_size, verbose=0, callbacks=[clock])
    return 1000.0 * clock.step()


def compare(num_levels: int, batch_size: int, terms: int, turns: int, steps: int) -> dict[str, Any]:
    """Median times of both, and the median of the ratios of neighbouring turns."""
    model, rows = fitted_lmmvae(num_levels, batch_size, steps, terms)
    stock = StockVAE()
    stock.compile(optimizer="adam")
    times = []
    for _ in range(turns + 1):
        times.append((timed(model, rows, batch_size), timed(stock, rows["x"], batch_size)))
    ours, theirs = np.array(times[1:]).T  # the first turn compiles
    return {
        "levels": num_levels,
        "terms": terms,
        "batch_size": batch_size,
        "lmmvae_ms": np.median(ours),
        "stock_vae_ms": np.median(theirs),
        "ratio": np.median(ours / theirs),
        "ratio_min": (ours / theirs).min(),
        "ratio_max": (ours / theirs).max(),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Measures every combination of levels and batch size and writes step_cost.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--levels", type=int, nargs="*", default=[1_000, 1_000_000])
    parser.add_argument("--batch-size", type=int, nargs="*", default=[256, 1000])
    parser.add_argument("--terms", type=int, default=1)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    results = []
    for levels in options.levels:
        for batch_size in options.batch_size:
            results.append(compare(levels, batch_size, options.terms, options.turns, options.steps))
            print(results[-1], flush=True)
    RESULTS.mkdir(exist_ok=True)
    name = "step_cost.csv" if options.terms == 1 else f"step_cost_{options.terms}_terms.csv"
    pd.DataFrame(results).to_csv(RESULTS / name, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
