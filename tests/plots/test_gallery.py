from __future__ import annotations

import pytest
from synthetic_frames import make_gap_summary, make_prediction_frame, make_score_frame, make_theory_frame

from dpotool.errors import DpotoolError
from dpotool.plots.config import PlotConfig
from dpotool.plots.gallery import KINDS, draw
from dpotool.runs.atomic import write_json
from dpotool.runs.folder import RunFolder, summary_path
from dpotool.runs.manifest import collect_manifest
from dpotool.runs.schemas import PREDICTION_SCHEMA, SCORE_SCHEMA, THEORY_SCHEMA
from dpotool.runs.tables import write_table
from dpotool.theory.advice import advise


def make_folder(path, kind="theory", **config) -> RunFolder:
    run = RunFolder(path)
    run.write_manifest(collect_manifest(kind, {"seed": 42, "model": "m", **config}))
    return run


def add_theory(run: RunFolder, summary: dict | None, *, split="train") -> None:
    path = run.theory_path("demo", split)
    about = {"model": "m", "label": "m", "data": "demo", "split": split, "n_excluded": 1, "at_reference": True}
    write_table(make_theory_frame(40), path, THEORY_SCHEMA, about)
    if summary is not None:
        write_json(summary_path(path), summary)


def add_prediction(run: RunFolder) -> None:
    interval = {"value": 0.9, "ci_low": 0.8, "ci_high": 0.95}
    found = dict.fromkeys(("correlation", "slope", "same_sign"), interval)
    about = {"from": "m", "to": "runs/dpo", "label": "dpo", "at": "to", "data": "demo", "split": "test", "n": 30}
    path = write_table(make_prediction_frame(30), run.prediction_path("demo", "test"), PREDICTION_SCHEMA, about)
    write_json(summary_path(path), about | {"chosen": found, "rejected": found})


def add_scores(run: RunFolder, **options) -> None:
    about = {"data": "demo", "split": "test", "beta": 0.1}
    write_table(make_score_frame(40, **options), run.scores_path("demo", "test"), SCORE_SCHEMA, about)


def make_summary() -> dict:
    frame = make_theory_frame(40)
    forecast = {f: (frame["u"].to_numpy() * 0 + 1 - 2 * f, frame["u"].to_numpy() * 0 - 2 * f) for f in (0.5, 1.0)}
    bands = (frame["band_low"].to_numpy(), frame["band_high"].to_numpy())
    advice = {"sgd": advise(forecast, bands, optimizer="sgd", n_resamples=100)}
    return make_gap_summary() | {"advice": advice, "advice_from": "sgd"}


def draw_names(kind: str, *folders: RunFolder, **options) -> list[str]:
    gallery = draw(kind, [str(folder.path) for folder in folders], PlotConfig(**options))
    assert all(path.stat().st_size > 0 for path in gallery.paths)
    return [path.name for path in gallery.paths]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("theory", ["theory.png", "theory.pdf", "theory.svg"]),
        ("band", ["band.png", "band.pdf", "band.svg"]),
        ("gap", [f"{stem}.{format_}" for stem in ("gap", "gap-ladder") for format_ in ("png", "pdf", "svg")]),
        ("forecast", ["forecast.png", "forecast.pdf", "forecast.svg"]),
        ("prediction", ["prediction.png", "prediction.pdf", "prediction.svg"]),
    ],
)
def test_pictures_of_theory_are_made_from_its_tables_in_every_format(tmp_path, kind, names):
    run = make_folder(tmp_path / "run")
    add_theory(run, make_summary())
    add_prediction(run)

    assert draw_names(kind, run, format="png,pdf,svg") == names


def test_a_forecast_shows_the_runs_of_the_same_model_and_no_others(tmp_path, monkeypatch):
    seen = {}

    def plot(advice, *, outcomes, **title):
        seen["outcomes"] = outcomes
        from dpotool.plots.forecast import plot_forecast

        return plot_forecast(advice, outcomes=outcomes, **title)

    monkeypatch.setattr("dpotool.plots.gallery.plot_forecast", plot)
    theory = make_folder(tmp_path / "theory")
    add_theory(theory, make_summary())
    sweep = [
        make_folder(tmp_path / "dpo", "train", loss="dpo", beta=0.1),
        make_folder(tmp_path / "shift", "train", loss="shift", lambda_=0.75, lambda_schedule="constant", beta=0.1),
        make_folder(tmp_path / "else", "train", model="another", loss="dpo", beta=0.1),
    ]
    for number, run in enumerate(sweep):
        add_scores(run, seed=number)

    assert draw_names("forecast", theory, *sweep, output=str(tmp_path)) == ["forecast.png"]
    assert sorted(seen["outcomes"]["lambda"]) == [0.75, 1.0]
    draw_names("forecast", theory)
    assert seen["outcomes"] is None


def test_the_table_is_the_one_whose_summary_has_what_is_needed(tmp_path):
    run = make_folder(tmp_path / "run")
    add_theory(run, make_summary(), split="train")
    add_theory(run, {"n": 40}, split="test")

    assert draw_names("forecast", run) == ["forecast.png"]
    with pytest.raises(DpotoolError, match="no theory summary with advice here"):
        draw_names("forecast", run, split="test")


def test_a_band_needs_no_summary_but_gap_and_forecast_do(tmp_path):
    run = make_folder(tmp_path / "run")
    add_theory(run, None)

    assert draw_names("band", run) == ["band.png"]
    for kind, entry in (("gap", "gaps"), ("forecast", "advice")):
        with pytest.raises(DpotoolError, match=rf"no theory summary with {entry} here. Run `dpotool theory-gap` again"):
            draw_names(kind, run)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "prediction"])
def test_missing_tables_are_one_line_with_the_command_that_makes_them(tmp_path, kind):
    with pytest.raises(DpotoolError, match=r"no (scores|theory table) here. Run `dpotool (score .*|theory-gap)` first"):
        draw_names(kind, make_folder(tmp_path / "run"))


def test_a_missing_prediction_is_one_line_too(tmp_path):
    with pytest.raises(DpotoolError, match=r"no prediction table here. Run `dpotool predict .*run` first"):
        draw_names("prediction", make_folder(tmp_path / "run"))


def test_all_draws_what_it_can_and_says_what_not(tmp_path):
    run = make_folder(tmp_path / "run")
    add_theory(run, make_gap_summary(is_verified=False))

    gallery = draw("all", [str(run.path)], PlotConfig())

    assert [path.stem for path in gallery.paths] == ["theory", "band", "gap"]
    assert set(gallery.skipped) == set(KINDS) - {"theory", "band", "gap"}
