"""Spatial effects against Gaussian processes of TensorFlow Probability and dense NumPy."""

import json

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from reference import gaussian_process_posterior
from term_contract import normalised

from keras_lmmvae import design
from keras_lmmvae.effects import SpatialEffect
from keras_lmmvae.effects.scaling import EARTH_RADIUS_KM
from keras_lmmvae.effects.vocabulary import NULL_CODE
from keras_lmmvae.kernels import Stationary
from keras_lmmvae.mixed_model import MixedModel
from keras_lmmvae.mixed_model.table_rows import TableRows
from keras_lmmvae.rows import Rows

tfd = tfp.distributions
psd = tfp.math.psd_kernels

COLUMNS = ("east", "north")
KERNELS = {
    "rbf": psd.ExponentiatedQuadratic,
    "matern12": psd.MaternOneHalf,
    "matern32": psd.MaternThreeHalves,
    "matern52": psd.MaternFiveHalves,
}


def places(n: int, seed: int = 0) -> np.ndarray:
    """Uniform on a map of 10 x 10."""
    return np.random.default_rng(seed).uniform(0.0, 10.0, (n, 2))


def columns_of(points: np.ndarray, names: tuple[str, ...] = COLUMNS) -> dict:
    return dict(zip(names, points.T, strict=True))


def adapted(points: np.ndarray, columns: tuple[str, ...] = COLUMNS, **options) -> SpatialEffect:
    """A term with its basis, after `adapt` on some places."""
    term = SpatialEffect(columns, **options)
    term.update_state(normalised(term, columns_of(points, columns)))
    term.finalize_state()
    term.build_basis(is_amortized=False)
    return term


def in_mixed_model(points: np.ndarray, effect_variance: list[float], **options) -> MixedModel:
    """A mixed model with one term, of known effect variances."""
    term = SpatialEffect(COLUMNS, **options)
    term.update_state(normalised(term, columns_of(points)))
    term.finalize_state()
    model = MixedModel([term])
    model.build((None, len(effect_variance)))
    model.of(term.label).prior.assign(np.array(effect_variance))
    return model


def rows_at(model: MixedModel, columns: dict) -> Rows:
    """Encoded rows at some places."""
    (term,) = model.terms
    encoded = term.encode(normalised(term, columns))
    x = tf.zeros((len(encoded["codes"]), model.num_features))
    return {"x": x, "_effects": {term.label: encoded}}


def basis_of(term: SpatialEffect, points: np.ndarray) -> np.ndarray:
    encoded = term.encode(normalised(term, columns_of(points, term.columns)))
    return term.basis(encoded).numpy().astype(np.float64)


