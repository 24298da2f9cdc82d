"""`condition`: the effects of a level given a few of its rows, without any update."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from small_models import DenseTerm, dense_blup, fit_briefly, known_model, small_model

import keras_lmmvae as lmm
from keras_lmmvae.linalg import LevelPosterior
from keras_lmmvae.mixed_model.condition import KnownLevel, condition
from keras_lmmvae.mixed_model.level_effects import LevelEffects

NOISE = np.array([0.5, 1.0, 2.0])
VARIANCE = np.array([1.5, 0.3, 1.0])
PSI = np.array([[1.0, -0.3], [-0.3, 0.5]])
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
RNG = np.random.default_rng(0)
OLD = {
    "x": RNG.normal(size=(120, 3)) * [1.0, 2.0, 0.5] + [5.0, 0.0, -2.0],
    "store": RNG.integers(0, 10, 120),
    "city": RNG.integers(0, 4, 120),
    "t": RNG.uniform(-1.0, 2.0, 120),
    "east": RNG.uniform(0.0, 3.0, 120),
    "north": RNG.uniform(0.0, 3.0, 120),
}
NEW = {
    "x": RNG.normal(size=(7, 3)) + [6.0, 1.0, -2.0],
    "store": np.full(7, 77),
    "city": RNG.integers(0, 4, 7),
    "t": RNG.uniform(-1.0, 2.0, 7),
    "east": RNG.uniform(0.0, 3.0, 7),
    "north": RNG.uniform(0.0, 3.0, 7),
}
NEW["x"][2, 1] = np.nan


def known(terms: list[Any], **options: Any) -> lmm.LMMVAE:
    """A model at known variances whose effects are those of the old rows."""
    variances = {term.label: VARIANCE for term in terms}
    model = known_model(terms, OLD, NOISE, variances, **options)
    model.update_random_effects(OLD, keep_history=False)
    return model


def trained(terms: list[Any], **options: Any) -> lmm.LMMVAE:
    model = small_model(terms, **options)
    fit_briefly(model, OLD, 40, epochs=3)
    return model


@pytest.fixture(scope="module")
def amortized() -> lmm.LMMVAE:
    """A fitted model without closed-form effects."""
    return trained([lmm.RandomIntercept("store")], posterior="amortized")


class TestExactPosterior:
    """With a decoder that is 0 everywhere the model is a linear mixed model."""

    def test_unseen_level(self):
        """The BLUP and its standard deviation, missing cells left out."""
        found = known([lmm.RandomIntercept("store")]).condition(NEW, on="store")
        term = DenseTerm.of_levels(NEW["store"], VARIANCE)
        mean, covariance = dense_blup(NEW["x"] - OLD["x"].mean(axis=0), [term], NOISE)
        np.testing.assert_allclose(found.effects, mean, **CLOSE)
        np.testing.assert_allclose(found.standard_deviation[0] ** 2, covariance[:, 0, 0], **CLOSE)
        np.testing.assert_allclose(
            found.reconstruction, np.tile(OLD["x"].mean(axis=0) + mean[0], (7, 1)), **CLOSE
        )

    def test_slopes_in_units_of_time(self):
        model = known(
            [lmm.RandomSlopes("store", time="t", degree=1)], coefficient_covariance={"store": PSI}
        )
        found = model.condition(NEW, on="store")
        basis = np.stack([np.ones(7), NEW["t"]], axis=1)
        term = DenseTerm.of_levels(NEW["store"], VARIANCE, basis, PSI)
        mean, covariance = dense_blup(NEW["x"] - OLD["x"].mean(axis=0), [term], NOISE)
        np.testing.assert_allclose(found.effects, mean, **CLOSE)
        variances = np.diagonal(covariance, axis1=1, axis2=2).T
        np.testing.assert_allclose(found.standard_deviation**2, variances, rtol=1e-3)

    def test_known_level_adds_to_its_rows(self):
        """The BLUP of the level's old and new rows together."""
        rows = {**NEW, "store": np.full(7, 3)}
        found = known([lmm.RandomIntercept("store")]).condition(rows, on="store")
        own = OLD["store"] == 3
        values = np.concatenate([OLD["x"][own], rows["x"]]) - OLD["x"].mean(axis=0)
        term = DenseTerm.of_levels(np.zeros(len(values)), VARIANCE)
        mean, _ = dense_blup(values, [term], NOISE)
        np.testing.assert_allclose(found.effects, mean, **CLOSE)

    def test_surface_equals_an_update(self):
        """New rows change a surface as `update_random_effects` would."""
        rows = {**NEW, "x": np.where(np.isnan(NEW["x"]), 0.0, NEW["x"])}
        model = known([lmm.SpatialEffect(("east", "north"), length_scale=1.0, num_inducing=30)])
        found = model.condition(rows, on="east_north")
        model.update_random_effects(rows)
        mean, _ = model.term_effects("east_north", rows)
        np.testing.assert_allclose(found.effects, mean, rtol=1e-3, atol=1e-3)

    def test_other_terms_are_taken_out(self):
        """The level explains what the city's effects leave."""
        model = known([lmm.RandomIntercept("store"), lmm.RandomIntercept("city")])
        found = model.condition(NEW, on="store")
        city = model.random_effects_table("city").loc[NEW["city"]].to_numpy()
        term = DenseTerm.of_levels(NEW["store"], VARIANCE)
        mean, _ = dense_blup(NEW["x"] - OLD["x"].mean(axis=0) - city, [term], NOISE)
        np.testing.assert_allclose(found.effects, mean, **CLOSE)


