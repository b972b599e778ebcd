import os
import subprocess
import sys
from pathlib import Path

import pytest

from handlers.cores import usable_cores

REPOSITORY = Path(__file__).parents[2]


def test_the_usable_cores_are_some_of_the_machines() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_the_usable_cores_follow_the_affinity_of_the_process() -> None:
    one = str(min(os.sched_getaffinity(0)))
    code = f"import os; os.sched_setaffinity(0, {{{one}}}); from handlers import cores; print(cores.usable_cores())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout == "1\n"
