"""How the networks of a suite look and are trained: the same for every method."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Training"]


@dataclass(frozen=True)
class Training:
    """Networks and their training.

    Attributes:
        hidden_units: Widths of the encoder's dense layers, mirrored in the decoder.
        epochs: Passes over the training rows.
        batch_size: Rows a step.
        learning_rate: Of Adam at the first step, falling to 0 along half a cosine.
        kl_weight: Weight of the latent's KL.
        amortized_epochs: Epochs of `lmmvae-amortized`, which runs at the paper's settings:
            batches of 1000, Adam at 1e-3, squared error + 0.01 KL.
        refine: Gauss-Newton steps to the best latent of each test row, for every autoencoder whose
            rows have latents of their own; 0: latents are the encoder's.
        calibration_split: Share of the training rows, the same for all methods, that are held out
            of a fit and give the noise variance; 0: the noise variance is that of training.
        latent_epochs: What `lmmvae` chooses from for the argument of that name, by validation
            rows split off the training rows as the test rows were.
    """

    hidden_units: tuple[int, ...] = (1000, 500)
    epochs: int = 25
    batch_size: int = 128
    learning_rate: float = 2e-3
    kl_weight: float = 1.0
    amortized_epochs: int = 100
    refine: int = 0
    calibration_split: float = 0.0
    latent_epochs: tuple[int, ...] = (0,)

    def arguments(self) -> dict[str, Any]:
        """What every autoencoder's constructor takes."""
        arguments = asdict(self)
        del arguments["amortized_epochs"], arguments["latent_epochs"]
        return arguments
