"""The order of records, as one state machine for reader and writer.

x86 PV (version 3):

    PV_INFO  policies…  STATIC_DATA_END  P2M_FRAMES  ┌──────────────── set ────────────────┐
    ─ start ──────────► static ────────► layout ───► memory ──────────────────────► tail ──► END
                                                     │ PAGE_DATA…                   │  │
                                                     │ VERIFY PAGE_DATA… ► compare ─┘  │
                                                     └──────── CHECKPOINT ◄────────────┘

    policies   CPUID_POLICY, MSR_POLICY: before or after PV_INFO
    tail       SHARED_INFO and VCPU_BASIC (both needed), VCPU_EXTENDED, _XSAVE, _MSRS, in any order

x86 HVM (version 3):

    policies…  STATIC_DATA_END  ┌──────────────── set ────────────────┐
    ─ static ─────────────────► memory ──────────────────────► tail ──► END

    tail       HVM_CONTEXT (needed) and HVM_PARAMS, in any order

arm64 (version 3, this project's own):

    ARM64_PLATFORM  STATIC_DATA_END  ┌──────────────── set ────────────────┐
    ─ start ──────► static ────────► memory ──────────────────────► tail ──► END

    tail       ARM64_SHARED_INFO and ARM64_VCPU (both needed) and HVM_PARAMS (needed), in any order

`draft-b` (version 1) has the order of version 3.

Version 2 has no policies and no STATIC_DATA_END; the first P2M_FRAMES (PV) or PAGE_DATA (HVM)
stands for it. TSC_INFO may come anywhere, as legacy images that were converted have it among the
pages. So may PROVENANCE and unknown optional records. IMAGE_DIGEST comes directly before END, and FOLLOWING,
if there is one, directly before that.
After CHECKPOINT the next set begins, or END: the state is then that of the checkpoint. A stream
with VERIFY has no checkpoints.

Stock Xen checks less: it takes pages after the tail, or an END with nothing before it. No Xen
writes that, and here a domain is not created from half a state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import NoReturn

from saverestore.stream.errors import OutOfOrder
from saverestore.stream.layout import OPTIONAL_BIT, DomainType, RecordType, record_name


class State(Enum):
    """Where in an image a record stands."""

    START = "at the start"
    STATIC = "among the static data"
    LAYOUT = "after the static data"
    MEMORY = "among the pages"
    COMPARE = "among the pages to compare"
    TAIL = "after the pages"
    COMPARE_TAIL = "after the pages to compare"
    CHECKPOINTED = "after a checkpoint"
    FOLLOWING_ANNOUNCED = "after the record about the bytes that follow"
    DIGESTED = "after the image's digest"
    ENDED = "after the end"


NOTHING_BETWEEN = frozenset({State.FOLLOWING_ANNOUNCED, State.DIGESTED, State.ENDED})
"""Where not even an optional record may come but those that are named."""

WITHOUT_STATIC_DATA_END = 2
"""The image version that has neither STATIC_DATA_END nor policies: Xen 4.6 to 4.13."""

Transitions = Mapping[State, Mapping[RecordType, State]]

R = RecordType
VCPU_TYPES = (R.X86_PV_VCPU_BASIC, R.X86_PV_VCPU_EXTENDED, R.X86_PV_VCPU_XSAVE, R.X86_PV_VCPU_MSRS)
POLICY_TYPES = (R.X86_CPUID_POLICY, R.X86_MSR_POLICY)

TAIL_TYPES: dict[DomainType, tuple[RecordType, ...]] = {
    DomainType.X86_PV: (R.SHARED_INFO, *VCPU_TYPES),
    DomainType.X86_HVM: (R.HVM_PARAMS, R.HVM_CONTEXT),
    DomainType.ARM64: (R.HVM_PARAMS, R.ARM64_SHARED_INFO, R.ARM64_VCPU),
}
NEEDED_IN_TAIL: dict[DomainType, frozenset[RecordType]] = {
    DomainType.X86_PV: frozenset({R.SHARED_INFO, R.X86_PV_VCPU_BASIC}),
    DomainType.X86_HVM: frozenset({R.HVM_CONTEXT}),
    DomainType.ARM64: frozenset({R.HVM_PARAMS, R.ARM64_SHARED_INFO, R.ARM64_VCPU}),
}

KINDS = {DomainType.X86_PV: "x86 PV", DomainType.X86_HVM: "x86 HVM", DomainType.ARM64: "arm64"}

NEVER = {
    R.TOOLSTACK: "is deprecated and means nothing to any Xen since 4.6",
    R.CHECKPOINT_DIRTY_PFN_LIST: "is of the back channel of COLO, and not valid in an image",
}


def _set_of(tail: Iterable[RecordType]) -> dict[State, dict[RecordType, State]]:
    """Transitions within one set of pages and tail records, the same for both kinds of guest."""
    tail = tuple(tail)
    to_tail = dict.fromkeys(tail, State.TAIL)
    to_compare_tail = dict.fromkeys(tail, State.COMPARE_TAIL)
    memory = {R.PAGE_DATA: State.MEMORY, R.VERIFY: State.COMPARE} | to_tail
    return {
        State.MEMORY: memory,
        State.COMPARE: {R.PAGE_DATA: State.COMPARE} | to_compare_tail,
        State.TAIL: to_tail | {R.CHECKPOINT: State.CHECKPOINTED, R.END: State.ENDED},
        State.COMPARE_TAIL: to_compare_tail | {R.END: State.ENDED},
        State.CHECKPOINTED: {R.PAGE_DATA: State.MEMORY} | to_tail | {R.END: State.ENDED},
        State.FOLLOWING_ANNOUNCED: {R.IMAGE_DIGEST: State.DIGESTED},
        State.DIGESTED: {R.END: State.ENDED},
        State.ENDED: {},
    }


def _transitions(domain: DomainType, version: int) -> Transitions:
    rest = _set_of(TAIL_TYPES[domain])
    has_static_end = version != WITHOUT_STATIC_DATA_END
    if domain is DomainType.ARM64:
        # No Xen ever wrote one of version 2: it could not restore it either.
        start = {R.ARM64_PLATFORM: State.STATIC} if has_static_end else {}
        return {State.START: start, State.STATIC: {R.STATIC_DATA_END: State.MEMORY}} | rest
    policies = POLICY_TYPES if has_static_end else ()
    if domain is DomainType.X86_HVM:
        if not has_static_end:
            return rest
        return {
            State.STATIC: dict.fromkeys(policies, State.STATIC) | {R.STATIC_DATA_END: State.MEMORY}
        } | rest
    start = dict.fromkeys(policies, State.START) | {R.X86_PV_INFO: State.STATIC}
    layout = {R.X86_PV_P2M_FRAMES: State.MEMORY}
    if not has_static_end:
        return {State.START: start, State.STATIC: layout} | rest
    static = dict.fromkeys(policies, State.STATIC) | {R.STATIC_DATA_END: State.LAYOUT}
    return {State.START: start, State.STATIC: static, State.LAYOUT: layout} | rest


class Grammar:
    """Follows one image record by record.

    `verifying`: whether PAGE_DATA is now to be compared. `ended`: whether END has come.
    `static_data_ended`: whether STATIC_DATA_END, or what implies it in version 2, has come.
    """

    def __init__(self, domain: DomainType, version: int) -> None:
        """Start behind the domain header of an image of this version (1, 2 or 3)."""
        self._domain = domain
        self._version = version
        self._transitions = _transitions(domain, version)
        self._needed = NEEDED_IN_TAIL[domain]
        self._missing = set(self._needed)
        self.state = next(iter(self._transitions))
        self.static_data_ended = False
        self.verifying = False

    @property
    def ended(self) -> bool:
        """Whether END has come."""
        return self.state is State.ENDED

    def advance(self, type: int, offset: int) -> None:
        """Take a record of `type` that begins at `offset`; `OutOfOrder` leaves the state as it was."""
        if self.state in NOTHING_BETWEEN and type not in self._transitions[self.state]:
            self._refuse(type, offset)
        if type in (R.FOLLOWING, R.IMAGE_DIGEST):
            if self.state is not State.FOLLOWING_ANNOUNCED:
                self._check_end(type, offset)
            self.state = State.DIGESTED if type == R.IMAGE_DIGEST else State.FOLLOWING_ANNOUNCED
            return
        if type & OPTIONAL_BIT or (type == R.X86_TSC_INFO and self._domain is not DomainType.ARM64):
            return
        known = RecordType(type)
        next_state = self._transitions[self.state].get(known)
        if next_state is None:
            self._refuse(type, offset)
        if known in (R.END, R.CHECKPOINT) and self.state is not State.DIGESTED:
            self._check_end(type, offset)
        if known == R.CHECKPOINT:
            self._missing = set(self._needed)
        self._missing.discard(known)
        self.verifying = self.verifying or known == R.VERIFY
        self.static_data_ended = next_state not in (State.START, State.STATIC)
        self.state = next_state

    def _check_end(self, type: int, offset: int) -> None:
        """The image, or one checkpoint of it, may end here."""
        if R.END not in self._transitions[self.state]:
            self._refuse(type, offset)
        if self._missing and self.state is not State.CHECKPOINTED:
            names = " and ".join(sorted(missing.name for missing in self._missing))
            raise OutOfOrder(f"{record_name(type)} before any {names} record", offset=offset, type=type)

    def _refuse(self, type: int, offset: int) -> NoReturn:
        for never, reason in NEVER.items():
            if type == never:
                raise OutOfOrder(f"{never.name} record: it {reason}", offset=offset, type=type)
        expected = sorted(self._transitions[self.state])
        if not expected:
            raise OutOfOrder(f"{record_name(type)} record {self.state.value}", offset=offset, type=type)
        could_come = ", ".join(name.name for name in expected)
        raise OutOfOrder(
            f"{record_name(type)} record {self.state.value} of an {KINDS[self._domain]} image of version "
            f"{self._version}, where there could be {could_come}",
            offset=offset,
            type=type,
        )
