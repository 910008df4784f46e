"""The methods: one module each, found by name; and the engines they share.

>>> from baselines import get_method
>>> scores = get_method("larf")(layer=13).score(model, tokenizer, samples)  # doctest: +SKIP

Adding a method: one module here with a class under ``@register("name")``, its line in ``registry.MODULES``, and one
YAML in ``conf/method/``.
"""

from baselines.records import Sample, Scores
from baselines.registry import get_method, method_names

__all__ = ["Sample", "Scores", "get_method", "method_names"]
