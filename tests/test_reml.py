"""Variance components by REML: against dense covariances and the dense likelihood's maximum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
import tensorflow as tf
from reference import dense_design
from scipy import optimize
from scipy.linalg import block_diag
from small_models import small_model

import keras_lmmvae as lmm
from keras_lmmvae.mixed_model import effective_parameters
from keras_lmmvae.mixed_model.effective_parameters import Probes
from keras_lmmvae.mixed_model.equations import INTERCEPT, Equations
from keras_lmmvae.mixed_model.prior import EFFECT_VARIANCE_FLOOR
from keras_lmmvae.mixed_model.reml import REML
from keras_lmmvae.mixed_model.residuals import Targets
from keras_lmmvae.rows import FEATURES, Pass, with_folds

ROWS, WIDTH = 240, 3
NOISE = np.array([0.5, 1.0, 1.5])
VARIANCE = {"store": np.array([1.0, 0.3, 2.0]), "item": np.array([0.4, 1.0, 0.8])}
PSI = np.array([[1.4, 0.3], [0.3, 0.6]])
TERMS: dict[str, Callable[[], list[Any]]] = {
    "intercept": lambda: [lmm.RandomIntercept("store")],
    "slopes": lambda: [lmm.RandomSlopes("store", time="t")],
    "crossed": lambda: [lmm.RandomIntercept("store"), lmm.RandomIntercept("item")],
    "slopes and intercept": lambda: [
        lmm.RandomSlopes("store", time="t"),
        lmm.RandomIntercept("item"),
    ],
}


class System:
    """Equations of simulated rows with an intercept, and the same in dense float64 matrices."""

    def __init__(self, name: str, missing: float = 0.0, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        store, item = rng.integers(0, 25, ROWS), rng.integers(0, 40, ROWS)
        t = rng.uniform(-1.0, 1.0, ROWS)
        effects = rng.normal(size=(25, 2, WIDTH))
        effects = np.einsum("ij,ljf->lif", np.linalg.cholesky(PSI), effects)
        x = rng.normal(size=(ROWS, WIDTH)) * np.sqrt(NOISE) + 3.0
        x += (effects[store, 0] + effects[store, 1] * t[:, None]) * np.sqrt(VARIANCE["store"])
        x += (rng.normal(size=(40, WIDTH)) * np.sqrt(VARIANCE["item"]))[item]
        x[:, :2][rng.uniform(size=(ROWS, 2)) < missing] = np.nan
        self.data = {"x": x, "store": store, "item": item, "t": t}
        self.model = small_model(TERMS[name](), normalize=False)
        self.model.adapt(self.data)
        self.rows = with_folds(self.model.encode_data(self.data))
        self.equations = self.model.mixed_model.equations(Pass(self.rows), has_intercept=True)
        self.designs = []
        for term in self.equations.terms:
            encoded = self.rows["_effects"][term.label]
            basis = term.basis_of(encoded)
            basis = None if basis is None else basis.numpy()
            self.designs.append(dense_design(encoded["codes"].numpy(), basis, term.num_levels))

    def assign(self) -> None:
        """Gives the terms their variances."""
        for term, effects in zip(self.equations.terms, self.equations.effects, strict=True):
            psi = PSI if effects.basis_size > 1 else None
            effects.set_prior(VARIANCE[term.label], psi)
        self.equations.set_noise_variance(tf.constant(NOISE, tf.float32))

    def shape(self, number: int) -> np.ndarray:
        """`Psi` of a term for all its levels."""
        effects = self.equations.effects[number]
        psi = effects.coefficient_covariance.numpy().astype(np.float64)
        return block_diag(*[psi] * effects.num_levels)

    def covariances(self, feature: int) -> list[np.ndarray]:
        """Covariances of the observed rows due to each term and to the noise."""
        seen = np.isfinite(self.data["x"][:, feature])
        found = []
        for number, effects in enumerate(self.equations.effects):
            design = self.designs[number][seen]
            variance = float(effects.effect_variance[feature])
            found.append(variance * design @ self.shape(number) @ design.T)
        return [*found, NOISE[feature] * np.eye(int(seen.sum()))]

    def projection(self, feature: int) -> np.ndarray:
        """REML's `P`: the inverse covariance of the rows, the intercept projected out."""
        inverse = np.linalg.inv(sum(self.covariances(feature)))
        ones = inverse.sum(axis=1, keepdims=True)
        return np.asarray(inverse - ones @ ones.T / ones.sum())


