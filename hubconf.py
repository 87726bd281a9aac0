"""What `torch.hub.load("OWNER/alexnet_mp", NAME, ...)` calls. Nothing but this repository is downloaded.

torch.hub.load("OWNER/alexnet_mp", "from_pretrained", "FOLDER")     what `export --to hub` wrote: pictures -> logits
torch.hub.load("OWNER/alexnet_mp", "paper", classes=1000)           the two towers, not trained, both on the CPU
"""

import importlib.util
import sys
from pathlib import Path

dependencies = ["torch", "numpy", "pydantic", "safetensors", "rich", "PIL", "mpmath"]


def from_pretrained(folder, device="cpu", kernels="auto"):
    """The trained network of a folder: `alexnet_mp.from_pretrained`."""
    return _package().from_pretrained(folder, device, kernels)


def paper(devices=("cpu", "cpu"), classes=1000):
    """The network of the paper's text, as its training begins: `TwoTowerAlexNet`, a tower a device."""
    package = _package()
    return package.TwoTowerAlexNet(package.paper(), devices, classes)


def mini(devices=("cpu", "cpu"), classes=1000):
    """The same graph for a laptop, half as wide or less."""
    package = _package()
    return package.TwoTowerAlexNet(package.mini(), devices, classes)


def _package():
    """`alexnet_mp`; where it is not installed, of this folder, in which `alexnet_mp.kernels` is named `kernels`."""
    import alexnet_mp

    if importlib.util.find_spec("alexnet_mp.kernels") is None:
        folder = Path(__file__).parent / "kernels"
        spec = importlib.util.spec_from_file_location(
            "alexnet_mp.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules[spec.name] = alexnet_mp.kernels = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(alexnet_mp.kernels)
    return alexnet_mp
