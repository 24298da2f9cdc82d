"""VAE, CVAE and BLUP-VAE: scikit-learn's contract, oracles, and the gain by grouping."""

import numpy as np
import pytest
import tensorflow as tf
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import keras_lmmvae as lmm
from keras_lmmvae.baselines import BLUPVAE, PCABaseline, VAEBaseline
from keras_lmmvae.baselines.schedule import cosine_adam
from keras_lmmvae.baselines.vae import LevelTable, OneHotDense
from keras_lmmvae.metrics import mse, oracle_mse
from keras_lmmvae.simulation import simulate_categorical, split, take

GROUPS = ["group_0", "group_1"]
SIMULATION = simulate_categorical(
    n=3000, num_features=12, cardinalities=(20, 40), effect_variances=(3.0, 1.0), seed=1
)
SPLIT = split(SIMULATION.data, seed=1)
TRAIN, TEST = (take(SIMULATION.data, rows) for rows in SPLIT)
SMALL = {"hidden_units": (64, 32), "batch_size": 64, "seed": 3}
FULL = {**SMALL, "epochs": 12}
BASELINES = [
    VAEBaseline(1, **FULL),
    VAEBaseline(1, groups=GROUPS, coding="one-hot", **FULL),
    VAEBaseline(1, groups=GROUPS, coding="embedding", **FULL),
    VAEBaseline(1, groups=GROUPS, coding="embedding", condition_decoder=True, **FULL),
    BLUPVAE(1, GROUPS, **FULL),
]
METHODS = ["vae", "vae-ohe", "vae-embed", "cvae", "blup-vae"]


@pytest.fixture(scope="module")
def fitted():
    """Every baseline, fitted to TRAIN."""
    return {baseline.method: clone(baseline).fit(TRAIN) for baseline in BASELINES}


def test_methods():
    """The name of the method depends on the arguments."""
    assert [baseline.method for baseline in BASELINES] == METHODS


@pytest.mark.parametrize("baseline", BASELINES, ids=METHODS)
class TestEveryAutoencoder:
    def test_arguments_are_only_stored(self, baseline):
        """`get_params` returns the arguments, and a clone is not fitted."""
        parameters = baseline.get_params()
        assert parameters["hidden_units"] == (64, 32)
        assert clone(baseline).get_params() == parameters
        for call in ("transform", "reconstruct", "log_likelihood"):
            with pytest.raises(NotFittedError):
                getattr(clone(baseline), call)(TEST)

    def test_same_seed_same_answers(self, baseline):
        """`fit` returns the baseline. Two fits give the same latents and reconstructions."""
        first, same = (clone(baseline).set_params(epochs=1) for _ in range(2))
        some = take(TRAIN, np.arange(600))
        assert first.fit(some) is first
        same.fit(some)
        np.testing.assert_array_equal(same.transform(TEST), first.transform(TEST))
        np.testing.assert_array_equal(same.reconstruct(TEST), first.reconstruct(TEST))

    def test_shapes(self, baseline, fitted):
        """Results are float64 of the right shape, and rows do not depend on each other."""
        own = fitted[baseline.method]
        few = {name: column[:7] for name, column in TEST.items()}
        for call, shape in (("transform", (1,)), ("reconstruct", (12,)), ("log_likelihood", ())):
            answer = getattr(own, call)(TEST)
            assert answer.shape == (600, *shape)
            assert answer.dtype == np.float64
            np.testing.assert_allclose(getattr(own, call)(few), answer[:7], rtol=1e-4, atol=1e-4)

    def test_unseen_level_is_a_null_key(self, baseline, fitted):
        """Both are coded as zeros, so the results are equal. "vae" does not depend on groups."""
        own = fitted[baseline.method]
        unseen = {**TEST, **{name: np.full(600, 9999) for name in GROUPS}}
        null = {**TEST, **{name: np.full(600, None, object) for name in GROUPS}}
        answers = [own.reconstruct(rows) for rows in (unseen, null, TEST)]
        np.testing.assert_array_equal(answers[0], answers[1])
        np.testing.assert_array_equal(own.transform(unseen), own.transform(null))
        assert (np.abs(answers[0] - answers[2]).max() > 0.1) == (baseline.method != "vae")

    def test_importance_weights_tighten_the_bound(self, baseline, fitted):
        """The importance-weighted bound is higher on average."""
        own = fitted[baseline.method]
        plain, weighted = (own.log_likelihood(TEST, num_samples=k).mean() for k in (0, 40))
        assert plain < weighted < plain + 2.0

    def test_bad_features(self, baseline, fitted):
        x = TRAIN["x"].copy()
        x[5, 3] = np.nan
        with pytest.raises(
            ValueError, match=r"`x` must have no missing cells.*row=5, column=3, missing=1"
        ):
            clone(baseline).fit({**TRAIN, "x": x})
        with pytest.raises(
            ValueError, match=r"12 features that were fitted\. Received: features=3"
        ):
            fitted[baseline.method].transform({**TEST, "x": TEST["x"][:, :3]})
        with pytest.raises(ValueError, match=r"features, 12\. Received: latent_dim=13"):
            clone(baseline).set_params(latent_dim=13).fit(TRAIN)
        with pytest.raises(ValueError, match=r"`num_samples`.*at least 0.*num_samples=-1"):
            fitted[baseline.method].log_likelihood(TEST, num_samples=-1)


