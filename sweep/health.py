"""Which nodes keep failing where others do not."""

from __future__ import annotations

from sweep.backlog import NodeId
from sweep.plan import Trial

#: After this many trials in a row that failed, or are not valid, a node is not trusted any more.
STREAK = 3


class Health:
    """What became of the trials of each node, the latest ones in a row."""

    def __init__(self) -> None:
        """Nothing has ended yet."""
        self._streaks: dict[NodeId, list[Trial]] = {}
        self._sound: set[NodeId] = set()

    def ended(self, node: NodeId, trial: Trial, valid: bool) -> None:
        """Take note of how a trial ended on a node."""
        if valid:
            self._streaks.pop(node, None)
            self._sound.add(node)
        else:
            self._streaks.setdefault(node, []).append(trial)

    def failing(self, node: NodeId) -> list[Trial]:
        """Return the trials that failed in a row on a node that is not to be trusted any more; else nothing.

        It takes another node that had a valid trial: where all fail, the sweep is to blame.
        """
        streak = self._streaks.get(node, [])
        return streak if len(streak) >= STREAK and self._sound - {node} else []
