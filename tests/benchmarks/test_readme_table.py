"""Tables and the picture of README.md and docs/ from stored results; goals."""

from benchmarks import goals, overview, readme_table, run
from hrnet_fast.bench import contenders
from hrnet_fast.bench.record import Record, Spread, finish
from support.records import entry, measured, stored_report


def test_goals_are_judged_honestly():
    found = goals.outcomes(stored_report(faster=1.2).cases[0])
    reached = {(o["over"], o["goal"]): o["reached"] for o in found}
    assert reached == {
        (contenders.CHANNELS_LAST, 1.15): True,
        (contenders.FOLDED, 1.0): True,
        (contenders.COMPILED, 1.0): False,
    }
    case = stored_report(faster=1.2).cases[0]
    case.goals = found
    assert "2 of 3 goals reached" in goals.shown([case])
    assert "missed" in goals.shown([case])


def test_readme_table_is_idempotent(tmp_path):
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    stored = measured(overview.NAMES[0])
    for folder in ("one", "other"):
        stored.save(tmp_path / "benchmarks" / "results" / "engines" / folder / "case.json")
    readme, page = tmp_path / "README.md", tmp_path / "docs" / "results.md"
    readme.write_text(f"before\n{readme_table.BEGIN}\nstale row\n{readme_table.END}\nafter\n")
    page.parent.mkdir()
    page.write_text("<!-- engines:begin -->\nstale row\n<!-- engines:end -->\n")
    assert readme_table.main(["--check"], root=tmp_path) == 1
    assert readme_table.main([], root=tmp_path) == 0
    first = readme.read_text()
    assert first.startswith("before\n")
    assert first.endswith("after\n")
    assert "stale row" not in first + page.read_text()
    assert first.count("description of engines-w48") == 1  # of one machine, the other has a line
    assert first.count(": 2.00x to 2.00x.") == 1
    assert page.read_text().count("description of engines-w48") == 2 == page.read_text().count("Measured on")
    assert readme_table.main([], root=tmp_path) == 0
    assert readme.read_text() == first
    assert readme_table.main(["--check"], root=tmp_path) == 0


def test_an_old_picture_is_out_of_date(tmp_path, capsys):
    (tmp_path / "README.md").write_text(f"{readme_table.BEGIN}\n{readme_table.END}\n")
    file = tmp_path / "benchmarks" / "results" / "engines" / "one" / "case.json"
    measured(overview.NAMES[0]).save(file)
    assert readme_table.main([], root=tmp_path) == 0
    assert readme_table.main(["--check"], root=tmp_path) == 0
    changed = measured(overview.NAMES[0])
    changed.cases[0].entry(contenders.OPTIMIZED).seconds = Spread(0.2, 0.2, 0.3)  # a whisker: no table shows it
    changed.save(file)
    capsys.readouterr()
    assert readme_table.main(["--check"], root=tmp_path) == 1
    assert capsys.readouterr().err.startswith(readme_table.PLOT)


def _row_of(text: str, case: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| description of {case}")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_first_table_shows_optimize_and_the_best_of_the_others():
    name = overview.NAMES[0]
    stored = measured(name, other_is_off=True)
    text = readme_table.blocks({}, [{name: stored, "model-x": stored_report("model-x")}])["results"]()
    assert _row_of(text, name) == ["float32 *", "OpenVINO, 400 ms †", "**200 ms**", "2.00x"]
    assert "†: off by more" in text and "*: other processes" in text
    entry = stored.cases[0].entries[-1]
    entry.seconds, entry.failure = None, "did not run"
    assert "benchmarks.engines" in readme_table.blocks({}, [{name: stored}])["results"]()
    assert "benchmarks.engines" in readme_table.blocks({}, [])["results"]()


def test_a_loss_is_shown_as_one(tmp_path):
    name = overview.NAMES[0]
    stored = measured(name)
    stored.cases[0].entries[-1].speedup_over["OpenVINO"] = Spread(0.8, 0.8, 0.8)
    assert _row_of(overview.table([{name: stored}]), name)[-1] == "0.80x"
    overview.picture([{name: stored}], tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 5000


def test_forms_of_several_machines_have_a_table_each(tmp_path):
    for kernel in ("amx", "neon"):
        stored_report(readme_table.ROWS[0]).save(tmp_path / "benchmarks" / "results" / "suite" / kernel / "a.json")
    text = readme_table.blocks({}, [], tmp_path)["forms"]()
    assert text.count(f"description of {readme_table.ROWS[0]}") == 2 == text.count("Measured on")
    assert run.folder("").parent.name == "suite" and run.folder("engines-").parent.name == "engines"


def test_table_of_the_forms_has_optimize_where_it_was_measured():
    name = readme_table.ROWS[0]
    stored = stored_report(name)
    assert contenders.OPTIMIZED not in readme_table.table({name: stored})
    made = [
        entry(contenders.CHANNELS_LAST, 1e-7, 1e-4, [0.6] * 3, 1),
        entry(contenders.FAST, 1e-7, 1e-4, [0.4] * 3, 1),
        entry(contenders.OPTIMIZED, 1e-7, 1e-4, [0.2] * 3, 1),
    ]
    stored.cases[0].entries = finish(made)
    assert _row_of(readme_table.table({name: stored}), name) == ["600 ms", "-", "400 ms", "200 ms", "3.00x", "-"]


def test_every_table_stands_on_one_page():
    pages = [(readme_table.ROOT / page).read_text().splitlines() for page in readme_table.PAGES]
    for name in readme_table.blocks({}, []):
        for marker in (f"<!-- {name}:begin -->", f"<!-- {name}:end -->"):
            assert sum(lines.count(marker) for lines in pages) == 1, marker
    machines = readme_table.by_machine(readme_table.ROOT / "benchmarks" / "results" / "engines")
    everywhere = {name for name in overview.NAMES if not name.endswith("int8")}
    assert machines and all(everywhere <= set(results) for results in machines)
    assert set(overview.NAMES) <= {name for results in machines for name in results}


def test_pages_that_include_a_table_are_left_alone(tmp_path):
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(f"{readme_table.BEGIN}\n{readme_table.END}\n")
    page = tmp_path / "docs" / "results.md"
    including = f':start-after: "{readme_table.BEGIN}"\n:end-before: "{readme_table.END}"\n'
    page.write_text(f"{including}<!-- forms:begin -->\nstale\n<!-- forms:end -->\n")
    assert readme_table.main(["--check"], root=tmp_path) == 1
    assert readme_table.main([], root=tmp_path) == 0
    assert page.read_text().startswith(including)
    assert "stale" not in page.read_text() and "benchmarks.run" in page.read_text()


def test_goals_know_that_optimize_is_the_fastest_form():
    made = [entry(contenders.FAST, 1e-7, 1e-4, [0.4] * 3, 1), entry(contenders.OPTIMIZED, 1e-7, 1e-4, [0.5] * 3, 1)]
    case = Record("model-x", "d", "float32", 1e-4, finish(made))
    (outcome,) = goals.outcomes(case)
    assert (outcome["ours"], outcome["over"]) == (contenders.OPTIMIZED, contenders.FAST)
    assert not outcome["reached"]


def test_readme_without_markers_is_an_error(tmp_path):
    (tmp_path / "README.md").write_text("no markers\n")
    assert readme_table.main([], root=tmp_path) == 1
