"""The entry of a loss: its pure function, and everything that help, docs, sweep and trainer need to know about it.

Imports no torch: a loss's function is named by its module until someone computes with it, so that `--help` and shell
completion can list losses at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from dpotool.errors import DpotoolError
from dpotool.losses.options import LossOption, LossOptions, NumberOption
from dpotool.settings.fields import flag_of

if TYPE_CHECKING:
    from jaxtyping import Float, Num
    from torch import Tensor

    from dpotool.data.pairs import TokenizedPair

Need = Literal["reference", "lengths", "tokens", "scores"]
"""What a loss takes besides the policy's log-probabilities: those of the reference, the completions' lengths, the
log-probabilities of their first tokens alone, or the data's scores."""
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
    policy_chosen_prefix_logps: Float[Tensor, " batch"] | None = None
    """The part of the sum that falls on the first min(chosen_tokens, rejected_tokens) tokens of the completion."""
    policy_rejected_prefix_logps: Float[Tensor, " batch"] | None = None
    reference_chosen_prefix_logps: Float[Tensor, " batch"] | None = None
    reference_rejected_prefix_logps: Float[Tensor, " batch"] | None = None


_NEED_OF_FIELD: dict[str, Need] = {
    "reference_chosen_logps": "reference",
    "reference_rejected_logps": "reference",
    "chosen_tokens": "lengths",
    "rejected_tokens": "lengths",
    "policy_chosen_prefix_logps": "tokens",
    "policy_rejected_prefix_logps": "tokens",
    "reference_chosen_prefix_logps": "tokens",
    "reference_rejected_prefix_logps": "tokens",
    "score_chosen": "scores",
    "score_rejected": "scores",
}
_REMEDY_OF_NEED: dict[Need, str] = {
    "reference": "Give a reference model with --reference",
    "scores": "Use data with the columns score_chosen and score_rejected, or another --loss",
    "lengths": "Pass chosen_tokens and rejected_tokens",
    "tokens": "Pass the log-probabilities of the completions' first min(chosen_tokens, rejected_tokens) tokens",
}
_PAIR_FIELDS = frozenset(field.name for field in fields(PairLogps))

SFT_WEIGHT = NumberOption(
    "sft_weight",
    0.0,
    "weight of an added maximum-likelihood term, -log pi(chosen) per chosen token; 0 adds none",
    0.0,
    1e4,
    includes_low=True,
    includes_high=True,
)
"""What every loss that takes pairs may carry besides: `rpo` is `dpo` with it."""


