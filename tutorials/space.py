# %% [markdown]
"""
# Maps: houses and their neighbourhoods

A smooth surface over the coordinates for each measurement, and what it is good for.

## What you will be able to do

You will reduce the dimension of rows that have coordinates. You will draw a map of the effect of
the place on each measurement, with its uncertainty, and predict at places without data.

The data come with the package. They are 25,357 houses sold in Lucas County, Ohio, with 13
measurements and coordinates in metres. Neighbouring houses resemble each other.

    x = f(u) + surface(easting, northing) + noise

`f(u)` describes the house itself by a latent of two dimensions. The surface describes the
neighbourhood. It is a Gaussian process for each measurement. Its length scale says over which
distance houses resemble each other. It is learned, and the 13 measurements share it.
"""

# %%
import os

import keras
import pandas as pd

import keras_lmmvae as lmm

FAST = os.environ.get("KERAS_LMMVAE_FAST") == "1"
SURFACE = f"gp(easting, northing, kernel=matern12, num_inducing={48 if FAST else 256})"

houses = lmm.datasets.load_houses()
features = lmm.datasets.houses_features(houses)
df = pd.concat([features, houses[["easting", "northing", "cell"]]], axis=1)
df = df.sample(2000 if FAST else len(df), random_state=0)
print(features.columns.to_list())

# %% [markdown]
"""
## Two kinds of test rows

The first kind are random houses, whose neighbours are among the training rows. The second kind
are all houses of a tenth of the square kilometres (`cell`). These are places without data, up to
half a kilometre from the next house.
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

Four models have the same networks. The first does not use the place. The second has a random
intercept for each square kilometre, and treats neighbouring cells as unrelated. The third and
fourth have the surface. The third fits the effects first, which is the default. The fourth trains
the networks first (`latent_epochs=5`).
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
The intercept of a cell is estimated from the houses of that cell only. For known places it is as
good as the surface. For new places it has an error of 0.30, which is worse than not using the
place. The surface also uses the neighbouring houses. For new places it has 0.18, which is better
than the 0.21 of the plain VAE. Here "networks first" gains nothing (0.19), because a surface also
predicts at new places.

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
The place explains most of the variance of prices and lots (0.67 and 0.77). It also explains the
year built, because towns grow outwards. Bedrooms, bathrooms and the garage depend on the house.
Floors and living area are in between. All 13 features share one length scale of 4.2 km, which was
learned by maximum likelihood.

## The map and its uncertainty

The first map shows the effect of the place on the log of the price. The second shows its standard
deviation.
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
Between the 5 % and the 95 % quantile, the price of the same house differs by a factor of
`exp(1.87)`, which is six and a half. The standard deviation is small where there are many houses.
It is larger at places without data: 0.27 against 0.20.

## Latents without the place

The two pictures show the latents of the plain VAE and of the model with the surface. The colour
is the year in which the house was built.
"""

# %%
for name in ("plain VAE", "surface"):
    ax = lmm.plots.plot_latent(models[name], train, "yrbuilt", label="year built")
    ax.set_title(name)
    ax.figure.savefig(f"space_latent_{name.split()[0]}.png", dpi=100)

# %% [markdown]
"""
Both latents still show the year, because houses of different years differ in more than their
place. The plain latent orders the years better. In the other model the surface explains a part of
them.

A limit of this model: a surface is smooth. Differences from one side of a street to the other,
for instance between school districts, are better described by an additional term
`(1 | district)`.

## Next

- examples/us_tracts.py: 71,666 US census tracts, with distances on the globe and counties
- several_structures.py: places together with repeated measures and categories
"""
