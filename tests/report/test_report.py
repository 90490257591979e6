"""The report as its reader gets it: every section, nothing from elsewhere, texts as text, for eyes and ears."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from scored_runs import write_scored_run
from synthetic_frames import make_metric_rows, make_score_frame, make_theory_frame

from dpotool.errors import DpotoolError
from dpotool.plots.margin import plot_margin
from dpotool.report.blocks import Bullets, Code, Page, PairText, Paragraph, Picture, Section, Table
from dpotool.report.page import Report, hide_paths, write_report
from dpotool.report.pairs import Texts, TextSource, choose_pairs
from dpotool.report.record import choose_place
from dpotool.report.render import fit_page, render_html, render_markdown
from dpotool.report.sections import group_plots
from dpotool.runs.folder import RunFolder
from dpotool.runs.manifest import collect_manifest
from dpotool.runs.summaries import write_summary
from dpotool.runs.tables import SCORE_SCHEMA, THEORY_SCHEMA, write_table
from dpotool.settings.reading import ReportConfig

SECTIONS = [
    "verdict", "models", "quadrants", "tradeoff", "win-rate", "accuracy", "displacement", "trajectory", "forecast",
    "pairs", "data", "setup", "reproduce", "effects", "checks", "words",
]  # fmt: skip
EVIL = "<script>alert('x')</script> & <b>bold</b> ``` | *star*"


class Outline(HTMLParser):
    """What a page is made of."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.unclosed: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.stack or self.stack.pop() != tag:
            self.unclosed.append(tag)

    def handle_data(self, data: str) -> None:
        if not self.stack or self.stack[-1] != "style":
            self.text += data

    def find(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def find_section(page: Page, id_: str) -> list:
    return next(section.blocks for section in page.sections if section.id == id_)


def find_texts(findings, n_pairs):
    ids = [pair_id for side in choose_pairs(findings.base, n_pairs) for pair_id in side]
    return TextSource({pair_id: Texts(f"prompt {pair_id} {EVIL}", EVIL, "rejected") for pair_id in ids})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("report")
    settings = [("dpo", -14, 6, {"loss": "dpo"}), ("shift-0.9", -8, 6, {"loss": "shift", "lambda_": 0.9}),
                ("shift-0.5", -2, 0.2, {"loss": "shift", "lambda_": 0.5})]  # fmt: skip
    for seed, (name, displacement, gap, config) in enumerate(settings):
        run = write_scored_run(
            folder / name,
            seed=seed,
            frame=make_score_frame(90, seed=seed, displacement=displacement, gap=gap, n_excluded=2),
            **config,
        )
        for row in make_metric_rows(40):
            run.append_metrics(row)
    theory = run.table_path("theory", "demo", "train")
    write_table(
        make_theory_frame(50),
        theory,
        THEORY_SCHEMA,
        {"label": "m", "model": "m", "data": "demo", "split": "train", "at_reference": True},
    )
    write_summary(theory, {"n": 50, "u": {"mean": 2.0}, "v": {"mean": -4.0}})
    return [str(folder / name) for name, *_ in settings]


@pytest.fixture(scope="module")
def report(runs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Report:
    target = tmp_path_factory.mktemp("page") / "report.html"
    return write_report(runs, ReportConfig(output=str(target), pairs=2), find_texts=find_texts)


@pytest.fixture(scope="module")
def outline(report: Report) -> Outline:
    return Outline(report.path.read_text(encoding="utf-8"))


def test_the_sections_are_these_in_this_order(outline: Outline) -> None:
    assert [attributes["id"] for attributes in outline.find("section")] == SECTIONS
    links = [attributes["href"] for attributes in outline.find("a")]
    assert links == ["#verdict", *(f"#{name}" for name in SECTIONS)]


def test_the_structure_of_the_page(report: Report) -> None:
    """Section by section: which kinds of blocks, in their order."""
    structure = {section.id: " ".join(block.kind for block in section.blocks) for section in report.page.sections}
    pair_part = "subheading pair pair"
    assert structure == {
        "verdict": "paragraph paragraph paragraph table",
        "models": "table table bullets",
        "quadrants": "picture",
        "tradeoff": "picture",
        "win-rate": "paragraph",
        "accuracy": "picture",
        "displacement": "picture picture",
        "trajectory": "picture",
        "forecast": "picture paragraph paragraph table paragraph",
        "pairs": f"paragraph {pair_part} {pair_part}",
        "data": "table bullets",
        "setup": "table table table",
        "reproduce": "paragraph code paragraph code paragraph subheading bullets",
        "effects": "table",
        "checks": "table paragraph",
        "words": "table",
    }


def test_it_is_one_small_file_that_needs_nothing_else(report: Report, outline: Outline) -> None:
    html = report.path.read_text(encoding="utf-8")
    assert len(html.encode()) < 5_000_000
    assert not outline.find("script") and not outline.find("link") and not outline.find("iframe")
    assert all(image["src"].startswith("data:image/png;base64,") for image in outline.find("img"))
    without_pictures = re.sub(r"data:image/png;base64,[\w+/=]+", "", html)
    assert not re.search(r"(?:src|href)=\"(?!#)[^\"]+\"|url\(|@import", without_pictures)
    assert outline.unclosed == [] and outline.stack == []


def test_a_pair_that_holds_a_script_shows_as_text(report: Report, outline: Outline) -> None:
    html = report.path.read_text(encoding="utf-8")
    assert EVIL in outline.text
    assert "<script" not in html and "<b>" not in html
    assert html.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") == 8, "prompt and chosen of four pairs"


def drop_fences(markdown: str) -> str:
    return re.sub(r"^(`{3,})(text|bash)\n.*?\n\1$", "", markdown, flags=re.MULTILINE | re.DOTALL)


def test_markdown_shows_it_as_text_too(report: Report) -> None:
    markdown = render_markdown(report.page, "pictures")
    outside_fences = drop_fences(markdown)
    assert "<script" not in outside_fences
    assert f"````text\n{EVIL}\n````" in markdown
    assert [line[3:] for line in markdown.splitlines() if line.startswith("## ")] == [
        section.title for section in report.page.sections
    ]
    assert len(re.findall(r"^!\[.+\]\(pictures/[\w-]+\.png\)$", markdown, re.MULTILINE)) == 7


def test_labels_are_escaped(tmp_path: Path) -> None:
    run = write_scored_run(tmp_path / "<img src=x onerror=y>", kind="score")
    page = write_report([str(run.path)], ReportConfig(output=str(tmp_path / "r.html"), pairs=0)).page
    html = render_html(page)
    assert "<img src=x" not in html and "&lt;img src=x onerror=y&gt;" in html
    assert "<img src=x" not in drop_fences(render_markdown(page, "p"))


def test_every_figure_has_words_for_who_cannot_see_it(report: Report, outline: Outline) -> None:
    images = outline.find("img")
    assert len(images) == 7
    assert all(len(image["alt"] or "") > 60 for image in images)
    assert len(outline.find("figcaption")) == 7
    displacement = next(block for block in find_section(report.page, "displacement") if block.kind == "picture")
    assert "DPO: chosen −" in displacement.alt
    assert not any("table" in (image["alt"] or "") for image in images), "words that stand for a figure, not elsewhere"


def test_tables_have_captions_and_headers(outline: Outline) -> None:
    tables = outline.find("table")
    assert len(tables) == len(outline.find("caption")) == 11
    assert {header["scope"] for header in outline.find("th")} == {"col", "row"}
    [html] = outline.find("html")
    assert html["lang"] == "en"


def test_what_scrolls_can_be_reached_by_keyboard(outline: Outline) -> None:
    scrolling = [attributes for attributes in outline.find("div") if attributes.get("class") == "scroll"]
    assert len(scrolling) == 18
    assert all(each["tabindex"] == "0" and each["aria-label"] for each in scrolling)


def test_it_suits_dark_print_and_phones(report: Report) -> None:
    html = report.path.read_text(encoding="utf-8")
    for rule in ("prefers-color-scheme: dark", "@media print", "width=device-width"):
        assert rule in html


def test_numbers_are_those_of_compare(report: Report, outline: Outline) -> None:
    findings = report.findings
    for sentence in (*findings.sentences, findings.statement, findings.recommendation.statement):
        assert sentence.replace("log pi(", "log π(") in outline.text
    assert "Every run: 2 scored rows were left out: does not fit max length." in outline.text


def read_identities(report: Report) -> dict[str, tuple[str, ...]]:
    [checks] = [section.blocks for section in report.page.sections if section.id == "checks"]
    return {label: tuple(cells) for label, *cells in checks[0].rows}


def test_the_margin_identity_is_checked_run_by_run(report: Report, tmp_path: Path) -> None:
    """Rewards made with beta .1 under a table that says .2: it is refused before."""
    assert {label: cells[-1] for label, cells in read_identities(report).items()} == dict.fromkeys(
        ("DPO", "DPO-Shift λ=0.9", "DPO-Shift λ=0.5"), "holds"
    )
    run = write_scored_run(tmp_path / "odd", beta=0.1, loss="dpo")
    frame, table = make_score_frame(90, beta=0.1), run.table_path("score", "demo", "test")
    write_table(frame, table, SCORE_SCHEMA, {"data": "demo", "split": "test", "beta": 0.2})
    with pytest.raises(DpotoolError, match="chosen_rewards of pair 0 does not follow from the numbers beside it"):
        write_report([str(run.path)], ReportConfig(output=str(tmp_path / "r.html"), pairs=0))


def test_what_is_odd_among_scored_pairs_is_said_and_what_is_not_known(tmp_path: Path) -> None:
    def say(counts: dict[str, int], trained_on: dict[str, int]) -> list[str]:
        run = write_scored_run(tmp_path / "dpo", loss="dpo")
        run.update_manifest(data={"train": trained_on, "eval": {}})
        write_summary(run.list_tables("score")[0], {"counts": counts, "n": 120, "n_excluded": {}})
        page = write_report([str(run.path)], ReportConfig(output=str(tmp_path / "r.html"), pairs=0)).page
        [blocks] = [section.blocks for section in page.sections if section.id == "data"]
        return [text for block in blocks[1:] for text in ([block.text] if block.kind == "paragraph" else block.items)]

    none = {"n_rows": 120, "n_truncated": 0, "n_duplicate": 0}
    assert say(none, none) == [
        "In scoring and training, no pair was left out, shortened or merged, had two equal answers, or occurred twice."
    ]
    assert say(none | {"n_truncated": 12, "n_duplicate": 3}, none | {"n_identical": 1}) == [
        "DPO: 12 scored pairs had their prompt shortened.",
        "DPO: 3 scored pairs occurred twice.",
        "DPO: 1 training pair had two equal answers.",
    ]
    unknown = "DPO: It is not known how many {} pairs were shortened or merged, had equal answers, or occurred twice."
    assert say({}, {}) == [unknown.format("scored"), unknown.format("training")]


def test_reproduction_names_every_run_from_where_it_was_made(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(runs[0]).parent)
    page = write_report(runs, ReportConfig(output=str(tmp_path / "r.md"), pairs=0)).page
    code = " ".join(block.text for block in find_section(page, "reproduce") if block.kind == "code")
    assert code.startswith("dpotool report dpo shift-0.9 shift-0.5")
    for path in runs:
        name = Path(path).name
        assert (
            f"dpotool train --config {name}/run.yaml --output {name}-again\ndpotool score {name}-again\n" in code + "\n"
        )


def read_commands(paths: list[str], config: ReportConfig) -> list[str]:
    page = write_report(paths, config).page
    return "\n".join(block.text for block in find_section(page, "reproduce") if block.kind == "code").splitlines()


def test_reproduction_repeats_what_the_report_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_scored_run(Path("dpo"), loss="dpo")
    write_scored_run(Path("shift"), seed=2, loss="shift", lambda_=0.9)
    told = ReportConfig(baseline="shift", data="demo", split="test", seed=3, pairs=2, output="my page.md")
    assert read_commands(["dpo", "shift"], told)[:2] == [
        "dpotool report dpo shift --data demo --split test --output 'my page.md' --baseline shift --pairs 2 --seed 3",
        "dpotool compare dpo shift --data demo --split test --baseline shift --seed 3",
    ]


def test_a_sweep_made_again_lies_outside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside it would be one of its runs at the next report."""
    monkeypatch.chdir(tmp_path)
    RunFolder(Path("runs/sweep")).write_manifest(collect_manifest("sweep", {"seed": 1}) | {"status": "finished"})
    write_scored_run(Path("runs/sweep/dpo"), loss="dpo", beta=0.1)
    commands = read_commands(["runs/sweep"], ReportConfig(pairs=0))
    assert commands[2:] == [
        "dpotool train --config runs/sweep/dpo/run.yaml --output runs/sweep-dpo-again",
        "dpotool score runs/sweep-dpo-again",
    ]
    assert choose_place(Path("runs/sweep/dpo").resolve()) == str(tmp_path / "runs" / "sweep-dpo-again")
    monkeypatch.chdir("runs/sweep")
    assert choose_place(Path("dpo")) == "../sweep-dpo-again"
    assert choose_place(Path()) == "../sweep-again"


def test_scores_imports_and_forecasts_are_made_again_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_scored_run(Path("dpo"), loss="dpo", beta=0.1, eval_data="own.jsonl",
                     about={"settings": {"data": "other.jsonl", "limit": 50}})  # fmt: skip
    write_scored_run(Path("hub"), kind="score", model="org/name")
    bench = write_scored_run(Path("bench"), beta=0.5, about={"imported_from": "b.jsonl"})
    told = {"file": "b.jsonl", "beta": 0.5, "lambda_": 0.9, "output": "bench", "kind": None}
    bench.write_manifest(collect_manifest("import", told) | {"status": "finished"})
    write_scored_run(Path("shift"), seed=2, loss="shift", lambda_=0.9)
    theory = RunFolder(Path("start"))
    theory.write_manifest(collect_manifest("theory", {"model": "m"}) | {"status": "finished"})
    table = theory.table_path("theory", "demo", "train")
    about = {"label": "m", "model": "m", "data": "demo", "split": "train", "at_reference": True}
    write_table(make_theory_frame(50), table, THEORY_SCHEMA, about)
    write_summary(table, {"n": 50, "u": {"mean": 2.0}, "v": {"mean": -4.0}})
    commands = read_commands(["dpo", "hub", "bench", "shift", "start"], ReportConfig(pairs=0))
    assert "dpotool score dpo-again --config dpo/scores/demo-test.parquet" in commands
    assert "dpotool score org/name --config hub/run.yaml --output hub-again" in commands
    assert "dpotool import b.jsonl --beta 0.5 --lambda 0.9 --data demo --split test --output bench-again" in commands
    assert commands[-1] == "dpotool theory-gap --config start/run.yaml --output start-again"


def test_no_folder_of_this_machine_is_on_the_page(report: Report, outline: Outline, runs: list[str]) -> None:
    assert str(Path(runs[0]).parent) not in outline.text
    assert "dpotool report …/dpo …/shift-0.9 …/shift-0.5" in outline.text


def test_figures_name_no_folder_of_this_machine_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles = []

    def draw(runs, *, model, data):
        titles.append(model)
        return plot_margin(runs, model=model, data=data)

    monkeypatch.setattr("dpotool.plots.margin.plot_margin", draw)
    run = write_scored_run(tmp_path / "dpo", loss="dpo", model="/home/me/my models/sft")
    page = write_report([str(run.path)], ReportConfig(output=str(tmp_path / "r.html"), pairs=0)).page
    assert titles == ["…/sft"] and page.title == "Likelihood displacement: …/sft"


def test_every_text_but_those_of_pairs_loses_its_folders() -> None:
    text, expected = "data /home/me/train.jsonl", "data …/train.jsonl"
    pair = PairText("Pair 1", "", text, text, text)
    blocks = [Paragraph(text), Bullets([text]), Table("t", ["c"], [[text]]), Code(text), pair]
    page = hide_paths(Page("t", "s", [Section("a", "A", blocks)], "f"), Path("/base"))
    paragraph, bullets, table, code, kept = page.sections[0].blocks
    assert paragraph.text == bullets.items[0] == table.rows[0][0] == code.text == expected
    assert kept == pair


def make_heavy_page(dpi: int) -> Page:
    """Two figures of 100 kB at 120 dots per inch and a pair with a long prompt: 285 kB as base64 and text."""
    size = 100_000 * dpi**2 // 120**2
    pictures = [Picture(name, b"x" * size, f"words for {name}", f"{name}.", 10, 10) for name in ("margin", "accuracy")]
    pair = PairText("Pair 1", "numbers", "p" * 20_000, "c" * 10, "r")
    return Page("t", "s", [Section("a", "A", [*pictures, pair])], "Written.")


@pytest.mark.parametrize(
    ("limit", "n_pictures", "footer"),
    [
        (400_000, 2, "Written."),
        (200_000, 2, "Written. Figures are coarser to keep this page below 5 MB."),
        (
            150_000,
            2,
            "Written. Figures are coarser and texts are cut to 2,000 characters to keep this page below 5 MB.",
        ),
        (100_000, 1, "Written. Some figures are left out and texts are cut to 2,000 characters to keep this page b"),
        (30_000, 0, "Written. Some figures are left out and"),
    ],
)
def test_a_page_that_is_too_large_shrinks_and_says_so(limit: int, n_pictures: int, footer: str) -> None:
    page, html = fit_page(make_heavy_page, limit)
    assert len(html.encode()) <= limit
    assert html.count("<img") == n_pictures
    assert page.footer.startswith(footer)
    if n_pictures == 1:
        assert "left out to keep the page small; <code>dpotool plot margin</code> draws it. margin." in html
        assert "In words: words for margin" in html
    if limit < 200_000:
        assert "p … [18,000 characters left out]" in html and "cccccccccc" in html


def test_commands_in_a_sentence_are_set_as_code() -> None:
    page = Page("t", "s", [Section("a", "A", [Paragraph("Run `dpotool score <x>` first.")])], "f")
    assert "<p>Run <code>dpotool score &lt;x&gt;</code> first.</p>" in render_html(page)


def test_what_cannot_shrink_is_refused() -> None:
    with pytest.raises(DpotoolError, match=r"would have 0\.0 MB even without figures; .*fewer runs, or on fewer pairs"):
        fit_page(make_heavy_page, 1_000)


def test_every_figure_of_a_report_may_go(report: Report) -> None:
    """The theory table has no forecast, nothing was judged or graded and there is no diagnosis: no figures of these."""
    names = {block.name for section in report.page.sections for block in section.blocks if block.kind == "picture"}
    assert names | {"forecast", "win-rate", "mt-bench", "spans", "mass", "risk"} == {
        kind.name for kinds in group_plots().values() for kind in kinds
    }


def test_markdown_lies_beside_its_pictures(runs: list[str], tmp_path: Path) -> None:
    report = write_report(runs[:1], ReportConfig(output=str(tmp_path / "r.md"), pairs=1), find_texts=find_texts)
    names = re.findall(r"\]\((r_pictures/[\w-]+\.png)\)", report.path.read_text(encoding="utf-8"))
    assert names and all((tmp_path / name).stat().st_size > 5000 for name in names)


def test_scores_without_reference_still_make_a_page(tmp_path: Path) -> None:
    run = write_scored_run(tmp_path / "blind", frame=make_score_frame(30, has_reference=False), kind="score")
    page = write_report([str(run.path)], ReportConfig(output=str(tmp_path / "r.html"))).page
    assert [section.id for section in page.sections] == SECTIONS
    texts = json.dumps([[getattr(block, "text", "") for block in section.blocks] for section in page.sections])
    assert "No verdict: displacement is a change from a reference, and there is none." in texts
    assert "There is no figure here: blind: one run alone has no difference to draw" in texts
    assert "scored without a reference, so it is not known how any pair changed" in texts


def test_texts_that_cannot_be_found_are_said_to_be_missing(runs: list[str], tmp_path: Path) -> None:
    report = write_report(
        runs[:1],
        ReportConfig(output=str(tmp_path / "r.html"), pairs=1),
        find_texts=lambda findings, n: TextSource(problem="no file or folder 'pairs.jsonl'."),
    )
    assert "The texts cannot be shown: no file or folder &#39;pairs.jsonl&#39;." in report.path.read_text(
        encoding="utf-8"
    )


def test_an_unknown_format_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(DpotoolError, match=r"--format: unknown format 'htm'\. Did you mean 'html'"):
        write_report(["nowhere"], ReportConfig(format="htm"))
