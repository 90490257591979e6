"""Blends of two models: the points on the straight line between their weights, of which one is in memory at a time.

The point w is A + w (B - A), with w from 0 to 1. At 0 and 1 it is A and B themselves, bit for bit; in between every
weight is computed in float64 and rounded once to the type it has. Weights that are tied stay tied.

Two LoRA adapters of one base model are blended as what they add to it, which is a sum of products and not a product of
sums: (1 - w) s_A B_A A_A + w s_B B_B A_B = [(1 - w) s_A B_A, w s_B B_B] [A_A; A_B], s being alpha / r. So the blend is
an adapter again, of rank r_A + r_B, and exact. Any other adapter is merged into its base model, and that is blended.

`save_checkpoint` saves a blend as a checkpoint that any tool loads, whole or not at all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from dpotool.errors import DpotoolError
from dpotool.interruption import deferred
from dpotool.models.adapters import merge_adapter
from dpotool.models.library_calls import quiet_transformers
from dpotool.models.weights import describe_shape
from dpotool.runs.atomic import share_weights

Loader = Callable[[], nn.Module]
ADAPTER = "default"
"""What peft calls an adapter that is loaded without a name."""

_CHUNK = 2**22
"""Numbers that are in float64 at a time."""
_OF_THE_FILE = {
    "_name_or_path", "architectures", "bos_token_id", "dtype", "eos_token_id", "pad_token_id", "tie_word_embeddings",
    "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
"""Settings of a model that do not change what its layers compute; ties are looked up in the weights themselves."""
_OF_PLAIN_LORA = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "lora_alpha", "lora_dropout", "peft_type", "peft_version", "r", "rank_pattern", "revision", "target_modules",
    "task_type", "use_rslora",
}  # fmt: skip
"""Settings that an adapter may have and still add nothing but s B A to a layer; all others must be at their default."""


class WeightLine:
    """The line between two models. Holds the second one; the first is read again for each point, as it is moved there.

    So memory holds two models and nothing more, as long as the caller releases one point before the next.
    """

    def __init__(self, load_first: Loader, load_second: Loader, names: tuple[str, str]) -> None:
        """Takes what loads the ends, each in the same numeric type; nothing is loaded yet.

        Args:
            names: of the ends, for messages.
        """
        self._load_first = load_first
        self._load_second = load_second
        self._names = names
        self._second: nn.Module | None = None

    def at(self, weight: float) -> nn.Module:
        """Returns the model at the point, which is the caller's.

        Args:
            weight: share of the second end, 0 to 1.

        Raises:
            DpotoolError: the two cannot be blended; it says why.
        """
        if weight == 0:
            return self._load_first()
        if weight == 1:
            self._second = None
            return self._load_second()
        first = self._load_first()
        second = self._load_second() if self._second is None else self._second
        if can_concatenate(first, second):
            concatenate_adapters(first, second, weight)
        else:
            first, second = merge_adapter(first), merge_adapter(second)
            check_alike(first, second, self._names)
            move_weights(first, second, weight)
        self._second = second
        return first


@torch.no_grad()
def move_weights(first: nn.Module, second: nn.Module, weight: float) -> None:
    """Moves the first model's weights to the point; the two must be alike (`check_alike`)."""
    there = second.state_dict()
    ties = find_ties(first)
    for name, tensor in first.state_dict().items():
        if ties[name] == name and tensor.is_floating_point():
            _move(tensor, there[name], weight)


def _move(tensor: Tensor, other: Tensor, weight: float) -> None:
    if not (tensor.is_contiguous() and other.is_contiguous()):
        tensor.copy_(_mix(tensor, other, weight))
        return
    for part, theirs in zip(tensor.view(-1).split(_CHUNK), other.view(-1).split(_CHUNK), strict=True):
        part.copy_(_mix(part, theirs, weight))


def _mix(tensor: Tensor, other: Tensor, weight: float) -> Tensor:
    """Returns a + w (b - a) in float64; weights that are equal at both ends do not change."""
    return torch.lerp(tensor.double(), other.to(tensor.device).double(), weight)


def find_ties(model: nn.Module) -> dict[str, str]:
    """Returns for each weight and buffer the first name that it has: its own, or that of the one it is tied to."""
    first_names: dict[tuple[int, tuple[int, ...]], str] = {}
    ties = {}
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tuple(tensor.shape))
        ties[name] = first_names.setdefault(place, name) if tensor.numel() else name
    return ties


def check_alike(first: nn.Module, second: nn.Module, names: tuple[str, str]) -> None:
    """Refuses two models between whose weights there is no line.

    Raises:
        DpotoolError: other layers, shapes, numeric types, settings or ties, or weights that are quantised.
    """
    where = " and ".join(names)
    ours, theirs = _read_settings(first), _read_settings(second)
    if "quantization_config" in (*ours, *theirs):
        raise DpotoolError(
            "weights that are quantised cannot be blended", where=where, remedy="Name the models they were made from"
        )
    here, there = first.state_dict(), second.state_dict()
    for name in here.keys() ^ there.keys():
        raise _unlike(names, f"only one of them has the weight {name}")
    for name, tensor in here.items():
        other = there[name]
        if tensor.shape != other.shape:
            shapes = f"{describe_shape(tensor.shape)} in one and {describe_shape(other.shape)} in the other"
            raise _unlike(names, f"{name} is {shapes}")
        if tensor.dtype != other.dtype:
            types = f"{tensor.dtype} in one and {other.dtype} in the other".replace("torch.", "")
            raise DpotoolError(f"{name} is {types}", where=where, remedy="Name one type for both with --dtype")
        if not tensor.is_floating_point() and not torch.equal(tensor, other):
            raise _unlike(names, f"{name} holds whole numbers, and others in each")
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise _unlike(
                names, f"{name} in config.json is {ours.get(name)!r} in one, {theirs.get(name)!r} in the other"
            )
    if find_ties(first) != find_ties(second):
        raise _unlike(names, "one of them ties weights that the other does not")