@pytest.fixture(autouse=True)
def many_signs(monkeypatch):
    """50 draws for every feature: traces within about 1 %."""
    monkeypatch.setattr(effective_parameters, "_PROBES", 150)


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("missing", [0.0, 0.3])
class TestAgainstDenseMatrices:
    def test_solution_with_an_intercept(self, name, missing):
        """The intercept is the generalised least squares estimate, and effects are BLUPs of it."""
        system = System(name, missing)
        system.assign()
        solution = system.equations.solve(
            False, lambda rows: Targets(rows[FEATURES]), tf.constant(NOISE, tf.float32)
        )
        for feature in range(WIDTH):
            seen = np.isfinite(system.data["x"][:, feature])
            values = system.data["x"][seen, feature]
            inverse = np.linalg.inv(sum(system.covariances(feature)))
            intercept = inverse.sum(axis=0) @ values / inverse.sum()
            found = float(solution.effects[INTERCEPT][0, 0, feature])
            assert found == pytest.approx(intercept, rel=1e-3)
            for number, effects in enumerate(system.equations.effects):
                design = system.designs[number][seen]
                prior = float(effects.effect_variance[feature]) * system.shape(number)
                expected = prior @ design.T @ inverse @ (values - intercept)
                table = effects.table.effects.numpy()[:, :, feature].ravel()
                np.testing.assert_allclose(table, expected, rtol=2e-3, atol=2e-3)

    def test_effective_parameters(self, name, missing):
        """`tr(P Z Psi Z') effect_variance`, within the error of the random signs."""
        system = System(name, missing)
        system.assign()
        probes = Probes(system.equations, seed=0)
        probes.solve()
        for number, part in enumerate(probes.effective_parameters()):
            expected = [
                np.trace(system.projection(f) @ system.covariances(f)[number]) for f in range(WIDTH)
            ]
            np.testing.assert_allclose(part.count, expected, rtol=0.03)

    def test_information(self, name, missing):
        """Half the trace of `P V_k P V_j`; with missing cells slopes have no closed form."""
        system = System(name, missing)
        system.assign()
        probes = Probes(system.equations, seed=0)
        probes.solve()
        found = probes.information()
        for feature in range(WIDTH):
            projection, parts = system.projection(feature), system.covariances(feature)[:-1]
            products = [projection @ part for part in parts]
            expected = [[0.5 * np.sum(a * b.T) for b in products] for a in products]
            np.testing.assert_allclose(found[feature], expected, rtol=0.15)


