"""Shortcuts: what could make a task easier or harder than it seems, as the search left it: shortcuts.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from gansfp import store
from gansfp.decision.stamped import damage_named

FILE = "shortcuts.json"


@dataclass(frozen=True)
class Shortcut:
    """what: in words. figure: its value. beside: in words what `usual`, the figure to compare with, is. notable:
    whether a reader must know of it."""

    what: str
    figure: float
    beside: str
    usual: float
    notable: bool

    def __str__(self) -> str:
        return f"{self.what}: {self.figure:.3g}, {self.beside} {self.usual:.3g}"

    def as_dict(self) -> dict[str, object]:
        """As shortcuts.json and metrics.json hold it."""
        return asdict(self)


def write_shortcuts(folder: str, of_sets: Mapping[str, Sequence[Shortcut]], digest: str) -> None:
    """Writes shortcuts.json. of_sets: by set, "" for attribution; digest: of what they were computed from."""
    sets = {name: [shortcut.as_dict() for shortcut in of_set] for name, of_set in of_sets.items()}
    content = json.dumps({"digest": digest, "sets": sets}, indent=1, allow_nan=False)
    store.write_bytes_atomically(store.join(folder, FILE), content.encode())


def read_shortcuts(folder: str, digest: str | None = None) -> dict[str, list[Shortcut]] | None:
    """The shortcuts by set. None where there is no file, or with `digest` one of another digest. Raises DataError where
    it is damaged."""
    place = store.join(folder, FILE)
    if not store.exists(place):
        return None
    with damage_named(place):
        content = json.loads(store.read_bytes(place))
        if digest is not None and content.get("digest") != digest:
            return None
        return {name: [Shortcut(**values) for values in of_set] for name, of_set in content["sets"].items()}
