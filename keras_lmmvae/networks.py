"""Encoder and decoder networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import keras
import tensorflow as tf

__all__ = [
    "EffectsEncoder",
    "LatentDecoder",
    "LatentEncoder",
    "LatentNetworks",
    "dense_stack",
    "layer_seeds",
]

# Bounds of log variances, so that float32 can tell every posterior variance from 0 and infinity.
_LOG_VAR_BOUNDS = (-14.0, 6.0)


def _kernel_initializer(seed: int | None, number: int = 0) -> keras.initializers.Initializer:
    return keras.initializers.GlorotUniform(seed=None if seed is None else seed + number)


def layer_seeds(seed: int | None) -> Iterator[int | None]:
    """Seeds of a model's networks and heads, far enough apart for one a layer."""
    return iter([None if seed is None else 1000 * seed + 100 * part for part in range(10)])


def dense_stack(
    hidden_units: Sequence[int], activation: Any, name: str, dtype: Any, seed: int | None
) -> keras.Sequential:
    """Dense layers of the given widths, all with `activation`."""
    layers = []
    for number, units in enumerate(hidden_units):
        initializer = _kernel_initializer(seed, number)
        layers.append(
            keras.layers.Dense(
                units, activation=activation, kernel_initializer=initializer, dtype=dtype
            )
        )
    return keras.Sequential(layers, name=name)


