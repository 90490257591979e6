"""Checks of the tokens: where a template, a tokenizer or a length limit changes the meaning of a pair."""

from __future__ import annotations

import re

from dpotool.data.checks.check import MODEL, Check, Found, Material, show_place, write_answer
from dpotool.data.checks.token_view import TokenView
from dpotool.data.sources import write_out
from dpotool.wording import count


def _view(material: Material) -> TokenView:
    assert material.tokens is not None
    return material.tokens


def _refused(material: Material) -> Found:
    return Found(_view(material).refused)


def _template_no_prefix(material: Material) -> Found:
    view, rows = _view(material), {}
    for row in view.conversational & view.renderings.keys():
        rendering = view.renderings[row]
        for side in ("chosen", "rejected"):
            text = getattr(rendering, side)
            if not text.startswith(rendering.prompt):
                at = next(
                    n for n, (a, b) in enumerate(zip(rendering.prompt + "\0", text + "\1", strict=False)) if a != b
                )
                here = show_place(rendering.prompt, at, at + 1)
                rows[row] = f"prompt alone {here}, with {side} {show_place(text, at, at + 1)}"
                break
    return Found(dict(sorted(rows.items())))


def _double_bos(material: Material) -> Found:
    view = _view(material)
    bos, bos_id = view.tokenizer.bos_token, view.tokenizer.bos_token_id
    rows = {}
    for row, pair in view.encoded.items():
        is_double = bos_id is not None and (pair.prompt_ids + pair.chosen_ids)[:2] == [bos_id, bos_id]
        is_written = row not in view.conversational and view.encoder.adds_bos
        if is_double or (is_written and view.renderings[row].prompt.startswith(bos)):
            rows[row] = f"the text begins {show_place(view.renderings[row].prompt, 0, 20)}"
    return Found(rows)


def _missing_bos(material: Material) -> Found:
    view = _view(material)
    if not view.encoder.adds_bos:
        return Found({})
    bos_id = view.tokenizer.bos_token_id
    return Found(
        {
            row: f"begins with {view.show_tokens((pair.prompt_ids + pair.chosen_ids)[:4])}"
            for row, pair in view.encoded.items()
            if (pair.prompt_ids + pair.chosen_ids)[:1] != [bos_id]
        }
    )


def _missing_eos(material: Material) -> Found:
    """The template leaves the last turn open; in plain text the end token is always dpotool's to add."""
    view, rows = _view(material), {}
    for row in sorted(view.conversational & view.renderings.keys()):
        text = view.renderings[row].chosen.rstrip()
        if not text.endswith(tuple(view.list_special())):
            rows[row] = f"the rendering ends {show_place(text, len(text) - 1, len(text))}"
    return Found(rows)


def _double_eos(material: Material) -> Found:
    view, rows = _view(material), {}
    for row, pair in view.encoded.items():
        for side, ids in (("chosen", pair.chosen_ids), ("rejected", pair.rejected_ids)):
            if view.count_closings(ids) > 1:
                rows[row] = view.show_end(row, side)
                break
    return Found(rows)


def _merged_boundary(material: Material) -> Found:
    view = _view(material)
    return Found(
        {
            row: f"the completion begins at ‖: {view.show_boundary(row)}"
            for row, pair in view.encoded.items()
            if pair.is_merged
        }
    )


def _control_tokens(material: Material) -> Found:
    """In conversations in every message; in plain text in the answers, as a prompt may have been rendered before."""
    view, rows = _view(material), {}
    pattern = re.compile("|".join(map(re.escape, sorted(view.list_special(), key=len, reverse=True))))
    closing = re.compile(rf"(?:{pattern.pattern}|\s)+\Z")
    for pair in material.data.pairs:
        texts = {"chosen": write_answer(pair.chosen), "rejected": write_answer(pair.rejected)}
        if pair.is_conversational:
            texts = {"prompt": write_out(pair.prompt), **texts}
        else:
            texts = {name: closing.sub("", text) for name, text in texts.items()}
        for name, text in texts.items():
            if found := pattern.search(text):
                rows[pair.pair_id] = f"{found.group(0)} in {name}: {show_place(text, *found.span())}"
                break
    return Found(rows)


