"""A site.toml is either understood as a whole or refused with file, key and reason."""

from __future__ import annotations

from pathlib import Path

import pytest

import hostagent.config
import target.config
from target.errors import OperatorError

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHRlc3R0ZXN0dGVzdHRlc3R0ZXN0dGVzdHRlc3R0ZXN0dGVz"

SITE = f"""
[site]
name = "a"
state_dir = "a"

[target]
control_socket = "a/target.sock"

[target.iscsi]
name = "iqn.2026-01.org.replctl:a"
portals = ["127.0.0.1:3260"]

[target.iscsi.chap]
user = "host"
secret_file = "chap.secret"
mutual_user = "a"
mutual_secret_file = "mutual.secret"

[target.san]
name = "iqn.2026-01.org.replctl:a.san"
portal = "127.0.0.2:3260"
initiator_name = "iqn.2026-01.org.replctl:a"
initiators = ["iqn.2026-01.org.replctl:b"]

[[group]]
name = "group1"
journal = "a/group1.journal"
journal_size = "256MiB"
san_lun = 0

[[group.volume]]
name = "data"
path = "/srv/data.img"
size = "64MiB"
lun = 0

[[group.volume]]
name = "log"
path = "a/log.img"
size = 16777216
lun = 1
block_size = 4096

[hostagent]
socket = "a/hostagent.sock"
database = "a/hostagent.sqlite"
ssh_listen = "127.0.0.1:7022"
host_key_file = "host_key"
identity_file = "identity"
authorized_keys_file = "authorized_keys"
peer_wait_seconds = 2

[[peer]]
name = "b"
ssh = "127.0.0.1:7023"
host_key = "{HOST_KEY}"
san_portal = "[::1]:3260"
san_target = "iqn.2026-01.org.replctl:b.san"
"""


