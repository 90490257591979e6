"""Inside a pair: alignment by hand, CHES against brute force, masses that sum to one, in every family and layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_pairs
from model_families import FAMILIES, build_family

from dpotool.data.pairs import TokenizedPair
from dpotool.likelihood.scorer import Scorer
from dpotool.likelihood.views import PairView, iter_views
from dpotool.measures.ches import CHES_COLUMNS, HEAD_COLUMNS, compute_ches, compute_head_products
from dpotool.measures.mass import MODELS, PARTS, VocabularyGains, compute_mass
from dpotool.measures.spans import align_answers, compute_edit_similarity, sum_spans

EOS = 2
PAIRS = make_pairs(6)

ALIGNED = [
    # chosen, rejected, spans of chosen (p prefix, s shared, d divergent, e end), spans of rejected, rivals of chosen
    ([5, 6, 7, EOS], [5, 6, 8, EOS], "ppde", "ppde", [-1, -1, 8, -1]),
    ([5, 6, 7, EOS], [9, 6, 7, 3, EOS], "dsse", "dssde", [9, -1, -1, 3]),
    ([5, EOS], [5, EOS], "pe", "pe", [-1, -1]),
    ([5, 6], [7, 8, EOS], "dd", "dde", [7, -1]),
    ([4, 5, 9, 6, EOS], [4, 5, 6, 3, EOS], "ppdse", "ppsde", [-1, -1, 6, -1, 3]),
]


@pytest.mark.parametrize(("chosen", "rejected", "of_chosen", "of_rejected", "rivals"), ALIGNED)
def test_alignment_by_hand(chosen, rejected, of_chosen, of_rejected, rivals) -> None:
    one, other = align_answers(chosen, rejected, (chosen[-1:] == [EOS], rejected[-1:] == [EOS]))
    letters = {"shared_prefix": "p", "shared": "s", "divergent": "d", "eos": "e"}
    assert "".join(letters[span] for span in one.spans) == of_chosen
    assert "".join(letters[span] for span in other.spans) == of_rejected
    assert one.rivals.tolist() == rivals


def test_white_space_behind_the_end_token_belongs_to_the_end() -> None:
    """As ChatML templates close a turn: two tokens close it, and neither is of what the two answers share."""
    one, other = align_answers([5, 7, EOS, 9], [5, 8, EOS], (2, 1))
    assert one.spans == ["shared_prefix", "divergent", "eos", "eos"]
    assert other.spans == ["shared_prefix", "divergent", "eos"]


def test_swapping_the_answers_swaps_the_alignment() -> None:
    for pair in PAIRS:
        one, other = align_answers(pair.chosen_ids, pair.rejected_ids, (1, 1))
        assert sum(span.startswith("shared") for span in one.spans) == sum(
            span.startswith("shared") for span in other.spans
        )


def test_spans_add_up_to_the_sequence() -> None:
    changes = np.array([1.0, 2.0, 4.0, 8.0])
    parts = sum_spans(changes, ["shared_prefix", "divergent", "divergent", "eos"])
    assert parts == {"shared_prefix": 1.0, "shared": 0.0, "divergent": 6.0, "eos": 8.0}


def test_edit_similarity_by_hand() -> None:
    """Of four tokens one is exchanged: 1 - 1/4."""
    assert compute_edit_similarity([1, 2, 3, 4], [1, 2, 9, 4]) == 0.75
    assert compute_edit_similarity([1, 2], [1, 2]) == 1.0


def view_pairs(policy: torch.nn.Module, reference: torch.nn.Module | None, layout: str) -> list[PairView]:
    scorers = [Scorer(model, layout=layout, batch_tokens=64) if model else None for model in (policy, reference)]
    return list(iter_views(scorers[0], scorers[1], PAIRS))


@torch.no_grad()
def ches_by_brute_force(model: torch.nn.Module, pair: TokenizedPair) -> list[float]:
    """Each answer in a forward pass of its own, all hidden states, sums over a loop."""
    sums = []
    for ids in (pair.chosen_ids, pair.rejected_ids):
        row = torch.tensor([[*pair.prompt_ids, *ids]])
        states = model(input_ids=row, output_hidden_states=True).hidden_states[-1][0].double()
        first = len(pair.prompt_ids) - 1
        sums.append([states[first:-1].sum(0), states[first:].sum(0), len(ids)])
    (chosen, chosen_all, n), (rejected, rejected_all, m) = sums
    return [
        float(chosen @ rejected - chosen @ chosen),
        float(chosen @ rejected / n / m - chosen @ chosen / n**2),
        float(chosen_all @ rejected_all - chosen_all @ chosen_all),
        float(chosen_all @ rejected_all / (n + 1) / (m + 1) - chosen_all @ chosen_all / (n + 1) ** 2),
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["shared", "paired"])
def test_ches_equals_brute_force(family: str, layout: str) -> None:
    model = build_family(family)
    found = {}
    views = list(view_pairs(model, None, layout))
    assert views
    for view in views:
        columns = compute_ches(view.policy)
        found |= {place: [float(columns[name][row]) for name in CHES_COLUMNS] for row, place in enumerate(view.places)}
    assert sorted(found) == list(range(len(PAIRS)))
    for place, pair in enumerate(PAIRS):
        np.testing.assert_allclose(found[place], ches_by_brute_force(model, pair), rtol=2e-5)


@torch.no_grad()
def distributions_by_brute_force(model: torch.nn.Module, pair: TokenizedPair) -> np.ndarray:
    row = torch.tensor([[*pair.prompt_ids, *pair.chosen_ids]])
    logits = model(input_ids=row).logits[0, len(pair.prompt_ids) - 1 : -1]
    return logits.double().softmax(dim=1).numpy()


@pytest.mark.parametrize("layout", ["shared", "paired"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
def test_masses_sum_to_one_and_are_those_of_the_whole_distribution(family: str, layout: str) -> None:
    policy, reference = build_family(family, seed=0), build_family(family, seed=1)
    gains = VocabularyGains()
    total = np.zeros(97)
    for view in view_pairs(policy, reference, layout):
        assert view.reference is not None
        is_chosen = view.policy.completions % 2 == 0
        places = is_chosen.nonzero().squeeze(1)
        rivals = torch.cat(
            [torch.tensor(align_answers(p.chosen_ids, p.rejected_ids, (0, 0))[0].rivals) for p in view.pairs]
        )
        columns = compute_mass(view.policy, view.reference, places, rivals, EOS, gains)
        expected = [
            np.concatenate([distributions_by_brute_force(model, pair) for pair in view.pairs])
            for model in (policy, reference)
        ]
        total += (expected[0] - expected[1]).sum(axis=0)
        tokens = np.concatenate([pair.chosen_ids for pair in view.pairs])
        rows = np.arange(len(tokens))
        for prefix, p in zip(MODELS, expected, strict=True):
            parts = np.stack([columns[f"{prefix}p_{part}"] for part in PARTS])
            np.testing.assert_allclose(np.nansum(parts, axis=0), 1, atol=1e-12)
            np.testing.assert_allclose(columns[f"{prefix}p_token"], p[rows, tokens], rtol=1e-6)
            has_rival = rivals.numpy() >= 0
            got = columns[f"{prefix}p_other_side"]
            np.testing.assert_allclose(got[has_rival], p[rows, rivals.numpy()][has_rival], rtol=1e-6)
            assert np.isnan(got[~has_rival]).all()
            np.testing.assert_allclose(columns[f"{prefix}p_eos"], p[:, EOS], rtol=1e-6)
            np.testing.assert_allclose(columns[f"{prefix}entropy"], -(p * np.log(p)).sum(axis=1), rtol=1e-6)
        assert columns["top_id"].tolist() == expected[0].argmax(axis=1).tolist()
        distance = np.abs(expected[0] - expected[1]).sum(axis=1) / 2
        np.testing.assert_allclose(columns["total_variation"], distance, rtol=1e-6)
    np.testing.assert_allclose(gains.change, total, atol=1e-9)
    assert gains.n_first.sum() == sum(len(pair.chosen_ids) for pair in PAIRS)


def head_products_by_autograd(model: torch.nn.Module, pair: TokenizedPair) -> list[float]:
    """Both log-probabilities by plain forward passes, their gradients in the output layer's weights by autograd."""
    weight = model.get_output_embeddings().weight
    gradients = []
    for ids in (pair.chosen_ids, pair.rejected_ids):
        row = torch.tensor([[*pair.prompt_ids, *ids]])
        logps = model(input_ids=row).logits[0, len(pair.prompt_ids) - 1 : -1].double().log_softmax(dim=1)
        total = logps[torch.arange(len(ids)), torch.tensor(ids)].sum()
        gradients.append(torch.autograd.grad(total, weight)[0].double())
    chosen, rejected = gradients
    return [float((one * other).sum()) for one, other in ((chosen, rejected), (chosen, chosen), (rejected, rejected))]


@pytest.mark.parametrize("layout", ["shared", "paired"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("positions", [5, 40], ids=["several blocks a pair", "several pairs a block"])
def test_head_products_equal_autograd(
    family: str, layout: str, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_family(family)
    if model.config.tie_word_embeddings:  # autograd would add the embedding's part
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    monkeypatch.setattr("dpotool.likelihood.completions.CHUNK_ELEMENTS", positions * 97)
    views = list(view_pairs(model, None, layout))
    assert views
    for view in views:
        columns = compute_head_products(view.policy)
        for row, pair in enumerate(view.pairs):
            got = [float(columns[name][row]) for name in HEAD_COLUMNS]
            np.testing.assert_allclose(got, head_products_by_autograd(model, pair), rtol=1e-6)


def test_a_soft_capped_head_has_no_products() -> None:
    views = list(view_pairs(build_family("gemma2"), None, "paired"))
    assert views
    for view in views:
        products = compute_head_products(view.policy)
        assert products and all(bool(values.isnan().all()) for values in products.values())
