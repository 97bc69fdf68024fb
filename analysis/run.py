"""A run on disk, read-only: what was planned, which trials are there, and their tables."""

from __future__ import annotations

import difflib
import glob
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.errors import AnalysisError, nearest
from analysis.files import own_folder
from analysis.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd
    import polars as pl

#: The kinds of byte counts in `trial.json`, in the order tables list them.
TRIPLE = ("expected", "traced", "counted")
STATES = ("valid", "invalid", "failed")


@dataclass(frozen=True)
class Trial:
    """One published trial: its folder and its `trial.json`. Absent facts are None, never guessed."""

    path: Path
    record: dict[str, Any]

    @property
    def slug(self) -> str:
        return self.path.name

    @property
    def id(self) -> str:
        return str(self.record.get("id") or self.slug)

    @property
    def cell(self) -> dict[str, Any]:
        return dict(self.record.get("cell") or {})

    @property
    def repeat(self) -> int | None:
        return self.record.get("repeat")

    @property
    def warmup(self) -> bool:
        """Whether the trial was run first and is not counted."""
        return bool(self.record.get("warmup"))

    @property
    def attempt(self) -> int:
        return int(self.record.get("attempt") or 1)

    @property
    def state(self) -> str:
        """`valid`, `invalid` or `failed`; a trial without a readable verdict is `failed`."""
        state = self.section("verdict").get("state")
        return state if state in STATES else "failed"

    @property
    def reasons(self) -> tuple[str, ...]:
        reasons = self.section("verdict").get("reasons") or ()
        if not reasons and self.state != "valid":
            return ("no reason recorded",)
        return tuple(str(reason) for reason in ([reasons] if isinstance(reasons, str) else reasons))

    @property
    def tracer(self) -> str:
        return str(self.section("tracer").get("name") or "unknown")

    @property
    def window(self) -> tuple[int, int] | None:
        """Begin and end of the traced window, monotonic ns."""
        begin, end = self.section("tracer").get("begin_ns"), self.section("tracer").get("end_ns")
        return None if begin is None or end is None else (int(begin), int(end))

    def section(self, key: str) -> dict[str, Any]:
        """Return the mapping `trial.json` holds under `key`; an absent or null one is empty."""
        value = self.record.get(key)
        return dict(value) if isinstance(value, Mapping) else {}

    def byte_count(self, kind: str, operation: str) -> int | None:
        """Return the `expected`, `traced` or `counted` bytes of `read` or `write`."""
        counts = self.section("bytes").get(kind)
        return counts.get(operation) if isinstance(counts, Mapping) else None

    @property
    def measured(self) -> dict[str, tuple[float, str]]:
        """The numbers among the trial's metrics, each with its unit (empty where none is stated)."""
        found = {}
        for name, told in self.section("metrics").items():
            value, unit = (told.get("value"), told.get("unit")) if isinstance(told, Mapping) else (told, None)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                found[name] = (value, str(unit or ""))
        return found

    def table(self, name: str) -> Path | None:
        """Return the path of `<name>.parquet`, or None where the trial has none."""
        path = self.path / f"{name}.parquet"
        return path if path.is_file() else None