def kernel_matrix(name: str, length_scale: float, x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
    return KERNELS[name](length_scale=np.float64(length_scale)).matrix(x1, x2).numpy()


class TestExactBasis:
    @pytest.mark.parametrize("kernel", KERNELS)
    @pytest.mark.parametrize("length_scale", [0.7, 2.0])
    def test_features_give_the_kernel_matrix(self, kernel, length_scale):
        """The product phi phi' is K when every location is an inducing point."""
        points = places(30)
        term = adapted(np.repeat(points, 3, axis=0), kernel=kernel, length_scale=length_scale)
        phi = basis_of(term, points)
        assert (term.num_levels, term.basis_size) == (1, 30)
        assert term.fitted_length_scale == pytest.approx(length_scale, rel=1e-6)
        expected = kernel_matrix(kernel, length_scale, points, points)
        # float32 distances of nearly zero, off by 1e-3, weigh in where the kernel has a kink.
        tolerance = 1e-2 if kernel == "matern12" else 1e-4
        np.testing.assert_allclose(phi @ phi.T, expected, atol=tolerance)

    def test_features_are_a_projection_elsewhere(self):
        """The product phi(s) phi(S)' is k(s, S) between new places and known ones."""
        points, elsewhere = places(30), places(20, seed=1)
        term = adapted(points, length_scale=1.5)
        cross = basis_of(term, elsewhere) @ basis_of(term, points).T
        np.testing.assert_allclose(cross, kernel_matrix("rbf", 1.5, elsewhere, points), atol=1e-4)

    @pytest.mark.parametrize("length_scale", [0.5, 1.0, 1.5])
    def test_posterior_is_that_of_the_gaussian_process(self, length_scale):
        """Ridge regression on phi is GP regression, mean and variance, at seen and unseen places.

        The ridge's variance at a new place lacks the process's own, given the inducing points:
        `missing_share`, times the effect variance.
        """
        rng = np.random.default_rng(2)
        points, elsewhere = places(25), places(40, seed=3)
        rows = np.repeat(points, 2, axis=0)
        variance, noise = 2.0, 0.5
        values = rng.normal(size=len(rows))
        term = adapted(rows, length_scale=length_scale)

        phi = basis_of(term, rows)
        precision = phi.T @ phi / noise + np.eye(term.basis_size) / variance
        covariance = np.linalg.inv(precision)
        coefficients = covariance @ phi.T @ values / noise
        process = KERNELS["rbf"](np.sqrt(np.float64(variance)), np.float64(length_scale))
        for new in (points, elsewhere):
            basis = term.basis(term.encode(normalised(term, columns_of(new))))
            missing = variance * term.missing_share(basis, 1.0).numpy()
            phi_new = basis.numpy().astype(np.float64)
            expected = tfd.GaussianProcessRegressionModel(
                process, new, rows, values, observation_noise_variance=np.float64(noise)
            )
            # The predictive distribution is of the process itself, without noise.
            np.testing.assert_allclose(phi_new @ coefficients, expected.mean(), atol=1e-4)
            np.testing.assert_allclose(
                np.einsum("ij,jk,ik->i", phi_new, covariance, phi_new) + missing,
                expected.variance() - noise,
                atol=1e-4,
            )

    @pytest.mark.parametrize("kernel", ["rbf", Stationary("rbf") + Stationary("matern32")])
    def test_mixed_model_is_the_gaussian_process(self, kernel):
        """Mean and variance of a mixed model are those of GP regression, by Cholesky roots.

        The effect variance is the variance of the surface, for a sum of kernels, too.
        """
        rng = np.random.default_rng(9)
        points, elsewhere = places(25), places(40, seed=3)
        model = in_mixed_model(points, [2.0, 0.3], kernel=kernel, length_scale=1.2)
        values, noise = rng.normal(size=(25, 2)), np.array([0.5, 0.1], np.float32)
        rows = rows_at(model, columns_of(points))
        (effects,) = model.effects
        basis = model.terms[0].basis(rows["_effects"]["east_north"])
        gram = tf.matmul(basis, basis, transpose_a=True)[None]
        effects.set_design(tf.stack([gram, gram]) / 2.0, tf.fill([2, 1], 12.5))
        effects.set_information(np.diag(1.0 / noise))
        scores = tf.matmul(basis, tf.constant(values / noise, tf.float32), transpose_a=True)
        effects.table.effects.assign(effects.table.solve(scores[None], effects.information))
        parts = ["rbf"] if kernel == "rbf" else ["rbf", "matern32"]

        def correlation(x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
            return np.mean([kernel_matrix(part, 1.2, x1, x2) for part in parts], axis=0)

        for new in (points, elsewhere, np.array([[1e3, 1e3]])):
            found = rows_at(model, columns_of(new))
            mean = model.contribution(found)
            variance = model.term_variance("east_north", found)
            for f, (effect, own) in enumerate(zip((2.0, 0.3), noise, strict=True)):
                expected, covariance = gaussian_process_posterior(
                    effect * correlation(points, points),
                    effect * correlation(new, points),
                    effect * correlation(new, new),
                    values[:, [f]],
                    own,
                )
                np.testing.assert_allclose(mean[:, f], expected[:, 0], atol=1e-3)
                np.testing.assert_allclose(variance[:, f], np.diag(covariance), atol=1e-3)

    def test_far_away_nothing_is_known(self):
        """The basis is zero, finite, and all of the variance is missing from it."""
        model = in_mixed_model(places(20), [2.0, 3.0], length_scale=1.0)
        far = np.array([[1e3, 1e3], [1e9, -1e9], [1e30, 0.0]])
        rows = rows_at(model, columns_of(far))
        basis = model.terms[0].basis(rows["_effects"]["east_north"])
        np.testing.assert_array_equal(basis, 0.0)
        variance = model.term_variance("east_north", rows)
        np.testing.assert_array_equal(variance, [[2.0, 3.0]] * 3)

    def test_the_noise_holds_the_average_of_what_is_left_out(self):
        """The noise holds the average of what inducing points leave out; the excess is added."""
        places_of_rows = places(300)
        options = {"length_scale": 0.3, "kernel": "matern12", "num_inducing": 20}
        model = in_mixed_model(places_of_rows, [2.0, 2.0], **options)
        rows = rows_at(model, columns_of(places_of_rows))
        (term,), (effects,) = model.terms, model.effects
        basis = term.basis(rows["_effects"]["east_north"])
        gram = tf.matmul(basis, basis, transpose_a=True)[None]
        effects.set_design(tf.stack([gram, gram]), tf.fill([2, 1], 300.0))
        # With hardly any noise the surface is known wherever the basis reaches.
        effects.set_information(1e6 * np.eye(2))
        captured = np.square(basis).sum(axis=1)
        seen = TableRows(effects.table, effects.prior, tf.zeros(300, tf.int32), basis)
        seen = seen.variance(effects.information)
        excess = (model.variance(rows) - seen).numpy()[:, 0]
        expected = 2.0 * np.maximum(captured.mean() - captured, 0.0)
        np.testing.assert_allclose(excess, expected, atol=1e-4)
        full = (model.term_variance("east_north", rows) - seen).numpy()[:, 0]
        np.testing.assert_allclose(full, 2.0 * (1.0 - captured), atol=1e-4)
        assert excess.mean() < 0.5 * full.mean()
        far = model.variance(rows_at(model, columns_of(np.array([[1e3, 1e3]]))))
        np.testing.assert_allclose(far, np.full((1, 2), 2.0 * captured.mean()), rtol=1e-4)

    def test_one_coordinate_is_a_line(self):
        """A process in time has the kernel matrix of its times."""
        points = np.linspace(0.0, 5.0, 12)[:, None]
        term = adapted(points, columns=("t",), kernel="matern32", length_scale=1.0)
        phi = basis_of(term, points)
        expected = kernel_matrix("matern32", 1.0, points, points)
        np.testing.assert_allclose(phi @ phi.T, expected, atol=1e-4)


class TestInducingPoints:
    def test_few_points_carry_a_smooth_process(self):
        """Few points, 64 for 400 locations, give the kernel matrix within 0.02 at a long scale."""
        points = places(400)
        term = adapted(points, num_inducing=64, length_scale=3.0)
        phi = basis_of(term, points)
        assert term.basis_size == 64
        error = np.abs(phi @ phi.T - kernel_matrix("rbf", 3.0, points, points))
        assert error.max() < 0.02

    def test_projection_never_adds_variance(self):
        """The squared norm of phi is at most 1: inducing points never add variance."""
        points = places(300)
        term = adapted(points, num_inducing=32, kernel="matern12", length_scale=1.0)
        assert (basis_of(term, points) ** 2).sum(axis=1).max() <= 1.0 + 1e-4

    def places_and_surface(self, kernel: str, length_scale: float) -> tuple[np.ndarray, np.ndarray]:
        """600 places, and 12 features with that surface and noise of variance 0.1."""
        rng, points = np.random.default_rng(7), places(600)
        root = np.linalg.cholesky(
            kernel_matrix(kernel, length_scale, points, points) + 1e-8 * np.eye(600)
        )
        return points, root @ rng.normal(size=(600, 12)) + 0.3 * rng.normal(size=(600, 12))

    @pytest.mark.parametrize(("length_scale", "number"), [(6.0, 64), (1.5, 256)])
    def test_as_many_points_as_the_length_scale_needs(self, length_scale, number):
        """It is the smallest that leaves 5 % of the noise variance between the points."""
        points, values = self.places_and_surface("matern52", length_scale)
        term = SpatialEffect(COLUMNS, kernel="matern52")
        columns = {**normalised(term, columns_of(points)), "x": values}
        for chosen in np.array_split(np.arange(600), 4):
            term.update_state({name: column[chosen] for name, column in columns.items()})
        term.finalize_state()
        term.build_basis(is_amortized=False)
        assert term.basis_size == number
        assert term.fitted_length_scale == pytest.approx(length_scale, rel=0.3)
        fewer = {"num_inducing": number // 2, "length_scale": term.fitted_length_scale}
        half = adapted(points, kernel="matern52", **fewer)
        over_noise = [
            (1.0 - np.square(basis_of(one, points)).sum(axis=1).mean()) / 0.09
            for one in (term, half)
        ]
        assert over_noise[0] < 0.06
        assert over_noise[1] > 0.04 or number == 64

    def test_up_to_256_places_are_all_points(self):
        """Then nothing is searched for, and the process is exact."""
        term = adapted(places(256), length_scale=9.0)
        assert term.basis_size == 256

    def test_a_given_length_scale_decides(self):
        """A length scale that is given stays, and decides how many points there are."""
        points, values = self.places_and_surface("rbf", 3.0)
        sizes = []
        for length_scale in (6.0, 1.2, 0.3):
            term = SpatialEffect(COLUMNS, length_scale=length_scale)
            term.update_state({**normalised(term, columns_of(points)), "x": values})
            term.finalize_state()
            sizes.append(term.basis_size)
        assert sizes == [64, 128, 600]

    def test_without_a_surface_there_are_few(self):
        """Features that are noise alone do not ask for points."""
        points = places(600)
        term = SpatialEffect(COLUMNS, kernel="matern12", length_scale=0.3)
        noise = np.random.default_rng(3).normal(size=(600, 6))
        term.update_state({**normalised(term, columns_of(points)), "x": noise})
        term.finalize_state()
        assert term.basis_size == 64

    def test_without_features_the_ratio_is_1(self):
        """A term that is adapted by itself sees no features."""
        points = places(600)
        term = SpatialEffect(COLUMNS, length_scale=0.8)
        columns = normalised(term, columns_of(points))
        columns.pop("x", None)
        term.update_state(columns)
        term.finalize_state()
        assert term.basis_size == 128

    def test_missing_cells_and_places(self):
        """Cells and places that are not known do not take part in the search."""
        points, values = self.places_and_surface("rbf", 6.0)
        values[::3, 1], points[5] = np.nan, np.nan
        term = SpatialEffect(COLUMNS)
        term.update_state({**normalised(term, columns_of(points)), "x": values})
        term.finalize_state()
        assert term.basis_size == 64

    def test_the_seed_fixes_the_points(self):
        """Equal seeds choose the same points; another seed chooses others."""
        names = [adapted(places(100), num_inducing=9, seed=s).level_names() for s in (0, 0, 1)]
        assert names[0] == names[1] != names[2]

    def test_chunks_give_the_same_points(self):
        """Batches of a dataset give the inducing points that all rows at once give."""
        points = places(40)
        term = SpatialEffect(COLUMNS, length_scale=1.0)
        for part in np.array_split(np.vstack([points, points]), 5):
            term.update_state(normalised(term, columns_of(part)))
        term.finalize_state()
        term.build_basis(is_amortized=False)
        np.testing.assert_allclose(
            term.level_names(), adapted(points, length_scale=1.0).level_names(), rtol=1e-5
        )

    def test_level_names_are_coordinates(self):
        """Level names are the places, in the columns' own units and order."""
        points = places(15)
        names = adapted(points, length_scale=1.0).level_names()
        np.testing.assert_allclose(sorted(names), sorted(map(tuple, points)), rtol=1e-5)


class TestLengthScale:
    def simulated(self, length_scale: float) -> tuple[np.ndarray, np.ndarray]:
        """Rows and values of 20 features: 120 locations with 4 rows each, noise variance 0.25."""
        rng = np.random.default_rng(4)
        points = places(120, seed=5)
        covariance = kernel_matrix("rbf", length_scale, points, points) + 1e-9 * np.eye(120)
        surface = np.linalg.cholesky(covariance) @ rng.normal(size=(120, 20))
        rows = np.repeat(np.arange(120), 4)
        return points[rows], surface[rows] + rng.normal(0.0, 0.5, (480, 20))

    @pytest.mark.parametrize("length_scale", [0.8, 2.0])
    def test_learned_from_data(self, length_scale):
        """The learned length scale is within 15 % of the one that the rows were simulated with."""
        points, values = self.simulated(length_scale)
        term = adapted(points)
        assert term.has_learned_basis
        inputs = term.encode(normalised(term, columns_of(points)))["inputs"].numpy()
        term.fit_basis(inputs, values.astype(np.float32))
        assert term.fitted_length_scale == pytest.approx(length_scale, rel=0.15)

    def test_the_basis_follows(self):
        """The basis follows a new length scale: phi phi' is its kernel matrix."""
        points = places(20)
        term = adapted(points)
        term.set_scaled_length_scale(1.2 / term.scaling.spread[0])
        phi = basis_of(term, points)
        np.testing.assert_allclose(
            phi @ phi.T, kernel_matrix("rbf", 1.2, points, points), atol=1e-4
        )

    def test_fixed_one_is_not_learned(self):
        """A length scale that is given stays, and is not learned."""
        term = adapted(places(20), length_scale=1.7)
        assert not term.has_learned_basis
        assert term.fitted_length_scale == pytest.approx(1.7, rel=1e-6)


class TestHaversine:
    COLUMNS = ("lon", "lat")

    def test_kernel_of_the_chord(self):
        """The length scale is in kilometres, and the distance is the chord through the globe."""
        rng = np.random.default_rng(6)
        points = np.column_stack([rng.uniform(5, 15, 25), rng.uniform(47, 55, 25)])
        term = adapted(points, columns=self.COLUMNS, metric="haversine", length_scale=200.0)
        lon, lat = np.radians(points).T
        space = EARTH_RADIUS_KM * np.column_stack(
            [np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)]
        )
        phi = basis_of(term, points)
        np.testing.assert_allclose(
            phi @ phi.T, kernel_matrix("rbf", 200.0, space, space), atol=2e-4
        )
        assert term.fitted_length_scale == pytest.approx(200.0, rel=1e-6)

    def test_level_names_are_degrees(self):
        """Level names are longitude and latitude, not positions in space."""
        points = np.array([[13.4, 52.5], [11.6, 48.1], [-70.0, -33.0]])
        term = adapted(points, columns=self.COLUMNS, metric="haversine", length_scale=200.0)
        np.testing.assert_allclose(sorted(term.level_names()), sorted(points.tolist()), atol=1e-3)

    def test_the_date_line_is_no_border(self):
        """Longitudes of 180 degrees west and east have the same basis."""
        rng = np.random.default_rng(7)
        points = np.column_stack([rng.uniform(-180, 180, 20), rng.uniform(-60, 60, 20)])
        term = adapted(points, columns=self.COLUMNS, metric="haversine", length_scale=2000.0)
        phi = basis_of(term, np.array([[-180.0, 10.0], [180.0, 10.0]]))
        np.testing.assert_allclose(phi[0], phi[1], atol=1e-5)

    def test_degrees_out_of_range_are_refused(self):
        """Degrees out of range raise an error that names column, row and value."""
        term = SpatialEffect(self.COLUMNS, metric="haversine")
        with pytest.raises(ValueError, match=r"'lon', the longitude, .*row=0, value=181.0"):
            normalised(term, {"lon": [181.0], "lat": [0.0]})


class TestRows:
    def test_missing_coordinates_leave_no_level(self):
        """A row without a coordinate has the null code, a finite basis, no effect, no variance."""
        model = in_mixed_model(places(20), [2.0, 3.0], length_scale=1.0)
        data = {"east": [1.0, np.nan, 2.0], "north": pd.array([2.0, 1.0, None], "Float64")}
        rows = rows_at(model, data)
        encoded, (term,) = rows["_effects"]["east_north"], model.terms
        basis = term.basis(encoded)
        assert encoded["codes"].numpy().tolist() == [0, NULL_CODE, NULL_CODE]
        np.testing.assert_array_equal(encoded["inputs"][1:], 0.0)
        assert np.isfinite(basis).all()
        contribution = design.product(tf.ones((1, term.basis_size, 2)), encoded["codes"], basis)
        np.testing.assert_array_equal(contribution[1:], 0.0)
        for variance in (
            model.variance(rows),
            model.term_variance("east_north", rows),
        ):
            np.testing.assert_array_equal(variance[1:], 0.0)
            assert variance.numpy()[0].min() > 0.0

    def test_missing_coordinates_are_no_place(self):
        """Rows that lack a coordinate change neither the scale nor the inducing points."""
        points = places(10)
        gaps = np.vstack([points, [[np.nan, 1e6], [1e6, np.nan]]])
        first, second = adapted(points, length_scale=1.0), adapted(gaps, length_scale=1.0)
        assert second.scaling.state() == first.scaling.state()
        assert second.level_names() == first.level_names()

    def test_coordinates_of_a_map_grid_in_float32(self):
        """Metres of magnitude 5e6 give the kernel of the coordinates as given, to 1e-4."""
        rng = np.random.default_rng(8)
        points = (np.array([6e5, 5.3e6]) + rng.uniform(0.0, 2e3, (25, 2))).astype(np.float32)
        term = adapted(points, length_scale=400.0)
        phi = basis_of(term, points)
        exact = points.astype(np.float64)
        np.testing.assert_allclose(
            phi @ phi.T, kernel_matrix("rbf", 400.0, exact, exact), atol=1e-4
        )

    def test_neighbours_that_float32_cannot_tell_apart(self):
        """Nearly equal places give a finite basis of the right covariance."""
        points = np.vstack([places(10), places(10) + 1e-9])
        term = adapted(points, length_scale=2.0)
        phi = basis_of(term, points)
        np.testing.assert_allclose(
            phi @ phi.T, kernel_matrix("rbf", 2.0, points, points), atol=1e-3
        )


class TestErrors:
    @pytest.mark.parametrize("columns", ["lon", (), [], None, 3])
    def test_columns_must_be_listed(self, columns):
        """Columns that are no tuple or list of names raise an error."""
        with pytest.raises(ValueError, match="`columns`, expected the names of the coo") as error:
            SpatialEffect(columns)
        assert f"Received: columns={columns!r}" in str(error.value)

    @pytest.mark.parametrize(
        ("columns", "text"),
        [
            (("lon", ""), "expected non-empty strings"),
            (("lon", None), "expected non-empty strings"),
            (("lon", "lon"), "a column name twice"),
            (("x", "y"), "are kept for the features: rename"),
        ],
    )
    def test_unusable_column_names_are_refused(self, columns, text):
        """Names that are empty, repeated or that of the features raise an error."""
        with pytest.raises(ValueError, match=text) as error:
            SpatialEffect(columns)
        assert f"Received: columns={columns}" in str(error.value)

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"kernel": "cubic"}, r"expected one of \['matern12', .*\]. Received: kernel='cubic'"),
            ({"metric": "taxi"}, r"expected one of \['euclidean', .*\]. Received: metric='taxi'"),
            ({"length_scale": 0.0}, "`length_scale`, .*above 0. Received: length_scale=0.0"),
            ({"length_scale": -1}, "`length_scale`, .*above 0. Received: length_scale=-1"),
            ({"length_scale": np.nan}, "`length_scale`, .*Received: length_scale=nan"),
            ({"length_scale": "1"}, "`length_scale`, .*Received: length_scale='1'"),
            ({"num_inducing": 0}, "`num_inducing`, .*at least 1. Received: num_inducing=0"),
            ({"num_inducing": 2.5}, "`num_inducing`, .*Received: num_inducing=2.5"),
            ({"seed": -1}, "`seed`, expected an integer of at least 0. Received: seed=-1"),
            ({"seed": None}, "`seed`, .*Received: seed=None"),
        ],
    )
    def test_bad_options_are_refused(self, options, text):
        """The error names the option, what was expected and what came."""
        with pytest.raises(ValueError, match=text):
            SpatialEffect(COLUMNS, **options)

    @pytest.mark.parametrize("metric", ["euclidean", "haversine"])
    @pytest.mark.parametrize(
        ("points", "number"),
        [
            (np.full((1, 2), 7.0), 1),
            (np.full((5, 2), 7.1), 1),
            (np.full((5, 2), np.nan), 0),
            (np.array([[1.0, np.nan], [np.nan, 1.0]]), 0),
        ],
        ids=["one row", "one place", "no place", "half places"],
    )
    def test_fewer_than_two_places_are_refused(self, points, number, metric):
        """The error names the user's columns, whatever the metric."""
        expected = r"\['east', 'north'\] must be known at two distinct places at least"
        with pytest.raises(ValueError, match=expected) as error:
            adapted(points, metric=metric)
        assert f"Received: places={number}" in str(error.value)

    def test_both_ends_of_the_date_line_are_one_place(self):
        """Rounding does not make two places of the two ends of the date line."""
        with pytest.raises(ValueError, match="two distinct places at least"):
            adapted(np.array([[-180.0, 10.0], [180.0, 10.0]]), metric="haversine")

    def test_unadapted_term_says_so(self):
        """A term that was not adapted says so when it is asked for inputs."""
        with pytest.raises(ValueError, match=r"'east_north' does not know its levels yet: call"):
            SpatialEffect(COLUMNS).encode(columns_of(places(3)))

    def test_reset_starts_again(self):
        """A reset forgets the places of a failed `adapt`."""
        term = SpatialEffect(COLUMNS)
        term.update_state(normalised(term, columns_of(np.full((3, 2), 1e6))))
        with pytest.raises(ValueError, match="two distinct places"):
            term.finalize_state()
        term.reset_state()
        term.update_state(normalised(term, columns_of(places(8))))
        term.finalize_state()
        assert term.basis_size == 8
        assert max(term.scaling.center) < 10.0


