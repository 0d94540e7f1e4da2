"""Checkpoint files: all of it or none, and a damaged one is never taken for a good one."""

import numpy as np
import pytest

from runtime import checkpoints

ARRAYS = {
    "globalnet/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "row_log/touched_by": np.arange(3),
    "curve/worker": np.array(["W_0", "W_10"]),
}
ABOUT = {
    "agent_steps": 7,
    "running": 0.1 + 0.2,
    "settings": {"seed": None, **checkpoints.NEW_SETTINGS},
}


def write(run_folder, *names):
    folder = run_folder / "checkpoints"
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        saved = checkpoints.Checkpoint(ARRAYS, ABOUT | {"number": number})
        checkpoints.save(folder / name, saved)
    return folder


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    folder = write(tmp_path, "step-000000007.npz")
    loaded = checkpoints.load(folder / "step-000000007.npz")
    arrays, about = loaded.arrays, loaded.about
    assert about == ABOUT | {"number": 0}
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert np.array_equal(arrays[name], array) and arrays[name].dtype == array.dtype
    assert [path.name for path in folder.iterdir()] == ["step-000000007.npz"]


def test_a_file_with_more_games_fits_in_the_place_of_an_older_one(tmp_path):
    sizes = []
    for games in 1, 100, 1000:
        arrays = ARRAYS | {"curve/score": np.zeros(games)}
        checkpoints.save(tmp_path / "a.npz", checkpoints.Checkpoint(arrays, {"games": games}))
        sizes.append((tmp_path / "a.npz").stat().st_size)
    assert sizes[0] == sizes[1] == sizes[2]


def test_no_flipped_bit_and_no_missing_end_gives_other_numbers(tmp_path):
    path = write(tmp_path, "step-000000007.npz") / "step-000000007.npz"
    good, rng = path.read_bytes(), np.random.default_rng(0)
    spaces = b" " * 1000  # most of the file, which give it a round size
    places = [*range(good.index(spaces) + 50), *range(good.rindex(spaces) + 950, len(good))]
    found = 0
    for bit in rng.permutation(8 * len(places))[:500]:
        bad = bytearray(good)
        bad[places[bit // 8]] ^= 1 << bit % 8
        path.write_bytes(bad)
        try:
            loaded = checkpoints.load(path)  # the bit was in a date, or the like
        except checkpoints.Damaged as damaged:
            assert str(path) in str(damaged) and "\n" not in str(damaged)
            found += 1
        else:
            arrays, about = loaded.arrays, loaded.about
            assert about == ABOUT | {"number": 0}
            assert arrays.keys() == ARRAYS.keys()
            assert all(np.array_equal(arrays[name], ARRAYS[name]) for name in ARRAYS)
    assert found > 200
    for length in places[::29]:
        path.write_bytes(good[:length])
        with pytest.raises(checkpoints.Damaged):
            checkpoints.load(path)


def test_the_newest_good_one_is_loaded_and_the_others_are_named(tmp_path):
    names = "best.npz", "step-999999999.npz", "step-1000000000.npz", "step-000000008.npz"
    folder = write(tmp_path, *names, "step-999999999-mine.npz", "my-step-9.npz", "step-.npz")
    order = ["step-1000000000.npz", "step-999999999.npz", "step-000000008.npz", "best.npz"]
    assert [path.name for path in checkpoints.paths(tmp_path)] == order
    (folder / order[0]).write_bytes(b"")
    (folder / "unfinished").write_bytes(b"half of one")

    newest = checkpoints.load_newest(tmp_path)
    assert (newest.path.name, newest.about["number"]) == (order[1], 1)
    assert len(newest.passed_over) == 1 and order[0] in newest.passed_over[0]
    misfit = lambda checkpoint: checkpoint.about["number"] in (0, 1) and "another network"
    newest = checkpoints.load_newest(tmp_path, misfit)
    assert newest.path.name == order[2]
    assert newest.passed_over[1].endswith("does not fit: another network")
    assert checkpoints.load_newest(folder / "best.npz").about["number"] == 0

    for name in order:
        (folder / name).write_bytes(b"PK")
    with pytest.raises(ValueError, match="step-1000000000.*best.npz"):
        checkpoints.load_newest(tmp_path)


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no checkpoint"):
        checkpoints.load_newest(tmp_path)
    with pytest.raises(ValueError, match="there is no such folder"):
        checkpoints.load_newest(tmp_path / "nope")


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path):
    path = write(tmp_path, "step-000000007.npz") / "step-000000007.npz"
    before = path.read_bytes()
    (path.parent / "unfinished").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(path, checkpoints.Checkpoint({"large": np.zeros(100_000)}, {}))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
