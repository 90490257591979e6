"""The two ends of a blend: what their runs record, whether they can be blended, and which points the user asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpotool.errors import DpotoolError, expand_home, find_place
from dpotool.models.adapters import is_adapter_folder, read_adapter_base
from dpotool.models.subject import read_training_run

_CHANGES_NO_WEIGHT = {
    "output", "dry_run", "resume", "batch_tokens", "layout", "device", "trust_remote_code", "eval_steps",
    "logging_steps", "save_steps", "save_at", "monitor_theory", "report_to",
}  # fmt: skip
_IS_LAMBDA = {"loss", "lambda_", "lambda_schedule", "lambda_min", "lambda_max"}
_Run = Mapping[str, Any] | None
DEFAULT_WEIGHTS = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class Point:
    """One point on the line."""

    weight: float
    """Share of the second end, 0 to 1."""
    lambda_: float | None
    """The lambda that the point corresponds to; None where the ends do not differ in lambda alone."""

    @property
    def label(self) -> str:
        return f"blend λ={self.lambda_:g}" if self.lambda_ is not None else f"blend, weight {self.weight:g}"

    @property
    def name(self) -> str:
        """Its folder."""
        return f"blend-{self.lambda_:g}" if self.lambda_ is not None else f"blend-weight-{self.weight:g}"


@dataclass(frozen=True, slots=True)
class Ends:
    """The models at both ends."""

    models: tuple[str, str]
    runs: tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]
    """Their run.yaml; None for a model from elsewhere, such as the start of a training."""
    lambdas: tuple[float, float] | None
    """Of both, where they are DPO or DPO-Shift runs that differ in lambda alone."""
    differ_in: str | None
    """The first other thing they differ in, or why they have no lambda."""

    @property
    def owner(self) -> str:
        """The end that gives reference, pairs and precision: the second one if it is a run, or else the first."""
        return self.models[1] if self.runs[1] is not None or self.runs[0] is None else self.models[0]

    @property
    def is_of_one_start(self) -> bool | None:
        """Whether both began at the same weights; None where nothing says so."""
        first, second = self.runs
        if first is not None and second is not None:
            starts = {(run.get("fingerprints") or {}).get("model") for run in self.runs if run is not None}
            return None if None in starts else len(starts) == 1
        run, other = (first, self.models[1]) if first is not None else (second, self.models[0])
        return True if run is not None and _is_same(str(run["config"].get("model")), other) else None


def read_ends(first: str, second: str) -> Ends:
    """Reads what is known of two models that are to be blended.

    Raises:
        DpotoolError: they are one and the same, or did not begin at the same weights.
    """
    if _is_same(first, second):
        raise DpotoolError("is named twice, so there is no line", where="blend", got=first)
    runs = _forget_start((first, second), (read_training_run(first), read_training_run(second)))
    lambdas, reason = _read_lambdas(*runs)
    ends = Ends((first, second), runs, lambdas, reason)
    _refuse_other_start(ends)
    return ends


def _forget_start(models: tuple[str, str], runs: tuple[_Run, _Run]) -> tuple[_Run, _Run]:
    """Returns the runs, but None for a model at which the other one began: what trained the start says nothing here."""
    first, second = runs
    if second is not None and _is_same(str(second["config"].get("model")), models[0]):
        return None, second
    if first is not None and _is_same(str(first["config"].get("model")), models[1]):
        return first, None
    return runs


def _refuse_other_start(ends: Ends) -> None:
    where = " and ".join(ends.models)
    if ends.is_of_one_start is False:
        starts = [run["config"].get("model") for run in ends.runs if run is not None]
        raise DpotoolError(
            f"began at other weights ({starts[0]} and {starts[1]}), and between such models a blend is neither",
            where=where,
            remedy="Name two runs that were trained from one start",
        )
    bases = [read_adapter_base(model) for model in ends.models if is_adapter_folder(model)]
    if len(bases) == 2 and not _is_same(*bases):
        raise DpotoolError(
            "are adapters of other base models",
            where=where,
            expected="one base model",
            got=" and ".join(bases),
            remedy="Name two adapters that were trained on one model",
        )


def _is_same(first: str, second: str) -> bool:
    return first == second or find_place(expand_home(first)) == find_place(expand_home(second))


def _read_lambdas(
    first: Mapping[str, Any] | None, second: Mapping[str, Any] | None
) -> tuple[tuple[float, float] | None, str | None]:
    """Returns the lambdas of two runs that differ in nothing else, or why there are none."""
    if first is None or second is None:
        return None, "not both of them are training runs of dpotool"
    ours, theirs = first["config"], second["config"]
    lambdas = (_lambda_of(ours), _lambda_of(theirs))
    if lambdas[0] is None or lambdas[1] is None:
        return None, "not both of them are of DPO or of DPO-Shift with a fixed lambda"
    for name in sorted((ours.keys() | theirs.keys()) - _CHANGES_NO_WEIGHT - _IS_LAMBDA):
        if (ours.get(name) or None) != (theirs.get(name) or None):  # an option at 0 is one that a loss has not
            reason = f"they also differ in {name.strip('_')} ({ours.get(name)} and {theirs.get(name)})"
            return None, reason
    for name, ours_, theirs_ in _list_fingerprints(first, second):
        if ours_ != theirs_:
            return None, f"they also differ in {name} (fingerprints {ours_} and {theirs_})"
    if lambdas[0] == lambdas[1]:
        return None, f"both of them have lambda {lambdas[0]:g}"
    return (lambdas[0], lambdas[1]), None


def _list_fingerprints(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    names = {"reference": "reference", "data": "training pairs"}
    found = [run.get("fingerprints") or {} for run in (first, second)]
    return [(said, found[0].get(name), found[1].get(name)) for name, said in names.items()]


def _lambda_of(config: Mapping[str, Any]) -> float | None:
    if config.get("loss") == "dpo":
        return 1.0
    is_fixed = config.get("loss") == "shift" and config.get("lambda_schedule") in (None, "constant")
    return float(config["lambda_"]) if is_fixed and config.get("lambda_") is not None else None


def plan_points(ends: Ends, at: str | None, weight: str | None) -> list[Point]:
    """Returns the points that the user names, in their order; by default a quarter, a half and three quarters.

    Raises:
        DpotoolError: a number lies beyond the ends or is there twice, or lambdas are asked for where there are none.
    """
    if at is not None and weight is not None:
        raise DpotoolError("says the same as --at in another way", where="--weight", remedy="Give one of the two")
    if at is not None and ends.lambdas is None:
        raise DpotoolError(
            f"{' and '.join(ends.models)} have no lambdas to go by: {ends.differ_in}",
            where="--at",
            remedy="Use --weight, the share of the second model, from 0 to 1",
        )
    if at is not None and ends.lambdas is not None:
        first, second = ends.lambdas
        low, high = sorted(ends.lambdas)
        lambdas = _read_numbers(at, low, high, "--at")
        return [Point((value - first) / (second - first), value) for value in lambdas]
    weights = DEFAULT_WEIGHTS if weight is None else _read_numbers(weight, 0.0, 1.0, "--weight")
    if ends.lambdas is None:
        return [Point(value, None) for value in weights]
    first, second = ends.lambdas
    return [Point(value, first + value * (second - first)) for value in weights]


def _read_numbers(text: str, low: float, high: float, where: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = []
    is_usable = values and all(low <= value <= high for value in values) and len(set(values)) == len(values)
    if not is_usable:
        expected = f"numbers from {low:g} to {high:g}, comma-separated, each once"
        raise DpotoolError("are no points between the two models", where=where, expected=expected, got=repr(text))
    return values
