"""u, v, gradient norms and entanglement of the pairs of a training step, from that step's backward pass.

In a DPO step the gradients of all activations are there already, those of a completion's row scaled by the loss's
derivative in its log-probability, which is known. So the products of the pairs' gradients cost their Gram matrices and
nothing else: no further pass. They are of the network as it trained, dropout included; a prompt's inputs then differ
between a pair's two rows, and are shared only where there is none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from dpotool.data.pairs import TokenizedPair
from dpotool.errors import DpotoolError
from dpotool.gradients.engine import GradientEngine
from dpotool.gradients.ghost.passes import forward_tapped
from dpotool.gradients.ghost.product_sums import ProductSums
from dpotool.gradients.ghost.taps import Taps
from dpotool.likelihood.batch import CompletionBatch
from dpotool.theory.theorem import (
    ENTANGLEMENT_CASES,
    classify_entanglement,
    compute_grad_cosine,
    compute_u,
    compute_v,
)


@dataclass(slots=True)
class _Caught:
    """One micro-batch between its forward and the end of its backward pass."""

    pairs: list[TokenizedPair]
    taps: Taps
    sums: ProductSums
    logps: Float[Tensor, " rows"]
    factors: Float[Tensor, " rows"] | None = None
    """Derivative of the loss in each row's log-probability."""


