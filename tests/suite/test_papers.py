"""Published figures: complete, possible, consistent; and a sweep's figures put beside them."""

import dataclasses
import json

import pytest

from eval.errors import DataError, UnknownNameError
from suite.papers.__main__ import main
from suite.papers.compare import compare, sweep_rows
from suite.papers.published import Metric, read_tables, table, tables
from suite.paths import conf_dir

PROMPTS = {"directharm4": 400, "harmbench": 200, "hex_phi": 290}


def filled(name):
    return {cell: value for cell, value in table(name).cells.items() if value is not None}


@pytest.mark.parametrize(
    ("name", "cells", "figures"),
    [
        ("larf_table1", 3 * 2 * 3 * 6, 108), ("larf_table2", 3 * 2 * 3, 0), ("larf_table3", 6, 6),
        ("larf_table4", 8, 0), ("larf_table5", 15, 3), ("larf_fig17", 3, 0), ("larf_fig19", 9, 0),
        ("larf_fig3", 4, 1), ("larf_fig4", 3, 3), ("larf_fig5", 1, 1), ("vcl_table1", 24, 24),
        ("vcl_table2", 22, 22), ("vcl_table3", 7 * 11, 66), ("vcl_table6", 2 * 11, 22), ("flowlens_dimension", 1, 1),
        ("flowlens_stability", 3, 1),
    ],
)  # fmt: skip
def test_every_table_has_its_cells(name, cells, figures):
    assert (len(table(name).cells), len(filled(name))) == (cells, figures)


def test_no_table_is_left_out_of_the_counts_above():
    assert len(tables()) == 16


def test_larf_table_1_is_a_full_grid():
    published = table("larf_table1")
    axes = [sorted({cell[i] for cell in published.cells}) for i in range(4)]
    assert [len(a) for a in axes] == [3, 2, 3, 6]
    assert axes[0] == ["llama3", "llama3_1", "qwen2_5"]


def test_the_untuned_models_figures_do_not_depend_on_the_data_set():
    cells = table("larf_table1").cells
    for model, dataset, benchmark, column in cells:
        if column == "instruct":
            assert cells[model, dataset, benchmark, column] == cells[model, "dolly", benchmark, column]


@pytest.mark.parametrize("name", ["larf_table1", "larf_table5"])
def test_a_rate_is_a_whole_number_of_prompts_or_doubted(name):
    published = table(name)
    odd = set()
    for cell, value in filled(name).items():
        n = PROMPTS[cell[2]]
        # Printed to two digits; some are cut off instead of rounded, which would be another 0.005.
        if abs(100 * round(value * n / 100) / n - value) > 0.0051:
            odd.add(cell)
    assert odd == set(published.doubts)


def test_tables_agree_where_they_report_the_same_cell():
    assert (
        filled("larf_fig3")["llama3", "alpaca", "directharm4", "bidirectional-top"]
        == (table("larf_table1").cells["llama3", "alpaca", "directharm4", "larf"])
    )
    assert filled("larf_fig5")["llama3", "alpaca", "layer"] == filled("larf_fig4")["llama3", "layer"]


def test_the_published_layers_are_those_that_the_models_are_configured_with():
    from tests.helpers import plan

    for (model, _), layer in table("larf_fig4").cells.items():
        assert plan(None, f"model={model}").method.layer == layer


def test_entropies_grow_with_n_and_not_beyond_n_times_the_first_except_where_doubted():
    published = table("vcl_table1")
    odd = set()
    for (dataset,) in published.row_keys():
        h1, h2, h3 = (published.cells[dataset, f"entropy_{n}"] for n in (1, 2, 3))
        if not h1 <= h2 <= 2 * h1:
            odd.add((dataset, "entropy_2"))
        if not h2 <= h3 <= 3 * h1:
            odd.add((dataset, "entropy_3"))
    assert odd == set(published.doubts)
    # Every other metric puts the control above the safety data; the paper's claim rests on it.
    for column in published.columns:
        assert max((d for (d,) in published.row_keys()), key=lambda d: published.cells[d, column]) == "control"


def test_the_reference_of_the_alignment_is_the_model_without_safety_data():
    cells = table("vcl_table2").cells
    assert cells["llama3_2_1b", "tulu_mix-0.0", "alignment"] == 1
    others = [v for (_, mixture, q), v in cells.items() if q == "alignment" and mixture != "tulu_mix-0.0"]
    assert len(others) == 10
    assert max(others) < 1


def test_an_unknown_table_names_near_ones():
    with pytest.raises(UnknownNameError, match="larf_table1"):
        table("larf_tabel1")


