"""`LMMVAETransformer` keeps scikit-learn's contract, and is the model it wraps."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GroupKFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import keras_lmmvae as lmm
from keras_lmmvae.baselines.schedule import cosine_adam

NAMES = ["a", "b", "c"]


def make_transformer(*arguments: Any, **options: Any) -> lmm.LMMVAETransformer:
    """A transformer that trains in a second."""
    options = {"hidden_units": (4,), "epochs": 1, "batch_size": 64, "random_state": 0, **options}
    return lmm.LMMVAETransformer(*(arguments or (1,)), **options)


def make_frame(n: int = 130) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    store = rng.integers(0, 10, n)
    x = rng.normal(size=(n, 3)) + 2.0 * rng.normal(size=(10, 3))[store]
    frame = pd.DataFrame(x, columns=NAMES)
    frame.loc[::9, "b"] = np.nan
    frame["store"] = [f"store {number}" for number in store]
    frame["day"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(n) % 30, unit="D")
    return frame


FRAME = make_frame()


@pytest.fixture(scope="module")
def fitted() -> lmm.LMMVAETransformer:
    return make_transformer(random_effects="(1 + day | store)").fit(FRAME)


def without_compiling(test: Any) -> Any:
    """Marks a test that asks for conventions, not for the compiled step, where most time goes."""
    warning = "ignore:Even though the `tf.config.experimental_run_functions_eagerly`"
    return pytest.mark.usefixtures("eagerly")(pytest.mark.filterwarnings(warning)(test))


@pytest.fixture
def eagerly() -> Iterator[None]:
    """Runs TensorFlow's functions without graphs."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


# scikit-learn compares rows in another order to 1e-7. The networks compute in float32, whose
# rounding depends on a row's place in the batch: see `test_order_of_rows`.
IN_FLOAT32 = "check_methods_sample_order_invariance"


# None is expected to fail: without random effects, whose keys an array of numbers has no place
# for, all of scikit-learn's checks apply.
@without_compiling
@parametrize_with_checks([make_transformer()])
def test_scikit_learn_checks(estimator: Any, check: Any):
    """Every check that scikit-learn has for transformers."""
    if check.func.__name__ == IN_FLOAT32:
        pytest.skip("compared to the precision of float32 by `test_order_of_rows`")
    check(estimator)


def test_order_of_rows():
    """Rows in another order get the same latents, within the rounding of float32."""
    x = np.random.default_rng(0).normal(size=(60, 5))
    transformer = make_transformer().fit(x)
    latent, order = transformer.transform(x), np.random.default_rng(1).permutation(60)
    np.testing.assert_allclose(transformer.transform(x[order]), latent[order], rtol=1e-5, atol=1e-6)


def test_is_the_model(fitted: lmm.LMMVAETransformer):
    """It answers as the model trained by hand with the same seed, optimizer and data."""
    model = lmm.LMMVAE(1, "(1 + day | store)", hidden_units=(4,), seed=0)
    data = lmm.from_dataframe(FRAME, NAMES, model.random_effects)
    model.adapt(data)
    model.compile(cosine_adam(2e-3, len(FRAME), 64, 1))
    model.fit(data, epochs=1, batch_size=64, verbose=0)
    latent = fitted.transform(FRAME)
    np.testing.assert_array_equal(latent, model.encode(data))
    assert latent.dtype == np.float64
    np.testing.assert_array_equal(fitted.reconstruct(FRAME), model.reconstruct(data))
    population = fitted.reconstruct(FRAME, include_effects=False)
    np.testing.assert_allclose(fitted.inverse_transform(latent), population, atol=1e-5)
    assert fitted.score(FRAME) == pytest.approx(model.log_likelihood(data).mean())
    assert fitted.model_.feature_names == fitted.features_ == NAMES
    assert fitted.feature_names_in_.tolist() == [*NAMES, "store", "day"]


