"""Programs that mean harm: each is held, ends within its limits, and leaves the machine as it was.

Every one is run in each kind of place that this machine can make, and where the namespaces are what holds it also
without the filter of system calls, so that one protection is not taken for another.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from raysft.evaluation.sandbox import pool
from raysft.evaluation.sandbox.pool import Limits, SandboxError, Verdict, allowed, run_programs

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(sys.platform != "linux", reason="programs are run on Linux only"),
]

LIMITS = Limits(cpu_s=1, wall_s=3, memory=1 << 28, file_size=1 << 20, folder=4 << 20)
Judge = Callable[[str], Verdict]

PLACES = {"private": True, "private, calls not filtered": False, "landlock": True}
FILTERED = [place for place, filtered in PLACES.items() if filtered]


@pytest.fixture(scope="module")
def zygotes() -> Iterator[dict[str, pool._Zygote | SandboxError]]:
    """One zygote of each kind; in place of one that this machine cannot make, why."""
    made: dict[str, pool._Zygote | SandboxError] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "_INTERPRETER", interpreter())
        for name, filtered in PLACES.items():
            try:
                made[name] = pool._Zygote(name.partition(",")[0], LIMITS, filtered)
            except SandboxError as error:
                made[name] = error
    yield made
    for zygote in made.values():
        if isinstance(zygote, pool._Zygote):
            zygote._end()


def interpreter() -> str:
    """This interpreter, or one of the system if root's is in a folder that nobody else may enter."""
    if os.geteuid() == 0 and not all(parent.stat().st_mode & 0o001 for parent in Path(sys.base_prefix).parents):
        return shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
    return sys.executable


def _judge(zygotes: dict[str, pool._Zygote | SandboxError], place: str) -> Judge:
    zygote = zygotes[place]
    if isinstance(zygote, SandboxError):
        pytest.skip(str(zygote))

    def judge(program: str) -> Verdict:
        verdict = zygote.judge(program)
        assert verdict is not None, "the program ended its sandbox"
        return verdict

    return judge


@pytest.fixture(params=PLACES)
def judge(request: pytest.FixtureRequest, zygotes: dict[str, pool._Zygote | SandboxError]) -> Judge:
    """Runs a program in a place and gives its verdict."""
    return _judge(zygotes, request.param)


@pytest.fixture(params=FILTERED)
def judge_filtered(request: pytest.FixtureRequest, zygotes: dict[str, pool._Zygote | SandboxError]) -> Judge:
    return _judge(zygotes, request.param)


@pytest.fixture
def mark() -> Iterator[str]:
    """A name for processes, by which none is left on this machine in the end."""
    name = f"raysft-{secrets.token_hex(4)}"
    yield name
    assert [process.pid for process in psutil.process_iter() if name in _name(process)] == []


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


@pytest.fixture
def everyones() -> Iterator[Path]:
    """A folder that the machine's own rights let everyone read and change, with a file `kept` in it."""
    folder = Path(tempfile.mkdtemp(prefix="raysft-test-"))
    folder.chmod(0o777)
    (folder / "kept").write_text("as it was")
    (folder / "kept").chmod(0o666)
    yield folder
    shutil.rmtree(folder)


def test_a_program_passes_if_it_raises_nothing(judge: Judge) -> None:
    assert judge("assert 1 + 1 == 2") == Verdict("passed")
    assert judge("print('hello')\nassert True") == Verdict("passed", output="hello\n")
    assert judge("assert 1 + 1 == 3, 'not three'") == Verdict("failed", "AssertionError: not three")
    assert judge("def f(:\n  pass").reason.startswith("SyntaxError")
    assert judge("raise ValueError('one\\ntwo')").reason == "ValueError: one"
    assert judge("raise ValueError('\\x1b[2J')").reason == "ValueError: ?[2J"
    assert judge("'\ud800'").outcome == "failed"
    assert judge("import ctypes\nctypes.string_at(0)") == Verdict("crashed", "SIGSEGV")
    assert judge("class E(Exception):\n  def __str__(self): raise SystemExit\nraise E").reason == "E"


