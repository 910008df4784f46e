"""A whole purification without a model: what is written, what is said, what is left behind when something fails."""

import csv
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from baselines.records import Sample, Scores
from baselines.response_length import ResponseLength
from eval.errors import KeelBenchError, UnknownNameError
from eval.metrics import Rate
from suite.purify import checks, inputs, traits, transfer
from suite.purify import run as running
from suite.purify.arguments import translated
from suite.purify.index import scan
from suite.purify.nearest import Nearest
from suite.purify.outputs import beside
from suite.purify.page import write_page
from suite.purify.plan import PurifyPlan, purify_plan
from suite.purify.scores import score_chunks
from suite.purify.verify import Arm, choose
from suite.storage.cache import StageCache
from tests.helpers import COMPUTE
from tests.suite.test_purify_index import LINES, WANTED
from tests.suite.test_report import EVIL, Page

ROWS = [{"instruction": f"Question {i}?", "input": "", "output": "word " * (i % 7 + 1), "n": i} for i in range(30)]


def compose_purify(*overrides: str) -> PurifyPlan:
    """The plan of ``conf/purify.yaml``, as the command line makes it."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from suite.paths import conf_dir

    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("purify", overrides=translated(overrides))
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return purify_plan(values)


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def plan(data: Path, *overrides: str) -> PurifyPlan:
    options = {"method": "length", "keep": "0.8", "out": str(data.parent / "clean.jsonl")}
    options |= {"dataset.path": str(data), "paths.cache": str(data.parent / "cache")}
    options |= dict(o.split("=", 1) for o in overrides)
    return compose_purify(*(f"{k}={v}" for k, v in options.items() if v != "~"))


def purify(data: Path, *overrides: str) -> Path:
    made = plan(data, *overrides)
    folder = data.parent / "run"
    folder.mkdir(exist_ok=True)
    running.run(made, folder, "sweep")
    return made.out


def test_the_highest_scores_go_and_the_rest_leaves_as_it_came(data):
    out = purify(data)
    lines = data.read_text().splitlines()
    gone = sorted(range(30), key=lambda i: (-len(ROWS[i]["output"].strip()), i))[:4]  # 4 of the longest (i % 7 == 6)
    kept = out.read_text().splitlines()
    assert len(kept) == 24
    assert set(lines) - set(kept) >= {lines[i] for i in gone}
    assert kept == [line for line in lines if line in set(kept)]
    assert sorted(p.name for p in data.parent.glob("clean.*")) == [
        "clean.jsonl", "clean.purify.json", "clean.report.html", "clean.scores.csv", "clean.scores.parquet",
    ]  # fmt: skip
    assert not list(data.parent.glob(".clean*"))


def test_the_side_file_tells_every_rows_fate(tmp_path):
    data = tmp_path / "messy.jsonl"
    data.write_text("\n".join(LINES) + "\n")
    out = purify(data, "on_bad_row=keep", "duplicates=drop", "max_characters=1000", "keep=~", "drop=1")
    rows = pq.read_table(beside(out)["scores.parquet"]).to_pylist()
    assert [r["line"] for r in rows] == list(range(1, 12))
    for row, kind in zip(rows[:8], WANTED, strict=False):
        if kind:
            assert (row["kept"], row["why"], row["score"], row["id"]) == (True, f"not scored: {kind}", None, None)
    assert [(r["kept"], r["why"]) for r in rows[8:]] == [
        (False, "not scored: equal to an earlier row"),
        (False, "rank 1 of 2, score 4"),
        (False, "not scored: equal to an earlier row"),
    ]
    assert (rows[0]["kept"], rows[0]["why"], rows[0]["rank"]) == (True, "", 2)
    with beside(out)["scores.csv"].open() as file:
        assert [r["why"] for r in csv.DictReader(file)] == [r["why"] for r in rows]
    assert out.read_text().splitlines() == LINES[:8]
    record = json.loads(beside(out)["purify.json"].read_text())
    assert (record["rows"], record["scored"], record["dropped"], record["written"]) == (11, 2, 1, 8)
    assert record["bad"]["huge"] == 1
    page = Page(beside(out)["report.html"])
    assert "They are in the output, unscored." in " ".join(page.text)
    dropped = purify(data, "on_bad_row=drop", "keep=~", "drop=1", f"out={tmp_path}/other.jsonl", "max_characters=1000")
    assert dropped.read_text().splitlines() == [LINES[0]] * 3


def test_votes_are_in_the_side_file_and_on_the_page(data):
    out = purify(data, "method=length,random", "combine=union", "keep=0.9")
    rows = pq.read_table(beside(out)["scores.parquet"]).to_pylist()
    for row in rows:
        assert row["kept"] == (row["length.rank"] > 3 and row["random.rank"] > 3)
        assert row["kept"] or f"length {row['length.rank']}, random {row['random.rank']}" in row["why"]
    page = Page(beside(out)["report.html"])
    assert page.tags.count("figure") == 3 + 1
    assert "Votes" in page.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["keep=~"], "name exactly one of keep"),
        (["drop=3"], "keep and drop"),
        (["keep=~", "drop=30"], "drop=30 of 30 scored rows leaves nothing to keep"),
        (["keep=0.999"], "keeps everything"),
        (["keep=~", "threshold=-1"], "nothing is left to keep: all 30 rows"),
        (["dataset.path=/no/such.jsonl"], "no such file"),
        (["out=/no/such/folder/clean.jsonl"], "does not exist"),
        (["out=clean.parquet"], "must end in .jsonl"),
        (["on_bad_row=skip"], "unknown on_bad_row 'skip'"),
        (["combine=vote"], "unknown combine"),
        (["chunk_rows=5", "method=random"], "random scores a data set as a whole"),
        (["chunk_rows=0"], "chunk_rows=0: at least 1"),
        (["verify_rows=x"], "verify_rows='x'"),
        (["method=larf", "model.source=/no/such"], "/no/such"),
        (
            ["dataset.format=dolly"],
            "30 rows of .* cannot be scored:\n  30 mixed formats: .*line 1: a row of format alp",
        ),
    ],
)
def test_a_mistake_is_one_clear_message_and_leaves_nothing(data, overrides, message):
    with pytest.raises(KeelBenchError, match=message):
        purify(data, *overrides)
    assert sorted(p.name for p in data.parent.iterdir() if p.name not in ("cache", "run")) == ["mine.jsonl"]


def test_all_problems_are_told_at_once(data):
    with pytest.raises(KeelBenchError) as told:
        purify(
            data, "method=larf", "model.source=/no/such", "methods.larf.anchors=/no/anchors.jsonl", "out=/no/x.jsonl"
        )
    for part in ("/no/such", "/no/anchors.jsonl", "the folder /no does not exist"):
        assert part in str(told.value)


def test_nothing_is_overwritten_unless_asked_for(data):
    with pytest.raises(KeelBenchError, match="is the input itself"):
        purify(data, f"out={data}")
    out = purify(data)
    before = out.read_text()
    with pytest.raises(KeelBenchError, match=r"clean\.jsonl, .* exist already; overwrite=true"):
        purify(data, "keep=0.5")
    assert out.read_text() == before
    purify(data, "keep=0.5", "overwrite=true")
    assert len(out.read_text().splitlines()) == 15


def test_a_failure_while_writing_leaves_nothing(data, monkeypatch):
    monkeypatch.setattr("suite.purify.page.write_page", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        purify(data)
    assert not [p for p in data.parent.iterdir() if "clean" in p.name]


def test_the_checks_before_a_command_and_its_runs_read_the_file_once(data, monkeypatch):
    scanned: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        index = scan(*args, **kwargs)
        scanned.append(len(index.scored))
        return index

    monkeypatch.setattr(inputs, "scan", counted)
    inputs.check(plan(data), files_only=True)
    purify(data)
    purify(data, "keep=0.5", "overwrite=true")
    assert scanned == [30]
    purify(data, "dataset.limit=20", "overwrite=true")
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:25]))
    out = purify(data, "overwrite=true")
    assert scanned == [30, 20, 25]
    assert len(out.read_text().splitlines()) == 20


def test_a_threshold_above_every_score_keeps_everything_and_says_so(data):
    out = purify(data, "keep=~", "threshold=1000")
    assert out.read_bytes() == data.read_bytes()
    text = " ".join(Page(beside(out)["report.html"]).text)
    assert "Everything was kept: no score is above the threshold" in text
    assert "Nothing was dropped." in text


class Failing(ResponseLength):
    """Scores so many chunks, then fails."""

    left = 2

    def score(self, *arguments: Any, **options: Any) -> Scores:
        type(self).left -= 1
        if type(self).left < 0:
            raise KeelBenchError("killed")
        return super().score(*arguments, **options)


def test_chunks_that_are_done_are_not_scored_again(tmp_path):
    samples = [Sample.of(f"q{i}", "x" * i) for i in range(1, 24)]
    parts = [samples[i : i + 5] for i in range(0, 23, 5)]

    def go() -> Any:
        voters = score_chunks(
            {"m": Failing()}, None, iter(parts), 23, seed=0, compute=COMPUTE, cache=StageCache(tmp_path)  # type: ignore[arg-type]
        )  # fmt: skip
        return voters["m"]

    for _ in range(2):
        Failing.left = 2
        with pytest.raises(KeelBenchError, match="killed"):
            go()
    Failing.left = 1  # only the fifth is missing
    voter = go()
    assert voter.score.tolist() == [float(i) for i in range(1, 24)]
    assert [e.cached for e in voter.entries] == [True] * 4 + [False]


def test_stream_mode_gives_what_one_piece_gives(data):
    whole, parts = purify(data), purify(data, "chunk_rows=7", f"out={data.parent}/parts.jsonl")
    assert parts.read_bytes() == whole.read_bytes()
    columns = ["id", "score", "rank", "why", "length"]
    assert pq.read_table(beside(parts)["scores.parquet"], columns=columns).equals(
        pq.read_table(beside(whole)["scores.parquet"], columns=columns)
    )


def test_separation_by_hand_and_its_warnings():
    apart = checks.separation(np.array([3.0, 4.0]), np.array([1.0, 2.0]), 0)
    assert (apart.auroc, apart.low, apart.high) == (1, 1, 1)
    mixed = checks.separation(np.array([1.0, 2.0, 3.0] * 10), np.array([1.0, 2.0, 3.0] * 10), 0)
    assert mixed.auroc == pytest.approx(0.5)
    spec = compose_purify("method=length", "keep=0.5", "dataset.path=x", "out=x.jsonl").check
    methods = {"length": ResponseLength()}

    def warn(found: Any, refused: Rate | None = None) -> str:
        return "\n".join(checks.warnings(spec, methods, checks.Trust(found, refused, {"length": 0.9}, ())))

    assert warn({"length": apart}, Rate.of(19, 20)) == ""
    assert "length does not separate: 30 rows" in warn({"length": mixed})
    assert "refused 10 % of 20 harmful requests (criterion: at least 50 %)" in warn({"length": apart}, Rate.of(2, 20))
    assert "was not checked with control rows" in warn({})


def test_arms_are_of_equal_size_and_from_their_own_rows():
    dropped = np.arange(50) % 5 == 0
    arms = choose(dropped, 100, 0)
    assert {len(a) for a in arms.values()} == {10}
    assert dropped[arms["dropped"]].all()
    assert not dropped[arms["kept"]].any()
    assert len(set(arms["random"].tolist())) == 10
    assert all((choose(dropped, 4, 1)[k] == choose(dropped, 4, 1)[k]).all() for k in arms)


def test_words_and_topics_of_the_dropped(tmp_path):
    themes = ["boat sail harbour wind", "bread oven flour yeast"]
    dropped = [Sample.of(f"Tell {i}", f"{themes[i % 2]} number{i}") for i in range(20)]
    kept = [Sample.of(f"Tell {i}", f"garden tree leaf number{i}") for i in range(20)]
    words = {t.text for t in traits.terms(dropped, kept)}
    assert "boat" in words
    assert not words & {"garden", "tree", "leaf"}
    found = traits.topics(dropped, 0)
    assert sum(t.size for t in found) == 20
    assert all(set(t.terms) & set(themes[0].split()) or set(t.terms) & set(themes[1].split()) for t in found)
    assert traits.terms(dropped[:3], kept) == []
    assert traits.topics(dropped[:5], 0) == []


@pytest.fixture
def findings(data):
    """What a run finds, with hostile text where rows, anchors and categories are shown."""
    rows = [{"instruction": f"{EVIL} {i}", "output": f"{EVIL} {'y' * i}", "category": EVIL} for i in range(20)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{}\n" + json.dumps({EVIL: 1}) + "\n")
    made = plan(data, "on_bad_row=drop")
    return running._find(made, running.check(made), StageCache(made.paths.cache))


def test_the_page_runs_nothing_and_folds_rows_away(findings, tmp_path):
    from dataclasses import replace

    from baselines.anchors import AnchorPair

    anchor = AnchorPair(EVIL, "no", "yes", EVIL)
    near = {s.id: Nearest(anchor, 0.5) for s in findings.texts.values()}
    rates = {"asr/x": Rate.of(3, 10), "false_refusal/x": Rate.of(1, 10), "incoherent/x": Rate.of(0, 10)}
    arms = [
        Arm(name, 0 if name == "before" else 4, 12.0, rates, None) for name in ("before", "kept", "dropped", "random")
    ]
    page = Page(write_page(tmp_path / "p.html", replace(findings, nearest=near, arms=arms)))
    assert "script" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "http" not in page.source.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert any("alert(1)" in text for text in page.folded)
    shown = " ".join(page.text)
    assert "y" * 15 not in shown  # responses are folded
    assert "Damage check" in shown
    assert "rows not scored" in shown.lower()
    assert all(f"#{i}" in page.source for i in ("scores", "common", "dropped", "bad", "damage", "traceability"))
    assert len(page.ids) == len(set(page.ids))


def test_ties_at_the_cut_are_told(data):
    record = beside(purify(data))["purify.json"]
    # Lengths 4, 9, ... 34 characters (stripped: one less), each of the seven in 4 or 5 of the 30 rows; 6 rows go.
    (told,) = [w for w in json.loads(record.read_text())["warnings"] if "share the score at the cut" in w]
    assert told.startswith("4 rows share the score at the cut; 2 of them were dropped by the order of their ids")


def test_what_w_and_b_is_told_holds_no_row(data, monkeypatch):
    told: dict[str, Any] = {}

    class Recorder:
        def __init__(self, *arguments: Any, **options: Any):
            told.update(options)

        def __enter__(self) -> "Recorder":
            return self

        def __exit__(self, *arguments: Any) -> None: ...

        def summary(self, row: Any) -> None:
            told["summary"] = row

    monkeypatch.setattr(running, "Tracker", Recorder)
    purify(data)
    assert told["summary"]["dropped"] == 6
    text = json.dumps({k: v for k, v in told.items() if k != "folder"}, default=str)
    assert "Question" not in text
    assert os.fspath(data.parent) not in json.dumps(told["config"], default=str)


def test_unknown_settings_are_refused(data):
    made = {"method": "length", "keep": "0.8", "out": "x.jsonl", "dataset.path": "x"}
    with pytest.raises(UnknownNameError, match="Did you mean 'threshold'"):
        compose_purify(*(f"{k}={v}" for k, v in made.items()), "+treshold=1")


def test_every_documented_command_makes_a_plan():
    root = Path(__file__).resolve().parents[2]
    commands = [
        shlex.split(found, comments=True)
        for file in ("docs/purify.md", "README.md", "conf/purify.yaml")
        for found in re.findall(r"python -m suite\.purify (.*)", (root / file).read_text())
    ]
    assert len(commands) >= 8
    for command in commands:
        assert compose_purify(*command).methods


def test_two_models_rankings_are_compared_by_hand():
    ids = ["a", "b", "c", "d"]
    found = transfer.compare(ids, np.array([4.0, 3, 2, 1]), np.array([4.0, 1, 2, 3]), 0.5)
    assert (found.rows, found.top, found.shared) == (4, 2, 1)
    assert found.spearman == pytest.approx(0.2)  # 1 - 6 (0 + 4 + 0 + 4) / 60


def test_larfs_layer_is_each_models_own():
    made = compose_purify(
        "scorer=smollm2", "model=llama3", "method=larf,gradsafe", "keep=0.5", "dataset.path=x", "out=x.jsonl"
    )
    assert (made.scoring_model.name, made.model.name) == ("smollm2", "llama3")
    assert made.methods["larf"].layer == made.scoring_model.larf_layer == 24
    assert transfer.for_model(made.methods["larf"], made.model).layer == made.model.larf_layer == 13
    assert transfer.for_model(made.methods["gradsafe"], made.model) == made.methods["gradsafe"]
    assert compose_purify("keep=0.5", "dataset.path=x", "out=x.jsonl").scoring_model.name == "smollm2"


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_hub_data_set_is_read_and_written(data, ending, monkeypatch):
    """A folder stands in for a repository: the hub itself cannot be reached by tests."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(data.parent / "hub"))
    folder = data.parent / "repo"
    folder.mkdir()
    (folder / "train.jsonl").write_text(data.read_text())
    out = data.parent / f"clean.{ending}"
    made = compose_purify(
        "dataset=hub", f"dataset.hub.repo={folder}", "method=length", "keep=0.8", f"out={out}",
        f"paths.cache={data.parent}/cache",
    )  # fmt: skip
    running.run(made, data.parent, "sweep")
    rows = (
        pq.read_table(out).to_pylist() if ending == "parquet" else list(map(json.loads, out.read_text().splitlines()))
    )
    purified = purify(data, f"out={data.parent}/file.jsonl").read_text().splitlines()
    assert rows == [json.loads(line) for line in purified]
