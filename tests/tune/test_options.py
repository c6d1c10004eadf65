"""tune.options: which embeddings a search takes."""

import pytest

from gansfp.errors import UsageError
from tune.options import choose_pairs


@pytest.mark.parametrize("backbones", [("measures",), ("lbp", "measures")])
def test_what_every_search_compares_classes_by_is_not_searched(backbones):
    with pytest.raises(UsageError, match="--backbones: got 'measures', which a membership search embeds by itself"):
        choose_pairs("membership", backbones, ("outer", "full"), None)
    pairs, _ = choose_pairs("attribution", ("measures",), (), None)  # attribution has no such control
    assert pairs == [("measures", "full")]
