"""Makes the launchers known to Hydra, however this project is installed and whatever else is."""

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra_plugins.keelbench import RayLauncher, SlurmLauncher


def register() -> None:
    """An editable install's namespace packages are not found by Hydra's search. And where hydra-ray-launcher or
    hydra-submitit-launcher is installed, Hydra would check our YAML of the same name against its schema."""
    plugins = Plugins.instance()
    for launcher in (RayLauncher, SlurmLauncher):
        plugins.register(launcher)
    group = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {})
    for name in ("ray", "submitit_slurm"):
        group.pop(f"{name}.yaml", None)
