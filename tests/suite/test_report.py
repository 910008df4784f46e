"""The report: what stands in it, what must never run in it, and what it does where something is missing."""

import base64
import csv
import hashlib
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from eval.errors import KeelBenchError
from suite.report import write_report
from suite.report.explorer import list_share, shorten
from suite.report.find import find_sweep
from suite.report.load import load_sweep
from suite.report.tables import over_seeds
from suite.report.text import render
from suite.sweep import summarise
from tests.suite.fake_sweep import DEMO, Point, fake_sweep

EVIL = """<script>alert(1)</script>" onmouseover="alert(2)" x='</details></svg>{{ 7 * 7 }}$\\frac{1}$ fill: url(x)"""
SECTIONS = ["comparison", "differences", "plots", "samples", "completions", "costs", "traceability"]
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """A page's elements, attributes and text, with a check that everything opened is closed."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.folded: list[str] = []  # text inside <details>, its summaries left out
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.folded if "details" in self.open and "summary" not in self.open else self.text).append(data)

    @property
    def ids(self) -> list[str]:
        return [value for _, name, value in self.attributes if name == "id"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Page:
    return Page(write_report(fake_sweep(tmp_path_factory.mktemp("runs"))))


def test_sections_stand_in_their_order(demo):
    assert [i for i in demo.ids if i in SECTIONS] == SECTIONS
    assert len(demo.ids) == len(set(demo.ids))
    text = " ".join(demo.text)
    for part in ("smollm2 fine-tuned on mini: 4 ways compared", "refusal_keywords", "max_new_tokens", "2025-01-31",
                 "Wilson", "lower is safer", "n = 80", "larf-bottom"):  # fmt: skip
        assert part in text
    # A trade-off, two panels of rates, two benchmarks by category, one of curves, three scored runs' histograms.
    assert demo.tags.count("figure") == 1 + 2 + 2 + 1 + 3


def test_a_rate_is_shown_with_its_interval(demo, tmp_path):
    row = json.loads((fake_sweep(tmp_path) / "2" / "record.json").read_text())
    value, low, high = (100 * row[f"asr/mini_harmful{s}"] for s in ("", "/low", "/high"))
    shown = re.sub(r"<[^>]*>", " ", demo.source)
    assert f"{value:.1f}" in shown
    assert f"{low:.1f} to {high:.1f}" in shown


def test_prompts_and_completions_are_folded_away(demo):
    assert "Here is what to do" in " ".join(demo.folded)
    assert not any("Here is what to do" in t or "Request 1" in t or "Explain thing" in t for t in demo.text)


def test_page_needs_nothing_from_outside(demo):
    assert not set(demo.tags) & {"link", "img", "iframe", "object", "embed", "base"}
    assert demo.tags.count("script") == 1  # the search boxes', which the page's policy names by its hash
    script = re.search(r"<script>(.*?)</script>", demo.source, flags=re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in demo.source
    assert not re.search(r"(?i)https?:|//[a-z]|@import|javascript:", demo.source)
    for _, name, value in demo.attributes:
        assert not name.startswith("on")
        assert name not in ("href", "src") or value.startswith("#")
    assert all(u.startswith("#") for u in re.findall(r"url\(([^)]*)\)", demo.source))
    assert ("meta", "name", "viewport") in demo.attributes
    assert "prefers-color-scheme: dark" in demo.source


def test_svg_ids_are_unique_and_its_colours_are_the_pages(demo):
    svgs = "".join(re.findall(r"<svg viewBox.*?</svg>", demo.source, flags=re.DOTALL))
    assert "var(--c0)" in svgs
    assert "currentColor" in svgs
    assert not re.findall(r"(?:fill|stroke): #", svgs)


def test_nothing_from_data_runs(tmp_path):
    clean = Page(write_report(fake_sweep(tmp_path / "clean", DEMO[:3])))
    sweep = fake_sweep(tmp_path / "evil", tuple(replace(p, label=p.label + EVIL, poison=EVIL) for p in DEMO[:3]))
    (sweep / "9").mkdir()
    (sweep / "9" / "status.json").write_text(json.dumps({"state": "failed", "task": EVIL, "error": EVIL}))
    evil = Page(write_report(sweep))
    assert evil.tags.count("script") == clean.tags.count("script") == 1
    assert set(evil.tags) == set(clean.tags)
    assert not any(name.startswith("on") for _, name, _ in evil.attributes)
    assert {name for _, name, _ in evil.attributes} <= {name for _, name, _ in clean.attributes}
    # All of it is there to be read: in labels, prompts, completions, categories, samples and the failure.
    assert " ".join(evil.text).count(EVIL) > 10
    assert " ".join(evil.folded).count(EVIL) > 100
    assert "{{ 7 * 7 }}" in " ".join(evil.text)


def test_control_characters_turn_no_figures_round(tmp_path):
    odd = replace(DEMO[0], poison="\x00 \u202e $x_{ 日本")
    page = Page(write_report(fake_sweep(tmp_path, (odd,))))
    ticks = [t for t in page.text if t.startswith("fraud")]
    assert ticks == ["fraud $x_{ 日本 (10)"]


def test_untuned_alone(tmp_path):
    page = Page(write_report(fake_sweep(tmp_path, DEMO[:1])))
    assert [i for i in page.ids if i in SECTIONS] == SECTIONS
    text = " ".join(page.text)
    assert "Nothing was fine-tuned." in text
    assert "Nothing was scored." in text
    assert "could not be read" not in text


def test_failed_runs_stand_at_the_top_with_their_errors(tmp_path):
    sweep = fake_sweep(tmp_path, DEMO[:2])
    for number, status in (("7", {"state": "failed", "task": "arm=seal", "error": "the weights are gated"}),
                           ("8", {"state": "running", "task": "arm=vcl"})):  # fmt: skip
        (sweep / number).mkdir()
        (sweep / number / "status.json").write_text(json.dumps(status))
    page = Page(write_report(sweep))
    text = " ".join(page.text)
    assert "2 runs without a result" in text
    assert "the weights are gated" in text
    assert "still running, or killed" in text
    assert page.ids.index("failures") < page.ids.index("comparison")


def test_no_run_finished(tmp_path):
    folder = tmp_path / "sweep" / "0"
    folder.mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps({"state": "failed", "task": "", "error": "too little disk"}))
    text = " ".join(Page(write_report(folder.parent)).text)
    assert "too little disk" in text
    assert "nothing to compare" in text
    with pytest.raises(KeelBenchError, match="no run under"):
        write_report(tmp_path / "nothing")


def test_missing_and_broken_tables_are_named(tmp_path):
    sweep = fake_sweep(tmp_path)
    (sweep / "1" / "completions.parquet").unlink()
    (sweep / "2" / "scores.parquet").write_bytes(b"PAR1 not")
    (sweep / "3" / "training.parquet").unlink()
    (sweep / "0" / "record.json").write_text("{")
    page = Page(write_report(sweep))
    text = " ".join(page.text)
    for part in ("completions.parquet (absent)", "scores.parquet (ArrowInvalid)", "training.parquet (absent)",
                 "record.json is unreadable"):  # fmt: skip
        assert part in text


def test_seeds_are_averaged_only_over_equal_points(tmp_path):
    points = tuple(replace(p, seed=s) for p in DEMO[:2] for s in (42, 100, 2025))
    runs, _ = load_sweep(fake_sweep(tmp_path, (*points, Point("none", seed=7, tokens=512))))
    rows = {row["name"]: row for row in over_seeds(runs)}
    seeds = {name: row["seeds"] for name, row in rows.items()}
    assert seeds == {"none · 128 tokens": 1, "none · 512 tokens": 1, "random": 3}  # no seed changes the un-tuned
    rates = [100 * run.row["asr/mini_harmful"] for run in runs if run.name == "random"]
    assert rows["random"]["cells"][0]["mean"] == pytest.approx(sum(rates) / 3)
    assert rows["none · 512 tokens"]["cells"][0]["sd"] is None
    assert over_seeds(runs[:1]) == []
    page = Page(write_report(tmp_path / "2025-01-31_12-00-00"))
    text = " ".join(page.text)
    assert "mean ± standard deviation" in text
    assert re.search(r"max_new_tokens: 128, 512", text)
    # One ranking of random's three, and its three different histograms.
    assert text.count("each seed ranks anew") == 1


def test_what_was_typed_tells_runs_apart_that_no_column_does(tmp_path):
    sweep = fake_sweep(tmp_path, (DEMO[1], DEMO[1]))
    for number, rate in enumerate(("1e-4", "1e-5")):
        status = {"state": "finished", "task": f"benchmark=[a,b],seed=42,train.learning_rate={rate}"}
        (sweep / str(number) / "status.json").write_text(json.dumps(status))
    runs, _ = load_sweep(sweep)
    assert [run.name for run in runs] == ["random · train.learning_rate=1e-4", "random · train.learning_rate=1e-5"]


def test_what_was_typed_tells_runs_on_other_data_apart_and_names_them_on_the_terminal(tmp_path, capsys):
    sweep = fake_sweep(tmp_path, (DEMO[1], DEMO[1]))
    for number, ratio in enumerate(("0.0", "0.5")):
        task = f"dataset.safety_ratio={ratio},seed=42"
        (sweep / str(number) / "status.json").write_text(json.dumps({"state": "finished", "task": task}))
        record = json.loads((sweep / str(number) / "record.json").read_text())
        record |= {"run_id": f"run-{number}", "fingerprint/data": f"{number}" * 20}
        (sweep / str(number) / "record.json").write_text(json.dumps(record))
    named = ["random · dataset.safety_ratio=0.0", "random · dataset.safety_ratio=0.5"]
    assert [run.name for run in load_sweep(sweep)[0]] == named
    assert summarise(sweep)
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "dataset.safety_ratio=0.0 " in shown
    assert "dataset.safety_ratio=0.5 " in shown


def test_rankings_show_who_selected_a_sample(demo):
    # The two ends of the one ranking that both arms cut: 20 samples at each.
    assert demo.folded.count("larf-top") == demo.folded.count("larf-bottom") == 20


def test_shorten():
    assert shorten("abc", 3) == "abc"
    assert shorten("abcdef", 4) == "abcd… (+2 characters)"


def test_list_share():
    assert list_share("") == 0
    assert list_share("One sentence. 1. is not an item here.") == 0
    assert list_share("Steps:\n\n1. Mix\n2) Bake\n- rest\n") == 0.75
    assert list_share("-5 degrees\n3.5 litres") == 0


def test_many_runs_say_what_is_left_out(tmp_path):
    points = [Point(f"point-{i}", "random", "top", seed=s, asr=0.3) for i in range(13) for s in range(10)]
    page = Page(write_report(fake_sweep(tmp_path, points, n_samples=40, k=10, n_prompts=8)))
    text = " ".join(" ".join(page.text).split())
    for part in ("the first 120 of 130 runs have their rates plotted", "the first 12 of 13 points have bars",
                 "the first 60 of 130 training curves", "the first 24 of 130 histograms",
                 "117 more runs are not shown"):  # fmt: skip
        assert part in text


def test_names_find_sweeps(tmp_path):
    runs = tmp_path / "runs"
    for day, task in (("1", "+experiment=demo,arm=none"), ("2", "+experiment=demo,arm=none"), ("3", "seed=1")):
        (runs / day / "0").mkdir(parents=True)
        (runs / day / "0" / "status.json").write_text(json.dumps({"state": "finished", "task": task}))
    assert find_sweep("demo", runs) == runs / "2"
    assert find_sweep("3", runs) == runs / "3"
    assert find_sweep(str(runs / "1"), tmp_path) == runs / "1"
    with pytest.raises(KeelBenchError, match="Did you mean 'demo'"):
        find_sweep("demos", runs)


@pytest.mark.parametrize("form", ["md", "latex", "csv"])
def test_the_table_as_text(tmp_path, form):
    odd = tuple(replace(p, label=f"{p.label}_50%|x", seed=s) for p in DEMO for s in (1, 2))
    text = render([fake_sweep(tmp_path, odd)], form)
    means = {r["name"]: r for r in over_seeds(load_sweep(tmp_path / "2025-01-31_12-00-00")[0])}
    top = means["larf-top_50%|x"]["cells"][1]
    if form == "csv":
        (row,) = [r for r in csv.DictReader(text.splitlines())
                  if (r["point"], r["rate"]) == ("larf-top_50%|x", "false_refusal/mini_overrefusal")]  # fmt: skip
        assert float(row["mean"]) == pytest.approx(top["mean"] / 100)
        assert (row["reference"], row["survives"]) == ("random_50%|x", "True")
        return
    lines = [line for line in text.splitlines() if "larf-top" in line]
    bold = f"**{top['mean']:.1f} ± {top['sd']:.1f}**" if form == "md" else rf"\textbf{{{top['mean']:.1f} $\pm$ "
    name = r"larf-top\_50%\|x" if form == "md" else r"larf-top\_50\%|x"
    assert lines[0].startswith(f"| {name} (2 seeds) |" if form == "md" else f"{name} (2 seeds) &")
    assert bold in lines[0]
    if form == "latex":
        assert text.count("&") == 5 * 2  # a heading and four points, three columns


def test_small_and_quick(tmp_path):
    sweep = fake_sweep(tmp_path, n_samples=5000)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "suite.report", str(sweep)], capture_output=True, text=True, check=True, timeout=60
    )
    assert time.perf_counter() - start < 15  # alone about 3 s; the machine may be busy
    path = Path(done.stdout.strip())
    assert path == sweep / "report.html"
    assert path.stat().st_size < 1_000_000
    assert done.stderr == ""
