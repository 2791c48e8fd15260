"""The target's side of the login: what gets in, what does not, and with which status."""

from __future__ import annotations

import pytest

from target.iscsi.chap import ChapCredentials, chap_response
from target.iscsi.login import LoginStatus
from target.iscsi.pdu import ProtocolError
from target.iscsi.requests import LoginRequest, NopOut
from target.iscsi.responses import LoginResponse
from target.iscsi.text import decode_binary, encode_binary, encode_text
from target.scsi import cdb as cdbs
from tests.unit.iscsi.wire import BLOCK, DISCOVERY, INITIATOR, ISID, NORMAL, TARGET, Feed, Wire, node
from tests.unit.scsi.memory_volume import MemoryVolume

CHAP = ChapCredentials("alice", "alice-secret-12", "target", "target-secret-12")


def refusal(wire: Wire, keys: dict[str, str], **options: object) -> LoginStatus:
    """The status of a login that must be refused, and end the connection."""
    response, _ = wire.login_request(keys, **options)  # type: ignore[arg-type]
    assert not response.transit
    assert response.tsih == 0
    assert wire.ended is not None
    assert wire.connection.session is None
    assert wire.logins == 0
    return LoginStatus(response.status)


@pytest.mark.parametrize("feed", Feed)
def test_a_login_without_security_stage_is_one_exchange(feed: Feed) -> None:
    wire = Wire([node()], feed=feed)
    response, keys = wire.login_request({**NORMAL, "InitialR2T": "No", "X-com.example": "1"})
    assert response.status == 0
    assert response.tsih != 0
    assert keys == {
        "TargetPortalGroupTag": "1",
        "InitialR2T": "No",
        "X-com.example": "NotUnderstood",
        "MaxRecvDataSegmentLength": "262144",
    }
    assert wire.logins == 1
    assert wire.ended is None
    assert len(wire.registry) == 1


def test_a_login_may_go_through_all_stages() -> None:
    wire = Wire([node()])
    response, keys = wire.login_request({**NORMAL, "AuthMethod": "CHAP,None"}, csg=0, nsg=1)
    assert keys["AuthMethod"] == "None"
    assert response.next_stage == 1
    response, keys = wire.login_request({"HeaderDigest": "CRC32C"}, transit=False)
    assert keys["HeaderDigest"] == "CRC32C"
    assert not response.transit
    response, keys = wire.login_request({})
    assert keys == {}
    assert response.transit
    assert response.stat_sn == 2
    assert wire.logins == 1


def test_a_login_may_skip_the_operational_stage() -> None:
    wire = Wire([node()])
    response, _ = wire.login_request({**NORMAL, "AuthMethod": "None"}, csg=0, nsg=3)
    assert response.transit
    assert wire.logins == 1


def test_text_may_be_split_over_requests() -> None:
    wire = Wire([node()])
    response, keys = wire.login_request(NORMAL, transit=False, continues=True, cut=30)
    assert not response.transit
    assert keys == {}
    whole = "".join(f"{key}={value}\0" for key, value in NORMAL.items())
    response, keys = wire.login_request([(whole[30:-1].partition("=")[0], whole[30:-1].partition("=")[2])])
    assert response.transit
    assert wire.logins == 1


@pytest.mark.parametrize(
    ("keys", "status"),
    [
        ({"TargetName": TARGET}, LoginStatus.MISSING_PARAMETER),
        ({"InitiatorName": INITIATOR}, LoginStatus.MISSING_PARAMETER),
        ({**NORMAL, "TargetName": "iqn.2024-01.example:other"}, LoginStatus.NOT_FOUND),
        ({**NORMAL, "SessionType": "Special"}, LoginStatus.SESSION_TYPE_NOT_SUPPORTED),
        ({**NORMAL, "AuthMethod": "None"}, LoginStatus.INVALID_DURING_LOGIN),
    ],
)
def test_refusals(keys: dict[str, str], status: LoginStatus) -> None:
    assert refusal(Wire([node()]), keys) == status


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"csg": 2}, LoginStatus.INVALID_DURING_LOGIN),
        ({"csg": 1, "nsg": 1}, LoginStatus.INVALID_DURING_LOGIN),
        ({"csg": 1, "nsg": 0}, LoginStatus.INVALID_DURING_LOGIN),
        ({"csg": 0, "nsg": 0}, LoginStatus.INVALID_DURING_LOGIN),
        ({"csg": 3}, LoginStatus.INVALID_DURING_LOGIN),
        ({"version_min": 1}, LoginStatus.UNSUPPORTED_VERSION),
        ({"tsih": 77}, LoginStatus.SESSION_DOES_NOT_EXIST),
        ({"continues": True}, LoginStatus.INITIATOR_ERROR),
    ],
)
def test_headers_that_are_refused(options: dict[str, object], status: LoginStatus) -> None:
    assert refusal(Wire([node()]), NORMAL, **options) == status


