"""KL annealing of the latent, linear or cyclical."""

from __future__ import annotations

from typing import Any

from keras_lmmvae.callbacks.model_callback import ModelCallback
from keras_lmmvae.validation import check_not_negative, check_positive, received

__all__ = ["KLAnnealing"]


class KLAnnealing(ModelCallback):
    """Raises the weight of KL(q(u) || p(u)) over the first epochs to the model's `kl_weight`.

        weight = kl_weight * (start + (1 - start) * min(1, part_of_cycle / ramp))

    At the start of a fit the decoder does not use the latent yet. With the full weight the latent
    dimensions may then collapse to the prior (posterior collapse). From epoch `epochs` on the
    weight is `kl_weight`, so fit for more epochs than that.

    The weight depends only on the number of the epoch. A fit that is resumed by
    `BackupAndRestore` or with `initial_epoch` therefore continues correctly. `loss` uses the
    weight of its epoch, which the history lists as `kl_weight`. `val_loss` and saved models use
    the full weight.

    Args:
        epochs: Positive int, number of epochs of all cycles together.
        start: Float in [0, 1), share of `kl_weight` at the start of a cycle.
        cycles: Positive int, number of cycles, at most `epochs`. 1 gives linear annealing. With
            more, the weight falls back to its start at every new cycle, so that collapsed
            dimensions can be used again.
        ramp: Float in (0, 1], part of a cycle in which the weight rises. Afterwards it is full.

    Raises:
        ValueError: If an argument is out of its range; in `fit`, if `kl_weight` is 0.

    Example:
        >>> import keras_lmmvae as lmm
        >>> warm_up = lmm.callbacks.KLAnnealing(epochs=4)
        >>> [warm_up.share(epoch) for epoch in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
        >>> cycles = lmm.callbacks.KLAnnealing(epochs=8, cycles=2, ramp=0.5)
        >>> [cycles.share(epoch) for epoch in range(9)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0]

    References:
        - Bowman et al. (2016), Generating sentences from a continuous space, section 3.1.
        - Fu et al. (2019), Cyclical annealing schedule, eq. (6); there `ramp` is 0.5.
    """

    def __init__(self, epochs: int, start: float = 0.0, cycles: int = 1, ramp: float = 1.0) -> None:
        check_positive("epochs", epochs, integer=True, minimum=1)
        check_positive("cycles", cycles, integer=True, minimum=1)
        if cycles > epochs:
            raise ValueError(
                "A cycle has at least one epoch: `cycles` must not be above `epochs`. "
                + received(cycles=cycles, epochs=epochs)
            )
        check_not_negative("start", start)
        check_positive("ramp", ramp)
        if start >= 1 or ramp > 1:
            raise ValueError(
                "`start` must lie in [0, 1) and `ramp` in (0, 1]. "
                + received(start=start, ramp=ramp)
            )
        super().__init__()
        self.epochs = epochs
        self.start = start
        self.cycles = cycles
        self.ramp = ramp

    def share(self, epoch: int) -> float:
        """Returns the share of `kl_weight` in an epoch, counted from 0."""
        if epoch >= self.epochs:
            return 1.0
        part_of_cycle = (epoch * self.cycles % self.epochs) / self.epochs
        risen = min(1.0, part_of_cycle / self.ramp)
        return float(self.start + (1.0 - self.start) * risen)

    def on_train_begin(self, logs: Any = None) -> None:
        if self.lmmvae.kl_weight == 0:
            raise ValueError(
                "KL annealing needs a model with a positive `kl_weight`. "
                + received(kl_weight=self.lmmvae.kl_weight)
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.lmmvae.kl_annealing.assign(self.share(epoch))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if logs is not None:
            logs["kl_weight"] = self.share(epoch) * self.lmmvae.kl_weight

    def on_train_end(self, logs: Any = None) -> None:
        self.lmmvae.kl_annealing.assign(1.0)
