"""The variational recurrent autoencoder: sequences, masks, bounds and recovery."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from keras_lmmvae.baselines import VRAEBaseline
from keras_lmmvae.baselines import vrae as vrae_module
from keras_lmmvae.baselines.vrae import PADDING, sequences_of
from keras_lmmvae.simulation import take
from keras_lmmvae.validation import NULL_INTEGER

SMALL = VRAEBaseline(
    2, subject="subject", time="t", hidden_units=(12, 8), epochs=3, batch_size=64, seed=4
)


def curves(num_subjects, seed, noise=0.3):
    """Subjects with 3 to 9 rows. Each row is the trait of the subject times a wave in time."""
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(num_subjects), rng.integers(3, 10, num_subjects))
    t = rng.uniform(size=len(subject))
    trait = rng.normal(size=num_subjects)[subject]
    waves = np.cos(t[:, None] * np.arange(6)) * np.array([1.0, -2.0, 1.5, 1.0, 2.0, 1.0])
    x = 5.0 + trait[:, None] * waves + noise * rng.normal(size=waves.shape)
    order = rng.permutation(len(t))
    return take({"x": x, "subject": subject, "t": t}, order)


TRAIN, TEST = curves(60, seed=1), curves(9, seed=2)


@functools.cache
def one_fit():
    """The baseline that the tests only read."""
    return clone(SMALL).fit(TRAIN)


def joined(first, second):
    return {name: np.concatenate([first[name], second[name]]) for name in first}


def longer(data, length=40):
    """The data with the rows of another long sequence at the beginning."""
    rng = np.random.default_rng(3)
    other = {
        "x": rng.normal(size=(length, 6)),
        "subject": np.full(length, 1000),
        "t": rng.uniform(size=length),
    }
    return joined(other, data)


def alone(fitted, data, key):
    """Rows of one sequence in the order of time, and its steps as tensors without padding."""
    rows = np.flatnonzero(data["subject"] == key)
    rows = rows[np.argsort(data["t"][rows])]
    x = fitted._standardised({"x": data["x"][rows]})[None]
    time = (data["t"][rows] - fitted.time_scaler_.mean_) / fitted.time_scaler_.scale_
    return rows, x, tf.constant(time[None], tf.float32), tf.ones((1, len(rows)), tf.bool)


def slow_densities(fitted, data, key):
    """Mean and sd of q(u) of one sequence, and its log p(x | u) as a function of u."""
    rows, x, time, mask = alone(fitted, data, key)
    mean, log_var = (value.numpy()[0] for value in fitted.network_.encode(x, time, mask))
    sd = np.exp(0.5 * log_var)

    def density(u):
        latent = tf.constant(u[None], tf.float32)
        decoded = fitted.network_.decode(latent, time, mask).numpy()[0]
        decoded = decoded * fitted.scaler_.scale_ + fitted.scaler_.mean_
        return norm(decoded, np.sqrt(fitted.noise_variance_)).logpdf(data["x"][rows])

    return rows, mean, sd, lambda u: density(u).sum()


class TestSequences:
    def test_rows_in_the_order_of_time(self):
        """Every row is once in its sequence, in the order of time. Padding is at the end."""
        keys, time = TRAIN["subject"], TRAIN["t"]
        sequences = sequences_of(keys, time, TRAIN["x"])
        rows = sequences.rows(np.arange(len(sequences)))
        np.testing.assert_array_equal(np.sort(rows[rows != PADDING]), np.arange(len(keys)))
        for number, own in enumerate(rows):
            own = own[own != PADDING]
            assert len(own) == sequences.lengths[number] == (keys == keys[own[0]]).sum()
            assert (rows[number, : len(own)] == own).all()
            assert (np.diff(time[own]) > 0).all()
            assert (sequences.codes[own] == number).all()

    @pytest.mark.parametrize("keys", [[NULL_INTEGER, 5, NULL_INTEGER, 5], ["", "a", "", "a"]])
    def test_rows_without_a_key_stand_alone(self, keys):
        sequences = sequences_of(np.array(keys, object if keys[0] == "" else None), *FOUR)
        assert sequences.lengths.tolist() == [2, 1, 1]
        assert sequences.codes.tolist() == [1, 0, 2, 0]

    def test_batches_hold_every_sequence_once_within_the_limit(self):
        keys = np.repeat(np.arange(6), [1, 7, 2, 30, 2, 1])
        sequences = sequences_of(keys, np.arange(43.0), np.zeros((43, 1)))
        batches = list(sequences.batches(most_steps=8))
        assert sorted(np.concatenate(batches)) == list(range(6))
        sizes = [sequences.rows(batch).size for batch in batches]
        assert sizes == [8, 7, 30]  # 1, 1, 2, 2 padded to 2; the longest by itself


FOUR = np.zeros(4), np.zeros((4, 1))


class TestNoLeaks:
    def test_padding_changes_nothing(self):
        """Another long sequence in the data does not change latents, reconstructions and bounds."""
        data = longer(TEST)
        for answer in (one_fit().transform, one_fit().reconstruct, one_fit().log_likelihood):
            np.testing.assert_allclose(answer(data)[40:], answer(TEST), rtol=1e-4, atol=1e-5)

    def test_fully_padded_steps_and_what_stands_there_change_nothing(self):
        _, x, time, mask = alone(one_fit(), TEST, 3)
        length = x.shape[1]
        padded = (
            tf.pad(x, [[0, 0], [0, 5], [0, 0]], constant_values=9.0),
            tf.pad(time, [[0, 0], [0, 5]], constant_values=-7.0),
            tf.pad(mask, [[0, 0], [0, 5]]),
        )
        network = one_fit().network_
        for plain, more in zip(network.encode(x, time, mask), network.encode(*padded), strict=True):
            np.testing.assert_allclose(more, plain, rtol=1e-5, atol=1e-6)
        latent = tf.constant([[0.3, -1.0]])
        decoded = network.decode(latent, *padded[1:])[:, :length]
        np.testing.assert_allclose(decoded, network.decode(latent, time, mask), atol=1e-5)

    def test_order_of_rows_is_of_no_matter(self):
        """This holds for two rows of a subject at the same time, too."""
        data = {**TEST, "t": np.round(TEST["t"], 1)}
        assert len(np.unique(np.stack([data["t"], data["subject"]]), axis=1).T) < len(data["t"])
        order = np.random.default_rng(1).permutation(len(TEST["t"]))
        for answer in (one_fit().transform, one_fit().reconstruct, one_fit().log_likelihood):
            np.testing.assert_allclose(
                answer(take(data, order)), answer(data)[order], rtol=1e-4, atol=1e-5
            )

    def test_a_sequence_has_one_code_and_the_decoder_sees_nothing_else(self):
        latent = one_fit().transform(TEST)
        for key in np.unique(TEST["subject"]):
            assert len(np.unique(latent[TEST["subject"] == key], axis=0)) == 1
        other = {**TEST, "x": TEST["x"][::-1] * 3.0}
        codes = tf.constant(latent, tf.float32)
        np.testing.assert_array_equal(
            one_fit()._decode(codes, other), one_fit()._decode(codes, TEST)
        )
        assert not np.allclose(one_fit().transform(other), latent, atol=0.01)

    def test_time_reaches_the_decoder(self):
        codes = tf.constant(one_fit().transform(TEST), tf.float32)
        later = {**TEST, "t": TEST["t"] + 1.0}
        assert np.abs(one_fit()._decode(codes, later) - one_fit()._decode(codes, TEST)).max() > 0.01


class TestBound:
    def test_plain_bound_by_hand(self):
        """Cubature points and KL of each sequence, divided by its number of rows."""
        expected = np.empty(len(TEST["t"]))
        for key in np.unique(TEST["subject"]):
            rows, mean, sd, density = slow_densities(one_fit(), TEST, key)
            total = 0.0
            for axis in np.eye(2):
                step = np.sqrt(2.0) * sd * axis
                total += (density(mean + step) + density(mean - step)) / 4.0
            prior, away = one_fit().latent_prior_, mean - one_fit().latent_prior_.mean.numpy()
            covariance = prior.root.numpy() @ prior.root.numpy().T
            inverse = np.linalg.inv(covariance)
            divergence = 0.5 * (np.diag(inverse) @ sd**2 + away @ inverse @ away - 2.0)
            divergence += 0.5 * np.linalg.slogdet(covariance)[1] - np.log(sd).sum()
            expected[rows] = (total - divergence) / len(rows)
        np.testing.assert_allclose(one_fit().log_likelihood(TEST), expected, rtol=1e-4, atol=1e-3)

    def test_importance_bound_by_hand(self):
        """The importance weights are those of whole sequences."""
        keys = np.unique(TEST["subject"])
        noise = [tf.random.stateless_normal((len(keys), 2), (4, s)).numpy() for s in range(5)]
        root = one_fit().latent_prior_.root.numpy()
        prior = multivariate_normal(one_fit().latent_prior_.mean.numpy(), root @ root.T)
        expected = np.empty(len(TEST["t"]))
        for number, key in enumerate(keys):
            rows, mean, sd, density = slow_densities(one_fit(), TEST, key)
            draws = [mean + sd * one[number] for one in noise]
            weights = [density(u) + prior.logpdf(u) - norm(mean, sd).logpdf(u).sum() for u in draws]
            expected[rows] = (logsumexp(weights) - np.log(5)) / len(rows)
        bound = one_fit().log_likelihood(TEST, num_samples=5)
        np.testing.assert_allclose(bound, expected, rtol=1e-4, atol=1e-3)

    def test_training_bound_of_a_padded_batch_is_the_sum_over_its_sequences(self):
        """Masked steps have no loss and no error."""
        packed = one_fit()._packed(longer(TEST))
        sequences = packed.sequences
        together, error = one_fit()._negative_bound(
            packed, tf.constant(sequences.rows(np.arange(len(sequences)))), SameDraws(0.5)
        )
        apart = [
            one_fit()._negative_bound(
                packed, tf.constant(sequences.rows(np.array([s]))), SameDraws(0.5)
            )[0]
            for s in range(len(sequences))
        ]
        assert error.shape == (len(TEST["t"]) + 40, 6)
        np.testing.assert_allclose(together, np.sum(apart), rtol=1e-5)

    def test_training_bound_of_one_sequence_by_hand(self):
        """kl_weight * KL minus the log density at one draw, with the mean noise variance."""
        weighted = clone(SMALL).set_params(kl_weight=0.0).fit(TRAIN).set_params(kl_weight=300.0)
        packed = weighted._packed(TEST)
        rows = tf.constant(packed.sequences.rows(np.array([0])))
        x, time, mask = packed.steps(rows)
        mean, log_var = (value.numpy() for value in weighted.network_.encode(x, time, mask))
        latent = tf.constant(mean + 2.0 * np.exp(0.5 * log_var))
        decoded = weighted.network_.decode(latent, time, mask).numpy()
        noise = (weighted.noise_variance_ / weighted.scaler_.var_).mean()
        divergence = 0.5 * (mean**2 + np.exp(log_var) - 1.0 - log_var).sum()
        expected = 300.0 * divergence - norm(decoded, np.sqrt(noise)).logpdf(x).sum()
        negative, error = weighted._negative_bound(packed, rows, SameDraws(2.0))
        np.testing.assert_allclose(negative, expected, rtol=1e-4)
        np.testing.assert_allclose(error, (x - decoded)[0], atol=1e-5)

    def test_units(self):
        """Other units give the same latents and change log densities by the log of the units."""
        rescaled = {**TRAIN, "x": TRAIN["x"] * 8.0 - 1.0, "t": TRAIN["t"] * 4.0}
        test = {**TEST, "x": TEST["x"] * 8.0 - 1.0, "t": TEST["t"] * 4.0}
        other = clone(SMALL).fit(rescaled)
        np.testing.assert_allclose(other.transform(test), one_fit().transform(TEST), atol=0.01)
        expected = one_fit().log_likelihood(TEST) - 6 * np.log(8.0)
        np.testing.assert_allclose(other.log_likelihood(test), expected, atol=0.05)


class SameDraws:
    """A generator with constant normal draws."""

    def __init__(self, value):
        self.value = value

    def normal(self, shape):
        return tf.fill(shape, self.value)


class TestFit:
    @pytest.mark.slow
    def test_recovers_one_number_a_subject(self):
        """For new subjects the error is small, and the bound is above a Gaussian's log density."""
        train, test = curves(300, seed=5), curves(60, seed=6)
        fitted = VRAEBaseline(
            1, subject="subject", time="t", hidden_units=(32,), learning_rate=5e-3, seed=1
        ).fit(train)
        total = test["x"].var(axis=0).mean()
        error = np.square(test["x"] - fitted.reconstruct(test)).mean()
        assert error < 0.25 * total
        trait = fitted.transform(test)[:, 0]
        assert abs(np.corrcoef(trait, test["x"][:, 0])[0, 1]) > 0.8
        gaussian = norm(train["x"].mean(axis=0), train["x"].std(axis=0)).logpdf(test["x"])
        assert fitted.log_likelihood(test).mean() > gaussian.sum(axis=1).mean() + 2.0
        assert fitted.losses_[-1] < fitted.losses_[0]
        np.testing.assert_allclose(fitted.noise_variance_.mean(), error, rtol=0.3)

    def test_same_seed_same_result(self):
        again = clone(SMALL).fit(TRAIN)
        np.testing.assert_array_equal(again.reconstruct(TEST), one_fit().reconstruct(TEST))
        other = clone(SMALL).set_params(seed=5).fit(TRAIN)
        assert not np.allclose(other.reconstruct(TEST), one_fit().reconstruct(TEST))

    @pytest.mark.slow
    def test_long_sequences(self, monkeypatch):
        """A subject with 300 rows has more steps than a batch of inference."""
        monkeypatch.setattr(vrae_module, "_STEPS_AT_ONCE", 200)
        rng = np.random.default_rng(1)
        data = {
            "x": rng.normal(size=(603, 5)),
            "subject": np.repeat(["a", "b", "c"], [300, 300, 3]).astype(object),
            "t": rng.uniform(size=603),
        }
        fitted = clone(SMALL).set_params(epochs=1).fit(data)
        assert np.isfinite(fitted.log_likelihood(data)).all()
        assert len(np.unique(fitted.transform(data), axis=0)) == 3

    def test_contract(self):
        assert clone(one_fit()).get_params() == SMALL.get_params()
        for answer in ("transform", "reconstruct", "log_likelihood"):
            with pytest.raises(NotFittedError):
                getattr(clone(SMALL), answer)(TEST)
        assert one_fit().reconstruct(TEST).shape == TEST["x"].shape
        assert one_fit().transform(TEST).shape == (len(TEST["t"]), 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent_dim": 7}, r"`latent_dim` must be .* features, 6\. Received: latent_dim=7"),
        ({"hidden_units": ()}, r"at least one layer\. Received: hidden_units=\(\)"),
        ({"hidden_units": (0,)}, r"`hidden_units`, expected an integer .*hidden_units=0"),
        ({"epochs": 0}, r"`epochs`, expected an integer of at least 1\. Received: epochs=0"),
        ({"batch_size": 1.5}, r"`batch_size`, expected an integer .* Received: batch_size=1\.5"),
        ({"learning_rate": 0}, r"`learning_rate`, expected a finite .* learning_rate=0"),
        ({"kl_weight": -1}, r"`kl_weight`, expected a finite number of at least 0.*kl_weight=-1"),
        ({"subject": "who"}, r"lack the column\(s\) \['who'\].*columns=\['x', 'subject', 't'"),
        ({"time": "when"}, r"lack the column\(s\) \['when'\].*columns=\['x', 'subject', 't'"),
    ],
)
def test_bad_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        clone(SMALL).set_params(**settings).fit(TRAIN)


def test_bad_columns():
    t = TEST["t"].copy()
    t[4] = np.nan
    with pytest.raises(ValueError, match=r"'t' must have no missing .*row=4, missing=1"):
        one_fit().transform({**TEST, "t": t})
    with pytest.raises(ValueError, match=r"number of rows\. Received: lengths=.*'subject': 3"):
        one_fit().transform({**TEST, "subject": np.arange(3)})
    with pytest.raises(ValueError, match=r"`num_samples`, expected an integer of at least 0"):
        one_fit().log_likelihood(TEST, num_samples=-1)
