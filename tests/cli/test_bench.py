"""`omm-mlff bench` as a person types it."""

from __future__ import annotations

import json

import pytest

from omm_mlff.cli.main import main


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--model", "tinny"], "unknown model 'tinny'; did you mean tiny"),
        (["--model", "tiny", "--system", "watr"], "unknown system 'watr'; did you mean water"),
        (["--model", "tiny", "--sizes", "300,many"], "wanted numbers such as 300,1000,3000"),
        (["--model", "tiny", "--sizes", "300,300"], "wanted different numbers of 100 or more"),
        (["--model", "tiny", "--replicas", "1"], "1 is not in the range x>=2"),
        (["--model", "tiny", "--compare", "absent.json"], "absent.json' does not exist"),
        (["--model", "tiny", "--compare", "text.json"], "text.json is not JSON"),
        (["--model", "tiny", "--compare", "other.json"], "is no benchmark of schema 1"),
        (["--model", "tiny", "--platform", "Metal"], "platform 'Metal' is not available here"),
        (["--model", "tiny", "--out", "."], ". holds a benchmark; take another --out"),
        (["--model", "native:amber14", "--system", "methane"], "cannot serve methane"),
        ([], "Missing option '--model'"),
    ],
)
def test_bad_input_is_one_line_before_anything_runs(
    words, complaint, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.json").write_text("ms a step: 3")
    (tmp_path / "other.json").write_text('{"schema": 7}')
    (tmp_path / "bench.json").write_text("{}")
    if "--out" not in words:
        words = [*words, "--out", "fresh"]
    assert main(["bench", *words]) == 2
    assert complaint in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "fresh").exists()


@pytest.mark.slow
@pytest.mark.timed
def test_a_benchmark_is_written_drawn_and_held_against_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["bench", "--model", "ultra-tiny", "--system", "water", "--replicas", "4", "--quick"]
    others = ["--against", "native:tip3p", "--against", "native:amber14", "--sizes", "150,300"]
    assert main([*words, *others, "--out", "first"]) == 0
    told = capsys.readouterr().out
    found = json.loads((tmp_path / "first" / "bench.json").read_text())
    (result,) = found["results"]
    rows = {row["way"]: row for row in result["ways"]}
    assert {"yardstick", "plain TorchScript", "single", "unrecorded", "recorded"} <= set(rows)
    assert {"native:tip3p", "native:amber14"} <= set(rows)
    for row in rows.values():
        ms = row["ms_per_step"]
        assert ms["low"] <= ms["value"] <= ms["high"]
        assert row["replica_steps_per_s"] == pytest.approx(
            1000.0 * row["n_replicas"] / ms["value"], rel=1e-3
        )
        assert row["ns_per_day"] == pytest.approx(0.5e-6 * 86400e3 / ms["value"], rel=1e-3)
        assert row["atom_steps_per_s"] == pytest.approx(3 * row["replica_steps_per_s"], rel=1e-3)
    # Nobody doubts these, however slow the day.
    assert rows["native:tip3p"]["ms_per_step"]["value"] < rows["single"]["ms_per_step"]["value"]
    ratios = {(row["slow"], row["fast"]): row["value"] for row in result["ratios"]}
    assert ratios["yardstick", "recorded"] > 3.0
    assert sum(result["breakdown_ms"].values()) > 0.0
    assert result["memory"]["host_MiB"] >= result["memory"]["imported_MiB"] > 100.0
    assert [row["n_atoms"] for row in found["scaling"][0]["sizes"]] == [150, 300]
    errors = {row["potential"]: row["force_rmse_eV_angstrom"] for row in found["pareto"]}
    assert errors["ultra-tiny"] < 0.1 < errors["native:tip3p"]
    for name in ("speed", "breakdown", "scaling", "pareto"):
        assert (tmp_path / "first" / f"{name}.png").stat().st_size > 10_000
        assert f"{name}.png" in told
    assert found["conclusive"] is ("NOT CONCLUSIVE" not in told)

    quick = {**found, "results": [dict(result)]}
    for row in quick["results"][0]["ways"]:
        row["ms_per_step"] = {key: 0.01 * ms for key, ms in row["ms_per_step"].items()}
        row["spread"] = 0.01
    (tmp_path / "old.json").write_text(json.dumps(quick))
    code = main([*words, "--out", "second", "--compare", "old.json"])
    told = capsys.readouterr().out
    assert code in (1, 3)  # 3 where every spread is too wide, on a machine that others use
    assert ("SLOWER" in told) == (code == 1)
