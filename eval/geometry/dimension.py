"""Intrinsic dimension by the two nearest neighbours (Facco et al., Scientific Reports 7, 2017)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eval.errors import KeelBenchError

DISCARDED = 0.1  # share of the largest ratios left out of the fit, as in the paper


@dataclass(frozen=True)
class IntrinsicDimension:
    value: float
    points: int  # that it rests on
    duplicates: int  # rows left out because another one equals them (their nearest neighbour is at distance 0)


def two_nn(rows: npt.ArrayLike, *, discarded: float = DISCARDED) -> IntrinsicDimension:
    """TwoNN of ``rows``, [n, width].

    With mu = r2/r1, a point's distances to its second and first nearest neighbour, and F the empirical distribution of
    mu, -log(1 - F(mu)) = d log(mu): d is the slope of the line through the origin, fitted by least squares without the
    largest mu, where the data's noise and curvature show (the paper's equation 4 and its figure 1).

    The estimate depends on the sampling density: compare like with like.

    Raises:
        KeelBenchError: fewer than 10 different rows, a share outside [0, 1), or rows on a regular grid, whose first two
            neighbours are equally far.
    """
    if not 0 <= discarded < 1:
        raise KeelBenchError(f"discarded={discarded}: a share from 0 to below 1")
    given = np.asarray(rows, dtype=np.float64)
    points = np.unique(given, axis=0)
    if len(points) < 10:
        raise KeelBenchError(f"{len(points)} different hidden states are too few for an intrinsic dimension")
    nearest = _two_nearest(points)
    ratios = np.sort(nearest[:, 1] / nearest[:, 0])
    kept = int(len(ratios) * (1 - discarded))
    x = np.log(ratios[:kept])
    y = -np.log1p(-np.arange(1, kept + 1) / (len(ratios) + 1))  # F of the i-th is i/(N+1): never 1, so never infinite
    if not x @ x > 0:
        raise KeelBenchError("every hidden state's first two neighbours are equally far: no intrinsic dimension")
    return IntrinsicDimension(float(x @ y / (x @ x)), len(points), len(given) - len(points))


def _two_nearest(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Distances of each of the different ``points`` to its two nearest others, [n, 2].

    Brute force in high dimension finds neighbours through dot products, whose rounding may exceed a small distance: the
    candidates' distances are measured again as differences.
    """
    from sklearn.neighbors import NearestNeighbors

    centred = points - points.mean(axis=0)
    candidates = NearestNeighbors(n_neighbors=min(8, len(points) - 1)).fit(centred).kneighbors(return_distance=False)
    found = np.empty((len(points), 2))
    for i, others in enumerate(candidates):  # a point is not among its own neighbours
        found[i] = np.sort(np.linalg.norm(points[others] - points[i], axis=1))[:2]
    return found
