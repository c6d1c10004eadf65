"""Logistic regression for the many small fits that permutations need."""

from __future__ import annotations

import numpy as np
from scipy.special import expit


def logistic(x: np.ndarray, used: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    """Fits a ridge logistic regression of used (n,) bool on x (n, m) with balanced classes; returns its coefficients
    (m,) and intercept.

    Equal to scikit-learn's LogisticRegression(C=strength, class_weight="balanced"). The checks of scikit-learn take ten
    times as long as these few Newton steps, and permutations need thousands of fits.
    """
    columns = np.column_stack([x, np.ones(len(x))])
    weight = np.where(used, 0.5 / used.mean(), 0.5 / (1 - used.mean()))
    penalty = np.append(np.full(x.shape[1], 1 / strength), 0.0)
    sign = np.where(used, 1.0, -1.0)

    def loss(parameters: np.ndarray) -> float:
        return float(weight @ np.logaddexp(0, -sign * (columns @ parameters)) + penalty @ parameters**2 / 2)

    fitted = np.zeros(columns.shape[1])
    lowest = loss(fitted)
    for _ in range(100):
        expected = expit(columns @ fitted)
        gradient = columns.T @ (weight * (expected - used)) + penalty * fitted
        curvature = (columns.T * (weight * expected * (1 - expected))) @ columns
        curvature.flat[:: len(penalty) + 1] += penalty  # its diagonal
        step = np.linalg.solve(curvature, gradient)
        while (reached := loss(fitted - step)) > lowest + 1e-12 * abs(lowest):  # the step was too long
            step = step / 2
        fitted, lowest = fitted - step, reached
        if np.abs(step).max() < 1e-5:  # Newton's steps go down by their squares: the next one would be 1e-10
            break
    return fitted[:-1], float(fitted[-1])
