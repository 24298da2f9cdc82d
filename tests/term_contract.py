"""What every random-effects term owes a model, checked by one function."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from reference import blup, dense_design
from small_models import constant_decoder, small_model

import keras_lmmvae as lmm
from keras_lmmvae import design
from keras_lmmvae.columns import Columns
from keras_lmmvae.effects.random_effect import Encoded, RandomEffect
from keras_lmmvae.effects.vocabulary import NULL_CODE, UNKNOWN_CODE
from keras_lmmvae.mixed_model.level_effects import LevelEffects
from keras_lmmvae.mixed_model.mixed_model import MixedModel
from keras_lmmvae.mixed_model.table_rows import TableRows
from keras_lmmvae.validation import NULL_INTEGER

__all__ = ["adapted", "check_term", "normalised", "with_effects"]

Data = dict[str, Any]
MakeTerm = Callable[[], RandomEffect]
# Where features share no scale, tolerances are shares of the largest value.
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


def normalised(term: RandomEffect, data: Data, *others: RandomEffect) -> dict[str, np.ndarray]:
    """Columns as `adapt` and `fit` hand them to a term; features of zeros if there are none."""
    rows = len(next(iter(data.values())))
    return Columns([term, *others]).normalised({"x": np.zeros((rows, 1)), **data})


def adapted(term: RandomEffect, data: Data) -> RandomEffect:
    """The term after `adapt` on some rows."""
    term.update_state(normalised(term, data))
    term.finalize_state()
    return term


def with_effects(term: RandomEffect, num_features: int) -> LevelEffects:
    """The effects that a mixed model of one adapted term has; its basis is built."""
    model = MixedModel([term])
    model.build((None, num_features))
    return model.of(term.label)


def check_term(make_term: MakeTerm, data: Data, folder: Path) -> None:
    """Checks a term alone, in a mixed model, and in a model that is fitted, saved and served.

    Args:
        make_term: Function that makes the term, always the same.
        data: Columns of complete rows with the features under "x" `(n, p)`. At least two levels
            have two rows or more.
        folder: An empty folder.
    """
    check_configuration(make_term)
    check_adapted_state(make_term, data, folder)
    check_design(make_term, data)
    check_posterior(make_term, data)
    check_limits(make_term, data)
    check_missing_rows(make_term, data)
    check_gradient(make_term, data)
    check_xla(make_term, data)
    model = fitted_model(make_term, data)
    check_tables(model)
    check_saved(model, data, folder)
    check_condition(model, data)
    check_served(model, data, folder)


def encoded_rows(term: RandomEffect, data: Data) -> tuple[Encoded, np.ndarray, np.ndarray | None]:
    """Encoded rows with their codes and bases as arrays."""
    encoded = term.encode(normalised(term, data))
    basis = term.basis_of(encoded)
    return encoded, encoded["codes"].numpy(), None if basis is None else basis.numpy()


def rows_of(data: Data, chosen: Any) -> Data:
    return {name: np.asarray(column)[chosen] for name, column in data.items()}


# A term alone -----------------------------------------------------------------------------------


def check_configuration(make_term: MakeTerm) -> None:
    """Plain JSON makes the same term, by `from_config` and by Keras' own serialisation."""
    term = make_term()
    config = term.get_config()
    plain = json.loads(json.dumps(keras.saving.serialize_keras_object(term)))
    for again in (type(term).from_config(config), keras.saving.deserialize_keras_object(plain)):
        assert type(again) is type(term)
        assert again.get_config() == config
        assert (again.label, again.columns) == (term.label, term.columns)
        assert (again.keys, again.numbers) == (term.keys, term.numbers)
        assert not again.is_adapted
    assert set(term.columns) == {*term.keys, *term.numbers}


