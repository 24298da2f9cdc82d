"""Variance components of crossed or nested random intercepts, by the method of moments."""

from collections.abc import Sequence

import numpy as np
from scipy import optimize, sparse

from keras_lmmvae.baselines.base import FloatArray

__all__ = ["variance_components"]


def variance_components(
    designs: Sequence[sparse.csr_array], x: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Estimates the variance of each factor and of the noise, separately for each feature.

        x = mean + sum{ Z_k @ b_k : k=1...K } + e,  Var(b_k) = v_k * I,  Var(e) = v_0 * I
        E[x' M P_j M x] = sum{ v_k * trace(M P_j M Z_k Z_k') : k=0...K },  Z_0 = I

    M = I - 1 1' / n centres, P_k projects on the level means of factor k, and P_0 = I. These are
    K + 1 linear equations for the variances. They hold for crossed and for nested factors and are
    solved by non-negative least squares. With one factor the solution is the ANOVA estimate.

    Args:
        designs: Indicator matrices Z_k `(n, q_k)`, one per factor. Rows may be empty.
        x: Float64 array `(n, p)`.

    Returns:
        effect_variance: Float64 array `(K, p)`, at least 0.
        noise_variance: Float64 array `(p,)`, at least 0.
    """
    centred = x - x.mean(axis=0)
    totals = np.square(centred).sum(axis=0)  # (p,)
    moments = [totals]
    for design in designs:
        sums, sizes = design.T @ centred, design.sum(axis=0)  # (q, p), (q,)
        moments.append((np.square(sums) / np.maximum(sizes, 1)[:, None]).sum(axis=0))
    matrix = np.array([_traces(projection, designs) for projection in (None, *designs)])
    scale = matrix[:, -1]  # Division by trace(M P_j M) makes a mean square of each equation.
    matrix = matrix / scale[:, None]
    targets = np.stack(moments) / scale[:, None]  # (K + 1, p)
    variances = np.stack([optimize.nnls(matrix, target)[0] for target in targets.T], axis=1)
    return variances[:-1], variances[-1]


def _traces(
    projection: sparse.csr_array | None, designs: Sequence[sparse.csr_array]
) -> list[float]:
    """Returns trace(M P M Z_k Z_k') for each factor, then trace(M P M) for the noise.

    `projection` is the indicator matrix of the factor of P. `None` means P = I. The traces follow
    from M P M = P - (1 a' + a 1') / n + 1 1' * sum(a) / n**2 with a = P 1.
    """
    n = designs[0].shape[0]
    ones = np.ones(n)
    if projection is None:
        image, trace = ones, float(n)
    else:
        sizes = projection.sum(axis=0)  # (q,)
        image, trace = projection @ np.ones(projection.shape[1]), float((sizes > 0).sum())
    mean = image.sum() / n
    traces = []
    for design in designs:
        if projection is None:
            inside = design.sum()
        else:
            counts = (projection.T @ design).multiply(1.0 / np.maximum(sizes, 1)[:, None])
            inside = counts.multiply(projection.T @ design).sum()
        sums, image_sums = design.T @ ones, design.T @ image
        traces.append(float(inside - 2 * sums @ image_sums / n + mean * sums @ sums / n))
    return [*traces, float(trace - 2 * mean + mean)]
