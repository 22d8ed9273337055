"""`UserError`: something the user gave is wrong; and the one place that makes sentences of other libraries' errors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError

# What transformers, huggingface_hub, safetensors and the system raise for what a user gave; the bases of the Hub's
# error are what its HTTP client raises itself, such as for a network that is down.
LIBRARY_ERRORS = (OSError, ValueError, SafetensorError, StrictDataclassError, *HfHubHTTPError.__bases__)
LONGEST_REASON = 500  # characters


class UserError(ValueError):
    """Says what is wrong, where, and what to do."""


@contextmanager
def as_user_error(
    failed: str, advice: str = "", kinds: tuple[type[BaseException], ...] = LIBRARY_ERRORS
) -> Iterator[None]:
    """Surrounds calls of other libraries: what they raise becomes one sentence, "`failed` (reason): `advice`".

    Raises:
        UserError: in place of an error of one of the `kinds`; a `UserError` passes unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        ending = f": {advice}" if advice else "."
        raise UserError(f"{failed} ({one_line(error)}){ending}") from error


def one_line(error: BaseException) -> str:
    """What an error says, with what it was raised from, without line breaks and not too long."""
    cause = f" {error.__cause__}" if error.__cause__ is not None else ""
    text = " ".join(f"{error}{cause}".split()).rstrip(".") or type(error).__name__
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."


def run_script(main: Callable[[], None]) -> None:
    """Runs a script's `main`; a `UserError` ends it with status 2 and its sentence, Ctrl-C with 130."""
    try:
        main()
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"\n{Path(sys.argv[0]).name}: stopped.", file=sys.stderr)
        raise SystemExit(130) from None
