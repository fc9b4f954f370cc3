"""The lighthouse of islands that come and go, as the first rank of an island talks to it (torchft)."""

from __future__ import annotations

import atexit
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

from caat.parallel.lighthouse_page import ANSWER_SECONDS, MARK, read_page
from caat.parallel.membership import Asked, LostError, RefusedError, Round, Standing, choose, name_taken
from conf.lighthouse import split_address

BEAT_SECONDS = 1.0
# A restarted lighthouse has forgotten everyone: this long after it answers again, all have beaten.
SETTLED_SECONDS = 2.5


def seconds(value: float) -> timedelta:
    return timedelta(seconds=value)


class Lighthouse:
    """One island at the lighthouse ``address`` (HOST:PORT). The name of an island tells it from the others.

    A thread beats once a second, and stops if :attr:`moved` is not called for longer than ``timeout``
    allows: an island that hangs must count as gone. Nothing here blocks for longer than ``timeout`` plus
    ``ANSWER_SECONDS``.
    """

    def __init__(self, address: str, name: str, timeout: float, processes: int) -> None:
        # Its own log names every connection.
        os.environ.setdefault("RUST_LOG", "warn")
        from torchft.coordination import LighthouseClient

        self.address, self.name, self._timeout, self._processes = address, name, timeout, processes
        self.id = f"{name}{MARK}{secrets.token_hex(4)}"
        self._new_client = lambda: LighthouseClient(f"http://{address}", seconds(ANSWER_SECONDS))
        host = own_address(*split_address(address, "islands.join"))
        # The islands of a round meet at the store of one of them.
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=seconds(timeout))
        self._store, self._at = store, f"[{host}]:{store.port}" if ":" in host else f"{host}:{store.port}"
        self._client: LighthouseClient | None = None
        self._stopped, self._moved = threading.Event(), time.monotonic()
        # When the lighthouse began to answer; inf while it does not.
        self._answers_since = -float("inf")
        self._thread = threading.Thread(target=self._beat, name="island beat", daemon=True)

    def start(self, wait_for: int) -> None:
        """Begin to beat; return when ``wait_for`` islands are there, or after the timeout.

        Raises :class:`RefusedError` if another island has this name.
        """
        end, patience = time.monotonic() + self._timeout, time.monotonic() + 4 * ANSWER_SECONDS
        self.moved()
        self._thread.start()
        # A thread that is inside torchft when the interpreter ends would abort the process.
        atexit.register(self.close)
        while time.monotonic() < max(end, patience):
            self.moved()
            with suppress(OSError):
                page = read_page(self.address, ANSWER_SECONDS)
                here = [seen for seen in page if seen.seconds < ANSWER_SECONDS]
                # A run that was just killed is alive for its silence still.
                taken = any(seen.name == self.name and seen.id != self.id for seen in here)
                if taken and time.monotonic() > patience:
                    raise RefusedError(name_taken(self.name))
                enough = len({seen.name for seen in here}) >= wait_for or time.monotonic() > end
                if enough and not taken:
                    return
            time.sleep(BEAT_SECONDS / 4)

    def ask(self, standing: Standing) -> Round:
        """Wait until the lighthouse calls a round with this island.

        Raises :class:`LostError` if that takes longer than the timeout or the lighthouse does not answer, and
        :class:`RefusedError` if the others have other settings.
        """
        self.moved()
        try:
            self._client = self._client or self._new_client()
            # Fails early if the lighthouse is gone, and makes a restarted one know this island.
            self._client.heartbeat(self.id, seconds(ANSWER_SECONDS))
            settled = self._answers_since + SETTLED_SECONDS - time.monotonic()
            time.sleep(max(0.0, min(SETTLED_SECONDS, settled)))
        except (RuntimeError, TimeoutError) as error:
            self._client = None
            raise LostError(f"the lighthouse {self.address} does not answer") from error
        try:
            quorum = self._client.quorum(
                self.id,
                seconds(self._timeout),
                address=self.name,
                store_address=self._at,
                step=standing.rounds,
                world_size=self._processes,
                data=standing.to_data(),
            )
        except TimeoutError as error:
            raise LostError(f"the others did not come within islands.timeout={self._timeout:g} s") from error
        except RuntimeError as error:
            self._client = None
            raise LostError(f"the lighthouse {self.address} does not answer") from error
        self.moved()
        created = f"{quorum.created.seconds}.{quorum.created.nanos}"
        members = sorted(quorum.participants, key=lambda member: member.replica_id)
        found = [(member, Standing.from_data(member.data)) for member in members]
        asked = [
            Asked(member.replica_id, member.store_address, standing) for member, standing in found if standing
        ]
        return choose(asked, self.id, created)

    def moved(self) -> None:
        """Note that this island makes progress."""
        self._moved = time.monotonic()

    def close(self) -> None:
        """Stop beating: the others need not wait for this island any more."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _beat(self) -> None:
        client = None
        while True:
            try:
                if time.monotonic() - self._moved < self._timeout + ANSWER_SECONDS:
                    client = client or self._new_client()
                    client.heartbeat(self.id, seconds(ANSWER_SECONDS))
                    self._answers_since = min(self._answers_since, time.monotonic())
            except (RuntimeError, TimeoutError):
                client, self._answers_since = None, float("inf")
            if self._stopped.wait(BEAT_SECONDS):
                return


def own_address(host: str, port: int) -> str:
    """Return the address of this machine on the way to ``host``. Nothing is sent."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        return probe.getsockname()[0]
