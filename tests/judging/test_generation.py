"""Generation: batches change nothing, greedy is the argmax taken step by step, sampling follows the distribution."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import build_byte_tokenizer, save_tiny_model
from torch import nn
from transformers import PreTrainedTokenizerBase

from dpotool.errors import DpotoolError
from dpotool.judging.generation import (
    Decoding,
    Generated,
    Job,
    find_closing_ids,
    generate_batch,
    generate_batches,
    plan_generation,
    resolve_decoding,
)
from dpotool.judging.sampling import build_sampling, draw_uniforms
from dpotool.models.loading import load_model, load_tokenizer
from dpotool.settings.answers import GenerateConfig


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    folder = save_tiny_model(tmp_path_factory.mktemp("tiny"), seed=3)
    return load_model(str(folder), dtype="float64"), load_tokenizer(str(folder))


def make_jobs(n: int = 14) -> list[Job]:
    draw = random.Random(0)
    lengths = [draw.randint(2, 30) for _ in range(n)]
    return [
        Job((str(i), 0, 0), (1, *(draw.randrange(3, 250) for _ in range(length)))) for i, length in enumerate(lengths)
    ]


def decode_with(tiny: tuple[nn.Module, PreTrainedTokenizerBase], **options: object) -> Decoding:
    told: dict[str, object] = {"max_new_tokens": 12, "seed": 1}
    return resolve_decoding(*tiny, GenerateConfig(**(told | options)), 256)  # type: ignore[arg-type]


def run_all(model: nn.Module, jobs: list[Job], decoding: Decoding, batch_tokens: int | str = "auto") -> list[Generated]:
    found = [each for batch in generate_batches(model, jobs, decoding, batch_tokens=batch_tokens) for each in batch]
    assert sorted(place for place, _ in found) == list(range(len(jobs)))
    return [generated for _, generated in sorted(found, key=lambda each: each[0])]


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_batches_change_nothing(tiny: tuple[nn.Module, PreTrainedTokenizerBase], temperature: float):
    """All at once, a few, one by one, and in another order: the same tokens."""
    jobs, decoding = make_jobs(), decode_with(tiny, temperature=temperature)
    together = run_all(tiny[0], jobs, decoding)
    assert together == run_all(tiny[0], jobs, decoding, 130) == run_all(tiny[0], jobs, decoding, 1)
    assert together == run_all(tiny[0], jobs[::-1], decoding)[::-1]
    assert len(set(together)) > 5


def test_greedy_in_float32_changes_only_where_two_tokens_tie(tmp_path: Path):
    """Where a batch of another size gives another token, the two tokens' logits lie within rounding of each other."""
    model = load_model(str(save_tiny_model(tmp_path / "m", seed=5)), dtype="float32")
    tokenizer = load_tokenizer(str(tmp_path / "m"))
    jobs, decoding = make_jobs(24), decode_with((model, tokenizer))
    for job, one, many in zip(jobs, run_all(model, jobs, decoding, 1), run_all(model, jobs, decoding), strict=True):
        if one == many:
            continue
        place = next(i for i, (a, b) in enumerate(zip(one.token_ids, many.token_ids, strict=False)) if a != b)
        with torch.no_grad():
            logits = model(torch.tensor([[*job.prompt_ids, *one.token_ids[:place]]])).logits[0, -1]
        assert abs(logits[one.token_ids[place]] - logits[many.token_ids[place]]) < 1e-5


def test_greedy_is_the_argmax_step_by_step(tiny: tuple[nn.Module, PreTrainedTokenizerBase]):
    """The slow truth: no padding, no cache, the whole row anew for every token."""
    model, jobs, decoding = tiny[0], make_jobs(5), decode_with(tiny)
    for job, fast in zip(jobs, run_all(model, jobs, decoding), strict=True):
        ids: list[int] = []
        while len(ids) < decoding.max_new_tokens and (not ids or ids[-1] not in decoding.eos_ids):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([[*job.prompt_ids, *ids]])).logits[0, -1].argmax()))
        assert fast.token_ids == tuple(ids)


