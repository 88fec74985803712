"""What can go wrong, said so that a person can act on it.

Every refusal is a `HeparError`: a stable code, the stage that refused, what and where, and the
remedy. The exit code belongs to the family, so scripts can branch on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hepar.study import SeriesVerdict

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_INPUT_REFUSED = 10
EXIT_BATCH_PARTLY_FAILED = 11
EXIT_RESOURCE = 12
EXIT_MODEL_INTEGRITY = 13
EXIT_INTERNAL = 14


class HeparError(Exception):
    """A refusal with a remedy.

    Args:
        code: stable machine-readable code, `E_...`.
        stage: the stage or module that refused, e.g. `read`.
        message: what is wrong, where, and the offending value.
        remedy: what the user can do about it.
    """

    exit_code = EXIT_INTERNAL

    def __init__(self, code: str, stage: str, message: str, remedy: str) -> None:
        super().__init__(message)
        self.code = code
        self.stage = stage
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.code} [{self.stage}] {self.message} Remedy: {self.remedy}"

    def as_dict(self) -> dict[str, str | int]:
        """The error as plain data, for `--json` and logs."""
        return {
            "code": self.code,
            "stage": self.stage,
            "message": self.message,
            "remedy": self.remedy,
            "exit_code": self.exit_code,
        }


class UsageError(HeparError):
    """The command or the recipe is wrong (exit 2)."""

    exit_code = EXIT_USAGE


class InputRefused(HeparError):
    """The study, mask or cohort cannot be used safely (exit 10).

    Attributes:
        verdicts: what became of each series, where a whole study is refused after they were read.
    """

    exit_code = EXIT_INPUT_REFUSED
    verdicts: tuple[SeriesVerdict, ...] = ()


class BatchPartlyFailed(HeparError):
    """Some studies of a batch failed (exit 11)."""

    exit_code = EXIT_BATCH_PARTLY_FAILED


class ResourceExhausted(HeparError):
    """Memory, disk or time ran out (exit 12)."""

    exit_code = EXIT_RESOURCE


class Interrupted(HeparError):
    """A signal asked the work to stop, and what was done is kept (exit 128 + signal).

    Args:
        signum: the signal.
        stage: what was stopped.
        message: how far it came.
        remedy: how to go on.
    """

    def __init__(self, signum: int, stage: str, message: str, remedy: str) -> None:
        super().__init__("E_INTERRUPTED", stage, message, remedy)
        self.exit_code = 128 + signum


class ModelIntegrityError(HeparError):
    """A model folder is damaged, incomplete or not what it claims to be (exit 13)."""

    exit_code = EXIT_MODEL_INTEGRITY