@pytest.mark.parametrize("baseline", [BASELINES[0], BASELINES[4]], ids=["vae", "blup-vae"])
def test_units(baseline):
    """Features times 10 give reconstructions times 10 and log densities minus p * log(10)."""
    first, scaled = (clone(baseline).set_params(epochs=1) for _ in range(2))
    larger, larger_test = ({**rows, "x": 10.0 * rows["x"]} for rows in (TRAIN, TEST))
    first.fit(TRAIN)
    scaled.fit(larger)
    reconstruction = 10.0 * first.reconstruct(TEST)
    np.testing.assert_allclose(scaled.reconstruct(larger_test), reconstruction, rtol=1e-2, atol=0.1)
    expected = first.log_likelihood(TEST).mean() - 12 * np.log(10.0)
    assert scaled.log_likelihood(larger_test).mean() == pytest.approx(expected, rel=1e-3)


def test_seeds_matter(fitted):
    """Another seed gives another fit. The loss decreases over the epochs."""
    other = clone(BASELINES[0]).set_params(seed=4, epochs=2).fit(TRAIN)
    same_length = clone(BASELINES[0]).set_params(epochs=2).fit(TRAIN)
    assert np.abs(other.reconstruct(TEST) - same_length.reconstruct(TEST)).max() > 1e-3
    losses = fitted["vae"].history_["loss"]
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.2


def test_plain_vae_is_lmmvae_without_terms(fitted):
    """Networks, initial weights, batches, draws and loss are the same, and so is the fit."""
    model = lmm.LMMVAE(1, (), hidden_units=(64, 32), seed=3)
    model.adapt(TRAIN)
    epochs = FULL["epochs"]
    model.compile(cosine_adam(2e-3, len(TRAIN["x"]), 64, epochs))
    model.fit(TRAIN, epochs=epochs, batch_size=64, verbose=0)
    expected = mse(TEST["x"], model.reconstruct(TEST))
    assert mse(TEST["x"], fitted["vae"].reconstruct(TEST)) == pytest.approx(expected, rel=0.01)
    noise = np.asarray(model.noise_variance) * np.asarray(model.feature_scale) ** 2
    np.testing.assert_allclose(fitted["vae"].noise_variance_, noise, rtol=0.05)
    assert fitted["vae"].log_likelihood(TEST).mean() == pytest.approx(
        model.log_likelihood(TEST).mean(), abs=0.05
    )


@pytest.mark.slow
def test_vae_beats_pca_on_a_curve():
    """On a curved manifold the VAE has less error than PCA, but more than the oracle."""
    simulation = simulate_categorical(
        n=3000,
        num_features=40,
        cardinalities=(5,),
        effect_variances=(0.0,),
        noise_variance=0.2,
        seed=2,
    )
    rows = split(simulation.data, seed=2)
    train, test = (take(simulation.data, part) for part in rows)
    pca = mse(test["x"], PCABaseline(1).fit(train).reconstruct(test))
    settings = {**FULL, "epochs": 25, "learning_rate": 5e-3}
    baseline = VAEBaseline(1, **settings).fit(train)
    error = mse(test["x"], baseline.reconstruct(test))
    assert oracle_mse(simulation, *rows) < error < 0.8 * pca
    assert baseline.noise_variance_.mean() == pytest.approx(error, rel=0.2)


