"""The inference pass: what a model says of some rows, from their effects to their errors."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tensorflow as tf

from keras_lmmvae.mixed_model.mixed_model import total_of
from keras_lmmvae.networks import LatentNetworks
from keras_lmmvae.rows import FEATURES, Rows

__all__ = ["Inference"]


@dataclass(frozen=True)
class Inference:
    """What networks and random effects say of encoded rows, in standardised units.

        x = population + contribution + error,    population = f(E[u | x]),    contribution = Z B

    Every part is computed when it is first asked for. This is the only place where a row goes
    from its effects through the networks to its error: training, prediction, reports and served
    graphs all read it.

    Attributes:
        networks: Encoder and decoder.
        rows: Encoded rows.
        parts: Term name -> its contribution `Z_k B_k`, `(b, p)`.
        training: Whether the networks are trained.
    """

    networks: LatentNetworks
    rows: Rows
    parts: Mapping[str, tf.Tensor]
    training: bool = False

    @property
    def observed(self) -> tf.Tensor | None:
        """Which cells are observed, `(b, p)`; `None`: all are."""
        return self.rows.get("observed")

    @cached_property
    def contribution(self) -> tf.Tensor:
        """`sum_k Z_k B_k`, `(b, p)`."""
        return total_of(dict(self.parts), self.rows)

    @cached_property
    def latent(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and log variance of q(u), `(b, d)` each."""
        return self.networks.encode(
            self.rows[FEATURES], self.contribution, self.observed, self.training
        )

    @cached_property
    def latent_mean(self) -> tf.Tensor:
        """`E[u | x]`, `(b, d)`."""
        return self.latent[0]

    @cached_property
    def latent_std(self) -> tf.Tensor:
        """Standard deviation of q(u), `(b, d)`."""
        return tf.exp(0.5 * self.latent[1])

    def decoded(self, latent: tf.Tensor) -> tf.Tensor:
        """`f(u)` of given latents, `(b, p)`."""
        return self.networks.decode(latent, self.training)

    @cached_property
    def latent_variance(self) -> tf.Tensor:
        """`E_q[(f(u) - f(E[u | x]))^2]`, `(b, p)`: what is not known of the latent.

        The mean over the points `E[u | x] +- sqrt(d) * std` along every axis of the latent. With
        a linear decoder it is exact. A cell that is missing has only this and the effects to
        tell it, so it is large there.
        """
        size = self.latent_mean.shape[-1]
        step = tf.sqrt(float(size)) * self.latent_std
        moves = [sign * axis for axis in np.eye(size, dtype=np.float32) for sign in (1.0, -1.0)]
        points = [self.latent_mean + step * move for move in moves]
        # All points in one pass through the decoder.
        moved = tf.stack(tf.split(self.decoded(tf.concat(points, axis=0)), len(points)))
        return tf.reduce_mean(tf.square(moved - self.population), axis=0)

    @cached_property
    def population(self) -> tf.Tensor:
        """`f(E[u | x])`, `(b, p)`: the row in the average store, patient or place."""
        return self.decoded(self.latent_mean)

    @cached_property
    def mean(self) -> tf.Tensor:
        """`f(E[u | x]) + Z B`, `(b, p)`."""
        return self.population + self.contribution

    @cached_property
    def residual(self) -> tf.Tensor:
        """`x - f(E[u | x])`, `(b, p)`: what there is for the effects to explain."""
        return self.rows[FEATURES] - self.population

    @cached_property
    def error(self) -> tf.Tensor:
        """`x - f(E[u | x]) - Z B`, `(b, p)`."""
        return self.residual - self.contribution
