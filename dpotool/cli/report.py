"""`dpotool report`."""

from __future__ import annotations

import typer

from dpotool.cli.console import Console
from dpotool.cli.verbs import Positional, add_verb
from dpotool.settings.reading import ReportConfig

_RUNS = Positional("runs", list[str], "Scored runs, or a sweep, which stands for its runs.", required=True)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    epilog = "Example: dpotool report runs/my-sweep --output report.html"
    add_verb(app, "report", ReportConfig, positionals=(_RUNS,), epilog=epilog)(run)


def run(config: ReportConfig, console: Console, runs: list[str]) -> None:
    """Write one self-contained page about scored runs: verdict, recommendation, figures and pairs."""
    from dpotool.report.logs import NO_VERDICT, has_only_logs, write_log_report
    from dpotool.report.page import write_report
    from dpotool.report.pairs import find_texts

    if has_only_logs(runs):
        path = write_log_report(runs, config)
        console.warn(NO_VERDICT)
        console.say(f"report: {path}")
        console.finish({"path": str(path), "statement": NO_VERDICT})
        return
    report = write_report(runs, config, find_texts=find_texts)
    for problem in report.findings.comparison.problems:
        console.warn(problem)
    console.answer(f"Verdict on {report.findings.comparison.baseline}: {report.findings.statement}")
    console.say(f"report: {report.path}")
    console.finish({"path": str(report.path), **report.findings.to_dict()})
