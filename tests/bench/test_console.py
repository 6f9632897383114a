"""What a benchmark prints: in plain words first, and nothing cut off."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from omm_mlff.bench.compare import compare, require_common
from omm_mlff.bench.console import in_plain_words, show, show_comparison
from omm_mlff.bench.document import read
from omm_mlff.bench.rows import BenchDocument, IntervalRow, RatioRow
from omm_mlff.cli.main import main
from omm_mlff.errors import InputError

STUDY = Path(__file__).resolve().parents[2] / "analysis" / "bench" / "bench.json"


def with_ratio(fast: str, value: float, low: float, high: float) -> BenchDocument:
    """One result, tiny on alanine, beside one other potential."""
    document = read(STUDY)
    first = document.results[0]
    ways = [row for row in first.ways if row.way == "single"]
    ways.append(dataclasses.replace(ways[0], way=fast))
    ratio = RatioRow("single", fast, value, low, high)
    result = dataclasses.replace(
        first, model="tiny", system="alanine", ways=tuple(ways), ratios=(ratio,)
    )
    return dataclasses.replace(document, results=(result,))


def printed(width: int, *shown) -> str:
    text = io.StringIO()
    console = Console(file=text, width=width, emoji=False)
    for function, item in shown:
        function(item, console)
    return text.getvalue()


@pytest.mark.parametrize(
    ("fast", "ratio", "said"),
    [
        (
            "native:amber14",
            (33.5, 30.0, 36.0),
            "amber14 : tiny = 33.5 (30 to 36) on alanine, at 0.5 fs; "
            "at the timesteps people use (2 fs, 0.5 fs): 134",
        ),
        ("original", (0.25, 0.2, 0.5), "tiny : original = 4 (2 to 5) on alanine, at 0.5 fs"),
        (
            "native:slow",
            (0.5, 0.4, 0.625),
            "tiny : slow = 2 (1.6 to 2.5) on alanine, at 0.5 fs; "
            "at the timesteps people use (0.5 fs, 2 fs): 0.5",
        ),
    ],
)
def test_the_first_line_says_who_is_faster_and_at_which_timestep(fast, ratio, said):
    document = with_ratio(fast, *ratio)
    assert in_plain_words(document) == [said]
    assert " ".join(printed(400, (show, document)).splitlines()[0].split()) == said


def test_a_model_alone_has_its_cost_and_its_timestep_said():
    document = with_ratio("original", 2.0, 1.0, 3.0)
    (result,) = document.results
    step = IntervalRow(2.0, 1.9, 2.1)
    single = dataclasses.replace(result.ways[0], ms_per_step=step, ns_per_day=21.6)
    alone = dataclasses.replace(result, ways=(single,), ratios=())
    document = dataclasses.replace(document, results=(alone,))
    assert in_plain_words(document) == ["tiny on alanine: 2 ms a step, 21.6 ns/day at 0.5 fs"]


def test_no_name_and_no_number_is_cut_in_eighty_columns():
    document = with_ratio("openmm-ml:ani2x-with-a-long-name", 2.0, 1.0, 3.0)
    for one in (document, read(STUDY)):
        told = printed(80, (show, one), (show_comparison, compare(one, one)))
        assert "…" not in told
        assert max(map(len, told.splitlines())) <= 80
        for row in one.results[0].ways:
            assert f"{row.ms_per_step.low:.4g} to {row.ms_per_step.high:.4g}" in told
    assert "at 0.5 fs" in told


def test_nothing_in_common_is_said_before_anything_is_timed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = main(["bench", "--model", "tiny", "--system", "methane", "--compare", str(STUDY)])
    assert code == 2
    told = capsys.readouterr().err
    assert "tiny on methane is asked for; name a --model and a --system that it has" in told
    assert not (tmp_path / "runs").exists()


def test_one_model_and_system_in_common_is_enough():
    document = with_ratio("original", 2.0, 1.0, 3.0)
    require_common(document, [("tiny", "alanine"), ("tiny", "water")])
    with pytest.raises(InputError, match="timed tiny on alanine, and tiny on water is asked for"):
        require_common(document, [("tiny", "water")])
