"""Published figures beside ours in the report: the paper's table in every format, and in W&B's summary run."""

import csv
import io
import json
import re
from dataclasses import replace

import pytest

from eval.errors import KeelBenchError
from suite.papers.published import table
from suite.report import write_report
from suite.report.__main__ import main as report
from suite.report.find import find_sweep
from suite.report.load import load_sweep
from suite.report.published import flat_rows, sections
from suite.report.text import render
from tests.suite.fake_sweep import Point, fake_sweep
from tests.suite.test_report import Page

POINTS = (
    Point("none", asr=0.06),
    Point("random", "random", "top", asr=0.3),
    Point("larf-top", "larf", "top", asr=0.7),
    Point("larf-top", "larf", "top", asr=0.6, seed=43),
)


def as_the_papers(sweep, experiment="larf_table1", dataset="alpaca"):
    """The fake runs, as if they were the paper's own model, data set and one of its benchmarks."""
    for folder in sorted(sweep.glob("[0-9]*")):
        file = folder / "record.json"
        row = json.loads(file.read_text())
        row |= {k.replace("mini_harmful", "harmbench"): v for k, v in row.items() if k.startswith("asr/")}
        row |= {"model": "llama3", "dataset": dataset, "judge": "llama_guard", "max_new_tokens": 160}
        if row["method"] == "larf":
            row["options"] = json.dumps({"direction": "bidirectional"})
        file.write_text(json.dumps(row))
        status = json.loads((folder / "status.json").read_text())
        task = f"+experiment={experiment},arm={row['label']},seed={row['seed']}"
        (folder / "status.json").write_text(json.dumps(status | {"task": task}))
    return sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return as_the_papers(fake_sweep(tmp_path_factory.mktemp("runs"), POINTS, n_samples=1000 + 5, k=1000))


def line(part, kind, *address):
    found = next(each for each in part.lines if each.address == address and each.kind == kind)
    return dict(zip(part.table.columns, found.figures, strict=True)) if not found.reason else found.reason


def test_the_papers_table_has_ours_and_the_difference_or_the_reason(sweep):
    runs, _ = load_sweep(sweep)
    (part,) = sections(runs, sweep)
    address = ("llama3", "alpaca", "harmbench")
    published, ours, difference = (line(part, kind, *address) for kind in ("published", "ours", "difference"))
    assert published["larf"].text == "35.50"
    rates = [100 * run.row["asr/harmbench"] for run in runs]
    assert ours["random"].text == f"{rates[1]:.2f}"
    assert ours["random"].interval.startswith("[")
    low, high = sorted(rates[2:])
    assert (ours["larf"].text, ours["larf"].interval) == (f"{(low + high) / 2:.2f}", f"[{low:.2f}, {high:.2f}]")
    assert difference["larf"].text == f"{(low + high) / 2 - 35.5:+.2f}"
    assert (ours["random"].runs, ours["larf"].runs) == ((2,), (3, 4))
    notes = dict(part.notes)
    assert notes[ours["seal"].mark] == "no run with model=llama3, dataset=alpaca, method=seal, selection=top"
    assert (ours["seal"].text, difference["seal"].text, ours["larf"].mark) == ("", "", "")
    # Where no run was made at all, one reason does for the row.
    assert line(part, "ours", "qwen2_5", "dolly", "hex_phi") == "no run with model=qwen2_5, dataset=dolly"
    # The same runs have no figure for another benchmark of the paper's, which each cell says.
    other = line(part, "ours", "llama3", "alpaca", "hex_phi")
    assert notes[other["larf"].mark] == "the run has no asr/hex_phi"
    # What only we have stands behind the paper's cells.
    assert part.lines[-1].address == ("llama3", "alpaca", "mini_harmful")
    assert len(part.rows) >= len(table("larf_table1").cells)


def test_departures_and_other_models_are_told(tmp_path):
    sweep = fake_sweep(tmp_path, POINTS)
    for status in sweep.glob("*/status.json"):
        status.write_text(json.dumps({"state": "finished", "task": "+experiment=larf_table1,scale=laptop,seed=1"}))
    runs, _ = load_sweep(sweep)
    (part,) = sections(runs, sweep)
    assert {each.kind for each in part.lines if each.address[0] == "llama3"} == {"published", "ours"}
    mine = line(part, "ours", "smollm2", "mini", "mini_harmful")
    assert mine["random"].text
    assert "the paper has no such cell" in dict(part.notes)[mine["random"].mark]
    as_the_papers(sweep)
    runs, _ = load_sweep(sweep)
    (part,) = sections(runs, sweep)
    mark = line(part, "ours", "llama3", "alpaca", "harmbench")["random"].mark
    assert dict(part.notes)[mark] == "n_selected=100, the paper's is 1000"


