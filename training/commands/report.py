"""`python -m training report`: a run's scores and pictures, made again."""

from __future__ import annotations

import argparse
from pathlib import Path

from training.commands.splits import add_split, load_split, split_title
from training.commands.threads import add_threads, use_threads


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subparser."""
    report = commands.add_parser("report", help="write a run's metrics, tables and pictures into its folder")
    report.add_argument("--run", dest="run_folder", type=Path, required=True, help="finished or stopped")
    add_split(report, "validation", "the split that the run was validated on")
    report.add_argument("--split", help="what to call that split; FER2013's name for it, else the file's, unless given")
    add_threads(report)
    report.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> None:
    from training.artefacts import REPORT_TEXT, write_artefacts
    from training.finished_run import last_stage, read_experiment
    from training.recipe import loading_spec, read_stages, sized

    use_threads(options)
    folder = last_stage(options.run_folder)
    experiment = read_experiment(folder)
    spec = loading_spec(read_stages(options.run_folder))
    labels_from = experiment.data.labels_from
    faces = load_split(options, "validation", experiment.labels, spec, labels_from=labels_from)
    split = split_title(options, "validation", faces, labels_from)
    write_artefacts(folder, experiment, sized(faces, experiment), split=split)
    print((folder / REPORT_TEXT).read_text(), end="")
