"""The table of two trainings with gates."""

from __future__ import annotations

from moe_atlas.lifecycle.episodes import GREEN, RED, YELLOW
from scripts.twenty_gates import Outcome, section, spans


def test_equal_neighbours_are_joined():
    assert spans([GREEN] * 20) == "GREEN at 1–20"
    assert spans([YELLOW, YELLOW, GREEN, RED]) == "YELLOW at 1–2, GREEN at 3, RED at 4"


def test_a_row_says_who_ended_the_training():
    found = [
        Outcome("light", 20, None, [GREEN] * 20, "clear", 0),
        Outcome("hard", 4, 32, [YELLOW] * 3 + [RED], "intervene", 1),
    ]
    lines = section(found).splitlines()
    assert "| light | 20 | GREEN at 1–20 | at its end | `clear`, 0 |" in lines
    assert "| hard | 4 | YELLOW at 1–3, RED at 4 | by the gate, at step 32 | `intervene`, 1 |" in lines