def test_html_leads_from_our_figure_to_its_run_and_md_latex_and_csv_have_the_same(sweep):
    runs, _ = load_sweep(sweep)
    page = write_report(sweep).read_text()
    shown = page[page.index('id="published"') : page.index('id="differences"')]
    assert 'href="#run-3">3</a>, <a href="#run-4">4</a>' in shown
    assert "52.00" in shown
    assert "no run with model=qwen2_5, dataset=dolly" in shown
    numbered = [int(n) for n in re.findall(r'href="#run-(\d+)"', shown)]
    assert all(f'id="run-{n}"' in page for n in numbered)
    (part,) = sections(runs, sweep)
    figure = line(part, "ours", "llama3", "alpaca", "harmbench")["larf"]
    ours = f"{figure.text} {figure.interval}"

    text = render([sweep], "md")
    rows = [r.split(" | ") for r in text.splitlines() if r.startswith("| ")]
    assert "larf\\_table1: Li et al., EMNLP 2025, arXiv 2507.18631, Table 1" in text
    assert any(plain(ours) in plain(cell) for row in rows for cell in row)
    widths = {len(r) for r in rows if "ours" in r or "published" in r}
    assert len(widths) == 1

    tex = render([sweep], "latex")
    assert tex.count(r"\begin{longtable}{llllrrrrrr}") == tex.count(r"\end{longtable}") == 1
    assert r"\multicolumn{6}{l}{no run with model=qwen2\_5, dataset=dolly}" in tex
    assert f"& {ours} &" in tex

    comparison, paper = render([sweep], "csv").split("\n\n")
    assert {r["point"] for r in csv.DictReader(io.StringIO(comparison))} == {run.name for run in runs}
    cells = list(csv.DictReader(io.StringIO(paper)))
    assert len(cells) == len(part.rows)
    mine = next(r for r in cells if r["cell"] == "llama3 · alpaca · harmbench · larf")
    assert float(mine["ours"]) - float(mine["published"]) == pytest.approx(float(mine["difference"]))
    assert all(r["ours"] or r["note"] for r in cells)


def plain(text):
    return text.replace("\\", "")


def test_a_sweep_of_no_papers_experiment_has_no_such_section(tmp_path):
    sweep = fake_sweep(tmp_path, POINTS[:2])
    runs, _ = load_sweep(sweep)
    assert sections(runs, sweep) == []
    assert 'id="published"' not in write_report(sweep).read_text()
    assert "longtable" not in render([sweep], "latex")
    assert "\n\n" not in render([sweep], "csv").strip()


def test_the_experiments_name_finds_the_sweep_and_its_table(sweep, tmp_path):
    assert find_sweep("larf_table1", sweep.parent) == sweep
    runs, _ = load_sweep(sweep)
    rows = flat_rows(sections(runs, sweep))
    assert {r["table"] for r in rows} == {"larf_table1"}
    assert len({tuple(r) for r in rows}) == 1  # one set of columns, as a table of W&B wants


def test_what_a_label_holds_does_not_run(tmp_path):
    evil = "<script>alert(1)</script>"
    sweep = as_the_papers(fake_sweep(tmp_path, tuple(replace(p, label=p.label) for p in POINTS[:3])), dataset=evil)
    page = write_report(sweep).read_text()
    assert evil not in page
    assert "&lt;script&gt;alert(1)" in page[page.index('id="published"') :]


def test_a_sweep_of_another_entry_point_has_the_table_alone(tmp_path):
    from suite.storage.tables import write_table

    folder = tmp_path / "2025-01-31_12-00-00" / "0"
    folder.mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps({"state": "finished", "task": "+experiment=flowlens_stability"}))
    write_table(
        folder / "flowlens.parquet", [{"run_id": "f", "data": "xstest", "stability/projection": 0.9, "adapter": None}]
    )
    rows = list(csv.DictReader(io.StringIO(render([folder.parent], "csv"))))
    found = {row["cell"]: row for row in rows}
    assert float(found["xstest · projection"]["difference"]) == pytest.approx(0.9 - 0.98)
    assert "the paper says only: above" in found["xstest · projection"]["note"]
    assert render([folder.parent], "md").startswith("flowlens\\_stability: ")


@pytest.mark.parametrize("form", ["md", "latex", "csv"])
def test_sweeps_of_one_seed_each_make_the_table_of_a_sweep_over_seeds(form, tmp_path):
    """Also where a point, as the un-tuned model, stands in both."""
    seeds = [[replace(p, seed=seed) for p in POINTS[:3]] for seed in (42, 43)]
    together = as_the_papers(fake_sweep(tmp_path / "both", (*seeds[0], *seeds[1])))
    apart = [as_the_papers(fake_sweep(tmp_path / str(n), points)) for n, points in enumerate(seeds)]
    assert render(apart, form) == render([together], form)
    assert "(2 seeds)" in render(apart, "md")
    with pytest.raises(KeelBenchError, match=r"no run under .*none, .*nothing"):
        render([tmp_path / "none", tmp_path / "nothing"], form)


