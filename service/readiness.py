"""Whether pictures get through. Known from real traffic, and where there is none from a small picture of our own."""

from __future__ import annotations

import asyncio
import io
import logging
import time

import numpy as np
from PIL import Image

from handlers.errors import HandlerError
from service import metrics
from service.analyzer import Analyzer
from service.request_context import enter_request, set_deadline

logger = logging.getLogger(__name__)

_TRIAL_TIMEOUT_S = 5.0
_RETRY_S = 0.5


class Readiness:
    """Watches the way through both runners; `ready` is what /readyz says, without asking anybody then."""

    def __init__(self, analyzer: Analyzer, interval_s: float) -> None:
        self._analyzer, self._interval_s = analyzer, interval_s
        self._picture = _small_picture()
        self.ready = False
        metrics.READY.set(0)

    async def watch(self) -> None:
        """Keep `ready` up to date until cancelled."""
        enter_request("readiness")
        while True:
            if time.monotonic() - self._analyzer.last_success_s >= self._interval_s:
                self._set(await self._passes())
            else:
                self._set(True)
            await asyncio.sleep(self._interval_s if self.ready else _RETRY_S)

    async def _passes(self) -> bool:
        set_deadline(time.monotonic() + _TRIAL_TIMEOUT_S)
        try:
            async with asyncio.timeout(_TRIAL_TIMEOUT_S):
                await self._analyzer.prove(self._picture)
        except TimeoutError:
            logger.warning("not ready: no answer from the runners within %g s", _TRIAL_TIMEOUT_S)
        except HandlerError as error:
            logger.warning("not ready: %s", error.detail)
        except Exception:
            logger.exception("not ready")
        else:
            return True
        return False

    def _set(self, ready: bool) -> None:
        if ready and not self.ready:
            logger.info("ready: a picture went through both runners")
        self.ready = ready
        metrics.READY.set(ready)


def _small_picture() -> bytes:
    """A PNG of 48×48 px without a face."""
    ramp = np.linspace(0, 255, 48, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.stack([np.tile(ramp, (48, 1))] * 3, axis=2)).save(file, "PNG")
    return file.getvalue()
