"""Finding a guest's p2m table in a made-up machine memory."""

from __future__ import annotations

import numpy as np
import pytest

from saverestore.errors import DomainError
from saverestore.guest.x86.p2m_walk import walk_list, walk_tree, without_repeated_tail

PFNS_A_FRAME = 512
L1_SPAN = 512 * 4096  # bytes that one L1 table maps
L2_SPAN = 512 * L1_SPAN
L3_SPAN = 512 * L2_SPAN
LINUX_VADDR = 0xFFFF_C900_0000_0000  # where Linux has had it: vmalloc space


class Machine:
    """Frames by number, made as they are needed; `read` is what the walk is given."""

    def __init__(self) -> None:
        self.frames: dict[int, np.ndarray] = {}
        self._next = 100
        self.nr_read = 0

    def new_frame(self) -> int:
        self._next += 7
        self.frames[self._next] = np.zeros(512, dtype=np.uint64)
        return self._next

    def read(self, mfns: np.ndarray) -> np.ndarray:
        self.nr_read += len(mfns)
        return np.concatenate([self.frames[int(mfn)] for mfn in mfns])

    def map_at(self, root: int, vaddr: int, leaf: int, flags: int = 0x8000_0000_0000_0067) -> None:
        """Enter one page into the tables below `root`."""
        table = root
        for level in (4, 3, 2):
            slot = vaddr >> (12 + 9 * (level - 1)) & 511
            if not self.frames[table][slot]:
                self.frames[table][slot] = self.new_frame() << 12 | flags
            table = int(self.frames[table][slot]) >> 12 & (1 << 40) - 1
        self.frames[table][vaddr >> 12 & 511] = leaf << 12 | flags


def mapped_list(vaddr: int, nr_frames: int) -> tuple[Machine, int, list[int]]:
    machine = Machine()
    root = machine.new_frame()
    leaves = [1_000_000 + 3 * i for i in range(nr_frames)]
    for i, leaf in enumerate(leaves):
        machine.map_at(root, vaddr + i * 4096, leaf)
    return machine, root, leaves


# ---- the list, mapped by page tables -------------------------------------------------------------


@pytest.mark.parametrize("nr_frames", [1, 2, 511, 512, 513, 1300])
@pytest.mark.parametrize(
    "vaddr",
    [
        pytest.param(LINUX_VADDR, id="aligned"),
        pytest.param(LINUX_VADDR + 5 * 4096, id="begins inside an L1 table"),
        pytest.param(LINUX_VADDR + L2_SPAN - 3 * 4096, id="goes over into a second L2 table"),
        pytest.param(LINUX_VADDR + L3_SPAN - 700 * 4096, id="goes over into a second L3 table"),
        pytest.param(0x1000, id="in the lower half"),
    ],
)
def test_all_frames_of_a_list_are_found_in_order(vaddr, nr_frames):
    machine, root, leaves = mapped_list(vaddr, nr_frames)
    max_pfn = nr_frames * PFNS_A_FRAME - 1
    found, last = walk_list(machine.read, root, vaddr, max_pfn)
    assert found.tolist() == leaves
    assert last == max_pfn


def test_a_list_that_ends_inside_a_frame_has_that_frame_and_keeps_its_last_pfn():
    machine, root, leaves = mapped_list(LINUX_VADDR, 5)
    found, last = walk_list(machine.read, root, LINUX_VADDR, 4 * PFNS_A_FRAME)
    assert found.tolist() == leaves
    assert last == 4 * PFNS_A_FRAME


def test_only_the_tables_that_map_the_list_are_read():
    machine, root, _ = mapped_list(LINUX_VADDR, 600)
    walk_list(machine.read, root, LINUX_VADDR, 600 * PFNS_A_FRAME - 1)
    assert machine.nr_read == 1 + 1 + 1 + 2


