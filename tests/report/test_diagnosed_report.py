"""A report on a run that was diagnosed: coloured tokens, where the probability went, and texts that stay texts."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from diagnosed_runs import write_diagnosis
from scored_runs import write_scored_run
from synthetic_frames import make_score_frame

from dpotool.compare.findings import find_out
from dpotool.report.blocks import PairText
from dpotool.report.page import Report, write_report
from dpotool.report.pairs import Texts, TextSource, choose_pairs, show_tokens
from dpotool.settings.reading import ReportConfig


def find_texts(findings, n_pairs):
    ids = [pair_id for side in choose_pairs(findings.base, n_pairs) for pair_id in side]
    return TextSource({pair_id: Texts("<i>prompt\u202e\x00", "chosen", "rejected") for pair_id in ids})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs") / "dpo"
    run = write_scored_run(folder, frame=make_score_frame(40, displacement=-14, gap=6), loss="dpo", lambda_=1.0)
    write_diagnosis(run, n=30)
    return str(folder)


@pytest.fixture(scope="module")
def report(run: str, tmp_path_factory: pytest.TempPathFactory) -> Report:
    target = tmp_path_factory.mktemp("page") / "report.html"
    return write_report([run], ReportConfig(output=str(target), pairs=10), find_texts=find_texts)


def test_the_section_stands_between_the_figures_and_speaks_in_sentences(report: Report) -> None:
    [section] = [each for each in report.page.sections if each.title == "Where the probability went"]
    assert [block.kind for block in section.blocks] == ["bullets", "table", "picture", "picture", "picture"]
    assert section.blocks[0].items[0].startswith("Under dpo the chosen answers lose")
    html = report.path.read_text(encoding="utf-8")
    assert "Of the probability that chosen tokens lost" in html


def test_without_a_diagnosis_the_report_is_silent(tmp_path: Path) -> None:
    run = write_scored_run(tmp_path / "dpo", loss="dpo", lambda_=1.0)
    page = write_report([str(run.path)], ReportConfig(output=str(tmp_path / "r.html")), find_texts=find_texts).page
    assert "Where the probability went" not in [section.title for section in page.sections]
    pairs = [block for section in page.sections for block in section.blocks if isinstance(block, PairText)]
    assert pairs and not any(pair.chosen_tokens for pair in pairs)


def test_pairs_have_coloured_tokens_where_they_were_looked_into(report: Report) -> None:
    pairs = [block for section in report.page.sections for block in section.blocks if isinstance(block, PairText)]
    looked = [pair for pair in pairs if int(pair.title.split()[1]) < 30]
    assert looked and len(looked) < len(pairs)
    assert all(pair.chosen_tokens and pair.rejected_tokens and "fell" in pair.moved for pair in looked)
    assert not any(pair.chosen_tokens for pair in pairs if pair not in looked)
    html = report.path.read_text(encoding="utf-8")
    spans = re.findall(r'<span class="token ([^"]*)" title="token \d+, [^"]* nats, probability', html)
    assert len(spans) == sum(len(pair.chosen_tokens) + len(pair.rejected_tokens) for pair in looked)
    assert any("fell-3" in each for each in spans) and any("rose" in each for each in spans)


def test_texts_stay_texts(report: Report) -> None:
    """Markup is escaped, what would turn the direction of writing stands as a code, Hebrew as Hebrew."""
    html = report.path.read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;" in html and "&lt;/script&gt;" in html and "שלום" in html
    assert "<b>&" not in html and "</script>" not in html
    assert "\u202e" not in html and "\x00" not in html and "⟨U+202E⟩" in html
    assert "&lt;i&gt;prompt⟨U+202E⟩⟨U+0000⟩" in html


def test_markdown_names_what_fell(run: str, tmp_path: Path) -> None:
    write_report([run], ReportConfig(output=str(tmp_path / "r.md"), pairs=3), find_texts=find_texts)
    text = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert "In the chosen answer these tokens fell most" in text and "## Where the probability went" in text


def test_the_verdict_says_where_the_probability_went(run: str, tmp_path: Path) -> None:
    verdict = find_out([run]).verdicts["DPO"]
    assert verdict is not None and verdict.criteria["mass_near_chosen"] == "failed"
    assert "Of the probability that chosen tokens lost" in verdict.statement
    plain = write_scored_run(tmp_path / "dpo", frame=make_score_frame(40, displacement=-14, gap=6), loss="dpo")
    [other] = find_out([str(plain.path)]).verdicts.values()
    assert other is not None and verdict.statement.startswith(other.statement)


def test_a_token_by_hand() -> None:
    """From log-probability -1 to -3: a fall of 2 nats, the highest step; 0.368 before and 0.0498 after."""
    row = {"position": 4, "token": "a\n", "span": "divergent", "change": -2.0, "logp": -3.0, "ref_logp": -1.0}
    [token] = show_tokens(pd.DataFrame([row]))
    assert (token.text, token.tone, token.is_alone) == ("a↵\n", "fell-3", True)
    assert token.about == ("token 5, in this one alone: -2.000 nats, probability 0.368 before and 0.0498 after")
