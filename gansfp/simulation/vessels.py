"""The vessels of the phantom's lungs: trees of points in the patient's coordinates, see phantom.Patient."""

import numpy as np
from scipy import ndimage

_VESSEL_TIPS = 260  # nodes in the vessel tree of one lung
_VESSEL_WIDTHS = (0.5, 0.75, 1.1, 1.7)  # pixels (sigma): vessels are drawn in four widths, each with its own blur


def draw_tree(rng: np.random.Generator, lung: tuple[float, float], gap: float) -> np.ndarray:
    """Draws two trees that fill the lungs from the hila. Returns points (n, 4): x, y, z and the class of the width.

    Nodes are drawn at random in the lung. The parent of a node is the nearest node that is closer to the hilum, which
    gives the branching of real vessels. The width follows from the number of tips that a vessel feeds (Murray's law).
    """
    points = []
    for side in (-1.0, 1.0):
        nodes = rng.uniform(-1, 1, (2 * _VESSEL_TIPS, 3))
        nodes = nodes[(nodes**2).sum(axis=1) < 1][:_VESSEL_TIPS] * [lung[0], lung[1], 0.55] + [side * gap, 0.0, 0.6]
        hilum = np.array([side * (gap - 0.75 * lung[0]), rng.uniform(-0.02, 0.08), rng.uniform(0.45, 0.55)])
        away = np.linalg.norm(nodes - hilum, axis=1)
        order = np.argsort(away)
        nodes, away = np.vstack([hilum, nodes[order]]), np.concatenate([[0.0], away[order]])
        distance = np.linalg.norm(nodes[:, None] - nodes[None], axis=2) + 0.35 * away[None]
        parent = np.where(away[None] < away[:, None], distance, np.inf)[1:].argmin(axis=1)
        tips = np.ones(len(nodes))
        for node in range(len(nodes) - 1, 0, -1):
            tips[parent[node - 1]] += tips[node]
        breadth = np.digitize(tips[1:] ** (1 / 3), [1.5, 2.2, 3.2])
        steps = np.linspace(0, 1, 24)[None, :, None]
        start, end = nodes[parent][:, None], nodes[1:][:, None]
        bow = np.sin(np.pi * steps) * rng.normal(0, 0.008, (len(end), 1, 3))  # real vessels are not quite straight
        xyz = start + steps * (end - start) + bow
        points.append(np.dstack([xyz, np.broadcast_to(breadth[:, None, None], (*xyz.shape[:2], 1))]).reshape(-1, 4))
    return np.concatenate(points).astype(np.float32)


def share_of_vessels(points: np.ndarray, level: float, centre: tuple[float, float], side: int) -> np.ndarray:
    """Returns the share of vessel in each pixel, (side, side) float32: the points near the level, blurred to their
    widths.

    points: (n, 4) of `draw_tree`; centre: of the body, x and y.
    """
    near = points[np.abs(points[:, 2] - level) < 0.05]
    weight = np.exp(-((near[:, 2] - level) ** 2) / (2 * 0.016**2))
    column = (near[:, 0] + centre[0] + 1) * (side / 2)
    row = (near[:, 1] + centre[1] + 1) * (side / 2)
    inside = (column >= 0) & (column < side) & (row >= 0) & (row < side)
    total = np.zeros((side, side), np.float32)
    for breadth, sigma in enumerate(_VESSEL_WIDTHS):
        chosen = inside & (near[:, 3] == breadth)
        cell = row[chosen].astype(int) * side + column[chosen].astype(int)
        hits = np.bincount(cell, weight[chosen], side * side).reshape(side, side).astype(np.float32)
        total += ndimage.gaussian_filter(hits, sigma, truncate=3.0) * np.float32(4.0 * sigma)
    return 1 - np.exp(-1.4 * total)