@without_compiling
@pytest.mark.parametrize("effects", ["(1 + day | store)", [lmm.RandomIntercept("store")]])
def test_clone_and_pickle(effects: Any):
    """A clone fits to the same result; a pickled one is fitted, of bytes of a `.keras` file."""
    one = make_transformer(random_effects=effects)
    twin = clone(one)
    latent = one.fit_transform(FRAME)
    np.testing.assert_array_equal(twin.fit(FRAME).transform(FRAME), latent)
    content = pickle.dumps(one)
    assert b"PK\x03\x04" in content  # the archive's signature
    again = pickle.loads(content)
    np.testing.assert_array_equal(again.transform(FRAME), latent)
    assert again.score(FRAME) == one.score(FRAME)
    np.testing.assert_array_equal(clone(again).fit(FRAME).transform(FRAME), latent)
    assert pickle.loads(pickle.dumps(twin.set_params(random_effects=None))).random_effects is None


@without_compiling
def test_pipeline_and_output():
    """Behind a column transformer that hands frames on, it gives a frame with names of its own."""
    scaled = ColumnTransformer(
        [("scaled", StandardScaler(), NAMES)],
        remainder="passthrough",
        verbose_feature_names_out=False,
    )
    pipeline = make_pipeline(scaled, make_transformer(2, random_effects="(1 | store)"))
    latent = pipeline.set_output(transform="pandas").fit_transform(FRAME)
    assert latent.columns.tolist() == ["lmmvaetransformer0", "lmmvaetransformer1"]
    assert latent.index.equals(FRAME.index)
    assert pipeline.get_feature_names_out().tolist() == latent.columns.tolist()


@without_compiling
def test_cross_validation_by_group():
    """Folds of unseen stores are scored, each by the bound of the model of the other stores."""
    transformer = make_transformer(random_effects="(1 | store)")
    groups, folds = FRAME["store"], GroupKFold(2)
    result = cross_validate(transformer, FRAME, groups=groups, cv=folds, error_score="raise")
    train, test = next(iter(folds.split(FRAME, groups=groups)))
    by_hand = clone(transformer).fit(FRAME.iloc[train]).score(FRAME.iloc[test])
    assert result["test_score"][0] == by_hand


@without_compiling
def test_features_of_a_frame():
    """Named features are used alone, in their order; a frame of features is as good as an array."""
    chosen = make_transformer(features=["c", "a"]).fit(FRAME)
    assert chosen.features_ == ["c", "a"]
    assert chosen.reconstruct(FRAME).shape == (len(FRAME), 2)
    x = FRAME[NAMES]
    by_array = make_transformer().fit(x.to_numpy())
    np.testing.assert_array_equal(make_transformer().fit_transform(x), by_array.transform(x.values))
    assert by_array.features_ is None
    with pytest.warns(UserWarning, match="was fitted without feature names"):
        np.testing.assert_array_equal(by_array.transform(x), by_array.transform(x.values))


def test_random_state_that_moves_on():
    """A generator gives another seed to every fit; two like it the same ones."""
    one, other = np.random.RandomState(5), np.random.RandomState(5)
    seeds = [make_transformer(random_state=one)._make_model().seed for _ in range(2)]
    assert seeds[0] != seeds[1]
    assert make_transformer(random_state=other)._make_model().seed == seeds[0]
    assert make_transformer(random_state=None)._make_model().seed is None


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"epochs": 0}, r"`epochs`.*Received: epochs=0"),
            ({"batch_size": 0}, r"`batch_size`.*Received: batch_size=0"),
            ({"learning_rate": -1.0}, r"`learning_rate`.*Received: learning_rate=-1.0"),
            ({"latent_dim": 0}, r"`latent_dim`.*Received: latent_dim=0"),
            ({"posterior": "exact"}, r"`posterior`.*Received: posterior='exact'"),
            ({"random_effects": "(1 store)"}, r"lacks a '\|'.*Received: formula="),
            ({"random_effects": "(1 | shop)"}, r"lack the column\(s\) \['shop'\]"),
            ({"features": ["height"]}, r"lack the column\(s\) \['height'\]"),
            ({"random_effects": "(1 | a)"}, r"'a' must be strings or whole numbers"),
        ],
    )
    def test_unusable_arguments(self, options: dict[str, Any], message: str):
        """They are found by `fit`, and named."""
        options = {"latent_dim": 1, **options}
        with pytest.raises(ValueError, match=message):
            make_transformer(options.pop("latent_dim"), **options).fit(FRAME)

    def test_arrays_have_no_columns(self):
        """Random effects and chosen features need names."""
        message = r"go by the names of columns, expected a data frame.*numpy\.ndarray"
        for options in ({"random_effects": "(1 | store)"}, {"features": ["a"]}):
            with pytest.raises(ValueError, match=message):
                make_transformer(**options).fit(np.ones((9, 3)))

    def test_not_fitted(self):
        """Nothing can be asked of a transformer before `fit`."""
        latent = np.ones((2, 1))
        transformer = make_transformer()
        for ask in (transformer.transform, transformer.reconstruct, transformer.score):
            with pytest.raises(NotFittedError):
                ask(FRAME)
        with pytest.raises(NotFittedError):
            transformer.inverse_transform(latent)

    def test_other_columns(self, fitted: lmm.LMMVAETransformer):
        """Rows must have the columns of the training rows, and latents the latent dimension."""
        with pytest.raises(ValueError, match=r"yet now missing:\n- a"):
            fitted.transform(FRAME.drop(columns="a"))
        with pytest.raises(ValueError, match=r"matrix of 1 columns\. Received: X=array of shape"):
            fitted.inverse_transform(np.ones((3, 2)))


