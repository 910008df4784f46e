"""Sweeps on a cluster: ``hydra/launcher=ray`` and ``hydra/launcher=submitit_slurm``.

Both carry out a point of the sweep as the basic launcher does, in the folder where the sweep was started, which all
nodes must share; what became of it is in its ``status.json``, also when its process died without a word.
"""
