"""Every pair as a model's tokenizer and template make it, before truncation, for the checks that look at tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dpotool.data.encoding import EncodedPair, PairEncoder
from dpotool.data.pairs import PreferenceData
from dpotool.progress import SILENT, Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK_PAIRS = 512
N_TOKENS = 4
"""Tokens shown on each side of a place."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """One pair as text for the tokenizer: the prompt, and the prompt with either answer."""

    prompt: str
    chosen: str
    rejected: str


class TokenView:
    """The pairs as token ids.

    Raises:
        DpotoolError: a conversation and no chat template.
    """

    def __init__(
        self,
        data: PreferenceData,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        positions: int | None,
        is_trimming: bool,
        progress: Progress = SILENT,
    ) -> None:
        self.tokenizer: Any = tokenizer
        self.encoder = PairEncoder(tokenizer)
        self.max_length = max_length
        self.positions = positions
        """Tokens that the model has positions for; None where it does not say."""
        self.is_trimming = is_trimming
        self.encoded: dict[int, EncodedPair] = {}
        self.refused: dict[int, str] = {}
        """Rows that have no tokens, and why."""
        self.renderings: dict[int, Rendering] = {}
        self.conversational = {pair.pair_id for pair in data.pairs if pair.is_conversational}
        with progress.track("tokenizing", len(data.pairs)) as advance:
            for start in range(0, len(data.pairs), _CHUNK_PAIRS):
                chunk = data.pairs[start : start + _CHUNK_PAIRS]
                for pair, outcome in zip(chunk, self.encoder.encode(chunk), strict=True):
                    if isinstance(outcome, str):
                        self.refused[pair.pair_id] = outcome
                        continue
                    self.encoded[pair.pair_id] = outcome
                    rendered = self.encoder.write(pair)
                    if not isinstance(rendered, str):
                        self.renderings[pair.pair_id] = Rendering(*rendered)
                advance(len(chunk))

    def fits(self, pair: EncodedPair) -> bool:
        """Tells whether the pair can be used at the maximum length, its prompt cut where that is allowed."""
        return self.encoder.least_length(pair, is_trimming=self.is_trimming) <= self.max_length

    def list_special(self) -> list[str]:
        """Returns the texts of the control tokens, such as <|im_end|>."""
        return sorted({self.tokenizer.convert_ids_to_tokens(id_) for id_ in self.encoder.closing_ids})

    def count_closings(self, ids: list[int]) -> int:
        """Returns the number of control tokens at the end, ignoring white space between them."""
        count = 0
        for token_id in reversed(ids):
            if token_id in self.encoder.closing_ids:
                count += 1
            elif not self.encoder.is_blank(token_id):
                break
        return count

    def show_tokens(self, ids: list[int]) -> str:
        """Returns ids and text side by side: 318‘ is’ 257‘ a’."""
        return " ".join(f"{id_}‘{self.tokenizer.decode([id_])}’".replace("\n", "⏎") for id_ in ids)

    def show_boundary(self, row: int) -> str:
        """Returns the tokens around the place where the chosen answer begins, which ‖ marks."""
        pair = self.encoded[row]
        before, after = pair.prompt_ids[-N_TOKENS:], pair.chosen_ids[:N_TOKENS]
        return f"{self.show_tokens(before)} ‖ {self.show_tokens(after)}"

    def show_end(self, row: int, side: str) -> str:
        """Returns the last tokens of an answer."""
        pair = self.encoded[row]
        ids = pair.chosen_ids if side == "chosen" else pair.rejected_ids
        return f"{side} ends in {self.show_tokens(ids[-N_TOKENS:])}"
