"""`python -m sweep.node`: the custom resources this machine really has, as JSON for `ray start --resources`."""

from __future__ import annotations

import json
import sys

from sweep.placement import resources_of
from tasks import machine


def main() -> int:
    """Print the resources; on standard error, what the machine lacks and why."""
    offer = machine.offer()
    for name, reason in offer.missing.items():
        print(f"{name}: {reason}", file=sys.stderr)
    print(json.dumps(resources_of(offer)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
