"""The settings of `caat bench`, one class per benchmark. `caat bench NAME --help` prints them."""

from conf.bench.cache import BenchCacheConfig
from conf.bench.collectives import BenchCollectivesConfig
from conf.bench.data import BenchDataConfig, ReplicaStepsConfig
from conf.bench.gpu import BenchGpuConfig
from conf.bench.islands import BenchIslandsConfig
from conf.bench.single import (
    BenchCheckpointConfig,
    BenchCodecsConfig,
    BenchKernelsConfig,
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
    "BenchCacheConfig",
    "BenchCheckpointConfig",
    "BenchCodecsConfig",
    "BenchCollectivesConfig",
    "BenchDataConfig",
    "BenchGenerateConfig",
    "BenchGpuConfig",
    "BenchIslandsConfig",
    "BenchKernelsConfig",
    "BenchLinkConfig",
    "BenchMfuConfig",
    "BenchPeersConfig",
    "BenchPredictConfig",
    "BenchProfileConfig",
    "BenchShardsConfig",
    "BenchStackConfig",
    "BenchStepConfig",
    "BenchTokenizeConfig",
    "ReplicaStepsConfig",
]