def test_a_program_knows_the_standard_library_and_no_more(judge: Judge) -> None:
    modules = "math, re, json, random, decimal, collections, itertools, heapq, hashlib, typing, datetime, tempfile"
    assert judge(f"import {modules}").passed
    assert judge("import numpy").reason == "ModuleNotFoundError: No module named 'numpy'"
    assert judge("import threading\nthreads = [threading.Thread(target=print) for _ in range(4)]").passed
    assert judge("assert __name__ != '__main__'").passed
    assert judge("input()").reason.startswith("EOFError")


def test_a_program_has_a_process_and_an_empty_folder_of_its_own(judge: Judge) -> None:
    assert judge("import builtins, math\nbuiltins.left = 1\nmath.pi = 3").passed
    judge("open('left', 'w').write('behind')")
    look = "import builtins, math, os\nassert not hasattr(builtins, 'left') and math.pi > 3.1\nprint(os.listdir('.'))"
    assert judge(look) == Verdict("passed", output="[]\n")
    home = "import os\nassert os.environ['HOME'] == os.environ['TMPDIR'] == os.getcwd()\nprint(sorted(os.environ))"
    assert judge(home).output == "['HOME', 'LANG', 'PATH', 'PYTHONHASHSEED', 'TMPDIR']\n"
    streams = "import os\nprint([n for n in range(256) if os.path.exists(f'/dev/fd/{n}') or _is_open(n)])"
    is_open = "def _is_open(n):\n  import os\n  try: os.fstat(n)\n  except OSError: return False\n  return True\n"
    assert judge(is_open + streams).output == "[0, 1, 2, 3]\n"
    assert list(Path(tempfile.gettempdir()).glob("raysft-program-*")) == []


ENDLESS = {
    "loop": "while True: pass",
    "printing": "while True: print('x' * 1000)",
    "errors": "import sys\nwhile True: sys.stderr.write('x' * 1000)",
    "sleeping": "import time\ntime.sleep(100)",
    "signals caught": "import signal\nfor n in (15, 2, 1, 24, 14): signal.signal(n, lambda *_: None)\nwhile True: pass",
    "stopped": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "in its report": "class E(Exception):\n  def __str__(self):\n    while True: pass\nraise E",
    "threads": "import threading\nfor _ in range(8): threading.Thread(target=[].extend, args=(iter(int, 1),)).start()\n"
    "while True: pass",
    "one call": "10 ** 10 ** 10",
}


def test_what_does_not_end_is_ended() -> None:
    with allowed(True):
        verdicts = dict(zip(ENDLESS, run_programs(list(ENDLESS.values()), LIMITS), strict=True))
    kinds = {name: verdict.outcome for name, verdict in verdicts.items()}
    assert kinds == dict.fromkeys(ENDLESS, "timed out")
    assert all(len(verdict.output) <= 2000 for verdict in verdicts.values())
    assert len(verdicts["printing"].output) == 2000


@pytest.mark.parametrize("loop", ["while True: pass", "import time\ntime.sleep(100)"])
def test_a_time_limit_is_said(judge_filtered: Judge, loop: str) -> None:
    assert judge_filtered(loop) == Verdict("timed out", "limits: 3 s, 1 of CPU")
    assert judge_filtered("assert True").passed


def test_memory_is_limited(judge: Judge) -> None:
    assert judge("held = [bytearray(1 << 20) for _ in range(1 << 20)]").reason == "MemoryError"
    assert not judge("import mmap\nheld = [mmap.mmap(-1, 1 << 26) for _ in range(1000)]").passed
    assert not judge("def f(n): return f(n + 1)\nimport sys\nsys.setrecursionlimit(10 ** 9)\nf(0)").passed


