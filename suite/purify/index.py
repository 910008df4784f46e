"""The first pass over a data set: every row checked, told apart and measured, its text not kept.

What is kept of a row is some 200 bytes, so a file may be many times larger than the memory.
"""

import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from baselines.records import Sample
from baselines.samples import PARSERS, detect_format
from eval.errors import DataError, KeelBenchError, UnknownNameError
from eval.records import content_id
from suite.purify.files import Mask, Row, Table

SCORED, DUPLICATE, BEYOND_LIMIT, BAD = 0, 1, 2, 3  # a row's state; of a bad row BAD + its kind
KINDS = ("unreadable", "unknown fields", "mixed formats", "unfit field", "empty instruction", "empty response", "huge")

TOLD = 5  # bad rows named in an error, of each kind
LISTED = 1000  # bad rows listed with their message

TRAITS = ("list", "code", "question", "short", "long", "non_english")
_LIST = re.compile(r"^\s*(?:[-*•]|\d{1,3}[.)])\s", re.MULTILINE)
_CODE = re.compile(r"```|^\s*(?:def |class |import |#include|SELECT |function )|[{};]\s*$", re.MULTILINE)
_WORD = re.compile(r"[^\W\d_]+")
_COMMON = (
    "the of and to a in is it you that for on are with as be this was have or not can your from by an at if which "
    "they what how their has will more when who would there one do its i we my me he she his her about all some than "
    "into also these other been were but so up out no use using each between"
)
_ENGLISH = frozenset(_COMMON.split())


@dataclass(frozen=True)
class BadRow:
    line: int
    kind: str
    message: str


@dataclass
class Index:
    """What the first pass found; arrays [rows] in the file's order."""

    format: str
    lines: npt.NDArray[np.int64]
    state: npt.NDArray[np.uint8]
    ids: npt.NDArray[np.bytes_]  # 16 hex digits; of bad rows empty
    prompt_characters: npt.NDArray[np.int64]
    response_characters: npt.NDArray[np.int64]
    traits: npt.NDArray[np.uint8]  # bit i: TRAITS[i]
    copies: int  # rows whose text an earlier row has
    bad: list[BadRow]  # the first LISTED
    bad_kinds: dict[str, int] = field(default_factory=dict)

    @property
    def scored(self) -> npt.NDArray[np.int64]:
        """Places of the rows to be scored, ascending."""
        return np.flatnonzero(self.state == SCORED)

    def count(self, state: int) -> int:
        return int((self.state == state).sum())

    def kind(self, place: int) -> str | None:
        """Why a row is bad; None where it is not."""
        state = int(self.state[place])
        return KINDS[state - BAD] if state >= BAD else None

    def has(self, trait: str) -> Mask:
        """Which rows have the trait, [rows]."""
        return (self.traits >> TRAITS.index(trait) & 1).astype(bool)


class Reader:
    """Rows as samples, the same on every pass: ids, and the format that the first readable row shows."""

    def __init__(self, table: Table, format: str, source: str, max_characters: int):
        if format != "auto" and format not in PARSERS:
            raise UnknownNameError("data format", format, ["auto", *PARSERS])
        self.table, self.named, self.source, self.max_characters = table, format, source, max_characters

    def samples(self) -> Iterator[tuple[Row, Sample | BadRow, int]]:
        """``(row, its sample or why there is none, which of the rows with this text it is, from 1)``."""
        self.format = self.named
        seen: set[str] = set()
        again: Counter[str] = Counter()  # copies beyond the first, which are few
        for row in self.table.rows():
            found = self._sample(row)
            if isinstance(found, BadRow):
                yield row, found, 0
                continue
            copy = 1
            if found.id in seen:
                again[found.id] += 1
                copy += again[found.id]
            seen.add(found.id)
            if copy > 1:
                found = Sample(
                    content_id(found.id, str(copy)), found.instruction, found.response, found.input, found.source,
                    found.category,
                )  # fmt: skip
            yield row, found, copy

    def _sample(self, row: Row) -> Sample | BadRow:
        if row.value is None:
            assert row.problem is not None
            return BadRow(row.line, "unreadable", str(row.problem))
        try:
            if self.format == "auto":
                self.format = detect_format(self.table.name, row.line, row.value)
            instruction, given, response, category = PARSERS[self.format](self.table.name, row.line, row.value)
        except DataError as error:
            return self._misfit(row, error)
        where = DataError(self.table.name, "{}", row.line)
        if not instruction.strip():
            return BadRow(row.line, "empty instruction", str(where).format("empty instruction"))
        if not response.strip():
            return BadRow(row.line, "empty response", str(where).format("empty response"))
        size = len(instruction) + len(given) + len(response)
        if size > self.max_characters:
            told = f"{size:,} characters, more than max_characters={self.max_characters:,}"
            return BadRow(row.line, "huge", str(DataError(self.table.name, told, row.line)))
        return Sample(content_id(instruction, given, response), instruction, response, given, self.source, category)

    def _misfit(self, row: Row, error: DataError) -> BadRow:
        assert row.value is not None
        if self.format == "auto":
            return BadRow(row.line, "unknown fields", str(error))
        try:
            other = detect_format(self.table.name, row.line, row.value)
        except DataError as unknown:
            return BadRow(row.line, "unknown fields", str(unknown))
        if other != self.format:
            told = f"a row of format {other} in a file of format {self.format}"
            return BadRow(row.line, "mixed formats", str(DataError(self.table.name, told, row.line)))
        return BadRow(row.line, "unfit field", str(error))


