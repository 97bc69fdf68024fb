"""`results/ledger.parquet`: what was measured in every trial ever run; rows are added, never changed and never dropped.

`python -m analysis.ledger RESULTS` adds what is missing of the runs that are there, and prints what the ledger holds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

# Here and not where they are used: threads that import pandas at the same time find half of it.
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.errors import AnalysisError, reported
from analysis.files import DRIVER_LOCK, held, locked, own_folder, replacing
from analysis.run import Run, Trial, load_run, load_trial
from analysis.units import count_text

FILE, LOCK = "ledger.parquet", "ledger.lock"
#: What tells one attempt from another: an attempt of a run that was gone on with may carry an earlier one's number.
KEY = ("sweep", "run", "trial", "attempt", "started")

#: Texts of kilobytes, the same on many rows.
_LONG = ("environment", "configuration")

#: How long others may take to add to the ledger.
_WAIT_S = 120.0

#: Rows that are written together: a night adds few, and a file of thousands of small groups is slow to read.
_GROUP_ROWS = 65_536

Key = tuple[str, ...]


def of_results(results: Path) -> Path:
    """Return the ledger of a results folder."""
    return results / FILE


def of_run_folder(run: Path) -> Path:
    """Return the ledger that a run's trials belong in: that of the folder its sweep's folder is in."""
    return of_results(own_folder(run).parent.parent)


# --- reading ---------------------------------------------------------------------------------------------------------


def read(ledger: Path, sweep: str | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the ledger's rows (docs/nightly.md has the columns), of one sweep or all; none where there is none.

    `columns` are those that are wanted, beside what tells attempts apart; all are many, of years.
    Raises AnalysisError where there is one that cannot be read.
    """
    wanted = None if columns is None else list(dict.fromkeys([*KEY, *columns]))
    parts = [part if sweep is None else _of_sweep(part, sweep) for part in _groups(ledger, wanted, _LONG)]
    if not parts:
        return pd.DataFrame(columns=wanted or [*KEY])
    frame: pd.DataFrame = pa.concat_tables(parts).to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    return frame


def results(rows: pd.DataFrame) -> pd.DataFrame:
    """Return of the ledger's rows those of each trial's last attempt in its run: its result."""
    # in the order of entry, which is that of the attempts: one whose worker was lost may not know when it started
    last = rows.drop_duplicates([*KEY]).drop_duplicates(["sweep", "run", "trial"], keep="last")[[*KEY]]
    found: pd.DataFrame = rows.merge(last, on=[*KEY], how="inner")
    return found


def _of_sweep(part: pa.Table, sweep: str) -> pa.Table:

    return part.filter(pc.equal(part["sweep"], sweep))


def _groups(ledger: Path, columns: Sequence[str] | None = None, repeated: Sequence[str] = ()) -> Iterator[pa.Table]:
    """Yield the ledger in parts, checked against their checksums; nothing where there is no ledger.

    Of `repeated` columns each text is held once, and they are categories.
    """
    if not ledger.exists():
        return
    try:
        with pq.ParquetFile(ledger, page_checksum_verification=True, read_dictionary=[*repeated]) as file:
            if missing := [name for name in KEY if name not in file.schema_arrow.names]:
                raise AnalysisError(f"{ledger}: is no ledger: it has no column {missing[0]}; {_HINT}")
            for place in range(file.num_row_groups):
                yield file.read_row_group(place, columns=None if columns is None else [*columns])
    except (pa.ArrowException, OSError) as error:
        raise AnalysisError(f"{ledger}: the ledger cannot be read ({_brief(error)}); {_HINT}") from None


_HINT = (
    "it is left as it is: put a copy of yours in its place, or move it away; then python -m analysis.ledger RESULTS "
    "enters all runs that are there"
)