BROKEN = """
paper: {{title: t, authors: a, venue: v, arxiv: "1"}}
tables:
  t1: {{place: p, quantity: q, unit: {unit}, better: higher, keys: [model, column], columns: [a, b],
       cells: {cells}, ours: {{metric: "{metric}"}}{more}}}
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": "[[m, 1]]"}, "1 figures for 2 columns"),
        ({"cells": "[[m, 101, 1]]"}, "101, which no per cent can be"),
        ({"cells": "[[m, 1, 1], [m, 2, 2]]"}, "stands twice"),
        ({"cells": "[[m, null, 1]]"}, "nothing says why"),
        ({"unit": "furlongs"}, "not among"),
        ({"metric": "asr/{colour}"}, "names {'colour'}"),
        ({"more": ", colour: red"}, "nothing reads colour"),
        ({"more": ", doubts: [{cell: [x, a], why: w}]"}, "is no cell"),
    ],
)
def test_a_broken_file_is_refused(change, message, tmp_path):
    values = {"unit": "per cent", "cells": "[[m, 1, 2]]", "metric": "asr/{model}", "more": ""} | change
    (tmp_path / "p.yaml").write_text(BROKEN.format(**values))
    with pytest.raises(DataError, match=message):
        list(read_tables(tmp_path / "p.yaml"))


def test_metrics_are_columns_complements_or_quotients():
    assert Metric.parse("asr/x").value(0.25) == 0.25
    assert Metric.parse("1 - asr/x") == Metric("asr/x", complement=True)
    assert Metric.parse("1 - asr/x").value(0.25) == 0.75
    assert Metric.parse("cost/scores/seconds / 3600").value(7200) == 2


def row(method="larf", selection="top", seed=42, asr=0.5, **more):
    return {
        "run_id": f"{method}-{selection}-{seed}", "model": "llama3", "dataset": "alpaca", "method": method,
        "selection": selection, "seed": seed, "judge": "llama_guard", "max_new_tokens": 160, "n_selected": 1000,
        "options": json.dumps({"direction": "bidirectional"} if method == "larf" else {}), "scorer_info": "{}",
        "asr/directharm4": asr, "asr/directharm4/low": asr - 0.1, "asr/directharm4/high": asr + 0.1, **more,
    }  # fmt: skip


def cell(joined, *address):
    (found,) = [r for r in joined if tuple(r[k] for k in ("model", "dataset", "benchmark", "column")) == address]
    return found


def test_a_cell_gets_the_run_that_is_its_and_the_difference_in_its_unit():
    joined = compare(table("larf_table1"), [row(), row("random", asr=0.2), row(selection="bottom", asr=0.01)])
    larf = cell(joined, "llama3", "alpaca", "directharm4", "larf")
    assert (larf["published"], larf["ours"], larf["difference"]) == (52.0, 50.0, -2.0)
    assert (larf["low"], larf["high"]) == (40.0, 60.0)
    assert larf["runs"] == ["larf-top-42"]
    assert larf["note"] == ""
    assert cell(joined, "llama3", "alpaca", "directharm4", "random")["difference"] == pytest.approx(-5)


def test_seeds_are_averaged_and_their_range_is_told():
    joined = compare(table("larf_table1"), [row(seed=s, asr=a) for s, a in ((1, 0.4), (2, 0.5), (3, 0.6))])
    larf = cell(joined, "llama3", "alpaca", "directharm4", "larf")
    assert larf["ours"] == pytest.approx(50)
    assert (larf["low"], larf["high"], larf["n_runs"]) == (40.0, 60.0, 3)


def test_an_empty_cell_says_why():
    joined = compare(table("larf_table1"), [row()])
    seal = cell(joined, "llama3", "alpaca", "directharm4", "seal")
    assert seal["ours"] is None
    assert seal["difference"] is None
    assert seal["note"] == "no run with model=llama3, dataset=alpaca, method=seal, selection=top"
    assert cell(joined, "llama3", "alpaca", "harmbench", "larf")["note"] == "the run has no asr/harmbench"
    missing = compare(table("larf_table2"), [])[0]
    assert missing["published"] is None
    assert missing["note"].startswith("the paper's figures were not available to us; no run with")


def test_a_task_learnt_from_another_data_set_is_not_held_against_the_papers():
    published = dataclasses.replace(table("larf_table2"), cells=dict.fromkeys(table("larf_table2").cells, 50.0))
    joined = compare(published, [row(selection="drop_top", dataset="pubmedqa_labelled", **{"utility/pubmedqa": 0.6})])
    score = {
        r["dataset"]: r for r in joined if (r["task"], r["method"], r["quantity"]) == ("pubmedqa", "larf", "task_score")
    }
    assert (score["pubmedqa"]["ours"], score["pubmedqa"]["difference"]) == (None, None)
    assert "no run with dataset=pubmedqa," in score["pubmedqa"]["note"]
    ours = score["pubmedqa_labelled"]
    assert (ours["ours"], ours["difference"], ours["note"]) == (60.0, None, "the paper has no such cell")


def test_a_run_by_another_protocol_is_marked():
    joined = compare(table("larf_table1"), [row(judge="refusal_keywords", n_selected=60)])
    note = cell(joined, "llama3", "alpaca", "directharm4", "larf")["note"]
    assert note == "judge=refusal_keywords, the paper's is llama_guard; n_selected=60, the paper's is 1000"


def test_a_doubtful_figure_is_marked():
    joined = compare(table("larf_table1"), [])
    assert "79 is 39.50" in cell(joined, "llama3", "dolly", "harmbench", "random")["note"]


def test_cells_the_paper_has_not_come_after_its_own():
    ours = row(model="smollm2", dataset="mini", **{"asr/mini_harmful": 0.3})
    del ours["asr/directharm4"]
    joined = compare(table("larf_table1"), [ours])
    assert len(joined) == 108 + 1
    last = joined[-1]
    assert (last["model"], last["benchmark"], last["column"], last["ours"]) == ("smollm2", "mini_harmful", "larf", 30.0)
    assert last["published"] is None
    assert last["note"] == "the paper has no such cell"


def test_directions_and_layers_are_told_apart_by_the_methods_options():
    one = row(options=json.dumps({"direction": "unidirectional"}), asr=0.1)
    joined = compare(table("larf_fig3"), [row(), one])
    columns = {r["column"]: r["ours"] for r in joined if r["ours"] is not None}
    assert columns == {"bidirectional-top": 50.0, "unidirectional-top": 10.0}
    layers = [row(options=json.dumps({"layer": n}), asr=a) for n, a in ((11, 0.3), (13, 0.6), (15, 0.2))]
    (best,) = compare(table("larf_fig5"), layers)
    assert (best["ours"], best["difference"]) == (13, 0)


def test_a_layer_given_by_the_configuration_is_no_measurement():
    given = row(scorer_info=json.dumps({"layer": 13}))
    assert compare(table("larf_fig4"), [given])[0]["ours"] is None
    measured = given | {"cost/calibration/seconds": 12.0}
    assert compare(table("larf_fig4"), [measured])[0]["ours"] == 13


def test_refusals_become_compliance_in_the_overrefusal_table():
    run = row("full", "-", model="llama3_2_1b", regularizer="none", max_new_tokens=512, **{"false_refusal/xstest": 0.4})
    found = {r["quantity"]: r for r in compare(table("vcl_table3"), [run]) if r["method"] == "sft"}
    assert found["xstest"]["ours"] == pytest.approx(0.6)
    assert found["xstest"]["difference"] == pytest.approx(0.09)
    assert found["mmlu"]["note"] == "the run has no utility/mmlu"


def test_an_embedded_benchmark_stands_in_only_where_the_paper_has_no_cell():
    figures = {"false_refusal/mini_overrefusal": 0.3}
    large = row("full", "-", model="llama3_2_1b", dataset="tulu_mix-0.5", **figures)
    small = row("full", "-", model="smollm2", dataset="mini_mix-0.5", **figures)
    joined = compare(table("vcl_table2"), [large, small])
    assert len(joined) == 22 + 1
    last = joined[-1]
    assert (last["model"], last["ours"]) == ("smollm2", 0.3)
    assert "false_refusal/mini_overrefusal in place of false_refusal/xstest" in last["note"]
    assert all(r["ours"] is None for r in joined[:-1])


def test_alignments_of_a_runs_adapter_are_found_in_flowlens_folders(tmp_path):
    import pandas as pd

    for ratio, key in (("0.0", "aaa"), ("0.5", "bbb")):
        run = row(
            "full",
            "-",
            model="llama3_2_1b",
            dataset=f"tulu_mix-{ratio}",
            run_id=key,
            stages=json.dumps([f"adapter/{key}"]),
        )
        (tmp_path / "runs" / key).mkdir(parents=True)
        (tmp_path / "runs" / key / "record.json").write_text(json.dumps(run))
    (tmp_path / "lens" / "0").mkdir(parents=True)
    pd.DataFrame([{"adapter": "bbb", "alignment": 0.8}]).to_parquet(tmp_path / "lens" / "0" / "flowlens.parquet")
    rows = sweep_rows(table("vcl_table2"), tmp_path / "runs", tmp_path / "lens")
    found = {r["dataset"]: r for r in compare(table("vcl_table2"), rows) if r["quantity"] == "alignment"}
    assert found["tulu_mix-0.5"]["difference"] == pytest.approx(0.8 - 0.82)
    assert found["tulu_mix-0.0"]["note"] == "the run has no alignment"


def test_a_run_that_two_sweeps_have_in_common_is_one_figure(tmp_path):
    found = {"model": "llama3_2_1b", "false_refusal/xstest": 0.5}
    runs = [
        row("full", "-", label="sft", run_id="one", **found),
        row("full", "-", label="sft", run_id="one", **found),
        row("full", "-", label="full", run_id="one", **found),
        row("full", "-", label="sft", run_id="two", **found),
    ]
    for number, run in enumerate(runs):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "record.json").write_text(json.dumps(run))
    rows = sweep_rows(table("vcl_table3"), *(tmp_path / str(n) for n in range(4)))
    assert [(r["run_id"], r["label"]) for r in rows] == [("one", "sft"), ("one", "full"), ("two", "sft")]


def test_the_two_objectives_of_vcl_are_two_rows():
    runs = [row("vcl", "-", model="llama3_2_1b", label=f"vcl-{o}", **{"false_refusal/xstest": f})
            for o, f in (("penalize", 0.2), ("concentrate", 0.6))]  # fmt: skip
    found = {r["method"]: r for r in compare(table("vcl_table3"), runs) if r["quantity"] == "xstest"}
    assert found["vcl"]["difference"] == pytest.approx(0.8 - 0.86)
    assert found["vcl_concentrate"]["ours"] == pytest.approx(0.4)
    assert "reports one" in found["vcl_concentrate"]["note"]


def test_the_command_prints_and_leaves_the_rows(tmp_path, capsys):
    import pandas as pd

    assert main(["larf_table1"]) == 0
    assert "52.00" in capsys.readouterr().out
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "record.json").write_text(json.dumps(row()))
    assert main(["larf_table1", str(tmp_path), "--ours"]) == 0
    assert "-2.00" in capsys.readouterr().out
    assert len(pd.read_parquet(tmp_path / "paper.parquet")) == 108
    assert main(["larf_table1", str(tmp_path / "none")]) == 1
    assert "no finished run" in capsys.readouterr().err
    assert main([]) == 0
    assert "larf_table1" in capsys.readouterr().out


def test_what_tables_look_runs_up_by_exists():
    """Methods, selections and data sets that a table names are choices of the configuration, or not built yet."""
    from pathlib import Path

    conf = Path(conf_dir())
    known = {group: {f.stem for f in (conf / group).glob("*.yaml")} for group in ("method", "selection", "model")}
    unbuilt = {"dro"}
    for published in tables().values():
        for values in published.ours.where.values():
            for wanted in values.values():
                for group, choices in known.items():
                    if group in wanted and wanted[group] not in unbuilt | {
                        "system_prompt",
                        "self_cd",
                        "vector_ablation",
                    }:
                        assert wanted[group] in choices, (published.name, wanted)


def test_selections_are_measured_against_their_data_set(tmp_path):
    """Table 4: of four responses the two selected are the longer ones, and one of them is a list."""
    from suite.storage.tables import write_table

    texts = ["- a\n- b and more", "sixteen letters.", "tiny", "no"]
    (tmp_path / "0").mkdir()
    write_table(
        tmp_path / "0" / "scores.parquet",
        [{"selected": i < 2, "response": t, "response_characters": len(t)} for i, t in enumerate(texts)],
    )
    (tmp_path / "0" / "record.json").write_text(json.dumps(row()))
    (tmp_path / "1").mkdir()  # an un-tuned run has no scores
    (tmp_path / "1" / "record.json").write_text(json.dumps(row("none")))
    rows = sweep_rows(table("larf_table4"), tmp_path)
    found = {r["quantity"]: r["ours"] for r in compare(table("larf_table4"), rows) if r["dataset"] == "alpaca"}
    assert found == {"characters_top": 16, "characters_all": 9.5, "list_top": 50, "list_all": 25}


def test_categories_are_rows_of_their_own(tmp_path):
    from suite.storage.tables import write_table

    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "record.json").write_text(json.dumps(row()))
    rates = {"benchmark": "harmbench", "n": 4, "low": 0.1, "high": 0.9}
    write_table(
        tmp_path / "0" / "categories.parquet",
        [{"metric": "asr", "category": "chemical", "value": 0.5, **rates},
         {"metric": "false_refusal", "category": "homonyms", "value": 1.0, **rates}],
    )  # fmt: skip
    joined = compare(table("larf_fig19"), sweep_rows(table("larf_fig19"), tmp_path))
    ours = [(r["category"], r["column"], r["ours"], r["low"]) for r in joined if r["ours"] is not None]
    assert ours == [("harmbench/chemical", "larf", 50.0, 10.0)]


def test_the_first_stand_in_that_a_run_has_is_taken():
    public = row("full", "-", model="smollm2", regularizer="none", **{"asr/harmbench": 0.2, "asr/mini_harmful": 0.9})
    found = [r for r in compare(table("vcl_table3"), [public]) if r["quantity"] == "harmful" and r["ours"] is not None]
    assert [r["ours"] for r in found] == [pytest.approx(0.8)]
    assert "asr/harmbench in place of asr/harmful" in found[0]["note"]
