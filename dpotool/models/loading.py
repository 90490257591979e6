"""Loads a causal language model or an adapter, and its tokenizer, from a folder or a hub id.

safetensors only: nothing is ever unpickled, and no code that comes with a checkpoint runs unless the user asks for it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from dpotool.errors import DpotoolError
from dpotool.hub import check_name, reach_hub
from dpotool.models.precision import use_fast_float32_on_cpu
from dpotool.models.rope import let_rows_go_by_their_own_length
from dpotool.progress import SILENT, Progress

Locate = Callable[[str], str]
"""Turns a model's name into a path or hub id; `training.demo.locate_model` knows builtin:demo."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def resolve_device(device: str) -> torch.device:
    """Returns the device to run on; 'auto' is the first CUDA device where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        raise DpotoolError(
            f"device {device!r} is not usable ({str(error).splitlines()[0]})",
            where="--device",
            remedy="Use cpu, cuda, cuda:N or auto",
        ) from None
    return resolved


def resolve_dtype(dtype: str) -> torch.dtype | str:
    """Returns the torch dtype of that name; 'auto' stays 'auto', the checkpoint's own type."""
    if dtype == "auto":
        return dtype
    if dtype not in DTYPES:
        raise DpotoolError(f"unknown dtype {dtype!r}", where="--dtype", expected=f"auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def is_adapter_folder(model: str) -> bool:
    """Tells whether a folder holds a PEFT adapter and not a whole model."""
    return (Path(model) / "adapter_config.json").is_file()


def read_adapter_base(model: str) -> str:
    """Returns the model that an adapter folder was trained on top of."""
    path = Path(model) / "adapter_config.json"
    try:
        base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise DpotoolError(f"no base model can be read ({type(error).__name__})", where=str(path)) from None
    return str(base)


def load_tokenizer(model: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Loads the tokenizer that lies beside a model; an adapter without one uses its base model's.

    Raises:
        DpotoolError: there is no tokenizer, or it has no EOS token, without which no completion has an end.
    """
    has_own = any((Path(model) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    source = read_adapter_base(model) if is_adapter_folder(model) and not has_own else model
    check_name(source)
    with _one_line_errors("tokenizer", source):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise DpotoolError(
            "the tokenizer has no EOS token, so a completion has no end to score",
            where=source,
            remedy="Set eos_token in its tokenizer_config.json",
        )
    return tokenizer


def load_model(
    model: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    needs_gradients: bool = False,
    progress: Progress = SILENT,
) -> nn.Module:
    """Loads a causal LM, or an adapter on its base model, in evaluation mode.

    Args:
        model: folder or hub id of a model, or folder of a PEFT adapter.
        dtype: 'auto' is the checkpoint's own type.
        needs_gradients: the weights will be trained or differentiated; an adapter's are never quantised.

    Raises:
        DpotoolError: nothing loadable is there, or gradients are needed and the weights are quantised: such weights can
            be scored, but neither trained nor differentiated.
    """
    source = read_adapter_base(model) if is_adapter_folder(model) else model
    check_name(source)
    if needs_gradients and source == model:
        _refuse_quantised(model, trust_remote_code)
    progress.note(f"loading {model}")
    with _one_line_errors("model", source), quiet_transformers(shows_bars=progress.shows_bars):
        loaded: nn.Module = AutoModelForCausalLM.from_pretrained(
            source, dtype=resolve_dtype(dtype), use_safetensors=True, trust_remote_code=trust_remote_code
        )
    let_rows_go_by_their_own_length(loaded)
    if source != model:
        loaded = _load_adapter(loaded, model)
    target = resolve_device(device)
    if target.type == "cpu":
        use_fast_float32_on_cpu()
    return loaded.to(target).eval()


def _refuse_quantised(model: str, trust_remote_code: bool) -> None:
    with _one_line_errors("model", model):
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    quantisation = getattr(config, "quantization_config", None)
    if quantisation is not None:
        about = quantisation if isinstance(quantisation, dict) else quantisation.to_dict()
        raise DpotoolError(
            "its weights are quantised, and such weights have no gradients",
            where=model,
            expected="float32, bfloat16 or float16 weights",
            got=str(about.get("quant_method", "a quantization_config")),
            remedy="Name the model it was made from",
        )


def _load_adapter(base: nn.Module, folder: str) -> nn.Module:
    peft = import_peft(folder)
    with _one_line_errors("adapter", folder), quiet_transformers():
        return peft.PeftModel.from_pretrained(base, folder, is_trainable=False)


def merge_adapter(model: nn.Module) -> nn.Module:
    """Returns a plain model that computes what base model and adapter do together; a plain model as it is."""
    merge: Any = getattr(model, "merge_and_unload", None)
    return model if merge is None else merge()


def import_peft(where: str) -> Any:
    """Imports peft, or says how to install it."""
    try:
        import peft
    except ImportError:
        raise DpotoolError(
            "LoRA needs the package peft, which is not installed",
            where=where,
            remedy="Install it with: pip install 'dpotool[peft]'",
        ) from None
    return peft


@contextmanager
def _one_line_errors(what: str, source: str) -> Iterator[None]:
    """Turns the loaders' long explanations into one line that says which model or tokenizer could not be had."""
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        folder = Path(source).expanduser()
        if folder.is_dir() and not (folder / "config.json").is_file() and what != "adapter":
            raise DpotoolError(
                "holds no model: there is no config.json in it",
                where=source,
                remedy="Give the folder of a Hugging Face checkpoint (a run folder of `dpotool train` is one)",
            ) from None
        if not folder.exists():
            unreachable = "" if reach_hub() else ", which cannot be reached"
            raise DpotoolError(
                f"no such folder, and no {what} of that name could be had from the hub{unreachable}",
                where=source,
                remedy="Check the path, or the hub id and the connection",
            ) from None
        detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DpotoolError(f"the {what} cannot be loaded ({detail})", where=source) from None


@contextmanager
def quiet_transformers(*, shows_bars: bool = False) -> Iterator[None]:
    """Keeps the bars of reading and writing weights off stderr, and peft's use of a name transformers will drop.

    Args:
        shows_bars: keep its bars after all: somebody is waiting for a model, and looks on.
    """
    was_enabled = transformers_logging.is_progress_bar_enabled()
    if not shows_bars:
        transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()
