"""Two processes by torchrun, over gloo: one run, one set of files, and the gradients of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.two_processes import learn
from training.checkpoint import load_checkpoint
from training.history import BEST, EXPERIMENT, HISTORY, LAST, TENSORBOARD

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launcher, "-m", "tests.training.two_processes", str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    (folder / "out.txt").write_text(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_both_make_the_same_batches_and_end_where_one_process_does(
    runs: Path, one_thread: None, tmp_path: Path
) -> None:
    shown: list[np.ndarray[Any, Any]] = []
    learn(tmp_path, shown)
    for rank in (0, 1):
        assert np.array_equal(np.load(runs / f"shown-{rank}.npy"), np.stack(shown))
    alone, together = load_checkpoint(tmp_path / LAST), load_checkpoint(runs / "linear" / LAST)
    for name, tensor in alone[0].items():
        assert torch.allclose(tensor, together[0][name], atol=2e-6), name
    for one, two in zip(alone[1]["history"], together[1]["history"], strict=True):  # type: ignore[arg-type, call-overload]
        assert two["train_loss"] == pytest.approx(one["train_loss"], abs=1e-5)
        assert two["train_accuracy"] == pytest.approx(one["train_accuracy"], abs=1e-4)
        assert two["validation_loss"] == pytest.approx(one["validation_loss"], abs=1e-5)
    assert (alone[1]["world_size"], together[1]["world_size"]) == (1, 2)


def test_one_set_of_files_and_lines(runs: Path) -> None:
    assert {path.name for path in (runs / "whole").iterdir()} == {BEST, EXPERIMENT, HISTORY, LAST, TENSORBOARD}
    assert len(list((runs / "whole" / TENSORBOARD).iterdir())) == 1
    lines = (runs / "out.txt").read_text().splitlines()
    assert [line[:11] for line in lines].count("epoch   1/2") == 3
    assert [line[:11] for line in lines].count("epoch   2/2") == 3
    assert sum(line.startswith("resumed after epoch 1") for line in lines) == 1


def test_resumed_run_of_two_processes_ends_like_an_undisturbed_one(runs: Path) -> None:
    for file in (LAST, BEST):
        whole, parts = (load_checkpoint(runs / folder / file)[0] for folder in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_batch_that_cannot_be_shared_equally_is_refused(runs: Path) -> None:
    for rank in (0, 1):
        assert (runs / f"odd-{rank}.txt").read_text() == "optim.batch_size: 15 faces cannot be shared equally by 2"
    assert not (runs / "odd").exists()