@pytest.mark.parametrize("skew", [0, 5])
def test_a_tail_of_one_repeated_l1_table_is_no_part_of_the_list(skew):
    """Linux maps one table of invalid entries again and again behind the last real one."""
    vaddr = LINUX_VADDR + skew * 4096
    machine, root, leaves = mapped_list(vaddr, 2 * 512 - skew)
    l3 = int(machine.frames[root][vaddr >> 39 & 511]) >> 12 & (1 << 40) - 1
    l2 = int(machine.frames[l3][vaddr >> 30 & 511]) >> 12 & (1 << 40) - 1
    missing = machine.new_frame()
    first = (vaddr >> 21 & 511) + 2
    machine.frames[l2][first : first + 6] = missing << 12 | 0x67
    max_pfn = 7 * 512 * PFNS_A_FRAME - 1
    found, last = walk_list(machine.read, root, vaddr, max_pfn)
    assert found.tolist() == leaves
    assert last == len(leaves) * PFNS_A_FRAME - 1


@pytest.mark.parametrize(
    ("vaddr", "max_pfn"),
    [
        pytest.param(0xFFFF_8000_0000_0000, 0, id="in Xen's hole"),
        pytest.param(0xFFFF_87FF_FFFF_F000, 0, id="in the last page of Xen's hole"),
        pytest.param(0xFFFF_87FF_FFFF_F000, 512, id="begins in Xen's hole"),
        pytest.param(0x0000_7FFF_FFFF_F000, 512, id="goes over the end of the lower half"),
        pytest.param(0x0001_0000_0000_0000, 0, id="not canonical"),
        pytest.param(0x8000_0000_0000_0000, 0, id="not canonical either"),
    ],
)
def test_a_list_where_no_guest_can_have_one_is_refused_before_anything_is_read(vaddr, max_pfn):
    machine = Machine()
    with pytest.raises(DomainError, match=f"{vaddr:#x}"):
        walk_list(machine.read, 1, vaddr, max_pfn)
    assert machine.nr_read == 0


# ---- the tree ------------------------------------------------------------------------------------


def tree(nr_leaves: int) -> tuple[Machine, int, list[int]]:
    machine = Machine()
    root = machine.new_frame()
    leaves = [1_000_000 + 3 * i for i in range(nr_leaves)]
    for i, leaf in enumerate(leaves):
        if i % 512 == 0:
            middle = machine.new_frame()
            machine.frames[root][i // 512] = middle
        machine.frames[middle][i % 512] = leaf
    return machine, root, leaves


@pytest.mark.parametrize("nr_leaves", [1, 2, 512, 513, 1500])
def test_all_frames_of_a_tree_are_found_in_order(nr_leaves):
    machine, root, leaves = tree(nr_leaves)
    max_pfn = nr_leaves * PFNS_A_FRAME - 1
    found, last = walk_tree(machine.read, root, max_pfn)
    assert found.tolist() == leaves
    assert last == max_pfn


def test_a_tree_that_ends_inside_a_frame_has_that_frame():
    machine, root, leaves = tree(2)
    assert walk_tree(machine.read, root, PFNS_A_FRAME)[0].tolist() == leaves
    assert walk_tree(machine.read, root, PFNS_A_FRAME - 1)[0].tolist() == leaves[:1]


def test_a_tail_of_one_repeated_middle_frame_is_no_part_of_the_tree():
    machine, root, leaves = tree(1024)
    machine.frames[root][2:9] = machine.new_frame()
    found, last = walk_tree(machine.read, root, 9 * 512 * PFNS_A_FRAME - 1)
    assert found.tolist() == leaves
    assert last == 1024 * PFNS_A_FRAME - 1


def test_a_tree_for_more_pfns_than_three_levels_hold_is_refused():
    machine, root, _ = tree(1)
    with pytest.raises(DomainError, match="too large"):
        walk_tree(machine.read, root, 512**3)
    assert machine.nr_read == 0


@pytest.mark.parametrize(
    ("mfns", "kept"),
    [
        ([5], 1),
        ([5, 6], 2),
        ([5, 5], 1),
        ([5, 6, 6], 1),
        ([5, 6, 7, 7, 7], 2),
        ([7, 7, 7], 1),
        ([7, 5, 7], 3),
    ],
)
def test_of_a_repeated_tail_nothing_is_kept_but_one_entry_always_is(mfns, kept):
    assert without_repeated_tail(np.array(mfns, dtype=np.uint64)) == kept
