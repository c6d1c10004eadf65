"""Prepares what systems need before they can decide: the weights of their backbones, and the embeddings.

Each is loaded or computed once for all systems.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from gansfp.collection.catalog import Catalog
from gansfp.embedding.backbones import parse_backbone
from gansfp.embedding.embedder import EmbedConfig, identity, load_all_weights
from gansfp.embedding.shards import Pair
from gansfp.errors import GansfpError, WeightsError
from gansfp.images.lungs import is_network
from gansfp.networks.weights import Weights
from gansfp.published.systems import SliceKind, select_kinds
from gansfp.runtime.cluster import ClusterConfig
from gansfp.runtime.embedding import Workers, embed
from gansfp.runtime.precision import settle_precision


@dataclass
class LoadedWeights:
    """The weights of the requested backbones.

    resolved: requested backbone -> backbone used. This is `NAME@random` if the backbone's own weights are missing and
    random weights are allowed. weights: by network. missing: backbone or lung mask without weights -> reason, in one
    line.
    """

    resolved: dict[str, str] = field(default_factory=dict)
    weights: dict[str, Weights] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, backbones: Iterable[str], folder: str | None, random: bool) -> None:
        """Loads the weights of these backbones, those of each network once. random: random weights are allowed."""
        by_network: dict[str, list[str]] = defaultdict(list)
        for name in dict.fromkeys(backbones):
            if name not in self.resolved and name not in self.missing:
                by_network[parse_backbone(name).network or name].append(name)
        for names in by_network.values():
            self._load_network(names, folder, random)

    def load_mask(self, mask: str, folder: str | None) -> None:
        """Loads the weights of a lung mask, if the mask is a network."""
        if is_network(mask):
            try:
                self.weights |= load_all_weights([], folder, mask)
            except GansfpError as error:
                self.missing[mask] = str(error)

    def _load_network(self, names: list[str], folder: str | None, random: bool) -> None:
        try:
            self._resolve(names, names, folder)
        except WeightsError as error:
            if random:
                self._resolve(names, [f"{name}@random" for name in names], folder)
            else:
                self.missing |= dict.fromkeys(names, str(error))
        except GansfpError as error:  # such as an input size that the network cannot take
            self.missing |= dict.fromkeys(names, str(error))

    def _resolve(self, names: list[str], used: list[str], folder: str | None) -> None:
        self.weights |= load_all_weights(used, folder)
        self.resolved |= dict(zip(names, used, strict=True))

    def identity(self, pair: Pair, config: EmbedConfig) -> dict[str, str]:
        """Returns the identity of the embedding of a (requested backbone, view)."""
        return identity((self.resolved[pair[0]], pair[1]), config, self.weights)


@dataclass(frozen=True)
class EmbeddingJob:
    """How and where slices are embedded. config: its pairs are not used."""

    work: str
    config: EmbedConfig
    workers: Workers
    cluster: ClusterConfig

    def settle_precision(
        self, catalog: Catalog, needs: Mapping[Pair, frozenset[SliceKind]], loaded: LoadedWeights
    ) -> EmbeddingJob:
        """Returns this job with a precision for the slices that each (requested backbone, view) is needed for."""
        pairs = {(loaded.resolved[backbone], view): kinds for (backbone, view), kinds in needs.items()}
        images = {pair: select_kinds(catalog, kinds).hashes() for pair, kinds in pairs.items()}
        config = replace(self.config, pairs=tuple(images))
        return replace(self, config=settle_precision(config, images, self.work, loaded.weights, self.cluster))

    def run(
        self, catalog: Catalog, needs: Mapping[Pair, frozenset[SliceKind]], loaded: LoadedWeights, stage: str
    ) -> None:
        """Embeds the slices that each (requested backbone, view) is needed for.

        Pairs that are needed for the same kinds of slices are computed in one pass. Raises GansfpError as
        gansfp.runtime.embedding.embed does.
        """
        pairs_by_kinds: dict[frozenset[SliceKind], list[Pair]] = defaultdict(list)
        for (backbone, view), kinds in needs.items():
            pairs_by_kinds[kinds].append((loaded.resolved[backbone], view))
        for kinds, pairs in pairs_by_kinds.items():
            images = select_kinds(catalog, kinds)
            if not len(images):
                continue
            config = EmbedConfig(tuple(pairs), self.config.mask, self.config.precision)
            networks = [*_networks(config.backbones), *filter(None, [config.network_mask])]
            weights = {network: loaded.weights[network] for network in networks}
            embed(images, self.work, config, weights, self.workers, self.cluster, stage)


def _networks(backbones: Iterable[str]) -> list[str]:
    parsed = map(parse_backbone, backbones)
    return list(dict.fromkeys(backbone.network for backbone in parsed if backbone.needs_weights))
