"""`dpotool report`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from dpotool.cli.console import Console
from dpotool.cli.verbs import Positional, add_verb
from dpotool.errors import DpotoolError
from dpotool.settings.reading import ReportConfig

if TYPE_CHECKING:
    from dpotool.compare.findings import Findings
    from dpotool.report.pairs import TextSource

_RUNS = Positional("runs", list[str], "Scored runs, or a sweep, which stands for its runs.", required=True)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    epilog = "Example: dpotool report runs/my-sweep --output report.html"
    add_verb(app, "report", ReportConfig, positionals=(_RUNS,), epilog=epilog)(run)


def run(config: ReportConfig, console: Console, runs: list[str]) -> None:
    """Write one self-contained page about scored runs: verdict, recommendation, figures and pairs."""
    from dpotool.report.logs import NO_VERDICT, has_only_logs, write_log_report
    from dpotool.report.page import write_report

    if has_only_logs(runs):
        path = write_log_report(runs, config)
        console.warn(NO_VERDICT)
        console.say(f"report: {path}")
        console.finish({"path": str(path), "statement": NO_VERDICT})
        return
    report = write_report(runs, config, find_texts=find_texts)
    for problem in report.findings.comparison.problems:
        console.warn(problem)
    console.say(f"report: {report.path}")
    console.say(f"Verdict on {report.findings.comparison.baseline}: {report.findings.statement}")
    console.finish({"path": str(report.path), **report.findings.to_dict()})


def find_texts(findings: Findings, n_pairs: int) -> TextSource:
    """Reads the texts of the pairs that the report will show from the data that the baseline was scored on."""
    from msgspec.structs import asdict

    from dpotool.data.texts import load_texts, write_out
    from dpotool.report.pairs import Texts, TextSource, choose_pairs

    base = findings.base
    if not base.is_referenced or n_pairs == 0:
        return TextSource()
    rows = base.about.rows
    if rows is None:
        return TextSource(problem="its score table does not say where the pairs are.")
    pair_ids = [pair_id for side in choose_pairs(base, n_pairs) for pair_id in side]
    try:
        pairs = load_texts(asdict(rows), base.split, pair_ids, base.about.fingerprints.data)
    except DpotoolError as error:
        return TextSource(problem=f"{error}.")
    return TextSource(
        {
            pair_id: Texts(write_out(pair.prompt), write_out(pair.chosen), write_out(pair.rejected))
            for pair_id, pair in pairs.items()
        }
    )