def test_several_sweeps_have_no_page(sweep, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["suite.report", str(sweep), str(sweep / "0")])
    assert report() == 1
    assert "html is one sweep's page" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["suite.report", str(sweep), str(sweep), "--format", "md"])
    assert report() == 0
    assert capsys.readouterr().out.startswith("|  | ASR harmbench")


def test_the_page_of_another_entry_point_has_the_papers_table(tmp_path):
    from suite.report.others import write_other
    from suite.storage.tables import write_table

    folder = tmp_path / "2025-01-31_12-00-00" / "0"
    folder.mkdir(parents=True)
    measured = {f"entropy_{n}": 9.0 + n for n in (1, 2, 3)} | {"msttr": 0.8, "distinct_2": 0.4, "distinct_3": 0.6}
    row = {"run_id": "d", "dataset": "alpaca", "text": "response", "texts": 9, "tokens": 90, "vocabulary": 40}
    write_table(folder / "diversity.parquet", [{**row, **measured, "segment": 50}])
    (page,) = write_other(folder.parent)
    assert 'id="published"' not in page.read_text()
    (folder / "status.json").write_text(json.dumps({"state": "finished", "task": "+experiment=vcl_table1"}))
    (page,) = write_other(folder.parent)
    assert "published" in Page(page).ids
    shown = page.read_text().split('id="published"')[1]
    assert "arXiv 2603.13318, Table 1" in shown
    assert ">18.28<" in shown  # the paper's control, H3
    assert ">12.00<" in shown  # ours
    assert "#run-" not in shown  # this page has no runs to lead to


def typed(sweep, experiment, changes):
    """The fake runs, as if they had been typed and had found so."""
    for folder, (task, row) in zip(sorted(sweep.glob("[0-9]*"), key=lambda f: int(f.name)), changes, strict=True):
        file = folder / "record.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | row))
        status = {"state": "finished", "task": f"+experiment={experiment},scale=laptop,{task}"}
        (folder / "status.json").write_text(json.dumps(status))
    return sweep


def test_larf_table2_at_laptop_scale_fills_task_score_and_attacks(tmp_path):
    points = [Point(f"{m}-drop_top", m, "drop_top", asr=0.4, seed=s) for s in (42, 43) for m in ("random", "larf")]
    measured = {"dataset": "pubmedqa_labelled", "asr/directharm4": 0.4}
    changes = [
        (f"method={p.method},seed={p.seed}", measured | {"utility/pubmedqa": 0.2 + p.seed / 1000}) for p in points
    ]
    sweep = typed(fake_sweep(tmp_path, points), "larf_table2", changes)
    runs, _ = load_sweep(sweep)
    (part,) = sections(runs, sweep)
    for method in ("random", "larf"):
        ours = line(part, "ours", "pubmedqa_labelled", "pubmedqa", method)
        assert (ours["task_score"].text, ours["task_score"].interval) == ("24.25", "[24.20, 24.30]")
        assert (ours["gpt_asr"].text, ours["gpt_score"].text) == ("40.00", "")  # that judge was not asked
    other = line(part, "ours", "magicoder", "humaneval", "larf")
    assert other.endswith("no run with dataset=magicoder, method=larf, selection=drop_top")
    assert "published" in Page(write_report(sweep)).ids


def test_larf_fig4_at_laptop_scale_has_the_measured_layer(tmp_path):
    found = {"scorer_info": json.dumps({"layer": 24}), "cost/calibration/seconds": 60.0}
    sweep = typed(
        fake_sweep(tmp_path, [Point("larf-top", "larf", "top", asr=0.4)]),
        "larf_fig4",
        [("method=larf,method.layer=auto,method.alphas=[0.2],method.max_new_tokens=12", found)],
    )
    runs, _ = load_sweep(sweep)
    (part,) = sections(runs, sweep)
    assert line(part, "ours", "smollm2")["layer"].text == "24"
    assert line(part, "published", "qwen2_5")["layer"].text == "18"
    assert "published" in Page(write_report(sweep)).ids


def test_vcl_sensitivity_has_a_row_a_setting_over_its_seeds(tmp_path):
    settings = [f"regularizer.k={k},regularizer.weight={w}" for k in (1, 3) for w in (5.0, 50.0)]
    runs = [(setting, seed) for seed in (42, 100) for setting in settings]
    sweep = typed(
        fake_sweep(tmp_path, [Point("vcl", "vcl", "all", asr=0.4, seed=seed) for _, seed in runs]),
        "vcl_sensitivity",
        [(f"method=vcl,{setting},regularizer.window=[0.3,0.5],seed={seed}", {}) for setting, seed in runs],
    )
    table_of = render([sweep], "md").split("\n\n")[0].splitlines()
    names = [row.split(" | ")[0].replace("\\", "") for row in table_of[2:]]
    wanted = [f"| vcl · {setting.replace(',', ' · ')} (2 seeds)" for setting in settings]
    assert names == wanted
    assert "±" in table_of[2]
    assert sections(load_sweep(sweep)[0], sweep) == []  # the paper has no such table