@without_compiling
class TestRepresentations:
    """`include` and `learn_levels`: which numbers `transform` gives, and for which groups."""

    NEW = FRAME.assign(store=[f"new {number % 4}" for number in range(len(FRAME))])

    def test_total_is_that_of_the_model(self):
        """The same names and shape as within; clones and pickles give the same numbers."""
        one = make_transformer(2, random_effects="(1 | store)", include="total")
        total = one.set_output(transform="pandas").fit_transform(FRAME)
        data = lmm.from_dataframe(FRAME, NAMES, one.model_.random_effects)
        np.testing.assert_array_equal(total, one.model_.encode(data, include="total"))
        assert total.columns.tolist() == one.get_feature_names_out().tolist()
        assert total.columns.tolist() == ["lmmvaetransformer0", "lmmvaetransformer1"]
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(one)).transform(FRAME), total)
        np.testing.assert_array_equal(clone(one).fit(FRAME).transform(FRAME), total)
        np.testing.assert_array_equal(
            one.set_params(include="within").transform(FRAME), one.model_.encode(data)
        )

    @pytest.mark.parametrize("include", ["within", "total"])
    def test_groups_never_seen(self, include: str):
        """With `learn_levels` by their own rows, else without effects; the model stays."""
        one = make_transformer(random_effects="(1 | store)", include=include, learn_levels=True)
        data = lmm.from_dataframe(self.NEW, NAMES, one.fit(FRAME).model_.random_effects)
        model = one.model_.with_levels_of(data)
        np.testing.assert_array_equal(one.transform(self.NEW), model.encode(data, include=include))
        np.testing.assert_array_equal(one.reconstruct(self.NEW), model.reconstruct(data))
        assert one.score(self.NEW) == pytest.approx(model.log_likelihood(data).mean())
        plain = one.set_params(learn_levels=False).transform(self.NEW)
        np.testing.assert_array_equal(plain, one.model_.encode(data, include=include))
        assert len(one.model_.random_effects_table("store")) == 10

    def test_total_has_no_decoder(self):
        one = make_transformer(random_effects="(1 | store)", include="total").fit(FRAME)
        with pytest.raises(ValueError, match="Only the latent has a decoder.*include='total'"):
            one.inverse_transform(np.zeros((3, 1)))

    def test_unknown_choice(self):
        one = make_transformer(random_effects="(1 | store)", include="all").fit(FRAME)
        with pytest.raises(ValueError, match=r"one of \['within', 'total'\].*include='all'"):
            one.transform(FRAME)

    def test_nothing_to_learn(self):
        """Without random effects there are no levels: `learn_levels` changes nothing."""
        x = FRAME[NAMES].fillna(0.0).to_numpy()
        one = make_transformer(include="total", learn_levels=True).fit(x)
        np.testing.assert_array_equal(one.transform(x), one.model_.encode({"x": x}))