class TheoryMonitor:
    """Watches the steps of one training run.

    Args:
        model: with its trained parameters marked, not wrapped yet. Its activations must not be recomputed in the
            backward pass, out of the monitor's sight.
        pairs: of the run.

    Raises:
        DpotoolError: no parameter's gradient can be read from the steps.
    """

    def __init__(self, model: nn.Module, pairs: Sequence[TokenizedPair] = ()) -> None:
        self._engine = GradientEngine(model, pairs=pairs)
        if not self._engine.claims.forms:
            raise DpotoolError(
                "no parameter's gradient can be read from the steps of this model",
                where="--monitor-theory",
                remedy="Leave it out, and use `dpotool theory-gap`",
            )
        self.left_out = self._engine.claims.fallback
        self._least_factor = _find_least_factor(next(iter(self._engine.selection.parameters.values())).dtype)
        self._dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
        self._caught: _Caught | None = None
        self._sums: Counter[str] = Counter()

    def compute_logps(self, model: nn.Module, batch: CompletionBatch) -> Float[Tensor, " rows"]:
        """Computes log pi of every row (chosen_0, rejected_0, chosen_1, ...) and prepares to catch what comes back."""
        if not torch.is_grad_enabled():
            raise RuntimeError("the monitor watches training steps, not evaluations")
        pairs = _read_pairs(batch)
        engine = self._engine
        lay_out = partial(engine.lay_out, pairs, batch.input_ids.shape[1], has_dropout=self._has_dropout())
        layout, by_pair = lay_out(together=engine.takes_pairs_together), lay_out(together=False)
        sums = ProductSums(by_pair, engine.claims.tied, device=batch.input_ids.device)
        taps = Taps(engine.selection.parameters, engine.claims, sums, keeps_layers=True)
        logps = forward_tapped(model, pairs, batch, layout, taps)
        caught = _Caught(pairs, taps, sums, logps.detach())

        def keep(factors: Tensor) -> None:
            caught.factors = factors.detach()

        logps.register_hook(keep)
        self._caught = caught
        return logps

    def _has_dropout(self) -> bool:
        """Tells whether dropout acts now; training leaves it in an adapter's modules alone (`disable_dropout`)."""
        return any(module.training and module.p > 0 for module in self._dropouts)

    def finish(
        self, reference_chosen_logps: Float[Tensor, " batch"], reference_rejected_logps: Float[Tensor, " batch"]
    ) -> None:
        """Takes in what the backward pass of the last micro-batch left; call when that is over."""
        if self._caught is None:
            return
        logps = self._caught.logps.cpu()
        products = self.read_products()
        is_known = ~np.isnan(products[:, 0])
        a, b = (
            (logps[side::2] - reference.cpu()).numpy()[is_known]
            for side, reference in ((0, reference_chosen_logps), (1, reference_rejected_logps))
        )
        inner, chosen, rejected = products[is_known].T
        self._add(inner, chosen, rejected, a, b)
        self._sums["n_saturated"] += int((~is_known).sum())

    def read_products(self) -> Float[np.ndarray, "pairs 3"]:
        """Returns <W,L>, ‖W‖², ‖L‖² of the last micro-batch's pairs after its backward pass; NaN for saturated ones.

        Raises:
            RuntimeError: there was no backward pass, or it did not meet every parameter that is watched.
        """
        caught, self._caught = self._caught, None
        if caught is None or caught.factors is None:
            raise RuntimeError("no backward pass has run since the last forward pass")
        caught.taps.end_forward()
        caught.taps.check_complete(len(caught.pairs))
        return _unscale(caught.sums.totals, caught.factors, self._least_factor)

    def _add(self, inner: np.ndarray, chosen: np.ndarray, rejected: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
        cases = classify_entanglement(inner, chosen, rejected)
        u, v = compute_u(inner, a, b), compute_v(inner, rejected)
        values = {
            "u": u,
            "v": v,
            "u_positive": u > 0,
            "v_negative": v < 0,
            "grad_inner_product": inner,
            "chosen_grad_norm": np.sqrt(chosen),
            "rejected_grad_norm": np.sqrt(rejected),
            "grad_cosine": np.nan_to_num(compute_grad_cosine(inner, chosen, rejected)),
            **{case: cases == case for case in ENTANGLEMENT_CASES},
        }
        for name, column in values.items():
            self._sums[name] += float(np.sum(column))  # type: ignore[assignment]
        self._sums["n"] += len(inner)

    def export_sums(self) -> dict[str, float]:
        """Returns this process's sums since the last call of `pop`."""
        return {name: float(total) for name, total in self._sums.items()}

    def restore_sums(self, sums: dict[str, float]) -> None:
        """Takes back what `export_sums` returned."""
        self._sums = Counter(sums)

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """Returns the means over all pairs of all processes since the last call, named theory/..., and starts anew."""
        names = sorted(self._sums)
        stacked = torch.tensor([float(self._sums[name]) for name in names], dtype=torch.float64)
        totals = accelerator.reduce(stacked.to(accelerator.device), reduction="sum").tolist()
        sums = dict(zip(names, totals, strict=True))
        self._sums = Counter()
        n, n_saturated = sums.pop("n", 0.0), sums.pop("n_saturated", 0.0)
        means = {f"theory/{name}": total / n for name, total in sums.items()} if n else {}
        return means | {"theory/n_saturated": n_saturated}


def _find_least_factor(dtype: torch.dtype) -> float:
    """Returns the derivative dLoss/dlogp below which a gradient has too few digits left: 3e-16 for float32 products.

    Products hold it squared, and lose digits where they come below tiny / eps, 1e-31. A pair under DPO with beta .1 is
    there at a margin beyond 330 nats, whatever the other pairs of its micro-batch do.
    """
    about = torch.finfo(torch.promote_types(dtype, torch.float32))
    return math.sqrt(about.tiny / about.eps)


def _unscale(
    totals: Float[Tensor, "pairs 3"], factors: Float[Tensor, " rows"], least: float
) -> Float[np.ndarray, "pairs 3"]:
    """Returns <W,L>, ‖W‖², ‖L‖² from <p W, q L>, ‖p W‖², ‖q L‖², p and q the loss's derivatives in the two logps.

    NaN where either is below `least`.
    """
    p, q = factors[0::2].cpu().numpy(), factors[1::2].cpu().numpy()
    is_known = (np.abs(p) >= least) & (np.abs(q) >= least)
    scales = np.stack([p * q, p**2, q**2], axis=1)
    scaled = totals.cpu().numpy()
    return np.divide(scaled, scales, out=np.full_like(scaled, np.nan), where=is_known[:, None])


def _read_pairs(batch: CompletionBatch) -> list[TokenizedPair]:
    """Reads the pairs back from the rows (chosen_0, rejected_0, ...) of a batch."""
    rows = []
    for ids, mask in zip(batch.input_ids.tolist(), batch.completion_mask.tolist(), strict=True):
        start = mask.index(1)
        rows.append((tuple(ids[:start]), tuple(ids[start : start + sum(mask)])))
    return [
        TokenizedPair(number, prompt, chosen, rejected)
        for number, ((prompt, chosen), (_, rejected)) in enumerate(zip(rows[0::2], rows[1::2], strict=True))
    ]
