"""Secrets are not stored: by their names, and wherever their values turn up."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep import config
from sweep.errors import ConfigError
from sweep.exposure import references, without_secret
from sweep.plan import Grid
from tasks import secrets
from tasks.secrets import Redactor, is_secret
from tests.conftest import trial_config


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY", "OPENAI_APIKEY"),
        *("PGPASSWORD", "DB_PASSWD", "GOOGLE_APPLICATION_CREDENTIALS", "MY_SECRET", "github_pat", "SSH_PRIVATE_KEY"),
        *("key", "TOKEN_FILE", "AZURE_STORAGE_ACCOUNT_KEY", "RAY_AUTH_TOKEN", "passphrase"),
    ],
)
def test_names_of_secrets(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "PATH", "max_tokens", "prompt_tokens", "TOKENIZERS_PARALLELISM", "KEYBOARD", "num_key_value_heads", "monkey",
        "OMP_NUM_THREADS", "keyfile_count", "author", "compat", "kv_cache", "LS_COLORS", "OFFLOAD_SWEEP_ATTEMPT",
    ],
)  # fmt: skip
def test_names_of_no_secrets(name):
    assert not is_secret(name)


def test_our_own_token_is_no_secret():
    assert not is_secret(secrets.TOKEN_VARIABLE)


CONFIG = {
    "workload": {"env": {"HF_TOKEN": "hf_abcdef", "PIN_KEY": "12", "MODE": "fast"}, "argv": ["a", "--t=hf_abcdef"]}
}


def test_values_are_hidden_wherever_they_stand():
    hides = Redactor(CONFIG, {"MY_PASSWORD": "hunter22", "HOME": "/root"})
    assert hides.value(CONFIG) == {
        "workload": {"env": {"HF_TOKEN": "***", "PIN_KEY": "***", "MODE": "fast"}, "argv": ["a", "--t=***"]}
    }
    assert hides.value({"reasons": ["exit: hunter22!"], "repeat": 12, "at": "/root"}) == {
        "reasons": ["exit: ***!"], "repeat": 12, "at": "/root",
    }  # fmt: skip
    assert hides.text("https://me:pw@host/x and s3://b/c@d:e") == "https://***@host/x and s3://b/c@d:e"


def test_lists_numbers_and_what_lies_within_are_hidden_too():
    config = {"api_keys": ["key-one-1", "key-two-2"], "PGPASSWORD": 123456, "credentials": {"user": "bob1234", "n": 7}}
    config |= {"argv": ["--pw=123456", "--key", "key-two-2"], "use_auth_token": True, "token": None}
    counts = {"seconds_per_token": 0.25, "bytes_per_token": 4096, "kv_cache_key": [1, 2]}
    assert Redactor(config).value(config | counts) == {
        "api_keys": ["***", "***"], "PGPASSWORD": "***", "credentials": {"user": "***", "n": "***"},
        "argv": ["--pw=***", "--key", "***"], "use_auth_token": True, "token": None, **counts,
    }  # fmt: skip


def test_a_secret_in_another_is_hidden_whole():
    assert Redactor({"A_TOKEN": "abcdef", "B_TOKEN": "abcdefghi"}).text("abcdefghi abcdef") == "*** ***"


@given(
    st.lists(st.one_of(st.just(b"hunter22"), st.just(b"\xff\n"), st.binary(max_size=20)), max_size=40),
    st.integers(1, 30),
)
def test_logs_of_any_size_are_cleaned_as_a_stream(tmp_path_factory, parts, chunk_bytes):
    path = tmp_path_factory.mktemp("log") / "job.log"
    path.write_bytes(b"".join(parts))
    before, secrets._CHUNK_BYTES, overlap = secrets._CHUNK_BYTES, chunk_bytes, secrets._OVERLAP_BYTES
    secrets._OVERLAP_BYTES = 1
    try:
        Redactor({"PASSWORD": "hunter22"}).file(path)
    finally:
        secrets._CHUNK_BYTES, secrets._OVERLAP_BYTES = before, overlap
    assert path.read_bytes() == b"".join(parts).replace(b"hunter22", b"***")
    assert [p.name for p in path.parent.iterdir()] == ["job.log"]


def test_a_log_without_secrets_is_left_alone(tmp_path):
    path = tmp_path / "job.log"
    path.write_bytes(b"nothing here\n" * 100)
    before = path.stat()
    Redactor({"PASSWORD": "hunter22"}).file(path)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_trial_stores_no_secret(state, monkeypatch, run_here):
    """By its own configuration, and of this node's environment: not in the record, not in any file it hands over."""
    monkeypatch.setenv("NODE_PASSWORD", "node-s3cret")
    script = 'import os; print("token", os.environ["HF_TOKEN"], os.environ["NODE_PASSWORD"]); raise SystemExit(3)'
    argv = ["python3", "-c", script, "--auth=hf_abcdef123"]
    env = {"HF_TOKEN": "hf_abcdef123", "MODE": "fast"}
    workload = {"kind": "command", "argv": argv, "values": {}, "env": env, "space": "1MiB"}
    workload |= {"expect_read": None, "expect_write": None}
    storage = {"kind": "directory", "fs": "auto", "path": str(state), "queue": {}}
    config = trial_config("none", workload=workload, storage=storage)
    record, spool = run_here(config)
    assert record["verdict"]["state"] == "failed"
    assert record["config"]["workload"]["env"] == {"HF_TOKEN": "***", "MODE": "fast"}
    assert record["command"][-1] == "--auth=***"
    assert (spool / "logs" / "command.log").read_text() == "token *** ***\n"
    stored = json.dumps(record).encode() + b"".join(p.read_bytes() for p in spool.rglob("*") if p.is_file())
    assert b"hf_abcdef123" not in stored
    assert b"node-s3cret" not in stored


