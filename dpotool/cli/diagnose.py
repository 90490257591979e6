"""`dpotool diagnose`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from dpotool.cli.console import Console, format_interval, show_dry_run
from dpotool.cli.verbs import Positional, add_verb
from dpotool.settings.scoring import DiagnoseConfig

if TYPE_CHECKING:
    from dpotool.measures.diagnose import DiagnosisResult

_MODELS = Positional(
    "models", list[str] | None, "Run folders, checkpoints, adapters or hub ids. The default is the newest run."
)
_TO_TEXTS = {
    "other_side": "the rejected answer's next token",
    "ref_top": "the most likely token already",
    "eos": "the end token",
    "elsewhere": "everything else",
}


def register(app: typer.Typer) -> None:
    """Adds the command."""
    epilog = "Example: dpotool diagnose runs/my-run --limit 200"
    add_verb(app, "diagnose", DiagnoseConfig, positionals=(_MODELS,), epilog=epilog)(run)


def run(config: DiagnoseConfig, console: Console, models: list[str] | None) -> None:
    """Show which tokens of the answers moved, where the probability went, and which pairs looked risky before."""
    from dpotool.compare.diagnosis import say_diagnosis
    from dpotool.measures.diagnose import diagnose_models
    from dpotool.runs.folder import newest_run

    if not models:
        models = [str(newest_run().path)]
        console.note(f"diagnosing the newest run, {models[0]}")
    if config.dry_run:
        from dpotool.estimates.scoring import plan_diagnoses

        plan = partial(plan_diagnoses, models, config, progress=console)
        console.finish({"estimates": show_dry_run(plan, console)})
        return
    results = diagnose_models(models, config, progress=console)
    for result in results:
        for sentence in say_diagnosis(result.summary, result.label):
            console.answer(sentence)
        show_spans(result, console)
        if config.full:
            show_positions(result, console)
            show_mass(result, console)
            show_risks(result, console)
        console.say(f"pairs: {result.path}")
        console.say(f"tokens: {result.tokens_path}")
        if not config.full:
            console.answer(
                "--full adds the change by position, where the probability went, and the risk measures.",
                "`dpotool plot spans` and `dpotool plot tokens` draw the result.",
            )
    console.finish({"results": [_to_json(result) for result in results]})


def show_spans(result: DiagnosisResult, console: Console) -> None:
    """Prints on which tokens the answers moved."""
    from dpotool.compare.diagnosis import SPAN_TEXTS

    if result.summary["chosen"] is None:
        return
    sides = [result.summary[side] for side in ("chosen", "rejected")]
    rows = [
        [text, *(cell for side in sides for cell in _span_cells(side["spans"][span]))]
        for span, text in SPAN_TEXTS.items()
    ]
    rows.append(["all tokens", *(cell for side in sides for cell in ("", _format_change(side["displacement"])))])
    columns = ["tokens", "%", "chosen, nats", "%", "rejected, nats"]
    title = f"Change by kind of token; %: share of all tokens; n = {result.summary['n']}"
    console.table(title, columns, rows)


def _span_cells(span: dict[str, Any]) -> tuple[str, str]:
    return f"{100 * span['share_of_tokens']:.0f}", _format_change(span)


def _format_change(change: dict[str, Any]) -> str:
    """A change with its interval, short enough for two of them in a line of 80 columns."""
    is_long = max(abs(change[name]) for name in ("mean", "ci_low", "ci_high")) >= 10  # NaN is not
    return format_interval(change, 1 if is_long else 2)


def show_positions(result: DiagnosisResult, console: Console) -> None:
    """Prints the parts of the displacement by place in the answer."""
    from dpotool.compare.diagnosis import name_positions

    if result.summary["chosen"] is None:
        return
    rows = [
        [
            name_positions(row),
            str(row["n_tokens"]),
            f"{row['part']:+.3f}",
            f"{row['per_token']:+.4f}",
        ]
        for row in result.summary["chosen"]["positions"]
    ]
    console.table("Chosen answers by position", ["tokens", "number", "part, nats", "per token, nats"], rows)


def show_mass(result: DiagnosisResult, console: Console) -> None:
    """Prints where the probability went, and the vocabulary items that gained and lost most."""
    mass, vocabulary = result.summary["mass"], result.summary["vocabulary"]
    if mass is None:
        return
    shares = mass["shares"] or dict.fromkeys(_TO_TEXTS, float("nan"))
    rows = [[text, f"{mass['to'][name]:z.3f}", f"{100 * shares[name]:z.1f}"] for name, text in _TO_TEXTS.items()]
    rows.append(["lost by chosen tokens", f"{mass['lost']:.3f}", "100.0"])
    console.table("Where the probability of chosen tokens went", ["to", "sum", "share, %"], rows)
    for kind in ("gained", "lost"):
        items = [
            [repr(item["token"]), str(item["token_id"]), f"{item['change']:+.3f}"] for item in vocabulary[kind][:10]
        ]
        console.table(f"Tokens that {kind} most over all positions", ["token", "id", "change, sum"], items)


def show_risks(result: DiagnosisResult, console: Console) -> None:
    """Prints how well each measure that was known before training ranks the fall, and what it costs."""
    if not result.summary["risks"]:
        return
    prices = result.summary["seconds_per_pair"]
    rows = [
        [
            risk["called"],
            format_interval(risk["rank_correlation"], 2),
            format_interval(risk["given"], 2),
            "-" if risk["price"] is None else f"{1000 * prices.get(risk['price'], float('nan')):.2f}",
        ]
        for risk in result.summary["risks"].values()
    ]
    columns = ["known before", "rank correlation", "given the length", "ms"]
    console.table("How well each measure ranks the change of the chosen answers; ms: time per pair", columns, rows)


def _to_json(result: DiagnosisResult) -> dict[str, Any]:
    return {
        "label": result.label,
        "path": str(result.path),
        "tokens_path": str(result.tokens_path),
        "summary": result.summary,
    }