class TestEstimates:
    SCALE = 0.4  # to features whose variance is about 1

    def maximum(self, system: System, feature: int) -> np.ndarray:
        """Variances of the terms and of the noise at which REML's likelihood is largest."""
        seen = np.isfinite(system.data["x"][:, feature])
        values = self.SCALE * system.data["x"][seen, feature]
        designs = [design[seen] for design in system.designs]
        products = [design @ design.T for design in designs] + [np.eye(len(values))]

        def negative(logarithms: np.ndarray) -> float:
            total = sum(np.exp(log) * part for log, part in zip(logarithms, products, strict=True))
            inverse = np.linalg.inv(total)
            ones = inverse.sum(axis=1)
            projected = inverse @ values - ones * (ones @ values) / ones.sum()
            log_det = np.linalg.slogdet(total)[1] + np.log(ones.sum())
            return 0.5 * float(log_det + values @ projected)

        start = np.zeros(len(products))
        options = {"xatol": 1e-4, "fatol": 1e-7}
        found = optimize.minimize(negative, start, method="Nelder-Mead", options=options)
        return np.exp(found.x)

    @pytest.mark.parametrize("missing", [0.0, 0.3])
    @pytest.mark.parametrize("name", ["intercept", "crossed"])
    def test_maximum_of_the_likelihood(self, name, missing):
        """Variances and noise at REML's maximum, to the tolerance of the steps."""
        system = System(name, missing, seed=1)
        noise = self.fit(system)
        for feature in range(WIDTH):
            expected = self.maximum(system, feature)
            parts = system.equations.effects
            found = [float(part.effect_variance[feature]) for part in parts]
            np.testing.assert_allclose([*found, noise[feature]], expected, rtol=0.03)

    def fit(self, system: System, is_noise_learned: bool = True) -> np.ndarray:
        sums = system.equations.row_sums(lambda rows: self.SCALE * rows[FEATURES])
        start = np.ones(WIDTH) if is_noise_learned else NOISE
        return REML(system.equations, seed=0).fit(sums, start, 1e-5 if is_noise_learned else None)

    def test_slopes_solve_their_equation(self):
        """`Psi` and variances: what the effects' squares are is what they are expected to be."""
        system = System("slopes", seed=2)
        noise = self.fit(system)
        (effects,) = system.equations.effects
        system.equations.solve(
            False, lambda rows: Targets(self.SCALE * rows[FEATURES]), tf.constant(noise, tf.float32)
        )
        table = effects.table.effects.numpy().astype(np.float64)
        found, expected = np.zeros((2, 2)), np.zeros((2, 2))
        for feature in range(WIDTH):
            parts = system.covariances(feature)
            total = parts[0] + noise[feature] * np.eye(ROWS)
            inverse = np.linalg.inv(total)
            ones = inverse.sum(axis=1, keepdims=True)
            projection = inverse - ones @ ones.T / ones.sum()
            variance = float(effects.effect_variance[feature])
            half = system.shape(0) @ system.designs[0].T * variance
            covariance = half @ projection @ half.T
            blocks = covariance.reshape(25, 2, 25, 2)
            found += table[:, :, feature].T @ table[:, :, feature] / variance
            expected += np.einsum("lilj->ij", blocks) / variance
        np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.02 * expected.max())

    def test_given_noise_stays(self):
        """A noise variance that is given is not moved, and the variances fit it."""
        system = System("intercept", seed=3)
        np.testing.assert_array_equal(self.fit(system, is_noise_learned=False), NOISE)

    def test_absent_effects_have_no_variance(self):
        """Rows without any effect: the variance is small or at its floor, and finite."""
        system = System("intercept", seed=4)
        rng = np.random.default_rng(0)
        values = tf.constant(rng.normal(size=(ROWS, WIDTH)), tf.float32)
        sums = system.equations.row_sums(lambda rows: values)
        noise = REML(system.equations, seed=0).fit(sums, np.ones(WIDTH), 1e-5)
        (effects,) = system.equations.effects
        variance = effects.effect_variance.numpy()
        assert (variance >= 0.999 * EFFECT_VARIANCE_FLOOR).all()
        assert (variance < 0.15).all()
        np.testing.assert_allclose(noise, 1.0, atol=0.3)

    def test_start_does_not_matter(self):
        """From variances 100 times smaller and larger the same estimates."""
        found = []
        for factor in (0.01, 100.0):
            system = System("crossed", seed=5)
            for effects in system.equations.effects:
                effects.set_prior(np.full(WIDTH, factor), None)
            noise = self.fit(system)
            parts = system.equations.effects
            found.append([noise, *(part.effect_variance.numpy() for part in parts)])
        np.testing.assert_allclose(found[0], found[1], rtol=0.01)


