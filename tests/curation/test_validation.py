"""A file with every fault planted a known number of times: all found, none invented; a clean file has no error."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tiny_models import build_byte_tokenizer, save_tiny_model

from dpotool.curation.pages import write_validation
from dpotool.curation.validation import Validation, validate
from dpotool.data.checks.check import SEVERITIES
from dpotool.data.checks.registry import CHECKS
from dpotool.data.pair_sets import describe_pair_set, tokenize_preferences
from dpotool.data.sources import load_preferences
from dpotool.settings.reading import ValidateConfig

WORDS = (  # noqa: SIM905
    "amber river stone lantern quiet meadow copper velvet thunder harvest winter garden silver engine pocket mirror "
    "castle forest bridge candle ribbon saddle marble button feather pepper basket helmet ladder anchor"
).split()

Row = dict[str, Any]


def draw_text(rng: random.Random, n: int = 8) -> str:
    return " ".join(rng.choices(WORDS, k=n)).capitalize() + "."


def clean_rows(n: int, seed: int = 0) -> list[Row]:
    """Pairs of texts that have nothing in common, the longer one chosen in half of them."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        sides = {"chosen": " " + draw_text(rng), "rejected": " " + draw_text(rng)}
        rows.append({"prompt": draw_text(rng), **sides, "score_chosen": 8.0, "score_rejected": rng.uniform(0, 5)})
    return rows


