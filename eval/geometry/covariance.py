"""Mean and covariance of rows that come in batches and are then forgotten."""

import numpy as np
import numpy.typing as npt

from eval.errors import KeelBenchError

Array = npt.NDArray[np.float64]


class StreamingCovariance:
    """Mean and scatter of all rows seen, in float64: memory is ``width²``, whatever the number of rows.

    Batches are merged by the parallel algorithm of Chan, Golub and LeVeque (1983), which never subtracts large sums
    from each other: exact up to rounding also where the mean is far larger than the deviations, as in residual streams.
    """

    def __init__(self, width: int):
        self.count = 0
        self.mean: Array = np.zeros(width)
        self.scatter: Array = np.zeros((width, width))  # sum of outer products of the deviations from the mean

    def update(self, rows: npt.ArrayLike) -> None:
        """Add ``rows``, [n, width].

        Raises:
            KeelBenchError: another width, or a row that is not finite.
        """
        batch = np.asarray(rows, dtype=np.float64)
        if batch.ndim != 2 or batch.shape[1] != len(self.mean):
            raise KeelBenchError(f"rows of shape {batch.shape}: expected [n, {len(self.mean)}]")
        if not len(batch):
            return
        if not np.isfinite(batch).all():
            raise KeelBenchError("a hidden state is not finite: try a wider dtype (model.dtype=float32)")
        mean = batch.mean(axis=0)
        deviations = batch - mean
        total = self.count + len(batch)
        shift = mean - self.mean
        self.scatter += deviations.T @ deviations
        self.scatter += np.outer(shift, shift) * (self.count * len(batch) / total)
        self.mean += shift * (len(batch) / total)
        self.count = total

    def covariance(self) -> Array:
        """[width, width], divided by the number of rows less one.

        Raises:
            KeelBenchError: fewer than two rows.
        """
        if self.count < 2:
            raise KeelBenchError(f"{self.count} hidden states have no covariance")
        return self.scatter / (self.count - 1)
