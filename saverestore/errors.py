"""Every failure a user can meet: the exit code it ends with, a stable name, and what to do about it, as data.

The class says whose fault it is. `str(error)` is the fact: what failed, on which thing (domain, file, offset), and
the state now. It names no option: what to do is in `remedies`, which `cli/remedies.py` puts into words with the
options of the command that runs. `name` is for programs, and finer than the exit code; docs/reference/errors.md has
the table.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum, StrEnum, auto
from typing import Self


class ExitCode(IntEnum):
    """What the commands exit with. `--help` and docs/reference/errors.md print the `meaning`."""

    meaning: str

    def __new__(cls, code: int, meaning: str = "") -> Self:
        """A number that has a `meaning`, too; one that is looked up is named by its number alone."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    DONE = 0, "done"
    USAGE = 2, "wrong usage; no changes were made"
    DOMAIN = (
        3,
        "the domain: not found, in the wrong state, does not answer, or cannot be saved or restored here",
    )
    IMAGE = 4, "the image: not an image, damaged, incomplete, or not for this host"
    IO = 5, "reading or writing failed: disk full, reader gone"
    XEN = 6, "Xen, or one of its libraries, refused"
    IN_DOUBT = (
        7,
        "the domain was given to another host, which has not answered, or could not start it: it does not run here",
    )
    INTERRUPTED = 130, "interrupted by Ctrl-C or another signal"


