"""What a person sees: one sentence and exit status 2, in real processes, and outputs that are whole or not there."""

import os
import signal
import subprocess
import sys

import pytest
from tiny import write_layout

from sedjax import commands, files
from sedjax.errors import UserError


def run(*arguments, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True, **kwargs)


@pytest.mark.parametrize(("arguments", "words"), [
    (["sedjax", "fly"], "no command 'fly'; the commands are train"),
    (["sedjax", "score", "--predictions=none.csv"], "no file none.csv"),
    (["sedjax", "evaluate", "--workdir=nowhere", "more"], "takes flags only, not 'more'"),
    (["data_prep.build_records", "--source=nowhere", "--output=out"], "no directory nowhere"),
    (["data_prep.ground_truth", "--source=nowhere"], "output"),
])
def test_mistakes_are_one_sentence_and_status_2(arguments, words, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    result = run(*arguments, cwd=tmp_path, env=environment)
    assert result.returncode == 2
    assert words in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_help_lists_the_commands_and_their_flags():
    listing = run("sedjax", "--help")
    assert listing.returncode == 0
    assert "evaluate" in listing.stdout
    flags = run("sedjax", "score", "--help")
    assert flags.returncode == 0
    assert "--ground_truth" in flags.stdout


def test_an_output_is_whole_or_not_there(tmp_path):
    def write_half_and_fail():
        with files.atomic_output(tmp_path / "a.csv") as path:
            path.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half_and_fail()
    assert os.listdir(tmp_path) == []
    with files.atomic_output(tmp_path / "a.csv") as path:
        path.write_text("whole")
    assert sorted(os.listdir(tmp_path)) == [files.OUTPUTS, "a.csv"]
    with pytest.raises(UserError, match=r"Cannot write .*nowhere"), files.atomic_output(tmp_path / "nowhere" / "b"):
        pass


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "x"),
                                   OSError(30, "Read-only file system", "x"),
                                   ValueError("RESOURCE_EXHAUSTED: ... No space left on device")])
def test_a_full_or_read_only_disk(error, capsys):
    def main(argv):
        raise error

    with pytest.raises(SystemExit, match="2"):
        commands.run(main, ["command"])
    assert capsys.readouterr().err.startswith("Error: ")


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs the right to mount a file system")
def test_a_disk_that_really_fills_up(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        write_layout(tmp_path / "source", recordings={f"{i}.mp3": 400 for i in range(40)}, splits=True)
        result = run("data_prep.build_records", f"--source={tmp_path / 'source'}", f"--output={disk / 'records'}",
                     "--features=melspectrogram")
        assert result.returncode == 2
        assert result.stderr.strip().splitlines()[-1].startswith("Error: ")
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_names_that_are_printed_alike(tmp_path, caplog):
    byte, text = os.fsdecode(b"a\xe9.wav"), "a\\udce9.wav"
    with pytest.raises(UserError, match=r"printed as .*a\\udce9\.wav: rename one"):
        commands.distinct_names([tmp_path / byte, tmp_path / text])
    commands.write_bad(tmp_path, {byte: "no", text: "no\nno"})
    assert (tmp_path / "bad_recordings.csv").read_text().splitlines() == [
        "filename,reason", f"{text},no", f"{text},no\\nno"]
    commands.write_bad(tmp_path, {})
    assert not (tmp_path / "bad_recordings.csv").exists()
    (tmp_path / "bad_recordings.csv").write_text("mine")
    for bad in ({}, {"a.wav": "no"}):
        with pytest.raises(UserError, match=r"bad_recordings\.csv is there already"):
            commands.write_bad(tmp_path, bad)


def test_sigterm_leaves_nothing_half_written(tmp_path):
    def write_half():
        with commands.tidy_sigterm(), files.atomic_output(tmp_path / "a.csv") as path:
            path.write_text("half")
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        write_half()
    assert os.listdir(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) == before
