"""What a trial's engine was told to do, from the `workload` section of its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.run import Trial
from analysis.units import count_text

#: Where in FlexGen's `percent` the shares on GPU and CPU begin; what is missing to 100 is on disk.
_PLACES = {"weights": 0, "KV cache": 2, "activations": 4}


def is_deepspeed_model(trial: Trial) -> bool:
    """Say whether DeepSpeed generated text in the trial, which it does with the weights on the drive."""
    return settings(trial).get("kind") == "deepspeed_model"


def has_weights_on_disk(trial: Trial) -> bool:
    """Say whether FlexGen had a part of the weights on the drive."""
    return "weights" in on_disk(trial)


def has_cache_on_disk(trial: Trial) -> bool:
    """Say whether FlexGen had a part of the KV cache on the drive."""
    return "KV cache" in on_disk(trial)


def settings(trial: Trial) -> dict[str, Any]:
    """Return the `workload` section of the trial's configuration."""
    found = trial.section("config").get("workload")
    return dict(found) if isinstance(found, Mapping) else {}


def on_disk(trial: Trial) -> dict[str, float]:
    """Return what FlexGen was told to have on the drive, in percent of it; nothing for other engines."""
    told = settings(trial)
    percent = told.get("percent")
    if told.get("kind") != "flexgen" or not isinstance(percent, list) or len(percent) != 2 * len(_PLACES):
        return {}
    if not all(isinstance(share, (int, float)) for share in percent):
        return {}
    left = {what: 100 - percent[place] - percent[place + 1] for what, place in _PLACES.items()}
    return {what: share for what, share in left.items() if share > 0}


def described(trial: Trial) -> str:
    """Return model, batch, lengths and placement in a sentence."""
    told = settings(trial)
    shape = told.get("shape") if isinstance(told.get("shape"), Mapping) else {}
    custom = f"Model of {shape.get('layers')} layers × {shape.get('hidden')}" if shape else "Unknown model"
    parts = [str(told.get("model") or custom), f"batch {told.get('batch_size', 'unknown')}"]
    if isinstance(told.get("num_batches"), int) and told["num_batches"] > 1:
        parts[-1] += f" × {told['num_batches']}"
    parts.append(f"prompt {told.get('prompt_len', 'unknown')}")
    tokens = told.get("gen_len")
    parts.append(count_text(tokens, "generated token") if isinstance(tokens, int) else "generated tokens unknown")
    placed = [f"{share:g} % of the {what}" for what, share in on_disk(trial).items()]
    return ", ".join(parts) + (f"; on disk: {', '.join(placed)}" if placed else "") + "."
