"""Whether a server can be reached, found out quickly."""

import socket
import threading
import urllib.request
from urllib.parse import urlsplit

CONNECT_SECONDS = 5


def first_hop(url: str) -> str:
    """Where a request to `url` goes first: a proxy, which may be the only way out, or `url`."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    return proxy if proxy and not urllib.request.proxy_bypass(parts.netloc) else url


def can_connect(url: str) -> bool:
    """Whether the server of `url` accepts a connection within `CONNECT_SECONDS`.

    In a thread, because looking up the name has no time limit of its own, and some networks
    drop packets silently.
    """
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    answers = []

    def connect() -> None:
        try:
            with socket.create_connection((parts.hostname, port), timeout=CONNECT_SECONDS):
                answers.append(True)
        except OSError:
            pass

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return bool(answers)
