"""Verdicts anew, without asking a judge's model: out of the replies that were kept, read by the judge of today."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

from eval.errors import KeelBenchError
from eval.judges import Judge, judge_class
from eval.judges.asking import Reply
from eval.judges.kept import KeptReplies
from eval.judges.model_judge import ModelJudge
from eval.records import Completion, Prompt, Verdict
from suite.configuration.resolvers import without_environment
from suite.plan import judge_of
from suite.stages.judging import judge_tag

Row = dict[str, Any]


@dataclass(frozen=True)
class Rejudged:
    """A run's verdicts by prompt as they come out today, and in words what that does not show."""

    judge: Judge
    verdicts: dict[str, Verdict]
    unverified: tuple[str, ...] = ()


def judge_again(
    folder: Path,
    row: Row,
    prompts: Sequence[Prompt],
    completions: Mapping[str, Completion],
    stored: Mapping[str, Verdict],
    cache: Path,
) -> Rejudged:
    """The verdicts of a run's judge, as its version of today gives them on the stored completions.

    A judge without a model judges again. One with a model is not asked: its questions are put together anew from
    prompts and completions, and the replies that its server gave to exactly these (``judge_replies`` in the cache) are
    read again. Where no such reply is kept, as of a model that ran in the process, the reply that stands with the
    verdict is read again; that it answered this question is then taken on trust.

    Raises:
        KeelBenchError: the judge's settings are not known, or it is at another version or model than the record's.
    """
    judge = _judge(folder, row["judge"])
    if judge.described != row["judge_version"]:
        raise KeelBenchError(
            f"judge {row['judge']} was at version {row['judge_version']} and is at {judge.described}; its verdicts may "
            "differ (--verdicts stored counts those of then)"
        )
    if not isinstance(judge, ModelJudge):
        again = judge(prompts, [completions[p.id] for p in prompts])
        return Rejudged(judge, {v.prompt_id: v for v in again})
    kept = KeptReplies(cache / "judge_replies" / f"{judge_tag(judge)}.jsonl") if judge.server is not None else None
    verdicts, from_server, from_verdicts = {}, 0, 0
    for prompt in prompts:
        verdict, completion = stored[prompt.id], completions[prompt.id]
        if prompt.expected not in judge.judged:
            verdicts[prompt.id] = replace(verdict, label="not_judged")
            continue
        reply = None if kept is None else kept.get(judge.question(prompt, completion))
        if reply is not None:
            from_server += 1
        else:
            from_verdicts += 1
            reply = _reply(verdict)
        verdicts[prompt.id] = judge.verdict(completion, reply)
    return Rejudged(judge, verdicts, tuple(_told(judge, from_server, from_verdicts)))


def _judge(folder: Path, name: str) -> Judge:
    """The run's judge with its settings, out of the configuration that Hydra kept beside the run."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with without_environment():
            config = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "config.yaml").judge, resolve=True)
        assert isinstance(config, dict)
        if config["name"] != name:
            raise KeelBenchError(f"{folder}/.hydra/config.yaml has judge {config['name']}, the record {name}")
        return judge_of({str(k): v for k, v in config.items()})
    except (OSError, AttributeError, KeyError, OmegaConfBaseException) as error:
        found = judge_class(name)
        if any(f.default is MISSING and f.default_factory is MISSING for f in fields(found)):
            raise KeelBenchError(
                f"judge {name} has settings, and {folder}/.hydra/config.yaml, which has them, cannot be read "
                f"({error}): only --verdicts stored can be verified"
            ) from error
        judge: Judge = found()
        return judge


def _reply(verdict: Verdict) -> Reply:
    """The reply that a stored verdict was read from; a server's refusal to answer stands there in brackets."""
    failed = verdict.label == "unparsed" and verdict.raw.startswith("[") and verdict.raw.endswith("]")
    return Reply("", 0, 0, verdict.raw[1:-1]) if failed else Reply(verdict.raw, 0, 0)


def _told(judge: ModelJudge, from_server: int, from_verdicts: int) -> list[str]:
    who = f"judge {judge.name} ({judge.described})"
    lines = []
    if from_server:
        lines.append(f"{who} was not asked again: {from_server} replies that its server gave to these very questions")
    if from_verdicts:
        lines.append(
            f"{who} was not asked again: {from_verdicts} replies as they stand with the verdicts; nothing kept shows "
            "that the model gave them to these questions (`python -m suite.judge` asks it again)"
        )
    return lines
