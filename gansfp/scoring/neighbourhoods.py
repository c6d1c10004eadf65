"""Places of slices in a plane, where slices that are alike are neighbours. For pictures: nothing is decided by it."""

from __future__ import annotations

import numpy as np
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from gansfp.scoring.projections import pca

COMPONENTS = 30  # principal components: t-SNE of more takes longer and shows the same (van der Maaten and Hinton 2008)
MOST = 800  # slices that are placed by t-SNE, whose time grows faster than their number
PERPLEXITY, STEPS = 30.0, 500


def places_in_a_plane(x: np.ndarray) -> np.ndarray:
    """Returns a place for each of n slices, (n, 2) float32, by t-SNE (van der Maaten and Hinton 2008).

    Neighbours in the plane are alike; how far heaps lie apart, and how large they are, means nothing. Of more than MOST
    slices, evenly chosen ones are placed, and each other one takes the place of the chosen one that it is nearest to.
    Where there are too few different slices, they lie along a line.

    x: (n, d) float32.
    """
    components = min(COMPONENTS, len(x) - 1, x.shape[1])
    if components >= 1:
        x = pca(x, components).transform(x)
        x = x / max(float(np.abs(x).max()), 1e-30)
    # scikit-learn's t-SNE of slices that are all alike ends the process; copies lie in one place anyway.
    different = np.unique(x, axis=0)
    if components < 2 or len(different) < 4:
        return np.stack([np.arange(len(x)), np.zeros(len(x))], axis=1).astype(np.float32)
    chosen = different[np.unique(np.linspace(0, len(different) - 1, min(MOST, len(different))).round().astype(int))]
    tsne = TSNE(perplexity=min(PERPLEXITY, (len(chosen) - 1) / 3), init="pca", max_iter=STEPS, random_state=0)
    with threadpool_limits(1):  # sums of several threads are added up in any order, and t-SNE makes this visible
        places = tsne.fit_transform(chosen)
    squares = (chosen**2).sum(1)
    nearest = np.array([np.argmin(squares - 2 * chosen @ row) for row in x])
    return places[nearest].astype(np.float32)
