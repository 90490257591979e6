"""The built-in model: its tokenizer, its architecture, and its training on first use; after that it is stored.

It is a Llama of about a million parameters with a byte-level tokenizer. DPO starts from a model that has learned the
task, so it is trained on the chosen answers first (SFT, by dpotool's loss), as in the paper. The result depends on the
seed, the grammar and the settings alone; its folder's name is their hash.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dpotool import interruption
from dpotool.cache.entries import DEMO_PREFIX, MADE, MAKING_PREFIX, cache_root
from dpotool.data.demo import SPLITS, generate_demo_rows
from dpotool.errors import DpotoolError
from dpotool.models.builtin import BuiltinModel
from dpotool.models.library_calls import quiet_transformers
from dpotool.progress import SILENT, Progress
from dpotool.runs.atomic import write_json, writing_to
from dpotool.runs.checked import load_json, read_bytes
from dpotool.runs.folder import RunFolder
from dpotool.runs.locks import holding, mark_used
from dpotool.runs.manifest import collect_versions
from dpotool.settings.shared import DEMO
from dpotool.training.config import TrainConfig
from dpotool.training.run import train

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
VOCAB_SIZE = 1024
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize + ': ' + message['content'] | trim }}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""Renders a conversation as the built-in pairs are written, so that both give the same token ids."""


@dataclass(frozen=True, slots=True)
class SftSettings:
    """Hyperparameters of the demo's first stage."""

    learning_rate: float
    epochs: float
    batch_size: int


DEMO_SFT = SftSettings(learning_rate=4e-3, epochs=4.0, batch_size=16)
"""Enough to learn the grammar, in well under a minute on two cores."""


def build_demo_tokenizer() -> PreTrainedTokenizerFast:
    """Trains the tokenizer on the demonstrations: byte-level BPE, so that any text has tokens and none is unknown."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator((row["prompt"] + row["chosen"] for row in generate_demo_rows("sft")), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=512
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_demo_config() -> LlamaConfig:
    """Returns the architecture: two wide layers, tied embeddings; a wide shallow model is the quickest on a CPU."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=176,
        intermediate_size=480,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


def build_demo_model(seed: int) -> LlamaForCausalLM:
    """Returns the model with random weights; torch's global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(build_demo_config())


SEED = 42
_ENVIRONMENT = (
    "PATH", "HOME", "USERPROFILE", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH", "VIRTUAL_ENV", "HF_HOME", "DPOTOOL_CACHE",
)  # fmt: skip
"""What the process that trains it may know of its surroundings: nothing that changes a number, and no launcher."""
_SECONDS_BETWEEN_LOOKS = 0.1


def ensure_demo_model(progress: Progress = SILENT) -> Path:
    """Returns the folder of the SFT-trained built-in model, making it on first use (a minute on one core).

    One process at a time makes it, for itself and for all that wait. It is trained in a process of its own, on one
    core and with an environment that nobody has changed: the same bit for bit, whatever asks for it, under a launcher,
    with other settings of torch, or in a notebook. Until this process ends no `cache clear` removes it.

    Raises:
        DpotoolError: the cache cannot be written.
        KeyboardInterrupt: its training was interrupted; nothing is kept, and the next use begins anew.
    """
    root = cache_root()
    while True:
        found = find_demo_model()
        if found is None:
            with holding(root, f"making {DEMO}", waits=True, in_every_process=True, note=progress.note):
                found = find_demo_model() or _make(root, demo_folder(), progress)
        if mark_used(found / MADE):  # so that it cannot be cleared away between now and its being read, or read again
            return found


def _make(root: Path, folder: Path, progress: Progress) -> Path:
    """Makes the model beside its folder, then moves it in. The caller must hold the cache's lock."""
    changed = ", because the stored one was changed" if folder.exists() else ""
    progress.note(f"first use of {DEMO}: training the built-in model, which is stored in {folder}{changed}")
    for left in root.glob(f"{MAKING_PREFIX}*"):  # by a kill
        shutil.rmtree(left, ignore_errors=True)
    with (
        writing_to(root),
        tempfile.TemporaryDirectory(prefix=MAKING_PREFIX, dir=root, ignore_cleanup_errors=True) as temporary,
    ):
        _train_apart(Path(temporary), progress)
        trained = Path(temporary) / "trained"
        seal = {"files": _hash_files(trained), "versions": collect_versions()}
        write_json(trained / MADE, seal)
        if folder.exists():
            folder.rename(Path(temporary) / "replaced")
        trained.rename(folder)
    return folder


