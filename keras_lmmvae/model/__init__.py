"""The LMMVAE model: its ELBO and training loop, and how its effects are fitted."""
