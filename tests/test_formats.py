"""How a board is written: cells, heads, notes, and each format read back by an independent reader."""

from __future__ import annotations

import io
import json

import pandas as pd
import pytest
from by_hand import ORACLES, anchors, beside, cell, record

from unlearnbench.formats import as_csv, as_json, gap_text, latex, markdown, notes, p_text, terminal, value_text
from unlearnbench.intervals import Interval
from unlearnbench.records import Cell
from unlearnbench.tables import Board, Score, boards

SIGNED = {"probability": 1.0, "extraction_strength": 1.0, "relearning:probability": 0.9, "model_utility": 1.0, "perplexity": 0.5}


def board_of(**changes: object) -> Board:
    oracles = [{**SIGNED, "probability": v, "extraction_strength": v, "relearning:probability": v} for v in ORACLES]
    rows = [
        record(
            "npo[lr=1e-05]", 0, {**SIGNED, "probability": [0.2, 0.3], "extraction_strength": 0.25, "relearning:probability": 0.3}, **changes
        ),
        record("a_b&c", 0, {**SIGNED, "probability": [0.5, 0.9], "extraction_strength": "na: no text"}, **changes),
        record("useless", 0, {**SIGNED, "probability": [0.0, 0.1], "extraction_strength": 0.0, "model_utility": 0.5}, **changes),
        record("crashed", 0, status="failed", reason="out of memory", **changes),
        record("collapsed", 0, {**SIGNED, "probability": 0.0}, **changes),
    ]
    (board,) = boards(beside(anchors([SIGNED] * 2, oracles, **changes), *rows))
    return board


def test_cells() -> None:
    assert value_text(Score(value=0.9, interval=Interval(0.7, 1.0, "items"))) == "0.90 ±0.20"
    assert value_text(Score(value=0.1, interval=Interval(0.0, 0.15, "items"))) == "0.10 ±0.10"
    assert value_text(Score(reason="failed: NaN")) == "–"
    assert gap_text(Score(value=0.1)) == ""
    assert gap_text(Score(value=0.1, gap=-0.1, tie=None)) == "-0.10"
    assert gap_text(Score(value=0.1, gap=-0.004, tie=True)) == "≈ 0.00"
    assert gap_text(Score(value=0.1, gap=0.004, tie=False)) == "0.00"
    assert gap_text(Score(value=0.1, gap=-0.006, tie=False)) == "-0.01"
    assert [p_text(p) for p in (0.001, 0.00999, 0.01, 1.0)] == ["p 0.001", "p 0.010", "p 0.01", "p 1.00"]


def test_the_terminal_table_is_readable() -> None:
    text = terminal([board_of()])
    lines = text.splitlines()
    assert lines[0] == "small: authors / forget10, 10 % of the authors"
    assert all(len(line) <= 120 and line == line.rstrip() for line in lines)
    head = next(i for i, line in enumerate(lines) if "rank" in line)
    above = "\n".join(lines[2 : head + 1])
    assert "relearning:" in lines[head - 2]
    for word in ("extraction", "strength", "probability", "worst", "kept"):
        assert word in above.replace("_", " ").split()
    assert lines[head].split() == ["rank", "row", "worst", "kept", "seconds", "T2", "T2", "T4", "↑", "↓"]
    row = next(line for line in lines if "npo" in line)
    # Brackets are no markup; 0.25 is (0.25 - 0.2) / 0.8 = 0.06 between the anchors, 0.3 under relearning 0.1 / 0.7.
    assert row.split()[:4] == ["1", "npo[lr=1e-05]", "0.14", "1.00"]
    assert "≈ +0.05" in lines[lines.index(row) + 1]
    dashes = next(line for line in lines if "crashed" in line)
    assert dashes.split() == ["crashed", *["–"] * 8]
    assert "collapsed (sanity)" in text
    assert lines[lines.index(row) - 1] == ""  # methods stand apart


def test_a_long_label_breaks_after_a_comma() -> None:
    label = "npo[beta=0.1,lr=1e-05,epochs=10,alpha=0.5]"
    (board,) = boards(beside(anchors(), record(label, 0, {"probability": 0.3, "model_utility": 1.0})))
    lines = terminal([board]).splitlines()
    first = next(i for i, line in enumerate(lines) if "npo" in line)
    assert lines[first].split()[1] + lines[first + 1].split()[0] == label


def test_notes_say_how_to_read_the_table_and_what_is_missing() -> None:
    text = "\n".join(notes(board_of()))
    assert "Anchors: 2 originals and 4 oracles. ± is the longer arm of a 95 % interval over clusters; below a value is its gap" in text
    assert "≈ where one more oracle could lie" in text
    assert "No rank: useless, keeps 0.50 of the utility, less than 0.8." in text
    assert "No rank: a_b&c, 1 of 3 forget scores missing." in text
    assert "No rank: crashed" not in text
    assert "Missing: a_b&c extraction_strength: N/A: no text" in text
    assert "Missing: crashed: failed: out of memory" in text


