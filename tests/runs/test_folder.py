from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpotool.errors import DpotoolError
from dpotool.runs.folder import RunFolder, list_runs, newest_run
from dpotool.runs.locks import holding
from dpotool.runs.manifest import collect_manifest
from dpotool.runs.summaries import summary_path


def make_run(path: Path, kind: str = "train", created: str | None = None, **config: object) -> RunFolder:
    run = RunFolder(path)
    manifest = collect_manifest(kind, config)
    run.write_manifest(manifest | ({"created": created} if created else {}))
    return run


def test_a_manifest_is_read_back_and_updated(tmp_path):
    run = make_run(tmp_path / "a", loss="shift", lambda_=0.9, learning_rate=5e-7, output=Path("runs/a"))

    run.update_manifest(status="finished", fingerprints={"model": "12"})

    manifest = run.read_manifest()
    assert manifest["config"] == {"loss": "shift", "lambda_": 0.9, "learning_rate": 5e-7, "output": "runs/a"}
    assert (manifest["status"], manifest["fingerprints"]) == ("finished", {"model": "12"})


def test_paths_inside_are_where_the_design_says(tmp_path):
    run = RunFolder(tmp_path)

    assert run.table_path("score", "tldr_test", "train") == tmp_path / "scores" / "tldr_test-train.parquet"
    assert run.table_path("score", "demo", "test", variant="limit-5").name == "demo-test-limit-5.parquet"
    assert run.table_path("token", "demo", "test", format="csv") == tmp_path / "scores" / "demo-test.tokens.csv"
    assert run.table_path("theory", "demo", "test") == tmp_path / "theory" / "demo-test.parquet"
    assert summary_path(run.table_path("theory", "v1.5", "test")) == tmp_path / "theory" / "v1.5-test.summary.json"
    assert (
        run.table_path("score", "trl-lib/ultra feedback", "test[:5%]").name == "trl-lib-ultra-feedback-test-5.parquet"
    )
    assert run.table_path("score", "../..", "a/../b").parent == tmp_path / "scores"


RUN = "kind: train\nstatus: finished\ncreated: x\n"
BLEND = f"{RUN}config: {{}}\nblend: {{first: a, "


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty or cut short"),
        ("kind: train\nstatus: finished\ncrea", "cannot be read (while scanning a simple key"),
        ("kind: train\nstatus: finished\n", "lacks created, config"),
        ("kind: tuning\nstatus: finished\ncreated: x\nconfig: {}\n", "kind is 'tuning', not one of train, score"),
        ("kind: train\nstatus: ok\ncreated: x\nconfig: {}\n", "status is 'ok', not one of running, finished"),
        (f"{RUN}config: 3\n", "config: is not what it has to be; expected a mapping, got 3."),
        (
            f"{RUN}config: {{model: [a]}}\n",
            "config.model: is not what it has to be; expected text or nothing, got",
        ),
        (
            f"{RUN}config: {{model: {{a: 1}}}}\n",
            "config.model: is not what it has to be; expected text",
        ),
        (f"{RUN}config: {{odd: {{a: 1}}}}\n", "config.odd: is not what it has to be; expected"),
        (f"{RUN}config: {{beta: .nan}}\n", "config.beta: is not what it has to be; expected a number > 0, got nan."),
        (f"{RUN}config: {{beta: 0}}\n", "config.beta: is not what it has to be; expected a number > 0, got 0."),
        (f"{RUN}config: {{learning_rate: .inf}}\n", "config.learning_rate: is not a finite number."),
        (f"{RUN}config: {{loss: 'not a loss'}}\n", "config.loss: is not what it has to be; expected text matching"),
        (f"{RUN}config: {{limit: many}}\n", "config.limit: is not what it has to be; expected a whole number"),
        (f"{RUN}config: {{}}\ndata: [1]\n", "data: is not what it has to be; expected a mapping, got [1]."),
        (f"{RUN}config: {{}}\ndata: {{train: {{n_pairs: x}}}}\n", "data.train.n_pairs: is not what it has to be"),
        (f"{RUN}config: &a {{}}\ndata: {{x: *a}}\n", "cannot be read (line 5 refers to another place by an alias"),
        (f"{RUN}config: {'[' * 100_000}", "cannot be read (it is nested too deeply)"),
        (f"{RUN}config: {{seed: {'9' * 5000}}}", "cannot be read (line 4 holds a number of 5000 digits)"),
        (f"{RUN}config: {{seed: 0x{'f' * 5000}}}", "cannot be read (line 4 holds a number of 5002 digits)"),
        ("\x00", "cannot be read"),
        ("kind: blend\nstatus: finished\ncreated: x\nconfig: {}\n", "lacks blend"),
        (f"{RUN}config: {{}}\nblend: {{second: b, weight: 1}}\n", "blend: lacks first; got"),
        (f"{BLEND}second: null, weight: 0.5, lambda: 1}}\n", "blend.second: is not what it has to be; expected text"),
        (f"{BLEND}second: b, weight: 2, lambda: 1}}\n", "blend.weight: is not what it has to be; expected a number <="),
        (f"{BLEND}second: b, weight: .nan, lambda: 1}}\n", "blend.weight: is not what it has to be; expected a number"),
        (f"{BLEND}second: b, weight: 1, lambda: [1]}}\n", "blend.lambda: is not what it has to be; expected a number"),
    ],
)
def test_a_broken_manifest_is_one_line_with_a_remedy(tmp_path, text, says):
    (tmp_path / "run.yaml").write_text(text)

    with pytest.raises(DpotoolError) as caught:
        RunFolder(tmp_path).read_manifest()

    assert str(caught.value).startswith(f"{tmp_path / 'run.yaml'}: {says}")
    assert str(caught.value).endswith("Run that command again, or delete the folder")
    assert "\n" not in str(caught.value)


