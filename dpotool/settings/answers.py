"""The settings of `dpotool generate` and `dpotool judge`. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, fields

from dpotool.settings.fields import COUNT, COUNT_OR_NONE, SEED, Range, Settings, setting
from dpotool.settings.shared import ComputeSettings, DataSettings, SubjectSettings

QUESTIONS = "Questions in FastChat's layout (question_id, turns), instead of --data."
REFERENCES = "Reference answers to these questions, in FastChat's layout."
ENDPOINT = "Address of a server that speaks the OpenAI protocol, e.g. http://localhost:8000/v1."


@dataclass(frozen=True, kw_only=True)
class ServerSettings(Settings):
    """Settings of requests to a server."""

    endpoint: str | None = setting(None, ENDPOINT, panel="Server")
    concurrency: int = setting(8, "Number of requests at the same time.", panel="Server", range=Range(1, 1024))
    timeout: float = setting(
        300.0, "Seconds to wait for one reply.", panel="Server", range=Range(0, 1e6, includes_low=False)
    )
    attempts: int = setting(
        6, "Attempts per request, with growing pauses, after 429, 5xx and time-outs.", panel="Server", range=COUNT
    )


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(ServerSettings, ComputeSettings, DataSettings):
    """Settings of a generation."""

    data: str | None = setting(  # type: ignore[assignment]  # resolved as `score` does
        None, "Preference pairs whose prompts are answered. The default is what the run was evaluated on."
    )
    questions: str | None = setting(None, QUESTIONS)
    references: str | None = setting(None, REFERENCES)
    reference: str | None = setting(
        None, "Reference model for the estimate of KL. The default is the reference of the run."
    )
    temperature: float | None = setting(
        None, "Sampling temperature; 0 is greedy. The default is the checkpoint's setting.", range=Range(0, 1e3)
    )
    top_p: float | None = setting(
        None,
        "Share of probability for nucleus sampling. The default is the checkpoint's setting.",
        range=Range(0, 1, includes_low=False),
    )
    top_k: int | None = setting(
        None, "Sample from the k most likely tokens. The default is the checkpoint's setting.", range=COUNT_OR_NONE
    )
    max_new_tokens: int | None = setting(
        None,
        "Maximum length of an answer in tokens. The default is the checkpoint's setting, or 512, or half of "
        "the model's positions.",
        range=COUNT,
    )
    samples: int = setting(1, "Answers per question; more than one needs a temperature.", range=COUNT)
    logps: bool = setting(True, "Score the answers under policy and reference; --no-logps leaves it out.")
    baseline: str | None = setting(
        None, "Model to compare the others with. The default is the DPO run, else the first."
    )
    served_model: str | None = setting(None, "Name of the model on the server.", panel="Server")
    overwrite: bool = setting(False, "Generate answers again that exist with other settings.")
    output: str | None = setting(None, "Folder to write to. The default is the run folder, or runs/<model name>.")

    def to_subject_settings(self) -> SubjectSettings:
        """Returns what says which model, reference, data and precision are meant."""
        shared = {field.name for field in fields(SubjectSettings)} & {field.name for field in fields(self)}
        return SubjectSettings(**{name: getattr(self, name) for name in shared})


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(ServerSettings):
    """Settings of a judgment."""

    judge: str | None = setting(
        None,
        "Judge: endpoint, reward, grammar or chrf. The default is grammar for the built-in pairs, and "
        "endpoint with --endpoint.",
    )
    judge_model: str | None = setting(None, "Name of the judge on the server, or folder or hub id of a reward model.")
    judge_tokenizer: str | None = setting(
        None, "Tokenizer of the judge, a folder or hub id. It makes the check for cut prompts exact."
    )
    baseline: str | None = setting(
        None, "Answers to judge the others against. The default is the answers of the DPO run, else of the last run."
    )
    data: str | None = setting(None, "Name of the answers' file, if a run has several. The default is the newest.")
    questions: str | None = setting(
        None, "Questions in FastChat's layout (question_id, turns), for answers that do not contain their questions."
    )
    references: str | None = setting(None, REFERENCES)
    prompt: str | None = setting(
        None,
        "Prompt: paper, mt-bench, a Jinja file, or FastChat's judge_prompts.jsonl. The default is paper, or "
        "what --bench needs.",
    )
    verdict_rule: str = setting("first-word", "How replies to a Jinja file are read: first-word, brackets or rating.")
    one_order: bool = setting(
        False, "Show each pair in one order only. This halves the cost, but win rates then include position bias."
    )
    bench: str | None = setting(None, "mt-bench: grade answers of two turns one by one, 1 to 10.")
    judgments: str | None = setting(
        None, "Read existing judgments instead of asking a judge: a file of the paper, FastChat or AlpacaEval."
    )
    judge_max_tokens: int = setting(512, "Longest reply of the judge in tokens.", panel="Server", range=COUNT)
    dry_run: bool = setting(False, "Only show how much would be asked; nothing is sent or written.")
    limit: int | None = setting(None, "Judge the first N questions.", range=COUNT)
    device: str = setting("auto", "Device of a reward model: cpu, cuda, cuda:N, or auto.")
    dtype: str = setting("auto", "Numeric type of a reward model: float32, bfloat16, float16, or auto.")
    batch_tokens: int = setting(4096, "Padded tokens per batch of a reward model.", range=COUNT)
    trust_remote_code: bool = setting(False, "Run code that comes with a reward model.")
    seed: int = setting(0, "Seed of the bootstrap.", range=SEED)
    output: str | None = setting(None, "Folder to write to. The default is each model's run folder, or runs/judged.")
