"""A low-rank root of the RBF kernel matrix, exact to a stated precision."""

import numpy as np

from keras_lmmvae.simulation.draws import FloatArray

__all__ = ["rbf_kernel", "rbf_root"]


def rbf_kernel(
    coordinates: FloatArray, others: FloatArray, squared_length_scale: float
) -> FloatArray:
    """RBF kernel: exp(-distance**2 / (2 * squared_length_scale)).

    Args:
        coordinates: Float array `(a, 2)`.
        others: Float array `(b, 2)`.
        squared_length_scale: Positive float, in squared units of the coordinates.

    Returns:
        matrix: Float64 array `(a, b)`.
    """
    difference = coordinates[:, None, :] - others[None, :, :]  # (a, b, 2)
    matrix: FloatArray = np.exp(-0.5 * np.square(difference).sum(-1) / squared_length_scale)
    return matrix


def rbf_root(
    coordinates: FloatArray, squared_length_scale: float, *, tolerance: float = 1e-12
) -> FloatArray:
    """Root A of the RBF kernel matrix by pivoted Cholesky: |K - A @ A'| <= tolerance everywhere.

    Each step adds the column of the location that is explained least. What is left, K - A @ A',
    is positive semi-definite, so no entry of it is larger than the largest on its diagonal, which
    is known at each step; the steps end when that is at most `tolerance`. A @ Normal(0, I_m) is
    then a draw of the Gaussian process, each value short of at most `tolerance` of its variance 1.

    The rank `m` follows the smoothness of the kernel and hardly the number of locations: about
    180 on [-1, 1]**2 at squared length scale 0.3 with the default tolerance, 50 at 3, 2500 at
    0.01 (10 seconds for 10,000 locations; the first two take less than one). Cost: O(L * m**2)
    time, O(L * m) memory; shorter length scales lead to m = L, the dense Cholesky.

    Args:
        coordinates: Float array `(L, 2)`; repeated locations are allowed.
        squared_length_scale: Positive float, in squared units of the coordinates.
        tolerance: Positive float, largest error of a kernel value; rounding alone makes about
            1e-14. Defaults to 1e-12.

    Returns:
        root: Float64 array `(L, m)`, `1 <= m <= L`.
    """
    num_locations = len(coordinates)
    root = np.empty((num_locations, min(num_locations, 64)))
    left = np.ones(num_locations)  # diagonal of K - A @ A'
    rank = 0
    while rank < num_locations and left.max() > tolerance:
        if rank == root.shape[1]:
            root = np.concatenate([root, np.empty_like(root)], axis=1)[:, :num_locations]
        pivot = int(left.argmax())
        column = rbf_kernel(coordinates, coordinates[pivot : pivot + 1], squared_length_scale)[:, 0]
        column -= root[:, :rank] @ root[pivot, :rank]
        column /= np.sqrt(left[pivot])
        root[:, rank] = column
        left -= np.square(column)
        left[pivot] = 0.0
        rank += 1
    return np.ascontiguousarray(root[:, :rank])
