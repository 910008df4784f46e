"""What a job will cost before it runs: operations, bytes, hours and money of every stage, on machines we do not have.

>>> from suite.planning import HARDWARE, SHAPES, estimate
>>> round(estimate(SHAPES["llama3_1"], 52_000, 210, "larf", HARDWARE["a100"]).device_hours, 2)
0.15
"""

from suite.planning.costs import (
    Recipe,
    StageCosts,
    api_judging,
    estimate,
    fine_tuning,
    generating,
    judging,
    loading,
    utility,
)
from suite.planning.hardware import HARDWARE, Hardware
from suite.planning.shapes import SHAPES, ModelShape

__all__ = [
    "HARDWARE",
    "SHAPES",
    "Hardware",
    "ModelShape",
    "Recipe",
    "StageCosts",
    "api_judging",
    "estimate",
    "fine_tuning",
    "generating",
    "judging",
    "loading",
    "utility",
]
