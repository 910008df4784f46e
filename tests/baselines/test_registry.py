"""Guards the registry: every listed method is there under its name, near names are suggested, options are read."""

import dataclasses
import subprocess
import sys

import pytest

from baselines import get_method, method_names
from baselines.method import Method, build_method
from baselines.registry import MODULES, register
from eval.errors import KeelBenchError, UnknownNameError


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_listed_method_is_a_frozen_method_class_of_that_name(name):
    cls = get_method(name)
    assert cls.name == name
    assert issubclass(cls, Method)
    assert cls.__module__.startswith(MODULES[name])
    instance = build_method(cls, {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        instance.anything = 1


def test_an_unknown_method_is_refused_with_near_names_and_all_choices():
    with pytest.raises(UnknownNameError, match=r"unknown method 'lraf'\. Did you mean 'larf'.*\?.*none.*random"):
        get_method("lraf")


def test_two_classes_cannot_share_a_name_but_a_reloaded_one_may():
    with pytest.raises(ValueError, match=r"method 'random' is already baselines\.random_choice\.RandomChoice"):
        register("random")(type("Impostor", (Method,), {}))
    cls = get_method("random")
    assert register("random")(cls) is cls
    assert get_method("random") is cls
    assert method_names() == sorted(method_names())


def test_options_are_read_or_refused():
    larf = get_method("larf")
    assert build_method(larf, {"layer": 3, "token": "last"}) == larf(layer=3, token="last")
    with pytest.raises(UnknownNameError, match=r"option of method 'larf': 'tokens'\. Did you mean 'token'"):
        build_method(larf, {"tokens": "last"})
    with pytest.raises(UnknownNameError, match=r"'k'.*\(none\)"):
        build_method(get_method("random"), {"k": 3})


def test_the_reference_points_do_not_score():
    for name, fine_tunes in {"none": False, "full": True}.items():
        cls = get_method(name)
        assert (cls.scores, cls.fine_tunes, cls.uses_model) == (False, fine_tunes, False)
        with pytest.raises(KeelBenchError, match=f"method '{name}' does not score"):
            cls().score(None, None, [])
    assert get_method("full")().calibration() is None
    with pytest.raises(KeelBenchError, match="nothing to calibrate"):
        get_method("full")().calibrate(None, None)


def test_listing_the_methods_imports_no_torch():
    code = "import sys; from baselines import method_names; method_names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
