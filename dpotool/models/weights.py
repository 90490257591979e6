"""Checks that the weights of a checkpoint fit its model: none missing, none left over, each of the right shape.

transformers fills what a checkpoint lacks with random numbers and drops what it does not know; a score of such a model
is a number about nothing. What an architecture itself declares as tied or as not needed is no fault.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from dpotool.errors import DpotoolError, expand_home
from dpotool.hub import refuse_pointer
from dpotool.runs.checked import load_json
from dpotool.wording import count

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
_SHOWN = 3
_FLOATS = frozenset(("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4"))
_SAVE_AGAIN = "Save the whole model again with save_pretrained or mend its config.json: what it lacks would be random"
_WRAPPERS = {
    "_orig_mod.": "torch.compile; save model._orig_mod",
    "module.": "DataParallel or DistributedDataParallel; save model.module",
}


def check_weight_files(source: str) -> None:
    """Looks at the weight files of a folder before they are read.

    Raises:
        DpotoolError: the weights lie there only as a pickle, or a file is lost or is a pointer in place of itself.
    """
    folder = expand_home(source)
    if not (folder / "config.json").is_file():
        return  # a hub id, or a folder that is refused for that
    refuse_pointer(folder / "config.json")
    files = list_weight_files(folder)
    lost = [file.name for file in files if not file.is_file()]
    if lost:
        raise DpotoolError(
            f"{len(lost)} of {count(len(files), 'weight file')} cannot be found: {_name_some(lost)}",
            where=source,
            remedy="Copy or download the folder again",
        )
    pickles = sorted(file.name for file in folder.glob("*.bin") if file.name != "training_args.bin")
    if not files and pickles:
        raise DpotoolError(
            f"its weights are only there as {_name_some(pickles)}, and reading such a file can run code",
            where=source,
            expected="safetensors files",
            remedy="If you trust it, convert it once in Python: AutoModelForCausalLM.from_pretrained(folder)"
            ".save_pretrained(folder), or take a revision of the model with safetensors",
        )
    if not files:
        raise DpotoolError(
            f"there are no weights in it: no {WHOLE} and no {INDEX}",
            where=source,
            remedy="Copy or download the folder again",
        )
    for file in files:
        refuse_pointer(file)


def list_weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files that a folder's model is in, also those that its index names but are lost.

    Raises:
        DpotoolError: the index is no list of files.
    """
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    if not (folder / INDEX).is_file():
        return []
    try:
        shards = load_json(folder / INDEX)["weight_map"].values()
        return [folder / str(name) for name in sorted(set(shards))]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise DpotoolError(
            "is no list of weight files", where=str(folder / INDEX), remedy="Copy or download the folder again"
        ) from None


_EPSILON = re.compile(r"(^|_)eps(ilon)?$")
"""Settings of that name, and none like `warmup_steps`."""


def check_epsilons(settings: Mapping[str, Any], source: str) -> None:
    """Raises DpotoolError where a norm adds something to a variance that would drown it.

    An infinite one makes every hidden state zero and all tokens equally likely, in numbers that look like any other.
    """
    for name, value in settings.items():
        if isinstance(value, Mapping):
            check_epsilons(value, source)
        elif _EPSILON.search(str(name)) and isinstance(value, int | float) and not 0 <= value < 1:
            raise DpotoolError(
                "is no number that a norm can add",
                where=f"{source}: config.json: {name}",
                expected="one from 0 to 1",
                got=str(value),
                remedy="Copy or download the folder again",
            )


def check_quantisation(config: Any, source: str) -> None:
    """Refuses a quantisation that transformers does not know: it would skip it, and read the numbers as weights.

    Raises:
        DpotoolError: the configuration names an unknown quantisation, or none.
    """
    about = getattr(config, "quantization_config", None)
    if about is None:
        return
    about = about if isinstance(about, Mapping) else getattr(about, "to_dict", dict)()
    method = about.get("quant_method")
    if about.get("load_in_4bit") or about.get("load_in_8bit"):
        method = f"bitsandbytes_{'4bit' if about.get('load_in_4bit') else '8bit'}"
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise DpotoolError(
            "its quantisation is not one that transformers can read",
            where=source,
            expected=", ".join(sorted(map(str, AUTO_QUANTIZATION_CONFIG_MAPPING))),
            got=repr(method) if method else "a quantization_config without quant_method",
            remedy="Take quantization_config out of its config.json if the weights are plain, or name the model it was "
            "made from",
        )


