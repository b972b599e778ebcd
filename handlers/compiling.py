"""How inner loops are compiled by numba: now, kept in its cache, and all the same where no cache can be written."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(signature: Any = None, *, contract: bool = True) -> Callable[[_Function], _Function]:
    """Compile for a signature now, or load what was; without one, as part of each kernel that calls it.

    contract: a product and a sum may be rounded once, together.
    """

    def compile_now(function: _Function) -> _Function:
        jit: Any = functools.partial(
            numba.njit, nogil=True, error_model="numpy", fastmath={"contract", "nsz"} if contract else False
        )
        if signature is None:
            part: _Function = jit()(function)
            return part
        try:
            native: _Function = jit(signature, cache=True)(function)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError):
            # No folder may be written to (RuntimeError), or one could be and then the disk is full, or what lies
            # there is not ours to read, or was cut off when the machine stopped.
            native = jit(signature)(function)
        return native

    return compile_now
