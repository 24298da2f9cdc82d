"""Plot of the variance partition of every feature."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from keras_lmmvae.plots.drawing import COLOURS, MOST_NAMED, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from keras_lmmvae.lmmvae import LMMVAE

__all__ = ["plot_variance_partition"]

_NOISE = "#D0D0D0"


def plot_variance_partition(model: LMMVAE, data: Any = None, *, ax: Axes | None = None) -> Axes:
    """Plots `model.variance_partition(data)` as stacked bars, one for every feature.

    Args:
        model: A fitted model.
        data: Optional rows for the variances; see `variance_partition`.
        ax: Axes to draw on. Defaults to new axes.

    Returns:
        The axes. Up to 40 features are named.

    Raises:
        ValueError: In the cases of `variance_partition`.

    Example:
        >>> ax = lmm.plots.plot_variance_partition(model)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['latent, f(u)', 'store', 'patient', 'place', 'noise']
    """
    shares = model.variance_partition(data)
    size = shares.shape[1]
    is_named = size <= MOST_NAMED
    ax = new_axes(ax, (6.4, max(2.4, 1.2 + 0.26 * size) if is_named else 5.2))
    places, left = np.arange(size)[::-1], np.zeros(size)
    colours = dict(zip(shares.index[:-1], COLOURS * len(shares), strict=False)) | {"noise": _NOISE}
    for name, values in shares.iterrows():
        title = "latent, f(u)" if name == "latent" else str(name)
        ax.barh(
            places, values, left=left, height=0.8 if is_named else 1.0, color=colours[name],
            label=title,
        )  # fmt: skip
        left += values.to_numpy()
    if is_named:
        ax.set_yticks(places, [str(name) for name in shares.columns])
    else:
        ax.set(yticks=[], ylabel=f"{size:,} features")
    ax.set(xlim=(0.0, 1.0), ylim=(-0.6, size - 0.4), xlabel="share of the variance")
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3)
    return ax
