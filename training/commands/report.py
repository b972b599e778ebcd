"""`python -m training report`: a run's scores and pictures, made again."""

from __future__ import annotations

import argparse
from pathlib import Path

from training.commands.splits import add_split, load_split


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subparser."""
    report = commands.add_parser("report", help="write a run's metrics, tables and pictures into its folder")
    report.add_argument("--run", dest="run_folder", type=Path, required=True, help="finished or stopped")
    add_split(report, "validation", "the split that the run was validated on")
    report.add_argument("--split", help="what to call that split; the file's name unless given")
    report.add_argument("--threads", type=int, help="CPU threads; all cores unless given")
    report.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> None:
    import torch

    from training.artefacts import REPORT_TEXT, write_artefacts
    from training.finished_run import last_stage, read_experiment
    from training.recipe import sized

    if options.threads:
        torch.set_num_threads(options.threads)
    folder = last_stage(options.run_folder)
    experiment = read_experiment(folder)
    # The recipe reads the faces at its first stage's size, and resizes them for the others.
    first = read_experiment(options.run_folder / "stage-1") if folder != options.run_folder else experiment
    faces = load_split(options, "validation", first.labels, first.input, labels_from=first.data.labels_from)
    split = options.split or options.validation_usage or options.validation.name
    write_artefacts(folder, experiment, sized(faces, experiment), split=split)
    print((folder / REPORT_TEXT).read_text(), end="")
