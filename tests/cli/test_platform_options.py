"""A platform that is named is taken or refused, in one line that says what to do."""

from __future__ import annotations

import pytest

from omm_mlff.cli.main import main
from omm_mlff.errors import MissingPackageError
from omm_mlff.forces.platforms import installed_platforms

SIMULATE = ["simulate", "--model", "tiny", "--system", "water", "--length-ps", "0.01"]
VALIDATE = ["validate", "--model", "tiny"]
BENCH = ["bench", "--model", "tiny", "--system", "water", "--quick"]
COMMANDS = pytest.mark.parametrize("words", [SIMULATE, VALIDATE, BENCH], ids=lambda w: w[0])


@COMMANDS
def test_devices_belong_to_a_platform_by_name(words, tmp_path, capsys):
    for platform in ("auto", "CPU"):
        out = tmp_path / platform
        assert main([*words, "--platform", platform, "--device", "1", "--out", str(out)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"device 1 was asked for with platform '{platform}'" in line
        assert "--platform CUDA --device N" in line
        assert not out.exists()


@pytest.mark.skipif("CUDA" in installed_platforms(), reason="CUDA is here")
@COMMANDS
@pytest.mark.parametrize("device", [[], ["--device", "0"]], ids=["any device", "device 0"])
def test_cuda_that_is_not_here_is_refused_with_the_remedy(words, device, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*words, "--platform", "CUDA", *device, "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "platform 'CUDA' is not available here" in line
    assert "pip install 'omm-mlff[cuda13]'" in line
    assert not out.exists()


@COMMANDS
def test_a_named_platform_without_torch_force_needs_allow_fallback(
    words, tmp_path, capsys, monkeypatch
):
    def absent():
        raise MissingPackageError("openmm-torch", "TorchForce", "pip install it", "no simtk")

    monkeypatch.setattr("omm_mlff.forces.plugin.load_plugin", absent)
    out = tmp_path / "out"
    assert main([*words, "--platform", "Reference", "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "openmm-torch, which is installed and does not load (no simtk)" in line
    assert "--allow-fallback" in line
    assert not out.exists()
    if words is SIMULATE:
        command = [*words, "--platform", "Reference", "--allow-fallback", "--out", str(out)]
        assert main(command) == 0
        assert "notice: PythonForce computes in the place of TorchForce" in capsys.readouterr().out


@pytest.mark.cuda
def test_a_device_is_named_on_the_command_line(tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*SIMULATE, "--platform", "CUDA", "--device", "0", "--out", str(out)]) == 0
    assert '"index": "0"' in (out / "provenance.json").read_text()
    assert main([*SIMULATE, "--platform", "CUDA", "--device", "99", "--out", f"{out}-99"]) == 2
    assert "there is no CUDA device 99 here" in capsys.readouterr().err