class Run:
    """A run folder. Trials that are not published (no `trial.json`) are not there, and warm-ups are kept apart."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = _read_record(path / "run.json")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def sweep(self) -> str:
        return str(self.record.get("sweep") or self.path.parent.name)

    @property
    def id(self) -> str:
        return str(self.record.get("run_id") or self.path.name)

    @property
    def name(self) -> str:
        """The name of its folder, also where a link such as `latest` leads to it."""
        return self.path.resolve().name

    @property
    def plan(self) -> list[dict[str, Any]]:
        """The entries of the plan that count: all but its warm-ups."""
        return [entry for entry in self._entries if not entry.get("warmup")]

    @property
    def _entries(self) -> list[dict[str, Any]]:
        return [entry for entry in self.record.get("plan") or [] if isinstance(entry, dict)]

    @property
    def published(self) -> list[Trial]:
        """The published trials that count in plan order, then any that the plan does not know."""
        return [trial for trial in self._found if not trial.warmup]

    @property
    def warmups(self) -> list[Trial]:
        """The published warm-ups, in plan order: trials that were run first, and that nothing else here counts."""
        return [trial for trial in self._found if trial.warmup]

    @cached_property
    def _found(self) -> list[Trial]:
        order = {entry.get("slug"): place for place, entry in enumerate(self._entries)}
        folder = self.path / "trials"
        slugs = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        slugs.sort(key=lambda slug: (order.get(slug, len(order)), slug))
        return [load_trial(folder / slug) for slug in slugs if (folder / slug / "trial.json").is_file()]

    @property
    def trial_records(self) -> list[dict[str, Any]]:
        """The `trial.json` of each published trial, in plan order."""
        return [trial.record for trial in self.published]

    @property
    def missing(self) -> list[dict[str, Any]]:
        """The plan's entries that have no published trial."""
        there = {trial.slug for trial in self.published}
        return [entry for entry in self.plan if entry.get("slug") not in there]

    def superseded(self, slug: str) -> list[Trial]:
        """Return the trials of this slug that were set aside when the run was gone on with, from the earliest."""
        folders = (self.path / "superseded").glob(f"{glob.escape(slug)}-*")
        found = [load_trial(folder) for folder in folders if (folder / "trial.json").is_file()]
        return sorted(found, key=lambda trial: str(trial.record.get("ended")))

    def trial(self, name: str | Trial) -> Trial:
        """Return the trial with this id or slug; a warm-up too."""
        if isinstance(name, Trial):
            return name
        for trial in self._found:
            if name in (trial.id, trial.slug):
                return trial
        hint = nearest(str(name), (trial.id for trial in self._found))
        raise AnalysisError(f"{self.path}: no trial {name!r}; {hint}")

    def trials(self) -> pd.DataFrame:
        """Return one row per trial: id, slug, the cell's axes, repeat, verdict, reasons and bytes."""
        import pandas as pd

        frame = pd.DataFrame([_row(trial) for trial in self.published])
        for name in frame.columns:
            if name.startswith(("read_", "write_")):
                frame[name] = frame[name].astype("Int64")
        return frame

    def metrics(self) -> pd.DataFrame:
        """Return one row per trial, span of time and operation with what was measured in it (`analysis.profile`)."""
        import pandas as pd
        import pyarrow as pa

        from analysis.profile import read_profile

        whole = {pa.int64(): pd.Int64Dtype()}  # as numbers with a point, counts of bytes would lose their last digits
        frame: pd.DataFrame = read_profile(self).to_arrow().to_pandas(types_mapper=whole.get)
        return frame

    def requests(
        self,
        trial: str | Trial | None = None,
        *,
        op: str | Sequence[str] | None = None,
        phase: str | None = None,
        verdict: str | None = "valid",
        **axes: Any,
    ) -> pl.LazyFrame:
        """Return block requests (`analysis.schema.REQUESTS`) of one trial or of many, unread until collected.

        On every row stand the trial's id, `trial`, and its cell's axes (`cell.<axis>` where that name is taken).
        `axes` choose trials by their cells, `fs="xfs"` or `fs=["xfs", "ext4"]`, of one verdict (None: any); a trial
        named outright is taken whatever its verdict. `op` keeps these operations, `phase` what was issued in these
        phases: `decode`, or with attributes, `load aio cpu 64 MiB`. Unknown names are an AnalysisError; trials
        without the table are left out with a warning, or are one where none has it.
        """
        from analysis import table

        return table.requests(self, trial, op, phase, verdict, axes)

    def phases(
        self, trial: str | Trial | None = None, *, phase: str | None = None, verdict: str | None = "valid", **axes: Any
    ) -> pl.LazyFrame:
        """Return phases (`analysis.schema.PHASES`) of one trial or of many; chosen as those of `requests` are."""
        from analysis import table

        return table.phase_rows(self, trial, phase, verdict, axes)

    def samples(
        self,
        trial: str | Trial | None = None,
        *,
        source: str | Sequence[str] | None = None,
        name: str | Sequence[str] | None = None,
        phase: str | None = None,
        verdict: str | None = "valid",
        **axes: Any,
    ) -> pl.LazyFrame:
        """Return counters and gauges over time (`analysis.schema.SAMPLES`) of one trial or of many.

        `source` and `name` keep these series (`gpu0`, `utilisation`), `phase` what was read in these phases; the rest
        is as in `requests`.
        """
        from analysis import table

        return table.samples(self, trial, source, name, phase, verdict, axes)

    def summary(self) -> pd.DataFrame:
        """Return the summary: one row per trial and measured phase (columns: `analysis.summary`)."""
        from analysis.summary import read_summary

        return read_summary(self).to_pandas()

    def figure(self, name: str, trial: str | Trial | None = None) -> alt.TopLevelMixin:
        """Return a figure as a chart that shows itself in a notebook: of the run, of one trial, or of all in a column.

        AnalysisError where no figure is called so (`analysis.figures.FIGURES`), or it has no chart of this trial.
        """
        from analysis.charts import chart

        return chart(self, name, trial)


