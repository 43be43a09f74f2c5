"""What a person sees: one sentence and exit status 2, in real processes, and outputs that are whole or not there."""

import importlib
import os
import re
import signal
import subprocess
import sys

import absl.flags
import pytest
from tiny import write_layout

import sedjax
from sedjax import __main__
from sedjax.commands import cli
from sedjax.core import files, interrupts
from sedjax.core.errors import UserError


def run(*arguments, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True, **kwargs)


@pytest.mark.parametrize(("arguments", "words"), [
    (["sedjax", "score", "--predictions=none.csv"], "no file none.csv"),
    (["data_prep.records", "--source=nowhere"], "records needs --output: Directory"),
    (["data_prep.import_weights", "--flagfile=nowhere"], "nowhere"),
])
def test_mistakes_are_one_sentence_and_status_2(arguments, words, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    result = run(*arguments, cwd=tmp_path, env=environment)
    assert result.returncode == 2
    assert words in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []




@pytest.fixture
def in_process(monkeypatch, capsys):
    """A function that runs a command in this process: exit status, standard output, standard error."""
    monkeypatch.setattr(cli, "_log_to_stderr", lambda: None)
    monkeypatch.setattr(interrupts, "raise_first", lambda: None)
    monkeypatch.setattr(interrupts, "end_at_once", lambda: None)
    monkeypatch.setattr(interrupts, "end", lambda: sys.exit(interrupts.STATUS))
    before = set(absl.flags.FLAGS)

    def call(*arguments: str, main=__main__.main) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sedjax", *arguments])
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code
        finally:
            for name in set(absl.flags.FLAGS) - before:
                delattr(absl.flags.FLAGS, name)
        return (status, *capsys.readouterr())

    return call


@pytest.mark.parametrize("name", __main__.MODULES.values())
def test_help_names_every_flag(name, in_process):
    module = importlib.import_module(name)
    before, flags = set(absl.flags.FLAGS), set()

    def define_flags() -> None:
        module.define_flags()
        flags.update(set(absl.flags.FLAGS) - before)

    status, text, _ = in_process(main=lambda: cli.run(module.main, [name, "--help"], define_flags))
    assert status == 0
    assert flags
    assert text.startswith(module.__doc__[:40])
    assert "config" not in flags or "--config.optimizer.learning_rate=0.0001" in text
    assert [flag for flag in flags if f"--{flag}: " not in text and f"--[no]{flag}: " not in text] == []


NAIVE = ("train", "--config=configs/naive.py", "--workdir=w")


@pytest.mark.parametrize(("arguments", "words"), [
    (["trian"], "no command 'trian'; did you mean train?"),
    (["fly\n\x1b[31m"], "no command 'fly"),
    (["train"], "train needs --config: Experiment"),
    (["train", "--config=configs/naive.py"], "train needs --workdir: "),
    (["train", "--config.data.path=x", "--workdir=w"], "needs --config before it"),
    (["train", "--config=configs/naive.py", "--workdir="], "--workdir is given without a value"),
    (["train", "--config=configs/naive.py", "--workdir=a\0b"], "zero byte"),
    (["train", "--config=nowhere.py", "--workdir=w"], "no file nowhere.py"),
    ([*NAIVE, "--workdir=v"], "--workdir is given twice"),
    ([*NAIVE, "--config=configs/demo.py"], "--config is given twice"),
    ([*NAIVE, "--wrkdir=v"], "train has no flag --wrkdir; did you mean --workdir?"),
    ([*NAIVE, "more"], "takes flags only, not 'more'"),
    ([*NAIVE, "--num_processes=x"], "--num_processes=x: it must be an integer"),
    ([*NAIVE, "--config.data.batch_size=abc"], "--config.data.batch_size=abc: it must be an integer"),
    ([*NAIVE, "--config.data.batch_size=1e8"], "--config.data.batch_size=1e8: it must be an integer"),
    ([*NAIVE, f"--config.data.batch_size={'9' * 5000}"], "--config.data.batch_size=999"),
    ([*NAIVE, f"--config.data.batch_size={'9' * 500}"], "data.batch_size must be less than"),
    ([*NAIVE, "--config.nokey=1"], "no such config key: nokey"),
    ([*NAIVE, "--config.optimizer.learning_rat=1"], "learning_rat"),
    ([*NAIVE, "--config.decision.thresholds=(0.1, 0.2)", "--config.decision.thresholds=()"], "at least 1 item, not ()"),
    ([*NAIVE, "--config.data.batch_size=0", "--config.data.batch_size=-1"], "equal to 1, not -1"),
    ([*NAIVE, "--config.data=3"], "--config.data=3"),
    ([*NAIVE, "--config.="], "Could not parse"),
    ([*NAIVE, "--config.decision.thresholds=(("], "decision.thresholds[0] must be a valid number, not '(('"),
    ([*NAIVE, "--config.loss.class_factors={'a':" + "[" * 10**4], "--config.loss.class_factors="),
    ([*NAIVE, "--config.optimizer.learning_rate=nan"], "optimizer.learning_rate must be a finite number, not nan"),
    (["sweep", "--config=configs/naive.py", "--workdir=w"], "not a sweep"),
    (["score", "--predictions="], "--predictions is given without a value"),
    (["bench", "--sweep="], "--sweep is given without a value"),
    (["bench", "--steps=0"], "--steps=0"),
    (["score", "--split=tset"], "--split=tset"),
], ids=str)
def test_mistakes_on_the_command_line(arguments, words, in_process):
    status, output, error = in_process(*arguments)
    assert (status, output) == (2, "")
    assert error.startswith("Error: ")
    assert words in error
    assert error.count("\n") == 1
    assert len(error) < 600
    assert not os.path.exists("w")


def test_version_and_the_list_of_commands(in_process):
    assert in_process("--version")[:2] == (0, f"sedjax {sedjax.__version__}\n")
    for arguments, expected in ((["--help"], 0), (["-h"], 0), ([], 2)):
        status, output, _ = in_process(*arguments)
        assert status == expected
        assert "evaluate" in output


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


@pytest.mark.parametrize(("error", "status", "words"), [
    (OSError(28, "No space left on device", "x"), 2, "Error: The disk is full"),
    (OSError(30, "Read-only file system", "x"), 2, "Error: Cannot write x: Read-only"),
    (ValueError("RESOURCE_EXHAUSTED: ... No space left on device"), 2, "Error: The disk is full"),
    (PermissionError(13, "Permission denied", "x"), 2, "Error: Cannot access x: Permission denied"),
    (OSError(36, "File name too long", "x\n"), 2, r"Error: Cannot access x\\n: File name too long"),
    (MemoryError("Unable to allocate 3. TiB"), 2, "Error: There is not enough memory.*3. TiB"),
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 2, "Error: There is not enough memory"),
    (RecursionError("maximum recursion depth exceeded"), 2, "Error: .*nested too deeply"),
    (KeyboardInterrupt(), 130, "^$"),
    (BrokenPipeError(32, "Broken pipe"), 141, "^$"),
])
def test_errors_of_the_system_are_one_sentence(error, status, words, in_process, monkeypatch):
    def main(argv):
        raise error

    monkeypatch.setattr(cli, "_drop_output", lambda: None)
    found, _, text = in_process(main=lambda: cli.run(main, ["command"]))
    assert found == status
    assert re.search(words, text)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError("no number"), KeyError("x")])
