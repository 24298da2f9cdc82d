"""A warm-up of the latent's KL, linear or in cycles."""

from __future__ import annotations

from typing import Any

from keras_lmmvae.callbacks.model_callback import ModelCallback
from keras_lmmvae.validation import check_positive, received

__all__ = ["KLAnnealing"]


class KLAnnealing(ModelCallback):
    """Raises the weight of KL(q(u) || p(u)) over the first epochs to the model's `kl_weight`.

    With the full weight from the first step on, a decoder that cannot use the latent yet is
    told to give it up: latent dimensions collapse to the prior. Within every cycle the weight is

        kl_weight * (start + (1 - start) * min(1, part_of_cycle / ramp))

    and from epoch `epochs` on it is `kl_weight`: fit for some epochs more. The weight follows
    from the number of the epoch alone, so a fit resumed by `BackupAndRestore` or with
    `initial_epoch` goes on where it was. `loss` has the weight of its epoch, which the history
    lists as `kl_weight`; `val_loss` and saved models have the full one.

    Args:
        epochs: Positive int, length of the warm-up, all cycles together.
        start: Float in [0, 1), share of `kl_weight` that a cycle begins with.
        cycles: Positive int, at most `epochs`. 1: a linear warm-up; more: the weight falls back
            to its start that many times less one, which lets dimensions that collapsed try again.
        ramp: Float in (0, 1], part of a cycle in which the weight rises; in the rest it is full.

    Raises:
        ValueError: On an argument out of its range; in `fit`, if `kl_weight` is 0.

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
                "A cycle needs an epoch at least: `cycles` must not be above `epochs`. "
                + received(cycles=cycles, epochs=epochs)
            )
        if start != 0:
            check_positive("start", start)
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
        """Share of `kl_weight` in an epoch, counted from 0."""
        if epoch >= self.epochs:
            return 1.0
        part_of_cycle = (epoch * self.cycles % self.epochs) / self.epochs
        risen = min(1.0, part_of_cycle / self.ramp)
        return float(self.start + (1.0 - self.start) * risen)

    def on_train_begin(self, logs: Any = None) -> None:
        if self.lmmvae.kl_weight == 0:
            raise ValueError(
                "There is no weight to warm up: give the model a positive `kl_weight`. "
                + received(kl_weight=self.lmmvae.kl_weight)
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.lmmvae.kl_annealing.assign(self.share(epoch))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if logs is not None:
            logs["kl_weight"] = self.share(epoch) * self.lmmvae.kl_weight

    def on_train_end(self, logs: Any = None) -> None:
        self.lmmvae.kl_annealing.assign(1.0)
