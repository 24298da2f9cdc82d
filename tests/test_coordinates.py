"""Coordinates as positions in space."""

import numpy as np
import pytest

from keras_lmmvae.effects.scaling import (
    EARTH_RADIUS_KM,
    check_degrees,
    check_metric,
    from_positions,
    to_positions,
)

NAMES = ("lon", "lat")


def great_circle(lon1, lat1, lon2, lat2) -> float:
    """Kilometres on the globe by the haversine formula, in degrees."""
    lon1, lat1, lon2, lat2 = np.radians([lon1, lat1, lon2, lat2])
    inner = np.sin((lat2 - lat1) / 2) ** 2
    inner += np.cos(lat1) * np.cos(lat2) * np.sin((lon2 - lon1) / 2) ** 2
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(inner))


def positions(lon, lat) -> np.ndarray:
    values = {"lon": np.atleast_1d(lon), "lat": np.atleast_1d(lat)}
    return np.stack(list(to_positions("haversine", NAMES, values).values()), axis=1)


class TestToPositions:
    def test_euclidean_columns_are_positions(self):
        """Euclidean columns pass as float64, by name."""
        values = {"a": np.array([1, 2]), "b": np.array([0.5, np.nan], np.float32), "c": [0, 0]}
        found = to_positions("euclidean", ("b", "a"), values)
        assert list(found) == ["b", "a"]
        np.testing.assert_array_equal(found["a"], [1.0, 2.0])
        np.testing.assert_array_equal(found["b"], [0.5, np.nan])

    def test_haversine_distance_is_the_chord(self):
        """chord = 2 R sin(d / 2R) for the great-circle distance d of any two places."""
        rng = np.random.default_rng(0)
        first = rng.uniform(-180, 180, 40), rng.uniform(-90, 90, 40)
        second = rng.uniform(-180, 180, 40), rng.uniform(-90, 90, 40)
        chord = np.linalg.norm(positions(*first) - positions(*second), axis=1)
        distance = np.array([great_circle(*pair) for pair in zip(*first, *second, strict=True)])
        expected = 2 * EARTH_RADIUS_KM * np.sin(distance / (2 * EARTH_RADIUS_KM))
        np.testing.assert_allclose(chord, expected, rtol=1e-9)

    def test_chord_is_the_distance_up_to_its_square(self):
        """The chord lacks d**2 / (24 R**2) of the distance: Berlin to Munich, 504 km, 0.03 %."""
        berlin, munich = (13.405, 52.52), (11.582, 48.135)
        distance = great_circle(*berlin, *munich)
        chord = np.linalg.norm(positions(*berlin) - positions(*munich))
        assert distance == pytest.approx(504.4, abs=1.0)
        error = distance**2 / (24 * EARTH_RADIUS_KM**2)
        assert 1.0 - chord / distance == pytest.approx(error, rel=1e-2)

    def test_the_globe_has_no_seam(self):
        """180 degrees west is 180 degrees east, and a pole is one place."""
        np.testing.assert_allclose(positions(-180.0, 10.0), positions(180.0, 10.0), atol=1e-9)
        np.testing.assert_allclose(positions(-70.0, 90.0), positions(55.0, 90.0), atol=1e-9)

    def test_missing_coordinates_are_nan(self):
        """One missing degree leaves no position."""
        assert np.isnan(
            positions(np.array([np.nan, 1.0]), np.array([1.0, np.nan])).sum(axis=1)
        ).all()


class TestFromPositions:
    def test_haversine_positions_become_degrees(self):
        """Degrees are the inverse of `to_positions`, also from within the globe."""
        rng = np.random.default_rng(1)
        lon, lat = rng.uniform(-180, 180, 20), rng.uniform(-90, 90, 20)
        inside = 0.9 * positions(lon, lat)
        found = from_positions("haversine", inside)
        np.testing.assert_allclose(found, np.stack([lon, lat], axis=1), rtol=1e-9)

    def test_euclidean_positions_stay(self):
        """Euclidean positions are the coordinates."""
        points = np.arange(6.0).reshape(3, 2)
        np.testing.assert_array_equal(from_positions("euclidean", points), points)


class TestChecks:
    def test_unknown_metric_is_refused(self):
        """The error lists the metrics there are."""
        expected = r"one of \['euclidean', 'haversine'\]. Received: metric='manhattan'"
        with pytest.raises(ValueError, match=expected):
            check_metric("manhattan", NAMES)

    @pytest.mark.parametrize("columns", [("lon",), ("lon", "lat", "height")])
    def test_haversine_needs_two_columns(self, columns):
        """The haversine metric needs longitude and latitude."""
        check_metric("euclidean", columns)
        with pytest.raises(ValueError, match=r"two columns, \(longitude, latitude\)") as error:
            check_metric("haversine", columns)
        assert f"Received: columns={columns}" in str(error.value)

    def test_degrees_in_range_pass(self):
        """The ends of the ranges and NaN pass."""
        lon, lat = np.array([-180.0, 180.0, np.nan]), np.array([-90.0, np.nan, 90.0])
        check_degrees(NAMES, {"lon": lon, "lat": lat})

    @pytest.mark.parametrize(
        ("lon", "lat", "text"),
        [
            (270.0, 45.0, r"'lon', the longitude, must lie in \[-180, 180\] .*row=1, value=270.0"),
            (45.0, -91.0, r"'lat', the latitude, must lie in \[-90, 90\] .*row=1, value=-91.0"),
            (48.1, 120.0, r"whose columns are \(longitude, latitude\). .*row=1, value=120.0"),
        ],
        ids=["0 to 360", "beyond the pole", "swapped"],
    )
    def test_degrees_out_of_range_are_refused(self, lon, lat, text):
        """The error names column, range, order, row and value."""
        with pytest.raises(ValueError, match=text):
            check_degrees(NAMES, {"lon": np.array([0.0, lon]), "lat": np.array([0.0, lat])})