def check_loaded(info: Mapping[str, Any], source: str, *, remedy: str = _SAVE_AGAIN) -> None:
    """Refuses a model of which not every weight is the checkpoint's.

    Args:
        info: what `from_pretrained(..., output_loading_info=True)` says, without what is tied or declared ignorable.
        remedy: shown where the names do not reveal the cause.

    Raises:
        DpotoolError: a weight is missing, left over or of another shape.
    """
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    other = sorted(info["mismatched_keys"], key=lambda key: str(key[0]))
    if not (missing or unexpected or other):
        return
    clauses = []
    if other:
        name, found, wanted = other[0]
        more = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        clauses.append(f"{name} is {describe_shape(found)} where the model has {describe_shape(wanted)}{more}")
    clauses += [f"it lacks {_name_some(missing)}"] if missing else []
    clauses += [f"the model has no place for {_name_some(unexpected)}"] if unexpected else []
    raise DpotoolError(
        f"the weights are not this model's: {'; '.join(clauses)}",
        where=source,
        remedy=_advise(missing, unexpected) or remedy,
    )


def _advise(missing: Collection[str], unexpected: Collection[str]) -> str | None:
    for prefix, wrapper in _WRAPPERS.items():
        if missing and all(prefix in name for name in unexpected) and unexpected:
            return f"The names carry {prefix!r} of {wrapper} instead"
    if any(name.startswith(("score.", "v_head.", "classifier.")) for name in unexpected):
        return "This is a reward or value model; name the causal language model it was made from"
    return None


def check_number_types(source: str, is_quantised: bool) -> None:
    """Refuses weights stored as integers where nothing says that they are quantised: a cast would take them.

    Reads the headers of the files of a local folder only.

    Raises:
        DpotoolError: a weight holds integers.
    """
    folder = expand_home(source)
    if is_quantised or not folder.is_dir():
        return
    for file in list_weight_files(folder):
        for name, dtype in _read_types(file):
            if dtype not in _FLOATS and name.endswith("weight"):
                raise DpotoolError(
                    f"{name} holds integers ({dtype}), and config.json names no quantisation that explains them",
                    where=str(file),
                    remedy="Name the model it was made from",
                )


def _read_types(file: Path) -> Iterator[tuple[str, str]]:
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # no mapping
                yield name, tensors.get_slice(name).get_dtype()
    except SafetensorError as error:
        raise DpotoolError(
            f"cannot be read as safetensors ({error})", where=str(file), remedy="Copy or download it again"
        ) from None


def has_quantised_weights(model: nn.Module) -> bool:
    """Tells whether some of the weights are stored as integers, which have no gradients."""
    return not all(weight.is_floating_point() for weight in model.parameters())


def refuse_quantised(where: str | None, got: str | None = None) -> NoReturn:
    """Raises the DpotoolError of everything that needs gradients of weights that turn out to be quantised."""
    raise DpotoolError(
        "quantised weights have no gradients",
        where=where,
        expected="float32, bfloat16 or float16 weights",
        got=got,
        remedy="Name the model it was made from; train and theory-gap also take a LoRA adapter on quantised weights",
    )


def list_non_finite(model: nn.Module) -> list[str]:
    """Returns the names of the weights that hold a number that is not finite."""
    return [
        name
        for name, weight in model.named_parameters()
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all())
    ]


@contextmanager
def naming_broken_parts(source: str) -> Iterator[None]:
    """Names the weights that cannot be assembled (from a missing expert, say), which transformers only logs.

    Raises:
        DpotoolError: a weight cannot be put together from what the checkpoint has.
    """
    heard: list[str] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = transformers_logging.get_logger("transformers.modeling_utils")
    kept = logger.level, logger.propagate
    logger.addHandler(listener)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield
    except RuntimeError:
        broken = sorted({line.split("|")[0].strip() for text in heard for line in text.splitlines() if _BROKEN in line})
        if not broken:
            raise
        raise DpotoolError(
            f"the weights are not this model's: {_name_some(broken)} cannot be put together of what the checkpoint has",
            where=source,
            remedy="A part is missing or of another shape. Save the whole model again with save_pretrained",
        ) from None
    finally:
        logger.removeHandler(listener)
        logger.setLevel(kept[0])
        logger.propagate = kept[1]


_BROKEN = "CONVERSION"


def describe_shape(shape: Iterable[int]) -> str:
    """Returns '259 x 32'."""
    return " x ".join(map(str, shape)) or "a single number"


def _name_some(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