class TestLevelPosterior:
    """`mixed_model.condition` in float64, with values that do not depend on the effects."""

    @staticmethod
    def given(
        mean: np.ndarray,
        precision: tuple[float, ...],
        residual: np.ndarray,
        basis: np.ndarray,
        cells: np.ndarray,
    ) -> tuple[LevelPosterior, np.ndarray]:
        """The posterior, and the effects that the rows are read less in the last round."""
        effects = LevelEffects(1, *mean.shape)
        effects.build()
        effects.prior.assign(1.0 / np.array(precision))
        effects.set_information(np.diag(1.0 / np.array(NOISE)))
        known = KnownLevel(tf.constant(mean[None]), tf.zeros((1, 1, 2, 2), tf.float64))
        rounds: list[np.ndarray] = []

        def values_of(left_out: tf.Tensor) -> tf.Tensor:
            rounds.append(left_out.numpy()[0])
            return tf.constant(residual[None])

        posterior = condition(
            effects, known, tf.constant(basis[None]), tf.constant(cells[None]), values_of
        )
        return posterior, rounds[-1]

    def test_left_out_fits_equal_refits(self):
        """The fit of each row without it, by leaving it out in earnest, cell by cell."""
        rng = np.random.default_rng(1)
        basis, residual = rng.normal(size=(6, 2)), rng.normal(size=(6, 3))
        cells = (rng.random((6, 3)) < 0.8).astype(float)
        prior = (rng.normal(size=(2, 3)), (1.0, 2.0, 3.0))
        _, left_out = self.given(*prior, residual, basis, cells)
        for row in range(6):
            kept = cells.copy()
            kept[row] = 0.0
            without, _ = self.given(*prior, residual, basis, kept)
            np.testing.assert_allclose(
                left_out[row], basis[row] @ without.mean[0].numpy(), rtol=1e-8
            )

    def test_no_rows_change_nothing(self):
        """Without a cell that counts the posterior is the prior."""
        ones = np.ones((4, 3)), np.ones((4, 2)), np.zeros((4, 3))
        posterior, left_out = self.given(np.ones((2, 3)), (1.0, 1.0, 1.0), *ones)
        np.testing.assert_array_equal(posterior.mean[0], 1.0)
        np.testing.assert_allclose(left_out, 2.0)
        np.testing.assert_allclose(posterior.variance[0], 1.0)