def test_groups_are_worth_something(fitted):
    """Methods that use the groups in the reconstruction have lower test errors."""
    error = {name: mse(TEST["x"], own.reconstruct(TEST)) for name, own in fitted.items()}
    density = {name: own.log_likelihood(TEST).mean() for name, own in fitted.items()}
    assert oracle_mse(SIMULATION, *SPLIT) < min(error.values())
    for name in ("cvae", "blup-vae"):
        assert error[name] < 0.7 * error["vae"]
        assert density[name] > density["vae"] + 1.0


def test_one_hot_layer_is_the_dense_one():
    """The output is [x, one-hot] @ [kernel; table] + bias, with zeros for null keys."""
    rng = np.random.default_rng(0)
    x, codes = rng.normal(size=(6, 3)).astype(np.float32), np.array([[0, 3], [1, 4], [2, 3]] * 2)
    codes[4, 1] = codes[5, 0] = -1
    layer = OneHotDense(4, num_features=3, num_levels=5, activation="tanh", seed=0)
    with tf.GradientTape() as tape:
        output = layer(x, tf.constant(codes, tf.int32))
        total = tf.reduce_sum(output * tf.constant(np.arange(24.0).reshape(6, 4), tf.float32))
    one_hot = np.zeros((6, 5))
    for row, places in enumerate(codes):
        one_hot[row, places[places >= 0]] = 1.0
    kernel, bias, table = (np.asarray(weight) for weight in layer.get_weights())
    columns = np.hstack([x, one_hot])
    expected = np.tanh(columns @ np.vstack([kernel, table]) + bias)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)
    slopes = np.arange(24.0).reshape(6, 4) * (1.0 - expected**2)
    gradient = tf.convert_to_tensor(tape.gradient(total, layer.levels.table))
    np.testing.assert_allclose(gradient, (columns.T @ slopes)[3:], rtol=1e-4, atol=1e-5)


def test_one_hot_layer_starts_as_the_dense_one():
    """Both parts of the kernel have Glorot's uniform distribution for p + q inputs."""
    layer = OneHotDense(50, num_features=60, num_levels=40, activation="relu", seed=0)
    layer.build()
    kernel, _, table = layer.get_weights()
    limit = np.sqrt(6.0 / (60 + 40 + 50))
    for part in (kernel, table):
        assert 0.98 * limit < np.abs(part).max() <= limit
        assert part.std() == pytest.approx(limit / np.sqrt(3.0), rel=0.05)


def test_zeros_of_the_table_are_not_trained():
    """A negative code gives zeros and no gradient, not even for row 0."""
    table = LevelTable(3, 2, initializer="ones")
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(table(tf.constant([[-1], [-2], [2]])))
    assert float(total) == 2.0
    gradient = tf.convert_to_tensor(tape.gradient(total, table.table))
    np.testing.assert_array_equal(gradient, [[0, 0], [0, 0], [1, 1]])


def test_keys_are_names_only():
    """String keys give the same fit as integer keys. Each level has its own embedding."""
    named = [
        {**rows, **{name: np.array([f"{name} {key}" for key in rows[name]]) for name in GROUPS}}
        for rows in (TRAIN, TEST)
    ]
    baseline = VAEBaseline(1, groups=GROUPS, coding="embedding", epochs=1, **SMALL)
    expected = clone(baseline).fit(TRAIN).reconstruct(TEST)
    own = clone(baseline).fit(named[0])
    np.testing.assert_array_equal(own.reconstruct(named[1]), expected)
    assert own.model_.embedding.num_levels == sum(len(keys) for keys in own.levels_.values())
    rows = {"x": TEST["x"][:1], "group_0": named[1]["group_0"][:1], "group_1": np.array([""])}
    known = own.model_.embedding.table.numpy()[own._codes(rows)["codes"].numpy()[0, 0]]
    embedded = own.model_._embedded(own._rows(rows)).numpy()[0]
    np.testing.assert_array_equal(embedded, [*known, *np.zeros(10)])


