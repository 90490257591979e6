"""A local server that speaks the OpenAI protocol and misbehaves as told: errors, slow, cut off, another model."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[str], str]
"""What the model says to all that it reads."""


class JudgeServer:
    """What was asked, and what goes wrong the first times that anything is asked."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.faults: list[str] = []
        """Of the next requests, one each: '429', '500', 'cut', 'slow', 'drop', 'other-model', '401', '400'."""
        self.context: int | None = None
        """Tokens that are read, from the end, as Ollama does; words are tokens here."""
        self.tells_usage = True
        self.asked: Counter[str] = Counter()
        """Prompts that were answered, how often each."""
        self.n_requests = 0
        self.headers: list[str] = []
        self.stop_after: int | None = None
        """Answers after which the connection breaks off for good: the server is gone."""
        self.url = ""
        self._lock = threading.Lock()

    def respond(self, path: str, body: dict[str, Any], headers: Any) -> tuple[int, bytes, dict[str, str], bool]:
        """Returns status, body, headers, and whether the connection is dropped instead."""
        with self._lock:
            self.n_requests += 1
            self.headers.append(str(headers.get("Authorization", "")))
            fault = self.faults.pop(0) if self.faults else ""
            if self.stop_after is not None and sum(self.asked.values()) >= self.stop_after:
                return 500, b"", {}, True
        if fault in ("429", "500", "503", "401", "400"):
            key = headers.get("Authorization", "")
            return (
                int(fault),
                json.dumps({"error": f"no, {key}"}).encode(),
                {"retry-after": "0"} if fault == "429" else {},
                False,
            )
        if fault == "drop":
            return 200, b"", {}, True
        if fault == "slow":
            time.sleep(4)
        is_chat = path.endswith("/chat/completions")
        text = "\n".join(m["content"] for m in body["messages"]) if is_chat else body["prompt"]
        said = self.answer(text)
        choice = {"message": {"role": "assistant", "content": said}} if is_chat else {"text": said}
        words = len(text.split())
        usage = {"prompt_tokens": min(words, self.context or words), "completion_tokens": len(said.split())}
        model = "llama-9" if fault == "other-model" else body["model"]
        row = {"model": model, "choices": [{**choice, "finish_reason": "stop"}]}
        raw = json.dumps(row | ({"usage": usage} if self.tells_usage else {})).encode()
        if fault == "cut":
            return 200, raw[: len(raw) // 2], {}, False
        with self._lock:
            self.asked[text] += 1
        return 200, raw, {}, False


@contextmanager
def serving(answer: Answer) -> Iterator[JudgeServer]:
    """Runs a server on a free port while the block runs."""
    state = JudgeServer(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, raw, headers, drops = state.respond(self.path, body, self.headers)
            if drops:
                self.connection.close()
                return
            try:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(raw))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)
            except OSError:
                pass  # a client that would not wait

        def log_message(self, *_args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
