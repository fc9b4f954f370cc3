"""Mistakes in the settings of benchmarks: one line each, before anything is written."""

from __future__ import annotations

import os
import re
import shutil

import pytest

from launch.bench import main

MISTAKES = {
    "step": [
        (["processes=1"], "processes=1: this benchmark needs at least 2 processes"),
        (["processes=3"], "not divisible by"),
        (["ratios=[1.5]"], "ratios: 1.5 is outside"),
        (["backend=mpi"], "backend=mpi is not known: choose one of auto, nccl, gloo"),
    ],
    "link": [
        (["rate=fast"], "rate=fast is not a rate in tc's notation"),
        (["delay=2"], "delay=2 is not a time in tc's notation"),
        (["burst=lots"], "burst=lots is not a size in tc's notation"),
    ],
    "predict": [(["parallel.islands=2"], "parallel.islands=2 has no effect on a step of one replica")],
    "peers": [(["rate=1gb"], "rate=1gb is not a rate in tc's notation")],
    "generate": [
        (["new_tokens=0"], "new_tokens=0 must be above 0"),
        (["cache.keep=8"], "cache.keep=8 has no effect with cache.place=device"),
    ],
    "kernels": [
        (["shards=5"], "not divisible by"),
        (["ratio=2"], "ratio=2.0 is outside [0, 1]"),
        (["precision=fp8"], "precision=fp8 is not known"),
    ],
    "gpu": [
        (["parts=[]"], "parts=[] is empty: give one or more of doctor"),
        (["parts=[codec]"], "parts=codec is not known"),
        (["parts=[generate]"], "need others: give parts=[tokenize,train-half,generate]"),
        (["minutes=0"], "minutes=0.0 must be above 0"),
        (["device=auto"], "device=auto is not known: choose one of cpu, cuda"),
    ],
    "codecs": [
        (["codecs=[int8,int3]"], "codec int3 is not known: choose from none"),
        (["codecs=[topk:0.01,index=tree]"], "codec topk:0.01,index=tree: index=tree is not known"),
        (["codecs=[]"], "codecs=[] is empty: give one or more codecs"),
        (["numbers=0"], "numbers=0 must be above 0"),
        (["numbers=100000000000000", "codecs=[int8]"], "needs 3,352,761.3 GiB, and this machine has"),
        (["checkpoint=missing"], "checkpoint=missing"),
    ],
    "data": [
        (["codecs=[int8,int3]"], "codec int3 is not known: choose from none"),
        (["codecs=[int8,topk:0]"], "codec topk:0: topk:0 must be a share above 0"),
        (["codecs=[int8,int4,int8]"], "codecs: int8 is given twice"),
        (
            ["weights_codec=sign"],
            "weights_codec=sign is not known: choose one of auto, none, bfloat16, int8, int4",
        ),
        (["rate=100mbit,fast"], "rate=fast is not a rate in tc's notation"),
        (["replicas=1"], "replicas=1: this benchmark needs at least 2 replicas"),
        (["accumulation=0"], "accumulation=0 must be above 0"),
        (["model.heads=7"], "heads"),
        ([], "network namespaces need root"),
    ],
    "collectives": [
        (["topology=star:4"], "topology=star:4 is neither a name nor a JSON file"),
        (["topology=ring:0"], "topology=ring:0 has a size of 0"),
        (["topology=torus:8x8"], "topology=torus:8x8 has 64 nodes: at most 32 can be measured"),
        (["size=0mb"], "size=0mb must be above 0"),
        (["size=0"], "size=0 is not a size: write 40mb"),
        (["size=3b"], "size=3b is below 4 bytes"),
        (["size=9000gb"], "size=9000gb on 4 nodes needs 201,165.7 GiB, and this machine has"),
        (["method=star"], "method=star is unknown: write one of ring, two-way-ring"),
        (["topology=ring:4", "method=2d-ring"], "topology=ring:4 has no 2-D ring"),
        (["schedule=multitree"], "schedule=multitree is not a JSON file"),
        (["schedule=/proc/no/s.json"], "give another schedule="),
        (["rate=100mbit,1gbit"], "rate=100mbit,1gbit: this benchmark measures one rate at a time"),
        (["rounds=0"], "rounds=0 must be above 0"),
        (["pieces=0"], "pieces=0 must be above 0"),
        ([], "network namespaces need root: run this command with sudo, or give simulate=true"),
    ],
    "cache": [
        (["keeps=[]"], "keeps=[] is empty: give one or more numbers of rows"),
        (["keeps=[0]"], "keeps: 0 is not above 0"),
        (["keeps=[4,4]"], "keeps: 4 is given twice"),
        (["index=int2"], "index=int2 is not known: choose one of int4, int8"),
        (["sparq=65"], "sparq=65 is above the 64 components of a head"),
        (["rate=1gbit,2gbit"], "rate=1gbit,2gbit: this benchmark measures one rate at a time"),
        (["text=book.txt"], "a checkpoint needs a text, and a text a checkpoint"),
        (["checkpoint=missing", "text=book.txt"], "checkpoint=missing"),
        ([], "network namespaces need root"),
    ],
}


@pytest.mark.parametrize(
    ("benchmark", "settings", "says"), [(name, *each) for name, all_of in MISTAKES.items() for each in all_of]
)
def test_one_line_and_nothing_is_written(benchmark, settings, says, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lambda tool: f"/sbin/{tool}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        main([benchmark, *settings, "out=new/result.json"])
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_the_figures_do_not_go_where_the_plot_goes(tmp_path):
    with pytest.raises(
        ValueError, match=r"figures.png is the path of the JSON: give a name that ends in .json"
    ):
        main(["predict", f"out={tmp_path / 'figures.png'}"])
    assert not list(tmp_path.iterdir())