def _unlike(names: tuple[str, str], how: str) -> DpotoolError:
    return DpotoolError(
        f"are not of one architecture, so there is no line between their weights: {how}",
        where=" and ".join(names),
        remedy="Name two models that were trained from one start",
    )


def _read_settings(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "config", None)
    settings = config.to_dict() if config is not None else {}
    return {name: value for name, value in settings.items() if name not in _OF_THE_FILE and value is not None}


def can_concatenate(first: nn.Module, second: nn.Module) -> bool:
    """Tells whether both are plain LoRA adapters of one base model, in the same layers."""
    configs = [getattr(model, "peft_config", None) for model in (first, second)]
    if not all(isinstance(config, dict) and _is_plain(config.get(ADAPTER)) for config in configs):
        return False
    bases = {str(config[ADAPTER].base_model_name_or_path) for config in configs if config}
    here, there = (dict(_list_adapted(model)) for model in (first, second))
    layers = [*here.values(), *there.values()]
    return len(bases) == 1 and here.keys() == there.keys() and all(_has_two_factors(layer) for layer in layers)


def _is_plain(config: Any) -> bool:
    """Whether an adapter's settings are those of LoRA without additions, among them ones that peft may yet think of."""
    if config is None or str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
        return False
    plain = type(config)()
    names = [about.name for about in fields(config) if about.init and about.name not in _OF_PLAIN_LORA]
    return all(not getattr(config, name) or getattr(config, name) == getattr(plain, name) for name in names)


def _list_adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "lora_B"):
            yield name, module


def _has_two_factors(layer: Any) -> bool:
    factors = [getattr(layer, name, {}) for name in ("lora_A", "lora_B")]
    return all(list(factor) == [ADAPTER] and isinstance(factor[ADAPTER], nn.Linear) for factor in factors)


@torch.no_grad()
def concatenate_adapters(first: nn.Module, second: nn.Module, weight: float) -> None:
    """Makes the first model's adapter the blend of both (`can_concatenate`), of the sum of their ranks."""
    there = dict(_list_adapted(second))
    ranks = {}
    for name, layer in _list_adapted(first):
        other = there[name]
        ours, theirs = ((1 - weight) * layer.scaling[ADAPTER], weight * other.scaling[ADAPTER])
        down, up = (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER])
        down_there, up_there = (other.lora_A[ADAPTER].weight, other.lora_B[ADAPTER].weight)
        _set_weight(down, torch.cat([down.weight, down_there.to(down.weight.device)]))
        scaled = [up.weight.double() * ours, up_there.to(up.weight.device).double() * theirs]
        _set_weight(up, torch.cat(scaled, dim=1).to(up.weight.dtype))
        rank = ranks[name.removeprefix("base_model.model.")] = len(down.weight)
        layer.r[ADAPTER], layer.lora_alpha[ADAPTER], layer.scaling[ADAPTER] = rank, rank, 1.0
    models: Any = first
    config = models.peft_config[ADAPTER]
    config.r = config.lora_alpha = most = max(ranks.values())
    config.rank_pattern = {name: rank for name, rank in ranks.items() if rank != most}
    config.alpha_pattern = dict(config.rank_pattern)
    config.use_rslora = False


def _set_weight(linear: nn.Linear, weight: Tensor) -> None:
    linear.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
    linear.out_features, linear.in_features = weight.shape


def save_checkpoint(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Writes model or adapter, and tokenizer, into a folder: beside it first, then moved in, the weights last.

    Raises:
        DpotoolError: it cannot be written, as on a full disk; nothing of it stays.
    """
    staging = folder / ".saving"
    shutil.rmtree(staging, ignore_errors=True)
    whole: Any = model
    try:
        _mend_generation_settings(whole)
        with quiet_transformers():
            whole.save_pretrained(staging)
            tokenizer.save_pretrained(staging)
            share_weights(staging)
        with deferred():
            for path in sorted(staging.iterdir(), key=lambda path: path.suffix == ".safetensors"):
                os.replace(path, folder / path.name)  # noqa: PTH105
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = (getattr(error, "strerror", None) or str(error).strip() or type(error).__name__).splitlines()[0]
        raise DpotoolError(
            f"the model cannot be saved ({reason})",
            where=str(folder),
            remedy="Free space there, or name another folder",
        ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _mend_generation_settings(model: Any) -> None:
    """Takes settings of generation away that transformers refuses to save, such as a temperature without sampling."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    settings = getattr(inner, "generation_config", None)
    if settings is None:
        return
    try:
        settings.validate(strict=True)
    except ValueError:
        inner.generation_config = GenerationConfig.from_model_config(inner.config)