class TestSaving:
    @pytest.mark.parametrize(
        "term",
        [
            SpatialEffect(COLUMNS),
            SpatialEffect(["t"], "matern12", 2.0, "euclidean", 10, "trend", 3),
            SpatialEffect(COLUMNS, metric="haversine", length_scale=np.float32(2.0)),
            SpatialEffect(COLUMNS, kernel=Stationary("rbf") * Stationary("matern12")),
        ],
        ids=["defaults", "all options", "haversine", "product of kernels"],
    )
    def test_config_round_trip(self, term):
        """Keras restores the term from its configuration."""
        config = keras.saving.serialize_keras_object(term)
        clone = keras.saving.deserialize_keras_object(json.loads(json.dumps(config)))
        assert type(clone) is SpatialEffect
        assert clone.get_config() == term.get_config()

    def test_adapted_state_and_weights_round_trip(self):
        """A restored term has the same basis, without a look at the data."""
        points = places(20)
        term = adapted(points, length_scale=1.3)
        clone = SpatialEffect.from_config(term.get_config())
        clone.restore_adapted_state(json.loads(json.dumps(term.adapted_state())))
        clone.build_basis(is_amortized=False)
        for weight, value in zip(clone.weights, term.weights, strict=True):
            weight.assign(value)
        np.testing.assert_array_equal(basis_of(clone, points), basis_of(term, points))
        assert clone.fitted_length_scale == term.fitted_length_scale
        assert clone.level_names() == term.level_names()
