from __future__ import annotations

from xenlab.triple_faults import MOST_MAYBE_OURS, Verdict, judge, parse

HVM_RECORDS = """\
(XEN) HVM d12v0 save: CPU
(XEN) HVM12 restore: MTRR 0
"""


def dump(cs: str, rip: str, domid: int = 6) -> str:
    """What Xen 4.17 prints, in its own form."""
    return f"""\
(XEN) d{domid}v0 Triple fault - invoking HVM shutdown action 1
(XEN) *** Dumping Dom{domid} vcpu#0 state: ***
(XEN) ----[ Xen-4.17.7  x86_64  debug=n  Not tainted ]----
(XEN) CPU:    0
(XEN) RIP:    {cs}:[<{rip}>]
(XEN) RFLAGS: 0000000000000246   CONTEXT: hvm guest (d{domid}v0)
(XEN) rax: 00000001f2ca0000   rbx: ffff8aa0896202c0   rcx: 0000000000000004
(XEN) rdx: 0000000000001314   rsi: ffff8aa0896313e0   rdi: 0000000000001314
(XEN) rbp: 0000000000000000   rsp: ffff8301f7b6ff70   r8:  0000000000000001
(XEN) cr3: 00000001f7ecc000   cr2: ffff82d0402044a5
(XEN) ds: 0000   es: 0000   fs: 0000   gs: 0000   ss: 0000   cs: {cs}
"""


XENS_OWN = dump("e008", "ffff82d0402044a5")
OF_ITS_PROGRAM = dump("0033", "0000000000402ff0", domid=11)
OF_ITS_KERNEL = dump("0010", "ffffffff81e01234", domid=12)


def verdicts(log: str) -> list[bool]:
    return [fault.by_emulator for fault in parse(log)]


def test_a_dump_with_xens_own_registers_is_the_emulators() -> None:
    assert verdicts(HVM_RECORDS + XENS_OWN + HVM_RECORDS) == [True]


def test_a_dump_with_the_guests_registers_is_not_whether_of_its_kernel_or_of_a_program() -> None:
    assert verdicts(OF_ITS_PROGRAM) == [False]
    assert verdicts(OF_ITS_KERNEL) == [False]


def test_each_of_several_has_its_own_registers() -> None:
    log = XENS_OWN + HVM_RECORDS + OF_ITS_KERNEL + XENS_OWN
    assert verdicts(log) == [True, False, True]
    found = parse(log)
    assert "ffffffff81e01234" in found[1].dump
    assert "Dom6" not in found[1].dump


def test_xens_segment_with_another_address_or_its_address_in_another_segment_is_the_guests() -> None:
    assert verdicts(dump("e008", "ffffffff81e01234")) == [False]
    assert verdicts(dump("0010", "ffff82d0402044a5")) == [False]


def test_xens_address_elsewhere_in_the_dump_makes_it_not_the_emulators() -> None:
    assert "ffff82d0402044a5" in OF_ITS_PROGRAM
    assert verdicts(OF_ITS_PROGRAM) == [False]


def test_without_registers_it_is_taken_for_the_guests() -> None:
    first = XENS_OWN.splitlines(keepends=True)[0]
    assert verdicts(first) == [False]
    assert verdicts(first + XENS_OWN) == [False, True]


def test_a_log_without_one_has_none() -> None:
    assert parse(HVM_RECORDS) == []
    assert parse("") == []


def judged(log: str, *, booted: tuple[int, ...] = (), before: int = 0) -> Verdict:
    return judge(parse(log), lambda domid: domid in booted, before)


def test_a_failure_without_a_triple_fault_has_no_excuse() -> None:
    assert judged(HVM_RECORDS) is Verdict.NO_EXCUSE


def test_the_emulators_and_those_of_guests_that_only_booted_are_no_failure() -> None:
    assert judged(XENS_OWN) is Verdict.REPEAT
    assert judged(OF_ITS_PROGRAM, booted=(11,)) is Verdict.REPEAT
    assert judged(XENS_OWN + OF_ITS_KERNEL, booted=(12,), before=1) is Verdict.REPEAT


def test_one_that_may_be_ours_must_not_come_back() -> None:
    assert judged(OF_ITS_PROGRAM) is Verdict.PASS_TWICE
    assert judged(XENS_OWN + OF_ITS_PROGRAM, booted=(12,)) is Verdict.PASS_TWICE
    assert judged(OF_ITS_PROGRAM, before=MOST_MAYBE_OURS - 1) is Verdict.PASS_TWICE
    assert judged(OF_ITS_PROGRAM, before=MOST_MAYBE_OURS) is Verdict.FAILED


def test_one_of_a_domain_that_is_not_named_may_be_ours() -> None:
    assert judged(OF_ITS_PROGRAM.replace("d11v0", ""), booted=(11,)) is Verdict.PASS_TWICE
