"""Python imports this at its start when the folder is on the path: watches what real workers judge, from inside them.

MIEN_TEST_JUDGED: file that gets the checksum of every picture that is judged. MIEN_TEST_KILLER: checksum of a picture
that ends its process.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
import zlib
from types import ModuleType


class _Watch(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self) -> None:
        self._loader: importlib.abc.Loader | None = None

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != "scoring.scorer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        assert self._loader is not None
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert self._loader is not None
        self._loader.exec_module(module)
        judge = module.Scorer.judge
        log = os.open(os.environ["MIEN_TEST_JUDGED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        killer = int(os.environ.get("MIEN_TEST_KILLER", "-1"))

        def watched(self: object, image: bytes) -> object:
            checksum = zlib.crc32(image)
            os.write(log, b"%d\n" % checksum)
            if checksum == killer:
                os.kill(os.getpid(), signal.SIGKILL)
            return judge(self, image)

        module.Scorer.judge = watched


sys.meta_path.insert(0, _Watch())
