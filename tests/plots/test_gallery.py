from __future__ import annotations

from dataclasses import replace

import pytest
from scored_runs import write_scored_run
from synthetic_frames import make_gap_summary, make_prediction_frame, make_score_frame, make_theory_frame

from dpotool.cli.reference import write_reference
from dpotool.errors import DpotoolError
from dpotool.plots.forecast import plot_forecast
from dpotool.plots.gallery import draw
from dpotool.plots.registry import PLOTS, Drawing, PlotKind, find_plots, get_plot, register_plot
from dpotool.plots.scene import read_scene
from dpotool.plots.theme import make_figure
from dpotool.report.page import write_report
from dpotool.runs.folder import RunFolder
from dpotool.runs.manifest import collect_manifest
from dpotool.runs.schemas import PREDICTION_SCHEMA, SCORE_SCHEMA, THEORY_SCHEMA
from dpotool.runs.summaries import write_summary
from dpotool.runs.tables import write_table
from dpotool.settings.reading import PlotConfig, ReportConfig
from dpotool.theory.advice import advise


def make_folder(path, kind="theory", **config) -> RunFolder:
    run = RunFolder(path)
    run.write_manifest(collect_manifest(kind, {"seed": 42, "model": "m", **config}))
    return run


def add_theory(run: RunFolder, summary: dict | None, *, split="train") -> None:
    path = run.table_path("theory", "demo", split)
    about = {"model": "m", "label": "m", "data": "demo", "split": split, "n_excluded": 1, "at_reference": True}
    write_table(make_theory_frame(40), path, THEORY_SCHEMA, about)
    if summary is not None:
        write_summary(path, summary)


def add_prediction(run: RunFolder) -> None:
    interval = {"value": 0.9, "ci_low": 0.8, "ci_high": 0.95}
    found = dict.fromkeys(("correlation", "slope", "same_sign"), interval)
    about = {"from": "m", "to": "runs/dpo", "label": "dpo", "at": "to", "data": "demo", "split": "test", "n": 30}
    path = write_table(
        make_prediction_frame(30), run.table_path("prediction", "demo", "test"), PREDICTION_SCHEMA, about
    )
    write_summary(path, about | {"chosen": found, "rejected": found})


def add_scores(run: RunFolder, **options) -> None:
    about = {"data": "demo", "split": "test", "beta": 0.1}
    write_table(make_score_frame(40, **options), run.table_path("score", "demo", "test"), SCORE_SCHEMA, about)


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
        ("gap", ["gap.png", "gap.pdf", "gap.svg"]),
        ("gap-ladder", ["gap-ladder.png", "gap-ladder.pdf", "gap-ladder.svg"]),
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
        return plot_forecast(advice, outcomes=outcomes, **title)

    monkeypatch.setattr("dpotool.plots.forecast.plot_forecast", plot)
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


def test_a_series_of_checkpoints_is_titled_by_its_run(tmp_path):
    frame = make_score_frame(6)
    for step in (1, 2):
        write_scored_run(tmp_path / f"s{step}", frame=frame, kind="score", model=f"org/run/checkpoint-{step}")
    write_scored_run(tmp_path / "else", frame=frame, kind="score", model="org/b")
    both = [str(tmp_path / "s1"), str(tmp_path / "s2")]
    assert read_scene(both, PlotConfig()).title["model"] == "org/run"
    assert read_scene(both[1:], PlotConfig()).title["model"] == "org/run/checkpoint-2"
    assert read_scene([*both, str(tmp_path / "else")], PlotConfig()).title["model"] == "org/run/checkpoint-1"


def test_a_band_needs_no_summary_but_gap_and_forecast_do(tmp_path):
    run = make_folder(tmp_path / "run")
    add_theory(run, None)

    assert draw_names("band", run) == ["band.png"]
    for kind, entry in (("gap", "gaps"), ("forecast", "advice")):
        with pytest.raises(DpotoolError, match=rf"no theory summary with {entry} here. Run `dpotool theory-gap` again"):
            draw_names(kind, run)


