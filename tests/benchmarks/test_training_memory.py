"""The measurement of memory and time of a training step, on a small network."""

import json

from benchmarks import training_memory


def test_saves_less_than_plain_and_much_less_with_checkpoints(tmp_path, capsys):
    path = tmp_path / "memory.json"
    forms = ["plain", "hrnet_fast", "hrnet_fast --checkpoint"]
    options = ["--width", "w18_small_v1", "--steps", "1", "--rounds", "1", "--forms", *forms, "--json", str(path)]
    assert training_memory.main(options) == 0
    runs = {run["form"]: run for run in json.loads(path.read_text())["runs"]}
    saved = [runs[form]["saved_bytes"] for form in forms]
    assert saved[1] < saved[0]
    assert saved[2] < 0.6 * saved[0]  # the memory of the network at the image does not shrink with its width
    assert all(len(run["seconds"]) == 1 and run["peak_bytes"] > saved[2] for run in runs.values())
    assert "hrnet_fast --checkpoint" in capsys.readouterr().out
