"""Called as ssh is: HOST and a command line. HOST is the folder of a `TableHost`; the command is done here.

python3 fake_ssh.py FOLDER "pymigrate receive", or "xl migrate-receive", with -p or without
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "vectors"))

import fake_xl
from table_host import TableCopy, TableHost

from saverestore.engine.progress import Silence
from saverestore.migrate.addresses import ssh_arrived_at, standard_streams
from saverestore.migrate.channel import Channel
from saverestore.migrate.destination import receive
from saverestore.migrate.linking import door_beside_ssh
from saverestore.migrate.ssh_child import RECEIVE
from saverestore.migrate.xl_words import RECEIVE as XL_RECEIVE
from saverestore.migrate.xl_words import RECEIVE_PAUSED

folder, command = sys.argv[1:]
if command not in (RECEIVE, RECEIVE_PAUSED, XL_RECEIVE) or not Path(folder).exists():
    sys.exit(255)
host = TableHost(Path(folder))
if command != RECEIVE:
    fake_xl.FakeReceive(
        socket.socket(fileno=0), host, fake_xl.Script(), paused=command == RECEIVE_PAUSED
    ).run()
    sys.exit()
print("a greeting of a shell is not for the peer", file=sys.stderr)
with standard_streams("the source", timeout_s=60) as connection, Channel(connection) as channel:
    door = door_beside_ssh(ssh_arrived_at(os.environ))
    receive(channel, host, Silence(), journals=host.journals, copy_of=TableCopy, open_door=door)
