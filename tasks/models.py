"""Shapes of the models that offload jobs run, and the sizes that follow from them. No weights, no download.

The table holds the OPT family (Zhang et al., "OPT: Open Pre-trained Transformer Language Models", 2022, table 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from math import prod
from typing import Any

#: Bytes of one parameter or cache element in the 16-bit types that every engine here uses.
ELEMENT_BYTES = 2

#: The feed-forward layer of every OPT model is four times as wide as its hidden state.
FEED_FORWARD = 4

#: OPT's positions begin at 2, so its table of them has two rows more.
POSITION_OFFSET = 2


@dataclass(frozen=True)
class Shape:
    """The numbers that make an OPT model: everything else follows."""

    layers: int
    hidden: int
    heads: int
    vocabulary: int = 50272
    positions: int = 2048
    #: Width of the token embedding; 0: as wide as `hidden`. Only opt-350m differs, and normalises after its layers.
    embedding: int = 0

    @property
    def embedding_width(self) -> int:
        """Width of the token embedding."""
        return self.embedding or self.hidden

    @property
    def parameters(self) -> int:
        """Number of parameters, shared ones once."""
        return sum(prod(size) for _, size in self.tensors())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in 16 bits, shared ones once."""
        return self.parameters * ELEMENT_BYTES

    def cache_bytes(self, sequences: int, tokens: int) -> int:
        """Return the bytes of the keys and values of `tokens` positions of `sequences`, in 16 bits."""
        return 2 * self.layers * sequences * tokens * self.hidden * ELEMENT_BYTES

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield name and dimensions of every weight, as transformers names them; lm_head shares embed_tokens."""
        hidden, wide = self.hidden, self.hidden * FEED_FORWARD
        yield "model.decoder.embed_tokens.weight", (self.vocabulary, self.embedding_width)
        yield "model.decoder.embed_positions.weight", (self.positions + POSITION_OFFSET, hidden)
        if self.embedding_width != hidden:
            yield "model.decoder.project_out.weight", (self.embedding_width, hidden)
            yield "model.decoder.project_in.weight", (hidden, self.embedding_width)
        else:
            yield from _linear("model.decoder.final_layer_norm", (hidden,))
        for layer in range(self.layers):
            name = f"model.decoder.layers.{layer}"
            for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
                yield from _linear(f"{name}.self_attn.{part}", (hidden, hidden))
            yield from _linear(f"{name}.self_attn_layer_norm", (hidden,))
            yield from _linear(f"{name}.fc1", (wide, hidden))
            yield from _linear(f"{name}.fc2", (hidden, wide))
            yield from _linear(f"{name}.final_layer_norm", (hidden,))

    def to_json(self) -> dict[str, int]:
        """Return the JSON form."""
        return asdict(self)


def _linear(name: str, weight: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", weight
    yield f"{name}.bias", weight[:1]


OPT = {
    "opt-125m": Shape(12, 768, 12),
    "opt-350m": Shape(24, 1024, 16, embedding=512),
    "opt-1.3b": Shape(24, 2048, 32),
    "opt-2.7b": Shape(32, 2560, 32),
    "opt-6.7b": Shape(32, 4096, 32),
    "opt-13b": Shape(40, 5120, 40),
    "opt-30b": Shape(48, 7168, 56),
    "opt-66b": Shape(64, 9216, 72),
    "opt-175b": Shape(96, 12288, 96),
}

_NEEDED = ("layers", "hidden", "heads")


def problem(model: str | None, shape: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the key (`model` or `shape`) and what is wrong with them, or None where `of` will do."""
    if model is not None and shape:
        return "shape", f"model names {model} already: give one of the two (the other as null, or as {{}})"
    if model is not None:
        if model in OPT:
            return None
        near = difflib.get_close_matches(str(model), OPT, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        return "model", f"no model {model!r}; {hint}valid: {', '.join(OPT)}, or null with a shape"
    if not shape:
        return "model", f"is null, and there is no shape; name one of {', '.join(OPT)}, or give shape.layers and more"
    known = [f.name for f in fields(Shape)]
    for name, value in shape.items():
        if name not in known:
            return "shape", f"has no number {name!r}; valid: {', '.join(known)}"
        if not isinstance(value, int) or isinstance(value, bool) or value < (0 if name == "embedding" else 1):
            return "shape", f"{name} must be a whole number of 1 or more, not {value!r}"
    missing = [name for name in _NEEDED if name not in shape]
    if missing:
        return "shape", f"lacks {', '.join(missing)}"
    if shape["hidden"] % shape["heads"]:
        return "shape", f"{shape['heads']} heads cannot share a hidden width of {shape['hidden']}"
    return None


def of(model: str | None, shape: Mapping[str, Any]) -> Shape:
    """Return the shape that a configuration without a `problem` names."""
    return OPT[model] if model is not None else Shape(**shape)