@pytest.mark.parametrize("kind", [kind.name for kind in find_plots().values() if kind.needs != "prediction"])
def test_missing_tables_are_one_line_with_the_command_that_makes_them(tmp_path, kind):
    needed = (
        r"no (scores|theory table|diagnosis) here. Run `dpotool (score|theory-gap|diagnose).*` first|"
        r"no judgments here. Run `dpotool generate .*`, then `dpotool judge .*`|"
        r"no ratings here. Run `dpotool judge .* --bench mt-bench` first"
    )
    with pytest.raises(DpotoolError, match=needed):
        draw_names(kind, make_folder(tmp_path / "run"))


def test_a_missing_prediction_is_one_line_too(tmp_path):
    with pytest.raises(DpotoolError, match=r"no prediction table here. Run `dpotool predict .*run` first"):
        draw_names("prediction", make_folder(tmp_path / "run"))


def test_all_draws_what_it_can_and_says_what_not(tmp_path):
    run = make_folder(tmp_path / "run")
    add_theory(run, make_gap_summary(is_verified=False))

    gallery = draw("all", [str(run.path)], PlotConfig())

    assert [path.stem for path in gallery.paths] == ["theory", "band"]
    assert set(gallery.skipped) == {kind.name for kind in find_plots().values()} - {"theory", "band", "gap"}


def test_all_leaves_out_the_gaps_and_begins_with_the_most_telling(tmp_path, only_names):
    dpo, shift = (
        make_folder(tmp_path / name, "train", loss=name, lambda_=0.75, lambda_schedule="constant", beta=0.1)
        for name in ("dpo", "shift")
    )
    add_scores(dpo, seed=1)
    add_scores(shift, seed=2)
    add_theory(dpo, make_summary())

    gallery = draw("all", [str(dpo.path), str(shift.path)], PlotConfig())

    assert [path.stem for path in gallery.paths] == [
        "quadrants", "tradeoff", "tradeoff-margin", "accuracy", "displacement", "margin", "distributions", "forecast",
        "theory", "band", "gap-ladder",
    ]  # fmt: skip
    lacking = ("log", "prediction", "diagnosis", "judgments", "ratings")
    assert (
        set(gallery.skipped) == {kind.name for kind in find_plots().values() if kind.needs in lacking} >= {"trajectory"}
    )


def draw_counts(scene) -> Drawing:
    figure = make_figure(3, 2)
    figure.add_subplot().bar(range(len(scene.need_runs())), [run.n for run in scene.runs])
    return Drawing(figure, "How many pairs were scored: " + ", ".join(str(run.n) for run in scene.runs) + ".")


@pytest.fixture
def counts():
    """A kind of picture that is made outside of the package."""
    kind = PlotKind(
        "counts", 15, "scores", "how many pairs were scored", "Pairs scored.", draw_counts, section="Pairs scored"
    )
    yield register_plot(kind)
    del PLOTS["counts"]


def test_a_picture_from_elsewhere_is_found_by_plot_report_and_reference(tmp_path, counts):
    run = make_folder(tmp_path / "dpo", "train", loss="dpo", beta=0.1)
    add_scores(run)

    assert draw_names("counts", run) == ["counts.png"]
    assert draw("all", [str(run.path)], PlotConfig()).paths[1].stem == "counts"
    page = write_report([str(run.path)], ReportConfig(output=str(tmp_path / "r.html"), pairs=0)).page
    [section] = [section for section in page.sections if section.id == "counts"]
    [picture] = section.blocks
    assert (section.title, picture.alt, picture.caption) == (
        "Pairs scored", "How many pairs were scored: 40.", "Pairs scored.",
    )  # fmt: skip
    assert "| `counts` | how many pairs were scored |" in write_reference()


def test_a_taken_name_an_unknown_need_and_an_unknown_kind_are_refused(counts):
    with pytest.raises(ValueError, match="there is a picture named counts already"):
        register_plot(counts)
    with pytest.raises(ValueError, match="'score' is none of scores, log"):
        register_plot(replace(counts, name="other", needs="score"))
    with pytest.raises(DpotoolError, match=r"unknown picture 'quadrant'\. Did you mean 'quadrants'"):
        get_plot("quadrant")


def test_every_kind_says_all_that_others_say_of_it():
    for kind in find_plots().values():
        assert kind.caption.endswith(".") and not kind.shows.endswith("."), kind.name
    ranks = [kind.rank for kind in find_plots().values()]
    assert len(set(ranks)) == len(ranks)