SWEEP = "workload: {kind: command, argv: [prog, x], env: {HF_TOKEN: %s}}\nstorage: {kind: directory, fs: auto}\n"


def load(tmp_path, text, *overrides):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    return config.load(str(path), overrides)


def test_a_stored_sweep_takes_its_secret_from_the_environment(tmp_path, monkeypatch):
    stored = config.as_yaml(load(tmp_path, SWEEP % "hf_literal"))
    assert "hf_literal" not in stored
    with pytest.raises(ConfigError, match="HF_TOKEN"):
        load(tmp_path, stored)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    again = load(tmp_path, stored)
    trial = Grid(again).trials[0]
    assert trial.config["workload"]["env"]["HF_TOKEN"] == "hf_other"
    # another token is the same trial
    assert trial.fingerprint == Grid(load(tmp_path, SWEEP % "hf_literal")).trials[0].fingerprint
    assert "hf_other" not in config.as_yaml(again)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("workload.argv=[prog, '${oc.env:MY_TOKEN}']", "workload.argv: takes in the secret MY_TOKEN"),
        ("description=${oc.env:MY_TOKEN}", "description: takes in the secret MY_TOKEN"),
        ("grid.workload.argv=[[a], ['x ${oc.env: MY_TOKEN}']]", "takes in the secret MY_TOKEN"),
        ("grid.workload.env.HF_TOKEN=[a, b]", "a secret cannot be an axis"),
        ("zip.workload.env.HF_TOKEN=[a, b]", "zip.workload.env.HF_TOKEN: a secret cannot be an axis"),
        ("zip=[{workload.env.HF_TOKEN: [a, b], repeats: [1, 2]}]", "zip.workload.env.HF_TOKEN: a secret cannot be"),
        ("zip=[{workload: {env: {HF_TOKEN: [a, b]}}}]", "zip.workload.env.HF_TOKEN: a secret cannot be"),
        ("grid.workload.env=[{HF_TOKEN: a}, {HF_TOKEN: b}]", "grid.workload.env: a secret cannot be an axis"),
        ("zip=[{workload.argv: [[a], ['${oc.env:MY_TOKEN}']]}]", "takes in the secret MY_TOKEN"),
    ],
)
def test_a_secret_where_it_would_be_seen_is_refused(tmp_path, monkeypatch, override, words):
    monkeypatch.setenv("MY_TOKEN", "x")
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, SWEEP % "a", override)


def test_the_command_line_is_kept_without_its_secrets():
    given = ["conf.yaml", "workload.env.HF_TOKEN=hf_x", "workload.max_tokens=4", "--results", "x"]
    assert [without_secret(a) for a in given] == ["conf.yaml", "workload.env.HF_TOKEN=***", *given[2:]]


@pytest.mark.parametrize(
    ("argument", "kept"),
    [
        ("workload.env={HF_TOKEN: supersecret123, MODE: fast}", 'workload.env={"HF_TOKEN": "***", "MODE": "fast"}'),
        ("workload={env: {PGPASSWORD: 123456}}", 'workload={"env": {"PGPASSWORD": "***"}}'),
        ("workload.argv=[x, 'https://me:pw@host/']", 'workload.argv=["x", "https://***@host/"]'),
        ("workload.env={MODE: fast}", "workload.env={MODE: fast}"),
        ("workload.env={MODE: [", "workload.env={MODE: ["),
    ],
)
def test_the_command_line_is_kept_without_secrets_in_a_mapping(argument, kept):
    assert without_secret(argument) == kept


def test_numbers_and_lists_come_from_the_environment_again(tmp_path, monkeypatch):
    workload = "{kind: command, argv: [prog, '{api_key}'], env: {PGPASSWORD: 123456}, values: {api_key: 777777}}"
    stored = config.as_yaml(load(tmp_path, f"workload: {workload}\nstorage: {{kind: directory, fs: auto}}\n"))
    assert "123456" not in stored
    assert "777777" not in stored
    monkeypatch.setenv("PGPASSWORD", "654321")
    monkeypatch.setenv("api_key", "888888")
    again = Grid(load(tmp_path, stored)).trials[0].config["workload"]
    assert str(again["env"]["PGPASSWORD"]) == "654321"
    assert again["values"] == {"api_key": 888888}
    assert references({"api_keys": ["k-one", 2]}) == {"api_keys": "${oc.decode:${oc.env:api_keys}}"}
