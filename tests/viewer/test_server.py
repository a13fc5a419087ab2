import http.client
import json
import re
import socket
import threading
import time

import pytest

from ppo.settings import Refusal
from ppo.viewer import server as server_module
from ppo.viewer.lookers import BEAT, Lookers
from ppo.viewer.server import Server, free_port, listen

PAGE = b"<!doctype html><title>the page</title>"


class Served:
    """A server, what it was told to do, and a client that has its token."""

    def __init__(self):
        self.commands, self.has_room = [], True
        self.lookers = Lookers(lambda: None)
        self.listening = listen(free_port())
        self.port = self.listening.getsockname()[1]
        self.server = Server(self.listening, PAGE, self.lookers, self._do)
        address, _, self.token = self.server.address.partition("?token=")
        self.place = address.partition(str(self.port))[2]
        self.cookie = f"ppo_watch={self.token}"

    def _do(self, command):
        self.commands.append(command)
        return self.has_room

    def ask(self, method, path, body=None, **headers):
        """Return status, headers and content of an answer at a path of our place; names of headers have _ for -."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.putrequest(method, self.place + path.removeprefix("/"), skip_host=True)
        for name, value in {"Host": f"127.0.0.1:{self.port}", **headers}.items():
            if value is not None:
                connection.putheader(name.replace("_", "-"), value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        is_stream = answer.headers.get_content_type() == "text/event-stream"  # which has no end
        content = b"" if is_stream else answer.read()
        connection.close()
        return answer.status, answer.headers, content

    def stream(self):
        """Return an open connection whose stream has begun."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        before = len(self.lookers)
        head = f"GET {self.place}stream HTTP/1.1\r\nHost: localhost\r\nCookie: {self.cookie}\r\n\r\n"
        connection.sendall(head.encode())
        wait_for(lambda: len(self.lookers) > before)
        return connection


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def served():
    made = Served()
    with made.listening, made.server:
        yield made


COMMAND = b'{"pause": true}'
JSON = {"Content_Type": "application/json"}


def test_the_token_opens_the_page_and_leaves_a_cookie_that_no_script_and_no_other_site_gets(served):
    status, headers, content = served.ask("GET", f"/?token={served.token}")
    assert (status, content) == (200, PAGE)
    cookie = headers["Set-Cookie"]
    assert cookie.startswith(served.cookie + ";") and "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert f"Path={served.place}" in cookie and len(served.place) > 16  # a path that no other server can guess
    assert served.ask("GET", "/", Cookie=served.cookie)[0] == 200
    assert len(served.token) >= 32 and served.token not in content.decode()


@pytest.mark.parametrize("path", ["/", "/stream", "/do", "/?token=", "/?token=wrong", "/?token=%C3%A9", "/x"])
@pytest.mark.parametrize("cookie", [None, "other=x", "ppo_watch=wrong", "ppo_watch="])
def test_without_the_token_there_is_nothing(served, path, cookie):
    before = len(served.lookers)
    method = "POST" if path == "/do" else "GET"
    status, headers, content = served.ask(method, path, COMMAND if path == "/do" else None, Cookie=cookie, **JSON)
    assert status == 403 and PAGE not in content and "Set-Cookie" not in headers
    assert len(served.lookers) == before and served.commands == []


def test_outside_the_place_there_is_nothing(served):
    for path in ("/", "/stream", "/do", f"/?token={served.token}", f"/other{served.place}", served.place[:-1]):
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
        connection.request("GET", path, headers={"Cookie": served.cookie})
        answer = connection.getresponse()
        assert answer.status in (403, 404) and PAGE not in answer.read()
        connection.close()


def test_the_token_in_an_address_opens_nothing_but_the_page(served):
    assert served.ask("GET", f"/stream?token={served.token}")[0] == 403
    assert served.ask("POST", f"/do?token={served.token}", COMMAND, **JSON)[0] == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "[::1]", "0.0.0.0", "", None]
)
def test_a_name_that_leads_here_is_no_host_of_ours(served, host):
    assert served.ask("GET", "/", Host=host, Cookie=served.cookie)[0] in (400, 403)


@pytest.mark.parametrize("host", ["localhost", "localhost:1234", "127.0.0.1:9"])
def test_the_other_end_of_a_tunnel_is_a_host_of_ours(served, host):
    assert served.ask("GET", "/", Host=host, Cookie=served.cookie)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_pages_of_other_origins_get_nothing_even_with_the_cookie(served, headers):
    before = len(served.lookers), len(served.commands)
    assert served.ask("GET", "/stream", Cookie=served.cookie, **headers)[0] == 403
    assert served.ask("POST", "/do", COMMAND, Cookie=served.cookie, **JSON, **headers)[0] == 403
    assert (len(served.lookers), len(served.commands)) == before