def test_a_folder_without_manifest_is_no_run_folder(tmp_path):
    with pytest.raises(DpotoolError, match=f"{tmp_path}: not a run folder, it has no run.yaml. Name the output folder"):
        RunFolder(tmp_path).read_manifest()


def test_metrics_are_appended_and_read_in_order(tmp_path):
    run = RunFolder(tmp_path / "new")
    rows = [{"step": 1, "logps/chosen": -1.5}, {"step": 2, "a\u2028b": 0.5}]
    for row in rows:
        run.append_metrics(row)
    run.append_metrics({"step": 3, "loss": float("nan")})

    assert run.read_metrics() == [*rows, {"step": 3, "loss": None}]


def test_a_torn_last_line_is_left_out_with_a_warning_and_does_not_eat_the_next(tmp_path):
    run = RunFolder(tmp_path)
    run.append_metrics({"step": 1})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 2, "lo')

    with pytest.warns(UserWarning, match=r"metrics.jsonl: 1 half-written line left out"):
        assert run.read_metrics() == [{"step": 1}]
    run.append_metrics({"step": 3})
    with pytest.warns(UserWarning, match="1 half-written"):
        assert run.read_metrics() == [{"step": 1}, {"step": 3}]


def test_a_name_that_is_no_utf8_is_written_out(tmp_path):
    assert RunFolder(tmp_path / "x\udcff").name == r"x\udcff"


def test_resuming_drops_what_was_logged_after_the_checkpoint(tmp_path):
    run = RunFolder(tmp_path)
    for step in (0, 5, 10, 10, 15):
        run.append_metrics({"step": step})

    run.truncate_metrics(10)

    assert [row["step"] for row in run.read_metrics()] == [0, 5, 10, 10]


def test_truncating_metrics_that_do_not_exist_does_nothing(tmp_path):
    RunFolder(tmp_path).truncate_metrics(3)

    assert not list(tmp_path.iterdir())


def test_missing_metrics_are_one_line(tmp_path):
    with pytest.raises(DpotoolError, match=r"metrics.jsonl: cannot be read. Only runs of `dpotool train` log metrics"):
        RunFolder(tmp_path).read_metrics()


def test_a_circle_of_links_is_no_run_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    folder = RunFolder(tmp_path / "a")
    assert folder.holder is None and folder.list_tables("score") == []
    for reading in (folder.read_manifest, lambda: holding(folder.path, "score").__enter__()):
        with pytest.raises(DpotoolError, match=str(folder.path)):
            reading()


