"""What talking to the Hub may raise, told in one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from ..errors import UserError

# The bases of the Hub's error are what its HTTP client raises itself, such as for a network that is down; a refused
# name or card is a ValueError, and an upload that breaks off a RuntimeError.
HUB_ERRORS: tuple[Any, ...] = (*HfHubHTTPError.__bases__, ValueError, RuntimeError)


@contextmanager
def hub_errors(failed: str) -> Iterator[None]:
    """Surrounds calls of the Hub's client, and nothing else.

    Args:
        failed (`str`): the beginning of the sentence, such as "runs/demo could not be pushed to user/name".

    Raises:
        UserError: in place of what the client raises, with its reason.
    """
    try:
        yield
    except UserError:
        raise
    except HUB_ERRORS as error:
        cause = (
            error.__cause__ if isinstance(error, RuntimeError) else None
        )  # the client names the file, it the reason
        reason = " ".join(f"{error} {cause or ''}".split()).rstrip(".")
        raise UserError(
            f"{failed}: {reason}; when that is mended, start again: what is there already is not sent twice."
        ) from error


def make_repository(api: HfApi, repo_id: str, private: bool | None, repo_type: str = "model") -> None:
    """Creates a repository where there is none.

    Raises:
        UserError: if it shall be private, and there is a public one, which the Hub would leave so without a word.
    """
    api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
    if private and not api.repo_info(repo_id, repo_type=repo_type).private:
        raise UserError(f"{repo_id} is there already and public: make it private in its settings first.")
