"""The settings of `caat bench`, one class per benchmark. `caat bench NAME --help` prints them."""

from conf.bench.data import BenchDataConfig
from conf.bench.single import (
    BenchCheckpointConfig,
    BenchCodecsConfig,
    BenchMfuConfig,
    BenchShardsConfig,
    BenchTokenizeConfig,
)
from conf.bench.stack import (
    BenchGenerateConfig,
    BenchLinkConfig,
    BenchPeersConfig,
    BenchPredictConfig,
    BenchProfileConfig,
    BenchStackConfig,
    BenchStepConfig,
)

__all__ = [
    "BenchCheckpointConfig",
    "BenchCodecsConfig",
    "BenchDataConfig",
    "BenchGenerateConfig",
    "BenchLinkConfig",
    "BenchMfuConfig",
    "BenchPeersConfig",
    "BenchPredictConfig",
    "BenchProfileConfig",
    "BenchShardsConfig",
    "BenchStackConfig",
    "BenchStepConfig",
    "BenchTokenizeConfig",
]
