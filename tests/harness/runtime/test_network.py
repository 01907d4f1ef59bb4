import socket
import time

from experiments.runtime import network


def test_can_connect():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert network.can_connect(f"http://127.0.0.1:{port}/x")
    assert not network.can_connect(f"http://127.0.0.1:{port}/x")


def test_a_name_server_that_never_answers_does_not_hold_us(monkeypatch):
    def hang(*arguments, **options):
        time.sleep(3)
        raise OSError("no such name")

    monkeypatch.setattr(network, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(socket, "create_connection", hang)
    before = time.monotonic()
    assert not network.can_connect("https://example.org/x")
    assert time.monotonic() - before < 2


def test_the_first_hop_is_the_proxy_that_the_environment_names(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert network.first_hop("https://outside.example/x") == "http://proxy.example:3128"
    assert network.first_hop("https://inside.example:8080/x") == "https://inside.example:8080/x"
    assert network.first_hop("http://outside.example/x") == "http://outside.example/x"