def check_adapted_state(make_term: MakeTerm, data: Data, folder: Path) -> None:
    """What is saved gives the same levels, codes, basis, names and units, without the rows."""
    term = adapted(make_term(), data)
    term.build_basis(is_amortized=False)
    assets = folder / "assets"
    assets.mkdir()
    has_assets = hasattr(term, "save_assets")  # Keras asks for them only where they are written.
    if has_assets:
        term.save_assets(str(assets))
    again = type(term).from_config(term.get_config())
    again.restore_adapted_state(json.loads(json.dumps(term.adapted_state())))
    if has_assets:
        again.load_assets(str(assets))
    again.build_basis(is_amortized=False)
    for weight, value in zip(again.weights, term.weights, strict=True):
        weight.assign(value)
    assert again.is_adapted
    assert (again.num_levels, again.basis_size) == (term.num_levels, term.basis_size)
    assert again.level_names() == term.level_names()
    assert again.coefficient_names() == term.coefficient_names()
    assert again.typical_values() == term.typical_values()
    np.testing.assert_array_equal(again.user_basis(), term.user_basis())
    encoded, _, basis = encoded_rows(term, data)
    encoded_again, _, basis_again = encoded_rows(again, data)
    assert encoded.keys() == encoded_again.keys()
    for name, value in encoded.items():
        np.testing.assert_array_equal(encoded_again[name], value)
    assert (basis is None) == (basis_again is None)
    if basis is not None:
        np.testing.assert_array_equal(basis_again, basis)


def check_design(make_term: MakeTerm, data: Data) -> None:
    """Codes and basis make the rows of a dense Z: its product and its Gram blocks are theirs."""
    term = adapted(make_term(), data)
    effects = with_effects(term, 2)
    _, codes, basis = encoded_rows(term, data)
    levels, size = term.num_levels, term.basis_size
    assert codes.dtype == np.int32
    assert codes.min() >= 0
    assert codes.max() < levels
    if basis is None:
        assert size == 1
    else:
        assert basis.shape == (len(codes), size)
        assert basis.dtype == np.float32
    dense = dense_design(codes, basis, levels)
    table = np.random.default_rng(0).normal(size=(levels, size, 2)).astype(np.float32)
    effects.table.effects.assign(table)
    product = TableRows(effects.table, effects.prior, codes, basis).product()
    np.testing.assert_allclose(product, dense @ table.reshape(-1, 2), rtol=1e-4, atol=1e-4)
    gram = (dense.T @ dense).reshape(levels, size, levels, size)
    blocks = np.stack([gram[level, :, level] for level in range(levels)])
    largest = np.abs(blocks).max()
    np.testing.assert_allclose(design.gram(codes, basis, levels), blocks, atol=1e-5 * largest)


# A term in a mixed model ------------------------------------------------------------------------


def check_posterior(make_term: MakeTerm, data: Data) -> None:
    """The effects are the dense BLUP, of all rows and of those of one level alone."""
    whole = adapted(make_term(), data)
    codes = whole.encode(normalised(whole, data))["codes"].numpy()
    for rows in (data, rows_of(data, codes == codes[0])):
        term = adapted(make_term(), rows)
        if rows is not data:
            assert term.num_levels == 1
        effects, noise = prepared_effects(term, rows, [2.0, 0.5])
        _, codes_now, basis = encoded_rows(term, rows)
        values = np.random.default_rng(1).normal(size=(len(codes_now), 2))
        scores = design.transpose_product(
            tf.constant(values / noise, tf.float32), codes_now, basis, term.num_levels
        )
        mean = effects.table.solve(scores, effects.information)
        variance = TableRows(effects.table, effects.prior, codes_now, basis).variance(
            effects.information
        )
        dense = dense_design(codes_now, basis, term.num_levels)
        psi = np.kron(np.eye(term.num_levels), effects.coefficient_covariance.numpy())
        expected, covariance = blup(values, dense, noise, np.array([2.0, 0.5]), psi)
        np.testing.assert_allclose(dense @ np.reshape(mean, (-1, 2)), dense @ expected, **CLOSE)
        by_row = np.einsum("bi,fij,bj->bf", dense, covariance, dense)
        np.testing.assert_allclose(variance, by_row, **CLOSE)