class _Network(keras.Layer):
    """A trunk, which may be missing, and linear heads on its output."""

    def __init__(self, trunk: keras.Layer | None, seed: int | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.trunk = trunk
        self.seed = seed

    def make_head(self, width: int, name: str, number: int = 0) -> keras.layers.Dense:
        """A linear layer in float32, whatever the policy of the trunk."""
        initializer = _kernel_initializer(self.seed, number)
        return keras.layers.Dense(width, kernel_initializer=initializer, dtype="float32", name=name)

    def build_trunk(self, input_shape: Any) -> Any:
        """Builds the trunk, unless it is built, and returns the shape of its output."""
        if self.trunk is None:
            return input_shape
        if not self.trunk.built:
            self.trunk.build(input_shape)
        return self.trunk.compute_output_shape(input_shape)

    def hidden(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Output of the trunk, `(b, h)`."""
        return inputs if self.trunk is None else self.trunk(inputs, training=training)

    def get_config(self) -> dict[str, Any]:
        trunk = None if self.trunk is None else keras.saving.serialize_keras_object(self.trunk)
        return {**super().get_config(), "trunk": trunk, "seed": self.seed}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        trunk = config.pop("trunk")
        if trunk is not None:
            trunk = keras.saving.deserialize_keras_object(trunk)
        return cls(trunk=trunk, **config)


class _GaussianNetwork(_Network):
    """A network with two heads: means and log variances of a Gaussian."""

    def make_heads(self, width: int, name: str) -> None:
        """Makes the heads `<name>_mean` and `<name>_log_var`."""
        self.mean_head = self.make_head(width, f"{name}_mean")
        self.log_var_head = self.make_head(width, f"{name}_log_var", 1)

    def build(self, input_shape: Any) -> None:
        hidden = self.build_trunk(input_shape)
        self.mean_head.build(hidden)
        self.log_var_head.build(hidden)
        self.built = True

    def moments(self, inputs: tf.Tensor, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and bounded log variance, `(b, width)` each."""
        hidden = self.hidden(inputs, training)
        log_var = keras.ops.clip(self.log_var_head(hidden), *_LOG_VAR_BOUNDS)
        return self.mean_head(hidden), log_var


@keras.saving.register_keras_serializable(package="keras_lmmvae")
class LatentEncoder(_GaussianNetwork):
    """Gaussian posterior of the latent: a trunk with two linear heads.

        q(u[i]) = Normal(latent_mean, exp(latent_log_var))

    Args:
        trunk: Keras model or layer `(b, p) -> (b, h)`.
        latent_dim: Positive int, `d`.
        seed: Optional int that fixes the heads' initial weights.
    """

    trunk: keras.Layer

    def __init__(
        self, trunk: keras.Layer, latent_dim: int, seed: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(trunk, seed, **kwargs)
        self.latent_dim = latent_dim
        self.make_heads(latent_dim, "latent")

    def call(self, inputs: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        return self.moments(inputs, training)

    def compute_output_shape(self, input_shape: Any) -> Any:
        shape = (input_shape[0], self.latent_dim)
        return shape, shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "latent_dim": self.latent_dim}


@keras.saving.register_keras_serializable(package="keras_lmmvae")
class LatentDecoder(_Network):
    """The mean function f of the features: a trunk with a linear head.

    Args:
        trunk: Keras model or layer `(b, d) -> (b, h)`.
        num_features: Positive int, `p`.
        has_head: Whether a linear layer follows the trunk. Without, the trunk must end in `p`.
        seed: Optional int that fixes the head's initial weights.
    """

    def __init__(
        self,
        trunk: keras.Layer,
        num_features: int,
        has_head: bool = True,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(trunk, seed, **kwargs)
        self.num_features = num_features
        self.has_head = has_head
        self.head = self.make_head(num_features, "features")

    def build(self, input_shape: Any) -> None:
        hidden = self.build_trunk(input_shape)
        if self.has_head:
            self.head.build(hidden)
        self.built = True

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        hidden = self.hidden(inputs, training)
        return self.head(hidden) if self.has_head else keras.ops.cast(hidden, "float32")

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (input_shape[0], self.num_features)

    def get_config(self) -> dict[str, Any]:
        own = {"num_features": self.num_features, "has_head": self.has_head}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="keras_lmmvae")
class EffectsEncoder(_GaussianNetwork):
    """Gaussian codes of the rows for every random-effects term: the paper's second encoder.

        q(b_k[i]) = Normal(mean_k, exp(log_var_k)),    c_k vectors of p values each

    Args:
        code_sizes: Numbers `c_k` of code vectors of the terms.
        num_features: Positive int, `p`.
        trunk: Keras layer `(b, p) -> (b, h)`; `None` if `call` gets the hidden vectors of the
            latent encoder.
        seed: Optional int that fixes the heads' initial weights.
    """

    def __init__(
        self,
        code_sizes: Sequence[int],
        num_features: int,
        trunk: keras.Layer | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(trunk, seed, **kwargs)
        self.code_sizes = tuple(code_sizes)
        self.num_features = num_features
        self.make_heads(sum(self.code_sizes) * num_features, "code")

    def call(self, inputs: tf.Tensor, training: bool = False) -> list[tuple[tf.Tensor, tf.Tensor]]:
        mean, log_var = self.moments(inputs, training)
        return list(zip(self._split(mean), self._split(log_var), strict=True))

    def _split(self, values: tf.Tensor) -> list[tf.Tensor]:
        """`(b, sum of c * p)` to one `(b, c, p)` a term."""
        widths = [size * self.num_features for size in self.code_sizes]
        parts = tf.split(values, widths, axis=1)
        return [
            tf.reshape(part, (-1, size, self.num_features))
            for part, size in zip(parts, self.code_sizes, strict=True)
        ]

    def compute_output_shape(self, input_shape: Any) -> Any:
        shapes = [(input_shape[0], size, self.num_features) for size in self.code_sizes]
        return [(shape, shape) for shape in shapes]

    def get_config(self) -> dict[str, Any]:
        own = {"code_sizes": self.code_sizes, "num_features": self.num_features}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="keras_lmmvae")
class LatentNetworks(keras.Layer):
    """Encoder and decoder between standardised features and the latent.

        q(u[i]) = Normal(mean(v), diag(exp(log_var(v))))
        v = (x[i] - contribution - offset) / scale
        f(u[i]) = scale * decoder(u[i]) + offset

    The encoder reads the row without its random effects. The difference has the standard
    deviation `scale`, so that the networks work on unit variance for effects of any size. `offset`
    is the intercept of the mixed model, which gradient steps would be slow to find. Networks that
    are not in use give `f(u) = offset`.

    Args:
        encoder: The `LatentEncoder`.
        decoder: The `LatentDecoder`.
        reads_effects: Whether the encoder reads the row as it is, effects included.
    """

    def __init__(
        self,
        encoder: LatentEncoder,
        decoder: LatentDecoder,
        reads_effects: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.encoder = encoder
        self.decoder = decoder
        self.reads_effects = reads_effects

    @classmethod
    def of(
        cls,
        num_features: int,
        latent_dim: int,
        hidden_units: Sequence[int],
        activation: Any,
        seeds: Iterator[int | None],
        *,
        encoder: keras.Layer | None = None,
        decoder: keras.Layer | None = None,
        reads_effects: bool = False,
        policy: Any = None,
    ) -> LatentNetworks:
        """Dense networks of the given widths, mirrored in the decoder, or around given trunks.

        A given decoder `(b, d) -> (b, p)` needs no head, one `(b, d) -> (b, h)` gets one.
        """
        trunk = encoder or dense_stack(
            hidden_units, activation, "encoder_trunk", policy, next(seeds)
        )
        latent_encoder = LatentEncoder(trunk, latent_dim, next(seeds), dtype=policy)
        shape = None if decoder is None else decoder.compute_output_shape((None, latent_dim))
        trunk = decoder or dense_stack(
            hidden_units[::-1], activation, "decoder_trunk", policy, next(seeds)
        )
        has_head = shape is None or tuple(shape) != (None, num_features)
        latent_decoder = LatentDecoder(trunk, num_features, has_head, next(seeds), dtype=policy)
        return cls(latent_encoder, latent_decoder, reads_effects, dtype=policy, name="networks")

    def build(self, input_shape: Any) -> None:
        if not self.encoder.built:
            self.encoder.build(input_shape)
        if not self.decoder.built:
            self.decoder.build((None, self.encoder.latent_dim))
        self.scale = self._state("scale", input_shape[-1], "ones")
        self.offset = self._state("offset", input_shape[-1], "zeros")
        self.in_use = self._state("in_use", 1, "ones")

    def _state(self, name: str, width: int, initializer: str) -> keras.Variable:
        """A weight that is not trained, in float32 whatever the policy."""
        return self.add_weight(
            name=name,
            shape=(width,),
            initializer=initializer,
            trainable=False,
            autocast=False,
            dtype="float32",
        )

    def encoder_input(
        self, x: tf.Tensor, contribution: tf.Tensor, observed: tf.Tensor | None
    ) -> tf.Tensor:
        """The encoder's input, with 0 in missing cells."""
        values = x if self.reads_effects else x - contribution
        values = (values - self.offset) / self.scale
        return values if observed is None else tf.where(observed, values, 0.0)

    def encode(
        self,
        x: tf.Tensor,
        contribution: tf.Tensor,
        observed: tf.Tensor | None = None,
        training: bool = False,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and log variance of q(u), `(b, d)` each, of standardised rows and their effects."""
        return self.encoder(self.encoder_input(x, contribution, observed), training=training)

    def decode(self, latent: tf.Tensor, training: bool = False) -> tf.Tensor:
        """`f(u)`, `(b, p)`, in standardised units."""
        scale = self.scale * self.in_use
        return self.decoder(latent, training=training) * scale + self.offset

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """`f(E[u | x])` of standardised rows without effects, `(b, p)`."""
        mean, _ = self.encode(inputs, tf.zeros_like(inputs), training=training)
        return self.decode(mean, training)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "encoder": serialize(self.encoder),
            "decoder": serialize(self.decoder),
            "reads_effects": self.reads_effects,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LatentNetworks:
        deserialize = keras.saving.deserialize_keras_object
        parts = {name: deserialize(config.pop(name)) for name in ("encoder", "decoder")}
        config.pop("autocast", None)
        return cls(**parts, **config)