def test_sampling_follows_the_distribution():
    """20,000 rows draw from (0.6, 0.3, 0.1, 0): shares within three standard errors, the impossible token never."""
    logits = torch.log(torch.tensor([0.6, 0.3, 0.1, 0.0])).repeat(20_000, 1)
    uniforms = draw_uniforms(0, [(str(i), 0, 0) for i in range(20_000)], 1)
    options = {"temperature": 1.0, "top_k": None, "top_p": None, "min_p": None}
    drawn = build_sampling(options, uniforms, 3)(torch.zeros(20_000, 3, dtype=torch.long), logits).argmax(1)
    shares = np.bincount(drawn, minlength=4) / 20_000
    assert shares == pytest.approx([0.6, 0.3, 0.1, 0.0], abs=0.011) and shares[3] == 0


def test_a_number_of_zero_or_nearly_one_takes_a_token_that_can_be():
    logits = torch.log(torch.tensor([[0.0, 0.5, 0.5, 0.0]])).repeat(2, 1)
    options = {"temperature": 1.0, "top_k": None, "top_p": None, "min_p": None}
    sampling = build_sampling(options, np.array([[0.0], [1 - 1e-16]]), 1)
    assert sampling(torch.zeros(2, 1, dtype=torch.long), logits).argmax(1).tolist() == [1, 2]


def test_streams_differ_by_seed_question_sample_and_turn():
    names = [("1", 0, 0), ("2", 0, 0), ("1", 1, 0), ("1", 0, 1)]
    drawn = draw_uniforms(0, names, 3)
    assert len({tuple(row) for row in [*drawn, *draw_uniforms(1, names[:1], 3)]}) == 5
    assert (draw_uniforms(0, names[:1], 5)[0, :3] == drawn[0]).all(), "a longer answer begins alike"


def test_temperature_sharpens(tiny: tuple[nn.Module, PreTrainedTokenizerBase]):
    jobs = make_jobs()
    cold = run_all(tiny[0], jobs, decode_with(tiny, temperature=1e-4))
    assert cold == run_all(tiny[0], jobs, decode_with(tiny, temperature=0.0))


def test_what_an_answer_depends_on(tiny: tuple[nn.Module, PreTrainedTokenizerBase]):
    assert "seed" not in decode_with(tiny).to_dict() and "temperature" not in decode_with(tiny).to_dict()
    assert decode_with(tiny, temperature=0.7).to_dict()["seed"] == 1


def test_out_of_memory_halves_the_batch(tiny: tuple[nn.Module, PreTrainedTokenizerBase]):
    sizes = []

    def run(model: nn.Module, jobs: list[Job], decoding: Decoding, pad: int) -> list[Generated]:
        sizes.append(len(jobs))
        if len(jobs) > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return generate_batch(model, jobs, decoding, pad)

    jobs, decoding = make_jobs(), decode_with(tiny)
    found = [each for batch in generate_batches(tiny[0], jobs, decoding, run=run) for each in batch]
    assert dict(found) == dict(enumerate(run_all(tiny[0], jobs, decoding))) and sizes[0] == 14 and max(sizes[2:]) <= 7


def test_plans_keep_to_the_budget_and_take_the_longest_first(tiny: tuple[nn.Module, PreTrainedTokenizerBase]):
    jobs = make_jobs(30)
    plan = plan_generation(tiny[0], jobs, 10, 200)
    lengths = [[len(jobs[place].prompt_ids) + 10 for place in batch] for batch in plan]
    assert all(len(batch) * max(batch) <= 200 for batch in lengths)
    assert lengths[0][0] == max(map(max, lengths)) and sorted(i for batch in plan for i in batch) == list(range(30))


def test_closing_tokens_come_from_all_who_know(tiny: tuple[nn.Module, PreTrainedTokenizerBase]):
    """<eos> is 2; a template that closes turns with <pad> (0) adds that."""
    assert find_closing_ids(*tiny) == (2,)
    other = build_byte_tokenizer(
        chat_template="{% for m in messages %}{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}<pad>{% endif %}{% endfor %}"
    )
    assert find_closing_ids(tiny[0], other) == (0, 2)


def test_settings_out_of_range_are_refused(tiny: tuple[nn.Module, PreTrainedTokenizerBase]):
    with pytest.raises(DpotoolError, match="--max-new-tokens: is out of range; expected 1 to 255, got 256"):
        decode_with(tiny, max_new_tokens=256)
