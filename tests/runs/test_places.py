from __future__ import annotations

from pathlib import Path

import pytest

from dpotool.runs.places import hide_folders, tell_path

HERE = Path("/base/work")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data /home/me/pairs/train.jsonl, limit", "data …/train.jsonl, limit"),
        ("Go on with /base/work/runs/dpo.", "Go on with runs/dpo."),
        ("--config '/home/me/x/run.yaml'", "--config '…/run.yaml'"),
        ("~/data/a.jsonl C:\\Users\\me\\a.jsonl", "…/a.jsonl …/a.jsonl"),
        ("~me/a.jsonl C:/Users/me/a.jsonl", "…/a.jsonl …/a.jsonl"),
        ("file:///home/me/a.jsonl, file:/home/me/b.jsonl", "…/a.jsonl, …/b.jsonl"),
        ("file://server/home/me/a.jsonl", "…/a.jsonl"),
        (r"from \\server\share\me\a.jsonl", "from …/a.jsonl"),
        ("in ../../home/me/a.jsonl", "in …/a.jsonl"),
        ("in ../run and ../work/runs/dpo", "in …/run and runs/dpo"),
        ("in runs/../../../home/me/a.jsonl", "in …/a.jsonl"),
        ("in /base/work/../../home/me/a.jsonl", "in …/a.jsonl"),
        ("in /home/me/pairs/", "in …/pairs"),
        ("dpotool score '/home/me/my own/dpo' -o x", "dpotool score '…/dpo' -o x"),
        ("runs/dpo and/or https://host/a/b, 1/2/3", "runs/dpo and/or https://host/a/b, 1/2/3"),
        ("nats/token/pair at /start", "nats/token/pair at /start"),
        ("…/dpo, 0.5.. and 1...2, s3://bucket/a/b", "…/dpo, 0.5.. and 1...2, s3://bucket/a/b"),
        ("'org/model' and 'a/b' of it's own/part", "'org/model' and 'a/b' of it's own/part"),
    ],
)
def test_paths_in_a_text_lose_their_folders(text: str, expected: str) -> None:
    assert hide_folders(text, HERE) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/me/my models/sft", "…/sft"),
        ("/sft", "…/sft"),
        ("/base/work/runs/sft", "runs/sft"),
        ("../../home/me/sft/", "…/sft"),
        ("org/model", "org/model"),
        ("builtin:demo", "builtin:demo"),
        ("runs/my run", "runs/my run"),
    ],
)
def test_a_path_alone_is_told_whatever_is_in_it(path: str, expected: str) -> None:
    assert tell_path(path, HERE) == expected
