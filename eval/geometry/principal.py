"""Principal directions, and how far two sets of them point the same way."""

from dataclasses import dataclass

import numpy as np

from eval.errors import CapacityError, KeelBenchError
from eval.geometry.covariance import Array


@dataclass(frozen=True)
class Principal:
    """Directions of largest variance, the largest first."""

    mean: Array  # [width]
    directions: Array  # [k, width], unit length, orthogonal
    variances: Array  # [k], of the rows along each direction
    total_variance: float  # of all directions, those left out included

    @property
    def explained(self) -> Array:
        """Each direction's share of the variance, [k]."""
        return self.variances / self.total_variance

    def project(self, rows: Array) -> Array:
        """Coordinates of ``rows`` [..., width] along the directions, [..., k]."""
        return (rows - self.mean) @ self.directions.T


def principal_directions(mean: Array, covariance: Array, k: int) -> Principal:
    """A covariance's first ``k`` eigenvectors. Their sign is arbitrary: here the largest entry is positive.

    Raises:
        CapacityError: more directions than the width.
        KeelBenchError: no variance at all.
    """
    from scipy.linalg import eigh

    width = len(covariance)
    if not 1 <= k <= width:
        raise CapacityError(f"{k} principal directions of states with {width} entries")
    total = float(np.trace(covariance))
    if total <= 0:
        raise KeelBenchError("all hidden states are equal: they have no principal direction")
    values, vectors = eigh(covariance, subset_by_index=[width - k, width - 1])
    directions = vectors[:, ::-1].T
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    return Principal(mean, directions * np.sign(largest), np.maximum(values[::-1], 0.0), total)


def alignment(a: Principal, b: Principal, component: int) -> float:
    """FlowLens's alignment score (arXiv 2603.13318): |cos| of the two ``component``-th directions, from 1; in [0, 1].
    The paper takes the component whose number is the intrinsic dimension, rounded up.

    Raises:
        KeelBenchError: the two live in spaces of different width (models of different size have no common directions).
        CapacityError: either has fewer directions.
    """
    if a.directions.shape[1] != b.directions.shape[1]:
        raise KeelBenchError(
            f"hidden states of {a.directions.shape[1]} and of {b.directions.shape[1]} entries cannot be aligned: "
            "compare models of one width"
        )
    fewest = min(len(a.directions), len(b.directions))
    if not 1 <= component <= fewest:
        raise CapacityError(f"component {component} of {fewest} principal directions")
    return float(min(1.0, abs(a.directions[component - 1] @ b.directions[component - 1])))