class TestServed:
    """The signature `condition` gives the same answers, for many requests at once."""

    @pytest.fixture(scope="class")
    def served(self, tmp_path_factory) -> tuple[lmm.LMMVAE, Any]:
        model = trained([lmm.RandomIntercept("store"), lmm.RandomIntercept("city")])
        folder = tmp_path_factory.mktemp("served") / "1"
        model.export(folder)
        return model, tf.saved_model.load(str(folder))

    @staticmethod
    def request(counts: list[int]) -> dict[str, tf.Tensor]:
        """Requests with so many support rows each, padded to seven."""
        size = len(counts)
        mask = np.arange(7)[None, :] < np.array(counts)[:, None]
        x = np.where(np.isnan(NEW["x"]), np.nan, NEW["x"])
        support = np.where(mask[..., None], np.stack([x] * size), 1e9)
        return {
            "x": tf.constant(NEW["x"][:size], tf.float32),
            "city": tf.constant(NEW["city"][:size], tf.int64),
            "support": tf.constant(support, tf.float32),
            "support_mask": tf.constant(mask, tf.float32),
            "support_city": tf.constant(np.stack([NEW["city"]] * size), tf.int64),
        }

    def test_equals_python(self, served):
        """Any number of support rows; what the mask hides does not count."""
        model, loaded = served
        counts = [7, 1, 4, 2]
        answer = loaded.signatures["condition_store"](**self.request(counts))
        for number, count in enumerate(counts):
            rows = {name: values[:count] for name, values in NEW.items()}
            expected = model.condition(rows, on="store")
            for name in ("effects", "standard_deviation"):
                np.testing.assert_allclose(
                    answer[name][number], getattr(expected, name)[0], **CLOSE
                )
            if number < count:
                np.testing.assert_allclose(
                    answer["reconstruction"][number], expected.reconstruction[number], **CLOSE
                )

    def test_no_support_is_the_population(self, served):
        """Effect 0 with the prior's variance; the reconstruction of an unseen key."""
        model, loaded = served
        answer = loaded.signatures["condition_store"](**self.request([0, 0]))
        np.testing.assert_array_equal(answer["effects"], 0.0)
        prior = np.sqrt(model.variance_components().loc["store"])
        np.testing.assert_allclose(answer["standard_deviation"][1], prior, rtol=1e-5)
        rows = {name: values[:2] for name, values in NEW.items()}
        np.testing.assert_allclose(answer["reconstruction"], model.reconstruct(rows), **CLOSE)

    def test_requests_do_not_mix(self, served):
        """A request's answer is the same alone and among others."""
        _, loaded = served
        condition = loaded.signatures["condition_store"]
        together = condition(**self.request([3, 7, 5]))
        alone = condition(**{k: v[1:2] for k, v in self.request([3, 7, 5]).items()})
        for name, values in alone.items():
            np.testing.assert_allclose(values[0], together[name][1], rtol=1e-5, atol=1e-6)

    def test_amortized_has_none(self, amortized, tmp_path):
        """Without a closed form there is no such signature."""
        amortized.export(tmp_path / "1")
        signatures = tf.saved_model.load(str(tmp_path / "1")).signatures
        assert not [name for name in signatures if name.startswith("condition")]


LATE = 4
"""The support row whose time is missing."""