def test_latent_takes_its_part_of_the_variance():
    """Steps with a latent integrated out: a term's variance is that beside the latent's.

    The rows are `L u + Z B + e` with known loadings. A latent that differs between rows leaves
    the means of 60 levels of 20 rows with the variance of the effects.
    """
    rng = np.random.default_rng(0)
    levels, width = 60, 8
    code = np.repeat(np.arange(levels), 20)
    loadings = 1.5 * rng.normal(size=(2, width))
    effects = rng.normal(size=(levels, width))
    x = effects[code] + rng.normal(size=(len(code), 2)) @ loadings
    x += 0.5 * rng.normal(size=x.shape)
    model = small_model([lmm.RandomIntercept("g")], normalize=False)
    model.adapt({"x": x, "g": code})
    rows = with_folds(model.encode_data({"x": x, "g": code}))
    equations: Equations = model.mixed_model.equations(Pass(rows), has_intercept=True)
    spread = tf.repeat(tf.constant(loadings[:, None], tf.float32), len(code), axis=1)
    (part,) = model.mixed_model.effects
    part.set_prior(np.full(width, 0.2), None)
    noise = tf.fill([width], 0.25)
    right_side = equations.right_side(False, lambda batch: Targets(batch[FEATURES], spread), noise)
    REML(equations, seed=0).steps(right_side, 10)
    expected = np.var(effects, axis=0, ddof=1)
    np.testing.assert_allclose(part.effect_variance.numpy(), expected, rtol=0.2)
    assert part.effect_variance.numpy().mean() == pytest.approx(expected.mean(), rel=0.05)


class TestNoEpochs:
    """`fit(epochs=0)`: the linear mixed model."""

    @pytest.fixture(scope="class")
    def data(self):
        rng = np.random.default_rng(0)
        store = rng.integers(0, 30, 400)
        x = 5.0 + rng.normal(size=(30, 2))[store] + rng.normal(size=(400, 2))
        return {"x": x, "store": store}

    @pytest.fixture(scope="class")
    def model(self, data):
        model = small_model([lmm.RandomIntercept("store")])
        model.adapt(data)
        model.compile()
        model.fit(data, epochs=0, verbose=0)
        return model

    def test_is_lme4s(self, data, model):
        """Variances, intercept and effects of `y ~ 1 + (1 | store)` by REML, feature by feature."""
        for feature in range(2):
            frame = pd.DataFrame({"y": data["x"][:, feature], "store": data["store"]})
            reml = smf.mixedlm("y ~ 1", frame, groups="store").fit(reml=True)
            components = model.variance_components()[feature]
            found = [components["store"], components["noise"]]
            expected = [float(reml.cov_re.iloc[0, 0]), reml.scale]
            np.testing.assert_allclose(found, expected, rtol=5e-3)
            population = model.reconstruct(data, include_effects=False)[:, feature]
            np.testing.assert_allclose(population, reml.fe_params.iloc[0], rtol=1e-4)
            effects = [effect.iloc[0] for _, effect in sorted(reml.random_effects.items())]
            table = model.random_effects_table("store")[feature]
            np.testing.assert_allclose(table, effects, rtol=1e-2, atol=2e-3)

    def test_epochs_bring_the_networks_in(self, data, model, tmp_path):
        """A saved mixed model is one again, and a further fit of it trains the networks."""
        model.save(tmp_path / "mixed.keras")
        again = keras.saving.load_model(tmp_path / "mixed.keras")
        population = again.reconstruct(data, include_effects=False)
        np.testing.assert_array_equal(population, model.reconstruct(data, include_effects=False))
        again.fit(data, epochs=1, batch_size=100, verbose=0)
        assert again.reconstruct(data, include_effects=False).std(axis=0).min() > 1e-3

    def test_without_terms(self):
        """Mean and unbiased variance of the observed cells; a row of weight 2 counts twice."""
        rng = np.random.default_rng(0)
        x, weights = 7.0 + 3.0 * rng.normal(size=(100, 2)), rng.integers(0, 3, 100)
        x[:20, 1] = np.nan
        model = small_model()
        model.adapt({"x": x})
        model.compile()
        model.fit({"x": x}, epochs=0, sample_weight=weights, verbose=0)
        rows = np.repeat(x, weights, axis=0)
        found = model.variance_components().loc["noise"]
        np.testing.assert_allclose(found, np.nanvar(rows, axis=0, ddof=1), rtol=1e-5)
        mean = model.reconstruct({"x": x})[0]
        np.testing.assert_allclose(mean, np.nanmean(rows, axis=0), rtol=1e-5)
