"""The LMMVAE model: its ELBO and training loop, and how its effects are fitted."""

from keras_lmmvae.model.lmmvae import LMMVAE

__all__ = ["LMMVAE"]
