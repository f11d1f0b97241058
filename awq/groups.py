"""The vocabulary of mappings: which Linears of a decoder block share an input, and what computes that input.

A Rule says it for every model of an architecture, a Group for one block of one model. Folding a scale t [K] into a
group multiplies the columns of its Linears by t and divides what computes the input by t. Knows no tensors, no model
classes and no search; the rules themselves are data in mappings.py.
"""

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

# How the rows of what computes the values of attention are arranged, for H query heads and G groups of them:
#   alone        the values only, [G, D]
#   stacked      queries, keys and values one after the other, [H + G + G, D]
#   interleaved  for each group its queries, its key and its value, [G, H/G + 2, D]
Values = Literal["alone", "stacked", "interleaved"]


@dataclass(frozen=True)
class Rule:
    """Linears that read the same input in every block of an architecture. Names are relative to a block; `*` is any
    part of a name.

    Attributes:
        prev: the norm or Linear that computes the input and takes the inverse scale. With a `*` there is one group
            for everything it can stand for, and a `*` in the other names stands for the same.
        layers: the Linears; those that a block does not have are passed over.
        inspect: the module whose output error the exact search minimises; "" is the block itself.
        followers: what else reads the input and stays in 16 bits, such as a router; it takes the scale too.
        offset: the norm multiplies by offset + weight.
        values: the input is the output of attention, and `prev` computes its values.
        when: fields of the model's configuration and the values with which the rule holds.
    """

    prev: str
    layers: tuple[str, ...]
    inspect: str
    followers: tuple[str, ...] = ()
    offset: float = 0.0
    values: Values | None = None
    when: tuple[tuple[str, tuple[object, ...]], ...] = ()


@dataclass(frozen=True)
class Architecture:
    """What all models of one text `model_type` have in common.

    A Linear that no rule names is a group of its own: nothing is folded into what comes before it.

    Attributes:
        unclipped: clipping the weights of queries and keys costs more than it gains (AWQ, section 3.2).
        kept: last parts of the names of Linears that stay in 16 bits: small, and deciding for what follows.
    """

    rules: tuple[Rule, ...] = ()
    unclipped: tuple[str, ...] = ()
    kept: tuple[str, ...] = ("gate", "router", "shared_expert_gate")


@dataclass(frozen=True)
class Fold:
    """How what computes an input takes the inverse of a scale.

    Attributes:
        rows: int64 [K], which output row computes each input channel; None: the last K rows, in order.
        offset: a norm multiplies by offset + weight.
    """

    rows: Tensor | None = None
    offset: float = 0.0


@dataclass(frozen=True, eq=False)  # compared and hashed as the object it is
class Group:
    """Linears of one block that read the same input.

    Attributes:
        prev: what computes the input; None: the group is not scaled.
        layers: the Linears.
        inspect: the module whose output error the exact search minimises.
        followers: what stays in 16 bits and takes the scale as well.
        fold: how `prev` takes the inverse scale.
        tied: int64 [K], equal where input channels are copies of one value channel and so must have the same scale
            (grouped-query attention), counting from 0; None: every channel has its own.
    """

    prev: str | None
    layers: tuple[str, ...]
    inspect: str
    followers: tuple[str, ...] = ()
    fold: Fold = field(default_factory=Fold)
    tied: Tensor | None = None

    @property
    def reader(self) -> str:
        """A module that reads the whole input: experts see some of the tokens only, their router all."""
        return (*self.followers, *self.layers)[0]

    def shared_mean(self, per_channel: Tensor) -> Tensor:
        """The mean over tied channels of values [K], one for each scale that can be chosen."""
        if self.tied is None:
            return per_channel
        tied = self.tied.to(per_channel.device)
        count = int(tied.max()) + 1
        total = torch.zeros(count, dtype=per_channel.dtype, device=per_channel.device).index_add_(0, tied, per_channel)
        return total / torch.bincount(tied, minlength=count)

    def spread(self, shared: Tensor) -> Tensor:
        """The scale of every input channel [K] from those that were chosen: the way back from shared_mean."""
        return shared if self.tied is None else shared[self.tied.to(shared.device)]


def groups_of(
    architecture: Architecture,
    linears: Mapping[str, tuple[int, int]],
    rows: Mapping[str, int],
    config: Any,
) -> tuple[Group, ...]:
    """The groups of one block, in the order of the rules.

    Args:
        linears: (N, K) of every Linear of the block, in order of use where it is known.
        rows: first dimension of every weight of the block, norms included.
        config: the configuration of the text model.
    """
    groups: list[Group] = []
    placed: set[str] = {name for name in linears if name.rpartition(".")[2] in architecture.kept}
    for rule in architecture.rules:
        if not all(_field(config, name) in allowed for name, allowed in rule.when):
            continue
        for prev in fnmatch.filter(rows, rule.prev):
            star = _star(rule.prev, prev)
            layers = tuple(name for name in _matching(rule.layers, linears, star) if name not in placed)
            if layers:
                placed.update(layers)
                followers = tuple(_matching(rule.followers, rows, star))
                k = linears[layers[0]][1]
                fold, tied = Fold(offset=rule.offset), None
                if rule.values is not None:
                    value_rows = _value_rows(rule.values, rows[prev], k, _head_dim(config))
                    fold = Fold(value_rows)
                    tied = value_rows.unique(return_inverse=True)[1] if _repeats(value_rows) else None
                groups.append(Group(prev, layers, rule.inspect.replace("*", star), followers, fold, tied))
    groups += [Group(None, (name,), name) for name in linears if name not in placed]
    return tuple(groups)


def _matching(patterns: Iterable[str], names: Iterable[str], star: str) -> list[str]:
    """The names that fit, pattern after pattern; `*` is what it stands for in `prev`, where that has one."""
    names = list(names)
    return [name for pattern in patterns for name in fnmatch.filter(names, pattern.replace("*", star))]


def _star(pattern: str, name: str) -> str:
    """What `*` stands for."""
    before, star, after = pattern.partition("*")
    return name[len(before) : len(name) - len(after)] if star else "*"


def _field(config: Any, path: str) -> Any:
    """A field of the configuration, `a.b` for one of a part of it; None where there is none."""
    for name in path.split("."):
        config = getattr(config, name, None)
    return config


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _value_rows(values: Values, rows: int, channels: int, head_dim: int) -> Tensor:
    """The row that computes each channel of the attention's output, int64 [channels]."""
    value_channels = rows if values == "alone" else (rows - channels) // 2
    heads_per_group = channels // value_channels
    channel = torch.arange(channels)
    group = channel // head_dim // heads_per_group
    within = channel % head_dim
    if values == "interleaved":
        return (group * (heads_per_group + 2) + heads_per_group + 1) * head_dim + within
    return rows - value_channels + group * head_dim + within


def _repeats(rows: Tensor) -> bool:
    return len(rows.unique()) < len(rows)
