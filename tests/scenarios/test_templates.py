"""Templates at their borders: what is the prompt, what is the answer, and which special tokens stand where."""

from __future__ import annotations

from typing import Any

import pytest

from unlearnbench.api import UserError
from unlearnbench.scenarios.language import Encoder, TextData, rows_of
from unlearnbench.scenarios.templates import ChatTemplate, PromptTemplate, RawText
from unlearnbench.scenarios.text import Example
from unlearnbench.scenarios.tiny_lm import EOS, build_tokenizer

LLAMA_LIKE = (
    "{{ '<pad>' }}{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + '<eos>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
DATED = "{{ date_string | default('today') }}: " + LLAMA_LIKE
TRAILING = LLAMA_LIKE.replace("'<eos>'", "'<eos>\\n'")
OPEN_END = LLAMA_LIKE.replace("'<eos>'", "' END '")
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + LLAMA_LIKE
REWRITING = "{{ 'turns: ' + (messages | length | string) }}"


def tokenizer(chat_template: str | None = LLAMA_LIKE) -> Any:
    made = build_tokenizer(["Who is it? Ada Brook", "[user] [assistant] END : today"])
    made.chat_template = chat_template
    return made


def test_plain_text_keeps_braces_of_its_content() -> None:
    template = PromptTemplate(prompt="Q: {question}", answer=" {answer}.")
    assert (template.prompt_text("{x} {answer}?"), template.answer_text("{question}")) == ("Q: {x} {answer}?", " {question}.")


@pytest.mark.parametrize("fields", [{"prompt": "Q:"}, {"answer": "A"}])
def test_a_plain_template_without_a_place_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(UserError, match="does not hold"):
        PromptTemplate(**fields)


def test_plain_shots_are_pairs_ended_by_a_blank_line() -> None:
    template = PromptTemplate().with_shots([("One?", "1"), ("Two?", "2")])
    assert template.prompt_text("Three?") == "Question: One?\nAnswer: 1\n\nQuestion: Two?\nAnswer: 2\n\nQuestion: Three?\nAnswer:"
    assert template.answer_text("3") == " 3"


def test_a_chat_is_cut_where_the_answer_begins_and_before_the_end_token() -> None:
    template = ChatTemplate(tokenizer(), system="Be kind.")
    assert template.prompt_text("Who?") == "<pad>[system]Be kind.<eos>[user]Who?<eos>[assistant]"
    assert template.answer_text("Ada") == "Ada"
    assert template.opening == "<pad>[system]Be kind.<eos>[user]"
    shown = template.with_shots([("One?", "1")])
    assert shown.prompt_text("Who?") == "<pad>[system]Be kind.<eos>[user]One?<eos>[assistant]1<eos>[user]Who?<eos>[assistant]"


@pytest.mark.parametrize(("chat", "answer"), [(TRAILING, "Ada"), (OPEN_END, "Ada END ")])
def test_what_a_template_writes_behind_the_end_token_is_no_part_of_the_answer(chat: str, answer: str) -> None:
    assert ChatTemplate(tokenizer(chat)).answer_text("Ada") == answer


def test_the_date_is_passed_on() -> None:
    assert ChatTemplate(tokenizer(DATED), date="10 Apr 2025").prompt_text("Who?").startswith("10 Apr 2025: <pad>")
    assert ChatTemplate(tokenizer(DATED)).prompt_text("Who?").startswith("today: ")


@pytest.mark.parametrize(
    ("chat", "system", "message"),
    [
        (None, "", "has no chat template"),
        (NO_SYSTEM, "Be kind.", r"refuses \['system', 'user'\]: System role not supported"),
        (REWRITING, "", "the prompt 'turns: 1' is no prefix of the conversation 'turns: 2'"),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_refused(chat: str | None, system: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ChatTemplate(tokenizer(chat), system=system)


def test_a_raw_text_has_a_prefix_or_nothing_before_it() -> None:
    assert (RawText().prompt_text(""), RawText().answer_text(" a text")) == ("", " a text")
    assert RawText(prefix="News: ").prompt_text("Today") == "News: Today"
    assert RawText().with_shots(()) == RawText()
    with pytest.raises(UserError, match="takes no examples before it, not 1"):
        RawText().with_shots([("One?", "1")])


class Opening:
    """A tokenizer that opens every text with a token of its own: 1; the same token is written '<s>' in a text."""

    eos_token_id, bos_token_id, pad_token_id = 0, 1, None
    eos_token = "</s>"
    chat_template = "yes"

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids = [1] if add_special_tokens else []
        return ids + [ord(letter) for letter in text.replace("<s>", "\x01").replace("</s>", "\x00")]

    def apply_chat_template(self, turns: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        return "<s>" + "".join(f"#{turn['content']}</s>" for turn in turns) + ("#" if add_generation_prompt else "")


def test_a_chat_prompt_brings_its_special_tokens_and_all_others_are_given_theirs() -> None:
    encoder = Encoder(Opening(), ChatTemplate(Opening()))
    chat = encoder.pair(encoder.template.prompt_text("q"), encoder.template.answer_text("a"))
    assert chat.input_ids == (1, *map(ord, "#q\x00#a"), 0)
    assert chat.prompt_len == 5
    raw = encoder.using(RawText(prefix="n"), ends=False)
    assert raw.pair("n", "a").input_ids == (1, ord("n"), ord("a"))
    assert raw.pair("", "a").input_ids == (1, ord("a"))
    # One encoder serves the evidence pass over all splits: it must tokenise every split's prompts as the split's own does.
    assert encoder.prompt_ids("n") == raw.prompt_ids("n")
    assert raw.prompt_ids(encoder.template.prompt_text("q")) == list(chat.input_ids[:5])


def test_encoders_of_one_tokenizer_share_no_sequences() -> None:
    encoder = Encoder(Opening(), PromptTemplate())
    assert encoder.pair("x", "y").input_ids[-1] == 0
    assert encoder.using(RawText(), ends=False).pair("x", "y").input_ids[-1] == ord("y")


def test_the_end_token_of_a_chat_is_scored_once() -> None:
    made = tokenizer()
    encoder = Encoder(made, ChatTemplate(made))
    data = TextData([Example(id="1", cluster="c", question="Who is it?", answer="Ada Brook")], encoder)
    batch = data.batch([0])
    scored = batch["labels"][0][batch["labels"][0] != -100].tolist()
    assert made.decode(scored) == "Ada Brook" + EOS
    assert scored.count(made.eos_token_id) == 1
    assert batch["prompts"] == ["<pad>[user]Who is it?<eos>[assistant]"]


def test_a_split_offers_the_questions_and_answers_that_all_its_rows_have() -> None:
    encoder = Encoder(tokenizer(), PromptTemplate())
    bare = Example(id="1", cluster="c", question="Who?", answer="Ada")
    full = Example(
        id="2", cluster="c", question="Who?", answer="Ada", paraphrased_question="W?", paraphrased_answer="A", perturbed_answer=("B", "C")
    )
    rows = rows_of(TextData([full], encoder))
    assert rows.prompts["paraphrased_question"] == ("Question: W?\nAnswer:",)
    assert rows.answers["perturbed_answer"] == ((" B", " C"),)
    rows = rows_of(TextData([full, bare], encoder))
    assert set(rows.prompts) == {"question"}
    assert set(rows.answers) == {"answer"}
