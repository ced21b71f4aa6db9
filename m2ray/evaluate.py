"""Command `python -m m2ray.evaluate` (`m2ray.cli.evaluate`), and the function `m2ray.evaluate` (`m2ray.api`)."""

import sys
from types import ModuleType
from typing import Any

from m2ray.cli.evaluate import main
from m2ray.cli.runner import run_command


class _CallableModule(ModuleType):
    """Importing the command must not hide the function of the same name, so the module can be called too."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from m2ray import api  # imports torch, which the command's --help need not wait for

        return api.evaluate(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    run_command(main)
