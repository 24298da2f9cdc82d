"""LMMVAE as a transformer of scikit-learn: for pipelines, cross-validation and pickles."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import keras
import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from keras_lmmvae.baselines.schedule import check_training, cosine_adam
from keras_lmmvae.data_frame import as_pandas, from_dataframe, numeric_features
from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.lmmvae import LMMVAE
from keras_lmmvae.model_bytes import from_bytes, to_bytes
from keras_lmmvae.validation import received

__all__ = ["LMMVAETransformer"]


class LMMVAETransformer(
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,  # type: ignore[misc]
):
    """`LMMVAE` with scikit-learn's interface: from a data frame to representations.

        x[i] = f(u[i]) + sum{ Z_k[i] @ B_k : k=1...K } + e[i],    transform: E[u[i] | x, B]

    The frame holds the features and the columns of the random effects. Without random effects an
    array is enough. NaN marks missing cells. Training uses `cosine_adam`, as the baselines do, and
    prints nothing. For callbacks, validation and progress use `LMMVAE`, which the fitted
    transformer holds in `model_`.

    Args:
        latent_dim: Positive int, `d`.
        random_effects: `None`, a formula such as "(1 | store)", or a list of terms.
        features: Names of the feature columns. Defaults to the numeric columns that no term
            uses.
        hidden_units: Widths of the encoder's dense layers, mirrored in the decoder.
        epochs: Positive int.
        batch_size: Positive int, rows of a step; all rows if there are fewer.
        learning_rate: Positive float, of Adam at the first step.
        kl_weight: Non-negative float, weight of KL(q(u) || p(u)).
        posterior: "conjugate" or "amortized"; see `LMMVAE`.
        latent_epochs: Non-negative int, epochs in which the networks train alone; see `LMMVAE`.
        include: What `transform` gives: "within", the latent, a row with its groups taken out, or
            "total", with its groups; see `LMMVAE.encode`.
        learn_levels: Whether rows of groups never seen get the effects that these rows say, all
            groups of `X` at once; see `LMMVAE.with_levels_of`. Otherwise they have no effects. The
            fitted model stays as it is.
        random_state: Optional int, or `numpy.random.RandomState`, that fixes initial weights,
            the order of the rows and draws.

    Attributes:
        model_: The fitted `LMMVAE`.
        features_: List of the feature columns; `None` if fitted to an array.
        n_features_in_: Int, number of columns seen by `fit`.
        feature_names_in_: Array of their names, if they are strings.

    Raises:
        ValueError: In `fit`, if an argument is out of its range or the data are unusable.

    Example:
        >>> import numpy as np, pandas as pd
        >>> import keras_lmmvae as lmm
        >>> rng = np.random.default_rng(0)
        >>> df = pd.DataFrame(rng.normal(size=(60, 3)), columns=["a", "b", "c"])
        >>> df["store"] = np.arange(60) % 6
        >>> transformer = lmm.LMMVAETransformer(
        ...     1, random_effects="(1 | store)", hidden_units=(8,), epochs=1, random_state=0)
        >>> transformer.set_output(transform="pandas").fit_transform(df).columns.tolist()
        ['lmmvaetransformer0']
    """

    def __init__(
        self,
        latent_dim: int = 2,
        random_effects: Sequence[RandomEffect] | str | None = None,
        *,
        features: Sequence[str] | None = None,
        hidden_units: Sequence[int] = (1000, 500),
        epochs: int = 25,
        batch_size: int = 128,
        learning_rate: float = 2e-3,
        kl_weight: float = 1.0,
        posterior: str = "conjugate",
        latent_epochs: int = 0,
        include: str = "within",
        learn_levels: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.latent_dim = latent_dim
        self.random_effects = random_effects
        self.features = features
        self.hidden_units = hidden_units
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.kl_weight = kl_weight
        self.posterior = posterior
        self.latent_epochs = latent_epochs
        self.include = include
        self.learn_levels = learn_levels
        self.random_state = random_state

    def fit(self, X: Any, y: None = None) -> Self:
        """Adapts and trains the model.

        Args:
            X: Data frame of `n` rows, or an array `(n, p)` if there are no random effects.
            y: Ignored.
        """
        del y
        check_training(
            hidden_units=self.hidden_units,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            kl_weight=self.kl_weight,
        )
        model = self._make_model()
        X = self._checked(X, reset=True)
        self.features_ = self._chosen_features(X)
        data = self._data(X, model)
        rows = len(data["x"])
        model.adapt(data)
        batch_size = min(self.batch_size, rows)
        model.compile(cosine_adam(self.learning_rate, rows, batch_size, self.epochs))
        model.fit(data, epochs=self.epochs, batch_size=batch_size, verbose=0)
        self.model_ = model
        return self

    def transform(self, X: Any) -> Any:
        """Representations of rows, float64 `(n, d)`: of what `include` says.

        Args:
            X: Rows, as for `fit`. Their levels may be unseen.
        """
        model, data = self._known(X)
        return np.asarray(model.encode(data, include=self.include), np.float64)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """`f(u)` in the features' units, without random effects.

        Args:
            X: Latents, array `(n, d)`.

        Returns:
            Float64 array `(n, p)`.

        Raises:
            ValueError: If `include` is "total", which has no decoder, or `X` is not `(n, d)`.
        """
        check_is_fitted(self)
        if self.include == "total":
            raise ValueError(
                "Only the latent has a decoder, expected include='within'. "
                + received(include=self.include)
            )
        latent = np.asarray(X, np.float32)
        if latent.ndim != 2 or latent.shape[1] != self._n_features_out:
            raise ValueError(
                f"The latents must be a matrix of {self._n_features_out} columns. "
                + received(X=latent)
            )
        return np.asarray(self.model_.decode(latent), np.float64)

    def reconstruct(self, X: Any, include_effects: bool = True) -> np.ndarray:
        """Reconstructions of rows, in the features' units.

        Args:
            X: Rows, as for `fit`.
            include_effects: Whether `Z B` is added to `f(E[u | x])`.

        Returns:
            Float64 array `(n, p)`.
        """
        model, data = self._known(X)
        return np.asarray(model.reconstruct(data, include_effects), np.float64)

    def score(self, X: Any, y: None = None) -> float:
        """Mean over rows of a lower bound of their log density. Higher is better.

        Args:
            X: Rows, as for `fit`. Their levels may be unseen.
            y: Ignored.

        Returns:
            Float, nats per row, for the density in the features' units.
        """
        del y
        model, data = self._known(X)
        return float(np.mean(model.log_likelihood(data)))

    @property
    def _n_features_out(self) -> int:
        return int(self.model_.latent_dim)

    def _make_model(self) -> LMMVAE:
        seed = self.random_state
        if not (seed is None or isinstance(seed, (int, np.integer))):
            seed = check_random_state(seed).randint(2**31 - 1)
        return LMMVAE(
            self.latent_dim,
            () if self.random_effects is None else self.random_effects,
            hidden_units=self.hidden_units,
            posterior=self.posterior,
            kl_weight=self.kl_weight,
            latent_epochs=self.latent_epochs,
            seed=None if seed is None else int(seed),
        )

    def _known(self, X: Any) -> tuple[LMMVAE, Any]:
        """The model that knows the levels of rows as asked for, and their data."""
        check_is_fitted(self)
        data = self._data(self._checked(X, reset=False), self.model_)
        if self.learn_levels and self.random_effects:
            return self.model_.with_levels_of(data), data
        return self.model_, data

    def _checked(self, X: Any, *, reset: bool) -> Any:
        """A data frame or an array of numbers. Unless `reset`, it has the columns of `fit`."""
        is_frame = isinstance(X, pd.DataFrame) or callable(getattr(X, "to_pandas", None))
        if not is_frame and (self.random_effects or self.features is not None):
            raise ValueError(
                "Random effects and `features` go by the names of columns, expected a data frame. "
                + received(X=type(X))
            )
        if is_frame:
            return validate_data(self, as_pandas(X), reset=reset, skip_check_array=True)
        return validate_data(
            self,
            X,
            reset=reset,
            dtype=[np.float64, np.float32],
            ensure_all_finite="allow-nan",
            ensure_min_samples=2 if reset else 1,
        )

    def _chosen_features(self, X: Any) -> list[Any] | None:
        if not isinstance(X, pd.DataFrame):
            return None
        if self.features is not None:
            return list(self.features)
        return numeric_features(X, self.random_effects or ())

    def _data(self, X: Any, model: LMMVAE) -> Any:
        if not isinstance(X, pd.DataFrame):
            return {"x": X}
        # If the model was fitted to an array, all columns are features.
        features = list(X.columns) if self.features_ is None else self.features_
        return from_dataframe(X, features, model.random_effects)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """The arguments, with the model and the terms as Keras saves them."""
        return _replaced(super().__getstate__(), to_bytes, keras.saving.serialize_keras_object)

    def __setstate__(self, state: dict[str, Any]) -> None:
        restore = keras.saving.deserialize_keras_object
        super().__setstate__(_replaced(state, from_bytes, restore))


def _replaced(
    state: Mapping[str, Any], of_model: Callable[[Any], Any], of_term: Callable[[Any], Any]
) -> dict[str, Any]:
    """A copy of a state with other forms of its model and its terms."""
    replaced = dict(state)
    if "model_" in replaced:
        replaced["model_"] = of_model(replaced["model_"])
    terms = replaced["random_effects"]
    if terms is not None and not isinstance(terms, str):
        replaced["random_effects"] = [of_term(term) for term in terms]
    return replaced
