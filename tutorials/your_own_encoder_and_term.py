# %% [markdown]
"""
# Your own encoder and your own random-effects term

A convolutional LMMVAE on scanned digits, and a seasonal term written by hand.

## What you will be able to do

You will put your own networks into `LMMVAE`; here they are convolutions for small images. You
will also write your own random-effects term, here a season for each store. You will save and load
a model that uses it.
"""

# %%
import os

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits

import keras_lmmvae as lmm
from keras_lmmvae.effects.grouped_effect import GroupedEffect

FAST = os.environ.get("KERAS_LMMVAE_FAST") == "1"

# %% [markdown]
"""
## Digits from many scanners

The digits of scikit-learn have 8 x 8 pixels from 0 to 16. We pretend that each image went through
one of 20 scanners. Each scanner adds its own background, a smooth pattern. The patterns are
simulated, so the truth is known.
"""

# %%
NUM_SCANNERS, SIDE = 20, 8
rng = np.random.default_rng(0)
clean = load_digits().data.astype("float32")  # (1797, 64)
noise = rng.normal(size=(NUM_SCANNERS, SIDE, SIDE))
patterns = gaussian_filter(noise, sigma=(0, 1, 1), mode="nearest")
patterns = 3 * (patterns / patterns.std()).reshape(NUM_SCANNERS, -1)  # (20, 64)
scanner = rng.integers(0, NUM_SCANNERS, size=len(clean))
images = {"x": (clean + patterns[scanner]).astype("float32"), "scanner": scanner}

train, test = lmm.simulation.split(images, "rows", seed=0)
rows, held_out = lmm.simulation.take(images, train), lmm.simulation.take(images, test)

# %% [markdown]
"""
## A convolutional encoder and decoder

The model hands the encoder flat rows `(b, 64)` and wants hidden units `(b, h)` back. So a
`Reshape` comes first and a `Flatten` last. The heads for the latent's mean and variance are put
on top by the model. The decoder turns the latent `(b, d)` into flat rows `(b, 64)`. Both work in
standardised units, so the last layer has no activation.

A given network brings its own initial weights. `keras.utils.set_random_seed` fixes them.
"""

# %%
LATENT_DIM = 8


def convolutional_networks():
    """An encoder `(b, 64) -> (b, 64)` and a decoder `(b, 8) -> (b, 64)`, untrained."""
    conv = {"kernel_size": 3, "padding": "same", "activation": "relu"}
    encoder = keras.Sequential(
        [
            keras.Input((SIDE * SIDE,)),
            keras.layers.Reshape((SIDE, SIDE, 1)),
            keras.layers.Conv2D(16, **conv),
            keras.layers.Conv2D(32, strides=2, **conv),  # (b, 4, 4, 32)
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
        ]
    )
    decoder = keras.Sequential(
        [
            keras.Input((LATENT_DIM,)),
            keras.layers.Dense(4 * 4 * 32, activation="relu"),
            keras.layers.Reshape((4, 4, 32)),
            keras.layers.Conv2DTranspose(16, strides=2, **conv),  # (b, 8, 8, 16)
            keras.layers.Conv2D(1, 3, padding="same"),
            keras.layers.Flatten(),
        ]
    )
    return encoder, decoder


def fit_images(random_effects, is_convolutional):
    keras.utils.set_random_seed(0)
    networks = {"hidden_units": (128, 64)}
    if is_convolutional:
        networks = dict(zip(("encoder", "decoder"), convolutional_networks(), strict=True))
    model = lmm.LMMVAE(LATENT_DIM, random_effects, **networks, seed=0)
    model.adapt(rows)
    model.compile(optimizer="adam")
    model.fit(rows, epochs=1 if FAST else 60, batch_size=64, verbose=0)
    return model


# %% [markdown]
"""
## Dense or convolutional, with or without the scanner

Two errors on held-out images: against the scanned image, and against the clean digit that the
model never saw. For the second the model leaves its scanner effects out.
"""

# %%
print(f"{'networks':14s} {'scanner':8s} {'parameters':>10s} {'scanned':>8s} {'clean':>8s}")
for is_convolutional in (True,) if FAST else (False, True):
    for terms in ([], [lmm.RandomIntercept("scanner")]):
        model = fit_images(terms, is_convolutional)
        parameters = sum(weight.shape.num_elements() for weight in model.trainable_variables)
        scanned = lmm.metrics.mse(held_out["x"], model.reconstruct(held_out))
        digits = model.reconstruct(held_out, include_effects=False)
        name = "convolutional" if is_convolutional else "dense"
        print(
            f"{name:14s} {'effect' if terms else 'ignored':8s} {parameters:10d} "
            f"{scanned:8.2f} {lmm.metrics.mse(clean[test], digits):8.2f}"
        )

# %% [markdown]
"""
The error against the clean digit is the important one. For the convolutional model it is 3.96
with the effect and 14.9 without. Without the effect, the latent also encodes the pattern of the
scanner.

## The scanners' patterns, recovered

`model` is now the convolutional model with the effect. Its table of effects has one row for each
scanner and one column for each pixel. A row is a picture.
"""

# %%
effects = model.random_effects_table("scanner")
truth = patterns[effects.index] - patterns.mean(axis=0)
found = effects.to_numpy() - effects.to_numpy().mean(axis=0)
each = [np.corrcoef(a, b)[0, 1] for a, b in zip(truth, found, strict=True)]
print(f"correlation with the truth: mean {np.mean(each):.2f}, lowest {np.min(each):.2f}")