def _train_apart(place: Path, progress: Progress, max_steps: int | None = None) -> None:
    """Trains the model in a separate process, which does not outlive this one.

    Args:
        place: empty folder; the model is in its folder `trained` afterwards.
        max_steps: stop after this many optimiser steps. Tests compare such models bit for bit.
    """
    log = place / "log.txt"
    code = [sys.executable, "-c", "from dpotool.training.demo import main; main()", str(place), str(os.getpid())]
    code += [] if max_steps is None else [str(max_steps)]
    known = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    environment = known | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(
            code, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    metrics, n_told = RunFolder(place / "trained").metrics_path, 0
    try:
        with progress.track(f"training {DEMO}", _count_steps()) as advance:
            while process.poll() is None:
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                step = max(n_told, _read_step(metrics))  # the file goes when all is done
                advance(step - n_told)
                n_told = step
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        said = read_bytes(log).decode(errors="replace").strip().splitlines() or ["it did not say why"]
        raise DpotoolError(
            f"the built-in model cannot be made ({said[-1][:300]})",
            where=str(cache_root()),
            remedy="Free some space, or name another folder by the environment variable DPOTOOL_CACHE",
        )


def main() -> None:
    """Trains the model in the folder of the first argument, and ends when the process of the second argument ends.

    A third argument limits the optimiser steps.
    """
    place, parent, *max_steps = Path(sys.argv[1]), int(sys.argv[2]), *map(int, sys.argv[3:])
    interruption.end_with_parent(parent)
    torch.set_num_threads(1)
    untrained, trained = place / "untrained", place / "trained"
    try:
        _save_untrained(untrained)
        train(_sft_config(untrained, trained, *max_steps))
    except DpotoolError as error:
        sys.exit(str(error))
    for name in ("run.yaml", "metrics.jsonl"):  # the start they name is gone; how it is made stands here
        (trained / name).unlink()


def _count_steps() -> int:
    n_pairs = len(generate_demo_rows("sft"))
    return math.ceil(math.ceil(n_pairs / DEMO_SFT.batch_size) * DEMO_SFT.epochs)


def _read_step(metrics: Path) -> int:
    """Returns the last logged step; 0 before there is one."""
    try:
        steps = re.findall(r'"step": (\d+)', read_bytes(metrics).decode(errors="replace"))
    except OSError:
        steps = []
    return int(steps[-1]) if steps else 0


def _hash_files(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(read_bytes(path)).hexdigest() for path in sorted(folder.iterdir())}


def demo_folder() -> Path:
    """Returns where the built-in model lies once it is made."""
    return cache_root() / f"{DEMO_PREFIX}{_content_key()}"


def find_demo_model() -> Path | None:
    """Returns the folder of the built-in model, or None if it has not been made, or was changed since."""
    folder = demo_folder()
    try:
        made = load_json(folder / MADE)["files"]
        is_whole = bool(made) and all(
            hashlib.sha256(read_bytes(folder / name)).hexdigest() == known for name, known in made.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return folder if is_whole else None


def _save_untrained(folder: Path) -> None:
    with quiet_transformers():
        build_demo_model(SEED).save_pretrained(folder)
    build_demo_tokenizer().save_pretrained(folder)


def _sft_config(model: Path, output: Path, max_steps: int | None = None) -> TrainConfig:
    return TrainConfig(
        model=str(model),
        data=DEMO,
        split="sft",
        loss="sft",
        learning_rate=DEMO_SFT.learning_rate,
        epochs=DEMO_SFT.epochs,
        batch_size=DEMO_SFT.batch_size,
        device="cpu",
        seed=SEED,
        output=str(output),
        max_steps=max_steps,
        eval_limit=1,  # nobody looks at it
    )


def _content_key() -> str:
    """Returns a hash of everything the trained model depends on but the library versions."""
    rows = json.dumps([generate_demo_rows(split) for split in SPLITS], sort_keys=True)
    model = build_demo_config().to_json_string()
    settings = json.dumps(asdict(DEMO_SFT))
    return hashlib.sha256(
        "\0".join((rows, model, settings, CHAT_TEMPLATE, str(VOCAB_SIZE), str(SEED))).encode()
    ).hexdigest()[:12]


DEMO_MODEL = BuiltinModel(ensure_demo_model, find_demo_model, _save_untrained)
"""What the front door registers under `builtin:demo`."""
