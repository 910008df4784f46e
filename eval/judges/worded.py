"""What the judges that ask a general model have in common: a question in our wording, or in the user's own."""

from dataclasses import dataclass
from typing import ClassVar

from eval.judges.asking import Question
from eval.judges.model_judge import ModelJudge
from eval.judges.prompt_files import filled, identity, template
from eval.records import Completion, Prompt

PLACES = ("prompt", "completion")


@dataclass(frozen=True, kw_only=True)
class WordedJudge(ModelJudge):
    """Asks ``wording``, or the text of ``prompt_file`` instead, with both places filled in."""

    prompt_file: str | None  # another wording, with the places {prompt} and {completion}

    wording: ClassVar[str]

    def prompt_identity(self) -> str:
        return identity(self.prompt_file, PLACES)

    def question(self, prompt: Prompt, completion: Completion) -> Question:
        text = template(self.prompt_file, PLACES) or self.wording
        return Question(turns=(("user", filled(text, {"prompt": prompt.text, "completion": completion.text})),))
