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
from dpotool.gradients.directions import compute_directional_changes
from dpotool.gradients.ghost.selection import ParameterSelection
from dpotool.gradients.steps import first_adam_step, weighted_sum
from dpotool.gradients.unfinished import UnfinishedPasses
from dpotool.gradients.weighted_gradients import Gradient, compute_mean_gradients, compute_weighted_gradient
from dpotool.progress import SILENT, Progress
from dpotool.theory.gaps import compute_accuracy_slopes

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
) -> BatchProducts:
    """Computes the products of every pair with directions that all pairs make together.

    Memory beyond the model: two gradients of the size of the selected parameters; two more with `adamw_shifts`, and
    one more where the log-ratios are not all zero.

    Args:
        logratios: a and b of each pair.
        gamma: slope of the smoothed reward accuracy.
        adamw_shifts: shift factors f to try AdamW's first step for.
        unfinished: where the sums of a run that is cut off are found again.
    """
    halves: list[np.ndarray] = split_by_prompt(pairs) if adamw_shifts else [np.arange(len(pairs))]
    with progress.track("mean gradients", 2 * len(pairs)) as advance:
        means = [
            compute_mean_gradients(
                model,
                [pairs[place] for place in half],
                selection.parameters,
                batch_tokens=batch_tokens,
                on_progress=advance,
                unfinished=unfinished,
            )
            for half in halves
        ]
    shares = [len(half) / len(pairs) for half in halves]
    mean_chosen, mean_rejected = (
        weighted_sum([(share, mean[side]) for share, mean in zip(shares, means, strict=True)]) for side in (0, 1)
    )
    slopes = compute_accuracy_slopes(*logratios, gamma)
    is_at_reference = not np.any(logratios)
    directions: list[Mapping[str, Tensor]] = [mean_chosen, mean_rejected]
    if not is_at_reference:
        weights = slopes / len(pairs)
        directions.append(
            compute_weighted_gradient(
                model,
                pairs,
                weights,
                -weights,
                selection.parameters,
                batch_tokens=batch_tokens,
                unfinished=unfinished,
            )
        )
    columns = _measure(model, pairs, halves, directions, means, adamw_shifts, batch_tokens, progress)
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


def _measure(
    model: nn.Module,
    pairs: Sequence[TokenizedPair],
    halves: Sequence[np.ndarray],
    directions: Sequence[Mapping[str, Tensor]],
    means: Sequence[tuple[Gradient, Gradient]],
    adamw_shifts: Sequence[float],
    batch_tokens: int,
    progress: Progress,
) -> Float[np.ndarray, "directions 2 pairs"]:
    """Returns every pair's products with the directions, then with AdamW's steps from the other half's means."""
    columns = np.empty((len(directions) + len(adamw_shifts), 2, len(pairs)))
    with progress.track("products with them", len(pairs)) as advance:
        for half, (other_chosen, other_rejected) in zip(halves, reversed(means), strict=True):
            steps = [
                first_adam_step(weighted_sum([(1.0, other_chosen), (-shift, other_rejected)])) for shift in adamw_shifts
            ]
            changes, _ = compute_directional_changes(
                model,
                [pairs[place] for place in half],
                [*directions, *steps],
                batch_tokens=batch_tokens,
                on_progress=advance,
            )
            columns[:, :, half] = [(change.chosen, change.rejected) for change in changes]
    return columns
