"""`generate` end to end on a tiny model: files, resuming, settings, turns, and what the summary says of the answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from filelock import FileLock
from judge_server import JudgeServer, serving
from tiny_models import save_tiny_model, write_pairs

from dpotool.data.pairs import TokenizedPair
from dpotool.errors import DpotoolError
from dpotool.judging import local
from dpotool.judging.answer_summary import count_distinct, repeated_share, summarize_answers
from dpotool.judging.answering import GenerateResult, choose_baseline, generate_answers
from dpotool.judging.answers import Answer, open_answers, read_answers
from dpotool.judging.generation import generate_batches
from dpotool.likelihood.pair_logps import compute_pair_logps
from dpotool.models.loading import load_model
from dpotool.runs.locks import LOCK_NAME, InUseError
from dpotool.settings.answers import GenerateConfig


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    return [str(save_tiny_model(tmp_path / name, seed=seed)) for seed, name in enumerate(("one", "two"))]


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    return str(write_pairs(tmp_path / "pairs_test.jsonl", 12))


def run(model: str, pairs: str, **options: object) -> GenerateResult:
    told: dict[str, object] = {"data": pairs, "max_new_tokens": 10, "output": model, "reference": None}
    return generate_answers([model], GenerateConfig(**(told | options)))[0]  # type: ignore[arg-type]


def test_files_and_rows(models: list[str], pairs: str):
    result = run(models[0], pairs)
    assert sorted(path.name for path in (Path(models[0]) / "answers").iterdir()) == [
        "pairs_test-test.jsonl",
        "pairs_test-test.summary.json",
    ]
    rows = [json.loads(line) for line in result.path.read_text(encoding="utf-8").splitlines()]
    first = json.loads(Path(pairs).read_text(encoding="utf-8").splitlines()[0])
    assert rows[0]["prompt"] == [first["prompt"]] and rows[0]["reference"] == [first["chosen"].strip()]
    assert [row["question_id"] for row in rows] == [str(n) for n in range(12)]
    assert read_answers(result.path) == result.answers == open_answers(models[0]).answers
    for row in rows:
        assert row["finish"] == (["stop"] if row["token_ids"][0][-1] == 2 else ["length"])


def test_a_folder_where_another_command_trains_gets_no_answers(models: list[str], pairs: str):
    about = {"command": "train", "pid": 1, "host": "node-3", "since": "today"}
    lock = Path(models[0]) / LOCK_NAME
    with FileLock(lock):
        lock.write_text(json.dumps(about))
        with pytest.raises(InUseError, match=r"at work in this folder \(train, process 1 on node-3"):
            run(models[0], pairs)
    assert not (Path(models[0]) / "answers").exists()


def test_what_is_there_is_not_generated_again(models: list[str], pairs: str, monkeypatch: pytest.MonkeyPatch):
    """Half, then all, then once more: each answer once; and the same answers as in one go."""
    asked: list[int] = []

    def counting(model, jobs, *args, **options):  # type: ignore[no-untyped-def]
        asked.append(len(jobs))
        return generate_batches(model, jobs, *args, **options)

    monkeypatch.setattr(local, "generate_batches", counting)
    run(models[0], pairs, limit=5, temperature=1.0)
    again = run(models[0], pairs, temperature=1.0)
    assert run(models[0], pairs, temperature=1.0).answers == again.answers
    assert sum(asked) == 12
    fresh = run(models[0], pairs, temperature=1.0, output=models[1])
    assert [a.turns for a in fresh.answers] == [a.turns for a in again.answers]


def test_interrupted_work_goes_on(models: list[str], pairs: str, monkeypatch: pytest.MonkeyPatch):
    """Killed after two groups, the last line torn: the others are kept, the rest is made."""
    n_groups = 0

    def breaking(*args, **options):  # type: ignore[no-untyped-def]
        nonlocal n_groups
        n_groups += 1
        if n_groups == 3:
            raise KeyboardInterrupt
        return generate_batches(*args, **options)

    monkeypatch.setattr(local, "generate_batches", breaking)
    with pytest.raises(KeyboardInterrupt) as stop:
        run(models[0], pairs, batch_tokens=60)
    path = Path(models[0]) / "answers" / "pairs_test-test.jsonl"
    kept = path.read_text(encoding="utf-8").splitlines()
    assert 0 < len(kept) < 12
    assert str(stop.value) == f"{len(kept)} answers of 12 are in {path}, and the same command generates the rest"
    path.write_text("\n".join([*kept[:-1], kept[-1][:50]]), encoding="utf-8")
    monkeypatch.setattr(local, "generate_batches", generate_batches)
    assert run(models[0], pairs, batch_tokens=60).answers == run(models[0], pairs, output=models[1]).answers


def test_other_settings_are_not_mixed(models: list[str], pairs: str):
    run(models[0], pairs)
    with pytest.raises(DpotoolError, match="holds 12 answers made with other weights or settings"):
        run(models[0], pairs, max_new_tokens=11)
    assert len(run(models[0], pairs, max_new_tokens=11, overwrite=True).answers) == 12


def test_two_turns_and_samples(models: list[str], tmp_path: Path):
    """The second answer is to a conversation with the first in it; samples differ."""
    questions = tmp_path / "question.jsonl"
    rows = [{"question_id": n, "category": "c", "turns": ["Hi", f"And {n}?"][: 1 + n % 2]} for n in range(4)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = run(models[0], "builtin:demo", questions=str(questions), samples=2, temperature=1.5, max_new_tokens=6)
    assert [len(answer.turns) for answer in result.answers] == [1, 1, 2, 2, 1, 1, 2, 2]
    assert result.answers[2].turns != result.answers[3].turns
    assert result.path.name == "question.jsonl" and result.answers[0].question.category == "c"


def test_log_probabilities_are_those_of_scoring(models: list[str], pairs: str):
    result = run(models[0], pairs, reference=models[1], dtype="float64")
    answer = result.answers[3]
    prompt = tuple(load_prompt(models[0], answer.question.turns[0]))
    pair = TokenizedPair(0, prompt, answer.token_ids[0], answer.token_ids[0])
    for place, model in enumerate(models):
        expected = compute_pair_logps(load_model(model, dtype="float64"), [pair]).chosen[0]
        assert result.logps["3", 0][place] == pytest.approx(expected, abs=1e-9)
    kl = result.summary["kl_per_token"]["mean"]
    sums = list(result.logps.values())
    assert kl == pytest.approx(sum(p - r for p, r, _ in sums) / sum(n for *_, n in sums))


def load_prompt(model: str, prompt: str) -> list[int]:
    from dpotool.models.loading import load_tokenizer

    return load_tokenizer(model)(prompt)["input_ids"]


def test_prompts_without_room_are_counted(models: list[str], pairs: str):
    result = run(models[0], pairs, max_length=20, max_new_tokens=10)
    assert result.left_out and len(result.answers) + sum(result.left_out.values()) == 12


def test_repetition_by_hand():
    """a b a b a b: 4-grams abab, baba, abab: one of three repeats; bigrams ab ba ab ba ab: three of five."""
    assert repeated_share("ababab", 4) == pytest.approx(1 / 3) and repeated_share("ababab", 2) == pytest.approx(3 / 5)
    assert repeated_share("abc", 4) == 0
    assert count_distinct([["ab"], ["ab"]], 2) == 0.5


def test_summary_beside_a_baseline():
    ours = [Answer(str(n), (text,), finish=("stop",), token_counts=(3,)) for n, text in enumerate(("a b", "c d", "e"))]
    theirs = [Answer(str(n), (text,)) for n, text in enumerate(("a b ", "c", "e f g"))]
    summary = summarize_answers(ours, theirs)
    assert summary["identical"]["mean"] == pytest.approx(1 / 3)
    assert summary["longer"]["difference"]["mean"] == pytest.approx((-1 + 2 - 4) / 3)
    assert summary["ended"]["mean"] == 1 and summary["kl_per_token"] is None


def test_baseline_is_dpo_unless_told():
    assert choose_baseline(["a", "DPO", "b"], None) == 1
    assert choose_baseline(["a", "b"], None) == 0 and choose_baseline(["a", "b"], None, last=True) == 1
    with pytest.raises(DpotoolError, match="no model is called 'x'; expected a or b"):
        choose_baseline(["a", "b"], "x")


def test_many_greedy_samples_are_refused(models: list[str], pairs: str):
    with pytest.raises(DpotoolError, match="all samples of greedy decoding are the same"):
        run(models[0], pairs, samples=2)


def ask(server: JudgeServer, folder: Path, **options: object) -> GenerateResult:
    told: dict[str, object] = {"endpoint": server.url, "served_model": "m", "output": str(folder), "concurrency": 2}
    return generate_answers([], GenerateConfig(**(told | options)))[0]  # type: ignore[arg-type]


def test_a_server_answers_prompts_as_they_are(pairs: str, tmp_path: Path):
    """One request a prompt, a refused one is counted and not lost; a second run asks nothing that was answered."""
    with serving(lambda prompt: f"to {prompt}") as server:
        server.faults = ["429", "400"]
        result = ask(server, tmp_path / "out", data=pairs, concurrency=1)
        assert result.left_out == {"refused: status 400": 1} and len(result.answers) == 11
        assert {answer.text for answer in result.answers} == {f"to {prompt}" for prompt in server.asked}
        assert all(answer.question.turns[0] in server.asked for answer in result.answers), "nothing is put around them"
        n_requests = server.n_requests
        assert ask(server, tmp_path / "out", data=pairs).answers == result.answers == read_answers(result.path)
        assert server.n_requests == n_requests
    assert result.answers[0].finish == ("stop",) and result.summary["n"] == 11


def test_a_server_sees_the_conversation_so_far(tmp_path: Path):
    """Two turns and two samples: the second request holds the first answer, and samples have seeds of their own."""
    questions = tmp_path / "question.jsonl"
    questions.write_text('{"question_id": 1, "turns": ["One?", "Two?"]}\n', encoding="utf-8")
    with serving(lambda text: f"<{len(text.splitlines())}>") as server:
        result = ask(server, tmp_path / "out", questions=str(questions), samples=2, temperature=0.7)
        assert server.asked == {"One?": 2, "One?\n<1>\nTwo?": 2}
    assert [answer.turns for answer in result.answers] == [("<1>", "<3>")] * 2
    replies = (tmp_path / "out" / "answers" / "question.replies.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["name"] for line in replies[:2]] != [json.loads(line)["name"] for line in replies[2:]]


def test_a_server_that_cuts_prompts_stops_the_run(tmp_path: Path):
    """Questions of 100 to 650 words, of which it reads the last 150; short ones alone give no sign and no alarm."""
    rows = [{"question_id": n, "turns": ["word " * (100 + 50 * n)]} for n in range(12)]
    questions = tmp_path / "question.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with serving(lambda _: "x") as server:
        server.context = 150
        with pytest.raises(DpotoolError, match=r"the server cuts prompts.*OLLAMA_CONTEXT_LENGTH"):
            ask(server, tmp_path / "out", questions=str(questions))


def test_answers_made_elsewhere_are_summarised(tmp_path: Path):
    """Two of FastChat's files: one answer is the same, the other twice as long; nothing is written."""
    texts = {"base": ["a b c d", "one two three"], "long": ["a b c d", "one two three one two three"]}
    for name, answers in texts.items():
        rows = [{"question_id": n, "choices": [{"turns": [text]}]} for n, text in enumerate(answers)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = [str(tmp_path / f"{name}.jsonl") for name in texts]
    base, long = generate_answers(files, GenerateConfig())
    assert (base.label, long.label, long.summary["baseline"]) == ("base", "long", "base")
    assert long.summary["identical"]["mean"] == 0.5 and long.summary["longer"]["difference"]["mean"] == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.jsonl", "long.jsonl"]
