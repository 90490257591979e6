"""Every loss by name, with what it needs and what it can be told. To add one: write its function, register it here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from jaxtyping import Float, Num
from torch import Tensor

from dpotool.data.pairs import TokenizedPair
from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.losses import preference
from dpotool.losses.options import ChoiceOption, LossOption, LossOptions, NumberOption, flag_of
from dpotool.losses.scores import validate_scores

Need = Literal["reference", "scores", "lengths"]
Reduction = Literal["pairs", "chosen_tokens"]


@dataclass(frozen=True, slots=True)
class PairLogps:
    """What a batch of pairs offers to a loss; None is what the run does not have. `_logps` as in `preference`."""

    policy_chosen_logps: Float[Tensor, " batch"]
    policy_rejected_logps: Float[Tensor, " batch"] | None = None
    reference_chosen_logps: Float[Tensor, " batch"] | None = None
    reference_rejected_logps: Float[Tensor, " batch"] | None = None
    chosen_tokens: Num[Tensor, " batch"] | None = None
    """Completion tokens, EOS included."""
    rejected_tokens: Num[Tensor, " batch"] | None = None
    score_chosen: Float[Tensor, " batch"] | None = None
    score_rejected: Float[Tensor, " batch"] | None = None


_NEED_OF_FIELD: dict[str, Need] = {
    "reference_chosen_logps": "reference",
    "reference_rejected_logps": "reference",
    "chosen_tokens": "lengths",
    "rejected_tokens": "lengths",
    "score_chosen": "scores",
    "score_rejected": "scores",
}
_REMEDY_OF_NEED: dict[Need, str] = {
    "reference": "Give a reference model with --reference",
    "scores": "Use data with the columns score_chosen and score_rejected, or another --loss",
    "lengths": "Pass chosen_tokens and rejected_tokens",
}
_PAIR_FIELDS = frozenset(field.name for field in fields(PairLogps))


@dataclass(frozen=True, slots=True)
class LossSpec:
    """A loss as the trainer and the command line see it. Its function's signature says what it needs."""

    name: str
    function: Callable[..., Tensor]
    summary: str
    """The formula in one line, for help texts."""
    source: str
    options: tuple[LossOption, ...] = ()
    reduction: Reduction = "pairs"
    """What the sum of per-pair losses over an optimiser step is divided by: its pairs, or its chosen tokens."""
    validate_pairs: Callable[[Sequence[TokenizedPair], LossOptions], None] | None = None
    """Refuses data the loss cannot use, pair by pair, before training starts."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The fields of PairLogps that the function takes."""
        return tuple(name for name in inspect.signature(self.function).parameters if name in _PAIR_FIELDS)

    @property
    def needs(self) -> frozenset[Need]:
        """What there must be besides the policy's log-probabilities."""
        return frozenset(_NEED_OF_FIELD[name] for name in self.inputs if name in _NEED_OF_FIELD)

    @property
    def takes_rejected(self) -> bool:
        """Whether the rejected completion plays any part; if not, nobody has to score it."""
        return "policy_rejected_logps" in self.inputs

    @property
    def takes_lambda(self) -> bool:
        """Whether the loss has a shift factor."""
        return "shift" in inspect.signature(self.function).parameters

    def resolve_options(self, **given: float | str | None) -> LossOptions:
        """Returns all options of this loss, checked, with defaults where None or nothing is given.

        Raises:
            DpotoolError: a value is out of range, or is given for an option that this loss does not have.
        """
        known = {option.name: option for option in self.options}
        for name in (name for name, value in given.items() if value is not None and name not in known):
            taken = ", ".join(map(flag_of, known)) or "no options"
            raise DpotoolError(
                f"loss {self.name!r} has no such option", where=flag_of(name), remedy=f"It takes {taken}"
            )
        resolved = {name: given.get(name) for name in known}
        return {
            name: known[name].check(known[name].default if value is None else value) for name, value in resolved.items()
        }

    def refuse_lambda(self, flag: str = "--lambda") -> None:
        """Raises DpotoolError if this loss has no shift factor; call it when the user gave one."""
        if not self.takes_lambda:
            with_lambda = ", ".join(sorted(name for name, spec in LOSSES.items() if spec.takes_lambda))
            raise DpotoolError(
                f"loss {self.name!r} has no lambda", where=flag, remedy=f"Losses that have one: {with_lambda}"
            )

    def compute(
        self, pairs: PairLogps, options: LossOptions, shift: float | Float[Tensor, " batch"] = 1.0
    ) -> Float[Tensor, " batch"]:
        """Computes the loss of every pair, not reduced.

        Args:
            options: from `resolve_options`.
            shift: f, for a loss with `takes_lambda`; one number or one per pair.

        Raises:
            DpotoolError: the pairs lack something in `needs`, or a shift other than 1 is given to a loss that has none.
        """
        for name in self.inputs:
            if getattr(pairs, name) is None:
                self._refuse_missing(name)
        arguments = {name: getattr(pairs, name) for name in self.inputs} | dict(options)
        if self.takes_lambda:
            arguments["shift"] = shift
        elif isinstance(shift, Tensor) or shift != 1:
            self.refuse_lambda()
        return self.function(**arguments)

    def _refuse_missing(self, field: str) -> None:
        remedy = _REMEDY_OF_NEED[_NEED_OF_FIELD[field]] if field in _NEED_OF_FIELD else None
        raise DpotoolError(f"loss {self.name!r} needs {field}, and there are none", where="--loss", remedy=remedy)