def _brief(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def keys(ledger: Path) -> set[Key]:
    """Return which attempts are in the ledger."""
    return {key for part in _groups(ledger, KEY) for key in _keys_of(part)}


def _keys_of(table: pa.Table) -> list[Key]:

    texts = [table[name].cast(pa.string()).to_pylist() for name in KEY]
    return [tuple("" if value is None else value for value in row) for row in zip(*texts, strict=True)]


# --- adding ----------------------------------------------------------------------------------------------------------


def add(run: Path) -> int:
    """Enter what the ledger lacks of a run's attempts, those too that were set aside; return how many it were.

    None of a run that was merged of others: its trials are theirs.
    Raises AnalysisError where the ledger is damaged, or others hold it, or `run` is no run.
    """

    from analysis.observations import of_run

    opened = load_run(run)
    ledger = of_run_folder(opened.path)
    lacking = _lacking(opened, keys(ledger))
    parts = [of_run(part) for part in lacking if part.published]
    for part in parts:
        part["run"] = opened.name
        part["run_state"] = str(opened.record.get("state") or "unknown")
        part["run_whole"] = not opened.record.get("selection")
    # one after the other: an axis may have numbers alone in one, and words too in the other
    return sum(append(ledger, part) for part in parts)


def complete(run: Path) -> bool:
    """Say whether the ledger has all published attempts of a run."""
    opened = load_run(run)
    known = keys(of_run_folder(opened.path))
    return not any(part.published for part in _lacking(opened, known))


def _lacking(run: Run, known: set[Key]) -> list[Run]:
    """Return a run's trials that were set aside, then its others, as two runs without the attempts that are known.

    A run of which one attempt is lacking is taken whole: its metrics are kept in one table, and what is known of it is
    not entered again.
    """
    parts = [] if run.record.get("merged") else [_Aside(run), run]
    return [part for part in parts if not {_key(run, trial) for trial in part.published} <= known]


def _key(run: Run, trial: Trial) -> Key:

    # as the table has it
    started = pd.to_datetime(pd.Series([trial.record.get("started")]), utc=True, format="ISO8601", errors="coerce")[0]
    text = "" if started is pd.NaT else started.strftime("%Y-%m-%d %H:%M:%S.%fZ")
    return (run.sweep, run.name, trial.id, str(trial.attempt), text)


class _Aside(Run):
    """The attempts of a run that are its results no more: superseded by a later one, or stale when it was resumed."""

    def __init__(self, run: Run) -> None:
        self.path, self.record = run.path / "superseded", run.record

    @cached_property
    def _found(self) -> list[Trial]:
        folders = sorted(self.path.iterdir()) if self.path.is_dir() else []
        found = [load_trial(folder) for folder in folders if (folder / "trial.json").is_file()]
        return sorted(found, key=lambda trial: str(trial.record.get("ended") or ""))


def append(ledger: Path, rows: pd.DataFrame) -> int:
    """Add the rows of `observations.of_run` whose attempts the ledger lacks; return how many attempts that are.

    After a crash or a power cut at any point there is the old ledger or the new one. Raises AnalysisError where the
    ledger is damaged, which is then left as it is, or where others hold it for two minutes.
    """
    try:
        lock = locked(ledger.with_name(LOCK), wait_s=_WAIT_S)
    except BlockingIOError:
        raise AnalysisError(f"{ledger}: another process has held the ledger for {_WAIT_S:.0f} s") from None
    except OSError as error:
        raise AnalysisError(f"{ledger}: cannot be written to ({error.strerror})") from None
    with lock:
        for left in ledger.parent.glob(f".{FILE}.*"):
            left.unlink(missing_ok=True)  # of a process that was killed
        known = keys(ledger)
        try:
            fresh, count = _new_only(_plain(rows), known)
            if count:
                _write(ledger, fresh)
        except pa.ArrowException as error:
            raise AnalysisError(
                f"{ledger}: cannot hold what is to be added ({_brief(error)}); it is as it was"
            ) from None
        except OSError as error:
            raise AnalysisError(f"{ledger}: cannot be written ({error.strerror or error}); it is as it was") from None
    return count


def _new_only(table: pa.Table, known: set[Key]) -> tuple[pa.Table, int]:

    own = _keys_of(table)
    return table.filter(pa.array([key not in known for key in own], pa.bool_())), len({*own} - known)


def _plain(rows: pd.DataFrame) -> pa.Table:
    """Return rows in the few types that a ledger has; axes are text, for those of another sweep may be of another
    type, and columns that are empty are left out."""

    table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)
    arrays = {}
    for field in table.schema:
        column = table[field.name]
        if field.name.startswith("cell."):
            column = pa.array([_text(value) for value in column.to_pylist()], pa.string())
        kind = _kind(column.type)
        if kind != pa.null():
            arrays[field.name] = column.cast(kind, safe=False)
    return pa.table(arrays)


