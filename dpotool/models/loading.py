"""Loads a causal language model or an adapter, and its tokenizer, from a folder or a hub id.

safetensors only: nothing is ever unpickled, and no code that comes with a checkpoint runs unless the user asks for it.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from dpotool.errors import DpotoolError, expand_home
from dpotool.hub import check_name, refuse_pointer
from dpotool.models.adapters import is_adapter_folder, is_in_float32, load_adapter, read_adapter_base
from dpotool.models.builtin import locate_model
from dpotool.models.determinism import disable_dropout, find_positions, let_rows_go_by_their_own_length
from dpotool.models.library_calls import one_line_errors, quiet_transformers
from dpotool.models.precision import choose_kernels
from dpotool.models.weights import (
    check_epsilons,
    check_loaded,
    check_number_types,
    check_quantisation,
    check_weight_files,
    naming_broken_parts,
    refuse_quantised,
)
from dpotool.progress import SILENT, Progress
from dpotool.settings.shared import AUTO

LOCAL_RANK = "LOCAL_RANK"
"""What torchrun and accelerate call a process's number on its machine; set before anything is loaded."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def resolve_device(device: str) -> torch.device:
    """Returns the device to run on, for 'auto' CUDA if there is any, else the CPU; raises DpotoolError if missing.

    Of several processes on a machine, which a launcher numbers, each takes the GPU of its own number; of one alone it
    is the first.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    rank = os.environ.get(LOCAL_RANK)
    if device == "cuda" and rank is not None:
        device = f"cuda:{int(rank) % max(1, torch.cuda.device_count())}"
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


def join_processes(device: str) -> int:
    """Lets the processes of a launcher find each other, before anything asks how many there are; returns that.

    Without a GPU accelerate takes each for a process by itself, unless it is told to use CPUs.

    Raises:
        DpotoolError: the launcher asks for DeepSpeed, which is not installed.
    """
    if LOCAL_RANK not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 1
    try:
        return int(PartialState(cpu=resolve_device(device).type == "cpu").num_processes)
    except ImportError as error:
        raise DpotoolError(
            str(error).splitlines()[0], where="the launcher's configuration",
            remedy="Take FSDP: examples/accelerate/fsdp2.yaml",
        ) from None  # fmt: skip


def resolve_dtype(dtype: str) -> torch.dtype | str:
    """Returns the torch dtype of that name, 'auto' for the checkpoint's; raises DpotoolError for other names."""
    if dtype == "auto":
        return dtype
    if dtype not in DTYPES:
        raise DpotoolError(f"unknown dtype {dtype!r}", where="--dtype", expected=f"auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def load_tokenizer(
    model: str, *, trust_remote_code: bool = False, progress: Progress = SILENT
) -> PreTrainedTokenizerBase:
    """Loads the tokenizer that lies beside a model; an adapter without one uses its base model's.

    Raises:
        DpotoolError: there is no tokenizer, or it has no EOS token, without which no completion has an end.
    """
    model = locate_model(model, progress)
    files = [expand_home(model) / name for name in ("tokenizer.json", "tokenizer_config.json")]
    has_own = any(file.is_file() for file in files)
    for file in files:
        refuse_pointer(file)
    source = read_adapter_base(model) if is_adapter_folder(model) and not has_own else model
    check_name(source)
    with one_line_errors("tokenizer", source):
        tokenizer = AutoTokenizer.from_pretrained(_expand(source), trust_remote_code=trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise DpotoolError(
            "the tokenizer has no EOS token, so a completion has no end to score",
            where=source,
            remedy="Set eos_token in its tokenizer_config.json",
        )
    return tokenizer


def load_positions(
    model: str, tokenizer: PreTrainedTokenizerBase, *, trust_remote_code: bool = False, progress: Progress = SILENT
) -> int | None:
    """Returns how many tokens a model has positions for, without loading its weights; None where it does not say."""
    model = locate_model(model, progress)
    source = read_adapter_base(model) if is_adapter_folder(model) else model
    with one_line_errors("model", source):
        config = AutoConfig.from_pretrained(_expand(source), trust_remote_code=trust_remote_code)
    return find_positions(config, tokenizer)


def load_model(
    model: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    trust_remote_code: bool = False,
    needs_gradients: bool = False,
    progress: Progress = SILENT,
) -> nn.Module:
    """Loads a causal LM, or an adapter on its base model, in evaluation mode, with dropout off in training mode too.

    Args:
        model: name of a built-in model, folder or hub id of a model, or folder of a PEFT adapter.
        dtype: 'auto' is the checkpoint's own type; under an adapter in float32, in which it was trained, float32.
        device_map: 'auto' spreads the weights over all GPUs, then memory, then disk, instead of onto one device. What
            lies in memory or on disk is on PyTorch's `meta` device between a layer's passes, so it can only be scored.
        needs_gradients: the weights will be trained or differentiated; an adapter's are never quantised.

    Raises:
        DpotoolError: nothing loadable is there, or gradients are needed and the weights are quantised: such weights can
            be scored, but neither trained nor differentiated.
    """
    model = locate_model(model, progress)
    is_adapter = is_adapter_folder(model)
    source = read_adapter_base(model) if is_adapter else model
    check_name(source)
    config = _read_config(source, trust_remote_code)
    if needs_gradients and not is_adapter:
        _refuse_quantised(config, model)
    progress.note(f"loading {model}")
    if is_adapter and dtype == "auto":
        dtype = _choose_dtype(model, config, progress)
    placement = {} if device_map is None else _place(device_map, model, device, is_adapter=is_adapter)
    loaded = _load_whole(source, config, dtype, trust_remote_code, progress, placement)
    let_rows_go_by_their_own_length(loaded)
    if is_adapter:
        loaded = load_adapter(loaded, model, is_trainable=needs_gradients)
    disable_dropout(loaded)
    target = next(loaded.parameters()).device if placement else resolve_device(device)
    choose_kernels(target, next(loaded.parameters()).dtype)
    return (loaded if placement else loaded.to(target)).eval()


def _place(device_map: str, model: str, device: str, *, is_adapter: bool) -> dict[str, Any]:
    """Returns the arguments that tell transformers on which devices to put the weights.

    Raises:
        DpotoolError: the model cannot be spread over devices, or one device was named too.
    """
    if device_map != AUTO:
        raise DpotoolError("no such placement", where="--device-map", expected=AUTO, got=repr(device_map))
    if device != AUTO:
        raise DpotoolError(
            "one device and a placement over several do not go together", where=f"--device {device}",
            remedy="Leave out --device or --device-map",
        )  # fmt: skip
    if is_adapter:
        raise DpotoolError(
            "an adapter's weights cannot be put on a model that is spread out", where=model,
            remedy="Merge it into its base model with peft's merge_and_unload, save that, and name it",
        )  # fmt: skip
    if PartialState().num_processes > 1:
        raise DpotoolError(
            "several processes cannot each spread a model over all devices", where="--device-map",
            remedy="Run it without a launcher",
        )  # fmt: skip
    return {"device_map": device_map}


def _choose_dtype(adapter: str, config: Any, progress: Progress) -> str:
    """Returns float32 for a 16-bit base model whose adapter was trained and saved in float32, else 'auto'.

    What such an adapter changes is often less than a 16-bit base model rounds away.
    """
    base = getattr(config, "dtype", None)
    is_quantised = getattr(config, "quantization_config", None) is not None
    if is_quantised or base in (torch.float32, torch.float64) or not is_in_float32(adapter):
        return "auto"
    if base is not None:
        found = str(base).removeprefix("torch.")
        progress.note(f"{adapter}: in float32, as the adapter was trained; --dtype {found} takes the base model's type")
    return "float32"


def _read_config(source: str, trust_remote_code: bool) -> Any:
    check_weight_files(source)
    with one_line_errors("model", source):
        config = AutoConfig.from_pretrained(_expand(source), trust_remote_code=trust_remote_code)
    check_quantisation(config, source)
    check_epsilons(config.to_dict(), source)
    return config


def _load_whole(
    source: str, config: Any, dtype: str, trust_remote_code: bool, progress: Progress, placement: dict[str, Any]
) -> nn.Module:
    """Loads a whole model, every weight of which is the checkpoint's."""
    is_quantised = getattr(config, "quantization_config", None) is not None
    check_number_types(source, is_quantised)
    with (
        one_line_errors("model", source),
        naming_broken_parts(source),
        quiet_transformers(shows_bars=progress.shows_bars),
    ):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            _expand(source),
            dtype=resolve_dtype(dtype),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are listed, and refused with both shapes
            **placement,
        )
    whole, info = loaded
    check_loaded(info, source)
    if whole.dtype == torch.float64 and hasattr(whole, "set_experts_implementation"):
        whole.set_experts_implementation("eager")  # the grouped matrix products of experts know no float64
    model: nn.Module = whole
    return model


def _expand(source: str) -> str:
    """Returns a folder's path with its ~ expanded; a hub id is returned unchanged."""
    folder = expand_home(source)
    return str(folder) if folder.is_dir() else source


def _refuse_quantised(config: Any, model: str) -> None:
    quantisation = getattr(config, "quantization_config", None)
    if quantisation is not None:
        about = quantisation if isinstance(quantisation, dict) else quantisation.to_dict()
        refuse_quantised(where=model, got=str(about.get("quant_method", "a quantization_config")))
