"""`caat islands`: starts the lighthouse at which islands that come and go meet, and shows who is there."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from rich.live import Live
from rich.table import Table

from caat.parallel.lighthouse_page import Seen, read_page
from conf.checks import require
from conf.lighthouse import LighthouseConfig
from conf.reading.verb import load_verb
from launch.command.available import installed
from launch.command.console import console
from launch.command.errors import user_errors

NEEDS = "torchft: pip install 'torchft>=0.2'"
SHOW_SECONDS = 1.0


def main(argv: list[str]) -> int:
    """Serve until Ctrl-C or SIGTERM, and return 0.

    The first line printed is the setting with which a run joins. Raises ``ValueError`` if torchft is not
    installed or the port is in use.
    """
    config = load_verb(LighthouseConfig, argv)
    require(installed("torchft"), f"caat islands needs {NEEDS}")
    server = _start(config)
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        port = int(server.address().rpartition(":")[2])
        print(f"caat pretrain islands.join={config.host or socket.gethostname()}:{port} ...", flush=True)
        _show(f"127.0.0.1:{port}", config.silence)
    except KeyboardInterrupt:
        print("caat: the lighthouse is closed", file=sys.stderr)
    finally:
        server.shutdown()
    return 0


def _start(config: LighthouseConfig):
    # Its own log repeats every request.
    os.environ.setdefault("RUST_LOG", "warn")
    print("caat: loading torchft", file=sys.stderr, flush=True)
    from torchft.coordination import LighthouseServer

    try:
        return LighthouseServer(
            bind=f"0.0.0.0:{config.port}",
            min_replicas=1,
            join_timeout_ms=round(1e3 * config.wait),
            heartbeat_timeout_ms=round(1e3 * config.silence),
        )
    except RuntimeError as error:
        raise ValueError(
            f"port={config.port} cannot be used ({error}): end what uses it, or give another port=..."
        ) from error


def _show(address: str, silence: float) -> None:
    """Show the islands until interrupted: a table in a terminal, otherwise a line for every change."""
    screen, before = console(), dict[str, str]()
    if screen.is_terminal:
        with Live(table([], silence), console=screen, auto_refresh=False) as live:
            for found in _looks(address):
                live.update(table(found, silence), refresh=True)
    for found in _looks(address):
        now = {seen.name: status(seen, silence) for seen in latest(found)}
        for name, text in now.items():
            if before.get(name) != text:
                print(f"{time.strftime('%H:%M:%S')} {name}: {text}", flush=True)
        before = now


def _looks(address: str) -> Iterator[list[Seen]]:
    """Yield who is there, once a second, for ever."""
    while True:
        # On a busy machine, the page may be late.
        with suppress(OSError):
            yield read_page(address, 5 * SHOW_SECONDS)
        time.sleep(SHOW_SECONDS)


def latest(found: Sequence[Seen]) -> list[Seen]:
    """Return the last start of each island, by name."""
    starts: dict[str, Seen] = {}
    for seen in sorted(found, key=lambda seen: -seen.seconds):
        starts[seen.name] = seen
    return [starts[name] for name in sorted(starts)]


def status(seen: Seen, silence: float) -> str:
    """Describe an island: whether it is alive, and the last round that it took part in."""
    if seen.seconds > silence:
        return "gone"
    if seen.round is None:
        return "alive, not in the last round"
    return f"round {seen.round}, {seen.processes} process{'' if seen.processes == 1 else 'es'}"


def table(found: Sequence[Seen], silence: float) -> Table:
    """Return the table of the islands."""
    islands = Table("island", "status", "last seen", title="islands", title_justify="left")
    for seen in latest(found):
        islands.add_row(seen.name, status(seen, silence), f"{seen.seconds:.0f} s ago")
    return islands


if __name__ == "__main__":
    with user_errors():
        sys.exit(main(sys.argv[1:]))
