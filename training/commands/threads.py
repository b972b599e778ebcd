"""The CPU threads and the memory that a command computes with."""

from __future__ import annotations

import argparse
import ctypes
import sys

from training.errors import ConfigError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_TOP_PAD_BYTES = 64 << 20


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add `--threads N`."""
    parser.add_argument("--threads", type=int, help="CPU threads; all cores unless given")


def use_threads(options: argparse.Namespace) -> None:
    """Let torch compute on so many threads from here on. Raises ConfigError for fewer than one."""
    import torch

    if options.threads is not None:
        if options.threads < 1:
            raise ConfigError(f"--threads: {options.threads} is under 1")
        torch.set_num_threads(options.threads)


def keep_freed_memory() -> bool:
    """Let glibc keep this process's freed memory for the next layer, and say whether it will.

    Activations of a batch are tens of megabytes. glibc gives such blocks back to the kernel when they are freed, which
    clears every page of the next one: 8 to 26 % of a training's time (docs/training.md). False where libc is another.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, 2**31 - 1), mallopt(_M_TOP_PAD, _TOP_PAD_BYTES)])
