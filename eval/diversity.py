"""Lexical diversity of texts: n-gram entropies, MSTTR, distinct-n (the VCL paper, arXiv 2603.13318, Table 1).

How the paper tokenises is not known to us; here a token is a lower-cased word (letters, digits and underscores, with
apostrophes inside it), and punctuation is none. N-grams never span two texts. All but MSTTR depend on how much text
there is: compare sets of equal size.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from eval.errors import KeelBenchError

SEGMENT = 50  # tokens of an MSTTR segment, as published

_WORD = re.compile(r"\w+(?:['’]\w+)*")


@dataclass(frozen=True)
class LexicalDiversity:
    """Of a set of texts. None where the texts are too short to have one."""

    texts: int
    tokens: int
    vocabulary: int  # different tokens
    entropy_1: float | None  # H1, bits
    entropy_2: float | None
    entropy_3: float | None
    msttr: float | None  # mean share of different tokens a segment
    distinct_2: float | None
    distinct_3: float | None


def words(text: str) -> list[str]:
    """A text's lower-cased words."""
    return _WORD.findall(text.lower())


def lexical_diversity(texts: Sequence[str], *, segment: int = SEGMENT) -> LexicalDiversity:
    """All metrics of ``texts``.

    Raises:
        KeelBenchError: no text has a word, or ``segment`` is below 1.
    """
    if segment < 1:
        raise KeelBenchError(f"segment={segment}: at least 1 token")
    tokenised = [words(text) for text in texts]
    tokens = sum(map(len, tokenised))
    if not tokens:
        raise KeelBenchError(f"none of the {len(texts)} texts has a word")
    counts = {n: Counter(gram for each in tokenised for gram in ngrams(each, n)) for n in (1, 2, 3)}
    return LexicalDiversity(
        texts=len(texts),
        tokens=tokens,
        vocabulary=len(counts[1]),
        entropy_1=entropy(counts[1]),
        entropy_2=entropy(counts[2]),
        entropy_3=entropy(counts[3]),
        msttr=msttr(tokenised, segment),
        distinct_2=distinct(counts[2]),
        distinct_3=distinct(counts[3]),
    )


def ngrams(tokens: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """The ``len(tokens) - n + 1`` runs of n neighbouring tokens."""
    return zip(*(islice(tokens, start, None) for start in range(n)), strict=False)


def entropy(counts: Counter[tuple[str, ...]]) -> float | None:
    """Shannon's entropy of the n-grams' frequencies, in bits: H_n = -Σ p log2 p, p = count / all. At most log2 of the
    number of n-grams, so it grows with the texts; None without an n-gram."""
    total = counts.total()
    if not total:
        return None
    # log2(total) - Σ c log2(c) / total is the same and adds up fewer roundings.
    return math.log2(total) - math.fsum(c * math.log2(c) for c in counts.values()) / total


def distinct(counts: Counter[tuple[str, ...]]) -> float | None:
    """distinct-n (Li et al., NAACL 2016): different n-grams over all n-grams of the set; None without one."""
    return len(counts) / counts.total() if counts else None


def msttr(tokenised: Sequence[Sequence[str]], segment: int = SEGMENT) -> float | None:
    """Mean segmental type-token ratio (Johnson 1944): the texts in their order as one sequence of tokens, cut into
    consecutive segments; the mean share of different tokens in each. What is left at the end counts nothing; None where
    not one segment is full."""
    sequence = [token for tokens in tokenised for token in tokens]
    ratios = [
        len(set(sequence[start : start + segment])) / segment
        for start in range(0, len(sequence) - segment + 1, segment)
    ]
    return math.fsum(ratios) / len(ratios) if ratios else None