def test_an_initiator_that_is_not_listed_is_refused() -> None:
    listed = node(initiators=frozenset({"iqn.2024-01.example:friend"}))
    assert refusal(Wire([listed]), NORMAL) == LoginStatus.AUTHORIZATION_FAILURE


def test_a_listed_initiator_gets_in() -> None:
    assert Wire([node(initiators=frozenset({INITIATOR}))]).login()


def test_a_key_may_not_be_sent_twice() -> None:
    wire = Wire([node()])
    keys = [*NORMAL.items(), ("InitialR2T", "No"), ("InitialR2T", "No")]
    response, _ = wire.login_request(keys)
    assert response.status == LoginStatus.INITIATOR_ERROR


def test_a_key_may_not_be_negotiated_twice() -> None:
    wire = Wire([node()])
    wire.login_request({**NORMAL, "InitialR2T": "No"}, transit=False)
    assert refusal(wire, {"InitialR2T": "No"}) == LoginStatus.INITIATOR_ERROR


def test_authentication_may_not_be_negotiated_twice() -> None:
    wire = Wire([node()])
    wire.login_request({**NORMAL, "AuthMethod": "None"}, csg=0, transit=False)
    assert refusal(wire, {"AuthMethod": "None"}, csg=0) == LoginStatus.INITIATOR_ERROR
    wire = Wire([node(chap=CHAP)])
    wire.login_request({**NORMAL, "AuthMethod": "CHAP"}, csg=0, transit=False)
    assert refusal(wire, {"AuthMethod": "CHAP"}, csg=0) == LoginStatus.INITIATOR_ERROR


def test_an_inquiry_does_not_count_as_negotiation() -> None:
    wire = Wire([node()])
    _, keys = wire.login_request({**NORMAL, "MaxBurstLength": "?"}, transit=False)
    assert keys["MaxBurstLength"] == "262144"
    _, keys = wire.login_request({"MaxBurstLength": "4096"}, transit=False)
    assert keys["MaxBurstLength"] == "4096"
    _, keys = wire.login_request({"MaxBurstLength": "?"})
    assert keys["MaxBurstLength"] == "4096"


def test_a_rejected_offer_leaves_the_default_and_the_login_goes_on() -> None:
    wire = Wire([node()])
    response, keys = wire.login_request({**NORMAL, "MaxRecvDataSegmentLength": "100", "MaxBurstLength": "1"})
    assert response.transit
    assert keys["MaxBurstLength"] == "Reject"
    assert wire.connection.session is not None
    assert wire.connection.session.peer_segment == 8192


def test_what_is_not_understood_is_answered_in_the_security_stage_too() -> None:
    wire = Wire([node()])
    keys = {**NORMAL, "AuthMethod": "None", "X-com.example": "1", "InitiatorAlias": "a host"}
    _, answers = wire.login_request(keys, csg=0, nsg=1)
    assert answers == {"TargetPortalGroupTag": "1", "AuthMethod": "None", "X-com.example": "NotUnderstood"}


@pytest.mark.parametrize(
    "name", ["iqn.2024-01.example:a\nb", "iqn.2024-01.example:a b", "\x1b[31miqn", "i" * 224, "\u200e"]
)
def test_what_is_no_initiator_name_is_refused_and_never_shown(name: str) -> None:
    wire = Wire([node()])
    assert refusal(wire, {**NORMAL, "InitiatorName": name}) == LoginStatus.INITIATOR_ERROR
    assert wire.connection.initiator_name == "unknown initiator"
    assert wire.ended is not None
    assert wire.ended.isprintable()


def test_a_session_that_began_after_the_connection_was_made_is_found() -> None:
    nodes = [node()]
    first = Wire(nodes)
    early = Wire(nodes, registry=first.registry)
    response, _ = first.login_request(NORMAL)
    again, _ = early.login_request(NORMAL, tsih=response.tsih)
    assert again.status == 0
    assert first.ended is not None


def test_operational_keys_have_no_place_in_the_security_stage() -> None:
    keys = {**NORMAL, "InitialR2T": "No"}
    assert refusal(Wire([node()]), keys, csg=0, nsg=1) == LoginStatus.INVALID_DURING_LOGIN


def test_the_stage_must_be_the_one_that_was_agreed_on() -> None:
    wire = Wire([node()])
    wire.login_request(NORMAL, csg=0, nsg=1)
    assert refusal(wire, {}, csg=0, nsg=1) == LoginStatus.INVALID_DURING_LOGIN