@dataclass(frozen=True)
class LossSpec:
    """A loss as trainer, command line, sweep and docs see it.

    What it declares must be what its function's argument names say: `function` refuses one that takes something else.
    So nobody has to load torch to know.
    """

    name: str
    implementation: Callable[..., Tensor] | str
    """The pure function, or where it is: "package.module:function", imported when it is first needed."""
    about: str
    """What it is for, in one line of `dpotool train --help`."""
    formula: str
    """The loss of a pair in plain characters."""
    latex: str
    source: str
    """arXiv:..., or in words."""
    needs: frozenset[Need] = frozenset({"reference"})
    options: tuple[LossOption, ...] = ()
    aliases: tuple[str, ...] = ()
    """Names that other tools have for it."""
    is_dpo_at: str = ""
    """The setting at which it is DPO, in words; empty where there is none."""
    takes_lambda: bool = False
    """Whether it has a shift factor: an argument `shift`."""
    takes_rejected: bool = True
    """Whether the rejected completion plays any part; if not, nobody has to score it."""
    reduction: Reduction = "pairs"
    """What the sum of per-pair losses over an optimiser step is divided by: its pairs, or its chosen tokens."""
    validate_pairs: Callable[[Sequence[TokenizedPair], LossOptions], None] | None = None
    """Refuses data the loss cannot use, pair by pair, before training starts."""

    @property
    def all_options(self) -> tuple[LossOption, ...]:
        """The options of this loss, and the one that every loss of pairs accepts."""
        return (*self.options, SFT_WEIGHT) if self.takes_rejected else self.options

    @cached_property
    def function(self) -> Callable[..., Tensor]:
        """The function, which refuses tensors that are not one number per pair.

        Raises:
            TypeError: its arguments are not what this entry declares.
        """
        function = self.implementation
        if isinstance(function, str):
            module, _, name = function.partition(":")
            function = getattr(import_module(module), name)
        taken = set(inspect.signature(function).parameters)
        declared = (self.needs, self.takes_rejected, self.takes_lambda, {option.name for option in self.options})
        found = (
            frozenset(_NEED_OF_FIELD[name] for name in taken if name in _NEED_OF_FIELD),
            "policy_rejected_logps" in taken,
            "shift" in taken,
            taken - _PAIR_FIELDS - {"shift"},
        )
        if declared != found:
            raise TypeError(f"loss {self.name!r} declares {declared}, and its function takes {found}")
        return _check_its_shapes(function, where=f"loss {self.name!r}")

    @property
    def takes_tokens(self) -> bool:
        """Whether it weights the first tokens of a completion differently from the rest."""
        return "tokens" in self.needs

    @property
    def inputs(self) -> tuple[str, ...]:
        """The fields of PairLogps that the function takes."""
        return tuple(name for name in inspect.signature(self.function).parameters if name in _PAIR_FIELDS)

    def resolve_options(self, **given: float | str | None) -> LossOptions:
        """Returns all options of this loss, checked, with defaults where None or nothing is given.

        Raises:
            DpotoolError: a value is out of range, or is given for an option that this loss does not have.
        """
        known = {option.name: option for option in self.all_options}
        for name in (name for name, value in given.items() if value is not None and name not in known):
            taken = ", ".join(map(flag_of, known)) or "no options"
            raise DpotoolError(
                f"loss {self.name!r} has no such option", where=flag_of(name), remedy=f"It takes {taken}"
            )
        resolved = {name: given.get(name) for name in known}
        return {
            name: known[name].check(known[name].default if value is None else value) for name, value in resolved.items()
        }

    def compute(
        self, pairs: PairLogps, options: LossOptions, shift: float | Float[Tensor, " batch"] = 1.0
    ) -> Float[Tensor, " batch"]:
        """Computes the loss of every pair, not reduced.

        Args:
            options: from `resolve_options`.
            shift: f, for a loss with `takes_lambda`; one number or one per pair.

        Raises:
            DpotoolError: the pairs lack something in `needs`, their shapes differ, or a shift other than 1 is given
                to a loss that has none.
        """
        own = {name: value for name, value in options.items() if name != SFT_WEIGHT.name}
        sft_weight = float(options.get(SFT_WEIGHT.name, 0.0))
        inputs = (*self.inputs, "chosen_tokens") if sft_weight else self.inputs
        for name in inputs:
            if getattr(pairs, name) is None:
                self._refuse_missing(name)
        arguments: dict[str, Any] = {name: getattr(pairs, name) for name in self.inputs}
        is_plain = isinstance(shift, (int, float))
        if self.takes_lambda:
            arguments["shift"] = shift
        elif not is_plain or shift != 1:
            self.refuse_lambda()
        losses = self.function(**arguments, **own)
        if not sft_weight:
            return losses
        assert pairs.chosen_tokens is not None
        _check_shapes({"policy_chosen_logps": losses, "chosen_tokens": pairs.chosen_tokens}, f"loss {self.name!r}")
        return losses - sft_weight * pairs.policy_chosen_logps / pairs.chosen_tokens  # plus w * -lp_w / |y_w|

    def refuse_lambda(self, flag: str = "--lambda") -> None:
        """Raises DpotoolError if this loss has no shift factor; call it when the user gave one."""
        if self.takes_lambda:
            return
        of_its_own = [flag_of(option.name) for option in self.options if option.name.startswith("lambda")]
        hint = f", but {' and '.join(of_its_own)}" if of_its_own else ""
        raise DpotoolError(
            f"loss {self.name!r} has no lambda{hint}",
            where=flag,
            remedy="Lambda is the shift factor of --loss shift; leave it out, or choose that loss",
        )

    def _refuse_missing(self, field: str) -> None:
        remedy = _REMEDY_OF_NEED[_NEED_OF_FIELD[field]] if field in _NEED_OF_FIELD else None
        raise DpotoolError(f"loss {self.name!r} needs {field}, and there are none", where="--loss", remedy=remedy)


def _check_its_shapes(function: Callable[..., Tensor], *, where: str) -> Callable[..., Tensor]:
    """Refuses arguments that are not one number per pair, which tensors would otherwise stretch to fit each other."""
    signature = inspect.signature(function)

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Tensor:
        arguments = signature.bind(*args, **kwargs).arguments
        tensors = {name: value for name, value in arguments.items() if hasattr(value, "shape")}
        _check_shapes(tensors, where)
        losses = function(*args, **kwargs)
        _check_shapes(tensors | {"the loss": losses}, where)
        return losses

    return checked


def _check_shapes(tensors: dict[str, Tensor], where: str) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    first = next(iter(shapes), "")
    for name, shape in shapes.items():
        if len(shape) != 1:
            raise DpotoolError(
                f"{name} must hold one number per pair", where=where, expected="(batch,)", got=str(shape)
            )
        if shape != shapes[first]:
            expected = f"{shapes[first]}, as {first} has"
            raise DpotoolError(f"{name} is of another number of pairs", where=where, expected=expected, got=str(shape))