def test_only_the_conditional_decoder_reads_groups(fitted):
    """Other levels change the decoded latent of "cvae" and "blup-vae" only."""
    latent = tf.zeros((2, 1))
    for name, own in fitted.items():
        rows = {"x": TEST["x"][:2], **{column: TRAIN[column][[0, -1]] for column in GROUPS}}
        first, other = np.asarray(own._decode(latent, rows))
        assert (np.abs(first - other).max() > 0.1) == (name in ("cvae", "blup-vae"))


def test_conditional_decoder_adds_an_effect_of_every_level():
    """The output is that of the decoder plus the levels' rows of a table; 0 for other keys."""
    settings = {**SMALL, "epochs": 1}
    own = VAEBaseline(1, groups=GROUPS, coding="embedding", condition_decoder=True, **settings)
    own.fit(TRAIN)
    rows = {"x": TEST["x"][:3], "group_0": TEST["group_0"][:3], "group_1": [9999, None, None]}
    rows["group_1"][2] = TEST["group_1"][2]
    rows["group_1"] = np.array(rows["group_1"], object)
    table, latent = own.model_.level_effects.table, tf.ones((3, 1))
    before = np.asarray(own._decode(latent, rows))
    learned, effects = table.numpy(), np.random.default_rng(0).normal(size=table.shape)
    table.assign(learned + effects)
    codes = own._codes(rows)["codes"].numpy()
    expected = [effects[codes[i][codes[i] >= 0]].sum(axis=0) for i in range(3)]
    assert [(code >= 0).sum() for code in codes] == [1, 1, 2]
    found = (np.asarray(own._decode(latent, rows)) - before) / own.scaler_.scale_
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(learned).max() > 0.01


def test_crossed_factors_need_effects_at_the_output(fitted):
    """CVAE comes near BLUP-VAE on two crossed factors, whose effects add up."""
    errors = {name: mse(TEST["x"], fitted[name].reconstruct(TEST)) for name in METHODS}
    assert errors["cvae"] < 1.5 * errors["blup-vae"]


def test_one_hidden_layer():
    """With one hidden layer the encoder has no layer behind the one-hot layer."""
    settings = {**SMALL, "hidden_units": (16,), "epochs": 1}
    own = VAEBaseline(2, groups=GROUPS, coding="one-hot", **settings).fit(TRAIN)
    assert own.transform(TEST).shape == (600, 2)


def test_blup_vae_is_a_vae_of_residuals():
    """It equals a plain VAE that is fitted to x - mean - group effects."""
    own = BLUPVAE(1, GROUPS, epochs=2, **SMALL).fit(TRAIN)
    means = own.group_means_
    train, test = (
        {"x": rows["x"] - means.mean_ - means.contribution(rows)} for rows in (TRAIN, TEST)
    )
    plain = VAEBaseline(1, epochs=2, **SMALL).fit(train)
    np.testing.assert_array_equal(own.transform(TEST), plain.transform(test))
    fixed = means.mean_ + means.contribution(TEST)
    expected = plain.reconstruct(test) + fixed
    np.testing.assert_allclose(own.reconstruct(TEST), expected, rtol=1e-5, atol=1e-5)


def test_blup_vae_adds_what_is_unknown_of_the_groups(fitted):
    """The error variance is the noise variance plus the posterior variance of group effects."""
    own = fitted["blup-vae"]
    unseen = {**TEST, "group_0": np.full(600, 9999)}
    extra = own._error_variance(unseen) - own.vae_.noise_variance_
    np.testing.assert_allclose(extra, own.group_means_.contribution_variance(unseen))
    assert (extra > own.group_means_.effect_variance_["group_0"]).all()
    known = {**TEST, "group_0": np.full(600, None, object), "group_1": np.full(600, None, object)}
    np.testing.assert_array_equal(
        own._error_variance(known), np.tile(own.vae_.noise_variance_, (600, 1))
    )


