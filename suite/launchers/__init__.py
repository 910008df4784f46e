"""Sweeps on a cluster: ``hydra/launcher=ray`` and ``hydra/launcher=submitit_slurm``.

Both carry out a point of the sweep as the basic launcher does, in the folder where the sweep was started, which all
nodes must share; what became of it is in its ``status.json``, also when its process died without a word.
"""

import sys
from pathlib import Path

# Hydra takes launchers from the namespace ``hydra_plugins`` alone; ours is in a folder here. On a node this runs before
# the work is unpickled, which names its classes.
_PLUGINS = str(Path(__file__).parent / "plugins")
if _PLUGINS not in sys.path:
    sys.path.append(_PLUGINS)
