"""Datasets of the Hub whose ways are known: which tasks they have, which names mean unknown, which are misspelt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .rows import ReadingOptions


@dataclass(frozen=True)
class Preset:
    tasks: tuple[str, ...]
    unknown_labels: frozenset[str] = frozenset()
    renamed_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by column

    def options(self, given: ReadingOptions) -> ReadingOptions:
        """What the user gave, with the preset for what was not."""
        return replace(
            given,
            tasks=given.tasks or self.tasks,
            unknown_labels=given.unknown_labels | self.unknown_labels,
            renamed_labels=self.renamed_labels,
        )


PRESETS = {
    # 81,444 paintings, one split, ClassLabels; one name was UTF-8 read as Latin-1 and then put in lower case.
    "huggan/wikiart": Preset(
        ("artist", "style", "genre"),
        frozenset({"Unknown Artist", "Unknown Genre"}),
        {"artist": {"joaquã\xadn-sorolla": "joaquín-sorolla"}},
    ),
    # The same three as strings.
    "Artificio/WikiArt": Preset(("artist", "style", "genre")),
}
