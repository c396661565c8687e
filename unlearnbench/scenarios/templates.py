"""How a question becomes the prompt that a model reads, and an answer the text that follows it: plain, by chat template, or neither.

Knows prompts as texts; what is rendered here is what steering models see. Knows no data set and no model, and turns no text into tokens
but to show that a tokenizer's chat template can be trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

from unlearnbench.api import UserError

Shot = tuple[str, str]
"""A question and its answer, shown before the question that is asked."""


class Template(Protocol):
    """What scenarios ask of a template."""

    @property
    def opening(self) -> str | None:
        """What every prompt opens with, special tokens included; None where the tokenizer adds those itself."""

    def prompt_text(self, question: str) -> str:
        """The prompt for `question`."""

    def answer_text(self, answer: str) -> str:
        """The continuation that states `answer`, without the end token."""

    def with_shots(self, shots: Sequence[Shot]) -> Template:
        """The same template with these questions and answers before each question."""


@dataclass(frozen=True)
class PromptTemplate:
    """Plain text.

    The space between prompt and answer belongs to the answer: a prompt that ends in a space tokenises unlike any text a model reads.

    Attributes:
        prompt: Format string with `{question}`.
        answer: Format string with `{answer}`.
        shots: Questions and answers that come first, each followed by a blank line.
    """

    prompt: str = "Question: {question}\nAnswer:"
    answer: str = " {answer}"
    shots: tuple[Shot, ...] = ()

    def __post_init__(self) -> None:
        for name, text in (("question", self.prompt), ("answer", self.answer)):
            if f"{{{name}}}" not in text:
                raise UserError(f"the plain template {text!r} does not hold {{{name}}}, the place of the {name}")

    @property
    def opening(self) -> str | None:
        """See `Template.opening`."""
        return None

    def prompt_text(self, question: str) -> str:
        """The prompt for `question`."""
        shown = "".join(f"{self._filled(shot)}{self.answer_text(answer)}\n\n" for shot, answer in self.shots)
        return shown + self._filled(question)

    def _filled(self, question: str) -> str:
        return self.prompt.replace("{question}", question)

    def answer_text(self, answer: str) -> str:
        """The continuation that states `answer`."""
        return self.answer.replace("{answer}", answer)

    def with_shots(self, shots: Sequence[Shot]) -> PromptTemplate:
        """See `Template.with_shots`."""
        return replace(self, shots=tuple(shots))


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's own chat template.

    What the template writes after an answer is dropped from the end token on, since the end token is appended to every answer anyway;
    a template that closes a turn with other tokens keeps them in the answer.

    Attributes:
        tokenizer: Has a chat template.
        system: The system message; "" for none (some templates refuse one).
        date: What is passed as `date_string`, which some templates print; without it they print today's.
        shots: Earlier turns.

    Raises:
        UserError: The tokenizer has no chat template, or one whose prompt does not open the whole conversation.
    """

    tokenizer: Any
    system: str = ""
    date: str | None = None
    shots: tuple[Shot, ...] = ()

    def __post_init__(self) -> None:
        if not getattr(self.tokenizer, "chat_template", None):
            raise UserError("the tokenizer has no chat template; use the plain template")
        self.answer_text("It is so.")

    @cached_property
    def opening(self) -> str | None:
        """See `Template.opening`: everything before the first question."""
        first, second = self._render("\x01", None), self._render("\x02", None)
        return first[: next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)]

    def prompt_text(self, question: str) -> str:
        """The conversation up to where the answer begins."""
        return self._render(question, None)

    def answer_text(self, answer: str) -> str:
        """What the template writes for an answer, up to the end token."""
        prompt, whole = self._render("Is it so?", None), self._render("Is it so?", answer)
        if not whole.startswith(prompt):
            raise UserError(
                f"by the chat template the prompt {prompt!r} is no prefix of the conversation {whole!r}; use the plain template"
            )
        end = self.tokenizer.eos_token
        return whole[len(prompt) :].split(end)[0] if end else whole[len(prompt) :]

    def with_shots(self, shots: Sequence[Shot]) -> ChatTemplate:
        """See `Template.with_shots`."""
        return replace(self, shots=tuple(shots))

    def _render(self, question: str, answer: str | None) -> str:
        turns = [{"role": "system", "content": self.system}] if self.system else []
        for shot, reply in self.shots:
            turns += [{"role": "user", "content": shot}, {"role": "assistant", "content": reply}]
        turns.append({"role": "user", "content": question})
        if answer is not None:
            turns.append({"role": "assistant", "content": answer})
        more = {} if self.date is None else {"date_string": self.date}
        try:
            text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None, **more)
        except Exception as error:  # a template is a program of its own and raises what it likes
            reason = " ".join(str(error).split())
            raise UserError(f"the tokenizer's chat template refuses {[turn['role'] for turn in turns]}: {reason:.200}") from error
        return text


@dataclass(frozen=True)
class RawText:
    """No question: a text as it stands.

    Attributes:
        prefix: What it is conditioned on, whose tokens are not scored; "" is the token that begins a sequence.
    """

    prefix: str = ""

    @property
    def opening(self) -> str | None:
        """See `Template.opening`."""
        return None

    def prompt_text(self, question: str) -> str:
        """The prefix, and the question where there is one (the beginning of a passage)."""
        return self.prefix + question

    def answer_text(self, answer: str) -> str:
        """The text itself."""
        return answer

    def with_shots(self, shots: Sequence[Shot]) -> RawText:
        """See `Template.with_shots`: a text has none.

        Raises:
            UserError: Always, but for no shots.
        """
        if shots:
            raise UserError(f"a raw text takes no examples before it, not {len(shots)}")
        return self