class ErrorName(StrEnum):
    """Causes that a program may want to tell apart. A name is never given another meaning; `meaning` explains it.

    The exit code is the error's, not the name's: a file that is not found may be a wrong request, or fail a write.
    """

    meaning: str

    def __new__(cls, name: str, meaning: str) -> Self:
        """A string that has a `meaning`, too."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.meaning = meaning
        return member

    # ---- the request
    USAGE = "usage", "the request makes no sense: an option's value, or a setting"
    FILE_EXISTS = "file_exists", "the file to be written exists, and the request was not to replace it"
    FILE_NOT_FOUND = (
        "file_not_found",
        "a file to be read, or the directory of one to be written, does not exist; or the store has no such image",
    )
    FILE_UNSUITABLE = "file_unsuitable", "it is a directory, or a file of an unsuitable kind or name"
    NOT_RANDOM_ACCESS = (
        "not_random_access",
        "the command needs random access, and the image can only be read from front to back",
    )
    PAGE_NOT_IN_IMAGE = "page_not_in_image", "the image has none of these pages"
    PACKAGE_MISSING = "package_missing", "a Python package that this needs is not installed"

    # ---- the domain
    DOMAIN_NOT_FOUND = "domain_not_found", "there is no such domain"
    DOMAIN_AMBIGUOUS = "domain_ambiguous", "several domains have that name"
    DOMAIN_BUSY = (
        "domain_busy",
        "another program saves, restores, migrates or recovers the domain, has resumed it, or left it incomplete",
    )
    DOMAIN_PAUSED = "domain_paused", "the domain is paused and cannot answer a request to suspend"
    DOMAIN_STOPPED = "domain_stopped", "the domain has powered off or crashed, or is being destroyed"
    DOMAIN_NEEDS_RECOVERY = (
        "domain_needs_recovery",
        "a save or a migration was killed, and what it left has to be repaired first",
    )
    DOMAIN_NOT_READY = "domain_not_ready", "the guest has not finished booting"
    DOMAIN_UNRESPONSIVE = "domain_unresponsive", "the guest did not suspend in time"
    DOMAIN_CANNOT_SUSPEND = "domain_cannot_suspend", "the guest reports that it cannot suspend"
    DOMAIN_CHANGED = (
        "domain_changed",
        "the domain's memory layout or devices changed during the save; a second try may work",
    )
    DOMAIN_UNREADABLE = "domain_unreadable", "memory, page tables or registers of the domain cannot be read"
    DOMAIN_UNSUPPORTED = "domain_unsupported", "the domain is of a kind, or has state, that cannot be saved"
    DEVICES_UNSUPPORTED = (
        "devices_unsupported",
        "the domain has devices that cannot be saved or restored in this way",
    )
    DEVICE_MODEL_FAILED = (
        "device_model_failed",
        "the domain's device model does not answer, or reported an error",
    )
    CONFIGURATION_DAMAGED = (
        "configuration_damaged",
        "what libxl keeps of the domain's configuration cannot be read",
    )
    CONFIGURATION_DIFFERS = (
        "configuration_differs",
        "the configuration that was given is for another machine than the domain's",
    )
    LOG_DIRTY_UNAVAILABLE = "log_dirty_unavailable", "Xen cannot log dirty pages of this domain"
    THROTTLE_UNAVAILABLE = "throttle_unavailable", "the domain's scheduler has no processor cap"
    SAVE_STALLED = "save_stalled", "more live rounds did not help, and the request was to end the save then"
    DOMAIN_EXISTS = "domain_exists", "a domain with the image's UUID exists already"
    DOMAIN_NAME_TAKEN = "domain_name_taken", "a domain of that name exists already"
    DISKS_DIFFER = "disks_differ", "the other host sees other disks under the same paths"
    DISKS_UNFLUSHED = "disks_unflushed", "what a suspended domain wrote could not be brought to its disks"
    DISKS_CHANGED = "disks_changed", "a disk of the image's domain was written to after the save"
    DISKS_IN_USE = (
        "disks_in_use",
        "another domain of this host writes to a disk that the restored one would write to",
    )
    COMMAND_FAILED = "command_failed", "the command to be run while the domain is suspended failed"
    HOST_LACKS_MEMORY = "host_lacks_memory", "this host has too little free memory for the domain"
    HOST_LACKS_DEVICE = "host_lacks_device", "this host lacks a disk, bridge or device that the domain needs"
    HOST_UNSUPPORTED = "host_unsupported", "this host is set up in a way that is not supported"
    TOOLSTACK_UNSUITABLE = "toolstack_unsuitable", "the toolstack chosen cannot save or restore this domain"
    CHECKPOINTS_UNSUPPORTED = "checkpoints_unsupported", "checkpointed streams (Remus, COLO) are unsupported"

    # ---- the image
    NOT_AN_IMAGE = "not_an_image", "the file is not an image of a Xen domain"
    IMAGE_TRUNCATED = "image_truncated", "the image ends too early"
    IMAGE_DAMAGED = "image_damaged", "the image breaks its format, or its parts contradict each other"
    DIGEST_MISMATCH = "digest_mismatch", "the image's content does not have the digest that it should have"
    DIGEST_MISSING = "digest_missing", "the image has no digest, and one was required"
    IMAGE_UNSUPPORTED = "image_unsupported", "the image is of a format or version that cannot be read here"
    CONFIGURATION_MISSING = "configuration_missing", "the image has no domain configuration"
    CPU_FEATURES_MISSING = "cpu_features_missing", "the image needs CPU features that this host lacks"
    HOST_INCOMPATIBLE = "host_incompatible", "the image needs a host of another kind"
    IMAGE_REFUSED = "image_refused", "Xen or libxl refused what the image holds"

    # ---- reading and writing
    DISK_FULL = "disk_full", "no room where the image is to be written"
    PEER_CLOSED = "peer_closed", "the program at the other end of a pipe or socket has gone"
    PERMISSION_DENIED = "permission_denied", "the system does not permit this user to read or write there"
    IO_FAILED = "io_failed", "reading or writing failed for another reason"
    OUT_OF_MEMORY = "out_of_memory", "the domain in which the command runs has no memory left"

    # ---- another host
    PEER_UNREACHABLE = "peer_unreachable", "the other host, or the program there, could not be reached"
    PEER_NOT_TRUSTED = (
        "peer_not_trusted",
        "over TLS, one host does not accept the other: its certificate, or its protocol",
    )
    SAVE_IN_DOUBT = (
        "save_in_doubt",
        "an image was sent to a program that restores it, which has not said what came of it; exit code 7",
    )
    PEER_NOT_RESTORED = (
        "peer_not_restored",
        "an image was sent to a program that could not restore it; the domain is where it was",
    )
    PEER_SILENT = "peer_silent", "the other host has sent nothing for too long"
    PEER_VERSION = (
        "peer_version",
        "the other host speaks no version of the migration protocol that is known here",
    )
    PROTOCOL_VIOLATED = "protocol_violated", "the other host sent what is not valid in the migration protocol"
    SAME_HOST = "same_host", "the other host is this host"
    MIGRATION_UNSUPPORTED = "migration_unsupported", "the domain cannot be migrated, or not in this way"
    MIGRATION_ABORTED = (
        "migration_aborted",
        "the other host aborted the migration; the domain is at the source",
    )
    MIGRATION_BUSY = "migration_busy", "another process works on this migration"
    MIGRATION_IN_DOUBT = (
        "migration_in_doubt",
        "the domain was granted to the other host, which has not answered, or lost it; exit code 7",
    )
    MIGRATION_NOT_STARTED = (
        "migration_not_started",
        "the domain is at the other host, complete, and could not be started there; exit code 7",
    )
    MIGRATION_NOT_FOUND = "migration_not_found", "no migration of that domain is recorded on this host"
    MIGRATION_TOO_LATE = (
        "migration_too_late",
        "the domain has been granted to the other host: too late to cancel",
    )
    JOURNAL_UNREADABLE = "journal_unreadable", "the record of a migration is damaged, or of a newer version"

    # ---- Xen and its libraries
    XEN_REFUSED = "xen_refused", "Xen refused a call"
    LIBXL_FAILED = "libxl_failed", "libxl could not create, restore or start the domain"
    LIBXL_GONE = "libxl_gone", "libxl ended while its helper was at work"
    TOOLSTACK_UNAVAILABLE = "toolstack_unavailable", "the toolstack cannot be used on this host"
    INSTALLATION_INCOMPLETE = (
        "installation_incomplete",
        "a program or module of this package is not installed",
    )
    FINAL_STATE_FAILED = (
        "final_state_failed",
        "the image is complete, but the domain could not be destroyed, paused or resumed afterwards",
    )

    # ---- neither
    INTERRUPTED = "interrupted", "Ctrl-C or another signal; exit code 130"
    UNEXPECTED = "unexpected", "an unexpected error: please report it"


class Remedy(Enum):
    """What somebody can do about a failure. A comment says what the object of its `Advice` is, if any."""

    # ---- the domain
    RECOVER = auto()  # domid: have what a save left behind put right
    RECOVER_IF_ABANDONED = auto()  # the same, if a person knows that no other program saves or moves it
    RECOVER_IF_LATE = auto()  # domid: the same, should the guest suspend after all
    RECOVER_UNLESS_THERE = auto()  # name: the same, if a person knows that it does not run elsewhere
    WATCH = auto()  # domid: have it looked after when it powers off or reboots
    LIST_DOMAINS = auto()
    UNPAUSE = auto()  # domid: before it can be saved
    UNPAUSE_NOW = auto()  # domid: what a failure has left paused, or somebody else
    DESTROY_OLD = auto()  # domid of what the image is to take the place of
    DESTROY_LEFT = auto()  # domid of what is incomplete
    DESTROY_IF_ABANDONED = auto()  # the same, if a person knows that nobody is completing it
    PLUG_ALL_VCPUS = auto()  # "DOMID NUMBER"
    DETACH_PCI = auto()  # domid
    GIVE_ALL_MEMORY = auto()  # "DOMID MIB": so that none of it is populated on demand
    FREE_MEMORY = auto()
    TRY_AGAIN = auto()

    # ---- a migration
    RECOVER_MIGRATION = auto()  # name: ask the other host, and settle it
    RECOVER_THERE = auto()  # name: what is complete at the other host is started there
    FORCE_MIGRATION = auto()  # name: a person says who has the domain
    LOOK_FOR_INCOMING = auto()  # name of a copy that stock xl has not started: look for it at the other host
    LOOK_FOR_OUTGOING = auto()  # name: look whether the host that it comes from still has it
    DESTROY_THERE = auto()  # name: what may be left at the other host
    DESTROY_OUTGOING = auto()  # name: what is left at the host that it came from
    TRUST_NETWORK = auto()
    MAKE_CERTIFICATES = auto()
    TRY_SSH = auto()  # the command that reaches the host
    LET_DATA_THROUGH = auto()  # TLS connections beside ssh

    # ---- how it is saved
    SAVE_WITHOUT_LIVE = auto()
    DIRTY_BY_DIGEST = auto()  # find dirty pages by their contents
    STALL_WITHOUT_THROTTLE = auto()  # stop or abort when rounds no longer help
    WAIT_LONGER = auto()  # for the guest to suspend
    SAVE_WITHOUT_DEVICES = auto()  # the command that brings them back, or None
    SAVE_PAUSED_AND_DESTROY = auto()  # domid
    BARE_TOOLSTACK = auto()  # which loses all devices
    USE_XL = auto()  # Xen's own tool may do what is unsupported here

    # ---- how it is restored
    RESTORE_ANYWAY = auto()  # without what this host lacks
    NEWER_XEN = auto()  # the host's hypervisor is known to be bad, unless a distribution mended it
    RESTORE_OVER_CHANGED_DISKS = auto()  # at the risk of its file systems
    RESTORE_WITHOUT_DEVICES = auto()
    RESTORE_BY_XL = auto()  # which brings devices back
    RESTORE_ON_OTHER_CPU = auto()  # at the guest's own risk
    RENAME = auto()  # give the restored domain another name
    NEW_UUID = auto()  # give it another UUID and name: a copy beside the original
    GIVE_OTHER_DISKS = auto()  # by another configuration
    GIVE_OTHER_MAC = auto()  # the same

    # ---- files and images
    LIST_IMAGES = auto()  # a store's folder
    OVERWRITE = auto()  # the file
    OTHER_PLACE = auto()  # free some space, or write elsewhere
    NO_SPACE_CHECK = auto()  # where a file system has more room than it says
    PAGE_CACHE = auto()  # where direct I/O cannot be had
    DECOMPRESS = auto()  # by the program, into a pipe: "zstd", "gzip", "xz" or "lz4"
    DECOMPRESS_TO_FILE = auto()
    MAKE_SEEKABLE = auto()  # the image
    CONVERT_TO_XEN = auto()  # the image
    CHOOSE_DIGEST = auto()  # of a conversion
    DUMP_MEMORY = auto()

    # ---- the helper
    LET_LIBXL_START_IT = auto()


@dataclass(frozen=True)
class Advice:
    """One thing that somebody can do, and what it is to be done to; see `Remedy`."""

    remedy: Remedy
    object: int | str | None = None


class SaveRestoreError(Exception):
    """Base of all failures this package raises on purpose. `str()` of it is the fact, without remedies."""

    exit_code: ExitCode = ExitCode.XEN
    name: ErrorName = ErrorName.UNEXPECTED
    remedies: tuple[Advice, ...] = ()

    def __init__(
        self, message: str, *, name: ErrorName | None = None, remedies: Sequence[Advice] = ()
    ) -> None:
        super().__init__(message)
        if name is not None:
            self.name = name
        self.remedies = tuple(remedies)


class UsageError(SaveRestoreError):
    """The request itself cannot be carried out as asked: options or file names."""

    exit_code = ExitCode.USAGE
    name = ErrorName.USAGE


class DomainError(SaveRestoreError):
    """The domain is not there, not in a state to be saved, or has what cannot be saved."""

    exit_code = ExitCode.DOMAIN
    name = ErrorName.DOMAIN_UNSUPPORTED


class ImageError(SaveRestoreError):
    """The image is not one, is broken, or is of a kind that this host cannot take.

    `offset` counts bytes from the start of the source, and is part of the text.
    """

    exit_code = ExitCode.IMAGE
    name = ErrorName.IMAGE_DAMAGED

    def __init__(
        self,
        message: str,
        *,
        offset: int | None = None,
        name: ErrorName | None = None,
        remedies: Sequence[Advice] = (),
    ) -> None:
        self.offset = offset
        text = message if offset is None else f"{message} (at byte {offset:#x} = {offset})"
        super().__init__(text, name=name, remedies=remedies)


class TransportError(SaveRestoreError):
    """Reading or writing failed: disk full, reader gone, file system errors."""

    exit_code = ExitCode.IO
    name = ErrorName.IO_FAILED


class XenRefused(SaveRestoreError):
    """Xen, or one of its libraries, refused a call."""

    exit_code = ExitCode.XEN
    name = ErrorName.XEN_REFUSED


class Interrupted(SaveRestoreError):
    """Ctrl-C or SIGTERM; what was begun has been undone by the time this is printed."""

    exit_code = ExitCode.INTERRUPTED
    name = ErrorName.INTERRUPTED


NAMES_OF_ERRNO = {
    errno.ENOSPC: ErrorName.DISK_FULL,
    errno.EDQUOT: ErrorName.DISK_FULL,
    errno.EFBIG: ErrorName.DISK_FULL,  # vfat takes no file of 4 GiB
    errno.EPIPE: ErrorName.PEER_CLOSED,
    errno.ECONNRESET: ErrorName.PEER_CLOSED,
    errno.EACCES: ErrorName.PERMISSION_DENIED,
    errno.EPERM: ErrorName.PERMISSION_DENIED,
    errno.EROFS: ErrorName.PERMISSION_DENIED,
    errno.ENOENT: ErrorName.FILE_NOT_FOUND,
    errno.ENOTDIR: ErrorName.FILE_NOT_FOUND,
}


def name_of_errno(number: int | None) -> ErrorName:
    """The name of a failed read or write with this error number."""
    return NAMES_OF_ERRNO.get(number or 0, ErrorName.IO_FAILED)


def exit_code_of(error: BaseException) -> ExitCode:
    """What a command ends with that fails with this."""
    if isinstance(error, SaveRestoreError):
        return error.exit_code
    return ExitCode.XEN if isinstance(error, ImportError) or _is_of_xen(error) else ExitCode.IO


def name_of(error: BaseException) -> ErrorName:
    """The name of any failure, also of those that are not of this package."""
    if isinstance(error, SaveRestoreError):
        return error.name
    if isinstance(error, ImportError):
        return ErrorName.INSTALLATION_INCOMPLETE
    if isinstance(error, MemoryError):
        return ErrorName.OUT_OF_MEMORY
    if _is_of_xen(error):
        return ErrorName.XEN_REFUSED
    return name_of_errno(error.errno) if isinstance(error, OSError) else ErrorName.UNEXPECTED


def _is_of_xen(error: BaseException) -> bool:
    """Whether it is a `pyxc.XenError`, which cannot be imported where Xen's headers are missing."""
    return hasattr(error, "call")


def remedies_of(error: BaseException) -> tuple[Advice, ...]:
    """What can be done about it, of any exception; see `advise`."""
    return tuple(getattr(error, "remedies", ()))


def advise(error: BaseException, advice: Advice) -> None:
    """Give an error a remedy more, as `add_note` gives it a fact: any exception, by whoever tidies up after it."""
    error.remedies = (*remedies_of(error), advice)  # type: ignore[attr-defined]


def fact_of(error: BaseException) -> str:
    """The error and, from whoever tidied up after it, the state that things are in now; no remedies."""
    if isinstance(error, MemoryError):
        text = "out of memory in this domain"
    else:
        text = str(error) or type(error).__name__
        if not isinstance(error, SaveRestoreError | OSError | ImportError):
            text = f"{type(error).__name__}: {text}"
    return "; ".join([text, *getattr(error, "__notes__", [])])
