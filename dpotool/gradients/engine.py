"""Gradient products of many pairs at about the price of one training step, without a single weight gradient.

W and L are the gradients of a pair's two summed log-probabilities over the chosen parameters; <W,L>, ‖W‖² and ‖L‖²
follow from what one batched forward pass and one backward pass over activations hold anyway. Parameters that the model
uses in an unusual way are found beforehand, differentiated by autograd one pair at a time, and named in the report.
Slow truth: `dpotool.gradients.products`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
import torch
from accelerate import PartialState
from jaxtyping import Float
from torch import Tensor, nn

from dpotool.data.pairs import TokenizedPair
from dpotool.errors import DpotoolError
from dpotool.gradients.ghost.audit import Claims, audit_parameters
from dpotool.gradients.ghost.layout import TokenLayout, lay_out_batch
from dpotool.gradients.ghost.modes import (
    differentiating_activations,
    evaluation_mode,
    following_shards,
    training_only,
)
from dpotool.gradients.ghost.passes import run_tapped
from dpotool.gradients.ghost.product_sums import ProductSums
from dpotool.gradients.ghost.selection import ParameterSelection, select_parameters
from dpotool.gradients.ghost.taps import Sink, Taps
from dpotool.gradients.products import GradientProducts, PairProducts, collect_products, iter_gradient_products
from dpotool.likelihood.batch import collate_pairs
from dpotool.likelihood.budget import plan_batches
from dpotool.likelihood.completions import get_causal_lm, is_sharded, picks_among
from dpotool.likelihood.pair_logps import DEFAULT_BATCH_TOKENS, Advance, run_shares
from dpotool.likelihood.processes import gather_shares
from dpotool.models.determinism import has_alike_prompts
from dpotool.wording import count


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What was differentiated, and how; for a result's metadata."""

    parameters: str
    """Which parameters count, in words."""
    n_parameters: int
    """Elements of them."""
    n_by_form: dict[str, int]
    """Elements whose gradient was taken in the passes, by its form (`theory.ghost.uses`; lookup+outer: tied)."""
    fallback: tuple[str, ...]
    """Names of those that autograd differentiated for each pair."""


