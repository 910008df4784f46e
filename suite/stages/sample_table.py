"""A data set too large for a list: samples in an Arrow file of this run's own, read batch by batch.

A million samples as Python objects take gigabytes; here a few batches are in memory, whatever the number.
"""

import os
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa

from baselines.records import Sample

BATCH = 512  # samples a batch of the file
KEPT = 8  # batches in memory

_FIELDS = ("id", "instruction", "response", "input", "source", "category")
_SCHEMA = pa.schema([(name, pa.string()) for name in _FIELDS])


class SampleTable(Sequence[Sample]):
    """Samples in a file, as a sequence; made by ``write``. Another one may read the same file by its path; it goes when
    the one that was written does."""

    def __init__(self, path: Path):
        self.path = path
        self._reader = pa.ipc.open_file(pa.OSFile(str(path), "rb"))
        count = self._reader.num_record_batches
        last = self._reader.get_batch(count - 1).num_rows if count else 0
        self._length = (count - 1) * BATCH + last if count else 0
        self._recent: OrderedDict[int, list[Sample]] = OrderedDict()
        self._sorted_ids: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def write(cls, samples: Iterable[Sample], folder: Path | None = None) -> "SampleTable":
        """
        Args:
            folder: where the temporary file goes; None = the system's place.
        """
        handle, name = tempfile.mkstemp(suffix=".arrow", prefix="keelbench-samples-", dir=folder)
        os.close(handle)
        try:
            with pa.OSFile(name, "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
                for batch in _batched(samples):
                    columns = [pa.array([getattr(s, field) for s in batch], pa.string()) for field in _FIELDS]
                    writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
            table = cls(Path(name))
        except BaseException:
            os.unlink(name)
            raise
        weakref.finalize(table, _remove, name, os.getpid())
        return table

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= place < len(self):
            raise IndexError(index)
        return self._batch(place // BATCH)[place % BATCH]

    def __iter__(self) -> Iterator[Sample]:
        for number in range(self._reader.num_record_batches):
            yield from _samples(self._reader.get_batch(number))

    def ids(self) -> Iterator[str]:
        """All ids in order, without the texts."""
        for number in range(self._reader.num_record_batches):
            yield from self._reader.get_batch(number).column(0).to_pylist()

    def places(self, ids: Sequence[str]) -> np.ndarray:
        """Where the samples of these ids stand, int64 [len(ids)].

        Raises:
            KeyError: an id that no sample has.
        """
        if self._sorted_ids is None:
            own = np.array([i.encode() for i in self.ids()])
            order = np.argsort(own)
            self._sorted_ids = own[order], order
        known, order = self._sorted_ids
        asked = np.array([i.encode() for i in ids])
        found = np.minimum(np.searchsorted(known, asked), len(known) - 1)
        wrong = np.flatnonzero(known[found] != asked)
        if wrong.size:
            raise KeyError(ids[wrong[0]])
        return order[found]

    def take(self, places: Sequence[int] | np.ndarray) -> list[Sample]:
        """The samples at ``places``, each batch of the file read once."""
        wanted = np.asarray(places, dtype=np.int64)
        found: list[Sample | None] = [None] * len(wanted)
        order = np.argsort(wanted, kind="stable")
        for run in np.split(order, np.flatnonzero(np.diff(wanted[order] // BATCH)) + 1):
            if len(run):
                batch = self._reader.get_batch(int(wanted[run[0]] // BATCH))
                inside = batch.take(pa.array(wanted[run] % BATCH))
                for place, sample in zip(run, _samples(inside), strict=True):
                    found[place] = sample
        return found  # type: ignore[return-value]

    def _batch(self, number: int) -> list[Sample]:
        if number in self._recent:
            self._recent.move_to_end(number)
        else:
            self._recent[number] = list(_samples(self._reader.get_batch(number)))
            if len(self._recent) > KEPT:
                self._recent.popitem(last=False)
        return self._recent[number]


def _samples(batch: pa.RecordBatch) -> Iterator[Sample]:
    for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
        yield Sample(*values)


def _batched(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    batch: list[Sample] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _remove(name: str, owner: int) -> None:
    if os.getpid() == owner:  # not in a forked child
        Path(name).unlink(missing_ok=True)
