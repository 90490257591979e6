"""Measures known before training that rank the pairs by the risk of a fall: CHES and the similarity of the answers.

The maths is in `measures.ches` and `measures.spans`; `diagnose` has the same numbers beside the change of each pair.
Imports no torch until something is computed.
"""

from __future__ import annotations

from dpotool.measures.measure import Measure, ModelView, ShownValue, Values
from dpotool.runs.schemas import DIAGNOSIS_SCHEMA


def compute_ches_of_pairs(view: ModelView) -> Values:
    """Returns the four forms of CHES of every pair under one model; of several processes each has them all."""
    import numpy as np
    from accelerate import PartialState
    from accelerate.utils import gather_object

    from dpotool.likelihood.views import iter_views
    from dpotool.measures.ches import CHES_COLUMNS, compute_ches

    places: list[int] = []
    rows: list[list[float]] = []
    with view.progress.track(f"CHES of {view.scorer.label}", len(view.pairs)) as advance:
        for each in iter_views(view.scorer, None, view.pairs):
            columns = compute_ches(each.policy)
            places += each.places
            rows += [[float(columns[name][row]) for name in CHES_COLUMNS] for row in range(len(each.pairs))]
            advance(len(each.pairs) * PartialState().num_processes)
    if PartialState().num_processes > 1:
        places, rows = gather_object(places), gather_object(rows)
    found = np.array(rows, dtype=np.float64).reshape(-1, len(CHES_COLUMNS))[np.argsort(places)]
    return dict(zip(CHES_COLUMNS, found.T, strict=True))


def compute_similarity_of_pairs(view: ModelView) -> Values:
    """Returns the edit similarity (0 to 1) of every pair's token ids, which needs no model."""
    import numpy as np

    from dpotool.measures.spans import compute_edit_similarity

    return {"edit_similarity": np.array([compute_edit_similarity(p.chosen_ids, p.rejected_ids) for p in view.pairs])}


CHES = Measure(
    name="ches",
    summary="CHES in four forms: how alike the two answers are inside the model, which foretells a fall; `ref_ches` is "
    "that of the reference, known before training.",
    needs="hidden states",
    price="one more forward pass of each model, never stored",
    columns=tuple(DIAGNOSIS_SCHEMA.field(name) for name in ("ches", "ln_ches", "ches_all", "ln_ches_all")),
    compute=compute_ches_of_pairs,
    shown=(ShownValue("length-normalised CHES", "ln_ches"), ShownValue("the same under the reference", "ref_ln_ches")),
)
SIMILARITY = Measure(
    name="similarity",
    summary="How much of the two answers is the same, token by token.",
    needs="logps",
    price="none of a model",
    columns=(DIAGNOSIS_SCHEMA.field("edit_similarity"),),
    compute=compute_similarity_of_pairs,
    takes_reference=False,
    shown=(ShownValue("edit similarity of the answers", "edit_similarity", 3),),
)
