"""The methods by their names in the results, each built for a table."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from benchmarks.lmmvae_method import AmortizedMethod, LMMVAEMethod
from benchmarks.settings import Training
from benchmarks.table import Table
from keras_lmmvae import baselines
from keras_lmmvae.baselines.vae import Coding
from keras_lmmvae.validation import received

__all__ = ["METHODS", "applies", "make_method", "settings_of", "training_of"]

Make = Callable[[Table, int, Training, int], baselines.Baseline]

_NUM_INDUCING = 60


def _pca(table: Table, d: int, training: Training, seed: int) -> baselines.Baseline:
    return baselines.PCABaseline(d, calibration_split=training.calibration_split, seed=seed)


def _pca_one_hot(table: Table, d: int, training: Training, seed: int) -> baselines.Baseline:
    split = training.calibration_split
    return baselines.PCABaseline(d, groups=table.groups, calibration_split=split, seed=seed)


def _vae(coding: Coding, condition_decoder: bool = False) -> Make:
    def make(table: Table, d: int, training: Training, seed: int) -> baselines.Baseline:
        groups = () if coding == "ignore" else table.groups
        return baselines.VAEBaseline(
            d,
            groups=groups,
            coding=coding,
            condition_decoder=condition_decoder,
            seed=seed,
            **training.arguments(),
        )

    return make


def _blup_pca(table: Table, d: int, training: Training, seed: int) -> baselines.Baseline:
    split = training.calibration_split
    return baselines.BLUPPCA(d, table.groups, calibration_split=split, seed=seed)


def _blup_vae(table: Table, d: int, training: Training, seed: int) -> baselines.Baseline:
    return baselines.BLUPVAE(d, table.groups, seed=seed, **training.arguments())


def _vrae(table: Table, d: int, training: Training, seed: int) -> baselines.Baseline:
    return baselines.VRAEBaseline(
        d,
        subject=str(table.subject),
        time=str(table.time),
        epochs=training.epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        kl_weight=training.kl_weight,
        seed=seed,
    )


def _svgpvae(table: Table, d: int, training: Training, seed: int) -> baselines.Baseline:
    return baselines.SVGPVAEBaseline(
        d,
        coordinates=table.coordinates,
        subject=table.subject,
        time=table.time,
        num_inducing=_NUM_INDUCING,
        seed=seed,
        **training.arguments(),
    )


def _lmmvae(table: Table, d: int, training: Training, seed: int) -> baselines.Baseline:
    return LMMVAEMethod(
        d,
        table.effects(),
        latent_epochs=training.latent_epochs,
        validation=(table.split, table.split_on),
        seed=seed,
        **training.arguments(),
    )


def _amortized(table: Table, d: int, training: Training, seed: int) -> baselines.Baseline:
    return AmortizedMethod(d, table.effects(), seed=seed, **training.arguments())


METHODS: dict[str, Make] = {
    "pca": _pca,
    "pca-ohe": _pca_one_hot,
    "vae": _vae("ignore"),
    "vae-ohe": _vae("one-hot"),
    "vae-embed": _vae("embedding"),
    "cvae": _vae("embedding", condition_decoder=True),
    "blup-pca": _blup_pca,
    "blup-vae": _blup_vae,
    "vrae": _vrae,
    "svgpvae": _svgpvae,
    "lmmvae": _lmmvae,
    "lmmvae-amortized": _amortized,
}
_LINEAR = ("pca", "pca-ohe", "blup-pca")
_NEEDS_GROUPS = {"pca-ohe", "vae-ohe", "vae-embed", "cvae", "blup-pca", "blup-vae"}


def applies(method: str, table: Table) -> bool:
    """Whether a method can be fitted to a table: VRAE needs subjects, SVGPVAE a kernel.

    "raw", the features as they are, and "lda", discriminants of the groups, are methods of
    classification only.

    Raises:
        ValueError: If there is no such method.
    """
    if method == "raw":
        return True
    if method == "lda":
        return bool(table.groups)
    if method not in METHODS:
        raise ValueError(
            f"There is no method '{method}', expected one of {list(METHODS)}. "
            + received(method=method)
        )
    if method == "vrae":
        return table.subject is not None
    if method == "svgpvae":
        return table.subject is not None or table.coordinates is not None
    return bool(table.groups) if method in _NEEDS_GROUPS else True


def training_of(method: str, training: Training) -> Training | None:
    """Settings of a method's training in a suite; `None` for a method without gradient steps.

    The amortized model runs at the paper's settings, with the encoder's latents. SVGPVAE's closed
    form needs batches that are large beside its inducing points. A VRAE's batches are of whole
    sequences, with as many rows on average as the others'.
    """
    if method in ("raw", "lda", *_LINEAR):
        return None
    if method == "lmmvae-amortized":
        epochs = training.amortized_epochs
        own = replace(training, epochs=epochs, batch_size=1000, learning_rate=1e-3, refine=0)
        return replace(own, kl_weight=0.01)
    if method == "svgpvae":
        return replace(training, batch_size=max(training.batch_size, 500))
    return training


def settings_of(method: str, training: Training) -> str:
    """The method's settings as they stand in the results, JSON."""
    own = training_of(method, training)
    if own is None:
        split = training.calibration_split
        return json.dumps({"calibration_split": split} if split and method in _LINEAR else {})
    settings = own.arguments()
    # What a method does without is left out.
    for name in ("refine", "calibration_split"):
        if not settings[name] or method == "vrae":
            del settings[name]
    if method == "cvae":  # Results without it are those of a CVAE with the embedding alone.
        settings["decoder"] = "embedding, one-hot at the output"
    if method == "lmmvae" and own.latent_epochs != (0,):
        settings["latent_epochs"] = own.latent_epochs
    return json.dumps(settings)


def make_method(
    method: str, table: Table, latent_dim: int, training: Training, seed: int
) -> baselines.Baseline:
    """The method, not fitted, with the suite's networks and settings.

    Args:
        method: A key of `METHODS`.
        table: The table it is for.
        latent_dim: Latent variables `d`.
        training: The suite's settings.
        seed: Of initial weights and draws.
    """
    own = training_of(method, training)
    return METHODS[method](table, latent_dim, training if own is None else own, seed)
