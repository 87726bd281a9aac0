"""An index on the disk: whole or not at all, every damage found, exact search in it."""

import dataclasses
import json

import numpy as np
import pytest
from image_folders import needs_faiss
from inner_cases import every

from alexnet_mp.retrieval import index as retrieval_index
from alexnet_mp.retrieval import short_codes
from alexnet_mp.retrieval.features import Features
from alexnet_mp.retrieval.index import Index, Source, source_difference, write_index
from alexnet_mp.retrieval.search import all_distances, exact_index, nearest
from alexnet_mp.system import durable_files
from alexnet_mp.system.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")
HOSTILE = "n0/\x1b[31m\u202e\udc80\n<b>.jpg"
SOURCE = Source(
    "..",
    "step_00000009",
    "ab" * 32,
    "tiny",
    "fc6",
    16,
    "/data",
    "cd" * 32,
    ("ant", "bee"),
    ("ant", "honey bee"),
    {"train": 20, "val": 5},
)


def vectors(count, seed):
    random = np.random.default_rng(seed)
    return Features(
        random.random((count, 16), np.float32),
        random.integers(-99, 99, (count, 12)).astype(np.float32),
        random.integers(0, 2, count),
    )


FOUND = {"train": vectors(20, 0), "val": vectors(5, 1)}
NAMES = {
    "train": [HOSTILE, *(f"{number}.jpg" for number in range(1, 20))],
    "val": [f"{number}.png" for number in range(5)],
}


def written(place):
    return write_index(place, SOURCE, {"torch": "2", "faiss-cpu": None}, None, FOUND, NAMES)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(short_codes, "EPOCHS", 2)


def test_what_was_written_is_read(tmp_path):
    written(tmp_path / "index")
    index = Index(tmp_path / "index")
    assert index.described.source == SOURCE and index.lengths == []
    for split in ("train", "val"):
        features = index.features(split)
        for name, array in vars(FOUND[split]).items():
            assert np.array_equal(getattr(features, name), array) and getattr(features, name).dtype == array.dtype
        assert index.names(split) == NAMES[split]


def test_codes_are_added_and_the_same_again(tmp_path, quick):
    places, counts = [tmp_path / "one", tmp_path / "two"], []
    for place in places:
        index = written(place)
        index.add_codes(16, 3, counts.append)
        index.add_codes(8, 3, counts.append)
    assert sum(counts) == 2 * 2 * 2 * 20 and Index(places[0]).lengths == [8, 16]
    encoder, codes = Index(places[0]).codes(16)
    assert codes["train"].shape == (20, 2) and np.array_equal(encoder.codes(FOUND["val"].hidden), codes["val"])
    for file in durable_files.names(places[0], 99):
        assert (places[0] / file).read_bytes() == (places[1] / file).read_bytes()
    assert len(durable_files.names(places[0], 99)) == 6
    with pytest.raises(UserError, match="no codes of 32 bits, only of 8, 16"):
        Index(places[0]).codes(32)


def test_a_flipped_byte_is_found_in_every_file_with_a_checksum(tmp_path, quick):
    written(tmp_path / "index").add_codes(8, 0, lambda count: None)
    readers = {
        "train.safetensors": lambda index: index.features("train"),
        "val.safetensors": lambda index: index.features("val"),
        "names.json": lambda index: index.names("train"),
        "codes_8.safetensors": lambda index: index.codes(8),
    }
    for name, reader in readers.items():
        path = tmp_path / "index" / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} is damaged"):
            reader(Index(tmp_path / "index"))
        path.unlink()
        with pytest.raises(UserError, match=rf"{name}.*No such file"):
            reader(Index(tmp_path / "index"))


@every(
    "content", [b"", b"{}", b"\x80\x04pickle", b'{"format": "alexnet_mp retrieval index", "version": 2}', b"[" * 9999]
)
def test_no_index_is_refused_by_name(tmp_path, content):
    with pytest.raises(UserError, match="is no index.*retrieve index"):
        Index(tmp_path)
    (tmp_path / "index.json").write_bytes(content)
    with pytest.raises(UserError, match=r"index\.json is damaged, or of another version"):
        Index(tmp_path)


def test_a_disk_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fails(path, parts):
        if str(path).endswith("index.json"):
            raise OSError(28, "No space left on device", str(path))
        return function(path, parts)

    function = durable_files.write
    monkeypatch.setattr(durable_files, "write", fails)
    with pytest.raises(UserError, match="cannot write .*index.json: No space left"):
        written(tmp_path / "index")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    (tmp_path / "index.partial").mkdir()  # what a power cut left
    (tmp_path / "index.partial" / "train.safetensors").write_bytes(b"half")
    assert Index(written(tmp_path / "index").path).names("val") == NAMES["val"]
    with pytest.raises(UserError, match="cannot write"):
        written(tmp_path / "index")


def test_which_index_serves():
    assert source_difference(SOURCE, dataclasses.replace(SOURCE, run="/elsewhere", data="/moved")) is None
    new_source = dataclasses.replace(SOURCE, weights_sha256="ef" * 32, checkpoint="step_00000012")
    assert "tiny at step_00000009, and the run is at step_00000012" in source_difference(SOURCE, new_source)
    assert "other weights" in source_difference(SOURCE, dataclasses.replace(SOURCE, weights_sha256="ef" * 32))
    for change in ({"fingerprint": "00"}, {"classes": ("bee", "ant")}, {"images": {"train": 19, "val": 5}}):
        assert "other pictures, /data" in source_difference(SOURCE, dataclasses.replace(SOURCE, **change))


def test_searches_are_exact():
    needs_faiss()
    random = np.random.default_rng(0)
    database, queries = (
        random.normal(size=(300, 24)).astype(np.float32),
        random.normal(size=(40, 24)).astype(np.float32),
    )
    expected = np.sqrt(((queries[:, None] - database) ** 2).sum(2))
    distances, numbers = nearest(exact_index("fc7", database), queries, 7)
    assert np.array_equal(numbers, expected.argsort(1)[:, :7])
    np.testing.assert_allclose(distances, np.sort(expected, 1)[:, :7], rtol=1e-5)
    np.testing.assert_allclose(all_distances("fc7", database, queries), expected**2, rtol=1e-4)
    distances, numbers = nearest(exact_index("pixels", database), database, 1)
    # of itself exactly 0
    assert np.array_equal(distances, np.zeros((300, 1))) and numbers[:, 0].tolist() == list(range(300))


def test_hamming_distances_and_the_order_of_ties():
    needs_faiss()
    random = np.random.default_rng(0)
    database, queries = random.integers(0, 256, (50, 2), np.uint8), random.integers(0, 256, (6, 2), np.uint8)
    expected = np.unpackbits(queries[:, None] ^ database, axis=2).sum(2)
    distances, numbers = nearest(exact_index("codes", database), queries, 999)
    assert np.array_equal(numbers, expected.argsort(1, kind="stable")) and np.array_equal(
        distances, np.sort(expected, 1)
    )
    assert np.array_equal(all_distances("codes", database, queries), expected)


def test_names_in_the_files_are_plain_ascii(tmp_path):
    written(tmp_path / "index")
    content = (tmp_path / "index" / "names.json").read_bytes()
    assert content.isascii() and json.loads(content)["train"][0] == HOSTILE and retrieval_index.NAMES == "names.json"
