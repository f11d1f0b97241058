"""Rules resolved against a block, and the scales of tied channels."""

from types import SimpleNamespace

import pytest
import torch

from awq.groups import Architecture, Group, Rule, Values, groups_of

VALUE_ROWS: dict[str, tuple[Values, int, list[int]]] = {  # 4 query heads, 2 value heads, 2 channels each
    "alone": ("alone", 4, [0, 1, 0, 1, 2, 3, 2, 3]),
    "stacked": ("stacked", 16, [12, 13, 12, 13, 14, 15, 14, 15]),
    "interleaved": ("interleaved", 16, [6, 7, 6, 7, 14, 15, 14, 15]),  # q q k v, q q k v
}


@pytest.mark.parametrize("arrangement", VALUE_ROWS)
def test_value_channels_of_query_heads(arrangement: str) -> None:
    values, rows, expected = VALUE_ROWS[arrangement]
    config = SimpleNamespace(head_dim=2)
    rule = Rule("v", ("o",), "o", values=values)
    (group,) = groups_of(Architecture((rule,)), {"o": (8, 8)}, {"v": rows, "o": 8}, config)
    assert group.fold.rows is not None
    assert group.fold.rows.tolist() == expected
    assert group.tied is not None
    assert group.tied.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


def test_tied_channels_have_one_scale_and_its_mean() -> None:
    group = Group("v", ("o",), "o", tied=torch.tensor([0, 1, 0, 1]))
    shared = group.shared_mean(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert shared.tolist() == [2, 4]
    assert group.spread(shared).tolist() == [2, 4, 2, 4]
    alone = Group("v", ("o",), "o")
    assert alone.spread(alone.shared_mean(torch.ones(3))).tolist() == [1, 1, 1]


def test_rules_take_what_a_block_has_and_the_rest_is_on_its_own() -> None:
    rules = (
        Rule("norm", ("missing", "up"), "mlp", followers=("gate", "absent"), when=(("kind", ("a", "b")),)),
        Rule("experts.*.up", ("experts.*.down",), "experts.*.down"),
        Rule("norm", ("late",), "late", when=(("part.flag", (True,)),)),
    )
    linears = dict.fromkeys(("up", "late", "gate", "experts.0.down", "experts.1.down"), (32, 32))
    rows = {**dict.fromkeys(linears, 32), "norm": 32, "experts.0.up": 32, "experts.1.up": 32}
    config = SimpleNamespace(kind="b", part=SimpleNamespace(flag=False))
    groups = groups_of(Architecture(rules), linears, rows, config)
    assert [(group.prev, group.layers, group.followers, group.inspect) for group in groups] == [
        ("norm", ("up",), ("gate",), "mlp"),
        ("experts.0.up", ("experts.0.down",), (), "experts.0.down"),
        ("experts.1.up", ("experts.1.down",), (), "experts.1.down"),
        (None, ("late",), (), "late"),
    ]
    assert groups[0].reader == "gate"
