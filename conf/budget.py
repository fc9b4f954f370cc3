"""The settings of `caat plan budget=`: what a sum of money could build and train."""

from __future__ import annotations

from dataclasses import dataclass

from conf.checks import require, require_choice, require_positive
from conf.codec import parse_codec
from conf.field import setting
from conf.gpus import Gpu, gpu_named
from conf.units import delay_seconds, rate_bytes

LAWS = ("tokens-20", "hoffmann-1", "hoffmann-2", "hoffmann-3")


@dataclass
class BudgetConfig:
    """`caat plan budget=DOLLARS`: design a datacenter for a sum of money: racks, GPUs, power, sites, the
    model and tokens of a scaling law, and the link between sites that training needs. Every assumption is a
    setting, and is printed. Nothing is run."""

    budget: float = setting(100e9, "Dollars for the whole building, such as 100e9.")
    compute_share: float = setting(0.7, "Fraction of the budget that buys racks (arXiv 2407.12819: 70 %).")
    rack_cost: float = setting(3.0e6, "Dollars of a rack (arXiv 2407.12819).")
    rack_gpus: int = setting(72, "GPUs of a rack (GB200 NVL72).")
    rack_kilowatts: float = setting(154.5, "Kilowatts of IT power of a rack (arXiv 2407.12819).")
    pue: list[float] = setting(
        [1.156, 1.308],
        "Power usage effectiveness, lowest and highest: the building's power divided by that of its IT "
        "(arXiv 2407.12819).",
    )
    site_megawatts: float = setting(
        1000.0,
        "Megawatts that one site can be supplied with. An assumption: about one large power station.",
    )
    gpu: str = setting("gb200", "GPU, as in `caat plan`.")
    peak_tflops: float | None = setting(
        None, "Peak of a GPU in TFLOP/s. Default: the dense bf16 peak in caat's table."
    )
    utilisation: float = setting(
        0.4,
        "Fraction of the peak that training sustains inside a site. An assumption: 0.33 to 0.43 has been "
        "reported for Llama 3 on up to 16,384 GPUs (arXiv 2407.21783).",
    )
    days: float = setting(365.0, "Days of training that the model's FLOPs are chosen for. An assumption.")
    law: str = setting(
        "tokens-20",
        "Scaling law: tokens-20 (20 tokens a parameter), hoffmann-1, hoffmann-2 or hoffmann-3 (the three "
        "fits of arXiv 2203.15556).",
    )
    parameters: list[float] = setting(
        [50e12, 100e12], "Sizes of other models to report, with the days that follow from the utilisation."
    )
    batch_tokens: float = setting(
        64e6, "Tokens of a step. An assumption: four times Llama 3's largest (arXiv 2407.21783)."
    )
    site_link: str = setting("100tbit", "Rate of the link of a site to the others, per direction.")
    site_delay: str = setting("20ms", "One-way delay between sites.")
    every: int = setting(100, "Steps between exchanges if each site is an island (islands.every).")
    codec: str = setting("int8", "Codec of the compressed messages between sites (data_sync.codec).")
    waiting: float = setting(0.02, "Fraction of the time that may be spent waiting for other sites.")
    out: str | None = setting(
        None, "Path of the JSON; the pictures are written next to it. Default: outputs/budget-<time>.json."
    )

    def __post_init__(self) -> None:
        require_positive(
            budget=self.budget,
            rack_cost=self.rack_cost,
            rack_gpus=self.rack_gpus,
            rack_kilowatts=self.rack_kilowatts,
            site_megawatts=self.site_megawatts,
            days=self.days,
            batch_tokens=self.batch_tokens,
            every=self.every,
            peak_tflops=self.hardware.peak,
        )
        for name in ("compute_share", "utilisation", "waiting"):
            value = getattr(self, name)
            require(0 < value <= 1, f"{name}={value} is outside (0, 1]: it is a fraction")
        require(self.waiting < 1, f"waiting={self.waiting} leaves no time to train: give less than 1")
        require(
            len(self.pue) == 2 and 1 <= self.pue[0] <= self.pue[1],
            f"pue={self.pue} must be two numbers from 1 on, the lower one first, such as [1.156,1.308]",
        )
        for size in self.parameters:
            require(size > 0, f"parameters: {size} must be above 0")
        require_choice("law", self.law, LAWS)
        require(
            parse_codec(self.codec).kind != "powersgd",
            f"codec={self.codec} sends less for larger matrices, and the budget does not know their sizes: "
            "choose another codec",
        )
        require(
            parse_codec(self.codec).kind != "threshold",
            f"codec={self.codec} sends what the gradients have above it, which the budget does not know: "
            "choose another codec, such as topk:0.01",
        )
        rate_bytes(self.site_link, "site_link")
        delay_seconds(self.site_delay, "site_delay")
        least = self.rack_cost / self.compute_share
        require(
            self.budget >= least,
            f"budget={self.budget:g} buys no rack: {self.compute_share:g} of it goes to racks of "
            f"{self.rack_cost:g} dollars each: give at least {least:.4g}",
        )
        needed = self.rack_kilowatts * self.pue[1] / 1e3
        require(
            self.site_megawatts >= needed,
            f"site_megawatts={self.site_megawatts:g} does not supply one rack, which needs {needed:g} with "
            f"rack_kilowatts={self.rack_kilowatts:g} and pue={self.pue}: give at least that",
        )

    @property
    def hardware(self) -> Gpu:
        """Return the GPU named ``gpu``, with the peak that was given."""
        return gpu_named(self.gpu, peak_tflops=self.peak_tflops)
