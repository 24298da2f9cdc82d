"""Simulated rows with known random effects, one function for each correlation structure.

All draws are made in a fixed order, so that a seed gives the same simulation in every version.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from keras_lmmvae.validation import check_not_negative, check_positive, received

__all__ = [
    "FloatArray",
    "IntArray",
    "Order",
    "Simulation",
    "Structure",
    "draw_level_codes",
    "draw_signal",
    "rbf_kernel",
    "rbf_root",
    "simulate_categorical",
    "simulate_longitudinal",
    "simulate_spatial",
    "simulate_spatial_categorical",
    "term_correlation",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Order = Literal["nested", "crossed"]
Structure = Literal["categorical", "longitudinal", "spatial", "spatial_categorical"]

_COUNTS = ("n", "num_features", "latent_dim", "num_subjects", "num_locations", "cardinalities")
_POSITIVE = ("noise_variance", "squared_length_scale")
_NOT_NEGATIVE = ("effect_variance", "effect_variances")
_SEQUENCES = ("cardinalities", "effect_variances")


@dataclass(frozen=True, repr=False)
class Simulation:
    """Simulated rows with the signal, the random effects and the variances behind them.

        x[i] = signal[i] + sum{ contribution[name][i] : name in effects } + e[i]
        contribution[name][i] = sum{ basis[i, m] * effects[name][level[i], m] : m=1...M }
        e[i] ~ Normal(0, noise_variance * I_p)

    The basis is 1 (`M` = 1). Longitudinal data have the basis 1, t, t**2, ...

    Attributes:
        data: Dict with `x`, float32 `(n, p)`, and the effect columns, each `(n,)`.
        latent: Float64 array `(n, d)`, the latent variables u.
        signal: Float64 array `(n, p)`, the fixed part: f(u) plus the mean of each feature.
        effects: Dict of float64 arrays `(levels, M, p)`, the random effects, by the column that
            holds their levels (`group_0`, `subject`, `location`).
        contribution: Dict of float64 arrays `(n, p)`, the rows of Z @ B, by the same name.
        effect_variance: Dict of float64 arrays `(M, p)`, the true variances of the effects in
            squared units of the features, by the same name.
        noise_variance: Positive float, variance of e.
        structure: One of "categorical", "longitudinal", "spatial", "spatial_categorical".
        settings: Dict of the arguments of the simulation.
    """

    data: dict[str, np.ndarray]
    latent: FloatArray
    signal: FloatArray
    effects: dict[str, FloatArray]
    contribution: dict[str, FloatArray]
    effect_variance: dict[str, FloatArray]
    noise_variance: float
    structure: Structure
    settings: dict[str, Any]

    @property
    def num_rows(self) -> int:
        """Number of rows `n`."""
        return len(self.signal)

    @property
    def num_features(self) -> int:
        """Number of features `p`."""
        return int(self.signal.shape[1])

    @property
    def latent_dim(self) -> int:
        """Number of latent variables `d`."""
        return int(self.latent.shape[1])

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"Simulation({self.structure!r}, {arguments})"


def simulate_categorical(
    *,
    n: int = 100_000,
    num_features: int = 100,
    cardinalities: Sequence[int] = (1000, 3000, 5000),
    effect_variances: Sequence[float] = (0.3, 0.3, 0.3),
    latent_dim: int = 1,
    order: Order = "nested",
    noise_variance: float = 1.0,
    seed: int | None = None,
) -> Simulation:
    """Simulates rows with random intercepts of crossed or nested factors.

        x[i] = f(u[i]) + mean + sum{ B_k[code_k[i]] : k=1...K } + e[i]
        B_k ~ MatrixNormal(0, I_q, diag(effect_variance_k))
        effect_variance_k[j] = (Poisson(v_k) + 1) * min(v_k, 1)

    The defaults are those of the paper. Level sizes are unequal (`draw_level_codes`).

    Args:
        n: Positive int, number of rows.
        num_features: Positive int, number of features `p`.
        cardinalities: Positive ints, number of levels of each factor.
        effect_variances: Non-negative floats, nominal variance `v_k` of each factor.
        latent_dim: Positive int, number of latent variables `d`.
        order: "nested" or "crossed". "nested", as in the paper, sorts the levels of every factor
            along the rows, so that the factors are nearly nested. "crossed" puts the levels in
            random order.
        noise_variance: Positive float, variance of e.
        seed: Optional int. The same seed gives the same simulation.

    Returns:
        simulation: A `Simulation` with the int64 columns "group_0", "group_1", ...

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> simulation = simulate_categorical(
        ...     n=100, num_features=5, cardinalities=(10,), effect_variances=(1.0,), seed=1
        ... )
        >>> simulation.effects["group_0"].shape
        (10, 1, 5)

    References:
        - [Simchoni & Rosset, 2024](https://arxiv.org/abs/2412.16899)
    """
    return _simulate("categorical", locals(), _draw_factors)


def simulate_longitudinal(
    *,
    n: int = 100_000,
    num_features: int = 100,
    num_subjects: int = 1000,
    effect_variances: Sequence[float] = (0.3, 0.3, 0.3),
    correlation: float = 0.3,
    latent_dim: int = 1,
    noise_variance: float = 1.0,
    seed: int | None = None,
) -> Simulation:
    """Simulates rows with a random polynomial in time for each subject.

        x[i] = f(u[i]) + mean + sum{ t[i]**m * B[subject[i], m] : m=0...M-1 } + e[i]
        B[subject, :, j] ~ Normal(0, S R S),  S = diag(sqrt(effect_variances)),
        R = term_correlation(M, correlation),  t[i] ~ Uniform(0, 1)

    All features have the same variances.

    Args:
        n: Positive int, number of rows.
        num_features: Positive int, number of features `p`.
        num_subjects: Positive int, number of subjects `q`.
        effect_variances: Non-negative floats, variances of the intercept, the slope, the
            quadratic term, ... Their number is `M`.
        correlation: Float, correlation of the intercept with each slope. The slopes are
            uncorrelated.
        latent_dim: Positive int, number of latent variables `d`.
        noise_variance: Positive float, variance of e.
        seed: Optional int. The same seed gives the same simulation.

    Returns:
        simulation: A `Simulation` with the columns "subject", int64, and "t", float64. The rows
            are sorted by subject, not by time.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> simulation = simulate_longitudinal(n=100, num_features=5, num_subjects=10, seed=1)
        >>> simulation.effects["subject"].shape
        (10, 3, 5)

    References:
        - [Simchoni & Rosset, 2024](https://arxiv.org/abs/2412.16899)
    """
    return _simulate("longitudinal", locals(), _draw_polynomials)


def simulate_spatial(
    *,
    n: int = 100_000,
    num_features: int = 100,
    num_locations: int = 10_000,
    effect_variance: float = 3.0,
    squared_length_scale: float = 0.3,
    latent_dim: int = 1,
    noise_variance: float = 1.0,
    seed: int | None = None,
) -> Simulation:
    """Simulates rows with a Gaussian process over their locations.

        x[i] = f(u[i]) + mean + B[location[i]] + e[i]
        B ~ MatrixNormal(0, K, diag(variance))
        K[a, b] = exp(-distance(a, b)**2 / (2 * squared_length_scale))
        variance[j] = (Poisson(v) + 1) * min(v, 1)

    Locations are uniform on [-1, 1]**2. Their numbers of rows are unequal (`draw_level_codes`).
    The covariance of the draw differs from K by at most 1e-12 (`rbf_root`). Drawing 10,000
    locations takes less than a second.

    Args:
        n: Positive int, number of rows.
        num_features: Positive int, number of features `p`.
        num_locations: Positive int, number of locations.
        effect_variance: Non-negative float, nominal variance `v`.
        squared_length_scale: Positive float, the kernel's squared length scale.
        latent_dim: Positive int, number of latent variables `d`.
        noise_variance: Positive float, variance of e.
        seed: Optional int. The same seed gives the same simulation.

    Returns:
        simulation: A `Simulation` with the columns "lon" and "lat", float64, and "location",
            int64, the number of the location, which `split` can use.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> simulation = simulate_spatial(n=100, num_features=5, num_locations=20, seed=1)
        >>> simulation.effects["location"].shape
        (20, 1, 5)

    References:
        - [Simchoni & Rosset, 2024](https://arxiv.org/abs/2412.16899)
    """
    return _simulate("spatial", locals(), _draw_field)


def simulate_spatial_categorical(
    *,
    n: int = 100_000,
    num_features: int = 100,
    num_locations: int = 10_000,
    effect_variance: float = 3.0,
    squared_length_scale: float = 0.3,
    cardinalities: Sequence[int] = (1000,),
    effect_variances: Sequence[float] = (0.3,),
    order: Order = "nested",
    latent_dim: int = 1,
    noise_variance: float = 1.0,
    seed: int | None = None,
) -> Simulation:
    """Simulates rows with a Gaussian process over locations and random intercepts of factors.

        x[i] = f(u[i]) + mean + B[location[i]] + sum{ B_k[code_k[i]] : k=1...K } + e[i]

    B is drawn as in `simulate_spatial`, B_k as in `simulate_categorical`. The locations are sorted
    along the rows. With order "nested" a level of a factor therefore has a few locations with
    successive numbers, which lie anywhere in the plane.

    Args:
        n: Positive int, number of rows.
        num_features: Positive int, number of features `p`.
        num_locations: Positive int, number of locations.
        effect_variance: Non-negative float, nominal variance of the Gaussian process.
        squared_length_scale: Positive float, the kernel's squared length scale.
        cardinalities: Positive ints, number of levels of each factor.
        effect_variances: Non-negative floats, nominal variance of each factor.
        order: "nested" (levels sorted along the rows) or "crossed" (levels in random order).
        latent_dim: Positive int, number of latent variables `d`.
        noise_variance: Positive float, variance of e.
        seed: Optional int. The same seed gives the same simulation.

    Returns:
        simulation: A `Simulation` with the columns "lon", "lat", "location", "group_0", ...

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> simulation = simulate_spatial_categorical(
        ...     n=100, num_features=5, num_locations=20, cardinalities=(10,), seed=1
        ... )
        >>> sorted(simulation.effects)
        ['group_0', 'location']

    References:
        - [Simchoni & Rosset, 2024](https://arxiv.org/abs/2412.16899)
    """
    return _simulate("spatial_categorical", locals(), _draw_field, _draw_factors)


@dataclass(frozen=True)
class _Effect:
    """One random effect: the columns that it depends on and the truth, as in `Simulation`."""

    name: str
    columns: dict[str, np.ndarray]
    effects: FloatArray
    contribution: FloatArray
    variance: FloatArray


def _simulate(
    structure: Structure,
    arguments: dict[str, Any],
    *laws: Callable[[np.random.Generator, dict[str, Any]], Iterator[_Effect]],
) -> Simulation:
    """Draws latents, the effects of every law and noise, and adds them up to `x`."""
    settings = _checked(arguments)
    rng = np.random.default_rng(settings["seed"])
    sizes = (settings[name] for name in ("n", "num_features", "latent_dim"))
    latent, signal = draw_signal(rng, *sizes)
    effects = [effect for law in laws for effect in law(rng, settings)]
    noise_variance = float(settings["noise_variance"])
    x = rng.standard_normal(signal.shape) * np.sqrt(noise_variance)  # (n, p)
    x += signal
    for effect in effects:
        x += effect.contribution
    columns = {name: column for effect in effects for name, column in effect.columns.items()}
    return Simulation(
        data={"x": x.astype(np.float32), **columns},
        latent=latent,
        signal=signal,
        effects={effect.name: effect.effects for effect in effects},
        contribution={effect.name: effect.contribution for effect in effects},
        effect_variance={effect.name: effect.variance for effect in effects},
        noise_variance=noise_variance,
        structure=structure,
        settings=settings,
    )


def _checked(arguments: dict[str, Any]) -> dict[str, Any]:
    """Checks the arguments of a simulation and returns them, with sequences as tuples."""
    settings: dict[str, Any] = {
        name: tuple(value) if name in _SEQUENCES else value for name, value in arguments.items()
    }
    for name, value in settings.items():
        for one in value if name in _SEQUENCES else (value,):
            if name in _COUNTS:
                check_positive(name, one, integer=True, minimum=1)
            elif name in _POSITIVE:
                check_positive(name, one)
            elif name in _NOT_NEGATIVE:
                check_not_negative(name, one)
    variances = settings.get("effect_variances", (1.0,))
    cardinalities = settings.get("cardinalities", variances)
    if len(variances) == 0 or len(cardinalities) != len(variances):
        raise ValueError(
            "`effect_variances` must have at least one value, and `cardinalities` one for each of "
            "them. " + received(cardinalities=cardinalities, effect_variances=variances)
        )
    if settings.get("order", "nested") not in get_args(Order):
        raise ValueError(
            f"`order` must be one of {get_args(Order)}. " + received(order=settings["order"])
        )
    if "correlation" in settings:
        term_correlation(len(variances), settings["correlation"])
    return settings


def draw_signal(
    rng: np.random.Generator, n: int, num_features: int, latent_dim: int
) -> tuple[FloatArray, FloatArray]:
    """Draws the latent variables and the fixed part of the rows.

        u[i] ~ Normal(0, I_d)
        signal[i, j] = mean[j] + sum{ u[i, l] * W[j, l] * cos(u[i, l] * W[j, l]) : l=1...d }
        W[j, l] ~ Normal(0, 1),  mean[j] ~ Uniform(-10, 10)

    The latent variables have the shape `(n, d)`, the fixed part `(n, p)`.
    """
    latent = rng.standard_normal((n, latent_dim))
    weights = rng.standard_normal((num_features, latent_dim))
    mean = rng.uniform(-10.0, 10.0, num_features)
    signal = np.tile(mean, (n, 1))  # (n, p)
    for column in range(latent_dim):
        product = np.outer(latent[:, column], weights[:, column])  # (n, p)
        signal += product * np.cos(product)
    return latent, signal


def draw_level_codes(
    rng: np.random.Generator, n: int, num_levels: int, *, shuffle: bool = False
) -> IntArray:
    """Draws the level of each row, `(n,)`, sorted along the rows or in random order.

        weight[level] = Poisson(3) + 1
        size ~ Multinomial(n, weight / sum(weight))

    A level may have no rows.
    """
    weights = rng.poisson(3.0, num_levels) + 1.0
    sizes = rng.multinomial(n, weights / weights.sum())
    codes = np.repeat(np.arange(num_levels, dtype=np.int64), sizes)  # (n,)
    return rng.permutation(codes) if shuffle else codes


def _draw_variance(rng: np.random.Generator, nominal: float, num_features: int) -> FloatArray:
    """Draws the variance of an effect in each feature, `(p,)`: `(Poisson(v) + 1) * min(v, 1)`."""
    counts = rng.poisson(nominal, num_features) + 1.0
    return np.asarray(counts * min(float(nominal), 1.0), np.float64)


def term_correlation(basis_size: int, correlation: float) -> FloatArray:
    """Correlation matrix `(M, M)` of the intercept and the slopes of one subject.

    The intercept has the same correlation with each slope. The slopes are uncorrelated.

    Raises:
        ValueError: If the matrix is not positive definite: `(M - 1) * correlation**2 >= 1`.
    """
    if not (basis_size - 1) * correlation**2 < 1.0:
        raise ValueError(
            f"`correlation` must be below {(basis_size - 1) ** -0.5:.3g} in absolute value, or "
            f"the covariance of {basis_size} terms is not positive definite. "
            + received(correlation=correlation)
        )
    matrix = np.eye(basis_size)
    matrix[0, 1:] = matrix[1:, 0] = correlation
    return matrix


def rbf_kernel(
    coordinates: FloatArray, others: FloatArray, squared_length_scale: float
) -> FloatArray:
    """RBF kernel exp(-distance**2 / (2 * squared_length_scale)) of `(a, 2)` and `(b, 2)`."""
    squared_distance = cdist(coordinates, others, "sqeuclidean")
    matrix: FloatArray = np.exp(-0.5 * squared_distance / squared_length_scale)
    return matrix


def rbf_root(
    coordinates: FloatArray, squared_length_scale: float, *, tolerance: float = 1e-12
) -> FloatArray:
    """Root A of the RBF kernel matrix K by pivoted Cholesky: |K - A @ A'| <= tolerance everywhere.

    LAPACK's pivoted Cholesky needs the dense K; this one computes a column of it at a time. Each
    step adds the column of the location with the largest residual variance. The residual
    K - A @ A' is positive semi-definite, so its largest entry lies on its diagonal. A @ Normal(0,
    I_m) is then a draw of the Gaussian process.

    The rank `m` depends on the smoothness of the kernel and hardly on the number of locations. On
    [-1, 1]**2 with the default tolerance it is about 50 at squared length scale 3, 180 at 0.3 and
    2500 at 0.01. Those take less than a second for 10,000 locations, the last one 10 seconds.
    Cost: O(L * m**2) time, O(L * m) memory. At very short length scales m = L, as in the dense
    Cholesky.

    Args:
        coordinates: Float array `(L, 2)`; repeated locations are allowed.
        squared_length_scale: Positive float, in squared units of the coordinates.
        tolerance: Positive float, largest error of a kernel value. The rounding error is about
            1e-14.
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


def _draw_factors(rng: np.random.Generator, settings: dict[str, Any]) -> Iterator[_Effect]:
    """Draws codes, variances and effects of every factor; see `simulate_categorical`."""
    n, num_features = settings["n"], settings["num_features"]
    pairs = zip(settings["cardinalities"], settings["effect_variances"], strict=True)
    for index, (cardinality, nominal) in enumerate(pairs):
        name = f"group_{index}"
        codes = draw_level_codes(rng, n, cardinality, shuffle=settings["order"] == "crossed")
        variance = _draw_variance(rng, nominal, num_features)  # (p,)
        effects = rng.standard_normal((cardinality, num_features)) * np.sqrt(variance)  # (q, p)
        yield _Effect(name, {name: codes}, effects[:, None], effects[codes], variance[None])


def _draw_polynomials(rng: np.random.Generator, settings: dict[str, Any]) -> Iterator[_Effect]:
    """Draws subjects, times and coefficients; see `simulate_longitudinal`."""
    n, p, num_subjects = settings["n"], settings["num_features"], settings["num_subjects"]
    variances = np.asarray(settings["effect_variances"], np.float64)[:, None]  # (M, 1)
    basis_size = len(variances)
    correlation = term_correlation(basis_size, settings["correlation"])
    root = np.linalg.cholesky(correlation) * np.sqrt(variances)  # (M, M)
    subject = draw_level_codes(rng, n, num_subjects)
    t = rng.uniform(size=n)
    effects = root @ rng.standard_normal((num_subjects, basis_size, p))  # (q, M, p)
    contribution = np.zeros((n, p))
    for power in range(basis_size):
        contribution += t[:, None] ** power * effects[subject, power]
    columns = {"subject": subject, "t": t}
    yield _Effect("subject", columns, effects, contribution, np.tile(variances, p))


def _draw_field(rng: np.random.Generator, settings: dict[str, Any]) -> Iterator[_Effect]:
    """Draws locations, variances and the Gaussian process; see `simulate_spatial`."""
    coordinates = rng.uniform(-1.0, 1.0, (settings["num_locations"], 2))
    location = draw_level_codes(rng, settings["n"], settings["num_locations"])
    variance = _draw_variance(rng, settings["effect_variance"], settings["num_features"])  # (p,)
    root = rbf_root(coordinates, settings["squared_length_scale"])  # (L, m)
    effects = root @ rng.standard_normal((root.shape[1], settings["num_features"]))  # (L, p)
    effects *= np.sqrt(variance)
    lon, lat = coordinates[location].T
    columns = {"lon": lon.copy(), "lat": lat.copy(), "location": location}
    yield _Effect("location", columns, effects[:, None], effects[location], variance[None])
