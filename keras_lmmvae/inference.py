"""The inference pass: what a model says of some rows, from their effects to their errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from keras_lmmvae.latent_prior import LatentPrior
from keras_lmmvae.mixed_model.mixed_model import total_of
from keras_lmmvae.mixed_model.residuals import Targets
from keras_lmmvae.networks import LatentNetworks
from keras_lmmvae.refinement import decoded_with_slopes, refined_latents
from keras_lmmvae.rows import FEATURES, Rows

__all__ = ["Inference"]

tfd = tfp.distributions


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
        given_latent: Mean and log variance of q(u), if they are not those of the encoder.
        given_root: Lower triangular root of the covariance of q(u), `(b, d, d)`, if it has
            correlations.
    """

    networks: LatentNetworks
    rows: Rows
    parts: Mapping[str, tf.Tensor]
    training: bool = False
    given_latent: tuple[tf.Tensor, tf.Tensor] | None = None
    given_root: tf.Tensor | None = None

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
        if self.given_latent is not None:
            return self.given_latent
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

    @cached_property
    def posterior(self) -> tfp.distributions.MultivariateNormalLinearOperator:
        """q(u), batch `(b,)`, event `(d,)`."""
        if self.given_root is not None:
            return tfd.MultivariateNormalTriL(self.latent_mean, self.given_root)
        return tfd.MultivariateNormalDiag(self.latent_mean, self.latent_std)

    def decoded(self, latent: tf.Tensor) -> tf.Tensor:
        """`f(u)` of given latents, `(b, p)`."""
        return self.networks.decode(latent, self.training)

    @cached_property
    def latent_variance(self) -> tf.Tensor:
        """`E_q[(f(u) - f(E[u | x]))^2]`, `(b, p)`: what is not known of the latent.

        The mean over the points `E[u | x] +- sqrt(d) * r` for every column `r` of a root of the
        covariance of q(u). With a linear decoder it is exact. A cell that is missing has only
        this and the effects to tell it, so it is large there.
        """
        size = self.latent_mean.shape[-1]
        if self.given_root is None:
            steps = [self.latent_std * axis for axis in np.eye(size, dtype=np.float32)]
        else:
            steps = tf.unstack(self.given_root, axis=2)
        steps = [tf.sqrt(float(size)) * step for step in steps]
        points = [self.latent_mean + move for step in steps for move in (step, -step)]
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

    def targets(self, prior: LatentPrior) -> Targets:
        """The rows for the equations of the effects: linear in the latent around `E[u | x]`.

            x - f(E[u]) + J (E[u] - mean) = J root u + Z B + e,    u ~ Normal(0, I)

        With a linear decoder the left side does not depend on `E[u]`, and so neither on the
        effects that the encoder was given.
        """
        decoded, slopes = decoded_with_slopes(self.decoded, self.latent_mean)
        moved = tf.einsum("bk,kbp->bp", self.latent_mean - prior.mean, slopes)
        loadings = tf.einsum("kl,kbp->lbp", prior.root.value, slopes)
        return Targets(self.rows[FEATURES] - decoded + moved, loadings)

    @cached_property
    def loadings(self) -> tf.Tensor:
        """`J @ root`, `(d, b, p)`: how `f(u)` varies under q(u), the decoder taken as linear."""
        _, slopes = decoded_with_slopes(self.decoded, self.latent_mean)
        return tf.einsum("kbp,bkl->lbp", slopes, self.posterior.scale.to_dense())

    def refined(
        self, variance: tf.Tensor, mean: tf.Tensor, precision: tf.Tensor, steps: int
    ) -> Inference:
        """The same rows with a better q(u): see `refined_latents`.

        q(u) has the inverse of the curvature for covariance. Its variances, where one of
        independent parts is asked for, are those of the best such.

        Args:
            variance: Float tensor `(b, p)` or `(p,)`, the variance of a cell around `f(u) + Z B`.
            mean: Float tensor `(d,)`, of the prior of `u`.
            precision: Float tensor `(d, d)`, inverse covariance of that prior.
            steps: Positive int.
        """
        target = self.rows[FEATURES] - self.contribution
        weights = tf.ones_like(target) / variance
        if self.observed is not None:
            weights *= tf.cast(self.observed, tf.float32)
        found = refined_latents(
            self.decoded, target, weights, self.latent_mean, mean, precision, steps
        )
        return replace(self, given_latent=(found.mean, found.log_var), given_root=found.root)
