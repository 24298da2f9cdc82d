# %% [markdown]
"""
# Coming from lme4, and coming from scikit-learn

The commands of lme4 beside those of this package, a pure mixed model, and cross-validation.

## What you will be able to do

If you use lme4, you will find the counterparts of `ranef`, `VarCorr`, `confint` and
`predict(re.form = NA)`, and check that the random effects are the BLUPs that you know. If you use
scikit-learn, you will put the model into a pipeline, cross-validate it by group and search its
parameters.

The commands of lme4 have these counterparts:

- `lmer(price ~ 1 + (1 | cell), df)`: `LMMVAE(2, "(1 | cell)")`, for all features at once
- `(1 + t | patient)`, `(1 | school/class)`: the same formulas, and `gp(lon, lat)`
- `ranef(fit)`, with `condVar = TRUE`: `random_effects_table("cell")`, with `std=True`
- `VarCorr(fit)`: `variance_components()`; correlations: `coefficient_covariance("patient")`
- `confint(fit)`: `variance_intervals()`
- `logLik(fit)`, `AIC(fit)`, `BIC(fit)`: `information_criteria(data)`
- `anova(small, large, refit = FALSE)`: `likelihood_ratio_test(small, large, data)`
- `predict(fit, re.form = NA)`: `reconstruct(data, include_effects=False)`
- `predict(fit, new, allow.new.levels = TRUE)`: `reconstruct(new)`; unknown levels are no error
- `dotplot(ranef(fit))`: `plots.plot_caterpillar(model, "cell")`

There are two differences. lme4 has fixed effects of covariates; LMMVAE has a neural network of
latent variables. lme4 has one response; LMMVAE has as many as there are features:

    features = f(latent) + effect of the cell + noise
"""

# %%
import importlib.util
import os

import numpy as np
import pandas as pd

import keras_lmmvae as lmm

FAST = os.environ.get("KERAS_LMMVAE_FAST") == "1"

houses = lmm.datasets.load_houses()
frame = lmm.datasets.houses_features(houses).assign(cell=houses["cell"], wall=houses["wall"])
frame = frame.sample(1500 if FAST else len(frame), random_state=0)
features = list(lmm.datasets.HOUSES_FEATURES)

# %% [markdown]
"""
## A mixed model, and nothing else

Without the latent part, the model is thirteen separate mixed models `1 + (1 | cell)`. A fit of no
epochs is that: variances by REML, an intercept for each feature, and the BLUPs of the cells. It
takes a second for all features together.
"""

# %%
mixed = lmm.LMMVAE(1, "(1 | cell)", seed=0)
data = lmm.from_dataframe(frame, features, mixed.random_effects)
mixed.adapt(data)
mixed.compile()
mixed.fit(data, epochs=0)

components = mixed.variance_components()
print("VarCorr:", components["price"].round(3).to_dict())
print("confint:")
print(mixed.variance_intervals(level=0.95).xs("price", level="feature").round(3))
fixed = mixed.reconstruct(data, include_effects=False)[0, 0]
print(f"intercept: {fixed:.2f}")

# %% [markdown]
"""
In textbooks the BLUP of a cell with n rows is the mean residual multiplied by

    n / (n + noise variance / cell variance)

With the same variances and intercept, the table of effects must contain exactly these numbers:
"""

# %%
residual = (frame["price"] - fixed).groupby(frame["cell"])
rows = residual.size()
ratio = components.loc["noise", "price"] / components.loc["cell", "price"]
blup = residual.mean() * rows / (rows + ratio)
ranef = mixed.random_effects_table("cell")["price"]
print("equal to the textbook's:", np.allclose(blup, ranef.loc[blup.index], atol=1e-4))
ax = lmm.plots.plot_shrinkage(mixed, "cell", data, "price")
ax.figure.savefig("shrinkage.png", dpi=100)

# %% [markdown]
"""
The picture shows the same. On the dashed line nothing is shrunken. Cells with few houses (see the
colours) are closer to 0.

The variances are those of restricted maximum likelihood (REML), as in lme4. For several terms,
traces in REML's equations are estimated with random signs, so that a step costs the same for a
million rows. How different are the results? statsmodels (`pip install statsmodels`) fits one
feature by REML, as lme4 does.
"""

# %%
if importlib.util.find_spec("statsmodels") is None:
    print("statsmodels is not installed: no comparison with REML")
else:
    import statsmodels.formula.api as smf

    reml = smf.mixedlm("price ~ 1", frame, groups=frame["cell"]).fit(reml=True)
    theirs = pd.Series({cell: effect.iloc[0] for cell, effect in reml.random_effects.items()})
    print(f"REML: cell {reml.cov_re.iloc[0, 0]:.3f}, noise {reml.scale:.3f}", end=", ")
    print(f"intercept {reml.fe_params.iloc[0]:.2f}")
    print(f"correlation of the effects: {np.corrcoef(theirs, ranef.loc[theirs.index])[0, 1]:.4f}")

# %% [markdown]
"""
The variances (cell 0.426, noise 0.152) and the intercept (11.25) are the same, and the correlation
of the effects is 1.0000. For inference about fixed effects, use lme4.

## Does the model need another term?

Houses of the same wall may have something in common beyond their cell. A second model has a term
for it. `information_criteria` has the log likelihood, AIC and BIC of a linear mixed model, and
`likelihood_ratio_test` compares two of them.
"""

# %%
walls = lmm.LMMVAE(1, "(1 | cell) + (1 | wall)", seed=0)
data = lmm.from_dataframe(frame, features, walls.random_effects)
walls.adapt(data)
walls.compile()
walls.fit(data, epochs=0)

