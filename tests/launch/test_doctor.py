"""`caat doctor` always ends with a verdict, whatever the machine lacks."""

from __future__ import annotations

import json

import pytest

from launch import doctor
from launch.doctor import probes
from launch.doctor.link import fit


def test_it_says_what_is_there(tmp_path, capsys):
    doctor.main(["link=false", f"out={tmp_path / 'doctor.json'}"])
    printed = capsys.readouterr().out.strip().splitlines()
    assert printed[-1] == str(tmp_path / "doctor.json") and len(printed) < 40
    findings = {f["what"]: f for f in json.loads((tmp_path / "doctor.json").read_text())["findings"]}
    assert findings["Python"]["state"] == findings["gloo"]["state"] == "good"
    assert "torch" in findings["packages"]["found"] and "GiB free" in findings["outputs"]["found"]
    for what in ("CPU", "memory", "Slurm", "wandb login", "tensorboard", "lm-eval", "/dev/shm"):
        assert what in findings
    # Missing items come with a remedy.
    assert all(f["remedy"] for f in findings.values() if f["state"] != "good" and f["what"] != "GPU")


def test_what_is_old_or_missing_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(probes, "requires", lambda name: ["torch>=99.1", "numpy>=1.0", "no-such-package>=2"])
    old, missing, good = probes._packages()
    assert (old.state, old.remedy) == ("bad", "pip install 'torch>=99.1'") and "older than 99.1" in old.found
    assert (missing.state, missing.found) == ("bad", "missing")
    assert good.found.startswith("numpy ")
    monkeypatch.setattr(probes, "installed", lambda module: False)
    assert {finding.state for finding in probes._optional()} == {"note"}


def test_a_probe_that_fails_is_a_finding():
    def slurm_probe():
        raise OSError("no answer")
        yield

    (finding,) = probes.guarded(slurm_probe, "slurm probe")
    assert (finding.what, finding.state) == ("slurm probe", "bad") and "no answer" in finding.found


def test_a_link_that_cannot_be_measured_is_a_finding(tmp_path, capsys, monkeypatch):
    from launch.doctor import link

    def fails(sizes):
        raise ValueError("two processes could not communicate (refused)")

    monkeypatch.setattr(link, "measure_here", fails)
    doctor.main([f"out={tmp_path / 'doctor.json'}"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "could not communicate" in printed and "1 problem to fix" in printed
    assert json.loads((tmp_path / "doctor.json").read_text())["link"] is None


def test_rate_and_delay_by_hand():
    # Two processes: 2 delays of 1 ms, and the whole message once, at 100 MB/s.
    rows = [{"bytes": size, "seconds": 2e-3 + size / 1e8} for size in (4096, 1 << 20)]
    fitted = fit(rows, 2)
    assert fitted["bytes_per_second"] == pytest.approx(1e8)
    assert fitted["delay_seconds"] == pytest.approx(1e-3)


def test_a_larger_message_that_was_faster_is_no_infinite_rate():
    rows = [{"bytes": 4096, "seconds": 2e-3}, {"bytes": 65536, "seconds": 1e-3}]
    assert fit(rows, 2) == {
        "bytes_per_second": pytest.approx(65536 / 1e-3),
        "delay_seconds": pytest.approx(1e-3, rel=0.1),
    }


@pytest.mark.slow
def test_the_link_between_two_processes(tmp_path):
    doctor.main(["sizes=[4,1024]", f"out={tmp_path / 'doctor.json'}"])
    link = json.loads((tmp_path / "doctor.json").read_text())["link"]
    assert link["processes"] == 2 and link["bytes_per_second"] > 1e6
    assert [row["bytes"] for row in link["messages"]] == [4096, 1 << 20]


@pytest.mark.parametrize(
    ("setting", "says"),
    [("sizes=[]", "need two"), ("sizes=[64,64]", "need two"), ("sizes=[0,4]", "must be above 0")],
)
def test_mistakes(setting, says):
    with pytest.raises(ValueError, match=says):
        doctor.main([setting])