@pytest.fixture
def site_file(tmp_path: Path) -> Path:
    for name, text in {
        "chap.secret": "0123456789abcdef\n",
        "mutual.secret": "fedcba9876543210",
        "host_key": "x",
        "identity": "x",
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    path = tmp_path / "site.toml"
    path.write_text(SITE)
    return path


def test_the_subsystem_gets_its_tables(site_file: Path) -> None:
    config = target.config.load_config(site_file)
    base = site_file.parent
    assert config.site.name == "a"
    assert config.target.control_socket == base / "a/target.sock"
    chap = config.target.iscsi.chap
    assert chap is not None
    assert (chap.secret.value, chap.mutual_user) == ("0123456789abcdef", "a")
    (group,) = config.groups
    assert (group.journal_size, group.throttle, group.commit_interval_ms) == (256 << 20, False, 50)
    data, log = group.volumes
    assert (data.path, data.size, data.block_size) == (Path("/srv/data.img"), 64 << 20, 512)
    assert (log.path, log.size, log.block_size) == (base / "a/log.img", 16 << 20, 4096)


def test_the_host_agent_gets_its_tables(site_file: Path) -> None:
    config = hostagent.config.load_config(site_file)
    assert config.groups == ("group1",)
    assert config.control_socket == site_file.parent / "a/target.sock"
    assert config.hostagent.peer_wait_seconds == 2.0
    peer = config.peer("b")
    assert peer is not None
    assert peer.san_portal == "[::1]:3260"
    assert config.peer("c") is None


def test_a_relative_config_path_gives_absolute_paths(
    site_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(site_file.parent)
    config = hostagent.config.load_config(Path("site.toml"))
    assert config.hostagent.socket == site_file.parent / "a/hostagent.sock"


def test_a_secret_is_not_printed(site_file: Path) -> None:
    assert "0123456789abcdef" not in repr(target.config.load_config(site_file))


TARGET_ERRORS = [
    ('journal_size = "256MiB"', "", "group[0].journal_size: this key is required"),
    (
        'journal_size = "256MiB"',
        'jornal_size = "256MiB"',
        "group[0].jornal_size: unknown key; did you mean journal_size?",
    ),
    ('journal_size = "256MiB"', 'journal_size = "256MB"', "group[0].journal_size: '256MB' is not a size"),
    ('journal_size = "256MiB"', "journal_size = -5", "group[0].journal_size: -5 is not a size"),
    ('journal_size = "256MiB"', "journal_size = true", "group[0].journal_size: True is not a size"),
    ('journal_size = "256MiB"', 'journal_size = "1KiB"', "group[0].journal_size: '1KiB' is not a multiple"),
    ("lun = 1\n", "lun = 0\n", "lun 0 is given twice"),
    ('name = "log"', 'name = "data"', "volume name data is given twice"),
    ('name = "log"', 'name = "../log"', "group[0].volume[1].name: '../log' is not a name"),
    ('"a/log.img"', '"a/group1.journal"', "group1.journal is given twice"),
    ("size = 16777216\n", "", "group[0].volume[1]: size is required"),
    ("size = 16777216\n", "size = 16777217\n", "not a positive multiple of 4096"),
    ("block_size = 4096", "block_size = 1024", "group[0].volume[1].block_size"),
    ("lun = 1\n", "lun = 256\n", "lun 256 is not between 0 and 255"),
    ("lun = 1\n", 'lun = "1"\n', "group[0].volume[1].lun"),
    ("[hostagent]", "[hostagnt]", "hostagnt: unknown key; did you mean hostagent?"),
    (
        'portals = ["127.0.0.1:3260"]',
        'portals = ["127.0.0.1"]',
        "target.iscsi.portals[0]: '127.0.0.1' is not an address",
    ),
    ('portals = ["127.0.0.1:3260"]', "portals = []", "target.iscsi: portals is empty"),
    ('portal = "127.0.0.2:3260"', 'portal = "127.0.0.1:3260"', "target: san.portal 127.0.0.1:3260"),
    (
        '"iqn.2026-01.org.replctl:a"\nportals',
        '"disk one"\nportals',
        "target.iscsi.name: 'disk one' is not an iSCSI name",
    ),
    ('mutual_user = "a"\n', "", "target.iscsi.chap: mutual_user and mutual_secret_file"),
    ('"chap.secret"', '"none.secret"', "target.iscsi.chap.secret_file"),
    ('"mutual.secret"', '"chap.secret"', "target.iscsi.chap: the secrets of the two directions must differ"),
    ('control_socket = "a/target.sock"', 'control_socket = ""', "target.control_socket: '' is not a path"),
    ("[site]", "[site", "not valid TOML"),
]


@pytest.mark.parametrize(("old", "new", "reason"), TARGET_ERRORS)
def test_the_subsystem_refuses_with_file_key_and_reason(
    site_file: Path, old: str, new: str, reason: str
) -> None:
    assert SITE.count(old) == 1
    site_file.write_text(SITE.replace(old, new))
    with pytest.raises(OperatorError) as caught:
        target.config.load_config(site_file)
    assert str(caught.value).startswith(f"{site_file}: ")
    assert reason in str(caught.value)


HOSTAGENT_ERRORS = [
    ("peer_wait_seconds = 2", "peer_wait_seconds = -1", "hostagent: peer_wait_seconds -1"),
    ("peer_wait_seconds = 2", 'no_peer_policy = "hope"', "hostagent.no_peer_policy"),
    ("peer_wait_seconds = 2", "peer_wait_second = 2", "did you mean peer_wait_seconds?"),
    ('"host_key"', '"no_key"', "hostagent: host_key_file"),
    (HOST_KEY, "ssh-ed25519 AAAA", "peer[0]: host_key 'ssh-ed25519 AAAA' is not a public key"),
    (HOST_KEY, HOST_KEY.replace("ed25519", "rsa", 1), "is not a public key"),
    ('name = "b"', 'name = "a"', "peer a has the name of this site"),
    ('"127.0.0.1:7023"', '"127.0.0.1:70230"', "peer[0].ssh"),
    ("[hostagent]", "[agent]", "agent: unknown key"),
]


@pytest.mark.parametrize(("old", "new", "reason"), HOSTAGENT_ERRORS)
def test_the_host_agent_refuses_with_file_key_and_reason(
    site_file: Path, old: str, new: str, reason: str
) -> None:
    assert SITE.count(old) == 1
    site_file.write_text(SITE.replace(old, new))
    with pytest.raises(OperatorError) as caught:
        hostagent.config.load_config(site_file)
    assert str(caught.value).startswith(f"{site_file}: ")
    assert reason in str(caught.value)


def test_each_daemon_leaves_the_other_ones_tables_alone(site_file: Path) -> None:
    site_file.write_text(SITE.replace('name = "b"', 'name = "b"\nnonsense = 1'))
    target.config.load_config(site_file)
    site_file.write_text(SITE.replace("san_lun = 0", "san_lun = 0\nnonsense = 1"))
    hostagent.config.load_config(site_file)


def test_a_secret_or_key_that_all_may_read_is_refused(site_file: Path) -> None:
    (site_file.parent / "chap.secret").chmod(0o644)
    with pytest.raises(OperatorError, match=r"target\.iscsi\.chap\.secret_file: .*mode 0644.*chmod 600"):
        target.config.load_config(site_file)
    (site_file.parent / "identity").chmod(0o644)
    with pytest.raises(OperatorError, match=r"hostagent: .*identity has mode 0644"):
        hostagent.config.load_config(site_file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"none\.toml: cannot be read: No such file"):
        target.config.load_config(tmp_path / "none.toml")