FORK_BOMB = """
import ctypes, os
ctypes.CDLL(None).prctl(15, b"{mark}", 0, 0, 0)
forked = 0
for _ in range(1 << 16):
    try:
        if os.fork() == 0:
            while True:
                try: os.fork()
                except OSError: pass
        forked += 1
    except OSError:
        break
print(forked)
while True: pass
"""
DAEMON = """
import ctypes, os, time
ctypes.CDLL(None).prctl(15, b"{mark}", 0, 0, 0)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(0)
os.wait()
"""


def test_a_fork_bomb_and_a_daemon_end_with_their_program(judge: Judge, mark: str) -> None:
    verdict = judge(FORK_BOMB.format(mark=mark))
    assert verdict.outcome == "timed out"
    assert not verdict.output or int(verdict.output) <= LIMITS.processes
    judge(DAEMON.format(mark=mark))
    assert judge("assert True").passed


def test_a_filtered_program_starts_no_process(judge_filtered: Judge) -> None:
    for start in ("os.fork()", "os.posix_spawn('/bin/true', ['true'], {})", "os.execv('/bin/true', ['true'])"):
        assert judge_filtered(f"import os\n{start}").outcome == "failed"
    spawned = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', ''])"
    assert judge_filtered(spawned).outcome == "failed"
    assert judge_filtered("import ctypes\nprint(ctypes.CDLL(None).vfork())").output == "-1\n"


CONNECT = """
import socket
reached = []
for family, address in ((socket.AF_INET, ("127.0.0.1", {port})), (socket.AF_INET6, ("::1", {port})), (1, "\\0{name}")):
    try:
        with socket.socket(family) as link:
            link.connect(address)
            link.sendall(b"here")
        reached.append(family)
    except OSError:
        pass
assert not reached
"""


def test_no_listener_is_reached(judge: Judge) -> None:
    name = f"raysft-{secrets.token_hex(4)}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as local:
        local.bind(f"\0{name}")
        local.listen()
        program = CONNECT.format(port=tcp.getsockname()[1], name=name)
        outside = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
        assert b"AssertionError" in outside.stderr  # it does connect where nothing keeps it from that
        for listener in (tcp, local):
            listener.setblocking(False)
            listener.accept()[0].close()
        assert judge(program).passed
        for listener in (tcp, local):
            with pytest.raises(BlockingIOError):
                listener.accept()


READ = """
import glob, os
found = []
for path in {paths!r} + glob.glob("/proc/*/environ") + glob.glob("/proc/*/cmdline") + glob.glob("/dev/shm/*"):
    try:
        with open(path, "rb") as file:
            found.append(file.read())
    except OSError:
        pass
print(found, os.environ)
assert not [text for text in found if text]
"""