def scan(reader: Reader, *, on_bad_row: str, duplicates: str, limit: int | None) -> Index:
    """Read everything once.

    Args:
        duplicates: "keep": a row that stands again is scored as a row of its own; "drop": it is left out.
        limit: use only so many rows, the same subset as ``suite.stages.data`` takes; the others are left out.

    Raises:
        DataError: the file as a whole is unreadable, holds no row, or no row that can be scored.
        KeelBenchError: bad rows, all kinds counted and the first of each named, where ``on_bad_row`` is "error".
    """
    lines, state, traits = array("q"), array("B"), array("B")
    prompts, responses = array("l"), array("l")
    ids = bytearray()
    bad: list[BadRow] = []
    kinds: Counter[str] = Counter()
    first: dict[str, list[BadRow]] = {}
    copies = 0
    for row, found, copy in reader.samples():
        lines.append(row.line)
        if isinstance(found, BadRow):
            kinds[found.kind] += 1
            if len(bad) < LISTED:
                bad.append(found)
            if kinds[found.kind] <= TOLD:
                first.setdefault(found.kind, []).append(found)
            state.append(BAD + KINDS.index(found.kind))
            ids += bytes(16)
            for values in (prompts, responses, traits):
                values.append(0)
            continue
        copies += copy > 1
        state.append(DUPLICATE if copy > 1 and duplicates == "drop" else SCORED)
        ids += found.id.encode()
        prompts.append(len(found.prompt))
        responses.append(len(found.response))
        traits.append(_traits(found))
    if not lines:
        raise DataError(reader.table.name, "no row")
    if bad and on_bad_row == "error":
        raise KeelBenchError(_told(reader.table.name, kinds, first))
    states = np.array(state, dtype=np.uint8)
    names = np.frombuffer(bytes(ids), dtype="S16")
    if limit is not None:
        usable = np.flatnonzero(states == SCORED)
        chosen = usable[np.argsort(names[usable])[:limit]]
        states[np.setdiff1d(usable, chosen)] = BEYOND_LIMIT
    if not (states == SCORED).any():
        told = ", ".join(f"{n:,} {kind}" for kind, n in kinds.items())
        raise DataError(reader.table.name, f"no row that can be scored ({told})")
    return Index(
        format=reader.format,
        lines=np.array(lines),
        state=states,
        ids=names,
        prompt_characters=np.array(prompts, dtype=np.int64),
        response_characters=np.array(responses, dtype=np.int64),
        traits=np.array(traits, dtype=np.uint8),
        copies=copies,
        bad=bad,
        bad_kinds=dict(kinds),
    )


def chunks(reader: Reader, index: Index, size: int | None) -> Iterator[list[Sample]]:
    """The scored rows' samples in order, ``size`` at a time (None: all at once)."""
    chunk: list[Sample] = []
    for place, (_, found, _) in enumerate(reader.samples()):
        if index.state[place] != SCORED:
            continue
        if not isinstance(found, Sample) or found.id.encode() != index.ids[place]:
            raise DataError(reader.table.name, "changed while it was read", int(index.lines[place]))
        chunk.append(found)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _told(name: str, kinds: Counter[str], first: dict[str, list[BadRow]]) -> str:
    told = [f"{kinds.total():,} row{'s' * (kinds.total() > 1)} of {name} cannot be scored:"]
    for kind, rows in first.items():
        told.append(f"  {kinds[kind]:,} {kind}: {rows[0].message}")
        if kinds[kind] > 1:
            told.append(f"    also line {', '.join(str(r.line) for r in rows[1:])}{' …' if kinds[kind] > TOLD else ''}")
    told.append("  on_bad_row=drop leaves them out, on_bad_row=keep lets them through unscored; both list them")
    return "\n".join(told)


def _traits(sample: Sample) -> int:
    response = sample.response
    values = {
        "list": has_list(response),
        "code": bool(_CODE.search(response)),
        "question": sample.prompt.rstrip().endswith("?"),
        "short": len(response) < 100,
        "long": len(response) > 1000,
        "non_english": not looks_english(f"{sample.prompt}\n{response}"),
    }
    return sum(values[name] << bit for bit, name in enumerate(TRAITS))


def has_list(text: str) -> bool:
    """Whether a text itemises: two points or more, bulleted or numbered."""
    return len(_LIST.findall(text)) >= 2


def looks_english(text: str) -> bool:
    """A rough sign, for a count and not for a decision: mostly letters of the Latin alphabet and, in a text of 20 words
    or more, at least one word in 25 among the commonest of English."""
    words = _WORD.findall(text[:5000])
    letters = "".join(words)
    if not letters:
        return True
    if sum(c < "ɐ" for c in letters) < 0.7 * len(letters):
        return False
    return len(words) < 20 or sum(w.lower() in _ENGLISH for w in words) >= len(words) / 25
