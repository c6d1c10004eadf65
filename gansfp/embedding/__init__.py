"""From slices to vectors: backbones, features without a network, lung masks by networks, shards on disk."""
