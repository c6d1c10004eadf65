"""The size and content of a simulated challenge."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gansfp.errors import UsageError
from gansfp.simulation.generators import GENERATORS, GeneratorSettings


class GeneratorRecipe(NamedTuple):
    """The generator of a membership set. leaks: it is trained on the used slices."""

    generator: str
    leaks: bool


SETS = {name: GeneratorRecipe(name, leaks=True) for name in GENERATORS}
SETS["clean"] = GeneratorRecipe("warp", leaks=False)
SETS["warp_2"] = GeneratorRecipe("warp", leaks=True)  # seeds use the sorted place of a name: new names come last


class SetSize(NamedTuple):
    """Numbers of slices in a membership set; see SimulationConfig."""

    labelled: int
    unknown: int
    generated: int
    generated_test: int


COUNTS = SetSize._fields
_ALL_COUNTS = (*COUNTS, "attributed", "attributed_test")


@dataclass(frozen=True)
class SimulationConfig:
    """The size and content of a challenge. Counts are numbers of slices. Raises UsageError for impossible values."""

    seed: int = 0
    sets: tuple[str, ...] = ("glo", "warp", "clean")  # of SETS
    known: tuple[str, ...] = ("vae", "glo", "warp")  # labelled generators of the attribution; none: no attribution
    unseen: tuple[str, ...] = ("eigen",)  # generators that only made slices to attribute
    labelled: int = 60  # used slices in each set, and as many that are not used
    unknown: int = 130  # in each set; half of them are used
    generated: int = 200  # in each set, for training
    generated_test: int = 100  # in each set, for the test
    attributed: int = 80  # of each known generator, in train
    attributed_test: int = 80  # of each generator, in test
    set_sizes: Mapping[str, SetSize] = field(default_factory=dict)  # of sets whose counts are other ones, by set
    slices_per_patient: int = 2  # of phantoms
    leak: float = 0.85  # how similar `warp`'s slices are to its training slices, up to 1; 0: no set leaks
    vae_steps: int = GeneratorSettings.vae_steps
    glo_steps: int = GeneratorSettings.glo_steps

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError(f"got seed {self.seed}, expected 0 or more")
        if not 0 <= self.leak <= 1:
            raise UsageError(f"got leak {self.leak}, expected a number from 0 to 1")
        of_all = [(name, getattr(self, name)) for name in _ALL_COUNTS]
        of_sets = [count for size in self.set_sizes.values() for count in size._asdict().items()]
        for name, count in of_all + of_sets:
            if count < 2:
                raise UsageError(f"got {name} {count}, expected 2 or more")
        for name in ("slices_per_patient", "vae_steps", "glo_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"got {name} {getattr(self, name)}, expected 1 or more")
        if not self.sets:
            raise UsageError(f"got no sets, expected one or more of {sorted(SETS)}")
        if self.unseen and not self.known:
            raise UsageError(f"got unseen generators {list(self.unseen)} but no known ones, expected some of both")
        check_names(self.sets, SETS)
        check_names((*self.known, *self.unseen), GENERATORS)

    @classmethod
    def tiny(cls, **changes: Any) -> SimulationConfig:
        """Returns the configuration of a challenge that is made in a few seconds, without networks, with changes."""
        tiny = cls(
            sets=("warp", "clean"),
            known=("warp", "eigen"),
            unseen=(),
            labelled=16,
            unknown=32,
            generated=60,
            generated_test=20,
            attributed=12,
            attributed_test=12,
        )
        return dataclasses.replace(tiny, **changes)

    @classmethod
    def imageclef_2024(cls) -> SimulationConfig:
        """Returns the configuration of 50,000 slices in the proportions of ImageCLEFmedical GANs 2024.

        Both sets are by `warp`, the only generator here that leaks thousands of slices within minutes.
        """
        return cls(
            sets=("warp", "warp_2"),
            set_sizes={"warp": SetSize(100, 4000, 10000, 7200), "warp_2": SetSize(3000, 4000, 10000, 5000)},
            attributed=200,
            attributed_test=750,
            slices_per_patient=4,
        )

    def times(self, factor: int) -> SimulationConfig:
        """Returns the configuration of a challenge with `factor` times as many slices of everything."""
        more: dict[str, Any] = {name: factor * getattr(self, name) for name in _ALL_COUNTS}
        return dataclasses.replace(self, **more)

    def with_counts(self, **counts: Any) -> SimulationConfig:
        """Returns the configuration with these counts, names of COUNTS, in all sets."""
        sizes = {name: size._replace(**counts) for name, size in self.set_sizes.items()}
        return dataclasses.replace(self, set_sizes=sizes, **counts)

    def size(self, name: str) -> SetSize:
        """Returns the numbers of slices of the set `name`."""
        return self.set_sizes.get(name) or SetSize(*(getattr(self, count) for count in COUNTS))

    def leaks(self, name: str) -> bool:
        """Returns whether the generator of the set `name` is trained on the set's used slices."""
        return SETS[name].leaks and self.leak > 0

    def needs(self, name: str) -> dict[str, int]:
        """Returns the number of slices in each class of the set `name`."""
        labelled, unknown = self.size(name).labelled, self.size(name).unknown
        used = unknown // 2
        needs = {
            "used": labelled,
            "not_used": labelled,
            "unknown_used": used,
            "unknown_not_used": unknown - used,
        }
        return needs if self.leaks(name) else needs | {"outside": labelled + used}

    def settings(self) -> GeneratorSettings:
        """Returns the settings of the generators. With leak 0, `warp` has its default strength."""
        return GeneratorSettings(self.leak or GeneratorSettings.strength, self.vae_steps, self.glo_steps)


def check_names(names: Sequence[str], table: Mapping[str, object]) -> None:
    """Raises UsageError for a name that is not in the table, or that is there twice."""
    for name, times in Counter(names).items():
        if name not in table:
            raise UsageError(f"got {name!r}, expected one of {sorted(table)}")
        if times > 1:
            raise UsageError(f"got {name!r} {times} times, expected it once")
