"""`simulate`: rows, and the truth that they were made of."""

import numpy as np
import pandas as pd
import pytest

from keras_lmmvae.runs.simulate import find_table, simulate


def read(tmp_path):
    names = ("t", "t_truth", "t_variances")
    return [pd.read_csv(tmp_path / f"{name}.csv") for name in names]


def test_rows_are_the_truth_and_noise(tmp_path):
    """x - signal - effects is noise of variance 1; effects are one curve per subject."""
    simulate("tiny", tmp_path / "t.csv", table="longitudinal", num_rows=700, latent_dim=2, seed=3)
    rows, truth, variances = read(tmp_path)
    features = [f"x_{k}" for k in range(10)]
    assert list(rows) == [*features, "subject", "t"]
    assert list(truth)[:2] == ["u_0", "u_1"]
    parts = [truth[[f"{name}_{k}" for k in range(10)]] for name in ("signal", "subject")]
    noise = rows[features].to_numpy() - sum(part.to_numpy() for part in parts)
    assert noise.size == 7000
    assert abs(noise.var() - 1.0) < 5 * np.sqrt(2 / noise.size)
    assert list(variances) == ["component", *features]
    names = ["subject: intercept", "subject: t", "subject: t^2", "noise"]
    assert list(variances["component"]) == names
    one = rows["subject"] == 0
    basis = rows.loc[one, ["t"]].to_numpy() ** np.arange(3)
    curve = truth.loc[one, "subject_0"].to_numpy()
    fitted = basis @ np.linalg.lstsq(basis, curve, rcond=None)[0]
    np.testing.assert_allclose(fitted, curve, atol=1e-8)


def test_intercepts_have_one_variance(tmp_path):
    simulate("tiny", tmp_path / "t.csv", table="categorical", num_rows=100)
    assert list(read(tmp_path)[2]["component"]) == ["group_0", "group_1", "noise"]


def test_seed_fixes_the_rows(tmp_path):
    texts = []
    for seed in (1, 1, 2):
        simulate("tiny", tmp_path / "t.csv", table="spatial", num_rows=50, seed=seed)
        texts.append((tmp_path / "t.csv").read_text())
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("suite", "table", "message"),
    [
        (
            "nope",
            None,
            "There is no simulated suite 'nope', expected one of .'tiny'.*Received: suite='nope'",
        ),
        ("real", None, "There is no simulated suite 'real', expected .*Received: suite='real'"),
        ("tiny", None, "needs a `--table` out of .*'longitudinal'.*Received: table=None"),
        ("tiny", "x", "needs a `--table` out of .*Received: table='x'"),
    ],
)
def test_unknown_names(suite, table, message):
    with pytest.raises(ValueError, match=message):
        find_table(suite, table)
