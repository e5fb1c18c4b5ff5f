"""The protocol of conditional jobs (S10): what the first line of an answer says."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

Verdict = Literal["", "met", "not met"]
_WORD = re.compile(r"[\s`*_]*CONDITION_(?:(?P<met>MET)|(?P<not>NOT_MET))\b[`*_]*[ \t]*:?[`*_]*[ \t]*")
PROTOCOL = (
    "This is a conditional job: check whether its condition is met. If it is, the first line of your answer is "
    "CONDITION_MET: and what follows is sent to the user; the job ends with that. If it isn't, the first line is "
    "CONDITION_NOT_MET and the job goes on."
)


class Answer(msgspec.Struct, frozen=True):
    """`verdict` is "" where the answer doesn't keep to the protocol; `text` is without its line."""

    verdict: Verdict
    text: str


def parse(text: str) -> Answer:
    """What an answer of a conditional job says. Decoration around the word is an agent's habit, and is taken off."""
    found = _WORD.match(text)
    if not found:
        return Answer("", text)
    return Answer("met" if found["met"] else "not met", text[found.end() :].strip())