def prepared_effects(
    term: RandomEffect, data: Data, effect_variance: list[float]
) -> tuple[LevelEffects, np.ndarray]:
    """Effects of two features that know the design of the rows, and noise variances.

    `Psi` is not the identity where it is learned.
    """
    effects = with_effects(term, 2)
    size = term.basis_size
    psi = 0.7 * np.eye(size) + 0.3 * np.ones((size, size))
    is_learned = term.learn_coefficient_covariance
    effects.prior.effect_variance.assign(effect_variance)
    if is_learned:
        effects.prior.coefficient_covariance.assign(psi)
    _, codes, basis = encoded_rows(term, data)
    fold = np.arange(len(codes), dtype=np.int32) % 2
    effects.set_design(
        design.gram(codes, basis, term.num_levels, fold=fold),
        design.count(codes, term.num_levels, fold=fold),
    )
    noise = np.array([0.5, 1.0], np.float32)
    effects.set_information(np.diag(1.0 / noise))
    return effects, noise


def check_limits(make_term: MakeTerm, data: Data) -> None:
    """Effects of variance 0 are 0 and certain; of a level without rows they are the prior's."""
    term = adapted(make_term(), data)
    effects, noise = prepared_effects(term, data, [0.0, 2.0])
    _, codes, basis = encoded_rows(term, data)
    values = tf.constant(np.random.default_rng(2).normal(size=(len(codes), 2)), tf.float32)
    scores = design.transpose_product(values / noise, codes, basis, term.num_levels)
    mean = effects.table.solve(scores, effects.information)
    variance = (
        TableRows(effects.table, effects.prior, codes, basis).variance(effects.information).numpy()
    )
    np.testing.assert_array_equal(mean[..., 0], 0.0)
    np.testing.assert_array_equal(variance[:, 0], 0.0)
    assert np.abs(mean[..., 1]).max() > 0.0
    assert variance[:, 1].max() > 0.0
    effects.set_design(tf.zeros_like(effects.folds.gram), tf.zeros_like(effects.folds.count))
    variance = TableRows(effects.table, effects.prior, codes, basis).variance(effects.information)
    prior = effects.prior.row_variance(basis, len(codes))
    np.testing.assert_allclose(variance, prior, rtol=1e-3, atol=1e-5)


def check_missing_rows(make_term: MakeTerm, data: Data) -> None:
    """Rows without a key or a number, and unknown keys, contribute nothing.

    A null row has no variance either; an unknown level has that of the prior.
    """
    term = adapted(make_term(), data)
    model = MixedModel([term])
    model.build((None, 2))
    effects = model.of(term.label)
    effects.table.effects.assign(tf.ones_like(effects.table.effects))
    cases = [(name, NULL_CODE, np.nan) for name in term.numbers]
    for name in term.keys:
        is_text = np.asarray(data[name]).dtype.kind not in "iu"
        unknown = "nobody's key" if is_text else np.iinfo(np.int64).max
        cases += [(name, NULL_CODE, "" if is_text else NULL_INTEGER), (name, UNKNOWN_CODE, unknown)]
    for name, code, value in cases:
        column = np.array(data[name], float if name in term.numbers else None)
        column = column.astype(object) if isinstance(value, str) else column
        column[1] = value
        encoded, codes, basis = encoded_rows(term, {**data, name: column})
        assert codes[1] == code, name
        assert codes[0] >= 0, name
        rows = {"x": tf.zeros((len(codes), 2)), "_effects": {term.label: encoded}}
        assert basis is None or np.isfinite(basis).all()
        contribution = model.contribution(rows).numpy()
        np.testing.assert_array_equal(contribution[1], 0.0, err_msg=name)
        assert np.abs(contribution).max() > 0.0
        prior = effects.prior.row_variance(basis, len(codes))[1]
        expected = prior if code == UNKNOWN_CODE else tf.zeros(2)
        for variance in (
            model.variance(rows),
            model.term_variance(term.label, rows),
        ):
            np.testing.assert_allclose(variance[1], expected, rtol=1e-6, err_msg=name)


