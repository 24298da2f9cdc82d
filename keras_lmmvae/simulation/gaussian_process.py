"""A low-rank root of the RBF kernel matrix with a bound on its error."""

import numpy as np
from scipy.spatial.distance import cdist

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
    squared_distance = cdist(coordinates, others, "sqeuclidean")
    matrix: FloatArray = np.exp(-0.5 * squared_distance / squared_length_scale)
    return matrix


def rbf_root(
    coordinates: FloatArray, squared_length_scale: float, *, tolerance: float = 1e-12
) -> FloatArray:
    """Root A of the RBF kernel matrix K by pivoted Cholesky: |K - A @ A'| <= tolerance everywhere.

    LAPACK's pivoted Cholesky needs the dense K; this one computes a column of it at a time. Each
    step adds the column of the location with the largest residual variance. The residual
    K - A @ A' is positive semi-definite, so its largest entry lies on its diagonal. The algorithm
    stops when the diagonal is at most `tolerance`. A @ Normal(0, I_m) is then a draw of the
    Gaussian process. Each value has a variance between 1 - tolerance and 1.

    The rank `m` depends on the smoothness of the kernel and hardly on the number of locations. On
    [-1, 1]**2 with the default tolerance it is about 50 at squared length scale 3, 180 at 0.3 and
    2500 at 0.01. Those take less than a second for 10,000 locations, the last one 10 seconds.
    Cost: O(L * m**2) time, O(L * m) memory. At very short length scales m = L, as in the dense
    Cholesky.

    Args:
        coordinates: Float array `(L, 2)`; repeated locations are allowed.
        squared_length_scale: Positive float, in squared units of the coordinates.
        tolerance: Positive float, largest error of a kernel value. The rounding error is about
            1e-14. Defaults to 1e-12.

    Returns:
        root: Float64 array `(L, m)`, `1 <= m <= L`.
    """
    num_locations = len(coordinates)
    root = np.empty((num_locations, min(num_locations, 64)))
    left = np.ones(num_locations)  # diagonal of the residual K - A @ A'
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
