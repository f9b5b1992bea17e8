"""What to do about a failure, in words: each command names its own options, and whole command lines of others.

In a sentence a command line stands in quotes, so that it can be copied, and so that the tests can check each option
against the parser of the command that it belongs to; an option outside quotes is one of the command that prints it.
"""

from __future__ import annotations

import shlex

from saverestore.errors import Advice, Remedy, fact_of, remedies_of

PYSAVE, PYRESTORE, PYIMAGE, PYMIGRATE = "pysave", "pyrestore", "pyimage", "pymigrate"
HELPER, WATCHER = "pysave-helper", "pysave-watch"
COMMANDS = (PYSAVE, PYRESTORE, PYIMAGE, PYMIGRATE, HELPER, WATCHER)

DECOMPRESSORS = {
    "zstd": "zstd -dc --long=31",
    "gzip": "gzip -dc",
    "xz": "xz -dc",
    "lz4": "lz4 -dc",
}
"""By the object of DECOMPRESS: what writes the image to a pipe."""

ANYWHERE = {
    Remedy.RECOVER: "'pysave --recover {object}' repairs and resumes it",
    Remedy.RECOVER_IF_ABANDONED: (
        "if no other program is saving or migrating it, 'pysave --recover {object}' repairs and resumes it"
    ),
    Remedy.RECOVER_IF_LATE: "should it suspend later, 'pysave --recover {object}' resumes it",
    Remedy.RECOVER_UNLESS_THERE: (
        "look there: if it does not run there, 'pysave --recover {object}' resumes it here; if it does, "
        "'xl destroy {object}' removes it here"
    ),
    Remedy.WATCH: "'pysave-watch {object}' watches it",
    Remedy.LIST_DOMAINS: "'xl list' lists the domains",
    Remedy.UNPAUSE: "'xl unpause {object}' first",
    Remedy.UNPAUSE_NOW: "'xl unpause {object}' resumes it",
    Remedy.DESTROY_OLD: (
        "if the image should replace it, 'pyrestore --dry-run' first lists all other problems, and 'xl "
        "destroy {object}' then removes the old one"
    ),
    Remedy.DESTROY_LEFT: "'xl destroy {object}'",
    Remedy.DESTROY_IF_ABANDONED: "if no program is at work on it any more, 'xl destroy {object}' removes it",
    Remedy.PLUG_ALL_VCPUS: "'xl vcpu-set {object}' first",
    Remedy.DETACH_PCI: "or detach them with 'xl pci-detach {object} BDF'",
    Remedy.GIVE_ALL_MEMORY: "'xl mem-set {object}' gives it all of its memory first",
    Remedy.FREE_MEMORY: "make room: destroy another domain, or shrink one with 'xl mem-set', domain 0 included",
    Remedy.TRY_AGAIN: "try again",
    Remedy.RECOVER_MIGRATION: "'pymigrate recover {object}' settles it, and asks the other host where needed",
    Remedy.RECOVER_THERE: "'pymigrate recover {object}' at that host starts it",
    Remedy.FORCE_MIGRATION: (
        "if the other host is known never to run it, 'pymigrate recover --force run {object}' runs it here; if the "
        "other host is known to have it, 'pymigrate recover --force destroy {object}' removes the copy here"
    ),
    Remedy.LOOK_FOR_INCOMING: "look there: where 'xl list' shows {object}, it was not started",
    Remedy.LOOK_FOR_OUTGOING: (
        "look there: where 'xl list' shows {object} or {object}--migratedaway, that host still has its copy"
    ),
    Remedy.DESTROY_THERE: "where 'xl list' there shows {object}, 'xl destroy {object}' there removes it",
    Remedy.DESTROY_OUTGOING: "'xl destroy {object}--migratedaway' there removes its copy",
    Remedy.MAKE_CERTIFICATES: "'pymigrate make-ca DIR' and 'pymigrate make-cert DIR HOST' make them",
    Remedy.TRY_SSH: "'{object} true' shows whether ssh reaches it",
    Remedy.LET_DATA_THROUGH: (
        "'pymigrate receive --ports' there limits the ports that a firewall has to let through, "
        "'pymigrate --data-address' names another address, 'pymigrate --over-ssh' asks for ssh alone"
    ),
    Remedy.TRUST_NETWORK: "'pymigrate --trust-network' and 'pymigrate receive --trust-network' declare it trusted",
    Remedy.SAVE_WITHOUT_LIVE: "save it without live rounds",
    Remedy.DIRTY_BY_DIGEST: "'pysave --live --dirty digest' works without it",
    Remedy.STALL_WITHOUT_THROTTLE: "'pysave --live --on-stall stop' works without it",
    Remedy.WAIT_LONGER: "'pysave --suspend-timeout SECONDS' gives it more time",
    Remedy.SAVE_WITHOUT_DEVICES: "'pysave --force -p' saves it all the same{for_object}",
    Remedy.SAVE_PAUSED_AND_DESTROY: "'pysave --force -p' saves it, then 'xl destroy {object}'",
    Remedy.BARE_TOOLSTACK: "'pysave --toolstack bare' saves it without devices",
    Remedy.USE_XL: "'xl' itself may support it",
    Remedy.RESTORE_ANYWAY: "'pyrestore --force' restores it all the same",
    Remedy.NEWER_XEN: "update Xen; if this one has the fix, 'pysave --force' and 'pyrestore --force' work",
    Remedy.RESTORE_OVER_CHANGED_DISKS: (
        "put the disks back as they were, or 'pyrestore --force' restores it all the same: what the guest has in "
        "memory of its file systems may then destroy them"
    ),
    Remedy.RESTORE_WITHOUT_DEVICES: "'pyrestore --force' restores it without them",
    Remedy.RESTORE_BY_XL: "'xl restore' restores them",
    Remedy.RESTORE_ON_OTHER_CPU: (
        "restore it on a host like the one it was saved on, or 'pyrestore --force' restores it all the same: "
        "the guest may crash"
    ),
    Remedy.RENAME: "'pyrestore --name NAME' gives the restored domain another name",
    Remedy.NEW_UUID: (
        "'pyrestore --new-uuid --name NAME' restores a copy beside it; one that has disks needs 'pyrestore --config "
        "FILE', too"
    ),
    Remedy.GIVE_OTHER_DISKS: (
        "'pyrestore --config FILE' gives it disks of its own; 'pyrestore --force' is for file systems that are made "
        "to be shared"
    ),
    Remedy.GIVE_OTHER_MAC: "'pyrestore --config FILE' gives it another MAC",
    Remedy.LIST_IMAGES: "'pyimage list {object}' lists those there are",
    Remedy.OVERWRITE: "choose another name",
    Remedy.OTHER_PLACE: "free some space, or write to another place",
    Remedy.NO_SPACE_CHECK: "'pysave --no-space-check' tries it all the same",
    Remedy.PAGE_CACHE: "'pysave --cache auto' uses the page cache there",
    Remedy.DECOMPRESS: "decompress it through a pipe: '{decompressor} IMAGE | pyrestore -'",
    Remedy.DECOMPRESS_TO_FILE: "'zstd -d --long=31 IMAGE' decompresses the whole file",
    Remedy.MAKE_SEEKABLE: (
        "'pyimage convert --compress zstd -o FILE {object}' makes a file that allows random access"
    ),
    Remedy.CONVERT_TO_XEN: (
        "'pyimage convert --compress zstd -o FILE {object}' converts it to Xen's own format"
    ),
    Remedy.CHOOSE_DIGEST: "'pyimage convert --digest NAME' makes one",
    Remedy.DUMP_MEMORY: "'pyimage dump -o FILE IMAGE' writes its memory",
    Remedy.LET_LIBXL_START_IT: (
        "libxl starts it, not a person: 'LIBXL_SAVE_HELPER=/path/to/pysave-helper xl save DOMAIN FILE', "
        "see 'pysave-helper --help'"
    ),
}
"""Sentences that are right whichever command prints them."""

