"""`UserError`: something the user gave is wrong; scripts show its sentence without a traceback."""

import sys
from collections.abc import Callable
from pathlib import Path


class UserError(ValueError):
    """Says what is wrong, where, and what to do."""


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
