"""Demo: Lucas County houses, from data frame to a served request.

    python examples/houses_demo.py [--output demo_output] [--fast]

Fits PCA, a plain VAE, group means with PCA, and LMMVAE with a spatial surface and an intercept per
year of sale; compares them on held-out houses and on held-out square kilometres; draws what
was learned; saves, exports and serves the model.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

import keras_lmmvae as lmm
from keras_lmmvae import plots
from keras_lmmvae.baselines.schedule import cosine_adam
from keras_lmmvae.datasets import HOUSES_FEATURES, houses_features, load_houses
from keras_lmmvae.export.verification import served_answers
from keras_lmmvae.simulation import split, take
from keras_lmmvae.simulation.splits import SplitKind

__all__ = [
    "compare",
    "draw",
    "fit_method",
    "fit_vae",
    "load_data",
    "main",
    "print_table",
    "run",
    "serve",
    "standardised_split",
]

LATENT_DIM = 2
HIDDEN_UNITS = (200, 100)
BATCH_SIZE = 128
LEARNING_RATE = 2e-3
# With few features the KL dominates: at weight 1 the latents shrink towards 0.
KL_WEIGHT = 0.1
SPACE, YEAR = "easting_northing", "syear"
METHODS = ("PCA", "group means + PCA", "plain VAE", "LMMVAE")
SPLITS: dict[SplitKind, str] = {"rows": "held-out houses", "groups": "held-out 1-km cells"}


def load_data(num_rows: int | None) -> dict[str, np.ndarray]:
    """Features and effect columns of the houses, all of them or a random part."""
    houses = load_houses()
    if num_rows is not None:
        houses = houses.sample(num_rows, random_state=0)
    columns = ("easting", "northing", "syear", "cell")
    data = {name: houses[name].to_numpy() for name in columns}
    return {"x": houses_features(houses).to_numpy(np.float64), **data}


def standardised_split(
    data: dict[str, np.ndarray], kind: SplitKind
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Training and test rows, features in standard deviations of the training rows."""
    train, test = split(data, kind, on="cell" if kind == "groups" else None, seed=0)
    mean, scale = data["x"][train].mean(axis=0), data["x"][train].std(axis=0)
    scaled = {**data, "x": ((data["x"] - mean) / scale).astype(np.float32)}
    return take(scaled, train), take(scaled, test)


def fit_vae(
    random_effects: list[Any], rows: dict[str, Any], held_out: dict[str, Any], epochs: int
) -> tuple[lmm.LMMVAE, dict[str, list[float]]]:
    """A fitted LMMVAE, or plain VAE without random effects, with its history."""
    model = lmm.LMMVAE(
        LATENT_DIM, random_effects, hidden_units=HIDDEN_UNITS, kl_weight=KL_WEIGHT, seed=0
    )
    model.adapt(rows, feature_names=HOUSES_FEATURES)
    model.compile(optimizer=cosine_adam(LEARNING_RATE, len(rows["x"]), BATCH_SIZE, epochs))
    history = model.fit(
        rows, epochs=epochs, batch_size=BATCH_SIZE, validation_data=held_out, verbose=0
    )
    return model, history.history


def fit_method(
    name: str, rows: dict[str, Any], held_out: dict[str, Any], epochs: int, num_inducing: int
) -> tuple[Any, dict[str, list[float]]]:
    """A fitted model of the demo, with its history if it is trained by epochs."""
    if name == "PCA":
        return lmm.baselines.PCABaseline(LATENT_DIM).fit(rows), {}
    if name == "group means + PCA":
        return lmm.baselines.BLUPPCA(LATENT_DIM, groups=["cell", "syear"]).fit(rows), {}
    coordinates = ("easting", "northing")
    surface = lmm.SpatialEffect(coordinates, kernel="matern12", num_inducing=num_inducing)
    effects = [surface, lmm.RandomIntercept("syear")] if name == "LMMVAE" else []
    return fit_vae(effects, rows, held_out, epochs)


def compare(
    data: dict[str, np.ndarray], epochs: int, num_inducing: int, console: Console
) -> tuple[pd.DataFrame, lmm.LMMVAE, dict[str, list[float]], dict[str, Any]]:
    """Test errors of all methods on both splits, and the LMMVAE of the split by rows."""
    results: list[dict[str, Any]] = []
    kept: tuple[Any, ...] = ()
    for kind, title in SPLITS.items():
        rows, held_out = standardised_split(data, kind)
        console.print(f"\n{title}: {len(rows['x']):,} houses to learn from", highlight=False)
        for name in METHODS:
            start = time.perf_counter()
            with console.status(f"fitting {name} ..."):
                fitted, history = fit_method(name, rows, held_out, epochs, num_inducing)
            seconds = time.perf_counter() - start
            error = lmm.metrics.mse(held_out["x"], fitted.reconstruct(held_out))
            results.append({"split": title, "method": name, "mse": error, "seconds": seconds})
            console.print(f"  {name:18s} test MSE {error:.3f}  ({seconds:.0f} s)", highlight=False)
            if name == "LMMVAE" and kind == "rows":
                kept = (fitted, history, held_out)
    return pd.DataFrame(results), *kept


