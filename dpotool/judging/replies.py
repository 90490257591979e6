"""Every reply on disk before it is interpreted, so that each request is sent once; found by the request's content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpotool.judging.endpoint import Client, Endpoint, Reply, ask_all
from dpotool.judging.lines import append_lines, read_sound_lines
from dpotool.judging.prompt_length import CountTokens, PromptLengths
from dpotool.progress import SILENT, Progress
from dpotool.runs.checked import check_value
from dpotool.wording import count


@dataclass(frozen=True, slots=True)
class Request:
    """One request."""

    name: str
    """What it is about, for the file: a question's id and the order of the answers."""
    path: str
    body: Mapping[str, Any]
    """The body as sent, without the key."""

    @property
    def key(self) -> str:
        """Hash of the content: model, messages, sampling. The server's address is not part of it."""
        identity = json.dumps([self.path, self.body], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(identity.encode()).hexdigest()[:24]

    @property
    def text(self) -> str:
        """All that the model reads."""
        messages = self.body.get("messages")
        return "\n".join(str(m["content"]) for m in messages) if messages else str(self.body.get("prompt", ""))


class ReplyBook:
    """A file of replies, one a line; the last line of a request counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        rows, self.n_torn = read_sound_lines(path)
        self._replies = {str(row["key"]): _from_row(row, path) for row in rows if "key" in row}

    def find(self, request: Request) -> Reply | None:
        """Returns the final reply to a request, or None if it has to be sent."""
        reply = self._replies.get(request.key)
        return reply if reply is not None and reply.is_final else None

    def add(self, request: Request, reply: Reply) -> None:
        """Stores a reply, or the error of a request that failed."""
        self._replies[request.key] = reply
        append_lines(self.path, [{"key": request.key, "name": request.name, **asdict(reply)}])


def gather_replies(
    requests: Sequence[Request],
    endpoint: Endpoint,
    path: Path,
    progress: Progress = SILENT,
    count: CountTokens | None = None,
) -> list[Reply]:
    """Returns a reply for each request, asking only what the file at `path` does not hold.

    Args:
        count: tokens of a text by the server's tokenizer, where that is at hand.

    Raises:
        DpotoolError: the server cuts prompts, answers for another model or refuses; what came so far is in the file.
    """
    book, lengths = ReplyBook(path), PromptLengths(path, count)
    found = {request.key: reply for request in requests if (reply := book.find(request)) is not None}
    unique = {request.key: request for request in requests}
    for key, reply in found.items():
        lengths.check(unique[key].text, reply)
    missing = [request for key, request in unique.items() if key not in found]
    if found:
        progress.note(f"replies that were there already: {len(found)} of {len(unique)}")
    client = Client(endpoint)
    try:
        with progress.track("asking", len(missing)) as advance:
            for key, reply in _ask(client, missing):
                book.add(unique[key], reply)
                found[key] = reply
                lengths.check(unique[key].text, reply)
                advance(1)
    finally:
        client.close()
    _tell_how_much_was_read(lengths, progress)
    return [found[request.key] for request in requests]


def _tell_how_much_was_read(lengths: PromptLengths, progress: Progress) -> None:
    """Whether the server read whole prompts, and how that is known."""
    if lengths.n_unknown:
        progress.warn(
            f"{count(lengths.n_unknown, 'reply does', 'replies do')} not say how many tokens were read, so a "
            "cut prompt would go unnoticed"
        )
    if lengths.n_checked and lengths.count is not None:
        progress.note(
            f"the server read {count(lengths.n_checked, 'prompt')} whole, of up to "
            f"{count(lengths.longest, 'token')} by its own count"
        )
    elif lengths.n_checked:
        progress.note(
            "whether the server read whole prompts was estimated from their lengths; --judge-tokenizer makes the check "
            "exact"
        )


def _ask(client: Client, requests: Sequence[Request]) -> Iterator[tuple[str, Reply]]:
    return ask_all(client, ((request.key, request.path, dict(request.body)) for request in requests))


def _from_row(row: Mapping[str, Any], path: Path) -> Reply:
    where = f"{path}: reply {str(row['key'])[:40]}"
    return check_value(row, Reply, where=where, remedy="Take the line out: it is asked again")
