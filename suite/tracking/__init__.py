"""W&B: a run a job, a run a sweep, and the artifacts they share."""
