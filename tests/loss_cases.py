"""What every test of a loss function needs: pairs written as rows, and the functions with their types checked."""

from __future__ import annotations

import inspect

import torch
from beartype import beartype
from hypothesis import strategies as st
from jaxtyping import jaxtyped

from dpotool.losses.registry import LOSSES

checked = {name: jaxtyped(typechecker=beartype)(inspect.unwrap(spec.function)) for name, spec in LOSSES.items()}
"""Every loss function as it is written, with its annotated types and shapes checked at each call."""

Row = tuple[float, float, float, float]
"""Policy chosen, policy rejected, reference chosen, reference rejected."""

PAIR: Row = (-10.0, -20.0, -12.0, -15.0)
"""a = -10 - -12 = 2, b = -20 - -15 = -5: a margin of 7."""
FALLEN: Row = (-15.0, -30.0, -12.0, -20.0)
"""a = -3, b = -10: a margin of 7 again, with a chosen completion that fell."""

nats = st.floats(-400, 0)
rows = st.tuples(nats, nats, nats, nats)


def logps(*rows: Row) -> dict[str, torch.Tensor]:
    """Builds the four arguments."""
    names = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")
    columns = torch.tensor(rows, dtype=torch.float64).unbind(dim=1)
    return dict(zip(names, columns, strict=True))


def lengths(chosen: int, rejected: int) -> dict[str, torch.Tensor]:
    return {"chosen_tokens": torch.tensor([chosen]), "rejected_tokens": torch.tensor([rejected])}


def scores(chosen: float, rejected: float) -> dict[str, torch.Tensor]:
    return {
        "score_chosen": torch.tensor([chosen], dtype=torch.float64),
        "score_rejected": torch.tensor([rejected], dtype=torch.float64),
    }


def value(name: str, *rows: Row, **options: object) -> list[float]:
    """Computes a loss of the four log-probabilities, with whatever else it takes."""
    return checked[name](**logps(*rows), **options).tolist()
