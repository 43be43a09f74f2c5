"""Fetching: whole files only, once, and the same ones ever after."""

import functools
import hashlib
import http.server
import json
import os
import threading

import pytest

from sedjax.core.errors import UserError
from sedjax.inference.fetch import ADDRESS_VARIABLE, CACHE_VARIABLE, fetch

CONTENT = bytes(range(256)) * 1000
ANY = repr  # a check that every file passes


class Server(http.server.BaseHTTPRequestHandler):
    """Serves the release: `content` for each file, of which it may break off a part."""

    content, cut, requests = CONTENT, 0, 0

    def do_GET(self):
        Server.requests += 1
        if not self.path.startswith("/release/"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(Server.content)))
        self.end_headers()
        self.wfile.write(Server.content[: len(Server.content) - Server.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a server of the release."""
    Server.content, Server.cut, Server.requests = CONTENT, 0, 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv(ADDRESS_VARIABLE, f"http://127.0.0.1:{server.server_port}/release/")
        monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
        yield tmp_path / "cache"
        server.shutdown()
        thread.join()


def test_a_file_is_fetched_once_and_recorded(cache, monkeypatch):
    path = fetch("a.pt", ANY)
    assert path == cache / "a.pt"
    assert path.read_bytes() == CONTENT
    assert json.loads((cache / "a.pt.json").read_text()) == {
        "address": f"{os.environ[ADDRESS_VARIABLE]}a.pt", "bytes": len(CONTENT),
        "sha256": hashlib.sha256(CONTENT).hexdigest()}
    monkeypatch.setenv(ADDRESS_VARIABLE, "http://127.0.0.1:1/")
    assert fetch("a.pt", ANY) == path
    assert Server.requests == 1


def test_a_broken_connection_leaves_nothing_and_the_next_try_starts_anew(cache):
    Server.cut = 1000
    with pytest.raises(UserError, match="Cannot fetch .*a.pt: the connection failed or broke.*--weights") as caught:
        fetch("a.pt", ANY)
    assert "\n" not in str(caught.value)
    assert os.listdir(cache) == []
    Server.cut = 0
    assert fetch("a.pt", ANY).read_bytes() == CONTENT


@pytest.mark.parametrize(("address", "words"), [
    ("http://127.0.0.1:1/", "the connection failed"), ("http://127.0.0.1:{port}/other", "answered 404"),
    ("nonsense", "the connection failed")])
def test_no_server_and_no_file(cache, monkeypatch, address, words):
    port = os.environ[ADDRESS_VARIABLE].split(":")[2].split("/")[0]
    monkeypatch.setenv(ADDRESS_VARIABLE, address.format(port=port))
    with pytest.raises(UserError, match=words):
        fetch("a.pt", ANY)
    assert os.listdir(cache) == []


def test_other_bytes_than_expected(cache):
    def refuse(path):
        raise UserError("It is a page.")

    with pytest.raises(UserError, match=r"a\.pt is not what it should be: It is a page"):
        fetch("a.pt", refuse)
    assert os.listdir(cache) == []
    path = fetch("a.pt", ANY)
    for damaged in (CONTENT[:-1], CONTENT[:-1] + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.pt is not as it was fetched"):
            fetch("a.pt", ANY)
    path.unlink()
    Server.content = CONTENT[:-1] + b"x"
    with pytest.raises(UserError, match=r"a\.pt has changed since"):
        fetch("a.pt", ANY)
    assert os.listdir(cache) == ["a.pt.json"]


def test_a_run_killed_before_its_record(cache):
    cache.mkdir()
    (cache / "a.pt").write_bytes(b"half")
    assert fetch("a.pt", ANY).read_bytes() == CONTENT


def test_a_folder_that_cannot_be_made(cache, monkeypatch):
    cache.write_text("a file")
    with pytest.raises(UserError, match="Cannot create the folder"):
        fetch("a.pt", functools.partial(pytest.fail, "not reached"))