def test_other_errors_have_a_traceback(error, in_process):
    def main(argv):
        raise error

    with pytest.raises(type(error)):
        in_process(main=lambda: cli.run(main, ["command"]))


INTERRUPTED = """
import gc, signal, sys, threading, time
from sedjax.commands import cli
from sedjax.core import interrupts

def main(argv):
    threading.Thread(target=time.sleep, args=[60]).start()  # at an ordinary exit, Python waits for it
    try:
        if argv[1:] == ["lost"]:  # in a callback, from where nothing can be raised
            gc.callbacks.append(lambda *args: gc.callbacks.clear() or signal.raise_signal(signal.SIGINT))
            gc.collect()
            time.sleep(30)
        signal.raise_signal(signal.SIGINT)
    finally:
        print("tidied up", flush=True)
        if argv[1:] == ["twice"]:
            signal.raise_signal(signal.SIGINT)

if sys.argv[1:] == ["early"]:
    interrupts.end_at_once()
    signal.raise_signal(signal.SIGINT)
cli.run(main)
"""


@pytest.mark.parametrize("argument", ["early", "once", "twice", "lost"])
def test_ctrl_c_is_one_line_and_status_130(argument):
    result = subprocess.run([sys.executable, "-c", INTERRUPTED, argument], capture_output=True, text=True, timeout=50)
    assert (result.returncode, result.stderr) == (130, "Interrupted.\n")
    assert ("tidied up" in result.stdout) == (argument != "early")


