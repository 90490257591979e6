"""`diagnose` from end to end: its sums are score's, its parts add up, layouts and batches change nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from tiny_models import save_tiny_model, write_pairs
from typer.testing import CliRunner

from dpotool.cli.app import app
from dpotool.compare.diagnosis import SPANS, say_diagnosis, summarize_diagnosis
from dpotool.measures.diagnose import DiagnosisResult, diagnose_models
from dpotool.measures.diagnosis_tables import spell_tokens
from dpotool.measures.mass import PARTS
from dpotool.measures.run import score_models
from dpotool.runs.schemas import DIAGNOSIS_SCHEMA, DIAGNOSIS_TOKEN_SCHEMA
from dpotool.settings.scoring import DiagnoseConfig, ScoreConfig


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "policy": str(save_tiny_model(folder / "policy", seed=1)),
        "reference": str(save_tiny_model(folder / "reference", seed=0)),
        "data": str(write_pairs(folder / "pairs.jsonl", 12)),
    }


def diagnose(models: dict[str, str], output: Path, **others: object) -> DiagnosisResult:
    settings = {"data": models["data"], "reference": models["reference"], "dtype": "float64", "output": str(output)}
    return diagnose_models([models["policy"]], DiagnoseConfig(**(settings | others)))[0]  # type: ignore[arg-type]


def test_sums_are_those_of_score_and_parts_add_up(models: dict[str, str], tmp_path: Path) -> None:
    result = diagnose(models, tmp_path / "out", rejected_mass=True)
    settings = {"data": models["data"], "reference": models["reference"], "dtype": "float64"}
    [scored] = score_models([models["policy"]], ScoreConfig(**settings, output=str(tmp_path / "scores")))
    for side in ("chosen", "rejected"):
        np.testing.assert_allclose(
            result.frame[f"{side}_displacement"], scored.frame[f"{side}_displacement"], rtol=1e-9
        )
        parts = sum(result.frame[f"{side}_{span}"] for span in SPANS)
        np.testing.assert_allclose(parts, result.frame[f"{side}_displacement"], atol=1e-10)
        mine = result.tokens[result.tokens["side"] == side]
        sums = (mine["logp"] - mine["ref_logp"]).groupby(mine["pair_id"]).sum()
        np.testing.assert_allclose(sums.to_numpy(), result.frame[f"{side}_displacement"], atol=1e-10)
        by_position = sum(row["part"] for row in result.summary[side]["positions"])
        assert by_position == pytest.approx(result.frame[f"{side}_displacement"].mean())
    for prefix in ("", "ref_"):
        total = result.tokens[[f"{prefix}p_{part}" for part in PARTS]].sum(axis=1)  # nulls count as 0
        np.testing.assert_allclose(total, 1, atol=1e-9)
    mass = result.summary["mass"]
    assert sum(mass["to"].values()) == pytest.approx(mass["lost"])
    assert sum(mass["shares"].values()) == pytest.approx(1)


def test_layouts_and_batches_change_nothing(models: dict[str, str], tmp_path: Path) -> None:
    whole = diagnose(models, tmp_path / "a", layout="shared")
    for number, others in enumerate([{"layout": "paired"}, {"batch_tokens": 30}, {"batch_tokens": 4000}]):
        other = diagnose(models, tmp_path / f"b{number}", **others)
        for name in DIAGNOSIS_SCHEMA.names:
            if whole.frame[name].dtype.kind == "f":
                np.testing.assert_allclose(other.frame[name], whole.frame[name], rtol=1e-6, atol=1e-9, err_msg=name)
        for name in ("logp", "ref_logp", "p_token", "ref_p_rest", "entropy", "total_variation"):
            np.testing.assert_allclose(other.tokens[name], whole.tokens[name], rtol=1e-6, atol=1e-9, err_msg=name)
        assert other.tokens["span"].tolist() == whole.tokens["span"].tolist()


def test_only_the_first_positions_are_looked_into(models: dict[str, str], tmp_path: Path) -> None:
    tokens = diagnose(models, tmp_path / "out", positions=2).tokens
    is_looked = (tokens["side"] == "chosen") & (tokens["position"] < 2)
    assert tokens.loc[is_looked, "p_token"].notna().all()
    assert tokens.loc[~is_looked, "p_token"].isna().all()


def test_without_a_reference_only_risks_are_told(models: dict[str, str], tmp_path: Path) -> None:
    [result] = diagnose_models(
        [models["policy"]], DiagnoseConfig(data=models["data"], dtype="float64", output=str(tmp_path / "out"))
    )
    assert result.frame["chosen_displacement"].isna().all()
    assert result.frame[["ches", "ln_ches", "ches_all", "ln_ches_all", "edit_similarity"]].notna().all(axis=None)
    assert result.summary["chosen"] is None and result.summary["mass"] is None
    assert "no reference" in say_diagnosis(result.summary, "m")[0]


def test_dry_run_says_what_it_would_take_and_writes_nothing(models: dict[str, str], tmp_path: Path) -> None:
    words = ["diagnose", models["policy"], "--reference", models["reference"], "--data", models["data"], "--dry-run"]
    out = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "out"), "--json"])
    assert out.exit_code == 0, out.output
    [estimate] = json.loads(out.stdout)["estimates"]
    assert estimate["n_pairs"] == {"all": 12} and estimate["seconds"]["looking into pairs"] > 0
    assert estimate["seconds"]["statistics"] > 0
    assert estimate["peak_bytes"] > 0 and not (tmp_path / "out").exists()


def test_score_has_the_same_ches_and_similarity(models: dict[str, str], tmp_path: Path) -> None:
    """The `ches` of a diagnosis is the reference's, in a score table `ref_ches`."""
    result = diagnose(models, tmp_path / "out", mass=False)
    settings = {"data": models["data"], "reference": models["reference"], "dtype": "float64", "batch_tokens": 60}
    config = ScoreConfig(**settings, measures="ches,similarity", output=str(tmp_path / "scores"))
    [scored] = score_models([models["policy"]], config)
    for name in ("ches", "ln_ches", "ches_all", "ln_ches_all"):
        np.testing.assert_allclose(scored.frame[f"ref_{name}"], result.frame[name], rtol=1e-6)
        assert not np.allclose(scored.frame[name], result.frame[name])
    np.testing.assert_allclose(scored.frame["edit_similarity"], result.frame["edit_similarity"])