class GradientEngine:
    """A model with the parameters to differentiate by; decides when it is made how each of them is handled.

    Args:
        model: any causal language model of transformers, also inside PEFT. It is left as it was after every call.
        parameters: `all` trained ones, `last-N`, `lora` or `head` (`select_parameters`), or the caller's selection.
        pairs: the pairs that will come. Where attention picks the best of a row's tokens, only rows of one length can
            run together, and chosen and rejected have two: autograd then takes every parameter.
        claims: what `audit_trained` returned before the weights were sharded; needed for sharded weights only.

    Raises:
        DpotoolError: there is nothing to differentiate, or the weights are quantised.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: str | ParameterSelection = "all",
        *,
        pairs: Sequence[TokenizedPair] = (),
        claims: Claims | None = None,
    ) -> None:
        self.model = model
        self.selection = select_parameters(model, parameters) if isinstance(parameters, str) else parameters
        if picks_among(get_causal_lm(model), max((pair.longest for pair in pairs), default=0)):
            self.claims = Claims({}, tuple(self.selection.parameters))
        else:
            self.claims = _find_claims(model, self.selection.parameters, claims)
        self.fallback = [self.selection.parameters[name] for name in self.claims.fallback]
        if self.fallback and is_sharded(model):
            raise DpotoolError(
                f"{count(len(self.fallback), 'parameter has', 'parameters have')} no fast rule, and weights that are "
                "spread over processes cannot be differentiated pair by pair",
                where=self.claims.fallback[0],
                remedy="Run it without sharding, or choose other weights with --parameters",
            )
        one = next(iter(self.selection.parameters.values()))
        self.device = one.device
        self.takes_pairs_together = one.device.type != "cpu"

    @property
    def report(self) -> EngineReport:
        n_by_form: Counter[str] = Counter()
        for name, forms in self.claims.forms.items():
            n_by_form["+".join(form.value for form in forms)] += self.selection.parameters[name].numel()
        return EngineReport(self.selection.label, self.selection.n_elements, dict(n_by_form), self.claims.fallback)

    def iter_products(
        self, pairs: Sequence[TokenizedPair], *, batch_tokens: int = DEFAULT_BATCH_TOKENS
    ) -> Iterator[dict[int, PairProducts]]:
        """Yields the products of one batch after the other, by place in `pairs`; the longest pairs come first.

        Of several processes each yields its share.

        Args:
            batch_tokens: budget of padded tokens a batch, both rows of a pair counted.

        Raises:
            DpotoolError: a gradient is not finite, or memory does not hold a single pair (names the pair's row).
        """

        def run(batch: Sequence[int]) -> list[PairProducts]:
            return self._compute_products([pairs[place] for place in batch])

        batches = plan_batches([2 * pair.longest for pair in pairs], batch_tokens)
        for batch, products in run_shares(self.model, pairs, batches, run):
            yield dict(zip(batch, products, strict=True))

    def _compute_products(self, pairs: Sequence[TokenizedPair]) -> list[PairProducts]:
        products = self._run_products(pairs)
        if self.fallback:
            with training_only(self.model, self.fallback):
                products = [
                    _add(*both) for both in zip(products, iter_gradient_products(self.model, pairs), strict=True)
                ]
        products = [_equate(one) if _is_identical(pair) else one for pair, one in zip(pairs, products, strict=True)]
        for one in products:
            _check_finite(one)
        return products

    def _run_products(self, pairs: Sequence[TokenizedPair]) -> list[PairProducts]:
        by_pair = self.lay_out(pairs, max(pair.longest for pair in pairs), together=False)
        sums = ProductSums(by_pair, self.claims.tied, device=self.device)
        logps = self.run(pairs, sums).view(-1, 2)
        rows = torch.cat([sums.totals, logps], dim=1).tolist()
        return [PairProducts(pair.pair_id, *row) for pair, row in zip(pairs, rows, strict=True)]

    def lay_out(
        self, pairs: Sequence[TokenizedPair], n_tokens: int, *, together: bool, has_dropout: bool = False
    ) -> TokenLayout:
        """Lays out a batch's rows; a prompt is computed once if it has the same activations in both of its rows."""
        config = get_causal_lm(self.model).config.get_text_config()
        alike = not has_dropout and has_alike_prompts(config, pairs)
        return lay_out_batch(pairs, n_tokens, together=together, alike=alike)

    def run(self, pairs: Sequence[TokenizedPair], sink: Sink) -> Float[Tensor, " rows"]:
        """Sends what one batch of pairs gives to the sink; returns log pi of each row (nats, float64)."""
        batch = collate_pairs(pairs).to(self.device)
        layout = self.lay_out(pairs, batch.input_ids.shape[1], together=self.takes_pairs_together)
        taps = Taps(self.selection.parameters, self.claims, sink)
        with (
            differentiating_activations(self.model, taps),
            following_shards(self.model, self.claims.forms, taps.watch),
        ):
            logps = run_tapped(self.model, pairs, batch, layout, taps)
        taps.check_complete(len(pairs))
        return logps


def audit_trained(model: nn.Module) -> Claims:
    """Determines how every trained parameter can be differentiated, which has to be done before weights are sharded."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return _find_claims(model, named, None)


def _find_claims(model: nn.Module, named: Mapping[str, nn.Parameter], claims: Claims | None) -> Claims:
    if not is_sharded(model):
        with evaluation_mode(model):
            return audit_parameters(model, named)
    if claims is None:
        raise RuntimeError("the weights are sharded, and `audit_trained` did not look at the model before")
    return claims.restrict(named)


def compute_fast_products(
    model: nn.Module,
    pairs: Sequence[TokenizedPair],
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    parameters: str = "all",
    claims: Claims | None = None,
    on_progress: Advance | None = None,
) -> tuple[GradientProducts, EngineReport]:
    """Computes the products of every pair, in the order of the pairs; pairs are shared out over processes.

    Units, arguments and errors as in `GradientEngine`.

    Args:
        on_progress: called with the number of pairs in each finished batch.
    """
    engine = GradientEngine(model, parameters, pairs=pairs, claims=claims)
    finished: dict[int, PairProducts] = {}
    for batch in engine.iter_products(pairs, batch_tokens=batch_tokens):
        finished |= batch
        if on_progress is not None:
            on_progress(len(batch) * PartialState().num_processes)
    return collect_products(gather_shares(finished, len(pairs)).values()), engine.report


def _is_identical(pair: TokenizedPair) -> bool:
    return pair.chosen_ids == pair.rejected_ids


def _equate(products: PairProducts) -> PairProducts:
    """Makes L what it is for identical completions, W, also in the last digit: a rounding error decides their case."""
    norm = products.chosen_grad_sq_norm
    return replace(
        products,
        grad_inner_product=norm,
        rejected_grad_sq_norm=norm,
        rejected_logps=products.chosen_logps,
    )


def _add(products: PairProducts, others: PairProducts) -> PairProducts:
    """Adds the products over other parameters of the same pair."""
    return replace(
        products,
        grad_inner_product=products.grad_inner_product + others.grad_inner_product,
        chosen_grad_sq_norm=products.chosen_grad_sq_norm + others.chosen_grad_sq_norm,
        rejected_grad_sq_norm=products.rejected_grad_sq_norm + others.rejected_grad_sq_norm,
    )


def _check_finite(products: PairProducts) -> None:
    if not np.isfinite(astuple(products)).all():
        raise DpotoolError(
            "the gradient of this pair is not finite",
            where=f"row {products.pair_id}",
            remedy="Check the model's weights, or use --dtype float32",
        )
