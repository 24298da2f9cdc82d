"""
Title: Quickstart: a VAE for rows that share a group
Description: Fit, inspect, save and update LMMVAE on simulated stores.
Accelerator: None
"""

# %% [markdown]
"""
## Rows that are not independent

Every row is a week of a store: 20 measurements. Weeks of one store resemble each other, and
so do weeks of one region. A plain VAE spends its latent on telling stores apart. `LMMVAE`
gives every store and region its own random effect and keeps the latent for the rest.
"""

# %%
import os

import numpy as np

import keras_lmmvae as lmm

FAST = os.environ.get("KERAS_LMMVAE_FAST") == "1"

simulation = lmm.simulation.simulate_categorical(
    n=1500 if FAST else 6000,
    num_features=20,
    cardinalities=(30, 100) if FAST else (100, 300),
    effect_variances=(1.0, 0.3),
    order="crossed",
    seed=0,
)
train, test = lmm.simulation.split(simulation.data, "rows", seed=0)
rows = lmm.simulation.take(simulation.data, train)
held_out = lmm.simulation.take(simulation.data, test)

# %% [markdown]
"""
## Fit

`adapt` learns which levels there are and how the features are scaled. `fit` first fits the
linear mixed model without a latent part, then trains the networks while the effects follow
in closed form.
"""


# %%
def fit(random_effects):
    model = lmm.LMMVAE(latent_dim=1, random_effects=random_effects, hidden_units=(200, 100), seed=0)
    model.adapt(rows)
    model.compile(optimizer="adam")
    model.fit(rows, epochs=3 if FAST else 20, batch_size=100, verbose=0)
    return model


plain = fit([])
model = fit([lmm.RandomIntercept("group_0"), lmm.RandomIntercept("group_1")])
for name, fitted in (("plain VAE", plain), ("LMMVAE", model)):
    print(f"{name:10s} test MSE {lmm.metrics.mse(held_out['x'], fitted.reconstruct(held_out)):.3f}")

# %% [markdown]
"""
## What was learned

Variances by term and feature, against the truth of the simulation; one table of effects per
term, with standard deviations.
"""

# %%
components = model.variance_components()
print(components.iloc[:, :5].round(2))
print("true, group_0:", simulation.effect_variance["group_0"][0, :5].round(2))

effects = model.random_effects_table("group_0")
deviations = model.random_effects_table("group_0", std=True)
print(effects.iloc[:3, :4].round(2))
print(deviations.iloc[:3, :4].round(2))
truth = simulation.effects["group_0"][effects.index, 0]
correlation = np.corrcoef(effects.to_numpy().ravel(), truth.ravel())[0, 1]
print(f"correlation with the true effects: {correlation:.3f}")

# %% [markdown]
"""
## Predict, with uncertainty

`predictive` says how sure the model is of every cell and what each term contributes. A group
never seen gets the population's value and a wider interval.
"""

# %%
new = lmm.simulation.take(held_out, np.arange(2))
new["group_0"] = np.array([new["group_0"][0], 10**6])
prediction = model.predictive(new)
print("standard deviations:", prediction.standard_deviation[:, :4].round(2))
print("contribution of group_0:", prediction.contributions["group_0"][:, :4].round(2))

# %% [markdown]
"""
## New rows, new groups, without retraining

`update_random_effects` takes in rows of new groups with the networks frozen.
"""

# %%
arrivals = lmm.simulation.take(held_out, np.arange(40))
arrivals["group_0"] = np.full(40, 10**6)
model.update_random_effects(arrivals)
print("known now:", 10**6 in model.random_effects_table("group_0").index)
