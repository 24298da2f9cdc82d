"""Configurations of runs: strict keys, errors that help, and what a job makes of them."""

import inspect
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import yaml

import keras_lmmvae as lmm
from keras_lmmvae.runs.command import example_config
from keras_lmmvae.runs.config import ModelSettings, Validation, parse_config, read_config
from keras_lmmvae.runs.job import fingerprint, make_job
from keras_lmmvae.runs.terms import term_mapping, terms_from
from keras_lmmvae.simulation.splits import SplitKind

MODEL = {"latent_dim": 1, "hidden_units": [4]}
TERMS = [
    lmm.RandomIntercept("store", name="shop"),
    lmm.RandomSlopes("patient", time="t", degree=2, covariates=["dose"]),
    lmm.SpatialEffect(("lon", "lat"), kernel="matern32", length_scale=2.0, num_inducing=9),
]


def table(rows=40):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "a": rng.normal(size=rows),
            "store": np.arange(rows) % 8,
            "b": rng.normal(size=rows),
            "year": np.arange(rows)[::-1],
            "name": "x",
        }
    )


def job(frame=None, **parts):
    config = parse_config({"random_effects": "(1 | store)", "model": MODEL, **parts})
    return make_job(config, table() if frame is None else frame)


class TestConfig:
    def test_example_is_a_configuration(self):
        """It parses, for the columns of the table that its first lines simulate."""
        config = parse_config(yaml.safe_load(example_config()))
        assert config.terms()[0].columns == ("subject", "t")
        assert config.training.epochs == 20
        assert config.model.latent_dim == 2

    def test_full_configuration_gives_itself(self):
        """What a run writes down is read as the same configuration."""
        given = {"features": ["a"], "random_effects": [term_mapping(t) for t in TERMS]}
        given |= {"model": MODEL, "training": {"validation": {"by": "groups", "column": "store"}}}
        full = parse_config(given).mapping()
        assert parse_config(yaml.safe_load(yaml.safe_dump(full))).mapping() == full

    @pytest.mark.parametrize("term", TERMS, ids=lambda term: type(term).__name__)
    def test_mapping_of_a_term_gives_the_term(self, term):
        (same,) = terms_from([term_mapping(term)])
        assert same.get_config() == term.get_config()
        assert type(same) is type(term)

    def test_formula_and_mappings_agree(self):
        formula = terms_from("(1 | store) + (1 + t | patient) + gp(lon, lat)")
        mappings = [
            {"type": "RandomIntercept", "column": "store"},
            {"type": "RandomSlopes", "column": "patient", "time": "t"},
            {"type": "SpatialEffect", "columns": ["lon", "lat"]},
        ]
        listed = terms_from(mappings)
        assert [term_mapping(t) for t in formula] == [term_mapping(t) for t in listed]
        assert terms_from(None) == []

    def test_seed_of_training_is_the_model_s(self):
        """Unless the model is given its own."""
        seeds = [
            parse_config({"model": {**MODEL, **own}, "training": {"seed": 3}}).make_model().seed
            for own in ({}, {"seed": 5}, {"seed": None})
        ]
        assert seeds == [3, 5, None]

    @pytest.mark.parametrize("given", [0.25, {"fraction": 0.25}])
    def test_validation_is_a_share_or_a_mapping(self, given):
        held_out = parse_config({"model": MODEL, "training": {"validation": given}}).training
        assert (held_out.validation.fraction, held_out.validation.by) == (0.25, "rows")

    @pytest.mark.parametrize("given", [0, None, 0.0])
    def test_no_validation(self, given):
        config = parse_config({"model": MODEL, "training": {"validation": given}})
        assert config.training.validation is None

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ([1], "Expected a mapping for the configuration"),
            (None, "Expected a mapping for the configuration"),
            ({"modle": {}}, "Unknown key 'modle' in the configuration: did you mean 'model'"),
            ({"qqq": {}}, "Unknown key 'qqq' in the configuration. Expected keys out of"),
            ({}, "`model` needs a 'latent_dim'"),
            ({"model": {"latentdim": 2}}, "did you mean 'latent_dim'"),
            ({"model": {"random_effects": 2}}, "Unknown key 'random_effects' in `model`"),
            ({"model": {"latent_dim": 0}}, "expected an integer of at least 1"),
            (
                {"model": {**MODEL, "hidden_units": 8}},
                "`model.hidden_units`, expected a list of widths",
            ),
            (
                {"model": {**MODEL, "kl_weight": [1]}},
                "`model.kl_weight`, expected a finite number of at l",
            ),
            ({"model": {**MODEL, "noise_variance": "1e-3"}}, "`model.noise_variance`.* YAML takes"),
            ({"model": {**MODEL, "normalize": "yes"}}, "`model.normalize`, expected true or false"),
            ({"model": {**MODEL, "posterior": "vi"}}, "`model.posterior`, expected one of .'conj"),
            ({"model": "x"}, "Expected a mapping for `model`, with keys out of .'latent_dim'"),
            ({1: 2}, "Unknown key '1' in the configuration"),
            (
                {"training": {"epoch": 1}},
                "Unknown key 'epoch' in `training`: did you mean 'epochs'",
            ),
            (
                {"training": {"epochs": "ten"}},
                "`training.epochs`, expected an integer of at least 1",
            ),
            (
                {"training": {"batch_size": 0}},
                "`training.batch_size`, expected an integer of at least 1",
            ),
            (
                {"training": {"learning_rate": "1e-3"}},
                "`training.learning_rate`.*; YAML takes 1e-3 for text",
            ),
            ({"training": {"learning_rate": -1}}, "`training.learning_rate`, expected a finite"),
            ({"training": {"schedule": "step"}}, "`training.schedule`, expected one of"),
            (
                {"training": {"patience": 0}},
                "`training.patience`, expected an integer of at least 1",
            ),
            ({"training": {"seed": -1}}, "`training.seed`, expected an integer of at least 0"),
            ({"training": {"validation": 1.5}}, "`training.validation.fraction`, .* in .0, 1."),
            ({"training": {"validation": True}}, "`training.validation.fraction`, .* in .0, 1."),
            (
                {"training": {"validation": {"by": "group"}}},
                "`training.validation.by`, expected one",
            ),
            ({"training": {"validation": {"by": "groups"}}}, "needs a `column`"),
            ({"training": {"validation": {"column": "a"}}}, "needs a `column`, by 'rows' none"),
            ({"training": {"validation": {"share": 1}}}, "Unknown key 'share' in `training.vali"),
            ({"features": "a"}, "`features`, expected a list of column names"),
            ({"features": []}, "`features`, expected a list of column names"),
            ({"features": [1]}, "`features`, expected a list of column names"),
            ({"random_effects": 3}, "`random_effects`, expected a formula such as"),
        ],
    )
    def test_errors_say_what_is_wrong(self, given, message):
        if isinstance(given, dict) and given and "modle" not in given and "qqq" not in given:
            given = {"model": MODEL, **given}
        with pytest.raises(ValueError, match=message) as caught:
            parse_config(given)
        assert "Received: " in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"random_effects": "(1 | "}, "must have a column's name as group"),
            ({"random_effects": [{"column": "a"}]}, "needs a 'type' out of"),
            ({"random_effects": [{"type": "Random"}]}, "needs a 'type' out of"),
            ({"random_effects": [{"type": ["a"]}]}, "needs a 'type' out of"),
            (
                {"random_effects": [{"type": "RandomIntercept"}]},
                "could not be made: .* missing 1 required",
            ),
            (
                {"random_effects": [{"type": "RandomIntercept", "colum": "a"}]},
                "Unknown key 'colum' in the term RandomIntercept: did you mean 'column'",
            ),
            ({"random_effects": "(1 | x)"}, "kept for the features"),
            ({"model": {**MODEL, "activation": "reel"}}, "Could not interpret activation"),
            (
                {"model": {**MODEL, "posterior": "amortized", "latent_epochs": 2}},
                "`latent_epochs` goes with posterior='conjugate'",
            ),
        ],
    )
    def test_terms_and_model_have_their_own_errors(self, given, message):
        """They are made before any data are read."""
        config = parse_config({"model": MODEL, **given})
        with pytest.raises(ValueError, match=message):
            config.make_model()

    def test_settings_of_the_model_are_its_arguments(self):
        """Names and defaults are those of `LMMVAE`, but for what no file can hold."""
        parameters = inspect.signature(lmm.LMMVAE.__init__).parameters
        elsewhere = {"self", "random_effects", "encoder", "decoder", "kwargs"}
        expected = {k: p.default for k, p in parameters.items() if k not in elsewhere}
        expected["hidden_units"] = list(expected["hidden_units"])
        del expected["latent_dim"]
        settings = ModelSettings(latent_dim=1).model_dump()
        assert settings.pop("latent_dim") == 1
        assert settings == expected

    def test_splits_are_those_of_the_simulation(self):
        assert get_args(Validation.model_fields["by"].annotation) == get_args(SplitKind)

    def test_whole_numbers_are_numbers(self):
        config = parse_config(
            {"model": {**MODEL, "kl_weight": 0}, "training": {"learning_rate": 10}}
        )
        assert config.training.learning_rate == 10.0
        assert config.model.kl_weight == 0.0

    def test_settings_cannot_be_changed(self):
        settings = parse_config({"model": MODEL}).training
        with pytest.raises(ValueError, match="frozen"):
            settings.epochs = 3

    @pytest.mark.parametrize("text", ["model: {latent_dim: 1", "\x00", "!!python/object:os.system"])
    def test_files_that_are_no_yaml(self, tmp_path, text):
        """One line, and nothing in the file is executed."""
        file = tmp_path / "config.yaml"
        file.write_text(text)
        with pytest.raises(ValueError, match="The configuration cannot be read") as caught:
            read_config(file)
        assert "\n" not in str(caught.value)

    def test_missing_file(self, tmp_path):
        with pytest.raises(ValueError, match="cannot be read.*Received: file="):
            read_config(tmp_path / "none.yaml")


