"""Files from a server that cuts, stalls and lies: they come whole, or not at all with a line that says what to do."""

import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from hrnet_fast.checkpoints import download as module
from hrnet_fast.checkpoints.download import DownloadFailed, Receipt, download
from support.exhaustive import chosen
from support.faulty_server import FAULTS, serving

CONTENT = random.Random(0).randbytes(600_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = {"timeout": 0.25, "retries": 3, "wait": 0.0}


@pytest.fixture(autouse=True)
def _without_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def attempt(server, path, **options):
    """The error of a download, or None after it was found to be right; never anything else under the final name."""
    try:
        receipt = download(f"{server.url}/weights.pth", path, **{**QUICK, **options})
    except DownloadFailed as error:
        said = str(error)
    else:
        said = None
    if said is not None:
        assert "\n" not in said
        assert server.url in said
        assert "try again later, or get the file by other means and put it at" in said
        assert not path.exists()
        return said
    assert path.read_bytes() == CONTENT
    assert receipt == Receipt(SHA256, len(CONTENT))
    assert not path.with_name(path.name + ".part").exists()
    return None


@pytest.mark.parametrize("seed", chosen(range(400), lambda k, seed: k < 50))
def test_random_faults_end_in_an_error_or_the_whole_file(seed, tmp_path):
    r = random.Random(seed)
    faults = [r.choice(FAULTS) for _ in range(r.randint(1, 4))]
    if r.random() < 0.3:
        faults = faults[:1] * 20
    by_hub = r.random() < 0.3
    given = None if by_hub else SHA256[: r.choice((8, 64))]
    with serving(CONTENT, faults, r.randrange(len(CONTENT)), SHA256 if by_hub else None) as server:
        error = attempt(server, tmp_path / "weights.pth", sha256=given)
        server.faults.clear()
        if error is not None:  # what is left of a failure does no harm
            assert attempt(server, tmp_path / "weights.pth", sha256=given) is None, faults


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_for_ever_is_one_line_or_no_matter(fault, tmp_path):
    with serving(CONTENT, [fault] * 50, 1000) as server:
        error = attempt(server, tmp_path / "weights.pth", sha256=SHA256[:8])
    # the first request asks for no range; after a size too large by "long" the next one shows that nothing is missing
    harmless = {"no range", "wrong range", "refused range", "long"}
    assert (error is None) == (fault in harmless), error
    expected = {"404": "404 Not Found: the file is no longer there", "html": "a web page", "flip": "has SHA-256",
                "cut": "announced 600,000 bytes and sent ", "stall": "no answer in time", "drip": "came to a stop",
                "garbage": "broken"}  # fmt: skip
    assert error is None or expected.get(fault, "") in error


def test_goes_on_where_it_was_cut(tmp_path):
    with serving(CONTENT, ["cut", "cut", "stall"], 100_000) as server:
        assert attempt(server, tmp_path / "weights.pth", sha256=SHA256[:8], retries=1) is None
    assert server.ranges == [None, "bytes=100000-", "bytes=200000-", "bytes=300000-"]


def test_a_mixture_of_two_versions_is_not_kept(tmp_path):
    with serving(CONTENT, ["cut", "other file"], 100_000) as server:
        (tmp_path / "weights.pth.part").write_bytes(bytes(5000))
        assert attempt(server, tmp_path / "weights.pth", sha256=SHA256[:8]) is None
    assert server.ranges[0] == "bytes=5000-"
    assert server.ranges[-1] is None


def test_without_a_hash_nothing_is_resumed_from_an_earlier_run(tmp_path):
    (tmp_path / "weights.pth.part").write_bytes(bytes(5000))
    with serving(CONTENT) as server:
        assert attempt(server, tmp_path / "weights.pth") is None
    assert server.ranges == [None]


def test_progress_never_goes_beyond_the_whole(tmp_path):
    seen = []
    with serving(CONTENT, ["cut"], 100_000) as server:
        attempt(server, tmp_path / "weights.pth", sha256=SHA256, progress=lambda *given: seen.append(given))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {total for _, total in seen} == {len(CONTENT)}


def test_a_file_brought_by_hand_is_checked_and_taken(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(CONTENT)
    nowhere = "http://127.0.0.1:1/weights.pth"
    assert download(nowhere, path, sha256=SHA256[:8]) == Receipt(SHA256, len(CONTENT))
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(DownloadFailed, match=f"expected is {SHA256[:8]}.*; remove it"):
        download(nowhere, path, sha256=SHA256[:8])


@pytest.mark.parametrize(("host", "why"), [("127.0.0.1:1", "refused"), ("no-such-host.invalid", "no connection to")])
def test_no_network(host, why, tmp_path):
    with pytest.raises(DownloadFailed, match=f"{why}.*try again later, or get the file by other means"):
        download(f"http://{host}/weights.pth", tmp_path / "weights.pth", sha256=SHA256, **QUICK)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tmp_path, monkeypatch):
    path, room = (
        tmp_path / "weights.pth",
        "the disk is full; make room there, or name another folder by HRNET_FAST_HOME",
    )
    with serving(CONTENT) as server:
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1, 1, 1000))
        with pytest.raises(DownloadFailed, match=room):
            download(server.url, path, sha256=SHA256, **QUICK)
        monkeypatch.undo()

        def no_space(descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(module.os, "fsync", no_space)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with pytest.raises(DownloadFailed, match=room):
            download(server.url, path, sha256=SHA256, **QUICK)
    assert not path.exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DownloadFailed, match="cannot be written .*HRNET_FAST_HOME"):
        download("http://127.0.0.1:1/weights.pth", tmp_path / "file" / "weights.pth", sha256=SHA256, **QUICK)


def test_a_kill_leaves_what_the_next_one_goes_on_with(tmp_path):
    path = tmp_path / "weights.pth"
    # the module alone, which needs no torch
    program = (
        f"import sys, pathlib, runpy; download = runpy.run_path({module.__file__!r})['download']\n"
        "download(sys.argv[1], pathlib.Path(sys.argv[2]), sha256=sys.argv[3])"
    )
    with serving(CONTENT, ["stall"], 200_000) as server:
        killed = subprocess.Popen([sys.executable, "-c", program, server.url, str(path), SHA256[:8]])
        part, limit = tmp_path / "weights.pth.part", time.monotonic() + 60
        while not (part.exists() and part.stat().st_size) and time.monotonic() < limit:
            time.sleep(0.02)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert not path.exists()
        left = part.stat().st_size
        assert 0 < left < len(CONTENT)
        assert attempt(server, path, sha256=SHA256[:8]) is None
    assert server.ranges == [None, f"bytes={left}-"]
