# %% [markdown]
"""
# Quickstart: from a data frame to a picture of the random effects

Fit LMMVAE to houses of one square kilometre and see what places have in common.

## What you will be able to do

Take a data frame whose rows share a group, fit a variational autoencoder that knows about the
groups, and read off what each group adds to each feature, with its uncertainty.

The data: 25,357 houses sold in Lucas County, Ohio, with 13 features, from price to the number of
baths. Houses of one square kilometre, a `cell`, resemble each other. A plain autoencoder takes its
rows for independent, so its latent variables have to say where a house stands. The model here is

    features = f(latent) + effect of the cell + noise

where `f` is a neural network and the effects are those of a linear mixed model: one number per
cell and feature, shrunken towards 0 where there are few houses.
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

A formula as in lme4 says which random effects there are. `from_dataframe` takes all other numeric
columns for features. `adapt` learns which cells there are and how the features are scaled; `fit`
first fits the mixed model without networks, then trains these while the effects follow in closed
form. For pictures: `pip install "keras-lmmvae[plots]"`.
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

Every line is a cell: its effect on the log of the price and the 90 % interval; lines that leave
out 0 are coloured, about two thirds of the cells. The cheapest are at -1.85 (`exp(-1.85)` is a
sixth of the price in an average cell), the dearest at 1.96. The dearest one holds a single house:
its interval is wide, and the effect has been drawn towards 0, as one row proves little.
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
and the noise. On the full data 60 % of the variance of the log price and of the year built lie
between cells; beds and floors hardly depend on the place (5 and 9 %) and are left to the latent.
"""

# %%
shares = model.variance_partition(train)
print(shares[["price", "yrbuilt", "beds", "floors"]].round(2))
ax = lmm.plots.plot_variance_partition(model, train)
ax.figure.savefig("quickstart_variances.png", dpi=100, bbox_inches="tight")

# %% [markdown]
"""
## Better than without?

The same networks without random effects are a plain VAE. They meet two tests: rows drawn at
random, so that most of their cells are known, and rows of cells that the models have never seen.
The error is the mean square of standardised features: the averages of the features would get 1.
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
With random rows 0.28 falls to about 0.19. With new cells the plain VAE wins, 0.28 against 0.36: the
features of a house give away where it stands, the plain latent carries that along, and ours has
been freed of it. If all you want is to compress rows of groups you will never see again, stay with
the plain VAE; a term for the place itself, `gp(easting, northing)`, also serves places between.

## A cell never seen

`predictive` says how sure the model is. A house whose cell is unknown gets the effect 0, which is
the best guess, and a wider interval. Nothing fails because of a new key.
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
The effect of this cell is +0.93: 2.5 times the price of an average cell. Not knowing the cell
doubles the standard deviation, from 0.30 to 0.60.

## New groups without training

`update_random_effects` takes in rows of new cells with the networks frozen; a saved model keeps
everything that it has learned.
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
- `from_lme4_and_scikit_learn.py`: what you know of mixed models and pipelines, side by side.
- `your_own_encoder_and_term.py`: convolutions instead of dense layers, and your own random effect.
"""