def test_a_long_name_of_data_leaves_room_for_endings(tmp_path: Path) -> None:
    """Two that differ at their ends alone keep two names; a name of letters of several bytes is cut between them."""
    names = [
        RunFolder(tmp_path).table_path("token", data, "test").name for data in ("x" * 240, "x" * 240 + "y", "é" * 120)
    ]
    assert len(set(names)) == 3 and all(len(f".tmp-{name}.schema.json".encode()) < 255 for name in names)
    assert names[0].startswith("x" * 150) and names[0].endswith(".tokens.parquet")
    assert RunFolder(tmp_path).table_path("score", "y" * 150, "test").name == "y" * 150 + "-test.parquet"


def test_score_tables_are_listed_newest_first_without_token_tables_and_summaries(tmp_path):
    import os

    run = RunFolder(tmp_path)
    (tmp_path / "scores").mkdir()
    names = ["b-test.parquet", "a-test.csv", "a-test.csv.schema.json", "a-test.summary.json", "a-test.tokens.parquet"]
    for age, name in enumerate(names):
        (tmp_path / "scores" / name).write_text("")
        os.utime(tmp_path / "scores" / name, ns=(age, age))

    assert [path.name for path in run.list_tables("score")] == ["a-test.csv", "b-test.parquet"]
    assert run.list_tables("theory") == []


def test_runs_are_found_newest_first_with_the_cells_of_a_sweep_but_not_checkpoints(tmp_path):
    make_run(tmp_path / "old", created="2024-01-01T00:00:00+00:00")
    make_run(tmp_path / "sweep", "sweep", created="2024-01-02T00:00:00+00:00")
    make_run(tmp_path / "sweep" / "shift-0.9", created="2024-01-03T00:00:00+00:00")
    make_run(tmp_path / "old" / "checkpoint-10", created="2024-01-04T00:00:00+00:00")

    assert [run.name for run in list_runs(tmp_path)] == ["shift-0.9", "sweep", "old"]
    assert [run.name for run in list_runs(tmp_path, "train")] == ["shift-0.9", "old"]
    assert newest_run(tmp_path, "sweep").name == "sweep"


def test_a_broken_run_is_left_out_of_the_list_with_a_warning_that_names_it(tmp_path):
    make_run(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.yaml").write_text("")

    with pytest.warns(UserWarning, match=r"left out: .*bad/run.yaml: is empty or cut short"):
        assert [run.name for run in list_runs(tmp_path)] == ["good"]


def test_no_run_at_all_says_what_makes_one(tmp_path):
    with pytest.raises(DpotoolError, match=f"{tmp_path / 'runs'}: no train run here. Run `dpotool train` first"):
        newest_run(tmp_path / "runs", "train")


def test_manifests_hold_no_python_objects(tmp_path):
    run = make_run(tmp_path, betas=(0.1, 0.2))

    assert json.dumps(run.read_manifest())
    assert "!!python" not in run.manifest_path.read_text()


def test_a_folder_that_is_called_as_its_tables_are_holds_them_itself(tmp_path):
    scores = RunFolder(tmp_path / "scores")
    table = scores.table_path("score", "demo", "test")
    assert table == tmp_path / "scores" / "demo-test.parquet"
    assert scores.table_path("theory", "demo", "test").parent == tmp_path / "scores" / "theory"
    table.parent.mkdir()
    table.touch()
    assert scores.list_tables("score") == [table]
    assert RunFolder.of_table(table).path == tmp_path, "no run yet"
    scores.manifest_path.touch()
    assert RunFolder.of_table(table) == scores
    scores.metrics_path.touch()
    assert scores.list_tables("score") == [], "a training logged there"


@pytest.mark.parametrize(
    "odd", [{"step": "x"}, {"step": -1}, {"step": [1]}, {"loss": "low"}, {"loss": {}}, {"step": 1e300}]
)
def test_a_logged_row_of_anything_but_numbers_is_left_out(tmp_path, odd):
    folder = RunFolder(tmp_path)
    folder.metrics_path.write_text(json.dumps({"step": 1, "loss": None}) + "\n" + json.dumps({"step": 2} | odd) + "\n")
    with pytest.warns(UserWarning, match="1 half-written line left out"):
        assert folder.read_metrics() == [{"step": 1, "loss": None}]
