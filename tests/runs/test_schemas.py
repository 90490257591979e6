from __future__ import annotations

import pyarrow as pa
import pytest

from dpotool.runs.schemas import SCHEMAS, SCORE_SCHEMA, THEORY_SCHEMA, is_optional
from dpotool.theory.advice import DOT_COLUMNS


def test_the_columns_are_those_of_the_design():
    assert SCORE_SCHEMA.names == [
        "pair_id", "status", "prompt_id", "prompt_tokens", "chosen_tokens", "rejected_tokens",
        "chosen_logps", "rejected_logps", "ref_chosen_logps",
        "ref_rejected_logps", "chosen_rewards", "rejected_rewards", "reward_margins",
        "chosen_displacement", "rejected_displacement", "score_chosen", "score_rejected",
    ]  # fmt: skip
    assert THEORY_SCHEMA.names == [
        "pair_id", "grad_inner_product", "chosen_grad_sq_norm", "rejected_grad_sq_norm", "grad_cosine",
        "chosen_logratios", "rejected_logratios", "u", "v", "band_low", "band_high", "entanglement",
        "chosen_dot_mean_chosen", "rejected_dot_mean_chosen", "chosen_dot_mean_rejected", "rejected_dot_mean_rejected",
        "prompt_id", "pair_hash", "driver_score",
    ]  # fmt: skip
    assert [field.name for field in THEORY_SCHEMA if is_optional(field)] == [
        *DOT_COLUMNS, "prompt_id", "pair_hash", "driver_score",
    ]  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_column_says_its_unit_and_definition(name):
    assert SCHEMAS[name]
    for field in SCHEMAS[name]:
        assert b"unit" in field.metadata
        assert field.metadata[b"definition"]
        assert field.type in (pa.int64(), pa.float64(), pa.string())