figure, axes = plt.subplots(4, 6, figsize=(9, 6.4), layout="constrained")
limit = np.abs(truth).max()
gray, signed = {"cmap": "gray"}, {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
panels = [
    ("scanned", held_out["x"][:6], gray),
    ("found digit", digits[:6], gray),
    ("true pattern", truth[held_out["scanner"][:6]], signed),
    ("found pattern", found[held_out["scanner"][:6]], signed),
]
for line, (title, pictures, style) in zip(axes, panels, strict=True):
    for axis, picture in zip(line, pictures, strict=True):
        axis.imshow(np.reshape(picture, (SIDE, SIDE)), **style)
        axis.set(xticks=[], yticks=[])
    line[0].set_ylabel(title)
figure.savefig("scanners.png", dpi=110)

# %% [markdown]
"""
## A term of your own: a season per store

A term says which columns it reads, which level a row belongs to and what the row's basis is.
The model does the rest: checks of the columns, closed-form effects, variances, tables, saving,
serving.

    x[i] = f(u[i]) + A[l] sin(2 pi month[i] / 12) + B[l] cos(2 pi month[i] / 12) + ...

`GroupedEffect` already knows the levels and their keys. It takes the names of the column with
the keys and of further columns with numbers. What is left to write:

- `inputs` gives the numbers that the basis needs, `(b, c)`, by TensorFlow operations,
- `basis` turns them into basis functions, `(b, m)`,
- `coefficient_names` names the `m` coefficients,
- `get_config` returns the arguments of `__init__`.

Sine and cosine share one variance, so all phases have the same prior probability. Set
`learn_coefficient_covariance = True` in the class to learn their covariance instead. The
decorator registers the class, so that Keras finds it when it loads a model.
"""


# %%
@keras.saving.register_keras_serializable(package="tutorial")
class Season(GroupedEffect):
    """A yearly wave per level of a factor; a row without its month counts as without a level."""

    def __init__(self, column, month, name="season"):
        super().__init__(column, (month,), name)
        self.month = month
        self.basis_size = 2

    def inputs(self, columns):
        return tf.cast(columns[self.month], tf.float32)[:, None]

    def basis(self, encoded):
        angle = encoded["inputs"] * (2 * np.pi / 12)  # (b, 1)
        return tf.concat([tf.sin(angle), tf.cos(angle)], axis=1)

    def coefficient_names(self):
        return ["sine", "cosine"]

    def get_config(self):
        return {**super().get_config(), "month": self.month}


# %% [markdown]
"""
## Does it find the season?

The simulated data have 40 stores and 10 measurements. Each row has a latent `u`, and each store
has a level and a season for each measurement. The intercept and the season both read the column
"store".
"""

# %%
NUM_STORES, NUM_FEATURES, NUM_ROWS = 40, 10, 1200 if FAST else 4000
store = rng.integers(0, NUM_STORES, size=NUM_ROWS)
month = rng.integers(1, 13, size=NUM_ROWS).astype(float)
angle = 2 * np.pi * month / 12
waves = np.stack([np.sin(angle), np.cos(angle)], axis=1)  # (n, 2)
season = rng.normal(size=(NUM_STORES, 2, NUM_FEATURES))
level = rng.normal(size=(NUM_STORES, NUM_FEATURES))
latent = rng.normal(size=(NUM_ROWS, 1))
x = np.tanh(latent @ rng.normal(size=(1, NUM_FEATURES))) + level[store]
x = x + np.einsum("nm,nmp->np", waves, season[store]) + 0.5 * rng.normal(size=x.shape)
sales = {"x": x.astype("float32"), "store": store, "month": month}
train, test = lmm.simulation.split(sales, "rows", seed=0)
weeks, held_out = lmm.simulation.take(sales, train), lmm.simulation.take(sales, test)


def fit_sales(random_effects):
    model = lmm.LMMVAE(1, random_effects, hidden_units=(32, 16), seed=0)
    model.adapt(weeks)
    model.compile(optimizer="adam")
    model.fit(weeks, epochs=2 if FAST else 30, batch_size=100, verbose=0)
    return model


without = fit_sales([lmm.RandomIntercept("store")])
seasonal = fit_sales([lmm.RandomIntercept("store"), Season("store", "month")])
for name, fitted in (("level only", without), ("level and season", seasonal)):
    print(f"{name:17s} test MSE {lmm.metrics.mse(held_out['x'], fitted.reconstruct(held_out)):.2f}")

table = seasonal.random_effects_table("season")
print(table.iloc[:4, :4].round(2))
correlation = np.corrcoef(table.to_numpy().ravel(), season.ravel())[0, 1]
variance = seasonal.variance_components().filter(like="season", axis=0).to_numpy().mean()
print(f"season: correlation with the truth {correlation:.3f}, variance {variance:.2f} (true 1)")

# %% [markdown]
"""
## Save and load

The file contains the arguments, the keys and the weights, but not the code of your class. Import
the class before you load the model.
"""

# %%
seasonal.save("season.keras")
loaded = keras.saving.load_model("season.keras")
same = np.array_equal(loaded.reconstruct(held_out), seasonal.reconstruct(held_out))
print("the loaded model gives the same reconstructions:", same)

# %% [markdown]
"""
## Next

- `quickstart.py` shows intervals, and how new rows and new groups are taken in.
- `RandomSlopes` and `SpatialEffect` in `keras_lmmvae/effects` are longer examples of terms.
"""
