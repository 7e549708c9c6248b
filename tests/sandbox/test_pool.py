"""The sandbox as the harness asks for it: in order, when allowed, and refused where there is none."""

from __future__ import annotations

import sys

import psutil
import pytest

from raysft.evaluation.sandbox import pool
from raysft.evaluation.sandbox.pool import Protections, SandboxError, Verdict, allowed, run_programs
from tests.sandbox.test_hostile_programs import LIMITS, interpreter

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(sys.platform != "linux", reason="programs are run on Linux only"),
]


def test_programs_come_back_in_order_and_only_when_allowed() -> None:
    programs = [f"assert {number} % 3" for number in range(40)]
    before = psutil.Process().children(recursive=True)
    with pytest.raises(SandboxError, match="run_code is false"):
        run_programs(programs)
    with allowed(False), pytest.raises(SandboxError, match="run_code is false"):
        run_programs(programs)
    with allowed(True):
        assert [verdict.passed for verdict in run_programs(programs, LIMITS)] == [bool(n % 3) for n in range(40)]
        assert run_programs([]) == []
    with pytest.raises(SandboxError):
        run_programs(programs)
    assert psutil.Process().children(recursive=True) == before


def test_a_sandbox_that_ends_is_made_anew_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Dying(pool._Zygote):
        def judge(self, program: str) -> Verdict | None:
            seen.append(program)
            if program == "dies always" or (program == "dies once" and seen.count(program) == 1):
                self._process.kill()
            return super().judge(program)

    monkeypatch.setattr(pool, "_Zygote", Dying)
    monkeypatch.setattr(pool.os, "sched_getaffinity", lambda _: {0})
    with allowed(True):
        verdicts = run_programs(["dies once", "dies always", "assert True"], LIMITS)
    assert verdicts[0].reason.startswith("SyntaxError")
    assert verdicts[1] == Verdict("crashed", "its sandbox ended with it")
    assert verdicts[2].passed
    assert seen == ["dies once", "dies once", "dies always", "dies always", "assert True"]


def test_a_machine_that_holds_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Protections("open", network="", files="", processes="filter", user="own", reasons=("private: no", "x: no"))
    monkeypatch.setattr(pool, "protections", lambda: bare)
    monkeypatch.setattr(pool, "_INTERPRETER", interpreter())
    with pytest.raises(SandboxError) as refused:
        pool.require(True)
    line = str(refused.value)
    assert line.startswith("this machine cannot keep programs from its network and files (private: no; x: no); valid:")
    assert "run_code: unprotected" in line
    assert "\n" not in line
    assert pool.require("unprotected") is bare
    with allowed("unprotected"):  # with what there is: time and memory are limited all the same
        assert [verdict.outcome for verdict in run_programs(["assert 1", "while True: pass"], LIMITS)] == [
            "passed",
            "timed out",
        ]


def test_another_system_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="on Linux only, and this is darwin"):
        pool.protections.__wrapped__()


def test_an_interpreter_that_programs_could_not_read_is_found_out_at_once() -> None:
    """Where it is in root's own folder, all of its programs would fail for want of the standard library."""
    if interpreter() == sys.executable:
        pytest.skip("everyone may read this interpreter")
    for place in ("landlock", "open"):
        with pytest.raises(SandboxError, match=r"a first program did not run \(user: nobody\): "):
            pool._Zygote(place, LIMITS)
    with pool._Zygote("private", LIMITS) as zygote:
        verdict = zygote.judge("import decimal")
        assert verdict is not None
        assert verdict.passed


def test_what_holds_programs_here_is_said() -> None:
    found = pool.protections()
    assert found.missing == (), found.reasons
    assert found.problem == ""
    assert str(found).startswith("network: ")
    assert all(part.partition(": ")[2] not in ("", "open") for part in str(found).split("; "))
