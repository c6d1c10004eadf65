"""What systems need before they can decide: weights that can be had, and every embedding, each once for all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gansfp.collection.catalog import Catalog
from gansfp.embedding.backbones import parse_backbone
from gansfp.embedding.embedder import EmbedConfig, identity, load_all_weights
from gansfp.embedding.shards import Pair
from gansfp.errors import GansfpError, WeightsError
from gansfp.images.lungs import is_network
from gansfp.networks.weights import Weights
from gansfp.published.systems import Part, select
from gansfp.runtime.cluster import ClusterConfig
from gansfp.runtime.embedding import Workers, embed


@dataclass
class Supply:
    """The weights of the backbones that were asked for.

    had: what a backbone asked for became, `NAME@random` where its own weights cannot be had and random ones may be
    taken. weights: by network. lacking: in a line why a backbone, or a lung mask, cannot be had.
    """

    had: dict[str, str] = field(default_factory=dict)
    weights: dict[str, Weights] = field(default_factory=dict)
    lacking: dict[str, str] = field(default_factory=dict)

    def add(self, backbones: Iterable[str], folder: str | None, random: bool) -> None:
        """Loads the weights of these backbones, each network's once."""
        by_network: dict[str, list[str]] = defaultdict(list)
        for name in dict.fromkeys(backbones):
            if name not in self.had and name not in self.lacking:
                by_network[parse_backbone(name).network or name].append(name)
        for names in by_network.values():
            self._add_network(names, folder, random)

    def add_mask(self, mask: str, folder: str | None) -> None:
        """Loads the weights of a lung mask, if a network makes it."""
        if is_network(mask):
            try:
                self.weights |= load_all_weights([], folder, mask)
            except GansfpError as error:
                self.lacking[mask] = str(error)

    def _add_network(self, names: list[str], folder: str | None, random: bool) -> None:
        try:
            self._take(names, names, folder)
        except WeightsError as error:
            if random:
                self._take(names, [f"{name}@random" for name in names], folder)
            else:
                self.lacking |= dict.fromkeys(names, str(error))
        except GansfpError as error:  # an input size that the network cannot take
            self.lacking |= dict.fromkeys(names, str(error))

    def _take(self, names: list[str], instead: list[str], folder: str | None) -> None:
        self.weights |= load_all_weights(instead, folder)
        self.had |= dict(zip(names, instead, strict=True))

    def identity(self, pair: Pair, config: EmbedConfig) -> dict[str, str]:
        """The identity of the embedding that a (backbone asked for, view) has here."""
        return identity((self.had[pair[0]], pair[1]), config, self.weights)


@dataclass(frozen=True)
class Embedding:
    """How and where slices are embedded. config: its pairs do not count."""

    work: str
    config: EmbedConfig
    workers: Workers
    cluster: ClusterConfig

    def run(self, catalog: Catalog, needs: Mapping[Pair, frozenset[Part]], supply: Supply, stage: str) -> None:
        """Embeds, for each (backbone asked for, view), the slices of the parts it is needed for: all pairs that are
        needed for the same parts in one pass. Raises GansfpError as jobs.embed.embed does."""
        together: dict[frozenset[Part], list[Pair]] = defaultdict(list)
        for (backbone, view), parts in needs.items():
            together[parts].append((supply.had[backbone], view))
        for parts, pairs in together.items():
            images = select(catalog, parts)
            if not len(images):
                continue
            config = EmbedConfig(tuple(pairs), self.config.mask, self.config.precision)
            used = [*_networks(config.backbones), *filter(None, [config.network_mask])]
            weights = {network: supply.weights[network] for network in used}
            embed(images, self.work, config, weights, self.workers, self.cluster, stage)


def _networks(backbones: Iterable[str]) -> list[str]:
    parsed = map(parse_backbone, backbones)
    return list(dict.fromkeys(backbone.network for backbone in parsed if backbone.needs_weights))
