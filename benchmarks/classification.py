"""Classification of labels by the latents: what a representation keeps of them."""

from __future__ import annotations

import time
from itertools import product
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.lmmvae_method import LMMVAEMethod
from benchmarks.memory import peak_megabytes, reset_peak
from benchmarks.methods import make_method
from benchmarks.settings import Training
from benchmarks.table import Problem, Table, load_problem
from keras_lmmvae.baselines import Baseline

__all__ = ["LDA", "RAW", "measure_classification"]

RAW = "raw"
"""The method that leaves the features as they are."""
LDA = "lda"
"""Fisher's discriminants of the groups, not of the labels: the linear counterpart of the total."""


def measure_classification(
    table: Table, latent_dim: int, method: str, seed: int, training: Training
) -> list[dict[str, Any]]:
    """Fits a method without labels, then two classifiers on its latents.

    Args:
        table: Data set and split; its source has labels.
        latent_dim: Latent variables `d`.
        method: Name of the method; "raw" for the features themselves, "lda" for Fisher's linear
            discriminants of the table's first grouping.
        seed: Of split, method and classifiers.
        training: The suite's settings.

    Returns:
        A dict per representation and classifier: `method`, `classifier`, `accuracy` and
        `balanced_accuracy` on the labelled test rows, `seconds` and `peak_mb` of the fit. LMMVAE
        has two representations, "lmmvae" and "lmmvae-total".
    """
    problem = load_problem(table, latent_dim, seed)
    reset_peak()
    start = time.perf_counter()
    if method == RAW:
        representations = {RAW: (problem.train["x"], problem.test["x"])}
    elif method == LDA:
        discriminants = LinearDiscriminantAnalysis(n_components=latent_dim)
        discriminants.fit(problem.train["x"], problem.train[table.groups[0]])
        train, test = (discriminants.transform(part["x"]) for part in (problem.train, problem.test))
        representations = {LDA: (train, test)}
    else:
        fitted = make_method(method, table, latent_dim, training, seed).fit(problem.train)
        representations = _representations(method, fitted, problem)
    cost = {"seconds": time.perf_counter() - start, "peak_mb": peak_megabytes()}
    train_labels, test_labels = _labels(problem)
    has_label, test_has_label = train_labels != "", test_labels != ""
    rows = []
    pairs = product(representations.items(), _classifiers(seed).items())
    for (representation, (train, test)), (name, classifier) in pairs:
        classifier.fit(train[has_label], train_labels[has_label])
        predicted = classifier.predict(test[test_has_label])
        truth = test_labels[test_has_label]
        rows.append(
            {
                "method": representation,
                "classifier": name,
                "accuracy": float(accuracy_score(truth, predicted)),
                "balanced_accuracy": float(balanced_accuracy_score(truth, predicted)),
                **cost,
            }
        )
    return rows


def _representations(
    method: str, fitted: Baseline, problem: Problem
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Training and test rows in `d` numbers, by the name of the representation.

    Held-out groups get the effects that their own rows say, as the training groups did.
    """
    train, test = dict(problem.train), dict(problem.test)
    if method != "lmmvae" or not isinstance(fitted, LMMVAEMethod):
        return {method: (fitted.transform(train), fitted.transform(test))}
    model = fitted.model_
    with_test = model.with_levels_of(test) if model.random_effects else model
    return {
        name: (model.encode(train, include=include), with_test.encode(test, include=include))
        for name, include in (("lmmvae", "within"), ("lmmvae-total", "total"))
    }


def _labels(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Labels of training and test rows as strings. A row without a label has ""."""
    labels = problem.source.labels
    if labels is None:
        raise ValueError(
            "A table to classify must have labels. "
            f"Received: dataset={problem.table.dataset!r}, labels=None"
        )
    texts = np.array(["" if label is None else str(label) for label in labels])
    return texts[problem.train_rows], texts[problem.test_rows]


def _classifiers(seed: int) -> dict[str, ClassifierMixin]:
    # Without a penalty the leaves of rare classes diverge: on the crops of the pines the boosting
    # then tells a quarter of its own training rows.
    return {
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
        "gradient boosting": HistGradientBoostingClassifier(
            max_iter=60, l2_regularization=1.0, random_state=seed
        ),
    }
