"""All benchmarks, one after the other: ``make bench``, with SUITE_DATA for real rows."""

import importlib
import pkgutil

import tests.benchmarks as package

for module in pkgutil.iter_modules(package.__path__):
    if module.name.startswith("bench_"):
        print(f"\n## {module.name}", flush=True)
        importlib.import_module(f"tests.benchmarks.{module.name}").main()
