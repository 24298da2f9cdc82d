"""Draws docs/houses.png, the picture of the README, with the model of its ten lines.

python docs/houses_picture.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from matplotlib import pyplot

import keras_lmmvae as lmm

FOLDER = Path(__file__).parent
FEATURE = "price"
KILOMETRES = 1000.0


def ten_lines() -> dict[str, Any]:
    """Runs the first block of Python in the README, and returns what it made."""
    text = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    if block is None:
        raise ValueError("The README has no block of Python.")
    made: dict[str, Any] = {}
    exec(compile(block.group(1), "README.md", "exec"), made)  # noqa: S102 - our own text
    return made


def main() -> None:
    """Surface of the price, how sure it is, and what explains each feature."""
    made = ten_lines()
    model, data = made["model"], made["data"]
    figure = pyplot.figure(figsize=(13.0, 7.2), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.0, 1.05))
    effect, deviation = upper.subplots(1, 2)
    lmm.plots.plot_effects_map(
        model, "easting_northing", data, FEATURE, scale=KILOMETRES, ax=effect,
        label="effect of the place on log(price)",
    )  # fmt: skip
    lmm.plots.plot_effects_map(
        model, "easting_northing", data, FEATURE, scale=KILOMETRES, std=True, ax=deviation,
        label="its standard deviation",
    )  # fmt: skip
    for axes in (effect, deviation):
        axes.set(xlabel="easting, km", ylabel="northing, km")
    share, latent = lower.subplots(1, 2, width_ratios=(1.2, 1.0))
    lmm.plots.plot_variance_partition(model, data, ax=share)
    lmm.plots.plot_latent(model, data, made["df"]["yrbuilt"], label="year built", ax=latent)
    figure.savefig(FOLDER / "houses.png", dpi=90)


if __name__ == "__main__":
    main()
