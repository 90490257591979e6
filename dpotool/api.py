"""The verbs of the command line for a notebook: `import dpotool`, then DataFrames, figures and losses.

Every function takes the settings of the command of its name as keyword arguments, spelled as in a config file
(`max_length=512`), and defaults to the same. Nothing is printed. What a command would write to disk is written, so that
other commands find it. `import dpotool` imports no torch; a function imports what it needs when it is called.

These names are stable: they change only with a line in CHANGELOG.md and, after 1.0, with a major version. Everything
that is not in `dpotool.__all__` is private. Where a room of the package has a verb's name, the function says what it
acts on: `compare_runs`, `run_sweep`, `write_report`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dpotool.settings.shared import DataSettings

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float
    from matplotlib.figure import Figure
    from torch import Tensor

    from dpotool.compare.findings import Findings
    from dpotool.compare.scored_run import ScoredRun
    from dpotool.gradients.prediction import PredictionResult
    from dpotool.judging.answering import GenerateResult
    from dpotool.judging.run import JudgeResult
    from dpotool.measures.blend import BlendResult
    from dpotool.measures.diagnose import DiagnosisResult
    from dpotool.report.page import Report
    from dpotool.sweep.run import SweepResult
    from dpotool.training.run import TrainResult


def load_pairs(
    data: str = "builtin:demo", *, seed: int = 42, default_split: str = "test", **settings: Any
) -> pd.DataFrame:
    """Returns preference pairs as text, a row per pair: `pair_id`, `prompt`, `chosen`, `rejected`, and their scores.

    Args:
        data: whatever `--data` takes: a file, a saved dataset, a hub id or builtin:demo.
        settings: `split`, `limit`, `test_fraction`, `split_seed`, `skip_invalid`.

    Raises:
        DpotoolError: the data cannot be used, or a row is malformed.
    """
    import pandas as pd

    from dpotool.data.pair_sets import load_rows

    found = load_rows(DataSettings(data=data, **settings), seed=seed, default_split=default_split)
    columns = ("pair_id", "prompt", "chosen", "rejected", "score_chosen", "score_rejected")
    return pd.DataFrame([{name: asdict(pair)[name] for name in columns} for pair in found.pairs], columns=columns)


def train(**settings: Any) -> TrainResult:
    """Trains a model as `dpotool train` does; returns the run folder (`.folder.path`) and whether it was interrupted.

    Args:
        settings: `model`, `data`, `loss`, `lambda_`, `output`, ... An option of the loss stands in `loss_options`.

    Raises:
        DpotoolError: settings, data or model cannot be used, or training turned non-finite.
    """
    from dpotool.training.config import TrainConfig
    from dpotool.training.run import train as run

    return run(TrainConfig(**settings))


def run_sweep(**settings: Any) -> SweepResult:
    """Trains and scores several settings from one start; `.table` has a row per run, `.folder` is what others take.

    Args:
        settings: `lambdas`, `losses`, `seeds`, `output`, ... and what `train` takes, for every run alike.

    Raises:
        DpotoolError: settings, data or model cannot be used. A run that fails is listed in `.failures` instead.
    """
    from dpotool.sweep.config import SweepConfig
    from dpotool.sweep.run import sweep

    return sweep(SweepConfig(**settings))


def score(*models: str, **settings: Any) -> pd.DataFrame:
    """Scores models on preference pairs; returns a row per model and pair, with the model's label in `model`.

    Columns as in the score table (docs/run-folder.md): log-probabilities in nats, summed over completion tokens;
    rewards, margins and displacement (policy minus reference).

    Raises:
        DpotoolError: a model, its reference or the data cannot be used.
    """
    import pandas as pd

    from dpotool.measures.run import score_models
    from dpotool.settings.scoring import ScoreConfig

    results = score_models(models, ScoreConfig(**settings))
    return pd.concat([result.frame.assign(model=result.label) for result in results], ignore_index=True)


def diagnose(model: str, **settings: Any) -> DiagnosisResult:
    """Looks inside the pairs: `.frame` has a row per pair, `.tokens` a row per token, `.summary` what follows.

    Raises:
        DpotoolError: the model, its reference or the data cannot be used.
    """
    from dpotool.measures.diagnose import diagnose_models
    from dpotool.settings.scoring import DiagnoseConfig

    return diagnose_models([model], DiagnoseConfig(**settings))[0]


def blend(first: str, second: str, **settings: Any) -> BlendResult:
    """Scores models whose weights are averages of two trained ones; `.points` and `.scores` go together, one per blend.

    Args:
        settings: `at` (lambdas) or `weight` (shares of the second model, 0 to 1), and `write` to save one of them.

    Raises:
        DpotoolError: the two cannot be blended, or the data cannot be used.
    """
    from dpotool.measures.blend import score_blends
    from dpotool.settings.scoring import BlendConfig

    return score_blends(first, second, BlendConfig(**settings))


def predict(end: str, start: str | None = None, **settings: Any) -> PredictionResult:
    """Predicts from gradients how far each pair moved between two checkpoints: `.frame` by pair (nats), `.summary`.

    Args:
        end: the later checkpoint.
        start: the earlier one; by default the model that the run of `end` started from.

    Raises:
        DpotoolError: the checkpoints cannot be compared, or the data cannot be used.
    """
    from dpotool.gradients.prediction import run_prediction
    from dpotool.settings.scoring import PredictConfig

    return run_prediction(end, start, PredictConfig(**settings))


def generate(*models: str, **settings: Any) -> list[GenerateResult]:
    """Lets models answer prompts; of each model `.answers` and the `.summary` of length, endings and repetition.

    Raises:
        DpotoolError: a model, the questions or the server cannot be used.
    """
    from dpotool.judging.answering import expand_models, generate_answers
    from dpotool.settings.answers import GenerateConfig

    return generate_answers(expand_models(models), GenerateConfig(**settings))


def judge(*answers: str, **settings: Any) -> list[JudgeResult]:
    """Lets a judge compare answers with a baseline's; of each model `.frame` by question and the `.summary`.

    The summary has the win rate in its three forms (0 to 1, with 95 % intervals over questions), and the p-value.

    Args:
        answers: run folders for which `generate` has made answers (a sweep stands for its runs), or files of answers.

    Raises:
        DpotoolError: there are no answers to compare, or the judge cannot be used.
    """
    from dpotool.judging.answering import expand_models
    from dpotool.judging.run import judge_answers
    from dpotool.settings.answers import JudgeConfig

    return judge_answers(expand_models(answers), JudgeConfig(**settings))


def gradient_products(model: str = "builtin:demo", **settings: Any) -> pd.DataFrame:
    """Returns the theory table, a row per pair: <W, L>, |W|^2, |L|^2 (nats^2), u, v, band and entanglement.

    W and L are the gradients of log pi(chosen) and log pi(rejected) over the trained parameters.

    Raises:
        DpotoolError: the model or the data cannot be used.
    """
    from dpotool.gradients.run import run_theory
    from dpotool.settings.scoring import TheoryConfig

    return run_theory(TheoryConfig(model=model, **settings)).frame


def loss(name: str, **options: Any) -> Callable[..., Float[Tensor, " batch"]]:
    """Returns a loss for your own training loop: a function of per-pair log-probabilities, one loss per pair.

    It takes the fields of `losses.spec.PairLogps` by name, each of shape (batch,): `policy_chosen_logps`,
    `policy_rejected_logps`, `reference_chosen_logps`, `reference_rejected_logps` (nats, summed over completion tokens),
    and `chosen_tokens`, `rejected_tokens`, `score_chosen`, `score_rejected` where the loss needs them; and `shift`, the
    factor on the rejected reward, for the loss `shift`. Differentiable in the policy's.

    Args:
        options: of that loss, e.g. `beta=0.1`; `dpotool train --loss NAME --help` lists them.

    Raises:
        DpotoolError: no such loss or option; when called, something that the loss needs is missing.
    """
    from dpotool.losses.registry import get_loss
    from dpotool.losses.spec import PairLogps

    spec = get_loss(name)
    resolved = spec.resolve_options(**options)

    def compute(*, shift: float | Tensor = 1.0, **pairs: Tensor) -> Tensor:
        return spec.compute(PairLogps(**pairs), resolved, shift)

    compute.__doc__ = f"{spec.name}: the loss of every pair, not reduced."
    return compute


def open_scores(path: str) -> ScoredRun:
    """Opens a score table with everything that is derived from it: `.scored`, `.columns`, `.excluded`, `.about`.

    Raises:
        DpotoolError: it is no score table, or cannot be read.
    """
    from pathlib import Path

    from dpotool.compare.scored_run import ScoredRun

    return ScoredRun.open(Path(path))


def compare_runs(*runs: str, **settings: Any) -> Findings:
    """Compares scored runs pair by pair: differences from the baseline, verdicts, recommendation (`.to_dict()`).

    Args:
        runs: run folders; a sweep's folder stands for its runs.
        settings: `baseline`, `data`, `split`, `limit`, `seed`.

    Raises:
        DpotoolError: a path is no run, nothing is scored, or the runs were scored on different data.
    """
    from dpotool.compare.findings import find_out

    return find_out(runs, **settings)


def verdict(run: str, **settings: Any) -> Mapping[str, Any] | None:
    """Returns the verdict on one scored run with the numbers behind it; None where something is missing for one.

    Raises:
        DpotoolError: as `compare_runs`.
    """
    findings = compare_runs(run, **settings)
    found = findings.to_dict()["models"][0]["verdict"]
    return None if found is None else dict(found)


def plot(kind: str, *runs: str, **settings: Any) -> Figure:
    """Returns a figure of one kind (`dpotool plot --help` lists them); a notebook displays it.

    Raises:
        DpotoolError: an unknown kind, or the runs lack what it is drawn from.
    """
    from dpotool.plots.registry import get_plot
    from dpotool.plots.scene import read_scene
    from dpotool.settings.reading import PlotConfig

    return get_plot(kind).draw(read_scene(runs, PlotConfig(**settings))).figure


def write_report(*runs: str, **settings: Any) -> Report:
    """Writes the report on these runs and returns it (`.path`, `.findings`).

    Args:
        settings: `output`, `title`, `pairs`, `baseline`, ...

    Raises:
        DpotoolError: as `compare_runs`, or the output cannot be written.
    """
    from dpotool.report import page
    from dpotool.report.pairs import find_texts
    from dpotool.settings.reading import ReportConfig

    return page.write_report(runs, ReportConfig(**settings), find_texts=find_texts)