def _kind(kind: pa.DataType) -> pa.DataType:

    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", "UTC")
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_floating(kind):
        return pa.float64()
    return kind if pa.types.is_boolean(kind) or pa.types.is_null(kind) else pa.string()


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _write(ledger: Path, fresh: pa.Table) -> None:
    """Write the ledger anew with `fresh` at its end, part by part."""

    schema = _joined([pq.read_schema(ledger), fresh.schema] if ledger.exists() else [fresh.schema])
    with (
        replacing(ledger, durably=True) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        waiting: list[pa.Table] = []
        for part in itertools.chain(_groups(ledger), [fresh]):
            waiting.append(_as(part, schema))
            if sum(one.num_rows for one in waiting) >= _GROUP_ROWS:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


def _joined(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Return the columns of all schemas; one that is text in one of them is text."""

    kinds: dict[str, pa.DataType] = {}
    for field in (field for schema in schemas for field in schema):
        known = kinds.setdefault(field.name, field.type)
        if known != field.type:
            numbers = all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in (known, field.type))
            kinds[field.name] = pa.float64() if numbers else pa.string()
    return pa.schema(list(kinds.items()))


def _as(part: pa.Table, schema: pa.Schema) -> pa.Table:

    arrays = [
        part[field.name].cast(field.type) if field.name in part.column_names else pa.nulls(part.num_rows, field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


# --- the command -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """What the ledger has of one sweep."""

    sweep: str
    runs: int
    trials: int
    valid: int
    first: str
    last: str


def lines(ledger: Path) -> list[Line]:
    """Return what the ledger has, sweep by sweep."""
    frame = read(ledger, columns=["verdict"])
    found = []
    for sweep, own in frame.drop_duplicates([*KEY]).groupby("sweep", sort=True):
        begun = own.started.dropna()
        first, last = (f"{at:%Y-%m-%d %H:%M}" if len(begun) else "unknown" for at in (begun.min(), begun.max()))
        valid = int((own.verdict == "valid").sum())
        found.append(Line(str(sweep), own.run.nunique(), len(own), valid, first, last))
    return found


def runs_in(results: Path) -> list[Path]:
    """Return the runs below a results folder that nobody drives now."""
    # no name that begins with a dot: .removed-RUN is a run that is being removed
    found = sorted(file.parent for file in results.glob("[!.]*/[!.]*/run.json") if not file.parent.is_symlink())
    return [run for run in found if not held(run / DRIVER_LOCK)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Add what is missing and print what the ledger has; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.ledger",
        description="Enter all runs of a results folder in its ledger, as far as they are not in it, and print what it "
        "holds. What it has is never changed, and stays when a run is removed.",
    )
    parser.add_argument("results", metavar="RESULTS", help="the results folder")
    results = Path(parser.parse_args(arguments).results)
    try:
        if not results.is_dir():
            raise AnalysisError(f"{results}: no such folder")
        trouble = _add_all(results)
        found = lines(of_results(results))
    except (AnalysisError, OSError) as error:
        return reported(error, results)
    _print(of_results(results), found)
    for text in trouble:
        print(f"not entered: {text}", file=sys.stderr)
    return 1 if trouble else 0


def _add_all(results: Path) -> list[str]:
    """Enter every run; return what was wrong with those that cannot be read."""
    keys(of_results(results))  # a damaged ledger ends it here
    trouble = []
    for run in runs_in(results):
        try:
            if added := add(run):
                print(f"entered: {count_text(added, 'trial')} of {run.parent.name}/{run.name}")
        except AnalysisError as error:
            trouble.append(str(error))
    return trouble


def _print(ledger: Path, found: Sequence[Line]) -> None:
    head = Line("SWEEP", "RUNS", "TRIALS", "VALID", "FIRST", "LAST")  # type: ignore[arg-type]
    cells = [[str(value) for value in vars(line).values()] for line in (head, *found)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip())
    print(f"ledger: {ledger}")


if __name__ == "__main__":
    sys.exit(main())
