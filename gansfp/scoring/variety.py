"""How many different slices are there, in effect?"""

from __future__ import annotations

import numpy as np


def effective_number(x: np.ndarray) -> float:
    """The Vendi score (Friedman and Dieng 2023) of vectors (n, d): between 1, where all are alike, and n, where no two
    are.

    The exponential of the entropy of the eigenvalues of the (n, n) matrix of cosines, divided by n. The cosines are
    those of the vectors without their mean: what all slices share tells none apart.
    """
    centred = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    if not (norms > 0).any():
        return 1.0
    unit = centred / np.where(norms > 0, norms, 1)
    square = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit  # both have the same eigenvalues
    shares = np.linalg.eigvalsh(square / len(unit))
    shares = shares[shares > 1e-12]
    shares /= shares.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
