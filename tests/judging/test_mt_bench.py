"""MT-Bench: two turns graded apart, by category; references shown where there are any; FastChat's grades read."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from judge_server import serving

from dpotool.compare.ratings import compare_ratings, state_ratings, summarize_ratings
from dpotool.errors import DpotoolError
from dpotool.judging.mt_bench import grade_answers, import_grades, plan_grading
from dpotool.judging.prompts import SINGLE, fill_single, open_prompts
from dpotool.judging.questions import read_questions
from dpotool.models.loading import load_model, load_tokenizer
from dpotool.plots.gallery import draw
from dpotool.settings.answers import JudgeConfig
from dpotool.settings.reading import PlotConfig

MODEL = os.environ.get("DPOTOOL_REAL_MODEL", "")
REAL = Path(__file__).parents[3] / "shared" / "data" / "judging" / "mt_bench"


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_two_turns_by_category(tmp_path: Path):
    """The judge gives 8 for a first turn and 4 for a second one, 2 points more where it sees a reference."""
    ids = range(81, 85)
    category = {81: "math", 82: "math", 83: "writing", 84: "writing"}
    questions = write(
        tmp_path / "question.jsonl",
        [{"question_id": n, "category": category[n], "turns": [f"First {n}", f"Second {n}"]} for n in ids],
    )
    turns = {"choices": [{"index": 0, "turns": ["one", "two"]}]}
    references = write(tmp_path / "reference.jsonl", [{"question_id": n, **turns} for n in (81, 82)])
    answers = write(tmp_path / "m.jsonl", [{"question_id": n, "model_id": "m", **turns} for n in ids])

    def judge(prompt: str) -> str:
        if "First 84" in prompt and "Second" in prompt:
            return "I would not grade this."
        return f"Rating: [[{(4 if 'Second' in prompt else 8) + 2 * ('Reference' in prompt)}]]"

    with serving(judge) as server:
        config = JudgeConfig(
            bench="mt-bench", endpoint=server.url, judge_model="j", questions=questions, references=references,
            output=str(tmp_path / "out"),
        )  # fmt: skip
        (plan,) = plan_grading([answers], config)
        assert (plan.n_answers, plan.n_requests, server.n_requests) == (8, 8, 0), "nothing is sent by a dry run"
        (result,) = grade_answers([answers], config)
        assert plan_grading([answers], config)[0].n_there == 8
    summary = result.summary
    assert (summary["n"], summary["without_rating"]) == (7, 1)
    assert summary["turn_1"]["mean"] == 9 and summary["turn_2"]["mean"] == pytest.approx((6 + 6 + 4) / 3)
    assert summary["by_category"]["math"]["mean"] == 8
    assert summary["by_category"]["writing"]["mean"] == pytest.approx((8 + 8 + 4) / 3)
    assert result.path == tmp_path / "out" / "ratings" / "m-j.parquet"


def test_fastchats_grades(tmp_path: Path):
    rows = [
        {"question_id": n, "model": model, "judge": ["gpt-4", "single-v1"], "score": score, "turn": turn}
        for model, shift in (("a", 0), ("b", 1))
        for n in range(6)
        for turn, score in ((1, 6 + shift), (2, 5 + shift))
    ]
    path = write(tmp_path / "single.jsonl", rows)
    a, b = import_grades(JudgeConfig(bench="mt-bench", judgments=path, baseline="a", output=str(tmp_path)))
    assert (a.summary["overall"]["mean"], b.summary["overall"]["mean"]) == (5.5, 6.5)
    assert b.summary["difference"]["difference"]["mean"] == 1 and a.summary["difference"] is None
    (said,) = state_ratings([a.summary, b.summary])
    assert said == "b is graded higher than a by this judge: +1.00 [+1.00, +1.00] points of 10."


def test_differences_are_paired():
    """Grades 1..4 and each one point more: the difference is one point, without any spread."""
    base = pd.DataFrame({"question_id": list("abcd"), "turn": 1, "rating": [1.0, 2, 3, 4]})
    found = compare_ratings({"m": base.assign(rating=base["rating"] + 1), "base": base}, "base")["m"]
    assert (found["difference"]["ci_low"], found["difference"]["ci_high"]) == (1, 1)


def test_one_shared_question_tells_no_two_models_apart():
    base = pd.DataFrame({"question_id": ["a"], "turn": 1, "rating": [1.0]})
    found = compare_ratings({"m": base.assign(rating=5.0), "base": base}, "base")["m"]
    summaries = [{"label": "m", "baseline": "base", "difference": found}, {"label": "base", "difference": None}]
    assert state_ratings(summaries) == ["m and base cannot be told apart by their grades: +4.00 points of 10."]


def test_turns_of_a_question_are_drawn_together():
    """Both turns of a question have the same grade: twice the rows, the interval of the questions alone."""
    once = pd.DataFrame({"question_id": list("abcdefgh"), "turn": 1, "rating": [1.0, 9, 2, 8, 3, 7, 4, 6]})
    once = once.assign(status="judged", category=None)
    twice = pd.concat([once, once.assign(turn=2)])
    one, two = summarize_ratings(once)["overall"], summarize_ratings(twice)["overall"]
    assert (two["ci_low"], two["ci_high"]) == pytest.approx((one["ci_low"], one["ci_high"]))


def test_fastchats_prompts_are_taken_as_they_are(tmp_path: Path):
    fields = "[Q] {question} [R] {ref_answer_1} [A] {answer} {{not jinja}}"
    rows = [
        {"name": name, "system_prompt": "judge", "prompt_template": fields if "multi" not in name else "{question_2}"}
        for name in ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")
    ]
    book = open_prompts(write(tmp_path / "judge_prompts.jsonl", rows), SINGLE, "first-word")
    messages = fill_single(book.choose(1, True), ["q"], ["r"], ["a"])
    assert messages[1]["content"] == "[Q] q [R] r [A] a {{not jinja}}"
    assert fill_single(book.choose(2, False), ["q", "q2"], [], ["a", "b"])[1]["content"] == "q2"


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="MT-Bench's files are not here (../shared/data/judging)")
def test_mt_bench_itself():
    """Its 80 questions of two turns, with its references: 160 requests a model, eight categories."""
    answers = [str(path) for path in sorted((REAL / "answers").glob("*.jsonl"))]
    questions = {name: str(REAL / f"{name[:-1]}.jsonl") for name in ("questions", "references")}
    config = JudgeConfig(bench="mt-bench", endpoint="http://localhost:1/v1", judge_model="j", **questions)
    plans = plan_grading(answers, config)
    assert [(plan.label, plan.n_requests) for plan in plans] == [(n, 160) for n in ("dpo", "sft", "shift-0.95")]
    asked = read_questions(questions["questions"], questions["references"])
    assert len({each.category for each in asked}) == 8 and sum(bool(each.references) for each in asked) == 30


def open_grader() -> Callable[[str], str]:
    """A real model that can only answer with a grade: the mean of 1 to 9 by its probabilities of them after "[["."""
    model, tokenizer = load_model(MODEL, dtype="float32", device="cpu"), load_tokenizer(MODEL)
    digits = [tokenizer.encode(str(number), add_special_tokens=False)[-1] for number in range(1, 10)]

    def grade(text: str) -> str:
        asked = [{"role": "user", "content": text}]
        opened = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False) + "Grade: [["
        ids = torch.tensor([tokenizer.encode(opened, add_special_tokens=False)])
        with torch.no_grad():
            logits = model(input_ids=ids, logits_to_keep=1).logits[0, -1, digits]
        return f"Grade: [[{float(logits.softmax(0) @ torch.arange(1.0, 10.0)):.2f}]]"

    return grade


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="MT-Bench's files are not here (../shared/data/judging)")
@pytest.mark.skipif(not Path(MODEL or "absent").is_dir(), reason="DPOTOOL_REAL_MODEL names no model folder")
def test_real_answers_graded_by_a_real_model(tmp_path: Path):
    """A question of four categories, two models, two turns: 16 grades, a table by category, and the radar of them."""
    chosen: dict[str, dict[str, object]] = {}
    for line in (REAL / "question.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["category"] in ("math", "reasoning", "writing", "humanities"):
            chosen.setdefault(row["category"], row)
    ids = {row["question_id"] for row in chosen.values()}
    files = {"questions": write(tmp_path / "question.jsonl", list(chosen.values()))}
    for name in ("reference", "sft", "dpo"):
        source = REAL / ("reference.jsonl" if name == "reference" else f"answers/{name}.jsonl")
        rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        files[name] = write(tmp_path / f"{name}.jsonl", [row for row in rows if row["question_id"] in ids])
    config = JudgeConfig(
        bench="mt-bench", questions=files["questions"], references=files["reference"], judge_model="forced",
        output=str(tmp_path / "run"), concurrency=1, timeout=600,
    )  # fmt: skip
    with serving(open_grader()) as server:
        server.tells_usage = False  # it counts words
        results = grade_answers([files["sft"], files["dpo"]], replace(config, endpoint=server.url))
    assert Counter(row["status"] for each in results for row in each.frame.to_dict("records")) == {"judged": 16}
    assert all(1 < rating < 9 for each in results for rating in each.frame["rating"])
    assert all(set(each.summary["by_category"]) == set(chosen) for each in results)
    assert results[0].summary["difference"]["n"] == 8
    [picture] = draw("mt-bench", [str(tmp_path / "run")], PlotConfig(output=str(tmp_path / "out"))).paths
    assert picture.stat().st_size > 20_000


def test_an_unknown_bench_is_refused():
    with pytest.raises(DpotoolError, match="--bench: unknown bench; expected mt-bench, got 'arena'"):
        grade_answers([], JudgeConfig(bench="arena"))
