"""The settings of `caat islands`, which starts a lighthouse, and the addresses of lighthouses."""

from __future__ import annotations

from dataclasses import dataclass

from conf.checks import require
from conf.field import setting

PORT = 29510


@dataclass
class LighthouseConfig:
    """`caat islands`: start the lighthouse at which islands that come and go meet, and show who is there.

    Ctrl-C ends it. The islands train on without rounds until it is there again."""

    port: int = setting(PORT, "Port to listen on. 0: any free one.")
    host: str | None = setting(
        None,
        "Name or address under which the islands reach this machine, for the printed command. "
        "Default: the name of this machine.",
    )
    wait: float = setting(
        30.0,
        "Seconds that a round waits for islands that are alive but late, once more than half have come. "
        "Shorter than islands.timeout.",
    )
    silence: float = setting(5.0, "Seconds without a sign of life after which an island counts as gone.")

    def __post_init__(self) -> None:
        require(
            0 <= self.port < 2**16, f"port={self.port} is not a port: give 1 to {2**16 - 1}, or 0 for any"
        )
        require(self.wait >= 0, f"wait={self.wait} must not be negative (0: do not wait)")
        require(self.silence >= 2, f"silence={self.silence} must be at least 2: islands beat once a second")


def split_address(text: str, name: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT, the value ``text`` of the setting ``name``; else ``ValueError``."""
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    good = port.isascii() and port.isdecimal() and 0 < int(port) < 2**16
    require(
        good and bool(bare) and not set(bare) & set("/@ ?#"),
        f"{name}={text} is not HOST:PORT: give the address that `caat islands` prints, such as "
        f"{name}=login1:{PORT}",
    )
    return bare, int(port)
