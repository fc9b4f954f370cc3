"""Settings of the KV cache of generation: `cache.*`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields

from conf.checks import require, require_choice, require_positive
from conf.field import default_of, setting


@dataclass
class CacheConfig:
    """Where keys and values of past tokens are, and how many of them each new token attends to."""

    place: str = setting(
        "device",
        "device: all keys and values are in the memory of the model's device. host: they are in host memory, "
        "the device holds a small index of the keys, and each token fetches only the rows that matter.",
    )
    keep: int = setting(
        1024,
        "host: rows that a token attends to in each KV head, in addition to the first and last few. As many "
        "as there are tokens: the same result as with device, bit for bit.",
    )
    index: str = setting("int8", "host: numeric format of the index: int8 or int4, which is half as large.")
    error: float | None = setting(
        None,
        "host: select more rows than `keep`, until at most this share of the attention's mass can be missing "
        "in any head. It is a proven bound, not an estimate.",
    )

    def __post_init__(self) -> None:
        require_choice("cache.place", self.place, ("device", "host"))
        require_choice("cache.index", self.index, ("int4", "int8"))
        require_positive(cache__keep=self.keep)
        require(
            self.error is None or 0.0 < self.error < 1.0,
            f"cache.error={self.error} is outside (0, 1): it is a share of the attention's mass",
        )
        if self.place == "device":
            for each in fields(self):
                value, default = getattr(self, each.name), default_of(each)
                require(
                    each.name == "place" or value == default,
                    f"cache.{each.name}={value} has no effect with cache.place=device: set cache.place=host",
                )