def test_a_character_of_several_tokens_stands_with_the_last_of_them() -> None:
    """Bytes as tokens: the two of a Hebrew letter, the four of an emoji, one that is never completed."""

    def decode(*ids: int) -> str:
        return bytes(ids).decode(errors="replace")

    ids = [*"aשb😀c".encode(), 0xD7]
    assert spell_tokens(ids, decode) == ["a", "", "ש", "b", "", "", "", "😀", "c", "�"]


def test_files_columns_and_first_screen(models: dict[str, str], tmp_path: Path) -> None:
    words = ["diagnose", models["policy"], "--reference", models["reference"], "--data", models["data"]]
    out = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "out")])
    assert out.exit_code == 0, out.output
    assert "tokens that the rejected answer has too" in " ".join(out.stdout.split())
    folder = tmp_path / "out" / "diagnosis"
    names = {path.name.removeprefix("pairs-all") for path in folder.iterdir()}
    assert names == {".parquet", ".tokens.parquet", ".summary.json"}
    [table] = [path for path in folder.glob("*.parquet") if "tokens" not in path.name]
    assert pd.read_parquet(table).columns.tolist() == DIAGNOSIS_SCHEMA.names
    tokens = pd.read_parquet(table.with_suffix(".tokens.parquet"))
    assert tokens.columns.tolist() == DIAGNOSIS_TOKEN_SCHEMA.names
    assert json.loads((folder / f"{table.stem}.summary.json").read_text())["n"] == 12
    assert yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())["kind"] == "diagnose"


def test_where_the_mass_went_by_hand() -> None:
    """One position: the token falls from .6 to .2. The rival gains .1, the reference's favourite .2, the end .05.

    So of .4 lost a quarter went to the rival, half to the favourite, an eighth to the end token and the rest, .05,
    elsewhere.
    """
    part = {"token": 0.2, "other_side": 0.2, "ref_top": 0.4, "top": 0.0, "rest": 0.2}
    ref_part = {"token": 0.6, "other_side": 0.1, "ref_top": 0.2, "top": 0.0, "rest": 0.1}
    row = {f"p_{name}": value for name, value in part.items()} | {f"ref_p_{n}": v for n, v in ref_part.items()}
    row |= {"p_eos": 0.06, "ref_p_eos": 0.01, "entropy": 1.0, "ref_entropy": 0.5, "total_variation": 0.4}
    row |= {"pair_id": 0, "side": "chosen", "position": 0, "span": "divergent", "logp": -1.6, "ref_logp": -0.5}
    pair = dict.fromkeys(DIAGNOSIS_SCHEMA.names, 0.0) | {"pair_id": 0, "status": "ok", "prompt_id": "a"}
    pair |= {"chosen_displacement": -1.1, "chosen_divergent": -1.1}
    mass = summarize_diagnosis(pd.DataFrame([pair]), pd.DataFrame([row]))["mass"]
    assert mass["lost"] == pytest.approx(0.4)
    assert mass["shares"] == pytest.approx({"other_side": 0.25, "ref_top": 0.5, "eos": 0.125, "elsewhere": 0.125})