def test_files_and_environments_cannot_be_read(judge: Judge, everyones: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSFT_SECRET", "of the environment")
    paths = [str(everyones / "kept"), f"/proc/{os.getpid()}/environ", "/proc/self/environ", f"/proc/{os.getppid()}/mem"]
    paths += ["/etc/passwd", "/etc/hostname", str(Path.home() / ".bashrc"), "/proc/self/maps", __file__]
    assert judge(READ.format(paths=paths)).passed
    listing = f"import os\nfor path in {[str(everyones), str(Path.home()), '/etc', '/proc/1']!r}:\n"
    assert judge(f"{listing}  try: names = os.listdir(path)\n  except OSError: continue\n  print(names)").output in (
        "",
        "['ld.so.cache']\n",  # all of /etc in a root of its own
    ) or Path(sys.base_prefix).is_relative_to(Path.home())
    climb = "import os\nos.chdir('..')\nos.chdir('../..')\nprint('kept' in os.listdir('.'))"
    assert "True" not in judge(climb).output


HARM = """
import os, shutil
folder, kept = {folder!r}, {kept!r}
done = []
for harm in (
    lambda: os.unlink(kept), lambda: os.rename(kept, kept + ".gone"), lambda: open(kept, "w"),
    lambda: open(kept, "a").write("more"), lambda: os.truncate(kept, 0), lambda: os.chmod(kept, 0),
    lambda: os.utime(kept, (0, 0)), lambda: os.link(kept, folder + "/linked"), lambda: os.symlink(kept, folder + "/to"),
    lambda: os.mkdir(folder + "/made"), lambda: open(folder + "/new", "w"), lambda: shutil.rmtree(folder),
    lambda: os.close(os.open(kept, os.O_RDONLY | os.O_TRUNC)), lambda: os.setxattr(kept, "user.mark", b"1"),
    lambda: os.mknod(folder + "/pipe", 0o10644), lambda: open("/usr/lib/new", "w"), lambda: open("/new", "w"),
    lambda: os.open(folder, os.O_TMPFILE | os.O_RDWR),
):
    try:
        harm()
        done.append(harm.__code__.co_firstlineno)
    except OSError:
        pass
assert not done, done
"""


def test_files_outside_stay_as_they_were(judge: Judge, everyones: Path) -> None:
    kept = everyones / "kept"
    before = kept.stat()
    assert judge(HARM.format(folder=str(everyones), kept=str(kept))).passed
    assert kept.read_text() == "as it was"
    assert (kept.stat().st_mode, kept.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert [path.name for path in everyones.iterdir()] == ["kept"]


FILL = """
import os
written, names = 0, 0
for folder in (".", "/tmp", "/dev/shm", "/var/tmp", {everyones!r}):
    for name in range(5000):
        try:
            with open(f"{{folder}}/{{names}}-{{name}}", "xb", buffering=0) as file:
                names += 1
                while True:
                    written += file.write(bytes(1 << 16))
        except OSError:
            if not names:
                break
print(written, names)
"""


def test_a_disk_is_not_filled(judge: Judge, everyones: Path) -> None:
    verdict = judge(FILL.format(everyones=str(everyones)))
    assert verdict.passed, verdict
    written, names = map(int, verdict.output.split())
    assert written <= LIMITS.folder
    assert names <= 1024
    assert judge("import os\nassert os.listdir('.') == []").passed
    one = judge("with open('one', 'wb', buffering=0) as file:\n  for _ in range(64): file.write(bytes(1 << 16))")
    assert one.outcome == "failed"  # EFBIG at its size, or no file at all


SIGNALS = """
import os, signal
for pid in {pids!r}:
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP):
        try: os.kill(pid, number)
        except OSError: pass
        try: os.killpg(pid, number)
        except OSError: pass
"""


def test_nobody_else_is_killed(judge: Judge) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        pids = [bystander.pid, os.getpid(), 1, *(child.pid for child in psutil.Process().children(recursive=True))]
        judge(SIGNALS.format(pids=pids))
        judge(SIGNALS.format(pids=[0, -1]))
        judge("import os\nos.kill(os.getppid(), 9)")
        assert bystander.poll() is None
        assert psutil.Process(bystander.pid).status() != psutil.STATUS_STOPPED
        assert bystander.communicate(b"\n", timeout=60) is not None
        assert bystander.returncode == 0
    assert judge("assert True").passed


def test_a_filtered_program_changes_no_limits_but_its_own(judge_filtered: Judge) -> None:
    limit = "import os, resource\nresource.prlimit({pid}, resource.RLIMIT_CPU, (1, 1))"
    for other in ("os.getppid()", "1", str(os.getpid())):
        assert judge_filtered(limit.format(pid=other)).reason.startswith("PermissionError")
    assert judge_filtered(limit.format(pid="0")).passed
    assert judge_filtered("import os\nos.sched_setaffinity(os.getppid(), [0])").reason.startswith("PermissionError")


# Ways to look for the token, and what to do with it: write what could be it, and end as if all were well.
_PRY = """
import os, sys
def frames():
    frame = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back
def texts(value, depth=0):
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, (list, tuple, set, frozenset)) and depth < 3:
        for entry in value:
            yield from texts(entry, depth + 1)
    elif isinstance(value, dict) and depth < 3:
        yield from texts(list(value.values()), depth + 1)
    elif type(value).__name__ == "cell":
        try: yield from texts(value.cell_contents, depth + 1)
        except ValueError: pass
def forge(found):
    found = {text for text in found if len(text) == 32 and not set(text) - set(b"0123456789abcdef")}
    for text in found:
        os.write(3, text)
    if found:
        os._exit(0)
"""
FORGED = [
    "exit(0)",
    "import sys\nsys.exit()",
    "raise SystemExit(0)",
    "import os\nos._exit(0)",
    "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "import atexit, os\natexit.register(os._exit, 0)",
    "import sys\nsys.exit = lambda *_: None",
    "import sys\nsys.excepthook = lambda *_: None",
    "import builtins\nbuiltins.AssertionError = type('Passed', (BaseException,), {})",
    "import builtins\nbuiltins.BaseException = builtins.Exception = ValueError",
    "import builtins\nbuiltins.compile = builtins.exec = lambda *_: None",
    "def check(_): pass",
    "print('passed')\nprint('+')\nimport os\nos._exit(0)",
    "import os\nfor n in range(256):\n  try: os.write(n, b'+passed')\n  except OSError: pass\nos._exit(0)",
    'import os\nfor n in range(256):\n  try: os.write(n, b\'{"outcome": "passed"}\\n\')\n  except OSError: pass',
    "import os\nos.closerange(0, 256)",
    "import os\nos.close(3)\nos.open('/dev/null', os.O_WRONLY)",
    "import sys\nsys.settrace(lambda *_: None)\nsys.stdout = None",
    "import threading, os, time\nthreading.Thread(target=lambda: os._exit(0)).start()\ntime.sleep(3)",
    "import __main__\n__main__.__dict__.clear()",
    _PRY + "forge([text for frame in frames() for value in frame.f_locals.values() for text in texts(value)])",
    _PRY + "import gc\nforge([text for value in gc.get_objects() for text in texts(value)])",
    _PRY
    + "import gc\nforge([text for value in gc.get_objects() for of in gc.get_referents(value) for text in texts(of)])",
    _PRY + "for frame in frames():\n  if 'execute' in frame.f_globals:\n"
    "    frame.f_globals['execute']('pass', [b'mine'], 3)\nos._exit(0)",
    "import os, sys\nsys.audit('raysft.program_ended')\nos._exit(0)",
    "import os, sys\ndef f(*_): sys.audit('raysft.program_ended')\nsys._getframe = f\nf()\nos._exit(0)",
    "import sys\nfor name in list(sys.modules):\n  if 'raysft' in name: sys.modules[name].__dict__.clear()",
]


@pytest.mark.parametrize("program", FORGED, ids=map(str, range(len(FORGED))))
def test_a_test_that_fails_cannot_be_talked_away(judge: Judge, program: str) -> None:
    verdict = judge(f"{program}\ndef check(found):\n    assert found == 1\ncheck(2)")
    assert verdict.outcome in ("failed", "crashed"), verdict
    assert verdict.reason


def test_a_zygote_holds_no_secret(
    zygotes: dict[str, pool._Zygote | SandboxError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSFT_SECRET", "of the environment")
    place = pool.protections().place
    with pool._Zygote(place, LIMITS) as zygote:
        own = psutil.Process(zygote._process.pid)
        for process in (own, *own.children(recursive=True)):
            assert set(process.environ()) <= {"PATH", "LANG", "PYTHONHASHSEED", "LD_LIBRARY_PATH"}
        if os.geteuid() == 0:
            assert set(own.uids()) == {65534}
    assert not psutil.pid_exists(own.pid)
