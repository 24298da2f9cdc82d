"""BLUP of additive random effects at known variances, to a stated precision."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy import sparse

from keras_lmmvae.simulation.simulation import FloatArray, IntArray

__all__ = ["EffectBlock", "blup", "level_design"]

Matrix: TypeAlias = sparse.csr_array | np.ndarray


def level_design(codes: IntArray, num_levels: int, basis: FloatArray | None = None) -> Matrix:
    """Sparse design matrix `(n, L * M)` of levels times a basis: row i is e[codes[i]] (x) basis[i].

    Args:
        codes: Int array `(n,)` below `num_levels`. A row with a negative code is empty.
        num_levels: Positive int, number of levels `L`.
        basis: Optional float array `(n, M)`. Defaults to ones with `M` = 1.
    """
    terms = np.ones((len(codes), 1)) if basis is None else np.asarray(basis, np.float64)
    known = np.asarray(codes) >= 0
    basis_size = terms.shape[1]
    columns = np.asarray(codes)[known, None] * basis_size + np.arange(basis_size)
    ends = np.concatenate([[0], np.cumsum(known) * basis_size])
    shape = (len(codes), num_levels * basis_size)
    return sparse.csr_array((terms[known].ravel(), columns.ravel(), ends), shape=shape)


@dataclass(frozen=True)
class EffectBlock:
    """One random effect: its design matrix and its prior.

        contribution[:, f] = design @ b[:, f],   b[level, :, f] ~ Normal(0, inv(precision[f]))

    Attributes:
        design: Sparse or dense matrix `(n, L * M)`, see `level_design`.
        precision: Float64 array `(p, M, M)`, inverse prior covariance of the coefficients of a
            level, by feature. It must be finite, so a variance of 0 needs a floor.
    """

    design: Matrix
    precision: FloatArray

    @property
    def basis_size(self) -> int:
        """Number of coefficients `M` per level."""
        return int(self.precision.shape[-1])

    @property
    def num_levels(self) -> int:
        """Number of levels `L`."""
        return int(self.design.shape[1]) // self.basis_size


class _NormalEquations:
    """The matrix of Henderson's equations (F'F + noise_variance * precision) b = F'r.

    All features are solved at the same time. b is a list with one array `(L, M, p)` per block. The
    preconditioner is the inverse of the diagonal blocks, one `(M, M)` per level and feature.
    """

    def __init__(self, blocks: Sequence[EffectBlock], noise_variance: FloatArray) -> None:
        self.gram = [[a.design.T @ b.design for b in blocks] for a in blocks]
        self.ridge = [  # (M, M, p)
            np.moveaxis(block.precision * noise_variance[:, None, None], 0, -1) for block in blocks
        ]
        self.inverse = []  # (L, M, M, p)
        for index, block in enumerate(blocks):
            diagonal = _diagonal_blocks(self.gram[index][index], block.num_levels, block.basis_size)
            full = diagonal[..., None] + self.ridge[index]  # (L, M, M, p)
            inverse = np.linalg.inv(np.moveaxis(full, -1, 1))  # (L, p, M, M)
            self.inverse.append(np.ascontiguousarray(np.moveaxis(inverse, 1, -1)))

    def multiply(self, b: list[FloatArray]) -> list[FloatArray]:
        """Returns the matrix times b."""
        flat = [part.reshape(-1, part.shape[-1]) for part in b]
        images = []
        for row, own, ridge in zip(self.gram, b, self.ridge, strict=True):
            image = np.einsum("acf,lcf->laf", ridge, own)
            for gram, part in zip(row, flat, strict=True):
                image += (gram @ part).reshape(own.shape)
            images.append(image)
        return images

    def precondition(self, b: list[FloatArray]) -> list[FloatArray]:
        """Returns the inverse of the block diagonal times b."""
        return [
            np.einsum("lacf,lcf->laf", inverse, part)
            for inverse, part in zip(self.inverse, b, strict=True)
        ]


def blup(
    blocks: Sequence[EffectBlock],
    residual: FloatArray,
    noise_variance: float | FloatArray,
    *,
    tolerance: float = 1e-9,
    max_iterations: int = 2000,
) -> list[FloatArray]:
    """Predicts all random effects jointly, given the variances.

        residual = sum{ design_k @ b_k : k=1...K } + e,   e[i, f] ~ Normal(0, noise_variance[f])
        b = inv(F'F + noise_variance * precision) @ F' @ residual,   F = [design_1, ..., design_K]

    The solver is conjugate gradients, preconditioned by the inverse of each level's block. It
    needs one step for a single effect, tens of steps for crossed factors and hundreds for nearly
    nested ones. Backfitting would need a thousand sweeps there. SciPy's `cg` solves one right-hand
    side; this one solves all features at the same time.

    Args:
        blocks: The random effects.
        residual: Float array `(n, p)`, the rows less their known fixed part. No NaN.
        noise_variance: Positive float, or float array `(p,)`.
        tolerance: Positive float. The solver stops when the preconditioned residual of each
            feature is at most `tolerance` times the initial one.
        max_iterations: Positive int, maximum number of steps. A RuntimeWarning is given if the
            tolerance is not reached by then.

    Returns:
        List of float64 arrays `(L, M, p)`, one per block. Levels without rows get 0.
    """
    target = np.asarray(residual, np.float64)
    noise = np.broadcast_to(np.asarray(noise_variance, np.float64), target.shape[1:])  # (p,)
    equations = _NormalEquations(blocks, noise)
    left = [  # residual of the equations, at first F'r
        (block.design.T @ target).reshape(block.num_levels, block.basis_size, -1)
        for block in blocks
    ]
    effects = [np.zeros_like(part) for part in left]
    scaled = equations.precondition(left)
    direction = scaled
    size = start = _dot(left, scaled)  # (p,)
    for _ in range(max_iterations):
        if np.all(size <= tolerance**2 * start):
            return effects
        image = equations.multiply(direction)
        step = _divide(size, _dot(direction, image))
        effects = [b + step * part for b, part in zip(effects, direction, strict=True)]
        left = [b - step * part for b, part in zip(left, image, strict=True)]
        scaled = equations.precondition(left)
        previous, size = size, _dot(left, scaled)
        ratio = _divide(size, previous)
        direction = [b + ratio * part for b, part in zip(scaled, direction, strict=True)]
    error = float(np.sqrt(_divide(size, start).max()))
    warnings.warn(
        f"The random effects are not exact: after {max_iterations} steps the relative residual of "
        f"the equations is {error:.1e}, above {tolerance:.1e}.",
        RuntimeWarning,
        stacklevel=2,
    )
    return effects


def _diagonal_blocks(gram: Matrix, num_levels: int, basis_size: int) -> FloatArray:
    """Returns the `(L, M, M)` diagonal blocks of a Gram matrix."""
    if basis_size == 1:
        return np.asarray(gram.diagonal()).reshape(-1, 1, 1)
    index = np.arange(num_levels * basis_size).reshape(num_levels, basis_size)
    rows, columns = np.broadcast_arrays(index[:, :, None], index[:, None, :])
    entries = gram[rows.ravel(), columns.ravel()]
    dense = entries.toarray() if sparse.issparse(entries) else np.asarray(entries)
    return dense.reshape(num_levels, basis_size, basis_size)


def _dot(a: list[FloatArray], b: list[FloatArray]) -> FloatArray:
    """Returns the inner product per feature, `(p,)`."""
    parts = [np.einsum("laf,laf->f", x, y) for x, y in zip(a, b, strict=True)]
    return np.asarray(np.sum(parts, axis=0))


def _divide(a: FloatArray, b: FloatArray) -> FloatArray:
    """Returns a / b, or 0 where b is 0: a solved feature takes no further step."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)