def print_table(results: pd.DataFrame, console: Console) -> None:
    """The result table: a row per method, a column per split."""
    table = Table(title="Mean squared error of held-out houses, 13 standardised features, d = 2")
    table.add_column("method")
    for title in SPLITS.values():
        table.add_column(title, justify="right")
    wide = results.pivot(index="method", columns="split", values="mse")
    for method in results["method"].unique():
        cells = [
            f"[bold]{wide.loc[method, title]:.3f}[/bold]"
            if wide.loc[method, title] == wide[title].min()
            else f"{wide.loc[method, title]:.3f}"
            for title in SPLITS.values()
        ]
        table.add_row(method, *cells)
    console.print()
    console.print(table)


def draw(
    model: lmm.LMMVAE, history: dict[str, list[float]], rows: dict[str, Any], folder: Path
) -> None:
    """Writes the three pictures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12.5, 4.4), layout="constrained")
    for ax, std in zip(axes, (False, True), strict=True):
        label = "standard deviation" if std else "effect, in standard deviations of log price"
        plots.plot_effects_map(
            model, SPACE, rows, "price", label=label, std=std, scale=1000.0, ax=ax
        )
        ax.set(xlabel="easting, km", ylabel="northing, km")
    axes[0].set_title("What the place does to the price of a house")
    axes[1].set_title("How sure that is")
    figure.savefig(folder / "effects_map.png", dpi=120)
    figure, ax = pyplot.subplots(figsize=(6.4, 5.2), layout="constrained")
    plots.plot_latent(model, rows, "price", label="log price, standardised", ax=ax)
    ax.set_title("Houses in the latent plane, place and year taken out")
    figure.savefig(folder / "latent.png", dpi=120)
    figure, ax = pyplot.subplots(figsize=(6.4, 5.2), layout="constrained")
    plots.plot_training(history, ax=ax)
    ax.set_title("Training of LMMVAE")
    figure.savefig(folder / "training.png", dpi=120)
    pyplot.close("all")


def serve(model: lmm.LMMVAE, rows: dict[str, Any], folder: Path, console: Console) -> None:
    """Exports the model and answers a request in a process without this package."""
    export = folder / "models" / "houses" / "1"
    model.export(export)
    request = {name: rows[name][:3].copy() for name in ("x", "easting", "northing", "syear")}
    request["syear"][1] = 2030
    request["easting"][2] = np.nan
    inputs = {
        name: np.asarray(value, np.int64 if name == "syear" else np.float32).tolist()
        for name, value in request.items()
    }
    # As TensorFlow Serving's REST interface takes it; NaN stands there as it does in JavaScript.
    body = {"signature_name": "serving_default", "inputs": inputs}
    (folder / "request.json").write_text(json.dumps(body) + "\n", encoding="utf-8")
    (answer,) = served_answers(export, [{"signature": "serving_default", "inputs": inputs}])
    served = np.array(answer["reconstruction"])
    expected = model.predict(request, verbose=0)
    table = Table(title="One request, answered by TensorFlow in a process without this package")
    for name in ("house", "year known", "place known", "served log price", "predict"):
        table.add_column(name, justify="right")
    price = HOUSES_FEATURES.index("price")
    names = ("as it is", "year 2030", "place missing")
    for number, name in enumerate(names):
        table.add_row(
            name,
            str(answer[f"known_{YEAR}"][number]),
            str(answer[f"known_{SPACE}"][number]),
            f"{served[number, price]:.4f}",
            f"{expected[number, price]:.4f}",
        )
    console.print()
    console.print(table)
    console.print(f"largest difference over all features: {np.abs(served - expected).max():.1e}")


def run(
    output: str | Path,
    *,
    epochs: int = 25,
    num_inducing: int = 256,
    num_rows: int | None = None,
    console: Console | None = None,
) -> pd.DataFrame:
    """Runs the demo and writes its files.

    Args:
        output: Folder for pictures, results, saved and exported model.
        epochs: Epochs of both autoencoders.
        num_inducing: Inducing points of the spatial effect.
        num_rows: Optional number of houses to use.
        console: Where to print; standard output by default.

    Returns:
        The results, a row per method and split.
    """
    console = console or Console()
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    data = load_data(num_rows)
    console.print(
        f"Lucas County, Ohio: {len(data['x']):,} houses sold 1993-1998, {len(HOUSES_FEATURES)} "
        "features each. Houses of one place resemble each other, and so do sales of one year: "
        "LMMVAE gives place and year random effects, and keeps its two latent dimensions for the "
        "house itself.",
        highlight=False,
    )
    results, model, history, held_out = compare(data, epochs, num_inducing, console)
    results.to_csv(folder / "results.csv", index=False, float_format="%.5g")
    print_table(results, console)
    components = model.variance_components(HOUSES_FEATURES)
    components.to_csv(folder / "variance_components.csv", float_format="%.5g")
    draw(model, history, held_out, folder)
    model.save(folder / "houses.keras")
    serve(model, held_out, folder, console)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    console.print(f"\nDone in {time.perf_counter() - start:.0f} s. Written:", highlight=False)
    for path in [*files, folder / "models" / "houses" / "1"]:
        console.print(f"  {path}", highlight=False, soft_wrap=True)
    return results


def main() -> None:
    """Command line of the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="demo_output", help="folder for the results")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--fast", action="store_true", help="few houses and epochs, to look around")
    options = parser.parse_args()
    if options.fast:
        run(options.output, epochs=3, num_inducing=64, num_rows=3000)
    else:
        run(options.output, epochs=options.epochs)


if __name__ == "__main__":
    main()
