"""The ray engine on a cluster of two nodes on this machine, one of which is killed while it works."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scoring.local_engine import LocalEngine
from scoring.ray_engine import RayEngine
from tests.scoring.in_process import RecordingProgress
from tests.scoring.noting_scorer import MakeNoting, Notes
from tests.scoring.ray_runs import CONFIG, contents, make_output, named_parts, total, wait_until_gone
from tests.scoring.scorers import MakeOrdered

pytest.importorskip("ray")

NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}
QUICK_TO_NOTICE_DEATHS = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and one more node, a core each. This process is connected to neither."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "_system_config": QUICK_TO_NOTICE_DEATHS})
        cluster.add_node(**NODE)
    yield cluster
    cluster.shutdown()


@pytest.mark.slow
def test_a_node_that_is_killed_midway(cluster: Any, tmp_path: Path) -> None:
    import ray

    parts = named_parts([*(f"ok-{index}" for index in range(100)), "segfault-100", "corrupt-101"])
    local = make_output(tmp_path / "local")
    list(LocalEngine(MakeOrdered(), CONFIG, local, 2, 30.0).score(parts, RecordingProgress()))
    output, notes, progress = make_output(tmp_path / "ray"), Notes(tmp_path / "notes"), RecordingProgress()
    [victim] = cluster.worker_nodes
    driver_nodes = []

    def kill_a_node() -> None:
        notes.wait_for_workers(2)
        driver_nodes.append(ray.get_runtime_context().get_node_id())
        cluster.remove_node(victim, allow_graceful=False)

    killer = threading.Thread(target=kill_a_node)
    killer.start()
    engine = RayEngine(MakeNoting(notes, 0.1), CONFIG, output, None, 30.0, cluster.address)
    records = list(engine.score(parts, progress))
    killer.join()

    assert driver_nodes == [cluster.head_node.node_id]
    assert not cluster.worker_nodes
    assert contents(output) == contents(local)
    assert sorted(record.name for record in records) == sorted(output.part_names())
    assert progress.scored_tally == total(records)
    assert progress.scored_tally.n_inputs == 102
    assert progress.scored_tally.errors == {"worker_died": 1, "corrupt_image": 1}
    n_times = Counter(note.path for note in notes.read() if note.path != "segfault-100")
    assert len(n_times) == 101
    again = {path for path, n in n_times.items() if n > 1}
    assert sum(not again.isdisjoint(entry.path for entry in part.entries) for part in parts) <= 1, "parts repeated"

    # The cluster goes on without us, and nothing of ours stays in it.
    assert not ray.is_initialized()
    assert cluster.head_node.remaining_processes_alive()
    wait_until_gone({pid for note in notes.read() for pid in (note.worker, note.parent)})
