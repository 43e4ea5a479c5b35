# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Accuracy as a local `evaluate` module: `evaluate.load("accuracy")` would download its script."""

import datasets
import evaluate
from sklearn.metrics import accuracy_score


class Accuracy(evaluate.Metric):
    """Fraction of predictions that equal their reference."""

    def _info(self):
        return evaluate.MetricInfo(
            description="Fraction of predictions that equal their reference, between 0 and 1.",
            citation="",
            inputs_description="`predictions` and `references`: lists of class indices of the same length.",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        return {"accuracy": float(accuracy_score(references, predictions))}
