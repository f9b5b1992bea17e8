"""What a command line asks of a migration, whatever is at the other side."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from saverestore.cli import certificates, common
from saverestore.cli.pymigrate import codec, link

if TYPE_CHECKING:
    from saverestore.migrate.requests import MigrateRequest


def request_of(given: argparse.Namespace, domain: str) -> MigrateRequest:
    """The migration of one domain. UsageError for what cannot be right, before anything is opened."""
    from saverestore.engine.policy import Limits, OnStall
    from saverestore.errors import UsageError
    from saverestore.migrate import addresses
    from saverestore.migrate.requests import MigrateRequest
    from saverestore.migrate.ssh_child import words_of

    destination = addresses.parse(given.host, tls=certificates.credentials_of(given))
    if given.to_xl and destination.kind != "ssh":
        raise UsageError(f"{given.host}: stock xl is reached by ssh only")
    addresses.check_trusted(destination, trusted=given.trust_network)
    destination = link.by_way(given, destination)
    return MigrateRequest(
        domain=domain,
        destination=destination,
        name=given.name,
        config=common.config_of(given),
        paused=given.paused,
        dirty=given.dirty,
        limits=Limits(
            max_rounds=given.max_rounds,
            max_time_s=given.max_time,
            downtime_s=given.downtime_s,
            on_stall=OnStall(given.on_stall),
        ),
        suspend_timeout_s=given.suspend_timeout,
        toolstack=given.toolstack,
        settle_for_s=given.settle_for,
        back=given.back,
        ssh=words_of(given.ssh),
        link=link.options_of(given, destination),
        codecs=codec.options_of(given),
    )


def in_force(given: argparse.Namespace, request: MigrateRequest) -> argparse.Namespace:
    """The options with the defaults that were in force, for a report."""
    from saverestore.guest.common.suspend import SUSPEND_TIMEOUT_S

    found = argparse.Namespace(**vars(given))
    found.suspend_timeout = given.suspend_timeout or SUSPEND_TIMEOUT_S
    found.codec = given.codec or codec.AUTO
    found.max_rounds = request.limits.rounds_at_most
    return found
