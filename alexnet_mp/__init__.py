"""AlexNet (Krizhevsky, Sutskever, Hinton 2012) as it ran: two towers on two devices that meet at four layers."""

import importlib
import os
import sys

_MODULES = {
    "MergedAlexNet": "network.network",
    "Recipe": "recipes.recipe",
    "TwoTowerAlexNet": "network.network",
    "from_pretrained": "interchange.hub",
    "mini": "recipes.architectures",
    "paper": "recipes.architectures",
    "source2012": "recipes.architectures",
}
__all__ = list(_MODULES)


def _interrupt_hook(kind, error, traceback):
    if issubclass(kind, KeyboardInterrupt):
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print("stopped", file=sys.stderr)
        return
    sys.__excepthook__(kind, error, traceback)


if os.path.basename("".join(sys.argv[:1])) in ("-m", "alexnet-mp"):
    # a command is being imported, which takes seconds: Ctrl-C meanwhile is no traceback
    sys.excepthook = _interrupt_hook


def __getattr__(name):
    """Imported when asked for: `alexnet_mp.doctor` has to run where torch can't be imported."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
