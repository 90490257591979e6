"""Pairs of text to token ids: prompt and completion encoded together, the completion closed by EOS once.

Ids and boundary are TRL 1.16's for the same row and tokenizer: each sequence is encoded whole, and the completions
start at the first token in which prompt alone, prompt + chosen and prompt + rejected differ. Departures, each so that
EOS closes a completion exactly once:

* text that already ends in EOS and white space (a rendered ChatML turn) is not given another EOS;
* the EOS that some tokenizers append to every text is taken off again (TRL: it ends the completion twice, and the
  prompt is never a prefix);
* a chat template that leaves the last turn open (no special token at its end) is given an EOS (TRL: none).

Where the template closes the turn with its own token (`<|eot_id|>`, `<|im_end|>` and a newline), nothing is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

from dpotool.data.pairs import PreferencePair, Text
from dpotool.data.templates import FROZEN_DATE, render_chat
from dpotool.errors import DpotoolError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "a"


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Token ids of one pair at full length."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    is_merged: bool
    """The prompt encoded alone is no prefix of the sequences, so that its last tokens are not in `prompt_ids`."""


class PairEncoder:
    """Encodes pairs with one tokenizer.

    Raises:
        DpotoolError: the tokenizer has no EOS token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.eos_token is None or tokenizer.eos_token_id is None:
            raise DpotoolError(
                "the tokenizer has no EOS token, so completions cannot be closed",
                remedy="Set eos_token in its tokenizer_config.json",
            )
        self._tokenizer: Any = tokenizer
        self._eos = str(tokenizer.eos_token)
        self._eos_id = int(tokenizer.eos_token_id)
        self.adds_bos, self._appends_eos = self._probe()
        self.closing_ids = set(tokenizer.all_special_ids)
        self.closing_ids |= {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._is_blank_id: dict[int, bool] = {}
        self.prints_date: bool | None = None
        """Whether the chat template prints today's date; None until a conversation was rendered."""

    def encode(self, pairs: Sequence[PreferencePair]) -> list[EncodedPair | str]:
        """Returns the ids of each pair, or the reason why it has none.

        Raises:
            DpotoolError: a conversational pair, and the tokenizer has no chat template.
        """
        outcomes: list[EncodedPair | str] = []
        for is_conversational, run in groupby(pairs, key=lambda pair: pair.is_conversational):
            encode_run = self._encode_messages if is_conversational else self._encode_text
            outcomes += encode_run(list(run))
        return outcomes

    def write(self, pair: PreferencePair) -> tuple[str, str, str] | str:
        """Returns the texts that are tokenized (prompt, prompt + chosen, prompt + rejected), or why there are none."""
        return self._render(pair) if pair.is_conversational else self._join(pair)

    def least_length(self, pair: EncodedPair, *, is_trimming: bool) -> int:
        """Returns the tokens of the longer completion and of what must stay of the prompt: one token, besides BOS."""
        n_prompt = len(pair.prompt_ids)
        if is_trimming:
            n_prompt = min(n_prompt, int(self.keeps_bos(pair.prompt_ids)) + 1)
        return max(len(pair.chosen_ids), len(pair.rejected_ids)) + n_prompt

    def keeps_bos(self, prompt_ids: Sequence[int]) -> bool:
        """True if a prompt opens with a BOS that trimming must not take off.

        A token that opens every turn (ChatML's `<|im_start|>`, which SmolLM2 also names as its BOS) is none: it occurs
        again in the prompt, and the tokenizer does not add it to plain text.
        """
        bos_id = self._tokenizer.bos_token_id
        if bos_id is None or not prompt_ids or prompt_ids[0] != bos_id:
            return False
        return self.adds_bos or list(prompt_ids).count(bos_id) == 1

    def _probe(self) -> tuple[bool, bool]:
        """Returns whether the tokenizer puts BOS before and EOS behind a plain text."""
        bos_id = self._tokenizer.bos_token_id
        (inner,) = self._tokenize([_PROBE], add_special_tokens=False)
        (outer,) = self._tokenize([_PROBE], add_special_tokens=True)
        adds_bos = bos_id is not None and outer[:1] == [bos_id] != inner[:1]
        appends_eos = outer[int(adds_bos) :][-1:] == [self._eos_id] != inner[-1:]
        return adds_bos, appends_eos

    def _encode_text(self, pairs: Sequence[PreferencePair]) -> list[EncodedPair | str]:
        texts = [text for pair in pairs for text in self._join(pair)]
        ids = self._tokenize(texts, add_special_tokens=True)
        if self._appends_eos:
            ids = [sequence[:-1] for sequence in ids]
        if self.adds_bos:  # a text that was rendered already begins with its own
            bos_id = self._tokenizer.bos_token_id
            ids = [sequence[1:] if sequence[:2] == [bos_id, bos_id] else sequence for sequence in ids]
        encoded = [split_completions(*ids[start : start + 3]) for start in range(0, len(ids), 3)]
        return [self._check_content(pair, minimum=[self._eos_id]) for pair in encoded]

    def _join(self, pair: PreferencePair) -> tuple[str, str, str]:
        prompt, chosen, rejected = str(pair.prompt), self._close_text(pair.chosen), self._close_text(pair.rejected)
        return prompt, prompt + chosen, prompt + rejected

    def _close_text(self, completion: Text) -> str:
        text = str(completion)
        return text if text.rstrip().endswith(self._eos) else text + self._eos

    def _encode_messages(self, pairs: Sequence[PreferencePair]) -> list[EncodedPair | str]:
        if self._tokenizer.chat_template is None:
            raise DpotoolError(
                "the tokenizer has no chat template, and the data is conversational",
                remedy="Use the tokenizer of a chat model, put a chat_template.jinja beside the model, "
                "or give prompt, chosen and rejected as strings",
            )
        rendered = [self._render(pair) for pair in pairs]
        texts = [text for rendering in rendered if not isinstance(rendering, str) for text in rendering]
        sequences = iter(self._tokenize(texts, add_special_tokens=False))
        outcomes: list[EncodedPair | str] = []
        for rendering in rendered:
            if isinstance(rendering, str):
                outcomes.append(rendering)
                continue
            encoded = split_completions(next(sequences), next(sequences), next(sequences))
            for completion_ids in (encoded.chosen_ids, encoded.rejected_ids):
                self._close_turn(completion_ids)
            outcomes.append(self._check_content(encoded, minimum=[]))
        return outcomes

    def _render(self, pair: PreferencePair) -> tuple[str, str, str] | str:
        """Returns the prompt with its generation prompt and the two conversations, or why the template refuses them."""
        prompt, chosen, rejected = list(pair.prompt), list(pair.chosen), list(pair.rejected)
        render = partial(render_chat, self._tokenizer, template_kwargs=pair.template_kwargs)
        try:
            texts = (render(prompt, add_generation_prompt=True), render(prompt + chosen), render(prompt + rejected))
            if self.prints_date is None:
                other_day = FROZEN_DATE + timedelta(days=400, hours=5)
                self.prints_date = render(prompt, add_generation_prompt=True, now=other_day) != texts[0]
        except DpotoolError:
            raise
        except Exception as error:  # whatever code in a template can raise
            return f"refused by the chat template: {error}"
        return (
            _find_left_out(prompt, texts[0])
            or _find_left_out(chosen, texts[1])
            or _find_left_out(rejected, texts[2])
            or texts
        )

    def _close_turn(self, completion_ids: list[int]) -> None:
        """Appends EOS in place where the last token that is not white space is no special token."""
        if not self.count_end(completion_ids) and any(not self.is_blank(token_id) for token_id in completion_ids):
            completion_ids.append(self._eos_id)

    def is_blank(self, token_id: int) -> bool:
        """Tells whether a token is nothing but white space."""
        known = self._is_blank_id.get(token_id)
        if known is None:
            known = self._is_blank_id[token_id] = not self._tokenizer.decode([token_id]).strip()
        return known

    def count_end(self, ids: Sequence[int]) -> int:
        """Returns how many tokens close an answer: a control token, and the white space that a template puts behind."""
        end = len(ids)
        while end and self.is_blank(ids[end - 1]):
            end -= 1
        return len(ids) - end + 1 if end and ids[end - 1] in self.closing_ids else 0

    def _check_content(self, pair: EncodedPair, minimum: list[int]) -> EncodedPair | str:
        if pair.chosen_ids == minimum:
            return "'chosen' tokenizes to nothing"
        if pair.rejected_ids == minimum:
            return "'rejected' tokenizes to nothing"
        if not pair.prompt_ids:
            return "no prompt token for the completion's first token to depend on"
        return pair

    def _tokenize(self, texts: list[str], *, add_special_tokens: bool) -> list[list[int]]:
        if not texts:
            return []
        encoded = self._tokenizer(
            texts,
            add_special_tokens=add_special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # a text beyond the model's limit is dealt with by truncation, not by a warning
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids


_TOOL_ROLES = ("tool", "function", "ipython", "observation")
"""What tools answer is often written as JSON, with other characters."""


def _find_left_out(messages: Sequence[Any], rendered: str) -> str | None:
    """Returns why a rendering cannot be used: it lacks the words of a message, as the template ignores its role.

    The text before `</think>` may be missing, as templates of reasoning models leave it out.
    """
    seen = "".join(rendered.split())
    for message in messages:
        words = "".join(str(message.get("content") or "").rpartition("</think>")[2].split())
        if words and words not in seen and message["role"] not in _TOOL_ROLES:
            return f"the chat template leaves out what a message of role {message['role']!r} says"
    return None


def split_completions(prompt_ids: list[int], chosen_ids: list[int], rejected_ids: list[int]) -> EncodedPair:
    """Splits two sequences at the first token in which the prompt alone and they differ.

    Args:
        prompt_ids, chosen_ids, rejected_ids: ids of the prompt, of prompt + chosen and of prompt + rejected.
    """
    cut = min(_count_shared(prompt_ids, chosen_ids), _count_shared(prompt_ids, rejected_ids))
    return EncodedPair(prompt_ids[:cut], chosen_ids[cut:], rejected_ids[cut:], is_merged=cut < len(prompt_ids))


def _count_shared(ids: list[int], other_ids: list[int]) -> int:
    if other_ids[: len(ids)] == ids:  # almost always
        return len(ids)
    shortest = min(len(ids), len(other_ids))
    return next((n for n in range(shortest) if ids[n] != other_ids[n]), shortest)