def test_identity_may_not_change_during_the_login() -> None:
    wire = Wire([node()])
    wire.login_request(NORMAL, transit=False)
    assert refusal(wire, {}, isid=b"\x80\x09\x09\x09\x00\x00") == LoginStatus.INITIATOR_ERROR


def test_before_the_login_nothing_else_is_accepted() -> None:
    wire = Wire([node()])
    with pytest.raises(ProtocolError, match="before the login"):
        wire.send_pdu(NopOut(0x80, 0, 1, 0xFFFFFFFF, 1, 0), immediate=True)


def test_text_of_a_login_is_bounded() -> None:
    wire = Wire([node()])
    with pytest.raises(ProtocolError, match="bytes of text"):
        wire.send(b"\x43\x87\0\0\0\xff\xff\xff" + bytes(40))


# CHAP


def chap_login(wire: Wire, secret: str, keys: dict[str, str] | None = None) -> int:
    """Through the security stage; the status of the last response."""
    _, answers = wire.login_request({**(keys or NORMAL), "AuthMethod": "CHAP"}, csg=0, transit=False)
    assert answers["AuthMethod"] == "CHAP"
    _, answers = wire.login_request({"CHAP_A": "5"}, csg=0, transit=False)
    proof = chap_response(5, int(answers["CHAP_I"]), secret, decode_binary(answers["CHAP_C"]))
    response, answers = wire.login_request(
        {"CHAP_N": "alice", "CHAP_R": encode_binary(proof), "CHAP_I": "9", "CHAP_C": "0xaabb"}, csg=0, nsg=1
    )
    if response.status == 0:
        expected = chap_response(5, 9, "target-secret-12", b"\xaa\xbb")
        assert answers == {"CHAP_N": "target", "CHAP_R": encode_binary(expected)}
        assert response.transit
        response, _ = wire.login_request({})
    return response.status


def test_mutual_chap() -> None:
    wire = Wire([node(chap=CHAP)])
    assert chap_login(wire, "alice-secret-12") == 0
    assert wire.logins == 1


def test_a_wrong_secret_is_refused() -> None:
    wire = Wire([node(chap=CHAP)])
    assert chap_login(wire, "wrong-secret-12") == LoginStatus.AUTHENTICATION_FAILURE
    assert wire.logins == 0
    assert "secret" not in (wire.ended or "")


def test_chap_of_another_target_is_not_enough() -> None:
    """Credentials belong to a target: those of the neighbour at the same portal do not open this one."""
    other = node(chap=ChapCredentials("bob", "bobs-secret-123"))
    assert chap_login(Wire([other]), "alice-secret-12") == LoginStatus.AUTHENTICATION_FAILURE


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"csg": 1}, {}),
        ({"csg": 0, "nsg": 1}, {}),
        ({"csg": 0, "nsg": 3}, {"AuthMethod": "None"}),
        ({"csg": 0, "nsg": 1}, {"AuthMethod": "KRB5"}),
    ],
)
def test_authentication_cannot_be_evaded(options: dict[str, int], keys: dict[str, str]) -> None:
    wire = Wire([node(chap=CHAP)])
    assert refusal(wire, {**NORMAL, **keys}, **options) == LoginStatus.AUTHENTICATION_FAILURE


def test_the_wish_to_go_on_is_not_granted_before_the_proof() -> None:
    wire = Wire([node(chap=CHAP)])
    response, _ = wire.login_request({**NORMAL, "AuthMethod": "CHAP"}, csg=0, nsg=3)
    assert not response.transit
    response, _ = wire.login_request({"CHAP_A": "5"}, csg=0, nsg=3)
    assert not response.transit
    assert wire.logins == 0


def test_discovery_needs_no_authentication_but_can_have_it() -> None:
    assert chap_login(Wire([node(chap=CHAP)]), "alice-secret-12", DISCOVERY) == 0
    wire = Wire([node(chap=CHAP)])
    response, _ = wire.login_request(DISCOVERY)
    assert response.status == 0


# Sessions that exist already


def test_the_same_initiator_port_replaces_its_session() -> None:
    nodes = [node()]
    first = Wire(nodes)
    first.login()
    second = Wire(nodes, registry=first.registry)
    second.login()
    assert first.ended == "replaced: the initiator logged in again"
    assert len(first.registry) == 1


def test_another_isid_is_another_session() -> None:
    nodes = [node()]
    first = Wire(nodes)
    first.login()
    second = Wire(nodes, registry=first.registry)
    second.login_request(NORMAL, isid=b"\x80\x09\x09\x09\x00\x00")
    assert first.ended is None
    assert len(first.registry) == 2