def test_notes_of_boards_that_claim_less() -> None:
    (few,) = boards(beside(anchors(oracles=[{"probability": 0.1}, {"probability": 0.2}]), record("npo", 0, {"probability": 0.3})))
    text = "\n".join(notes(few))
    assert "2 originals and 2 oracles are too few to claim ties." in text
    assert "≈" not in text
    assert "±" not in text
    silent = "\n".join(notes(board_of(signal=False)))
    assert "No signal: original and oracle cannot be told apart on this request, so nothing is ranked or tied." in silent
    assert "worst:" not in silent
    assert "No rank" not in silent
    blunt = anchors([{"probability": 0.25, "rouge": 1.0}] * 2, [{"probability": v, "rouge": v} for v in ORACLES])
    (board,) = boards(beside(blunt, record("npo", 0, {"probability": 0.3, "rouge": 0.3, "accuracy": "na: no classes"})))
    text = "\n".join(notes(board))
    assert (
        "probability: originals and oracles are less than 3 of the oracles' standard deviations apart, so this is no part of worst." in text
    )
    assert "accuracy is not shown: N/A: no classes" in text


def test_notes_say_where_rows_alone_tell_forget_from_holdout() -> None:
    for low, said in ((0.52, True), (0.5, False)):
        blind = cell("blind_baseline", 0.6, side="diagnostic", headline=False, interval=(low, 0.71), covers="clusters")
        seen = anchors([{"probability": 1.0, "blind_baseline": blind}] * 2)
        (board,) = boards(beside(seen, record("npo", 0, {"probability": 0.3, "blind_baseline": blind})))
        text = "\n".join(notes(board))
        assert ("blind_baseline, which sees no model, tells them apart with an AUC of 0.60 (0.52 to 0.71)." in text) == said
        assert ("differ in kind" in text) == said
        assert ("blind_baseline", None) not in board.columns


def test_markdown_has_a_table_for_each_board_and_one_of_comparisons() -> None:
    text = markdown([board_of(), board_of(request="forget5"), board_of(suite="other")])
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        *("# small", "## authors / forget10", "## authors / forget5", "# other", "## authors / forget10")
    ]
    lines = text[: text.index("## authors / forget5")].splitlines()
    table = [line for line in lines if line.startswith("|")]
    widths = {line.count("|") for line in table[:10]}
    assert widths == {11}
    assert table[0].startswith(
        "| rank | row | worst | kept | seconds | probability T2 | extraction_strength T2 | relearning:probability T4 |"
    )
    assert table[1].startswith("|---:|---|---:|")
    assert any(line.startswith("| 1 | npo[lr=1e-05] | 0.14 | 1.00 | – | 0.25 ±0.64<br>≈ +0.05 | 0.25<br>≈ +0.05 |") for line in table)
    compared = table[10:]
    assert compared[0] == "| against | probability |"
    # Clusters differ by -0.3 and -0.6: t = -0.45 / 0.15 with one degree of freedom, p = 0.2048. Holm leaves the
    # larger of two as it is; the other is of a difference that is the same in both clusters.
    assert compared[2] == "| useless | +0.20, p <0.001 |"
    assert compared[3] == "| a_b&c | -0.45, p 0.20 |"
    assert "npo[lr=1e-05] minus each other method, on the same seeds and rows:" in lines
    assert "- p: t test of the paired differences over clusters, adjusted by Holm's method over this board." in lines
    assert any(line.startswith("- npo[lr=1e-05] is not compared with a_b&c on") and ", crashed: no seed" in line for line in lines)
    assert any("useless on relearning:probability, a_b&c on relearning:probability: no values per row" in line for line in lines)


def test_markdown_without_comparable_values_says_so() -> None:
    pair = [record(label, 0, {"probability": v, "model_utility": 1.0}) for label, v in (("npo", 0.3), ("other", 0.4))]
    text = markdown(boards(beside(anchors(), *pair)))
    assert "- npo is not compared with other: no values per row" in text
    assert "against" not in text
    alone = markdown(boards(beside(anchors(), pair[0])))
    assert "compared" not in alone


def test_latex_is_escaped_and_balanced() -> None:
    text = latex([board_of()])
    assert r"a\_b\&c" in text
    assert r"10 \% of the authors" in text
    assert r"0.25 $\pm$0.64 ($\approx$ +0.05)" in text
    assert r"model\_utility $\uparrow$" in text
    assert r"perplexity $\downarrow$" in text
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    columns = text.split(r"\begin{tabular}{")[1].split("}")[0]
    assert columns == "rl" + "r" * 8
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 9
    assert {line.replace(r"\&", "").count("&") for line in rows} == {len(columns) - 1}
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    assert not set("±≈↑↓–…") & set("".join(line for line in text.splitlines() if not line.startswith("%")))


@pytest.mark.parametrize(("letter", "escaped"), [("\\", r"\textbackslash{}"), ("{", r"\{"), ("#", r"\#"), ("~", r"\textasciitilde{}")])
def test_latex_escapes_what_tex_reads(letter: str, escaped: str) -> None:
    assert f"10{escaped} of authors" in latex([board_of(request_description=f"10{letter} of authors")])


