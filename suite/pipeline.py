"""A run: score → select → fine-tune → generate → utility → judge → record."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eval.errors import KeelBenchError
from eval.metrics import category_rates, safety_rates
from eval.records import Prompt
from eval.utility.tasks import UtilityTask
from suite.conditions import decoding, devices, rounding, template_fingerprint
from suite.determinism import settle
from suite.flops import compute_costs
from suite.plan import RunPlan
from suite.provenance import as_json, code_fingerprint, hub_revisions, library_versions, public_plan
from suite.records import RunRecord, write_record
from suite.run_tables import write_run_tables
from suite.stages.checkpoints import Answers, as_adapters, complete_checkpoints, curve_points, safety_curve
from suite.stages.data import Data, benchmark_files, ids_key, load_data, load_prompts
from suite.stages.finetuning import fine_tune_selection
from suite.stages.generation import check_backend, complete
from suite.stages.inference import Inference
from suite.stages.judging import judge_completions, judge_inputs, score_means, total_usage, with_weights
from suite.stages.models import LoadedModel, locate, prepare
from suite.stages.scoring import score
from suite.stages.selection import cut_size, select
from suite.stages.training_ranks import check_training
from suite.stages.utility import load_tasks, measure_utility
from suite.storage.cache import Entry, StageCache, fingerprint
from suite.storage.tables import write_table
from suite.tracking.artifacts import log_artifacts
from suite.tracking.run import Tracker


def check(plan: RunPlan) -> tuple[Data, dict[str, list[Prompt]], dict[str, UtilityTask]]:
    """Read all inputs and list every problem that can be found before a model is loaded.

    Raises:
        KeelBenchError: one or more problems, one a line.
    """
    problems: list[str] = []
    data: Data | None = None
    prompts: dict[str, list[Prompt]] = {}
    try:
        data = load_data(plan.dataset, plan.paths.data)
        if plan.method.scores and plan.selection.name != "all":
            cut_size(plan.selection, len(data.samples))
    except KeelBenchError as error:
        problems.append(str(error))
    for benchmark in plan.benchmarks:
        try:
            prompts[benchmark.spec.name] = load_prompts(benchmark, plan.evaluation.limit, plan.paths.data)
        except KeelBenchError as error:
            problems.append(str(error))
    if not plan.benchmarks:
        problems.append("no benchmark: name at least one, such as benchmark=[mini_harmful]")
    try:
        locate(plan.model)
        plan.method.calibration()  # reads the method's own files
    except KeelBenchError as error:
        problems.append(str(error))
    tasks: dict[str, UtilityTask] = {}
    try:
        tasks = load_tasks(plan.utility, plan.paths.data)
    except KeelBenchError as error:
        problems.append(str(error))
    try:
        if plan.method.fine_tunes:
            check_training(plan.train, plan.compute, plan.regularizer)
    except KeelBenchError as error:
        problems.append(str(error))
    try:
        check_backend(plan.backend)
    except KeelBenchError as error:
        problems.append(str(error))
    try:
        with_weights(plan.judge).check()
    except KeelBenchError as error:
        problems.append(str(error))
    if problems or data is None:
        raise KeelBenchError("\n".join(problems))
    return data, prompts, tasks


def run(plan: RunPlan, folder: Path, sweep: str) -> RunRecord:
    """Carry out ``plan``; everything it found lies in ``folder`` and in W&B when it returns.

    Raises:
        KeelBenchError: anything a user can mend.
    """
    code_fingerprint()  # now: sources may be edited while the run goes on
    settle(plan.compute.deterministic)  # for judges, too, where everything before them is in the cache
    data, prompts, tasks = check(plan)
    files = benchmark_files(plan.benchmarks, plan.paths.data)
    cache = StageCache(plan.paths.cache)
    name = f"{plan.model.name}-{plan.dataset.name}-{plan.label}-seed{plan.seed}"
    with Tracker(
        plan.tracking, folder=folder, name=name, sweep=sweep, job_type="run", config=public_plan(plan)
    ) as tracker:
        weights = prepare(plan.model, plan.compute, cache)
        model = LoadedModel(weights, plan.model, plan.compute)
        entries: list[Entry] = list(weights.entries)

        scored, selected, adapter = None, [], None
        if plan.method.scores:
            scored = score(plan.method, model, data, seed=plan.seed, compute=plan.compute, cache=cache)
            selected = select(plan.selection, scored.scores)
            entries += scored.entries
        elif plan.method.fine_tunes:
            selected = [s.id for s in data.samples]
        if plan.method.fine_tunes:
            adapter = fine_tune_selection(
                model,
                data.chosen(selected),
                plan.train,
                regularizer=plan.regularizer,
                seed=plan.seed,
                cache=cache,
                every=plan.evaluation.every,
            )
            entries.append(adapter.entry)
            tracker.curve(adapter.curve)

        along: list[tuple[int, Answers]] = []
        with Inference(model, plan.backend, [adapter, *as_adapters(adapter)] if adapter else []) as inference:
            completions = complete(
                model,
                adapter,
                prompts,
                evaluation=plan.evaluation,
                backend=plan.backend,
                cache=cache,
                method=plan.method,
                inference=inference,
            )
            if adapter is not None and adapter.checkpoints_entry is not None:
                along = complete_checkpoints(
                    model,
                    adapter,
                    prompts,
                    evaluation=plan.evaluation,
                    backend=plan.backend,
                    cache=cache,
                    inference=inference,
                )
            utility = measure_utility(
                tasks,
                model,
                adapter,
                spec=plan.utility,
                system=plan.evaluation.system,
                backend=plan.backend,
                cache=cache,
                inference=inference,
                method=plan.method,
            )
        model.drop()  # a judge may need the memory
        judge, verdicts = with_weights(plan.judge), {}
        for name, (texts, entry) in completions.items():
            verdicts[name], judged = judge_completions(judge, prompts[name], texts, entry.key, cache)
            entries += [entry, judged]

        safety: list[dict[str, Any]] = []
        if adapter is not None and adapter.checkpoints_entry is not None:
            entries.append(adapter.checkpoints_entry)
            safety = safety_curve(along, prompts, evaluation=plan.evaluation, judge=judge, cache=cache)
            tracker.curve(curve_points(safety))
        entries += utility.entries

        everything = [p for asked in prompts.values() for p in asked]
        device, gpus = devices(plan.compute.device, plan.backend)
        opinions = [v for given in verdicts.values() for v in given]
        rates = safety_rates(everything, opinions) | utility.rates
        record = RunRecord(
            run_id=fingerprint([e.key for e in entries])[:12],
            sweep=sweep,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            label=plan.label,
            model=plan.model.name,
            aligned=plan.model.align.name if plan.model.align else "none",
            dataset=plan.dataset.name,
            method=plan.method.name,
            options=as_json(asdict(scored.method if scored else plan.method)),
            regularizer=plan.regularizer.name if plan.method.fine_tunes else "none",
            selection=plan.selection.name if plan.method.scores else "-",
            n_samples=len(data.samples),
            n_selected=len(selected),
            seed=plan.seed,
            judge=judge.name,
            judge_version=judge.described,
            backend=plan.backend.name,
            max_new_tokens=plan.evaluation.max_new_tokens,
            prompt_limit=plan.evaluation.limit,
            dtype=plan.model.dtype,
            device=device,
            gpus=gpus,
            decoding=decoding(plan.evaluation, plan.backend),
            rounding=rounding(plan.model, plan.compute, plan.backend),
            rates=rates,
            means=score_means(judge, prompts, verdicts),
            usage=total_usage(verdicts),
            train_loss=adapter.curve[-1]["loss"] if adapter else None,
            entries=tuple(entries),
            compute=compute_costs(entries, device=device, dtype=plan.model.dtype),
            fingerprints={
                "config": fingerprint(public_plan(plan)),
                "data": data.key,
                "prompts": ids_key([p.id for p in everything]),
                "model": weights.key,
                "utility": fingerprint(utility.settings),
                "code": code_fingerprint(),
                "template": template_fingerprint(weights.folder),
                "judge": fingerprint(judge_inputs(judge, [], "")),
            },
            scorer_info=scored.scores.info if scored else {},
            versions=library_versions(plan),
            revisions=hub_revisions(plan, weights.commit, judge),
            benchmark_files=files,
            utility_settings=utility.settings,
            utility_stderr=utility.stderr,
        )
        scores = scored.scores if scored else None
        write_run_tables(folder, tracker, plan, data, scores, selected, prompts, completions, verdicts)
        tables = {
            "categories": category_rates(everything, opinions),
            "utility": utility.samples,
            "safety_curve": safety,
        }
        for name, rows in tables.items():
            if rows:
                write_table(folder / f"{name}.parquet", rows)
                tracker.table(name, rows)
        if adapter is not None:
            write_table(folder / "training.parquet", adapter.curve)
        write_record(folder, record)
        tracker.summary(record.row())
        log_artifacts(tracker, folder, record, adapter.folder if adapter and not adapter.whole else None)
    return record
