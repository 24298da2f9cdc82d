# %% [markdown]
"""
# Maps: houses and their neighbourhoods

A smooth surface over coordinates for every measurement, and what it is good for.

## What you will be able to do

Reduce the dimension of rows that lie on a map, draw what the place does to each measurement and
how sure that is, and predict at places where there are no data.

The data come with the package: 25,357 houses sold in Lucas County, Ohio, with 13 measurements
and coordinates in metres. Neighbouring houses resemble each other.

    x = f(u) + surface(easting, northing) + noise

`f(u)` describes the house itself, by a latent of two dimensions. The surface describes the
neighbourhood: a Gaussian process for every measurement. How far it reaches is learned, and the
13 measurements share that length scale.
"""

# %%
import os

import keras
import pandas as pd

import keras_lmmvae as lmm

FAST = os.environ.get("KERAS_LMMVAE_FAST") == "1"
SURFACE = "gp(easting, northing, kernel=matern12" + (", num_inducing=48)" if FAST else ")")

houses = lmm.datasets.load_houses()
features = lmm.datasets.houses_features(houses)
df = pd.concat([features, houses[["easting", "northing", "cell"]]], axis=1)
df = df.sample(2000 if FAST else len(df), random_state=0)
print(features.columns.to_list())

# %% [markdown]
"""
## Two kinds of test rows

Houses at random, whose neighbours are in the training rows, and all houses of a tenth of the
square kilometres (`cell`): places without data, up to half a kilometre from the next house.
"""

# %%
known, unseen = lmm.simulation.split(dict(df), "groups", on="cell", test_size=0.1, seed=0)
old = df.iloc[known]
train_rows, test_rows = lmm.simulation.split(dict(old), "rows", test_size=0.1, seed=0)
terms = f"{SURFACE} + (1 | cell)"
train = lmm.from_dataframe(old.iloc[train_rows], list(features), terms)
tests = {
    "known places": lmm.from_dataframe(old.iloc[test_rows], list(features), terms),
    "new places": lmm.from_dataframe(df.iloc[unseen], list(features), terms),
}
scale = train["x"].std(axis=0)

# %% [markdown]
"""
## Fit

Four models with the same networks: without any place; with a random intercept for every square
kilometre, as if a cell knew nothing of the next one; and with the surface, once with the effects
first, which is the default, once with the networks first (`latent_epochs=5`).
"""


# %%
def fit(random_effects, latent_epochs=0):
    model = lmm.LMMVAE(
        2,
        random_effects,
        hidden_units=(200, 100),
        kl_weight=0.1,
        latent_epochs=latent_epochs,
        seed=0,
    )
    model.adapt(train)
    epochs = 6 if FAST else 15
    steps = epochs * (len(train["x"]) // 256 + 1)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    model.compile(optimizer=keras.optimizers.Adam(rate))
    model.fit(train, epochs=epochs, batch_size=256, verbose=0)
    return model


models = {
    "plain VAE": fit([]),
    "cells": fit("(1 | cell)"),
    "surface": fit(SURFACE),
    "surface, networks first": fit(SURFACE, latent_epochs=5),
}
for name, fitted in models.items():
    errors = [
        f"{kind} {lmm.metrics.mse(rows['x'] / scale, fitted.reconstruct(rows) / scale):.2f}"
        for kind, rows in tests.items()
    ]
    print(f"{name:24s} test MSE:", ", ".join(errors))

# %% [markdown]
"""
A cell is a square kilometre and knows its own houses only: for known places it is as good as the
surface, for new ones, 0.30, it is worse than no place at all. The surface knows the neighbourhood:
0.18 for new places, better than the plain VAE's 0.21. Here "networks first" gains nothing (0.19),
for a surface has something to say of new places, too.

## What belongs to the place?
"""

# %%
model = models["surface"]
print(model.variance_partition(train).T.round(2))
ax = lmm.plots.plot_variance_partition(model, train)
ax.figure.savefig("space_partition.png", dpi=100)
reach = model.find_term("easting_northing").fitted_length_scale / 1000
print(f"length scale {reach:.1f} km")

# %% [markdown]
"""
Prices and lots belong to the place (0.67 and 0.77), as does the year built: towns grow outwards.
Bedrooms, bathrooms and the garage belong to the house. Floors and living area are in between. One
length scale, learned by marginal likelihood, serves all 13 features: 4.2 km.

## The map, and how sure it is

The effect of the place on the log of the price, and its standard deviation.
"""

# %%
ax = lmm.plots.plot_effects_map(model, "easting_northing", train, "price", scale=1000)
ax.figure.savefig("space_map.png", dpi=100)
ax = lmm.plots.plot_effects_map(
    model, "easting_northing", train, "price", std=True, inducing_points=True, scale=1000
)
ax.figure.savefig("space_deviation.png", dpi=100)
effect, deviation = model.term_effects("easting_northing", train)
price = list(features).index("price")
low, high = pd.Series(effect[:, price]).quantile([0.05, 0.95])
print(f"effect on log(price): {low:.2f} to {high:.2f} for nine in ten houses")
for kind, rows in tests.items():
    _, deviation = model.term_effects("easting_northing", rows)
    print(f"standard deviation at {kind}: {deviation[:, price].mean():.3f}")

# %% [markdown]
"""
Between the cheapest and the dearest places, the outer twentieths left out, lies a factor of
`exp(1.87)`, six and a half, for the same house otherwise. The standard deviation is small where
many houses stand, and larger at places nobody has sold a house at: 0.27 against 0.20.

## Latents without the place

The same two latents, coloured by the year the house was built: of the plain VAE, and of the
model with the surface.
"""

# %%
for name in ("plain VAE", "surface"):
    ax = lmm.plots.plot_latent(models[name], train, "yrbuilt", label="year built")
    ax.set_title(name)
    ax.figure.savefig(f"space_latent_{name.split()[0]}.png", dpi=100)

# %% [markdown]
"""
Both latents still show the year, for it decides how a house looks and not only where it stands. The
plain latent orders it better: in the other model the place has taken its share.

Where this loses: a surface is smooth. What changes from one side of a street to the other, school
districts for instance, is better told by `(1 | district)` beside it.

## Next

- several_structures.py: places together with repeated measures and categories
"""
