"""Whether a server read the whole prompt: Ollama, for one, silently cuts off what exceeds its context.

What the server says it read (`usage.prompt_tokens`) is compared with the number of tokens in the prompt, if a
tokenizer of the judge is at hand. Without one two signs are looked for: prompts of different length that the server
read as equally many tokens, the most it ever read; and a prompt with far fewer tokens than its length in characters
suggests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from dpotool.errors import DpotoolError
from dpotool.judging.endpoint import Reply

CountTokens = Callable[[str], int]
SHARE_EXPECTED = 0.6
"""Of the tokens that a prompt's characters suggest; texts differ, but not so much within one prompt template."""
LENGTHS_DIFFER = 1.2
FEWEST_ALIKE = 3
FEWEST_FOR_A_SIGN = 8
SHORTEST_CONTEXT = 128
"""Tokens that every server reads. Shorter prompts show no sign: three of two words each are no coincidence."""


@dataclass(slots=True)
class PromptLengths:
    """Checks every reply's count of prompt tokens; stops the run at the first that falls short."""

    path: Path
    """Of the file of replies, which holds those on cut prompts too."""
    count: CountTokens | None = None
    """Tokens of a text by the judge's tokenizer; None if there is none."""
    n_unknown: int = 0
    """Replies that do not say how much the server read: there a cut prompt would go unnoticed."""
    n_checked: int = 0
    longest: int = 0
    """Tokens of the longest prompt, as the server says."""
    _seen: list[tuple[int, int]] = field(default_factory=list)
    """(characters, tokens) of each prompt."""

    def check(self, text: str, reply: Reply) -> None:
        """Compares one reply with its prompt.

        Raises:
            DpotoolError: the server read less than the prompt.
        """
        if reply.status != "ok":
            return
        if reply.prompt_tokens is None:
            self.n_unknown += 1
            return
        self.n_checked += 1
        self.longest = max(self.longest, reply.prompt_tokens)
        if self.count is not None:
            expected = self.count(text)
            if reply.prompt_tokens < expected:
                raise self._cut(reply.prompt_tokens, f"{expected} tokens or more by the judge's tokenizer")
            return
        self._look_for_signs(len(text), reply.prompt_tokens)

    def _look_for_signs(self, characters: int, tokens: int) -> None:
        self._seen.append((characters, tokens))
        if len(self._seen) < FEWEST_FOR_A_SIGN:
            return
        most = max(read for _, read in self._seen)
        longest = [length for length, read in self._seen if read == most]
        if most >= SHORTEST_CONTEXT and len(longest) >= FEWEST_ALIKE and max(longest) > LENGTHS_DIFFER * min(longest):
            raise self._cut(
                most, f"more for the longest of several prompts of {min(longest)} to {max(longest)} characters"
            )
        usual = median(length / read for length, read in self._seen if read)
        expected = [(length, read, length / usual) for length, read in self._seen if length / usual >= SHORTEST_CONTEXT]
        short = next(((length, read) for length, read, tokens in expected if read < SHARE_EXPECTED * tokens), None)
        if short is not None:
            raise self._cut(short[1], f"about {short[0] / usual:.0f} tokens for {short[0]} characters")

    def _cut(self, read: int, expected: str) -> DpotoolError:
        return DpotoolError(
            "the server cuts prompts: it read less than was sent, so it answers to a part of the text",
            expected=expected,
            got=f"usage.prompt_tokens = {read}",
            remedy="Give the server a longer context (Ollama: OLLAMA_CONTEXT_LENGTH=16384; vLLM: --max-model-len), "
            f"delete {self.path} and run the command again",
        )
