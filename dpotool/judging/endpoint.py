"""A server that speaks the OpenAI protocol: vLLM, Ollama, `transformers serve`, a hosted one. Repeats failed requests.

Time-outs, 429, 5xx and replies that break off are tried again with growing pauses; what is wrong with the request stops
the run, in one line. The key comes from the environment and stands in no file, log or error.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import httpx2

from dpotool.errors import DpotoolError
from dpotool.judging.lines import parse_object

KEY_VARIABLES = ("DPOTOOL_API_KEY", "OPENAI_API_KEY")
CHAT, PLAIN = "chat/completions", "completions"
_TRY_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_REFUSED_REQUEST = {400, 413, 422}
LONGEST_PAUSE = 60.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Address of a server, and settings of the requests to it."""

    url: str
    """Up to and with /v1."""
    model: str
    timeout: float = 300.0
    """Seconds to wait for one reply."""
    attempts: int = 6
    concurrency: int = 8
    first_pause: float = 1.0
    """Seconds before the second attempt; each further pause is twice as long, and drawn between half and all of it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one request."""

    status: str
    """'ok', or why there is no text."""
    text: str | None = None
    finish: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    """Tokens of the prompt as the server counts them; None if it does not say."""
    completion_tokens: int | None = None
    raw: str = ""
    """The body as it came."""
    n_attempts: int = 1
    failures: tuple[str, ...] = field(default=())
    """What went wrong in the attempts before."""

    @property
    def is_final(self) -> bool:
        """Whether asking again would bring nothing new."""
        return self.status == "ok" or self.status.startswith("refused")


class Client:
    """Asks one server; safe to share between threads."""

    def __init__(self, endpoint: Endpoint, *, sleep: Callable[[float], None] = time.sleep) -> None:
        _check_url(endpoint.url)
        self.endpoint = endpoint
        self._key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._http = httpx2.Client(headers=headers, timeout=endpoint.timeout)
        self._sleep = sleep
        self._is_closed = False

    def close(self) -> None:
        """Ends it: what is under way breaks off and is not tried again."""
        self._is_closed = True
        self._http.close()

    def ask(self, path: str, body: dict[str, Any]) -> Reply:
        """Returns the reply to one request; after the last attempt, a reply that says why there is none.

        Raises:
            DpotoolError: the server does not know the model or the key, or answers for another model.
        """
        failures: list[str] = []
        for attempt in range(self.endpoint.attempts):
            if attempt:
                self._sleep(self._pause(attempt, failures[-1]))
            outcome = self._try(path, body)
            if isinstance(outcome, Reply):
                return replace(outcome, n_attempts=attempt + 1, failures=tuple(failures))
            failures.append(outcome)
            if self._is_closed:
                break
        return Reply(f"no reply: {failures[-1]}", n_attempts=len(failures), failures=tuple(failures))

    def _pause(self, attempt: int, failure: str) -> float:
        asked = failure.partition("retry after ")[2]
        wanted = float(asked) if asked else self.endpoint.first_pause * 2 ** (attempt - 1) * random.uniform(0.5, 1)
        return min(LONGEST_PAUSE, wanted)

    def _try(self, path: str, body: dict[str, Any]) -> Reply | str:
        """One attempt: a reply, or what went wrong and may go better the next time."""
        try:
            response = self._http.post(f"{self.endpoint.url.rstrip('/')}/{path}", json=body)
        except httpx2.TimeoutException:
            return f"no answer within {self.endpoint.timeout:g} s"
        except httpx2.HTTPError as error:
            return f"the connection failed ({type(error).__name__})"
        code, text = response.status_code, self._redact(response.text)
        if code in _TRY_AGAIN:
            return f"status {code}{_retry_after(response)}"
        if code in _REFUSED_REQUEST:
            return Reply(f"refused: status {code}", raw=text)
        if code != 200:
            raise self._explain(code, text)
        return self._read(path, text)

    def _read(self, path: str, text: str) -> Reply | str:
        row = parse_object(text)
        try:
            choice = row["choices"][0]  # type: ignore[index]
            said = choice["message"]["content"] if path == CHAT else choice["text"]
        except (KeyError, IndexError, TypeError):
            return "a body that is no reply" if row is not None else "a body that breaks off"
        assert row is not None
        self._check_model(row.get("model"))
        usage = row.get("usage") or {}
        return Reply(
            status="ok" if isinstance(said, str) else "refused: a reply without text",
            text=said if isinstance(said, str) else None,
            finish=choice.get("finish_reason"),
            model=row.get("model"),
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
            raw=text,
        )

    def _check_model(self, model: Any) -> None:
        """Servers answer with a dated or tagged name (gpt-4o-2024-08-06, NAME@main), or with a folder's last part."""
        asked = self.endpoint.model
        names = (str(model), str(model).rpartition("/")[2])
        if model is None or any(name.startswith((asked, asked.rpartition("/")[2])) for name in names):
            return
        raise DpotoolError(
            "the server answers with another model",
            where=self.endpoint.url,
            expected=asked,
            got=self._redact(str(model)),
            remedy="Name the model as the server does; `curl URL/models` lists them",
        )

    def _explain(self, code: int, text: str) -> DpotoolError:
        remedies = {
            401: f"Set {' or '.join(KEY_VARIABLES)} to the server's key",
            403: f"Set {' or '.join(KEY_VARIABLES)} to a key that may use this model",
            404: f"Check the URL, which ends in /v1 for most servers, and the model's name {self.endpoint.model}",
        }
        said = " ".join(text.split())[:200]
        return DpotoolError(
            f"the server refuses: status {code}{f' ({said})' if said else ''}",
            where=self.endpoint.url,
            remedy=remedies.get(code, "See the server's own log"),
        )

    def _redact(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def ask_all(client: Client, requests: Iterable[tuple[str, str, dict[str, Any]]]) -> Iterator[tuple[str, Reply]]:
    """Asks many requests at once and yields (name, reply) as they come; nothing more is sent after an error.

    Args:
        requests: (name, path, body) each.
    """
    waiting: dict[Future[Reply], str] = {}
    queue = iter(requests)
    pool = ThreadPoolExecutor(client.endpoint.concurrency)
    try:
        while True:
            while len(waiting) < client.endpoint.concurrency and (request := next(queue, None)) is not None:
                waiting[pool.submit(client.ask, request[1], request[2])] = request[0]
            if not waiting:
                return
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()
    finally:
        if waiting:
            client.close()
        pool.shutdown(wait=False, cancel_futures=True)


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise DpotoolError(
            "is no address of a server", where="--endpoint", expected="http://... or https://...", got=repr(url)
        )
    if parts.username or parts.password or parts.query:
        raise DpotoolError(
            "holds a name, password or query, which would end up in files",
            where="--endpoint",
            remedy=f"Give the plain address, and the key in {' or '.join(KEY_VARIABLES)}",
        )


def _retry_after(response: httpx2.Response) -> str:
    """The wait in seconds that the server requests; 0 if it gives a date or none."""
    try:
        return f", retry after {max(0.0, float(response.headers['retry-after']))}"
    except (KeyError, ValueError):
        return ""
