"""Which of two linear mixed models the rows speak for: tests of further variances."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from keras_lmmvae.effects import RandomIntercept, RandomSlopes
from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.fitted_model import FittedModel
from keras_lmmvae.inspection.information_criteria import information_criteria, shared_parameters
from keras_lmmvae.validation import received

__all__ = ["likelihood_ratio_test"]


def likelihood_ratio_test(
    smaller: FittedModel,
    larger: FittedModel,
    data: Any,
    method: str = "reml",
    sample_weight: Any = None,
) -> pd.DataFrame:
    """Tests whether a linear mixed model needs terms, or slopes, that a smaller one lacks.

        statistic = 2 * (log likelihood of larger - log likelihood of smaller)

    The hypothesis is that the further variances are 0. A variance cannot be below 0, so in about
    half of all tables its estimate is 0, and so is the statistic. For `q` further parameters its
    distribution is taken for chi-square with `q - 1` and `q` degrees of freedom, half and half.
    This holds in large samples for one further variance, and for one further slope with its
    covariance. For more it is a bound: p-values are too large.

    A feature's `q` counts its own further variances and the further parameters that all features
    share: entries of `Psi`, and learned length scales. Shared ones are fitted to all features, so
    that with many features the test of one is conservative.

    "(all)" tests all features together, taken as independent of each other. If they are
    correlated beyond what the terms explain, its p-value is too small. Without further shared
    parameters the statistic is a sum over features, and its distribution is the mixture of
    chi-squares whose weights are binomial with probability 1/2. With them it is that of `q`
    parameters, `q` counted over all features: conservative for ten features and more.

    REML's steps end a little before the maximum. A statistic below 0 is given as 0. The "(all)" of
    many features, a sum of such errors, may come out too small by about 1 where further slopes
    have no variance.

    The fixed effects of both models are the same, an intercept a feature. So likelihoods of REML
    may be compared.

    Args:
        smaller: A model fitted with `epochs=0`; it may have no terms.
        larger: Another, whose terms contain those of `smaller`. Terms are compared by name; of one
            that is in both, `larger` may have more slopes.
        data: The training rows of both: dict of arrays, or a batched dataset of dicts.
        method: "reml", or "ml", the full likelihood at REML's estimates. It is not at its maximum
            there, so that "ml" is no exact likelihood ratio.
        sample_weight: Optional array `(n,)`, the row weights of both fits.

    Returns:
        A DataFrame, features and "(all)" x ("statistic", "degrees_of_freedom", "p_value").

    Raises:
        ValueError: If a model is no fitted linear mixed model (see
            `LMMVAE.information_criteria`), features or given noise variances differ, the terms of
            `smaller` are not among those of `larger`, or `larger` has none more.

    Example:
        >>> import numpy as np
        >>> import keras_lmmvae as lmm
        >>> rng = np.random.default_rng(0)
        >>> data = {"store": rng.integers(0, 20, size=200)}
        >>> effects = np.array([0.0, 1.0]) * rng.normal(size=(20, 2))
        >>> data["x"] = effects[data["store"]] + rng.normal(size=(200, 2))
        >>> models = [lmm.LMMVAE(1, terms, hidden_units=(8,)) for terms in ((), "(1 | store)")]
        >>> for model in models:
        ...     model.adapt(data, feature_names=["colour", "size"])
        ...     model.compile()
        ...     history = model.fit(data, epochs=0)
        >>> test = lmm.likelihood_ratio_test(*models, data)
        >>> (test["p_value"] < 0.05).to_dict()
        {'colour': False, 'size': True, '(all)': True}

    References:
        - Self, S. G. & Liang, K.-Y. (1987), Asymptotic properties of maximum likelihood estimators
          and likelihood ratio tests under nonstandard conditions.
        - Stram, D. O. & Lee, J. W. (1994), Variance components testing in the longitudinal mixed
          effects model.
        - Silvapulle, M. J. & Sen, P. K. (2005), Constrained statistical inference.
    """
    _check_nested(smaller, larger)
    one, other = (
        information_criteria(model, data, method, sample_weight) for model in (smaller, larger)
    )
    statistic = np.maximum(2.0 * (other["log_likelihood"] - one["log_likelihood"]), 0.0)
    shared = shared_parameters(larger) - shared_parameters(smaller)
    further = (other["parameters"] - one["parameters"]).to_numpy()
    freedom = np.append(further[:-1] + shared, further[-1])
    halves = np.append(np.ones_like(further[:-1]), 1 if shared else smaller.num_features)
    found = [_p_value(*test) for test in zip(statistic, freedom, halves, strict=True)]
    columns = {"statistic": statistic, "degrees_of_freedom": freedom, "p_value": found}
    return pd.DataFrame(columns, one.index)


def _p_value(statistic: float, freedom: int, halves: int) -> float:
    """Upper tail of a mixture of chi-squares, `halves` of whose degrees of freedom are each there
    or not with probability 1/2."""
    if statistic <= 0.0:
        return 1.0
    there = np.arange(halves + 1)
    weights = stats.binom.pmf(there, halves, 0.5)
    degrees = freedom - halves + there
    # With 0 degrees of freedom chi-square is 0.
    tails = np.where(degrees > 0, stats.chi2.sf(statistic, np.maximum(degrees, 1)), 0.0)
    return float(weights @ tails)


def _check_nested(smaller: FittedModel, larger: FittedModel) -> None:
    """Raises a ValueError unless the larger model is the smaller one with further variances."""
    for name, model in (("smaller", smaller), ("larger", larger)):
        if not callable(getattr(model, "require_fitted", None)):
            raise ValueError(
                "`likelihood_ratio_test` compares two LMMVAEs. "
                + received(**{name: type(model).__name__})
            )
        model.require_fitted()
    if smaller.feature_names != larger.feature_names:
        raise ValueError(
            "Both models must have the same features. "
            + received(smaller=smaller.feature_names, larger=larger.feature_names)
        )
    if smaller.noise_variance_setting != larger.noise_variance_setting:
        raise ValueError(
            "Both models must learn the noise variance, or be given the same. "
            + received(smaller=smaller.noise_variance_setting, larger=larger.noise_variance_setting)
        )
    terms = {term.label: term for term in larger.random_effects}
    missing = [term.label for term in smaller.random_effects if term.label not in terms]
    if missing:
        raise ValueError(
            f"The larger model lacks the term(s) {missing} of the smaller, expected all of them. "
            + received(larger=list(terms))
        )
    for term in smaller.random_effects:
        if not _is_part_of(term, terms[term.label]):
            raise ValueError(
                f"The term '{term.label}' of the smaller model is not a part of that of the "
                "larger, expected the same term, or the same with more slopes. "
                + received(smaller=term.get_config(), larger=terms[term.label].get_config())
            )
    has_more_slopes = shared_parameters(larger) > shared_parameters(smaller)
    if len(terms) == len(smaller.random_effects) and not has_more_slopes:
        raise ValueError(
            "Both models have the same terms, expected more of the larger. "
            + received(smaller=list(terms), larger=list(terms))
        )


def _is_part_of(term: RandomEffect, other: RandomEffect) -> bool:
    """Whether a term is another one, or that with some variances 0."""
    if isinstance(other, RandomSlopes) and isinstance(term, (RandomIntercept, RandomSlopes)):
        names = set(other.coefficient_names())
        return term.keys == other.keys and names.issuperset(term.coefficient_names())
    return type(term) is type(other) and term.get_config() == other.get_config()
