"""Errors that end a run: one line of what is wrong, one of what to do, an exit code."""

from __future__ import annotations


class KsmEvalError(Exception):
    """Base of every expected failure.

    `message` says what is wrong, `hint` what to do next (may be empty),
    `exit_code` is what the command line exits with.
    """

    exit_code = 3

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(KsmEvalError):
    """The question cannot be understood: bad option values, nothing selected (exit 2)."""

    exit_code = 2


class TargetError(KsmEvalError):
    """The target cannot answer: unreadable, filtered, no symbols, no permission (exit 3)."""

    exit_code = 3


class GateError(KsmEvalError):
    """The answer is there, and not what a gate such as --fail-under asks for (exit 1)."""

    exit_code = 1


class IncompleteError(KsmEvalError):
    """More pages were unreadable than --max-unreadable allows (exit 4)."""

    exit_code = 4
