"""Asks the author of a model what its card needs and no run can know, instead of inventing it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ..errors import UserError
from .card import CardOptions

QUESTIONS = {
    "license": "Under which licence may the weights be used? As the Hub calls it, such as apache-2.0 or cc-by-nc-4.0; "
    "other for one of your own. ",
    "license_name": "What is that licence called? ",
    "license_link": "Where does its text stand? An https address, or LICENSE for a file of that name in the folder. ",
    "language": "In which language are the labels? ISO codes such as en, or en,it for several; und if in none. ",
}


def complete(options: CardOptions, ask: Callable[[str], str] | None = None) -> CardOptions:
    """Fills in what is missing.

    Args:
        options ([`CardOptions`]).
        ask (`Callable[[str], str]`, *optional*): puts a question and returns the answer, as `input` does; an answer
            that is empty or wrong is asked for again.

    Returns:
        Options in which nothing is missing.

    Raises:
        UserError: names the options to give if there is nobody to ask, or nobody answers (Ctrl-D).
    """
    while missing := options.missing():
        if ask is None:
            raise UserError(unanswered(missing))
        question = QUESTIONS[missing[0]]
        try:
            answer = ask(question).strip()
        except EOFError:
            raise UserError(unanswered(missing)) from None
        try:
            given: dict[str, Any] = {missing[0]: answer}
            options = dataclasses.replace(options, **given)
        except UserError as error:
            ask = _with_reason(ask, str(error))
    return options


def unanswered(missing: list[str]) -> str:
    """The sentence that says which options to give."""
    return f"The card needs what only you can say: give {' and '.join(f'--{name}' for name in missing)}."


def _with_reason(ask: Callable[[str], str], reason: str) -> Callable[[str], str]:
    """Tells once why an answer did not do, before the question comes again."""
    reasons = [f"{reason}\n"]
    return lambda question: ask((reasons.pop() if reasons else "") + question)
