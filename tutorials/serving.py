# %% [markdown]
"""
# Serving: from a fitted model to answers for requests

Publish LMMVAE as a SavedModel and send it the requests of an application.

## What you will be able to do

You will publish a fitted model for someone who has neither Python nor Keras. You will send raw
keys and numbers, and see the answers for an unseen key, a missing key, and a group with only a
few rows.

The data are 25,357 houses with 13 features (see `quickstart.py`). The model has an effect for
each square kilometre, `cell`, and for each year of sale, `syear`:

    features = f(latent) + effect of the cell + effect of the year + noise

One cell is held out. It stands for a neighbourhood that is built after the model was fitted.
"""

# %%
import importlib.util
import json
import os

import numpy as np
import tensorflow as tf

import keras_lmmvae as lmm
from keras_lmmvae.export import publish

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

`model.export(folder)` only writes a SavedModel. `publish` also adds a model card and warm-up
requests. It then loads the export with TensorFlow in a fresh process that cannot import this
package, sends the requests, and compares the answers with those of the Python model. The folder
gets its name only if they agree. A server that watches `models/houses` therefore never sees an
incomplete version, or a version that answers differently from the model that you tested.

TensorFlow Serving sends the warm-up requests to itself while it loads a version. The first user
then does not wait for the graph to be set up. Warm-up requests need
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
Use plain names for the columns, because they become the names of the inputs. TensorFlow allows
ASCII letters, digits, `_`, `.` and `-`. A column "my store" is refused before anything is
written.

## Send a request

A request has the features in their own units and the keys as they are in the data. Scaling and
look-up are part of the graph. The body below is what
`curl -d @request.json http://server:8501/v1/models/houses:predict` would send. This tutorial has
no server, so `tf.saved_model.load` loads the folder and its signatures answer.

The request has the same house three times. The first is unchanged. The second has a cell that the
model has never seen. The third has no keys: the smallest int64 stands for a missing integer key,
and the empty string for a missing text.
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
    served = tf.saved_model.load(str(published.folder)).signatures[signature]
    types = served.structured_input_signature[1]
    sent = {name: tf.constant(value, types[name].dtype) for name, value in inputs.items()}
    return {name: answer.numpy() for name, answer in served(**sent).items()}


price = model.feature_number("price")
answer = ask(request["inputs"])
for name in ("known_cell", "known_syear"):
    print(f"{name}: {answer[name]}")
for name in ("reconstruction", "standard_deviation"):
    print(f"{name} of the log price:", answer[name][:, price].round(2))

# %% [markdown]
"""
No request fails, and the answers show their uncertainty. If the cell is known, the standard
deviation of the log price is 0.29. If the cell is unknown, it is 0.63: the effect is taken as 0,
and the variance between cells is added. If the key is missing, nothing is added, because such a
row is treated as having no cell. So if a house has a place that you do not know, send a key that
does not exist, and not a missing key.

## Effects without rows

`random_effects_<term>` returns the effects of keys; it needs no features. An application can show
them or store them in a table.
"""

# %%
effects = ask({"cell": [cell, 999999]}, "random_effects_cell")
print("known:", effects["known"])
print("effect on the log price:", effects["mean"][:, price].round(2))
print("standard deviation:", effects["standard_deviation"][:, price].round(2))

# %% [markdown]
"""
## A new neighbourhood, from a few of its houses

The model does not know the cell that was held out. `condition_cell` answers from some rows of
this cell, which are sent with the request as `support`. It computes the exact posterior of the
effects, given the networks, for each request. The server stores nothing. Each row of a request
has its own support rows and a mask (0 is padding), so a server may batch the requests of
different clients. The support rows also need the column of the other term.
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
    errors[size] = lmm.metrics.mse(x / scale, answer["reconstruction"] / scale)
    deviation = answer["standard_deviation"][0, price]
    print(
        f"{size:2d} rows: test MSE {errors[size]:.3f}, effect on price known to +-{deviation:.2f}"
    )

# %% [markdown]
"""
This cell is one of the dearest. Without support the error is 0.71. With one house it is 0.41, and
with three houses 0.37. More houses do not reduce it further, because the rest are differences
within the cell. The standard deviation of the effect on the log price keeps falling, from 0.56 to
0.05.

## Is this house unusual?

`anomaly_score` is the mean over the features of the squared error divided by the variance that it
would have if the latent were known. It is about 1 for rows like those of training.
`squared_residual` shows which feature is unusual. Here a clerk has typed the number of bedrooms
into the field of the halfbaths.
"""

# %%
odd = test[list(features)].iloc[:200].to_numpy("float32")
keys = {name: test[name].iloc[:200].to_numpy() for name in ("cell", "syear")}
usual = ask({"x": odd, **keys}, "anomaly_score")["score"]
odd[0, model.feature_number("halfbaths")] = 6.0
answer = ask({"x": odd, **keys}, "anomaly_score")
worst = int(np.argmax(answer["squared_residual"][0]))
print(f"usual scores: median {np.median(usual):.2f}, 99 % below {np.quantile(usual, 0.99):.1f}")
print(f"the typing error: {answer['score'][0]:.1f}, mostly from {model.feature_names[worst]}")

# %% [markdown]
"""
Half of the usual houses have a score below 0.54. The house with the typing error has a score of
15, and most of it comes from the wrong feature.

## The model card

The model card `assets.extra/model_card.json` is a part of the export. It has the features, terms,
levels and variances, what happens to unknown keys, a fingerprint of the training data, and all
versions. `keras-lmmvae inspect models/houses/1` prints it.
"""

# %%
card = json.loads((published.folder / "assets.extra" / "model_card.json").read_text("utf-8"))
for term in card["terms"]:
    print(term["kind"], term["columns"], "levels:", term["levels"], "ICC:", end=" ")
    print(round(card["icc"][term["label"]], 2))
print(card["key_policy"])

# %% [markdown]
"""
## The next version

The new houses are taken in without training: one pass over them, with the networks frozen. The
next version is published beside the first. The server loads it and drops the old one.
"""

# %%
model.update_random_effects(lmm.from_dataframe(new_houses, list(features), model.random_effects))
published = publish(model, "models/houses", warmup=can_warm_up)
print(published.folder.name, ask({"cell": [NEW_CELL]}, "random_effects_cell")["known"])

# %% [markdown]
"""
## Next

There are two limits. For a new group without any row, a plain VAE is better (`quickstart.py` has
the numbers). And only intercepts can be conditioned on the server; for slopes and surfaces use
`model.condition` in Python.

- `docs/serving.md`: all signatures with their shapes, gRPC, C++, other runtimes, speed.
- `from_lme4_and_scikit_learn.py`: the same model beside lme4 and in a pipeline.
"""
