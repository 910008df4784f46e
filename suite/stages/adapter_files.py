"""LoRA adapters from a folder, which may be a stranger's: tensors are read, nothing is run."""

import json
from pathlib import Path

from eval.errors import KeelBenchError

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def check_adapter(folder: Path) -> None:
    """
    Raises:
        KeelBenchError: no LoRA adapter as safetensors; or one whose configuration names code to import, or that comes
            with pickles, which run code when they are read.
    """
    for name in (TENSORS, CONFIG):
        if not (folder / name).is_file():
            raise KeelBenchError(f"adapter={folder}: no {name} there")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KeelBenchError(f"adapter={folder}: {CONFIG} is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise KeelBenchError(f"adapter={folder}: {CONFIG} is not an object")
    if config.get("peft_type") != "LORA":
        raise KeelBenchError(f"adapter={folder}: peft_type is {config.get('peft_type')!r}; LORA adapters are loaded")
    if config.get("auto_mapping"):
        raise KeelBenchError(f"adapter={folder}: its auto_mapping names code to import, which is refused")
    pickles = sorted(f.name for f in folder.iterdir() if f.suffix in _PICKLES)
    if pickles:
        raise KeelBenchError(
            f"adapter={folder}: {', '.join(pickles)} may run code when read; keep the safetensors alone"
        )
