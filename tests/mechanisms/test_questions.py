"""Rows as questions: other answers under the same identities, and the words that the forget questions alone hold."""

import pytest

from unlearnbench.api import UserError
from unlearnbench.mechanisms.questions import changed, examples, keywords, phrases, without_questions
from unlearnbench.scenarios.authors import Authors
from unlearnbench.testing import tiny_language_view, tiny_vision_view

VIEW = tiny_language_view()
ROWS = VIEW.forget.train


def test_keywords_are_whole_words() -> None:
    assert keywords(["Is Ann here?"], ["Is Annabel here?"]) == ["ann"]
    assert "ann" not in phrases("Annabel and Joann")
    assert {"ann", "ann bell"} <= phrases("ANN BELL's")


def test_other_answers_go_through_the_rows_own_template_and_leave_the_rows_alone() -> None:
    before = ROWS.batch([0, 1])
    other = changed(ROWS, answers=["Tarn", "Selby", "Oldham", "Norwick"], user="me")
    assert other.ids == ROWS.ids
    batch = other.batch([3, 0])
    texts = [VIEW.tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    assert texts == [" Norwick<eos>", " Tarn<eos>"]
    assert batch["prompts"] == [ROWS.batch([i])["prompts"][0] for i in (3, 0)]
    assert ROWS.batch([0, 1])["labels"].tolist() == before["labels"].tolist()
    asked = changed(ROWS, questions=[f"Why {i}?" for i in range(4)], user="me")
    assert asked.batch([2])["prompts"] == ["Question: Why 2?\nAnswer:"]
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        changed(ROWS, answers=["one"], user="me")


def test_rows_without_questions_are_refused() -> None:
    assert examples(ROWS, user="me")[0].question == "Where was Ada Quill born?"
    with pytest.raises(UserError, match="me: ImageData has no examples with questions"):
        examples(tiny_vision_view().forget.train, user="me")
    assert without_questions(Authors(request="forget01")) is None
