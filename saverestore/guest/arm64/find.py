"""Finding what a guest shares with Xen in its memory: pure, on pages as arrays.

No call tells where a guest had its shared_info page mapped, or registered a vCPU's vcpu_info; Linux does both once,
at boot, and never again. So both are looked for by what Xen writes into them.

    shared_info (xen/public/xen.h, arm64)           vcpu_info
      0x000  one vcpu_info                            0  u8  evtchn_upcall_pending
      0x030  evtchn_pending[64], evtchn_mask[64]      8  u64 evtchn_pending_sel: a bit for each word of the above
      0x430  u32 wc_version, even when whole
      0x434  u32 wc_sec; 0x438 u32 wc_nsec
      0x43c  u32 wc_sec_hi
      0x440  zero to the end of the page           16  time, which Xen leaves alone on ARM: zero
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from saverestore.kernels.page import PAGE_SIZE, PAGE_WORDS
from saverestore.kernels.xxh3 import page_digests

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]

EVENT_WORDS = 64
PENDING_AT = 0x30
MASK_AT = PENDING_AT + 8 * EVENT_WORDS
WC_AT = MASK_AT + 8 * EVENT_WORDS
SHARED_INFO_BYTES = 0x440
WC_SEC_LEAST = 1_500_000_000  # 2017: a host whose clock is before that has none
NS_PER_S = 1_000_000_000

PENDING = 1
PENDING_SEL_WORD = 1
VCPU_INFO_WORDS = 6  # these two, and struct vcpu_time_info of 32 bytes


@dataclass(frozen=True)
class WallClock:
    """The wall clock in a shared_info page."""

    version: int
    sec: int
    nsec: int

    @property
    def ns(self) -> int:
        """All of it."""
        return self.sec * NS_PER_S + self.nsec


def wall_clock(page: U8) -> WallClock:
    """As it stands in this page now."""
    version, sec, nsec = (int(word) for word in page[WC_AT : WC_AT + 12].view("<u4"))
    return WallClock(version, sec, nsec)


def shared_info_candidates(pages: U8) -> npt.NDArray[np.intp]:
    """Which of `pages`, shape (n, 4096), may be a shared_info page by what stands in them: their indices."""
    clock = pages[:, WC_AT : WC_AT + 12].view("<u4")
    version, sec, nsec = clock[:, 0], clock[:, 1], clock[:, 2]
    likely = np.flatnonzero((version != 0) & (version % 2 == 0) & (sec > WC_SEC_LEAST) & (nsec < NS_PER_S))
    empty = ~pages[likely, SHARED_INFO_BYTES:].any(axis=1)
    return likely[empty]


def event_since(page: U8, digest: U64) -> int | None:
    """At which byte of `page` a vcpu_info got an event since the page had this digest; None when that is not all.

    Found by undoing: of all words that could be it, the one with which undone the page digests to what it was. So
    nothing else that changed goes unnoticed.
    """
    words = page.view("<u8")
    pending = np.flatnonzero(page.reshape(-1, 8)[:, 0] == PENDING)
    for at in pending[pending + PENDING_SEL_WORD < len(words)]:
        selector = int(words[at + PENDING_SEL_WORD])
        bits = [bit for bit in range(64) if selector >> bit & 1]
        # A bit of the selector was set by it, or was set already; so was "pending", though not both.
        for cleared, bit in [(True, None), *((True, bit) for bit in bits), *((False, bit) for bit in bits)]:
            before = words.copy()
            if cleared:
                before[at] &= ~np.uint64(0xFF)
            if bit is not None:
                before[at + PENDING_SEL_WORD] = selector & ~(1 << bit)
            if (page_digests(before.view(np.uint8).reshape(1, PAGE_SIZE))[0] == digest).all():
                return int(at) * 8
    return None


def pending_candidates(pages: U8) -> tuple[npt.NDArray[np.intp], U64]:
    """Where in `pages`, shape (n, 4096), a vcpu_info with an event pending may be: byte offsets, and selectors.

    On ARM Xen writes nothing but these two into one, so what follows them, its time, is zero.
    """
    words = pages.reshape(-1).view("<u8")
    at = np.flatnonzero(words == PENDING)
    at = at[at % PAGE_WORDS <= PAGE_WORDS - VCPU_INFO_WORDS]
    for word in range(PENDING_SEL_WORD + 1, VCPU_INFO_WORDS):
        at = at[words[at + word] == 0]
    return at * 8, words[at + PENDING_SEL_WORD].astype(np.uint64)


def undo_in_shared_info(page: U8, before: bytes) -> None:
    """Take an event channel of ours out of a shared_info page, in place; `before`: the page when there was none yet.

    The guest being stopped, nobody but us has unmasked a channel; events of others that came meanwhile stay.
    """
    pending = page[PENDING_AT:MASK_AT].view("<u8")
    mask = page[MASK_AT:WC_AT].view("<u8")
    mask_before = np.frombuffer(before, dtype="<u8")[MASK_AT // 8 : WC_AT // 8]
    for word in np.flatnonzero(mask != mask_before):
        pending[word] &= ~(mask[word] ^ mask_before[word])
        mask[word] = mask_before[word]