def get_loss(name: str) -> LossSpec:
    """Returns the loss of that name.

    Raises:
        DpotoolError: there is none; the message lists the known ones and the nearest.
    """
    if name not in LOSSES:
        raise DpotoolError(f"unknown loss {name!r}", where="--loss", remedy=suggest_nearest(name, LOSSES))
    return LOSSES[name]


BETA = NumberOption("beta", 0.1, "strength of the pull towards the reference model; the paper's runs use 0.01", low=0.0)
_CDPO_SMOOTHING = NumberOption(
    "label_smoothing", 0.0, "probability that a label is wrong (cDPO)", 0.0, 0.5, includes_low=True, includes_high=True
)
_ROBUST_SMOOTHING = NumberOption(
    "label_smoothing", 0.1, "probability that a label is wrong (robust DPO)", 0.0, 0.5, includes_low=True
)
_SCORE_OFFSET = ChoiceOption(
    "score_offset", "log", "log of the score difference, raw difference, or log ratio", tuple(preference.SCORE_OFFSETS)
)
_ODPO_ALPHA = NumberOption("alpha", 1.0, "factor on the score offset; 0 is DPO", 0.0, includes_low=True)

LOSSES: dict[str, LossSpec] = {
    spec.name: spec
    for spec in (
        LossSpec(
            "sft",
            preference.compute_sft_losses,
            "-log pi(chosen), a mean over the step's chosen tokens",
            "maximum likelihood",
            reduction="chosen_tokens",
        ),
        LossSpec(
            "dpo",
            preference.compute_dpo_losses,
            "-log s(beta (a - b)); with label smoothing, cDPO",
            "arXiv:2305.18290",
            (BETA, _CDPO_SMOOTHING),
        ),
        LossSpec(
            "shift",
            preference.compute_shift_losses,
            "-log s(beta a - f beta b), f from lambda",
            "arXiv:2502.07599",
            (BETA,),
        ),
        LossSpec(
            "odpo",
            preference.compute_odpo_losses,
            "-log s(beta (a - b) - alpha offset(scores))",
            "arXiv:2402.10571",
            (BETA, _SCORE_OFFSET, _ODPO_ALPHA),
            validate_pairs=validate_scores,
        ),
        LossSpec(
            "ipo", preference.compute_ipo_losses, "(a/tokens - b/tokens - 1/(2 beta))^2", "arXiv:2310.12036", (BETA,)
        ),
        LossSpec("hinge", preference.compute_hinge_losses, "max(0, 1 - beta (a - b))", "arXiv:2305.10425", (BETA,)),
        LossSpec(
            "robust",
            preference.compute_robust_losses,
            "[-(1-e) log s(beta (a - b)) + e log s(-beta (a - b))] / (1 - 2e)",
            "arXiv:2403.00409",
            (BETA, _ROBUST_SMOOTHING),
        ),
    )
}
