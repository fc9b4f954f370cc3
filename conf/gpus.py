"""A table of GPUs by name: the defaults of `caat plan gpu=` and the peaks for MFU."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from conf.checks import require

# Assumed fraction of the peak that a GPU sustains without communication, if it was not measured. (torchtitan
# reports 33 to 39 % with FSDP for Llama 3 8B on H100s, communication included.)
SUSTAINED = 0.4


@dataclass(frozen=True)
class Gpu:
    """One GPU of a server with eight, with the values of the manufacturer's data sheet.

    ``device`` is a part of the name that CUDA or ROCm reports, in whole words. ``peak`` is the dense bfloat16
    peak in TFLOP/s, and ``memory_rate`` the rate of the memory in GB/s. Rates of links are per direction, in
    tc's notation. ``node_link`` is the rate to the other GPUs of the node. ``link`` is the GPU's share of the
    node's network, which no data sheet states: the value of the manufacturer's own servers, or else an
    assumption.
    """

    device: str
    peak: float
    memory: str
    memory_rate: float
    node_link: str
    link: str
    # Sustained TFLOP/s without communication, if the user gave it.
    given: float | None = None

    @property
    def tflops(self) -> float:
        return self.given or SUSTAINED * self.peak


# Order matters: a device is the first entry whose ``device`` is in its name.
GPUS: Mapping[str, Gpu] = {
    "a100": Gpu("A100", 312.0, "80gb", 2039.0, "2400gbit", "200gbit"),
    "a800": Gpu("A800", 312.0, "80gb", 2039.0, "1600gbit", "200gbit"),
    "h100-pcie": Gpu("H100 PCIe", 756.0, "80gb", 2000.0, "512gbit", "200gbit"),
    "h100-nvl": Gpu("H100 NVL", 835.0, "94gb", 3900.0, "512gbit", "200gbit"),
    "h100": Gpu("H100", 989.0, "80gb", 3350.0, "3600gbit", "400gbit"),
    "h800": Gpu("H800", 989.0, "80gb", 3350.0, "1600gbit", "400gbit"),
    "h20": Gpu("H20", 148.0, "96gb", 4000.0, "3600gbit", "400gbit"),
    "h200-nvl": Gpu("H200 NVL", 835.0, "141gb", 4800.0, "512gbit", "200gbit"),
    "h200": Gpu("H200", 989.0, "141gb", 4800.0, "3600gbit", "400gbit"),
    "gh200": Gpu("GH200", 989.0, "96gb", 4000.0, "3600gbit", "400gbit"),
    "b200": Gpu("B200", 2250.0, "180gb", 8000.0, "7200gbit", "400gbit"),
    "gb200": Gpu("GB200", 2500.0, "186gb", 8000.0, "7200gbit", "400gbit"),
    "b300": Gpu("B300", 2250.0, "268gb", 8000.0, "7200gbit", "800gbit"),
    "gb300": Gpu("GB300", 2500.0, "278gb", 8000.0, "7200gbit", "800gbit"),
    "mi300x": Gpu("MI300X", 1307.0, "192gb", 5300.0, "3584gbit", "400gbit"),
    "mi325x": Gpu("MI325X", 1307.0, "256gb", 6000.0, "3584gbit", "400gbit"),
    "mi355x": Gpu("MI355X", 2517.0, "288gb", 8000.0, "4300gbit", "400gbit"),
    "l40s": Gpu("L40S", 362.0, "48gb", 864.0, "256gbit", "100gbit"),
    "l4": Gpu("L4", 121.0, "24gb", 300.0, "256gbit", "100gbit"),
    "a10g": Gpu("A10G", 70.0, "24gb", 600.0, "256gbit", "100gbit"),
    "5090": Gpu("RTX 5090", 209.0, "32gb", 1792.0, "512gbit", "10gbit"),
    "4090-d": Gpu("RTX 4090 D", 147.0, "24gb", 1008.0, "256gbit", "10gbit"),
    "4090": Gpu("RTX 4090", 165.0, "24gb", 1008.0, "256gbit", "10gbit"),
    "3090": Gpu("RTX 3090", 71.0, "24gb", 936.0, "256gbit", "10gbit"),
}


def gpu_named(
    name: str,
    *,
    memory: str | None = None,
    memory_rate: float | None = None,
    node_link: str | None = None,
    link: str | None = None,
    tflops: float | None = None,
    peak_tflops: float | None = None,
) -> Gpu:
    """Return the GPU ``name`` of the table, with the given values replaced.

    Raise ``ValueError`` if ``name`` is not in the table.
    """
    require(name in GPUS, f"gpu={name} is not known: choose from {', '.join(GPUS)}, and set what differs")
    gpu = GPUS[name]
    return replace(
        gpu,
        peak=peak_tflops or gpu.peak,
        memory=memory or gpu.memory,
        memory_rate=memory_rate or gpu.memory_rate,
        node_link=node_link or gpu.node_link,
        link=link or gpu.link,
        given=tflops,
    )


def peak_of(device: str) -> float | None:
    """Return the dense bfloat16 peak in TFLOP/s of the device with this reported name, or None if unknown."""
    # A laptop GPU has the name of the desktop card and half its speed.
    if "Laptop" in device:
        return None
    return next((gpu.peak for gpu in GPUS.values() if re.search(rf"\b{gpu.device}\b", device)), None)
