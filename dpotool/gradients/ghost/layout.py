"""Where the tokens of each completion lie in a captured activation.

Spans leave out padding, but for what rounds them up to a multiple of `ALIGNMENT`: matrices of such sizes multiply a
third faster. In padding, and at a row's last token, gradients are zero, so that it does not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float, Int
from torch import Tensor

from dpotool.data.pairs import TokenizedPair

ALIGNMENT = 16

Place = tuple[slice, slice]
"""Rows and tokens of an activation laid out as (rows, tokens, features)."""


@dataclass(frozen=True, slots=True)
class PairSpan:
    """The tokens of one pair, or of all pairs of a batch where they are worked on together."""

    pairs: slice
    """Places of these pairs in the batch."""
    chosen: Place
    rejected: Place
    n_shared: int
    """Leading tokens whose activations are the same in both rows: the prompt's, rounded down to `ALIGNMENT`; none
    where they differ after all (`lay_out_batch`)."""

    @property
    def key(self) -> tuple[int, int]:
        """Tells spans of one batch apart, also where tokens are skipped."""
        return self.pairs.start, self.chosen[1].start

    def skip(self, n_tokens: int) -> PairSpan:
        """Leaves out leading tokens, none of them beyond the prompt."""
        (chosen_rows, chosen), (rejected_rows, rejected) = self.chosen, self.rejected
        return replace(
            self,
            chosen=(chosen_rows, slice(chosen.start + n_tokens, chosen.stop)),
            rejected=(rejected_rows, slice(rejected.start + n_tokens, rejected.stop)),
            n_shared=self.n_shared - n_tokens,
        )


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """Of a batch, or of the output layer's portion of it, which is a single row of completion tokens."""

    pairs: slice
    """Places of the pairs in the batch."""
    n_rows: int
    n_tokens: int
    """In each row."""
    spans: tuple[PairSpan, ...]
    completion_of_token: Int[Tensor, " tokens"] | None = None
    """Which completion each token belongs to, counted within this layout; None where that is the row."""

    @property
    def has_own_rows(self) -> bool:
        """Tells whether each completion is a row, and each pair a span."""
        return self.completion_of_token is None and 2 * len(self.spans) == self.n_rows

    def with_spans(self, spans: Sequence[PairSpan]) -> TokenLayout:
        return replace(self, spans=tuple(spans))

    def as_rows(self, values: Tensor) -> Float[Tensor, "rows tokens features"]:
        return values.reshape(self.n_rows, self.n_tokens, values.shape[-1])

    def split(self, values: Tensor) -> Iterator[tuple[PairSpan, Tensor, Tensor]]:
        """Yields (pairs, tokens, features) of the chosen and of the rejected completions of each span; no copies."""
        rows = self.as_rows(values)
        for span in self.spans:
            yield span, rows[span.chosen], rows[span.rejected]

    def sum_completions(self, values: Tensor, n_elements: int) -> Float[Tensor, "completions elements"]:
        """Sums over all axes but those of the completions and the trailing ones, which hold `n_elements`."""
        if self.completion_of_token is None:
            return values.reshape(self.n_rows, -1, n_elements).sum(1)
        sums = values.new_zeros(2 * (self.pairs.stop - self.pairs.start), n_elements)
        return sums.index_add(0, self.completion_of_token, values.reshape(-1, n_elements))


def lay_out_batch(pairs: Sequence[TokenizedPair], n_tokens: int, *, together: bool, alike: bool = True) -> TokenLayout:
    """Lays out the rows (chosen_0, rejected_0, chosen_1, ...) of a collated batch.

    Args:
        together: work on all pairs at once, as suits a GPU; otherwise pair by pair, which leaves all padding out.
        alike: a prompt's activations are the same in both rows, as they are not under dropout.
    """
    everyone = slice(0, len(pairs))
    if together:
        n_shared = min(len(pair.prompt_ids) for pair in pairs) // ALIGNMENT * ALIGNMENT
        whole = slice(0, n_tokens)
        spans = [PairSpan(everyone, (slice(0, None, 2), whole), (slice(1, None, 2), whole), n_shared)]
    else:
        spans = [_lay_out_pair(place, pair, n_tokens) for place, pair in enumerate(pairs)]
    if not alike:
        spans = [replace(span, n_shared=0) for span in spans]
    return TokenLayout(everyone, 2 * len(pairs), n_tokens, tuple(spans))


def _lay_out_pair(place: int, pair: TokenizedPair, n_tokens: int) -> PairSpan:
    n_prompt = len(pair.prompt_ids)
    chosen, rejected = (
        slice(0, min(_round_up(n_prompt + len(ids)), n_tokens)) for ids in (pair.chosen_ids, pair.rejected_ids)
    )
    first = 2 * place
    return PairSpan(
        slice(place, place + 1),
        (slice(first, first + 1), chosen),
        (slice(first + 1, first + 2), rejected),
        n_prompt // ALIGNMENT * ALIGNMENT,
    )


def _round_up(n_tokens: int) -> int:
    return -(-n_tokens // ALIGNMENT) * ALIGNMENT


def lay_out_completions(pairs: Sequence[TokenizedPair], first: int, completions: Int[Tensor, " tokens"]) -> TokenLayout:
    """Lays out the completion tokens of some pairs, of which the first is pair number `first` of the batch.

    Args:
        completions: for each token, the row of the batch it belongs to.
    """
    row, start, spans = slice(0, 1), 0, []
    for place, pair in enumerate(pairs, first):
        middle = start + len(pair.chosen_ids)
        end = middle + len(pair.rejected_ids)
        spans.append(
            PairSpan(slice(place, place + 1), (row, slice(start, middle)), (row, slice(middle, end)), n_shared=0)
        )
        start = end
    return TokenLayout(slice(first, first + len(pairs)), 1, start, tuple(spans), completions - 2 * first)
