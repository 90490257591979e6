"""`judge` end to end against a server that fails in every way, and by judges that score: nothing lost or twice."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from judge_server import JudgeServer, serving

from dpotool.errors import DpotoolError
from dpotool.judging import endpoint
from dpotool.judging.run import JudgeResult, judge_answers, plan_asking
from dpotool.settings.answers import JudgeConfig

N = 12


def write_answers(folder: Path, name: str, texts: list[str], turns: int = 1) -> str:
    path = folder / f"{name}.jsonl"
    rows = [
        {"question_id": str(n), "sample": 0, "prompt": [f"Question {n}?"] * turns, "reference": [f"right {n}"] * turns,
         "answer": [text] * turns, "category": "odd" if n % 2 else "even"}
        for n, text in enumerate(texts)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read_shown(prompt: str) -> tuple[str, str]:
    a = re.search(r"Assistant A's Response: (.*)", prompt)
    b = re.search(r"Assistant B's Response: (.*)", prompt)
    assert a and b
    return a.group(1), b.group(1)


def prefer_good(prompt: str) -> str:
    """Prefers the answer that says 'good'."""
    a, b = read_shown(prompt)
    return "Tie" if ("good" in a) == ("good" in b) else "A\nbetter" if "good" in a else "B\nbetter"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setenv("DPOTOOL_API_KEY", "sk-very-secret-123")
    monkeypatch.setattr(endpoint, "LONGEST_PAUSE", 0.0)
    with serving(prefer_good) as state:
        yield state


@pytest.fixture
def sets(tmp_path: Path) -> list[str]:
    """The model is good on 8 questions, the baseline on 3 others; question 11 they answer alike."""
    ours = [f"good {n} and long" if n < 8 else f"bad {n}" for n in range(N - 1)] + ["same"]
    theirs = [f"good {n}" if n >= 8 else f"poor {n}" for n in range(N - 1)] + ["same "]
    return [write_answers(tmp_path, "ours", ours), write_answers(tmp_path, "base", theirs)]


def run(sets: list[str], server: JudgeServer | None, tmp_path: Path, **options: object) -> JudgeResult:
    told: dict[str, object] = {"output": str(tmp_path / "out"), "concurrency": 3, "timeout": 20.0}
    if server is not None:
        told |= {"endpoint": server.url, "judge_model": "judge-1"}
    (result,) = judge_answers(sets, JudgeConfig(**(told | options)))  # type: ignore[arg-type]
    return result


def test_both_orders(sets: list[str], server: JudgeServer, tmp_path: Path):
    result = run(sets, server, tmp_path)
    summary = result.summary
    assert (summary["wins"], summary["ties"], summary["losses"]) == (8, 1, 3)
    assert summary["identical"] == 1 and server.n_requests == 22, "identical answers are not asked about"
    assert summary["order_effect"]["agreement"]["mean"] == 1 and summary["order_effect"]["position_bias"]["value"] == 0
    assert sorted(path.name for path in (tmp_path / "out" / "judgments").iterdir()) == [
        "ours-vs-base-judge-1.parquet", "ours-vs-base-judge-1.replies.jsonl", "ours-vs-base-judge-1.summary.json",
    ]  # fmt: skip


def test_the_other_way_round_is_the_mirror(sets: list[str], server: JudgeServer, tmp_path: Path):
    there, back = run(sets, server, tmp_path).summary, run(sets[::-1], server, tmp_path).summary
    assert there["win_rate"]["ties_half"]["value"] == pytest.approx(1 - back["win_rate"]["ties_half"]["value"])
    assert server.n_requests == 44, "and is asked under its own names"


def test_one_order_is_half(sets: list[str], server: JudgeServer, tmp_path: Path):
    summary = run(sets, server, tmp_path, one_order=True).summary
    assert server.n_requests == 11 and summary["order_effect"] is None and summary["wins"] == 8


def test_a_judge_of_places_is_unmasked(sets: list[str], server: JudgeServer, tmp_path: Path):
    server.answer = lambda _prompt: "A"
    summary = run(sets, server, tmp_path).summary
    assert summary["win_rate"]["ties_half"]["value"] == 0.5
    assert summary["order_effect"]["position_bias"]["value"] == 1


def test_a_judge_of_length_is_unmasked(tmp_path: Path, server: JudgeServer):
    draw = random.Random(0)
    ours = [f"{n} " + "x" * max(1, round(draw.gauss(90, 30))) for n in range(120)]
    theirs = [f"{n}. " + "y" * max(1, round(draw.gauss(70, 30))) for n in range(120)]
    sets = [write_answers(tmp_path, "a", ours), write_answers(tmp_path, "b", theirs)]
    server.tells_usage = False
    server.answer = lambda prompt: "A" if len(read_shown(prompt)[0]) > len(read_shown(prompt)[1]) else "B"
    summary = run(sets, server, tmp_path).summary
    control = summary["length_control"]
    assert control["longer_preferred"]["mean"] == 1 and summary["win_rate"]["ties_half"]["ci_low"] > 0.5
    assert control["win_rate"]["ci_low"] < 0.5 < control["win_rate"]["ci_high"]


def test_every_fault_is_survived_and_nothing_is_asked_twice(sets: list[str], server: JudgeServer, tmp_path: Path):
    server.faults = ["429", "500", "cut", "slow", "drop", "503", "429", "cut", "500"]
    result = run(sets, server, tmp_path, timeout=3.0, attempts=20)
    assert result.summary["wins"] == 8 and result.summary["without_outcome"] == 0
    rows = read_replies(tmp_path)
    assert len(rows) == 22 and all(row["status"] == "ok" for row in rows)
    failures = [text for row in rows for text in row["failures"]]
    assert len(failures) >= 9 and {"status 500", "a body that breaks off"} <= set(failures)
    given_up = sum("no answer within" in text for text in failures)  # the server may have answered those after all
    assert sum(server.asked.values()) <= 22 + given_up and len(server.asked) == 22


def read_replies(tmp_path: Path) -> list[dict[str, object]]:
    (path,) = (tmp_path / "out" / "judgments").glob("*.replies.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_second_run_asks_nothing(sets: list[str], server: JudgeServer, tmp_path: Path):
    first = run(sets, server, tmp_path).summary
    assert run(sets, server, tmp_path).summary == first and server.n_requests == 22


def test_a_server_that_dies_loses_no_reply(sets: list[str], server: JudgeServer, tmp_path: Path):
    """It answers 9 and is gone; the rest is shown as missing, in no class, and asked by the next run alone."""
    server.stop_after = 9
    summary = run(sets, server, tmp_path, attempts=2).summary
    assert summary["verdicts"]["judged"] == sum(server.asked.values()) and summary["without_outcome"] > 0
    assert summary["wins"] + summary["losses"] + summary["ties"] + summary["without_outcome"] == N
    server.stop_after = None
    assert run(sets, server, tmp_path).summary["wins"] == 8
    assert set(server.asked.values()) == {1}, "nothing was answered twice"


def test_killed_and_resumed(sets: list[str], server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Interrupted after seven replies were written, the seventh line torn: six are kept, all others asked again."""
    from dpotool.judging.replies import ReplyBook

    add, n_added = ReplyBook.add, 0

    def interrupted(book: ReplyBook, *args: object) -> None:
        nonlocal n_added
        add(book, *args)  # type: ignore[arg-type]
        n_added += 1
        if n_added == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(ReplyBook, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(sets, server, tmp_path, concurrency=1)
    (path,) = (tmp_path / "out" / "judgments").glob("*.replies.jsonl")
    path.write_text(path.read_text(encoding="utf-8")[:-30], encoding="utf-8")
    monkeypatch.setattr(ReplyBook, "add", add)
    assert run(sets, server, tmp_path, concurrency=1).summary["wins"] == 8
    assert len([prompt for prompt, n in server.asked.items() if n > 1]) <= 2, "the torn one, and one under way"


def test_replies_without_a_verdict_are_in_no_class(sets: list[str], server: JudgeServer, tmp_path: Path):
    server.answer = lambda prompt: "42955824" if "Question 1?" in prompt else "Neither" if "n 2?" in prompt else "A"
    summary = run(sets, server, tmp_path).summary
    assert summary["without_outcome"] == 2 and summary["verdicts"]["no verdict in the reply"] == 4
    assert summary["n"] == N - 2


def test_another_model_stops_the_run(sets: list[str], server: JudgeServer, tmp_path: Path):
    server.faults = ["other-model"]
    with pytest.raises(DpotoolError, match="answers with another model; expected judge-1, got llama-9"):
        run(sets, server, tmp_path, concurrency=1)


def test_a_server_that_cuts_prompts_stops_the_run(sets: list[str], server: JudgeServer, tmp_path: Path):
    """By the judge's own tokenizer at the first reply."""
    from tiny_models import build_byte_tokenizer

    build_byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(DpotoolError, match=r"the server cuts prompts.*OLLAMA_CONTEXT_LENGTH"):
        run(sets, server, tmp_path, judge_tokenizer=str(tmp_path / "tokenizer"))


def test_cut_prompts_are_seen_without_a_tokenizer(tmp_path: Path, server: JudgeServer):
    """Prompts of 150 to 450 words, read as 200 at most: several are read as equally many tokens."""
    ours = [f"good {n} " + "word " * (25 * n) for n in range(N)]
    sets = [write_answers(tmp_path, "a", ours), write_answers(tmp_path, "b", [f"poor {n}" for n in range(N)])]
    server.context = 200
    with pytest.raises(DpotoolError, match="the server cuts prompts"):
        run(sets, server, tmp_path)
    server.context = None
    (path,) = (tmp_path / "out" / "judgments").glob("*.replies.jsonl")
    path.unlink()
    assert run(sets, server, tmp_path).summary["wins"] == N


def test_the_key_is_nowhere(sets: list[str], server: JudgeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """It reaches the server and no file; a server that repeats it in an error does not get it printed."""
    server.faults = ["400"]
    run(sets, server, tmp_path, concurrency=1)
    assert set(server.headers) == {"Bearer sk-very-secret-123"}
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"secret" not in path.read_bytes(), path
    server.faults = ["401"]
    with pytest.raises(DpotoolError, match=r"status 401 .*\[key\].*Set DPOTOOL_API_KEY") as caught:
        run(sets, server, tmp_path, output=str(tmp_path / "other"))
    printed = capsys.readouterr()
    assert "secret" not in str(caught.value) + printed.out + printed.err


def test_an_address_with_a_password_is_refused(sets: list[str], tmp_path: Path):
    with pytest.raises(DpotoolError, match="holds a name, password or query") as caught:
        run(sets, None, tmp_path, endpoint="http://me:hidden@x/v1", judge_model="j")
    assert "hidden" not in str(caught.value)


def test_a_refused_request_is_counted(sets: list[str], server: JudgeServer, tmp_path: Path):
    server.faults = ["400"]
    summary = run(sets, server, tmp_path, concurrency=1).summary
    assert summary["verdicts"]["refused: status 400"] == 1 and summary["without_outcome"] == 1


def test_dry_run_counts(sets: list[str], server: JudgeServer):
    config = JudgeConfig(endpoint=server.url, judge_model="judge-1")
    (plan,) = plan_asking(sets, config)
    assert (plan.n_answers, plan.n_identical, plan.n_there, plan.n_requests) == (12, 1, 0, 22)
    assert plan.characters > 22 * 500 and server.n_requests == 0


def test_dry_run_leaves_out_what_was_answered(sets: list[str], server: JudgeServer, tmp_path: Path):
    server.stop_after = 9
    run(sets, server, tmp_path, attempts=1, concurrency=1)
    n_answered, n_requests = sum(server.asked.values()), server.n_requests
    config = JudgeConfig(endpoint=server.url, judge_model="judge-1", output=str(tmp_path / "out"))
    (plan,) = plan_asking(sets, config)
    assert (plan.n_there, plan.n_requests) == (n_answered, 22 - n_answered) and server.n_requests == n_requests
    with pytest.raises(DpotoolError, match="no judge is asked when judgments are read"):
        plan_asking(sets, JudgeConfig(judgments="x", dry_run=True))


def test_chrf_is_a_proxy(tmp_path: Path):
    """The model repeats the reference."""
    sets = [write_answers(tmp_path, "a", [f"right {n}" for n in range(N)]), write_answers(tmp_path, "b", ["?"] * N)]
    summary = run(sets, None, tmp_path, judge="chrf").summary
    assert summary["wins"] == N and summary["is_proxy"] and "proxy" in summary["caveat"]


@pytest.mark.parametrize(("name", "inside"), [("out", "judgments"), ("judgments", ".")])
def test_the_folder_of_the_first_judgments_becomes_a_run_and_no_other(
    sets: list[str], server: JudgeServer, tmp_path: Path, name: str, inside: str
):
    """Also one that is called as the tables' own folder is, which then lie in it."""
    result = run(sets, server, tmp_path, output=str(tmp_path / "here" / name))
    assert result.path.parent == (tmp_path / "here" / name / inside)
    assert [path.parent.name for path in (tmp_path / "here").rglob("run.yaml")] == [name]


def test_what_is_missing_is_named(sets: list[str], tmp_path: Path):
    with pytest.raises(DpotoolError, match="no judge is named; expected endpoint: a model on a server"):
        run(sets, None, tmp_path)
    with pytest.raises(DpotoolError, match="--judge reward: needs --judge-model"):
        run(sets, None, tmp_path, judge="reward")
    with pytest.raises(DpotoolError, match="two sets of answers are needed"):
        run(sets[:1], None, tmp_path, judge="chrf")


def test_a_reward_model_does_not_care_for_batches(sets: list[str], tmp_path: Path):
    """A tiny classifier with random weights: the scores are those of one row at a time."""
    import torch
    from tiny_models import build_byte_tokenizer
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=259, num_labels=1, pad_token_id=0, **sizes)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "rm")
    build_byte_tokenizer().save_pretrained(tmp_path / "rm")
    together, apart = (
        run(sets, None, tmp_path, judge="reward", judge_model=str(tmp_path / "rm"), batch_tokens=n).frame
        for n in (4096, 1)
    )
    assert together["model_score"].dropna().to_numpy() == pytest.approx(
        apart["model_score"].dropna().to_numpy(), abs=1e-5
    )
    assert together["verdict"].tolist() == apart["verdict"].tolist()
    assert len(set(together["model_score"].dropna())) > 5
