"""Opening runs: what is there, in which order, and what is refused in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from analysis import AnalysisError, load_run
from tests.analysis.made_run import MIB, make_run, write_record

SMALL = (MIB, 2 * MIB)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("results"), sizes=SMALL)


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "polars pandas altair ray vl_convert jinja2"
    code = f"import sys, analysis, analysis.schema; print([m for m in {heavy.split()!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_every_exported_name_resolves() -> None:
    import analysis

    assert all(getattr(analysis, name) for name in analysis.__all__)
    assert set(analysis.__all__) <= set(dir(analysis))
    with pytest.raises(AttributeError):
        _ = analysis.nothing  # type: ignore[attr-defined]


def test_a_run_lists_its_trials_in_plan_order(made: Path) -> None:
    run = load_run(made)
    planned = [entry["slug"] for entry in run.plan]
    assert [record["slug"] for record in run.trial_records] == planned[:-1]
    assert [entry["id"] for entry in run.missing] == ["fs=xfs,rep=9"]


def test_trials_frame_has_axes_verdicts_and_byte_triples(made: Path) -> None:
    frame = load_run(made).trials()
    assert list(frame["fs"]) == ["ext4", "ext4", "xfs", "xfs", "ext4", "xfs"]
    assert list(frame["verdict"]) == ["valid"] * 4 + ["invalid", "failed"]
    assert frame["reasons"][4] == "1742 events lost by the tracer"
    assert frame["read_traced"][0] == frame["read_counted"][0] == frame["read_expected"][0]
    assert frame["read_traced"].isna().tolist() == [False] * 5 + [True]


def test_tables_are_scanned_lazily_by_id_or_slug(made: Path) -> None:
    run = load_run(made)
    trial = run.published[0]
    requests = run.requests(trial.id)
    assert isinstance(requests, pl.LazyFrame)
    assert requests.select(pl.len()).collect().item() == run.requests(trial.slug).select(pl.len()).collect().item() > 0
    assert "bytes" in run.phases(trial).collect_schema()
    with pytest.raises(AnalysisError, match="no trial 'nope'"):
        run.requests("nope")
    with pytest.raises(AnalysisError, match=r"no requests\.parquet \(tracer: bpftrace\)"):
        run.requests(run.published[-1])


def test_a_folder_without_trial_json_is_not_there(tmp_path: Path) -> None:
    path = make_run(tmp_path, sizes=SMALL, broken=False)
    before = len(load_run(path).published)
    (path / "trials" / load_run(path).published[0].slug / "trial.json").unlink()
    (path / "trials" / "stray.txt").write_text("x")
    assert len(load_run(path).published) == before - 1


def test_a_sweep_folder_opens_its_latest_run(tmp_path: Path) -> None:
    old = make_run(tmp_path, sizes=SMALL, broken=False, name="20261120-103348")
    new = make_run(tmp_path, sizes=SMALL, broken=False, name="20261121-090000")
    assert load_run(old.parent).path == new.resolve()
    (old.parent / "latest").unlink()
    assert load_run(old.parent).path == new
    (old.parent / "latest").symlink_to(old.name)
    assert load_run(old.parent).path == old.resolve()


def test_folders_that_are_no_run_get_one_line(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    near = f"smal: no such folder; did you mean {tmp_path}/small"
    cases = {tmp_path / "absent": "no such folder", tmp_path / "smal": near, tmp_path: "neither a run"}
    (tmp_path / "file").write_text("x")
    cases[tmp_path / "file"] = "not a folder"
    for content, message in {
        "{": "not valid JSON",
        "[]": "not a JSON object",
        "{}": "no schema_version",
        '{"schema_version": 99}': "newer than 1",
        "\udcff": "not valid JSON",
    }.items():
        folder = tmp_path / f"run{len(cases)}" / "x"
        folder.mkdir(parents=True)
        (folder / "run.json").write_bytes(content.encode(errors="surrogateescape"))
        cases[folder] = message
    for path, message in cases.items():
        with pytest.raises(AnalysisError, match=message) as caught:
            load_run(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


def test_a_trial_with_next_to_nothing_in_it_is_failed_not_valid(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema_version": 1}')
    for slug, verdict in {"a": None, "b": {"state": "splendid"}, "c": {"state": "invalid"}}.items():
        write_record(tmp_path / "trials" / slug, verdict=verdict, tracer=None, cell=None, bytes=None)
    run = load_run(tmp_path)
    assert [trial.state for trial in run.published] == ["failed", "failed", "invalid"]
    assert all(trial.reasons == ("no reason recorded",) for trial in run.published)
    assert len(run.trials()) == 3


def test_an_axis_named_like_a_column_does_not_hide_it(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema_version": 1}')
    write_record(tmp_path / "trials" / "a", cell={"tracer": "ftrace", "fs": "xfs"})
    frame = load_run(tmp_path).trials()
    assert frame["cell.tracer"][0] == "ftrace"
    assert frame["tracer"][0] == "made"
    assert json.loads((tmp_path / "run.json").read_text()) == {"schema_version": 1}
