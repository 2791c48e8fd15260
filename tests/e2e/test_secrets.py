"""CHAP secrets appear in no log: not of a daemon that logs everything, not in errors, not in tracebacks."""

from __future__ import annotations

import base64
import logging
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from target.config import load_config
from target.errors import OperatorError, PeerError
from target.iscsi.chap import ChapCredentials
from target.iscsi.client import Client
from target.iscsi.url import parse_url
from tests.conformance.stranger import Stranger
from tests.unit.iscsi.server import TARGET, node, serving

SECRET = "Jabberwock-Secret-1"
MUTUAL = "Bandersnatch-Secret-2"
WRONG = "Mome-Raths-Secret-3"
USER = "alice"
SECONDS = 30.0


def shown(text: str) -> list[str]:
    """The secrets that a text shows, in any notation in which a log could hold them."""
    found = []
    for secret in (SECRET, MUTUAL, WRONG):
        raw = secret.encode()
        forms = (secret, raw.hex(), base64.b64encode(raw).decode().rstrip("="), repr(raw)[2:-1])
        found += [secret for form in forms if form.lower() in text.lower()]
    return found


def attempts(url: str) -> None:
    """Logins as they go well and wrong."""
    good = [ChapCredentials(USER, SECRET), ChapCredentials(USER, SECRET, "target", MUTUAL)]
    bad = [
        None,
        ChapCredentials(USER, WRONG),
        ChapCredentials(USER, MUTUAL),
        ChapCredentials(SECRET, WRONG),  # typed in the wrong place
        ChapCredentials(USER, SECRET, "target", WRONG),
        ChapCredentials(USER, SECRET, WRONG, MUTUAL),
    ]
    for credentials in good:
        with Client.connect(url, chap=credentials, timeout_seconds=SECONDS) as client:
            client.read(0, 1)
    for stranger in bad:
        with pytest.raises(PeerError) as caught:
            Client.connect(url, chap=stranger, timeout_seconds=SECONDS)
        assert not shown("".join(traceback.format_exception(caught.value)))


SITE = """\
[site]
name = "a"
state_dir = "state"
[target]
control_socket = "target.sock"
[target.iscsi]
name = "{target}"
portals = ["127.0.0.1:{port}"]
[target.iscsi.chap]
user = "{user}"
secret_file = "secret"
mutual_user = "target"
mutual_secret_file = "mutual"
[target.san]
name = "iqn.2024-01.example:san"
portal = "127.0.0.2:{port}"
initiator_name = "iqn.2024-01.example:peer"
initiators = []
[[group]]
name = "group1"
journal = "journal"
journal_size = "48MiB"
san_lun = 0
[[group.volume]]
name = "data"
path = "data"
lun = 0
size = "8MiB"
"""


def write_site(directory: Path, port: int, secret: str = SECRET, mutual: str = MUTUAL) -> Path:
    for name, value in (("secret", secret), ("mutual", mutual)):
        (directory / name).write_text(value + "\n")
        (directory / name).chmod(0o600)
    path = directory / "site.toml"
    path.write_text(SITE.format(target=TARGET, port=port, user=USER))
    return path


def test_a_daemon_that_logs_everything_shows_no_secret(tmp_path: Path) -> None:
    with serving(node()) as placeholder:
        port = int(placeholder.address.rpartition(":")[2])
    site = write_site(tmp_path, port)
    log = tmp_path / "log"
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            [sys.executable, "-X", "dev", "-m", "target", "--verbose", "--config", str(site)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONFAULTHANDLER": "1"},
        )
        try:
            while "listens on 127.0.0.2" not in log.read_text():
                assert daemon.poll() is None, log.read_text()
            attempts(f"iscsi://127.0.0.1:{port}/{TARGET}/0")
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(SECONDS) == 0
        finally:
            daemon.kill()
            daemon.wait()
    text = log.read_text()
    assert text.count("login refused (0x0201)") == 4, text
    assert text.count("WARNING") == 6, "two initiators went away because the target had not proved itself"
    assert "for a user who is not known here" in text
    assert not shown(text), text


MISTAKES = {
    "too short": ({"secret": "Mome-Raths"}, "shorter than 12"),
    "twice the same": ({"mutual": SECRET}, "must differ"),
    "no text": ({"secret": "\udcff" + SECRET}, "does not hold text"),
    "empty": ({"secret": " "}, "is empty"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_is_wrong_with_a_secret_is_said_without_it(tmp_path: Path, name: str) -> None:
    changes, reason = MISTAKES[name]
    site = write_site(tmp_path, 3260)
    for file, value in changes.items():
        (tmp_path / file).write_bytes(value.encode("utf-8", "surrogateescape"))
    done = subprocess.run(
        [sys.executable, "-m", "target", "--verbose", "--config", str(site)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert reason in done.stderr
    assert not shown(done.stdout + done.stderr)
    assert "Mome-Raths" not in done.stderr
    with pytest.raises(OperatorError) as caught:
        load_config(site)
    assert not shown("".join(traceback.format_exception(caught.value)))


def test_values_that_hold_secrets_do_not_print_them(tmp_path: Path) -> None:
    config = load_config(write_site(tmp_path, 3260))
    credentials = ChapCredentials(USER, SECRET, "target", MUTUAL)
    url = parse_url(f"iscsi://{USER}%{SECRET}@127.0.0.1/{TARGET}/0")
    for value in (config, credentials, url, node(chap=credentials)):
        assert not shown(f"{value!r} {value!s}")


def test_a_failure_names_initiator_address_and_reason_and_many_do_not_flood_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    count = 200
    with serving(node(chap=ChapCredentials(USER, SECRET))) as server:
        for _ in range(count):
            with Stranger(server) as stranger:
                name = stranger.socket.getsockname()
                stranger.send(stranger.login_bytes({"AuthMethod": "None"}, flags=0x81))
                assert stranger.is_closed()
        server.wait_for(lambda: server.portal.connection_count == 0)
        attempts_line = [line for line in caplog.messages if "login refused" in line]
        assert attempts_line[0].startswith("iSCSI 127.0.0.1:")
        assert (
            "iqn.2024-01.example:stranger: login refused (0x0201): no authentication method"
            in attempts_line[0]
        )
        assert 1 <= len(attempts_line) < count / 2
        assert name[0] == "127.0.0.1"
    assert not shown(caplog.text)