def check_gradient(make_term: MakeTerm, data: Data) -> None:
    """The derivative of the basis by its inputs is finite, at rows and where one is missing."""
    term = adapted(make_term(), data)
    term.build_basis(is_amortized=False)
    encoded = term.encode(normalised(term, data))
    if "inputs" not in encoded:
        assert term.basis(encoded) is None
        return
    inputs = tf.concat([encoded["inputs"], tf.zeros_like(encoded["inputs"][:1])], axis=0)
    codes = tf.concat([encoded["codes"], [NULL_CODE]], axis=0)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        basis = term.basis({"codes": codes, "inputs": inputs})
        total = tf.reduce_sum(tf.sin(basis))
    gradient = tape.gradient(total, inputs)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0.0


def check_xla(make_term: MakeTerm, data: Data) -> None:
    """From numbers to inputs, basis and product, XLA computes what eager mode does.

    Keys are looked up in the input pipeline, before.
    """
    term = adapted(make_term(), data)
    effects = with_effects(term, 2)
    table = np.random.default_rng(3).normal(size=effects.table.effects.shape)
    effects.table.effects.assign(table)
    columns = normalised(term, data)
    codes = term.codes(columns, None)
    numbers = {name: tf.constant(columns[name]) for name in ("x", *term.numbers)}

    def contribution(codes: tf.Tensor, numbers: dict[str, tf.Tensor]) -> tf.Tensor:
        encoded = {**term.encode_of_one_level(numbers), "codes": codes}
        read = TableRows(effects.table, effects.prior, codes, term.basis_of(encoded))
        return read.product()

    eager = contribution(codes, numbers)
    compiled = tf.function(contribution, jit_compile=True)(codes, numbers)
    np.testing.assert_allclose(compiled, eager, rtol=1e-4, atol=1e-4)
    whole = term.encode(columns)
    read = TableRows(effects.table, effects.prior, whole["codes"], term.basis_of(whole))
    np.testing.assert_allclose(eager, read.product(), rtol=1e-5, atol=1e-5)


# A term in a model ------------------------------------------------------------------------------