OWN = {
    PYSAVE: {
        Remedy.SAVE_WITHOUT_LIVE: "save it without --live",
        Remedy.DIRTY_BY_DIGEST: "--dirty digest works without it",
        Remedy.STALL_WITHOUT_THROTTLE: "--on-stall stop or abort works without it",
        Remedy.WAIT_LONGER: "--suspend-timeout SECONDS gives it more time",
        Remedy.SAVE_WITHOUT_DEVICES: "--force with -p or -c saves it all the same{for_object}",
        Remedy.SAVE_PAUSED_AND_DESTROY: "use --force with -p, then 'xl destroy {object}'",
        Remedy.BARE_TOOLSTACK: "--toolstack bare saves it without devices",
        Remedy.USE_XL: "'xl save' may support it",
        Remedy.OVERWRITE: "--overwrite replaces it",
        Remedy.NO_SPACE_CHECK: "--no-space-check tries it all the same",
        Remedy.PAGE_CACHE: "--cache auto uses the page cache there",
    },
    PYRESTORE: {
        Remedy.BARE_TOOLSTACK: "--toolstack bare restores it without devices",
        Remedy.USE_XL: "'xl restore' may support it",
        Remedy.RESTORE_ANYWAY: "--force restores it all the same",
        Remedy.RESTORE_OVER_CHANGED_DISKS: (
            "put the disks back as they were, or --force restores it all the same: what the guest has in memory of "
            "its file systems may then destroy them"
        ),
        Remedy.RESTORE_WITHOUT_DEVICES: "--force restores it without them",
        Remedy.RESTORE_ON_OTHER_CPU: (
            "restore it on a host like the one it was saved on, or with --force all the same: the guest may crash"
        ),
        Remedy.RENAME: "--name gives the restored domain another name",
        Remedy.DESTROY_OLD: (
            "if the image should replace it, --dry-run first lists all other problems, and 'xl destroy "
            "{object}' then removes the old one"
        ),
        Remedy.NEW_UUID: (
            "--new-uuid and --name NAME restore a copy beside it; one that has disks needs --config FILE, too"
        ),
        Remedy.GIVE_OTHER_DISKS: (
            "--config FILE gives it disks of its own; --force is for file systems that are made to be shared"
        ),
        Remedy.GIVE_OTHER_MAC: "--config FILE gives it another MAC",
    },
    PYIMAGE: {
        Remedy.OVERWRITE: "--overwrite replaces it",
        Remedy.CHOOSE_DIGEST: "--digest makes a new one",
        Remedy.DECOMPRESS: "decompress it through a pipe: '{decompressor} IMAGE | pyimage … -'",
    },
    PYMIGRATE: {
        Remedy.DIRTY_BY_DIGEST: "--dirty digest works without it",
        Remedy.STALL_WITHOUT_THROTTLE: "--on-stall stop or abort works without it",
        Remedy.WAIT_LONGER: "--suspend-timeout SECONDS gives it more time",
        Remedy.USE_XL: "'xl migrate' may support it",
        Remedy.RENAME: "--name gives it another name there",
        Remedy.DESTROY_OLD: "if the one there is an old copy, 'xl destroy {object}' there removes it",
        Remedy.NEW_UUID: "if it is the one that counts, this one is not to be migrated",
        Remedy.TRUST_NETWORK: "--trust-network declares it trusted",
    },
    HELPER: {
        Remedy.SAVE_WITHOUT_LIVE: "'xl save' saves it without live rounds",
        Remedy.DIRTY_BY_DIGEST: "PYSAVE_DIRTY=digest works without it",
        Remedy.STALL_WITHOUT_THROTTLE: "PYSAVE_ON_STALL=stop or PYSAVE_ON_STALL=abort works without it",
        Remedy.USE_XL: "libxl's own helper may support it",
        Remedy.RESTORE_ON_OTHER_CPU: (
            "restore it on a host like the one it was saved on, or with PYSAVE_CHECK_CPU=no all the same: "
            "the guest may crash"
        ),
    },
    WATCHER: {},
}
"""What a command says with its own options, or settings, instead."""


def words(advice: Advice, prog: str) -> str:
    """The sentence that `prog`, one of COMMANDS, prints for this."""
    sentence = OWN[prog].get(advice.remedy) or ANYWHERE[advice.remedy]
    thing = advice.object
    is_file = advice.remedy in (Remedy.LIST_IMAGES, Remedy.MAKE_SEEKABLE, Remedy.CONVERT_TO_XEN)
    return sentence.format(
        object=shlex.quote(str(thing)) if is_file else thing,
        for_object="" if thing is None else f", for '{thing}'",
        decompressor=DECOMPRESSORS.get(str(thing), ""),
    )


def in_full(error: BaseException, prog: str) -> str:
    """The line that `prog` prints for a failure: what failed, how things stand now, what to do."""
    return "; ".join([fact_of(error), *(words(advice, prog) for advice in remedies_of(error))])