class TestJob:
    def test_features_are_the_numeric_columns_nothing_uses(self):
        held_out = {"by": "future", "column": "year", "fraction": 0.2}
        made = job(training={"validation": held_out})
        assert made.features == ("a", "b")
        assert made.config.mapping()["features"] == ["a", "b"]
        assert job().features == ("a", "b", "year")

    def test_groups_are_held_out_whole(self):
        held_out = {"by": "groups", "column": "store", "fraction": 0.25}
        made = job(training={"validation": held_out})
        assert not set(made.train["store"]) & set(made.validation["store"])
        assert len(set(made.validation["store"])) == 2

    def test_future_is_held_out(self):
        made = job(training={"validation": {"by": "future", "column": "year", "fraction": 0.2}})
        np.testing.assert_array_equal(made.validation["x"][:, 0], table()["a"][:8])

    def test_rows_are_held_out_by_the_seed(self):
        parts = [job(training={"seed": seed}).validation["x"] for seed in (0, 0, 1)]
        assert len(parts[0]) == 4
        np.testing.assert_array_equal(parts[0], parts[1])
        assert not np.array_equal(parts[0], parts[2])

    def test_nothing_is_held_out(self):
        made = job(training={"validation": None})
        assert made.validation is None
        assert made.source()["train_rows"] == 40

    def test_parts_of_a_combined_key_are_no_features(self):
        made = job(random_effects="(1 | year:store)", training={"validation": 0})
        assert made.features == ("a", "b")
        assert made.train["year.store"][0] == "39:0"

    @pytest.mark.parametrize("column", ["nope", None])
    def test_missing_columns(self, column):
        held_out = {"by": "groups", "column": column} if column else 0
        effects = "(1 | store)" if column else "(1 | nope)"
        with pytest.raises(ValueError, match=r"lack the column\(s\) \['nope'\].*Received: "):
            job(random_effects=effects, training={"validation": held_out})

    def test_fingerprint_tells_data_and_split(self):
        """Equal for equal input; another value, order, feature or split gives another."""
        frame = table()
        changed = frame.assign(a=frame["a"].where(frame.index != 3, 0.0))
        jobs = [
            job(),
            job(changed),
            job(frame[::-1]),
            job(features=["a"]),
            job(training={"seed": 2}),
            job(training={"validation": None}),
        ]
        assert job().fingerprint == jobs[0].fingerprint
        assert len({one.fingerprint for one in jobs}) == len(jobs)
        assert fingerprint({"k": np.array(["x", ""], object)}) != fingerprint({"k": np.arange(2)})
