# %% [markdown]
"""
# Serving: from a fitted model to answers for requests

Publish LMMVAE as a SavedModel and ask it what an application would ask.

## What you will be able to do

Hand a fitted model to an engineer who has neither Python nor Keras: publish it, send raw keys and
numbers, and know what comes back for a key never seen, for a missing one, and for a group of which
there are only a few rows.

The data are 25,357 houses with 13 features (see `quickstart.py`). The model has an effect for each
square kilometre, `cell`, and each year of sale, `syear`:

    features = f(latent) + effect of the cell + effect of the year + noise

One cell is kept back: it plays the neighbourhood that is built after the model was fitted.
"""

# %%
import importlib.util
import json
import os

import numpy as np

import keras_lmmvae as lmm
from keras_lmmvae.export import publish, run_in_c_process

FAST = os.environ.get("KERAS_LMMVAE_FAST") == "1"
NEW_CELL = 495218

houses = lmm.datasets.load_houses()
features = lmm.datasets.houses_features(houses)
frame = features.assign(cell=houses["cell"], syear=houses["syear"])
is_new = frame["cell"] == NEW_CELL
new_houses = frame[is_new].sample(frac=1.0, random_state=0)
rest = frame[~is_new].sample(1500 if FAST else (~is_new).sum(), random_state=0)
train, test = rest.iloc[: int(0.8 * len(rest))], rest.iloc[int(0.8 * len(rest)) :]

model = lmm.LMMVAE(2, "(1 | cell) + (1 | syear)", hidden_units=(200, 100), seed=0)
rows = lmm.from_dataframe(train, list(features), model.random_effects)
model.adapt(rows)
model.compile(optimizer="adam")
model.fit(rows, epochs=2 if FAST else 15, batch_size=256, verbose=0)

# %% [markdown]
"""
## Publish

`model.export(folder)` writes a SavedModel and no more. `publish` goes further: it adds a model
card and warm-up requests, replays these through TensorFlow's C library in a process that cannot
import Python packages, compares the answers with the Python model, and only then lets the folder
appear under its name. A server that watches `models/houses` never sees half a version, and never
one that answers otherwise than the model you tested.

TensorFlow Serving sends the warm-up requests to itself while it loads a version, so that the first
customer does not wait for the graph to be set up. Writing them takes
`pip install "keras-lmmvae[serving]"`.
"""

# %%
can_warm_up = importlib.util.find_spec("tensorflow_serving") is not None
if not can_warm_up:
    print('no warm-up requests: pip install "keras-lmmvae[serving]" for them')
published = publish(model, "models/houses", warmup=can_warm_up)
print(published.folder, "with", published.requests, "requests replayed")
print("same numbers as in Python:", published.largest_difference < 1e-4)

# %% [markdown]
"""
Keep to plain names for the columns: they become the names of inputs. TensorFlow takes ASCII
letters, digits, `_`, `.` and `-`, so "my store" would be refused before anything is written.

## Ask

A request holds features in their own units, and keys as they are in the data; what the model
standardises and looks up is part of the graph. The body below is what `curl -d @request.json
http://server:8501/v1/models/houses:predict` would send. No server is at hand in a tutorial, so
`run_in_c_process` answers: a process with TensorFlow's C library only, which loads the folder as
TensorFlow Serving does.

The three houses are the same one. The first is as it is, the second claims a cell that the model
has never seen, the third has lost its keys: the smallest int64 stands for a missing integer key,
the empty string for a missing text.
"""

# %%
house = test[list(features)].iloc[:1].to_numpy("float32").repeat(3, axis=0)
cell, year, null = int(test["cell"].iloc[0]), int(test["syear"].iloc[0]), np.iinfo(np.int64).min
request = {
    "signature_name": "serving_default",
    "inputs": {
        "x": house.round(2).tolist(),
        "cell": [cell, 999999, int(null)],
        "syear": [year, year, int(null)],
    },
}
with open("request.json", "w", encoding="utf-8") as file:
    json.dump(request, file)


def ask(inputs, signature="serving_default"):
    sent = [{"signature": signature, "inputs": inputs}]
    return run_in_c_process(published.folder, sent)[0]["outputs"]


price = model.feature_number("price")
answer = ask(request["inputs"])
for name in ("known_cell", "known_syear"):
    print(f"{name}: {answer[name]}")
for name in ("reconstruction", "standard_deviation"):
    print(f"{name} of the log price:", np.array(answer[name])[:, price].round(2))

