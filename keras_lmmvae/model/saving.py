"""Configuration of a model, its file and its export."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import keras

from keras_lmmvae.model.part import ModelPart
from keras_lmmvae.validation import received

__all__ = ["Saving"]


class Saving(ModelPart):
    """The part of `LMMVAE` that says how to make it again, and writes it for serving."""

    def save(
        self,
        filepath: str | Path,
        overwrite: bool = True,
        zipped: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Saves the model; arguments as in Keras.

        A `.keras` file is written beside its place and renamed: a failed save leaves what was
        there before.

        Args:
            filepath: File to write, "....keras".
            overwrite: Whether to replace a file that is there without asking.
            zipped: Whether to write one file instead of a folder.
            **kwargs: Keras' further arguments.
        """
        target = Path(filepath)
        is_asking = not overwrite and target.exists()
        if is_asking or zipped is False or target.suffix != ".keras" or "://" in str(filepath):
            super().save(filepath, overwrite=overwrite, zipped=zipped, **kwargs)
            return
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".save-") as folder:
            fresh = Path(folder) / target.name
            super().save(fresh, zipped=zipped, **kwargs)
            os.replace(fresh, target)

    def export(self, filepath: str | Path, *, keys_in_graph: bool = False, **kwargs: Any) -> None:
        """Writes a SavedModel for TensorFlow Serving, whose signatures take raw columns.

        `serving_default`, `encode`, `decode`, `anomaly_score`, `random_effects_<term>`, and
        `condition_<term>` for terms with intercepts; see docs/serving.md for their inputs and
        outputs. Rows are independent of each other, the batch size is free, floats are float32;
        keys are strings or int64, as those adapted to. The empty string, the smallest int64 and
        NaN stand for missing keys and coordinates. `keras_lmmvae.export.publish` adds a model
        card, warm-up requests and a check.

        Args:
            filepath: Folder to write, for TensorFlow Serving `models/<name>/<version>`.
            keys_in_graph: Whether keys are constants of the graph instead of asset files: for
                OpenVINO, which reads no assets; not for millions of keys.
            **kwargs: Keras' `format="tf_saved_model"` and `verbose`, nothing else.

        Raises:
            ValueError: If the model is not fitted, a column's name cannot be that of a
                SavedModel's input (ASCII letters, digits, "_", "." and "-"), or on further
                arguments.
        """
        kwargs.pop("verbose", None)
        if kwargs.pop("format", "tf_saved_model") != "tf_saved_model" or kwargs:
            raise ValueError(
                "The only export format is 'tf_saved_model', without further arguments. "
                + received(kwargs=sorted(kwargs) or "another format")
            )
        self.require_fitted()
        # Here, not above: the exporter knows models, and models know no exporter to be made.
        from keras_lmmvae.export.saved_model import export_saved_model

        export_saved_model(self, filepath, keys_in_graph=keys_in_graph)

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        given = {"encoder": self.given_encoder, "decoder": self.given_decoder}
        return {
            "latent_dim": self.latent_dim,
            "random_effects": [serialize(term) for term in self.random_effects],
            "hidden_units": self.hidden_units,
            "activation": keras.activations.serialize(self.activation),
            **{name: None if net is None else serialize(net) for name, net in given.items()},
            "posterior": self.posterior,
            "shared_encoder": self.shared_encoder,
            "kl_weight": self.kl_weight,
            "effects_kl_weight": self.effects_kl_weight,
            "effects_kl_reduction": self.effects_kl_reduction,
            "noise_variance": self.noise_variance_setting,
            "feature_weights": self.feature_weights,
            "latent_epochs": self.latent_epochs,
            "normalize": self.normalize,
            "seed": self.seed,
            "name": self.name,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Saving:
        config = dict(config)
        deserialize = keras.saving.deserialize_keras_object
        for name in ("encoder", "decoder", "dtype"):
            if isinstance(config.get(name), dict):
                config[name] = deserialize(config[name], custom_objects)
        config["random_effects"] = [
            deserialize(term, custom_objects) for term in config["random_effects"]
        ]
        return cls(**config)