def test_csv_is_read_by_pandas() -> None:
    frame = pd.read_csv(io.StringIO(as_csv([board_of()])))
    assert len(frame) == 8 * 5
    line = frame[(frame["row"] == "npo[lr=1e-05]") & (frame["column"] == "probability")].iloc[0]
    assert line[["value", "gap", "anchored", "low", "high"]].tolist() == pytest.approx(
        [0.25, 0.05, 0.0625, 0.0, 0.25 + 0.05 * 12.7062047], abs=1e-6
    )
    assert (line["rank"], line["tie"], line["covers"], line["level"], line["side"]) == (1, True, "clusters", "T2", "forget")
    crashed = frame[frame["row"] == "crashed"]
    assert crashed["value"].isna().all()
    assert set(crashed["reason"]) == {"failed: out of memory"}
    assert set(crashed["seeds"]) == {0}


def test_json_has_everything() -> None:
    (plain,) = json.loads(as_json([board_of()]))
    assert (plain["suite"], plain["scenario"], plain["request"], plain["step"]) == ("small", "authors", "forget10", 0)
    assert (plain["signal"], plain["claims_ties"], plain["oracles"], plain["originals"]) == (True, True, 4, 2)
    rows = {row["label"]: row for row in plain["rows"]}
    score = rows["npo[lr=1e-05]"]["scores"]["probability"]
    assert score["gap_interval"]["covers"] == "oracles"
    assert score["interval"]["high"] > score["value"] == pytest.approx(0.25)
    assert rows["crashed"]["scores"]["probability"]["value"] is None
    assert rows["useless"]["barred"].startswith("keeps 0.50")
    other = next(item for item in plain["comparisons"] if item["second"] == "a_b&c" and item["column"] == "probability")
    assert other["difference"] == pytest.approx(-0.45)
    assert other["interval"]["covers"] == "clusters"
    assert plain["notes"] == notes(board_of())


def test_without_intervals_or_gaps_cells_are_bare() -> None:
    (board,) = boards([record("npo", 0, {"probability": cell("probability", 0.5)})])
    assert "| – | – | 0.50 |" in markdown([board])
    (plain,) = json.loads(as_json([board]))
    assert plain["rows"][0]["scores"]["probability"]["gap_interval"] is None
    assert ",0.5,,,," in as_csv([board])


@pytest.mark.parametrize(("seconds", "shown"), [((0.5, 1.0), "0.75"), ((100.0, 145.4), "123"), ((0.0, 0.0), "0")])
def test_run_time_stands_beside_the_scores(seconds: tuple[float, float], shown: str) -> None:
    timed = [
        record(
            "npo",
            seed,
            {"probability": 0.3, "model_utility": 1.0},
            volatile={"seconds": {"model": time, "relearning": 999.0}, "share_of_retraining": time / 4},
        )
        for seed, time in enumerate(seconds)
    ]
    (board,) = boards([*anchors(), *timed])
    row = next(row for row in board.rows if row.label == "npo")
    assert (row.seconds, row.cost) == (sum(seconds) / 2, sum(seconds) / 8)
    line = next(line for line in markdown([board]).splitlines() if "| npo |" in line)
    assert line.split(" | ")[4] == shown
    assert f"As a share of one retraining: npo {row.cost:.2g}." in markdown([board])
    assert next(row for row in board.rows if row.label == "original").seconds is None
    data = json.loads(as_json([board]))[0]["rows"]
    assert [item["seconds"] for item in data if item["label"] == "npo"] == [row.seconds]


def test_diagnostics_have_a_table_of_their_own_and_judge_nobody() -> None:
    def cka(value: float) -> Cell:
        return cell("cka", value, side="diagnostic", headline=False, level="T0")

    plain = [{"probability": value, "model_utility": 1.0} for value in (1.0, *ORACLES)]
    first, *rest = [{**values, "cka": cka(0.9)} for values in plain]
    method = record("npo", 0, {"probability": 0.3, "model_utility": 1.0, "cka": cka(0.4)})
    (board,) = boards(beside(anchors([first] * 2, rest), method, record("grad_diff", 0, {"probability": 0.4, "model_utility": 1.0})))
    assert board.diagnostics == (("cka", None),)
    assert not set(board.diagnostics) & set(board.columns)
    row = next(row for row in board.rows if row.label == "npo")
    assert (row.diagnostics["cka", None].value, row.diagnostics["cka", None].anchored) == (0.4, None)
    assert row.worst == pytest.approx(0.125)
    text = markdown([board])
    table = text[text.index("Also measured") :].splitlines()
    assert table[2] == "| row | cka T0 |"
    assert "| npo | 0.40<br>-0.50 |" in table
    assert not [line for line in table if line.startswith("| grad_diff |")]
    flat = pd.read_csv(io.StringIO(as_csv([board])))
    assert flat[flat.column == "cka"].set_index("row").value["npo"] == 0.4
    read = {row["label"]: row["diagnostics"]["cka"] for row in json.loads(as_json([board]))[0]["rows"]}
    assert (read["npo"]["value"], read["grad_diff"]["reason"]) == (0.4, "not measured")
    assert "Also measured" not in markdown([board_of()])