def test_a_link_from_another_site_may_lead_to_the_page(served):
    assert served.ask("GET", f"/?token={served.token}", Sec_Fetch_Site="cross-site")[0] == 200


def test_every_answer_forbids_frames_guesses_and_copies(served):
    for path in ("/", "/nothing"):
        _, headers, _ = served.ask("GET", path, Cookie=served.cookie)
        assert headers["Content-Security-Policy"] == "frame-ancestors 'none'"
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in headers


def test_a_command_is_passed_on(served):
    served.commands.clear()
    origin = f"http://127.0.0.1:{served.port}"
    assert served.ask("POST", "/do", COMMAND, Cookie=served.cookie, Origin=origin, **JSON)[0] == 204
    assert served.commands == [{"pause": True}]
    served.commands.clear()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (COMMAND, "text/plain"),
        (COMMAND, "application/x-www-form-urlencoded"),
        (b"[1]", "application/json"),
        (b"{", "application/json"),
        (b'{"speed": NaN}', "application/json"),
        (b"\xff", "application/json"),
        (b"", "application/json"),
        (b'{"a": "' + b"x" * 2000 + b'"}', "application/json"),
    ],
)
def test_what_is_no_command_is_refused(served, body, kind):
    assert served.ask("POST", "/do", body, Cookie=served.cookie, Content_Type=kind)[0] == 400
    assert served.commands == []


def test_a_command_for_which_there_is_no_room_is_not_lost_in_silence(served):
    served.has_room = False
    assert served.ask("POST", "/do", COMMAND, Cookie=served.cookie, **JSON)[0] == 503
    served.has_room = True
    served.commands.clear()


@pytest.mark.parametrize(("method", "path"), [("POST", "/"), ("POST", "/stream"), ("GET", "/do"), ("PUT", "/do")])
def test_other_methods_are_refused(served, method, path):
    assert served.ask(method, path, Cookie=served.cookie)[0] == 405
    assert len(served.lookers) == 0


def test_messages_arrive_as_events_of_their_kinds(served):
    with served.stream() as stream, stream.makefile("rb") as lines:
        served.lookers.send("state", "c3RhdGU=")
        served.lookers.send(BEAT, "YmVhdA==")
        text = b""
        while b"YmVhdA==" not in text:
            text += lines.readline()
    assert b"Content-Type: text/event-stream" in text and b"X-Accel-Buffering: no" in text
    assert re.search(rb"event: state\ndata: c3RhdGU=\n.*event: beat\ndata: YmVhdA==", text, re.DOTALL)


def test_a_page_that_has_gone_is_forgotten(served, monkeypatch):
    served.stream().close()

    def is_forgotten():
        served.lookers.send(BEAT, "x" * 1000)
        return len(served.lookers) == 0

    wait_for(is_forgotten)


def test_a_page_that_does_not_read_neither_stops_the_others_nor_the_game(served):
    with served.stream(), served.stream() as quick, quick.makefile("rb") as lines:
        message, sent = "x" * 100_000, 0
        received = threading.Thread(target=lambda: [lines.readline() for _ in range(600)])
        received.start()
        begun = time.monotonic()
        while received.is_alive() and time.monotonic() < begun + 20:
            before = time.monotonic()
            served.lookers.send(BEAT, message)
            assert time.monotonic() - before < 5.0
            sent += 1
            time.sleep(0.002)
        received.join(1.0)
        assert not received.is_alive()
    assert sent > 100
    wait_for(lambda: served.lookers.send(BEAT, "x") or len(served.lookers) == 0)


def test_requests_beyond_a_bound_are_not_taken_and_the_server_goes_on(served):
    silent = [socket.create_connection(("127.0.0.1", served.port), timeout=20) for _ in range(80)]
    time.sleep(0.2)
    assert threading.active_count() < 60
    for connection in silent:
        connection.close()

    def answers():
        try:
            return served.ask("GET", "/", Cookie=served.cookie)[0] == 200
        except OSError:
            return False

    wait_for(answers)


def test_what_is_no_request_is_neither_answered_with_the_page_nor_printed(served, capfd):
    for rubbish in (b"\x16\x03\x01\x02\x00\x01", b"GET \x1b[31m HTTP/9.9\r\n\r\n", b"\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
            connection.sendall(rubbish + b"\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            assert PAGE not in connection.makefile("rb").read()
    assert capfd.readouterr().err == ""


def test_a_port_that_is_taken_is_refused_with_one_that_is_free():
    with listen(free_port()) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Refusal, match=rf"free on 127\.0\.0\.1, got {port} .*in use") as error:
            listen(port)
        free = int(str(error.value).rpartition("--port=")[2])
        listen(free).close()


def test_it_listens_on_this_machine_alone(served):
    assert served.listening.getsockname()[0] == "127.0.0.1"
    assert json.dumps(served.server.address).startswith('"http://127.0.0.1:')
    assert server_module.HOST == "127.0.0.1"
