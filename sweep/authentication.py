"""Ray's token authentication: where the token of a cluster lies, and whether the cluster takes it.

The token itself is only ever read by Ray, from a file that its environment names: it is in no command line and no log.
"""

from __future__ import annotations

import os
import secrets
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from sweep.errors import ClusterError
from sweep.settings import ENVIRONMENT
from tasks.state import state_dir

#: How long a cluster that listens may take to say whether it takes a token.
_ANSWER_LIMIT_S = 15.0

_OPEN = {"RAY_AUTH_MODE": "disabled"}

#: Asks a cluster, without a token and then with the one of the environment; prints one word. A process of its own, for
#: Ray's client prints to standard error, and waits for a dead cluster longer than anybody would.
_QUESTION = """
import os, sys
os.environ["RAY_AUTH_MODE"] = "disabled"
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient
from ray.exceptions import AuthenticationError

def taken():
    try:
        GcsClient(address=sys.argv[1]).internal_kv_keys(b"offload-sweep", None, timeout=10)
    except AuthenticationError:
        return False
    return True

if taken():
    print("open")
elif len(sys.argv) < 3:
    print("demanded")
else:
    os.environ["RAY_AUTH_MODE"] = "token"
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    print("taken" if taken() else "wrong")
"""


class NotAdmitted(ClusterError):
    """A cluster demands a token that is not the one at hand; asking again changes nothing."""


def token_file() -> Path:
    """Return where this machine keeps the token of the cluster that it heads or belongs to."""
    return state_dir() / "token"


def make_token(file: Path) -> Path:
    """Make a token in `file`, for its owner's eyes only, unless there is one; raise ClusterError where it is unsafe."""
    own = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        own.touch(0o600)
        own.write_text(secrets.token_hex(32))
        os.link(own, file)  # whole, or not there
    except FileExistsError:
        return checked(file)
    except OSError as e:
        raise ClusterError(f"cannot write the cluster's token to {file}: {e.strerror}") from None
    finally:
        own.unlink(missing_ok=True)
    return file


def checked(file: Path) -> Path:
    """Return the token's file; raise ClusterError where it is missing, empty, or others may read one of ours."""
    try:
        found = file.stat()
        text = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "is no text"
        where = "copy it from the head, which says where it lies, or name another with --token-file"
        raise ClusterError(f"no token of the cluster in {file}: {why}\n  {where}") from None
    # Ray makes its own file so that others may read it, and uses it like that: whoever started Ray by itself has it.
    if stat.S_IMODE(found.st_mode) & 0o077 and file != _rays_own():
        raise ClusterError(f"others than its owner may read the token {file}\n  chmod 600 {file}")
    if not text:
        raise ClusterError(f"the token {file} is empty: copy it again from the head")
    return file


def known_token() -> Path | None:
    """Return the token's file that a driver uses: the environment's, the cluster's here, or Ray's own; None: none."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    choices = [Path(named)] if named else [token_file(), _rays_own()]
    return next((file for file in choices if os.access(file, os.R_OK)), None)


def _rays_own() -> Path:
    return Path.home() / ".ray" / "auth_token"


def with_token(file: Path) -> dict[str, str]:
    """Return the environment in which Ray uses the token in `file`: the mode too, for a file alone is not enough.

    Raises ClusterError where the file is missing, empty, or others may read it.
    """
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(checked(file).absolute())}


def without_token() -> dict[str, str]:
    """Return the environment in which Ray asks nobody for a token."""
    return dict(_OPEN)


def agreed(address: str, file: Path | None) -> dict[str, str]:
    """Return the environment in which Ray can join the cluster at `address`, using the token in `file` if it must.

    Raises NotAdmitted, within seconds, where the cluster demands a token and this is not the one; ClusterError where it
    does not answer.
    """
    if os.environ.get("RAY_AUTH_TOKEN"):
        file = None  # Ray takes that one first
    answer = _asked(address, file)
    if answer == "open":
        return without_token()
    if answer == "taken":
        return with_token(file) if file else {"RAY_AUTH_MODE": "token"}
    if answer == "wrong":
        what = f"the token in {file} is not its own" if file else "the token in RAY_AUTH_TOKEN is not its own"
    else:
        what = f"it asks for a token, and there is none in {token_file()}"
    how = f"copy the head's file, which it names at its start, to {token_file()}, or name it in RAY_AUTH_TOKEN_PATH"
    raise NotAdmitted(f"the cluster at {address} refuses this machine: {what}\n  {how}")


def _asked(address: str, file: Path | None) -> str:
    environment: Mapping[str, str] = os.environ | ENVIRONMENT | ({"RAY_AUTH_TOKEN_PATH": str(file)} if file else {})
    some = ["token"] if file or os.environ.get("RAY_AUTH_TOKEN") else []
    argv = [sys.executable, "-c", _QUESTION, address, *some]
    try:
        done = subprocess.run(
            argv,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ANSWER_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{address} listens, but does not answer as a Ray cluster does") from None
    words = done.stdout.split()
    if done.returncode or not words:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ClusterError(f"{address} does not answer as a Ray cluster does: {said}")
    return words[-1]
