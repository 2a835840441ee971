"""What a job will probably use, from its input alone: rough, but low and high are meant to hold.

Tokens are counted in characters here: four to a token in most languages and vocabularies, between six and a half and
two and a half at the ends. What the built-in tasks add (their prompts, schemas, notes and answers) are means of real
runs; `tests/test_estimates.py` holds runs of all kinds against these ranges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from shared.specs import (
    AgentJob,
    AnalysisTask,
    ChatJob,
    EmbeddingInput,
    ExtractTask,
    KeyPointsTask,
    QuestionsTask,
    SummaryTask,
)

CHARACTERS_PER_TOKEN: Final = 4.0
DENSE: Final = 2.5  # characters per token at the ends
SPARSE: Final = 6.5
MESSAGE_TOKENS: Final = 5  # for the frame of one message
ANSWER_TOKENS: Final = (16, 300, 2_000)  # low, expected, high, of a chat answer that has no bound

READ_PROMPT: Final = 330  # of the prompt, the frame and the schema with which a part is read
TASK_PROMPT: Final = 60  # more of each task
SUMMARY_OUT: Final = 180  # of what reading one part gives
POINTS_OUT: Final = 300
ANSWER_OUT: Final = 60
FACTS_OUT: Final = 150
MERGE_PROMPT: Final = 200
MERGED_OUT: Final = 250
PART_FILL: Final = 0.85  # of its bound that a part is long: it ends with a sentence

STEP_PROMPT: Final = 700  # the agent's prompt and its tools
STEP_OUT: Final = 80  # a call of a tool, or a thought
RESULT_TOKENS: Final = (40, 600, 7_500)  # what the tools of a step give; at most, about: one long text and a half
STEPS: Final = (1, 4)  # low and expected; the high end is `maxSteps` and a last answer


class Tokens(msgspec.Struct, frozen=True):
    """How many tokens, in all: at least, probably, at most. `made`: of each, what the model writes (it costs more)."""

    low: int
    expected: int
    high: int
    made: tuple[int, int, int] = (0, 0, 0)

    @property
    def split(self) -> tuple[tuple[int, int], ...]:
        """(read, made) of low, expected and high."""
        return tuple(
            (max(0, whole - made), min(whole, made))
            for whole, made in zip((self.low, self.expected, self.high), self.made, strict=True)
        )

    def more(self, characters: int) -> Tokens:
        """The same when so many characters are read besides."""
        return Tokens(
            self.low + round(characters / SPARSE),
            self.expected + round(characters / CHARACTERS_PER_TOKEN),
            self.high + round(characters / DENSE),
            self.made,
        )

    def within(self, budget: int | None) -> Tokens:
        """The same under a hard cap; what is made shrinks with the whole."""
        if budget is None:
            return self
        low, expected, high = (
            made if whole <= budget else round(made * budget / whole)
            for whole, made in zip((self.low, self.expected, self.high), self.made, strict=True)
        )
        return Tokens(min(self.low, budget), min(self.expected, budget), min(self.high, budget), (low, expected, high))


def of_chat(job: ChatJob, most_of_prompt: int | None = None) -> Tokens:
    """One answer to a conversation; `most_of_prompt` is the bound that its prompt sets."""
    characters = sum(len(message.content) for message in job.input.messages)
    frames = MESSAGE_TOKENS * len(job.input.messages)
    most = most_of_prompt if job.input.max_tokens is None else job.input.max_tokens
    low, middle, high = (min(count, most) if most is not None else count for count in ANSWER_TOKENS)
    if most is not None:
        low, high = 1, most
    return Tokens(
        round(characters / SPARSE) + low,
        round(characters / CHARACTERS_PER_TOKEN) + frames + middle,
        round(characters / DENSE) + 2 * frames + high,
        (low, middle, high),
    )


def of_analysis(characters: int, tasks: Sequence[AnalysisTask], chunk_characters: int) -> Tokens:
    """Reading a document of so many characters part by part, and combining the notes."""
    parts = 1 if characters <= chunk_characters else math.ceil(characters / (chunk_characters * PART_FILL))
    asked = [task for task in tasks if parts > 1 or not isinstance(task, ExtractTask)]
    read = characters / CHARACTERS_PER_TOKEN * bool(asked)
    made = sum(_reading(task) for task in asked) * parts
    prompts = (READ_PROMPT + sum(TASK_PROMPT + _wish(task) for task in asked)) * parts * bool(asked)
    combining, combined = 0.0, 0
    for task in tasks:
        if isinstance(task, ExtractTask):
            source = characters / CHARACTERS_PER_TOKEN if parts == 1 else FACTS_OUT * parts
            combining += MERGE_PROMPT + 2 * _wish(task) + source + MERGED_OUT
            combined += MERGED_OUT
        elif parts > 1:
            questions = len(task.questions) if isinstance(task, QuestionsTask) else 1
            combining += questions * (MERGE_PROMPT + MERGED_OUT) + 0.6 * _reading(task) * parts
            combined += questions * MERGED_OUT
    expected = read + made + prompts + combining
    return Tokens(
        round(read * CHARACTERS_PER_TOKEN / SPARSE + 0.4 * (made + prompts + combining)),
        round(expected),
        round(read * CHARACTERS_PER_TOKEN / DENSE + 2.2 * (made + prompts + combining)),
        (round(0.4 * (made + combined)), round(made + combined), round(2.2 * (made + combined))),
    )


def _reading(task: AnalysisTask) -> int:
    """Tokens that reading one part gives for a task."""
    match task:
        case SummaryTask():
            return SUMMARY_OUT
        case KeyPointsTask():
            return POINTS_OUT
        case QuestionsTask(questions=questions):
            return ANSWER_OUT * min(len(questions), 5)
        case ExtractTask():
            return FACTS_OUT


def _wish(task: AnalysisTask) -> int:
    """Tokens of what the client asks."""
    match task:
        case QuestionsTask(questions=questions):
            return round(sum(map(len, questions)) / CHARACTERS_PER_TOKEN)
        case ExtractTask(schema=schema):
            return round(len(msgspec.json.encode(schema)) / CHARACTERS_PER_TOKEN)
        case _:
            return 0


def of_agent(job: AgentJob, context_tokens: int) -> Tokens:
    """A run of steps, each of which reads all that came before it, `context_tokens` at the most."""
    goal = len(job.input.goal)
    least, usual = STEPS
    most = job.input.max_steps + 1
    short, middle, long = RESULT_TOKENS

    def run(steps: int, start: float, result: int) -> int:
        grown = (start + (result + STEP_OUT) * step for step in range(steps))
        return round(sum(min(tokens, context_tokens) + STEP_OUT for tokens in grown))

    return Tokens(
        run(least, goal / SPARSE + STEP_PROMPT / 4, short) - STEP_OUT // 2,
        run(min(usual, most), goal / CHARACTERS_PER_TOKEN + STEP_PROMPT, middle),
        run(most, goal / DENSE + 2 * STEP_PROMPT, long),
        (STEP_OUT // 2, min(usual, most) * STEP_OUT, most * STEP_OUT),
    )


def of_texts(wanted: EmbeddingInput) -> Tokens:
    """The vectors of texts that are there."""
    texts = set(wanted.texts or [item.text for item in wanted.items or ()])
    return of_bytes(sum(len(text.encode("utf-8", "replace")) for text in texts), count=len(texts))


def of_bytes(size_bytes: int, *, count: int) -> Tokens:
    """The vectors of `count` texts of so many bytes in all."""
    return Tokens(
        round(size_bytes / SPARSE),
        round(size_bytes / CHARACTERS_PER_TOKEN) + count // 2,
        round(size_bytes / DENSE) + 2 * count,
    )


def of_upload(size_bytes: int) -> Tokens:
    """The vectors of an NDJSON file: some of its bytes are JSON, and some of its lines may be alike."""
    whole = of_bytes(size_bytes, count=0)
    return Tokens(whole.low // 8, round(whole.expected * 0.9), whole.high)