class TestServedSlopesAndSurfaces:
    """The time and the coordinates of the support travel along; effects are those at the row."""

    TERMS = ("store", "east_north")

    @staticmethod
    def terms() -> list[Any]:
        surface = lmm.SpatialEffect(("east", "north"), length_scale=1.0, num_inducing=30)
        return [lmm.RandomSlopes("store", time="t"), lmm.RandomIntercept("city"), surface]

    @pytest.fixture(scope="class")
    def served(self, tmp_path_factory) -> tuple[lmm.LMMVAE, Any]:
        model = trained(self.terms())
        folder = tmp_path_factory.mktemp("served") / "1"
        model.export(folder)
        return model, tf.saved_model.load(str(folder)).signatures

    @staticmethod
    def request(signature: Any, counts: list[int]) -> dict[str, tf.Tensor]:
        """Requests with so many support rows each, padded to seven, one time missing.

        What the mask hides is absurd.
        """
        size = len(counts)
        mask = np.arange(7)[None, :] < np.array(counts)[:, None]
        columns = {**NEW, "t": np.where(np.arange(7) == LATE, np.nan, NEW["t"])}
        # The store is new, so that it is unseen by the other terms too.
        found = {"x": NEW["x"][:size], "support_mask": mask, "support": np.stack([NEW["x"]] * size)}
        found["support"] = np.where(mask[..., None], found["support"], 1e9)
        for name in ("store", "city", "t", "east", "north"):
            found[name] = NEW[name][:size]
            support = np.stack([columns[name]] * size)
            found[f"support_{name}"] = np.where(mask, support, 10**6)
        _, specs = signature.structured_input_signature
        return {name: tf.constant(found[name], spec.dtype) for name, spec in specs.items()}

    @staticmethod
    def support(term: str, count: int) -> dict[str, np.ndarray]:
        """The support rows that count, as Python takes them."""
        kept = np.arange(7) < count
        if term == "store":
            kept &= np.arange(7) != LATE
        # For the surface, the store of a row without its time has no effect.
        late = np.where(np.arange(7) == LATE, np.nan, NEW["t"])
        return {name: values[kept] for name, values in {**NEW, "t": late}.items()}

    def at_the_row(self, model: lmm.LMMVAE, term: str, number: int, count: int) -> np.ndarray:
        """`model.condition` on the support and on the row itself, of which no cell is observed."""
        row = {name: values[[number]] for name, values in NEW.items()}
        row["x"] = np.full((1, 3), np.nan)
        rows = {k: np.concatenate([v, row[k]]) for k, v in self.support(term, count).items()}
        found = model.condition(rows, on=term)
        if term == "store":
            return found.effects[0] + NEW["t"][number] * found.effects[1]
        return found.effects[-1]

    def test_signatures(self, served):
        """A term's own numbers are inputs, its key is none."""
        _, signatures = served
        inputs = {
            term: set(signatures[f"condition_{term}"].structured_input_signature[1])
            for term in self.TERMS
        }
        own = {"t", "support_t", "east", "support_east", "city", "support_city"}
        assert own <= inputs["store"]
        assert "store" not in inputs["store"]
        assert own | {"store", "support_store"} <= inputs["east_north"]

    @pytest.mark.parametrize("term", TERMS)
    def test_equals_python(self, served, term):
        """Any number of support rows; masked rows, missing cells and missing times do not count.

        Served matrices are in float32, those of `model.condition` in float64.
        """
        model, signatures = served
        counts = [7, 2, 4, 0, 6]
        signature = signatures[f"condition_{term}"]
        answer = signature(**self.request(signature, counts))
        for number, count in enumerate(counts):
            expected = self.at_the_row(model, term, number, count)
            np.testing.assert_allclose(answer["effects"][number], expected, **CLOSE)
        # Rows that are among their own support.
        for number in (0, 1, 2):
            rows = self.support(term, counts[number])
            found = model.condition(rows, on=term)
            actual = answer["reconstruction"][number]
            np.testing.assert_allclose(actual, found.reconstruction[number], **CLOSE)
            if term == "east_north":
                actual = answer["standard_deviation"][number]
                np.testing.assert_allclose(actual, found.standard_deviation[number], **CLOSE)

    @pytest.mark.parametrize("term", TERMS)
    def test_requests_do_not_mix(self, served, term):
        """A request's answer is the same alone and among others."""
        signature = served[1][f"condition_{term}"]
        request = self.request(signature, [3, 7, 5])
        together = signature(**request)
        alone = signature(**{k: v[1:2] for k, v in request.items()})
        for name, values in alone.items():
            np.testing.assert_allclose(values[0], together[name][1], rtol=1e-5, atol=1e-6)

    def test_slopes_are_the_dense_posterior(self, tmp_path):
        """Mean and deviation at the row are those of the BLUP; 0 where the row has no time."""
        model = known([lmm.RandomSlopes("store", time="t")], coefficient_covariance={"store": PSI})
        model.export(tmp_path / "1")
        signature = tf.saved_model.load(str(tmp_path / "1")).signatures["condition_store"]
        counts = [7, 0, 3, 5]
        request = self.request(signature, counts)
        request["t"] = tf.constant([*NEW["t"][:3], np.nan], tf.float32)
        answer = signature(**request)
        for number, count in enumerate(counts[:3]):
            rows = self.support("store", count)
            basis = np.stack([np.ones(len(rows["t"])), rows["t"]], axis=1)
            at = np.array([1.0, NEW["t"][number]])
            mean, covariance = np.zeros((2, 3)), VARIANCE[:, None, None] * PSI
            if count:
                term = DenseTerm.of_levels(rows["store"], VARIANCE, basis, PSI)
                mean, covariance = dense_blup(rows["x"] - OLD["x"].mean(axis=0), [term], NOISE)
            np.testing.assert_allclose(answer["effects"][number], at @ mean, **CLOSE)
            variance = np.einsum("i,fij,j->f", at, covariance, at)
            deviation = answer["standard_deviation"][number]
            np.testing.assert_allclose(deviation, np.sqrt(variance), **CLOSE)
        for name in ("effects", "standard_deviation"):
            np.testing.assert_array_equal(answer[name][3], 0.0)

    def test_surface_starts_at_what_is_known(self, tmp_path):
        """Without support the answer is the surface of the training rows."""
        surface = lmm.SpatialEffect(("east", "north"), length_scale=1.0, num_inducing=30)
        model = known([surface])
        model.export(tmp_path / "1")
        signature = tf.saved_model.load(str(tmp_path / "1")).signatures["condition_east_north"]
        answer = signature(**self.request(signature, [0] * 7))
        mean, _ = model.term_effects("east_north", NEW)
        np.testing.assert_allclose(answer["effects"], mean, **CLOSE)