def write(path: Path, rows: list[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def count(validation: Validation) -> dict[str, int]:
    """Rows of each finding but those that are said of the whole set."""
    return {f.check.name: f.count for f in validation.checkup.findings if not f.check.is_of_set}


@pytest.fixture
def clean(tmp_path: Path) -> list[Row]:
    return clean_rows(120)


def plant(rows: list[Row]) -> dict[str, int]:
    """Adds each fault to rows of its own; returns how many rows have which."""
    planted: dict[str, int] = {}

    def spoil(name: str, n: int, **changes: Any) -> None:
        for row in rows[len(spoilt) : len(spoilt) + n]:
            row |= {key: change(row) if callable(change) else change for key, change in changes.items()}
            spoilt.append(row)
        planted[name] = n

    spoilt: list[Row] = []
    spoil("identical", 3, rejected=lambda row: row["chosen"])
    spoil("surface-only", 2, rejected=lambda row: row["chosen"].upper().replace(".", " !"))
    spoil("inverted-scores", 4, score_chosen=1.0, score_rejected=6.0)
    spoil("equal-scores", 2, score_rejected=8.0)
    spoil("close-scores", 3, score_rejected=7.8)
    spoil("cut-off", 2, chosen=" The lantern by the river was taken to the")
    spoil("refusal", 3, rejected=lambda row: row["rejected"] + " I'm sorry, but I can't help with that.")
    spoil("boilerplate", 2, chosen=lambda row: row["chosen"] + " I hope this helps!")
    spoil("odd-encoding", 3, prompt=lambda row: row["prompt"] + " \ufffd")
    spoil("mojibake", 2, chosen=lambda row: row["chosen"] + " It donâ€™t matter.")
    spoil("html-residue", 4, rejected=lambda row: row["rejected"] + "<br/>&nbsp;")
    spoil("last-not-assistant", 2, chosen=lambda row: row["chosen"] + "\n\nHuman: And then?")
    spoil("mixed-roles", 2, chosen=lambda row: row["chosen"] + "\n\nHuman: And?\n\nAssistant: Then.")
    spoil("empty-prompt", 1, prompt="  ")
    spoil("empty", 2, chosen=" \n")
    spoil("malformed", 2, rejected=7)
    good = [dict(row) for row in rows[-20:]]
    rows += [dict(good[0]), dict(good[1])]
    planted["duplicate"] = 2
    rows.append(good[2] | {"chosen": good[2]["chosen"][:-1] + "!"})
    planted["near-duplicate"] = 1
    rows.append(good[3] | {"chosen": good[3]["rejected"], "rejected": good[3]["chosen"]})
    planted["swapped"] = 2  # the row and the one it contradicts
    rows.append(good[4] | {"chosen": " Amber and copper, the whole winter long.", "rejected": good[4]["chosen"]})
    planted["both-ways"] = 2
    return planted


def test_every_fault_is_found_as_often_as_it_was_planted(tmp_path: Path, clean: list[Row]) -> None:
    planted = plant(clean)
    validation = validate(ValidateConfig(data=write(tmp_path / "faulty.jsonl", clean)))
    assert count(validation) == planted
    for finding in validation.checkup.findings:
        examples = finding.examples(validation.material)
        assert 1 <= len(examples) <= 2 and all(text for _, text in examples)


def test_clean_pairs_have_no_finding(tmp_path: Path, clean: list[Row]) -> None:
    validation = validate(ValidateConfig(data=write(tmp_path / "clean.jsonl", clean)))
    assert count(validation) == {}
    assert validation.checkup.count("error") == 0
    assert {check.needs for check in validation.checkup.not_run} == {check.needs for check in CHECKS.values()} - {
        "",
        "scores",
    }


def test_prompts_of_the_other_split_are_found(tmp_path: Path, clean: list[Row]) -> None:
    others = clean_rows(30, seed=1)
    others[3]["prompt"] = clean[0]["prompt"].upper()
    others[4]["prompt"] = clean[1]["prompt"][:-1] + "?"
    data, other = write(tmp_path / "a.jsonl", clean), write(tmp_path / "b.jsonl", others)
    validation = validate(ValidateConfig(data=data, eval_data=other))
    rows = {f.check.name: list(f.found.rows) for f in validation.checkup.findings}
    assert rows == {"shared-prompt": [0], "similar-prompt": [1]}


def test_shortcuts_are_measured(tmp_path: Path) -> None:
    rows = clean_rows(150)
    for row in rows[:120]:
        row["chosen"] = " Indeed. " + row["chosen"] + " And much more of it."
    validation = validate(ValidateConfig(data=write(tmp_path / "biased.jsonl", rows)))
    found = {f.check.name: f.found.figures for f in validation.checkup.findings}
    assert set(found) == {"length-bias", "separable-words", "separable-opening"}
    assert found["separable-words"]["accuracy"] > 0.85 and found["separable-opening"]["accuracy"] > 0.85
    longer = sum(len(row["chosen"]) > len(row["rejected"]) for row in rows)
    differ = sum(len(row["chosen"]) != len(row["rejected"]) for row in rows)
    assert found["length-bias"]["longer_chosen"] == pytest.approx(longer / differ)


def test_what_cannot_be_told_apart_is_not_said_to_be(tmp_path: Path) -> None:
    validation = validate(ValidateConfig(data=write(tmp_path / "clean.jsonl", clean_rows(300))))
    figures = {f.check.name: f.found.figures for f in validation.checkup.unconcerned}
    assert set(figures) == {"length-bias", "separable-words", "separable-opening"}
    assert figures["separable-words"]["accuracy"] < 0.6


def test_tokens_are_looked_at_with_a_model(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")  # 256 positions, one token a byte
    rows = clean_rows(60)
    rows[0]["chosen"] += "<eos><eos>"
    rows[1]["rejected"] += " <pad> or not."
    rows[2]["prompt"] = "long " * 60
    rows[3]["chosen"] = " " + "long. " * 60
    validation = validate(ValidateConfig(data=write(tmp_path / "a.jsonl", rows), model=str(model)))
    found = {f.check.name: sorted(f.found.rows) for f in validation.checkup.findings if f.check.group == "tokens"}
    assert found == {
        "double-eos": [0],
        "control-tokens": [1],
        "truncated": [2],
        "too-long": [3],
        "beyond-positions": [2, 3],
    }


def messages(prompt: str, chosen: str, rejected: str) -> Row:
    def say(role: str, text: str) -> list[Row]:
        return [{"role": role, "content": text}]

    return {
        "prompt": say("user", prompt),
        "chosen": say("assistant", chosen),
        "rejected": say("assistant", rejected),
    }


def test_templates_are_looked_at(tmp_path: Path) -> None:
    rows = [messages(row["prompt"], row["chosen"], row["rejected"]) for row in clean_rows(20)]
    rows[0]["chosen"].append({"role": "user", "content": "And then?"})
    rows[1]["prompt"].append({"role": "user", "content": "And then?"})
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
    tokenizer = build_byte_tokenizer(chat_template=template)
    model = save_tiny_model(tmp_path / "model", tokenizer=tokenizer)
    validation = validate(ValidateConfig(data=write(tmp_path / "a.jsonl", rows), model=str(model)))
    found = {f.check.name: sorted(f.found.rows) for f in validation.checkup.findings}
    assert found["template-no-prefix"] == found["missing-eos"] == list(range(20))
    assert found["last-not-assistant"] == [0]
    assert found["mixed-roles"] == [1]


def test_counts_are_those_that_train_prints(tmp_path: Path, clean: list[Row]) -> None:
    model = save_tiny_model(tmp_path / "model")
    clean[0]["rejected"] = clean[0]["chosen"]
    clean[1]["prompt"] = "long " * 40
    clean += [dict(clean[5])]
    data = write(tmp_path / "a.jsonl", clean)
    validation = validate(ValidateConfig(data=data, model=str(model)))
    pair_set = tokenize_preferences(load_preferences(data), build_byte_tokenizer(), max_length=256)
    found = count(validation)
    for check in CHECKS.values():
        if check.counted_as:
            assert found.get(check.name, 0) == getattr(pair_set.counts, check.counted_as)
    assert describe_pair_set(pair_set).endswith("1 identical; 1 duplicate; 1 truncated")


def test_what_is_written_is_clean_and_says_what_is_missing(tmp_path: Path, clean: list[Row]) -> None:
    plant(clean)
    data, target = write(tmp_path / "faulty.jsonl", clean), tmp_path / "clean.jsonl"
    validation = validate(ValidateConfig(data=data, write=str(target)))
    assert validation.clean is not None
    assert sum(validation.clean.left_out.values()) + validation.clean.n_written == len(clean)
    again = validate(ValidateConfig(data=str(target)))
    assert again.checkup.count("error") == 0
    lines = Path(data).read_bytes().splitlines()
    assert all(line in lines for line in target.read_bytes().splitlines())


def test_chosen_kinds_are_left_out(tmp_path: Path, clean: list[Row]) -> None:
    clean += [dict(clean[0])]
    clean[1]["rejected"] = clean[1]["chosen"]
    data, target = write(tmp_path / "a.jsonl", clean), tmp_path / "b.jsonl"
    validation = validate(ValidateConfig(data=data, write=str(target), leave_out="duplicate"))
    assert validation.clean is not None and validation.clean.left_out == {"duplicate": 1}
    assert target.read_bytes() == b"".join(Path(data).read_bytes().splitlines(keepends=True)[:-1])


def test_the_page_holds_every_finding(tmp_path: Path, clean: list[Row]) -> None:
    planted = plant(clean)
    validation = validate(ValidateConfig(data=write(tmp_path / "faulty.jsonl", clean)))
    for format_ in ("markdown", "html"):
        page = write_validation(validation, format_)
        for name in planted:
            assert name in page
    assert "<br/>" not in write_validation(validation, "html").split("</style>")[-1]


def test_entries_are_whole() -> None:
    assert len(CHECKS) > 30
    for name, check in CHECKS.items():
        assert check.severity in SEVERITIES and check.why.endswith(".") and check.remedy.endswith("."), name
        assert len(check.title) <= 50, name
