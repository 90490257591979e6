"""PEFT adapters: loads them onto their base model completely or not at all, lists what trains, and merges them.

What an adapter is made of comes from peft, never from parameter names: LoRA's factors are called lora_A, but (IA)³,
layer norm tuning, trained token rows and biases are not.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from dpotool.errors import DpotoolError, expand_home
from dpotool.hub import refuse_pointer
from dpotool.models.library_calls import one_line_errors, quiet_transformers
from dpotool.models.weights import check_loaded
from dpotool.runs.checked import load_json

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_OUTSIDE_THE_LAYERS = ("ADAPTION_PROMPT", "XLORA", "POLY", "SHADOW")
"""Methods, besides prompt learning, whose forward pass does more than run the layers that they changed."""


def is_adapter_folder(model: str) -> bool:
    """Tells whether a folder holds a PEFT adapter and not a whole model."""
    return (expand_home(model) / CONFIG).is_file()


def read_adapter_base(model: str) -> str:
    """Returns the model that an adapter folder was trained on top of.

    Raises:
        DpotoolError: adapter_config.json cannot be read or names none, or names a place of another machine.
    """
    path = expand_home(model) / CONFIG
    refuse_pointer(path)
    try:
        base = load_json(path)["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DpotoolError(f"no base model can be read ({type(error).__name__})", where=str(path)) from None
    if not isinstance(base, str) or not base:
        raise DpotoolError(
            "names no base model",
            where=str(path),
            got=repr(base),
            remedy="Set base_model_name_or_path to the folder or hub id of the model the adapter was trained on",
        )
    if Path(base).is_absolute() and not Path(base).exists():
        raise DpotoolError(
            f"its base model {base} is not on this machine",
            where=str(path),
            remedy="Set base_model_name_or_path there to where the base model is, a folder or a hub id",
        )
    return base


def is_in_float32(model: str) -> bool:
    """Tells whether every weight of an adapter folder was saved in float32."""
    path = expand_home(model) / WEIGHTS
    if not path.is_file():
        return False  # the error is raised when it is loaded
    refuse_pointer(path)
    with one_line_errors("adapter", model), safe_open(path, framework="pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()} == {"F32"}  # noqa: SIM118


def load_adapter(base: nn.Module, folder: str, *, is_trainable: bool = False) -> nn.Module:
    """Puts an adapter on its base model.

    Raises:
        DpotoolError: it does not act inside the model's layers, or not every weight of it fits the base model.
    """
    peft = import_peft(folder)
    place = str(expand_home(folder))
    with one_line_errors("adapter", folder):
        config = peft.PeftConfig.from_pretrained(place)
    _refuse_outside(config, folder)
    weights = _read_weights(Path(place))
    with one_line_errors("adapter", folder), quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what does not fit is reported below, in one line
        adapted = peft.PeftModel.from_pretrained(
            base, place, config=config, is_trainable=is_trainable, ignore_mismatched_sizes=True
        )
        expected = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    remedy = "Check that the base model is the one it was trained on, or save it again with peft's save_pretrained"
    check_loaded(_compare(expected, weights, adapted.state_dict()), folder, remedy=remedy)
    return adapted


def _refuse_outside(config: Any, folder: str) -> None:
    """Refuses an adapter that the model inside its wrapper, which is what is run here, would compute without."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if config.is_prompt_learning or kind in _OUTSIDE_THE_LAYERS:
        raise DpotoolError(
            "this adapter does not act inside the model's layers, so the model would be scored without it",
            where=folder,
            expected="an adapter in the layers, such as LORA, IA3, LN_TUNING or OFT",
            got=kind,
        )


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        is_pickled = (folder / "adapter_model.bin").is_file()
        raise DpotoolError(
            f"there is no {WEIGHTS} in it",
            where=str(folder),
            got="adapter_model.bin, and reading such a file can run code" if is_pickled else None,
            remedy="If you trust it, load it with peft and save it again with save_pretrained"
            if is_pickled
            else "Copy or download the folder again",
        )
    refuse_pointer(path)
    with one_line_errors("adapter", str(folder)):
        return load_file(path)


def _compare(expected: dict[str, Tensor], found: dict[str, Tensor], loaded: dict[str, Tensor]) -> dict[str, Any]:
    """Lists what is missing, left over or of another shape; embeddings saved beside an adapter may be left over."""
    return {
        "missing_keys": set(expected) - set(found),
        "unexpected_keys": {
            name
            for name in set(found) - set(expected)
            if name not in loaded or not torch.equal(loaded[name].cpu(), found[name].to(loaded[name].dtype))
        },
        "mismatched_keys": {
            (name, tuple(found[name].shape), tuple(tensor.shape))
            for name, tensor in expected.items()
            if name in found and found[name].shape != tensor.shape
        },
    }


def mark_trained_parameters(model: nn.Module) -> None:
    """Enables gradients of an adapter's parameters, as peft lists them; of a plain model, those of all parameters."""
    tuner: Any = getattr(model, "base_model", None)
    if not hasattr(model, "peft_config") or not hasattr(tuner, "_mark_only_adapters_as_trainable"):
        model.requires_grad_(True)
        return
    model.requires_grad_(False)
    tuner._mark_only_adapters_as_trainable(tuner.model)  # biases, where they belong to the adapter
    tuner.set_adapter(tuner.active_adapters)


def merge_adapter(model: nn.Module) -> nn.Module:
    """Returns a plain model that computes what base model and adapter do together; a plain model as given."""
    merge: Any = getattr(model, "merge_and_unload", None)
    if merge is None:
        return model
    _untie_adapted(model)
    merged: nn.Module = merge()
    return merged


def _untie_adapted(model: nn.Module) -> None:
    """Gives each adapted layer its own weight: merged into a tied one, LoRA on the head would move the embedding."""
    holders: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            holders.setdefault(id(weight), []).append(module)
    adapted: list[Any] = [
        module.base_layer for module in model.modules() if isinstance(getattr(module, "base_layer", None), nn.Module)
    ]
    for layer in adapted:
        weight = layer._parameters.get("weight")
        if weight is not None and len(holders.get(id(weight), ())) > 1:
            holders[id(weight)].remove(layer)
            layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
            config: Any = getattr(model, "config", None)
            if config is not None:
                config.tie_word_embeddings = False


def import_peft(where: str) -> Any:
    """Imports peft; raises DpotoolError, with the way to install it, if it is missing."""
    try:
        import peft
    except ImportError:
        raise DpotoolError(
            "LoRA needs the package peft, which is not installed",
            where=where,
            remedy="Install it with: pip install 'dpotool[peft]'",
        ) from None
    return peft