def fitted_model(make_term: MakeTerm, data: Data) -> lmm.LMMVAE:
    """A fitted model whose decoder is 0: it is the linear mixed model of the term."""
    model = small_model([make_term()], decoder=constant_decoder(np.shape(data["x"])[1]))
    model.adapt(data)
    model.compile("adam")
    model.fit(data, epochs=1, batch_size=max(len(data["x"]) // 2, 1), verbose=0)
    return model


def check_tables(model: lmm.LMMVAE) -> None:
    """Tables have a row per component, and per level and coefficient (or place)."""
    (term,) = model.random_effects
    components = model.variance_components()
    assert list(components.index) == [*term.component_names(), "noise"]
    assert (components.to_numpy() > 0.0).all()
    names = term.level_names()
    assert len(set(names)) == len(names)
    assert len(term.component_names()) == len(term.coefficient_names())
    coefficients = len(term.coefficient_names())
    for std in (False, True):
        table = model.random_effects_table(term.label, std=std)
        assert table.shape == (len(names) * coefficients, model.num_features)
        assert np.isfinite(table).all(axis=None)
        levels = table.index.get_level_values(0) if coefficients > 1 else table.index
        assert list(levels) == [name for name in names for _ in range(coefficients)]
        if coefficients > 1:
            given = list(table.index.get_level_values(1))
            assert given == term.coefficient_names() * len(names)
    assert (model.random_effects_table(term.label, std=True) > 0.0).all(axis=None)


def check_saved(model: lmm.LMMVAE, data: Data, folder: Path) -> None:
    """A `.keras` file gives the same predictions, effects and variances."""
    (term,) = model.random_effects
    model.save(folder / "model.keras")
    again = keras.saving.load_model(folder / "model.keras")
    np.testing.assert_array_equal(again.predict(data, verbose=0), model.predict(data, verbose=0))
    for std in (False, True):
        table = again.random_effects_table(term.label, std=std)
        assert table.equals(model.random_effects_table(term.label, std=std))
    assert again.variance_components().equals(model.variance_components())
    mean, deviation = again.term_effects(term.label, data)
    expected_mean, expected_deviation = model.term_effects(term.label, data)
    np.testing.assert_array_equal(mean, expected_mean)
    np.testing.assert_array_equal(deviation, expected_deviation)


def check_condition(model: lmm.LMMVAE, data: Data) -> None:
    """Effects given some rows are the dense BLUP of these and of the level's training rows.

    Known levels start at what their training rows say, others at the prior.
    """
    (term,) = model.random_effects
    _, codes, basis = encoded_rows(term, data)
    ones = np.ones((len(codes), 1))
    phi = ones if basis is None else basis.astype(np.float64)
    known = np.flatnonzero(codes == codes[0])
    few = known[:3]
    cases = [(rows_of(data, few), known)]
    for name in term.keys:
        is_text = np.asarray(data[name]).dtype.kind not in "iu"
        key = np.full(len(few), "nobody's key" if is_text else np.iinfo(np.int64).max)
        cases.append(({**rows_of(data, few), name: key}, known[:0]))
    scale = np.asarray(model.feature_scale, np.float64)
    # A constant decoder gives the intercept.
    intercept = model.decode(np.zeros((1, model.latent_dim)))
    values = (np.asarray(data["x"], np.float64) - intercept) / scale
    effects, noise = model.mixed_model.of(term.label), np.asarray(model.noise_variance, np.float64)
    variance = np.asarray(effects.effect_variance, np.float64)
    psi = np.asarray(effects.coefficient_covariance, np.float64)
    for rows, earlier in cases:
        used = np.concatenate([earlier, few])
        mean, covariance = blup(values[used], phi[used], noise, variance, psi)
        shown = term.user_basis() if term.has_levels else phi[few]
        found = model.condition(rows, term.label)
        deviation = np.sqrt(np.einsum("ci,fij,cj->cf", shown, covariance, shown)) * scale
        expected = shown @ mean * scale
        close = {"rtol": 1e-2, "atol": 1e-3 * np.abs(expected).max()}
        np.testing.assert_allclose(found.effects, expected, **close)
        np.testing.assert_allclose(found.standard_deviation, deviation, rtol=1e-2, atol=1e-4)
        reconstruction = phi[few] @ mean * scale + intercept
        np.testing.assert_allclose(found.reconstruction, reconstruction, **close)


def check_served(model: lmm.LMMVAE, data: Data, folder: Path) -> None:
    """The SavedModel, loaded by TensorFlow alone, answers what the model does."""
    (term,) = model.random_effects
    model.export(folder / "served", verbose=False)
    signatures = tf.saved_model.load(str(folder / "served")).signatures
    assert {f"random_effects_{term.name}", f"condition_{term.name}"} <= set(signatures)
    columns = normalised(term, data)
    request = {
        name: tf.constant(columns[name].tolist(), dtype)
        for name, dtype in term.column_dtypes().items()
    }
    served = signatures["serving_default"](x=tf.constant(columns["x"], tf.float32), **request)
    largest = np.abs(columns["x"]).max()
    np.testing.assert_allclose(
        served["reconstruction"], model.predict(data, verbose=0), rtol=1e-4, atol=1e-4 * largest
    )
    assert served[f"known_{term.name}"].numpy().all()
    mean, deviation = model.term_effects(term.label, data)
    answer = signatures[f"random_effects_{term.name}"](**request)
    np.testing.assert_allclose(answer["mean"], mean, rtol=1e-4, atol=1e-4 * largest)
    np.testing.assert_allclose(answer["standard_deviation"], deviation, rtol=1e-3, atol=1e-4)