ABANDONED = """
import asyncio, concurrent.futures, logging, threading
from sedjax.commands import cli
from sedjax.training import checkpoint
from sedjax.core.errors import UserError

class Native:  # what a thread of a library does with its result
    def __init__(self, loop):
        self.loop = loop

    def __del__(self):
        self.loop.call_soon_threadsafe(print)

class Odd:
    def __del__(self):
        raise ValueError("shown")

async def wait(pool, event):
    await asyncio.get_running_loop().run_in_executor(pool, event.wait)

async def fail(pool, event):
    asyncio.ensure_future(wait(pool, event))
    await asyncio.sleep(0)
    raise UserError("damaged")

def main(argv):
    checkpoint._ignore_abandoned_tasks()
    event, pool, loop = threading.Event(), concurrent.futures.ThreadPoolExecutor(1), asyncio.new_event_loop()
    try:
        loop.run_until_complete(fail(pool, event))
    finally:
        loop.close()
        event.set()
        pool.shutdown()
        Native(loop)
        Odd()

cli.run(main)
"""


def test_what_finds_its_event_loop_closed_says_nothing():
    result = subprocess.run([sys.executable, "-c", ABANDONED], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.endswith("Error: damaged\n")
    assert "ValueError: shown" in result.stderr
    assert "loop" not in result.stderr
    assert "pending" not in result.stderr


@pytest.mark.parametrize("output", ["closed pipe", "full"])
def test_output_that_cannot_be_written(output):
    if output == "full":
        with open("/dev/full", "w") as full:
            result = subprocess.run([sys.executable, "-m", "sedjax", "--help"], stdout=full, stderr=subprocess.PIPE)
        assert (result.returncode, result.stderr.count(b"\n")) == (2, 1)
        assert result.stderr.startswith(b"Error: ")
        return
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run([sys.executable, "-m", "sedjax", "--help"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, b"")


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs the right to mount a file system")
def test_a_disk_that_really_fills_up(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        write_layout(tmp_path / "source", recordings={f"{i}.mp3": 400 for i in range(40)}, splits=True)
        result = run("data_prep.records", f"--source={tmp_path / 'source'}", f"--output={disk / 'records'}",
                     "--features=melspectrogram")
        assert result.returncode == 2
        assert result.stderr.strip().splitlines()[-1].startswith("Error: ")
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_names_that_are_printed_alike(tmp_path, caplog):
    byte, text = os.fsdecode(b"a\xe9.wav"), "a\\udce9.wav"
    with pytest.raises(UserError, match=r"printed as .*a\\udce9\.wav: rename one"):
        files.distinct_names([tmp_path / byte, tmp_path / text])
    cli.write_bad(tmp_path, {byte: "no", text: "no\nno"})
    assert (tmp_path / "bad_recordings.csv").read_text().splitlines() == [
        "filename,reason", f"{text},no", f"{text},no\\nno"]
    cli.write_bad(tmp_path, {})
    assert not (tmp_path / "bad_recordings.csv").exists()
    (tmp_path / "bad_recordings.csv").write_text("mine")
    for bad in ({}, {"a.wav": "no"}):
        with pytest.raises(UserError, match=r"bad_recordings\.csv already exists"):
            cli.write_bad(tmp_path, bad)


def test_sigterm_leaves_nothing_half_written(tmp_path):
    def write_half():
        with cli.tidy_sigterm(), files.atomic_output(tmp_path / "a.csv") as path:
            path.write_text("half")
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        write_half()
    assert os.listdir(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) == before