def test_likelihood_of_a_linear_model():
    """For rows of a factor model with equal loadings the bound is close to the exact density.

    Below it but for sampling, and within 0.15 nats a row of it; so is the noise variance.
    """
    rng = np.random.default_rng(3)
    loadings = np.array([1, -1, 1, 1, -1, 1, -1, -1])
    x = rng.normal(size=(5000, 1)) * loadings + 0.7 * rng.normal(size=(5000, 8)) + 5.0
    train, test = {"x": x[:4000]}, {"x": x[4000:]}
    settings = {"hidden_units": (32,), "learning_rate": 1e-2, "batch_size": 100, "seed": 0}
    own = VAEBaseline(1, epochs=20, **settings).fit(train)
    exact = PCABaseline(1).fit(train).log_likelihood(test).mean()
    bound = own.log_likelihood(test, num_samples=50).mean()
    assert exact - 0.15 < bound < exact + 0.02
    np.testing.assert_allclose(own.noise_variance_, 0.49, rtol=0.15)


def test_kl_weight():
    """A large KL weight shrinks the latents to the prior mean. Without it they spread."""
    heavy, none = (
        VAEBaseline(1, kl_weight=weight, epochs=3, **SMALL).fit(TRAIN) for weight in (1e4, 0)
    )
    assert heavy.transform(TEST).std() < 0.3
    assert none.transform(TEST).std() > 1.0
    # The latents have no information, so the reconstruction is close to the mean.
    assert mse(TEST["x"], heavy.reconstruct(TEST)) > 0.9 * TEST["x"].var(axis=0).mean()


EMBEDDING = {"groups": GROUPS, "coding": "embedding"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coding": "hash"}, r"`coding` must be one of \('ignore', .*coding='hash'"),
        ({"coding": "one-hot"}, r"`groups` must be a list of at least one .*groups=\(\)"),
        ({"groups": "shop"}, r"`groups` must be a list of column names.*groups='shop'"),
        (
            {"groups": GROUPS, "coding": "one-hot", "condition_decoder": True},
            r"needs `coding='embedding'`.*condition_decoder=True, coding='one-hot'",
        ),
        ({"hidden_units": ()}, r"`hidden_units` must be a list .*hidden_units=\(\)"),
        ({"hidden_units": 5}, r"`hidden_units` must be a list .*hidden_units=5"),
        ({"hidden_units": (8, 0)}, r"`hidden_units`, expected an integer of at least 1.*=0"),
        ({"embedding_dim": 0}, r"`embedding_dim`.*Received: embedding_dim=0"),
        ({"epochs": 1.5}, r"`epochs`.*Received: epochs=1.5"),
        ({"batch_size": 0}, r"`batch_size`.*Received: batch_size=0"),
        ({"learning_rate": 0.0}, r"`learning_rate`.*Received: learning_rate=0.0"),
        ({"kl_weight": -1.0}, r"`kl_weight`.*Received: kl_weight=-1.0"),
        ({**EMBEDDING, "groups": ["shop"]}, r"column\(s\) \['shop'\].*columns=\['x', 'group_0'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        VAEBaseline(1, **arguments).fit(TRAIN)


def test_bad_columns(fitted):
    constant = np.column_stack([TRAIN["x"], np.ones(2400)])
    with pytest.raises(ValueError, match=r"must vary.*Received: constant_columns=\[12\]"):
        VAEBaseline(1, **SMALL).fit({"x": constant})
    empty = {**TRAIN, "group_0": np.full(2400, None, object)}
    with pytest.raises(ValueError, match=r"at least one key that is not null.*rows=2400, levels=0"):
        VAEBaseline(1, **EMBEDDING, **SMALL).fit(empty)
    for name in ("vae-ohe", "cvae", "blup-vae"):
        with pytest.raises(
            ValueError, match=r"'group_0' must be of the type that was fitted, int64"
        ):
            fitted[name].transform({**TEST, "group_0": TEST["group_0"].astype(str)})
        with pytest.raises(ValueError, match=r"number of rows.*'x': 600, 'group_0': 3"):
            fitted[name].reconstruct({**TEST, "group_0": np.arange(3)})
    with pytest.raises(ValueError, match=r"`groups` must be a list of at least one.*groups=\[\]"):
        BLUPVAE(1, []).fit(TRAIN)