def load_run(path: str | Path) -> Run:
    """Open a run folder, or the latest run of a sweep folder (`results/<sweep>`)."""
    folder = Path(path)
    if not folder.is_dir():
        raise AnalysisError(
            f"{folder}: not a folder" if folder.exists() else f"{folder}: no such folder{_near(folder)}"
        )
    if (folder / "run.json").is_file():
        return Run(folder)
    latest = folder / "latest"
    if (latest / "run.json").is_file():
        return Run(own_folder(latest))
    runs = list(_runs_in(folder))
    if not runs:
        raise AnalysisError(f"{folder}: neither a run (no run.json in it) nor a sweep folder with runs")
    return Run(max(runs, key=lambda run: (run.name, run.stat().st_mtime)))


def _near(folder: Path) -> str:
    """Return the hint that ends a message on a folder that is not there: one beside it whose name is alike."""
    try:
        beside = [entry.name for entry in folder.parent.iterdir() if entry.is_dir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(folder.name, beside, n=1)
    return f"; did you mean {folder.parent / near[0]}?" if near else ""


def load_trial(path: str | Path) -> Trial:
    """Open one published trial folder."""
    folder = Path(path)
    record = _read_record(folder / "trial.json")
    return Trial(folder, record)


def _runs_in(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if not entry.is_symlink() and (entry / "run.json").is_file():
            yield entry


def _read_record(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`; anything else is one clear error."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AnalysisError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise AnalysisError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(record, dict):
        raise AnalysisError(f"{path}: not a JSON object")
    version = record.get("schema_version")
    if not isinstance(version, int):
        raise AnalysisError(f"{path}: no schema_version in it; not written by this program")
    if version > SCHEMA_VERSION:
        raise AnalysisError(f"{path}: schema_version {version} is newer than {SCHEMA_VERSION}, update offload-sweep")
    return record


def _row(trial: Trial) -> dict[str, Any]:
    row: dict[str, Any] = {"id": trial.id, "slug": trial.slug}
    facts: dict[str, Any] = {
        "repeat": trial.repeat,
        "attempt": trial.attempt,
        "verdict": trial.state,
        "reasons": "; ".join(trial.reasons),
        "tracer": trial.tracer,
        "node": trial.section("node").get("hostname"),
        "device": trial.section("device").get("name"),
    }
    facts |= {
        f"{operation}_{kind}": trial.byte_count(kind, operation) for operation in ("read", "write") for kind in TRIPLE
    }
    for axis, value in trial.cell.items():
        row[f"cell.{axis}" if axis in facts or axis in row else axis] = value
    return row | facts