class TestWithNetworks:
    @pytest.fixture(scope="class")
    def model(self) -> lmm.LMMVAE:
        return trained([lmm.RandomIntercept("store")])

    def test_reads_rows_less_what_the_others_say(self, model):
        """A fixed point: the last residuals give the effects."""
        found = model.condition(NEW, on="store")
        again = model.condition(NEW, on="store")
        np.testing.assert_array_equal(found.effects, again.effects)
        assert np.isfinite(found.reconstruction).all()

    def test_more_rows_know_more(self, model):
        few = model.condition({name: values[:2] for name, values in NEW.items()}, on="store")
        many = model.condition(NEW, on="store")
        assert (many.standard_deviation < few.standard_deviation).all()

    def test_the_model_stays(self, model):
        """Nothing is remembered: neither the level nor its effects."""
        before = model.random_effects_table("store")
        model.condition(NEW, on="store")
        after = model.random_effects_table("store")
        np.testing.assert_array_equal(before, after)
        assert 77 not in after.index


class TestErrors:
    def test_rows_of_two_levels(self):
        model = known([lmm.RandomIntercept("store")])
        with pytest.raises(ValueError, match=r"must be of one level of 'store'.*codes=\[2, 3\]"):
            model.condition({**NEW, "store": np.array([2, 3, 2, 2, 2, 2, 2])}, on="store")

    def test_null_key(self):
        model = known([lmm.RandomIntercept("store")])
        rows = {**NEW, "store": np.full(7, np.nan)}
        with pytest.raises(ValueError, match=r"none of them with a missing key.*codes=\[-2\]"):
            model.condition(rows, on="store")

    def test_no_such_term(self):
        model = known([lmm.RandomIntercept("store")])
        with pytest.raises(ValueError, match="There is no term 'shop'"):
            model.condition(NEW, on="shop")

    def test_amortized(self, amortized):
        with pytest.raises(ValueError, match=r"Only the conjugate.*posterior='amortized'"):
            amortized.condition(NEW, on="store")
