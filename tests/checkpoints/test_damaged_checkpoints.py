"""Checkpoint files that a disk, a transfer or an enemy has changed: the right weights or a clear error."""

import io
import random
import signal
import zipfile

import pytest
import torch
from torch import nn

import hrnet_fast as hf

SECONDS = 60  # a file that takes longer is taken for one that never ends


@pytest.fixture(autouse=True)
def _never_a_hang():
    def stop(*_):
        raise TimeoutError(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def saved(content: object, **options) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def rewritten(data: bytes, change, compression: int = zipfile.ZIP_STORED) -> bytes:
    """The records of a zip file as ``change(name, content)`` makes them, with right checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return file.getvalue()


def refused(path, message: str) -> None:
    """One line of ValueError that names the file."""
    with pytest.raises(ValueError, match=message) as caught:
        hf.load_checkpoint(network(), path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """With some bytes of them changed, or a piece cut off, lost, emptied, doubled or moved."""
    changed, size = bytearray(data), len(data)
    a, b = sorted(chance.sample(range(size + 1), 2))
    kind = chance.choice(["bits", "bits", "bits", "bytes", "cut", "lost", "emptied", "doubled", "moved"])
    if kind in ("bits", "bytes"):
        # as often near the end as elsewhere: there lies the directory of a zip file
        first = chance.choice([0, 0, size - size // 4])
        for _ in range(chance.choice([1, 1, 2, 8])):
            at = chance.randrange(first, size)
            changed[at] = changed[at] ^ 1 << chance.randrange(8) if kind == "bits" else chance.randrange(256)
    elif kind == "cut":
        del changed[a:]
    elif kind == "lost":
        del changed[a : min(b, a + chance.choice([1, 64, size]))]
    elif kind == "emptied":
        b = min(b, a + chance.choice([1, 64, 512]))
        changed[a:b] = bytes(b - a)
    elif kind == "doubled":
        changed[b:b] = changed[a:b]
    else:
        changed = changed[:a] + changed[b:] + changed[a:b]
    return bytes(changed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", ["zip", "before 1.6"])
def test_random_damage_gives_the_right_tensors_or_a_clear_error(tmp_path, seed, form):
    chance, path = random.Random(f"{form} {seed}"), tmp_path / "weights.pth"
    source = network().state_dict()
    whole = saved({"state_dict": source, "epoch": 3}, _use_new_zipfile_serialization=form == "zip")
    refusals = 0
    for case in range(150):
        path.write_bytes(damaged(whole, chance))
        model = network()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        error = None
        try:
            report = hf.load_checkpoint(model, path)
        except ValueError as raised:
            error = raised
        if error is not None:
            assert str(path) in str(error), (seed, case)
            assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), (seed, case)
            refusals += 1
        else:
            assert report == ([], [], []), (seed, case)
            if form == "zip":  # the older form has no checksums
                assert all(torch.equal(v, source[k]) for k, v in model.state_dict().items()), (seed, case)
    assert refusals > 60


def test_every_flipped_bit_of_the_weights_is_seen(tmp_path):
    """In silence it would be another number."""
    source = network().state_dict()
    whole = saved(source)
    at = whole.index(source["0.weight"].numpy().tobytes())
    for byte in range(0, 4 * source["0.weight"].numel(), 7):
        flipped = bytearray(whole)
        flipped[at + byte] ^= 1 << byte % 8
        (tmp_path / "weights.pth").write_bytes(flipped)
        refused(tmp_path / "weights.pth", "damaged .*/data/0 has another checksum than was written")


@pytest.mark.parametrize("form", [True, False], ids=["zip", "before 1.6"])
def test_every_truncation_is_seen(tmp_path, form):
    whole = saved(network().state_dict(), _use_new_zipfile_serialization=form)
    for size in range(0, len(whole) - 1, 41):
        (tmp_path / "weights.pth").write_bytes(whole[:size])
        refused(tmp_path / "weights.pth", "truncated|plain weights")


def test_files_without_checksums_are_refused(tmp_path):
    """Their damage could not be seen."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(network().state_dict(), tmp_path / "weights.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    refused(tmp_path / "weights.pth", r"set_crc32_options\(False\)")


def test_the_form_from_before_1_6_is_read(tmp_path):
    source, model = network(), network()
    torch.save(source.state_dict(), tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    assert hf.load_checkpoint(model, tmp_path / "weights.pth") == ([], [], [])
    assert torch.equal(model[0].weight, source[0].weight)


def test_a_zip_bomb_is_refused_before_it_is_read(tmp_path, monkeypatch):
    bomb = rewritten(saved({"weight": torch.zeros(1 << 22)}), lambda name, content: content, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    (tmp_path / "weights.pth").write_bytes(bomb)
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda self: pytest.fail("it was read"))
    refused(tmp_path / "weights.pth", r"would become 16,77\d,\d+ bytes, it has \d+,\d+; torch.save compresses nothing")


def test_records_that_share_their_bytes_are_refused(tmp_path):
    """A bomb without compression: the directory lists one record again and again."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", bytes(1 << 16))
        archive.filelist *= 1000
    (tmp_path / "weights.pth").write_bytes(file.getvalue())
    refused(tmp_path / "weights.pth", "would become 65,536,000 bytes")


def test_two_records_of_one_name_are_refused(tmp_path):
    file = io.BytesIO(saved({"weight": torch.zeros(1)}))
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data/0", bytes(4))
    (tmp_path / "weights.pth").write_bytes(file.getvalue())
    refused(tmp_path / "weights.pth", "two records have one name")


def test_a_storage_that_is_longer_than_its_record_is_refused(tmp_path):
    """The pickle says how many numbers a record holds."""
    source = {"weight": torch.zeros(12345)}

    def longer(name, content):
        number = (12345).to_bytes(2, "little")
        assert name != "archive/data.pkl" or number in content
        return content.replace(number, (54321).to_bytes(2, "little")) if name == "archive/data.pkl" else content

    (tmp_path / "weights.pth").write_bytes(rewritten(saved(source), longer))
    refused(tmp_path / "weights.pth", "truncated")


def test_a_checkpoint_that_holds_itself_is_refused(tmp_path):
    own = network().state_dict()
    once, twice = dict(own), {"model": {"net": {}}}
    once["state_dict"] = once
    twice["model"]["net"]["state_dict"] = twice
    for content, place in ((once, "state_dict"), (twice, "model.net.state_dict")):
        torch.save(content, tmp_path / "weights.pth")
        refused(tmp_path / "weights.pth", f"holds itself, under {place}$")


def test_folders_and_empty_files_are_named(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"")
    refused(tmp_path / "weights.pth", "truncated")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*, but a folder"):
        hf.load_checkpoint(network(), tmp_path)