def test_a_second_connection_of_a_session_is_refused() -> None:
    nodes = [node()]
    first = Wire(nodes)
    response, _ = first.login_request(NORMAL)
    second = Wire(nodes, registry=first.registry)
    assert refusal_status(second, response.tsih, cid=1) == LoginStatus.TOO_MANY_CONNECTIONS
    assert first.ended is None


def test_a_connection_may_be_reinstated() -> None:
    """RFC 7143 6.3.4: same ISID, TSIH and CID; the old connection ends."""
    nodes = [node()]
    first = Wire(nodes)
    response, _ = first.login_request(NORMAL)
    second = Wire(nodes, registry=first.registry)
    again, _ = second.login_request(NORMAL, tsih=response.tsih)
    assert again.tsih == response.tsih
    assert first.ended is not None
    assert len(first.registry) == 1
    first.connection.close()
    assert len(first.registry) == 1


def test_a_session_is_known_by_its_name_too() -> None:
    """Somebody else's TSIH is of no use."""
    nodes = [node()]
    first = Wire(nodes)
    response, _ = first.login_request(NORMAL)
    thief = Wire(nodes, registry=first.registry)
    keys = {**NORMAL, "InitiatorName": "iqn.2024-01.example:thief"}
    assert refusal(thief, keys, tsih=response.tsih) == LoginStatus.SESSION_DOES_NOT_EXIST
    assert first.ended is None


def test_a_new_session_begins_when_nothing_of_the_old_one_can_happen_any_more() -> None:
    """RFC 7143 6.3.5: otherwise an old write could land on what the new session has written."""
    volume = MemoryVolume()
    nodes = [node(volume)]
    first = Wire(nodes)
    first.login()
    volume.hold = True
    for lba in range(2):
        first.command(cdbs.write(lba, 1), write=BLOCK, data=bytes(BLOCK))
    others = [Wire(nodes, registry=first.registry) for _ in range(2)]
    request = encode_login()
    for one in others:
        one.send(request)
        assert one.take() == []
    assert first.ended == "replaced: the initiator logged in again"
    assert volume.release()
    assert [one.connection.session for one in others] == [None, None]
    assert volume.release()
    assert others[0].ended == "replaced: the initiator logged in again"
    response = others[1].take_one().pdu
    assert isinstance(response, LoginResponse)
    assert response.status == 0
    assert response.tsih
    assert others[1].logins == 1
    assert len(first.registry) == 1


def test_a_broken_connection_is_waited_for_too() -> None:
    volume = MemoryVolume()
    nodes = [node(volume)]
    first = Wire(nodes)
    first.login()
    volume.hold = True
    first.command(cdbs.write(0, 1), write=BLOCK, data=bytes(BLOCK))
    first.connection.close()
    second = Wire(nodes, registry=first.registry)
    second.send(encode_login() + encode_login())
    assert second.take() == []
    second.connection.close()
    assert volume.release()
    assert second.connection.session is None, "it went away meanwhile"
    assert len(first.registry) == 0


def test_another_initiator_waits_for_nobody() -> None:
    volume = MemoryVolume()
    nodes = [node(volume)]
    first = Wire(nodes)
    first.login()
    volume.hold = True
    first.command(cdbs.write(0, 1), write=BLOCK, data=bytes(BLOCK))
    first.connection.close()
    other = Wire(nodes, registry=first.registry)
    response, _ = other.login_request(NORMAL, isid=b"\x80\x09\x09\x09\x00\x00")
    assert response.status == 0


def test_there_may_be_so_many_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("target.iscsi.login.SESSIONS_MAX", 2)
    nodes = [node()]
    first = Wire(nodes)
    first.login()
    second = Wire(nodes, registry=first.registry)
    second.login_request(NORMAL, isid=b"\x80\x09\x09\x09\x00\x00")
    third = Wire(nodes, registry=first.registry)
    status = refusal(third, NORMAL, isid=b"\x80\x08\x08\x08\x00\x00")
    assert status == LoginStatus.OUT_OF_RESOURCES
    again = Wire(nodes, registry=first.registry)
    response, _ = again.login_request(NORMAL)
    assert response.status == 0, "who has a session may have it again"


def encode_login() -> bytes:
    text = encode_text(NORMAL.items())
    header = LoginRequest(0x87, 0, 0, ISID, 0, 7, 0, 1, 0).encode(data_length=len(text), immediate=True)
    return header + text + bytes(-len(text) % 4)


def refusal_status(wire: Wire, tsih: int, cid: int) -> int:
    response, _ = wire.login_request(NORMAL, tsih=tsih, cid=cid, isid=ISID)
    return response.status
