"""What talking to the Hub may raise, told in one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi

from ..errors import LIBRARY_ERRORS, UserError, as_user_error


@contextmanager
def hub_errors(failed: str) -> Iterator[None]:
    """Surrounds calls of the Hub's client: what it raises becomes a `UserError`, which begins with `failed`."""
    advice = "when that is mended, start again: what is there already is not sent twice."
    with as_user_error(failed, advice, kinds=(*LIBRARY_ERRORS, RuntimeError)):  # an upload that breaks off
        yield


def make_repository(api: HfApi, repo_id: str, private: bool | None, repo_type: str = "model") -> None:
    """Creates a repository where there is none.

    Raises:
        UserError: if it shall be private, and there is a public one, which the Hub would leave so without a word.
    """
    api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
    if private and not api.repo_info(repo_id, repo_type=repo_type).private:
        raise UserError(f"{repo_id} is there already and public: make it private in its settings first.")
