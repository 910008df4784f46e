"""What the dropped rows have in common: length and form over all rows, words and topics over a part of them."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from baselines.records import Sample
from suite.purify.files import Mask
from suite.purify.index import TRAITS, Index

SAMPLED = 2000  # rows of each side that words and topics are read from
TERMS = 12  # shown
WORDS = r"(?u)\b[^\W\d_]\w+\b"  # from two characters, the first a letter: the numerals of lists say nothing
CLUSTERS = 6
NAMES = {
    "list": "a list of two points or more",
    "code": "code",
    "question": "a prompt that ends in ?",
    "short": "a response below 100 characters",
    "long": "a response above 1,000 characters",
    "non_english": "not recognised as English",
}


@dataclass(frozen=True)
class Share:
    """How frequent a trait is among the dropped and among the kept rows, in [0, 1]."""

    name: str
    dropped: float
    kept: float


@dataclass(frozen=True)
class Term:
    """A word or pair of words, and the share of texts on either side that have it."""

    text: str
    dropped: float
    kept: float


@dataclass(frozen=True)
class Topic:
    """A cluster of dropped rows."""

    terms: list[str]
    size: int
    examples: list[Sample]


def shares(index: Index, dropped: Mask) -> list[Share]:
    """Every trait's share, the largest difference first.

    Args:
        dropped: [n], over the scored rows.
    """
    rows = index.scored
    found = []
    for trait in TRAITS:
        has = index.has(trait)[rows]
        found.append(Share(NAMES[trait], _mean(has[dropped]), _mean(has[~dropped])))
    return sorted(found, key=lambda s: -abs(s.dropped - s.kept))


def lengths(index: Index, dropped: Mask) -> dict[str, tuple[float, float]]:
    """Median characters of prompts and responses, dropped and kept."""
    rows = index.scored
    columns = {"prompt": index.prompt_characters[rows], "response": index.response_characters[rows]}
    return {
        name: (float(np.median(c[dropped])) if dropped.any() else 0.0, float(np.median(c[~dropped])))
        for name, c in columns.items()
    }


def terms(dropped: Sequence[Sample], kept: Sequence[Sample]) -> list[Term]:
    """Words and pairs of words that are commoner among the dropped: largest log-odds ratio with an informative
    Dirichlet prior (Monroe, Colaresi and Quinn 2008, section 3.5.1), in standard deviations, over texts that have
    them."""
    from sklearn.feature_extraction.text import CountVectorizer

    if len(dropped) < 5 or len(kept) < 5:
        return []
    vectorizer = CountVectorizer(stop_words="english", ngram_range=(1, 2), min_df=3, binary=True, token_pattern=WORDS)
    try:
        counts = vectorizer.fit_transform([_text(s) for s in (*dropped, *kept)])
    except ValueError:  # no word stands in three texts
        return []
    inside = np.asarray(counts[: len(dropped)].sum(axis=0)).ravel().astype(float)
    outside = np.asarray(counts[len(dropped) :].sum(axis=0)).ravel().astype(float)
    prior = (inside + outside) / (inside + outside).sum() * 100
    size = prior.sum()
    odds = [np.log((y + prior) / (len(texts) + size - y - prior)) for y, texts in ((inside, dropped), (outside, kept))]
    deviations = (odds[0] - odds[1]) / np.sqrt(1 / (inside + prior) + 1 / (outside + prior))
    names = vectorizer.get_feature_names_out()
    best = [i for i in np.argsort(-deviations, kind="stable")[:TERMS] if deviations[i] > 1.96]
    return [Term(str(names[i]), inside[i] / len(dropped), outside[i] / len(kept)) for i in best]


def topics(dropped: Sequence[Sample], seed: int) -> list[Topic]:
    """The dropped rows in a few clusters (k-means of TF-IDF vectors of prompt and response), the largest first."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer

    count = min(CLUSTERS, len(dropped) // 5)
    if count < 2:
        return []
    vectorizer = TfidfVectorizer(
        stop_words="english", min_df=2, max_df=0.5, max_features=5000, sublinear_tf=True, token_pattern=WORDS
    )
    try:
        vectors = vectorizer.fit_transform([_text(s) for s in dropped])
    except ValueError:  # no word stands in two texts
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different texts than clusters
        clusters: Any = KMeans(count, n_init=4, random_state=seed).fit(vectors)
    names = vectorizer.get_feature_names_out()
    found = []
    for number, center in enumerate(clusters.cluster_centers_):
        members = np.flatnonzero(clusters.labels_ == number)
        if not members.size:
            continue
        nearness = np.asarray(vectors[members] @ center).ravel()
        examples = [dropped[i] for i in members[np.argsort(-nearness, kind="stable")[:3]]]
        words = [str(names[i]) for i in np.argsort(-center, kind="stable")[:6] if center[i] > 0]
        found.append(Topic(words, int(members.size), examples))
    return sorted(found, key=lambda t: -t.size)


def _text(sample: Sample) -> str:
    return f"{sample.prompt[:4000]}\n{sample.response[:4000]}"


def _mean(values: Mask) -> float:
    return float(values.mean()) if values.size else 0.0