# %% [markdown]
"""
Nothing fails; the answers say what they know. With the cell known, the standard deviation of the
log price is 0.29. With an unknown cell it is 0.63: the effect is taken as 0 and the variance
between cells is added. With a missing key nothing is added, for such a row is taken to have no
cell at all. So if a house stands somewhere, but you do not know where, send a key that does not
exist rather than none.

## Which cell is dear?

`random_effects_<term>` returns the effects of keys without any row. An application can show them,
or put them into a table of its own.
"""

# %%
effects = ask({"cell": [cell, 999999]}, "random_effects_cell")
print("known:", effects["known"])
print("effect on the log price:", np.array(effects["mean"])[:, price].round(2))
print("standard deviation:", np.array(effects["standard_deviation"])[:, price].round(2))

# %% [markdown]
"""
## A new neighbourhood, from a few of its houses

The cell kept back is unknown to the model. `condition_cell` answers given some rows of it, which
travel along as `support`: the exact posterior of its effects given the networks, computed per
request; the server remembers nothing. Every row of a request brings support rows of its own, with
a mask (0 is padding), so that a server may batch the requests of different clients. The other
term's column is needed for the support rows as well.
"""

# %%
ahead = new_houses.iloc[-30:]
x = ahead[list(features)].to_numpy("float32")
years = ahead["syear"].to_numpy()
scale = train[list(features)].std().to_numpy()
errors = {}
for size in (0, 3) if FAST else (0, 1, 3, 10, 30):
    some = new_houses.iloc[: max(size, 1)]
    inputs = {
        "x": x,
        "syear": years,
        "support": np.stack([some[list(features)].to_numpy("float32")] * len(x)),
        "support_mask": np.full((len(x), len(some)), float(size > 0), np.float32),
        "support_syear": np.stack([some["syear"].to_numpy()] * len(x)),
    }
    answer = ask(inputs, "condition_cell")
    errors[size] = lmm.metrics.mse(x / scale, np.array(answer["reconstruction"]) / scale)
    deviation = np.array(answer["standard_deviation"])[0, price]
    print(
        f"{size:2d} rows: test MSE {errors[size]:.3f}, effect on price known to +-{deviation:.2f}"
    )

# %% [markdown]
"""
Without support the error in this cell, one of the dearest, is 0.71; with one house 0.41, with
three 0.37, and more do not help: what is left is what houses of one cell differ in. The standard
deviation of the effect on the log price goes on falling, from 0.56 to 0.05.

## Is this house odd?

`anomaly_score` is the mean over the features of squared error over predictive variance: about 1
for rows like those of training. `squared_residual` says which feature is off. Here a clerk types
the number of bedrooms into the field of the halfbaths.
"""

# %%
odd = test[list(features)].iloc[:200].to_numpy("float32")
keys = {name: test[name].iloc[:200].to_numpy() for name in ("cell", "syear")}
usual = np.array(ask({"x": odd, **keys}, "anomaly_score")["score"])
odd[0, model.feature_number("halfbaths")] = 6.0
answer = ask({"x": odd, **keys}, "anomaly_score")
worst = int(np.argmax(answer["squared_residual"][0]))
print(f"usual scores: median {np.median(usual):.2f}, 99 % below {np.quantile(usual, 0.99):.1f}")
print(f"the typing error: {answer['score'][0]:.1f}, mostly from {model.feature_names[worst]}")

# %% [markdown]
"""
Half of the usual houses have a score below 0.54; the typing error scores 15, and points to itself.

## The card

`assets.extra/model_card.json` travels with the model: features, terms, levels, variances, what
happens to unknown keys, a fingerprint of the training data and the versions of everything.
`keras-lmmvae inspect models/houses/1` prints it.
"""

# %%
card = json.loads((published.folder / "assets.extra" / "model_card.json").read_text("utf-8"))
for term in card["terms"]:
    print(term["kind"], term["columns"], "levels:", term["levels"], "ICC:", end=" ")
    print(round(card["icc"][term["label"]], 2))
print(card["key_policy"])

# %% [markdown]
"""
## Tomorrow

The new houses become known without training: one pass with the networks frozen, then the next
version beside the first. The server loads it and drops the old one.
"""

# %%
model.update_random_effects(lmm.from_dataframe(new_houses, list(features), model.random_effects))
published = publish(model, "models/houses", warmup=can_warm_up)
print(published.folder.name, ask({"cell": [NEW_CELL]}, "random_effects_cell")["known"])

# %% [markdown]
"""
## Next

Where this loses: a group that is new and comes without any row is better served by a plain VAE
(see `quickstart.py` for numbers), and only intercepts condition on the server; for slopes and
surfaces there is `model.condition` in Python.

- `docs/serving.md`: all signatures with their shapes, gRPC, C++, other runtimes, speed.
- `from_lme4_and_scikit_learn.py`: the same model beside lme4 and in a pipeline.
"""