for name, fitted in (("cell", mixed), ("cell, wall", walls)):
    print(name, fitted.information_criteria(data).loc[["price", "(all)"]].round(0), sep="\n")
print(lmm.likelihood_ratio_test(mixed, walls, data).round(4))

# %% [markdown]
"""
With the wall, the log likelihood of the price is -12,485 instead of -13,331, and AIC and BIC are
lower, too. The variance of the walls is small (0.025 beside 0.376 of the cells), but the test is
certain of it, as it is for all thirteen features. These are likelihoods by REML. They may be
compared, because both models have the same fixed effects, the intercepts. A variance cannot be
below 0, so p-values are those of a mixture of chi-squares (Stram & Lee 1994). "(all)" takes the
features as independent of each other. Those of a house are not, so read the features one by one.

## With the latent variables

Now the full model. The noise of a feature is what neither the cell nor the latent variables
explain.
"""

# %%
model = lmm.LMMVAE(2, "(1 | cell)", hidden_units=(200, 100), seed=0)
model.adapt(data)
model.compile(optimizer="adam")
model.fit(data, epochs=2 if FAST else 15, batch_size=256, verbose=0)
for name, fitted in (("mixed model", mixed), ("LMMVAE", model)):
    print(f"{name:12s}", fitted.variance_components()[["price", "beds"]].round(3).to_dict())
for include in (True, False):
    error = lmm.metrics.mse(data["x"][:, 0], model.reconstruct(data, include)[:, 0])
    print(f"log price, include_effects={include}: MSE {error:.2f}")

# %% [markdown]
"""
The latent variables now explain a part of the variance between cells and a part of the noise. For
the log price the two fall from 0.43 and 0.15 to 0.29 and 0.09, and for beds from 0.12 and 0.42 to
0.04 and 0.14. The variance components of the two models answer different questions, so do not
compare an ICC of lme4 with one of LMMVAE. `include_effects=False` is the prediction for the
average cell. Its error is 0.42, and the error with the effects is 0.08. These are training rows;
the cross-validation below has others.

## scikit-learn: a transformer

`LMMVAETransformer` takes the data frame, including the column of the group, and returns the
latent means. It can be cloned, pickled and used in a grid search. `score` is a lower bound of the
log density per row, so higher is better.
"""

# %%
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sample = frame.head(300 if FAST else 6000)
transformer = lmm.LMMVAETransformer(
    2,
    "(1 | cell)",
    features=features,
    hidden_units=(64, 32),
    epochs=1 if FAST else 10,
    random_state=0,
)
print(transformer.set_output(transform="pandas").fit_transform(sample).head(2).round(2))

# %% [markdown]
"""
## Which split answers your question?

`KFold` leaves out rows. The model mostly knows their cells. `GroupKFold` leaves out whole cells,
and so tests the model on groups that it has never seen. The search below does both with a plain
VAE and two LMMVAEs. `latent_epochs` is the number of epochs in which the networks train before
the effects are fitted. Differences between cells can be explained by the latent or by the
effects. The one that is fitted first takes most of them.
"""

# %%
grid = [
    {"random_effects": [None]},
    {"random_effects": ["(1 | cell)"], "latent_epochs": [0, 3]},
]
splits = {"KFold": KFold(3, shuffle=True, random_state=0), "GroupKFold": GroupKFold(3)}
if FAST:
    grid, splits = [{**grid[1], "latent_epochs": [1]}], {"GroupKFold": GroupKFold(2)}
for name, split in splits.items():
    groups = sample["cell"] if name == "GroupKFold" else None
    search = GridSearchCV(transformer, grid, cv=split, refit=False).fit(sample, groups=groups)
    for parameters, score in zip(
        search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
    ):
        print(f"{name:10s} {score:7.2f} {parameters}")

# %% [markdown]
"""
If rows are left out, LMMVAE is better: -12.8 against -14.2 of the plain VAE, with either order.
If cells are left out, it is worse: -16.9, or -16.3 with `latent_epochs=3`. The plain VAE again
has -14.3, because it does not use the cells. The latent of LMMVAE does not contain the cell, so
it cannot tell what an unknown cell is like. Choose the split by the purpose of the model, and let
the split choose the parameters.

## A pipeline

Here the latents are the input of a classifier, which predicts the material of the wall (seven
kinds). The classifier gets only the two latents, without the random effects.
"""

# %%
contestants = {
    "LMMVAE": make_pipeline(transformer, LogisticRegression(max_iter=500)),
    "PCA": make_pipeline(StandardScaler(), PCA(2), LogisticRegression(max_iter=500)),
}
split = KFold(2 if FAST else 3, shuffle=True, random_state=0)
for name, pipeline in contestants.items():
    columns = [*features, "cell"] if name == "LMMVAE" else features
    result = cross_validate(pipeline, sample[columns], sample["wall"], cv=split)
    print(f"{name:6s} accuracy {result['test_score'].mean():.2f}")

# %% [markdown]
"""
PCA is better, 0.54 against 0.50. Always predicting the most frequent wall has an accuracy of
0.43. LMMVAE loses because its latents do not contain the cell, and houses of a cell tend to have
the same wall. (A classifier with only the cell's mean year of construction reaches 0.52.) If the
label depends on the group, use latents that contain the group, from PCA or a plain VAE. If the
group is a nuisance, such as a batch or a camera, use LMMVAE, which removes it.

## Next

- `repeated_measures.py`: `(1 + t | patient)` and forecasts.
- `space.py`: `gp(easting, northing)` instead of square kilometres.
- `your_own_encoder_and_term.py`: a term that no formula has.
"""
