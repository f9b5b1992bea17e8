"""Started as systemd starts `pymigrate receive --tls`: the connection is standard input.

python3 fake_service.py FOLDER CERT KEY CA ALLOWED      FOLDER: of a `TableHost`
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "vectors"))

from table_host import TableCopy, TableHost

from saverestore.engine.progress import Silence
from saverestore.migrate.addresses import standard_input
from saverestore.migrate.channel import Channel
from saverestore.migrate.destination import receive
from saverestore.migrate.linking import door_of
from saverestore.transport.tls import Credentials
from saverestore.transport.tls_peers import read_allowed

folder, *files, allowed = (Path(word) for word in sys.argv[1:])
tls = Credentials(*files), read_allowed(allowed)
with (
    standard_input(*tls, timeout_s=60) as connection,
    Channel(connection) as channel,
):
    host = TableHost(folder)
    receive(channel, host, Silence(), journals=host.journals, copy_of=TableCopy, open_door=door_of(tls))
print("what is printed is not for the peer")
