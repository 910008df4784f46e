"""What a user types becomes one run with a section a method; what makes no sense is refused before Hydra sees it."""

import pytest

from eval.errors import KeelBenchError, UnknownNameError
from suite.purify.arguments import translated


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ([], ["+method@methods.larf=larf"]),
        (["method=larf,gradsafe"], ["+method@methods.larf=larf", "+method@methods.gradsafe=gradsafe"]),
        (["method=[random, random]"], ["+method@methods.random=random"]),
        (["method=larf", "method.layer=auto"], ["+method@methods.larf=larf", "methods.larf.layer=auto"]),
        (["method.layer=3"], ["+method@methods.larf=larf", "methods.larf.layer=3"]),
        (["-m", "keep=0.7,0.8"], ["-m", "+method@methods.larf=larf", "keep=0.7,0.8"]),
        (["keep=0.7,0.8", "-m"], ["+method@methods.larf=larf", "keep=0.7,0.8", "-m"]),
        (["--cfg", "job"], ["--cfg", "job", "+method@methods.larf=larf"]),
        (["+method@methods.mine=larf"], ["+method@methods.mine=larf"]),
        (
            ["scorer=smollm2", "model=llama3", "scorer.larf_layer=2"],
            ["+method@methods.larf=larf", "+model@scorer=smollm2", "methods.larf.layer=${scorer.larf_layer}",
             "model=llama3", "scorer.larf_layer=2"],
        ),
        (["method=gradsafe", "scorer=smollm2"], ["+method@methods.gradsafe=gradsafe", "+model@scorer=smollm2"]),
        (["scorer=null", "method=random"], ["+method@methods.random=random"]),
    ],
)  # fmt: skip
def test_arguments_in_hydras_terms(typed, wanted):
    assert translated(typed) == wanted


@pytest.mark.parametrize(
    ("typed", "error", "message"),
    [
        (["method=laff"], UnknownNameError, "Did you mean 'larf'"),
        (["method=full"], KeelBenchError, "does not score samples"),
        (["method=larf,vcl"], KeelBenchError, "method=vcl does not score"),
        (["mine.jsonl", "keep=0.8"], KeelBenchError, r"dataset\.path=mine\.jsonl"),
        (["method=larf,gradsafe", "method.layer=3"], KeelBenchError, r"methods\.<name>\.layer"),
    ],
)
def test_a_wrong_method_is_refused(typed, error, message):
    with pytest.raises(error, match=message):
        translated(typed)
