"""Who is at a lighthouse: its status page, read without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import unescape
from http.client import HTTPException
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

# A lighthouse answers a beat or a look at its page within this time, or counts as gone.
ANSWER_SECONDS = 5.0
# Between an island's name and the word that tells its starts apart, in its id at the lighthouse.
MARK = ":"
_HEARTBEAT = re.compile(r"(\S+): seen ([\d.eE+-]+)s ago")
_MEMBER = re.compile(r"<b>(.*?)</b>.*?Step: (\d+).*?World size: (\d+)", re.DOTALL)
# A proxy of the site does not lead to a lighthouse.
_DIRECTLY = build_opener(ProxyHandler({}))


@dataclass(frozen=True)
class Seen:
    """An island that the lighthouse knows.

    ``seconds`` since its last sign of life. ``round`` and ``processes``: as it said when it took part in the
    last round; None if it did not.
    """

    id: str
    seconds: float
    round: int | None = None
    processes: int | None = None

    @property
    def name(self) -> str:
        return self.id.rpartition(MARK)[0]


def read_page(address: str, timeout: float) -> list[Seen]:
    """Return the islands that the lighthouse at ``address`` (HOST:PORT) has seen, by id.

    Raises ``OSError`` if nothing answers within ``timeout`` seconds, or what answers is no lighthouse.
    """
    try:
        with _DIRECTLY.open(f"http://{address}/status", timeout=timeout) as answer:
            page = unescape(answer.read().decode(errors="replace"))
    except URLError as error:
        raise OSError(str(error.reason)) from error
    except (ValueError, HTTPException) as error:
        raise OSError(f"what answers is no lighthouse ({error!r})") from error
    if "Heartbeats" not in page:
        raise OSError("what answers is no lighthouse")
    members = {name: (int(step), int(size)) for name, step, size in _MEMBER.findall(page)}
    found = [
        Seen(id, float(seconds), *members.get(id, (None, None))) for id, seconds in _HEARTBEAT.findall(page)
    ]
    return sorted(found, key=lambda seen: seen.id)
