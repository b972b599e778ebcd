"""What the latency of one picture was measured to be, and the tables made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.floor import AS_RUN, BY_THE_BOOK, CLASSIFIER, CLASSIFIER_INT8
from benchmarks.report import milliseconds, ratio, table
from benchmarks.stages import COUNTS, DETECTION_STAGES, NETWORK_STAGES, STAGES

OURS, REFERENCE = "ours", "reference"
CALLS = ("detect", "analyze")
THREADS = (1, 2)


@dataclass(frozen=True)
class LatencyRecord:
    """One picture. All times are milliseconds.

    rounds: how many turns each had. n_found: faces by system. median_ms: by system, threads and call. stage_ms: one
    thread; they add up to the whole call. n_candidates: at each stage. floor_ms: the bare networks on one thread.
    """

    picture: str
    width: int
    height: int
    n_faces: int
    rounds: int
    n_found: dict[str, int]
    median_ms: dict[str, dict[int, dict[str, float]]]
    stage_ms: dict[str, float]
    n_candidates: dict[str, int]
    floor_ms: dict[str, float]

    def floor_ms_of(self, call: str, by_the_book: bool) -> float:
        """The bare networks of a call: whole and in float32, or as Mien runs them.

        As Mien runs P-Net its first convolution is in no network. The classifier runs in int8 where it can.
        """
        names = list(BY_THE_BOOK if by_the_book else AS_RUN)
        if call == "analyze":
            names.append(CLASSIFIER if by_the_book or CLASSIFIER_INT8 not in self.floor_ms else CLASSIFIER_INT8)
        return sum(self.floor_ms[name] for name in names)

    def ratio(self, call: str, threads: int) -> float:
        """How many times the reference's time ours is, on as many threads."""
        return self.median_ms[REFERENCE][threads][call] / self.median_ms[OURS][threads][call]

    def as_json(self) -> dict[str, Any]:
        """The fields, and what is derived from them."""
        return asdict(self) | {
            "ratio": {call: {threads: self.ratio(call, threads) for threads in THREADS} for call in CALLS},
            "floor_by_the_book_ms": {call: self.floor_ms_of(call, True) for call in CALLS},
            "floor_as_run_ms": {call: self.floor_ms_of(call, False) for call in CALLS},
        }


def ratio_table(records: Sequence[LatencyRecord], call: str) -> str:
    """Ours beside the reference, on one and on two threads."""
    rows = []
    for record in records:
        cells: list[object] = [record.picture, record.n_faces]
        for threads in THREADS:
            ours, reference = (record.median_ms[system][threads][call] for system in (OURS, REFERENCE))
            cells += [f"{milliseconds(ours)} / {milliseconds(reference)} ms", ratio(record.ratio(call, threads))]
        rows.append([*cells, record.rounds])
    other = "facenet-pytorch" if call == "detect" else "reference stack"
    return table(
        ["picture", "faces", f"1 thread, ours / {other}", "ratio", f"2 threads, ours / {other}", "ratio", "rounds"],
        rows,
    )


def floor_table(records: Sequence[LatencyRecord], call: str) -> str:
    """A call of ours on one thread beside the bare networks, and what it spends beyond them."""
    stages = [name for name in (DETECTION_STAGES if call == "detect" else STAGES) if name not in NETWORK_STAGES]
    rows = []
    for record in records:
        ours, book, run = (
            record.median_ms[OURS][1][call],
            record.floor_ms_of(call, True),
            record.floor_ms_of(call, False),
        )
        largest = sorted(stages, key=lambda name: -record.stage_ms[name])[:4]
        rows.append(
            [
                record.picture,
                record.n_faces,
                milliseconds(ours),
                f"{milliseconds(book)} ({ours / book:.2f}×)",
                f"{milliseconds(run)} ({ours / run:.2f}×)",
                milliseconds(ours - run),
                ", ".join(f"{name} {milliseconds(record.stage_ms[name])}" for name in largest),
            ]
        )
    networks = ("bare networks, whole in fp32 (ours / it)", "bare networks as run (ours / it)")
    return table(["picture", "faces", "ours", *networks, "beyond those", "mostly"], rows)


def parts_table(records: Sequence[LatencyRecord]) -> str:
    """Each stage of the whole path, then each bare network, by picture."""
    head = ["ms", *(f"{record.picture}, {record.n_faces}" for record in records)]
    stages = [[name, *(milliseconds(record.stage_ms[name]) for record in records)] for name in STAGES]
    whole = ["**whole**", *(milliseconds(sum(record.stage_ms.values())) for record in records)]
    networks = list(dict.fromkeys(name for record in records for name in record.floor_ms))
    bare = [[f"bare: {name}", *(milliseconds(record.floor_ms[name]) for record in records)] for name in networks]
    return table(head, [*stages, whole, *bare])


def counts_table(records: Sequence[LatencyRecord]) -> str:
    """How many candidates each picture has at each stage."""
    return table(
        ["picture", *COUNTS],
        [[f"{each.picture}, {each.n_faces}", *(each.n_candidates[name] for name in COUNTS)] for each in records],
    )