def _truncated(material: Material) -> Found:
    view = _view(material)
    rows, lost = {}, {"prompt": 0, "chosen": 0, "rejected": 0}
    for row, pair in view.encoded.items():
        n_prompt, n_chosen, n_rejected = len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids)
        over = n_prompt + max(n_chosen, n_rejected) - view.max_length
        if over <= 0 or not view.fits(pair):
            continue
        at_end = {
            side: min(n, max(0, n_prompt + n - view.max_length))
            for side, n in (("chosen", n_chosen), ("rejected", n_rejected))
        }
        lost["prompt"] += over
        for side, n in at_end.items():
            lost[side] += n
        rows[row] = (
            f"of {count(n_prompt, 'prompt token')} {over} are cut; a trainer that cuts at the end would take "
            f"{at_end['chosen']} of {n_chosen} chosen and {at_end['rejected']} of {n_rejected} rejected tokens"
        )
    says = (
        f"at {count(view.max_length, 'token')} {count(len(rows), 'pair loses', 'pairs lose')} "
        f"{count(lost['prompt'], 'prompt token')} and nothing of their answers; a trainer that cuts at the end would "
        f"take {count(lost['chosen'], 'token')} of chosen and {lost['rejected']:,} of rejected answers"
    )
    return Found(rows, says if rows else "", {f"tokens_{name}": float(n) for name, n in lost.items()})


def _too_long(material: Material) -> Found:
    view = _view(material)
    return Found(
        {
            row: f"{len(pair.prompt_ids)} prompt, {len(pair.chosen_ids)} chosen, {len(pair.rejected_ids)} rejected"
            for row, pair in view.encoded.items()
            if not view.fits(pair)
        }
    )


def _beyond_positions(material: Material) -> Found:
    view = _view(material)
    if view.positions is None:
        return Found({})
    return Found(
        {
            row: f"{count(n, 'token')}, and the model has positions for {view.positions:,}"
            for row, pair in view.encoded.items()
            if (n := len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))) > view.positions
        }
    )


CHECKS = (
    Check(
        "refused",
        "tokens",
        "error",
        "the template or tokenizer refuses the pair",
        "Such a pair is left out of training and scores, or the template drops one of its messages.",
        "Bring the conversation into the form that the template accepts, or use another model's template.",
        _refused,
        needs=MODEL,
    ),
    Check(
        "template-no-prefix",
        "tokens",
        "warning",
        "the prompt renders differently with an answer",
        "The model is trained on another prompt than the one that it will be given in use.",
        "Correct the chat template so that it renders the prompt alike with and without an answer.",
        _template_no_prefix,
        needs=MODEL,
    ),
    Check(
        "double-bos",
        "tokens",
        "warning",
        "the begin token stands twice",
        "The model never saw this. dpotool removes one that the tokenizer added, but other trainers may not.",
        "Remove the begin token from the texts: the tokenizer adds it.",
        _double_bos,
        needs=MODEL,
    ),
    Check(
        "missing-bos",
        "tokens",
        "warning",
        "the begin token is missing",
        "The tokenizer puts it before plain text but the template does not, so the model sees an unusual start.",
        "Put the begin token into the chat template.",
        _missing_bos,
        needs=MODEL,
    ),
    Check(
        "missing-eos",
        "tokens",
        "note",
        "the template leaves the last turn open",
        "dpotool closes such an answer with the end token; trainers that do not do so teach the model never to stop.",
        "Put the end token into the chat template.",
        _missing_eos,
        needs=MODEL,
    ),
    Check(
        "double-eos",
        "tokens",
        "error",
        "the end token stands twice",
        "The model learns to continue after the end, and the second one adds to every log-likelihood.",
        "Remove the end token from the texts: dpotool adds it where it is missing.",
        _double_eos,
        needs=MODEL,
    ),
    Check(
        "merged-boundary",
        "tokens",
        "warning",
        "a token spans prompt and answer",
        "The prompt alone has other tokens than the prompt with its answer, so generation starts differently.",
        "End prompts without a space and begin answers with one, because most vocabularies store words so.",
        _merged_boundary,
        needs=MODEL,
        counted_as="n_boundary_merged",
        counted_word="with a merged boundary",
    ),
    Check(
        "control-tokens",
        "tokens",
        "error",
        "a control token stands inside a text",
        "It is read as the token itself, so the answer ends too early or a turn begins that nobody wrote.",
        "Remove it from the text, or leave these pairs out.",
        _control_tokens,
        needs=MODEL,
    ),
    Check(
        "truncated",
        "tokens",
        "warning",
        "the prompt is cut to the maximum length",
        "Its beginning is lost, and the instruction is often there.",
        "Raise --max-length, or leave these pairs out with --truncation exclude.",
        _truncated,
        needs=MODEL,
        counted_as="n_truncated",
        counted_word="truncated",
    ),
    Check(
        "too-long",
        "tokens",
        "error",
        "longer than the maximum length, left out",
        "The pair does not fit even with its prompt cut, so it is left out of training and scores.",
        "Raise --max-length if the model has enough positions.",
        _too_long,
        needs=MODEL,
    ),
    Check(
        "beyond-positions",
        "tokens",
        "warning",
        "longer than the model has positions for",
        "No setting makes the whole pair fit this model.",
        "Use a model with more positions, or shorten these pairs.",
        _beyond_positions,
        needs=MODEL,
    ),
)
