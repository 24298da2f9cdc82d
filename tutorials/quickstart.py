# %% [markdown]
"""
# Quickstart: from a data frame to a picture of the random effects

Fit LMMVAE to houses and see how much the square kilometre of a house explains.

## What you will be able to do

You will fit a variational autoencoder to a data frame whose rows belong to groups. You will then
read off how much each group adds to each feature, and how uncertain that is.

The data are 25,357 houses sold in Lucas County, Ohio, with 13 features, from the price to the
number of baths. Houses of one square kilometre, a `cell`, resemble each other. A plain
autoencoder treats its rows as independent, so its latent variables must describe the place as
well as the house. The model here is

    features = f(latent) + effect of the cell + noise

where `f` is a neural network. The effects are those of a linear mixed model. There is one number
for each cell and feature, and it is shrunken towards 0 where a cell has few houses.
"""

# %%
import os

import numpy as np

import keras_lmmvae as lmm

FAST = os.environ.get("KERAS_LMMVAE_FAST") == "1"

houses = lmm.datasets.load_houses()
frame = lmm.datasets.houses_features(houses).assign(cell=houses["cell"])
frame = frame.sample(1500 if FAST else len(frame), random_state=0).reset_index(drop=True)
print(frame.iloc[:3, :4].round(2), frame["cell"].nunique(), "cells")

# %% [markdown]
"""
## Ten lines

The random effects are given by a formula, as in lme4. `from_dataframe` takes all other numeric
columns as features. `adapt` learns the cells and the scale of the features. `fit` first fits the
mixed model without networks. Then it trains the networks, and updates the effects in closed form.
The pictures need `pip install "keras-lmmvae[plots]"`.
"""

# %%
is_test = np.random.default_rng(0).uniform(size=len(frame)) < 0.2
model = lmm.LMMVAE(latent_dim=2, random_effects="(1 | cell)", hidden_units=(200, 100), seed=0)
train = lmm.from_dataframe(frame[~is_test], random_effects=model.random_effects)
model.adapt(train)
model.compile(optimizer="adam")
model.fit(train, epochs=2 if FAST else 15, batch_size=256, verbose=0)
ax = lmm.plots.plot_caterpillar(model, "cell", "price")
ax.figure.savefig("quickstart_effects.png", dpi=100)

# %% [markdown]
"""
## What the picture says

Each line is a cell. It shows the effect on the log of the price and its 90 % interval. Lines are
coloured if their interval does not contain 0; these are about two thirds of the cells. The
cheapest cell is at -1.84: `exp(-1.84)` is a sixth of the price in an average cell. The dearest
cell is at 2.04 and has a single house. Its interval is wide, and its effect is shrunken towards
0, because one row is little evidence.
"""

# %%
effects = model.random_effects_table("cell")
deviations = model.random_effects_table("cell", std=True)
print("largest effects on the log of the price:")
print(effects["price"].sort_values().iloc[[0, 1, -2, -1]].round(2))
is_clear = np.abs(effects["price"]) > 1.645 * deviations["price"]
print(f"{is_clear.mean():.0%} of the cells differ clearly from the average cell")

# %% [markdown]
"""
## Where the variance lies

`variance_partition` divides the variance of each feature among the latent variables, the cells
and the noise. On the full data, 60 % of the variance of the log price and of the year built lies
between cells. Beds and floors hardly depend on the place (6 and 9 %); the latent explains them.
"""

# %%
shares = model.variance_partition(train)
print(shares[["price", "yrbuilt", "beds", "floors"]].round(2))
ax = lmm.plots.plot_variance_partition(model, train)
ax.figure.savefig("quickstart_variances.png", dpi=100, bbox_inches="tight")

# %% [markdown]
"""
## Better than without?

The same networks without random effects are a plain VAE. Both models are tested twice: on random
rows, most of whose cells are known, and on rows of cells that the models have never seen. The
error is the mean squared error of standardised features. Predicting the mean of each feature has
error 1.
"""


# %%
def error(random_effects, train, test):
    model = lmm.LMMVAE(2, random_effects, hidden_units=(200, 100), seed=0)
    train = lmm.from_dataframe(train, features, random_effects)
    test = lmm.from_dataframe(test, features, random_effects)
    model.adapt(train)
    model.compile(optimizer="adam")
    model.fit(train, epochs=2 if FAST else 15, batch_size=256, verbose=0)
    scale = train["x"].std(axis=0)
    return lmm.metrics.mse(test["x"] / scale, model.reconstruct(test) / scale)


features = model.feature_names
cells = frame["cell"].unique()
is_new = frame["cell"].isin(np.random.default_rng(1).choice(cells, len(cells) // 5, replace=False))
for kind, chosen in (("random rows", is_test), ("new cells", is_new)):
    errors = [error(terms, frame[~chosen], frame[chosen]) for terms in ((), "(1 | cell)")]
    print(f"{kind:12s} plain VAE {errors[0]:.2f}, LMMVAE {errors[1]:.2f}")

# %% [markdown]
"""
On random rows the error falls from 0.28 to about 0.20. On new cells the plain VAE wins, 0.28
against 0.36. The features of a house depend on its place. The plain latent contains the place;
the latent of LMMVAE does not, and the effect of a new cell is unknown. If you only want to
compress rows of groups that you have never seen, use the plain VAE. A surface over the
coordinates, `gp(easting, northing)`, also predicts at new places.

## A cell never seen

`predictive` gives the uncertainty of a prediction. A house in an unknown cell gets the effect 0,
which is the best guess, and a larger standard deviation. An unknown key is not an error.
"""

# %%
test = lmm.from_dataframe(frame[is_test], features, model.random_effects)
pair = {name: column[:1].repeat(2, axis=0) for name, column in test.items()}
pair["cell"][1] = -1
prediction = model.predictive(pair)
price = model.feature_number("price")
for row, kind in enumerate(("known cell", "unknown cell")):
    effect = prediction.contributions["cell"][row, price]
    deviation = prediction.standard_deviation[row, price]
    print(f"{kind:12s} effect on log price {effect:+.2f}, standard deviation {deviation:.2f}")

# %% [markdown]
"""
The effect of this cell is +0.97, which is 2.6 times the price of an average cell. If the cell is
not known, the standard deviation nearly doubles from 0.32 to 0.61.

## New groups without training

`update_random_effects` estimates the effects of new cells from their rows. The networks stay as
they are. A saved model keeps everything that it has learned.
"""

# %%
arrivals = {name: column[:40] for name, column in test.items()}
arrivals["cell"] = np.full(40, -1)
model.update_random_effects(arrivals)
model.save("houses.keras")
print("known now:", -1 in model.random_effects_table("cell").index)

# %% [markdown]
"""
## Next

- `serving.py`: the fitted model behind TensorFlow Serving.
- `from_lme4_and_scikit_learn.py`: lme4 and scikit-learn beside this package.
- `your_own_encoder_and_term.py`: convolutions instead of dense layers, and your own random effect.
"""
