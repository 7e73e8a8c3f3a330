"""The page of `mmtune chat --web` among many visitors, some of whom mean harm."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest
from chat_client import FEW, Client, message, serving, waiting_until

from mmtune.apps.chat import connections as chat_connections
from mmtune.apps.chat.limits import Limits, RateLimit
from mmtune.apps.chat.sessions import Sessions
from mmtune.generation.generator import VisionLanguageModel


def raw(client: Client, sent: bytes) -> socket.socket:
    """A connection over which this was sent."""
    connection = socket.create_connection(("127.0.0.1", client.port), timeout=20)
    connection.sendall(sent)
    return connection


def ended(connection: socket.socket) -> bool:
    """Whether the server closes it, soon."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


POST = (
    b"POST /conversations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n"
)
HALF_SENT = {
    "nothing": b"",
    "half a line": b"GET / HT",
    "no end of headers": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ",
    "half a body": POST + b"{",
    "nothing after an answer": b"GET /about HTTP/1.1\r\nHost: localhost\r\n\r\nGET",
}


@pytest.mark.parametrize("sent", HALF_SENT.values(), ids=HALF_SENT)
def test_half_sent_requests_keep_nobody_out(tiny: VisionLanguageModel, sent: bytes) -> None:
    with serving(tiny, limits=Limits(per_minute=10_000)) as client:
        held = [raw(client, sent) for _ in range(3 * chat_connections.ALL // 2)]
        if sent == HALF_SENT["nothing after an answer"]:
            time.sleep(1)  # until these are answered they are not closed, and the newest is
        assert client.status("/about")[0] == 200
        assert client.status("/conversations", {})[0] == 200
        # those that have waited longest are gone, and no more are kept than one address may have
        assert ended(held[0])
        for connection in held:
            connection.close()


@pytest.mark.parametrize("sent", HALF_SENT.values(), ids=HALF_SENT)
def test_a_request_has_to_arrive_in_time(
    tiny: VisionLanguageModel, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HEADERS_SECONDS", "BODY_SECONDS"):
        monkeypatch.setattr(chat_connections, name, 0.3)
    with serving(tiny) as client, raw(client, sent) as connection:
        assert ended(connection)


def test_a_request_has_to_arrive_in_time_however_it_drips(
    tiny: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_connections, "HEADERS_SECONDS", 0.5)
    with serving(tiny) as client, raw(client, b"GET / HTTP/1.1\r\nX: ") as connection:

        def drip() -> bool:
            try:
                connection.sendall(b"x")
            except OSError:
                return False
            time.sleep(0.05)
            return True

        waiting_until(lambda: not drip())


def test_who_does_not_read_holds_no_model(
    tiny: VisionLanguageModel, spoken: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_connections, "READING_SECONDS", 0.3)
    spoken["pieces"] = ["a" * 1_000_000] * 100_000
    with serving(tiny) as client:
        path, body = client.begin(), json.dumps(message("one")).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        with raw(client, f"{head}\r\n\r\n".encode() + body):
            waiting_until(lambda: spoken["closed"] == 1)
        assert spoken["said"] < 1000
        spoken["pieces"] = ["b"]
        assert client.say(client.begin(), "two")[0] == {"text": "b"}


def test_who_is_being_answered_stays(tiny: VisionLanguageModel, spoken: dict[str, Any]) -> None:
    spoken["pieces"] = ["a"] * 200
    with serving(tiny) as client:
        _, response = client.ask(client.begin(), message("one"))
        assert json.loads(response.readline()) == {"text": "a"}
        held = [raw(client, b"GET") for _ in range(2 * chat_connections.OF_ONE)]
        assert b"done" in response.read()
        for connection in held:
            connection.close()


class Held:
    """A connection, as far as room is made for others."""

    def __init__(self, address: str, since: float, answering: bool) -> None:
        self.address, self.since, self.answering, self.gone = address, since, answering, False

    def end(self) -> None:
        self.gone = True


@pytest.mark.parametrize(
    ("addresses", "busy", "gone"),
    [
        (["a"] * 32 + ["b"], [], None),
        (["a"] * 33, [], 0),  # the oldest of the one with too many
        (["b"] + ["a"] * 33, [1, 2], 3),  # not that of another, nor one that is being answered
        (["a"] * 33, list(range(32)), 32),  # the newest, where all others are answered
        ([*map(str, range(100)), *(["a"] * 28), "b"], [], 100),  # of the address with most, not of the newest
    ],
)
def test_room_is_made_by_those_who_hold_most(addresses: list[str], busy: list[int], gone: int | None) -> None:
    held = [Held(address, number, number in busy) for number, address in enumerate(addresses)]
    chat_connections.make_room(held)
    assert [number for number, one in enumerate(held) if one.gone] == ([] if gone is None else [gone])


def test_one_address_does_not_wait_for_all_answers_nor_take_all_conversations(
    tiny: VisionLanguageModel, spoken: dict[str, Any]
) -> None:
    spoken["pieces"] = ["a"] * 300
    with serving(tiny, limits=Limits(waiting_of_one=2)) as client:
        asked = [client.ask(client.begin(), message("one"))[1] for _ in range(2)]
        for response in asked:
            response.readline()
        status, why = client.status(client.begin(), message("three"))
        assert (status, "too many of your messages" in why) == (429, True)
        for response in asked:
            assert b"done" in response.read()
        assert client.ask(client.begin(), message("four"))[1].status == 200
    sessions = Sessions([tiny], None, 3)
    mine = sessions.begin("me")
    theirs = [sessions.begin("them") for _ in range(9)]
    assert sessions.find(mine)
    assert [sessions.find(one) is not None for one in theirs] == [False] * 7 + [True] * 2


def test_too_many_messages_wait(tiny: VisionLanguageModel) -> None:
    with serving(tiny, limits=Limits(per_minute=4)) as client:
        statuses = [client.status("/conversations", {})[0] for _ in range(6)]
        assert statuses == [200] * 4 + [429] * 2
        assert client.status("/about")[0] == 200


def test_a_minute_later_there_is_room_again() -> None:
    now = [0.0]
    rate = RateLimit(2, clock=lambda: now[0])
    assert [rate.admit("a"), rate.admit("a"), rate.admit("a"), rate.admit("b")] == [True, True, False, True]
    now[0] = 61
    assert rate.admit("a")
    for number in range(3000):
        rate.admit(str(number))
    assert len(rate._times) <= 1024


def test_one_answer_at_a_time_in_order(tiny: VisionLanguageModel, spoken: dict[str, Any]) -> None:
    spoken["pieces"] = ["a"] * 60
    with serving(tiny, limits=FEW) as client:
        paths = [client.begin() for _ in range(2)]
        first = client.ask(paths[0], message("one"))[1]
        assert json.loads(first.readline())["text"] == "a"
        assert client.status(paths[0], message("again"))[0] == 409
        second = client.ask(paths[1], message("two"))[1]
        assert json.loads(second.readline()) == {"waiting": 1}
        third = client.begin()  # the first conversation is forgotten by that, and its answer goes on
        assert client.status(third, message("three"))[0] == 503
        assert b"done" in first.read()
        assert b"done" in second.read()
    assert spoken["most"] == 1
    assert spoken["closed"] == 2


@pytest.mark.parametrize("waits", [False, True])
def test_who_leaves_ends_the_answer(tiny: VisionLanguageModel, spoken: dict[str, Any], waits: bool) -> None:
    spoken["pieces"] = ["a"] * 100_000
    with serving(tiny) as client:
        left, response = client.ask(client.begin(), message("one"))
        response.readline()
        if waits:
            other, waiting = client.ask(client.begin(), message("two"))
            assert json.loads(waiting.readline()) == {"waiting": 1}
            waiting.close()
            other.close()
            time.sleep(0.3)
        response.close()
        left.close()
        waiting_until(lambda: spoken["closed"] == 1)
        said = spoken["said"]
        assert said < 1000
        spoken["pieces"] = ["b"]
        assert client.say(client.begin(), "three")[0] == {"text": "b"}
        assert (spoken["closed"], spoken["said"]) == (2, said + 1)
