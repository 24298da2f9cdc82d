"""Share of a variance that lies between groups, and the share that chance gives."""

from dataclasses import dataclass

import numpy as np

__all__ = ["GroupShare", "group_share"]


@dataclass(frozen=True)
class GroupShare:
    """Intraclass correlations `(c,)`; mean and standard deviation over permuted rows."""

    share: np.ndarray
    chance: np.ndarray
    deviation: np.ndarray


def group_share(
    values: np.ndarray, groups: np.ndarray, seed: int, num_permutations: int = 50
) -> GroupShare | None:
    """Intraclass correlation of columns `(n, c)` with groups, by analysis of variance.

        share = (between - within) / (between + (n0 - 1) within)

    `between` and `within` are mean squares, and `n0` is the mean group size, lowered for unequal
    sizes. The share is 0 on average for random groups of any size, and 1 if the rows of a group
    are equal. Permutations of the rows show how far from 0 chance leads. Rows with a negative
    group are left out. The result is `None` without two groups and a group of two rows.

    Example:
        >>> import numpy as np
        >>> group_share(np.array([[0.0], [0.1], [1.0], [1.1]]), np.array([0, 0, 1, 1]), 0).share
        array([0.99...])

    References:
        - Searle, Casella & McCulloch (1992), Variance Components, section 3.6.
    """
    known = groups >= 0
    values, groups = values[known].astype(np.float64), groups[known]
    order = np.argsort(groups, kind="stable")
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    if len(sizes) < 2 or len(sizes) == len(groups):
        return None
    values = values - values.mean(axis=0)
    rng = np.random.default_rng(seed)
    permuted = [
        _intraclass(values[rng.permutation(len(values))], starts, sizes)
        for _ in range(num_permutations)
    ]
    share = _intraclass(values[order], starts, sizes)
    return GroupShare(share, np.mean(permuted, axis=0), np.std(permuted, axis=0))


def _intraclass(values: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Intraclass correlations of centred columns, rows sorted by group, `(c,)`."""
    rows, groups = len(values), len(sizes)
    sums = np.add.reduceat(values, starts, axis=0)
    between = (sums**2 / sizes[:, None]).sum(axis=0)
    within = np.maximum((values**2).sum(axis=0) - between, 0.0) / (rows - groups)
    between = between / (groups - 1)
    size = (rows - (sizes**2).sum() / rows) / (groups - 1)
    total = between + (size - 1.0) * within
    return np.divide(between - within, total, out=np.zeros_like(total), where=total > 0.0)
