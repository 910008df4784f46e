"""The building's plan: entry points, the pipeline and its stages, tracking, results, report."""
