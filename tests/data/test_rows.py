"""Rows as other tools write them give the pairs that the same rows give in our own formats, or say what they are."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_models import build_byte_tokenizer

from dpotool.data.encoding import PairEncoder
from dpotool.data.pair_sets import load_pair_set
from dpotool.data.pairs import PreferencePair
from dpotool.data.sources import load_preferences
from dpotool.data.templates import FROZEN_DATE
from dpotool.errors import DpotoolError
from dpotool.settings.shared import DataSettings

WORDS = ("red", "blue", "green", "white")
TEXTS = [{"prompt": f"Say {word}:", "chosen": f" {word} it is", "rejected": f" not {word}"} for word in WORDS]


def say(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


CHATS: list[dict[str, Any]] = [
    {
        "prompt": [say("user", row["prompt"])],
        "chosen": [say("assistant", row["chosen"])],
        "rejected": [say("assistant", row["rejected"])],
    }
    for row in TEXTS
]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(data: str, **settings: Any) -> list[tuple[Any, Any, Any]]:
    return [(pair.prompt, pair.chosen, pair.rejected) for pair in load_preferences(data, **settings).pairs]


def fields(rows: list[dict[str, Any]]) -> list[tuple[Any, Any, Any]]:
    return [(row["prompt"], row["chosen"], row["rejected"]) for row in rows]


def sharegpt(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = {"user": "human", "assistant": "gpt"}
    return [{"from": names[message["role"]], "value": message["content"]} for message in messages]


def in_fields(change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: {name: change(value) for name, value in row.items()}


SHAPES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "sharegpt": lambda row: {
        "conversations": sharegpt(row["prompt"]),
        "chosen": sharegpt(row["chosen"])[0],
        "rejected": sharegpt(row["rejected"])[0],
    },
    "sharegpt lists": in_fields(sharegpt),
    "roles of sharegpt": in_fields(lambda value: [m | {"role": sharegpt([m])[0]["from"]} for m in value]),
    "content parts": in_fields(
        lambda value: [m | {"content": [{"type": "text", "text": m["content"]}]} for m in value]
    ),
    "one message": in_fields(lambda value: value[0]),
    "messages": lambda row: {"messages": row["prompt"], "chosen": row["chosen"][0], "rejected": row["rejected"][0]},
    "json in strings": in_fields(json.dumps),
    "json in json": in_fields(lambda value: json.dumps(json.dumps(value))),
    "printed by python": in_fields(str),
    "printed by numpy": in_fields(lambda value: str(np.array(value, dtype=object))),
    "text answers": lambda row: row | {name: row[name][0]["content"] for name in ("chosen", "rejected")},
    "whole conversations beside the prompt": lambda row: (
        row | {n: row["prompt"] + row[n] for n in ("chosen", "rejected")}
    ),
    "nothing filled in": in_fields(lambda value: [m | {"tool_calls": None} for m in value]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_read_as_what_it_means(shape: str, tmp_path: Path) -> None:
    assert read(write(tmp_path / "p.jsonl", [SHAPES[shape](row) for row in CHATS])) == fields(CHATS)


def test_lists_of_several_messages_come_back_from_csv(tmp_path: Path) -> None:
    rows = [row | {"prompt": [say("system", "Be 'brief'."), *row["prompt"]]} for row in CHATS]
    pd.DataFrame(rows).to_csv(tmp_path / "python.csv", index=False)
    frame = pd.DataFrame(rows).map(lambda value: np.array(value, dtype=object))
    frame.to_csv(tmp_path / "numpy.csv", index=False)
    assert read(str(tmp_path / "python.csv")) == fields(rows)
    assert read(str(tmp_path / "numpy.csv")) == fields(rows)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            CHATS[0] | {"prompt": "[{'role': 'user', 'content': 'Hi' 'there}]"},
            "'prompt' is the text of a list of messages",
        ),
        (
            CHATS[0] | {"prompt": [say("user", "") | {"content": [{"type": "image_url", "image_url": "x"}]}]},
            "content in parts that are no text: image_url",
        ),
        (CHATS[0] | {"chat_template_kwargs": {"chat_template": "x"}}, "may not set chat_template"),
    ],
)
def test_structure_is_never_scored_as_text(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DpotoolError, match=said):
        load_preferences(write(tmp_path / "p.jsonl", [row]))


def test_text_that_only_looks_a_little_like_structure_stays_text(tmp_path: Path) -> None:
    rows = [{"prompt": "[1] {role}:", "chosen": "[a]", "rejected": "{'b': 1}"}]
    assert read(write(tmp_path / "p.jsonl", rows)) == fields(rows)


@pytest.mark.parametrize("extra", [{"question": "Which?"}, {"system": "Be brief.", "instruction": "Name it."}])
def test_a_question_under_another_name_is_not_passed_over(extra: dict[str, str], tmp_path: Path) -> None:
    rows = [extra | {"chosen": f"The colour is {word}", "rejected": f"The answer is {word}"} for word in WORDS]
    for skip in (False, True):
        with pytest.raises(
            DpotoolError, match=rf"no 'prompt' column, and .*{list(extra)[-1]}.*; expected prompt, chosen"
        ):
            load_preferences(write(tmp_path / "p.jsonl", rows), skip_invalid=skip)


def test_a_question_that_is_in_the_completions_needs_no_column(tmp_path: Path) -> None:
    rows = [{"question": "Q: hue?", "chosen": f"Q: hue? {word}", "rejected": "Q: hue? none"} for word in WORDS]
    assert read(write(tmp_path / "p.jsonl", rows))[0] == ("Q: hue?", " red", " none")


def test_a_column_beside_the_prompt_is_named_as_not_read(tmp_path: Path) -> None:
    data = write(tmp_path / "p.jsonl", [row | {"system": "Be brief."} for row in TEXTS])
    assert load_preferences(data).source.unread == ("system",)


def test_a_prompt_that_every_completion_repeats_is_taken_off_once(tmp_path: Path) -> None:
    whole = [row | {name: row["prompt"] + row[name] for name in ("chosen", "rejected")} for row in TEXTS]
    assert read(write(tmp_path / "a.jsonl", whole)) == fields(TEXTS)
    with pytest.raises(DpotoolError, match="the completions of 3 of 4 rows begin with the prompt"):
        load_preferences(write(tmp_path / "b.jsonl", [*whole[:3], TEXTS[3]]))
    assert read(write(tmp_path / "c.jsonl", [whole[0], *TEXTS[1:]])) == fields([whole[0], *TEXTS[1:]])


def write_containers(folder: Path) -> dict[str, Path]:
    lines = "".join(json.dumps(row) + "\n" for row in TEXTS)
    texts = {
        "list.jsonl": json.dumps(TEXTS),
        "data.json": json.dumps({"version": 1, "data": TEXTS}, indent=2),
        "one-line.jsonl": json.dumps({"rows": TEXTS}),
        "pretty.jsonl": "\n".join(json.dumps(row, indent=2) for row in TEXTS),
        "columns.json": pd.DataFrame(TEXTS).to_json(),
        "lists.json": json.dumps({name: [row[name] for row in TEXTS] for name in TEXTS[0]}),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "utf16.jsonl").write_text(lines, encoding="utf-16")
    (folder / "utf16.csv").write_text(pd.DataFrame(TEXTS).to_csv(index=False), encoding="utf-16")
    (folder / "p.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "p.json.bz2").write_bytes(bz2.compress(json.dumps(TEXTS).encode()))
    (folder / "p.csv.gz").write_bytes(gzip.compress(pd.DataFrame(TEXTS).to_csv(index=False).encode()))
    with pa.output_stream(str(folder / "p.jsonl.zst"), compression="zstd") as file:
        file.write(lines.encode())
    return {path.name: path for path in folder.iterdir()}


def test_every_container_holds_the_same_rows(tmp_path: Path) -> None:
    containers = write_containers(tmp_path)
    assert len(containers) == 12
    for name, path in containers.items():
        assert read(str(path)) == fields(TEXTS), name
    assert load_preferences(str(containers["p.jsonl.gz"])).source.name == "p"


def test_a_folder_of_shards_is_read_by_split(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(TEXTS)
    folder = tmp_path / "ds" / "data"
    folder.mkdir(parents=True)
    pq.write_table(table.slice(0, 3), folder / "train-00000-of-00002.parquet")
    pq.write_table(table.slice(3), folder / "train-00001-of-00002.parquet")
    pq.write_table(table.slice(0, 2), folder / "test-00000-of-00001.parquet")
    for data in (tmp_path / "ds", folder):
        assert read(str(data), split="train") == fields(TEXTS)
        assert read(str(data)) == fields(TEXTS[:2])
    found = load_preferences(str(tmp_path / "ds"), split="train")
    assert [pair.pair_id for pair in found.pairs] == [0, 1, 2, 3]
    assert load_preferences(str(folder / "test-00000-of-00001.parquet")).source.split == "test"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer"),
        (json.dumps({"a": TEXTS, "b": TEXTS}), "holds rows under several names: a, b"),
        ('{"prompt": ' + "9" * 5000 + "}", "a number of too many digits"),
        ("[" * 100_000, "nested too deeply"),
        (json.dumps(TEXTS[0] | {"tools": json.loads("[" * 200 + "]" * 200)}), "nested too deeply"),
        (json.dumps(TEXTS[0] | {"tools": "[" * 100_000}), "'tools' is no JSON list"),
        (json.dumps(TEXTS[0] | {"score_chosen": 10**400, "score_rejected": 1}), "'score_chosen' is infinite"),
    ],
)
def test_what_cannot_be_read_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(DpotoolError, match=said) as caught:
        load_preferences(str(tmp_path / "p.jsonl"))
    assert "\n" not in str(caught.value)


def test_an_empty_name_is_no_data() -> None:
    with pytest.raises(DpotoolError, match="--data: is empty"):
        load_preferences("")


def test_nulls_that_parquet_fills_into_tool_calls_do_not_reach_the_template(tmp_path: Path) -> None:
    def call(**arguments: str) -> dict[str, Any]:
        return say("assistant", "") | {"tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}

    rows = [
        {"prompt": [say("user", "x"), call(**arguments), say("user", "y")], "chosen": [say("assistant", "a")]}
        | {"rejected": [say("assistant", "b")]}
        for arguments in ({"one": "1"}, {"two": "2"})
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    assert read(str(tmp_path / "p.parquet")) == read(write(tmp_path / "p.jsonl", rows))


def test_a_rendered_text_gets_no_second_bos() -> None:
    tokenizer = build_byte_tokenizer()
    tokenizer.add_bos_token = True
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 1)]
    )
    encoder = PairEncoder(tokenizer)
    plain, rendered = encoder.encode([PreferencePair(0, "Hi", " a", " b"), PreferencePair(1, "<bos>Hi", " a", " b")])
    assert not isinstance(plain, str)
    assert plain == rendered
    assert plain.prompt_ids.count(1) == 1


def test_a_template_that_prints_the_day_prints_the_same_one_always(tmp_path: Path) -> None:
    template = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    data = write(tmp_path / "p.jsonl", CHATS)
    dated, timeless = (
        load_pair_set(DataSettings(data=data), build_byte_tokenizer(chat_template=one), max_length=None, seed=0)
        for one in (template, template.replace("strftime_now('%d %b %Y')", "'26 Jul 2024'"))
    )
    assert [pair.prompt_ids for pair in dated.pairs] == [pair.prompt_ids for pair in timeless.pairs]
    assert (dated.source.template_date, timeless.source.template_date) == ("2024-07-26", None)
    assert f"{FROZEN_DATE:%d %b %Y}" == "26 Jul 2024"


def test_a_role_that_the_template_knows_nothing_of_is_told() -> None:
    template = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    encoder = PairEncoder(build_byte_tokenizer(chat_template=template))
    pair = PreferencePair(0, [say("narrator", "Once"), say("user", "Hi")], [say("user", "a")], [say("user", "b")])
    assert encoder.encode([pair]) == ["the chat template leaves out what a message of role 'narrator' says"]
