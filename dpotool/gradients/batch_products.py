"""What one step on all pairs together moves: every pair's products with the mean gradients, and with AdamW's steps.

Two weighted backward passes give mean W and mean L; one more pass over activations gives each pair's products with
them. All shift factors follow from these by arithmetic, so a grid of lambda costs nothing. AdamW's first step is not
linear in the gradient and costs a product per lambda; it is taken from one half of the pairs and tried on the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from dpotool.data.pairs import TokenizedPair
from dpotool.gradients.directions import LazyDirection, compute_directional_changes, first_adam_step, weighted_sum
from dpotool.gradients.ghost.audit import Claims
from dpotool.gradients.ghost.selection import ParameterSelection
from dpotool.gradients.unfinished import UnfinishedPasses
from dpotool.gradients.weighted_gradients import Gradient, compute_mean_gradients, compute_weighted_gradient
from dpotool.progress import SILENT, Progress
from dpotool.theory.theorem import compute_accuracy_slopes

Values = Float[np.ndarray, " pairs"]
Both = tuple[Values, Values]
"""Of the chosen and of the rejected answer of each pair."""

FEWEST_PAIRS = 4
"""Below, half of the pairs is no estimate of anything."""


@dataclass(frozen=True, slots=True)
class BatchProducts:
    """Aligned with the pairs; nats², or nats per unit of learning rate for AdamW."""

    with_mean_chosen: Both
    """<W_i, mean W> and <L_i, mean W>"""
    with_mean_rejected: Both
    """<W_i, mean L> and <L_i, mean L>"""
    with_accuracy: Both
    """<W_i, K> and <L_i, K>, K = mean_j k_j (W_j - L_j): what raises the smoothed reward accuracy"""
    adamw: dict[float, Both]
    """f -> change of log pi for AdamW's first step on the *other* half of the pairs, at a = b = 0; {} without."""


def compute_batch_products(
    model: nn.Module,
    pairs: Sequence[TokenizedPair],
    selection: ParameterSelection,
    logratios: Both,
    *,
    gamma: float,
    adamw_shifts: Sequence[float] = (),
    batch_tokens: int,
    progress: Progress = SILENT,
    unfinished: UnfinishedPasses | None = None,
    claims: Claims | None = None,
) -> BatchProducts:
    """Computes the products of every pair with directions that all pairs make together.

    Memory beyond the model: two gradients of the size of the selected parameters; two more with `adamw_shifts`, and
    one more where the log-ratios are not all zero.

    Args:
        logratios: a and b of each pair.
        gamma: slope of the smoothed reward accuracy.
        adamw_shifts: shift factors f to try AdamW's first step for.
        unfinished: where sums are saved, so that an interrupted run can continue.
        claims: as `GradientEngine` takes them.
    """
    passes = _Passes(model, pairs, selection, batch_tokens, progress, unfinished, claims)
    halves: list[np.ndarray] = split_by_prompt(pairs) if adamw_shifts else [np.arange(len(pairs))]
    means = passes.compute_means(halves)
    directions: list[Mapping[str, Tensor]] = list(_join_halves(halves, means))
    slopes = compute_accuracy_slopes(*logratios, gamma)
    is_at_reference = not np.any(logratios)
    if not is_at_reference:
        directions.append(passes.compute_accuracy_gradient(slopes))
    columns = passes.measure(halves, directions, means, adamw_shifts)
    with_chosen, with_rejected = columns[0], columns[1]
    # At the reference every k_j is gamma / 4, so K is a multiple of the difference of the means.
    with_accuracy = slopes * (with_chosen - with_rejected) if is_at_reference else columns[2]
    adamw = columns[len(directions) :]
    if unfinished is not None:
        unfinished.clear()
    return BatchProducts(
        (with_chosen[0], with_chosen[1]),
        (with_rejected[0], with_rejected[1]),
        (with_accuracy[0], with_accuracy[1]),
        {shift: (both[0], both[1]) for shift, both in zip(adamw_shifts, adamw, strict=True)},
    )


def split_by_prompt(pairs: Sequence[TokenizedPair]) -> list[np.ndarray]:
    """Returns the places of the pairs of every second prompt, and of every other one.

    A pair whose prompt is unknown counts as one prompt. If all pairs have the same prompt, the pairs are split.
    """
    prompts = [place if pair.prompt_id is None else pair.prompt_id for place, pair in enumerate(pairs)]
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    order = np.array([numbers[prompt] for prompt in prompts] if len(numbers) > 1 else range(len(pairs)))
    return [np.flatnonzero(order % 2 == half) for half in (0, 1)]


def _join_halves(
    halves: Sequence[np.ndarray], means: Sequence[tuple[Gradient, Gradient]]
) -> tuple[LazyDirection, LazyDirection]:
    """Returns mean W and mean L of all pairs from those of each half."""
    n_pairs = sum(len(half) for half in halves)
    shares = [len(half) / n_pairs for half in halves]
    chosen, rejected = (
        weighted_sum([(share, mean[side]) for share, mean in zip(shares, means, strict=True)]) for side in (0, 1)
    )
    return chosen, rejected


@dataclass(frozen=True, slots=True)
class _Passes:
    """The passes over all pairs, with what they have in common."""

    model: nn.Module
    pairs: Sequence[TokenizedPair]
    selection: ParameterSelection
    batch_tokens: int
    progress: Progress
    unfinished: UnfinishedPasses | None
    claims: Claims | None

    def compute_means(self, halves: Sequence[np.ndarray]) -> list[tuple[Gradient, Gradient]]:
        """Returns mean W and mean L of each half."""
        with self.progress.track("mean gradients", 2 * len(self.pairs)) as advance:
            return [
                compute_mean_gradients(
                    self.model,
                    [self.pairs[place] for place in half],
                    self.selection.parameters,
                    batch_tokens=self.batch_tokens,
                    on_progress=advance,
                    unfinished=self.unfinished,
                )
                for half in halves
            ]

    def compute_accuracy_gradient(self, slopes: Values) -> Gradient:
        """Returns K = mean_j k_j (W_j - L_j)."""
        weights = slopes / len(self.pairs)
        return compute_weighted_gradient(
            self.model,
            self.pairs,
            weights,
            -weights,
            self.selection.parameters,
            batch_tokens=self.batch_tokens,
            unfinished=self.unfinished,
        )

    def measure(
        self,
        halves: Sequence[np.ndarray],
        directions: Sequence[Mapping[str, Tensor]],
        means: Sequence[tuple[Gradient, Gradient]],
        adamw_shifts: Sequence[float],
    ) -> Float[np.ndarray, "directions 2 pairs"]:
        """Returns every pair's products with the directions, then with AdamW's steps from the other half's means."""
        columns = np.empty((len(directions) + len(adamw_shifts), 2, len(self.pairs)))
        with self.progress.track("products with them", len(self.pairs)) as advance:
            for half, (other_chosen, other_rejected) in zip(halves, reversed(means), strict=True):
                steps = [
                    first_adam_step(weighted_sum([(1.0, other_chosen), (-shift, other_rejected)]))
                    for shift in adamw_shifts
                ]
                changes, _ = compute_directional_changes(
                    self.model,
                    [self.pairs[place] for place in half],
                    [*directions, *steps],
                    batch_tokens=self.batch_tokens,
                    claims=self.claims,
                    on_progress=advance,
                )
                columns[:, :, half] = [(change.chosen, change.rejected) for change in changes]
        return columns
