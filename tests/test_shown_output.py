"""Every block of output that README and docs show is what the commands print now.

docs/data/shown_output.json holds, for commands that a test cannot run, the part of a summary that their first screen
reads, as it was measured once (NaN where the page shows no number); these blocks have to agree to the letter. The other
commands run here on small pairs, and their blocks have to agree but for numbers and quoted texts.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from scored_runs import write_scored_run
from shell_scripts import call_dpotool
from tiny_models import build_byte_tokenizer, save_tiny_model
from tokenizers import models

from dpotool.cli import generate, judge, predict, score, sweep, theory_gap
from dpotool.cli.console import Console
from dpotool.compare.win_rates import state_result
from dpotool.data.pair_sets import describe_pair_set, load_pair_set
from dpotool.judging.replies import _tell_how_much_was_read
from dpotool.settings.shared import DataSettings

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for folder, pattern in ((ROOT, "*.md"), (ROOT / "docs", "*.md"), (ROOT / "examples", "**/*.md"))
    for page in folder.glob(pattern)
    if page.name not in {"cli.md", "CHANGELOG.md"}  # the first is compared as a whole
)
INPUT = {"bash", "json", "python", "toml", "yaml"}
"""Languages of blocks that a reader types or writes; `tree` is a list of files, which test_readme.py compares."""
SHOWN: dict[str, Any] = json.loads((ROOT / "docs" / "data" / "shown_output.json").read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    page: str
    language: str
    text: str

    @property
    def first(self) -> str:
        return self.text.partition("\n")[0]

    @property
    def words(self) -> list[str]:
        """The command that a session shows."""
        return shlex.split(self.text.replace("\\\n", " ").partition("\n")[0].removeprefix("$ "))[1:]

    @property
    def parts(self) -> list[list[str]]:
        """The lines of output, apart where `...` says that some are left out."""
        output = self.text.replace("\\\n", " ").removesuffix("...\n")
        parts = [part.splitlines() for part in re.split(r"^\.\.\.\n", output, flags=re.MULTILINE)]
        return [[line.rstrip() for line in part if line.strip() and not line.startswith("$ ")] for part in parts]


def read_blocks() -> Iterator[Block]:
    """Yields every fenced block of README and docs."""
    for page in PAGES:
        fences = re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        for fence in fences:
            yield Block(str(page.relative_to(ROOT)), fence.group(1), fence.group(2))


BLOCKS = [block for block in read_blocks() if block.language not in INPUT | {"tree"}]


def print_sweep(console: Console) -> None:
    sweep.show_table(pd.DataFrame(SHOWN["sweep"]), console, is_full=False)


def print_scores(console: Console) -> None:
    results: Any = [SimpleNamespace(label=model["label"], summary=model["measured"]) for model in SHOWN["score"]]
    for table in score.summarize_models(results):
        console.table(*table)


def print_answers(console: Console) -> None:

    results: Any = [SimpleNamespace(**(each | {"path": Path(each["path"])})) for each in SHOWN["generate"]]
    console.answer(*generate.describe_answers(results))
    console.table(generate.describe_setting(results), *generate.tabulate_answers(results))


def print_judgments(console: Console) -> None:
    results: Any = [SimpleNamespace(**each) for each in SHOWN["judge"]]
    for result in results:
        console.answer(state_result(result.label, result.summary["baseline"], result.summary))
    for line in judge.describe_checks(results):
        console.answer(line)


PRINTED: dict[str, Callable[[Console], None]] = {
    "$ dpotool theory-gap": lambda console: theory_gap.show_answer(SHOWN["theory-gap"], console),
    "$ dpotool predict": lambda console: predict.show_answer(SHOWN["predict"], console),
    "$ dpotool sweep": print_sweep,
    "demo [test], n = 400": print_scores,
    "$ dpotool generate": print_answers,
    "$ dpotool judge": print_judgments,
}
"""How a block begins -> what prints it from numbers that were measured once."""


def run_plot(block: Block, folder: Path) -> str:
    for place in block.words[2:4]:
        write_scored_run(folder / place, n=20)
    return call_dpotool(block.words).out


def read_support(block: Block, folder: Path) -> str:
    """The lines on pairs that `train` prints, without the model."""
    shared = {"data": str(ROOT / "examples" / "data" / "support.jsonl"), "test_fraction": 0.25}
    lines = [
        describe_pair_set(
            load_pair_set(DataSettings(**shared, split=split), build_byte_tokenizer(), max_length=None, seed=42)
        )
        for split in ("train", "test")
    ]
    return "\n".join(lines)


def read_malformed(block: Block, folder: Path) -> str:
    rows = [
        {"prompt": "Say:", "chosen": " yes", "rejected": " " if number in (16, 18, 19) else " no"}
        for number in range(24)
    ]
    write_rows(rows)
    save_tiny_model(folder / "tiny")
    return call_dpotool(["score", "tiny", "--reference", "tiny", "--data", "pairs.jsonl"]).err.replace("error: ", "")


def write_rows(rows: list[dict[str, str]]) -> None:
    Path("pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def run_as_shown(block: Block, folder: Path) -> str:
    outcome = call_dpotool(block.words)
    return outcome.out + outcome.err


def check_tokens(block: Block, folder: Path) -> str:
    """What `validate --model --full` says of planted faults, with a tokenizer that merges a space and an I."""
    tokenizer = build_byte_tokenizer()
    vocabulary = tokenizer.get_vocab() | {"ĠI": 259}
    vocabulary = {name: number for name, number in vocabulary.items() if name not in tokenizer.all_special_tokens}
    special = {"<pad>": 0, "<bos>": 1, "<eos>": 2}
    tokenizer.backend_tokenizer.model = models.BPE(vocab=special | vocabulary, merges=[("Ġ", "I")])
    save_tiny_model(folder / "tiny", tokenizer=tokenizer)
    rows = [
        {"prompt": f"Say {number}:", "chosen": f" yes {number}", "rejected": f" no {number}"} for number in range(9)
    ]
    rows[0]["chosen"] += "<eos><eos>"
    rows[1]["rejected"] += " <pad> or not"
    rows[2] = {"prompt": "Who are you? ", "chosen": "I'm a model", "rejected": "I'm not"}
    rows[3]["prompt"] = "long " * 60
    write_rows(rows)
    return call_dpotool(["validate", "pairs.jsonl", "--model", "tiny", "--full"]).out


RUN: dict[str, Callable[[Block, Path], str]] = {
    "$ dpotool plot displacement": run_plot,
    "support [train]": read_support,
    "pairs.jsonl:17": read_malformed,
    "$ dpotool train --loss shift --lambda 1.05": run_as_shown,
    "truncated (warning)": check_tokens,
    "row 0 chosen": check_tokens,
    "double-eos (error)": check_tokens,
}
"""How a block begins -> what runs its command on small pairs."""


def generalize(line: str) -> str:
    """Returns a line without its numbers, tokens and quoted texts, and with one form of what is counted."""
    line = re.sub(r"“[^”]*”", "“”", line)
    line = re.sub(r"\d+‘[^’]*’(?: \d+‘[^’]*’)*", "tokens", line)
    line = re.sub(r"<[\w|]+>", "token", line)
    line = re.sub(r"\b(row|pair|token|lose)s\b", r"\1", line)
    return re.sub(r"[-+]?\d[\d,.]*", "0", line.strip())


def find(kinds: dict[str, Any], block: Block) -> list[Any]:
    return [found for start, found in kinds.items() if block.first.startswith(start)]


def test_no_block_is_unchecked() -> None:
    """Each block of output has one checker, and each checker has its block."""
    assert len(BLOCKS) >= 13
    for block in BLOCKS:
        assert block.language in {"console", "text"}, f"{block.page}: a block of {block.language!r}"
        assert len(find(PRINTED | RUN, block)) == 1, f"{block.page}: nothing checks {block.first!r}"
    for start in PRINTED | RUN:
        assert any(block.first.startswith(start) for block in BLOCKS), f"no page shows {start!r}"


@pytest.mark.parametrize("block", [each for each in BLOCKS if find(PRINTED, each)], ids=lambda block: block.first[:30])
def test_a_page_shows_what_is_printed(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    find(PRINTED, block)[0](Console())
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    place = 0
    for part in block.parts:
        assert part
        found = [at for at in range(place, len(printed)) if printed[at : at + len(part)] == part]
        assert found, "\n".join([*part, "is not in", *printed])
        place = found[0] + len(part)
    for line in printed:
        assert len(line) <= 80, line


@pytest.mark.parametrize("block", [each for each in BLOCKS if find(RUN, each)], ids=lambda block: block.first[:30])
def test_a_page_shows_what_a_small_run_prints(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = find(RUN, block)[0](block, tmp_path)
    printed = {generalize(line) for line in output.splitlines()}
    [lines] = block.parts
    assert lines
    for line in lines:
        assert generalize(line) in printed, f"{line!r} is not in\n{output}"


def test_the_line_on_whole_prompts_is_quoted_as_it_is_printed() -> None:
    page = " ".join((ROOT / "docs" / "judging.md").read_text(encoding="utf-8").split())
    [quoted] = re.findall(r"`(the server read [^`]*)`", page)
    notes: list[str] = []
    lengths: Any = SimpleNamespace(n_unknown=0, n_checked=80, count=len, longest=900)
    progress: Any = SimpleNamespace(note=notes.append)
    _tell_how_much_was_read(lengths, progress)
    assert [generalize(quoted)] == list(map(generalize, notes))
